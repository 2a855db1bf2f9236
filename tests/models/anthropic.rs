//! Anthropic's Messages on the wire.

use serde_json::{Value, json};
use turnwise::model::Fault;

use super::*;
use crate::wire::{Play, Step, Wire};

fn stream(events: &[Value]) -> Play {
    let bytes = |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()).into_bytes();
    let steps = events.iter().map(|event| Step::Bytes(bytes(event))).collect();
    Play { status: 200, headers: vec![("content-type", "text/event-stream")], steps }
}

fn starts() -> Value {
    let usage = json!({ "input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1, "output_tokens": 1 });
    json!({ "type": "message_start", "message": { "id": "msg_1", "model": "claude-x", "content": [], "usage": usage } })
}

fn says(text: &str) -> Value {
    json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } })
}

fn stops(reason: &str) -> Value {
    json!({ "type": "message_delta", "delta": { "stop_reason": reason }, "usage": { "output_tokens": 7 } })
}

fn over() -> Value {
    json!({ "type": "message_stop" })
}

fn model(wire: &Wire) -> Endpoint {
    patient(&config(ModelApi::Anthropic, &wire.base_url))
}

#[tokio::test]
async fn a_request_is_as_the_api_wants_it() {
    let mut wire = Wire::start([stream(&[starts(), says("ok"), stops("end_turn"), over()])]).await;
    let request = ModelRequest {
        system: Some("Be brief.".to_owned()),
        messages: vec![
            user("one"),
            user("two"),
            assistant("Looking.", &[call("functions.order:0", "order", "{\"id\":7}"), call("c2", "order", "[")]),
            user("hurry"),
            result("functions.order:0", "sent"),
            result("c2", "not JSON"),
            assistant(" ", &[]),
            user("three"),
            user(" "),
        ],
        tools: vec![order_tool()],
        tools_off: true,
    };
    ask(&model(&wire), &request).await.unwrap();
    let seen = wire.seen.recv().await.unwrap();
    assert_eq!(seen.path, "/v1/messages");
    assert_eq!(seen.header("x-api-key"), Some(API_KEY));
    assert_eq!(seen.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(seen.header("authorization"), None);
    let text = |text: &str| json!({ "type": "text", "text": text });
    let result = |id: &str, text: &str| json!({ "type": "tool_result", "tool_use_id": id, "content": text });
    let expected = json!({
        "model": "llama3",
        "max_tokens": 4096,
        "stream": true,
        "system": "Be brief.",
        "tools": [{ "name": "order", "description": "Looks up an order.",
            "input_schema": { "type": "object", "properties": { "id": { "type": "integer" } } } }],
        "tool_choice": { "type": "none" },
        "messages": [
            { "role": "user", "content": [text("one"), text("two")] },
            { "role": "assistant", "content": [
                text("Looking."),
                { "type": "tool_use", "id": "functions_order_0", "name": "order", "input": { "id": 7 } },
                { "type": "tool_use", "id": "c2", "name": "order", "input": { "INVALID_JSON": "[" } } ] },
            { "role": "user", "content": [
                result("functions_order_0", "sent"), result("c2", "not JSON"), text("hurry"), text("three") ] },
        ],
    });
    assert_eq!(seen.body, expected);
}

#[tokio::test]
async fn settings_and_addresses_may_be_written_either_way() {
    let mut wire = Wire::start([stream(&[starts(), says("ok"), stops("end_turn"), over()])]).await;
    let settings = ModelConfig {
        max_output_tokens: Some(99),
        temperature: Some(0.5),
        ..config(ModelApi::Anthropic, &format!("{}/v1", wire.base_url))
    };
    ask(&patient(&settings), &question("x")).await.unwrap();
    let seen = wire.seen.recv().await.unwrap();
    assert_eq!(seen.path, "/v1/messages");
    assert_eq!((&seen.body["max_tokens"], &seen.body["temperature"]), (&json!(99), &json!(0.5)));
    assert_eq!(seen.body.get("tools").or(seen.body.get("system")), None);
}

#[tokio::test]
async fn text_and_calls_are_put_together() {
    let block =
        |index: u64, block: Value| json!({ "type": "content_block_start", "index": index, "content_block": block });
    let part = |index: u64, json: &str| json!({ "type": "content_block_delta", "index": index, "delta": { "type": "input_json_delta", "partial_json": json } });
    let thinks =
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "thinking_delta", "thinking": "Hm." } });
    let play = stream(&[
        starts(),
        json!({ "type": "ping" }),
        block(0, json!({ "type": "thinking", "thinking": "" })),
        thinks,
        block(1, json!({ "type": "text", "text": "" })),
        says("Let me "),
        says("look."),
        block(2, json!({ "type": "tool_use", "id": "t1", "name": "order", "input": {} })),
        block(3, json!({ "type": "tool_use", "id": "t2", "name": "weather", "input": {} })),
        part(2, "{\"id\""),
        part(3, ""),
        part(2, ":7}"),
        json!({ "type": "some_event_of_the_future" }),
        stops("tool_use"),
        over(),
    ]);
    let wire = Wire::start([play]).await;
    let (answer, heard) = ask_as(1, &model(&wire), &question("x")).await;
    let answer = answer.unwrap();
    assert_eq!((answer.content.as_str(), answer.finish), ("Let me look.", Finish::ToolCalls));
    assert_eq!(heard, ["Let me ", "look."]);
    assert_eq!(answer.tool_calls, [call("t1", "order", "{\"id\":7}"), call("t2", "weather", "{}")]);
    assert_eq!(answer.usage, Usage { input_tokens: Some(15), output_tokens: Some(7) });
    assert_eq!((answer.model.as_deref(), answer.response_id.as_deref()), (Some("claude-x"), Some("msg_1")));
}

#[tokio::test]
async fn endings_are_told_apart() {
    let check = async |reason: &str, finish: Finish| {
        let wire = Wire::start([stream(&[starts(), says("half"), stops(reason), over()])]).await;
        let answer = ask(&model(&wire), &question("x")).await.unwrap();
        assert_eq!((answer.finish, answer.content.as_str()), (finish, "half"), "{reason}");
    };
    check("end_turn", Finish::Stop).await;
    check("stop_sequence", Finish::Stop).await;
    check("max_tokens", Finish::Length).await;
    check("model_context_window_exceeded", Finish::Length).await;
    check("refusal", Finish::Refusal).await;
}

#[tokio::test]
async fn failures_are_told_apart() {
    let check = async |play: Play, fault: Fault, retryable: bool| {
        let wire = Wire::start([play]).await;
        let failure = ask(&model(&wire), &question("x")).await.unwrap_err();
        assert_eq!((failure.fault, failure.is_retryable()), (fault, retryable), "{failure:?}");
    };
    let error = |kind: &str, message: &str| json!({ "type": "error", "error": { "type": kind, "message": message } });
    let status = |status: u16, error: &Value| Play {
        status,
        headers: Vec::new(),
        steps: vec![Step::Bytes(error.to_string().into_bytes())],
    };
    check(stream(&[starts(), says("half"), error("overloaded_error", "Overloaded")]), Fault::Busy, true).await;
    check(stream(&[starts(), says("half"), stops("end_turn")]), Fault::Malformed, true).await;
    check(stream(&[starts(), says("half")]), Fault::Malformed, true).await;
    check(status(529, &error("overloaded_error", "Overloaded")), Fault::Busy, true).await;
    check(status(429, &error("rate_limit_error", "Slow down")), Fault::Busy, true).await;
    check(status(401, &error("authentication_error", "No")), Fault::Refused, false).await;
    let long = error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum");
    check(status(400, &long), Fault::ContextTooLong, false).await;
    let both = "input length and `max_tokens` exceed context limit: 199000 + 4096 > 200000";
    check(status(400, &error("invalid_request_error", both)), Fault::ContextTooLong, false).await;
    check(status(413, &error("request_too_large", "Too large")), Fault::ContextTooLong, false).await;
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_read_too() {
    let body = json!({
        "id": "msg_1", "type": "message", "model": "claude-x", "stop_reason": "tool_use",
        "content": [{ "type": "text", "text": "Looking." }, { "type": "tool_use", "id": "t1", "name": "order", "input": { "id": 7 } }],
        "usage": { "input_tokens": 3, "output_tokens": 4 },
    });
    let steps = vec![Step::Bytes(body.to_string().into_bytes())];
    let wire = Wire::start([Play { status: 200, headers: vec![("content-type", "application/json")], steps }]).await;
    let (answer, heard) = ask_as(1, &model(&wire), &question("x")).await;
    let answer = answer.unwrap();
    assert_eq!((answer.content.as_str(), heard), ("Looking.", vec!["Looking.".to_owned()]));
    assert_eq!(answer.tool_calls, [call("t1", "order", "{\"id\":7}")]);
    assert_eq!(answer.finish, Finish::ToolCalls);
}
