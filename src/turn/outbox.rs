//! From the database to the outbound stream: a turn's deliveries, and those that a crash left in between.
//!
//! Refuses to let one that no stream takes hold up the rest. Invariants: a chat's deliveries lie on the stream in the order
//! of their turns; those left behind are published before the partition's next turn runs.

use std::collections::HashMap;

use futures_util::future::try_join_all;

use crate::cluster::Owned;
use crate::message::{ConversationKey, Timestamp};
use crate::store::{PendingDelivery, SendResult, Store, StoreError};
use crate::stream::{PublishError, Publisher};
use crate::telemetry::chain;

/// Rows read at once.
const BATCH: u32 = 500;

/// Why deliveries may still be missing on the outbound stream.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("the pending deliveries cannot be read or settled")]
    Store(#[source] StoreError),
    #[error("a pending delivery cannot be published")]
    Publish(#[source] PublishError),
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

/// Publishes again whatever of these partitions is not settled. One that is on the stream already is deduped there, or
/// found settled by the sender. The partitions must have been taken over before: then nobody adds to what is found here.
///
/// # Errors
/// See [`OutboxError`]; doing it again is safe.
pub async fn publish_left_behind(store: &Store, publisher: &Publisher, owned: &[Owned]) -> Result<u64, OutboxError> {
    let mut published = 0;
    for partition in owned {
        let ownership = partition.takeover.ownership;
        let mut cursor = None;
        loop {
            let page = store.pending_of_partition(ownership.stream, ownership.partition, cursor, BATCH).await;
            let page = page.map_err(OutboxError::Store)?;
            publish(store, publisher, &page.deliveries).await?;
            published += page.deliveries.len() as u64;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    Ok(published)
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
