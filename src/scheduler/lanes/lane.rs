//! One conversation's lane: what waits, what runs and what is turned away, by its bot's policy.
//!
//! Knows nothing of other lanes and of bounds that they share. Invariants: what waits stands before what is parked; a turn's
//! members are among those that wait.

use std::collections::VecDeque;

use super::Track;
use crate::config::Burst;
use crate::message::DraftId;
use crate::scheduler::bursts::{self, INTERRUPTIONS_MAX, Label, Rules, Waiting};
use crate::scheduler::shares::BotIndex;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Has nothing to do: no messages, or only parked ones.
    Idle,
    /// In a ready queue.
    Ready,
    /// Waits for messages that may still come, until [`resume`](super::Lanes::resume).
    Gathering,
    Running,
    /// Failed, and waits for [`resume`](super::Lanes::resume).
    Paused,
    /// Held by a person's word, until [`hold`](super::Lanes::hold) says otherwise.
    Held,
}

/// How far a lane is on one track.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) state: State,
    pub(super) attempt: u32,
}

impl Progress {
    pub(super) const fn idle() -> Self {
        Self { state: State::Idle, attempt: 1 }
    }
}

/// The part of a lane that is left in the stream.
#[derive(Debug)]
pub(super) struct Parked {
    /// No parked message stands before it.
    pub(super) from: u64,
    /// The last parked message.
    pub(super) until: u64,
    /// How many there are; more than there are when some have left the stream with age.
    pub(super) messages: usize,
    pub(super) reading: bool,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) partition: u16,
    pub(super) bot: BotIndex,
    /// All before those parked.
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) turn: Progress,
    /// Those of the waiting that the turn consists of that runs or has failed, and those that amend them.
    pub(super) members: Vec<u64>,
    pub(super) amendments: Vec<u64>,
    /// The running turn has been asked to end for a newer message.
    pub(super) is_asked: bool,
    /// How often the turn ended because it was asked to.
    pub(super) interruptions: u32,
    /// Turned away and not told yet, ascending.
    pub(super) refused: VecDeque<Waiting>,
    pub(super) refusal: Progress,
    pub(super) parked: Option<Parked>,
}

impl Lane {
    pub(super) const fn new(partition: u16, bot: BotIndex) -> Self {
        Self {
            partition,
            bot,
            waiting: VecDeque::new(),
            turn: Progress::idle(),
            members: Vec::new(),
            amendments: Vec::new(),
            is_asked: false,
            interruptions: 0,
            refused: VecDeque::new(),
            refusal: Progress::idle(),
            parked: None,
        }
    }

    pub(super) fn in_memory(&self) -> usize {
        self.waiting.len() + self.refused.len()
    }

    /// Messages behind the first `length` that wait.
    pub(super) fn behind(&self, length: usize) -> usize {
        let parked = self.parked.as_ref().map_or(0, |parked| parked.messages);
        self.waiting.len().saturating_sub(length) + parked
    }

    pub(super) fn is_running(&self, track: Track) -> bool {
        self.track(track).state == State::Running
    }

    pub(super) const fn track(&self, track: Track) -> &Progress {
        match track {
            Track::Turn => &self.turn,
            Track::Refusal => &self.refusal,
        }
    }

    pub(super) const fn track_mut(&mut self, track: Track) -> &mut Progress {
        match track {
            Track::Turn => &mut self.turn,
            Track::Refusal => &mut self.refusal,
        }
    }

    /// Whether the message is of the turn that runs or has failed.
    pub(super) fn is_of_turn(&self, sequence: u64) -> bool {
        self.members.contains(&sequence) || self.amendments.contains(&sequence)
    }

    /// Takes a message into memory; whether it interrupts the running turn.
    pub(super) fn take(&mut self, rules: &Rules, mut message: Waiting) -> bool {
        if self.refuses(rules, &message) {
            self.refused.push_back(message);
            return false;
        }
        let is_said = matches!(message.label, Label::Said { .. });
        let is_running = self.turn.state == State::Running;
        let stops = match message.label {
            // Also one that is to be run again: who stopped it meant it.
            Label::Stops { draft: Some(draft) } => {
                self.waiting.front().is_some_and(|first| DraftId::of_turn(first.sequence) == draft)
            }
            Label::Stops { draft: None } => is_running,
            _ => false,
        };
        if message.label.stops() && !stops {
            message.label = Label::Aside;
        }
        self.waiting.push_back(message);
        if stops {
            self.is_asked |= is_running;
            return is_running;
        }
        let interrupts = rules.burst == Burst::Interrupt
            && is_said
            && self.turn.state == State::Running
            && self.turn.attempt == 1
            && !self.is_asked
            && self.interruptions < INTERRUPTIONS_MAX
            && bursts::extent(rules, &self.waiting) == self.waiting.len();
        self.is_asked |= interrupts;
        interrupts
    }

    /// Whether the message is turned away: one before it is not answered yet. What is being turned away keeps its order, so
    /// nothing is taken before it has been.
    pub(super) fn refuses(&self, rules: &Rules, message: &Waiting) -> bool {
        let asks = |label: &Label| matches!(label, Label::Said { .. } | Label::Pressed);
        if rules.burst != Burst::Reject || !asks(&message.label) {
            return false;
        }
        let has_begun = matches!(self.turn.state, State::Running | State::Paused) || self.turn.attempt > 1;
        let joins = !has_begun
            && self.refused.is_empty()
            && self.waiting.iter().rev().find(|waiting| !waiting.label.is_aside()).is_some_and(|last| {
                matches!((&last.label, &message.label),
                    (Label::Said { album: Some(last), .. }, Label::Said { album: Some(album), .. }) if last == album)
            });
        !joins && (!self.refused.is_empty() || self.waiting.iter().any(|waiting| asks(&waiting.label)))
    }

    /// Removes the messages that are done from those of the ended task.
    pub(super) fn remove(&mut self, track: Track, is_done: impl Fn(u64) -> bool) {
        match track {
            Track::Turn => {
                // As far back as the turn reaches, which is not far even in a long lane.
                let reach = self.waiting.iter().rposition(|message| self.is_of_turn(message.sequence));
                let ended: Vec<_> = self.waiting.drain(..reach.map_or(0, |last| last + 1)).collect();
                for message in ended.into_iter().rev() {
                    if !(self.is_of_turn(message.sequence) && is_done(message.sequence)) {
                        self.waiting.push_front(message);
                    }
                }
                for message in self.waiting.iter_mut().filter(|message| message.label.stops()) {
                    // What it would have ended has come to its end.
                    message.label = Label::Aside;
                }
                self.members.clear();
                self.amendments.clear();
                (self.is_asked, self.interruptions) = (false, 0);
            }
            Track::Refusal => {
                if self.refused.front().is_some_and(|message| is_done(message.sequence)) {
                    self.refused.pop_front();
                }
            }
        }
        *self.track_mut(track) = Progress::idle();
    }
}
