//! What one chat has sent, and when that leaves room for more: an even pace with short bursts (the generic cell rate
//! algorithm, ITU-T I.371, appendix I), and never more than a limit's messages in any of its windows.
//!
//! Invariant: a call counts as made at the latest moment at which the platform can have counted it, which is that of its
//! answer; so no delay on the way there makes more of it than the limit.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::SendLimit;

/// The calls of one chat.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The theoretical arrival time of the next call at an even pace.
    expected: Option<Instant>,
    ended: Window,
    running: u32,
    blocked_until: Option<Instant>,
}

impl Meter {
    /// When the next call may begin; `None` for at once.
    pub(super) fn earliest(&self, limit: Option<SendLimit>, now: Instant) -> Option<Instant> {
        let within = limit.and_then(|limit| {
            let paced = self.expected.and_then(|expected| pace(limit.interval(), limit.burst, expected));
            paced.max(self.ended.free_at(limit, self.running, now))
        });
        within.max(self.blocked_until).filter(|moment| *moment > now)
    }

    /// A call begins.
    pub(super) fn begin(&mut self, limit: Option<SendLimit>, now: Instant) {
        self.running += 1;
        if let Some(limit) = limit {
            self.expected = Some(self.expected.unwrap_or(now).max(now) + limit.interval());
        }
    }

    /// One that has begun has ended.
    pub(super) fn end(&mut self, limit: Option<SendLimit>, now: Instant) {
        if let Some(limit) = limit.filter(|_| self.running > 0) {
            self.ended.push(limit, now);
            // As if all that are on their way arrived only now.
            self.expected = self.expected.max(Some(now + limit.interval() * self.running));
        }
        self.running = self.running.saturating_sub(1);
    }

    /// Whether a call is on its way.
    pub(super) const fn is_busy(&self) -> bool {
        self.running > 0
    }

    /// The platform wants silence.
    pub(super) fn block(&mut self, until: Instant) {
        self.blocked_until = self.blocked_until.max(Some(until));
    }

    /// Whether it says no more than a new one.
    pub(super) fn is_forgettable(&self, limit: Option<SendLimit>, now: Instant) -> bool {
        let is_past = |moment: Option<Instant>| moment.is_none_or(|moment| moment <= now);
        self.running == 0
            && is_past(self.expected)
            && is_past(self.blocked_until)
            && limit.is_none_or(|limit| self.ended.is_past(limit, now))
    }
}

/// The last calls, as many as a limit allows in its window, ascending.
#[derive(Debug, Default)]
pub(super) struct Window {
    calls: VecDeque<Instant>,
}

impl Window {
    pub(super) fn push(&mut self, limit: SendLimit, now: Instant) {
        let place = self.calls.partition_point(|call| *call <= now);
        self.calls.insert(place, now);
        while self.calls.len() > limit.messages as usize {
            self.calls.pop_front();
        }
    }

    /// Forgets one call of this moment, unless it is forgotten already.
    pub(super) fn remove(&mut self, call: Instant) {
        if let Ok(place) = self.calls.binary_search(&call) {
            self.calls.remove(place);
        }
    }

    /// When there is room for one more beside `running` others; `None` for at once.
    pub(super) fn free_at(&self, limit: SendLimit, running: u32, now: Instant) -> Option<Instant> {
        let over = (self.calls.len() + 1 + running as usize).checked_sub(limit.messages as usize)?;
        let moment = match over.checked_sub(1) {
            None => return None,
            // Nothing has ended that could make room: ask again before long.
            Some(last) if last >= self.calls.len() => now + limit.interval(),
            Some(last) => self.calls[last] + limit.per,
        };
        (moment > now).then_some(moment)
    }

    fn is_past(&self, limit: SendLimit, now: Instant) -> bool {
        self.calls.back().is_none_or(|last| now.duration_since(*last) >= limit.per)
    }
}

/// The earliest moment for a call that an even pace expects at `expected`: a burst may come before its time.
pub(super) fn pace(interval: Duration, burst: u32, expected: Instant) -> Option<Instant> {
    expected.checked_sub(interval * burst.saturating_sub(1))
}
