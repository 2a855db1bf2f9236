//! What a responder over HTTP is asked under which `Idempotency-Key`, when the process is killed in the middle and other messages
//! have come since: never two works under one key, nor one under two.
//!
//! Refuses to look into the process: what counts is what the service is sent.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::sync::Arc;

use serde_json::json;
use support::process::{Configuration, quoted};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment};
use support::world::{ANN, BOB};
use support::{PATIENCE, eventually, http_client};
use tokio::sync::Notify;
use wire::{Play, Step, Wire};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/wire.rs"]
mod wire;

const CAROL: i64 = 7_003;

/// A Telegram bot whose responder is a service that plays `plays`.
async fn start(
    backend: Backend,
    plays: impl IntoIterator<Item = Play>,
    adjust: impl FnOnce(&mut Configuration),
) -> (Deployment, Wire) {
    let wire = Wire::start(plays).await;
    let deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
        configuration
            .set("nats", "partitions", "1")
            .set("responders.service", "kind", "\"http\"")
            .set("responders.service", "url", &quoted(&format!("{}/turn", wire.base_url)))
            .set(&format!("bots.{BOT}"), "responder", "\"service\"");
        adjust(configuration);
    })
    .await;
    (deployment, wire)
}

/// Never answers.
fn silence() -> Play {
    Play { status: 200, headers: Vec::new(), steps: vec![Step::Silence] }
}

fn says(text: &str) -> Play {
    let body = json!({ "replies": [{ "content": text }] }).to_string();
    Play { status: 200, headers: vec![("content-type", "application/json")], steps: vec![Step::Bytes(body.into())] }
}

/// Will not have it, whatever is tried.
fn refuses() -> Play {
    Play { status: 400, headers: Vec::new(), steps: vec![Step::Bytes("{}".into())] }
}

/// Says it when told to.
fn says_after(go: &Arc<Notify>, text: &str) -> Play {
    let mut play = says(text);
    play.steps.insert(0, Step::Wait(Arc::clone(go)));
    play
}

/// The next call: its key, which is the id of its turn, and what it is about.
async fn next(wire: &mut Wire) -> (String, Vec<String>) {
    let seen = tokio::time::timeout(PATIENCE, wire.seen.recv()).await.expect("a call").unwrap();
    let key = seen.header("idempotency-key").unwrap().to_owned();
    assert_eq!(seen.body["turn_id"], key.as_str());
    let texts = seen.body["messages"].as_array().unwrap().iter();
    (key, texts.map(|message| message["text"].as_str().unwrap().to_owned()).collect())
}

/// Two messages of one turn are delivered again one by one, and a third behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collected_turn_comes_again_as_it_was() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let go = Arc::new(Notify::new());
        let plays = [says_after(&go, "0"), says("other"), silence(), says("1, 2"), says("3")];
        let (mut deployment, mut wire) = start(backend, plays, |configuration| {
            configuration.set(&format!("bots.{BOT}"), "burst", "\"collect\"");
        })
        .await;
        deployment.telegram.send(ANN, "zero");
        assert_eq!(next(&mut wire).await.1, ["zero"]);
        deployment.telegram.send(ANN, "one");
        deployment.telegram.all_taken(PATIENCE).await;
        deployment.telegram.post_gap().await;
        deployment.telegram.send(ANN, "two");
        deployment.telegram.all_taken(PATIENCE).await;
        // The one partition is read in order: once somebody else is answered, all of this is in its lane.
        deployment.telegram.send(BOB, "other");
        assert_eq!(next(&mut wire).await.1, ["other"]);
        go.notify_one();
        let (key, texts) = next(&mut wire).await;
        assert_eq!(texts, ["one", "two"]);
        // A reply that is on its way when the process ends is uncertain, and held.
        eventually("both replies to be recorded as sent", PATIENCE, async || {
            let sent = deployment.ledger.deliveries().await.into_iter().filter(|delivery| delivery.status == "sent");
            (sent.count() == 2).then_some(())
        })
        .await;
        deployment.turnwise.kill9().await;
        deployment.telegram.send(ANN, "three");
        deployment.turnwise.start_again().await;
        assert_eq!(next(&mut wire).await, (key.clone(), texts), "{backend:?}: the same work under the same key");
        let (other, texts) = next(&mut wire).await;
        assert_eq!(texts, ["three"], "{backend:?}");
        assert_ne!(other, key, "{backend:?}");
        assert_eq!(deployment.telegram.wait_for_texts(ANN, 3, PATIENCE).await, ["0", "1, 2", "3"]);
        deployment.settled(305, PATIENCE).await;
        assert_eq!(deployment.ledger.journal_counts().await, (0, 0), "nothing is left over, nothing kept");
        deployment.turnwise.assert_audit_clean().await;
    }
}

/// An interruption makes another work of it, under another key; a crash after that does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_turn_is_another_and_stays_it() {
    let plays = [silence(), silence(), says("1, 2"), says("3")];
    let (mut deployment, mut wire) = start(Backend::Sqlite, plays, |configuration| {
        configuration.set(&format!("bots.{BOT}"), "burst", "\"interrupt\"");
    })
    .await;
    deployment.telegram.send(ANN, "one");
    let (first, texts) = next(&mut wire).await;
    assert_eq!(texts, ["one"]);
    deployment.telegram.send(ANN, "two");
    let (both, texts) = next(&mut wire).await;
    assert_eq!(texts, ["one", "two"], "the service does not keep the policy from interrupting");
    assert_ne!(both, first);
    deployment.turnwise.kill9().await;
    deployment.telegram.send(ANN, "three");
    deployment.turnwise.start_again().await;
    assert_eq!(next(&mut wire).await, (both, texts), "the same work under the same key");
    assert_eq!(next(&mut wire).await.1, ["three"]);
    assert_eq!(deployment.telegram.wait_for_texts(ANN, 2, PATIENCE).await, ["1, 2", "3"]);
    deployment.settled(3, PATIENCE).await;
    assert_eq!(deployment.ledger.journal_counts().await, (0, 0), "nothing is left over, nothing kept");
    deployment.turnwise.assert_audit_clean().await;
}

/// A message is edited while the process is down: what the service was told of is what it is told of again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_during_a_crash_does_not_change_what_was_asked() {
    let go = Arc::new(Notify::new());
    let plays = [silence(), silence(), says_after(&go, "before"), says("1"), says("after")];
    let (mut deployment, mut wire) = start(Backend::Sqlite, plays, |_| {}).await;
    deployment.telegram.send(BOB, "before");
    next(&mut wire).await;
    let sent = deployment.telegram.send(ANN, "one");
    let asked = next(&mut wire).await;
    deployment.turnwise.kill9().await;
    // One turn at a time: that of the first message holds the other up until it has met its edit.
    deployment.turnwise.reconfigure(|configuration| {
        configuration.set(&format!("bots.{BOT}"), "max_turns", "1");
    });
    deployment.turnwise.start_again().await;
    assert_eq!(next(&mut wire).await.1, ["before"]);
    let mut edit = deployment.telegram.update(ANN, "another");
    edit["message"]["message_id"] = sent["message"]["message_id"].clone();
    edit["edited_message"] = edit["message"].take();
    edit.as_object_mut().unwrap().remove("message");
    deployment.telegram.post(&edit).await.unwrap();
    deployment.telegram.send(CAROL, "after");
    eventually("all three lanes", PATIENCE, async || {
        let metrics = http_client().get(deployment.turnwise.url("/metrics")).send().await.unwrap();
        metrics.text().await.unwrap().lines().any(|line| line == "turnwise_lanes 3").then_some(())
    })
    .await;
    go.notify_one();
    assert_eq!(next(&mut wire).await, asked);
    assert_eq!(next(&mut wire).await.1, ["after"]);
    deployment.settled(4, PATIENCE).await;
    let states: Vec<_> = deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(states, ["answered", "answered", "ignored", "answered"]);
    deployment.turnwise.assert_audit_clean().await;
}

/// A message comes while the process is down, and the turn that was begun before is refused for good when it is tried again: it
/// alone is given up, because nobody was ever asked about the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_tried_is_not_given_up_with_what_was() {
    let go = Arc::new(Notify::new());
    let plays = [silence(), silence(), says_after(&go, "before"), refuses(), says("said"), says("said")];
    let (mut deployment, mut wire) = start(Backend::Sqlite, plays, |configuration| {
        configuration.set(&format!("bots.{BOT}"), "burst", "\"collect\"");
    })
    .await;
    deployment.telegram.send(BOB, "before");
    next(&mut wire).await;
    deployment.telegram.send(ANN, "one");
    let asked = next(&mut wire).await;
    deployment.turnwise.kill9().await;
    // One turn at a time: that of the first message holds the other up until all of its messages are there.
    deployment.turnwise.reconfigure(|configuration| {
        configuration.set(&format!("bots.{BOT}"), "max_turns", "1");
    });
    deployment.turnwise.start_again().await;
    assert_eq!(next(&mut wire).await.1, ["before"]);
    deployment.telegram.send(ANN, "two");
    deployment.telegram.all_taken(PATIENCE).await;
    deployment.telegram.send(CAROL, "after");
    eventually("all three lanes", PATIENCE, async || {
        let metrics = http_client().get(deployment.turnwise.url("/metrics")).send().await.unwrap();
        metrics.text().await.unwrap().lines().any(|line| line == "turnwise_lanes 3").then_some(())
    })
    .await;
    go.notify_one();
    assert_eq!(next(&mut wire).await, asked, "the turn that was begun, as it was");
    let mut others = vec![next(&mut wire).await.1, next(&mut wire).await.1];
    others.sort();
    assert_eq!(others, [["after"], ["two"]]);
    deployment.settled(4, PATIENCE).await;
    let states: Vec<_> = deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(states, ["answered", "dead_lettered", "answered", "answered"]);
    deployment.turnwise.assert_audit_clean().await;
}
