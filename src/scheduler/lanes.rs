//! Which messages may run next: one lane per conversation, one running turn per lane, lanes side by side up to a bound that
//! the bots share, and of each lane no more than a bounded part in memory: the rest is parked, which means left in the
//! stream.
//!
//! A lane works on two tracks: turns, and refusals of what its policy turns away while a turn is to be made. Pure: no clock,
//! no I/O, no knowledge of what running means. Invariants, kept by the property tests below: never two running tasks of one
//! track of a lane, no turn before an earlier one of its lane is done, every message in exactly one task at its end, no lane
//! forgotten while it has messages, no more than the backlog of a lane in memory, no memory for a lane without any
//! messages, and no bot's lanes wait while a bot with more turns for its weight starts another.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use self::lane::{Lane, Parked, Progress, State};
use super::bursts::{self, Label, Next, Rules, Waiting};
use super::shares::Shares;

mod lane;

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
    /// Into memory, behind so many others of its lane. `interrupts` when the running turn shall end for it.
    Waiting { before: usize, interrupts: bool },
    /// Left in the stream. `opens` when it is the first one: from then on the lane's place in the stream must be held.
    Parked { opens: bool },
}

/// What a task is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Track {
    /// A turn of its messages.
    Turn,
    /// Telling that the message is not taken.
    Refusal,
}

/// Messages that may run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub key: LaneKey,
    pub track: Track,
    pub partition: u16,
    /// In order; one or more.
    pub sequences: Vec<u64>,
    /// Later messages that amend some of these, in order.
    pub amendments: Vec<u64>,
    /// Counts from 1; attempts that did not count (see [`Lanes::failed`]) keep the number.
    pub attempt: u32,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Run(Start),
    /// The lane waits for more messages: [`Lanes::resume`] at this moment, on the track of turns.
    Wait {
        key: LaneKey,
        until: Instant,
    },
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

/// All lanes of a process.
#[derive(Debug)]
pub struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    shares: Shares,
    /// Lanes that may refuse their next message.
    refusals: VecDeque<LaneKey>,
    running: usize,
    refusing: usize,
    parked: usize,
    max_running: usize,
    backlog: usize,
}

impl Lanes {
    /// `max_running` turns at once, and as many refusals; `backlog` messages of each lane in memory. `rules` by the lanes'
    /// names without their last token; the default for others.
    #[must_use]
    pub fn new(max_running: usize, backlog: usize, rules: HashMap<String, Rules>) -> Self {
        Self {
            lanes: HashMap::new(),
            shares: Shares::new(rules),
            refusals: VecDeque::new(),
            running: 0,
            refusing: 0,
            parked: 0,
            max_running,
            backlog: backlog.max(1),
        }
    }

    /// Puts a message at the end of its lane. Messages of a lane are admitted in ascending sequence, each once: the caller's
    /// [`super::progress::Progress`] sees to it.
    pub fn admit(&mut self, key: &LaneKey, slot: Slot, label: Label, now: Instant) -> Admission {
        let new = || Lane::new(slot.partition, self.shares.bot_of(key));
        let lane = self.lanes.entry(Arc::clone(key)).or_insert_with(new);
        let before = lane.in_memory();
        if let Some(parked) = &mut lane.parked {
            debug_assert!(parked.until < slot.sequence, "parked in order");
            parked.until = slot.sequence;
            parked.messages += 1;
            self.parked += 1;
            return Admission::Parked { opens: false };
        }
        if before >= self.backlog {
            lane.parked = Some(Parked { from: slot.sequence, until: slot.sequence, messages: 1, reading: false });
            self.parked += 1;
            return Admission::Parked { opens: true };
        }
        let rules = self.shares.rules(lane.bot);
        let interrupts = lane.take(&rules, Waiting { sequence: slot.sequence, label, since: now });
        self.wake(key);
        Admission::Waiting { before, interrupts }
    }

    /// Whether the message is among those parked.
    #[must_use]
    pub fn is_parked(&self, key: &LaneKey, sequence: u64) -> bool {
        let parked = self.lanes.get(key).and_then(|lane| lane.parked.as_ref());
        parked.is_some_and(|parked| (parked.from..=parked.until).contains(&sequence))
    }

    /// What there is to do next; a start counts as running from now on. `None` when no lane is ready or the bound is reached.
    pub fn start(&mut self, now: Instant) -> Option<Step> {
        if let Some(start) = self.start_refusal() {
            return Some(Step::Run(start));
        }
        while self.running < self.max_running {
            let key = self.shares.next()?;
            let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.turn.state == State::Ready) else { continue };
            // Once an attempt has failed, the turn keeps its messages: all of them are tried equally often.
            let next = if lane.turn.attempt > 1 {
                Next::Start(lane.members.len())
            } else {
                bursts::next(&self.shares.rules(lane.bot), &lane.waiting, lane.parked.is_some(), now)
            };
            match next {
                Next::Wait(until) => {
                    lane.turn.state = State::Gathering;
                    return Some(Step::Wait { key, until });
                }
                Next::Start(length) => {
                    lane.turn.state = State::Running;
                    if lane.turn.attempt == 1 {
                        lane.members = lane.waiting.iter().take(length).map(|message| message.sequence).collect();
                    }
                    if lane.turn.attempt == 1 || lane.waiting.iter().any(|message| message.label == Label::Stops) {
                        lane.amendments = bursts::amendments(&lane.waiting, length);
                    }
                    self.running += 1;
                    self.shares.started(lane.bot);
                    return Some(Step::Run(Start {
                        key,
                        track: Track::Turn,
                        partition: lane.partition,
                        sequences: lane.members.clone(),
                        amendments: lane.amendments.clone(),
                        attempt: lane.turn.attempt,
                    }));
                }
            }
        }
        None
    }

    /// Refusals do not wait for turns: each is a row and a notice.
    fn start_refusal(&mut self) -> Option<Start> {
        while self.refusing < self.max_running {
            let key = self.refusals.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.refusal.state == State::Ready) else {
                continue;
            };
            let Some(first) = lane.refused.front() else { continue };
            lane.refusal.state = State::Running;
            self.refusing += 1;
            return Some(Start {
                key,
                track: Track::Refusal,
                partition: lane.partition,
                sequences: vec![first.sequence],
                amendments: Vec::new(),
                attempt: lane.refusal.attempt,
            });
        }
        None
    }

    /// These messages of the lane's running task are done for good; those that are not wait for another one. The lane goes
    /// on, waits for a refill, or ceases to exist.
    pub fn done(&mut self, key: &LaneKey, track: Track, done: &[u64]) {
        if let Some(lane) = self.end(key, track) {
            lane.remove(track, |sequence| done.contains(&sequence));
            self.wake(key);
        }
    }

    /// The running task ended without an outcome, and its messages are somebody else's: its partition was dropped.
    pub fn abandon(&mut self, key: &LaneKey, track: Track) {
        if let Some(lane) = self.end(key, track) {
            lane.remove(track, |_| true);
            self.wake(key);
        }
    }

    /// The running task failed and shall run again after [`Lanes::resume`]; what is behind it waits. An attempt that failed
    /// for reasons outside the messages (the database was away) does not count.
    pub fn failed(&mut self, key: &LaneKey, track: Track, counts: bool) {
        if let Some(lane) = self.end(key, track) {
            lane.is_asked = false;
            let progress = lane.track_mut(track);
            progress.state = State::Paused;
            progress.attempt += u32::from(counts);
        }
    }

    /// The running turn ended because it was asked to: it starts again, with what has come meanwhile.
    pub fn interrupted(&mut self, key: &LaneKey) {
        if let Some(lane) = self.end(key, Track::Turn) {
            lane.is_asked = false;
            lane.interruptions += 1;
            lane.turn.state = State::Idle;
            self.wake(key);
        }
    }

    /// The message that is being refused is to be taken after all: it waits for its turn. Those refused after it are asked
    /// about one by one.
    pub fn readmit(&mut self, key: &LaneKey) {
        let Some(lane) = self.end(key, Track::Refusal) else { return };
        lane.refusal = Progress::idle();
        if let Some(message) = lane.refused.pop_front() {
            let place = lane.waiting.iter().position(|other| other.sequence > message.sequence);
            lane.waiting.insert(place.unwrap_or(lane.waiting.len()), message);
        }
        self.wake(key);
    }

    /// A pause is over, or the time to wait for more messages.
    pub fn resume(&mut self, key: &LaneKey, track: Track) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let progress = lane.track_mut(track);
        if matches!(progress.state, State::Paused | State::Gathering) {
            progress.state = State::Idle;
            self.wake(key);
        }
    }

    /// What of the lane's parked messages should be read now, if half of its room in memory is free and nobody reads yet.
    pub fn refill(&mut self, key: &LaneKey) -> Option<Refill> {
        let lane = self.lanes.get_mut(key)?;
        let in_memory = lane.in_memory();
        let parked = lane.parked.as_mut().filter(|parked| !parked.reading)?;
        if in_memory > self.backlog / 2 {
            return None;
        }
        parked.reading = true;
        Some(Refill {
            key: Arc::clone(key),
            partition: lane.partition,
            from: parked.from,
            until: parked.until,
            count: self.backlog - in_memory,
        })
    }

    /// The outcome of a refill: `messages` were read, and everything of the lane before `next` is among them. `None` when
    /// the lane has been forgotten meanwhile.
    pub fn refilled(&mut self, key: &LaneKey, messages: Vec<(u64, Label)>, next: u64, now: Instant) -> Option<Moved> {
        let lane = self.lanes.get_mut(key)?;
        let parked = lane.parked.as_mut().filter(|parked| parked.reading)?;
        let mut moved = Moved { from: parked.from, to: Some(next) };
        parked.reading = false;
        parked.from = next;
        let before = parked.messages;
        parked.messages = before.saturating_sub(messages.len());
        let mut left = parked.messages;
        if parked.until < next {
            moved.to = None;
            lane.parked = None;
            left = 0;
        }
        self.parked -= before - left;
        let rules = self.shares.rules(lane.bot);
        for (sequence, label) in messages {
            // The turn that was to be stopped has ended long ago.
            let label = if label == Label::Stops { Label::Aside } else { label };
            let message = Waiting { sequence, label, since: now };
            match lane.refuses(&rules, &message) {
                true => lane.refused.push_back(message),
                // It has been waiting for long: that it is read now is no reason to interrupt anybody.
                false => lane.waiting.push_back(message),
            }
        }
        self.wake(key);
        Some(moved)
    }

    /// Forgets a partition's messages, but for those running: their lanes end when they do. Returns the lanes forgotten.
    pub fn drop_partition(&mut self, partition: u16) -> Vec<LaneKey> {
        let mut dropped = Vec::new();
        self.lanes.retain(|key, lane| {
            if lane.partition != partition {
                return true;
            }
            self.parked -= lane.parked.take().map_or(0, |parked| parked.messages);
            for track in [Track::Turn, Track::Refusal] {
                if !lane.is_running(track) {
                    *lane.track_mut(track) = Progress::idle();
                }
            }
            if !lane.is_running(Track::Turn) {
                lane.members.clear();
                lane.amendments.clear();
            }
            let mut waiting = std::mem::take(&mut lane.waiting);
            waiting.retain(|message| lane.is_of_turn(message.sequence));
            lane.waiting = waiting;
            lane.refused.truncate(usize::from(lane.is_running(Track::Refusal)));
            let keep = lane.in_memory() > 0;
            if !keep {
                dropped.push(Arc::clone(key));
            }
            keep
        });
        let is_ready =
            |key: &LaneKey, track| self.lanes.get(key).is_some_and(|lane| lane.track(track).state == State::Ready);
        self.shares.retain(|key| is_ready(key, Track::Turn));
        self.refusals.retain(|key| is_ready(key, Track::Refusal));
        dropped
    }

    /// Whether messages of the lane wait in memory.
    #[must_use]
    pub fn is_waiting(&self, key: &LaneKey) -> bool {
        self.lanes.get(key).is_some_and(|lane| !lane.waiting.is_empty())
    }

    /// Whether the lane is one of these: it has messages, or a task that runs.
    #[must_use]
    pub fn holds(&self, key: &LaneKey) -> bool {
        self.lanes.contains_key(key)
    }

    /// Turns running now.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running
    }

    /// Messages left in the stream until their lanes have room.
    #[must_use]
    pub const fn parked(&self) -> usize {
        self.parked
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

    /// The lane whose running task of this track ends now.
    fn end(&mut self, key: &LaneKey, track: Track) -> Option<&mut Lane> {
        let lane = self.lanes.get_mut(key).filter(|lane| lane.is_running(track))?;
        match track {
            Track::Turn => {
                self.running -= 1;
                self.shares.ended(lane.bot);
            }
            Track::Refusal => self.refusing -= 1,
        }
        Some(lane)
    }

    /// Puts the idle tracks of a lane that has something to do into their queues, and forgets a lane that has nothing.
    fn wake(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.in_memory() == 0 && lane.parked.is_none() {
            self.lanes.remove(key);
            return;
        }
        if lane.turn.state == State::Idle && !lane.waiting.is_empty() {
            lane.turn.state = State::Ready;
            self.shares.ready(lane.bot, key);
        }
        if lane.refusal.state == State::Idle && !lane.refused.is_empty() {
            lane.refusal.state = State::Ready;
            self.refusals.push_back(Arc::clone(key));
        }
    }
}

#[cfg(test)]
mod tests;
