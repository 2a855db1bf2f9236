//! MCP's streamable HTTP transport as the SDK asks for it, on the HTTP client of everything else here. It is ours because it has
//! to tell what is known: not sent, refused with which status, or sent without an answer.
//! <https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http>
//!
//! Refuses redirects, and messages that are too large. Invariants: the configured headers are added here and known nowhere else;
//! a fault's text holds neither an address nor a word of the server's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::common::client_side_sse::SseRetryPolicy;
use rmcp::transport::common::http_header::{
    EVENT_STREAM_MIME_TYPE, HEADER_LAST_EVENT_ID, HEADER_SESSION_ID, JSON_MIME_TYPE,
};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::http;
use crate::telemetry::{chain, json_fault};

/// As much of a refusal as a quote can need.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

type WireError = StreamableHttpError<WireFault>;

/// What went wrong with one request.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireFault {
    /// No connection was made.
    #[error("the server cannot be reached: {0}")]
    NotSent(String),
    /// It was sent, or part of it; what became of it is unknown.
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the server answered HTTP {status}")]
    Refused {
        status: u16,
        after: Option<Duration>,
        /// Whether the server knew, or should have known, the session that was named.
        in_session: bool,
        /// The server's own words, for the model only.
        body: String,
    },
    #[error("the server's answer is over {0} bytes")]
    TooLarge(usize),
    #[error("the server's answer is not an MCP message: {0}")]
    NotMcp(String),
}

#[derive(Clone)]
pub(super) struct Wire {
    client: Client,
    headers: HeaderMap,
    message_bytes_max: usize,
    /// Cancelled when the server does not know the session any more.
    lost: CancellationToken,
    /// Whether the server has ever opened the session's own stream.
    streamed: Arc<AtomicBool>,
}

impl Wire {
    pub(super) fn new(client: Client, headers: HeaderMap, message_bytes_max: usize) -> Self {
        let (lost, streamed) = (CancellationToken::new(), Arc::default());
        Self { client, headers, message_bytes_max, lost, streamed }
    }

    pub(super) fn for_session(&self, lost: CancellationToken) -> Self {
        Self { lost, streamed: Arc::default(), ..self.clone() }
    }

    fn request(
        &self,
        method: Method,
        uri: &str,
        session: Option<&str>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> RequestBuilder {
        let accept = format!("{JSON_MIME_TYPE}, {EVENT_STREAM_MIME_TYPE}");
        let request = self.client.request(method, uri).header(ACCEPT, accept);
        let request = request.headers(headers.into_iter().collect()).headers(self.headers.clone());
        match session {
            Some(session) => request.header(HEADER_SESSION_ID, session),
            None => request,
        }
    }

    async fn refused(&self, response: Response, in_session: bool) -> WireError {
        let status = response.status().as_u16();
        let after = http::retry_after(response.headers(), OffsetDateTime::now_utc());
        // The status says enough, also when the explanation cannot be read.
        let body = read(response, REFUSAL_BYTES_MAX).await.unwrap_or_default();
        StreamableHttpError::Client(WireFault::Refused { status, after, in_session, body: explanation(&body) })
    }

    fn events(&self, response: Response) -> BoxStream<'static, Result<Sse, SseError>> {
        let start = (response, EventSize::new(self.message_bytes_max));
        let chunks = stream::try_unfold(start, |(mut response, mut size)| async move {
            let chunk = response.chunk().await.map_err(|error| WireFault::Broken(chain(&error.without_url())))?;
            let Some(chunk) = chunk else { return Ok(None) };
            size.count(&chunk)?;
            Ok::<_, WireFault>(Some((chunk, (response, size))))
        });
        SseStream::from_bytes_stream(Box::pin(chunks) as BoxStream<'static, Result<Bytes, WireFault>>).boxed()
    }
}

impl StreamableHttpClient for Wire {
    type Error = WireFault;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, WireError> {
        let request = self.request(Method::POST, &uri, session_id.as_deref(), custom_headers);
        let response = request.json(&message).send().await.map_err(without_answer)?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(response, session_id.is_some()).await);
        }
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let session = response.headers().get(HEADER_SESSION_ID);
        let session = session.and_then(|session| session.to_str().ok()).map(str::to_owned);
        if is(&response, EVENT_STREAM_MIME_TYPE) {
            return Ok(StreamableHttpPostResponse::Sse(self.events(response), session));
        }
        let body = read(response, self.message_bytes_max).await.map_err(StreamableHttpError::Client)?;
        if !matches!(message, ClientJsonRpcMessage::Request(_)) {
            // 202 is what the specification asks for here, and some answer 200 with whatever.
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        let answer: ServerJsonRpcMessage = serde_json::from_slice(&body)
            .map_err(|error| StreamableHttpError::Client(WireFault::NotMcp(json_fault(&error))))?;
        Ok(StreamableHttpPostResponse::Json(answer, session))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), WireError> {
        // A server that does not let sessions be ended, or does not know this one, is as good as one that has ended it.
        self.request(Method::DELETE, &uri, Some(&session_id), custom_headers).send().await.map_err(without_answer)?;
        Ok(())
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, WireError> {
        let mut request = self.request(Method::GET, &uri, session_id.as_deref(), custom_headers);
        if let Some(last) = last_event_id {
            request = request.header(HEADER_LAST_EVENT_ID, last);
        }
        let response = request.send().await.map_err(without_answer)?;
        match response.status() {
            status if status.is_success() && is(&response, EVENT_STREAM_MIME_TYPE) => {
                self.streamed.store(true, Ordering::Relaxed);
                Ok(self.events(response))
            }
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND if self.streamed.load(Ordering::Relaxed) => {
                self.lost.cancel();
                Err(StreamableHttpError::ServerDoesNotSupportSse)
            }
            // 405 by the specification, and other refusals in the wild: calls do not need this stream.
            status if status.is_client_error() => Err(StreamableHttpError::ServerDoesNotSupportSse),
            _ => Err(self.refused(response, session_id.is_some()).await),
        }
    }
}

/// A stream that broke is asked for again twice, soon: its server is up, or it is not.
#[derive(Debug)]
pub(super) struct RetryTwice;

impl SseRetryPolicy for RetryTwice {
    fn retry(&self, current_times: usize) -> Option<Duration> {
        (current_times < 2).then_some(Duration::from_millis(500))
    }
}

/// How far the event that is being received has grown: the parser keeps it in memory until an empty line ends it.
struct EventSize {
    bytes: usize,
    bytes_max: usize,
    line_is_empty: bool,
}

impl EventSize {
    const fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max, line_is_empty: true }
    }

    fn count(&mut self, chunk: &[u8]) -> Result<(), WireFault> {
        for byte in chunk {
            match byte {
                b'\n' if self.line_is_empty => self.bytes = 0,
                b'\n' => self.line_is_empty = true,
                b'\r' => {}
                _ => {
                    self.line_is_empty = false;
                    self.bytes += 1;
                }
            }
            if self.bytes > self.bytes_max {
                return Err(WireFault::TooLarge(self.bytes_max));
            }
        }
        Ok(())
    }
}

fn is(response: &Response, media_type: &str) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|content_type| content_type.to_ascii_lowercase().starts_with(media_type))
}

fn without_answer(error: reqwest::Error) -> WireError {
    let not_sent = error.is_connect() || error.is_builder();
    let cause = chain(&error.without_url());
    StreamableHttpError::Client(if not_sent { WireFault::NotSent(cause) } else { WireFault::Broken(cause) })
}

async fn read(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, WireFault> {
    let mut body = Vec::new();
    let broken = |error: reqwest::Error| WireFault::Broken(chain(&error.without_url()));
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(WireFault::TooLarge(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The message of a JSON-RPC error, or whatever else the server wrote.
fn explanation(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = parsed.as_ref().and_then(|body| body.pointer("/error/message")?.as_str());
    message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_event_counts() {
        let check = |chunks: &[&str], right: bool| {
            let mut size = EventSize::new(10);
            let counted = chunks.iter().all(|chunk| size.count(chunk.as_bytes()).is_ok());
            assert_eq!(counted, right, "{chunks:?}");
        };
        check(&["data: 1234"], true);
        check(&["data: 12345"], false);
        check(&["data: 1234\n", "\ndata: 1234\r\n\r", "\n", "data: 1234"], true);
        check(&["a: 34\n", "b: 34\n\n"], true);
        check(&["a: 345\n", "b: 345"], false);
    }
}
