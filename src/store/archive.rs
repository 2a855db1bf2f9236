//! The database as whoever only looks back sees it: turns that have ended, with what was said and what is kept of them.
//!
//! Refuses to write, twice over: this type has no verb that does, and its connections are opened so that the database itself
//! refuses (`mode=ro` and `query_only` on SQLite, `default_transaction_read_only` on PostgreSQL). Invariant: turns come in the
//! order of their ids, which is that in which their messages were accepted.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;
use uuid::Uuid;

use super::{
    Action, Backend, Conversation, StoreError, StoredMessage, TableDigest, TurnTimings, answered, postgres, sqlite,
};
use crate::message::{Peer, TerminalState, Timestamp};

/// A database that is only read; clones share its connections.
#[derive(Clone)]
pub struct Archive {
    pub(super) backend: Backend,
}

/// Which turns to look back at: those that a responder decided, in a conversation that is still there.
#[derive(Debug, Clone)]
pub struct PastFilter {
    /// Received at this moment or later.
    pub since: Timestamp,
    /// Received before this moment.
    pub until: Timestamp,
    pub bot: Option<String>,
    pub conversation: Option<PastConversation>,
}

/// A conversation by its id, or all of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PastConversation {
    Id(Uuid),
    Peer(Peer),
}

/// A turn that has ended, and everything that is known of it.
#[derive(Debug, Clone)]
pub struct PastTurn {
    pub id: Uuid,
    /// As it is now; what it was at the time is in the record.
    pub conversation: Conversation,
    pub state: TerminalState,
    /// The name of who decided it.
    pub responder: String,
    /// The number of the inbound stream on which its messages were, see [`super::Store::stream_number`].
    pub stream: i64,
    /// Of its message there, and of those that it took in, in order.
    pub sequences: Vec<u64>,
    pub traceparent: Option<String>,
    pub timings: TurnTimings,
    pub received_at: Timestamp,
    /// What was asked and answered on the way, where anything was.
    pub record: Option<Value>,
    /// What the turn added to the history, in order.
    pub messages: Vec<StoredMessage>,
}

/// Turns may have been given their ids this long before they were received: a caller's idempotency key keeps an id.
const ID_SLACK_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

impl PastFilter {
    /// The turns' ids lie between these, the first inclusive, the second exclusive: by the primary key a range is found without
    /// reading what lies before it.
    pub(super) fn ids(&self) -> (Uuid, Uuid) {
        let first = self.since.as_micros().saturating_sub(ID_SLACK_MICROS);
        (first_id_of(first), first_id_of(self.until.as_micros().saturating_add(ID_SLACK_MICROS)))
    }
}

/// The smallest UUIDv7 of a moment, RFC 9562, section 5.7.
fn first_id_of(micros: i64) -> Uuid {
    const MS_BITS: u32 = 48;
    let ms = u64::try_from(micros / 1_000).unwrap_or(0).min((1 << MS_BITS) - 1);
    Uuid::from_u128(u128::from(ms) << (128 - MS_BITS))
}

/// Of a page of turns, what stands in other tables.
pub(super) fn complete(
    turns: &mut [PastTurn],
    messages: Vec<StoredMessage>,
    members: impl IntoIterator<Item = (Uuid, u64)>,
) {
    let places: HashMap<Uuid, usize> = turns.iter().enumerate().map(|(place, turn)| (turn.id, place)).collect();
    for message in messages {
        if let Some(turn) = message.turn_id.and_then(|id| turns.get_mut(*places.get(&id)?)) {
            turn.messages.push(message);
        }
    }
    for (id, sequence) in members {
        if let Some(turn) = places.get(&id).and_then(|place| turns.get_mut(*place)) {
            turn.sequences.push(sequence);
        }
    }
    for turn in turns {
        turn.sequences.sort_unstable();
    }
}

impl Archive {
    /// Opens a database that exists; see [`super::Store::connect`] for its address.
    ///
    /// # Errors
    /// As [`super::Store::connect`], and a file that does not exist.
    pub async fn open(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let backend = match url.split_once("://") {
            Some(("sqlite", _)) => Backend::Sqlite(sqlite::Sqlite::open_to_read(url, max_connections).await?),
            Some(("postgres" | "postgresql", _)) => {
                Backend::Postgres(postgres::Postgres::open_to_read(url, max_connections).await?)
            }
            _ => return Err(StoreError::UnknownScheme { scheme: super::scheme(url) }),
        };
        Ok(Self { backend })
    }

    /// Whether every migration of this version has run.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        on!(self.is_migrated())
    }

    /// The number of a stream's incarnation; `None` when no turn can be of it.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn stream_number(&self, name: &str, incarnation: &str) -> Result<Option<i64>, StoreError> {
        on!(self.find_stream_number(name, incarnation))
    }

    /// How many turns there are to look back at.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn past_turn_count(&self, filter: &PastFilter) -> Result<u64, StoreError> {
        on!(unbounded self.past_turn_count(filter))
    }

    /// A page of turns, those behind `after`; at most [`super::BATCH_ROWS`]. A page with fewer than `limit` is the last.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn past_turns(
        &self,
        filter: &PastFilter,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<PastTurn>, StoreError> {
        on!(unbounded self.past_turns(filter, after.unwrap_or_default(), limit.min(super::BATCH_ROWS)))
    }

    /// The newest messages before an ordinal, oldest of them first; at most [`super::PAGE_ROWS_MAX`].
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn messages(
        &self,
        conversation_id: Uuid,
        before_ordinal: i64,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        on!(self.messages(conversation_id, Some(before_ordinal), limit))
    }

    /// The actions that a turn of this conversation asked about, whatever became of them.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn actions_of_turn(&self, conversation_id: Uuid, turn_id: Uuid) -> Result<Vec<Action>, StoreError> {
        on!(self.actions_of_turn(conversation_id, turn_id))
    }

    /// One digest for each table of what the streams hold, too. Reads whole tables.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn digests(&self) -> Result<Vec<TableDigest>, StoreError> {
        on!(unbounded self.digests())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        on!(unbounded self.close());
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Archive").field(&self.backend.system()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_moment_lie_where_the_moment_does() {
        let id = Uuid::now_v7();
        let (seconds, nanos) =
            id.get_timestamp().unwrap_or_else(|| uuid::Timestamp::from_unix(uuid::NoContext, 0, 0)).to_unix();
        let micros = i64::try_from(seconds).unwrap_or_default() * 1_000_000 + i64::from(nanos / 1_000);
        assert!(first_id_of(micros) <= id && id < first_id_of(micros + 1_000));
    }
}
