//! Streams with three copies on a cluster of three nats-servers: the node that leads is killed and comes back, another is
//! cut off from everybody; messages are taken, and nothing is lost, doubled or swapped.
//!
//! Refuses to be random; that is `chaos.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeMap;
use std::time::Duration;

use support::eventually;
use support::judge::{Evidence, judge};
use support::ledger::Ledger;
use support::nats_cluster::NatsCluster;
use support::postgres::PostgresCluster;
use support::process::{Configuration, NAMESPACE, Turnwise};
use support::responder::{Behaviour, Model, message};
use support::scenario::{BOT, RESPONDER};
use support::telegram::Telegram;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const CHATS: std::ops::Range<i64> = 1..25;
const MESSAGES_PER_WAVE: u32 = 4;

/// An election of each stream, a lease, and what had to be tried again meanwhile, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_a_node_keeps_every_promise() {
    let postgres = PostgresCluster::start().await;
    let database_url = postgres.create_database("turnwise").await;
    let mut nats = NatsCluster::start().await;
    let behaviour = Behaviour { seed: 3, longest_delay: Duration::from_millis(100), failures_percent: 2 };
    let model = Model::start(behaviour).await;
    model.sign_answers();
    let mut configuration = Configuration::with_nats(&nats.urls(), &database_url);
    let telegram = Telegram::start(configuration.url(&format!("/webhooks/telegram/{BOT}"))).await;
    configuration
        .openai_responder(RESPONDER, &model.base_url())
        .telegram_bot(BOT, RESPONDER, &telegram.base_url())
        .set("nats", "replicas", "3")
        .set("worker", "max_attempts", "10");
    let mut second = Turnwise::spawn(configuration.beside()).await;
    let mut first = Turnwise::spawn(configuration).await;
    let world = World { telegram: &telegram, model: &model, ledger: Ledger::open(&database_url) };
    let inbound = format!("{NAMESPACE}_in");
    let streams = [&inbound, &format!("{NAMESPACE}_out"), &format!("KV_{NAMESPACE}_cluster")];

    // The leader of the inbound stream dies in the middle of a wave, and all goes on without it.
    for stream in streams {
        assert_eq!(nats.whole(stream).await, 3, "copies of {stream}");
    }
    world.send_wave(1).await;
    let dead = nats.leader(&inbound).await;
    nats.kill9(dead).await;
    world.settled(1).await;

    // It comes back in the middle of the next wave.
    world.send_wave(2).await;
    nats.start_again(dead).await;
    world.settled(2).await;
    for stream in streams {
        assert_eq!(nats.whole(stream).await, 3, "copies of {stream}");
    }

    // Whoever leads now is cut off from the other nodes and from its clients.
    world.send_wave(3).await;
    let isolated = nats.leader(&inbound).await;
    nats.isolate(isolated);
    world.settled(3).await;
    world.send_wave(4).await;
    nats.reconnect(isolated);
    world.settled(4).await;

    first.terminate().await;
    second.terminate().await;
    let (exit_code, report) = first.audit().await;
    let mut evidence = Evidence { audit_exit_code: exit_code, ..Evidence::default() };
    evidence.taken = BTreeMap::from_iter(CHATS.map(|chat| (chat, 4 * MESSAGES_PER_WAVE)));
    evidence.read_tables(&database_url).await;
    telegram.log(|log| evidence.read_telegram(log));
    model.log(|log| evidence.calls.clone_from(&log.calls));
    let judgement = judge(&evidence);
    assert!(judgement.is_clean(), "{}\n{report:#}", judgement.table());
    eprintln!("{}", judgement.table());
}

struct World<'a> {
    telegram: &'a Telegram,
    model: &'a Model,
    ledger: Ledger,
}

impl World<'_> {
    /// Hands a wave to Telegram; returns in the middle of the work on it.
    async fn send_wave(&self, wave: u32) {
        let calls_before = self.model.log(|log| log.calls.len());
        for n in (wave - 1) * MESSAGES_PER_WAVE + 1..=wave * MESSAGES_PER_WAVE {
            for chat in CHATS {
                self.telegram.send(chat, &message(chat, n));
            }
        }
        let half = CHATS.count() * MESSAGES_PER_WAVE as usize / 2;
        self.model.wait("the middle of the wave", LIMIT, |log| log.calls.len() >= calls_before + half).await;
    }

    /// Returns when every message so far is answered and no answer is on its way.
    async fn settled(&self, waves: u32) {
        let turns = CHATS.count() * (waves * MESSAGES_PER_WAVE) as usize;
        self.telegram.all_taken(LIMIT).await;
        eventually(&format!("wave {waves} to be answered"), LIMIT, async || {
            (self.ledger.progress().await == (turns, 0)).then_some(())
        })
        .await;
    }
}
