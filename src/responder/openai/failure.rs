//! What went wrong in a call to a model server, and whether trying again can help.
//!
//! Refuses to look at anything but status, code, type and message: servers disagree about all four, so each is read
//! leniently. Invariant: a failure's text holds nothing of the request.

use std::error::Error;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::responder::TurnError;

/// Longest wait taken from a server: past this the lane's own backoff and attempts decide.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    message: String,
    after: Option<Duration>,
    /// The HTTP status, where there was an answer.
    status: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Transport,
    Timeout,
    /// An answer that is not what the API describes.
    Malformed,
    TooLarge,
    /// A status that says: later.
    Busy,
    /// A status that says: not like this.
    Refused,
    QuotaUsedUp,
    ContextTooLong,
    ContentFilter,
}

impl Failure {
    /// No connection, or one that broke.
    pub(super) fn transport(error: &reqwest::Error) -> Self {
        // The error's own text names the address, its sources only say what happened.
        let mut message = "the call to the model server failed".to_owned();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::new(Fault::Transport, message)
    }

    pub(super) fn timeout(waited: Duration) -> Self {
        Self::new(Fault::Timeout, format!("the model server did not answer within {} ms", waited.as_millis()))
    }

    pub(super) fn malformed(message: &str) -> Self {
        Self::new(Fault::Malformed, message.to_owned())
    }

    pub(super) fn too_large(limit_bytes: usize) -> Self {
        Self::new(Fault::TooLarge, format!("the model server's answer is over {limit_bytes} bytes"))
    }

    pub(super) fn content_filter() -> Self {
        Self::new(Fault::ContentFilter, "the model server's content filter withheld the answer".to_owned())
    }

    /// For the span: a closed set of words.
    pub(super) const fn error_type(&self) -> &'static str {
        match (self.fault, self.status) {
            (Fault::Busy, Some(429)) => "rate_limited",
            (Fault::Transport, _) => "transport",
            (Fault::Timeout, _) => "timeout",
            (Fault::Malformed, _) => "malformed_answer",
            (Fault::TooLarge, _) => "answer_too_large",
            (Fault::Busy, _) => "unavailable",
            (Fault::Refused, Some(401 | 403)) => "unauthorized",
            (Fault::Refused, _) => "refused",
            (Fault::QuotaUsedUp, _) => "insufficient_quota",
            (Fault::ContextTooLong, _) => "context_length_exceeded",
            (Fault::ContentFilter, _) => "content_filter",
        }
    }

    const fn new(fault: Fault, message: String) -> Self {
        Self { fault, message, after: None, status: None }
    }
}

impl From<Failure> for TurnError {
    fn from(failure: Failure) -> Self {
        let Failure { fault, message, after, .. } = failure;
        match fault {
            Fault::Transport | Fault::Timeout | Fault::Malformed | Fault::Busy => Self::Retryable { message, after },
            Fault::TooLarge | Fault::Refused | Fault::QuotaUsedUp | Fault::ContextTooLong | Fault::ContentFilter => {
                Self::Terminal { message, user_message: None }
            }
        }
    }
}

/// What an error answer means. `quote` makes the server's own words fit to be shown.
pub(super) fn classify(
    status: u16,
    body: Option<&Value>,
    after: Option<Duration>,
    quote: impl Fn(&str) -> String,
) -> Failure {
    let error = ServerError::read(body);
    let fault = if error.says("insufficient_quota") {
        Fault::QuotaUsedUp
    } else if error.is_context_too_long(status) {
        Fault::ContextTooLong
    } else if error.says("content_filter") {
        Fault::ContentFilter
    } else if matches!(status, 408 | 409 | 425 | 429 | 500..=599) {
        Fault::Busy
    } else {
        Fault::Refused
    };
    let mut message = format!("the model server answered HTTP {status}");
    if !error.message.is_empty() {
        message.push_str(": ");
        message.push_str(&quote(error.message));
    }
    Failure { fault, message, after, status: Some(status) }
}

/// An HTTP status given as an error's code: a number, or a number in quotes.
pub(super) fn status_in(code: &Value) -> Option<u16> {
    let number = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
    u16::try_from(number).ok().filter(|status| (400..600).contains(status))
}

/// Seconds, or an HTTP date, which is a date of RFC 2822 in GMT. A moment that has passed is no wait.
pub(super) fn parse_retry_after(value: &str, now: OffsetDateTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Duration::try_from(OffsetDateTime::parse(value, &Rfc2822).ok()? - now).unwrap_or(Duration::ZERO),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The error object of an answer, in any of the shapes seen: under `error`, as the whole body (older vLLM), in a list
/// of one (Gemini's compatible endpoint), or a mere text under `error` (Ollama).
struct ServerError<'a> {
    code: Option<&'a Value>,
    kind: &'a str,
    message: &'a str,
}

/// Words by which servers that share a code between all bad requests tell this one: vLLM ("maximum context length is"),
/// LiteLLM ("ContextWindowExceededError", or the text of the server behind it), llama.cpp ("exceeds the available context
/// size"), others ("prompt is too long").
const CONTEXT_WORDS: [&str; 5] = [
    "maximum context length",
    "contextwindowexceeded",
    "context_length_exceeded",
    "context size",
    "prompt is too long",
];

impl<'a> ServerError<'a> {
    fn read(body: Option<&'a Value>) -> Self {
        let body = body.map(|body| body.get(0).unwrap_or(body));
        let error = body.map(|body| body.get("error").unwrap_or(body));
        let field = |name: &str| error.and_then(|error| error.get(name));
        let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default();
        let message = error.and_then(Value::as_str).unwrap_or_else(|| text("message"));
        Self { code: field("code"), kind: text("type"), message }
    }

    /// Whether the code or the type is `word`; which of the two holds it differs between servers.
    fn says(&self, word: &str) -> bool {
        self.kind == word || self.code.and_then(Value::as_str) == Some(word)
    }

    /// 413 is the same complaint from a server that counts bytes.
    fn is_context_too_long(&self, status: u16) -> bool {
        if status == 413 || self.says("context_length_exceeded") || self.says("exceed_context_size_error") {
            return true;
        }
        let lower = self.message.to_lowercase();
        matches!(status, 400 | 422 | 500) && CONTEXT_WORDS.iter().any(|word| lower.contains(word))
    }
}
