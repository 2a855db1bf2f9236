//! Who a conversation is with: peers, conversation keys, and their spelling as subject tokens.
//!
//! Invariant: a [`ConversationKey`] and its subject tokens are two spellings of one value, and the partition depends on nothing
//! else.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Channel;

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
    /// One person who writes to somebody's business account, for which the bot answers.
    Business { connection: String, user: String },
    /// A web or API conversation, by our own conversation id.
    Conversation(Uuid),
    /// Events of the bot as a whole, or of nobody we could name: kept, never answered.
    Bot,
}

impl Peer {
    /// Whether this is the chat of this person with somebody's business account.
    #[must_use]
    pub fn is_business_of(&self, person: &str) -> bool {
        matches!(self, Self::Business { user, .. } if user == person)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(formatter, "user-{}", escape(id)),
            Self::Group(id) => write!(formatter, "group-{}", escape(id)),
            Self::Topic { group, topic } => write!(formatter, "group-{}-topic-{}", escape(group), escape(topic)),
            Self::Business { connection, user } => {
                write!(formatter, "business-{}-user-{}", escape(connection), escape(user))
            }
            Self::Conversation(id) => write!(formatter, "conv-{id}"),
            Self::Bot => formatter.write_str("bot"),
        }
    }
}

/// A subject or key that is not of the form this version writes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{0}\" is not a conversation key: expected <channel>.<bot>.<peer>, the peer as user-, group-, business- or conv- and an id"
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
        if let Some(business) = token.strip_prefix("business-") {
            let (connection, user) = business.rsplit_once("-user-").ok_or_else(malformed)?;
            return Ok(Self::Business { connection: id(connection)?, user: id(user)? });
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
