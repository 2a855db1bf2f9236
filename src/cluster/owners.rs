//! Who has which partitions, for people: one look at the bucket of members and leases.
//!
//! Refuses to be asked by anybody who decides. Invariant: a member of whom there is no sign of life is not shown as one.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_nats::jetstream::kv::Operation;
use futures_util::StreamExt as _;

use super::view::{Lease, Member};
use crate::stream::StreamHandle;

/// People do not wait for longer; then nothing is known.
const PATIENCE: Duration = Duration::from_secs(2);

/// The owners of a stream's partitions, as `host/pid`, by partition; `None` when nothing can be known.
pub async fn owners(handle: &StreamHandle) -> Option<BTreeMap<u16, String>> {
    tokio::time::timeout(PATIENCE, read(handle)).await.ok().flatten()
}

async fn read(handle: &StreamHandle) -> Option<BTreeMap<u16, String>> {
    let lane = handle.lane.as_str();
    let bucket = handle.connection.names.cluster_bucket();
    let bucket = handle.connection.jetstream.get_key_value(bucket).await.ok()?;
    let (members, leases) = (format!("members.{lane}."), format!("leases.{lane}."));
    let mut watch = bucket.watch_many_with_history([format!("{members}>"), format!("{leases}>")]).await.ok()?;
    let mut living: HashMap<String, Member> = HashMap::new();
    let mut held: BTreeMap<u16, String> = BTreeMap::new();
    while let Some(Ok(entry)) = watch.next().await {
        if entry.operation == Operation::Put {
            if let Some(id) = entry.key.strip_prefix(&members) {
                living.insert(id.to_owned(), serde_json::from_slice(&entry.value).ok()?);
            } else if let Some(partition) = entry.key.strip_prefix(&leases) {
                let lease: Lease = serde_json::from_slice(&entry.value).ok()?;
                held.extend(partition.parse().ok().zip(lease.member));
            }
        }
        // Nothing stands behind it.
        if entry.delta == 0 {
            break;
        }
    }
    let name = |(partition, member): (u16, String)| {
        let member = living.get(&member)?;
        Some((partition, format!("{}/{}", member.host, member.pid)))
    };
    Some(held.into_iter().filter_map(name).collect())
}
