//! What goes out: replies as responders give them, and the parts in which they leave.
//!
//! Refuses to know a platform's limits: whoever makes parts does. Invariant: a part holds everything that its sending needs.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ConversationKey, Peer, Timestamp};

/// A button under a reply; channels without buttons leave it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Button {
    pub label: String,
    /// Comes back in [`InboundMessage::payload`](super::InboundMessage::payload); at most 64 bytes (Telegram's limit for callback
    /// data).
    pub payload: String,
}

/// One message of the bot to the user, before it is split for a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyMessage {
    pub content: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buttons: Vec<Button>,
}

impl ReplyMessage {
    #[must_use]
    pub fn text(content: impl Into<String>) -> Self {
        Self { content: content.into(), buttons: Vec::new() }
    }
}

/// One part of a reply as it lies on the outbound stream and leaves in one call to the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundPart {
    /// The delivery's id: the stream's `Nats-Msg-Id` and the `deliveries` row.
    pub delivery_id: Uuid,
    pub turn_id: Uuid,
    /// `None` for the notice of a first message that failed: it opens no conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<Uuid>,
    /// The stored message this is a part of; an id of its own for notices, which are not in the history.
    pub message_id: Uuid,
    pub key: ConversationKey,
    /// From 0; `parts` in all.
    pub part: u16,
    pub parts: u16,
    pub content: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buttons: Vec<Button>,
    /// How it looks and leaves, beside its text.
    #[serde(default, skip_serializing_if = "Form::is_plain")]
    pub form: Form,
    pub created_at: Timestamp,
}

/// What a part of a reply is beside its text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Form {
    /// The formatting of the text, for platforms that take it apart from the text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entities: Vec<Entity>,
    /// The whole message as its author wrote it, with its first part, where formatting made another text of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The message that it answers, where several people talk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<Quote>,
    /// It is the one answer to this query of somebody who called the bot where it is no member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_query_id: Option<String>,
}

impl Form {
    /// Nothing but the text.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// The formatting of a piece of a text. Offset and length are UTF-16 units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entity {
    pub offset: u32,
    pub length: u32,
    #[serde(flatten)]
    pub style: Style,
}

/// How a piece of a text looks, in Telegram's words (Bot API, "MessageEntity").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Style {
    Bold,
    Italic,
    Strikethrough,
    Code,
    Pre {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        language: Option<String>,
    },
    TextLink {
        url: String,
    },
    Blockquote,
}

/// A message that is answered, and the chat in which its id means it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    pub chat: Peer,
    pub platform_message_id: String,
}
