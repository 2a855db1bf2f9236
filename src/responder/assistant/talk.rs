//! What is said in one turn: the history and the new messages, then rounds of tool calls and their results; as the model sees
//! it, and as the history will hold it.
//!
//! Pure. Invariant: every tool call has exactly one result, right after the message that asks for it.

use serde_json::json;

use crate::message::Role;
use crate::model::{ModelMessage, ToolCall};
use crate::responder::history::halve;
use crate::responder::request::model_messages;
use crate::responder::{NewUserMessage, TranscriptMessage, TurnRequest};
use crate::store::StoredMessage;

/// The longest result of a tool that the model is shown, in bytes: some 10,000 tokens.
const RESULT_MAX_BYTES: usize = 32 * 1024;

/// The same, once the prompt has been found too long.
const RESULT_MAX_BYTES_SHORTENED: usize = 2 * 1024;

/// One answer that asked for tools, and what they gave.
pub(super) struct Round {
    pub(super) content: String,
    pub(super) calls: Vec<ToolCall>,
    /// One for each call, in their order.
    pub(super) results: Vec<String>,
}

pub(super) struct Talk {
    prompt: Option<String>,
    history: Vec<StoredMessage>,
    new: Vec<NewUserMessage>,
    rounds: Vec<Round>,
    asked: u32,
    result_max_bytes: usize,
}

impl Talk {
    pub(super) fn new(request: &TurnRequest) -> Self {
        Self {
            prompt: request.prompt.clone(),
            history: request.history.to_vec(),
            new: request.messages.clone(),
            rounds: Vec::new(),
            asked: 0,
            result_max_bytes: RESULT_MAX_BYTES,
        }
    }

    /// The instructions of this turn: the responder's own, then the turn's.
    pub(super) fn instructions(&self, system_prompt: Option<&str>) -> Option<String> {
        let parts: Vec<&str> = system_prompt.into_iter().chain(self.prompt.as_deref()).collect();
        (!parts.is_empty()).then(|| parts.join("\n\n"))
    }

    /// How often the model has answered so far.
    pub(super) const fn rounds_asked(&self) -> u32 {
        self.asked
    }

    pub(super) const fn asked(&mut self) {
        self.asked += 1;
    }

    pub(super) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    /// Makes the prompt shorter, once: half the history, and little of each tool's result; false when there is nothing left
    /// to cut.
    pub(super) fn shorten(&mut self) -> bool {
        if self.result_max_bytes <= RESULT_MAX_BYTES_SHORTENED {
            return false;
        }
        let longest = self.rounds.iter().flat_map(|round| &round.results).map(String::len).max().unwrap_or_default();
        let can_cut = !self.history.is_empty() || longest > RESULT_MAX_BYTES_SHORTENED;
        let halved = halve(&self.history);
        // What cannot be halved, such as a single long turn, goes as a whole.
        self.history = if halved.len() < self.history.len() { halved } else { Vec::new() };
        self.result_max_bytes = RESULT_MAX_BYTES_SHORTENED;
        can_cut
    }

    /// What the model is asked with.
    pub(super) fn messages(&self) -> Vec<ModelMessage> {
        let mut messages = model_messages(&self.history, &self.new);
        for round in &self.rounds {
            let (content, tool_calls) = (round.content.clone(), round.calls.clone());
            messages.push(ModelMessage::Assistant { content, tool_calls });
            messages.extend(round.calls.iter().zip(&round.results).map(|(call, result)| ModelMessage::Tool {
                call_id: call.id.clone(),
                content: cut(result, self.result_max_bytes),
            }));
        }
        messages
    }

    /// The rounds as the history holds them, in the form of Chat Completions.
    pub(super) fn transcript(&self) -> Vec<TranscriptMessage> {
        let mut transcript = Vec::new();
        for round in &self.rounds {
            let calls = round.calls.iter().map(|call| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            });
            transcript.push(TranscriptMessage {
                role: Role::Assistant,
                content: round.content.clone(),
                tool: Some(json!({ "tool_calls": calls.collect::<Vec<_>>() })),
            });
            transcript.extend(round.calls.iter().zip(&round.results).map(|(call, result)| TranscriptMessage {
                role: Role::Tool,
                content: cut(result, RESULT_MAX_BYTES),
                tool: Some(json!({ "tool_call_id": call.id, "name": call.name })),
            }));
        }
        transcript
    }
}

/// The beginning of a text that is too long, with a word about the rest.
fn cut(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max_bytes);
    format!("{}\n[cut here: {end} of {} bytes]", &text[..end], text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_result_is_cut_at_a_character_and_says_so() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("aé", 2), "a\n[cut here: 1 of 3 bytes]");
    }
}
