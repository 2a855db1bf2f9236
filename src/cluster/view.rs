//! What one process knows of the others: who lives, and which lease names whom.
//!
//! Pure: changes and the time come in, nothing goes out. Refuses to call anybody dead just because we were away: who was
//! known to live before the view was lost has one time-to-live to show itself again. Invariant: a lease is never older than
//! the newest change of it that was applied.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::Timestamp;

/// What a member says of itself; the value of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) host: String,
    pub(super) pid: u32,
    pub(super) started_at: Timestamp,
    pub(super) partitions_held: usize,
    /// It gives everything back and wants nothing more.
    #[serde(default)]
    pub(super) leaving: bool,
}

/// Who has a partition; the value of its key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Lease {
    /// `None`: it was given back.
    pub(super) member: Option<String>,
    /// The epoch under which the member works on it; `None` before it has one.
    pub(super) epoch: Option<i64>,
}

/// Something changed in the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Everything is told anew; what is not told again is gone.
    Restarted,
    /// Everything has been told.
    Complete,
    Member {
        id: String,
        leaving: bool,
    },
    /// A member that gave no sign of life in time.
    Expired {
        id: String,
    },
    /// A member that said goodbye.
    Left {
        id: String,
    },
    Lease {
        partition: u16,
        lease: Lease,
        revision: u64,
    },
}

/// Who has a partition, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner<'a> {
    /// Nobody: whoever writes over this revision has it.
    Nobody { revision: u64 },
    /// One who is dead, likewise.
    Dead { revision: u64 },
    /// One who lives, or did when the view was lost a moment ago.
    Living { member: &'a str },
    /// It is not to be taken yet: the view is not complete.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    leaving: bool,
    /// Known to live before the view was lost.
    before: bool,
    /// When to stop believing that it lives without a sign of it.
    presumed_until: Option<Duration>,
}

/// Members and leases. Times are since some fixed moment, of a clock that never jumps.
#[derive(Debug)]
pub(super) struct View {
    ttl: Duration,
    members: BTreeMap<String, Seen>,
    leases: BTreeMap<u16, (Lease, u64)>,
    /// Leases of the living before the view was lost, until they are told again.
    leases_before: BTreeMap<u16, String>,
    /// Until then, what was known before counts.
    settled_at: Duration,
    complete: bool,
}

impl View {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            members: BTreeMap::new(),
            leases: BTreeMap::new(),
            leases_before: BTreeMap::new(),
            settled_at: Duration::ZERO,
            complete: false,
        }
    }

    pub(super) fn apply(&mut self, change: Change, now: Duration) {
        match change {
            Change::Restarted => self.restart(now),
            Change::Complete => self.complete = true,
            Change::Member { id, leaving } => {
                let before = self.members.get(&id).is_some_and(|seen| seen.before);
                self.members.insert(id, Seen { leaving, before, presumed_until: None });
            }
            Change::Expired { id } => match self.members.get_mut(&id) {
                Some(seen) if seen.before && now < self.settled_at => seen.presumed_until = Some(self.settled_at),
                _ => drop(self.members.remove(&id)),
            },
            Change::Left { id } => drop(self.members.remove(&id)),
            Change::Lease { partition, lease, revision } => {
                self.leases_before.remove(&partition);
                let known = self.leases.get(&partition).map_or(0, |(_, known)| *known);
                if revision > known {
                    self.leases.insert(partition, (lease, revision));
                }
            }
        }
    }

    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether this member lives.
    pub(super) fn lives(&self, id: &str, now: Duration) -> bool {
        self.members.get(id).is_some_and(|seen| seen.presumed_until.is_none_or(|until| now < until))
    }

    /// Those who live and want a share.
    pub(super) fn takers(&self, now: Duration) -> BTreeSet<&str> {
        let living = self.members.iter().filter(|(id, seen)| !seen.leaving && self.lives(id, now));
        living.map(|(id, _)| id.as_str()).collect()
    }

    pub(super) fn owner(&self, partition: u16, now: Duration) -> Owner<'_> {
        let before = self.leases_before.get(&partition).filter(|_| now < self.settled_at);
        match self.leases.get(&partition) {
            None => match before {
                Some(member) => Owner::Living { member },
                None if self.complete => Owner::Nobody { revision: 0 },
                None => Owner::Unknown,
            },
            Some((Lease { member: None, .. }, revision)) => Owner::Nobody { revision: *revision },
            Some((Lease { member: Some(member), .. }, _)) if self.lives(member, now) => Owner::Living { member },
            Some((_, revision)) => Owner::Dead { revision: *revision },
        }
    }

    /// Whom the lease names, dead or alive, and its revision.
    pub(super) fn named(&self, partition: u16) -> Option<(&str, u64)> {
        let (lease, revision) = self.leases.get(&partition)?;
        Some((lease.member.as_deref()?, *revision))
    }

    /// The newest revision of the lease, whomever it names.
    pub(super) fn revision(&self, partition: u16) -> Option<u64> {
        self.leases.get(&partition).map(|(_, revision)| *revision)
    }

    fn restart(&mut self, now: Duration) {
        self.complete = false;
        self.settled_at = now + self.ttl;
        let until = self.settled_at;
        self.members.retain(|_, seen| seen.presumed_until.is_none_or(|until| now < until));
        for seen in self.members.values_mut() {
            *seen = Seen { before: true, presumed_until: Some(until), ..*seen };
        }
        for (partition, (lease, _)) in std::mem::take(&mut self.leases) {
            if let Some(member) = lease.member.filter(|member| self.members.contains_key(member)) {
                self.leases_before.insert(partition, member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn member(id: &str) -> Change {
        Change::Member { id: id.to_owned(), leaving: false }
    }

    fn expired(id: &str) -> Change {
        Change::Expired { id: id.to_owned() }
    }

    fn lease(partition: u16, member: Option<&str>, revision: u64) -> Change {
        Change::Lease { partition, lease: Lease { member: member.map(str::to_owned), epoch: None }, revision }
    }

    fn view(changes: &[Change]) -> View {
        let mut view = View::new(TTL);
        for change in changes {
            view.apply(change.clone(), at(10));
        }
        view
    }

    #[test]
    fn a_lease_is_worth_what_its_member_is() {
        let mut view = view(&[member("a"), lease(0, Some("a"), 5), lease(1, Some("gone"), 6), lease(2, None, 7)]);
        assert_eq!(view.owner(3, at(10)), Owner::Unknown, "not everything has been told");
        view.apply(Change::Complete, at(10));
        assert_eq!(view.owner(0, at(10)), Owner::Living { member: "a" });
        assert_eq!(view.owner(1, at(10)), Owner::Dead { revision: 6 });
        assert_eq!(view.owner(2, at(10)), Owner::Nobody { revision: 7 });
        assert_eq!(view.owner(3, at(10)), Owner::Nobody { revision: 0 });
        view.apply(expired("a"), at(11));
        assert_eq!(view.owner(0, at(11)), Owner::Dead { revision: 5 });
        view.apply(lease(0, None, 4), at(11));
        assert_eq!(view.named(0), Some(("a", 5)), "an older change comes too late");
    }

    #[test]
    fn whoever_lived_before_we_were_away_has_time_to_come_back() {
        let mut view =
            view(&[member("a"), member("b"), lease(0, Some("a"), 5), lease(1, Some("b"), 6), Change::Complete]);
        view.apply(Change::Restarted, at(20));
        view.apply(lease(0, Some("a"), 5), at(20));
        view.apply(Change::Complete, at(20));
        assert!(view.lives("a", at(22)) && !view.lives("a", at(23)));
        assert_eq!(view.owner(1, at(22)), Owner::Living { member: "b" }, "its bucket may have been made anew");
        assert_eq!(view.owner(1, at(23)), Owner::Nobody { revision: 0 });
        view.apply(member("b"), at(21));
        view.apply(expired("b"), at(22));
        assert!(view.lives("b", at(22)), "what the server still knew from before proves nothing");
        view.apply(Change::Left { id: "a".to_owned() }, at(22));
        assert!(!view.lives("a", at(22)), "but a goodbye counts");
        assert_eq!(view.takers(at(22)), BTreeSet::from(["b"]));
    }
}
