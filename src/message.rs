//! The nouns every other module speaks in: channels, conversation keys, envelopes, messages, replies, time.
//!
//! Refuses to know how anything is stored, sent or decided: this file imports nothing of ours. Invariant: a
//! [`ConversationKey`] and its subject tokens are two spellings of one value, and the partition depends on nothing else.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// The version of [`Envelope`] and [`OutboundPart`] as written to the stream; carried in a header, so that a reader can
/// refuse what it does not understand before it decodes the body.
pub const SCHEMA_VERSION: u16 = 1;

/// The way a bot is reached; one bot has one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    Telegram,
    Messenger,
    Web,
    /// Any other platform, over signed webhooks.
    Http,
}

/// Where the person sits. `Web` and `Api` share the channel `web`: a browser widget, or a program that calls the chat API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    Telegram,
    Messenger,
    Web,
    Api,
    Http,
}

/// Who a stored message speaks for, in the sense of model APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    User,
    Assistant,
    Tool,
    System,
}

/// Who wrote a stored message: a role alone does not tell a bot's answer from a human agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Author {
    User,
    Bot,
    Agent,
    Import,
}

/// Who answers a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConversationStatus {
    /// The bot answers.
    Bot,
    /// A person has taken over: messages are stored, the bot is silent.
    Human,
    /// Finished: the next message of the same peer opens a new conversation.
    Closed,
}

/// The one terminal state in which every accepted message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TerminalState {
    Answered,
    Merged,
    Superseded,
    HandedOff,
    Ignored,
    Rejected,
    DeadLettered,
}

/// What is known of one outbound part (G10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryStatus {
    /// Committed with its turn, not yet tried, or tried and known not to have arrived.
    Pending,
    /// Handed to the platform; the answer is not in yet.
    Sending,
    /// The platform confirmed it.
    Sent,
    /// The platform refused it for good, or the attempts ran out; the error says which.
    Failed,
    /// It may or may not have arrived, and nobody can tell.
    Uncertain,
}

/// A stored word that this version does not know: written by a newer one, or by hand.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown {what} \"{word}\"")]
pub struct UnknownWord {
    pub(crate) what: &'static str,
    pub(crate) word: String,
}

/// One place for the spelling of a closed set of words, used by databases, subjects, JSON and metrics alike.
macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that stands for this value everywhere outside the process.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl ::std::str::FromStr for $type {
            type Err = $crate::message::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::message::UnknownWord { what: $what, word: word.to_owned() }),
                }
            }
        }

        impl ::std::fmt::Display for $type {
            fn fmt(&self, formatter: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use words;

words!(Channel, "channel", Telegram = "telegram", Messenger = "messenger", Web = "web", Http = "http");
words!(Platform, "platform", Telegram = "telegram", Messenger = "messenger", Web = "web", Api = "api", Http = "http",);
words!(Role, "role", User = "user", Assistant = "assistant", Tool = "tool", System = "system");
words!(Author, "author", User = "user", Bot = "bot", Agent = "agent", Import = "import");
words!(ConversationStatus, "conversation status", Bot = "bot", Human = "human", Closed = "closed");
words!(
    TerminalState,
    "terminal state",
    Answered = "answered",
    Merged = "merged",
    Superseded = "superseded",
    HandedOff = "handed_off",
    Ignored = "ignored",
    Rejected = "rejected",
    DeadLettered = "dead_lettered",
);
words!(
    DeliveryStatus,
    "delivery status",
    Pending = "pending",
    Sending = "sending",
    Sent = "sent",
    Failed = "failed",
    Uncertain = "uncertain",
);

/// The other end of a conversation as its channel names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Peer {
    /// One person in a private chat.
    User(String),
    /// A group, supergroup or channel, by the platform's chat id.
    Group(String),
    /// A forum topic, which is a conversation of its own.
    Topic { group: String, topic: String },
    /// A web or API conversation, by our own conversation id.
    Conversation(Uuid),
    /// Events of the bot as a whole, or of nobody we could name: kept, never answered.
    Bot,
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(formatter, "user-{}", escape(id)),
            Self::Group(id) => write!(formatter, "group-{}", escape(id)),
            Self::Topic { group, topic } => write!(formatter, "group-{}-topic-{}", escape(group), escape(topic)),
            Self::Conversation(id) => write!(formatter, "conv-{id}"),
            Self::Bot => formatter.write_str("bot"),
        }
    }
}

/// A subject or key that is not of the form this version writes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{0}\" is not a conversation key: expected <channel>.<bot>.<peer>, the peer as user-, group- or conv- and an id"
)]
pub struct MalformedKey(String);

impl FromStr for Peer {
    type Err = MalformedKey;

    fn from_str(token: &str) -> Result<Self, MalformedKey> {
        let malformed = || MalformedKey(token.to_owned());
        let id = |text: &str| unescape(text).filter(|id| !id.is_empty()).ok_or_else(malformed);
        if token == "bot" {
            return Ok(Self::Bot);
        }
        if let Some(user) = token.strip_prefix("user-") {
            return Ok(Self::User(id(user)?));
        }
        if let Some(conversation) = token.strip_prefix("conv-") {
            return Uuid::parse_str(conversation).map(Self::Conversation).map_err(|_| malformed());
        }
        let group = token.strip_prefix("group-").ok_or_else(malformed)?;
        match group.split_once("-topic-") {
            Some((group, topic)) => Ok(Self::Topic { group: id(group)?, topic: id(topic)? }),
            None => Ok(Self::Group(id(group)?)),
        }
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        peer.to_string()
    }
}

impl TryFrom<String> for Peer {
    type Error = MalformedKey;

    fn try_from(token: String) -> Result<Self, MalformedKey> {
        token.parse()
    }
}

/// What makes two messages belong to one conversation: channel, bot and peer. Its `Display` is the three subject tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConversationKey {
    pub channel: Channel,
    pub bot: Arc<str>,
    pub peer: Peer,
}

impl ConversationKey {
    /// The partition of this conversation among `partitions`: the first eight bytes of SHA-256 over the subject tokens, as
    /// a big-endian number, modulo the count. Stable across processes, versions and machines, because streams outlive them.
    #[must_use]
    pub fn partition(&self, partitions: u16) -> u16 {
        let digest = Sha256::digest(self.to_string().as_bytes());
        let mut head = [0_u8; 8];
        head.copy_from_slice(&digest[..8]);
        let count = u64::from(partitions.max(1));
        u16::try_from(u64::from_be_bytes(head) % count).unwrap_or(0)
    }
}

impl fmt::Display for ConversationKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.channel, escape(&self.bot), self.peer)
    }
}

impl FromStr for ConversationKey {
    type Err = MalformedKey;

    fn from_str(tokens: &str) -> Result<Self, MalformedKey> {
        let malformed = || MalformedKey(tokens.to_owned());
        let mut parts = tokens.split('.');
        let (Some(channel), Some(bot), Some(peer), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        Ok(Self {
            channel: channel.parse().map_err(|_| malformed())?,
            bot: unescape(bot).filter(|bot| !bot.is_empty()).ok_or_else(malformed)?.into(),
            peer: peer.parse()?,
        })
    }
}

/// Writes every byte outside `[A-Za-z0-9_-]` as `=XX`, so that any id is one subject token.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("={byte:02X}"));
        }
    }
    escaped
}

/// The reverse of [`escape`]; `None` when the token was not written by it.
#[must_use]
pub fn unescape(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'=' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A moment, in microseconds since 1970-01-01T00:00:00Z; RFC 3339 wherever people or programs read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The system clock's present moment.
    #[must_use]
    pub fn now() -> Self {
        Self::from(OffsetDateTime::now_utc())
    }

    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Microseconds from `earlier` to `self`; zero when the clock went backwards in between.
    #[must_use]
    pub fn micros_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// The day, UTC, counted from 1970-01-01.
    #[must_use]
    pub const fn day(self) -> i64 {
        const MICROS_PER_DAY: i64 = 24 * 60 * 60 * 1_000_000;
        self.0.div_euclid(MICROS_PER_DAY)
    }

    /// The same moment as the `time` crate has it; 1970 for a value outside its range (the years -9999 to 9999).
    #[must_use]
    pub fn to_offset_date_time(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        Self(i64::try_from(moment.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_offset_date_time().format(&Rfc3339) {
            Ok(text) => formatter.write_str(&text),
            Err(_) => write!(formatter, "{}us", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339).map(Self::from).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

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

/// What an event without a message of the person's says about the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
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
    /// Beside an [`Event::Ignored`], too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// The platform's own words, byte for byte, so that a later version can read what this one did not understand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Box<RawValue>>,
}

/// A button under a reply; channels without buttons leave it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Button {
    pub label: String,
    /// Comes back in [`InboundMessage::payload`]; at most 64 bytes (Telegram's limit for callback data).
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
    pub created_at: Timestamp,
}
