//! Chat Completions on the wire.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;
use turnwise::model::Fault;

use super::*;
use crate::wire::{Play, Seen, Step, Wire};

/// A stream of these frames, one chunk each, and `[DONE]`.
pub(crate) fn stream(frames: &[Value]) -> Play {
    let mut steps: Vec<_> = frames.iter().map(|frame| Step::Bytes(format!("data: {frame}\n\n").into_bytes())).collect();
    steps.push(Step::Bytes(b"data: [DONE]\n\n".to_vec()));
    Play { status: 200, headers: vec![("content-type", "text/event-stream")], steps }
}

pub(crate) fn says(text: &str) -> Value {
    json!({ "id": "r", "model": "llama3:8b", "choices": [{ "index": 0, "delta": { "content": text } }] })
}

pub(crate) fn stops() -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] })
}

fn counts() -> Value {
    json!({ "choices": [], "usage": { "prompt_tokens": 12, "completion_tokens": 5 } })
}

pub(crate) fn model(wire: &Wire) -> Endpoint {
    patient(&config(ModelApi::OpenAi, &format!("{}/v1", wire.base_url)))
}

async fn body_of(settings: &ModelConfig, wire: &mut Wire, request: &ModelRequest) -> Seen {
    let settings = ModelConfig { base_url: format!("{}/v1", wire.base_url), ..settings.clone() };
    ask(&patient(&settings), request).await.unwrap();
    wire.seen.recv().await.unwrap()
}

#[tokio::test]
async fn a_request_has_tools_calls_and_results() {
    let mut wire = Wire::start([stream(&[says("ok"), stops()])]).await;
    let request = ModelRequest {
        system: Some("Be brief.".to_owned()),
        messages: vec![
            user("one"),
            user("two"),
            assistant("", &[call("c1", "order", "{\"id\":7}"), call("c2", "order", "{\"id\":")]),
            result("c1", "sent"),
            result("c2", "not JSON"),
            assistant("It is on its way.", &[]),
            user("three"),
        ],
        tools: vec![order_tool()],
        tools_off: true,
    };
    let settings = ModelConfig { max_output_tokens: Some(9), ..config(ModelApi::OpenAi, "") };
    let seen = body_of(&settings, &mut wire, &request).await;
    assert_eq!(seen.path, "/v1/chat/completions");
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {API_KEY}").as_str()));
    let function = |arguments: &str| json!({ "name": "order", "arguments": arguments });
    let expected = json!({
        "model": "llama3",
        "stream": true,
        "stream_options": { "include_usage": true },
        "max_tokens": 9,
        "tools": [{ "type": "function", "function": {
            "name": "order", "description": "Looks up an order.",
            "parameters": { "type": "object", "properties": { "id": { "type": "integer" } } } } }],
        "tool_choice": "none",
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "one\n\ntwo" },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": function("{\"id\":7}") },
                { "id": "c2", "type": "function", "function": function("{\"INVALID_JSON\":\"{\\\"id\\\":\"}") } ] },
            { "role": "tool", "tool_call_id": "c1", "content": "sent" },
            { "role": "tool", "tool_call_id": "c2", "content": "not JSON" },
            { "role": "assistant", "content": "It is on its way." },
            { "role": "user", "content": "three" },
        ],
    });
    assert_eq!(seen.body, expected);
}

#[tokio::test]
async fn text_is_handed_out_while_it_comes() {
    let go = Arc::new(Notify::new());
    let mut play = stream(&[says("Grüße "), says("👍"), stops(), counts()]);
    play.steps.insert(1, Step::Wait(Arc::clone(&go)));
    let wire = Wire::start([play]).await;
    let model = model(&wire);
    // The rest comes only once the first words were heard.
    let heard = Mutex::new(String::new());
    let on_delta = |text: &str| {
        heard.lock().unwrap().push_str(text);
        go.notify_one();
    };
    let call = ModelCall {
        deadline: Instant::now() + Duration::from_secs(30),
        turn_id: Uuid::from_u128(7),
        attempt: 1,
        conversation_id: Uuid::from_u128(1),
        on_delta: &on_delta,
    };
    let answer = model.complete(&call, &question("x")).await.unwrap();
    assert_eq!((heard.lock().unwrap().as_str(), answer.content.as_str()), ("Grüße 👍", "Grüße 👍"));
    assert_eq!(answer.usage, Usage { input_tokens: Some(12), output_tokens: Some(5) });
    assert_eq!((answer.model.as_deref(), answer.response_id.as_deref()), (Some("llama3:8b"), Some("r")));
    assert!(answer.first_token_ms.unwrap() <= answer.duration_ms, "{answer:?}");
}

#[tokio::test]
async fn chunks_may_tear_letters_and_hide_calls_behind_stop() {
    let frames = [
        says("👍"),
        json!({ "choices": [{ "delta": { "tool_calls": [{ "id": "a", "function": { "name": "f", "arguments": "{}" } }] } }] }),
        json!({ "choices": [{ "delta": { "tool_calls": [{ "id": "b", "function": { "name": "g", "arguments": "" } }] } }] }),
        stops(),
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| format!("data:{frame}\r\n\r\n").into_bytes()).collect();
    let steps = bytes.chunks(1).map(|byte| Step::Bytes(byte.to_vec())).collect();
    let wire = Wire::start([Play { status: 200, headers: Vec::new(), steps }]).await;
    let answer = ask(&model(&wire), &question("x")).await.unwrap();
    assert_eq!((answer.content.as_str(), answer.finish), ("👍", Finish::ToolCalls));
    assert_eq!(answer.tool_calls, [call("a", "f", "{}"), call("b", "g", "{}")]);
    assert_eq!(answer.usage, Usage::default());
}

#[tokio::test]
async fn an_answer_cut_off_in_any_way_is_a_failure_worth_another_try() {
    let check = async |play: Play, fault: Fault, message: &str| {
        let wire = Wire::start([play]).await;
        let failure = ask(&model(&wire), &question("x")).await.unwrap_err();
        assert_eq!((failure.fault, failure.is_retryable()), (fault, true), "{failure:?}");
        assert!(failure.message.starts_with(message), "{failure:?}");
    };
    let no_reason = "the model's answer was cut off: it has no finish_reason";
    check(stream(&[says("half")]), Fault::Malformed, no_reason).await;
    let mut clean = stream(&[says("half")]);
    clean.steps.pop();
    check(clean.clone(), Fault::Malformed, no_reason).await;
    clean.steps.push(Step::Break);
    check(clean, Fault::Transport, "the call to the model server failed: ").await;
    let error = json!({ "error": { "message": "Overloaded.", "code": 503 } });
    check(stream(&[says("half"), error]), Fault::Busy, "the model server answered HTTP 503").await;
    let broke = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "error" }] });
    check(stream(&[says("half"), broke]), Fault::Malformed, no_reason).await;
    let empty = Play { status: 200, headers: Vec::new(), steps: Vec::new() };
    check(empty, Fault::Malformed, "the model server's answer is empty").await;
}

#[tokio::test]
async fn once_complete_an_answer_needs_neither_counts_nor_an_orderly_end() {
    for last in [Step::Break, Step::Silence, Step::Repeat { bytes: b": alive\n\n", every: Duration::from_millis(5) }] {
        let mut play = stream(&[says("whole"), stops()]);
        play.steps.pop();
        play.steps.push(last);
        let wire = Wire::start([play]).await;
        let quick = ModelConfig { base_url: format!("{}/v1", wire.base_url), ..config(ModelApi::OpenAi, "") };
        let model = endpoint(&quick, 1, Duration::from_millis(200));
        let answer = ask(&model, &question("x")).await.unwrap();
        assert_eq!((answer.content.as_str(), answer.usage), ("whole", Usage::default()));
    }
    // And what comes after the end is not waited for.
    let mut play = stream(&[says("whole"), stops(), counts()]);
    play.steps.push(Step::Silence);
    let wire = Wire::start([play]).await;
    let answer = ask(&model(&wire), &question("x")).await.unwrap();
    assert_eq!((answer.content.as_str(), answer.usage.input_tokens), ("whole", Some(12)));
}

#[tokio::test]
async fn an_error_inside_a_stream_keeps_the_wait_of_the_header() {
    let mut play = stream(&[json!({ "error": { "message": "Later.", "code": 429 } })]);
    play.headers.push(("retry-after", "2"));
    let wire = Wire::start([play]).await;
    let failure = ask(&model(&wire), &question("x")).await.unwrap_err();
    assert_eq!((failure.status, failure.after), (Some(429), Some(Duration::from_secs(2))));
}

#[tokio::test]
async fn keys_are_never_quoted_from_inside_a_stream() {
    let error = json!({ "error": { "message": format!("Bad key {API_KEY}"), "type": "authentication_error" } });
    let wire = Wire::start([stream(&[error])]).await;
    let failure = ask(&model(&wire), &question("x")).await.unwrap_err();
    assert_eq!(failure.message, "the model server answered HTTP 401 (authentication_error)");
    assert!(!failure.is_retryable());
}
