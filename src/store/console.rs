//! What the operators' console reads of the ledger, and what it keeps itself: its audit log, holds and jobs.
//!
//! Refuses to change anything that a turn owns. Invariants: every read is bounded and has an index; what a person does is
//! written down before it is done, and how it went afterwards, so that a row without a result is one whose process died.

use serde::Serialize;
use uuid::Uuid;

use super::operator::OperatorAction;
use super::{AddressedDelivery, TurnTotals};
use super::{
    Backend, Conversation, DeliveryRow, Position, Store, StoreError, StoredMessage, TurnTimings, answered, on,
};
use crate::message::{ConversationKey, ConversationStatus, DeliveryStatus, TerminalState, Timestamp, words};

/// A row of the ledger with everything that tells how long it took and why it ended so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerRow {
    pub id: Uuid,
    pub dedupe_id: String,
    #[serde(skip)]
    pub key: ConversationKey,
    /// `None` for what has no place in any conversation: refused, ignored, given up.
    pub conversation_id: Option<Uuid>,
    pub state: TerminalState,
    pub merged_into: Option<Uuid>,
    pub reason: Option<String>,
    pub attempts: u32,
    pub responder: Option<String>,
    /// The number of the stream's incarnation.
    pub stream: i64,
    pub partition: u16,
    pub sequence: u64,
    pub traceparent: Option<String>,
    pub timings: TurnTimings,
    pub received_at: Timestamp,
    pub started_at: Timestamp,
    pub committed_at: Timestamp,
}

/// Which conversations people look for; each part that is set must be met.
#[derive(Debug, Clone, Default)]
pub struct ConversationSearch {
    /// One of these peers, as subjects have them.
    pub peers: Option<Vec<String>>,
    pub bot: Option<String>,
    pub status: Option<ConversationStatus>,
    pub assignee: Option<String>,
    pub device_id: Option<String>,
    /// 1 to [`super::PAGE_ROWS_MAX`]; more is cut.
    pub limit: u32,
}

/// A stored message that has the platform's id that somebody looks for.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundMessage {
    pub conversation_id: Uuid,
    pub message: StoredMessage,
}

/// How far a partition of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PartitionRow {
    pub partition: u16,
    pub epoch: i64,
    /// Everything at and below it is terminal.
    pub checkpoint: Option<u64>,
}

/// How long parts took from their commit to the platform's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryTime {
    pub created_at: Timestamp,
    pub settled_at: Timestamp,
}

/// Something that a person did, as the audit log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordedAction {
    pub id: Uuid,
    /// A word of [`super::OperatorVerb`], or of a later version.
    pub verb: String,
    pub target: String,
    pub actor: Option<String>,
    pub reason: Option<String>,
    /// How it went; `None` while it is being done, where its process died, and for what is recorded as it is done.
    pub result: Option<String>,
    pub created_at: Timestamp,
}

/// Of what turns are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldScope {
    Conversation,
    Bot,
    Partition,
}

words!(HoldScope, "scope of a hold", Conversation = "conversation", Bot = "bot", Partition = "partition");

/// Turns of something are not begun until somebody resumes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    pub scope: HoldScope,
    /// `<channel>.<bot>.<peer>`, a bot's name, or a partition's number.
    pub target: String,
    pub actor: Option<String>,
    pub reason: Option<String>,
    pub created_at: Timestamp,
}

/// What is done to dead letters in bulk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobVerb {
    Redrive,
    Discard,
}

words!(JobVerb, "job's verb", Redrive = "redrive", Discard = "discard");

/// How far a job is, as its process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    Running,
    Done,
    Failed,
}

words!(JobState, "job's state", Running = "running", Done = "done", Failed = "failed");

/// Dead letters being redriven or discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    pub id: Uuid,
    pub verb: JobVerb,
    /// Which, in words.
    pub selection: String,
    pub actor: Option<String>,
    pub reason: Option<String>,
    pub state: JobState,
    pub total: u64,
    /// Looked at so far.
    pub seen: u64,
    /// What became of them, or what went wrong.
    pub outcome: Option<String>,
    pub created_at: Timestamp,
    /// The last sign of life of its process.
    pub signed_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

/// Reading the ledger.
impl Store {
    /// The newest rows of a conversation before a place, newest first: those of `conversation_id`, and those that the key's
    /// messages without a place in any conversation left. At most [`super::PAGE_ROWS_MAX`].
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn ledger_rows(
        &self,
        key: &ConversationKey,
        conversation_id: Option<Uuid>,
        before: Option<Position>,
        limit: u32,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        on!(self.ledger_rows(key, conversation_id, before, limit))
    }

    /// The row of one turn.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn ledger_row(&self, turn_id: Uuid) -> Result<Option<LedgerRow>, StoreError> {
        on!(self.ledger_row(turn_id))
    }

    /// The newest rows whose turns began their way at or after `since`, as turns' ids tell it; newest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn recent_ledger_rows(&self, since: Timestamp, limit: u32) -> Result<Vec<LedgerRow>, StoreError> {
        on!(self.recent_ledger_rows(first_id(since), limit))
    }

    /// How long the parts of those turns took that were sent; at most `limit`.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn recent_delivery_times(&self, since: Timestamp, limit: u32) -> Result<Vec<DeliveryTime>, StoreError> {
        on!(self.recent_delivery_times(first_id(since), limit))
    }

    /// How many messages ended in which state among those turns.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn recent_turn_totals(&self, since: Timestamp) -> Result<TurnTotals, StoreError> {
        on!(self.recent_turn_totals(first_id(since)))
    }

    /// The parts of these turns, in order; at most [`super::BATCH_ROWS`] turns count.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn deliveries_of_turns(&self, turn_ids: &[Uuid]) -> Result<Vec<DeliveryRow>, StoreError> {
        on!(self.deliveries_of_turns(&turn_ids[..turn_ids.len().min(super::BATCH_ROWS)]))
    }

    /// What was said in these turns, in order; at most [`super::BATCH_ROWS`] turns count.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn messages_of_turns(&self, turn_ids: &[Uuid]) -> Result<Vec<StoredMessage>, StoreError> {
        on!(self.messages_of_turns(&turn_ids[..turn_ids.len().min(super::BATCH_ROWS)]))
    }

    /// Deliveries in one status, oldest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn deliveries_in(
        &self,
        status: DeliveryStatus,
        limit: u32,
    ) -> Result<Vec<AddressedDelivery>, StoreError> {
        on!(self.deliveries_in(status, limit))
    }

    /// Conversations that people look for, newest activity first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn search_conversations(&self, search: &ConversationSearch) -> Result<Vec<Conversation>, StoreError> {
        on!(self.search_conversations(search))
    }

    /// What people wrote under this id of the platform, newest first. Ids are unique within a chat only.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn messages_by_platform_id(&self, id: &str, limit: u32) -> Result<Vec<FoundMessage>, StoreError> {
        on!(self.messages_by_platform_id(id, limit))
    }

    /// The partitions of a stream that were ever owned, in order.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn partitions(&self, stream: i64) -> Result<Vec<PartitionRow>, StoreError> {
        on!(self.partitions(stream))
    }
}

/// What people do by hand, with how it went.
impl Store {
    /// Writes down what is about to be done.
    ///
    /// # Errors
    /// As [`StoreError::Query`]; then it must not be done.
    pub async fn begin_operator_action(&self, action: &OperatorAction) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        on!(self.begin_operator_action(id, action))?;
        Ok(id)
    }

    /// Writes down how it went.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn end_operator_action(&self, id: Uuid, result: &str) -> Result<(), StoreError> {
        on!(self.end_operator_action(id, result))
    }

    /// The newest actions before a place, newest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn operator_actions(
        &self,
        before: Option<(Timestamp, Uuid)>,
        limit: u32,
    ) -> Result<Vec<RecordedAction>, StoreError> {
        on!(self.operator_actions(before, limit))
    }
}

/// Holds.
impl Store {
    /// Every hold, however many, for a worker that does not know one would begin its turns: those of bots and partitions, then
    /// those of conversations, oldest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        on!(self.holds())
    }

    /// Holds something; one that is held already stays as it is.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn put_hold(&self, hold: &Hold) -> Result<(), StoreError> {
        on!(self.put_hold(hold))
    }

    /// Lets it go on; false when it was not held.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn remove_hold(&self, scope: HoldScope, target: &str) -> Result<bool, StoreError> {
        on!(self.remove_hold(scope, target))
    }
}

/// Jobs.
impl Store {
    /// Writes a new job.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn create_job(&self, job: &Job) -> Result<(), StoreError> {
        on!(self.create_job(job))
    }

    /// Writes how far a job is, over what was there.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn update_job(&self, job: &Job) -> Result<(), StoreError> {
        on!(self.update_job(job))
    }

    /// The newest jobs, newest first.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn jobs(&self, limit: u32) -> Result<Vec<Job>, StoreError> {
        on!(self.jobs(limit))
    }
}

/// The lowest `UUIDv7` of a moment: turns' ids begin with the time at which their messages came.
fn first_id(since: Timestamp) -> Uuid {
    let millis = u64::try_from(since.as_micros() / 1_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}
