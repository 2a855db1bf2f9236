//! A database made again from the streams alone: conversations, what was said and answered, and the ledger.
//!
//! Refuses a database that holds anything, and to make up what no stream holds: see [`NOT_REBUILT`]. Invariants: everything is
//! written by the same commits as ever, so the ledger's rules hold; no reply becomes one to be sent, because nobody knows
//! whether it was; what lies in memory is the messages of eight partitions, not of the stream.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::config::Bot;
use crate::message::{ConversationStatus, OutboundPart, TerminalState, Timestamp};
use crate::store::{
    CommitOutcome, ConversationFilter, ConversationPatch, Ownership, SendResult, Store, StoreError, TurnCommit,
};
use crate::stream::{self as jetstream, Letter, LetterFilter, PageOf, StreamError, StreamHandle, StreamMessage};

use derive::{Derived, Evidence, Part, Step};

mod derive;

/// What the streams do not hold, for people.
pub const NOT_REBUILT: &str = "what is older than the streams (nats.max_age); what came by PATCH or import; status and assignee; \
     metadata and workflow positions written by bots; tool calls and their results; actions waiting for a yes; API idempotency \
     keys; whether a reply arrived (every delivery is `uncertain`); edits of messages that waited; where chats have moved, which \
     cannot be reached, and reactions";

/// Partitions read and written at once.
const PARTITIONS_AT_ONCE: usize = 8;

/// Conversations of one partition written at once; each turn waits for the one before it.
const LANES_AT_ONCE: usize = 128;

/// Messages read at once; at a kilobyte each, two megabytes.
const PAGE: usize = 2_000;

/// The deployment's streams.
#[derive(Debug)]
pub struct Streams {
    pub inbound: StreamHandle,
    pub outbound: StreamHandle,
    pub dead: StreamHandle,
}

/// What was made of what.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// On the inbound stream.
    pub messages: u64,
    /// In the ledger now.
    pub states: BTreeMap<TerminalState, u64>,
    pub conversations: u64,
    /// All of them `uncertain`.
    pub deliveries: u64,
    /// Ended without a reply on the stream, and so stored as `handed_off`.
    pub without_reply: u64,
    /// Replies put together of several parts, white space between them unknown.
    pub joined: u64,
    /// Messages whose id another one had before.
    pub repeated: u64,
    /// Messages that have not ended as far as the streams know: they run when the deployment starts.
    pub left: u64,
}

/// Why a database could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("the database is not empty")]
    NotEmpty,
    #[error("the streams cannot be read")]
    Stream(#[from] StreamError),
    #[error("the database cannot be written")]
    Store(#[from] StoreError),
    #[error("somebody else writes to the database")]
    NotAlone,
}

/// Whether the database holds any turn or conversation; one without tables does not.
///
/// # Errors
/// When it does not answer.
pub async fn refuse_used(store: &Store) -> Result<(), RebuildError> {
    store.ping().await?;
    // Also an earlier version's tables count, and where there are none, the questions fail.
    let filter = ConversationFilter { limit: 1, ..ConversationFilter::default() };
    let has_turns = store.ledger_counts().await.is_ok_and(|counts| !counts.is_empty());
    let has_conversations = store.conversations(&filter).await.is_ok_and(|found| !found.is_empty());
    if has_turns || has_conversations { Err(RebuildError::NotEmpty) } else { Ok(()) }
}

/// Fills a migrated, empty database. `progress` hears how many of how many messages are done.
///
/// # Errors
/// See [`RebuildError`]; the database is to be thrown away then.
pub async fn run(
    streams: &Streams,
    store: &Store,
    bots: &BTreeMap<String, Bot>,
    partitions: u16,
    progress: impl Fn(u64, u64),
) -> Result<Report, RebuildError> {
    let inbound = &streams.inbound;
    let all: Vec<u16> = (0..partitions).collect();
    let number = store.stream_number(&inbound.name, &inbound.incarnation).await?;
    let takeovers = store.take_over(number, &all, 1).await?;
    let floors = floors(inbound, &all).await?;
    let rebuild = Rebuild { streams, store, bots, letters: letters(&streams.dead).await? };
    let (messages, done) = (inbound.info().await?.state.messages, AtomicU64::new(0));
    let one = |ownership: Ownership| {
        let (rebuild, floor) = (&rebuild, floors.get(&ownership.partition).copied().unwrap_or(0));
        async move { rebuild.partition(ownership, floor).await }
    };
    let reports = stream::iter(takeovers.iter().map(|takeover| one(takeover.ownership)))
        .buffer_unordered(PARTITIONS_AT_ONCE)
        .inspect_ok(|report| {
            let before = done.fetch_add(report.messages, Ordering::Relaxed);
            progress(before + report.messages, messages);
        });
    let report = reports.try_fold(Report::default(), |sum, report| async move { Ok(sum.and(report)) }).await?;
    // Where the deployment goes on reading, once everything below is in the ledger.
    let checkpoints = takeovers.iter().filter_map(|takeover| {
        let floor = floors.get(&takeover.ownership.partition)?;
        Some((takeover.ownership, *floor))
    });
    store.save_checkpoints(&checkpoints.collect::<Vec<_>>()).await?;
    Ok(report)
}

/// How far each partition is done. What its owner wrote down counts alone: it is at most some seconds old, and what ended since
/// shows by its reply. What was acknowledged may have been parked (held, or too much for its lane), and is believed only where
/// nothing was written down.
async fn floors(inbound: &StreamHandle, partitions: &[u16]) -> Result<HashMap<u16, u64>, StreamError> {
    let kept = jetstream::kept_floors(inbound, partitions).await?;
    let mut floors = HashMap::new();
    for consumer in jetstream::left_behind(inbound).await? {
        let floor: &mut u64 = floors.entry(consumer.partition).or_default();
        *floor = consumer.ack_floor.max(*floor);
    }
    floors.extend(kept);
    Ok(floors)
}

/// Every dead letter without its body, by its message's id.
async fn letters(dead: &StreamHandle) -> Result<HashMap<String, Letter>, StreamError> {
    let mut letters = HashMap::new();
    let mut after = 0;
    loop {
        let page = dead.letters(&LetterFilter::default(), after).await?;
        letters.extend(page.letters.into_iter().map(|letter| (letter.message.message_id.clone(), letter)));
        match page.last {
            Some(last) => after = last,
            None => return Ok(letters),
        }
    }
}

struct Rebuild<'a> {
    streams: &'a Streams,
    store: &'a Store,
    bots: &'a BTreeMap<String, Bot>,
    letters: HashMap<String, Letter>,
}

impl Rebuild<'_> {
    async fn partition(&self, ownership: Ownership, floor: u64) -> Result<Report, RebuildError> {
        let partition = ownership.partition;
        let parts = parts(messages(&self.streams.outbound, partition).await?);
        let evidence = Evidence { parts, letters: &self.letters, floor, bots: self.bots, ownership };
        let messages = messages(&self.streams.inbound, partition).await?;
        let count = messages.len() as u64;
        let mut lanes: BTreeMap<Arc<str>, Vec<StreamMessage>> = BTreeMap::new();
        for message in messages {
            lanes.entry(Arc::clone(&message.lane)).or_default().push(message);
        }
        let evidence = &evidence;
        let lanes = stream::iter(lanes.into_values())
            .map(|messages| async move { self.write(derive::lane(messages, evidence)).await })
            .buffer_unordered(LANES_AT_ONCE);
        let report = lanes.try_fold(Report::default(), |sum, report| async move { Ok(sum.and(report)) }).await?;
        Ok(Report { messages: count, ..report })
    }

    /// Writes one conversation's turns, each after the one before.
    async fn write(&self, derived: Derived) -> Result<Report, RebuildError> {
        let Derived { steps, left, without_reply, joined, repeated } = derived;
        let mut report = Report { left, without_reply, joined, repeated, ..Report::default() };
        for step in steps {
            match step {
                Step::Close(conversation, at) => {
                    let closed =
                        ConversationPatch { status: Some(ConversationStatus::Closed), ..ConversationPatch::default() };
                    self.store.patch_conversation(conversation, &closed, at).await?;
                }
                Step::Turn(commit) => self.commit(*commit, &mut report).await?,
            }
        }
        Ok(report)
    }

    async fn commit(&self, commit: TurnCommit, report: &mut Report) -> Result<(), RebuildError> {
        let commit = Arc::new(commit);
        match self.store.commit(Arc::clone(&commit)).await? {
            CommitOutcome::Committed { .. } => {}
            CommitOutcome::AlreadyTerminal(_) => {
                report.repeated += 1;
                return Ok(());
            }
            CommitOutcome::Fenced | CommitOutcome::ConversationMoved => return Err(RebuildError::NotAlone),
        }
        *report.states.entry(commit.state).or_default() += 1;
        for merged in &commit.merged {
            *report.states.entry(merged.state).or_default() += 1;
        }
        report.conversations += u64::from(commit.new_conversation.is_some());
        report.deliveries += commit.deliveries.len() as u64;
        let unknown = SendResult::Uncertain { error: "rebuilt: whether it arrived is on no stream".to_owned() };
        let now = Timestamp::now();
        let parts = commit.deliveries.iter();
        try_join_all(parts.map(|part| self.store.settle_send(part.delivery_id, &unknown, now))).await?;
        Ok(())
    }
}

impl Report {
    fn and(mut self, other: Self) -> Self {
        for (state, count) in other.states {
            *self.states.entry(state).or_default() += count;
        }
        self.messages += other.messages;
        self.conversations += other.conversations;
        self.deliveries += other.deliveries;
        self.without_reply += other.without_reply;
        self.joined += other.joined;
        self.repeated += other.repeated;
        self.left += other.left;
        self
    }
}

/// All of one partition's messages.
async fn messages(handle: &StreamHandle, partition: u16) -> Result<Vec<StreamMessage>, StreamError> {
    let subject = handle.connection.names.partition_filter(handle.lane, partition);
    let of = PageOf { subject, limit: PAGE, headers_only: false };
    let mut messages = Vec::new();
    let mut after = 0;
    loop {
        let page = handle.page(&of, after).await?;
        messages.extend(page.messages.into_iter().map(|(message, _)| message));
        match page.last {
            Some(last) => after = last,
            None => return Ok(messages),
        }
    }
}

/// The replies by turn; one that was published twice counts once.
fn parts(messages: Vec<StreamMessage>) -> HashMap<uuid::Uuid, Vec<Part>> {
    let mut turns: HashMap<uuid::Uuid, Vec<Part>> = HashMap::new();
    for message in messages {
        let Ok(part) = serde_json::from_slice::<OutboundPart>(&message.payload) else { continue };
        let parts = turns.entry(part.turn_id).or_default();
        if parts.iter().all(|other| other.part.delivery_id != part.delivery_id) {
            parts.push(Part { part, traceparent: message.traceparent });
        }
    }
    turns
}
