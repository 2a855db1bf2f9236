//! The database: its verbs and what each transaction means. `store/{postgres,sqlite}` hold the SQL, under the same function
//! names; `tests/store.rs` runs one conformance suite on both.
//!
//! Refuses to decide anything about turns. Invariants: only [`Store::commit`], [`Store::settled`] and [`Store::load_turn`]
//! make a [`Committed`]; a commit is one transaction, names its epoch and writes only the columns a turn owns; no statement
//! handles more rows than [`BATCH_ROWS`] or [`PAGE_ROWS_MAX`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::message::{ConversationKey, DeliveryStatus, Peer, Platform, Replacement, TerminalState, Timestamp};

mod chats;
mod commit;
mod console;
mod deaths;
mod digest;
mod error;
mod group;
mod groups;
mod journal;
mod merge;
mod operator;
mod outcomes;
mod postgres;
mod records;
mod rows;
mod schema;
mod sending;
mod sqlite;
mod values;
mod writes;

use groups::{Groups, Load};
use journal::Writing;
use sending::{Beginning, Ending};

pub use archive::{Archive, PastConversation, PastFilter, PastTurn};
pub use chats::ChatState;
pub use console::{
    ConversationSearch, DeliveryTime, FoundMessage, Hold, HoldScope, Job, JobState, JobVerb, LedgerRow, PartitionRow,
    RecordedAction,
};
pub use digest::TableDigest;
pub use erasure::{ErasedRows, PersonalData, UnendedMessage};
pub use error::StoreError;
pub use journal::{Action, ActionStatus, JournalEntry, Journaled, NewAction, StepKind, StepStatus};
pub(crate) use merge::{join_patches, merge_patch};
pub use operator::{OperatorAction, OperatorVerb, Recorded};
pub use outcomes::{AddressedDelivery, DELETED, DeliveryTotal, OutcomeFilter, Resolution};
pub use records::*;

/// The most rows that a page of a list holds.
pub const PAGE_ROWS_MAX: u32 = 1_000;

/// The most rows that one statement writes or looks up; longer input is cut into several statements. At 16 KiB a message,
/// one statement stays at 8 MiB.
pub const BATCH_ROWS: usize = 500;

/// How many messages ended in each state; states without any are left out.
pub type TurnTotals = Vec<(TerminalState, i64)>;

/// How long a caller waits for a free connection, and a first connection for the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that went away without a word never answers, and the driver would wait for ever. Longer than waiting for a
/// connection and a statement that the server itself breaks off.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A database, PostgreSQL or SQLite; clones share its connections and its groups.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
    groups: Groups,
}

#[derive(Clone)]
enum Backend {
    Postgres(postgres::Postgres),
    Sqlite(sqlite::Sqlite),
}

impl Backend {
    const fn system(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgresql",
            Self::Sqlite(_) => "sqlite",
        }
    }
}

/// Runs a verb on whichever database this is, `unbounded` for as long as that takes. A transaction's future takes kilobytes, and
/// those of callers would hold it for as long as they live, tens of thousands at once; so it is on the heap while it runs.
macro_rules! on {
    ($store:ident.$verb:ident($($argument:expr),*)) => {
        match &$store.backend {
            Backend::Postgres(database) => answered(stringify!($verb), Box::pin(database.$verb($($argument),*))).await,
            Backend::Sqlite(database) => Box::pin(database.$verb($($argument),*)).await,
        }
    };
    (unbounded $store:ident.$verb:ident($($argument:expr),*)) => {
        match &$store.backend {
            Backend::Postgres(database) => Box::pin(database.$verb($($argument),*)).await,
            Backend::Sqlite(database) => Box::pin(database.$verb($($argument),*)).await,
        }
    };
}

use on;

// Below the macro, which they use, too.
mod archive;
mod erasure;

/// Opening, migrating, asking how it is.
impl Store {
    /// Opens `sqlite://PATH` (created if missing) or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with at most
    /// `max_connections` connections. Nothing is migrated. The tasks that form groups of commits and sends run on the runtime of
    /// this call, until [`Store::close`] or until the last clone is gone.
    ///
    /// # Errors
    /// An address of another kind, a folder that does not exist, a server that does not let us in within ten seconds. No
    /// error holds the address's password.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let backend = match url.split_once("://") {
            Some(("sqlite", _)) => Backend::Sqlite(sqlite::Sqlite::connect(url, max_connections).await?),
            Some(("postgres" | "postgresql", _)) => {
                Backend::Postgres(postgres::Postgres::connect(url, max_connections).await?)
            }
            _ => return Err(StoreError::UnknownScheme { scheme: scheme(url) }),
        };
        Ok(Self { groups: Groups::start(&backend), backend })
    }

    /// Brings the schema to this version, under a lock: two processes may do it at once. A no-op when it is there already.
    ///
    /// # Errors
    /// A database that a newer version has migrated, or one whose migrations were changed after they ran.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        on!(unbounded self.migrate())
    }

    /// Whether every migration of this version has run.
    ///
    /// # Errors
    /// A database that does not answer.
    pub async fn is_migrated(&self) -> Result<bool, StoreError> {
        on!(self.is_migrated())
    }

    /// Asks the database for nothing.
    ///
    /// # Errors
    /// A database that does not answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        on!(self.ping())
    }

    /// The database's name as OpenTelemetry's `db.system.name` has it.
    #[must_use]
    pub const fn system(&self) -> &'static str {
        self.backend.system()
    }

    /// Closes every connection, after what they are doing is done and what was asked of groups before. Later calls fail.
    pub async fn close(&self) {
        self.groups.close().await;
        on!(unbounded self.close());
    }
}

/// Streams and their partitions: who may commit, and how far everything is terminal.
impl Store {
    /// The number of this incarnation of a stream, the same for ever; numbers grow with time. An incarnation is whatever
    /// tells a stream from one of the same name made later, such as its time of creation.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn stream_number(&self, name: &str, incarnation: &str) -> Result<i64, StoreError> {
        on!(self.stream_number(name, incarnation))
    }

    /// Takes the partitions from whoever has them: each epoch becomes the higher of its successor and `epoch_at_least`. One
    /// transaction, which waits for commits under way; those that come after it are fenced. In the order of the partitions.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; then nothing was taken.
    pub async fn take_over(
        &self,
        stream: i64,
        partitions: &[u16],
        epoch_at_least: i64,
    ) -> Result<Vec<Takeover>, StoreError> {
        on!(self.take_over(stream, partitions, epoch_at_least))
    }

    /// Whether the partition is still owned under this epoch. Only a commit can rely on it: it looks again, and holds it.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn owns(&self, ownership: &Ownership) -> Result<bool, StoreError> {
        on!(self.owns(ownership))
    }

    /// Records up to which sequence everything is terminal, for partitions still owned under the epoch named, and never
    /// backwards; the rest is passed over. Each partition at most once.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn save_checkpoints(&self, checkpoints: &[(Ownership, u64)]) -> Result<(), StoreError> {
        on!(self.save_checkpoints(checkpoints))
    }

    /// The highest checkpoint of any partition of a stream; `None` when there is none.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn highest_checkpoint(&self, stream: i64) -> Result<Option<u64>, StoreError> {
        on!(self.highest_checkpoint(stream))
    }

    /// Has every partition of a stream read from its beginning when it is taken over next. What is done is found in the ledger.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn rewind(&self, stream: i64) -> Result<(), StoreError> {
        on!(self.rewind(stream))
    }
}

/// Turns and the ledger.
impl Store {
    /// What a turn needs to begin: whether the ledger holds the message already, and the conversation, both as of one moment;
    /// turns that are loaded at the same time share a statement. For
    /// [`crate::message::Peer::Conversation`] that is the one with this id, closed or not; for any other peer the one that is
    /// not closed.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn load_turn(&self, key: &ConversationKey, dedupe_id: &str) -> Result<TurnContextRow, StoreError> {
        self.groups.load_turn(Load { key: key.clone(), dedupe_id: dedupe_id.to_owned() }).await
    }

    /// Which of the messages the ledger already holds, in no order.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn settled(&self, dedupe_ids: &[String]) -> Result<Vec<Committed>, StoreError> {
        on!(self.settled(dedupe_ids))
    }

    /// The one transaction of a turn (G4): checks the epoch and holds it until the end, writes the ledger row under its unique
    /// dedupe id, the new conversation if there is one, messages with the next ordinals, deliveries, and of the conversation
    /// only what a turn owns: count, snippet, times, and metadata merged into what it is at that moment (G6). Status and
    /// assignee are left alone, except that `handoff` makes `human` of `bot`.
    ///
    /// Turns that are committed at the same time share a transaction, each with an outcome of its own; of two turns with the
    /// same dedupe id or conversation the later one comes after the earlier one.
    ///
    /// After an error nobody knows whether it was written, nor when the future is dropped: calling again with the same turn
    /// tells ([`CommitOutcome::AlreadyTerminal`]).
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn commit(&self, turn: impl Into<Arc<TurnCommit>> + Send) -> Result<CommitOutcome, StoreError> {
        self.groups.commit(turn.into()).await
    }

    /// The ledger row of a turn, with its replies.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn turn(&self, turn_id: Uuid) -> Result<Option<Turn>, StoreError> {
        on!(self.turn(turn_id))
    }

    /// Looks over the whole ledger for broken rules. Reads every row: for audits, not for requests.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn ledger_faults(&self) -> Result<LedgerFaults, StoreError> {
        on!(unbounded self.ledger_faults())
    }

    /// How many messages ended in each state; states without any are left out. Reads every row of the ledger.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn ledger_counts(&self) -> Result<Vec<(TerminalState, i64)>, StoreError> {
        on!(unbounded self.ledger_counts())
    }
}

/// Journals of turns that have not ended (G8), records of those that have, and actions that wait for a person's word.
impl Store {
    /// Writes one step of a turn, over what was there under its name, if the partition is still ours.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; nobody knows then whether it was written, and writing it again is safe.
    pub async fn write_journal(
        &self,
        turn_id: Uuid,
        ownership: &Ownership,
        entry: JournalEntry,
    ) -> Result<Journaled, StoreError> {
        self.groups.write_journal(Writing { turn_id, ownership: *ownership, entry }).await
    }

    /// The steps of a turn that has not ended, in the order in which they were begun.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn journal(&self, turn_id: Uuid) -> Result<Vec<JournalEntry>, StoreError> {
        on!(self.journal(turn_id))
    }

    /// What is kept of a turn that has ended, for replay and for people.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn turn_record(&self, turn_id: Uuid) -> Result<Option<serde_json::Value>, StoreError> {
        on!(self.turn_record(turn_id))
    }

    /// What the models of a bot with a budget have used on a day, counted from 1970-01-01 in UTC.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn tokens_used(&self, bot: &str, day: i64) -> Result<u64, StoreError> {
        on!(self.tokens_used(bot, day))
    }

    /// One action that waits for a person's word, or did.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn action(&self, id: &str) -> Result<Option<Action>, StoreError> {
        on!(self.action(id))
    }

    /// The actions of a conversation that wait for a person's word, those past their time included, and those that this turn
    /// has decided; oldest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn open_actions(&self, conversation_id: Uuid, turn_id: Uuid) -> Result<Vec<Action>, StoreError> {
        on!(self.open_actions(conversation_id, turn_id))
    }

    /// The actions that a turn of this conversation asked about, whatever became of them.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn actions_of_turn(&self, conversation_id: Uuid, turn_id: Uuid) -> Result<Vec<Action>, StoreError> {
        on!(self.actions_of_turn(conversation_id, turn_id))
    }

    /// Decides an action that is pending; one that is past its time expires instead, unless it is cancelled. Gives it as it is
    /// then: decided by this turn, now or in an earlier attempt of it, or by another one. `None` when there is no such action.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; asking again for the same turn is safe.
    pub async fn decide_action(
        &self,
        id: &str,
        decision: ActionStatus,
        turn_id: Uuid,
        now: Timestamp,
    ) -> Result<Option<Action>, StoreError> {
        on!(self.decide_action(id, decision, turn_id, now))
    }
}

/// Conversations and their messages.
impl Store {
    /// Opens a conversation outside of any turn.
    ///
    /// # Errors
    /// [`StoreError::AlreadyOpen`] when one of the same key is open.
    pub async fn create_conversation(&self, new: &NewConversation) -> Result<Conversation, StoreError> {
        on!(self.create_conversation(new))
    }

    /// One conversation.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn conversation(&self, id: Uuid) -> Result<Option<Conversation>, StoreError> {
        on!(self.conversation(id))
    }

    /// A page of conversations, newest activity first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn conversations(&self, filter: &ConversationFilter) -> Result<Vec<Conversation>, StoreError> {
        on!(self.conversations(filter))
    }

    /// The conversation of a web or API device, found or opened under a lock, so that two calls at once give one. A closed
    /// one does not count, nor one without activity for longer than `ttl`. Being found is activity.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn active_conversation(
        &self,
        bot: &str,
        device_id: &str,
        platform: Platform,
        ttl: Duration,
        now: Timestamp,
        new_id: Uuid,
    ) -> Result<Conversation, StoreError> {
        on!(self.active_conversation(bot, device_id, platform, ttl, now, new_id))
    }

    /// Marks activity; false when there is no such conversation.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn touch_conversation(&self, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
        on!(self.touch_conversation(id, now))
    }

    /// Changes what people and programs may change, under the row's lock: a turn that commits meanwhile comes before or after
    /// it and reverts nothing. `None` when there is no such conversation.
    ///
    /// # Errors
    /// [`StoreError::AlreadyOpen`] when a closed one is opened again beside an open one of the same key.
    pub async fn patch_conversation(
        &self,
        id: Uuid,
        patch: &ConversationPatch,
        now: Timestamp,
    ) -> Result<Option<Conversation>, StoreError> {
        on!(self.patch_conversation(id, patch, now, None))
    }

    /// The same by the owner of the partition that the patch's cause came from, and by nobody else.
    ///
    /// # Errors
    /// As [`Store::patch_conversation`], and [`StoreError::Fenced`].
    pub async fn patch_conversation_as_owner(
        &self,
        id: Uuid,
        patch: &ConversationPatch,
        now: Timestamp,
        owner: &Ownership,
    ) -> Result<Option<Conversation>, StoreError> {
        on!(self.patch_conversation(id, patch, now, Some(owner)))
    }

    /// The newest messages, oldest of them first; at most [`PAGE_ROWS_MAX`].
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn recent_messages(&self, conversation_id: Uuid, limit: u32) -> Result<Vec<StoredMessage>, StoreError> {
        on!(self.messages(conversation_id, None, limit))
    }

    /// The newest messages before an ordinal (`None`: the newest of all), oldest of them first; at most [`PAGE_ROWS_MAX`].
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn messages(
        &self,
        conversation_id: Uuid,
        before_ordinal: Option<i64>,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        on!(self.messages(conversation_id, before_ordinal, limit))
    }

    /// The oldest messages behind an ordinal, oldest of them first; at most [`PAGE_ROWS_MAX`].
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn messages_after(
        &self,
        conversation_id: Uuid,
        after_ordinal: i64,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        on!(self.messages_after(conversation_id, after_ordinal, limit))
    }

    /// Appends messages outside of any turn, all or none, with the next ordinals. `None` when there is no such conversation.
    /// Where the first one is stored already, nothing is written, and what was stored with it is the answer.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn append_messages(
        &self,
        conversation_id: Uuid,
        messages: Vec<NewMessage>,
        now: Timestamp,
    ) -> Result<Option<Vec<StoredMessage>>, StoreError> {
        on!(self.append_messages(conversation_id, &messages, now))
    }

    /// Claims a caller's idempotency key: the first claim stands, a later one gets what the first was given, or a conflict
    /// when it is for another request. `scope` keeps the keys of different callers apart.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn claim_idempotency_key(
        &self,
        scope: &str,
        key: &str,
        fingerprint: &str,
        turn_id: Uuid,
        conversation_id: Uuid,
        now: Timestamp,
    ) -> Result<IdempotencyClaim, StoreError> {
        on!(self.claim_idempotency_key(scope, key, fingerprint, turn_id, conversation_id, now))
    }

    /// What claiming the key would give, when it has been claimed before; `None` when it has not.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn idempotency_claim(
        &self,
        scope: &str,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<IdempotencyClaim>, StoreError> {
        on!(self.idempotency_claim(scope, key, fingerprint))
    }

    /// The conversation of a turn that was claimed; `None` for a turn that nobody claimed. The turn may not have run yet.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn claimed_turn(&self, turn_id: Uuid) -> Result<Option<Uuid>, StoreError> {
        on!(self.claimed_turn(turn_id))
    }
}

/// Chats, and what people feel about messages.
impl Store {
    /// What is known of a chat.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn chat(&self, key: &ConversationKey) -> Result<ChatState, StoreError> {
        on!(self.chat(key))
    }

    /// Records that a chat cannot be reached, for a reason, or can again (`None`), as was learnt at `at`. What was learnt
    /// earlier changes nothing. Where it was learnt from a partition's message, only the partition's owner records it.
    ///
    /// # Errors
    /// As [`StoreError::Query`], and [`StoreError::Fenced`]; calling again is safe.
    pub async fn note_reachability(
        &self,
        key: &ConversationKey,
        unreachable: Option<&str>,
        at: Timestamp,
        under: Option<&Ownership>,
    ) -> Result<(), StoreError> {
        on!(self.note_reachability(key, unreachable, at, under))
    }

    /// Records that a chat goes on as another one, in one transaction: from now on its conversations are written to there,
    /// messages from there belong to them, and an open conversation that the new chat has already becomes a part of the old
    /// one's. Doing it again changes nothing. Where it was learnt from a partition's message, only the partition's owner does it.
    ///
    /// # Errors
    /// As [`StoreError::Query`], and [`StoreError::Fenced`]; calling again is safe.
    pub async fn move_chat(
        &self,
        from: &ConversationKey,
        to: &Peer,
        now: Timestamp,
        under: Option<&Ownership>,
    ) -> Result<(), StoreError> {
        on!(self.move_chat(from, to, now, under))
    }

    /// Records somebody's reactions to a message, over earlier ones.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; calling again is safe.
    pub async fn record_feedback(&self, new: &NewFeedback) -> Result<(), StoreError> {
        on!(self.record_feedback(new))
    }

    /// The reactions to the replies among a conversation's messages from one ordinal to another; at most 1,000.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn feedback(&self, conversation_id: Uuid, ordinals: (i64, i64)) -> Result<Vec<Feedback>, StoreError> {
        on!(self.feedback(conversation_id, ordinals))
    }
}

/// Deliveries.
impl Store {
    /// The parts of a turn that are `pending` or `sending`, in order.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn pending_of_turn(&self, turn_id: Uuid) -> Result<Vec<PendingDelivery>, StoreError> {
        on!(self.pending_of_turn(turn_id))
    }

    /// The parts of a partition that are `pending` or `sending`, in the order in which they leave: to whoever has just taken
    /// the partition over, what a crash between commit and publish left behind. `stream` is the inbound one; parts of its earlier
    /// incarnations are found too.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn pending_of_partition(
        &self,
        stream: i64,
        partition: u16,
        after: Option<DeliveryCursor>,
        limit: u32,
    ) -> Result<PendingPage, StoreError> {
        on!(self.pending_of_partition(stream, partition, after, limit))
    }

    /// Every part of a turn, in order, whatever became of it.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn deliveries_of_turn(&self, turn_id: Uuid) -> Result<Vec<DeliveryRow>, StoreError> {
        on!(self.deliveries_of_turn(turn_id))
    }

    /// Whether parts for this chat, whose turns are of this inbound partition, are `pending` or `sending`.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn has_unsettled(&self, partition: u16, key: &ConversationKey) -> Result<bool, StoreError> {
        on!(self.has_unsettled(partition, key))
    }

    /// Which of the parts are settled, in no order.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn settled_deliveries(&self, ids: &[Uuid]) -> Result<Vec<Settled>, StoreError> {
        on!(self.settled_deliveries(ids))
    }

    /// The receipt for a message on the outbound stream that no commit can have written: it has no delivery's id.
    #[must_use]
    pub fn disown(&self, message_id: &str) -> Settled {
        sending::disowned(message_id.to_owned())
    }

    /// How many parts are in each status; statuses without any are left out. Reads every row.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn delivery_counts(&self) -> Result<Vec<(DeliveryStatus, i64)>, StoreError> {
        on!(unbounded self.delivery_counts())
    }

    /// How many parts are uncertain, by an index of their own.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn uncertain_deliveries(&self) -> Result<u64, StoreError> {
        on!(self.uncertain_deliveries())
    }

    /// Marks a part `sending` before the call to the platform, if the outbound partition is still ours. After
    /// [`SendStart::Interrupted`] the part is as it was: hold it by settling it as uncertain, or send it again by settling it
    /// as not sent and beginning anew.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; the call must then not be made, and nobody knows whether it is marked: asking again with the
    /// same `now` tells that beginning from anybody else's.
    pub async fn begin_send(
        &self,
        delivery_id: Uuid,
        ownership: &Ownership,
        now: Timestamp,
    ) -> Result<SendStart, StoreError> {
        self.groups.begin_send(Beginning { delivery_id, ownership: *ownership, now }).await
    }

    /// Records what the platform said. A confirmation wins over everything, however late; nothing else moves a part that is
    /// settled. `None` when the part is to be tried again, or does not exist.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; calling again with the same result is safe.
    pub async fn settle_send(
        &self,
        delivery_id: Uuid,
        result: &SendResult,
        now: Timestamp,
    ) -> Result<Option<Settled>, StoreError> {
        self.groups.settle_send(Ending { delivery_id, result: result.clone(), now }).await
    }
}

/// Outcomes of deliveries, for people.
impl Store {
    /// How many deliveries of each bot are in each state but `sent`, by bot and state; `None` for all bots.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn delivery_totals(&self, bots: Option<&[String]>) -> Result<Vec<DeliveryTotal>, StoreError> {
        on!(self.delivery_totals(bots))
    }

    /// A page of `failed` and `uncertain` deliveries, newest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn outcomes(&self, filter: &OutcomeFilter) -> Result<Vec<AddressedDelivery>, StoreError> {
        on!(self.outcomes(filter))
    }

    /// One delivery, whatever became of it.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn delivery(&self, id: Uuid) -> Result<Option<AddressedDelivery>, StoreError> {
        on!(self.delivery(id))
    }

    /// A delivery that is `pending` or `sending`, as it is published.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn pending_delivery(&self, id: Uuid) -> Result<Option<PendingDelivery>, StoreError> {
        on!(self.pending_delivery(id))
    }

    /// Does what a person says of an `uncertain` delivery; false when it is not, or does not exist. One to be sent again is
    /// `pending` then, and must be published again.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn resolve_delivery(&self, id: Uuid, resolution: Resolution, now: Timestamp) -> Result<bool, StoreError> {
        on!(self.resolve_delivery(id, resolution, now))
    }

    /// When the conversation's person last said something; `None` when they never did.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn last_said_at(&self, conversation_id: Uuid) -> Result<Option<Timestamp>, StoreError> {
        on!(self.last_said_at(conversation_id))
    }

    /// Makes of the stored copy of a person's message what they made of the message; `None` when they deleted it, of which
    /// the row stays and the content goes. False when it is not among the conversation's newest thousand. Doing it again
    /// changes nothing. Only the owner of the partition that the news came from may.
    ///
    /// # Errors
    /// As [`StoreError::Query`], and [`StoreError::Fenced`].
    pub async fn amend_message(
        &self,
        conversation_id: Uuid,
        platform_message_id: &str,
        replacement: Option<&Replacement>,
        owner: &Ownership,
    ) -> Result<bool, StoreError> {
        on!(self.amend_message(conversation_id, platform_message_id, replacement, owner))
    }
}

/// What people do by hand.
impl Store {
    /// Writes down what is about to be made final, with one receipt for each, in order. Doing it twice writes it twice.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; some may be written then.
    pub async fn record_operator_actions(&self, actions: &[OperatorAction]) -> Result<Vec<Recorded>, StoreError> {
        on!(self.record_operator_actions(actions))
    }

    /// Whether somebody has redriven or discarded the dead letter of this message: it must not become one again.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn is_dead_letter_ended(&self, message_id: &str) -> Result<bool, StoreError> {
        on!(self.is_dead_letter_ended(message_id))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.backend {
            Backend::Postgres(_) => "Store(PostgreSQL)",
            Backend::Sqlite(_) => "Store(SQLite)",
        })
    }
}

/// What the database answers, or that it did not: as after a lost connection, nobody knows then whether it was done.
async fn answered<T>(what: &'static str, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(error::refused(what)(io::Error::from(io::ErrorKind::TimedOut).into())),
    }
}

/// What may be shown of an address we do not understand: it may hold a password anywhere but in a plain word before the
/// first colon.
fn scheme(url: &str) -> String {
    match url.split_once(':') {
        Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => scheme.to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_database_that_never_answers_is_trouble_that_may_pass() {
        let error = answered::<()>("commit", std::future::pending()).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("commit"), "{error}");
    }
}
