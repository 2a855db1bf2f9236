//! Gauges that no event moves: how full streams and the account are, what waits in them, what waits for a person.
//!
//! Refuses to hold anything up: what cannot be asked now keeps its last value, and is asked again. Invariant: streams and the
//! database are asked by one task per process, one question after the other, however often somebody scrapes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};
use crate::stream::{Lane, StreamError, StreamHandle};
use crate::telemetry::{chain, metric};

/// As often as Prometheus asks by the usual configuration.
const INTERVAL: Duration = Duration::from_secs(15);

/// What is asked.
pub(super) struct Gauges {
    /// Those that this process works on.
    pub(super) worked: Vec<StreamHandle>,
    pub(super) dead: StreamHandle,
    pub(super) store: Store,
}

impl Gauges {
    /// Until it is stopped.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(INTERVAL);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            if stop.run_until_cancelled(self.ask()).await.is_none() {
                return;
            }
        }
    }

    async fn ask(&self) {
        for handle in &self.worked {
            size(handle).await;
            told(backlogs(handle).await, "what partitions have before them");
        }
        size(&self.dead).await;
        told(self.storage().await, "how full the account is");
        told(self.uncertain().await, "how many deliveries are uncertain");
    }

    async fn storage(&self) -> Result<(), StreamError> {
        let storage = self.dead.connection.storage().await?;
        metric::storage(storage.bytes, storage.limit);
        Ok(())
    }

    async fn uncertain(&self) -> Result<(), StoreError> {
        metric::deliveries_uncertain(self.store.uncertain_deliveries().await?);
        Ok(())
    }
}

async fn size(handle: &StreamHandle) {
    let info = match handle.info().await {
        Ok(info) => info,
        Err(error) => return told::<StreamError>(Err(error), "how full a stream is"),
    };
    let limit = u64::try_from(info.config.max_bytes).ok().filter(|limit| *limit > 0);
    metric::stream_size(handle.lane.as_str(), info.state.messages, info.state.bytes, limit, info.config.max_age);
    if handle.lane == Lane::Dead {
        metric::dead_letters_pending(info.state.messages);
    }
}

async fn backlogs(handle: &StreamHandle) -> Result<(), StreamError> {
    for backlog in handle.backlogs().await? {
        metric::partition_backlog(handle.lane.as_str(), backlog.partition, backlog.lag, backlog.ack_pending);
    }
    Ok(())
}

fn told<E: std::error::Error + 'static>(outcome: Result<(), E>, what: &'static str) {
    if let Err(error) = outcome {
        tracing::debug!(error = %chain(&error), what, "a gauge keeps its last value");
    }
}
