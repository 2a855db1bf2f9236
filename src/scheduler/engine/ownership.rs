//! Partitions come to this process and go: what begins with one, and what has to end before another owner begins.
//!
//! Refuses to decide who owns what: that is said by the cluster, or found out in the database. Invariant: a partition given
//! away is released only when nothing of it runs here and its last checkpoint is written.

use std::sync::Arc;

use super::{Engine, keep_floors};
use crate::cluster::{Assignment, Notice, Owned};
use crate::scheduler::Work;
use crate::scheduler::feeder::Feeder;
use crate::scheduler::lanes::Track;
use crate::scheduler::partitions::{Leaving, Partition};
use crate::telemetry::chain;
/// Partitions come and go.
impl<W: Work> Engine<W> {
    pub(super) fn assign(&mut self, assignment: Assignment) {
        match assignment {
            Assignment::Take(owned) => self.take(owned),
            Assignment::Give { partition, released } => match self.partitions.get(partition) {
                Some(held) if held.leaving.is_none() => self.leave(partition, Leaving::Given(released)),
                // Not here any more: there is nothing to wait for.
                _ => drop(released.send(())),
            },
        }
    }

    fn take(&mut self, owned: Owned) {
        let number = owned.takeover.ownership.partition;
        if self.partitions.get(number).is_some() {
            // Our own earlier ownership, overtaken by ourselves or still leaving.
            self.queued.insert(number, owned);
            self.leave(number, Leaving::Lost);
            return;
        }
        let partition = Partition::new(&owned, &self.halt);
        let feeder = Feeder {
            work: Arc::clone(&self.work),
            handle: self.handle.clone(),
            store: self.store.clone(),
            partition: Arc::clone(&partition.shared),
            events: self.events.clone(),
            after_death: owned.after_death,
        };
        let feeding = partition.feeding.clone();
        self.tasks.spawn(async move { feeding.run_until_cancelled(Box::pin(feeder.run())).await });
        self.partitions.insert(number, partition);
        self.work.owns(self.partitions.len());
    }

    /// Somebody else owns the partition: whatever of it runs here is of no use any more.
    pub(super) fn lose(&mut self, partition: u16) {
        if self.partitions.get(partition).is_some_and(|held| held.leaving.is_none()) {
            tracing::warn!(work = W::NAME, partition, "the partition has a newer owner");
            // The owner of the partitions is gone only when the process is stopping; there is room for one notice each.
            let _ = self.notices.try_send(Notice::Lost { partition });
            self.leave(partition, Leaving::Lost);
        }
    }

    /// No new messages, no new tasks. What runs of a partition given away may finish, what runs of a lost one is cancelled.
    pub(super) fn leave(&mut self, number: u16, leaving: Leaving) {
        let Some(partition) = self.partitions.get_mut(number) else { return };
        partition.feeding.cancel();
        if matches!(leaving, Leaving::Lost) {
            partition.cancellation.cancel();
        }
        if partition.leaving.is_none() {
            partition.leaving = Some(leaving);
        }
        for key in self.lanes.drop_partition(number) {
            for track in [Track::Turn, Track::Refusal] {
                self.backoffs.remove(&(Arc::clone(&key), track));
            }
            self.blockers.remove(&key);
        }
        self.conclude(number);
    }

    /// Nothing is kept of a lane that is no more.
    fn remembers_lanes_only(&self) -> bool {
        let failed = self.backoffs.keys().map(|(key, _)| key);
        failed.chain(self.blockers.keys()).chain(self.interruptions.keys()).all(|key| self.lanes.holds(key))
    }

    /// Forgets a leaving partition once nothing of it runs.
    pub(super) fn conclude(&mut self, number: u16) {
        if !self.partitions.get(number).is_some_and(|held| held.leaving.is_some() && held.running == 0) {
            return;
        }
        let Some(partition) = self.partitions.remove(number) else { return };
        self.work.owns(self.partitions.len());
        self.held.retain(|slot, _| slot.partition != number);
        debug_assert!(self.remembers_lanes_only(), "what is kept of a lane goes with it");
        if let Some(Leaving::Given(released)) = partition.leaving {
            let (store, handle, ownership) = (self.store.clone(), self.handle.clone(), partition.shared.ownership);
            let watermark = partition.shared.watermark();
            self.tasks.spawn(async move {
                match store.save_checkpoints(&[(ownership, watermark)]).await {
                    Ok(()) => keep_floors(&handle, &[(number, watermark)]).await,
                    Err(error) => tracing::warn!(error = %chain(&error), "a last checkpoint was not written"),
                }
                // Whoever asked may have stopped waiting.
                let _ = released.send(());
            });
        }
        if let Some(owned) = self.queued.remove(&number) {
            self.take(owned);
        }
    }
}
