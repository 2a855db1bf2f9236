//! Who should own which partition: the shares of the members, who takes what nobody owns, who gives what to whom.
//!
//! Pure: no clock, no I/O. Refuses to know about revisions and tasks. Invariants: members that see the same decide the same,
//! so that they do not take the same partition; nothing moves unless two members' shares differ by more than one; as many
//! partitions move as must.

use std::collections::{BTreeMap, BTreeSet};

/// What one member sees.
#[derive(Debug)]
pub(super) struct Situation<'a> {
    pub(super) me: &'a str,
    /// Those who live and want a share; `me` is one of them.
    pub(super) members: &'a BTreeSet<&'a str>,
    /// The owner of each partition, if it lives; one that is leaving is an owner, but not among the members.
    pub(super) owners: &'a [Option<&'a str>],
    /// What `me` works on and could give.
    pub(super) held: &'a BTreeSet<u16>,
    /// Whether `me` is giving something already.
    pub(super) giving: bool,
}

/// What one member does next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Decision {
    /// Ownerless partitions that fall to it, all at once.
    pub(super) claim: Vec<u16>,
    /// One partition of its own that somebody else should have.
    pub(super) give: Option<u16>,
}

/// Decides for `me`.
pub(super) fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { me, members, owners, held, giving } = situation;
    debug_assert!(members.contains(*me), "a member that leaves decides nothing");
    let mut counts: BTreeMap<&str, usize> = members.iter().map(|&member| (member, 0)).collect();
    for owner in owners.iter().flatten() {
        if let Some(count) = counts.get_mut(owner) {
            *count += 1;
        }
    }
    let mut claim = Vec::new();
    for (partition, owner) in (0_u16..).zip(owners.iter()) {
        if owner.is_some() {
            continue;
        }
        let Some((member, count)) = counts.iter_mut().min_by_key(|(member, count)| (**count, **member)) else { break };
        *count += 1;
        if member == me {
            claim.push(partition);
        }
    }
    let over = counts.get(me).is_some_and(|&count| count > target(me, &counts));
    // The highest number: which one does not matter, but it must be the same each time it is asked.
    let give = held.last().copied().filter(|_| over && !giving);
    Decision { claim, give }
}

/// The share that a member ends up with. Those who have most keep the larger shares, so that as little as possible moves.
fn target(member: &str, counts: &BTreeMap<&str, usize>) -> usize {
    let total: usize = counts.values().sum();
    let (floor, larger) = (total / counts.len(), total % counts.len());
    let own = counts.get(member).copied().unwrap_or_default();
    let before_me = counts.iter().filter(|(other, count)| (**count, member) > (own, **other)).count();
    floor + usize::from(before_me < larger)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "leaving"];

    /// Every member decides on the same, true view, and what they decide happens; until nobody decides anything.
    /// Returns how often partitions changed hands from a member.
    fn settle<'a>(members: &BTreeSet<&'a str>, owners: &mut [Option<&'a str>]) -> usize {
        let mut moves = 0;
        for _round in 0..=2 * owners.len() {
            let decisions: Vec<_> = members.iter().map(|&me| (me, decide_for(me, members, owners))).collect();
            let quiet = decisions.iter().all(|(_, decision)| *decision == Decision::default());
            if quiet {
                return moves;
            }
            let mut claimed = BTreeSet::new();
            for (me, decision) in decisions {
                for partition in decision.claim {
                    assert!(claimed.insert(partition), "two members claim {partition}");
                    owners[usize::from(partition)] = Some(me);
                }
                if let Some(partition) = decision.give {
                    owners[usize::from(partition)] = None;
                    moves += 1;
                }
            }
        }
        panic!("never quiet: {owners:?}");
    }

    fn decide_for(me: &str, members: &BTreeSet<&str>, owners: &[Option<&str>]) -> Decision {
        let held = (0_u16..).zip(owners).filter(|(_, owner)| **owner == Some(me)).map(|(number, _)| number);
        decide(&Situation { me, members, owners, held: &held.collect(), giving: false })
    }

    fn counts(members: &BTreeSet<&str>, owners: &[Option<&str>]) -> Vec<usize> {
        members.iter().map(|one| owners.iter().flatten().filter(|owner| *owner == one).count()).collect()
    }

    fn named(count: usize) -> BTreeSet<&'static str> {
        NAMES[..count].iter().copied().collect()
    }

    fn owner() -> impl Strategy<Value = Option<&'static str>> {
        proptest::option::weighted(0.8, proptest::sample::select(&NAMES[..]))
    }

    proptest! {
        #[test]
        fn shares_end_within_one_after_no_more_moves_than_needed(
            count in 1..=6_usize,
            mut owners in proptest::collection::vec(owner(), 1..80),
        ) {
            let members = named(count);
            // Owners who live but are not members keep what they have until they give it.
            for owner in owners.iter_mut().filter(|owner| owner.is_some_and(|name| name != "leaving" && !members.contains(name))) {
                *owner = None;
            }
            let leaving = owners.iter().filter(|owner| **owner == Some("leaving")).count();
            let before = owners.clone();
            let shared = owners.len() - leaving;
            let least: usize = {
                let mut sorted = counts(&members, &before);
                sorted.sort_unstable_by(|one, other| other.cmp(one));
                let target = |rank: usize| shared / count + usize::from(rank < shared % count);
                sorted.iter().enumerate().map(|(rank, &have)| have.saturating_sub(target(rank))).sum()
            };
            let moves = settle(&members, &mut owners);
            prop_assert!(owners.iter().all(Option::is_some));
            let shares = counts(&members, &owners);
            let (least_share, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least_share <= 1, "{shares:?}");
            prop_assert_eq!(moves, least);
        }

        #[test]
        fn a_guest_moves_only_its_own_share(count in 1..=5_usize, partitions in 1..130_usize) {
            let (few, more) = (named(count), named(count + 1));
            let mut owners = vec![None; partitions];
            settle(&few, &mut owners);
            let before = owners.clone();
            let moves = settle(&more, &mut owners);
            prop_assert_eq!(moves, partitions / (count + 1));
            let guest = NAMES[count];
            let stayed = before.iter().zip(&owners).filter(|(then, now)| then == now).count();
            prop_assert_eq!(stayed, partitions - moves);
            for owner in owners.iter_mut().filter(|owner| **owner == Some(guest)) {
                *owner = None;
            }
            prop_assert_eq!(settle(&few, &mut owners), 0, "only what the guest had changes hands when it goes");
        }
    }

    #[test]
    fn one_thing_is_given_at_a_time() {
        let members = named(2);
        let owners = vec![Some("a"); 4];
        let held: BTreeSet<u16> = (0..4).collect();
        let decide = |giving| decide(&Situation { me: "a", members: &members, owners: &owners, held: &held, giving });
        assert_eq!(decide(false).give, Some(3));
        assert_eq!(decide(true).give, None);
    }
}
