//! The harness tested on itself: a check that cannot fail proves nothing, so each one is shown what it must catch.
//!
//! Refuses to start Turnwise: a small webhook of the test's own stands where Turnwise would.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use support::nats::NatsServer;
use support::responder::{API_KEY, Behaviour, Model, answer, message, parse};
use support::telegram::{Fault, SECRET, TOKEN, Telegram};
use support::{PATIENCE, http_client};
use tokio::task::JoinSet;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_keeps_what_it_acknowledged_before_it_was_killed() {
    let mut nats = NatsServer::start().await;
    let jetstream = nats.jetstream().await;
    let stream =
        jetstream::stream::Config { name: "kept".into(), subjects: vec!["kept.>".into()], ..Default::default() };
    jetstream.create_stream(stream).await.unwrap();
    for number in 0..50 {
        jetstream.publish(format!("kept.{number}"), "x".into()).await.unwrap().await.unwrap();
    }
    nats.kill9().await;
    nats.start_again().await;
    assert_eq!(nats.last_sequence("kept").await, 50);
    assert_eq!(nats.last_sequence("absent").await, 0);
    let stream = nats.jetstream().await.get_stream("kept").await.unwrap();
    assert_eq!(stream.get_last_raw_message_by_subject("*.49").await.unwrap().sequence, 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telegram_delivers_each_chat_in_order_until_it_is_taken() {
    const CHATS: i64 = 5;
    const PER_CHAT: u32 = 20;
    let webhook = Webhook::start().await;
    let telegram = Telegram::start(webhook.url.clone()).await;
    for n in 1..=PER_CHAT {
        for chat in 0..CHATS {
            telegram.send(chat, &message(chat, n));
        }
    }
    telegram.all_taken(PATIENCE).await;

    let seen = webhook.seen.lock().unwrap();
    let mut taken: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for (text, status) in seen.iter() {
        let (chat, n) = parse(text).unwrap();
        let numbers = taken.entry(chat).or_default();
        assert_eq!(n, u32::try_from(numbers.len()).unwrap() + 1, "chat {chat} is not served in order");
        if status.is_success() {
            numbers.push(n);
        }
    }
    assert_eq!(taken.len(), 5);
    assert!(taken.values().all(|numbers| numbers.len() == PER_CHAT as usize), "{taken:?}");
    let refused = seen.iter().filter(|(_, status)| !status.is_success()).count();
    assert_eq!(refused, seen.len() / 2, "every update is refused once and comes again");
}

/// A webhook that refuses each update the first time, and remembers text and status of all.
struct Webhook {
    url: String,
    seen: Arc<Mutex<Vec<(String, StatusCode)>>>,
    _server: JoinSet<()>,
}

impl Webhook {
    async fn start() -> Self {
        let seen: Arc<Mutex<Vec<(String, StatusCode)>>> = Arc::default();
        let handler_seen = Arc::clone(&seen);
        let tries: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
        let handler = async move |headers: HeaderMap, Json(update): Json<Value>| {
            assert_eq!(headers["X-Telegram-Bot-Api-Secret-Token"], SECRET);
            let text = update["message"]["text"].as_str().unwrap().to_owned();
            let mut tries = tries.lock().unwrap();
            let tried = tries.entry(text.clone()).or_default();
            *tried += 1;
            let status = if *tried == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            handler_seen.lock().unwrap().push((text, status));
            status
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/hook", axum::routing::post(handler));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, _server: server }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telegram_answers_as_the_bot_api_does() {
    const CHAT: i64 = 9;
    let telegram = Telegram::start("http://127.0.0.1:9/unused".to_owned()).await;
    let method = |token: &str, method: &str| format!("{}/bot{token}/{method}", telegram.base_url());
    let send = async |token: &str, text: &str| {
        let body = json!({ "chat_id": CHAT, "text": text });
        let response = http_client().post(method(token, "sendMessage")).json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.ok())
    };
    assert_eq!(send("1:wrong", "a").await.0, 401);
    assert_eq!(send(TOKEN, &"x".repeat(4097)).await.0, 400);
    let first = send(TOKEN, "a").await.1.unwrap();
    assert_eq!(first["ok"], true);

    telegram.fail_next(CHAT, Fault::TooManyRequests { retry_after: 3 });
    telegram.fail_next(CHAT, Fault::Forbidden);
    telegram.fail_next(CHAT, Fault::ServerError);
    telegram.fail_next(CHAT, Fault::BadGateway);
    telegram.fail_next(CHAT, Fault::Cut);
    let (status, limited) = send(TOKEN, "b").await;
    assert_eq!((status, &limited.unwrap()["parameters"]["retry_after"]), (429, &json!(3)));
    assert_eq!(send(TOKEN, "c").await.0, 403);
    assert_eq!(send(TOKEN, "d").await.0, 500);
    assert_eq!(send(TOKEN, "e").await, (502, None));
    let cut =
        http_client().post(method(TOKEN, "sendMessage")).json(&json!({ "chat_id": CHAT, "text": "f" })).send().await;
    let cut = match cut {
        Ok(response) => response.bytes().await.err(),
        Err(error) => Some(error),
    };
    assert!(cut.is_some(), "the answer breaks off");
    let last = send(TOKEN, "g").await.1.unwrap();
    assert!(last["result"]["message_id"].as_u64() > first["result"]["message_id"].as_u64());
    assert_eq!(telegram.wait_for_texts(CHAT, 4, PATIENCE).await, ["a", "e", "f", "g"], "what users see");
    telegram.log(|log| assert_eq!(log.attempts.len(), 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_notices_overlapping_calls_but_not_abandoned_ones() {
    let model = Arc::new(Model::start(Behaviour::default()).await);
    let held = message(1, 1);
    model.hold(&held);
    let abandoned = tokio::spawn(ask(Arc::clone(&model), vec![held.clone()]));
    model.wait_for_call(&held, PATIENCE).await;
    abandoned.abort();
    model.wait("the abandoned call to end", PATIENCE, |log| log.running_calls() == 0).await;
    model.release(&held);
    ask(Arc::clone(&model), vec![held.clone()]).await;
    model.log(|log| assert!(log.overlaps.is_empty(), "{:?}", log.overlaps));

    model.hold(&held);
    let first = tokio::spawn(ask(Arc::clone(&model), vec![held.clone()]));
    model.wait("the held call", PATIENCE, |log| log.calls_for(&held) == 3).await;
    ask(Arc::clone(&model), vec![held.clone(), message(1, 2)]).await;
    model.release(&held);
    first.await.unwrap();
    model.log(|log| {
        assert_eq!(log.overlaps, [message(1, 2)]);
        assert_eq!(log.first_attempts(), BTreeMap::from([(1, vec![1, 2])]));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_notices_histories_with_gaps() {
    let model = Arc::new(Model::start(Behaviour::default()).await);
    let whole = [vec![1], vec![1, 2], vec![1, 2, 3], vec![2, 3, 4]];
    let broken = [vec![3], vec![1, 3], vec![2, 1, 3], vec![1, 1, 2], vec![1, 2, 2], vec![2, 3, 5]];
    for numbers in whole.iter().chain(&broken) {
        ask(Arc::clone(&model), numbers.iter().map(|&n| message(1, n)).collect()).await;
    }
    ask(Arc::clone(&model), vec![message(2, 1), message(1, 2)]).await;
    model.log(|log| assert_eq!(log.broken_histories().len(), broken.len() + 1, "{:?}", log.broken_histories()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_model_fails_as_often_as_told_and_answers_in_both_forms() {
    let behaviour = Behaviour { seed: 1, longest_delay: Duration::from_millis(2), failures_percent: 20 };
    let model = Arc::new(Model::start(behaviour).await);
    let mut failures = 0;
    for n in 1..=200 {
        let text = ask(Arc::clone(&model), vec![message(1, n)]).await;
        match text {
            Some(text) => assert_eq!(text, answer(1, n)),
            None => failures += 1,
        }
    }
    assert!((20..=60).contains(&failures), "{failures} of 200 failed");

    let request =
        json!({ "stream": true, "messages": [{ "role": "user", "content": [{ "type": "text", "text": "hi" }] }] });
    let url = format!("{}/chat/completions", model.base_url());
    model.answer_with("hi", "hello");
    let events = loop {
        let response = http_client().post(&url).bearer_auth(API_KEY).json(&request).send().await.unwrap();
        if response.status().is_success()
            && let Ok(text) = response.text().await
            && text.starts_with("data: ")
        {
            break text;
        }
    };
    assert!(events.contains("\"content\":\"hello\"") && events.ends_with("data: [DONE]\n\n"), "{events}");
}

/// One call with these user messages; `None` when it failed in any way.
async fn ask(model: Arc<Model>, texts: Vec<String>) -> Option<String> {
    let messages: Vec<_> = texts.iter().map(|text| json!({ "role": "user", "content": text })).collect();
    let url = format!("{}/chat/completions", model.base_url());
    let request = http_client().post(url).bearer_auth(API_KEY).json(&json!({ "model": "m", "messages": messages }));
    let response = request.send().await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let body: Value = response.json().await.ok()?;
    Some(body["choices"][0]["message"]["content"].as_str()?.to_owned())
}
