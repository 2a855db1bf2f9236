//! What one transaction of a group writes: turns are committed, sends begun and ended, all in one.
//!
//! Refuses to know a database: the statements are given. Invariant: locks are taken in one order, whatever a group holds:
//! partitions, deliveries, ledger rows, conversations, and each kind in its own order, so groups of several processes never
//! wait in a circle.

use std::sync::Arc;

use super::commit::{Contents, End, Partition, Rows, Statements, Turns};
use super::error::refused;
use super::sending::{self, Beginning, Ending};
use super::values::TokenValues;
use super::{BATCH_ROWS, CommitOutcome, SendStart, Settled, StoreError, TurnCommit};

/// What a caller wants written.
pub(super) enum Asked {
    /// With the caller's span, which is to be linked to the group's.
    Commit(Arc<TurnCommit>, tracing::Span),
    Begin(Beginning),
    End(Ending),
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Commit(CommitOutcome),
    Begin(SendStart),
    End(Option<Settled>),
}

/// The calls of a group and what became of each.
pub(super) struct Writes<'a> {
    asked: &'a [Asked],
    turns: Turns<'a>,
    beginnings: Vec<&'a Beginning>,
    endings: Vec<&'a Ending>,
    starts: Vec<SendStart>,
    ends: Vec<Option<Settled>>,
}

impl<'a> Writes<'a> {
    pub(super) fn new(asked: &'a [Asked]) -> Self {
        let (mut turns, mut beginnings, mut endings) = (Vec::new(), Vec::new(), Vec::new());
        for asked in asked {
            match asked {
                Asked::Commit(turn, _) => turns.push(&**turn),
                Asked::Begin(beginning) => beginnings.push(beginning),
                Asked::End(ending) => endings.push(ending),
            }
        }
        Self { asked, turns: Turns::new(turns), beginnings, endings, starts: Vec::new(), ends: Vec::new() }
    }

    /// Everything but the end of the transaction.
    pub(super) async fn write(&mut self, statements: &mut impl Statements) -> Result<End, StoreError> {
        let begun = self.beginnings.iter().map(|beginning| Partition::of(&beginning.ownership));
        let partitions = self.turns.partitions().chain(begun).collect();
        let begun = self.beginnings.iter().map(|beginning| beginning.delivery_id);
        let deliveries = begun.chain(self.endings.iter().map(|ending| ending.delivery_id)).collect::<Vec<_>>();
        let locked = statements.lock(&partitions, &deliveries).await?;
        let end = self.turns.enter(statements, &locked.epochs).await?;
        if end == End::RollBackAndRepeat || (end == End::RollBack && deliveries.is_empty()) {
            return Ok(end);
        }
        let contents = self.turns.contents();
        let Contents { changes, messages, parts, .. } = &contents;
        let (starts, begun) = sending::begin_all(&locked, &self.beginnings);
        let (ends, ended) = sending::end_all(&locked, &self.endings);
        (self.starts, self.ends) = (starts, ends);
        let largest = [changes.len(), messages.len(), parts.len(), begun.len(), ended.len()].into_iter().max();
        for number in 0..largest.unwrap_or(0).div_ceil(BATCH_ROWS) {
            let rows = Rows {
                changes: batch(changes, number),
                messages: batch(messages, number),
                parts: batch(parts, number),
                begun: batch(&begun, number),
                ended: batch(&ended, number),
            };
            statements.write(&rows).await.map_err(refused("write a group"))?;
        }
        write_rarities(statements, &contents).await.map_err(refused("write a group"))?;
        Ok(End::Commit)
    }

    /// In the order of the calls, once the transaction has ended.
    pub(super) fn outcomes(self) -> Vec<Outcome> {
        let mut commits = self.turns.outcomes().into_iter().map(Outcome::Commit);
        let mut starts = self.starts.into_iter().map(Outcome::Begin);
        let mut ends = self.ends.into_iter().map(Outcome::End);
        let outcome = |asked: &Asked| match asked {
            Asked::Commit(..) => commits.next(),
            Asked::Begin(_) => starts.next(),
            Asked::End(_) => ends.next(),
        };
        self.asked.iter().filter_map(outcome).collect()
    }
}

/// What most groups have none of: a statement of its own each, where there is something.
async fn write_rarities(statements: &mut impl Statements, contents: &Contents<'_>) -> Result<(), sqlx::Error> {
    for batch in contents.actions.chunks(BATCH_ROWS) {
        statements.insert_actions(batch).await?;
    }
    if !contents.tokens.is_empty() {
        let used = contents.tokens.iter().map(|(&(bot, day), &tokens)| TokenValues {
            bot,
            day,
            tokens: i64::try_from(tokens).unwrap_or(i64::MAX),
        });
        statements.add_tokens(&used.collect::<Vec<_>>()).await?;
    }
    for batch in contents.records.chunks(BATCH_ROWS) {
        statements.insert_records(batch).await?;
    }
    for batch in contents.journaled.chunks(BATCH_ROWS) {
        statements.remove_journals(batch).await?;
    }
    for batch in contents.handed_off.chunks(BATCH_ROWS) {
        statements.cancel_actions(batch).await?;
    }
    for batch in contents.suppressed.chunks(BATCH_ROWS) {
        statements.hand_off_turns(batch).await?;
    }
    Ok(())
}

fn batch<T>(rows: &[T], number: usize) -> &[T] {
    rows.chunks(BATCH_ROWS).nth(number).unwrap_or_default()
}
