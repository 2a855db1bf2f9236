//! Whose turns are not begun for now, because a person said so.
//!
//! Pure. Refuses to stop what runs. Invariant: what is held is a matter of a lane's name and partition alone, so that every
//! process decides alike.

use std::collections::HashSet;

use crate::message::escape;
use crate::store::{Hold, HoldScope};

/// Everything that is held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Lanes: `<channel>.<bot>.<peer>`.
    lanes: HashSet<String>,
    /// As in lanes.
    bots: HashSet<String>,
    partitions: HashSet<u16>,
}

impl Holds {
    #[must_use]
    pub fn of(holds: &[Hold]) -> Self {
        let mut held = Self::default();
        for hold in holds {
            match hold.scope {
                HoldScope::Conversation => drop(held.lanes.insert(hold.target.clone())),
                HoldScope::Bot => drop(held.bots.insert(escape(&hold.target))),
                HoldScope::Partition => held.partitions.extend(hold.target.parse::<u16>()),
            }
        }
        held
    }

    /// Whether turns of this lane are not to begin.
    #[must_use]
    pub fn is_held(&self, lane: &str, partition: u16) -> bool {
        let bot = || lane.split('.').nth(1).is_some_and(|bot| self.bots.contains(bot));
        self.partitions.contains(&partition) || self.lanes.contains(lane) || (!self.bots.is_empty() && bot())
    }
}
