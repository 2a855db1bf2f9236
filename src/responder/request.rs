//! What a model is asked, from what is stored.
//!
//! Refuses to choose what the model sees: pruning came before. Invariant: every stored message becomes one message, in the
//! same order.

use serde_json::Value;

use super::history::{answered_call, call_list};
use super::{NewUserMessage, as_text};
use crate::message::Role;
use crate::model::{ModelMessage, ToolCall};
use crate::store::StoredMessage;

/// The history, then the turn's new messages.
#[must_use]
pub fn model_messages(history: &[StoredMessage], new: &[NewUserMessage]) -> Vec<ModelMessage> {
    let new =
        new.iter().map(|new| ModelMessage::User { content: as_text(&new.message.text, &new.message.attachments) });
    history.iter().map(model_message).chain(new).collect()
}

/// A human agent's messages have the assistant's role already: to the model, both are its side of the conversation. Between
/// turns no API has a place for a system message that all others know, so one that was imported is heard from the other side.
#[must_use]
pub fn model_message(stored: &StoredMessage) -> ModelMessage {
    let content = as_text(&stored.content, &stored.attachments);
    match stored.role {
        Role::User | Role::System => ModelMessage::User { content },
        Role::Assistant => {
            ModelMessage::Assistant { content, tool_calls: call_list(stored).iter().filter_map(tool_call).collect() }
        }
        Role::Tool => ModelMessage::Tool { call_id: answered_call(stored).unwrap_or_default().to_owned(), content },
    }
}

/// A call as Chat Completions has it, which is how calls are stored.
fn tool_call(call: &Value) -> Option<ToolCall> {
    let text = |pointer: &str| call.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let arguments = match call.pointer("/function/arguments") {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "{}".to_owned(),
    };
    Some(ToolCall { id: text("/id")?, name: text("/function/name").unwrap_or_default(), arguments })
}
