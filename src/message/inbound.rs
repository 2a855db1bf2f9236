//! What comes in: events of a chat, in the envelope in which they go through the stream.
//!
//! Refuses to interpret: what an event leads to is decided by turns. Invariant: an envelope of an earlier version reads as it
//! was meant, because fields are only added, with a default.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{ConversationKey, Peer, Platform, Timestamp};

/// Who wrote an inbound message, as far as the platform says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// It is a chat that speaks, and who speaks for it is not told: an anonymous administrator, or somebody who posts as a
    /// channel. Whoever presses a button later does so as a person, and cannot be known to be the same one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_chat: bool,
}

/// A file or other non-text content, by reference: the bytes stay with the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attachment {
    /// The platform's own word: `photo`, `voice`, `location`, ...
    pub kind: String,
    /// The platform's file id, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What a person said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundMessage {
    /// Text, caption, or the label of a pressed button; empty when there are only attachments.
    pub text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// The hidden value of a pressed button or quick reply. Untrusted: any client can send any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The platform's id of this message, for quoting it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform_message_id: Option<String>,
    /// The platform's id of the callback to acknowledge, when this is a button press.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_id: Option<String>,
    /// The platform's id of the message under which a button was pressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressed_under: Option<String>,
    /// Platforms that deliver an album as several messages mark them with one id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub album_id: Option<String>,
    /// The command that it begins with, without the slash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The platform's id of the query to answer, when somebody called the bot where it is no member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_query_id: Option<String>,
}

/// What an envelope is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A person's message: makes a turn.
    Message(InboundMessage),
    /// What a human agent says to the person: stored and sent in its place, no bot is asked.
    Agent { text: String },
    /// Authentic, but nothing to answer: kept as it came, recorded as `ignored`. `kind` is the platform's word for it
    /// and `reason` ours for not answering.
    Ignored { kind: String, reason: String },
}

/// What an edit or a deletion makes of an earlier message of its conversation: of the message itself while it waits for its turn,
/// afterwards of the stored copy alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amendment {
    /// The platform's id of the earlier message.
    pub platform_message_id: String,
    /// `None` when it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<Replacement>,
}

/// What an edited message says now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    pub text: String,
    /// `None` when the platform does not say: they stay as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<Vec<Attachment>>,
}

/// What a platform calls the draft of an answer while it is being written, so that a person can stop that one. It follows from
/// the place of its turn's first message in the stream, which is the same whoever runs the turn, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DraftId(i64);

impl DraftId {
    /// Of a turn whose first message has this sequence in its stream: positive, within 31 bits, so that every reading of a
    /// platform's "integer" holds it.
    #[must_use]
    pub fn of_turn(first_sequence: u64) -> Self {
        const IDS: u64 = i32::MAX.unsigned_abs() as u64;
        Self(i64::try_from(first_sequence % IDS).unwrap_or_default() + 1)
    }

    /// As a platform gives it back.
    #[must_use]
    pub const fn named(id: i64) -> Self {
        Self(id)
    }

    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// What an event tells of its chat, beside what anybody said in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Notice {
    /// The platform gave the chat another id: a group became a supergroup.
    Moved {
        from: Peer,
        to: Peer,
    },
    /// Nothing that is sent will arrive, for this reason, until the person writes again or says otherwise.
    Unreachable {
        reason: String,
    },
    Reachable,
    /// Somebody's reactions to a message, as they are now.
    Reaction {
        platform_message_id: String,
        sender: String,
        reactions: Vec<String>,
    },
    /// The person wants no more of the answer that is being written; of that with this draft, where the platform says.
    Stop {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        draft: Option<DraftId>,
    },
    /// The person took messages back, also those that were answered.
    Deleted {
        platform_message_ids: Vec<String>,
    },
    /// One of the bot's own deliveries has arrived.
    Arrived {
        delivery_id: Uuid,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        platform_message_id: Option<String>,
    },
    /// Somebody else has answered in the bot's place, on the platform itself: the bot is silent from now on.
    Said {
        text: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attachments: Vec<Attachment>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        platform_message_id: Option<String>,
    },
    /// Another application has the conversation: the bot is silent from now on.
    Taken,
    /// It is the bot's again.
    Returned,
}

impl Notice {
    /// Whether the bot is silent from now on, or speaks again.
    #[must_use]
    pub const fn changes_who_answers(&self) -> bool {
        matches!(self, Self::Said { .. } | Self::Taken | Self::Returned)
    }
}

/// One inbound event on its way through the stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Given at the entrance and kept to the end: the ledger row and the answer carry it.
    pub turn_id: Uuid,
    pub key: ConversationKey,
    pub platform: Platform,
    /// Unique per event and the same whenever the platform sends it again: the stream's `Nats-Msg-Id` and the ledger's key.
    pub dedupe_id: String,
    pub received_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Sender>,
    /// Web and API only: the caller's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Web and API only: the caller's own data, merged into the conversation's metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    pub event: Event,
    /// Beside an [`Event::Ignored`], which is how a version that knows nothing of amendments reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amendment: Option<Amendment>,
    /// What it tells of its chat; beside an [`Event::Ignored`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
    /// The chat it came from, where that is filed under another one: after a group became a supergroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub came_from: Option<Peer>,
    /// The platform's own words, byte for byte, so that a later version can read what this one did not understand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Box<RawValue>>,
}

impl Envelope {
    /// What its sender made of earlier messages.
    #[must_use]
    pub fn amendments(&self) -> Vec<Amendment> {
        let deleted = match &self.notice {
            Some(Notice::Deleted { platform_message_ids }) => platform_message_ids.as_slice(),
            _ => &[],
        };
        let deletion = |id: &String| Amendment { platform_message_id: id.clone(), replacement: None };
        self.amendment.iter().cloned().chain(deleted.iter().map(deletion)).collect()
    }
}
