//! A second worker that is killed under load, and how long it takes until its partitions have an owner again.
//!
//! Refuses to kill anything but the child that it started itself. Invariant: the clock starts right before the kill, and
//! stops when the deployment says that it holds every partition.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::stages::Reading;

/// Shares that have not come about after this time never will.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// Well below the second or two that a takeover takes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why a takeover could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error("a second worker cannot be started")]
    Start(#[source] io::Error),
    #[error("the second worker ended ({0}) before it was killed; `turnwise serve` with this configuration says why")]
    Ended(ExitStatus),
    #[error(
        "{who} held {held} partitions after {} s instead of {expected}; the deployment must be one process for this shape",
        SETTLED_WITHIN.as_secs()
    )]
    Unsettled { who: &'static str, held: u16, expected: u16 },
    #[error("the killed worker's partitions were not taken over within {} s", SETTLED_WITHIN.as_secs())]
    NotTakenOver,
}

/// A worker that has half of the inbound partitions, beside the deployment's own.
pub(super) struct SecondWorker {
    child: Child,
    deployment: SocketAddr,
    partitions: u16,
}

impl SecondWorker {
    /// Returns once it has its half of `partitions`.
    pub(super) async fn join(
        config_file: &Path,
        deployment: SocketAddr,
        partitions: u16,
    ) -> Result<Self, TakeoverError> {
        let held = settled(deployment, partitions).await;
        if held != partitions {
            return Err(TakeoverError::Unsettled { who: "the deployment", held, expected: partitions });
        }
        let listen = free_address().map_err(TakeoverError::Start)?;
        let mut child = Command::new(std::env::current_exe().map_err(TakeoverError::Start)?)
            .arg("serve")
            .arg("--config")
            .arg(config_file)
            .args(["--roles", "worker", "--listen", &listen.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(TakeoverError::Start)?;
        let share = partitions / 2;
        let held = tokio::select! {
            held = settled(listen, share) => held,
            status = child.wait() => return Err(status.map_or_else(TakeoverError::Start, TakeoverError::Ended)),
        };
        if held != share {
            return Err(TakeoverError::Unsettled { who: "the second worker", held, expected: share });
        }
        Ok(Self { child, deployment, partitions })
    }

    /// Kills it (SIGKILL) and returns how long it took until the deployment held everything again.
    pub(super) async fn kill(mut self) -> Result<Duration, TakeoverError> {
        let killed = Instant::now();
        self.child.kill().await.map_err(TakeoverError::Start)?;
        if settled(self.deployment, self.partitions).await == self.partitions {
            Ok(killed.elapsed())
        } else {
            Err(TakeoverError::NotTakenOver)
        }
    }
}

/// Returns once the process at `address` holds as many inbound partitions as expected, or what it holds when that took too
/// long.
async fn settled(address: SocketAddr, expected: u16) -> u16 {
    let started = Instant::now();
    loop {
        let held = Reading::take(address).await.inbound_partitions;
        if held == expected || started.elapsed() > SETTLED_WITHIN {
            return held;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A loopback address that nobody listens on.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
