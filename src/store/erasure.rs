//! Taking one person's data out of the database.
//!
//! Refuses to take a row out of the ledger: that a message has ended must stay known, or it could come again. Invariants: what was
//! accepted and has not ended ends with the erasure, in the same transaction, so that a turn that runs meanwhile can commit
//! nothing; what stays of a turn names nobody.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::{Backend, Store, StoreError, TurnTimings, answered};
use crate::message::{Channel, ConversationKey, Peer, Timestamp};

/// What stands in the ledger where a person's name was, as a peer.
pub(super) const ERASED_PEER: &str = "user-erased";

/// The reason of messages that ended because they were erased.
pub(super) const ERASED: &str = "erased";

/// Whose data is meant.
#[derive(Debug, Clone)]
pub struct PersonalData {
    pub channel: Channel,
    pub bot: String,
    /// The platform's id of the person; on the web their device.
    pub person: String,
    /// Their chats.
    pub keys: Vec<ConversationKey>,
    /// The conversations in these chats.
    pub conversations: Vec<Uuid>,
}

impl PersonalData {
    /// More chats of the person, each of which counts once.
    pub fn add_chats(&mut self, peers: impl IntoIterator<Item = Peer>) {
        let bot: Arc<str> = self.bot.as_str().into();
        let key = |peer| ConversationKey { channel: self.channel, bot: Arc::clone(&bot), peer };
        self.keys.extend(peers.into_iter().map(key));
        self.keys.sort();
        self.keys.dedup();
    }

    /// The chats as operators name them: in full, or by the peer alone.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.keys.iter().flat_map(|key| [key.to_string(), key.peer.to_string()])
    }

    pub(super) fn peers(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.peer.to_string()).collect()
    }
}

/// A message on the stream that may not have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnendedMessage {
    pub turn_id: Uuid,
    pub dedupe_id: String,
    pub stream: i64,
    pub partition: u16,
    pub sequence: u64,
    pub received_at: Timestamp,
}

/// What was taken out, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ErasedRows {
    pub conversations: u64,
    pub messages: u64,
    pub deliveries: u64,
    pub turn_records: u64,
    pub reactions: u64,
    /// Turns that stay in the ledger without a name.
    pub turns: u64,
    /// Messages that had not ended, and were not answered.
    pub unanswered: u64,
}

impl ErasedRows {
    /// The two together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            conversations: self.conversations + other.conversations,
            messages: self.messages + other.messages,
            deliveries: self.deliveries + other.deliveries,
            turn_records: self.turn_records + other.turn_records,
            reactions: self.reactions + other.reactions,
            turns: self.turns + other.turns,
            unanswered: self.unanswered + other.unanswered,
        }
    }
}

/// There are as many journals as turns that run.
pub(super) const REMOVE_SPENT: &str =
    "DELETE FROM turn_journal WHERE EXISTS (SELECT 1 FROM turns t WHERE t.id = turn_journal.turn_id)";

/// A chat's pause names it.
pub(super) const UNHOLD: &str = "DELETE FROM holds WHERE scope = 'conversation' AND target = $1";

/// Where a chat is named at the end of a text, as whole words.
pub(super) const UNNAME_IN_TEXTS: [&str; 2] = [
    "UPDATE operator_actions SET target = substr(target, 1, length(target) - length($1)) || $2 \
         WHERE substr(' ' || target, length(target) - length($1) + 1) = ' ' || $1",
    "UPDATE dead_letter_jobs SET selection = substr(selection, 1, length(selection) - length($1)) || $2 \
         WHERE substr(' ' || selection, length(selection) - length($1) + 1) = ' ' || $1",
];

/// The other ends of a bot's chats that are spelt alike, wherever the database has any.
pub(super) const PEERS_LIKE: &str = "SELECT peer FROM conversations WHERE channel = $1 AND bot = $2 AND peer LIKE $3 ESCAPE '!' \
     UNION SELECT peer FROM turns WHERE channel = $1 AND bot = $2 AND peer LIKE $3 ESCAPE '!' \
     UNION SELECT peer FROM chats WHERE channel = $1 AND bot = $2 AND peer LIKE $3 ESCAPE '!' \
     UNION SELECT peer FROM feedback WHERE channel = $1 AND bot = $2 AND peer LIKE $3 ESCAPE '!'";

/// What a person's chats with business accounts are spelt like, for [`PEERS_LIKE`]. Others may be, too. Of the two wildcards, no
/// peer is spelt with `%`.
fn business_pattern(person: &str) -> String {
    let nobody = Peer::Business { connection: String::new(), user: person.to_owned() }.to_string();
    nobody.replacen('-', "-%", 1).replace('_', "!_")
}

/// The timings of a turn that never ran.
pub(super) fn no_timings() -> serde_json::Value {
    serde_json::json!(TurnTimings::default())
}

/// Taking a person's data out.
impl Store {
    /// The chats and conversations of a person: the private chat of this id, those with business accounts, and what a device of this
    /// id began. Reads every conversation, and every turn of the bot.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn personal_data(&self, channel: Channel, bot: &str, person: &str) -> Result<PersonalData, StoreError> {
        let chat = Peer::User(person.to_owned());
        let alike = on!(unbounded self.peers_like(channel, bot, &business_pattern(person)))?;
        let mut chats: Vec<Peer> = alike.into_iter().filter(|peer| peer.is_business_of(person)).collect();
        chats.push(chat);
        let peers: Vec<String> = chats.iter().map(Peer::to_string).collect();
        let found = on!(unbounded self.conversations_of_person(channel, bot, &peers, person))?;
        let (keys, person) = (Vec::new(), person.to_owned());
        let mut data = PersonalData { channel, bot: bot.to_owned(), person, keys, conversations: Vec::new() };
        data.add_chats(chats);
        // A device's conversations are chats of their own.
        data.add_chats(found.iter().flat_map(|(id, peer)| [peer.clone(), Peer::Conversation(*id)]));
        data.conversations.extend(found.into_iter().map(|(id, _)| id));
        Ok(data)
    }

    /// Takes a person's data out in one transaction: conversations with their messages, deliveries, records, journals and
    /// actions, and the person's reactions. Of `unended`, what the ledger does not hold ends as ignored.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; then nothing was taken out, or all of it. Calling again is safe.
    pub async fn erase(&self, data: &PersonalData, unended: &[UnendedMessage]) -> Result<ErasedRows, StoreError> {
        on!(unbounded self.erase(data, unended, Timestamp::now()))
    }

    /// Removes the journals of turns that have ended: what a turn wrote whose message was ended by somebody else.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn remove_spent_journals(&self) -> Result<(), StoreError> {
        on!(self.remove_spent_journals())
    }

    /// What [`Store::erase`] would take out.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn count_personal_data(&self, data: &PersonalData) -> Result<ErasedRows, StoreError> {
        on!(unbounded self.count_personal_data(data))
    }
}
