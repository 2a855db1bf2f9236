//! The responder of kind `http`: a service of the user's, in any language, that is sent each turn and answers it.
//!
//! ```text
//! POST url
//! Content-Type: application/json        Accept: application/json, text/event-stream
//! Idempotency-Key: <turn_id>            the same in every attempt at the turn, which is always of the same messages
//! traceparent: 00-...                   of the call's span
//! (headers and bearer_token of the configuration)
//!
//! { "turn_id": "...", "attempt": 1, "conversation": { "id", "key", "platform", "metadata" },
//!   "messages": [{ "text", "attachments"?, "payload"?, "sender"?, ... }], "history": [...], "prompt"? }
//! ```
//!
//! `prompt` is what a workflow adds to the service's instructions for this turn. The service answers with one JSON object,
//!
//! ```json
//! { "replies": [{ "content": "...", "buttons": [{ "label": "...", "payload": "..." }] }], "metadata": {}, "handoff": false }
//! ```
//!
//! of which only `replies` is needed, and not even that with `handoff`; a button's payload is its label unless it says
//! otherwise. Or it answers with `text/event-stream`: any number of events `delta` with `{ "text": "..." }`, shown to those
//! who watch and otherwise forgotten, then one event `reply` with that object. Other events are passed over.
//!
//! Under `burst = "interrupt"` a newer message ends the call, and what it was about comes again in another turn, under another key.
//!
//! Refuses to retry by itself: 429, 5xx, timeouts, broken connections, malformed answers and streams that end before `reply`
//! are [`TurnError::Retryable`], after `Retry-After` where the answer has it; any other status is final. Invariants: no error,
//! log or span holds a body or a header's value; at most [`BODY_MAX_BYTES`] of an answer are read.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, Url};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use self::answer::{Fault, Reader};
use super::{BuildError, Reply, Responder, TurnContext, TurnError, TurnRequest, within};
use crate::config::{HttpService, ResponderConfig, Secret};
use crate::http;
use crate::telemetry::{chain, current_traceparent, span};

mod answer;

pub use answer::{BODY_MAX_BYTES, REPLIES_MAX};

/// One `[responders.*]` table of kind `http`.
pub struct HttpResponder {
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    /// One call, from the first byte sent to the last received.
    timeout: Duration,
    slots: Semaphore,
}

/// What a service is sent.
#[derive(Serialize)]
struct Body<'a> {
    turn_id: Uuid,
    attempt: u32,
    #[serde(flatten)]
    request: &'a TurnRequest,
}

impl HttpResponder {
    /// `name` is the table's, for errors.
    ///
    /// # Errors
    /// When the address or a header cannot be used in a request, or the system has no CA certificates to check one by.
    pub fn new(name: &str, shared: &ResponderConfig, settings: &HttpService) -> Result<Self, BuildError> {
        let name = || name.to_owned();
        let url = Url::parse(&settings.url).map_err(|_| BuildError::Url { name: name() })?;
        let client = http::client(&url).map_err(|source| BuildError::HttpClient { name: name(), source })?;
        let headers = headers(settings).ok_or_else(|| BuildError::Headers { name: name() })?;
        let slots = Semaphore::new(shared.max_concurrency.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self { client, url, headers, timeout: shared.timeout, slots })
    }

    /// One call, within its own time and the turn's, under one span.
    async fn call(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let span = self.span(context, request);
        let give_up = context.deadline.min(Instant::now() + self.timeout);
        let exchange = self.exchange(context, request).instrument(span.clone());
        let outcome = tokio::time::timeout_at(give_up, exchange).await.unwrap_or(Err(Fault::Timeout));
        outcome.map_err(|fault| {
            span.record("error.type", fault.error_type());
            span.record("otel.status_code", "ERROR");
            fault.into()
        })
    }

    async fn exchange(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, Fault> {
        let body = Body { turn_id: context.turn_id, attempt: context.attempt, request };
        let mut call = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(ACCEPT, "application/json, text/event-stream")
            .header("idempotency-key", context.turn_id.to_string())
            .json(&body);
        if let Some(traceparent) = current_traceparent(&Span::current()) {
            call = call.header("traceparent", traceparent);
        }
        let response = call.send().await.map_err(broken)?;
        let status = response.status();
        Span::current().record("http.response.status_code", status.as_u16());
        if !status.is_success() {
            let after = http::retry_after(response.headers(), OffsetDateTime::now_utc());
            return Err(Fault::Status { status: status.as_u16(), after });
        }
        read(response, context).await
    }

    fn span(&self, context: &TurnContext, request: &TurnRequest) -> Span {
        tracing::info_span!(
            span::POST,
            otel.kind = "client",
            otel.status_code = Empty,
            http.request.method = "POST",
            http.request.resend_count = context.attempt.saturating_sub(1),
            http.response.status_code = Empty,
            server.address = self.url.host_str(),
            server.port = self.url.port_or_known_default(),
            "error.type" = Empty,
            gen_ai.conversation.id = %request.conversation.id,
            turnwise.turn.id = %context.turn_id,
            turnwise.attempt = context.attempt,
        )
    }
}

#[async_trait::async_trait]
impl Responder for HttpResponder {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        within(context, async {
            // Closed never: the semaphore lives as long as `self`.
            let _slot = self.slots.acquire().await;
            self.call(context, request).await
        })
        .await?
    }

    fn keeps_messages(&self) -> bool {
        true
    }

    fn describe(&self) -> Value {
        json!({ "provider": "http", "url": self.url.as_str() })
    }
}

impl std::fmt::Debug for HttpResponder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("HttpResponder").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

fn headers(settings: &HttpService) -> Option<HeaderMap> {
    let header = |(name, secret): (&String, &Secret)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(secret.expose()).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    settings.headers.iter().map(header).collect()
}

/// Reads the answer piece by piece, to the `reply` of a stream or to the end.
async fn read(mut response: Response, context: &TurnContext) -> Result<Reply, Fault> {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mut reader = Reader::new(content_type);
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if let Some(reply) = reader.push(&chunk, &|text| context.deltas.send(text))? {
            return Ok(reply);
        }
    }
    reader.end()
}

fn broken(error: reqwest::Error) -> Fault {
    Fault::Transport(chain(&error.without_url()))
}
