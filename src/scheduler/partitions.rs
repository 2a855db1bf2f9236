//! The partitions a scheduler works on: how far each has come, what of it runs, and whether it is leaving.
//!
//! Invariant: a partition that leaves is forgotten only when nothing of it runs any more, so that it can never run twice in
//! one process.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use crate::cluster::Owned;
use crate::store::Ownership;

/// What the loop and a partition's feeder share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ownership: Ownership,
    /// At and below it everything is done; written by the loop.
    watermark: AtomicU64,
    /// Nothing beyond it has come; written by the loop.
    highest: AtomicU64,
}

impl Shared {
    pub(super) fn watermark(&self) -> u64 {
        self.watermark.load(Ordering::Acquire)
    }

    pub(super) fn highest(&self) -> u64 {
        self.highest.load(Ordering::Acquire)
    }
}

/// Why a partition is on its way out.
#[derive(Debug)]
pub(super) enum Leaving {
    /// Asked for: whoever asked is told when nothing of it runs any more.
    Given(oneshot::Sender<()>),
    /// Somebody else owns it already.
    Lost,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) shared: Arc<Shared>,
    pub(super) progress: Progress,
    /// Stops the feeder and the reading of parked messages.
    pub(super) feeding: CancellationToken,
    /// Stops the tasks.
    pub(super) cancellation: CancellationToken,
    pub(super) running: usize,
    pub(super) leaving: Option<Leaving>,
    /// The last checkpoint known to be in the database.
    saved: u64,
    /// The last checkpoint written down beside the stream.
    kept: u64,
}

impl Partition {
    pub(super) fn new(owned: &Owned, halt: &CancellationToken) -> Self {
        let shared = Shared {
            ownership: owned.takeover.ownership,
            watermark: AtomicU64::new(owned.after),
            highest: AtomicU64::new(owned.after),
        };
        Self {
            shared: Arc::new(shared),
            progress: Progress::new(owned.after),
            feeding: CancellationToken::new(),
            cancellation: halt.child_token(),
            running: 0,
            leaving: None,
            saved: owned.takeover.checkpoint.unwrap_or(0),
            kept: 0,
        }
    }

    pub(super) fn epoch(&self) -> i64 {
        self.shared.ownership.epoch
    }

    /// Makes known to the feeder and the checkpoints how far the partition is.
    pub(super) fn publish(&self) {
        self.shared.highest.store(self.progress.highest(), Ordering::Release);
        self.shared.watermark.store(self.progress.watermark(), Ordering::Release);
    }

    /// The checkpoint to be written, if it has moved.
    pub(super) fn checkpoint(&self) -> Option<(Ownership, u64)> {
        let watermark = self.shared.watermark();
        (watermark > self.saved).then_some((self.shared.ownership, watermark))
    }
}

/// All partitions, by number.
#[derive(Debug, Default)]
pub(super) struct Partitions(HashMap<u16, Partition>);

impl Partitions {
    pub(super) fn get(&self, partition: u16) -> Option<&Partition> {
        self.0.get(&partition)
    }

    pub(super) fn get_mut(&mut self, partition: u16) -> Option<&mut Partition> {
        self.0.get_mut(&partition)
    }

    /// The partition, if it is still owned under this epoch and not leaving: late news of an earlier ownership are of no
    /// use.
    pub(super) fn current(&mut self, partition: u16, epoch: i64) -> Option<&mut Partition> {
        self.0.get_mut(&partition).filter(|held| held.epoch() == epoch && held.leaving.is_none())
    }

    pub(super) fn insert(&mut self, number: u16, partition: Partition) {
        self.0.insert(number, partition);
    }

    pub(super) fn remove(&mut self, partition: u16) -> Option<Partition> {
        self.0.remove(&partition)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&u16, &Partition)> {
        self.0.iter()
    }

    /// Checkpoints that have moved since they were last written.
    pub(super) fn checkpoints(&self) -> Vec<(Ownership, u64)> {
        self.0.values().filter_map(Partition::checkpoint).collect()
    }

    /// Checkpoints in the database that have moved since this was last asked.
    pub(super) fn floors(&mut self) -> Vec<(u16, u64)> {
        let moved = self.0.iter_mut().filter(|(_, held)| held.saved > held.kept);
        let floor = |(number, held): (&u16, &mut Partition)| {
            held.kept = held.saved;
            (*number, held.saved)
        };
        moved.map(floor).collect()
    }

    pub(super) fn saved(&mut self, checkpoints: &[(Ownership, u64)]) {
        for (ownership, checkpoint) in checkpoints {
            if let Some(partition) = self.0.get_mut(&ownership.partition).filter(|held| held.epoch() == ownership.epoch)
            {
                partition.saved = partition.saved.max(*checkpoint);
            }
        }
    }
}
