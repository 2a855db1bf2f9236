//! The taking over of partitions, in bulk: epochs, consumers, where to read on.
//!
//! Refuses to ask who may: it takes whatever it is told. Invariant: the epochs are raised before any consumer is removed,
//! and only consumers of lower epochs are.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{ClusterError, Owned};
use crate::store::{Store, Takeover};
use crate::stream::{self as jetstream, LeftBehind, StreamHandle};

/// Consumers removed at once: enough to hide the round trips, few enough not to crowd the server.
const REMOVALS_AT_ONCE: usize = 16;

/// Takes over all partitions of a stream.
///
/// # Errors
/// When the database or JetStream does not answer; taking over again is safe.
pub async fn take_over_all(handle: &StreamHandle, store: &Store, partitions: u16) -> Result<Vec<Owned>, ClusterError> {
    let all: Vec<u16> = (0..partitions).collect();
    take_over(handle, store, &all).await
}

/// Takes over these partitions.
///
/// # Errors
/// When the database or JetStream does not answer; taking over again is safe.
pub(super) async fn take_over(
    handle: &StreamHandle,
    store: &Store,
    partitions: &[u16],
) -> Result<Vec<Owned>, ClusterError> {
    let number = store.stream_number(&handle.name, &handle.incarnation).await.map_err(ClusterError::Store)?;
    let before = left_behind(handle, partitions).await?;
    // A database that was lost and made anew starts counting at 1, but must not reuse the name of a living consumer.
    let epoch_at_least = before.iter().map(|consumer| consumer.epoch + 1).max().unwrap_or(1);
    let takeovers = store.take_over(number, partitions, epoch_at_least).await.map_err(ClusterError::Store)?;
    // Looked at again: an owner that had not been fenced yet may have made a consumer since.
    let left = left_behind(handle, partitions).await?;
    let stale = left.iter().filter(|consumer| {
        let mut ours = takeovers.iter().map(|takeover| &takeover.ownership);
        ours.any(|own| own.partition == consumer.partition && consumer.epoch < own.epoch)
    });
    let removals = stale.map(|consumer| remove(handle, consumer.name.clone()));
    stream::iter(removals.collect::<Vec<_>>()).buffer_unordered(REMOVALS_AT_ONCE).try_collect::<()>().await?;
    let owned: Vec<Owned> =
        takeovers.into_iter().map(|takeover| Owned { takeover, after: start_after(&takeover, &left) }).collect();
    tracing::info!(stream = handle.name, partitions = owned.len(), "partitions taken over");
    Ok(owned)
}

async fn left_behind(handle: &StreamHandle, partitions: &[u16]) -> Result<Vec<LeftBehind>, ClusterError> {
    let mut left = jetstream::left_behind(handle).await.map_err(ClusterError::Stream)?;
    left.retain(|consumer| partitions.contains(&consumer.partition));
    Ok(left)
}

async fn remove(handle: &StreamHandle, name: String) -> Result<(), ClusterError> {
    jetstream::remove_consumer(handle, &name).await.map_err(ClusterError::Stream)
}

/// Where to read on. A database without a checkpoint has never seen this stream: then what an earlier owner acknowledged is
/// known to be done by the stream alone, and answering it once more would be worse than trusting that.
fn start_after(takeover: &Takeover, left: &[LeftBehind]) -> u64 {
    let floors = left.iter().filter(|consumer| consumer.partition == takeover.ownership.partition);
    takeover.checkpoint.unwrap_or_else(|| floors.map(|consumer| consumer.ack_floor).max().unwrap_or(0))
}
