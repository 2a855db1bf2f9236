//! One process's share of the work on a stream: taking part in the cluster, and the scheduler that works on what is its own.
//!
//! Refuses to end quietly: whatever ends without being told to is a fault of the process. Invariant: a share has ended only
//! when all its partitions were given back, or cannot be any more.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cluster::{self, ClusterError, Participant, Prepare};
use crate::config::{Config, NatsServer};
use crate::scheduler::holds::Holds;
use crate::scheduler::{self, Limits, Orders, Work};
use crate::store::Store;
use crate::stream::StreamHandle;

/// The first share of the work that ends by itself, and why.
pub(super) async fn first_fault(shares: &[Share]) -> anyhow::Error {
    if shares.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(shares.iter().map(Share::fault)).await.0
}

/// One process's share of the work on a stream: who owns what, and who does it.
pub(super) struct Share {
    participant: Ending,
    scheduler: Ending,
    stopping: Stopping,
}

/// A new name at each start, so that nobody takes this process for its predecessor. Only beside a managed nats-server, which
/// no two processes can have at once, is it always the same: then what a crashed predecessor held is taken back at once.
pub(super) fn member_id(config: &Config) -> String {
    match config.nats.server {
        NatsServer::Managed { .. } => "alone".to_owned(),
        NatsServer::Urls(_) => Uuid::now_v7().simple().to_string(),
    }
}

/// What keeps the work from being more than it may be.
pub(super) struct Bounds {
    pub(super) limits: Limits,
    pub(super) holds: watch::Receiver<Arc<Holds>>,
}

/// The end of a task, for everybody who wants to know.
type Ending = Shared<BoxFuture<'static, Result<(), Arc<anyhow::Error>>>>;

impl Share {
    pub(super) async fn join<W: Work, P: Prepare>(
        work: W,
        prepare: P,
        config: &Config,
        handle: &StreamHandle,
        store: &Store,
        Bounds { limits, holds }: Bounds,
        stopping: &Stopping,
    ) -> Result<Self, ClusterError> {
        let partitions = config.nats.partitions;
        let settings = cluster::Settings::new(member_id(config), partitions, config.nats.replicas);
        let participant = Participant::join(settings, handle.clone(), store.clone()).await?;
        // Room for one word about each partition in each direction.
        let (assign, assignments) = mpsc::channel(usize::from(partitions));
        let (notices, noticed) = mpsc::channel(usize::from(partitions));
        let orders = Orders { assignments, notices, holds };
        let work = scheduler::run(Arc::new(work), handle.clone(), store.clone(), limits, orders, stopping.halt.clone());
        let participant = participant.run(assign, noticed, prepare, stopping.drain.clone());
        Ok(Self {
            participant: ending("taking part in the cluster", tokio::spawn(participant)),
            scheduler: ending("the scheduler", tokio::spawn(work)),
            stopping: stopping.clone(),
        })
    }

    /// Why this share of the work ended by itself.
    fn fault(&self) -> BoxFuture<'static, anyhow::Error> {
        let (participant, scheduler) = (self.participant.clone(), self.scheduler.clone());
        Box::pin(async move {
            let ended = tokio::select! { ended = participant => ended, ended = scheduler => ended };
            match ended {
                Ok(()) => anyhow::anyhow!("a part of the work ended without being told to"),
                Err(error) => anyhow::anyhow!("{error:#}"),
            }
        })
    }

    /// Waits until everything has been given back. Who cannot give back any more is stopped for good.
    pub(super) async fn ended(self) {
        if let Err(error) = self.participant.await {
            tracing::error!(error = format!("{error:#}"), "while giving back partitions");
            self.stopping.halt.cancel();
        }
        if let Err(error) = self.scheduler.await {
            tracing::error!(error = format!("{error:#}"), "while stopping");
        }
    }
}

fn ending<E: std::error::Error + Send + Sync + 'static>(what: &'static str, task: JoinHandle<Result<(), E>>) -> Ending {
    let ended = async move {
        let failed = |error: anyhow::Error| Arc::new(error.context(format!("{what} failed")));
        match task.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error.into())),
            Err(error) => Err(failed(error.into())),
        }
    };
    ended.boxed().shared()
}

/// How everything that works is stopped: first softly, then for good.
#[derive(Debug, Clone, Default)]
pub(super) struct Stopping {
    /// Partitions are given back; what runs of them may finish.
    pub(super) drain: CancellationToken,
    /// The grace is over: what runs is cancelled.
    pub(super) halt: CancellationToken,
}
