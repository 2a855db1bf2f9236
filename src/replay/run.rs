//! What a replay was asked and what came of it, in numbers: the file `run.json`.
//!
//! Pure. Refuses to hold anything that anybody said. Invariant: the numbers are sums over the lines of `turns.jsonl`, so a run
//! that was stopped and continued has the same as one that was not.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::book::Line;
use super::compare::Change;
use crate::message::Timestamp;
use crate::store::{PastConversation, PastFilter};

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Under way, or its process was killed.
    Running,
    Finished,
    /// Ended early, by somebody's wish or because its tokens were used up; the same command goes on.
    Stopped,
}

/// Everything that decides the result of a replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Turns whose message was received at this moment or later.
    pub since: Timestamp,
    /// And before this one.
    pub until: Timestamp,
    /// The two as whoever began the run wrote them: `24h` means another moment each time.
    pub given: (String, Option<String>),
    pub bot: Option<String>,
    /// A conversation's id, or a peer such as `user-31`.
    pub conversation: Option<String>,
    pub responder: String,
    /// Of all conversations, 0 to 100.
    pub sample_percent: f64,
    /// Whether the candidate goes its own way, instead of through the recorded rounds.
    pub free_run: bool,
    /// Whether the incumbent is asked, too, so that its own variation is not taken for a change.
    pub noise_floor: bool,
    /// Whether texts are left out of the result.
    pub redact: bool,
}

impl Asked {
    pub(super) fn filter(&self) -> PastFilter {
        let conversation = self.conversation.as_deref().and_then(|name| {
            let id = Uuid::parse_str(name).map(PastConversation::Id).ok();
            id.or_else(|| name.parse().map(PastConversation::Peer).ok())
        });
        PastFilter { since: self.since, until: self.until, bot: self.bot.clone(), conversation }
    }

    /// Whether a run that was asked this is the one that `other` asks for; its moments were fixed when it began.
    pub(super) fn is_continued_by(&self, other: &Self) -> bool {
        Self { since: self.since, until: self.until, ..other.clone() } == *self
    }
}

/// A run, as the console and other programs read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub state: State,
    pub started: Timestamp,
    /// When it was finished or stopped.
    pub finished: Option<Timestamp>,
    #[serde(flatten)]
    pub asked: Asked,
    pub turns: u64,
    /// Turns in which anything has changed beyond the noise, those with an error included.
    pub changed: u64,
    /// Turns without an answer of the candidate's.
    pub errors: u64,
    /// Turns in which tools were called that were not called when they were recorded.
    pub drifted: u64,
    /// Used by this run, also where the server does not count.
    pub tokens: u64,
    pub recorded: Totals,
    pub candidate: Totals,
    /// Turns by what has changed.
    pub changes: std::collections::BTreeMap<Change, u64>,
}

/// The sums of one side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub latency_p50_ms: u64,
    pub latency_p95_ms: u64,
}

impl Run {
    pub(super) fn begun(asked: Asked, started: Timestamp) -> Self {
        Self {
            state: State::Running,
            started,
            finished: None,
            asked,
            turns: 0,
            changed: 0,
            errors: 0,
            drifted: 0,
            tokens: 0,
            recorded: Totals::default(),
            candidate: Totals::default(),
            changes: Change::ALL.into_iter().map(|change| (change, 0)).collect(),
        }
    }

    /// The share of turns that have changed, 0 to 100; 0 of none.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a percentage of millions")]
    pub fn changed_percent(&self) -> f64 {
        if self.turns == 0 { 0.0 } else { self.changed as f64 * 100.0 / self.turns as f64 }
    }

    pub(super) fn add(&mut self, line: &Line) {
        self.turns += 1;
        self.changed += u64::from(!line.changes.is_empty());
        self.errors += u64::from(line.candidate.error.is_some());
        self.drifted += u64::from(!line.drift.is_empty());
        self.tokens += line.tokens;
        for change in &line.changes {
            *self.changes.entry(*change).or_default() += 1;
        }
        for (totals, answer) in [(&mut self.recorded, &line.recorded), (&mut self.candidate, &line.candidate)] {
            totals.input_tokens += answer.input_tokens;
            totals.output_tokens += answer.output_tokens;
        }
    }
}

/// Latencies, counted by their size: within 3 % of what they were, in memory that does not grow.
#[derive(Debug, Clone, Default)]
pub(super) struct Latencies {
    counts: Vec<u64>,
    all: u64,
}

/// Buckets to a doubling.
const STEPS: u64 = 32;

impl Latencies {
    pub(super) fn add(&mut self, ms: u64) {
        let bucket = usize::try_from(bucket(ms)).unwrap_or(usize::MAX - 1);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.all += 1;
    }

    /// The latency that so many of a hundred do not exceed, in milliseconds; 0 of none.
    pub(super) fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.all * percent).div_ceil(100);
        let mut below = 0;
        for (place, count) in (0..).zip(&self.counts) {
            below += count;
            if below >= rank && below > 0 {
                return smallest(place);
            }
        }
        0
    }
}

/// Each bucket is a millisecond up to [`STEPS`], and a thirty-second of a doubling beyond.
const fn bucket(ms: u64) -> u64 {
    if ms < STEPS {
        return ms;
    }
    let doublings = (ms / STEPS).ilog2();
    STEPS * (doublings as u64 + 1) + (ms >> doublings) - STEPS
}

const fn smallest(bucket: u64) -> u64 {
    if bucket < STEPS {
        return bucket;
    }
    let (doublings, step) = (bucket / STEPS - 1, bucket % STEPS);
    (STEPS + step) << doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_kept_within_three_percent() {
        for ms in [0, 1, 31, 32, 33, 63, 64, 65, 100, 999, 1_000, 59_999, 3_600_000] {
            let back = smallest(bucket(ms));
            assert!(back <= ms && (ms - back) * 32 <= ms, "{ms} is taken for {back}");
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), 0);
        (1..=20).for_each(|ms| latencies.add(ms));
        assert_eq!([50, 95, 100].map(|percent| latencies.percentile(percent)), [10, 19, 20]);
    }
}
