//! What is recorded of a reply after several attempts: that one of them may have arrived is never forgotten.
//!
//! Refuses to wait as long as a deployment does: the sender runs in this process, with fewer attempts and shorter pauses.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::PATIENCE;
use support::process::environment;
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment};
use support::telegram::Fault;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use turnwise::cluster::{self, Assignment};
use turnwise::config::ConfigReader;
use turnwise::egress::Egress;
use turnwise::platform::Platforms;
use turnwise::scheduler::{self, Limits, Orders};
use turnwise::store::Store;
use turnwise::stream::{self, Connection, Lane, Publisher};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const ATTEMPTS: u32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_of_which_one_attempt_may_have_arrived_never_ends_as_failed() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let deployment = Deployment::start_as(backend, Behaviour::default(), Some("ingress,worker"), |configuration| {
            configuration.set(&format!("bots.{BOT}"), "on_uncertain", "\"resend\"");
        })
        .await;
        let unclear = || Fault::Cut;
        let cases: [(i64, Vec<Fault>, &str, u32); 5] = [
            (901, vec![unclear(), unclear(), unclear()], "uncertain", 3),
            (902, vec![unclear(), Fault::Repeats], "uncertain", 2),
            (903, vec![unclear(), Fault::Forbidden], "uncertain", 2),
            (904, vec![Fault::Repeats], "failed", 1),
            (905, vec![unclear()], "sent", 2),
        ];
        let mut expected = BTreeMap::new();
        for (chat, faults, status, attempts) in cases {
            faults.into_iter().for_each(|fault| deployment.telegram.fail_next(chat, fault));
            deployment.telegram.send(chat, &message(chat, 1));
            expected.insert(answer(chat, 1), (status.to_owned(), attempts));
        }
        deployment.settled_at_least(expected.len(), PATIENCE).await;
        let halt = CancellationToken::new();
        let sending =
            tokio::spawn(send(deployment.turnwise.configuration().to_toml(), deployment.nats.url(), halt.clone()));
        deployment.settled(expected.len(), PATIENCE).await;
        let found = deployment.ledger.deliveries().await.into_iter();
        let found: BTreeMap<_, _> = found.map(|found| (found.content, (found.status, found.attempts))).collect();
        assert_eq!(found, expected, "{backend:?}");
        halt.cancel();
        sending.await.unwrap();
    }
}

/// Sends what lies on the outbound stream, until halted.
async fn send(configuration: String, nats: String, halt: CancellationToken) {
    let config = ConfigReader::default().parse(&configuration, Path::new("turnwise.toml"), &environment).unwrap();
    let connection = Connection::open(&config, &[nats]).await.unwrap();
    let outbound = stream::existing(&connection, Lane::Outbound).await.unwrap();
    let store = Store::connect(config.database.url.expose(), 4).await.unwrap();
    let numbers: Vec<u16> = (0..config.nats.partitions).collect();
    let (assign, assignments) = mpsc::channel(numbers.len());
    let (notices, _noticed) = mpsc::channel(numbers.len());
    for owned in cluster::take_over(&outbound, &store, &numbers).await.unwrap() {
        assign.send(Assignment::Take(owned)).await.unwrap();
    }
    let publisher = Publisher::new(connection, config.nats.partitions);
    let platforms = Arc::new(Platforms::new(&config.bots).unwrap());
    let egress = Egress::new(store.clone(), publisher, config.bots.clone(), platforms, config.nats.partitions);
    let limits = Limits {
        max_running: 16,
        rules: HashMap::new(),
        lane_backlog: 16,
        max_attempts: ATTEMPTS,
        retry: turnwise::turn::retry(Duration::from_millis(10)),
    };
    let (_held, holds) = tokio::sync::watch::channel(Arc::default());
    let orders = Orders { assignments, notices, holds };
    scheduler::run(Arc::new(egress), outbound, store, limits, orders, halt).await.unwrap();
}
