//! What committing a group of turns is, in terms of the statements that each database has for it.
//!
//! Refuses to end the transaction: whoever began it does as [`End`] says. Invariant: what becomes of one turn never depends on
//! another of its group, because [`keys`] keeps those apart that share anything.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::error::refused;
use super::sending::Found;
use super::values::{
    self, ActionValues, ConversationChange, ConversationValues, DeliveryBegun, DeliveryEnded, DeliveryValues,
    JournalValues, MessageValues, RecordValues, TokenValues, TurnValues,
};
use super::{
    BATCH_ROWS, CommitOutcome, Committed, Conversation, MergedMessage, Ownership, PendingDelivery, StoreError,
    TurnCommit, merge,
};
use crate::message::{ConversationKey, ConversationStatus, Role, TerminalState};

/// A partition as the database knows it: its stream's number, and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub(super) struct Partition(pub(super) i64, pub(super) u16);

impl Partition {
    pub(super) const fn of(ownership: &Ownership) -> Self {
        Self(ownership.stream, ownership.partition)
    }
}

/// Under which epoch each partition is owned.
pub(super) type Epochs = HashMap<Partition, i64>;

/// Whether this ownership is the partition's present one.
pub(super) fn is_owned(epochs: &Epochs, ownership: &Ownership) -> bool {
    epochs.get(&Partition::of(ownership)) == Some(&ownership.epoch)
}

/// Holds a partition until the transaction ends: what follows is written by its owner, or not at all. Nobody's when `None`.
///
/// # Errors
/// [`StoreError::Fenced`] when the partition has a newer owner.
pub(super) async fn hold(statements: &mut impl Statements, under: Option<&Ownership>) -> Result<(), StoreError> {
    let Some(ownership) = under else { return Ok(()) };
    let locked = statements.lock(&BTreeSet::from([Partition::of(ownership)]), &[]).await?;
    if is_owned(&locked.epochs, ownership) { Ok(()) } else { Err(StoreError::Fenced) }
}

/// The statements of groups, one round trip each, inside a transaction. None takes more rows than [`super::BATCH_ROWS`].
pub(super) trait Statements: Send {
    /// The epochs of partitions, and deliveries' status and attempts; they stay as they are until the transaction ends.
    fn lock(
        &mut self,
        partitions: &BTreeSet<Partition>,
        deliveries: &[Uuid],
    ) -> impl Future<Output = Result<Locked, StoreError>> + Send;

    /// Writes the ledger rows that are not there yet, and tells their dedupe ids.
    fn insert_turns(
        &mut self,
        turns: &[TurnValues<'_>],
    ) -> impl Future<Output = Result<HashSet<String>, sqlx::Error>> + Send;

    fn find_turns(&mut self, dedupe_ids: &[&str]) -> impl Future<Output = Result<Vec<Committed>, StoreError>> + Send;

    /// Writes the conversations whose id and key are free, and tells their ids.
    fn insert_conversations(
        &mut self,
        new: &[ConversationValues<'_>],
    ) -> impl Future<Output = Result<HashSet<Uuid>, sqlx::Error>> + Send;

    /// The conversations as they are now, and stay until the transaction ends.
    fn lock_conversations(
        &mut self,
        ids: &[Uuid],
    ) -> impl Future<Output = Result<HashMap<Uuid, Conversation>, StoreError>> + Send;

    /// Writes rows of every kind; the conversations of messages and of changes must be locked, and deliveries that are moved.
    fn write(&mut self, rows: &Rows<'_>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Makes `handed_off` of ledger rows written before in the same transaction.
    fn hand_off_turns(&mut self, ids: &[Uuid]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes steps of turns, over what was there under their names.
    fn write_journal(&mut self, steps: &[JournalValues<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn remove_journals(&mut self, turn_ids: &[Uuid]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn insert_records(&mut self, records: &[RecordValues]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Adds to what bots have used. The rows come in one order whoever adds, so that nobody waits in a circle.
    fn add_tokens(&mut self, tokens: &[TokenValues<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn insert_actions(&mut self, actions: &[ActionValues<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Cancels what of the conversations waits for a person's word.
    fn cancel_actions(&mut self, conversation_ids: &[Uuid]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// What [`Statements::lock`] finds.
#[derive(Default)]
pub(super) struct Locked {
    pub(super) epochs: Epochs,
    pub(super) deliveries: HashMap<Uuid, Found>,
}

/// Rows to be written or changed, of each kind at most [`super::BATCH_ROWS`].
#[derive(Default)]
pub(super) struct Rows<'a> {
    /// The columns a turn owns (G6).
    pub(super) changes: &'a [ConversationChange],
    pub(super) messages: &'a [MessageValues<'a>],
    pub(super) parts: &'a [DeliveryValues<'a>],
    pub(super) begun: &'a [DeliveryBegun],
    pub(super) ended: &'a [DeliveryEnded<'a>],
}

/// What two calls of one group do not have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Message(String),
    Conversation(Uuid),
    /// Of a conversation to be opened.
    Open(ConversationKey),
    Delivery(Uuid),
}

pub(super) fn keys(turn: &TurnCommit) -> Vec<Key> {
    let mut keys = turn.dedupe_ids().map(|id| Key::Message(id.to_owned())).collect::<Vec<_>>();
    keys.extend(turn.conversation_id.map(Key::Conversation));
    keys.extend(turn.new_conversation.as_ref().map(|new| Key::Open(new.key.clone())));
    keys
}

/// How the transaction is to end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    Commit,
    /// Nothing was written, and every outcome is known.
    RollBack,
    /// What was written of turns that turned out to be moved must not stay: the others are written again, without them.
    RollBackAndRepeat,
}

/// The turns of a group and what became of each.
pub(super) struct Turns<'a> {
    turns: Vec<&'a TurnCommit>,
    outcomes: Vec<Option<CommitOutcome>>,
    /// The conversations of those that were entered, as they are before.
    current: HashMap<Uuid, Conversation>,
    /// What is left of turns whose conversation was taken over meanwhile, by their place.
    suppressed: HashMap<usize, TurnCommit>,
}

/// The rows of turns beside those in the ledger.
#[derive(Default)]
pub(super) struct Contents<'a> {
    pub(super) changes: Vec<ConversationChange>,
    pub(super) messages: Vec<MessageValues<'a>>,
    pub(super) parts: Vec<DeliveryValues<'a>>,
    pub(super) actions: Vec<ActionValues<'a>>,
    pub(super) records: Vec<RecordValues>,
    /// What was used, by bot and day.
    pub(super) tokens: BTreeMap<(&'a str, i64), u64>,
    /// The journals that end.
    pub(super) journaled: Vec<Uuid>,
    /// The conversations given to a person.
    pub(super) handed_off: Vec<Uuid>,
    /// The turns that were entered with another state, and are handed off.
    pub(super) suppressed: Vec<Uuid>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(turns: Vec<&'a TurnCommit>) -> Self {
        let outcomes = turns.iter().map(|_| None).collect();
        Self { turns, outcomes, current: HashMap::new(), suppressed: HashMap::new() }
    }

    /// Those of the turns that are still to be written.
    pub(super) fn partitions(&self) -> impl Iterator<Item = Partition> {
        self.undecided().into_iter().map(|turn| Partition::of(&turn.ownership))
    }

    /// In the order of the turns, once the transaction has ended.
    pub(super) fn outcomes(self) -> Vec<CommitOutcome> {
        self.outcomes.into_iter().flatten().collect()
    }

    /// Enters the turns whose partitions are owned into the ledger, and takes their conversations.
    pub(super) async fn enter(&mut self, statements: &mut impl Statements, epochs: &Epochs) -> Result<End, StoreError> {
        self.decide(|turn| Ok((!is_owned(epochs, &turn.ownership)).then_some(CommitOutcome::Fenced)))?;
        let is_torn = self.enter_ledger(statements).await?;
        let entered = self.undecided().len();
        // Rows of a turn that is in the ledger in part must not stay, also when nothing else is to be written.
        if is_torn && entered > 0 {
            return Ok(End::RollBackAndRepeat);
        }
        if entered == 0 {
            return Ok(End::RollBack);
        }
        self.current = self.take_conversations(statements).await?;
        if self.undecided().len() < entered {
            return Ok(End::RollBackAndRepeat);
        }
        let undecided = self.turns.iter().zip(&self.outcomes).enumerate().filter(|(_, (_, outcome))| outcome.is_none());
        let suppressed = undecided.filter_map(|(place, (turn, _))| Some((place, suppressed(turn, &self.current)?)));
        self.suppressed = suppressed.collect();
        Ok(End::Commit)
    }

    /// What is to be written of the turns that were entered, which is what makes them committed.
    pub(super) fn contents(&mut self) -> Contents<'_> {
        let Self { turns, outcomes, current, suppressed } = self;
        let mut contents = Contents::default();
        let undecided = turns.iter().zip(outcomes).enumerate().filter(|(_, (_, outcome))| outcome.is_none());
        for (place, (turn, outcome)) in undecided {
            let turn: &TurnCommit = suppressed.get(&place).unwrap_or(turn);
            let conversation = turn.conversation_id.and_then(|id| current.get(&id));
            let mut first_ordinal = None;
            if let Some(conversation) = conversation {
                let (id, count) = (conversation.id, conversation.message_count);
                contents.changes.extend(merge::change(conversation, turn));
                contents.messages.extend(values::messages(&turn.messages, id, Some(turn.turn_id), count));
                first_ordinal = turn.messages.first().map(|_| count + 1);
                contents.actions.extend(values::actions(turn, id));
                contents.handed_off.extend(turn.handoff.then_some(id));
            }
            contents.parts.extend(values::deliveries(turn));
            contents.records.extend(values::record(turn));
            if turn.tokens > 0 {
                let used = contents.tokens.entry((&*turn.key.bot, turn.committed_at.day())).or_default();
                *used = used.saturating_add(turn.tokens);
            }
            contents.journaled.extend(turn.journal);
            *outcome = Some(committed(turn, first_ordinal));
        }
        contents.suppressed.extend(suppressed.values().map(|turn| turn.turn_id));
        contents
    }

    /// Writes the rows of all turns, in one order whoever writes them. True when rows were written of a turn whose other
    /// rows were there already: they must not stay.
    async fn enter_ledger(&mut self, statements: &mut impl Statements) -> Result<bool, StoreError> {
        let refused = refused("commit turns");
        let undecided = self.undecided();
        let of_turn = |turn: &&'a TurnCommit| {
            let turn = *turn;
            turn.merged.iter().map(move |message| values::merged(turn, message)).chain([values::turn(turn)])
        };
        let mut rows = undecided.iter().flat_map(of_turn).collect::<Vec<_>>();
        rows.sort_unstable_by(|left, right| left.dedupe_id.cmp(right.dedupe_id));
        let mut entered = HashSet::new();
        for batch in rows.chunks(BATCH_ROWS) {
            entered.extend(statements.insert_turns(batch).await.map_err(&refused)?);
        }
        let known = rows.iter().map(|row| row.dedupe_id).filter(|id| !entered.contains(*id)).collect::<Vec<_>>();
        let mut found = HashMap::new();
        for batch in known.chunks(BATCH_ROWS) {
            let batch = statements.find_turns(batch).await?;
            found.extend(batch.into_iter().map(|committed| (committed.dedupe_id.clone(), committed)));
        }
        let mut is_torn = false;
        self.decide(|turn| {
            let Some(known) = turn.dedupe_ids().find(|id| !entered.contains(*id)) else { return Ok(None) };
            is_torn |= turn.dedupe_ids().any(|id| entered.contains(id));
            // Another row stands in its way, such as one with its turn id.
            let committed = found.remove(known).ok_or_else(|| refused(sqlx::Error::RowNotFound))?;
            Ok(Some(CommitOutcome::AlreadyTerminal(committed)))
        })?;
        Ok(is_torn)
    }

    /// Opens new conversations and locks all.
    async fn take_conversations(
        &mut self,
        statements: &mut impl Statements,
    ) -> Result<HashMap<Uuid, Conversation>, StoreError> {
        let undecided = self.undecided();
        let new = undecided.iter().filter_map(|turn| turn.new_conversation.as_ref()).map(values::conversation);
        let new = new.collect::<Vec<_>>();
        let opened = match new.is_empty() {
            true => HashSet::new(),
            false => statements.insert_conversations(&new).await.map_err(refused("commit turns"))?,
        };
        let ids = undecided.iter().filter_map(|turn| turn.conversation_id).collect::<Vec<_>>();
        let current = match ids.is_empty() {
            true => HashMap::new(),
            false => statements.lock_conversations(&ids).await?,
        };
        self.decide(|turn| {
            let is_opened = turn.new_conversation.as_ref().is_none_or(|new| opened.contains(&new.id));
            let is_there = turn.conversation_id.is_none_or(|id| current.contains_key(&id));
            let is_left = turn.conversation_id.and_then(|id| current.get(&id)).is_some_and(|now| is_left(turn, now));
            Ok((!is_opened || !is_there || is_left).then_some(CommitOutcome::ConversationMoved))
        })?;
        Ok(current)
    }

    fn undecided(&self) -> Vec<&'a TurnCommit> {
        let turns = self.turns.iter().zip(&self.outcomes);
        turns.filter(|(_, outcome)| outcome.is_none()).map(|(turn, _)| *turn).collect()
    }

    /// Asks for the outcome of each turn that has none.
    fn decide(
        &mut self,
        mut judge: impl FnMut(&TurnCommit) -> Result<Option<CommitOutcome>, StoreError>,
    ) -> Result<(), StoreError> {
        for (turn, outcome) in self.turns.iter().zip(&mut self.outcomes).filter(|(_, outcome)| outcome.is_none()) {
            *outcome = judge(turn)?;
        }
        Ok(())
    }
}

/// Whether the conversation is not the one that the turn has read: its messages went to another one, or another lane of the
/// same chat wrote to it.
fn is_left(turn: &TurnCommit, now: &Conversation) -> bool {
    let is_filed_elsewhere = now.chat.filed_under.is_some() && now.status != ConversationStatus::Closed;
    let is_shared = now.chat.moved_to.is_some() || now.status == ConversationStatus::Closed;
    is_filed_elsewhere || (is_shared && turn.messages_read.is_some_and(|read| read != now.message_count))
}

/// What is left of a turn whose conversation was taken over while it was decided, if that is to end it.
fn suppressed(turn: &TurnCommit, current: &HashMap<Uuid, Conversation>) -> Option<TurnCommit> {
    let conversation = current.get(&turn.conversation_id?)?;
    if !turn.suppress_if_taken || conversation.status == ConversationStatus::Bot {
        return None;
    }
    let said = turn.messages.iter().filter(|message| message.role == Role::User);
    Some(TurnCommit {
        state: TerminalState::HandedOff,
        messages: said.cloned().collect(),
        metadata_patches: Vec::new(),
        workflow_state: None,
        handoff: false,
        actions: Vec::new(),
        deliveries: Vec::new(),
        ..turn.clone()
    })
}

fn merged(message: &MergedMessage) -> Committed {
    Committed { dedupe_id: message.dedupe_id.clone(), turn_id: message.turn_id, state: message.state }
}

fn committed(turn: &TurnCommit, first_ordinal: Option<i64>) -> CommitOutcome {
    let pending = |part| PendingDelivery { part, traceparent: turn.traceparent.clone() };
    CommitOutcome::Committed {
        committed: Committed { dedupe_id: turn.dedupe_id.clone(), turn_id: turn.turn_id, state: turn.state },
        merged: turn.merged.iter().map(merged).collect(),
        deliveries: turn.deliveries.iter().cloned().map(pending).collect(),
        first_ordinal,
    }
}
