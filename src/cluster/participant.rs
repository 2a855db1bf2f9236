//! One process among those that work on a stream.
//!
//! Refuses, in this first form, to share: it takes every partition and gives all back at the end. Invariant: nothing is
//! assigned before it is taken over and prepared.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::takeover::take_over;
use super::{Assignment, ClusterError, Notice, Prepare, Settings};
use crate::store::Store;
use crate::stream::StreamHandle;

/// One process that takes part in the work on one stream.
#[derive(Debug)]
pub struct Participant {
    settings: Settings,
    handle: StreamHandle,
    store: Store,
}

impl Participant {
    /// Becomes a member.
    ///
    /// # Errors
    /// When the member id is unusable, or NATS or the database does not answer.
    pub async fn join(settings: Settings, handle: StreamHandle, store: Store) -> Result<Self, ClusterError> {
        Ok(Self { settings, handle, store })
    }

    /// Takes and gives partitions until `stop` is cancelled; then gives everything back and returns once it is released.
    ///
    /// # Errors
    /// [`ClusterError::SchedulerGone`] when nobody hears the assignments.
    pub async fn run<P: Prepare>(
        self,
        assignments: mpsc::Sender<Assignment>,
        mut notices: mpsc::Receiver<Notice>,
        prepare: P,
        stop: CancellationToken,
    ) -> Result<(), ClusterError> {
        let mut held: Vec<u16> = (0..self.settings.partitions).collect();
        let owned = take_over(&self.handle, &self.store, &held).await?;
        prepare.prepare(&owned).await.map_err(|error| ClusterError::Prepare(error.into()))?;
        for owned in owned {
            assignments.send(Assignment::Take(owned)).await.map_err(|_| ClusterError::SchedulerGone)?;
        }
        while let Some(Some(Notice::Lost { partition })) = stop.run_until_cancelled(notices.recv()).await {
            held.retain(|&one| one != partition);
        }
        stop.cancelled().await;
        let mut answers = Vec::new();
        for partition in held {
            let (released, answer) = oneshot::channel();
            assignments
                .send(Assignment::Give { partition, released })
                .await
                .map_err(|_| ClusterError::SchedulerGone)?;
            answers.push(answer);
        }
        futures_util::future::join_all(answers).await;
        Ok(())
    }
}
