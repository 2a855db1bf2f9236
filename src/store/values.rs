//! What a group's statements write, one value for each row: PostgreSQL takes them column by column, SQLite as one JSON text.
//!
//! Refuses to touch a database. Invariant: no text and no document in a value holds a NUL, see [`super::merge`].

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::journal::Writing;
use super::merge::{storable, storable_json, storable_object};
use super::rows::sequence;
use super::{MergedMessage, NewConversation, NewMessage, TurnCommit, TurnTimings};
use crate::message::{DeliveryStatus, OutboundPart, TerminalState, Timestamp};

/// A row of the ledger.
#[derive(Serialize)]
pub(super) struct TurnValues<'a> {
    pub(super) id: Uuid,
    pub(super) dedupe_id: &'a str,
    pub(super) stream: i64,
    pub(super) partition: i32,
    pub(super) sequence: i64,
    pub(super) channel: &'static str,
    pub(super) bot: &'a str,
    pub(super) peer: String,
    pub(super) conversation_id: Option<Uuid>,
    pub(super) state: &'static str,
    pub(super) merged_into: Option<Uuid>,
    pub(super) reason: Option<Cow<'a, str>>,
    pub(super) attempts: i64,
    pub(super) responder: Option<&'a str>,
    pub(super) traceparent: Option<&'a str>,
    pub(super) timings: TurnTimings,
    #[serde(serialize_with = "micros")]
    pub(super) received_at: Timestamp,
    #[serde(serialize_with = "micros")]
    pub(super) started_at: Timestamp,
    #[serde(serialize_with = "micros")]
    pub(super) committed_at: Timestamp,
}

/// A conversation without messages, as a bot opens it.
#[derive(Serialize)]
pub(super) struct ConversationValues<'a> {
    pub(super) id: Uuid,
    pub(super) channel: &'static str,
    pub(super) bot: &'a str,
    pub(super) peer: String,
    pub(super) platform: &'static str,
    pub(super) device_id: Option<&'a str>,
    pub(super) metadata: Map<String, Value>,
    #[serde(serialize_with = "micros")]
    pub(super) created_at: Timestamp,
}

/// What a turn makes of a conversation (G6). Metadata only if they changed; `handoff` makes `human` of `bot`.
#[derive(Serialize)]
pub(super) struct ConversationChange {
    pub(super) id: Uuid,
    pub(super) message_count: i64,
    pub(super) snippet: Option<String>,
    #[serde(serialize_with = "micros_or_null")]
    pub(super) last_message_at: Option<Timestamp>,
    #[serde(serialize_with = "micros")]
    pub(super) updated_at: Timestamp,
    pub(super) metadata: Option<Value>,
    pub(super) handoff: bool,
}

/// A message. A document that is not there is left out of the JSON, because one that is may be `null`.
#[derive(Serialize)]
pub(super) struct MessageValues<'a> {
    pub(super) id: Uuid,
    pub(super) conversation_id: Uuid,
    pub(super) ordinal: i64,
    pub(super) turn_id: Option<Uuid>,
    pub(super) role: &'static str,
    pub(super) author: &'static str,
    pub(super) content: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attachments: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool: Option<Value>,
    pub(super) platform_message_id: Option<Cow<'a, str>>,
    #[serde(serialize_with = "micros")]
    pub(super) created_at: Timestamp,
}

/// A part of a reply that is to be delivered.
#[derive(Serialize)]
pub(super) struct DeliveryValues<'a> {
    pub(super) id: Uuid,
    pub(super) turn_id: Uuid,
    pub(super) stream: i64,
    pub(super) partition: i32,
    pub(super) sequence: i64,
    pub(super) ordinal: i64,
    pub(super) conversation_id: Option<Uuid>,
    pub(super) message_id: Uuid,
    pub(super) channel: &'static str,
    pub(super) bot: &'a str,
    pub(super) peer: String,
    pub(super) part: i32,
    pub(super) parts: i32,
    pub(super) content: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) buttons: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) form: Option<Value>,
    pub(super) traceparent: Option<&'a str>,
    #[serde(serialize_with = "micros")]
    pub(super) created_at: Timestamp,
}

/// A delivery whose next attempt begins.
#[derive(Serialize)]
pub(super) struct DeliveryBegun {
    pub(super) id: Uuid,
    pub(super) attempts: i64,
    #[serde(serialize_with = "micros")]
    pub(super) tried_at: Timestamp,
}

/// A delivery whose attempt has ended.
#[derive(Serialize)]
pub(super) struct DeliveryEnded<'a> {
    pub(super) id: Uuid,
    #[serde(serialize_with = "word")]
    pub(super) status: DeliveryStatus,
    pub(super) error: Option<Cow<'a, str>>,
    pub(super) platform_message_id: Option<Cow<'a, str>>,
    #[serde(serialize_with = "micros_or_null")]
    pub(super) settled_at: Option<Timestamp>,
    /// 1 when this attempt may have arrived, else 0.
    pub(super) unclear_attempts: i64,
}

/// A step of a turn. Documents that are not there are left out, as in [`MessageValues`].
#[derive(Serialize)]
pub(super) struct JournalValues<'a> {
    pub(super) turn_id: Uuid,
    pub(super) step: &'a str,
    pub(super) ordinal: i64,
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) request_hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    #[serde(serialize_with = "micros")]
    pub(super) started_at: Timestamp,
    #[serde(serialize_with = "micros_or_null")]
    pub(super) ended_at: Option<Timestamp>,
}

impl<'a> From<&'a Writing> for JournalValues<'a> {
    fn from(writing: &'a Writing) -> Self {
        let entry = &writing.entry;
        Self {
            turn_id: writing.turn_id,
            step: &entry.step,
            ordinal: i64::from(entry.ordinal),
            kind: entry.kind.as_str(),
            status: entry.status.as_str(),
            request_hash: &entry.request_hash,
            request: entry.request.as_ref().map(storable_json),
            result: entry.result.as_ref().map(storable_json),
            started_at: entry.started_at,
            ended_at: entry.ended_at,
        }
    }
}

/// What is kept of a turn that has ended.
#[derive(Serialize)]
pub(super) struct RecordValues {
    pub(super) turn_id: Uuid,
    pub(super) record: Value,
}

/// What the models of a bot used more on a day.
#[derive(Serialize)]
pub(super) struct TokenValues<'a> {
    pub(super) bot: &'a str,
    pub(super) day: i64,
    pub(super) tokens: i64,
}

/// An action that begins to wait for a person's word.
#[derive(Serialize)]
pub(super) struct ActionValues<'a> {
    pub(super) id: &'a str,
    pub(super) conversation_id: Uuid,
    pub(super) turn_id: Uuid,
    pub(super) requester: Option<Cow<'a, str>>,
    pub(super) tool: Cow<'a, str>,
    pub(super) arguments: Cow<'a, str>,
    #[serde(serialize_with = "micros")]
    pub(super) created_at: Timestamp,
    #[serde(serialize_with = "micros")]
    pub(super) expires_at: Timestamp,
}

pub(super) fn turn(turn: &TurnCommit) -> TurnValues<'_> {
    TurnValues {
        id: turn.turn_id,
        dedupe_id: &turn.dedupe_id,
        stream: turn.position.stream,
        partition: i32::from(turn.ownership.partition),
        sequence: sequence(turn.position.sequence),
        channel: turn.key.channel.as_str(),
        bot: &turn.key.bot,
        peer: turn.key.peer.to_string(),
        conversation_id: turn.conversation_id,
        state: turn.state.as_str(),
        merged_into: None,
        reason: turn.reason.as_deref().map(storable),
        attempts: i64::from(turn.attempts),
        responder: turn.responder.as_deref(),
        traceparent: turn.traceparent.as_deref(),
        timings: turn.timings,
        received_at: turn.received_at,
        started_at: turn.started_at,
        committed_at: turn.committed_at,
    }
}

/// The row of a message that the turn takes in.
pub(super) fn merged<'a>(turn: &'a TurnCommit, message: &'a MergedMessage) -> TurnValues<'a> {
    let is_part = matches!(message.state, TerminalState::Merged | TerminalState::Superseded);
    TurnValues {
        id: message.turn_id,
        dedupe_id: &message.dedupe_id,
        sequence: sequence(message.sequence),
        state: message.state.as_str(),
        merged_into: is_part.then_some(turn.turn_id),
        reason: message.reason.as_deref().map(storable),
        responder: turn.responder.as_deref().filter(|_| is_part),
        traceparent: message.traceparent.as_deref(),
        timings: message.timings,
        received_at: message.received_at,
        ..self::turn(turn)
    }
}

pub(super) fn conversation(new: &NewConversation) -> ConversationValues<'_> {
    ConversationValues {
        id: new.id,
        channel: new.key.channel.as_str(),
        bot: &new.key.bot,
        peer: new.key.peer.to_string(),
        platform: new.platform.as_str(),
        device_id: new.device_id.as_deref(),
        metadata: storable_object(&new.metadata),
        created_at: new.created_at,
    }
}

/// The messages of a conversation that holds `message_count` already.
pub(super) fn messages<'a>(
    messages: &'a [NewMessage],
    conversation_id: Uuid,
    turn_id: Option<Uuid>,
    message_count: i64,
) -> impl Iterator<Item = MessageValues<'a>> {
    messages.iter().zip(message_count + 1..).map(move |(message, ordinal)| MessageValues {
        id: message.id,
        conversation_id,
        ordinal,
        turn_id,
        role: message.role.as_str(),
        author: message.author.as_str(),
        content: storable(&message.content),
        attachments: (!message.attachments.is_empty()).then(|| storable_json(&json!(message.attachments))),
        tool: message.tool.as_ref().map(storable_json),
        platform_message_id: message.platform_message_id.as_deref().map(storable),
        created_at: message.created_at,
    })
}

/// The record of a turn, if it has one.
pub(super) fn record(turn: &TurnCommit) -> Option<RecordValues> {
    let record = turn.record.as_ref()?;
    Some(RecordValues { turn_id: turn.turn_id, record: storable_json(record) })
}

/// The actions of a turn.
pub(super) fn actions(turn: &TurnCommit, conversation_id: Uuid) -> impl Iterator<Item = ActionValues<'_>> {
    turn.actions.iter().map(move |action| ActionValues {
        id: &action.id,
        conversation_id,
        turn_id: turn.turn_id,
        requester: action.requester.as_deref().map(storable),
        tool: storable(&action.tool),
        arguments: storable(&action.arguments),
        created_at: turn.committed_at,
        expires_at: action.expires_at,
    })
}

/// The parts of a turn.
pub(super) fn deliveries(turn: &TurnCommit) -> impl Iterator<Item = DeliveryValues<'_>> {
    turn.deliveries.iter().zip(0..).map(|(part, ordinal): (&OutboundPart, i64)| DeliveryValues {
        id: part.delivery_id,
        turn_id: turn.turn_id,
        stream: turn.position.stream,
        partition: i32::from(turn.ownership.partition),
        sequence: sequence(turn.position.sequence),
        ordinal,
        conversation_id: part.conversation_id,
        message_id: part.message_id,
        channel: part.key.channel.as_str(),
        bot: &part.key.bot,
        peer: part.key.peer.to_string(),
        part: i32::from(part.part),
        parts: i32::from(part.parts),
        content: storable(&part.content),
        buttons: (!part.buttons.is_empty()).then(|| storable_json(&json!(part.buttons))),
        form: (!part.form.is_plain()).then(|| storable_json(&json!(part.form))),
        traceparent: turn.traceparent.as_deref(),
        created_at: part.created_at,
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(super) fn micros<S: Serializer>(moment: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(moment.as_micros())
}

#[expect(clippy::ref_option, reason = "serde asks for a reference")]
fn micros_or_null<S: Serializer>(moment: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    moment.map(Timestamp::as_micros).serialize(serializer)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn word<S: Serializer>(status: &DeliveryStatus, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(status.as_str())
}
