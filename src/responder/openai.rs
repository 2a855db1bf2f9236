//! The `openai` responder: any endpoint that speaks the OpenAI Chat Completions API, without streaming.
//!
//! Refuses to retry by itself: a busy or broken server is a [`TurnError::Retryable`], and the lane's backoff is the one
//! retry layer. What it does ask again, once each and at once, is what another wait would not mend: a shorter history
//! after "context too long", and the same question after an empty answer. Invariant: no error, log or span holds the API
//! key, the prompt or a message.
//!
//! Facts: <https://platform.openai.com/docs/api-reference/chat>; where Ollama, vLLM, llama.cpp and LiteLLM differ, the place
//! says so.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Response, Url};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::history::halve;
use super::{BuildError, Reply, Responder, TurnContext, TurnError, TurnRequest, within};
use crate::config::{OpenAi, ResponderConfig, Secret};
use crate::http;
use crate::store::StoredMessage;
use crate::telemetry::metric;

mod answer;
mod failure;
mod request;

use answer::Answer;
use failure::{Failure, Fault};

/// Largest answer read: a model's longest answer is some 100,000 tokens, about 0.5 MiB; times eight for JSON escapes and
/// fields unknown to us.
const BODY_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Longest text quoted from a server's error message.
const QUOTE_MAX_CHARS: usize = 200;

/// One `[responders.*]` table of kind `openai`.
#[derive(Debug)]
pub struct OpenAiResponder {
    client: reqwest::Client,
    url: Url,
    authorization: Option<HeaderValue>,
    settings: OpenAi,
    /// One call, from the first byte sent to the last received.
    timeout: Duration,
    slots: Semaphore,
}

impl OpenAiResponder {
    /// `name` is the table's, for errors.
    ///
    /// # Errors
    /// When the address or the key cannot be used in a request, or the system has no CA certificates to check one by.
    pub fn new(name: &str, shared: &ResponderConfig, settings: &OpenAi) -> Result<Self, BuildError> {
        let url = Url::parse(&format!("{}/chat/completions", settings.base_url))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| BuildError::BaseUrl { name: name.to_owned() })?;
        let authorization = settings.api_key.as_ref().map(|key| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
                .map_err(|_| BuildError::ApiKey { name: name.to_owned() })?;
            value.set_sensitive(true);
            Ok(value)
        });
        let client = http::client(&url).map_err(|source| BuildError::HttpClient { name: name.to_owned(), source })?;
        Ok(Self {
            client,
            url,
            authorization: authorization.transpose()?,
            settings: settings.clone(),
            timeout: shared.timeout,
            slots: Semaphore::new(shared.max_concurrency.clamp(1, Semaphore::MAX_PERMITS)),
        })
    }

    /// At most three calls: one, one with half the history, one more after an empty answer.
    async fn converse(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let mut history = Arc::clone(&request.history);
        let (mut halved, mut asked_again) = (false, false);
        loop {
            match self.call(context, request, &history).await {
                Ok(Answer::Text(text)) => return Ok(Reply::text(text)),
                Ok(Answer::Empty) if !asked_again => asked_again = true,
                Ok(Answer::Empty) => return Err(answer::empty_twice()),
                Err(failure) if failure.fault == Fault::ContextTooLong && !halved && !history.is_empty() => {
                    halved = true;
                    history = halve(&history).into();
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// One call, within its own time and the turn's, under one span.
    async fn call(
        &self,
        context: &TurnContext,
        request: &TurnRequest,
        history: &[StoredMessage],
    ) -> Result<Answer, Failure> {
        let span = self.span(context, request);
        let started = Instant::now();
        let give_up = context.deadline.min(started + self.timeout);
        let exchange = self.exchange(request::body(&self.settings, &self.url, history, &request.messages));
        let outcome = match tokio::time::timeout_at(give_up, exchange.instrument(span.clone())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::timeout(started.elapsed())),
        };
        let error_type = outcome.as_ref().err().map_or("", Failure::error_type);
        metric::model_call(&self.settings.model, error_type, started.elapsed());
        if let Err(failure) = &outcome {
            span.record("error.type", failure.error_type());
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }

    async fn exchange(&self, body: Value) -> Result<Answer, Failure> {
        let mut call = self.client.post(self.url.clone()).json(&body);
        if let Some(authorization) = &self.authorization {
            call = call.header(AUTHORIZATION, authorization.clone());
        }
        let response = call.send().await.map_err(|error| Failure::transport(&error))?;
        let status = response.status().as_u16();
        Span::current().record("http.response.status_code", status);
        let after = retry_after(response.headers(), OffsetDateTime::now_utc());
        let succeeded = response.status().is_success();
        let text = match read(response).await {
            Ok(text) => text,
            Err(failure) if succeeded => return Err(failure),
            // The status says enough, also when the explanation cannot be read.
            Err(_) => Vec::new(),
        };
        let parsed = serde_json::from_slice::<Value>(&text).ok();
        if !succeeded {
            return Err(self.server_error(status, parsed.as_ref(), after));
        }
        let parsed = parsed.ok_or_else(|| Failure::malformed("the model server's answer is not JSON"))?;
        if let Some(error) = parsed.get("error").filter(|error| !error.is_null()) {
            // A gateway that has already said 200 can only put the true status into the body.
            let told = error.get("code").and_then(failure::status_in).unwrap_or(500);
            return Err(self.server_error(told, Some(&parsed), after));
        }
        describe(&parsed, &self.settings.model, &Span::current());
        answer::read(&parsed)
    }

    /// What a server's error means. Its own words are quoted without the key, which some servers repeat.
    fn server_error(&self, status: u16, body: Option<&Value>, after: Option<Duration>) -> Failure {
        let key = self.settings.api_key.as_ref().map(Secret::expose).filter(|key| !key.is_empty());
        let quote = |text: &str| {
            let text = key.map_or_else(|| text.to_owned(), |key| text.replace(key, "[redacted]"));
            let clean = |c: char| if c.is_control() { ' ' } else { c };
            text.chars().map(clean).take(QUOTE_MAX_CHARS).collect::<String>()
        };
        failure::classify(status, body, after, quote)
    }

    fn span(&self, context: &TurnContext, request: &TurnRequest) -> Span {
        let settings = &self.settings;
        tracing::info_span!(
            "chat",
            otel.name = %format_args!("chat {}", settings.model),
            otel.kind = "client",
            otel.status_code = Empty,
            gen_ai.operation.name = "chat",
            gen_ai.provider.name = "openai",
            gen_ai.request.model = %settings.model,
            gen_ai.request.temperature = settings.temperature,
            gen_ai.request.max_tokens = settings.max_output_tokens,
            gen_ai.conversation.id = %request.conversation.id,
            gen_ai.response.model = Empty,
            gen_ai.response.id = Empty,
            gen_ai.response.finish_reasons = Empty,
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            server.address = self.url.host_str(),
            server.port = self.url.port_or_known_default(),
            http.response.status_code = Empty,
            "error.type" = Empty,
            turnwise.turn.id = %context.turn_id,
            turnwise.attempt = context.attempt,
        )
    }
}

#[async_trait::async_trait]
impl Responder for OpenAiResponder {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        within(context, async {
            // Closed never: the semaphore lives as long as `self`. The slot is held to the end of the last call.
            let _slot = self.slots.acquire().await;
            self.converse(context, request).await
        })
        .await?
    }
}

/// The whole body, or a failure once it passes [`BODY_MAX_BYTES`].
async fn read(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::transport(&error))? {
        if body.len() + chunk.len() > BODY_MAX_BYTES {
            return Err(Failure::too_large(BODY_MAX_BYTES));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// `Retry-After` as RFC 9110, 10.2.3, has it: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    failure::parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, now)
}

/// Writes what the answer says about itself onto the span of its call, and counts its tokens.
fn describe(answer: &Value, model: &str, span: &Span) {
    for (field, name) in [("model", "gen_ai.response.model"), ("id", "gen_ai.response.id")] {
        if let Some(text) = answer.get(field).and_then(Value::as_str) {
            span.record(name, text);
        }
    }
    if let Some(reason) = answer.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
        span.record("gen_ai.response.finish_reasons", reason);
    }
    let used = [
        ("/usage/prompt_tokens", "gen_ai.usage.input_tokens", "input"),
        ("/usage/completion_tokens", "gen_ai.usage.output_tokens", "output"),
    ];
    for (pointer, name, token_type) in used {
        if let Some(tokens) = answer.pointer(pointer).and_then(Value::as_u64) {
            span.record(name, tokens);
            metric::model_tokens(model, token_type, tokens);
        }
    }
}
