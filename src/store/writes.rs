//! What one transaction of a group writes: turns are committed, sends begun and ended, all in one.
//!
//! Refuses to know a database: the statements are given. Invariant: locks are taken in one order, whatever a group holds:
//! partitions, ledger rows, conversations, deliveries, and each kind in its own order, so groups of several processes never
//! wait in a circle.

use std::sync::Arc;

use super::commit::{End, Partition, Statements, Turns};
use super::sending::{self, Beginning, Ending, Moved};
use super::{CommitOutcome, SendStart, Settled, StoreError, TurnCommit};

/// What a caller wants written.
pub(super) enum Asked {
    Commit(Arc<TurnCommit>),
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
    moved: Moved,
}

impl<'a> Writes<'a> {
    pub(super) fn new(asked: &'a [Asked]) -> Self {
        let (mut turns, mut beginnings, mut endings) = (Vec::new(), Vec::new(), Vec::new());
        for asked in asked {
            match asked {
                Asked::Commit(turn) => turns.push(&**turn),
                Asked::Begin(beginning) => beginnings.push(beginning),
                Asked::End(ending) => endings.push(ending),
            }
        }
        Self { asked, turns: Turns::new(turns), beginnings, endings, moved: Moved::default() }
    }

    /// Everything but the end of the transaction.
    pub(super) async fn write(&mut self, statements: &mut impl Statements) -> Result<End, StoreError> {
        let begun = self.beginnings.iter().map(|beginning| Partition::of(&beginning.ownership));
        let partitions = self.turns.partitions().chain(begun).collect();
        let epochs = statements.lock_partitions(&partitions).await?;
        let end = self.turns.write(statements, &epochs).await?;
        if end == End::RollBackAndRepeat || (self.beginnings.is_empty() && self.endings.is_empty()) {
            return Ok(end);
        }
        self.moved = sending::move_all(statements, &epochs, &self.beginnings, &self.endings).await?;
        Ok(End::Commit)
    }

    /// In the order of the calls, once the transaction has ended.
    pub(super) fn outcomes(self) -> Vec<Outcome> {
        let mut commits = self.turns.outcomes().into_iter().map(Outcome::Commit);
        let mut starts = self.moved.starts.into_iter().map(Outcome::Begin);
        let mut ends = self.moved.ends.into_iter().map(Outcome::End);
        let outcome = |asked: &Asked| match asked {
            Asked::Commit(_) => commits.next(),
            Asked::Begin(_) => starts.next(),
            Asked::End(_) => ends.next(),
        };
        self.asked.iter().filter_map(outcome).collect()
    }
}
