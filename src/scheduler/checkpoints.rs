//! Writes down, about once a second, up to where each partition is done. Only a saver of time: what lies behind a
//! checkpoint that was not written is delivered again and found in the ledger.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Partition;
use crate::store::{Ownership, Store};
use crate::telemetry::chain;

const INTERVAL: Duration = Duration::from_secs(1);

/// Writes until cancelled, and once more then.
pub(super) async fn keep(store: Store, partitions: Arc<Vec<Partition>>, cancellation: CancellationToken) {
    let mut written: Vec<u64> = partitions.iter().map(watermark).collect();
    loop {
        let last = cancellation.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none();
        write(&store, &partitions, &mut written).await;
        if last {
            return;
        }
    }
}

async fn write(store: &Store, partitions: &[Partition], written: &mut [u64]) {
    let current: Vec<u64> = partitions.iter().map(watermark).collect();
    let changed: Vec<(Ownership, u64)> = partitions
        .iter()
        .zip(current.iter().zip(written.iter()))
        .filter(|(_, (current, written))| current > written)
        .map(|(partition, (current, _))| (partition.ownership, *current))
        .collect();
    if changed.is_empty() {
        return;
    }
    match store.save_checkpoints(&changed).await {
        Ok(()) => written.copy_from_slice(&current),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "checkpoints not written, will be tried again");
        }
    }
}

fn watermark(partition: &Partition) -> u64 {
    partition.watermark.load(Ordering::Acquire)
}
