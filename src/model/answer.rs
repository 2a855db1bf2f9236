//! An answer as it comes in: bytes, then events, then a [`ModelResponse`].
//!
//! Refuses to read from anywhere or to look at a clock: its neighbour `endpoint` does. Invariants: the response does not
//! depend on how the bytes were cut, nothing panics whatever they are, no more than [`KEPT_MAX_BYTES`] are kept, and
//! an answer of which the server did not say that it was complete is none.

use serde_json::Value;
use uuid::Uuid;

use super::failure::{ModelFailure, Quoting, classify_inside};
use super::{Finish, ToolCall, Usage, anthropic, openai};
use crate::config::ModelApi;
use crate::http::sse::Decoder;

/// Most kept of one answer: a model's longest is some 100,000 tokens, about 0.5 MiB; times eight for JSON escapes and
/// fields unknown to us. What streams by (reasoning, keep-alives, the frames around each token) does not count.
const KEPT_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What a tool call takes beside its texts.
const CALL_OVERHEAD_BYTES: usize = 64;

/// Both protocols gather their frames into this.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) content: String,
    pub(super) refusal: String,
    pub(super) calls: Vec<DraftCall>,
    /// The server's own word for why the answer ended.
    pub(super) reason: Option<String>,
    /// What that word means, tool calls and refusal texts apart.
    pub(super) finish: Option<Finish>,
    /// The server has said that nothing of the answer is missing.
    pub(super) complete: bool,
    pub(super) usage: Usage,
    pub(super) model: Option<String>,
    pub(super) response_id: Option<String>,
}

/// A tool call whose arguments are still coming.
#[derive(Debug, Default)]
pub(super) struct DraftCall {
    pub(super) index: Option<u64>,
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: String,
}

impl Draft {
    pub(super) fn set_text(target: &mut Option<String>, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            *target = Some(text.to_owned());
        }
    }

    pub(super) fn set_count(target: &mut Option<u64>, value: Option<&Value>) {
        if let Some(count) = value.and_then(Value::as_u64) {
            *target = Some(count);
        }
    }

    fn kept_bytes(&self) -> usize {
        let calls =
            self.calls.iter().map(|call| CALL_OVERHEAD_BYTES + call.id.len() + call.name.len() + call.arguments.len());
        self.content.len() + self.refusal.len() + calls.sum::<usize>()
    }
}

/// What one event of a stream was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Part of the answer.
    Part,
    /// A sign of life, or an announcement, without content.
    KeepAlive,
    /// Nothing follows.
    Last,
}

/// What a chunk brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// At least one event that was more than a sign of life.
    pub(super) moved: bool,
    /// Nothing follows: reading may stop, whether or not the server closes the connection.
    pub(super) over: bool,
}

/// An answer that is complete, but for what only the clock knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) content: String,
    pub(super) tool_calls: Vec<ToolCall>,
    pub(super) finish: Finish,
    pub(super) reason: String,
    pub(super) usage: Usage,
    pub(super) model: Option<String>,
    pub(super) response_id: Option<String>,
}

/// Reads an answer of status 200.
#[derive(Debug)]
pub(super) struct Reader {
    api: ModelApi,
    form: Form,
    draft: Draft,
    quoting: Quoting,
}

/// Told by the first byte that is not white space, since servers that ignore `stream` answer with one JSON body, and not all
/// of them name their content type rightly.
#[derive(Debug)]
enum Form {
    Unknown { blank_bytes: usize },
    Json(Vec<u8>),
    Events(Decoder),
}

impl Reader {
    pub(super) fn new(api: ModelApi, quoting: Quoting) -> Self {
        Self { api, form: Form::Unknown { blank_bytes: 0 }, draft: Draft::default(), quoting }
    }

    /// Takes the next bytes; `on_delta` is handed the text in them.
    ///
    /// # Errors
    /// An error that the server reports inside the stream, a frame that is no JSON, or too much to keep.
    pub(super) fn push(&mut self, chunk: &[u8], on_delta: &dyn Fn(&str)) -> Result<Progress, ModelFailure> {
        let chunk = self.detect(chunk);
        let mut progress = Progress::default();
        let kept_bytes = match &mut self.form {
            Form::Unknown { blank_bytes } => *blank_bytes,
            Form::Json(body) => {
                body.extend_from_slice(chunk);
                body.len()
            }
            Form::Events(decoder) => {
                let events = decoder.push(chunk);
                let kept_bytes = decoder.kept_bytes();
                for event in events {
                    match self.event(&event.data, on_delta)? {
                        Event::Part => progress.moved = true,
                        Event::KeepAlive => {}
                        Event::Last => {
                            progress = Progress { moved: true, over: true };
                            break;
                        }
                    }
                }
                kept_bytes + self.draft.kept_bytes()
            }
        };
        if kept_bytes > KEPT_MAX_BYTES { Err(ModelFailure::too_large(KEPT_MAX_BYTES)) } else { Ok(progress) }
    }

    /// Whether the connection may break now without anything of the answer being lost.
    pub(super) const fn is_complete(&self) -> bool {
        self.draft.complete
    }

    /// Whether any text or tool call has come yet.
    pub(super) fn has_begun(&self) -> bool {
        !self.draft.content.is_empty() || !self.draft.calls.is_empty()
    }

    /// The answer, once the server has ended it.
    ///
    /// # Errors
    /// When it is not complete.
    pub(super) fn end(mut self, on_delta: &dyn Fn(&str)) -> Result<Answer, ModelFailure> {
        match std::mem::replace(&mut self.form, Form::Unknown { blank_bytes: 0 }) {
            Form::Unknown { .. } => return Err(ModelFailure::malformed("the model server's answer is empty")),
            Form::Json(body) => {
                let body = serde_json::from_slice(&body)
                    .map_err(|_| ModelFailure::malformed("the model server's answer is not JSON"))?;
                self.refuse_error(&body)?;
                match self.api {
                    ModelApi::OpenAi => openai::read_whole(&mut self.draft, &body)?,
                    ModelApi::Anthropic => anthropic::read_whole(&mut self.draft, &body)?,
                }
                if !self.draft.content.is_empty() {
                    on_delta(&self.draft.content);
                }
            }
            Form::Events(_) => {}
        }
        answer(self.draft)
    }

    /// Strips what comes before the first telling byte.
    fn detect<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        let Form::Unknown { blank_bytes } = &mut self.form else { return chunk };
        let Some(start) = chunk.iter().position(|byte| !byte.is_ascii_whitespace()) else {
            *blank_bytes += chunk.len();
            return &[];
        };
        self.form = match chunk[start] {
            // A web page goes the same way, to be found not to be JSON.
            b'{' | b'[' | b'<' => Form::Json(Vec::new()),
            _ => Form::Events(Decoder::default()),
        };
        &chunk[start..]
    }

    fn event(&mut self, data: &[u8], on_delta: &dyn Fn(&str)) -> Result<Event, ModelFailure> {
        match data.trim_ascii() {
            b"" => return Ok(Event::KeepAlive),
            b"[DONE]" => return Ok(Event::Last),
            _ => {}
        }
        let frame = serde_json::from_slice(data)
            .map_err(|_| ModelFailure::malformed("the model server's stream has a frame that is not JSON"))?;
        self.refuse_error(&frame)?;
        match self.api {
            ModelApi::OpenAi => openai::read_chunk(&mut self.draft, &frame, on_delta),
            ModelApi::Anthropic => anthropic::read_event(&mut self.draft, &frame, on_delta),
        }
    }

    /// Any frame may be an error.
    fn refuse_error(&self, frame: &Value) -> Result<(), ModelFailure> {
        match frame.get(0).unwrap_or(frame).get("error").filter(|error| !error.is_null()) {
            Some(_) => Err(classify_inside(frame, &self.quoting)),
            None => Ok(()),
        }
    }
}

fn answer(draft: Draft) -> Result<Answer, ModelFailure> {
    let (true, Some(finish), Some(reason)) = (draft.complete, draft.finish, draft.reason) else {
        return Err(ModelFailure::malformed("the model's answer was cut off: it has no finish_reason"));
    };
    let refused = !draft.refusal.trim().is_empty();
    let tool_calls = calls(draft.calls)?;
    let finish = match finish {
        _ if refused => Finish::Refusal,
        Finish::Stop | Finish::ToolCalls if tool_calls.is_empty() => Finish::Stop,
        Finish::Stop | Finish::ToolCalls => Finish::ToolCalls,
        other => other,
    };
    Ok(Answer {
        content: if refused { draft.refusal } else { draft.content },
        tool_calls,
        finish,
        reason,
        usage: draft.usage,
        model: draft.model,
        response_id: draft.response_id,
    })
}

/// The calls, each under an id of its own: some servers give none, others the same one twice, and a result could not be told
/// to belong to its call.
fn calls(drafts: Vec<DraftCall>) -> Result<Vec<ToolCall>, ModelFailure> {
    let mut calls: Vec<ToolCall> = Vec::with_capacity(drafts.len());
    for DraftCall { id, name, arguments, .. } in drafts {
        if name.is_empty() {
            return Err(ModelFailure::malformed("the model server sent a tool call without a name"));
        }
        let known = id.is_empty() || calls.iter().any(|call| call.id == id);
        let id = if known { format!("call_{}", Uuid::now_v7().simple()) } else { id };
        let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
        calls.push(ToolCall { id, name, arguments });
    }
    Ok(calls)
}

#[cfg(test)]
mod tests;
