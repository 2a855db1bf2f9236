//! The taking over of partitions, in bulk: epochs, consumers, where to read on.
//!
//! Refuses to ask who may: it takes whatever it is told. Invariant: the epochs are raised before any consumer is removed,
//! and only consumers of lower epochs are.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{ClusterError, Owned};
use crate::store::{Ownership, Store, StoreError, Takeover};
use crate::stream::{self as jetstream, LeftBehind, StreamError, StreamHandle};
use crate::telemetry::chain;

/// Consumers removed at once: enough to hide the round trips, few enough not to crowd the server.
const REMOVALS_AT_ONCE: usize = 16;

/// Takes over these partitions. What became of the owners before is known to whoever asks for it.
///
/// # Errors
/// When the database or JetStream does not answer; taking over again is safe.
pub async fn take_over(handle: &StreamHandle, store: &Store, partitions: &[u16]) -> Result<Vec<Owned>, ClusterError> {
    let number = store.stream_number(&handle.name, &handle.incarnation).await.map_err(ClusterError::Store)?;
    let left = of(partitions, jetstream::left_behind(handle).await.map_err(ClusterError::Stream)?);
    // A database that was lost and made anew starts counting at 1, but must not reuse the name of a living consumer.
    let epoch_at_least = left.iter().map(|consumer| consumer.epoch + 1).max().unwrap_or(1);
    let takeovers = store.take_over(number, partitions, epoch_at_least).await.map_err(ClusterError::Store)?;
    // Listed again: until the epoch was raised, the owner before may have made more of them.
    let left = of(partitions, jetstream::left_behind(handle).await.map_err(ClusterError::Stream)?);
    let left = earlier(left, &takeovers);
    let floors = floors(handle, &takeovers, &left).await.map_err(ClusterError::Stream)?;
    keep_floors(handle, store, &takeovers, &floors).await.map_err(ClusterError::Store)?;
    // Names of their own: with borrowed ones the future of a whole server could not be spawned.
    let names: Vec<String> = left.iter().map(|consumer| consumer.name.clone()).collect();
    stream::iter(names)
        .map(|name| async move { jetstream::remove_consumer(handle, &name).await })
        .buffer_unordered(REMOVALS_AT_ONCE)
        .try_collect::<()>()
        .await
        .map_err(ClusterError::Stream)?;
    let owned = |takeover| Owned { takeover, after: start_after(&takeover, &floors), after_death: false };
    let owned: Vec<Owned> = takeovers.into_iter().map(owned).collect();
    tracing::info!(stream = handle.name, partitions = owned.len(), "partitions taken over");
    Ok(owned)
}

fn of(partitions: &[u16], mut left: Vec<LeftBehind>) -> Vec<LeftBehind> {
    left.retain(|consumer| partitions.contains(&consumer.partition));
    left
}

/// The consumers of owners before us; those of one that has meanwhile taken over from us are its own affair.
fn earlier(mut left: Vec<LeftBehind>, takeovers: &[Takeover]) -> Vec<LeftBehind> {
    let epochs: HashMap<u16, i64> =
        takeovers.iter().map(|takeover| (takeover.ownership.partition, takeover.ownership.epoch)).collect();
    left.retain(|consumer| epochs.get(&consumer.partition).is_none_or(|epoch| consumer.epoch < *epoch));
    left
}

/// A database without a checkpoint has never seen this stream, or was lost. Then what was acknowledged to an earlier owner's
/// consumer, or written down beside the stream by it, is known to be done by that alone, and answering it once more would be
/// worse than trusting it. Consumers forget when the server restarts, what is written down is some seconds old.
async fn floors(
    handle: &StreamHandle,
    takeovers: &[Takeover],
    left: &[LeftBehind],
) -> Result<HashMap<u16, u64>, StreamError> {
    let unknown = takeovers.iter().filter(|takeover| takeover.checkpoint.is_none());
    let unknown = unknown.map(|takeover| takeover.ownership.partition).collect::<Vec<_>>();
    if unknown.is_empty() {
        return Ok(HashMap::new());
    }
    let mut floors = jetstream::kept_floors(handle, &unknown).await?;
    for consumer in left {
        let floor = floors.entry(consumer.partition).or_default();
        *floor = consumer.ack_floor.max(*floor);
    }
    Ok(floors)
}

/// Writes down where to read on, before anything is read: what only the consumers about to be removed know must not be
/// forgotten, and an owner that dies before its first checkpoint must not leave its acknowledgements as the only trace,
/// because parked messages are acknowledged and not done. For the same reason it is written beside the stream, too, also that
/// nothing is done yet; without that the deployment works, and only a rebuild would miss it.
async fn keep_floors(
    handle: &StreamHandle,
    store: &Store,
    takeovers: &[Takeover],
    floors: &HashMap<u16, u64>,
) -> Result<(), StoreError> {
    let floors: Vec<(Ownership, u64)> = takeovers
        .iter()
        .filter(|takeover| takeover.checkpoint.is_none())
        .map(|takeover| (takeover.ownership, start_after(takeover, floors)))
        .collect();
    if floors.is_empty() {
        return Ok(());
    }
    store.save_checkpoints(&floors).await?;
    let beside: Vec<(u16, u64)> = floors.iter().map(|(ownership, floor)| (ownership.partition, *floor)).collect();
    if let Err(error) = jetstream::keep_floors(handle, &beside).await {
        tracing::debug!(error = %chain(&error), "not written down beside the stream");
    }
    Ok(())
}

/// Where to read on.
fn start_after(takeover: &Takeover, floors: &HashMap<u16, u64>) -> u64 {
    let floor = || floors.get(&takeover.ownership.partition).copied().unwrap_or(0);
    takeover.checkpoint.unwrap_or_else(floor)
}
