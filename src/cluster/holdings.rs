//! What one process has, wants and is giving away, partition by partition.
//!
//! Pure: what happened and the time come in, what to do comes out. Refuses to decide who should have what
//! (`balance` does). Invariants: a partition is taken over only while its lease is ours, worked on only after that, and its
//! lease is given up only once nobody here works on it; what failed is tried again at the next tick, never at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Owned;
use super::balance::{self, Situation};
use super::view::{Change, Lease, Owner, View};

/// Why a partition is taken whose lease names somebody who shows no life.
const OWNER_GONE: &str = "owner_gone";

/// Why a partition is taken whose lease names this process, which never wrote it: one of the same name did, and died.
const RESTARTED: &str = "restarted";

/// Something to do. Each is answered by the method named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Write the lease against the revision; [`Holdings::written`].
    Write(Write),
    /// Raise the epochs and prepare; [`Holdings::taken_over`].
    TakeOver(Vec<u16>),
    /// Let the scheduler work on it; needs no answer.
    Take { owned: Owned, reason: &'static str },
    /// Let the scheduler stop working on it; [`Holdings::released`].
    Give { partition: u16, reason: &'static str },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) partition: u16,
    pub(super) expected: u64,
    pub(super) lease: Lease,
    /// Which telling of the bucket the revision is from.
    telling: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The lease is being written.
    Claiming {
        reason: &'static str,
    },
    /// The lease is ours; the epoch is not.
    Claimed {
        reason: &'static str,
    },
    Taking {
        reason: &'static str,
    },
    /// The scheduler works on it. The lease shall say under which epoch.
    Held {
        epoch: i64,
        recorded: bool,
    },
    /// The scheduler stops working on it. The lease is not ours to clear when somebody else has it.
    Giving {
        clear: bool,
    },
    /// Nobody here works on it; the lease is being given up.
    Clearing,
}

#[derive(Debug)]
struct Hold {
    state: State,
    /// The newest revision of the lease that is known to be ours.
    revision: u64,
    writing: bool,
}

/// The partitions of one stream as one process deals with them.
#[derive(Debug)]
pub(super) struct Holdings {
    me: String,
    partitions: u16,
    view: View,
    holds: BTreeMap<u16, Hold>,
    /// Not to be written before the next tick, or before their lease changes.
    resting: BTreeSet<u16>,
    /// Why each lease was written that this process claimed; `None` once the claim has led to a takeover.
    claims: BTreeMap<u16, Option<&'static str>>,
    taking: bool,
    take_over_rests: bool,
    leaving: bool,
    telling: u64,
}

impl Holdings {
    pub(super) fn new(me: String, partitions: u16, ttl: Duration) -> Self {
        Self {
            me,
            partitions,
            view: View::new(ttl),
            holds: BTreeMap::new(),
            resting: BTreeSet::new(),
            claims: BTreeMap::new(),
            taking: false,
            take_over_rests: false,
            leaving: false,
            telling: 0,
        }
    }

    pub(super) fn changed(&mut self, change: Change, now: Duration) {
        match &change {
            Change::Restarted => {
                self.telling += 1;
                for hold in self.holds.values_mut() {
                    (hold.revision, hold.writing) = (0, false);
                }
            }
            Change::Lease { partition, .. } if *partition >= self.partitions => return,
            Change::Lease { partition, .. } => drop(self.resting.remove(partition)),
            _ => {}
        }
        let complete_before = self.view.is_complete();
        self.view.apply(change, now);
        if self.view.is_complete() && !complete_before {
            // What this process held under the same name before it was restarted need not wait for a tick.
            self.tick();
        }
    }

    /// A write ended: with the new revision, or without anybody knowing what became of it.
    pub(super) fn written(&mut self, write: Write, revision: Option<u64>, now: Duration) {
        let Write { partition, lease, telling, .. } = write;
        if telling != self.telling {
            return;
        }
        if let Some(revision) = revision {
            self.view.apply(Change::Lease { partition, lease: lease.clone(), revision }, now);
        } else {
            self.resting.insert(partition);
        }
        let Some(hold) = self.holds.get_mut(&partition) else { return };
        hold.writing = false;
        if let Some(revision) = revision {
            hold.revision = revision;
        }
        match (hold.state, revision) {
            (State::Claiming { reason }, Some(_)) => hold.state = State::Claimed { reason },
            (State::Claiming { .. }, None) => drop(self.holds.remove(&partition)),
            (State::Clearing, Some(_)) if lease.member.is_none() => drop(self.holds.remove(&partition)),
            (State::Held { epoch, .. }, Some(_)) => {
                hold.state = State::Held { epoch, recorded: lease.epoch == Some(epoch) };
            }
            _ => {}
        }
    }

    /// A takeover ended; `None`: it failed, wholly or in part.
    pub(super) fn taken_over(&mut self, owned: Option<Vec<Owned>>) -> Vec<Effect> {
        self.taking = false;
        self.take_over_rests = owned.is_none();
        let mut effects = Vec::new();
        for owned in owned.into_iter().flatten() {
            let ownership = owned.takeover.ownership;
            let Some(hold) = self.holds.get_mut(&ownership.partition) else { continue };
            let State::Taking { reason } = hold.state else { continue };
            self.claims.insert(ownership.partition, None);
            if self.leaving {
                hold.state = State::Clearing;
            } else {
                hold.state = State::Held { epoch: ownership.epoch, recorded: false };
                let owned = Owned { after_death: matches!(reason, OWNER_GONE | RESTARTED), ..owned };
                effects.push(Effect::Take { owned, reason });
            }
        }
        for hold in self.holds.values_mut() {
            if let State::Taking { reason } = hold.state {
                hold.state = State::Claimed { reason };
            }
        }
        effects
    }

    /// The scheduler has stopped working on a partition, as it was told to.
    pub(super) fn released(&mut self, partition: u16) {
        let Some(hold) = self.holds.get_mut(&partition) else { return };
        match hold.state {
            State::Giving { clear: true } => hold.state = State::Clearing,
            State::Giving { clear: false } => drop(self.holds.remove(&partition)),
            _ => {}
        }
    }

    /// The scheduler has found a newer owner. Returns whether it was news.
    pub(super) fn lost(&mut self, partition: u16) -> bool {
        let held = self.holds.get(&partition).is_some_and(|hold| matches!(hold.state, State::Held { .. }));
        if held {
            self.holds.remove(&partition);
            self.resting.insert(partition);
        }
        held
    }

    /// From now on, everything is given back.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    /// Nobody works on anything any more; from now on, everything is given back.
    pub(super) fn scheduler_gone(&mut self) {
        self.leaving = true;
        self.holds.retain(|_, hold| hold.state != State::Giving { clear: false });
        for hold in self.holds.values_mut() {
            if matches!(hold.state, State::Held { .. } | State::Giving { .. }) {
                hold.state = State::Clearing;
            }
        }
    }

    /// Once in a while: what failed is tried again.
    pub(super) fn tick(&mut self) {
        self.resting.clear();
        self.take_over_rests = false;
        for partition in 0..self.partitions {
            let Some((named, revision)) = self.view.named(partition) else { continue };
            // A lease that is ours without our knowing: of a write whose answer was lost, of a takeover that lost, or of
            // one who died under our name.
            if named == self.me && !self.holds.contains_key(&partition) {
                let reason = self.claims.get(&partition).map_or(RESTARTED, |claimed| claimed.unwrap_or("reclaimed"));
                let state = if self.leaving { State::Clearing } else { State::Claiming { reason } };
                self.holds.insert(partition, Hold { state, revision, writing: false });
            }
        }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.view.is_complete() {
            self.yield_to_others(&mut effects);
        }
        if self.leaving {
            self.give_everything(&mut effects);
        } else if self.view.is_complete() {
            self.share(now, &mut effects);
        }
        self.write(&mut effects);
        self.take_over(&mut effects);
        effects
    }

    /// How many partitions the scheduler works on.
    pub(super) fn held(&self) -> usize {
        let worked_on = |hold: &&Hold| matches!(hold.state, State::Held { .. } | State::Giving { .. });
        self.holds.values().filter(worked_on).count()
    }

    /// How many members share the stream.
    pub(super) fn members(&self, now: Duration) -> usize {
        self.view.takers(now).len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Whoever has written over our lease has the partition.
    fn yield_to_others(&mut self, effects: &mut Vec<Effect>) {
        let (view, me) = (&self.view, &self.me);
        self.holds.retain(|&partition, hold| {
            let named = view.named(partition);
            let taken = named.is_some_and(|(named, revision)| named != me && revision > hold.revision);
            match hold.state {
                // Cleared already: the answer was lost, not the write.
                State::Clearing if named.is_none() => hold.writing,
                _ if !taken => true,
                State::Held { .. } => {
                    hold.state = State::Giving { clear: false };
                    effects.push(Effect::Give { partition, reason: "superseded" });
                    true
                }
                State::Giving { .. } => {
                    hold.state = State::Giving { clear: false };
                    true
                }
                // Its write is under way and will tell.
                State::Claiming { .. } => hold.writing,
                State::Claimed { .. } | State::Taking { .. } | State::Clearing => false,
            }
        });
    }

    fn give_everything(&mut self, effects: &mut Vec<Effect>) {
        self.holds.retain(|_, hold| hold.writing || !matches!(hold.state, State::Claiming { .. }));
        for (&partition, hold) in &mut self.holds {
            match hold.state {
                State::Held { .. } => {
                    hold.state = State::Giving { clear: true };
                    effects.push(Effect::Give { partition, reason: "shutdown" });
                }
                State::Claimed { .. } => hold.state = State::Clearing,
                _ => {}
            }
        }
    }

    fn share(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let mut members = self.view.takers(now);
        members.insert(&self.me);
        let owners: Vec<Option<&str>> = (0..self.partitions).map(|partition| self.owner(partition, now)).collect();
        let held = self.holds.iter().filter(|(_, hold)| matches!(hold.state, State::Held { .. }));
        let held: BTreeSet<u16> = held.map(|(&partition, _)| partition).collect();
        let giving =
            self.holds.values().any(|hold| matches!(hold.state, State::Giving { clear: true } | State::Clearing));
        let situation = Situation { me: &self.me, members: &members, owners: &owners, held: &held, giving };
        let decision = balance::decide(&situation);
        for partition in decision.claim {
            let (revision, reason) = match self.view.owner(partition, now) {
                Owner::Nobody { revision } => (revision, "ownerless"),
                Owner::Dead { revision } => (revision, OWNER_GONE),
                Owner::Living { .. } | Owner::Unknown => continue,
            };
            if !self.resting.contains(&partition) {
                let hold = Hold { state: State::Claiming { reason }, revision, writing: false };
                self.holds.entry(partition).or_insert(hold);
            }
        }
        if let Some(partition) = decision.give
            && let Some(hold) = self.holds.get_mut(&partition)
        {
            hold.state = State::Giving { clear: true };
            effects.push(Effect::Give { partition, reason: "balance" });
        }
    }

    /// Whom to count a partition for.
    fn owner(&self, partition: u16, now: Duration) -> Option<&str> {
        match self.holds.get(&partition) {
            Some(hold) if hold.state != (State::Giving { clear: false }) => Some(&self.me),
            _ => match self.view.owner(partition, now) {
                Owner::Living { member, .. } => Some(member),
                Owner::Nobody { .. } | Owner::Dead { .. } => None,
                // No member's, and not to be had.
                Owner::Unknown => Some(""),
            },
        }
    }

    /// The writes that are due, one at a time for each lease.
    fn write(&mut self, effects: &mut Vec<Effect>) {
        let complete = self.view.is_complete();
        for (&partition, hold) in &mut self.holds {
            if hold.writing || self.resting.contains(&partition) {
                continue;
            }
            let told = self.view.named(partition).filter(|(named, _)| *named == self.me);
            let ours = Lease { member: Some(self.me.clone()), epoch: None };
            if let State::Claiming { reason } = hold.state {
                self.claims.insert(partition, Some(reason));
            }
            let lease = match hold.state {
                State::Claiming { .. } if complete => ours,
                State::Held { epoch, recorded } if complete && (!recorded || told.is_none()) => {
                    Lease { epoch: Some(epoch), ..ours }
                }
                State::Clearing => Lease::default(),
                _ => continue,
            };
            // A lease of ours that was cleared, or lost with its bucket, is written over whatever is there.
            let seen = self.view.revision(partition).filter(|_| complete).unwrap_or_default();
            hold.revision = hold.revision.max(seen);
            hold.writing = true;
            let expected = hold.revision;
            effects.push(Effect::Write(Write { partition, expected, lease, telling: self.telling }));
        }
    }

    /// All that was claimed at once is taken over at once.
    fn take_over(&mut self, effects: &mut Vec<Effect>) {
        let claiming = self.holds.values().any(|hold| hold.writing && matches!(hold.state, State::Claiming { .. }));
        if claiming || self.taking || self.take_over_rests || self.leaving {
            return;
        }
        let mut partitions = Vec::new();
        for (&partition, hold) in &mut self.holds {
            if let State::Claimed { reason } = hold.state {
                hold.state = State::Taking { reason };
                partitions.push(partition);
            }
        }
        if !partitions.is_empty() {
            self.taking = true;
            effects.push(Effect::TakeOver(partitions));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Ownership, Takeover};

    const NOW: Duration = Duration::ZERO;

    /// Knows one lease, which names `member`, and nobody who lives but itself.
    fn holdings(member: &str) -> Holdings {
        let mut holdings = Holdings::new("me".to_owned(), 1, Duration::from_secs(3));
        let lease = Lease { member: Some(member.to_owned()), epoch: Some(1) };
        holdings.changed(Change::Member { id: "me".to_owned(), leaving: false }, NOW);
        holdings.changed(Change::Lease { partition: 0, lease, revision: 7 }, NOW);
        holdings.changed(Change::Complete, NOW);
        holdings
    }

    fn write(holdings: &mut Holdings) -> Write {
        match holdings.next(NOW).as_slice() {
            [Effect::Write(write)] => write.clone(),
            other => unreachable!("{other:?}"),
        }
    }

    /// Why the partition is taken whose claim was answered, and whether its owner before died.
    fn taken(holdings: &mut Holdings) -> (&'static str, bool) {
        assert_eq!(holdings.next(NOW), [Effect::TakeOver(vec![0])]);
        let takeover = Takeover { ownership: Ownership { stream: 1, partition: 0, epoch: 2 }, checkpoint: None };
        match holdings.taken_over(Some(vec![Owned { takeover, after: 0, after_death: false }])).as_slice() {
            [Effect::Take { owned, reason }] => (reason, owned.after_death),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn whoever_died_under_the_same_name_died() {
        for (member, reason) in [("me", RESTARTED), ("other", OWNER_GONE)] {
            let mut holdings = holdings(member);
            let claim = write(&mut holdings);
            holdings.written(claim, Some(8), NOW);
            assert_eq!(taken(&mut holdings), (reason, true));
            let recorded = write(&mut holdings);
            holdings.written(recorded, Some(9), NOW);
            assert!(holdings.lost(0));
            holdings.tick();
            let claim = write(&mut holdings);
            holdings.written(claim, Some(10), NOW);
            assert_eq!(taken(&mut holdings), ("reclaimed", false), "this process has not died");
        }
    }

    #[test]
    fn a_claim_whose_answer_was_lost_keeps_its_reason() {
        for (member, reason) in [("me", RESTARTED), ("other", OWNER_GONE)] {
            let mut holdings = holdings(member);
            let claim = write(&mut holdings);
            let (lease, revision) = (claim.lease.clone(), 8);
            holdings.written(claim, None, NOW);
            holdings.changed(Change::Lease { partition: 0, lease, revision }, NOW);
            holdings.tick();
            let claim = write(&mut holdings);
            assert_eq!(claim.expected, revision);
            holdings.written(claim, Some(9), NOW);
            assert_eq!(taken(&mut holdings), (reason, true));
        }
    }
}
