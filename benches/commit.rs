//! How many turns a second the database takes, and how long one of them waits: commits and deliveries from 1, 32 and 512
//! callers at once, on SQLite and on PostgreSQL, both in a temporary folder and durable (`synchronous=FULL`, `fsync=on`).
//!
//! Refuses to judge: it prints a table. Every caller has a conversation of its own, as a lane has, and asks for the next thing
//! when the last one is done. Run it with `make bench`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Map;
use tempfile::TempDir;
use tokio::task::JoinSet;
use turnwise::message::{
    Author, Channel, ConversationKey, Form, OutboundPart, Peer, Platform, Role, TerminalState, Timestamp,
};
use turnwise::store::{
    CommitOutcome, NewConversation, NewMessage, Ownership, Position, SendResult, SendStart, Store, TurnCommit,
    TurnTimings,
};
use turnwise::telemetry::Metrics;
use turnwise::telemetry::metric::COMMIT_BATCH_SIZE;
use uuid::Uuid;

#[path = "../tests/support/postgres.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod postgres_cluster;

use postgres_cluster::PostgresCluster;

/// As many as a deployment has by default.
const CONNECTIONS: u32 = 10;

/// How long each figure is measured; long enough for hundreds of transactions on a slow disk.
const MEASURED: Duration = Duration::from_secs(4);

const CALLERS: [usize; 3] = [1, 32, 512];

#[tokio::main]
async fn main() {
    let metrics = Metrics::install().unwrap();
    println!("database   callers what     per second   p50 ms   p99 ms per group");
    for callers in CALLERS {
        let folder = TempDir::new().unwrap();
        measure("SQLite", &format!("sqlite://{}/bench.db", folder.path().display()), callers, &metrics).await;
    }
    let cluster = PostgresCluster::start().await;
    for callers in CALLERS {
        let url = cluster.create_database(&format!("bench_{callers}")).await;
        measure("PostgreSQL", &url, callers, &metrics).await;
    }
}

async fn measure(database: &str, url: &str, callers: usize, metrics: &Metrics) {
    let store = Store::connect(url, CONNECTIONS).await.unwrap();
    store.migrate().await.unwrap();
    let stream = store.stream_number("bench", "1").await.unwrap();
    let partitions = (0..64).collect::<Vec<_>>();
    let owned = store.take_over(stream, &partitions, 0).await.unwrap();
    let lane = |number: usize| (store.clone(), owned[number % owned.len()].ownership, number);

    let before = groups(metrics);
    let mut lanes = JoinSet::new();
    (0..callers).map(lane).for_each(|(store, owner, number)| drop(lanes.spawn(commits(store, owner, number))));
    let mut times = Vec::new();
    let mut deliveries = Vec::new();
    while let Some(done) = lanes.join_next().await {
        let (taken, written) = done.unwrap();
        times.extend(taken);
        deliveries.push(written);
    }
    let after = groups(metrics);
    let size = (after.0 - before.0) / (after.1 - before.1);
    report(database, callers, "commits", times, &format!("{size:.1}"));

    let mut lanes = JoinSet::new();
    for (number, ids) in deliveries.into_iter().enumerate() {
        let (store, owner, _) = lane(number);
        lanes.spawn(sends(store, owner, ids));
    }
    let mut times = Vec::new();
    while let Some(done) = lanes.join_next().await {
        times.extend(done.unwrap());
    }
    report(database, callers, "sends", times, "");
    store.close().await;
}

/// Commits turn after turn of one conversation; how long each took, and what is to be delivered.
async fn commits(store: Store, owner: Ownership, lane: usize) -> (Vec<Duration>, Vec<Uuid>) {
    let (mut times, mut deliveries) = (Vec::new(), Vec::new());
    let conversation_id = Uuid::now_v7();
    let began = Instant::now();
    let mut sequence = 0;
    while began.elapsed() < MEASURED {
        sequence += 1;
        let turn = turn(owner, sequence, lane, conversation_id);
        deliveries.extend(turn.deliveries.iter().map(|part| part.delivery_id));
        let asked = Instant::now();
        let outcome = store.commit(turn).await.unwrap();
        times.push(asked.elapsed());
        assert!(matches!(outcome, CommitOutcome::Committed { .. }), "{outcome:?}");
    }
    (times, deliveries)
}

/// Begins and settles one delivery after another; how long the two took together.
async fn sends(store: Store, owner: Ownership, deliveries: Vec<Uuid>) -> Vec<Duration> {
    let mut times = Vec::new();
    let began = Instant::now();
    for id in deliveries {
        if began.elapsed() > MEASURED {
            break;
        }
        let asked = Instant::now();
        let start = store.begin_send(id, &owner, Timestamp::now()).await.unwrap();
        assert!(matches!(start, SendStart::Begun { attempt: 1, .. }), "{start:?}");
        let sent = SendResult::Sent { platform_message_id: Some("1".to_owned()) };
        store.settle_send(id, &sent, Timestamp::now()).await.unwrap().expect("a receipt");
        times.push(asked.elapsed());
    }
    times
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn report(database: &str, callers: usize, what: &str, mut times: Vec<Duration>, size: &str) {
    times.sort_unstable();
    // Callers are never idle, so the time they spent is the time that passed, once for each.
    let passed = times.iter().sum::<Duration>().as_secs_f64() / callers as f64;
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let rate = times.len() as f64 / passed;
    println!("{database:<10} {callers:>7} {what:<8} {rate:>10.0} {:>8.2} {:>8.2} {size:>9}", at(50), at(99));
}

/// Turns committed so far, and the transactions they took.
fn groups(metrics: &Metrics) -> (f64, f64) {
    let page = metrics.render();
    let value = |suffix: &str| {
        let series = format!("{COMMIT_BATCH_SIZE}_{suffix} ");
        page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
    };
    (value("sum"), value("count"))
}

/// A question and its answer, in one part.
fn turn(ownership: Ownership, sequence: u64, lane: usize, conversation_id: Uuid) -> Arc<TurnCommit> {
    let now = Timestamp::now();
    let turn_id = Uuid::now_v7();
    let key =
        ConversationKey { channel: Channel::Telegram, bot: "support".into(), peer: Peer::User(format!("user{lane}")) };
    let message = |role, author, content: &str| NewMessage {
        id: Uuid::now_v7(),
        role,
        author,
        content: content.to_owned(),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: Some(format!("{lane}/{sequence}")),
        created_at: now,
    };
    let question = message(Role::User, Author::User, "Where is my parcel? It should have been here yesterday.");
    let answer = message(Role::Assistant, Author::Bot, "It left our house this morning and will be with you tonight.");
    let part = OutboundPart {
        delivery_id: Uuid::now_v7(),
        turn_id,
        conversation_id: Some(conversation_id),
        message_id: answer.id,
        key: key.clone(),
        part: 0,
        parts: 1,
        content: answer.content.clone(),
        buttons: Vec::new(),
        form: Form::default(),
        created_at: now,
    };
    let new_conversation = (sequence == 1).then(|| NewConversation {
        id: conversation_id,
        key: key.clone(),
        platform: Platform::Telegram,
        device_id: None,
        metadata: Map::new(),
        created_at: now,
    });
    Arc::new(TurnCommit {
        ownership,
        position: Position { stream: ownership.stream, sequence },
        turn_id,
        dedupe_id: format!("telegram:support:{lane}:{sequence}"),
        merged: Vec::new(),
        state: TerminalState::Answered,
        reason: None,
        attempts: 1,
        responder: Some("echo".to_owned()),
        conversation_id: Some(conversation_id),
        new_conversation,
        messages_read: None,
        deliveries: vec![part],
        messages: vec![question, answer],
        key,
        metadata_patches: Vec::new(),
        workflow_state: None,
        handoff: false,
        actions: Vec::new(),
        suppress_if_taken: false,
        tokens: 0,
        journal: None,
        record: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        timings: TurnTimings { stream_wait_us: 1, lane_wait_us: 2, responder_us: 3 },
        received_at: now,
        started_at: now,
        committed_at: now,
    })
}
