//! What committing a group of turns is, in terms of the statements that each database has for it.
//!
//! Refuses to end the transaction: whoever began it does as [`End`] says. Invariants: what becomes of one turn never depends
//! on another of its group, because [`keys`] keeps those apart that share anything; locks are taken in one order, partitions,
//! ledger rows, conversations, and each kind in its own order, so groups of several processes never wait in a circle.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use super::error::refused;
use super::sending::Found;
use super::values::{
    self, ConversationChange, ConversationValues, DeliveryBegun, DeliveryEnded, DeliveryValues, MessageValues,
    TurnValues,
};
use super::{
    BATCH_ROWS, CommitOutcome, Committed, Conversation, MergedMessage, PendingDelivery, StoreError, TurnCommit, merge,
};
use crate::message::ConversationKey;

/// The statements of groups, one round trip each, inside a transaction. None takes more rows than [`BATCH_ROWS`], and none
/// is for an empty list.
pub(super) trait Statements: Send {
    /// The epochs of partitions (stream and number), which stay as they are until the transaction ends.
    fn lock_partitions(
        &mut self,
        partitions: &BTreeSet<(i64, u16)>,
    ) -> impl Future<Output = Result<HashMap<(i64, u16), i64>, StoreError>> + Send;

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

    /// Writes the columns a turn owns (G6).
    fn update_conversations(
        &mut self,
        changes: &[ConversationChange],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes messages; their conversations must be locked.
    fn insert_messages(
        &mut self,
        messages: &[MessageValues<'_>],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn insert_deliveries(
        &mut self,
        parts: &[DeliveryValues<'_>],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The deliveries' status and attempts, which stay until the transaction ends.
    fn lock_deliveries(
        &mut self,
        ids: &[Uuid],
    ) -> impl Future<Output = Result<HashMap<Uuid, Found>, StoreError>> + Send;

    fn begin_deliveries(&mut self, begun: &[DeliveryBegun]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    fn end_deliveries(&mut self, ended: &[DeliveryEnded<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// What two turns of one group do not have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Message(String),
    Conversation(Uuid),
    /// Of a conversation to be opened.
    Open(ConversationKey),
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
    turns: &'a [Arc<TurnCommit>],
    outcomes: Vec<Option<CommitOutcome>>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(turns: &'a [Arc<TurnCommit>]) -> Self {
        Self { turns, outcomes: turns.iter().map(|_| None).collect() }
    }

    /// In the order of the turns, once the transaction has ended.
    pub(super) fn outcomes(self) -> Vec<CommitOutcome> {
        self.outcomes.into_iter().flatten().collect()
    }

    /// Everything but the end of the transaction.
    pub(super) async fn write(&mut self, statements: &mut impl Statements) -> Result<End, StoreError> {
        self.fence(statements).await?;
        let is_torn = self.enter_ledger(statements).await?;
        let undecided = self.undecided();
        if is_torn && !undecided.is_empty() {
            return Ok(End::RollBackAndRepeat);
        }
        let current = self.take_conversations(statements).await?;
        let written = self.undecided();
        if written.is_empty() {
            return Ok(End::RollBack);
        }
        if written.len() < undecided.len() {
            return Ok(End::RollBackAndRepeat);
        }
        self.write_contents(statements, &current).await.map_err(refused("commit turns"))?;
        Ok(End::Commit)
    }

    async fn fence(&mut self, statements: &mut impl Statements) -> Result<(), StoreError> {
        let partitions = |turn: &TurnCommit| (turn.ownership.stream, turn.ownership.partition);
        let wanted = self.undecided().into_iter().map(partitions).collect();
        let epochs = statements.lock_partitions(&wanted).await?;
        self.decide(|turn| {
            let owned = epochs.get(&partitions(turn)) == Some(&turn.ownership.epoch);
            Ok((!owned).then_some(CommitOutcome::Fenced))
        })
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
            Ok((!is_opened || !is_there).then_some(CommitOutcome::ConversationMoved))
        })?;
        Ok(current)
    }

    async fn write_contents(
        &mut self,
        statements: &mut impl Statements,
        current: &HashMap<Uuid, Conversation>,
    ) -> Result<(), sqlx::Error> {
        let (mut changes, mut messages, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (turn, outcome) in self.turns.iter().zip(&mut self.outcomes).filter(|(_, outcome)| outcome.is_none()) {
            let conversation = turn.conversation_id.and_then(|id| current.get(&id));
            let mut first_ordinal = None;
            if let Some(conversation) = conversation {
                let (id, count) = (conversation.id, conversation.message_count);
                changes.extend(merge::change(conversation, turn));
                messages.extend(values::messages(&turn.messages, id, Some(turn.turn_id), count));
                first_ordinal = turn.messages.first().map(|_| count + 1);
            }
            parts.extend(values::deliveries(turn));
            *outcome = Some(committed(turn, first_ordinal));
        }
        for batch in changes.chunks(BATCH_ROWS) {
            statements.update_conversations(batch).await?;
        }
        for batch in messages.chunks(BATCH_ROWS) {
            statements.insert_messages(batch).await?;
        }
        for batch in parts.chunks(BATCH_ROWS) {
            statements.insert_deliveries(batch).await?;
        }
        Ok(())
    }

    fn undecided(&self) -> Vec<&'a TurnCommit> {
        let turns = self.turns.iter().zip(&self.outcomes);
        turns.filter(|(_, outcome)| outcome.is_none()).map(|(turn, _)| &**turn).collect()
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
