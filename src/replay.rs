//! Recorded turns asked of another responder, prompt or model, in the shadow of the real ones, and what would have changed.
//!
//! Refuses to have any effect, and could not have one: the runtime below is made of an [`Archive`], which has no verb that
//! writes, of a [`Reader`], which leaves no trace on the stream, and of tools that only know what was recorded. There is no
//! outbox, no history writer and no tool executor that it could be handed. Invariants: turns are reported in the order in which
//! they were accepted, each once, whatever stopped and continued the run; what lies in memory does not grow with their number.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::config::Config;
use crate::responder::{BuildError, ConversationView, TurnRequest, history};
use crate::store::{Archive, PastFilter, PastTurn, StoreError};
use crate::stream::{Reader, StreamError};
use crate::telemetry;
use crate::turn;

use book::{Book, Line};
use candidate::{Candidate, Case};
use compare::compare;
use past::{Recording, new_messages};

mod book;
mod candidate;
mod compare;
mod oracle;
mod past;
mod report;
mod run;
mod teacher;

pub use book::{LINES_FILE, REPORT_FILE, RUN_FILE};
pub use compare::Change;
pub use past::{Answer, Call};
pub use run::{Asked, Run, State, Totals};

/// Turns read at once; with their records at most some 100 KiB each, ten megabytes.
const PAGE: usize = 100;

/// How often the incumbent is asked again for the noise floor.
const AGAIN: usize = 2;

/// How a replay is run, beside what decides its result.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the result.
    pub out: PathBuf,
    /// Turns asked about at once.
    pub concurrency: usize,
    /// No further turn is begun once the run has used so many tokens.
    pub tokens_max: Option<u64>,
}

/// Why there is no replay. No variant holds what anybody said.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("there is no responder \"{name}\"; there is {known}")]
    UnknownResponder { name: String, known: String },
    #[error("the responder cannot be built")]
    Build(Vec<BuildError>),
    #[error("{} holds {what}; name an empty folder", folder.display())]
    Occupied { folder: PathBuf, what: String },
    #[error("cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the database cannot be read")]
    Store(#[from] StoreError),
    #[error("the inbound stream cannot be read")]
    Stream(#[from] StreamError),
}

/// Whether a replay with this responder wants to read the stream, too: for who wrote, and for buttons that were pressed.
///
/// # Errors
/// When there is no such responder, or it cannot be built.
pub fn wants_stream(config: &Config, responder: &str) -> Result<bool, ReplayError> {
    Ok(candidate(config, responder)?.needs_stream())
}

/// Replays turns, or goes on with a replay that was stopped: what the folder holds is not asked again. `progress` hears how
/// many of how many turns have been looked at.
///
/// # Errors
/// See [`ReplayError`]. What was answered until then is in the folder, and the same call goes on behind it.
pub async fn run(
    config: &Config,
    archive: &Archive,
    reader: Option<&Reader>,
    asked: Asked,
    options: &Options,
    stop: &CancellationToken,
    progress: impl Fn(u64, u64),
) -> Result<Run, ReplayError> {
    let candidate = candidate(config, &asked.responder)?;
    let incumbents = if asked.noise_floor { incumbents(config)? } else { BTreeMap::new() };
    let mut book = Book::open(&options.out, asked)?;
    let asked = book.run().asked.clone();
    let filter = asked.filter();
    let all = archive.past_turn_count(&filter).await?;
    let (looked_at, spent) = (AtomicU64::new(book.run().turns), AtomicU64::new(book.run().tokens));
    let reader = match reader {
        Some(reader) => {
            let (name, incarnation) = reader.stream();
            archive.stream_number(name, incarnation).await?.map(|number| (reader, number))
        }
        None => None,
    };
    let replay = Replay { archive, reader, candidate, incumbents, asked: &asked, stop, spent: &spent };

    let is_over =
        || stop.is_cancelled() || options.tokens_max.is_some_and(|most| spent.load(Ordering::Relaxed) >= most);
    let turns = past_turns(archive, &filter, book.last())
        .try_filter(|turn| {
            progress(looked_at.fetch_add(1, Ordering::Relaxed) + 1, all);
            std::future::ready(is_in_sample(turn.conversation.id, asked.sample_percent))
        })
        .try_take_while(|_| std::future::ready(Ok(!is_over())))
        .map_ok(|turn| replay.turn(turn))
        .try_buffered(options.concurrency.max(1));
    let mut turns = std::pin::pin!(turns);
    book.begin(is_over())?;
    while let Some(line) = turns.try_next().await? {
        // Stopped in the middle of a turn: it is asked about again when the run goes on.
        let Some(line) = line else { break };
        book.write(&line)?;
    }
    let state = if is_over() { State::Stopped } else { State::Finished };
    book.end(state)
}

fn candidate(config: &Config, name: &str) -> Result<Candidate, ReplayError> {
    let unknown = || {
        let known = config.responders.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none in the configuration".to_owned() } else { known };
        ReplayError::UnknownResponder { name: name.to_owned(), known }
    };
    Candidate::build(config, name).map_err(ReplayError::Build)?.ok_or_else(unknown)
}

/// The responders of the bots, where the configuration still has them.
fn incumbents(config: &Config) -> Result<BTreeMap<String, Candidate>, ReplayError> {
    let names: HashSet<&String> = config.bots.values().map(|bot| &bot.responder).collect();
    let built = names.into_iter().map(|name| Ok((name.clone(), Candidate::build(config, name)?)));
    let built = built.collect::<Result<Vec<_>, Vec<BuildError>>>().map_err(ReplayError::Build)?;
    Ok(built.into_iter().filter_map(|(name, candidate)| Some((name, candidate?))).collect())
}

/// Every turn behind a place, page by page.
fn past_turns<'a>(
    archive: &'a Archive,
    filter: &'a PastFilter,
    after: Option<Uuid>,
) -> impl futures_util::Stream<Item = Result<PastTurn, ReplayError>> + 'a {
    let pages = stream::try_unfold(Some(after), move |place| async move {
        let Some(after) = place else { return Ok(None) };
        let page = archive.past_turns(filter, after, PAGE).await?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|turn| Some(turn.id));
        Ok::<_, ReplayError>(Some((stream::iter(page.into_iter().map(Ok)), next)))
    });
    pages.try_flatten()
}

/// A conversation is in the sample as a whole, and always in the same.
fn is_in_sample(conversation: Uuid, percent: f64) -> bool {
    let digest = Sha256::digest(conversation.as_bytes());
    let place = digest.iter().take(4).fold(0_u32, |place, byte| place << 8 | u32::from(*byte));
    f64::from(place) < percent / 100.0 * (f64::from(u32::MAX) + 1.0)
}

/// The runtime: everything that a turn is replayed with.
struct Replay<'a> {
    archive: &'a Archive,
    /// With the number that the database has for its stream.
    reader: Option<(&'a Reader, i64)>,
    candidate: Candidate,
    incumbents: BTreeMap<String, Candidate>,
    asked: &'a Asked,
    stop: &'a CancellationToken,
    spent: &'a AtomicU64,
}

impl Replay<'_> {
    /// One turn, under a trace of its own; `None` when it was stopped.
    async fn turn(&self, turn: PastTurn) -> Result<Option<Line>, ReplayError> {
        let span = tracing::info_span!(
            parent: None,
            telemetry::span::REPLAY,
            otel.kind = "internal",
            gen_ai.conversation.id = %turn.conversation.id,
            turnwise.turn.id = %turn.id,
        );
        if let Some(original) = &turn.traceparent {
            telemetry::link(&span, original);
        }
        let trace_id = telemetry::trace_id(&span);
        let line = Box::pin(self.replayed(turn, trace_id)).instrument(span).await?;
        if let Some(line) = &line {
            self.spent.fetch_add(line.tokens, Ordering::Relaxed);
        }
        Ok(line)
    }

    async fn replayed(&self, turn: PastTurn, trace_id: Option<String>) -> Result<Option<Line>, ReplayError> {
        let recording = Arc::new(Recording::of(&turn));
        let actions = match recording.has_calls() {
            true => self.archive.actions_of_turn(turn.conversation.id, turn.id).await?,
            false => Vec::new(),
        };
        let recorded = recording.answer(&turn, &actions);
        let confirmed = actions.into_iter().map(|action| action.tool).collect();
        let incumbent = self.incumbents.get(&turn.responder);
        let everybody = || std::iter::once(&self.candidate).chain(incumbent);
        let request = self.request(&turn, &recording, everybody()).await?;
        let case = Case { request, recording, confirmed };
        let Some(attempt) = self.candidate.ask(&case, self.asked.free_run, self.stop).await else { return Ok(None) };
        let (mut again, mut tokens) = (Vec::new(), attempt.tokens);
        if let Some(incumbent) = incumbent {
            for _ in 0..AGAIN {
                let Some(attempt) = incumbent.ask(&case, self.asked.free_run, self.stop).await else { return Ok(None) };
                tokens += attempt.tokens;
                again.push(attempt.answer);
            }
        }
        let comparison = compare(&recorded, &attempt.answer, &again);
        let message = past::joined(case.request.messages.iter().map(|new| new.message.text.as_str()));
        let line = Line {
            turn: turn.id,
            conversation: turn.conversation.id,
            bot: turn.conversation.key.bot.to_string(),
            received_at: turn.received_at,
            responder: turn.responder,
            message,
            recorded,
            candidate: attempt.answer,
            changes: comparison.changes,
            distance: comparison.distance,
            noise: comparison.noise,
            drift: attempt.drift,
            tokens,
            trace_id,
            original: turn.traceparent,
        };
        Ok(Some(if self.asked.redact { line.redacted() } else { line }))
    }

    /// The turn as its responder was asked about it, as far as these candidates need to know.
    async fn request<'c>(
        &self,
        turn: &PastTurn,
        recording: &Recording,
        mut everybody: impl Iterator<Item = &'c Candidate> + Clone,
    ) -> Result<TurnRequest, ReplayError> {
        let mut accepted = Vec::new();
        // On a stream made anew somebody else's messages are in the turn's places.
        if let Some((reader, _)) = self.reader.filter(|(_, stream)| *stream == turn.stream) {
            for sequence in &turn.sequences {
                let found = reader.envelope(*sequence).await?;
                accepted.extend(found.filter(|envelope| envelope.key == turn.conversation.key));
            }
        }
        let metadata = recording.metadata.clone().unwrap_or_else(|| turn.conversation.metadata.clone());
        let history = match everybody.clone().all(|candidate| candidate.needs_only(recording)) {
            true => Vec::new(),
            false => self.history(turn, &metadata, everybody.by_ref()).await?,
        };
        Ok(TurnRequest {
            conversation: ConversationView {
                id: turn.conversation.id,
                key: turn.conversation.key.clone(),
                platform: turn.conversation.platform,
                metadata,
            },
            messages: new_messages(turn, &accepted),
            history: history.into(),
            prompt: None,
        })
    }

    /// What went before, as the database still holds it.
    async fn history<'c>(
        &self,
        turn: &PastTurn,
        metadata: &serde_json::Map<String, serde_json::Value>,
        everybody: impl Iterator<Item = &'c Candidate>,
    ) -> Result<Vec<crate::store::StoredMessage>, ReplayError> {
        let Some(first) = turn.messages.iter().map(|message| message.ordinal).min() else { return Ok(Vec::new()) };
        let budgets = everybody.map(Candidate::budget);
        let Some(budget) = budgets.max_by_key(|budget| (budget.messages, budget.tokens)) else { return Ok(Vec::new()) };
        let before = self.archive.messages(turn.conversation.id, first, budget.messages).await?;
        let present = turn::present(&before, metadata);
        // A history that was begun anew later was not so then.
        let present = if present.is_empty() { &before } else { present };
        Ok(history::prune(present, budget))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_holds_about_its_share_of_conversations_and_always_the_same() {
        let ids: Vec<Uuid> = (0..10_000_u128).map(Uuid::from_u128).collect();
        let count = |percent| ids.iter().filter(|id| is_in_sample(**id, percent)).count();
        assert_eq!((count(0.0), count(100.0)), (0, 10_000));
        assert!((800..1_200).contains(&count(10.0)), "{}", count(10.0));
        assert!(ids.iter().all(|id| !is_in_sample(*id, 10.0) || is_in_sample(*id, 20.0)));
    }
}
