//! The body of a Chat Completions request, from what is stored.
//!
//! Refuses to choose what the model sees: pruning came before. Invariant: roles alternate between user and assistant as
//! far as no tool message stands between, because the chat templates of several open models refuse anything else.

use reqwest::Url;
use serde_json::{Value, json};

use crate::config::OpenAi;
use crate::message::Role;
use crate::responder::history::{answered_call, calls};
use crate::responder::{NewUserMessage, as_text};
use crate::store::StoredMessage;

pub(super) fn body(settings: &OpenAi, url: &Url, history: &[StoredMessage], new: &[NewUserMessage]) -> Value {
    let mut messages = Vec::with_capacity(history.len() + new.len() + 1);
    if let Some(prompt) = &settings.system_prompt {
        messages.push(json!({ "role": "system", "content": prompt }));
    }
    for stored in history {
        push(&mut messages, stored_message(stored));
    }
    for user in new {
        let text = as_text(&user.message.text, &user.message.attachments);
        push(&mut messages, json!({ "role": "user", "content": text }));
    }
    let mut body = json!({ "model": settings.model, "messages": messages, "stream": false });
    if let Some(temperature) = settings.temperature {
        body["temperature"] = json!(temperature);
    }
    if let Some(limit) = settings.max_output_tokens {
        body[limit_field(url)] = json!(limit);
    }
    body
}

/// `max_tokens` is the field that every compatible server knows. Several ignore the newer one silently, which would lift the
/// limit (Ollama, its issue 7125; llama-cpp-python, its issue 1907). OpenAI itself has replaced `max_tokens`, and its
/// reasoning models refuse it.
fn limit_field(url: &Url) -> &'static str {
    let host = url.host_str().unwrap_or_default();
    let own = ["openai.com", "openai.azure.com"];
    let at_openai = own.iter().any(|domain| host == *domain || host.ends_with(&format!(".{domain}")));
    if at_openai { "max_completion_tokens" } else { "max_tokens" }
}

/// A human agent's messages have the assistant's role already: to the model, both are its side of the conversation.
fn stored_message(stored: &StoredMessage) -> Value {
    let content = as_text(&stored.content, &stored.attachments);
    match stored.role {
        Role::Tool => json!({ "role": "tool", "tool_call_id": answered_call(stored), "content": content }),
        Role::Assistant if !calls(stored).is_empty() => {
            let tool = stored.tool.as_ref();
            let list = tool.and_then(|tool| tool.get("tool_calls")).or(tool);
            let content = if content.is_empty() { Value::Null } else { Value::from(content) };
            json!({ "role": "assistant", "content": content, "tool_calls": list })
        }
        role => json!({ "role": role.as_str(), "content": content }),
    }
}

/// Adds a message; two of a kind become one of two paragraphs.
fn push(messages: &mut Vec<Value>, message: Value) {
    let plain = |message: &Value| message.get("tool_calls").is_none() && message["role"] != "tool";
    match messages.last_mut() {
        Some(last) if last["role"] == message["role"] && plain(last) && plain(&message) => {
            let both = [&last["content"], &message["content"]].map(|content| content.as_str().unwrap_or_default());
            last["content"] = Value::from(both.join("\n\n"));
        }
        _ => messages.push(message),
    }
}
