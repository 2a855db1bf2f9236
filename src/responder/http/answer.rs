//! What a service has answered: bytes to a reply.
//!
//! Pure. Refuses blank replies, and buttons that a channel would refuse together with their message. Invariants: the reply does
//! not depend on how the bytes were cut; a stream that ends before its `reply` is none; no fault holds a byte of the answer.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::http::sse::Decoder;
use crate::message::{Button, ReplyMessage};
use crate::responder::{Reply, TurnError};
use crate::telemetry::json_fault;

/// Largest answer read, deltas included: some hundred times the longest text that a person would read.
pub const BODY_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Messages in one reply: each is a delivery, and rate limits let them through one by one.
pub const REPLIES_MAX: usize = 32;

/// Telegram's limit for callback data, Bot API, `InlineKeyboardButton`.
const PAYLOAD_MAX_BYTES: usize = 64;

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the call to the responder's service failed: {0}")]
    Transport(String),
    #[error("the responder's service did not answer in time")]
    Timeout,
    #[error("the responder's service answered HTTP {status}")]
    Status { status: u16, after: Option<Duration> },
    #[error("the answer of the responder's service is over {BODY_MAX_BYTES} bytes")]
    TooLarge,
    #[error("the stream of the responder's service ended before its reply")]
    Cut,
    #[error("the answer of the responder's service is malformed: {0}")]
    Malformed(String),
}

impl Fault {
    /// For the span: a closed set of words.
    pub(super) const fn error_type(&self) -> &'static str {
        match self {
            Self::Transport(_) => "transport",
            Self::Timeout => "timeout",
            Self::Status { status: 429, .. } => "rate_limited",
            Self::Status { status: 500..=599, .. } => "unavailable",
            Self::Status { .. } => "refused",
            Self::TooLarge => "answer_too_large",
            Self::Cut => "cut",
            Self::Malformed(_) => "malformed_answer",
        }
    }
}

impl From<Fault> for TurnError {
    fn from(fault: Fault) -> Self {
        let message = fault.to_string();
        match fault {
            Fault::Status { status: 429 | 500..=599, after } => Self::Retryable { message, after },
            Fault::Status { .. } | Fault::TooLarge => Self::Terminal { message, user_message: None },
            Fault::Transport(_) | Fault::Timeout | Fault::Cut | Fault::Malformed(_) => {
                Self::Retryable { message, after: None }
            }
        }
    }
}

/// An answer as far as it has come.
#[derive(Debug)]
pub(super) struct Reader {
    form: Form,
    bytes: usize,
}

#[derive(Debug)]
enum Form {
    Whole(Vec<u8>),
    Events(Decoder),
}

impl Reader {
    pub(super) fn new(content_type: Option<&str>) -> Self {
        let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        let form = match essence.eq_ignore_ascii_case("text/event-stream") {
            true => Form::Events(Decoder::default()),
            false => Form::Whole(Vec::new()),
        };
        Self { form, bytes: 0 }
    }

    /// Takes the next bytes; `on_delta` is handed the text in them. The reply, once it is there.
    pub(super) fn push(&mut self, chunk: &[u8], on_delta: &dyn Fn(&str)) -> Result<Option<Reply>, Fault> {
        self.bytes = self.bytes.saturating_add(chunk.len());
        if self.bytes > BODY_MAX_BYTES {
            return Err(Fault::TooLarge);
        }
        match &mut self.form {
            Form::Whole(body) => body.extend_from_slice(chunk),
            Form::Events(decoder) => {
                for event in decoder.push(chunk) {
                    match event.name.as_slice() {
                        b"delta" => on_delta(&parse::<Delta>("a delta", &event.data)?.text),
                        b"reply" => return reply(&event.data).map(Some),
                        _ => {}
                    }
                }
            }
        }
        Ok(None)
    }

    /// The reply of an answer that has ended.
    pub(super) fn end(self) -> Result<Reply, Fault> {
        match self.form {
            Form::Whole(body) => reply(&body),
            Form::Events(_) => Err(Fault::Cut),
        }
    }
}

#[derive(Deserialize)]
struct Delta {
    text: String,
}

#[derive(Deserialize)]
struct Answer {
    replies: Option<Vec<Message>>,
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    handoff: bool,
}

#[derive(Deserialize)]
struct Message {
    content: String,
    #[serde(default)]
    buttons: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    label: String,
    payload: Option<String>,
}

fn reply(body: &[u8]) -> Result<Reply, Fault> {
    let answer: Answer = parse("it", body)?;
    let messages = match answer.replies {
        Some(replies) if replies.len() > REPLIES_MAX => return Err(malformed("it has too many replies")),
        Some(replies) => replies.into_iter().map(message).collect::<Result<_, _>>()?,
        None if answer.handoff => Vec::new(),
        None => return Err(malformed("it has no replies")),
    };
    Ok(Reply { messages, metadata: answer.metadata, handoff: answer.handoff, ..Reply::default() })
}

fn message(message: Message) -> Result<ReplyMessage, Fault> {
    if message.content.trim().is_empty() {
        return Err(malformed("a reply is blank"));
    }
    let buttons = message.buttons.into_iter().map(button).collect::<Result<_, _>>()?;
    Ok(ReplyMessage { content: message.content, buttons })
}

fn button(choice: Choice) -> Result<Button, Fault> {
    let payload = choice.payload.unwrap_or_else(|| choice.label.clone());
    match payload.len() {
        1..=PAYLOAD_MAX_BYTES if !choice.label.trim().is_empty() => Ok(Button { label: choice.label, payload }),
        _ => Err(malformed("a button has no label, or no payload of 1 to 64 bytes")),
    }
}

fn parse<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(json)
        .map_err(|error| Fault::Malformed(format!("{what} is not the JSON expected: {}", json_fault(&error))))
}

fn malformed(what: &str) -> Fault {
    Fault::Malformed(what.to_owned())
}
