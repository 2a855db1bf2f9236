//! Anthropic's Messages API, both directions: <https://docs.anthropic.com/en/api/messages> and
//! <https://docs.anthropic.com/en/docs/build-with-claude/streaming>.
//!
//! Refuses to choose what the model sees, and to judge its tool calls. Invariants of requests: roles alternate, no text
//! block is blank, and the results of tools stand first in the user message after their calls; the API refuses
//! anything else.

use serde_json::{Value, json};

use super::answer::{Draft, DraftCall, Event};
use super::failure::ModelFailure;
use super::{Finish, ModelMessage, ModelRequest, ToolCall, ToolSpec, sendable_arguments};
use crate::config::ModelConfig;

/// The version of the API that this file speaks, as its header `anthropic-version` names it.
pub(super) const VERSION: &str = "2023-06-01";

/// The API wants a limit; this is a long chat message, and every model takes it.
const DEFAULT_MAX_TOKENS: u32 = 4_096;

/// The body of a request.
pub(super) fn body(settings: &ModelConfig, request: &ModelRequest) -> Value {
    let mut messages = Vec::with_capacity(request.messages.len());
    for said in &request.messages {
        let (role, blocks) = blocks(said);
        push(&mut messages, role, blocks);
    }
    let mut body = json!({
        "model": settings.model,
        "max_tokens": settings.max_output_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
        "messages": messages,
        "stream": true,
    });
    if let Some(system) = request.system.as_ref().filter(|system| !system.trim().is_empty()) {
        body["system"] = json!(system);
    }
    if !request.tools.is_empty() {
        body["tools"] = request.tools.iter().map(tool).collect();
        if request.tools_off {
            body["tool_choice"] = json!({ "type": "none" });
        }
    }
    if let Some(temperature) = settings.temperature {
        body["temperature"] = json!(temperature);
    }
    body
}

/// One event of a stream. New types of events and blocks may come at any time, and are passed over.
pub(super) fn read_event(draft: &mut Draft, event: &Value, on_delta: &dyn Fn(&str)) -> Result<Event, ModelFailure> {
    match event.get("type").and_then(Value::as_str).unwrap_or_default() {
        "message_start" => {
            // Sent before the model has begun.
            read_envelope(draft, event.get("message").unwrap_or(&Value::Null));
            return Ok(Event::KeepAlive);
        }
        "content_block_start" => {
            let block = event.get("content_block").unwrap_or(&Value::Null);
            read_block(draft, index(event), block, on_delta);
        }
        "content_block_delta" => read_delta(draft, event, on_delta),
        "message_delta" => {
            read_usage(draft, event.get("usage"));
            read_stop(draft, event.pointer("/delta/stop_reason"));
        }
        "message_stop" => {
            draft.complete = true;
            return Ok(Event::Last);
        }
        "ping" => return Ok(Event::KeepAlive),
        _ => {}
    }
    Ok(Event::Part)
}

/// The one body of a server that does not stream.
pub(super) fn read_whole(draft: &mut Draft, body: &Value) -> Result<(), ModelFailure> {
    let content = body
        .get("content")
        .and_then(Value::as_array)
        .ok_or_else(|| ModelFailure::malformed("the model server's answer has no content"))?;
    read_envelope(draft, body);
    for (index, block) in content.iter().enumerate() {
        read_block(draft, u64::try_from(index).ok(), block, &|_| {});
    }
    read_stop(draft, body.get("stop_reason"));
    draft.complete = draft.finish.is_some();
    Ok(())
}

fn read_envelope(draft: &mut Draft, message: &Value) {
    Draft::set_text(&mut draft.model, message.get("model"));
    Draft::set_text(&mut draft.response_id, message.get("id"));
    read_usage(draft, message.get("usage"));
}

/// `input_tokens` are those that no cache served; counts in later events replace earlier ones.
fn read_usage(draft: &mut Draft, usage: Option<&Value>) {
    let count = |name: &str| usage.and_then(|usage| usage.get(name)).and_then(Value::as_u64);
    if let Some(fresh) = count("input_tokens") {
        let cached = ["cache_read_input_tokens", "cache_creation_input_tokens"].into_iter().filter_map(count);
        draft.usage.input_tokens = Some(cached.fold(fresh, u64::saturating_add));
    }
    if let Some(output) = count("output_tokens") {
        draft.usage.output_tokens = Some(output);
    }
}

fn read_stop(draft: &mut Draft, reason: Option<&Value>) {
    let Some(reason) = reason.and_then(Value::as_str).filter(|reason| !reason.is_empty()) else { return };
    draft.finish = Some(match reason {
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "refusal" => Finish::Refusal,
        _ => Finish::Stop,
    });
    draft.reason = Some(reason.to_owned());
}

/// A block begins; text is empty and `input` `{}` here when they are streamed, and whole when they are not.
fn read_block(draft: &mut Draft, index: Option<u64>, block: &Value, on_delta: &dyn Fn(&str)) {
    let text = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("type") {
        "text" => add_text(draft, text("text"), on_delta),
        "tool_use" => {
            let input = block.get("input").filter(|input| input.as_object().is_some_and(|input| !input.is_empty()));
            draft.calls.push(DraftCall {
                index,
                id: text("id").to_owned(),
                name: text("name").to_owned(),
                arguments: input.map(Value::to_string).unwrap_or_default(),
            });
        }
        _ => {}
    }
}

fn read_delta(draft: &mut Draft, event: &Value, on_delta: &dyn Fn(&str)) {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match text("/delta/type") {
        "text_delta" => add_text(draft, text("/delta/text"), on_delta),
        "input_json_delta" => {
            let index = index(event);
            if let Some(call) = draft.calls.iter_mut().rfind(|call| call.index == index) {
                call.arguments.push_str(text("/delta/partial_json"));
            }
        }
        _ => {}
    }
}

fn add_text(draft: &mut Draft, text: &str, on_delta: &dyn Fn(&str)) {
    if !text.is_empty() {
        draft.content.push_str(text);
        on_delta(text);
    }
}

fn index(event: &Value) -> Option<u64> {
    event.get("index").and_then(Value::as_u64)
}

/// A message as the blocks of its role.
fn blocks(message: &ModelMessage) -> (&'static str, Vec<Value>) {
    match message {
        ModelMessage::User { content } => ("user", text_block(content).into_iter().collect()),
        ModelMessage::Assistant { content, tool_calls } => {
            ("assistant", text_block(content).into_iter().chain(tool_calls.iter().map(tool_use)).collect())
        }
        ModelMessage::Tool { call_id, content } => {
            ("user", vec![json!({ "type": "tool_result", "tool_use_id": tool_use_id(call_id), "content": content })])
        }
    }
}

fn text_block(text: &str) -> Option<Value> {
    (!text.trim().is_empty()).then(|| json!({ "type": "text", "text": text }))
}

fn tool_use(call: &ToolCall) -> Value {
    let input = match sendable_arguments(&call.arguments) {
        Ok(input) | Err(input) => input,
    };
    json!({ "type": "tool_use", "id": tool_use_id(&call.id), "name": call.name, "input": input })
}

/// The API takes `[a-zA-Z0-9_-]+`; a conversation may hold calls that another provider's model has made.
fn tool_use_id(id: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    id.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

fn tool(tool: &ToolSpec) -> Value {
    json!({ "name": tool.name, "description": tool.description, "input_schema": tool.parameters })
}

/// Adds blocks to the last message if it is of the same role, results of tools before everything else.
fn push(messages: &mut Vec<Value>, role: &str, blocks: Vec<Value>) {
    if blocks.is_empty() {
        return;
    }
    let is_result = |block: &Value| block["type"] == "tool_result";
    match messages.last_mut().filter(|last| last["role"] == role).and_then(|last| last["content"].as_array_mut()) {
        Some(content) => {
            let results = content.iter().take_while(|block| is_result(block)).count();
            let place = if blocks.iter().all(is_result) { results } else { content.len() };
            content.splice(place..place, blocks);
        }
        None => messages.push(json!({ "role": role, "content": blocks })),
    }
}
