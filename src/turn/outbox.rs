//! From the database to the outbound stream: a turn's deliveries, and those that a crash left in between.
//!
//! Refuses to let one that no stream takes hold up the rest. Invariants: a chat's deliveries lie on the stream in the order
//! of their turns; those left behind are published before the partition's next turn runs. Publishing what is there already
//! is harmless: the stream dedupes it, or the sender finds it settled.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Owned, Prepare};
use crate::message::{ConversationKey, Timestamp};
use crate::store::{PendingDelivery, SendResult, Store, StoreError};
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
    #[error("the pending deliveries cannot be read or settled")]
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
        let mut published = 0;
        for owned in owned {
            let ownership = owned.takeover.ownership;
            // Whatever the clocks say: the partition is ours, so nobody adds to what is found here.
            published += self.publish_partition(ownership.stream, ownership.partition, |_| true).await?;
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
                    tracing::warn!(error = %chain(&error), "pending deliveries not swept, will be tried again");
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
            let aged = |created_at| (from..until).contains(&created_at);
            let published = self.publish_partition(number, partition, aged).await?;
            if published > 0 {
                tracing::info!(partition, deliveries = published, "old pending deliveries were published again");
            }
        }
        Ok(())
    }

    /// Publishes what of the partition is not settled and of a chosen age.
    async fn publish_partition(
        &self,
        stream: i64,
        partition: u16,
        chosen: impl Fn(Timestamp) -> bool,
    ) -> Result<usize, OutboxError> {
        let mut published = 0;
        let mut cursor = None;
        loop {
            let page = self.store.pending_of_partition(stream, partition, cursor, BATCH).await;
            let mut page = page.map_err(OutboxError::Store)?;
            page.deliveries.retain(|delivery| chosen(delivery.part().created_at));
            publish(&self.store, &self.publisher, &page.deliveries).await?;
            published += page.deliveries.len();
            cursor = page.next;
            if cursor.is_none() {
                return Ok(published);
            }
        }
    }
}

/// Puts committed deliveries on the outbound stream: those of a chat one after the other, the chats side by side. One that
/// is larger than the stream takes would never get there: it is `failed`.
///
/// # Errors
/// See [`OutboxError`]; some may lie on the stream then, and doing it again is safe.
pub async fn publish(store: &Store, publisher: &Publisher, deliveries: &[PendingDelivery]) -> Result<(), OutboxError> {
    let mut chats: HashMap<&ConversationKey, Vec<&PendingDelivery>> = HashMap::new();
    for delivery in deliveries {
        chats.entry(&delivery.part().key).or_default().push(delivery);
    }
    let in_order = async |chat: Vec<&PendingDelivery>| {
        for delivery in chat {
            publish_one(store, publisher, delivery).await?;
        }
        Ok(())
    };
    try_join_all(chats.into_values().map(in_order)).await.map(drop)
}

async fn publish_one(store: &Store, publisher: &Publisher, delivery: &PendingDelivery) -> Result<(), OutboxError> {
    match publisher.outbound(delivery).await {
        Err(error @ PublishError::TooLarge) => {
            let id = delivery.part().delivery_id;
            tracing::error!(delivery_id = %id, error = %error, "a reply cannot be sent");
            let result = SendResult::Failed { error: chain(&error) };
            store.settle_send(id, &result, Timestamp::now()).await.map(drop).map_err(OutboxError::Store)
        }
        published => published.map_err(OutboxError::Publish),
    }
}

fn before(moment: Timestamp, age: Duration) -> Timestamp {
    let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(moment.as_micros().saturating_sub(micros))
}
