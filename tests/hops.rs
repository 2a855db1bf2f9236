//! The way of one message, hop by hop (design, section 3), each broken in its own way: a network that swallows messages, a
//! server that is killed between two steps, a second owner, a stream or a database that is gone.
//!
//! Refuses to be random: each test breaks one hop at one known moment. Random kills under load are in `faults.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer;
use futures_util::TryStreamExt as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use support::nats::NatsServer;
use support::nats_proxy::{NatsProxy, Toward};
use support::process::{Configuration, NAMESPACE, Turnwise, environment, quoted};
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment, Load};
use support::telegram::SECRET;
use support::{PATIENCE, eventually, http_client};
use tokio_util::sync::CancellationToken;
use turnwise::config::{Config, ConfigReader};
use turnwise::message::ReplyMessage;
use turnwise::responder::{Reply, Responder, TurnContext, TurnError, TurnRequest};
use turnwise::store::Store;
use turnwise::stream::{self, Connection, Lane};
use turnwise::{cluster, server};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// The model takes its time, so that messages are on their way whenever something breaks.
const THINKING: Behaviour = Behaviour { seed: 11, longest_delay: Duration::from_millis(30), failures_percent: 0 };

/// Hop 3. A partition of its own for everything makes each gap hit many conversations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_swallowed_on_their_way_to_the_worker_come_again_in_order() {
    let proxy = NatsProxy::start().await;
    let mut deployment = Deployment::start(Backend::Sqlite, THINKING, |configuration| {
        behind(&proxy, configuration.set("nats", "partitions", "1"));
    })
    .await;
    proxy.swallow(Toward::Client, "HMSG turnwise.in.", 9, 4);
    proxy.swallow(Toward::Client, "HMSG turnwise.out.", 7, 4);
    let load = Load { chats: 1..9, per_chat: 10 };
    load.send(&deployment.telegram);
    assert_every_promise(&mut deployment, &load).await;
    assert_eq!(proxy.swallowed(), 8, "messages swallowed");
}

/// Hop 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_connections_lose_double_and_swap_nothing() {
    let proxy = NatsProxy::start().await;
    let mut deployment = Deployment::start(Backend::Sqlite, THINKING, |configuration| {
        behind(&proxy, configuration.set("nats", "partitions", "2"));
    })
    .await;
    let load = Load { chats: 1..9, per_chat: 8 };
    load.send(&deployment.telegram);
    for calls in [5, 20, 35, 50] {
        deployment.model.wait("the moment to cut", PATIENCE, |log| log.calls.len() >= calls).await;
        proxy.cut();
    }
    assert_every_promise(&mut deployment, &load).await;
}

/// Hop 3. The consumer is there, but nobody heard of it, and meanwhile the place to read on from has moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_whose_creation_was_not_answered_does_not_stop_its_partition() {
    let proxy = NatsProxy::start().await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        behind(&proxy, configuration.set("nats", "partitions", "1"));
    })
    .await;
    deployment.model.hold(&message(1, 1));
    deployment.telegram.send(1, &message(1, 1));
    deployment.model.wait_for_call(&message(1, 1), PATIENCE).await;
    proxy.swallow(Toward::Client, "\"stream_name\":\"turnwise_in\"", 1, 1);
    proxy.cut();
    proxy.wait_swallowed(1, PATIENCE).await;
    deployment.model.release(&message(1, 1));
    deployment.telegram.wait_for_texts(1, 1, PATIENCE).await;
    deployment.telegram.send(1, &message(1, 2));
    assert_every_promise(&mut deployment, &Load { chats: 1..2, per_chat: 2 }).await;
}

/// Hops 6 and 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_committed_but_not_published_before_a_crash_leaves_once_and_first() {
    const CHAT: i64 = 7;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 3 };
    deployment.model.hold(&message(CHAT, 1));
    load.send(&deployment.telegram);
    deployment.telegram.all_taken(PATIENCE).await;
    deployment.model.wait_for_call(&message(CHAT, 1), PATIENCE).await;

    deployment.nats.kill9().await;
    deployment.model.release(&message(CHAT, 1));
    eventually("the commit", PATIENCE, async || (deployment.ledger.turn_count().await == 1).then_some(())).await;
    deployment.turnwise.kill9().await;
    deployment.nats.start_again().await;
    deployment.turnwise.start_again().await;
    assert_every_promise(&mut deployment, &load).await;
}

/// Hop 7. Of a reply's parts on their way the first is lost; the next must not overtake it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parts_of_a_reply_keep_their_order_when_the_first_is_lost() {
    const CHAT: i64 = 8;
    let proxy = NatsProxy::start().await;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |c| behind(&proxy, c)).await;
    let paragraphs: Vec<String> = (1..=3).map(|n| format!("{n} {}", "word ".repeat(700).trim_end())).collect();
    deployment.model.answer_with(&message(CHAT, 1), &paragraphs.join("\n\n"));
    proxy.swallow(Toward::Server, "HPUB turnwise.out.", 1, 1);
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 3, PATIENCE).await, paragraphs, "what the chat sees");
    assert_eq!(proxy.swallowed(), 1);
}

/// Hop 8. One message is finished behind one that is not, and no acknowledgement arrives: it comes again to the same
/// process, and to the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_whose_acknowledgement_was_lost_is_skipped_when_it_comes_again() {
    let proxy = NatsProxy::start().await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        behind(&proxy, configuration.set("nats", "partitions", "1"));
    })
    .await;
    deployment.model.hold(&message(1, 1));
    deployment.telegram.send(1, &message(1, 1));
    deployment.model.wait_for_call(&message(1, 1), PATIENCE).await;
    proxy.swallow(Toward::Server, "+ACK", 1, usize::MAX);
    deployment.telegram.send(2, &message(2, 1));
    deployment.settled(1, PATIENCE).await;
    // Those of the inbound message and of its reply.
    proxy.wait_swallowed(2, PATIENCE).await;

    proxy.swallow_nothing();
    proxy.cut();
    acknowledged_but(&deployment.nats, "in", 1).await;
    proxy.swallow(Toward::Server, "+ACK", 1, usize::MAX);
    deployment.turnwise.kill9().await;
    deployment.turnwise.start_again().await;
    proxy.wait_swallowed(3, PATIENCE).await;
    proxy.swallow_nothing();
    deployment
        .model
        .wait("the held message to be asked again", PATIENCE, |log| log.calls_for(&message(1, 1)) == 2)
        .await;
    deployment.model.release(&message(1, 1));
    deployment.telegram.wait_for_texts(1, 1, PATIENCE).await;
    deployment.settled(2, PATIENCE).await;
    assert_eq!(deployment.model.log(|log| log.calls_for(&message(2, 1))), 1, "calls for the finished message");
    Load { chats: 1..3, per_chat: 1 }.assert_answered_once_in_order(&deployment.telegram);
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// Hops 3 and 6. The first process is stopped in the middle of a turn, as by a long pause of its machine, and goes on when
/// everything is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_takes_over_and_the_first_can_commit_nothing_more() {
    const CHAT: i64 = 9;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    deployment.model.hold(&message(CHAT, 1));
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.model.wait_for_call(&message(CHAT, 1), PATIENCE).await;
    deployment.turnwise.signal("STOP").await;
    let mut second = Turnwise::spawn(deployment.turnwise.configuration().beside()).await;
    deployment.model.wait("the second process to ask", PATIENCE, |log| log.calls_for(&message(CHAT, 1)) == 2).await;
    deployment.model.release(&message(CHAT, 1));
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    deployment.settled(1, PATIENCE).await;

    // The model's answer waits in the first process's socket.
    deployment.turnwise.signal("CONT").await;
    post(&second, &deployment.telegram.update(CHAT, &message(CHAT, 2))).await;
    deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 2 };
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    // It lost what it had and takes part again: it ends as any other does.
    deployment.turnwise.terminate().await;
    second.terminate().await;
    second.assert_audit_clean().await;
}

/// The stream's incarnation: sequences start at 1 again, and mean other messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_stream_made_anew_are_answered() {
    const CHAT: i64 = 10;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("nats", "partitions", "1");
    })
    .await;
    let send = |numbers: std::ops::RangeInclusive<u32>| {
        numbers.for_each(|n| drop(deployment.telegram.send(CHAT, &message(CHAT, n))));
    };
    send(1..=3);
    deployment.settled(3, PATIENCE).await;
    deployment.turnwise.terminate().await;
    let jetstream = deployment.nats.jetstream().await;
    for lane in ["in", "out"] {
        jetstream.delete_stream(format!("{NAMESPACE}_{lane}")).await.unwrap();
    }
    deployment.turnwise.start_again().await;
    send(4..=5);
    deployment.settled(5, PATIENCE).await;

    // Under the running process, which must not take the new stream for the old one.
    let name = format!("{NAMESPACE}_in");
    let settings = jetstream.get_stream(&name).await.unwrap().cached_info().config.clone();
    jetstream.delete_stream(&name).await.unwrap();
    jetstream.create_stream(settings).await.unwrap();
    send(6..=8);
    assert_eq!(deployment.turnwise.ended().await.code(), Some(1), "exit code");
    deployment.turnwise.start_again().await;
    assert_every_promise(&mut deployment, &Load { chats: CHAT..CHAT + 1, per_chat: 8 }).await;
}

/// Hops 4 to 9. No process dies, so that nothing is uncertain and the model is asked once for each message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_wait_for_a_database_that_is_away() {
    let mut deployment = Deployment::start(Backend::Postgres, THINKING, |configuration| {
        configuration.set("worker", "max_attempts", "1");
    })
    .await;
    let load = Load { chats: 1..9, per_chat: 6 };
    load.send(&deployment.telegram);
    for calls in [8, 30] {
        deployment.model.wait("the moment to kill", PATIENCE, |log| log.calls.len() >= calls).await;
        deployment.postgres.as_ref().unwrap().kill();
        let readiness = http_client().get(deployment.turnwise.url("/readyz")).send().await.unwrap();
        assert_eq!(readiness.status(), StatusCode::SERVICE_UNAVAILABLE);
        let readiness: Value = readiness.json().await.unwrap();
        assert_eq!(
            readiness["checks"],
            json!({ "stream": true, "database": false, "not_draining": true, "bots_served": true })
        );
        deployment.telegram.all_taken(PATIENCE).await;
        deployment.postgres.as_ref().unwrap().restart().await;
        eventually("turnwise to be ready", PATIENCE, async || {
            (deployment.turnwise.readiness().await == Some(StatusCode::OK)).then_some(())
        })
        .await;
    }
    assert_every_promise(&mut deployment, &load).await;
}

/// Hops 4 and 5. What nobody can read, or not this version, or what is no message of ours, is set aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_messages_are_set_aside_and_block_nothing() {
    const CHAT: i64 = 12;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("nats", "partitions", "1").set("worker", "max_attempts", "2");
    })
    .await;
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.settled(1, PATIENCE).await;
    let jetstream = deployment.nats.jetstream().await;
    let inbound = jetstream.get_stream(format!("{NAMESPACE}_in")).await.unwrap();
    let good = inbound.get_raw_message(1).await.unwrap();
    let put = async |lane: &str, headers: &[(&str, &str)], payload: bytes::Bytes| {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let subject = good.subject.replace("turnwise.in.", &format!("turnwise.{lane}."));
        jetstream.publish_with_headers(subject, map, payload).await.unwrap().await.unwrap();
    };
    put("in", &[("Nats-Msg-Id", "garbage"), ("Turnwise-Schema", "1")], "no JSON\nat all".into()).await;
    put("in", &[("Nats-Msg-Id", "newer"), ("Turnwise-Schema", "999")], good.payload.clone()).await;
    put("in", &[], "{}".into()).await;
    put("in", &[("Nats-Msg-Id", "copied"), ("Turnwise-Schema", "1")], good.payload.clone()).await;
    put("in", &[("Nats-Msg-Id", "large")], vec![b'x'; 1_048_576 - 64].into()).await;
    let id = uuid::Uuid::now_v7().to_string();
    for headers in [&[][..], &[("Nats-Msg-Id", "foreign")], &[("Nats-Msg-Id", &id)]] {
        put("out", headers, "foreign".into()).await;
    }
    put("out", &[("Nats-Msg-Id", &id.to_uppercase())], "foreign".into()).await;
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    let texts = deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    assert_eq!(texts, [answer(CHAT, 1), answer(CHAT, 2)], "what the chat sees");

    let states = deployment.ledger.turns_by_state().await;
    assert_eq!(states, BTreeMap::from([("answered".to_owned(), 2), ("dead_lettered".to_owned(), 5)]), "the ledger");
    let dead = jetstream.get_stream(format!("{NAMESPACE}_dead")).await.unwrap();
    assert_eq!(dead.cached_info().state.messages, 5, "dead letters");
    for (sequence, reason, error) in [
        (1, "undecodable", "not an envelope"),
        (2, "undecodable", "newer version"),
        (3, "undecodable", "not an envelope"),
        (4, "store", ""),
        (5, "undecodable", "not an envelope"),
    ] {
        let letter = dead.get_raw_message(sequence).await.unwrap();
        let header = |name: &str| letter.headers.get(name).unwrap().as_str();
        assert_eq!((header("Turnwise-Reason"), header("Turnwise-Sequence")), (reason, &*(sequence + 1).to_string()));
        assert!(header("Turnwise-Error").contains(error), "error {sequence}: {}", header("Turnwise-Error"));
        let original = inbound.get_raw_message(sequence + 1).await.unwrap().payload;
        let expected = if sequence == 5 { bytes::Bytes::new() } else { original };
        assert_eq!(letter.payload, expected, "body {sequence}");
    }
    acknowledged_but(&deployment.nats, "in", 0).await;
    acknowledged_but(&deployment.nats, "out", 0).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// What was written down beside the stream is all that is known of what was answered: consumers are gone with the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_lost_does_not_answer_old_messages_again() {
    const CHAT: i64 = 13;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("nats", "partitions", "2");
    })
    .await;
    for n in 1..=3 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.settled(3, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.nats.kill9().await;
    deployment.nats.start_again().await;
    let configuration = deployment.turnwise.configuration();
    let database = unquoted(configuration, "database", "url");
    let file = database.strip_prefix("sqlite://").unwrap().to_owned();
    for suffix in ["", "-wal", "-shm"] {
        let _not_there = std::fs::remove_file(format!("{file}{suffix}"));
    }
    // One owner gets as far as to have removed the consumers, and is gone; the next must still know.
    let config = read(configuration, &[]);
    let store = Store::connect(&database, 2).await.unwrap();
    store.migrate().await.unwrap();
    let connection = Connection::open(&config, &[deployment.nats.url()]).await.unwrap();
    let inbound = stream::existing(&connection, Lane::Inbound).await.unwrap();
    let after = async || -> u64 {
        let owned = cluster::take_over(&inbound, &store, &[0, 1]).await.unwrap();
        owned.iter().map(|owned| owned.after).max().unwrap()
    };
    assert_eq!((after().await, after().await), (3, 3), "where to read on");
    store.close().await;

    deployment.turnwise.start_again().await;
    deployment.telegram.send(CHAT, &message(CHAT, 4));
    deployment.telegram.wait_for_texts(CHAT, 4, PATIENCE).await;
    Load { chats: CHAT..CHAT + 1, per_chat: 4 }.assert_answered_once_in_order(&deployment.telegram);
    assert_eq!(deployment.model.log(|log| log.calls.len()), 4, "calls of the model");
    deployment.turnwise.terminate().await;
}

/// A brain in Rust that misbehaves in the ways that only code can, and is an echo otherwise.
struct Unruly;

#[async_trait::async_trait]
impl Responder for Unruly {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let text = request.messages[0].message.text.as_str();
        match text {
            "panic" => panic!("as asked"),
            "panic once" if context.attempt == 1 => panic!("as asked"),
            "cancel" => Err(TurnError::Cancelled),
            "for ever" => Err(TurnError::Retryable { message: "busy".to_owned(), after: Some(Duration::MAX) }),
            "large" => Ok(Reply { messages: vec![ReplyMessage::text("x".repeat(2_000_000))], ..Reply::default() }),
            _ => Ok(Reply::text(text)),
        }
    }
}

/// Hop 5, in process. A panic is a failure like any other, and neither it nor anything else a responder does reaches beyond
/// its own turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unruly_responder_harms_its_own_turn_only() {
    let nats = NatsServer::start().await;
    let directory = tempfile::TempDir::new().unwrap();
    let database = format!("sqlite://{}", directory.path().join("turnwise.db").display());
    let mut configuration = Configuration::new(&nats, &database);
    configuration.set("worker", "max_attempts", "2").web_bot("site", "unruly").set(
        "bots.site",
        "failure_reply",
        &quoted("Sorry."),
    );
    let config = Arc::new(read(&configuration, &["unruly"]));
    let stop = CancellationToken::new();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let running = tokio::spawn({
        let (config, stop) = (Arc::clone(&config), stop.clone());
        let responders = BTreeMap::from([("unruly".to_owned(), Arc::new(Unruly) as Arc<dyn Responder>)]);
        async move { server::run(&config, server::Roles::ALL, responders, stop, |_| ready.send(()).unwrap()).await }
    });
    tokio::time::timeout(PATIENCE, is_ready).await.unwrap().unwrap();
    let say = async |device: &str, text: &str| -> Value {
        let body = json!({ "bot": "site", "device_id": device, "message": text, "platform": "api" });
        let request = http_client().post(configuration.url("/v1/chat")).bearer_auth(support::process::WEB_KEY);
        request.json(&body).send().await.unwrap().json().await.unwrap()
    };
    let asked_for_ever = http_client()
        .post(configuration.url("/v1/chat"))
        .bearer_auth(support::process::WEB_KEY)
        .header("Prefer", "respond-async")
        .json(&json!({ "bot": "site", "device_id": "stuck", "message": "for ever", "platform": "api" }));
    assert_eq!(asked_for_ever.send().await.unwrap().status(), StatusCode::ACCEPTED);
    for (text, status, reply) in [
        ("panic", "dead_lettered", "Sorry."),
        ("panic once", "answered", "panic once"),
        ("cancel", "dead_lettered", "Sorry."),
        ("large", "answered", &"x".repeat(2_000_000)),
        ("hello", "answered", "hello"),
    ] {
        let answered = say("one device", text).await;
        assert_eq!(answered["status"], status, "{text}");
        assert!(answered["reply"]["content"] == reply, "the reply to {text:?}");
    }
    assert!(!running.is_finished(), "the server runs on");
    stop.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
}

/// The configuration as the library reads it.
fn read(configuration: &Configuration, registered: &[&str]) -> Config {
    let registered: Vec<String> = registered.iter().map(|name| (*name).to_owned()).collect();
    let reader = ConfigReader::default().registered_responders(&registered);
    reader.parse(&configuration.to_toml(), Path::new("turnwise.toml"), &environment).unwrap()
}

fn unquoted(configuration: &Configuration, table: &str, key: &str) -> String {
    configuration.get(table, key).trim_matches('"').to_owned()
}

/// Puts the proxy between Turnwise and nats-server.
fn behind(proxy: &NatsProxy, configuration: &mut Configuration) {
    proxy.forward_to(&unquoted(configuration, "nats", "url"));
    configuration.set("nats", "url", &quoted(&proxy.url()));
}

/// Every message of the load is answered once, in order, persisted once, and the model was asked once about each.
async fn assert_every_promise(deployment: &mut Deployment, load: &Load) {
    deployment.telegram.all_taken(PATIENCE).await;
    deployment.telegram.wait("every answer", PATIENCE, |log| log.delivered.len() >= load.total()).await;
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    assert_eq!(deployment.model.log(|log| log.calls.len()), load.total(), "calls of the model");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// Returns when all but so many messages that the lane's consumers have handed out are acknowledged.
async fn acknowledged_but(nats: &NatsServer, lane: &str, open: usize) {
    let stream = nats.jetstream().await.get_stream(format!("{NAMESPACE}_{lane}")).await.unwrap();
    eventually("the acknowledgements", PATIENCE, async || {
        let consumers: Vec<consumer::Info> = stream.consumers().try_collect().await.ok()?;
        let waiting: u64 = consumers.iter().map(|consumer| consumer.num_pending).sum();
        let unacknowledged: usize = consumers.iter().map(|consumer| consumer.num_ack_pending).sum();
        (waiting == 0 && unacknowledged == open).then_some(())
    })
    .await;
}

/// Posts an update to another process than the one that Telegram knows.
async fn post(turnwise: &Turnwise, update: &Value) {
    let request = http_client().post(turnwise.url(&format!("/webhooks/telegram/{BOT}")));
    let response = request.header("X-Telegram-Bot-Api-Secret-Token", SECRET).json(update).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
