//! Whose call of a bot comes next: places at the bot's even pace, handed out in turn, but for chats that cannot wait.
//!
//! What a bot has to send takes as long as its own limit, or as the chat whose limit is the tightest for what it has: a group
//! with a hundred replies takes five minutes, whatever the bot's limit. Such a chat is *pressed*: its own limit alone takes
//! about as long as everything takes that the bot has to send. Everybody else can wait, and nothing ends later for it, so a
//! pressed chat is given its place before its own limit allows it, for that moment. All pressed chats together never need more
//! than the bot's limit: if each needs T for what it has at its own pace, and everything needs T at the bot's, their paces are
//! no more than the bot's. Nor does a single reply wait for those who have more: it takes its place at once. The others fill
//! what is left, in turn; whoever has waited for [`PATIENCE`] takes the next place as a single reply does.
//!
//! Refuses to know chats. Invariants: places keep to the even pace, and are kept once they are given, unless the pace changes; who never comes back costs
//! the places that it had.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::meter::pace;

/// So far ahead places are given to those who can wait: longer than a lane takes to ask again, so that none is lost, and short
/// beside the time that a pressed chat's own limit takes.
const AHEAD: Duration = Duration::from_millis(250);

/// A chat is pressed when its own limit needs this much of the time that everything needs: some of it is lost on the way.
const PRESSED_PERCENT: u32 = 80;

/// After so long a lane waits no more for those that are pressed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a lane that asked shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Its call may be made from this moment on.
    Place(Instant),
    /// It asks again then, and has this ticket from now on.
    Later { at: Instant, ticket: Option<u64> },
}

/// The calls of one bot that wait for its limit.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Up to when the bot's calls are handed out, in the sense of [`pace`].
    handed_out: Option<Instant>,
    /// Tickets given, and up to which one they have had their places.
    issued: u64,
    served: u64,
    /// What each lane has to send, as it said last.
    backlogs: HashMap<Arc<str>, usize>,
    total: usize,
}

impl Queue {
    /// The lane has so many parts to send, the one it asks for included.
    pub(super) fn note(&mut self, lane: &Arc<str>, parts: usize) {
        let before = match parts {
            0 => self.backlogs.remove(lane).unwrap_or_default(),
            _ => self.backlogs.insert(Arc::clone(lane), parts).unwrap_or_default(),
        };
        self.total = self.total + parts - before;
    }

    /// Other lanes are worked on from now on; what those that stay have, they will say again.
    pub(super) fn forget(&mut self) {
        self.backlogs.clear();
        self.total = 0;
    }

    /// Places come at another pace from now on: those that were given, and the tickets, are worth nothing.
    pub(super) fn start_again(&mut self) {
        self.handed_out = None;
        self.served = self.issued;
    }

    /// Whether somebody has a place that is yet to come.
    pub(super) fn is_ahead_of(&self, now: Instant) -> bool {
        self.handed_out.is_some_and(|until| until > now)
    }

    /// The place of a lane whose chat is free and that waits since `since`, if its turn has come. The bot allows a call each `interval`, `burst`
    /// at once after a rest.
    pub(super) fn turn(
        &mut self,
        lane: &Arc<str>,
        ticket: Option<u64>,
        (interval, burst): (Duration, u32),
        since: Instant,
        now: Instant,
    ) -> Turn {
        let slot = self.slot(interval, burst, now);
        if slot <= now + AHEAD || self.parts(lane) <= 1 || now.duration_since(since) >= PATIENCE {
            if let Some(ticket) = ticket {
                // When places are free, those before it are late, or gone.
                let is_free = slot <= now + interval;
                self.served = if is_free { self.served.max(ticket + 1) } else { self.served + 1 };
            }
            self.hand_out(interval, now);
            return Turn::Place(slot);
        }
        let ticket = ticket.unwrap_or_else(|| {
            self.issued += 1;
            self.issued - 1
        });
        let before = u32::try_from(ticket.saturating_sub(self.served)).unwrap_or(u32::MAX);
        let at = (slot + interval.saturating_mul(before) - AHEAD / 2).max(now + AHEAD).min(since + PATIENCE);
        Turn::Later { at, ticket: Some(ticket) }
    }

    /// What a pressed lane does whose chat is free at `free_at`; `None` for one that is not pressed, or needs no help.
    pub(super) fn press(
        &mut self,
        lane: &Arc<str>,
        of_chat: Duration,
        (interval, burst): (Duration, u32),
        free_at: Instant,
        now: Instant,
    ) -> Option<Turn> {
        let slot = self.slot(interval, burst, now);
        // Where nobody waits for a place it will have one when it comes.
        if slot <= now + interval || !self.is_pressed(lane, of_chat, interval) {
            return None;
        }
        let early = free_at.checked_sub(AHEAD).unwrap_or(now);
        if early > now {
            return Some(Turn::Later { at: early, ticket: None });
        }
        if slot + interval < free_at {
            return None;
        }
        self.hand_out(interval, now);
        Some(Turn::Place(slot.max(free_at)))
    }

    fn slot(&self, interval: Duration, burst: u32, now: Instant) -> Instant {
        self.handed_out.and_then(|until| pace(interval, burst, until)).unwrap_or(now).max(now)
    }

    fn hand_out(&mut self, interval: Duration, now: Instant) {
        self.handed_out = Some(self.handed_out.unwrap_or(now).max(now) + interval);
    }

    fn is_pressed(&self, lane: &Arc<str>, of_chat: Duration, interval: Duration) -> bool {
        let times =
            |interval: Duration, parts: usize| interval.saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX));
        let (parts, all) = (self.parts(lane), times(interval, self.total));
        parts > 1 && times(of_chat, parts) >= all / 100 * PRESSED_PERCENT
    }

    fn parts(&self, lane: &Arc<str>) -> usize {
        self.backlogs.get(lane).copied().unwrap_or_default()
    }
}
