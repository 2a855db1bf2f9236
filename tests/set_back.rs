//! A stream that comes back shorter than it was, under a process that runs and before one that starts: what is believed of it,
//! and when.
//!
//! Refuses to look into the process. Setting a stream back between two runs is in `operations.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::path::{Path, PathBuf};

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use futures_util::StreamExt as _;
use support::PATIENCE;
use support::nats::NatsServer;
use support::process::{Configuration, NAMESPACE, environment};
use support::responder::{Behaviour, answer, message};
use support::scenario::{Backend, Deployment};
use tempfile::TempDir;
use turnwise::cluster;
use turnwise::config::ConfigReader;
use turnwise::store::Store;
use turnwise::stream::{self, Connection, Lane};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const ANN: i64 = 801;
const BOB: i64 = 802;

/// A message at the place of one that is open: the process has to know that its place has come to mean another one, although
/// nothing is done beyond the stream's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_set_back_under_an_open_message_ends_the_process_and_the_next_one_answers() {
    let copies = TempDir::new().unwrap();
    let mut deployment = answered_once(copies.path()).await;
    deployment.model.hold(&message(ANN, 2));
    deployment.telegram.send(ANN, &message(ANN, 2));
    deployment.model.wait_for_call(&message(ANN, 2), PATIENCE).await;
    deployment.nats.kill9().await;
    restore(copies.path(), &deployment.nats.store());
    deployment.nats.start_again().await;
    assert_eq!(deployment.turnwise.ended().await.code(), Some(1), "exit code");

    deployment.turnwise.start_again().await;
    deployment.telegram.send(BOB, &message(BOB, 1));
    let texts = deployment.telegram.wait_for_texts(BOB, 1, PATIENCE).await;
    assert_eq!(texts, [answer(BOB, 1)], "the message at the place of the lost one");
    deployment.settled(2, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// As when a leader that was just elected has not caught up yet: the process waits for it, and nothing comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_catches_up_was_not_set_back() {
    let copies = TempDir::new().unwrap();
    let mut deployment = answered_once(copies.path()).await;
    deployment.model.hold(&message(ANN, 2));
    deployment.telegram.send(ANN, &message(ANN, 2));
    deployment.model.wait_for_call(&message(ANN, 2), PATIENCE).await;
    let open = stored(&deployment.nats, 2).await;
    deployment.nats.kill9().await;
    restore(copies.path(), &deployment.nats.store());
    deployment.nats.start_again().await;
    looked_at_twice(&deployment.nats).await;
    put_back(&deployment.nats, open).await;

    deployment.model.release(&message(ANN, 2));
    deployment.telegram.send(ANN, &message(ANN, 3));
    let texts = deployment.telegram.wait_for_texts(ANN, 3, PATIENCE).await;
    assert_eq!(texts, [1, 2, 3].map(|n| answer(ANN, n)));
    assert_eq!(deployment.model.log(|log| log.calls.len()), 3, "calls of the model");
    deployment.settled(3, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// The same for a process that starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_catches_up_while_a_process_starts_is_not_read_again() {
    const DONE: u64 = 5;
    let (nats, directory) = (NatsServer::start().await, TempDir::new().unwrap());
    let database = format!("sqlite://{}", directory.path().join("turnwise.db").display());
    let mut configuration = Configuration::new(&nats, &database);
    configuration.set("nats", "partitions", "1").set("responders.echo", "kind", "\"echo\"").web_bot("site", "echo");
    let config = ConfigReader::default().parse(&configuration.to_toml(), Path::new("turnwise.toml"), &environment);
    let config = config.unwrap();
    let connection = Connection::open(&config, &[nats.url()]).await.unwrap();
    let inbound = stream::ensure(&connection, &config.nats, Lane::Inbound).await.unwrap();
    let store = Store::connect(&database, 2).await.unwrap();
    store.migrate().await.unwrap();
    let owned = cluster::take_over(&inbound, &store, &[0]).await.unwrap();
    store.save_checkpoints(&[(owned[0].takeover.ownership, DONE)]).await.unwrap();
    let number = owned[0].takeover.ownership.stream;

    let catching_up = async {
        looked_at_twice(&nats).await;
        let jetstream = nats.jetstream().await;
        for _ in 0..DONE {
            jetstream.publish(format!("{NAMESPACE}.in.0.web.any.user-1"), "{}".into()).await.unwrap().await.unwrap();
        }
    };
    let (rewound, ()) = tokio::join!(cluster::rewind_if_set_back(&inbound, &store), catching_up);
    rewound.unwrap();
    assert_eq!(store.highest_checkpoint(number).await.unwrap(), Some(DONE));
    store.close().await;
}

/// One message answered; and a copy of the streams as they are then, under a process that runs on.
async fn answered_once(copies: &Path) -> Deployment {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("nats", "partitions", "1");
    })
    .await;
    deployment.telegram.send(ANN, &message(ANN, 1));
    deployment.settled(1, PATIENCE).await;
    deployment.nats.kill9().await;
    copy(&deployment.nats.store(), &copies.join("store"));
    deployment.nats.start_again().await;
    deployment
}

fn restore(copies: &Path, store: &PathBuf) {
    std::fs::remove_dir_all(store).unwrap();
    copy(&copies.join("store"), store);
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(copied.success(), "cp ended with {copied}");
}

/// Returns when somebody has asked the server twice how long the inbound stream is: the first answer is out by then.
async fn looked_at_twice(nats: &NatsServer) {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let asked = client.subscribe(format!("$JS.API.STREAM.INFO.{NAMESPACE}_in")).await.unwrap();
    let twice = tokio::time::timeout(PATIENCE, asked.take(2).count()).await;
    assert_eq!(twice.expect("the stream is looked at again"), 2);
}

async fn stored(nats: &NatsServer, sequence: u64) -> StreamMessage {
    let stream = nats.jetstream().await.get_stream(format!("{NAMESPACE}_in")).await.unwrap();
    stream.get_raw_message(sequence).await.unwrap()
}

/// The message is where it was.
async fn put_back(nats: &NatsServer, message: StreamMessage) {
    let publish = PublishMessage::build().payload(message.payload).headers(message.headers);
    let published = nats.jetstream().await.send_publish(message.subject.to_string(), publish).await.unwrap().await;
    assert_eq!(published.unwrap().sequence, message.sequence);
}
