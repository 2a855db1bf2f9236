//! How far a partition has come: what was delivered, what is still open, and up to where everything is done.
//!
//! Pure. It tells a message seen for the first time from one delivered again, by order alone: a source delivers a
//! partition's messages in ascending sequence and without gaps (see [`crate::stream::Source`]), so everything at or below
//! the highest sequence is either open or done. Invariant: at and below [`Progress::watermark`] every message is done.

use std::collections::BTreeSet;

/// What an arriving message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Never seen: goes into its lane.
    Fresh,
    /// Waiting or running here already: only its acknowledgement address is new.
    Open,
    /// Finished here already: its acknowledgement got lost.
    Done,
}

/// The state of one partition.
#[derive(Debug)]
pub struct Progress {
    highest: u64,
    open: BTreeSet<u64>,
}

impl Progress {
    /// Starts after `checkpoint`, at and below which everything is done.
    #[must_use]
    pub const fn new(checkpoint: u64) -> Self {
        Self { highest: checkpoint, open: BTreeSet::new() }
    }

    pub fn arrive(&mut self, sequence: u64) -> Arrival {
        if sequence > self.highest {
            self.highest = sequence;
            self.open.insert(sequence);
            Arrival::Fresh
        } else if self.open.contains(&sequence) {
            Arrival::Open
        } else {
            Arrival::Done
        }
    }

    pub fn finish(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }

    /// The highest sequence at and below which nothing is open.
    #[must_use]
    pub fn watermark(&self) -> u64 {
        self.open.first().map_or(self.highest, |first| first - 1)
    }

    /// Messages delivered and not finished.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
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
                            Some(true) => Arrival::Done,
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
                prop_assert_eq!(progress.open(), finished.values().filter(|done| !**done).count());
                last_watermark = watermark;
            }
        }
    }
}
