//! What is known of a chat beside its conversations: whose continuation it is, where it is now, whether it can be reached.
//!
//! Pure: a state comes in and goes out, the databases keep it under its row's lock. Invariants: what was learnt earlier never
//! replaces what was learnt later; a chat that is filed under another one is never another one's place to be filed under.

use serde::{Deserialize, Serialize};

use crate::message::{ConversationKey, ConversationStatus, Peer, Timestamp};

/// The state of one chat; the default is that of every chat of which nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatState {
    /// Its messages belong to the conversations of this chat, which it continues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filed_under: Option<Peer>,
    /// It is written to here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<Peer>,
    /// Why nothing that is sent arrives; `None` while nothing is known to be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// When that was learnt, or that it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reachability_at: Option<Timestamp>,
}

impl ChatState {
    /// The state after it was learnt at `at` that the chat cannot be reached, or can again; `None` when that changes nothing.
    pub(super) fn with_reachability(&self, unreachable: Option<&str>, at: Timestamp) -> Option<Self> {
        let is_news = self.reachability_at.is_none_or(|known| known <= at);
        if !is_news || self.unreachable.as_deref() == unreachable {
            return None;
        }
        Some(Self { unreachable: unreachable.map(str::to_owned), reachability_at: Some(at), ..self.clone() })
    }
}

/// An open conversation as a move finds it.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub(super) id: uuid::Uuid,
    pub(super) message_count: i64,
    pub(super) status: ConversationStatus,
}

/// Two open conversations that become one.
#[derive(Debug)]
pub(super) struct Join {
    /// Goes on.
    pub(super) kept: uuid::Uuid,
    /// Gives its messages away and is closed.
    pub(super) ended: uuid::Uuid,
    /// What the ordinals of the messages given grow by.
    pub(super) ordinals: i64,
    pub(super) added: i64,
    pub(super) status: ConversationStatus,
}

impl Join {
    /// A conversation that a person has taken over stays with people.
    pub(super) fn new(kept: &Opened, ended: &Opened) -> Self {
        let is_human = [kept, ended].iter().any(|opened| opened.status == ConversationStatus::Human);
        Self {
            kept: kept.id,
            ended: ended.id,
            ordinals: kept.message_count,
            added: ended.message_count,
            status: if is_human { ConversationStatus::Human } else { kept.status },
        }
    }
}

/// The same bot's chat with another peer.
pub(super) fn of_peer(key: &ConversationKey, peer: &Peer) -> ConversationKey {
    ConversationKey { peer: peer.clone(), ..key.clone() }
}

/// The peers whose rows a move locks, in the one order in which everybody does.
pub(super) fn in_order<'a>(from: &'a Peer, to: &'a Peer) -> [&'a Peer; 2] {
    if from <= to { [from, to] } else { [to, from] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_later_stands() {
        let at = Timestamp::from_micros;
        let fresh = ChatState::default();
        let blocked = fresh.with_reachability(Some("blocked"), at(5)).unwrap();
        assert_eq!(blocked.unreachable.as_deref(), Some("blocked"));
        assert_eq!(blocked.with_reachability(None, at(4)), None, "an older word");
        assert_eq!(blocked.with_reachability(Some("blocked"), at(6)), None, "no news");
        let open = blocked.with_reachability(None, at(6)).unwrap();
        assert_eq!(open.with_reachability(Some("a call that began before"), at(5)), None);
        assert_eq!(fresh.with_reachability(None, at(1)), None);
    }
}
