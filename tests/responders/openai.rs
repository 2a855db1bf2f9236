//! The responder that asks a model, against a stand-in server that plays every kind of answer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use turnwise::config::{ResponderConfig, ResponderKind};
use turnwise::message::{Author, ReplyMessage, Role};
use turnwise::responder::{Reply, Responder, Responders, TurnContext, TurnError, TurnRequest, build};
use turnwise::store::StoredMessage;

use crate::configuration::{API_KEY, config, open_ai, settings};
use crate::model::{Model, Play, completion, says, status};
use crate::{context, photo, request, retryable, stored, terminal};

/// One turn against a model that plays `plays`.
async fn ask(
    plays: impl IntoIterator<Item = Play>,
    context: &TurnContext,
    request: &TurnRequest,
) -> (Result<Reply, TurnError>, Vec<Value>) {
    let mut model = Model::start(plays).await;
    let outcome = responder(&model, settings).respond(context, request).await;
    (outcome, model.bodies())
}

fn responder(model: &Model, settings: impl Fn(ResponderKind) -> ResponderConfig) -> Arc<dyn Responder> {
    let table = settings(ResponderKind::Model(open_ai(&model.base_url)));
    let responders = build(&config([("model", table)], "model"), Responders::new(), &crate::no_tools()).unwrap();
    Arc::clone(&responders["model"])
}

#[tokio::test]
async fn a_request_holds_prompt_history_messages_and_settings() {
    let mut model = Model::start([says("hello")]).await;
    let mut request = request(&["and this?", "quickly"]);
    request.messages[0].message.attachments.push(photo());
    let asks = StoredMessage {
        tool: Some(json!([{ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{}" } }])),
        ..stored(2, Role::Assistant, Author::Bot, "")
    };
    let result =
        StoredMessage { tool: Some(json!({ "tool_call_id": "c1" })), ..stored(3, Role::Tool, Author::Bot, "42") };
    let history = [
        stored(1, Role::User, Author::User, "how many?"),
        asks,
        result,
        stored(4, Role::Assistant, Author::Bot, "42."),
        stored(5, Role::Assistant, Author::Agent, "Ada here, I agree."),
    ];
    request.history = history.into();
    let reply = responder(&model, settings).respond(&context(), &request).await;
    assert_eq!(reply, Ok(Reply { messages: vec![ReplyMessage::text("hello")], ..Reply::default() }));

    let seen = model.seen.recv().await.unwrap();
    assert_eq!(seen.headers["authorization"], format!("Bearer {API_KEY}"));
    let expected = json!({
        "model": "llama3",
        "stream": true,
        "stream_options": { "include_usage": true },
        "temperature": 0.5,
        "max_tokens": 99,
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "how many?" },
            { "role": "assistant", "content": null,
              "tool_calls": [{ "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
            { "role": "tool", "tool_call_id": "c1", "content": "42" },
            { "role": "assistant", "content": "42.\n\nAda here, I agree." },
            { "role": "user", "content": "and this?\n[photo]\n\nquickly" },
        ],
    });
    assert_eq!(seen.body, expected);
}

#[tokio::test]
async fn statuses_are_told_apart() {
    let check = async |play: Play, expected: TurnError| {
        let (outcome, bodies) = ask([play], &context(), &request(&["PROMPT"])).await;
        assert_eq!(outcome, Err(expected));
        assert_eq!(bodies.len(), 1, "there is one retry layer, and it is the lane's");
    };
    let error =
        |message: &str, kind: &str, code: Value| json!({ "error": { "message": message, "type": kind, "code": code } });
    for code in [408, 409, 425, 429, 500, 502, 503, 504, 529] {
        let body = error("Wait.", "server_error", Value::Null);
        check(status(code, &body), retryable(&format!("the model server answered HTTP {code} (server_error)"))).await;
    }
    for code in [400, 401, 402, 403, 404, 405, 422, 451] {
        let body = error("No.", "invalid_request_error", json!("nope"));
        check(
            status(code, &body),
            terminal(&format!("the model server answered HTTP {code} (invalid_request_error, nope)")),
        )
        .await;
    }
    let quota = error("You exceeded your current quota.", "insufficient_quota", json!("insufficient_quota"));
    check(status(429, &quota), terminal("the model server answered HTTP 429 (insufficient_quota)")).await;
    let integer = error("No such model.", "NotFoundError", json!(404));
    check(status(404, &integer), terminal("the model server answered HTTP 404 (NotFoundError)")).await;
    let bare = json!({ "object": "error", "message": "Bad.", "type": "BadRequestError", "code": 400 });
    check(status(400, &bare), terminal("the model server answered HTTP 400 (BadRequestError)")).await;
    let list = json!([error("Later.", "x", json!(503))]);
    check(status(503, &list), retryable("the model server answered HTTP 503 (x)")).await;
    let text = json!({ "error": "model is loading" });
    check(status(503, &text), retryable("the model server answered HTTP 503")).await;
    let inside = error("Slow down.", "rate_limit", json!("429"));
    check(status(200, &inside), retryable("the model server answered HTTP 429 (rate_limit)")).await;
    let filtered = error("Filtered.", "invalid_request_error", json!("content_filter"));
    check(
        status(400, &filtered),
        terminal("the model server answered HTTP 400 (invalid_request_error, content_filter)"),
    )
    .await;
    let html = Play::Answer { status: 502, headers: Vec::new(), body: "<html>Bad Gateway PROMPT</html>".to_owned() };
    check(html, retryable("the model server answered HTTP 502")).await;
    let html = Play::Answer { status: 200, headers: Vec::new(), body: "<html>Welcome</html>".to_owned() };
    check(html, retryable("the model server's answer is not JSON")).await;
    let moved = Play::Answer { status: 307, headers: vec![("location", "/v1/other".to_owned())], body: String::new() };
    check(moved, terminal("the model server answered HTTP 307")).await;
    check(Play::Endless, terminal("the model server's answer is over 4194304 bytes")).await;
}

#[tokio::test]
async fn a_server_that_repeats_its_input_is_not_repeated() {
    let long = "x".repeat(65);
    for (error, shown) in [
        (
            json!({ "message": "invalid value: PROMPT", "type": "bad-request.v2", "code": "E_1" }),
            " (bad-request.v2, E_1)",
        ),
        (json!({ "message": "PROMPT", "type": "PROMPT in spaces", "code": 1302 }), " (1302)"),
        (json!({ "message": "", "type": API_KEY, "code": format!("key_{API_KEY}") }), ""),
        (json!({ "type": long, "code": { "PROMPT": "PROMPT" } }), ""),
        (json!("PROMPT"), ""),
    ] {
        let play = status(400, &json!({ "error": error }));
        let (outcome, _) = ask([play], &context(), &request(&["PROMPT"])).await;
        assert_eq!(outcome, Err(terminal(&format!("the model server answered HTTP 400{shown}"))), "{error}");
    }
}

#[tokio::test]
async fn retry_after_is_seconds_or_a_date() {
    let check = async |value: String, expected: std::ops::RangeInclusive<u64>| {
        let play = Play::Answer { status: 429, headers: vec![("retry-after", value.clone())], body: "{}".to_owned() };
        let (outcome, _) = ask([play], &context(), &request(&["x"])).await;
        let Err(TurnError::Retryable { after: Some(after), .. }) = outcome else { panic!("{value}: {outcome:?}") };
        assert!(expected.contains(&after.as_secs()), "{value}: {after:?}");
    };
    check("7".to_owned(), 7..=7).await;
    check("99999999".to_owned(), 3_600..=3_600).await;
    let date = (OffsetDateTime::now_utc() + Duration::from_secs(60)).format(&Rfc2822).unwrap().replace("+0000", "GMT");
    check(date, 50..=60).await;
    check("Sun, 06 Nov 1994 08:49:37 GMT".to_owned(), 0..=0).await;
    let play = Play::Answer { status: 429, headers: vec![("retry-after", "soon".to_owned())], body: "{}".to_owned() };
    let (outcome, _) = ask([play], &context(), &request(&["x"])).await;
    assert_eq!(outcome, Err(retryable("the model server answered HTTP 429")));
}

#[tokio::test]
async fn answers_of_status_200_are_told_apart() {
    let check = async |message: Value, finish_reason: Value, expected: Result<Reply, TurnError>| {
        let play = status(200, &completion(&message, &finish_reason));
        let (outcome, _) = ask([play], &context(), &request(&["x"])).await;
        assert_eq!(outcome, expected, "{message} {finish_reason}");
    };
    let says = |content: Value| json!({ "role": "assistant", "content": content });
    let cut_off = || Err(retryable("the model's answer was cut off: it has no finish_reason"));
    check(says(json!("cut by the limit")), json!("length"), Ok(Reply::text("cut by the limit"))).await;
    check(
        says(json!([{ "type": "text", "text": "in " }, { "type": "text", "text": "parts" }])),
        json!("stop"),
        Ok(Reply::text("in parts")),
    )
    .await;
    check(says(json!("half")), Value::Null, cut_off()).await;
    check(says(json!("half")), json!(""), cut_off()).await;
    check(
        json!({ "content": null, "refusal": "I cannot help with that." }),
        json!("stop"),
        Ok(Reply::text("I cannot help with that.")),
    )
    .await;
    let filtered = "the model server's content filter withheld the answer";
    check(says(json!("partly")), json!("content_filter"), Err(terminal(filtered))).await;
    let (outcome, _) = ask([status(200, &json!({ "choices": [] }))], &context(), &request(&["x"])).await;
    assert_eq!(outcome, Err(retryable("the model server's answer has no choices")));
}

#[tokio::test]
async fn an_empty_answer_is_asked_for_once_more() {
    let (outcome, bodies) = ask([says(" \n"), says("there")], &context(), &request(&["x"])).await;
    assert_eq!((outcome, bodies.len()), (Ok(Reply::text("there")), 2));
    assert_eq!(bodies[0], bodies[1]);
    let (outcome, bodies) = ask([says(""), says(""), says("too late")], &context(), &request(&["x"])).await;
    let message = "the model's answer was empty, twice; if it is a reasoning model, raise max_output_tokens";
    assert_eq!((outcome, bodies.len()), (Err(terminal(message)), 2));
}

#[tokio::test]
async fn a_context_too_long_is_halved_once() {
    let shapes = [
        (
            400,
            json!({ "error": { "message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded" } }),
        ),
        (
            400,
            json!({ "error": { "message": "This model's maximum context length is 4096 tokens.", "type": "BadRequestError", "code": 400 } }),
        ),
        (
            400,
            json!({ "error": { "message": "the request exceeds", "type": "exceed_context_size_error", "code": 400, "n_ctx": 4096 } }),
        ),
        (
            400,
            json!({ "error": { "message": "litellm.ContextWindowExceededError: ...", "type": null, "code": "400" } }),
        ),
        (413, json!({})),
    ];
    let mut long = request(&["new"]);
    long.history = (1..=8)
        .map(|ordinal| match ordinal % 2 {
            1 => stored(ordinal, Role::User, Author::User, &format!("question {ordinal}")),
            _ => stored(ordinal, Role::Assistant, Author::Bot, &format!("answer {ordinal}")),
        })
        .collect();
    for (code, body) in &shapes {
        let (outcome, bodies) = ask([status(*code, body), says("fits")], &context(), &long).await;
        assert_eq!(outcome, Ok(Reply::text("fits")), "{body}");
        let contents = |body: &Value| {
            let messages = body["messages"].as_array().unwrap().clone();
            messages.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(contents(&bodies[0]).len(), 10);
        assert_eq!(contents(&bodies[1]), ["Be brief.", "question 5", "answer 6", "question 7", "answer 8", "new"]);

        let (outcome, bodies) = ask([status(*code, body), status(*code, body)], &context(), &long).await;
        assert!(matches!(outcome, Err(TurnError::Terminal { .. })), "{outcome:?}");
        assert_eq!(bodies.len(), 2);
        let (outcome, bodies) = ask([status(*code, body)], &context(), &request(&["alone"])).await;
        assert!(matches!(outcome, Err(TurnError::Terminal { .. })), "{outcome:?}");
        assert_eq!(bodies.len(), 1, "there is nothing to leave out");
    }
}

#[tokio::test]
async fn a_broken_or_missing_connection_is_worth_another_try() {
    let (outcome, bodies) = ask([Play::Cut], &context(), &request(&["x"])).await;
    let Err(TurnError::Retryable { message, after: None }) = outcome else { panic!("{outcome:?}") };
    assert!(message.starts_with("the call to the model server failed: "), "{message}");
    assert_eq!(bodies.len(), 1);

    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", nobody.local_addr().unwrap());
    drop(nobody);
    let table = settings(ResponderKind::Model(open_ai(&base_url)));
    let responders = build(&config([("model", table)], "model"), Responders::new(), &crate::no_tools()).unwrap();
    let outcome = responders["model"].respond(&context(), &request(&["x"])).await;
    let Err(TurnError::Retryable { message, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(message.contains("refused") && !message.contains("127.0.0.1:"), "{message}");
}

#[tokio::test]
async fn a_silent_server_is_given_up_after_the_timeout_or_the_deadline() {
    let quick = |kind| ResponderConfig { timeout: Duration::from_millis(50), ..settings(kind) };
    let model = Model::start([Play::Silence, Play::Silence]).await;
    let outcome = responder(&model, quick).respond(&context(), &request(&["x"])).await;
    let Err(TurnError::Retryable { message, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(message.starts_with("the model server did not answer within "), "{message}");

    let late = TurnContext { deadline: Instant::now() + Duration::from_millis(50), ..context() };
    let outcome = responder(&model, settings).respond(&late, &request(&["x"])).await;
    assert!(matches!(outcome, Err(TurnError::Retryable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_cancelled_turn_stops_in_the_middle_of_its_call() {
    let mut model = Model::start([Play::Silence]).await;
    let responder = responder(&model, settings);
    let context = context();
    let request = request(&["x"]);
    let (outcome, ()) = tokio::join!(responder.respond(&context, &request), async {
        model.seen.recv().await.unwrap();
        context.cancellation.cancel();
    });
    assert_eq!(outcome, Err(TurnError::Cancelled));
}

#[tokio::test]
async fn no_more_calls_run_at_once_than_allowed() {
    let go = Arc::new(Semaphore::new(0));
    let mut model = Model::start((0..3).map(|_| Play::Held(Arc::clone(&go)))).await;
    let two = |kind| ResponderConfig { max_concurrency: 2, ..settings(kind) };
    let responder = responder(&model, two);
    let turns: Vec<_> = (0..3)
        .map(|_| {
            let responder = Arc::clone(&responder);
            tokio::spawn(async move { responder.respond(&context(), &request(&["x"])).await })
        })
        .collect();
    model.seen.recv().await.unwrap();
    model.seen.recv().await.unwrap();
    // A turn that waits for a slot stops at its deadline too, and the two calls are still the only ones.
    let late = TurnContext { deadline: Instant::now() + Duration::from_millis(50), ..context() };
    let waiting = responder.respond(&late, &request(&["x"])).await;
    assert_eq!(waiting, Err(retryable("the turn's time ran out")));
    assert!(model.seen.try_recv().is_err());
    go.add_permits(1);
    model.seen.recv().await.unwrap();
    go.add_permits(2);
    for turn in turns {
        assert_eq!(turn.await.unwrap(), Ok(Reply::text("held back")));
    }
}
