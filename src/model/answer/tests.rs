//! Streams as servers send them, and worse: what is read of each, however it is cut.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::Fault;

/// What a stream gives when it comes in these chunks: the answer and the text handed out on the way.
fn read<'a>(api: ModelApi, chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<(Answer, String), ModelFailure> {
    let heard = std::cell::RefCell::new(String::new());
    let on_delta = |text: &str| heard.borrow_mut().push_str(text);
    let mut reader = Reader::new(api, Quoting::default());
    for chunk in chunks {
        if reader.push(chunk, &on_delta)?.over {
            break;
        }
    }
    let answer = reader.end(&on_delta)?;
    Ok((answer, heard.take()))
}

/// A stream whose frames are these, ended as the API ends it.
fn frames(frames: &[Value]) -> Vec<u8> {
    frames.iter().map(|frame| format!("data: {frame}\n\n")).collect::<String>().into_bytes()
}

fn delta(delta: &Value) -> Value {
    json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] })
}

fn ends(reason: &str) -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] })
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
}

/// The calls that deltas of tool calls make, given as the lists of one chunk each.
fn calls_of(deltas: &Value) -> Vec<ToolCall> {
    let lists = deltas.as_array().cloned().unwrap_or_default();
    let mut stream: Vec<_> = lists.into_iter().map(|list| delta(&json!({ "tool_calls": list }))).collect();
    stream.push(ends("stop"));
    let read = read(ModelApi::OpenAi, [frames(&stream).as_slice()]);
    let Ok((answer, _)) = read else { return Vec::new() };
    assert_eq!(answer.finish, Finish::ToolCalls, "decided by the calls, not by the word");
    answer.tool_calls
}

#[test]
fn tool_calls_are_put_together_however_they_are_numbered() {
    let check = |deltas: Value, expected: &[ToolCall]| assert_eq!(calls_of(&deltas), expected, "{deltas}");
    let two = [call("a", "f", r#"{"x":1}"#), call("b", "g", "{}")];
    // As OpenAI has it, interleaved.
    check(
        json!([
            [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "" } }],
            [{ "index": 1, "id": "b", "function": { "name": "g", "arguments": "" } }],
            [{ "index": 0, "function": { "arguments": "{\"x\":" } }],
            [{ "index": 1, "function": { "arguments": "{}" } }, { "index": 0, "function": { "arguments": "1}" } }],
        ]),
        &two,
    );
    // Without an index.
    check(
        json!([
            [{ "id": "a", "function": { "name": "f", "arguments": "{\"x\"" } }],
            [{ "function": { "arguments": ":1}" } }],
            [{ "id": "b", "function": { "name": "g", "arguments": "{}" } }],
        ]),
        &two,
    );
    // The same index for all.
    check(
        json!([
            [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "{\"x\"" } }],
            [{ "index": 0, "function": { "arguments": ":1}" } }],
            [{ "index": 0, "id": "b", "function": { "name": "g", "arguments": "{" } }],
            [{ "index": 0, "function": { "arguments": "}" } }],
        ]),
        &two,
    );
    // Id and name repeated in every part, once without an index; arguments as an object, and none at all.
    check(
        json!([
            [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "{\"x\"" } }],
            [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": ":1}" } }],
            [{ "id": "b", "function": { "name": "g" } }],
            [{ "id": "b", "function": { "name": "g" } }],
        ]),
        &two,
    );
    check(json!([[{ "index": 0, "id": "a", "function": { "name": "f", "arguments": { "x": 1 } } }]]), &two[..1]);
}

#[test]
fn every_tool_call_gets_an_id_of_its_own() {
    let whole = |name: &str| json!({ "index": 0, "function": { "name": name, "arguments": "{}" } });
    for deltas in [
        json!([[whole("f"), whole("g")]]),
        json!([[{ "function": { "name": "f", "arguments": "{}" } }, { "function": { "name": "g", "arguments": "{}" } }]]),
        json!([
            [{ "index": 0, "id": "same", "function": { "name": "f", "arguments": "{}" } }],
            [{ "index": 1, "id": "same", "function": { "name": "g", "arguments": "{}" } }],
        ]),
    ] {
        let calls = calls_of(&deltas);
        let [first, second] = &calls[..] else { unreachable!("{deltas}: {calls:?}") };
        assert_eq!([first.name.as_str(), second.name.as_str()], ["f", "g"]);
        assert!(first.id != second.id && !first.id.is_empty() && !second.id.is_empty(), "{calls:?}");
        assert!(calls.iter().all(|call| call.id.len() <= 40), "OpenAI takes no longer ones: {calls:?}");
    }
}

#[test]
fn endings_are_told_apart() {
    let check = |stream: &[Value], expected: Result<(Finish, &str), &str>| {
        let read = read(ModelApi::OpenAi, [frames(stream).as_slice()]);
        let found = read.as_ref().map(|(answer, _)| (answer.finish, answer.content.as_str()));
        assert_eq!(found.map_err(|failure| failure.message.as_str()), expected, "{stream:?}");
    };
    let says = || delta(&json!({ "content": "half" }));
    let calls =
        || delta(&json!({ "tool_calls": [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "{" } }] }));
    let cut = Err("the model's answer was cut off: it has no finish_reason");
    check(&[says()], cut);
    check(&[calls()], cut);
    check(&[says(), ends("")], cut);
    check(&[json!({ "choices": [] })], cut);
    check(&[says(), ends("stop")], Ok((Finish::Stop, "half")));
    check(&[says(), ends("tool_calls")], Ok((Finish::Stop, "half")));
    check(&[says(), calls(), ends("length")], Ok((Finish::Length, "half")));
    check(&[says(), ends("content_filter")], Ok((Finish::ContentFilter, "half")));
    check(
        &[delta(&json!({ "refusal": "I can" })), delta(&json!({ "refusal": "not." })), ends("stop")],
        Ok((Finish::Refusal, "I cannot.")),
    );
    let nameless = delta(&json!({ "tool_calls": [{ "index": 0, "id": "a", "function": { "arguments": "{}" } }] }));
    check(&[nameless, ends("stop")], Err("the model server sent a tool call without a name"));
    let other =
        json!({ "choices": [{ "index": 1, "delta": { "content": "another choice" }, "finish_reason": "stop" }] });
    check(&[other, says(), ends("stop")], Ok((Finish::Stop, "half")));
    let read = read(ModelApi::OpenAi, [&b"data: {\"choices\": [\n\n"[..]]);
    assert_eq!(read.map_err(|failure| failure.fault), Err(Fault::Malformed));
}

#[test]
fn errors_inside_a_stream_are_what_they_would_have_been_outside() {
    let check = |api: ModelApi, error: Value, fault: Fault, status: u16| {
        let begins = delta(&json!({ "content": "half" }));
        let failure = read(api, [frames(&[begins, error.clone()]).as_slice()])
            .map(|_| ())
            .map_err(|failure| (failure.fault, failure.status));
        assert_eq!(failure, Err((fault, Some(status))), "{error}");
    };
    let open_ai = |code: Value, kind: &str| json!({ "error": { "message": "No.", "type": kind, "code": code } });
    check(ModelApi::OpenAi, open_ai(json!(429), "x"), Fault::Busy, 429);
    check(ModelApi::OpenAi, open_ai(json!("503"), "x"), Fault::Busy, 503);
    check(ModelApi::OpenAi, open_ai(json!("rate_limit_exceeded"), "requests"), Fault::Busy, 429);
    check(ModelApi::OpenAi, open_ai(Value::Null, "server_error"), Fault::Busy, 500);
    check(
        ModelApi::OpenAi,
        open_ai(json!("context_length_exceeded"), "invalid_request_error"),
        Fault::ContextTooLong,
        400,
    );
    check(ModelApi::OpenAi, open_ai(Value::Null, "insufficient_quota"), Fault::QuotaUsedUp, 500);
    check(ModelApi::OpenAi, json!({ "error": "out of memory" }), Fault::Busy, 500);
    let anthropic = |kind: &str| json!({ "type": "error", "error": { "type": kind, "message": "No." } });
    check(ModelApi::Anthropic, anthropic("overloaded_error"), Fault::Busy, 529);
    check(ModelApi::Anthropic, anthropic("rate_limit_error"), Fault::Busy, 429);
    check(ModelApi::Anthropic, anthropic("invalid_request_error"), Fault::Refused, 400);
    check(ModelApi::Anthropic, anthropic("authentication_error"), Fault::Refused, 401);
    check(ModelApi::Anthropic, anthropic("request_too_large"), Fault::ContextTooLong, 413);
}

#[test]
fn an_answer_that_is_not_streamed_is_read_too() {
    let call = json!({ "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let message =
        json!({ "content": [{ "type": "text", "text": "in " }, { "text": "parts" }], "tool_calls": [call, call] });
    let body = json!({
        "id": "r", "model": "m", "choices": [{ "message": message, "finish_reason": "tool_calls" }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 4 },
    });
    let text = format!(" \r\n{body}");
    let read = read(ModelApi::OpenAi, text.as_bytes().chunks(7));
    let Ok((answer, heard)) = read else { unreachable!("{read:?}") };
    assert_eq!((answer.content.as_str(), heard.as_str()), ("in parts", "in parts"));
    assert_eq!((answer.tool_calls.len(), answer.finish), (2, Finish::ToolCalls));
    assert_eq!(answer.usage, Usage { input_tokens: Some(3), output_tokens: Some(4) });
}

#[test]
fn too_much_is_not_kept() {
    let line = vec![b'x'; 65_536];
    let check = |api: ModelApi, begins: &str| {
        let chunks = std::iter::once(begins.as_bytes()).chain(std::iter::repeat(line.as_slice()));
        let fault = read(api, chunks).map(|_| ()).map_err(|failure| failure.fault);
        assert_eq!(fault, Err(Fault::TooLarge), "{begins}");
    };
    check(ModelApi::OpenAi, "data: ");
    check(ModelApi::Anthropic, ": ");
    check(ModelApi::OpenAi, "{");
    let part = frames(&[delta(&json!({ "content": "x".repeat(100_000) }))]);
    let fault = read(ModelApi::OpenAi, std::iter::repeat(part.as_slice())).map(|_| ()).map_err(|failure| failure.fault);
    assert_eq!(fault, Err(Fault::TooLarge));
}

/// Good streams of both protocols, with everything in them that a split could tear.
fn samples() -> Vec<(ModelApi, Vec<u8>)> {
    let open_ai = [
        json!({ "id": "r", "model": "m", "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] }),
        delta(&json!({ "content": "Grüße 👍" })),
        delta(&json!({ "content": "\r\n\n世界" })),
        delta(
            &json!({ "tool_calls": [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "{\"é\":" } }] }),
        ),
        delta(&json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "\"ü\"}" } }] })),
        ends("tool_calls"),
        json!({ "choices": [], "usage": { "prompt_tokens": 3, "completion_tokens": 4 } }),
    ];
    let mut with_comments = b"\xEF\xBB\xBF: comment \xF0\x9F\x91\x8D\r\n\r\n".to_vec();
    with_comments.extend(String::from_utf8_lossy(&frames(&open_ai)).replace("\n\n", "\r\n\r\n").into_bytes());
    with_comments.extend(b"data: [DONE]\r\n\r\n");
    let anthropic = [
        json!({ "type": "message_start", "message": { "id": "r", "model": "m", "usage": { "input_tokens": 2, "cache_read_input_tokens": 5, "output_tokens": 1 } } }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
        json!({ "type": "ping" }),
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "Grüße 👍" } }),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "tool_use", "id": "a", "name": "f", "input": {} } }),
        json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": "" } }),
        json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": "{\"é\"" } }),
        json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta", "partial_json": ":1}" } }),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 9 } }),
        json!({ "type": "message_stop" }),
    ];
    let named: String = anthropic.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"])).collect();
    vec![(ModelApi::OpenAi, with_comments), (ModelApi::Anthropic, named.into_bytes())]
}

#[test]
fn anthropics_blocks_become_text_and_calls() {
    let (api, bytes) = samples().remove(1);
    let read = read(api, [bytes.as_slice()]);
    let Ok((answer, heard)) = read else { unreachable!("{read:?}") };
    assert_eq!((answer.content.as_str(), heard.as_str()), ("Grüße 👍", "Grüße 👍"));
    assert_eq!(answer.tool_calls, [call("a", "f", "{\"é\":1}")]);
    assert_eq!(answer.usage, Usage { input_tokens: Some(7), output_tokens: Some(9) });
    assert_eq!((answer.finish, answer.reason.as_str()), (Finish::ToolCalls, "tool_use"));
    assert_eq!((answer.model.as_deref(), answer.response_id.as_deref()), (Some("m"), Some("r")));
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answer(
        sample in 0..samples().len(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let (api, bytes) = &samples()[sample];
        let whole = read(*api, [bytes.as_slice()]);
        prop_assert!(whole.is_ok(), "{:?}", whole);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
        prop_assert_eq!(read(*api, chunks), whole);
    }

    /// A prefix of a good stream is a failure until the server has said that the answer is complete, never less of an answer.
    #[test]
    fn a_cut_stream_is_a_failure(sample in 0..samples().len(), cut in any::<prop::sample::Index>()) {
        let (api, bytes) = &samples()[sample];
        let whole = read(*api, [bytes.as_slice()]).map(|(answer, _)| (answer.content, answer.tool_calls));
        let part = read(*api, [&bytes[..cut.index(bytes.len())]]);
        if let Ok((answer, _)) = part {
            prop_assert_eq!(Ok((answer.content, answer.tool_calls)), whole);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), anthropic in any::<bool>()) {
        let api = if anthropic { ModelApi::Anthropic } else { ModelApi::OpenAi };
        read(api, bytes.chunks(3)).ok();
    }

    /// The same with bytes that get further: a good stream with some of them overwritten.
    #[test]
    fn no_damage_panics(
        sample in 0..samples().len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let (api, mut bytes) = samples().remove(sample);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        read(api, bytes.chunks(11)).ok();
    }

    /// Well-formed frames of a wrong shape.
    #[test]
    fn no_frame_panics(frame in json_value(), anthropic in any::<bool>()) {
        let api = if anthropic { ModelApi::Anthropic } else { ModelApi::OpenAi };
        read(api, [frames(std::slice::from_ref(&frame)).as_slice()]).ok();
        read(api, [frame.to_string().as_bytes()]).ok();
    }
}

/// JSON whose keys and words are those that the protocols look for.
fn json_value() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 24] = [
        "choices",
        "delta",
        "tool_calls",
        "index",
        "id",
        "function",
        "name",
        "arguments",
        "content",
        "finish_reason",
        "error",
        "code",
        "type",
        "message",
        "usage",
        "prompt_tokens",
        "content_block",
        "content_block_start",
        "content_block_delta",
        "tool_use",
        "text",
        "input",
        "message_delta",
        "stop_reason",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(&WORDS[..]).prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 5, |inner| {
        let key = prop::sample::select(&WORDS[..]).prop_map(str::to_owned);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(key, inner, 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}
