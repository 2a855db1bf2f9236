//! How far a partition has come: what was delivered, what is still open, and up to where everything is done.
//!
//! Pure. It tells a message seen for the first time from one delivered again, by order alone: a source delivers a
//! partition's messages in ascending sequence and without gaps (see [`crate::stream::Source`]), so everything at or below
//! the highest sequence is either open, parked or done. Invariant: at and below [`Progress::watermark`] every message is
//! done.

use std::collections::{BTreeMap, BTreeSet};

/// What an arriving message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Never seen: goes into its lane.
    Fresh,
    /// Waiting or running here already: only its acknowledgement address is new.
    Open,
    /// Finished here already, or parked: its acknowledgement got lost.
    Past,
}

/// The state of one partition.
#[derive(Debug)]
pub struct Progress {
    highest: u64,
    open: BTreeSet<u64>,
    /// Places that lanes with parked messages hold, with the number of lanes at each.
    held: BTreeMap<u64, u32>,
}

impl Progress {
    /// Starts after `checkpoint`, at and below which everything is done.
    #[must_use]
    pub const fn new(checkpoint: u64) -> Self {
        Self { highest: checkpoint, open: BTreeSet::new(), held: BTreeMap::new() }
    }

    pub fn arrive(&mut self, sequence: u64) -> Arrival {
        if sequence > self.highest {
            self.highest = sequence;
            self.open.insert(sequence);
            Arrival::Fresh
        } else if self.open.contains(&sequence) {
            Arrival::Open
        } else {
            Arrival::Past
        }
    }

    pub fn finish(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }

    /// A parked message was read again: it is open once more.
    pub fn reopen(&mut self, sequence: u64) {
        debug_assert!(sequence <= self.highest, "only what has arrived can come back");
        self.open.insert(sequence);
    }

    /// The arrived message stays in the stream. What its lane has parked is not open one by one, however much it is: the
    /// place of the first holds the watermark for all of them, until it is let go.
    pub fn park(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }

    /// A lane's parked messages begin here.
    pub fn hold(&mut self, sequence: u64) {
        *self.held.entry(sequence).or_default() += 1;
    }

    /// A lane's parked messages do not begin here any more.
    pub fn let_go(&mut self, sequence: u64) {
        if let Some(lanes) = self.held.get_mut(&sequence) {
            *lanes -= 1;
            if *lanes == 0 {
                self.held.remove(&sequence);
            }
        }
    }

    /// The first message that is waiting or running.
    #[must_use]
    pub fn first_open(&self) -> Option<u64> {
        self.open.first().copied()
    }

    /// The highest sequence that has arrived.
    #[must_use]
    pub const fn highest(&self) -> u64 {
        self.highest
    }

    /// The highest sequence at and below which nothing is open or parked.
    #[must_use]
    pub fn watermark(&self) -> u64 {
        let first_held = self.held.first_key_value().map(|(sequence, _)| sequence);
        self.open.first().into_iter().chain(first_held).min().map_or(self.highest, |first| first - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Deliveries start again at the watermark at any moment, as a re-created consumer does; messages finish in any
        /// order. Each is fresh exactly once, and the watermark never covers an open one nor falls back.
        #[test]
        fn every_message_is_fresh_once_and_the_watermark_is_honest(
            checkpoint in 0_u64..100,
            steps in prop::collection::vec((0_u8..8, any::<prop::sample::Index>()), 0..300),
        ) {
            let mut progress = Progress::new(checkpoint);
            let mut cursor = checkpoint;
            let mut finished: BTreeMap<u64, bool> = BTreeMap::new();
            let mut last_watermark = checkpoint;
            for (step, index) in steps {
                match step {
                    0 => cursor = progress.watermark(),
                    1..=4 => {
                        cursor += 1;
                        let expected = match finished.get(&cursor) {
                            None => Arrival::Fresh,
                            Some(false) => Arrival::Open,
                            Some(true) => Arrival::Past,
                        };
                        prop_assert_eq!(progress.arrive(cursor), expected);
                        finished.entry(cursor).or_insert(false);
                    }
                    _ => {
                        let open: Vec<u64> = finished.iter().filter(|(_, done)| !**done).map(|(seq, _)| *seq).collect();
                        if !open.is_empty() {
                            let sequence = open[index.index(open.len())];
                            progress.finish(sequence);
                            finished.insert(sequence, true);
                        }
                    }
                }
                let watermark = progress.watermark();
                prop_assert!(watermark >= last_watermark);
                prop_assert!(finished.iter().all(|(sequence, done)| *done || *sequence > watermark));
                last_watermark = watermark;
            }
        }
    }

    #[test]
    fn parked_messages_hold_the_watermark_until_they_are_done() {
        let mut progress = Progress::new(0);
        for sequence in 1..=5 {
            progress.arrive(sequence);
        }
        // One lane has 1 and 2 in memory and parks 3 and 5; 4 is of another lane.
        progress.hold(3);
        progress.park(3);
        progress.park(5);
        for sequence in [1, 2, 4] {
            progress.finish(sequence);
        }
        assert_eq!(progress.watermark(), 2);
        assert_eq!(progress.arrive(5), Arrival::Past);
        progress.reopen(3);
        progress.let_go(3);
        progress.hold(4);
        progress.finish(3);
        assert_eq!(progress.watermark(), 3, "what is parked after 3 is held");
        progress.reopen(5);
        progress.let_go(4);
        assert_eq!(progress.watermark(), 4);
        progress.finish(5);
        assert_eq!(progress.watermark(), 5);
    }
}
