//! How far each partition is done, written down beside its stream: for the one case in which the database cannot tell,
//! because it was lost and made anew.
//!
//! Refuses to be in anybody's way: it is written seldom and not waited for. Invariant: whatever is found was true of this
//! incarnation of the stream when it was written; it may be old, never too high.

use std::collections::HashMap;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::RawMessageErrorKind;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::{StreamError, StreamHandle, refused};

/// Partitions read or written at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
struct Floor {
    incarnation: String,
    /// Everything at and below it is done.
    sequence: u64,
}

/// Writes down how far partitions are done. Each replaces what was written of its partition before.
///
/// # Errors
/// When JetStream does not answer, or the cluster's bucket, in which they lie, is gone; some may be written then.
pub(crate) async fn keep_floors(handle: &StreamHandle, floors: &[(u16, u64)]) -> Result<(), StreamError> {
    // Values of their own: with borrowed ones the future of a whole server could not be spawned.
    let floors = floors.to_vec();
    stream::iter(floors)
        .map(|(partition, sequence)| async move {
            let floor = Floor { incarnation: handle.incarnation.clone(), sequence };
            let what = || format!("write down how far partition {partition} of {} is done", handle.name);
            let payload = serde_json::to_vec(&floor).map_err(|error| refused(what(), error))?;
            let jetstream = &handle.connection.jetstream;
            let published = jetstream.publish(subject(handle, partition), payload.into()).await;
            published.map_err(|error| refused(what(), error))?.await.map_err(|error| refused(what(), error))?;
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// How far these partitions are done, as far as anybody wrote it down.
///
/// # Errors
/// When JetStream does not answer.
pub(crate) async fn kept_floors(handle: &StreamHandle, partitions: &[u16]) -> Result<HashMap<u16, u64>, StreamError> {
    let what = || format!("look up how far {} is done", handle.name);
    let bucket = handle.connection.jetstream.get_stream(format!("KV_{}", bucket(handle))).await;
    let bucket = match bucket {
        Ok(bucket) => bucket,
        Err(error) => {
            return match error.kind() {
                GetStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Ok(HashMap::new())
                }
                _ => Err(refused(what(), error)),
            };
        }
    };
    let (partitions, bucket) = (partitions.to_vec(), &bucket);
    let found: Vec<Option<(u16, u64)>> = stream::iter(partitions)
        .map(|partition| async move {
            let floor: Floor = match bucket.get_last_raw_message_by_subject(&subject(handle, partition)).await {
                Ok(found) => serde_json::from_slice(&found.payload).map_err(|error| refused(what(), error))?,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
                Err(error) => return Err(refused(what(), error)),
            };
            Ok((floor.incarnation == handle.incarnation).then_some((partition, floor.sequence)))
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

fn bucket(handle: &StreamHandle) -> String {
    handle.connection.names.cluster_bucket()
}

fn subject(handle: &StreamHandle, partition: u16) -> String {
    format!("$KV.{}.floors.{}.{partition}", bucket(handle), handle.lane.as_str())
}
