//! The OpenAI Chat Completions API, both directions: <https://platform.openai.com/docs/api-reference/chat>.
//!
//! Refuses to choose what the model sees, and to judge its tool calls. Where Ollama, vLLM, llama.cpp, LiteLLM and others
//! differ, the place says so. Invariant of requests: roles alternate between user and assistant as far as no tool
//! message stands between, because the chat templates of several open models refuse anything else.

use reqwest::Url;
use serde_json::{Value, json};

use super::answer::{Draft, DraftCall, Event};
use super::failure::ModelFailure;
use super::{Finish, ModelMessage, ModelRequest, ToolCall, ToolSpec, sendable_arguments};
use crate::config::ModelConfig;

/// The body of a request.
pub(super) fn body(settings: &ModelConfig, url: &Url, request: &ModelRequest) -> Value {
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    if let Some(system) = &request.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    for said in &request.messages {
        push(&mut messages, message(said));
    }
    let mut body = json!({
        "model": settings.model,
        "messages": messages,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    if !request.tools.is_empty() {
        body["tools"] = request.tools.iter().map(tool).collect();
        if request.tools_off {
            body["tool_choice"] = json!("none");
        }
    }
    if let Some(temperature) = settings.temperature {
        body["temperature"] = json!(temperature);
    }
    if let Some(limit) = settings.max_output_tokens {
        body[limit_field(url)] = json!(limit);
    }
    body
}

/// One frame of a stream. Usage comes in a last one, whose `choices` are empty.
pub(super) fn read_chunk(draft: &mut Draft, frame: &Value, on_delta: &dyn Fn(&str)) -> Result<Event, ModelFailure> {
    read_envelope(draft, frame);
    // With `n` left at 1 there is one choice; a server that sends others was not asked to.
    let choices = frame.get("choices").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let first = |choice: &&Value| choice.get("index").and_then(Value::as_u64).unwrap_or(0) == 0;
    let counted = frame.get("usage").is_some_and(Value::is_object);
    let Some(choice) = choices.iter().find(first) else {
        return Ok(if counted { Event::Part } else { Event::KeepAlive });
    };
    if let Some(delta) = choice.get("delta") {
        let text = delta.get("content").map(text).unwrap_or_default();
        if !text.is_empty() {
            draft.content.push_str(&text);
            on_delta(&text);
        }
        draft.refusal.push_str(&delta.get("refusal").map(self::text).unwrap_or_default());
        let calls = delta.get("tool_calls").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for call in calls {
            add_call(draft, call);
        }
    }
    read_finish(draft, choice);
    Ok(if counted || draft.complete || brings_something(choice) { Event::Part } else { Event::KeepAlive })
}

/// The one body of a server that does not stream.
pub(super) fn read_whole(draft: &mut Draft, body: &Value) -> Result<(), ModelFailure> {
    read_envelope(draft, body);
    let choice = body
        .pointer("/choices/0")
        .ok_or_else(|| ModelFailure::malformed("the model server's answer has no choices"))?;
    draft.content = choice.pointer("/message/content").map(text).unwrap_or_default();
    draft.refusal = choice.pointer("/message/refusal").map(text).unwrap_or_default();
    let calls = choice.pointer("/message/tool_calls").and_then(Value::as_array);
    draft.calls = calls.into_iter().flatten().map(CallDelta::read).map(CallDelta::begin).collect();
    read_finish(draft, choice);
    Ok(())
}

fn read_envelope(draft: &mut Draft, frame: &Value) {
    Draft::set_text(&mut draft.model, frame.get("model"));
    Draft::set_text(&mut draft.response_id, frame.get("id"));
    Draft::set_count(&mut draft.usage.input_tokens, frame.pointer("/usage/prompt_tokens"));
    Draft::set_count(&mut draft.usage.output_tokens, frame.pointer("/usage/completion_tokens"));
}

/// Whether a delta holds more than the role, which is often sent long before the first word; reasoning counts, too.
fn brings_something(choice: &Value) -> bool {
    let full = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    let delta = choice.get("delta").and_then(Value::as_object);
    delta.into_iter().flatten().any(|(name, value)| name != "role" && full(value))
}

fn read_finish(draft: &mut Draft, choice: &Value) {
    let Some(reason) = choice.get("finish_reason").and_then(Value::as_str).filter(|reason| !reason.is_empty()) else {
        return;
    };
    if reason == "error" {
        // OpenRouter's word for an answer that broke off on its way to it.
        return;
    }
    draft.finish = Some(match reason {
        "length" => Finish::Length,
        "content_filter" => Finish::ContentFilter,
        // Whatever the word, calls are calls: several servers say "stop" beside them.
        _ => Finish::Stop,
    });
    draft.reason = Some(reason.to_owned());
    draft.complete = true;
}

/// A part of a tool call, as leniently as servers differ: arguments are text, or already an object.
struct CallDelta<'a> {
    index: Option<u64>,
    id: &'a str,
    name: &'a str,
    arguments: String,
}

impl<'a> CallDelta<'a> {
    fn read(call: &'a Value) -> Self {
        let text = |pointer: &str| call.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let arguments = match call.pointer("/function/arguments") {
            Some(Value::String(text)) => text.clone(),
            Some(object @ Value::Object(_)) => object.to_string(),
            _ => String::new(),
        };
        let index = call.get("index").and_then(Value::as_u64);
        Self { index, id: text("/id"), name: text("/function/name"), arguments }
    }

    fn begin(self) -> DraftCall {
        DraftCall { index: self.index, id: self.id.to_owned(), name: self.name.to_owned(), arguments: self.arguments }
    }

    /// Whether this goes on with `call`, the last one of its index, or the last of all where servers give no index.
    fn continues(&self, call: &DraftCall) -> bool {
        if !self.id.is_empty() && !call.id.is_empty() && self.id != call.id {
            // Several calls under one index: Gemini's compatible endpoint, older Ollama.
            return false;
        }
        // The same two also send several whole calls without ids under one index, or without any.
        let whole = |arguments: &str| serde_json::from_str::<serde_json::Map<String, Value>>(arguments).is_ok();
        let another = self.id.is_empty() && !self.name.is_empty() && whole(&call.arguments) && whole(&self.arguments);
        !another && (self.index.is_some() || self.id.is_empty() || self.id == call.id)
    }
}

/// Adds a part to the call that it belongs to, or begins another.
fn add_call(draft: &mut Draft, part: &Value) {
    let delta = CallDelta::read(part);
    let slot = match delta.index {
        Some(index) => draft.calls.iter_mut().rfind(|call| call.index == Some(index)),
        None => draft.calls.last_mut(),
    };
    match slot.filter(|call| delta.continues(call)) {
        Some(call) => {
            // The first part has id and name; servers that repeat them mean the same.
            if call.id.is_empty() {
                call.id.push_str(delta.id);
            }
            if call.name.is_empty() {
                call.name.push_str(delta.name);
            }
            call.arguments.push_str(&delta.arguments);
        }
        None => draft.calls.push(delta.begin()),
    }
}

/// A text, or the text parts of a list of parts, which some servers send instead.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().concat()
        }
        _ => String::new(),
    }
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

fn message(message: &ModelMessage) -> Value {
    match message {
        ModelMessage::User { content } => json!({ "role": "user", "content": content }),
        ModelMessage::Assistant { content, tool_calls } if tool_calls.is_empty() => {
            json!({ "role": "assistant", "content": content })
        }
        ModelMessage::Assistant { content, tool_calls } => {
            let content = if content.is_empty() { Value::Null } else { Value::from(content.as_str()) };
            let calls: Vec<_> = tool_calls.iter().map(call).collect();
            json!({ "role": "assistant", "content": content, "tool_calls": calls })
        }
        ModelMessage::Tool { call_id, content } => {
            json!({ "role": "tool", "tool_call_id": call_id, "content": content })
        }
    }
}

/// Servers parse the arguments again to fill their templates (vLLM, llama.cpp), and refuse text that is no JSON.
fn call(call: &ToolCall) -> Value {
    let arguments = match sendable_arguments(&call.arguments) {
        Ok(_) => call.arguments.clone(),
        Err(wrapped) => wrapped.to_string(),
    };
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}

fn tool(tool: &ToolSpec) -> Value {
    json!({
        "type": "function",
        "function": { "name": tool.name, "description": tool.description, "parameters": tool.parameters },
    })
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
