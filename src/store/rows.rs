//! Rows as values and values as rows, for both databases: they differ in how a value lies in a column, not in which columns
//! there are.
//!
//! Refuses to guess: a stored word, number or document that this version does not know is [`StoreError::Corrupt`], and the
//! error names the column, never its content.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::chats::{ChatState, Opened};
use super::console::{DeliveryTime, FoundMessage, Hold, Job, LedgerRow, PartitionRow, RecordedAction};
use super::merge::{storable, storable_json};
use super::sending::Found;
use super::{
    Action, AddressedDelivery, Committed, Conversation, DeliveryCursor, DeliveryRow, DeliveryTotal, ErasedRows,
    Feedback, JournalEntry, NewMessage, PastTurn, PendingDelivery, PendingPage, Position, StoreError, StoredMessage,
    Turn, TurnContextRow,
};
use crate::message::{ConversationKey, OutboundPart, Peer, Timestamp};

/// The columns of a conversation, in a table called `c`.
macro_rules! conversation_columns {
    () => {
        "c.id, c.channel, c.bot, c.peer, c.platform, c.device_id, c.status, c.assignee, c.snippet, c.last_message_at, \
         c.message_count, c.metadata, c.created_at, c.updated_at, (SELECT h.state FROM chats h \
         WHERE h.channel = c.channel AND h.bot = c.bot AND h.peer = c.peer) AS chat"
    };
}

/// The columns of a message.
macro_rules! message_columns {
    () => {
        "id, ordinal, turn_id, role, author, content, attachments, tool, platform_message_id, created_at"
    };
}

/// The columns of a delivery that is still to be sent.
macro_rules! pending_columns {
    () => {
        "id, turn_id, stream, sequence, ordinal, conversation_id, message_id, channel, bot, peer, part, parts, content, \
         buttons, form, traceparent, created_at"
    };
}

/// The columns of a delivery as people look at it.
macro_rules! delivery_columns {
    () => {
        "id, turn_id, message_id, content, buttons, part, parts, status, attempts, error, platform_message_id, created_at, \
         settled_at"
    };
}

/// The columns of a step.
macro_rules! journal_columns {
    () => {
        "step, ordinal, kind, status, request_hash, request, result, started_at, ended_at"
    };
}

/// The columns of an action that waits for a person's word, or did.
macro_rules! action_columns {
    () => {
        "id, conversation_id, turn_id, requester, tool, arguments, status, decided_turn_id, created_at, expires_at"
    };
}

/// The columns of a row of the ledger, as the console looks at it.
macro_rules! ledger_columns {
    () => {
        "id, dedupe_id, channel, bot, peer, conversation_id, state, merged_into, reason, attempts, responder, stream, \
         partition, sequence, traceparent, timings, received_at, started_at, committed_at"
    };
}

/// Turns (`t`) that a responder decided, with their conversations (`c`) and records (`r`).
macro_rules! past_turns {
    () => {
        "FROM turns t JOIN conversations c ON c.id = t.conversation_id LEFT JOIN turn_records r ON r.turn_id = t.id \
         WHERE t.responder IS NOT NULL AND t.state IN ('answered', 'handed_off')"
    };
}

pub(super) use {
    action_columns, conversation_columns, delivery_columns, journal_columns, ledger_columns, message_columns,
    past_turns, pending_columns,
};

/// How one database hands out the values of a row.
pub(super) trait Columns {
    fn text_or_null(&self, column: &'static str) -> Result<Option<String>, sqlx::Error>;
    fn number_or_null(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error>;
    fn uuid_or_null(&self, column: &'static str) -> Result<Option<Uuid>, sqlx::Error>;
    fn moment_or_null(&self, column: &'static str) -> Result<Option<Timestamp>, sqlx::Error>;
    fn json_or_null(&self, column: &'static str) -> Result<Option<Value>, sqlx::Error>;
}

pub(super) fn text(row: &impl Columns, column: &'static str) -> Result<String, StoreError> {
    present(column, row.text_or_null(column))
}

pub(super) fn optional_text(row: &impl Columns, column: &'static str) -> Result<Option<String>, StoreError> {
    row.text_or_null(column).map_err(|_| unreadable(column))
}

pub(super) fn word<T: FromStr>(row: &impl Columns, column: &'static str) -> Result<T, StoreError> {
    text(row, column)?.parse().map_err(|_| unreadable(column))
}

/// A number of any width; one that does not fit is a row written by somebody else.
pub(super) fn number<T: TryFrom<i64>>(row: &impl Columns, column: &'static str) -> Result<T, StoreError> {
    T::try_from(present(column, row.number_or_null(column))?).map_err(|_| unreadable(column))
}

pub(super) fn optional_number<T: TryFrom<i64>>(
    row: &impl Columns,
    column: &'static str,
) -> Result<Option<T>, StoreError> {
    let number = row.number_or_null(column).map_err(|_| unreadable(column))?;
    number.map(|number| T::try_from(number).map_err(|_| unreadable(column))).transpose()
}

pub(super) fn uuid(row: &impl Columns, column: &'static str) -> Result<Uuid, StoreError> {
    present(column, row.uuid_or_null(column))
}

pub(super) fn optional_uuid(row: &impl Columns, column: &'static str) -> Result<Option<Uuid>, StoreError> {
    row.uuid_or_null(column).map_err(|_| unreadable(column))
}

pub(super) fn committed(row: &impl Columns, dedupe_id: String) -> Result<Committed, StoreError> {
    Ok(Committed { dedupe_id, turn_id: uuid(row, "turn_id")?, state: word(row, "state")? })
}

pub(super) fn conversation(row: &impl Columns) -> Result<Conversation, StoreError> {
    Ok(Conversation {
        id: uuid(row, "id")?,
        key: key(row)?,
        platform: word(row, "platform")?,
        device_id: optional_text(row, "device_id")?,
        status: word(row, "status")?,
        assignee: optional_text(row, "assignee")?,
        snippet: optional_text(row, "snippet")?,
        last_message_at: optional_moment(row, "last_message_at")?,
        message_count: number(row, "message_count")?,
        metadata: document(row, "metadata")?.unwrap_or_default(),
        chat: chat(row)?,
        created_at: moment(row, "created_at")?,
        updated_at: moment(row, "updated_at")?,
    })
}

/// What is known of a message before its turn: the ledger's row, and the conversation.
pub(super) fn turn_context(row: &impl Columns, dedupe_id: &str) -> Result<TurnContextRow, StoreError> {
    let already = optional_uuid(row, "turn_id")?.map(|_| committed(row, dedupe_id.to_owned()));
    let conversation = optional_uuid(row, "id")?.map(|_| conversation(row));
    let filed_under =
        optional_text(row, "filed_under")?.map(|peer| peer.parse().map_err(|_| unreadable("filed_under")));
    Ok(TurnContextRow {
        already: already.transpose()?,
        conversation: conversation.transpose()?,
        filed_under: filed_under.transpose()?,
        was_unreachable: optional_text(row, "was_unreachable")?.is_some(),
    })
}

/// By what a conversation is looked up: its peer, or its id when that is how the peer is named.
pub(super) fn peer_or_id(peer: &Peer) -> (Option<String>, Option<Uuid>) {
    match peer {
        Peer::Conversation(id) => (None, Some(*id)),
        peer => (Some(peer.to_string()), None),
    }
}

/// A chat's state, which the column of this name need not have.
pub(super) fn chat(row: &impl Columns) -> Result<ChatState, StoreError> {
    Ok(document(row, "chat")?.unwrap_or_default())
}

pub(super) fn opened(row: &impl Columns) -> Result<Opened, StoreError> {
    Ok(Opened { id: uuid(row, "id")?, message_count: number(row, "message_count")?, status: word(row, "status")? })
}

pub(super) fn feedback(row: &impl Columns) -> Result<Feedback, StoreError> {
    Ok(Feedback {
        message_id: uuid(row, "message_id")?,
        sender: text(row, "sender")?,
        reactions: document(row, "reactions")?.unwrap_or_default(),
        received_at: moment(row, "received_at")?,
    })
}

pub(super) fn message(row: &impl Columns) -> Result<StoredMessage, StoreError> {
    Ok(StoredMessage {
        id: uuid(row, "id")?,
        ordinal: number(row, "ordinal")?,
        turn_id: optional_uuid(row, "turn_id")?,
        role: word(row, "role")?,
        author: word(row, "author")?,
        content: text(row, "content")?,
        attachments: document(row, "attachments")?.unwrap_or_default(),
        tool: document(row, "tool")?,
        platform_message_id: optional_text(row, "platform_message_id")?,
        created_at: moment(row, "created_at")?,
    })
}

pub(super) fn turn(row: &impl Columns, replies: Vec<StoredMessage>) -> Result<Turn, StoreError> {
    Ok(Turn {
        id: uuid(row, "id")?,
        conversation_id: optional_uuid(row, "conversation_id")?,
        state: word(row, "state")?,
        merged_into: optional_uuid(row, "merged_into")?,
        reason: optional_text(row, "reason")?,
        attempts: number(row, "attempts")?,
        responder: optional_text(row, "responder")?,
        position: (number(row, "stream")?, number(row, "sequence")?),
        traceparent: optional_text(row, "traceparent")?,
        received_at: moment(row, "received_at")?,
        committed_at: moment(row, "committed_at")?,
        replies,
    })
}

pub(super) fn pending(row: &impl Columns) -> Result<PendingDelivery, StoreError> {
    let part = OutboundPart {
        delivery_id: uuid(row, "id")?,
        turn_id: uuid(row, "turn_id")?,
        conversation_id: optional_uuid(row, "conversation_id")?,
        message_id: uuid(row, "message_id")?,
        key: key(row)?,
        part: number(row, "part")?,
        parts: number(row, "parts")?,
        content: text(row, "content")?,
        buttons: document(row, "buttons")?.unwrap_or_default(),
        form: document(row, "form")?.unwrap_or_default(),
        created_at: moment(row, "created_at")?,
    };
    Ok(PendingDelivery { part, traceparent: optional_text(row, "traceparent")? })
}

/// A page of at most `limit` deliveries; a full one may have a successor.
pub(super) fn pending_page<R: Columns>(found: &[R], limit: u32) -> Result<PendingPage, StoreError> {
    let is_full = u32::try_from(found.len()).is_ok_and(|count| count >= limit);
    let next = found.last().filter(|_| is_full).map(cursor).transpose()?;
    Ok(PendingPage { deliveries: found.iter().map(pending).collect::<Result<_, _>>()?, next })
}

/// A cursor as the columns it compares with; without one, before everything.
pub(super) fn cursor_values(after: Option<DeliveryCursor>) -> (i64, i64, i64) {
    after.map_or((i64::MIN, 0, 0), |after| (after.position.stream, sequence(after.position.sequence), after.ordinal))
}

pub(super) fn delivery(row: &impl Columns) -> Result<DeliveryRow, StoreError> {
    Ok(DeliveryRow {
        id: uuid(row, "id")?,
        turn_id: uuid(row, "turn_id")?,
        message_id: uuid(row, "message_id")?,
        content: text(row, "content")?,
        buttons: document(row, "buttons")?.unwrap_or_default(),
        part: number(row, "part")?,
        parts: number(row, "parts")?,
        status: word(row, "status")?,
        attempts: number(row, "attempts")?,
        error: optional_text(row, "error")?,
        platform_message_id: optional_text(row, "platform_message_id")?,
        created_at: moment(row, "created_at")?,
        settled_at: optional_moment(row, "settled_at")?,
    })
}

pub(super) fn ledger(row: &impl Columns) -> Result<LedgerRow, StoreError> {
    Ok(LedgerRow {
        id: uuid(row, "id")?,
        dedupe_id: text(row, "dedupe_id")?,
        key: key(row)?,
        conversation_id: optional_uuid(row, "conversation_id")?,
        state: word(row, "state")?,
        merged_into: optional_uuid(row, "merged_into")?,
        reason: optional_text(row, "reason")?,
        attempts: number(row, "attempts")?,
        responder: optional_text(row, "responder")?,
        stream: number(row, "stream")?,
        partition: number(row, "partition")?,
        sequence: number(row, "sequence")?,
        traceparent: optional_text(row, "traceparent")?,
        timings: document(row, "timings")?.unwrap_or_default(),
        received_at: moment(row, "received_at")?,
        started_at: moment(row, "started_at")?,
        committed_at: moment(row, "committed_at")?,
    })
}

/// A place before which rows are wanted; without one, everything is before it.
pub(super) fn before(place: Option<Position>) -> (i64, i64) {
    place.map_or((i64::MAX, 0), |place| (place.stream, sequence(place.sequence)))
}

pub(super) fn found_message(row: &impl Columns) -> Result<FoundMessage, StoreError> {
    Ok(FoundMessage { conversation_id: uuid(row, "conversation_id")?, message: message(row)? })
}

pub(super) fn delivery_time(row: &impl Columns) -> Result<DeliveryTime, StoreError> {
    Ok(DeliveryTime { created_at: moment(row, "created_at")?, settled_at: moment(row, "settled_at")? })
}

pub(super) fn partition(row: &impl Columns) -> Result<PartitionRow, StoreError> {
    Ok(PartitionRow {
        partition: number(row, "partition")?,
        epoch: number(row, "epoch")?,
        checkpoint: optional_number(row, "checkpoint")?,
    })
}

pub(super) fn recorded_action(row: &impl Columns) -> Result<RecordedAction, StoreError> {
    Ok(RecordedAction {
        id: uuid(row, "id")?,
        verb: text(row, "verb")?,
        target: text(row, "target")?,
        actor: optional_text(row, "actor")?,
        reason: optional_text(row, "reason")?,
        result: optional_text(row, "result")?,
        created_at: moment(row, "created_at")?,
    })
}

pub(super) fn hold(row: &impl Columns) -> Result<Hold, StoreError> {
    Ok(Hold {
        scope: word(row, "scope")?,
        target: text(row, "target")?,
        actor: optional_text(row, "actor")?,
        reason: optional_text(row, "reason")?,
        created_at: moment(row, "created_at")?,
    })
}

pub(super) fn job(row: &impl Columns) -> Result<Job, StoreError> {
    Ok(Job {
        id: uuid(row, "id")?,
        verb: word(row, "verb")?,
        selection: text(row, "selection")?,
        actor: optional_text(row, "actor")?,
        reason: optional_text(row, "reason")?,
        state: word(row, "state")?,
        total: number(row, "total")?,
        seen: number(row, "seen")?,
        outcome: optional_text(row, "outcome")?,
        created_at: moment(row, "created_at")?,
        signed_at: moment(row, "signed_at")?,
        ended_at: optional_moment(row, "ended_at")?,
    })
}

/// A delivery with the columns of its key and its conversation.
pub(super) fn addressed(row: &impl Columns) -> Result<AddressedDelivery, StoreError> {
    let conversation_id = optional_uuid(row, "conversation_id")?;
    Ok(AddressedDelivery { key: key(row)?, conversation_id, delivery: delivery(row)? })
}

pub(super) fn delivery_total(row: &impl Columns) -> Result<DeliveryTotal, StoreError> {
    Ok(DeliveryTotal {
        bot: text(row, "bot")?,
        status: word(row, "status")?,
        count: number(row, "count")?,
        oldest_at: created_at(row)?,
    })
}

pub(super) fn created_at(row: &impl Columns) -> Result<Timestamp, StoreError> {
    moment(row, "created_at")
}

pub(super) fn journal_entry(row: &impl Columns) -> Result<JournalEntry, StoreError> {
    Ok(JournalEntry {
        step: text(row, "step")?,
        ordinal: number(row, "ordinal")?,
        kind: word(row, "kind")?,
        status: word(row, "status")?,
        request_hash: text(row, "request_hash")?,
        request: document(row, "request")?,
        result: document(row, "result")?,
        started_at: moment(row, "started_at")?,
        ended_at: optional_moment(row, "ended_at")?,
    })
}

/// A turn as whoever looks back reads it, still without its messages.
pub(super) fn past_turn(row: &impl Columns) -> Result<PastTurn, StoreError> {
    Ok(PastTurn {
        id: uuid(row, "turn_id")?,
        conversation: conversation(row)?,
        state: word(row, "state")?,
        responder: text(row, "responder")?,
        stream: number(row, "stream")?,
        sequences: vec![number(row, "sequence")?],
        traceparent: optional_text(row, "traceparent")?,
        timings: document(row, "timings")?.unwrap_or_default(),
        received_at: moment(row, "received_at")?,
        record: document(row, "record")?,
        messages: Vec::new(),
    })
}

/// The turn that took a message in, and that message's place on the stream.
pub(super) fn member(row: &impl Columns) -> Result<(Uuid, u64), StoreError> {
    Ok((uuid(row, "turn_id")?, number(row, "sequence")?))
}

/// How much there is of a person, beside what is known already.
pub(super) fn personal_data(row: &impl Columns, conversations: usize, turns: usize) -> Result<ErasedRows, StoreError> {
    Ok(ErasedRows {
        conversations: conversations as u64,
        messages: number(row, "messages")?,
        deliveries: number(row, "deliveries")?,
        turn_records: number(row, "turn_records")?,
        reactions: number(row, "reactions")?,
        turns: turns as u64,
        unanswered: 0,
    })
}

pub(super) fn record(row: &impl Columns) -> Result<Value, StoreError> {
    document(row, "record")?.ok_or_else(|| unreadable("record"))
}

pub(super) fn action(row: &impl Columns) -> Result<Action, StoreError> {
    Ok(Action {
        id: text(row, "id")?,
        conversation_id: uuid(row, "conversation_id")?,
        turn_id: uuid(row, "turn_id")?,
        requester: optional_text(row, "requester")?,
        tool: text(row, "tool")?,
        arguments: text(row, "arguments")?,
        status: word(row, "status")?,
        decided_turn_id: optional_uuid(row, "decided_turn_id")?,
        created_at: moment(row, "created_at")?,
        expires_at: moment(row, "expires_at")?,
    })
}

/// The messages with their ordinals, as they will be read back.
pub(super) fn numbered(messages: &[NewMessage], turn_id: Option<Uuid>, message_count: i64) -> Vec<StoredMessage> {
    let stored = |(message, ordinal): (&NewMessage, i64)| StoredMessage {
        id: message.id,
        ordinal,
        turn_id,
        role: message.role,
        author: message.author,
        content: storable(&message.content).into_owned(),
        attachments: message.attachments.clone(),
        tool: message.tool.as_ref().map(storable_json),
        platform_message_id: message.platform_message_id.clone(),
        created_at: message.created_at,
    };
    messages.iter().zip(message_count + 1..).map(stored).collect()
}

/// A stream sequence as the databases hold it; JetStream counts up from 1 and never comes near the limit.
pub(super) fn sequence(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// A delivery that is to be begun or settled, by its id.
pub(super) fn found(row: &impl Columns) -> Result<(Uuid, Found), StoreError> {
    let found = Found {
        status: word(row, "status")?,
        attempts: number(row, "attempts")?,
        tried_at: optional_moment(row, "tried_at")?,
        unclear_attempts: number(row, "unclear_attempts")?,
        chat: chat(row)?,
    };
    Ok((uuid(row, "id")?, found))
}

fn cursor(row: &impl Columns) -> Result<DeliveryCursor, StoreError> {
    let position = Position { stream: number(row, "stream")?, sequence: number(row, "sequence")? };
    Ok(DeliveryCursor { position, ordinal: number(row, "ordinal")? })
}

fn key(row: &impl Columns) -> Result<ConversationKey, StoreError> {
    Ok(ConversationKey { channel: word(row, "channel")?, bot: text(row, "bot")?.into(), peer: word(row, "peer")? })
}

fn moment(row: &impl Columns, column: &'static str) -> Result<Timestamp, StoreError> {
    present(column, row.moment_or_null(column))
}

fn optional_moment(row: &impl Columns, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
    row.moment_or_null(column).map_err(|_| unreadable(column))
}

fn document<T: DeserializeOwned>(row: &impl Columns, column: &'static str) -> Result<Option<T>, StoreError> {
    let document = row.json_or_null(column).map_err(|_| unreadable(column))?;
    document.map(|document| serde_json::from_value(document).map_err(|_| unreadable(column))).transpose()
}

fn present<T>(column: &'static str, value: Result<Option<T>, sqlx::Error>) -> Result<T, StoreError> {
    value.ok().flatten().ok_or_else(|| unreadable(column))
}

/// The decoder's own words are left out, because they can quote the stored text.
fn unreadable(column: &'static str) -> StoreError {
    StoreError::Corrupt { what: column, detail: "it is not of the form this version writes".to_owned() }
}
