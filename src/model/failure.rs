//! What went wrong in a call to a model server, and whether trying again can help.
//!
//! Refuses to look at anything but status, code, type and message: servers disagree about all four, so each is read
//! leniently. Refuses to repeat the message, because servers quote the request in theirs. Invariant: a failure's text holds
//! nothing of the request.

use std::error::Error;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::config::Secret;

/// Longest wait taken from a server: past this the caller's own backoff and attempts decide.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// Longest code or type repeated from a server's error; those that are documented have up to some thirty characters.
const WORD_MAX_CHARS: usize = 64;

/// A call without an answer. The message is for operators and holds neither the key nor anything of the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelFailure {
    pub fault: Fault,
    pub message: String,
    /// Not to be tried again before, where somebody named a time.
    pub after: Option<Duration>,
    /// The HTTP status, where there was an answer.
    pub status: Option<u16>,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection, or one that broke.
    Transport,
    Timeout,
    /// An answer that is not what the API describes, or not all of it.
    Malformed,
    TooLarge,
    /// A status that says: later.
    Busy,
    /// A status that says: not like this.
    Refused,
    QuotaUsedUp,
    /// The request is too long for the model: shorten it, and ask once more.
    ContextTooLong,
    ContentFilter,
    /// Not called: the provider has failed repeatedly, or asked everybody to wait. [`ModelFailure::after`] says how long.
    CircuitOpen,
}

impl ModelFailure {
    #[must_use]
    pub const fn new(fault: Fault, message: String) -> Self {
        Self { fault, message, after: None, status: None }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self.fault {
            Fault::Transport | Fault::Timeout | Fault::Malformed | Fault::Busy | Fault::CircuitOpen => true,
            Fault::TooLarge | Fault::Refused | Fault::QuotaUsedUp | Fault::ContextTooLong | Fault::ContentFilter => {
                false
            }
        }
    }

    /// For the span and the metric: a closed set of words.
    #[must_use]
    pub const fn error_type(&self) -> &'static str {
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
            (Fault::CircuitOpen, _) => "circuit_open",
        }
    }

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

    pub(super) fn silent(idle: Duration) -> Self {
        Self::new(Fault::Timeout, format!("the model server fell silent for {} ms in its answer", idle.as_millis()))
    }

    /// The turn's deadline came before the call's own.
    pub(super) fn turn_over() -> Self {
        Self::new(Fault::Timeout, "the turn's time ran out".to_owned())
    }

    pub(super) fn malformed(message: &str) -> Self {
        Self::new(Fault::Malformed, message.to_owned())
    }

    pub(super) fn too_large(limit_bytes: usize) -> Self {
        Self::new(Fault::TooLarge, format!("the model server's answer is over {limit_bytes} bytes"))
    }

    pub(super) fn circuit_open(after: Duration) -> Self {
        let message = "the model server was not called: its last calls failed, or it asked for a pause".to_owned();
        Self { after: Some(after), ..Self::new(Fault::CircuitOpen, message) }
    }
}

/// Knows which of a server's own words can be shown: identifiers, such as `rate_limit_exceeded`, that do not hold the key.
#[derive(Debug, Clone, Default)]
pub(super) struct Quoting {
    pub(super) key: Option<Secret>,
}

impl Quoting {
    fn can_show(&self, word: &str) -> bool {
        let is_identifier = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let key = self.key.as_ref().map(Secret::expose).filter(|key| !key.is_empty());
        (1..=WORD_MAX_CHARS).contains(&word.len())
            && word.chars().all(is_identifier)
            && key.is_none_or(|key| !word.contains(key))
    }
}

/// What an error answer of this status means.
pub(super) fn classify(status: u16, body: Option<&Value>, after: Option<Duration>, quoting: &Quoting) -> ModelFailure {
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
    let words = error.words(status, quoting);
    if !words.is_empty() {
        message.push_str(&format!(" ({})", words.join(", ")));
    }
    ModelFailure { fault, message, after, status: Some(status) }
}

/// What an error means that came with status 200, in a stream or as its body: a gateway that has already said 200 can put
/// the true status only there, as a code or as a word.
pub(super) fn classify_inside(body: &Value, quoting: &Quoting) -> ModelFailure {
    classify(ServerError::read(Some(body)).status().unwrap_or(500), Some(body), None, quoting)
}

/// The status that goes with a word for an error. Anthropic: <https://docs.anthropic.com/en/api/errors>; OpenAI and those
/// who follow it use the same words where they mean the same.
const STATUSES: [(&str, u16); 13] = [
    ("invalid_request_error", 400),
    ("authentication_error", 401),
    ("billing_error", 402),
    ("permission_error", 403),
    ("not_found_error", 404),
    ("request_too_large", 413),
    ("rate_limit_error", 429),
    ("rate_limit_exceeded", 429),
    ("too_many_requests", 429),
    ("api_error", 500),
    ("server_error", 500),
    ("timeout_error", 504),
    ("overloaded_error", 529),
];

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
/// Anthropic has "prompt is too long" and "exceed context limit".
const CONTEXT_WORDS: [&str; 6] = [
    "maximum context length",
    "contextwindowexceeded",
    "context_length_exceeded",
    "context size",
    "prompt is too long",
    "exceed context limit",
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

    /// The HTTP status it stands for: its code is a number, perhaps in quotes, or code or type is a known word.
    fn status(&self) -> Option<u16> {
        let number = self.code.and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
        let status = number.and_then(|number| u16::try_from(number).ok()).filter(|status| (400..600).contains(status));
        status.or_else(|| STATUSES.iter().find(|(word, _)| self.says(word)).map(|(_, status)| *status))
    }

    /// Whether the code or the type is `word`; which of the two holds it differs between servers.
    fn says(&self, word: &str) -> bool {
        self.kind == word || self.code.and_then(Value::as_str) == Some(word)
    }

    /// Type and code, as far as they say more than the status and can be shown.
    fn words(&self, status: u16, quoting: &Quoting) -> Vec<String> {
        let code = match self.code {
            Some(Value::String(code)) => Some(code.clone()),
            Some(Value::Number(code)) => Some(code.to_string()),
            _ => None,
        };
        let code = code.filter(|code| code != self.kind && *code != status.to_string());
        let words = std::iter::once(self.kind.to_owned()).chain(code);
        words.filter(|word| quoting.can_show(word)).collect()
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
