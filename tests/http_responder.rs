//! Responders of users: services over HTTP, in Python and TypeScript, and a server in Rust with its own.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use support::example::{Example, Service, built, found};
use tokio::sync::Notify;
use turnwise::config::{HttpService, ResponderConfig, ResponderKind, Secret};
use turnwise::message::{
    Author, Button, Channel, ConversationKey, InboundMessage, Peer, Platform, ReplyMessage, Role, Sender, Timestamp,
};
use turnwise::responder::http::{BODY_MAX_BYTES, HttpResponder};
use turnwise::responder::{ConversationView, NewUserMessage, Reply, Responder, TurnContext, TurnError, TurnRequest};
use turnwise::store::StoredMessage;
use uuid::Uuid;
use wire::{Play, Step, Wire};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;
#[path = "support/wire.rs"]
mod wire;

const SECRET: &str = "hunter2-bearer";

fn responder(url: &str, timeout: Duration) -> HttpResponder {
    let secret = |text: &str| Secret::new(text.to_owned());
    let headers = [("authorization", secret(&format!("Bearer {SECRET}"))), ("x-shop", secret("7"))];
    let service = HttpService {
        url: format!("{url}/turn"),
        headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
    };
    let shared = ResponderConfig { timeout, ..ResponderConfig::new(ResponderKind::Http(service.clone())) };
    HttpResponder::new("service", &shared, &service).unwrap()
}

fn request() -> TurnRequest {
    let message = InboundMessage { text: "and PROMPT now?".to_owned(), ..InboundMessage::default() };
    let sender = Some(Sender { id: "ann".to_owned(), ..Sender::default() });
    TurnRequest {
        conversation: ConversationView {
            id: Uuid::from_u128(1),
            key: ConversationKey { channel: Channel::Telegram, bot: "b".into(), peer: Peer::User("5".to_owned()) },
            platform: Platform::Telegram,
            metadata: Map::from_iter([("name".to_owned(), json!("Ann"))]),
        },
        messages: vec![NewUserMessage { message, sender }],
        history: Arc::from([StoredMessage {
            id: Uuid::from_u128(3),
            ordinal: 1,
            turn_id: None,
            role: Role::User,
            author: Author::User,
            content: "hello".to_owned(),
            attachments: Vec::new(),
            tool: None,
            platform_message_id: None,
            created_at: Timestamp::from_micros(0),
        }]),
        prompt: Some("Be brief.".to_owned()),
    }
}

fn play(status: u16, content_type: &'static str, pieces: &[&str]) -> Play {
    let steps = pieces.iter().map(|piece| Step::Bytes(piece.as_bytes().to_vec())).collect();
    Play { status, headers: vec![("content-type", content_type)], steps }
}

fn whole(body: &str) -> Play {
    play(200, "application/json", &[body])
}

fn events(pieces: &[&str]) -> Play {
    play(200, "text/event-stream; charset=utf-8", pieces)
}

/// One turn against a service that plays `play`.
async fn ask(play: Play) -> Result<Reply, TurnError> {
    let wire = Wire::start([play]).await;
    let responder = responder(&wire.base_url, Duration::from_secs(10));
    responder.respond(&TurnContext::new(Uuid::from_u128(7)), &request()).await
}

fn retryable(message: &str) -> Result<Reply, TurnError> {
    Err(TurnError::Retryable { message: message.to_owned(), after: None })
}

fn terminal(message: &str) -> Result<Reply, TurnError> {
    Err(TurnError::Terminal { message: message.to_owned(), user_message: None })
}

#[tokio::test]
async fn a_turn_is_sent_whole_and_its_answer_taken() {
    let answer = json!({
        "replies": [{ "content": "Two?", "buttons": [{ "label": "Yes" }, { "label": "No", "payload": "no" }] }, { "content": "or" }],
        "metadata": { "asked": true },
        "handoff": true,
        "later": "versions may say more",
    });
    let mut wire = Wire::start([whole(&answer.to_string())]).await;
    let responder = responder(&wire.base_url, Duration::from_secs(10));
    let context = TurnContext { attempt: 2, ..TurnContext::new(Uuid::from_u128(7)) };
    let reply = responder.respond(&context, &request()).await.unwrap();
    let button = |label: &str, payload: &str| Button { label: label.to_owned(), payload: payload.to_owned() };
    let expected = Reply {
        messages: vec![
            ReplyMessage { content: "Two?".to_owned(), buttons: vec![button("Yes", "Yes"), button("No", "no")] },
            ReplyMessage::text("or"),
        ],
        metadata: Some(Map::from_iter([("asked".to_owned(), json!(true))])),
        handoff: true,
        ..Reply::default()
    };
    assert_eq!(reply, expected);

    let seen = wire.seen.recv().await.unwrap();
    let headers: BTreeMap<&str, Option<&str>> = ["idempotency-key", "authorization", "x-shop", "content-type"]
        .into_iter()
        .map(|name| (name, seen.header(name)))
        .collect();
    assert_eq!(headers["idempotency-key"], Some("00000000-0000-0000-0000-000000000007"));
    assert_eq!(headers["authorization"], Some("Bearer hunter2-bearer"));
    assert_eq!((headers["x-shop"], headers["content-type"]), (Some("7"), Some("application/json")));
    assert_eq!(seen.path, "/turn");
    let body = json!({
        "turn_id": "00000000-0000-0000-0000-000000000007",
        "attempt": 2,
        "conversation": {
            "id": "00000000-0000-0000-0000-000000000001",
            "key": { "channel": "telegram", "bot": "b", "peer": "user-5" },
            "platform": "telegram",
            "metadata": { "name": "Ann" },
        },
        "messages": [{ "text": "and PROMPT now?", "sender": { "id": "ann" } }],
        "history": [{
            "id": "00000000-0000-0000-0000-000000000003", "ordinal": 1, "turn_id": null, "role": "user", "author": "user",
            "content": "hello", "created_at": "1970-01-01T00:00:00Z",
        }],
        "prompt": "Be brief.",
    });
    assert_eq!(seen.body, body);
    assert!(!format!("{responder:?} {}", responder.describe()).contains(SECRET));
}

#[tokio::test]
async fn a_stream_is_its_reply_and_its_deltas_are_provisional() {
    let reply = r#"{ "replies": [{ "content": "Hello Ann" }] }"#;
    let delta = "event: delta\ndata: {\"text\": \"Hel";
    let rest = format!("lo\"}}\n\n: keep-alive\n\nevent: other\ndata: x\n\nevent: reply\ndata: {reply}\n\n");
    // What comes behind the reply is not waited for.
    let mut endless = events(&[delta, &rest]);
    endless.steps.push(Step::Silence);
    assert_eq!(ask(endless).await, Ok(Reply::text("Hello Ann")));
    let cut = "the stream of the responder's service ended before its reply";
    assert_eq!(ask(events(&[delta, "lo\"}\n\n"])).await, retryable(cut));
    assert_eq!(ask(events(&[&format!("event: reply\ndata: {reply}\n")])).await, retryable(cut));
    let malformed = "the answer of the responder's service is malformed: a delta is not the JSON expected: \
                     a value is not of the expected kind, line 1 column 2";
    assert_eq!(ask(events(&["event: delta\ndata: {}\n\n"])).await, retryable(malformed));
    let mut broken = events(&[delta]);
    broken.steps.push(Step::Break);
    let Err(TurnError::Retryable { message, after: None }) = ask(broken).await else { panic!("a broken connection") };
    assert!(message.starts_with("the call to the responder's service failed: "), "{message}");
}

#[tokio::test]
async fn statuses_are_told_apart_and_bodies_never_quoted() {
    let says = |status: u16| play(status, "text/plain", &["your PROMPT is bad"]);
    for status in [500, 502, 503, 504, 529, 429] {
        assert_eq!(ask(says(status)).await, retryable(&format!("the responder's service answered HTTP {status}")));
    }
    for status in [307, 400, 401, 404, 408, 409, 422] {
        assert_eq!(ask(says(status)).await, terminal(&format!("the responder's service answered HTTP {status}")));
    }
    let mut later = says(429);
    later.headers.push(("retry-after", "7"));
    let expected = TurnError::Retryable {
        message: "the responder's service answered HTTP 429".to_owned(),
        after: Some(Duration::from_secs(7)),
    };
    assert_eq!(ask(later).await, Err(expected));
}

#[tokio::test]
async fn malformed_answers_are_refused() {
    let check = async |body: &str, wrong: &str| {
        let message = format!("the answer of the responder's service is malformed: {wrong}");
        assert_eq!(ask(whole(body)).await, retryable(&message), "{body}");
    };
    check("", "it is not the JSON expected: it ends too early, line 1 column 0").await;
    check("<html>PROMPT</html>", "it is not the JSON expected: it is not JSON, line 1 column 1").await;
    check("{}", "it has no replies").await;
    check("[]", "it is not the JSON expected: a value is not of the expected kind, line 1 column 2").await;
    check(r#"{ "replies": [{ "content": " " }] }"#, "a reply is blank").await;
    let button = "a button has no label, or no payload of 1 to 64 bytes";
    check(r#"{ "replies": [{ "content": "x", "buttons": [{ "label": "" }] }] }"#, button).await;
    let long = json!({ "replies": [{ "content": "x", "buttons": [{ "label": "l", "payload": "p".repeat(65) }] }] });
    check(&long.to_string(), button).await;
    let many = json!({ "replies": vec![json!({ "content": "x" }); 33] });
    check(&many.to_string(), "it has too many replies").await;
    assert_eq!(ask(whole(r#"{ "replies": [] }"#)).await, Ok(Reply::default()));
    assert_eq!(ask(whole(r#"{ "handoff": true }"#)).await, Ok(Reply { handoff: true, ..Reply::default() }));

    let mut endless = whole("{");
    endless.steps.push(Step::Repeat { bytes: &[b' '; 65_536], every: Duration::from_micros(50) });
    let too_large = format!("the answer of the responder's service is over {BODY_MAX_BYTES} bytes");
    assert_eq!(ask(endless).await, terminal(&too_large));
}

#[tokio::test]
async fn time_and_places_are_limited() {
    let silent = Play { status: 200, headers: Vec::new(), steps: vec![Step::Silence] };
    let wire = Wire::start([silent.clone()]).await;
    let outcome = responder(&wire.base_url, Duration::from_millis(50))
        .respond(&TurnContext::new(Uuid::from_u128(7)), &request())
        .await;
    assert_eq!(outcome, retryable("the responder's service did not answer in time"));

    let context = TurnContext::new(Uuid::from_u128(7));
    let wire = Wire::start([silent]).await;
    let responder = responder(&wire.base_url, Duration::from_secs(10));
    context.cancellation.cancel();
    assert_eq!(responder.respond(&context, &request()).await, Err(TurnError::Cancelled));

    // The second turn gets its place when the first one's future is dropped, and not before.
    let go = Arc::new(Notify::new());
    let held = Play { status: 200, headers: Vec::new(), steps: vec![Step::Wait(go.clone())] };
    let mut wire = Wire::start([held, whole(r#"{ "replies": [{ "content": "second" }] }"#)]).await;
    let service = HttpService { url: wire.base_url.clone(), headers: BTreeMap::new() };
    let shared = ResponderConfig { max_concurrency: 1, ..ResponderConfig::new(ResponderKind::Http(service.clone())) };
    let one = Arc::new(HttpResponder::new("one", &shared, &service).unwrap());
    let turn = |id: u128| {
        let one = one.clone();
        tokio::spawn(async move { one.respond(&TurnContext::new(Uuid::from_u128(id)), &request()).await })
    };
    let first = turn(1);
    wire.seen.recv().await.unwrap();
    let second = turn(2);
    tokio::task::yield_now().await;
    assert!(wire.seen.try_recv().is_err());
    first.abort();
    assert_eq!(second.await.unwrap(), Ok(Reply::text("second")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_call_is_made_again_for_the_same_turn() {
    let plays = [
        play(500, "text/plain", &["oops"]),
        events(&["event: delta\ndata: {\"text\":\"half\"}\n\n"]),
        whole(r#"{ "replies": [{ "content": "third time lucky" }], "metadata": { "tries": 3 } }"#),
    ];
    let mut wire = Wire::start(plays).await;
    let url = format!("{}/turn", wire.base_url);
    let example = Example::serve("python", &[("http://127.0.0.1:9000/turn", &url)]).await;
    let (said, conversation) = example.say("phone", "hello").await;
    assert_eq!((said, &conversation["metadata"]["tries"]), (vec!["third time lucky".to_owned()], &json!(3)));
    let mut seen = Vec::new();
    for attempt in 1..=3 {
        let call = wire.seen.recv().await.unwrap();
        assert_eq!(call.body["attempt"], attempt);
        assert_eq!(call.body["turn_id"], call.header("idempotency-key").unwrap());
        assert!(call.header("traceparent").is_some_and(|value| value.starts_with("00-")), "{:?}", call.headers);
        seen.push(call.body["turn_id"].clone());
    }
    assert!(seen.iter().all(|turn| *turn == seen[0]), "{seen:?}");
    example.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bot_in_python_runs() {
    let python = found("TURNWISE_PYTHON", "python.sh").await;
    let bot = Service::start(&python, "python/bot.py", Some(SECRET)).await;
    let bearer = ("#bearer_token = { env = \"BOT_TOKEN\" }", format!("bearer_token = \"{SECRET}\""));
    let example = Example::serve("python", &[("http://127.0.0.1:9000/turn", &bot.url), (bearer.0, &bearer.1)]).await;
    let (said, _) = example.say("phone", "hi").await;
    assert_eq!(said, ["Hello stranger, this is message 1 of yours: hi", "Would you like to talk to a person?"]);
    let (said, conversation) = example.say("phone", "My name is Ann").await;
    assert_eq!((said, &conversation["metadata"]["name"]), (vec!["Nice to meet you, Ann.".to_owned()], &json!("Ann")));
    let (said, _) = example.say("phone", "ümlaut 👍").await;
    assert_eq!(said[0], "Hello Ann, this is message 3 of yours: ümlaut 👍");
    let (said, conversation) = example.say("phone", "Human, please").await;
    assert_eq!((said, &conversation["status"]), (vec!["A colleague will be with you.".to_owned()], &json!("human")));
    example.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bot_in_typescript_runs() {
    let node = found("TURNWISE_NODE", "node.sh").await;
    let bot = Service::start(&node, "typescript/bot.ts", None).await;
    let example = Example::serve("typescript", &[("http://127.0.0.1:9000/turn", &bot.url)]).await;
    for visit in 1..=2 {
        let (said, conversation) = example.say("phone", "hello there").await;
        assert_eq!(said, [format!("This is visit {visit}. You said: hello there")]);
        assert_eq!(conversation["metadata"]["visits"], visit);
    }
    let (said, conversation) = example.say("phone", "a human, please").await;
    assert_eq!((said, &conversation["status"]), (vec!["A colleague will be with you.".to_owned()], &json!("human")));
    example.terminate().await;
}

/// The program of `examples/shop.rs` with a configuration that also names its tool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shop_in_rust_runs() {
    const CONFIG: &str = r#"
[http]
listen = "127.0.0.1:8080"
[nats]
managed = true
[bots.web]
channel = "web"
responder = "shop"
[responders.clerk]
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "never-asked"
tools = ["price"]
"#;
    let shop = Example::program(&built("shop").await, CONFIG).await;
    let (said, _) = shop.say("phone", "hello").await;
    assert_eq!(said, ["You have 0 orders. Say \"order tea\" for another one."]);
    let (said, conversation) = shop.say("phone", "order tea").await;
    assert_eq!(
        (said, &conversation["metadata"]["orders"]),
        (vec!["One tea for 4.50, as you wish.".to_owned()], &json!(1))
    );
    let (said, _) = shop.say("phone", "order a castle").await;
    assert_eq!(said, ["We have no a castle."]);
    let (said, _) = shop.say("phone", "and now").await;
    assert_eq!(said, ["You have 1 orders. Say \"order tea\" for another one."]);
    let (_, conversation) = shop.say("phone", "a human").await;
    assert_eq!(conversation["status"], Value::from("human"));
    shop.terminate().await;
}
