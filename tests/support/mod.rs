//! What the end-to-end tests share: the real processes (Turnwise, nats-server, PostgreSQL) and stand-ins for the world
//! outside (Telegram, Messenger, a model server).
//!
//! Refuses to know what a test asserts, but for the scenario that several share. Invariant: nothing here waits without a
//! limit, and no wait is a sleep: it ends with an event, or with a condition looked at in a bounded loop where there is none.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex, Once};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) mod brain;
pub(crate) mod chaos;
pub(crate) mod example;
pub(crate) mod judge;
pub(crate) mod ledger;
pub(crate) mod messenger;
pub(crate) mod nats;
pub(crate) mod nats_cluster;
pub(crate) mod nats_proxy;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod receiver;
pub(crate) mod responder;
pub(crate) mod scenario;
pub(crate) mod tamper;
pub(crate) mod telegram;
pub(crate) mod world;

/// How long a test waits for one thing to happen: far more than it takes on a loaded machine with two cores, far less
/// than a person would wait for a hung test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// How often a condition without an event is looked at.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(25);

/// Looks until `probe` finds something; panics with `what` after `limit`. Only for conditions that nobody announces: a row
/// in a database, a port that opens.
pub(crate) async fn eventually<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    let mut looks = tokio::time::interval(LOOK_AGAIN_AFTER);
    loop {
        looks.tick().await;
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
    }
}

/// A client that follows no proxy of the machine and gives up long after any server here would have answered.
pub(crate) fn http_client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error says that the library under test was quicker; any provider will do for plain HTTP.
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap()
}

/// A port that nobody listens on, never given twice by this process.
///
/// It lies below the range from which systems take the local ends of outgoing connections (Linux 32768, others 49152): a
/// server that is restarted on its port finds it free, and a client that polls a dead server's port cannot be connected
/// to itself, which loopback allows.
pub(crate) fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut given = GIVEN.lock().unwrap();
    for _ in 0..1_000 {
        let port = rand::random_range(20_000..32_000);
        if !given.contains(&port) && TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}
