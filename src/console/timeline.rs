//! A conversation as it happened, each message with what became of it and why: the ledger, the history, the deliveries and what
//! still lies on the stream, joined by the messages' ids.
//!
//! Refuses to read without bounds. Invariant: what is not in the ledger is shown as waiting only after the ledger was asked for
//! its very id.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use uuid::Uuid;

use super::why::{self, Unended, Verdict, Why};
use super::{Console, Trace, stream_problem};
use crate::ingress::{Problem, store_problem};
use crate::message::{Author, ConversationKey, DeliveryStatus, Envelope, Event, Role, Timestamp};
use crate::store::{Conversation, DeliveryRow, Hold, HoldScope, LedgerRow, Position, StoredMessage};
use crate::stream::{Lane, PageOf, StreamMessage};

/// Turns of one page.
const TURNS: u32 = 50;

/// Messages of the conversation that are read of the stream for one page: with bodies of a few kilobytes, some megabytes.
const STREAMED: usize = 500;

/// The longest text shown of one message, in characters; the turn shows the rest.
const TEXT_CHARS: usize = 2_000;

#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    /// Oldest first.
    pub(super) entries: Vec<Entry>,
    /// For the page before this one: a place on the stream.
    pub(super) before: Option<String>,
}

/// One inbound message, and what was said to it.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) turn_id: Uuid,
    pub(super) at: Timestamp,
    pub(super) from: &'static str,
    pub(super) text: Option<String>,
    /// The platform's id of the message.
    pub(super) platform_message_id: Option<String>,
    pub(super) dedupe_id: String,
    /// Its state in the ledger, or `waiting`.
    pub(super) state: String,
    #[serde(flatten)]
    pub(super) why: Why,
    pub(super) merged_into: Option<Uuid>,
    pub(super) sequence: u64,
    pub(super) attempts: u32,
    pub(super) waits: Option<Waits>,
    pub(super) replies: Vec<Reply>,
    /// What else is worth knowing: long waits, repeated attempts, duplicates.
    pub(super) notes: Vec<String>,
    pub(super) trace: Option<Trace>,
}

/// Where its time went, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Waits {
    pub(super) queue_ms: u64,
    pub(super) lane_ms: u64,
    pub(super) responder_ms: u64,
    pub(super) total_ms: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Reply {
    pub(super) author: Author,
    pub(super) text: String,
    pub(super) deliveries: Vec<DeliveryRow>,
}

impl Waits {
    pub(super) fn of(row: &LedgerRow) -> Self {
        Self {
            queue_ms: row.timings.stream_wait_us / 1_000,
            lane_ms: row.timings.lane_wait_us / 1_000,
            responder_ms: row.timings.responder_us / 1_000,
            total_ms: row.committed_at.micros_since(row.received_at) / 1_000,
        }
    }
}

impl Console {
    /// The page of a conversation before a place; `None` for the newest.
    pub(super) async fn timeline(
        &self,
        key: &ConversationKey,
        conversation: Option<&Conversation>,
        before: Option<Position>,
    ) -> Result<Timeline, Problem> {
        let failed = |error| store_problem(&error);
        let id = conversation.map(|conversation| conversation.id);
        let mut rows = self.store.ledger_rows(key, id, before, TURNS).await.map_err(failed)?;
        rows.reverse();
        let stream = self.store.stream_number(&self.inbound.name, &self.inbound.incarnation).await.map_err(failed)?;
        let is_whole = rows.len() < TURNS as usize;
        let first = rows.iter().filter(|row| row.stream == stream).map(|row| row.sequence).min();
        let own = self.publisher.partition(key);
        let partitions = self.store.partitions(stream).await.map_err(failed)?;
        let partition = partitions.into_iter().find(|row| row.partition == own);
        // What waits lies behind what has ended, and behind its partition's checkpoint.
        let checkpoint = partition.and_then(|row| row.checkpoint).unwrap_or(0);
        let streamed = match first {
            None if before.is_some() => Vec::new(),
            first => self.streamed(key, first.map_or(checkpoint, |first| first - 1)).await?,
        };
        let turn_ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let deliveries = self.store.deliveries_of_turns(&turn_ids).await.map_err(failed)?;
        let messages = self.store.messages_of_turns(&turn_ids).await.map_err(failed)?;
        let joined = Joined::of(&streamed, deliveries, messages);
        let mut entries: Vec<Entry> =
            rows.iter().map(|row| joined.entry(row, self.trace(row.traceparent.as_deref()))).collect();
        if before.is_none() {
            entries.extend(self.waiting(key, &rows, &streamed, partition.is_some()).await?);
        }
        let place = rows.first().filter(|_| !is_whole);
        Ok(Timeline { entries, before: place.map(|row| format!("{}.{}", row.stream, row.sequence)) })
    }

    async fn streamed(&self, key: &ConversationKey, after: u64) -> Result<Vec<Streamed>, Problem> {
        let names = &self.inbound.connection.names;
        let subject = names.subject(Lane::Inbound, self.publisher.partition(key), key);
        let of = PageOf { subject, limit: STREAMED, headers_only: false };
        let page = self.inbound.page(&of, after).await.map_err(|error| stream_problem(&error))?;
        Ok(page.messages.into_iter().map(|(message, _)| Streamed::read(message)).collect())
    }

    /// What lies on the stream and is not in the ledger.
    async fn waiting(
        &self,
        key: &ConversationKey,
        rows: &[LedgerRow],
        streamed: &[Streamed],
        is_owned: bool,
    ) -> Result<Vec<Entry>, Problem> {
        let failed = |error| store_problem(&error);
        let known: HashSet<&str> = rows.iter().map(|row| row.dedupe_id.as_str()).collect();
        let unknown: Vec<&Streamed> =
            streamed.iter().filter(|streamed| !known.contains(streamed.message.message_id.as_str())).collect();
        let ids: Vec<String> = unknown.iter().map(|streamed| streamed.message.message_id.clone()).collect();
        let settled = self.store.settled(&ids).await.map_err(failed)?;
        let settled: HashSet<&str> = settled.iter().map(crate::store::Committed::dedupe_id).collect();
        let unended = unknown.into_iter().filter(|streamed| !settled.contains(streamed.message.message_id.as_str()));
        let holds = self.store.holds().await.map_err(failed)?;
        let hold = hold_of(&holds, key, self.publisher.partition(key));
        let mut entries = Vec::new();
        for streamed in unended {
            let turn_id = streamed.envelope.as_ref().map_or(Uuid::nil(), |envelope| envelope.turn_id);
            let is_first = entries.is_empty();
            let has_steps = is_first && !self.store.journal(turn_id).await.map_err(failed)?.is_empty();
            let unended = Unended { before: entries.len(), hold, has_steps, is_owned };
            entries.push(streamed.entry(
                turn_id,
                why::of_unended(unended),
                self.trace(streamed.message.traceparent.as_deref()),
            ));
        }
        Ok(entries)
    }
}

/// The hold that a conversation's turns wait for, the narrowest first.
pub(super) fn hold_of<'h>(holds: &'h [Hold], key: &ConversationKey, partition: u16) -> Option<&'h Hold> {
    let find = |scope, target: String| holds.iter().find(move |hold| hold.scope == scope && hold.target == target);
    find(HoldScope::Conversation, key.to_string())
        .or_else(|| find(HoldScope::Bot, key.bot.to_string()))
        .or_else(|| find(HoldScope::Partition, partition.to_string()))
}

/// A message as it lies on the stream.
pub(super) struct Streamed {
    pub(super) message: StreamMessage,
    /// `None` when this version cannot read it.
    pub(super) envelope: Option<Envelope>,
}

impl Streamed {
    pub(super) fn read(message: StreamMessage) -> Self {
        let envelope = serde_json::from_slice(&message.payload).ok();
        Self { message, envelope }
    }

    pub(super) fn platform_message_id(&self) -> Option<&str> {
        match &self.envelope.as_ref()?.event {
            Event::Message(message) => message.platform_message_id.as_deref(),
            Event::Agent { .. } | Event::Ignored { .. } => None,
        }
    }

    pub(super) fn text(&self) -> Option<String> {
        match &self.envelope.as_ref()?.event {
            Event::Message(message) if message.text.is_empty() => {
                let kinds: Vec<&str> = message.attachments.iter().map(|attachment| attachment.kind.as_str()).collect();
                Some(format!("[{}]", kinds.join(", ")))
            }
            Event::Message(message) => Some(shortened(&message.text)),
            Event::Agent { text } => Some(shortened(text)),
            Event::Ignored { kind, .. } => Some(format!("[{kind}]")),
        }
    }

    fn speaker(&self) -> &'static str {
        match self.envelope.as_ref().map(|envelope| &envelope.event) {
            Some(Event::Agent { .. }) => "agent",
            Some(Event::Ignored { .. }) => "platform",
            Some(Event::Message(_)) | None => "user",
        }
    }

    fn entry(&self, turn_id: Uuid, why: Why, trace: Option<Trace>) -> Entry {
        Entry {
            turn_id,
            at: self.message.published_at,
            from: self.speaker(),
            text: self.text(),
            platform_message_id: self.platform_message_id().map(str::to_owned),
            dedupe_id: self.message.message_id.clone(),
            state: "waiting".to_owned(),
            why,
            merged_into: None,
            sequence: self.message.sequence,
            attempts: 0,
            waits: None,
            replies: Vec::new(),
            notes: Vec::new(),
            trace,
        }
    }
}

/// Everything that rows of the ledger are joined with.
struct Joined<'s> {
    streamed: HashMap<&'s str, &'s Streamed>,
    /// How often each id lies on the stream, where it is more than once.
    copies: HashMap<&'s str, usize>,
    deliveries: HashMap<Uuid, Vec<DeliveryRow>>,
    messages: HashMap<Uuid, Vec<StoredMessage>>,
}

impl<'s> Joined<'s> {
    fn of(streamed: &'s [Streamed], deliveries: Vec<DeliveryRow>, messages: Vec<StoredMessage>) -> Self {
        let mut joined = Self {
            streamed: HashMap::new(),
            copies: HashMap::new(),
            deliveries: HashMap::new(),
            messages: HashMap::new(),
        };
        for streamed in streamed {
            let id = streamed.message.message_id.as_str();
            *joined.copies.entry(id).or_default() += 1;
            joined.streamed.entry(id).or_insert(streamed);
        }
        for delivery in deliveries {
            joined.deliveries.entry(delivery.turn_id).or_default().push(delivery);
        }
        for message in messages {
            joined.messages.entry(message.turn_id.unwrap_or_default()).or_default().push(message);
        }
        joined
    }

    fn entry(&self, row: &LedgerRow, trace: Option<Trace>) -> Entry {
        let none = Vec::new();
        let messages = self.messages.get(&row.id).unwrap_or(&none);
        let deliveries = self.deliveries.get(&row.id).cloned().unwrap_or_default();
        let streamed = self.streamed.get(row.dedupe_id.as_str());
        let is_agent = row.dedupe_id.starts_with("agent:");
        let said = messages.iter().rev().find(|message| message.role == Role::User);
        let text = said.map(|said| shortened(&said.content)).or_else(|| streamed.and_then(|streamed| streamed.text()));
        let platform_message_id = said.and_then(|said| said.platform_message_id.clone());
        let found = streamed.and_then(|streamed| streamed.platform_message_id().map(str::to_owned));
        let replies = replies(messages, &deliveries);
        let why = match is_agent {
            true if deliveries.iter().all(|delivery| delivery.status == DeliveryStatus::Sent) => {
                Why { verdict: Verdict::Answered, why: "A person's message, sent.".to_owned() }
            }
            _ => why::of_row(row, &deliveries, !replies.is_empty()),
        };
        Entry {
            turn_id: row.id,
            at: row.received_at,
            from: if is_agent { "agent" } else { streamed.map_or("user", |streamed| streamed.speaker()) },
            text: if is_agent { None } else { text },
            platform_message_id: platform_message_id.or(found),
            dedupe_id: row.dedupe_id.clone(),
            state: row.state.to_string(),
            why,
            merged_into: row.merged_into,
            sequence: row.sequence,
            attempts: row.attempts,
            waits: Some(Waits::of(row)),
            notes: notes(row, self.copies.get(row.dedupe_id.as_str()).copied().unwrap_or_default()),
            replies,
            trace,
        }
    }
}

/// What was said in a turn, and notices, which are in no history.
fn replies(messages: &[StoredMessage], deliveries: &[DeliveryRow]) -> Vec<Reply> {
    let said = messages.iter().filter(|message| message.role == Role::Assistant && !message.content.is_empty());
    let mut replies: Vec<Reply> = said
        .map(|message| Reply {
            author: message.author,
            text: shortened(&message.content),
            deliveries: deliveries.iter().filter(|delivery| delivery.message_id == message.id).cloned().collect(),
        })
        .collect();
    let mut noticed = HashSet::new();
    for delivery in
        deliveries.iter().filter(|delivery| messages.iter().all(|message| message.id != delivery.message_id))
    {
        if noticed.insert(delivery.message_id) {
            let parts: Vec<DeliveryRow> =
                deliveries.iter().filter(|other| other.message_id == delivery.message_id).cloned().collect();
            let text = parts.iter().map(|part| part.content.as_str()).collect::<String>();
            replies.push(Reply { author: Author::Bot, text: shortened(&text), deliveries: parts });
        }
    }
    replies
}

/// A second of waiting is what a person notices.
const NOTICED_MS: u64 = 1_000;

fn notes(row: &LedgerRow, copies: usize) -> Vec<String> {
    let waits = Waits::of(row);
    let mut notes = Vec::new();
    if waits.queue_ms >= NOTICED_MS {
        notes.push(format!("It waited {} for a worker.", span(waits.queue_ms)));
    }
    if waits.lane_ms >= NOTICED_MS {
        notes.push(format!("It waited {} in its conversation, for turns before it or a pause.", span(waits.lane_ms)));
    }
    if row.attempts > 1 {
        notes.push(format!("It took {} attempts.", row.attempts));
    }
    if copies > 1 {
        notes.push(format!("It lies on the stream {copies} times; all but the first were recognised as duplicates."));
    }
    notes
}

/// A length of time for people.
pub(super) fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        3_600_000..86_400_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text.to_owned(),
    }
}

/// The place that [`Timeline::before`] gave out.
pub(super) fn read_place(place: &str) -> Result<Position, Problem> {
    let parts = place.split_once('.');
    let read = parts.and_then(|(stream, sequence)| {
        Some(Position { stream: stream.parse().ok()?, sequence: sequence.parse().ok()? })
    });
    read.ok_or_else(|| Problem::field(400, "before", "is no place that this console gave out."))
}
