//! One process at a time for a task that is not a partition's, such as fetching a bot's updates: a lease on a name.
//!
//! Refuses to promise more than that two rarely do the same work: a process that was paused can believe for a moment that it
//! still holds the lease, so the work must be harmless when it is done twice. Invariant: a lease changes only against the
//! revision that was seen, and ends by itself.

use std::time::Duration;

use async_nats::jetstream::kv::Operation;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bucket::{Bucket, WriteError};
use super::{ClusterError, Settings};
use crate::stream::StreamHandle;
use crate::telemetry::chain;

/// How long a lease outlives the last sign of life of its holder: whole seconds.
const LEASE_TTL: Duration = Duration::from_secs(5);

/// How often it is renewed: two of three signs of life may be lost.
const RENEW_INTERVAL: Duration = Duration::from_millis(1_500);

/// How often who does not hold it looks whether it is free.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A task that one process at a time does.
#[derive(Debug)]
pub struct Sole {
    bucket: Bucket,
    /// The task: letters, digits, `-` and `_`.
    name: String,
    /// Of our own last write.
    revision: u64,
}

impl Sole {
    /// `settings` are those of the process as a member of the cluster; `handle` is any stream of the deployment.
    #[must_use]
    pub fn new(settings: &Settings, handle: StreamHandle, name: String) -> Self {
        Self { bucket: Bucket::new(settings, handle), name, revision: 0 }
    }

    /// Does `work` whenever the lease is held, from its beginning each time, until `stop` is cancelled. The work is dropped
    /// when the lease is lost.
    pub async fn run<W: Future<Output = ()>>(mut self, mut work: impl FnMut() -> W, stop: CancellationToken) {
        let mut is_other_known = false;
        while !stop.is_cancelled() {
            match self.acquire().await {
                Ok(true) => {
                    is_other_known = false;
                    tracing::info!(task = self.name, "this process does it");
                    tokio::select! {
                        () = work() => {}
                        () = self.keep() => tracing::warn!(task = self.name, "the lease was lost"),
                        () = stop.cancelled() => {}
                    }
                    self.release().await;
                }
                Ok(false) if !is_other_known => {
                    is_other_known = true;
                    tracing::info!(task = self.name, "another process does it");
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(task = self.name, error = %chain(&error), "the lease cannot be taken yet"),
            }
            stop.run_until_cancelled(tokio::time::sleep(LOOK_INTERVAL)).await;
        }
    }

    /// Takes the lease when nobody else holds it.
    async fn acquire(&mut self) -> Result<bool, ClusterError> {
        let found = self.bucket.task(&self.name).await?;
        let expected = match found {
            Some(entry) if entry.operation == Operation::Put && entry.value != self.bucket.member_id().as_bytes() => {
                return Ok(false);
            }
            Some(entry) => entry.revision,
            None => 0,
        };
        match self.bucket.hold(&self.name, expected, LEASE_TTL).await {
            Ok(revision) => {
                self.revision = revision;
                Ok(true)
            }
            Err(WriteError::Conflict) => Ok(false),
            Err(error) => Err(self.bucket.unusable(error)),
        }
    }

    /// Renews the lease; returns when it is not ours any more, or may have ended.
    async fn keep(&mut self) {
        let mut held_since = Instant::now();
        loop {
            tokio::time::sleep(RENEW_INTERVAL).await;
            let asked = Instant::now();
            match self.acquire().await {
                Ok(true) => held_since = asked,
                Ok(false) => return,
                Err(error) => tracing::debug!(task = self.name, error = %chain(&error), "the lease was not renewed"),
            }
            if held_since.elapsed() >= LEASE_TTL {
                return;
            }
        }
    }

    /// Whoever waits for the lease need not wait for its end.
    async fn release(&self) {
        if let Err(error) = self.bucket.let_go(&self.name, self.revision).await {
            tracing::debug!(task = self.name, error = %chain(&error), "the lease ends by itself");
        }
    }
}
