//! Who owns which partitions. In this version one process owns all of them: the one that started last.
//!
//! Refuses to believe clocks or leases: ownership is an epoch in the database, which every commit names. Invariant: taking
//! over raises the epoch first, then removes the old owner's consumers, then reads on from where everything is terminal, so
//! that an owner that was only believed dead can neither commit nor be given a message. (One that makes a consumer just
//! then asks for its epoch afterwards, see the scheduler's feeder: either it sees that it lost, or its consumer was seen.)

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::store::{Ownership, Store, StoreError, Takeover};
use crate::stream::{self as jetstream, LeftBehind, StreamError, StreamHandle};

/// Consumers removed at once: enough to hide the round trips, few enough not to crowd the server.
const REMOVALS_AT_ONCE: usize = 16;

/// Why the partitions could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("the epochs cannot be raised")]
    Store(#[source] StoreError),
    #[error("the consumers of the owner before cannot be removed")]
    Stream(#[source] StreamError),
}

/// A partition taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    pub takeover: Takeover,
    /// Everything at and below this sequence is done.
    pub after: u64,
}

/// Takes over all partitions of a stream.
///
/// # Errors
/// When the database or JetStream does not answer; taking over again is safe.
pub async fn take_over_all(handle: &StreamHandle, store: &Store, partitions: u16) -> Result<Vec<Owned>, ClusterError> {
    let number = store.stream_number(&handle.name, &handle.incarnation).await.map_err(ClusterError::Store)?;
    let left = jetstream::left_behind(handle).await.map_err(ClusterError::Stream)?;
    // A database that was lost and made anew starts counting at 1, but must not reuse the name of a living consumer.
    let epoch_at_least = left.iter().map(|consumer| consumer.epoch + 1).max().unwrap_or(1);
    let all: Vec<u16> = (0..partitions).collect();
    let takeovers = store.take_over(number, &all, epoch_at_least).await.map_err(ClusterError::Store)?;
    // Listed again: until the epoch was raised, the owner before may have made more of them.
    let left = earlier(jetstream::left_behind(handle).await.map_err(ClusterError::Stream)?, &takeovers);
    keep_floors(store, &takeovers, &left).await.map_err(ClusterError::Store)?;
    // Names of their own: with borrowed ones the future of a whole server could not be spawned.
    let names: Vec<String> = left.iter().map(|consumer| consumer.name.clone()).collect();
    stream::iter(names)
        .map(|name| async move { jetstream::remove_consumer(handle, &name).await })
        .buffer_unordered(REMOVALS_AT_ONCE)
        .try_collect::<()>()
        .await
        .map_err(ClusterError::Stream)?;
    let owned: Vec<Owned> =
        takeovers.into_iter().map(|takeover| Owned { takeover, after: start_after(&takeover, &left) }).collect();
    tracing::info!(stream = handle.name, partitions = owned.len(), "partitions taken over");
    Ok(owned)
}

/// The consumers of owners before us; those of one that has meanwhile taken over from us are its own affair.
fn earlier(mut left: Vec<LeftBehind>, takeovers: &[Takeover]) -> Vec<LeftBehind> {
    let epochs: HashMap<u16, i64> =
        takeovers.iter().map(|takeover| (takeover.ownership.partition, takeover.ownership.epoch)).collect();
    left.retain(|consumer| epochs.get(&consumer.partition).is_none_or(|epoch| consumer.epoch < *epoch));
    left
}

/// Writes down what only the consumers about to be removed know: a crash after their removal must not make it forgotten.
async fn keep_floors(store: &Store, takeovers: &[Takeover], left: &[LeftBehind]) -> Result<(), StoreError> {
    let floors: Vec<(Ownership, u64)> = takeovers
        .iter()
        .filter(|takeover| takeover.checkpoint.is_none())
        .map(|takeover| (takeover.ownership, start_after(takeover, left)))
        .filter(|(_, floor)| *floor > 0)
        .collect();
    if floors.is_empty() { Ok(()) } else { store.save_checkpoints(&floors).await }
}

/// Where to read on. A database without a checkpoint has never seen this stream: then what an earlier owner acknowledged is
/// known to be done by the stream alone, and answering it once more would be worse than trusting that.
fn start_after(takeover: &Takeover, left: &[LeftBehind]) -> u64 {
    let floors = left.iter().filter(|consumer| consumer.partition == takeover.ownership.partition);
    takeover.checkpoint.unwrap_or_else(|| floors.map(|consumer| consumer.ack_floor).max().unwrap_or(0))
}
