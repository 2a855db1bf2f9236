//! Deliveries that a crash left between the database and the outbound stream.
//!
//! Invariant: they are published in the order of their turns, before the partition's next turn runs.

use crate::cluster::Owned;
use crate::message::Timestamp;
use crate::store::{Store, StoreError};
use crate::stream::{PublishError, Publisher};

/// Rows read at once.
const BATCH: u32 = 500;

/// Why deliveries may still be missing on the outbound stream.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("the pending deliveries cannot be read")]
    Store(#[source] StoreError),
    #[error("a pending delivery cannot be published")]
    Publish(#[source] PublishError),
}

/// Publishes again whatever of these partitions is not settled. One that is on the stream already is deduped there, or
/// found settled by the sender.
///
/// # Errors
/// See [`OutboxError`]; doing it again is safe.
pub async fn publish_left_behind(store: &Store, publisher: &Publisher, owned: &[Owned]) -> Result<u64, OutboxError> {
    let now = Timestamp::now();
    let mut published = 0;
    for partition in owned {
        let ownership = partition.takeover.ownership;
        let mut cursor = None;
        loop {
            let page = store.pending_of_partition(ownership.stream, ownership.partition, now, cursor, BATCH).await;
            let page = page.map_err(OutboxError::Store)?;
            publisher.outbound(&page.deliveries).await.map_err(OutboxError::Publish)?;
            published += page.deliveries.len() as u64;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    Ok(published)
}
