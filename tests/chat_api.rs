//! The chat API as its callers use it: answers now or later, idempotency keys, refusals that change nothing, pages of
//! messages, and what callers see while NATS is down, after a restart and during a shutdown.
//!
//! Refuses to know how a turn runs: that is `end_to_end.rs` and `faults.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};
use support::process::{CONSOLE_TOKEN, NAMESPACE, Turnwise, WEB_KEY, quoted};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::telegram::SECRET;
use support::{PATIENCE, eventually, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const MAX_BODY_BYTES: usize = 4096;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_answered_in_the_response() {
    let deployment = start().await;
    let answer = post(&deployment.turnwise, &say("phone", "hello")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.body["status"], "answered");
    assert_eq!(answer.body["reply"]["content"], "re: hello");
    assert_eq!(answer.body["reply"]["role"], "assistant");
    for name in ["conversation_id", "turn_id"] {
        assert!(answer.body[name].is_string(), "{name} in {answer:?}");
    }

    // The same device goes on in the same conversation, named or not; the model is told what went before.
    let again = post(&deployment.turnwise, &say("phone", "still there?")).await;
    assert_eq!(again.body["conversation_id"], answer.body["conversation_id"]);
    let mut named = say("phone", "and by name?");
    named["conversation_id"] = answer.body["conversation_id"].clone();
    let named = post(&deployment.turnwise, &named).await;
    assert_eq!(named.body["conversation_id"], answer.body["conversation_id"]);
    deployment.model.log(|log| assert_eq!(log.calls[2].history, ["hello", "still there?"]));
    let other = post(&deployment.turnwise, &say("tablet", "hello")).await;
    assert_ne!(other.body["conversation_id"], answer.body["conversation_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_wait_gets_an_address_to_ask_at() {
    let deployment = start().await;
    for (number, prefer) in ["respond-async", "wait=0", "wait=1"].into_iter().enumerate() {
        let message = format!("slow {number}");
        deployment.model.hold(&message);
        let accepted = request(&deployment.turnwise, Method::POST, "/v1/chat")
            .header("Prefer", prefer)
            .json(&say("phone", &message));
        let accepted = Answer::of(accepted).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "Prefer: {prefer}: {accepted:?}");
        assert_eq!(accepted.body["status"], "queued");
        assert!(accepted.body["conversation_id"].is_string(), "{accepted:?}");
        let url = accepted.body["url"].as_str().unwrap_or_else(|| panic!("no url in {accepted:?}")).to_owned();
        let early = get(&deployment.turnwise, &url).await;
        assert_eq!((early.status, early.body["status"] == "answered"), (StatusCode::OK, false), "{early:?}");

        deployment.model.release(&message);
        let turn = answered(&deployment.turnwise, &url).await;
        assert_eq!(turn["reply"]["content"], format!("re: {message}"));
        assert_eq!(turn["turn_id"], accepted.body["turn_id"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_stands_for_one_turn() {
    let deployment = start().await;
    let with_key = async |body: &Value| {
        let request = request(&deployment.turnwise, Method::POST, "/v1/chat");
        Answer::of(request.header("Idempotency-Key", "\"order-7\"").json(body)).await
    };
    let first = with_key(&say("phone", "buy one")).await;
    assert_eq!(first.status, StatusCode::OK, "{first:?}");
    let second = with_key(&say("phone", "buy one")).await;
    assert_eq!(second.status, StatusCode::OK, "{second:?}");
    assert_eq!(second.body["turn_id"], first.body["turn_id"]);
    assert_eq!(second.body["reply"]["content"], "re: buy one");
    let other = with_key(&say("phone", "buy two")).await;
    other.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, None);
    assert_eq!(deployment.model.log(|log| log.calls.len()), 1, "calls of the model");
    assert_eq!(deployment.ledger.turn_count().await, 1, "turns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_turns_and_operators_write_the_place_in_a_workflow() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.web_bot("web", RESPONDER);
        configuration.set("bots.open", "channel", "\"web\"").set("bots.open", "responder", &quoted(RESPONDER));
    })
    .await;
    let known = post(&deployment.turnwise, &say("phone", "hello")).await;
    let conversation = format!("/v1/conversations/{}", known.body["conversation_id"].as_str().unwrap());
    let before = everything_stored(&deployment).await;
    let place = json!({ "metadata": { "workflow_state": { "node": "paid" } } });
    let refused = |answer: Answer| {
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, Some("metadata.workflow_state"));
    };
    let mut body = say("phone", "hello");
    body["metadata"] = place["metadata"].clone();
    refused(post(&deployment.turnwise, &body).await);
    body["bot"] = json!("open");
    refused(Answer::of(http_client().post(deployment.turnwise.url("/v1/chat")).json(&body)).await);
    refused(Answer::of(request(&deployment.turnwise, Method::PATCH, &conversation).json(&place)).await);
    assert_eq!(everything_stored(&deployment).await, before, "stream and rows before and after");
    assert_eq!(get(&deployment.turnwise, &conversation).await.body["metadata"], json!({}));

    let operator = http_client().patch(deployment.turnwise.url(&conversation)).bearer_auth(CONSOLE_TOKEN);
    let moved = Answer::of(operator.json(&place)).await;
    assert_eq!((moved.status, &moved.body["metadata"]), (StatusCode::OK, &place["metadata"]), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_name_the_field_and_change_nothing() {
    let deployment = start().await;
    let known = post(&deployment.turnwise, &say("phone", "hello")).await;
    let before = everything_stored(&deployment).await;
    let with = |name: &str, value: Value| {
        let mut body = say("phone", "hello");
        body[name] = value;
        body
    };
    let mut foreign = say("tablet", "hello");
    foreign["conversation_id"] = known.body["conversation_id"].clone();
    let without_message = json!({ "bot": "web", "device_id": "phone" });

    let (malformed, not_found) = (StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND);
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    let unknown_id = json!("0193e8a0-0000-7000-8000-000000000000");
    for (body, status, field) in [
        (with("conversation_id", json!("not-a-uuid")), malformed, "conversation_id"),
        (with("conversation_id", json!("")), malformed, "conversation_id"),
        (with("conversation_id", unknown_id), not_found, "conversation_id"),
        (foreign, not_found, "conversation_id"),
        (with("device_id", json!("")), unprocessable, "device_id"),
        (with("device_id", json!(" \t ")), unprocessable, "device_id"),
        (with("device_id", json!("d".repeat(256))), unprocessable, "device_id"),
        (with("device_id", json!("a\u{0}b")), unprocessable, "device_id"),
        (with("device_id", json!("a\nb")), unprocessable, "device_id"),
        (with("device_id", json!("a\u{7f}b")), unprocessable, "device_id"),
        (with("message", json!("")), unprocessable, "message"),
        (without_message, unprocessable, "message"),
        (with("platform", json!("telegram")), unprocessable, "platform"),
        (with("metadata", json!([1])), unprocessable, "metadata"),
    ] {
        let answer = post(&deployment.turnwise, &body).await;
        assert_eq!(answer.status, status, "{body} got {answer:?}");
        answer.assert_problem(status, Some(field));
    }
    let unknown_bot = post(&deployment.turnwise, &with("bot", json!("nobody"))).await;
    assert!(unknown_bot.status.is_client_error(), "{unknown_bot:?}");
    unknown_bot.assert_problem(unknown_bot.status, Some("bot"));
    let telegram_bot = post(&deployment.turnwise, &with("bot", json!(BOT))).await;
    assert!(telegram_bot.status.is_client_error(), "a Telegram bot is not reached here: {telegram_bot:?}");
    assert_eq!(everything_stored(&deployment).await, before, "stream and rows before and after");

    let longest = post(&deployment.turnwise, &with("device_id", json!("d".repeat(255)))).await;
    assert_eq!(longest.status, StatusCode::OK, "255 characters are allowed: {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unauthorized_oversized_and_unreadable_requests_change_nothing() {
    let deployment = start().await;
    let url = deployment.turnwise.url("/v1/chat");
    let body = say("phone", "hello");
    for key in [None, Some(""), Some("wrong"), Some("stand-in-web-key2")] {
        let mut request = http_client().post(&url).json(&body);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        Answer::of(request).await.assert_problem(StatusCode::UNAUTHORIZED, None);
    }
    let send = async |body: String| {
        let request = request(&deployment.turnwise, Method::POST, "/v1/chat");
        Answer::of(request.header(header::CONTENT_TYPE, "application/json").body(body)).await
    };
    let oversized = say("phone", &"x".repeat(MAX_BODY_BYTES)).to_string();
    send(oversized).await.assert_problem(StatusCode::PAYLOAD_TOO_LARGE, None);
    for body in ["", "no json", "{\"device_id\":", "[]", "7"] {
        send(body.to_owned()).await.assert_problem(StatusCode::BAD_REQUEST, None);
    }
    let unknown = get(&deployment.turnwise, "/v1/turns/0193e8a0-0000-7000-8000-000000000000").await;
    unknown.assert_problem(StatusCode::NOT_FOUND, None);
    let unknown = get(&deployment.turnwise, "/v1/conversations/0193e8a0-0000-7000-8000-000000000000").await;
    unknown.assert_problem(StatusCode::NOT_FOUND, None);
    assert_eq!(everything_stored(&deployment).await, (0, [0; 4]), "stream and rows after nothing but refusals");
    assert_eq!(deployment.model.log(|log| log.calls.len()), 0, "calls of the model");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_first_messages_at_once_open_one_conversation() {
    let deployment = start().await;
    for device in ["phone-1", "phone-2", "phone-3", "phone-4"] {
        let (left, right) = (say(device, "left"), say(device, "right"));
        let (left, right) = tokio::join!(post(&deployment.turnwise, &left), post(&deployment.turnwise, &right));
        assert_eq!((left.status, right.status), (StatusCode::OK, StatusCode::OK), "{left:?} {right:?}");
        assert_eq!(left.body["conversation_id"], right.body["conversation_id"]);
        assert_eq!(
            (&left.body["reply"]["content"], &right.body["reply"]["content"]),
            (&json!("re: left"), &json!("re: right"))
        );
    }
    assert_eq!(deployment.ledger.conversation_count().await, 4, "conversations");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_and_their_messages_outlive_the_process() {
    let mut deployment = start().await;
    let mut conversation = Value::Null;
    for number in 1..=4 {
        conversation =
            post(&deployment.turnwise, &say("phone", &format!("m{number}"))).await.body["conversation_id"].clone();
    }
    deployment.turnwise.terminate().await;
    deployment.turnwise.start_again().await;
    let fifth = post(&deployment.turnwise, &say("phone", "m5")).await;
    assert_eq!(fifth.body["conversation_id"], conversation);

    let path = format!("/v1/conversations/{}", conversation.as_str().unwrap());
    let found = get(&deployment.turnwise, &path).await;
    assert_eq!((found.status, &found.body["id"]), (StatusCode::OK, &conversation), "{found:?}");
    let listed = get(&deployment.turnwise, "/v1/conversations?device_id=phone").await;
    assert_eq!(listed.body["conversations"][0]["id"], conversation, "{listed:?}");
    let listed = get(&deployment.turnwise, "/v1/conversations?device_id=nobody").await;
    assert_eq!(listed.body["conversations"], json!([]), "{listed:?}");

    // Pages go back in time; within a page the oldest comes first.
    let page = async |query: &str| {
        let page = get(&deployment.turnwise, &format!("{path}/messages?{query}")).await;
        assert_eq!(page.status, StatusCode::OK, "{page:?}");
        page.body["messages"].as_array().unwrap_or_else(|| panic!("no messages in {page:?}")).clone()
    };
    let mut newest_first = Vec::new();
    let mut query = "limit=4".to_owned();
    loop {
        let messages = page(&query).await;
        assert!(messages.len() <= 4, "a page of {}", messages.len());
        let Some(oldest) = messages.first() else { break };
        query = format!("limit=4&before={}", oldest["ordinal"]);
        newest_first.extend(messages.iter().rev().map(|message| message["content"].as_str().unwrap().to_owned()));
    }
    newest_first.reverse();
    let expected: Vec<_> = (1..=5).flat_map(|number| [format!("m{number}"), format!("re: m{number}")]).collect();
    assert_eq!(newest_first, expected, "all pages together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_speak_and_bring_history_along_once_each() {
    let deployment = start().await;
    let mut ids = Vec::new();
    for device in ["phone", "tablet"] {
        let answer = post(&deployment.turnwise, &say(device, "hello")).await;
        ids.push(answer.body["conversation_id"].as_str().unwrap().to_owned());
    }
    let add = async |id: &str, key: &str, body: &Value| {
        let request = request(&deployment.turnwise, Method::POST, &format!("/v1/conversations/{id}/messages"));
        Answer::of(request.header("Idempotency-Key", key).json(body)).await
    };
    let said = json!({ "content": "This is Kim." });
    let history = json!({ "messages": [
        { "role": "user", "content": "I wrote to you last year.", "created_at": "2025-11-21T09:00:00Z" },
        { "role": "assistant", "content": "And we answered." },
    ] });
    let first = (add(&ids[0], "k1", &said).await, add(&ids[0], "k2", &history).await);
    let again = (add(&ids[0], "k1", &said).await, add(&ids[0], "k2", &history).await);
    assert_eq!((first.0.status, first.1.status), (StatusCode::CREATED, StatusCode::CREATED), "{first:?}");
    assert_eq!((&first.0.body["turn_id"], &first.1.body), (&again.0.body["turn_id"], &again.1.body), "{again:?}");
    assert_eq!(first.1.body["messages"][0]["created_at"], "2025-11-21T09:00:00Z");
    // The key stands for what was said in that conversation.
    for (id, key, body) in [(&ids[1], "k1", &said), (&ids[1], "k2", &history), (&ids[0], "k1", &history)] {
        add(id, key, body).await.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, Some("Idempotency-Key"));
    }
    let messages = async |id: &str| {
        let page = get(&deployment.turnwise, &format!("/v1/conversations/{id}/messages")).await;
        let messages = page.body["messages"].as_array().unwrap().clone();
        let shown = messages.iter().map(|message| format!("{}: {}", message["author"], message["content"]));
        shown.map(|shown| shown.replace('"', "")).collect::<Vec<_>>()
    };
    let expected = [
        "user: hello",
        "bot: re: hello",
        "agent: This is Kim.",
        "import: I wrote to you last year.",
        "import: And we answered.",
    ];
    assert_eq!(messages(&ids[0]).await, expected);
    assert_eq!(messages(&ids[1]).await, expected[..2]);

    // Without a key each request is one of its own.
    let path = format!("/v1/conversations/{}/messages", ids[1]);
    for _ in 0..2 {
        let imported = Answer::of(request(&deployment.turnwise, Method::POST, &path).json(&history)).await;
        assert_eq!(imported.status, StatusCode::CREATED, "{imported:?}");
    }
    assert_eq!(messages(&ids[1]).await.len(), 6);

    // What was brought along is what the model is told next.
    post(&deployment.turnwise, &say("tablet", "Do you remember?")).await;
    deployment.model.log(|log| {
        let told = &log.calls.last().unwrap().history;
        assert_eq!(told.iter().filter(|line| *line == "I wrote to you last year.").count(), 2, "{told:?}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_nats_callers_are_told_to_come_back_and_can() {
    const CHAT: i64 = 11;
    let mut deployment = start().await;
    let update = deployment.telegram.update(CHAT, "hello");
    let webhook = deployment.turnwise.url(&format!("/webhooks/telegram/{BOT}"));
    deployment.nats.kill9().await;

    let chat = post(&deployment.turnwise, &say("phone", "hello")).await;
    chat.assert_problem(StatusCode::SERVICE_UNAVAILABLE, None);
    assert!(chat.retry_after.is_some(), "Retry-After of the chat: {chat:?}");
    let request = http_client().post(webhook).header("X-Telegram-Bot-Api-Secret-Token", SECRET).json(&update);
    let telegram = Answer::of(request).await;
    assert_eq!(telegram.status, StatusCode::SERVICE_UNAVAILABLE, "{telegram:?}");
    assert!(telegram.retry_after.is_some(), "Retry-After of the webhook: {telegram:?}");
    let alive = http_client().get(deployment.turnwise.url("/healthz")).send().await.unwrap();
    assert_eq!(alive.status(), StatusCode::OK, "/healthz does not depend on NATS");

    deployment.nats.start_again().await;
    eventually("the webhook to take the update", PATIENCE, async || {
        deployment.telegram.post(&update).await.filter(StatusCode::is_success)
    })
    .await;
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, ["re: hello"]);
    let chat = post(&deployment.turnwise, &say("phone", "hello again")).await;
    assert_eq!(chat.body["reply"]["content"], "re: hello again", "{chat:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_finishes_the_running_turn() {
    let mut deployment = start().await;
    deployment.model.hold("long thought");
    let request = request(&deployment.turnwise, Method::POST, "/v1/chat").json(&say("phone", "long thought"));
    let waiting = tokio::spawn(Answer::of(request));
    deployment.model.wait_for_call("long thought", PATIENCE).await;

    deployment.turnwise.ask_to_stop().await;
    eventually("/readyz to say that it stops", PATIENCE, async || {
        (deployment.turnwise.readiness().await != Some(StatusCode::OK)).then_some(())
    })
    .await;
    deployment.model.release("long thought");
    assert_eq!(deployment.turnwise.ended().await.code(), Some(0), "exit code after SIGTERM");

    let answer = waiting.await.unwrap();
    assert_eq!(answer.body["reply"]["content"], "re: long thought", "{answer:?}");
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!(states.get("answered"), Some(&1), "the ledger: {states:?}");
    assert_eq!(deployment.model.log(|log| log.calls.len()), 1, "calls of the model");
    deployment.turnwise.assert_audit_clean().await;
}

/// A deployment with a web bot beside the Telegram bot, and a small limit for bodies.
async fn start() -> Deployment {
    Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.web_bot("web", RESPONDER).set("http", "max_body_bytes", &MAX_BODY_BYTES.to_string());
    })
    .await
}

fn say(device: &str, message: &str) -> Value {
    json!({ "bot": "web", "device_id": device, "message": message })
}

/// What came back, whatever it was.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    content_type: String,
    retry_after: Option<Duration>,
    /// `null` when it was not JSON.
    body: Value,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let header = |name| Some(response.headers().get(name)?.to_str().unwrap().to_owned());
        Self {
            status: response.status(),
            content_type: header(header::CONTENT_TYPE).unwrap_or_default(),
            retry_after: header(header::RETRY_AFTER).map(|seconds| Duration::from_secs(seconds.parse().unwrap())),
            body: serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default(),
        }
    }

    /// RFC 9457, and the field is named in `errors[]`.
    fn assert_problem(&self, status: StatusCode, field: Option<&str>) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.content_type, "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], status.as_u16(), "{self:?}");
        for name in ["type", "title", "detail"] {
            assert!(self.body[name].is_string(), "{name} in {self:?}");
        }
        if let Some(field) = field {
            let errors = self.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
            assert!(errors.iter().any(|error| error.to_string().contains(field)), "{field} in errors[] of {self:?}");
        }
    }
}

fn request(turnwise: &Turnwise, method: Method, path: &str) -> reqwest::RequestBuilder {
    let url = if path.starts_with("http") { path.to_owned() } else { turnwise.url(path) };
    http_client().request(method, url).bearer_auth(WEB_KEY)
}

async fn post(turnwise: &Turnwise, body: &Value) -> Answer {
    Answer::of(request(turnwise, Method::POST, "/v1/chat").json(body)).await
}

async fn get(turnwise: &Turnwise, path: &str) -> Answer {
    Answer::of(request(turnwise, Method::GET, path)).await
}

/// Asks for the turn until it is answered.
async fn answered(turnwise: &Turnwise, url: &str) -> Value {
    eventually("the turn to be answered", PATIENCE, async || {
        let turn = get(turnwise, url).await;
        assert_eq!(turn.status, StatusCode::OK, "{turn:?}");
        (turn.body["status"] == "answered").then_some(turn.body)
    })
    .await
}

/// How many messages the inbound stream has taken, and how many rows each table has.
async fn everything_stored(deployment: &Deployment) -> (u64, [usize; 4]) {
    (deployment.nats.last_sequence(&format!("{NAMESPACE}_in")).await, deployment.ledger.row_counts().await)
}
