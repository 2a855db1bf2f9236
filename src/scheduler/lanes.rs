//! Which message may run next: one lane per conversation, one running message per lane, lanes side by side up to a bound,
//! and of each lane no more than a bounded part in memory: the rest is parked, which means left in the stream.
//!
//! Pure: no clock, no I/O, no knowledge of what running means. Invariants, kept by the property tests below: never two
//! running messages of one lane, never one before an earlier one of its lane is done, no lane forgotten while it has
//! messages, no more than the backlog of a lane in memory, no memory for a lane without any messages.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The name of a lane: the conversation's subject tokens.
pub type LaneKey = Arc<str>;

/// A message waiting in or running on a lane, by its place in its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    pub partition: u16,
    pub sequence: u64,
}

/// Where an admitted message went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Into memory, behind so many others of its lane.
    Waiting { before: usize },
    /// Left in the stream. `opens` when it is the first one: from then on the lane's place in the stream must be held.
    Parked { opens: bool },
}

/// A message that may run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub key: LaneKey,
    pub slot: Slot,
    /// Counts from 1; attempts that did not count (see [`Lanes::failed`]) keep the number.
    pub attempt: u32,
}

/// Parked messages to be read again: those of the lane from `from` to `until`, at most `count`, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refill {
    pub key: LaneKey,
    pub partition: u16,
    pub from: u64,
    pub until: u64,
    pub count: usize,
}

/// Where a lane's parked messages began before a refill, and where they begin now; `None` when none is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub from: u64,
    pub to: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the ready queue.
    Ready,
    /// Its first message is running.
    Running,
    /// Its first message failed and waits for [`Lanes::resume`].
    Paused,
    /// Everything it has is parked.
    Starved,
}

/// The part of a lane that is left in the stream.
#[derive(Debug)]
struct Parked {
    /// No parked message stands before it.
    from: u64,
    /// The last parked message.
    until: u64,
    reading: bool,
}

#[derive(Debug)]
struct Lane {
    partition: u16,
    /// Sequences, ascending; all before those parked.
    waiting: VecDeque<u64>,
    parked: Option<Parked>,
    state: State,
    attempt: u32,
}

/// All lanes of a process.
#[derive(Debug)]
pub struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    /// Lanes in the order in which they may start: a lane that finished a message goes to the end, so that a long one does
    /// not hold up the others.
    ready: VecDeque<LaneKey>,
    running: usize,
    max_running: usize,
    backlog: usize,
}

impl Lanes {
    /// `max_running` messages at once, `backlog` of each lane in memory.
    #[must_use]
    pub fn new(max_running: usize, backlog: usize) -> Self {
        Self { lanes: HashMap::new(), ready: VecDeque::new(), running: 0, max_running, backlog: backlog.max(1) }
    }

    /// Puts a message at the end of its lane. Messages of a lane are admitted in ascending sequence, each once: the caller's
    /// [`super::progress::Progress`] sees to it.
    pub fn admit(&mut self, key: &LaneKey, slot: Slot) -> Admission {
        let Some(lane) = self.lanes.get_mut(key) else {
            let waiting = VecDeque::from([slot.sequence]);
            let lane = Lane { partition: slot.partition, waiting, parked: None, state: State::Ready, attempt: 1 };
            self.lanes.insert(Arc::clone(key), lane);
            self.ready.push_back(Arc::clone(key));
            return Admission::Waiting { before: 0 };
        };
        debug_assert!(lane.waiting.back().is_none_or(|last| *last < slot.sequence), "admitted in order");
        match &mut lane.parked {
            Some(parked) => {
                debug_assert!(parked.until < slot.sequence, "parked in order");
                parked.until = slot.sequence;
                Admission::Parked { opens: false }
            }
            None if lane.waiting.len() >= self.backlog => {
                lane.parked = Some(Parked { from: slot.sequence, until: slot.sequence, reading: false });
                Admission::Parked { opens: true }
            }
            None => {
                lane.waiting.push_back(slot.sequence);
                Admission::Waiting { before: lane.waiting.len() - 1 }
            }
        }
    }

    /// Whether the message is among those parked.
    #[must_use]
    pub fn is_parked(&self, key: &LaneKey, sequence: u64) -> bool {
        let parked = self.lanes.get(key).and_then(|lane| lane.parked.as_ref());
        parked.is_some_and(|parked| (parked.from..=parked.until).contains(&sequence))
    }

    /// The next message that may run, now counted as running; `None` when no lane is ready or the bound is reached.
    pub fn start(&mut self) -> Option<Start> {
        while self.running < self.max_running {
            let key = self.ready.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.state == State::Ready) else { continue };
            let Some(&sequence) = lane.waiting.front() else { continue };
            lane.state = State::Running;
            self.running += 1;
            let slot = Slot { partition: lane.partition, sequence };
            return Some(Start { key, slot, attempt: lane.attempt });
        }
        None
    }

    /// The running message of the lane is done for good; the lane goes on with the next one, waits for a refill, or ceases
    /// to exist.
    pub fn done(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.state == State::Running) else { return };
        self.running -= 1;
        lane.waiting.pop_front();
        lane.attempt = 1;
        if !lane.waiting.is_empty() {
            lane.state = State::Ready;
            self.ready.push_back(Arc::clone(key));
        } else if lane.parked.is_some() {
            lane.state = State::Starved;
        } else {
            self.lanes.remove(key);
        }
    }

    /// The running message failed and shall run again after [`Lanes::resume`]; everything behind it waits. An attempt that
    /// failed for reasons outside the message (the database was away) does not count.
    pub fn failed(&mut self, key: &LaneKey, counts: bool) {
        if let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.state == State::Running) {
            self.running -= 1;
            lane.state = State::Paused;
            lane.attempt += u32::from(counts);
        }
    }

    /// The pause after a failure is over.
    pub fn resume(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.state == State::Paused) {
            lane.state = State::Ready;
            self.ready.push_back(Arc::clone(key));
        }
    }

    /// What of the lane's parked messages should be read now, if half of its room in memory is free and nobody reads yet.
    pub fn refill(&mut self, key: &LaneKey) -> Option<Refill> {
        let lane = self.lanes.get_mut(key)?;
        let parked = lane.parked.as_mut().filter(|parked| !parked.reading)?;
        if lane.waiting.len() > self.backlog / 2 {
            return None;
        }
        parked.reading = true;
        Some(Refill {
            key: Arc::clone(key),
            partition: lane.partition,
            from: parked.from,
            until: parked.until,
            count: self.backlog - lane.waiting.len(),
        })
    }

    /// The outcome of a refill: `sequences` were read, and everything of the lane before `next` is among them. `None` when
    /// the lane has been forgotten meanwhile.
    pub fn refilled(&mut self, key: &LaneKey, sequences: &[u64], next: u64) -> Option<Moved> {
        let lane = self.lanes.get_mut(key)?;
        let parked = lane.parked.as_mut().filter(|parked| parked.reading)?;
        let mut moved = Moved { from: parked.from, to: Some(next) };
        parked.reading = false;
        parked.from = next;
        if parked.until < next {
            moved.to = None;
            lane.parked = None;
        }
        lane.waiting.extend(sequences);
        if lane.state == State::Starved {
            if !lane.waiting.is_empty() {
                lane.state = State::Ready;
                self.ready.push_back(Arc::clone(key));
            } else if moved.to.is_none() {
                self.lanes.remove(key);
            }
        }
        Some(moved)
    }

    /// Forgets a partition's messages, but for those running: their lanes end when they do. Returns the lanes forgotten.
    pub fn drop_partition(&mut self, partition: u16) -> Vec<LaneKey> {
        let mut dropped = Vec::new();
        self.lanes.retain(|key, lane| {
            if lane.partition != partition {
                return true;
            }
            lane.parked = None;
            lane.waiting.truncate(1);
            let keep = lane.state == State::Running;
            if !keep {
                dropped.push(Arc::clone(key));
            }
            keep
        });
        self.ready.retain(|key| self.lanes.contains_key(key));
        dropped
    }

    /// Messages running now.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running
    }

    /// Lanes that have at least one message.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

#[cfg(test)]
mod tests;
