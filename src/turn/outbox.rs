//! Deliveries that are in the database and may not be on the outbound stream.
//!
//! Invariant: what an owner left behind is published in the order of its turns, before the partition's next turn runs.
//! Publishing what is there already is harmless: the stream dedupes it, or the sender finds it settled.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::cluster::{Owned, Prepare};
use crate::message::Timestamp;
use crate::store::{Store, StoreError};
use crate::stream::{PublishError, Publisher, StreamHandle};
use crate::telemetry::chain;

/// Rows read at once.
const BATCH: u32 = 500;

/// How often it is looked for deliveries that should have been on the stream long ago.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// A turn's deliveries are on the stream within milliseconds; those that are still pending at this age may have been lost
/// with a part of the stream, and are published again once.
const SWEEP_AGE: Duration = Duration::from_secs(60);

/// Why deliveries may still be missing on the outbound stream.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("the stream cannot be numbered")]
    Number(#[source] StoreError),
    #[error("the pending deliveries cannot be read")]
    Store(#[source] StoreError),
    #[error("a pending delivery cannot be published")]
    Publish(#[source] PublishError),
}

/// Publishes deliveries that are not settled.
#[derive(Debug, Clone)]
pub struct Outbox {
    store: Store,
    publisher: Publisher,
}

impl Prepare for Outbox {
    type Error = OutboxError;

    async fn prepare(&self, owned: &[Owned]) -> Result<(), OutboxError> {
        let now = Timestamp::now();
        let mut published = 0;
        for owned in owned {
            let ownership = owned.takeover.ownership;
            published += self.publish(ownership.stream, ownership.partition, Timestamp::from_micros(0), now).await?;
        }
        if published > 0 {
            tracing::info!(deliveries = published, "deliveries left behind were put on the outbound stream");
        }
        Ok(())
    }
}

impl Outbox {
    #[must_use]
    pub const fn new(store: Store, publisher: Publisher) -> Self {
        Self { store, publisher }
    }

    /// Publishes again, once, what is still pending a minute after its turn; until cancelled. Any process may do it, and
    /// several at once.
    pub async fn sweep(self, inbound: StreamHandle, partitions: u16, cancellation: CancellationToken) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        let mut swept_until = before(Timestamp::now(), SWEEP_AGE);
        while cancellation.run_until_cancelled(interval.tick()).await.is_some() {
            let until = before(Timestamp::now(), SWEEP_AGE);
            match self.sweep_once(&inbound, partitions, swept_until, until).await {
                Ok(()) => swept_until = until,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "pending deliveries not swept, will be tried again")
                }
            }
        }
    }

    async fn sweep_once(
        &self,
        inbound: &StreamHandle,
        partitions: u16,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<(), OutboxError> {
        let number =
            self.store.stream_number(&inbound.name, &inbound.incarnation).await.map_err(OutboxError::Number)?;
        for partition in 0..partitions {
            let published = self.publish(number, partition, from, until).await?;
            if published > 0 {
                tracing::info!(partition, deliveries = published, "old pending deliveries were published again");
            }
        }
        Ok(())
    }

    /// Publishes what of the partition is not settled and was committed from `from` on and before `until`.
    async fn publish(
        &self,
        stream: i64,
        partition: u16,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<usize, OutboxError> {
        let mut published = 0;
        let mut cursor = None;
        loop {
            let page = self.store.pending_of_partition(stream, partition, until, cursor, BATCH).await;
            let mut page = page.map_err(OutboxError::Store)?;
            page.deliveries.retain(|delivery| delivery.part().created_at >= from);
            self.publisher.outbound(&page.deliveries).await.map_err(OutboxError::Publish)?;
            published += page.deliveries.len();
            cursor = page.next;
            if cursor.is_none() {
                return Ok(published);
            }
        }
    }
}

fn before(moment: Timestamp, age: Duration) -> Timestamp {
    let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(moment.as_micros().saturating_sub(micros))
}
