//! The channel `http` through the real processes: signed messages in, signed callbacks out, whatever the receiver does.
//!
//! Refuses to look inside; the published vector is tested beside the code (`channel/http/signature.rs`), addresses are in
//! `config/http_bot.rs` and `http/guard.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use serde_json::{Value, json};
use support::process::{CONSOLE_TOKEN, Configuration};
use support::receiver::{self, NEXT_SECRET, Reaction, Receiver, SECRET};
use support::responder::Behaviour;
use support::scenario::{Backend, Deployment};
use support::{PATIENCE, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const HOOK: &str = "/webhooks/http/shop";

struct Shop {
    deployment: Deployment,
    receiver: Receiver,
}

impl Shop {
    async fn start(backend: Backend, adjust: impl FnOnce(&mut Configuration)) -> Self {
        let receiver = Receiver::start().await;
        let url = receiver.url();
        let deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
            configuration.set("responders.parrot", "kind", "\"echo\"").http_bot("shop", "parrot", &url);
            adjust(configuration);
        })
        .await;
        Self { deployment, receiver }
    }

    async fn post(&self, secret: &str, id: &str, age: i64, body: &str) -> (u16, Value) {
        let url = self.deployment.turnwise.url(HOOK);
        let response = receiver::request(&url, secret, id, age, body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// A message of the conversation `c1`, by its number.
    async fn say(&self, text: &str) {
        let body = receiver::message("c1", text).to_string();
        let (status, answer) = self.post(SECRET, &format!("msg_{text}"), 0, &body).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn get(&self, path: &str) -> Value {
        let request = http_client().get(self.deployment.turnwise.url(path)).bearer_auth(CONSOLE_TOKEN);
        request.send().await.unwrap().json().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_answered_once_and_the_callback_is_signed() {
    let mut shop = Shop::start(Backend::Postgres, |configuration| {
        let secrets = "[{ env = \"TEST_HTTP_SECRET\" }, { env = \"TEST_HTTP_NEXT_SECRET\" }]";
        configuration.set("bots.shop", "secrets", secrets);
    })
    .await;
    let hello = receiver::message("c1", "hello").to_string();
    for (secret, age) in [("whsec_CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC", 0), (SECRET, 310), (SECRET, -310)] {
        assert_eq!(shop.post(secret, "msg_1", age, &hello).await.0, 401, "{age}");
    }
    let unsigned = http_client().post(shop.deployment.turnwise.url(HOOK)).body(hello.clone()).send().await.unwrap();
    assert_eq!(unsigned.status().as_u16(), 401);
    for (body, wrong) in [
        ("[]".to_owned(), "object"),
        (json!({ "type": "message.created", "data": { "text": "hi" } }).to_string(), "data.conversation"),
        (json!({ "type": "message.created", "data": { "conversation": "c1", "text": " " } }).to_string(), "data.text"),
        (json!({ "data": {} }).to_string(), "type"),
    ] {
        let (status, answer) = shop.post(SECRET, "msg_odd", 0, &body).await;
        assert!(status == 400 && answer["detail"].as_str().unwrap().contains(wrong), "{status} {answer}");
    }
    assert_eq!(shop.deployment.nats.last_sequence("turnwise_in").await, 0, "messages after nothing but refusals");

    assert_eq!(shop.post(SECRET, "msg_1", 0, &hello).await.0, 200);
    assert_eq!(
        shop.post(NEXT_SECRET, "msg_1", 200, &hello).await.0,
        200,
        "the same again, signed with the next secret"
    );
    let event = json!({ "type": "conversation.archived", "data": { "conversation": "c1" } }).to_string();
    assert_eq!(shop.post(SECRET, "evt_1", 0, &event).await.0, 200, "an event of another type is kept");
    let rich = json!({
        "type": "message.created",
        "data": {
            "conversation": 7, "user": 5, "text": "look", "id": "m9",
            "attachments": [{ "kind": "photo", "url": "https://example.com/1.jpg" }],
        },
    });
    assert_eq!(shop.post(NEXT_SECRET, "msg_2", 0, &rich.to_string()).await.0, 200);
    let callbacks = shop.receiver.wait_for(2, PATIENCE).await;
    shop.deployment.settled(3, PATIENCE).await;
    assert_eq!(shop.receiver.log().len(), 2);
    for callback in &callbacks {
        assert!(callback.is_authentic && callback.signatures == 2, "{callback:?}");
        assert_eq!(callback.body["type"], "reply.created");
        assert_eq!(callback.body["data"]["id"], callback.id);
    }
    let mut seen: Vec<_> =
        callbacks.iter().map(|callback| (&callback.body["data"]["conversation"], callback.text())).collect();
    seen.sort_by_key(|(_, text)| text.len());
    assert_eq!(seen, [(&json!("c1"), "hello"), (&json!("7"), "look\n[photo]")]);
    let states = shop.deployment.ledger.turns_by_state().await;
    assert_eq!((states["answered"], states["ignored"]), (2, 1));
    let listed = shop.get("/v1/conversations").await;
    let channels: Vec<&Value> =
        listed["conversations"].as_array().unwrap().iter().map(|conversation| &conversation["channel"]).collect();
    assert_eq!(channels, ["http", "http"]);
    shop.deployment.turnwise.terminate().await;
    shop.deployment.turnwise.assert_audit_clean().await;
}

/// What fails is sent again under its own id, and nothing of its conversation leaves before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_across_failures_and_a_killed_process() {
    let mut shop = Shop::start(Backend::Sqlite, |_| ()).await;
    shop.receiver.react(&[
        Reaction::Status(500),
        Reaction::Status(302),
        Reaction::Overloaded(1),
        Reaction::Status(200),
        Reaction::Hang,
    ]);
    for text in ["1", "2", "3"] {
        shop.say(text).await;
    }
    let callbacks = shop.receiver.wait_for(5, PATIENCE).await;
    let texts: Vec<&str> = callbacks.iter().map(receiver::Callback::text).collect();
    assert_eq!(texts, ["1", "1", "1", "1", "2"]);
    assert!(callbacks[..4].iter().all(|callback| callback.id == callbacks[0].id), "{callbacks:?}");
    let waited = callbacks[3].at - callbacks[2].at;
    assert!(waited >= Duration::from_millis(990), "Retry-After was one second, not {waited:?}");

    // The second is on its way when the process ends; nobody knows whether it arrived, and its id tells the receiver.
    shop.deployment.turnwise.kill9().await;
    shop.deployment.turnwise.start_again().await;
    let callbacks = shop.receiver.wait_for(7, PATIENCE).await;
    shop.deployment.settled(3, PATIENCE).await;
    let texts: Vec<&str> = callbacks[4..].iter().map(receiver::Callback::text).collect();
    assert_eq!(texts, ["2", "2", "3"]);
    assert_eq!(callbacks[4].id, callbacks[5].id);
    assert!(callbacks.iter().all(|callback| callback.is_authentic), "{callbacks:?}");
    let statuses: Vec<String> =
        shop.deployment.ledger.deliveries().await.into_iter().map(|delivery| delivery.status).collect();
    assert_eq!(statuses, ["sent", "sent", "sent"]);
    shop.deployment.turnwise.terminate().await;
    shop.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_gone_is_not_called_again() {
    let shop = Shop::start(Backend::Sqlite, |configuration| {
        configuration.set("bots.shop", "callback_timeout", "\"300ms\"");
    })
    .await;
    // One that does not answer in time is called again with the same, like any other failure.
    shop.receiver.react(&[Reaction::Hang, Reaction::Status(410)]);
    shop.say("1").await;
    let callbacks = shop.receiver.wait_for(2, PATIENCE).await;
    assert_eq!(callbacks[0].id, callbacks[1].id);
    shop.deployment.settled(1, PATIENCE).await;
    shop.say("2").await;
    shop.deployment.settled(2, PATIENCE).await;
    assert_eq!(shop.receiver.log().len(), 2, "callbacks");
    let errors = async |status: &str| {
        let listed = shop.get(&format!("/v1/deliveries?bot=shop&status={status}")).await;
        let errors = listed["deliveries"].as_array().unwrap().iter().map(|delivery| delivery["error"].to_string());
        errors.collect::<Vec<_>>()
    };
    assert_eq!(errors("failed").await, ["\"disabled: HTTP status 410\""]);
    // The call that had no answer may have been the one that arrived.
    let [uncertain] = &errors("uncertain").await[..] else { panic!("one is uncertain") };
    assert!(uncertain.contains("disabled: HTTP status 410"), "{uncertain}");
    let metrics = http_client().get(shop.deployment.turnwise.url("/metrics")).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("turnwise_bot_shut_out{bot=\"shop\"} 1"));
}
