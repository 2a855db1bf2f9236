//! Closed sets of words: channels, roles, states. One spelling for databases, subjects, JSON and metrics.
//!
//! Refuses words that it does not know. Invariant: a value and its word are each other's only spelling.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
