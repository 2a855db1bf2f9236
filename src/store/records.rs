//! What the verbs of [`super::Store`] take and give: conversations, messages, turns, deliveries, and the receipts that let
//! custody move on.
//!
//! Refuses to touch a database. Invariant: a [`Committed`], a [`Settled`] and a [`PendingDelivery`] have no public
//! constructor; only the store makes them, from what a transaction wrote or a row says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{ChatState, NewAction};
use crate::message::{
    Attachment, Author, ConversationKey, ConversationStatus, DeliveryStatus, OutboundPart, Peer, Platform, Role,
    TerminalState, Timestamp,
};

/// A place on a stream. The stream's own number (one per incarnation, see [`super::Store::stream_number`]) is part of it, so that a
/// stream deleted and made again never makes new messages look like old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub stream: i64,
    pub sequence: u64,
}

/// The right to commit for a partition: taken by [`super::Store::take_over`], void as soon as somebody else takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ownership {
    pub stream: i64,
    pub partition: u16,
    pub epoch: i64,
}

/// What [`super::Store::take_over`] found: the new right, and how far everything is already terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    pub ownership: Ownership,
    /// The last sequence below and at which every message of the partition is terminal; `None` when this database has never
    /// owned the partition of this stream.
    pub checkpoint: Option<u64>,
}

/// A conversation as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conversation {
    pub id: Uuid,
    #[serde(skip)]
    pub key: ConversationKey,
    pub platform: Platform,
    pub device_id: Option<String>,
    pub status: ConversationStatus,
    pub assignee: Option<String>,
    /// The beginning of the last message, for lists; at most [`SNIPPET_CHARS`] characters.
    pub snippet: Option<String>,
    pub last_message_at: Option<Timestamp>,
    pub message_count: i64,
    pub metadata: Map<String, Value>,
    /// What is known of its chat.
    #[serde(skip)]
    pub chat: ChatState,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Conversation {
    /// The peer that its messages are sent to.
    #[must_use]
    pub fn address(&self) -> &Peer {
        self.chat.moved_to.as_ref().unwrap_or(&self.key.peer)
    }
}

/// The longest snippet kept of a message: one line of a list on a wide screen.
pub const SNIPPET_CHARS: usize = 160;

/// A new conversation, before it has an id.
#[derive(Debug, Clone, PartialEq)]
pub struct NewConversation {
    pub id: Uuid,
    pub key: ConversationKey,
    pub platform: Platform,
    pub device_id: Option<String>,
    pub metadata: Map<String, Value>,
    pub created_at: Timestamp,
}

/// What people and programs may change of a conversation. `metadata` is an RFC 7386 merge patch; `assignee: Some(None)`
/// clears the assignee.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConversationPatch {
    pub status: Option<ConversationStatus>,
    pub assignee: Option<Option<String>>,
    pub metadata: Option<Map<String, Value>>,
    /// Nothing is changed of a conversation that is otherwise.
    pub only_if: Option<Found>,
}

/// What a conversation must be like to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub status: ConversationStatus,
    /// Nobody has it, and its metadata have this member.
    pub unassigned_with: Option<&'static str>,
}

impl ConversationPatch {
    pub(super) fn applies_to(&self, conversation: &Conversation) -> bool {
        let is_without = |member| conversation.assignee.is_none() && conversation.metadata.contains_key(member);
        self.only_if
            .is_none_or(|found| conversation.status == found.status && found.unassigned_with.is_none_or(is_without))
    }
}

/// Which conversations to list: newest activity first.
#[derive(Debug, Clone, Default)]
pub struct ConversationFilter {
    /// Only conversations of these bots; `None` for all bots.
    pub bots: Option<Vec<String>>,
    pub device_id: Option<String>,
    pub status: Option<ConversationStatus>,
    pub assignee: Option<String>,
    /// Continue after this place: `updated_at` and id of the last row seen.
    pub after: Option<(Timestamp, Uuid)>,
    /// 1 to [`super::PAGE_ROWS_MAX`]; more is cut.
    pub limit: u32,
}

/// A message as stored. `ordinal` counts from 1 within its conversation, without gaps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Message")]
pub struct StoredMessage {
    pub id: Uuid,
    pub ordinal: i64,
    pub turn_id: Option<Uuid>,
    pub role: Role,
    pub author: Author,
    pub content: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// Tool calls asked for by an assistant message, or the call a tool message answers; the model API's JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform_message_id: Option<String>,
    pub created_at: Timestamp,
}

/// A message to be stored; its ordinal is given inside the transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct NewMessage {
    pub id: Uuid,
    pub role: Role,
    pub author: Author,
    pub content: String,
    pub attachments: Vec<Attachment>,
    pub tool: Option<Value>,
    pub platform_message_id: Option<String>,
    pub created_at: Timestamp,
}

impl NewMessage {
    /// The message as it is once stored.
    #[must_use]
    pub fn stored(self, ordinal: i64, turn_id: Option<Uuid>) -> StoredMessage {
        StoredMessage {
            id: self.id,
            ordinal,
            turn_id,
            role: self.role,
            author: self.author,
            content: self.content,
            attachments: self.attachments,
            tool: self.tool,
            platform_message_id: self.platform_message_id,
            created_at: self.created_at,
        }
    }
}

/// Where the time of a turn went, in microseconds; kept so that the console does not depend on trace sampling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnTimings {
    /// Accepted by the stream -> first delivery to a worker.
    pub stream_wait_us: u64,
    /// Delivery -> start of the turn.
    pub lane_wait_us: u64,
    /// Spent in the responder, over all attempts of this process.
    pub responder_us: u64,
}

/// Everything one turn makes durable, in one transaction (G4).
#[derive(Debug, Clone)]
pub struct TurnCommit {
    pub ownership: Ownership,
    pub position: Position,
    pub turn_id: Uuid,
    pub dedupe_id: String,
    /// Earlier messages of the lane that this turn takes in, in stream order.
    pub merged: Vec<MergedMessage>,
    pub key: ConversationKey,
    pub state: TerminalState,
    /// Why, for states that need a reason: `ignored`, `rejected`, `dead_lettered`.
    pub reason: Option<String>,
    pub attempts: u32,
    pub responder: Option<String>,
    /// `None` when nothing is said in any conversation (an ignored event, a first message that failed): then `messages`,
    /// `metadata_patches` and `workflow_state` are empty.
    pub conversation_id: Option<Uuid>,
    /// Written first when the turn is the conversation's first; its id is `conversation_id`.
    pub new_conversation: Option<NewConversation>,
    /// How many messages the conversation had when the turn read it; `None` when it did not read them. While a chat moves, and
    /// messages of it can be in two lanes, only the turn that has read everything is written.
    pub messages_read: Option<i64>,
    pub messages: Vec<NewMessage>,
    /// RFC 7386 merge patches, applied in this order to the metadata as it is inside the transaction. Several cannot always be
    /// made one: no patch says that an object takes the place of another.
    pub metadata_patches: Vec<Map<String, Value>>,
    /// Becomes `metadata.workflow_state`, the rest of the fresh metadata untouched.
    pub workflow_state: Option<Value>,
    /// Gives the conversation to a person: its status becomes `human`, unless somebody changed it from `bot` meanwhile.
    pub handoff: bool,
    /// Tool calls that from now on wait for a person's word.
    pub actions: Vec<NewAction>,
    pub deliveries: Vec<OutboundPart>,
    /// When a person has taken the conversation over meanwhile, nothing of the turn leaves or is stored but what the user said,
    /// and its state is `handed_off`.
    pub suppress_if_taken: bool,
    /// Whose journal ends with the turn: of the first of its messages; `None` when it has none.
    pub journal: Option<Uuid>,
    /// What replay and people need of the turn.
    pub record: Option<Value>,
    /// What the turn's models used, to be counted against the bot's budget; 0 counts nothing.
    pub tokens: u64,
    /// W3C trace context of the turn, carried in its deliveries.
    pub traceparent: Option<String>,
    pub timings: TurnTimings,
    pub received_at: Timestamp,
    pub started_at: Timestamp,
    pub committed_at: Timestamp,
}

impl TurnCommit {
    /// Of the turn's own message first, then of those merged.
    pub fn dedupe_ids(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.dedupe_id.as_str()).chain(self.merged.iter().map(|message| message.dedupe_id.as_str()))
    }
}

/// An inbound message that a later one's turn takes in: a ledger row of its own, in the same transaction.
#[derive(Debug, Clone)]
pub struct MergedMessage {
    pub turn_id: Uuid,
    pub dedupe_id: String,
    /// Its place on the stream of the turn's own message.
    pub sequence: u64,
    /// `merged` or `superseded`: answered by the turn, and the row says by which. Any other state is the message's own end,
    /// such as `ignored`, or `dead_lettered` together with the turn.
    pub state: TerminalState,
    pub reason: Option<String>,
    /// W3C trace context of the message itself.
    pub traceparent: Option<String>,
    pub timings: TurnTimings,
    pub received_at: Timestamp,
}

/// A ledger row, with the reply when there is one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Turn {
    pub id: Uuid,
    pub conversation_id: Option<Uuid>,
    pub state: TerminalState,
    /// The turn that answers it, for `merged` and `superseded`.
    pub merged_into: Option<Uuid>,
    pub reason: Option<String>,
    pub attempts: u32,
    pub responder: Option<String>,
    pub position: (i64, u64),
    pub traceparent: Option<String>,
    pub received_at: Timestamp,
    pub committed_at: Timestamp,
    /// The assistant's messages of this turn, in order.
    pub replies: Vec<StoredMessage>,
}

/// The receipt that lets a message be acknowledged: the ledger holds a terminal state for its dedupe id. Only this module
/// can make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub(super) dedupe_id: String,
    pub(super) turn_id: Uuid,
    pub(super) state: TerminalState,
}

impl Committed {
    /// The inbound message's `Nats-Msg-Id`.
    #[must_use]
    pub fn dedupe_id(&self) -> &str {
        &self.dedupe_id
    }

    #[must_use]
    pub const fn turn_id(&self) -> Uuid {
        self.turn_id
    }

    #[must_use]
    pub const fn state(&self) -> TerminalState {
        self.state
    }
}

impl Receipt for Committed {
    fn covers(&self, message_id: &str) -> bool {
        self.dedupe_id == message_id
    }
}

/// The receipt that lets an outbound part be acknowledged: its delivery is `sent`, `failed` or held as `uncertain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The delivery's id, as the stream's `Nats-Msg-Id` has it.
    pub(super) message_id: String,
    pub(super) status: DeliveryStatus,
}

impl Settled {
    /// `sent`, `failed` or `uncertain`.
    #[must_use]
    pub const fn status(&self) -> DeliveryStatus {
        self.status
    }
}

impl Receipt for Settled {
    /// Also of a message that was published once more, see [`crate::stream::Publisher::outbound_again`].
    fn covers(&self, message_id: &str) -> bool {
        let again = message_id.strip_prefix(self.message_id.as_str()).and_then(|rest| rest.strip_prefix('.'));
        self.message_id == message_id || again.is_some()
    }
}

/// Proof that a stream message's work is durable; [`crate::stream::Delivery::ack`] asks for one.
pub trait Receipt {
    /// Whether this receipt speaks for the message published under `message_id` (its `Nats-Msg-Id`).
    fn covers(&self, message_id: &str) -> bool;
}

/// A part that the same commit wrote as a row: what may be published to the outbound stream.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingDelivery {
    pub(super) part: OutboundPart,
    pub(super) traceparent: Option<String>,
}

impl PendingDelivery {
    #[must_use]
    pub const fn part(&self) -> &OutboundPart {
        &self.part
    }

    /// W3C trace context of the turn that wrote it.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }
}

/// A place in the order in which deliveries leave: by the inbound message they answer, then by their order in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeliveryCursor {
    pub position: Position,
    /// From 0, within the turn.
    pub ordinal: i64,
}

/// One page of [`super::Store::pending_of_partition`].
#[derive(Debug, Clone, PartialEq)]
pub struct PendingPage {
    pub deliveries: Vec<PendingDelivery>,
    /// Where the next page begins; `None` when this one is the last.
    pub next: Option<DeliveryCursor>,
}

/// The outcome of a commit that the database accepted or found already done.
#[derive(Debug)]
pub enum CommitOutcome {
    /// Written now; the deliveries may be published.
    Committed {
        committed: Committed,
        /// One for each merged message.
        merged: Vec<Committed>,
        deliveries: Vec<PendingDelivery>,
        /// The ordinal of the turn's first message; `None` when it stored none.
        first_ordinal: Option<i64>,
    },
    /// The ledger already held this dedupe id, or that of a merged message: nothing was written. When it held several, this
    /// is one of them.
    AlreadyTerminal(Committed),
    /// The partition has a newer owner: nothing was written, and nothing ever will be under this epoch.
    Fenced,
    /// `new_conversation` lost a race, or `conversation_id` does not exist: nothing was written, load again.
    ConversationMoved,
}

/// What a turn needs to begin, read in one go.
#[derive(Debug)]
pub struct TurnContextRow {
    /// Set when the ledger already holds the message: the turn must not run.
    pub already: Option<Committed>,
    /// The open conversation of the key, or of the chat that it is filed under; `None` when there is none.
    pub conversation: Option<Conversation>,
    /// The chat whose conversations the key's messages belong to, if not its own.
    pub filed_under: Option<Peer>,
    /// Whether the key's chat was known to take nothing from the bot.
    pub was_unreachable: bool,
}

/// What [`super::Store::begin_send`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendStart {
    /// Now `sending`, by us: go on. `attempt` counts from 1.
    Begun { attempt: u32, chat: ChatState },
    /// It was already `sending` when we looked: a crash came between the call and its answer.
    Interrupted,
    /// Nothing is left to do.
    Settled(Settled),
    /// The partition has a newer owner.
    Fenced,
    /// No such delivery: the message on the stream was not written by a commit to this database. It must not be sent, and
    /// there is nothing to record.
    Unknown(Settled),
}

/// What the platform said, to be recorded by [`super::Store::settle_send`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendResult {
    Sent {
        platform_message_id: Option<String>,
    },
    /// Known not to have arrived, to be tried again: back to `pending`.
    NotSent {
        error: String,
    },
    /// Nobody can tell whether it arrived, and it is to be tried again: back to `pending`. From then on it ends as `uncertain`
    /// where it would have ended as `failed`.
    Unclear {
        error: String,
    },
    Failed {
        error: String,
    },
    Uncertain {
        error: String,
    },
}

/// Somebody's reactions to a message, to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFeedback {
    /// Of the chat.
    pub key: ConversationKey,
    pub platform_message_id: String,
    /// The platform's id of the person or chat that reacted.
    pub sender: String,
    /// Emoji, or the platform's names of others; empty when they were taken back.
    pub reactions: Vec<String>,
    pub received_at: Timestamp,
}

/// Somebody's reactions to a stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    pub message_id: Uuid,
    pub sender: String,
    pub reactions: Vec<String>,
    pub received_at: Timestamp,
}

/// A delivery as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryRow {
    pub id: Uuid,
    pub turn_id: Uuid,
    pub message_id: Uuid,
    pub content: String,
    pub part: u16,
    pub parts: u16,
    pub status: DeliveryStatus,
    pub attempts: u32,
    pub error: Option<String>,
    pub platform_message_id: Option<String>,
    pub created_at: Timestamp,
    pub settled_at: Option<Timestamp>,
}

/// The outcome of claiming an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyClaim {
    /// Ours, or the same request again: this turn in this conversation.
    Granted { turn_id: Uuid, conversation_id: Uuid },
    /// The key was used for a request with another fingerprint.
    Conflict,
}

/// What the ledger says against the rules it must keep; empty lists mean none broken. Each list is cut at 1,000 entries.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct LedgerFaults {
    /// Turns whose stored user messages are not one for each message that the turn answers.
    pub doubled: Vec<Uuid>,
    /// Turns whose messages stand before those of an earlier stream message of their conversation.
    pub out_of_order: Vec<Uuid>,
}
