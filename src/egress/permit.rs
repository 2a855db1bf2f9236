//! The governor's permission for a call that sends a part.
//!
//! Refuses to wait. Invariant: what was permitted is given back, however the call ends.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::Answer;
use crate::message::{Channel, ConversationKey, Timestamp};
use crate::platform::Platforms;
use crate::platform::governor::{Ended, Permission};
use crate::stream::StreamMessage;
use crate::telemetry::{self, Wait, metric};

/// The governor's permission for one call; given back when the call has its answer, or is not made.
pub(super) struct Permit<'a> {
    platforms: &'a Platforms,
    key: ConversationKey,
    lane: Arc<str>,
    begun: tokio::time::Instant,
    waited: Duration,
    ended: Ended,
}

impl<'a> Permit<'a> {
    /// `None` for what no platform is called for; else, where it is too early, when to ask again.
    pub(super) fn ask(
        platforms: &'a Platforms,
        message: &StreamMessage,
        behind: usize,
    ) -> Result<Option<Self>, tokio::time::Instant> {
        let Ok(key) = message.lane.parse::<ConversationKey>() else { return Ok(None) };
        if key.channel == Channel::Web {
            return Ok(None);
        }
        let lane = Arc::clone(&message.lane);
        let begun = tokio::time::Instant::now();
        let permission = platforms.governor().ask(&key.bot, &key.peer, &lane, behind, begun);
        match permission {
            Permission::Go { waited } => Ok(Some(Self { platforms, key, lane, begun, waited, ended: Ended::Unmade })),
            Permission::At(until) => Err(until),
        }
    }

    pub(super) fn record_wait(&self, span: &tracing::Span) {
        metric::egress_wait(self.waited);
        if self.waited.is_zero() {
            return;
        }
        let end = Timestamp::now();
        let micros = i64::try_from(self.waited.as_micros()).unwrap_or(i64::MAX);
        let start = Timestamp::from_micros(end.as_micros().saturating_sub(micros));
        if let Some(parent) = telemetry::current_traceparent(span) {
            let name = telemetry::span::EGRESS_WAIT;
            telemetry::record_wait(&Wait { name, parent: &parent, start, end, link: None, attributes: Vec::new() });
        }
    }

    /// The call is made: until it is known better, also when that is cancelled.
    pub(super) fn begin(&mut self) {
        self.ended = Ended::Unanswered;
    }

    pub(super) fn answered(mut self, status: Option<u16>, answer: &Answer) {
        self.ended = match (status, answer) {
            (Some(_), _) => Ended::Answered,
            (None, Answer::NotSent { .. }) => Ended::Unmade,
            (None, _) => Ended::Unanswered,
        };
        if let Answer::RetryAfter { delay, scope, .. } = answer {
            let (key, now) = (&self.key, tokio::time::Instant::now());
            self.platforms.governor().refused(&key.bot, &key.peer, &self.lane, *scope, *delay, now);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let (key, now) = (&self.key, tokio::time::Instant::now());
        self.platforms.governor().ended(&key.bot, &key.peer, self.begun, self.ended, now);
    }
}
