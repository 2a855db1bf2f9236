//! From a turn's data to its receipts: the transaction, the outbound stream, the cache.
//!
//! Refuses to give up on its own: the outcome of an interrupted transaction is unknown until the database has answered.
//! Invariant: what was committed is on the outbound stream before the lane goes on, also when a crash came between.

use std::sync::Arc;

use backoff::backoff::Backoff as _;
use futures_util::future::BoxFuture;
use tracing::Instrument as _;

use super::verdict::{Step, away, failed};
use super::{Open, Turns, outbox};
use crate::message::{Channel, TerminalState};
use crate::responder::journal::{MAX_PAUSE, patience};
use crate::scheduler::{Task, Verdict};
use crate::store::{CommitOutcome, Committed, PendingDelivery, StoredMessage, TurnCommit};
use crate::telemetry::{chain, metric};

impl Turns {
    /// Apart from the rest of the turn in memory, because a turn spends its time in the responder, and many do at once.
    pub(super) fn commit<'a>(
        &'a self,
        task: &'a Task,
        commit: TurnCommit,
        loaded: Option<&'a Open>,
    ) -> BoxFuture<'a, Step<Vec<Committed>>> {
        Box::pin(self.commit_until_answered(task, commit, loaded))
    }

    /// Commits until the database has answered: the outcome of an interrupted transaction is unknown, and asking again is
    /// safe because the ledger holds each message once.
    async fn commit_until_answered(
        &self,
        task: &Task,
        commit: TurnCommit,
        loaded: Option<&Open>,
    ) -> Step<Vec<Committed>> {
        let span = tracing::info_span!(
            "COMMIT turn",
            otel.kind = "client",
            db.system.name = self.store.system(),
            turnwise.commit.outcome = tracing::field::Empty
        );
        let commit = Arc::new(commit);
        let mut pause = patience();
        let outcome = loop {
            let started = std::time::Instant::now();
            let outcome = self.store.commit(Arc::clone(&commit)).instrument(span.clone()).await;
            metric::commit(started.elapsed(), matches!(outcome, Ok(CommitOutcome::Fenced)));
            match outcome {
                Ok(outcome) => break outcome,
                Err(error) if error.is_transient() => {
                    tracing::warn!(error = %chain(&error), "the commit has no answer, asking again");
                    let sleep = tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE));
                    if task.cancellation.run_until_cancelled(sleep).await.is_none() {
                        return Err(Box::new(Verdict::Stopped));
                    }
                }
                Err(error) => return Err(failed("store", chain(&error), None)),
            }
        };
        span.record("turnwise.commit.outcome", if matches!(outcome, CommitOutcome::Fenced) { "fenced" } else { "ok" });
        // Somebody else has ended the message meanwhile, and may have looked for its journal before this turn wrote to it.
        if matches!(outcome, CommitOutcome::AlreadyTerminal(_)) && commit.journal.is_some() {
            self.store.remove_spent_journals().await.map_err(|error| away(&error))?;
        }
        match outcome {
            CommitOutcome::Committed { committed, merged, deliveries, first_ordinal } => {
                // Less was stored than was to be when a person took over meanwhile.
                let may_be_less = commit.suppress_if_taken && commit.state == TerminalState::HandedOff;
                let is_whole = committed.state() == commit.state && !may_be_less;
                let receipts: Vec<_> = std::iter::once(committed).chain(merged).collect();
                if let (Some(loaded), Some(first)) = (loaded, first_ordinal) {
                    match is_whole {
                        true => Box::pin(self.remember(loaded, &commit, first)).await,
                        false => Box::pin(self.cache.invalidate(loaded.conversation.id)).await,
                    }
                }
                if commit.key.channel == Channel::Web {
                    for receipt in &receipts {
                        self.publisher.turn_notice(receipt.turn_id()).await;
                    }
                    if let Some(conversation_id) = commit.conversation_id {
                        self.publisher.conversation_notice(conversation_id).await;
                    }
                }
                self.publish(task, &deliveries).await?;
                Ok(receipts)
            }
            CommitOutcome::AlreadyTerminal(committed) if task.all().count() == 1 => {
                Box::pin(self.finish_settled(task, vec![committed])).await
            }
            CommitOutcome::AlreadyTerminal(_) => Box::pin(self.settle(task)).await,
            CommitOutcome::Fenced => Err(Box::new(Verdict::Fenced)),
            CommitOutcome::ConversationMoved => Err(Box::new(Verdict::Wait {
                cause: "the conversation was opened or removed by somebody else meanwhile".to_owned(),
                after: None,
            })),
        }
    }

    /// Those of the messages that the ledger has already, with what their commits left to do.
    pub(super) async fn settle(&self, task: &Task) -> Step<Vec<Committed>> {
        let ids: Vec<String> = task.all().map(|message| message.message_id.clone()).collect();
        let settled = self.store.settled(&ids).await.map_err(|error| away(&error))?;
        self.finish_settled(task, settled).await
    }

    /// The ledger has these messages already: what their commits left to do is done, in case a crash came between.
    pub(super) async fn finish_settled(&self, task: &Task, settled: Vec<Committed>) -> Step<Vec<Committed>> {
        let messages: Vec<_> = task.all().cloned().collect();
        self.bury_again(&messages, &settled).await.map_err(|error| away(&error))?;
        for committed in &settled {
            let pending = self.store.pending_of_turn(committed.turn_id()).await.map_err(|error| away(&error))?;
            self.publish(task, &pending).await?;
        }
        Ok(settled)
    }

    /// Puts deliveries on the outbound stream, for as long as it takes: the lane must not go on before, or a later reply
    /// could leave first.
    async fn publish(&self, task: &Task, deliveries: &[PendingDelivery]) -> Step<()> {
        let mut pause = patience();
        while let Err(error) = outbox::publish(&self.store, &self.publisher, deliveries).await {
            tracing::warn!(error = %chain(&error), "replies not on the stream yet, trying again");
            let sleep = tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE));
            if task.cancellation.run_until_cancelled(sleep).await.is_none() {
                return Err(Box::new(Verdict::Stopped));
            }
        }
        Ok(())
    }

    async fn remember(&self, loaded: &Open, commit: &TurnCommit, first_ordinal: i64) {
        let stored: Vec<StoredMessage> = commit
            .messages
            .iter()
            .zip(first_ordinal..)
            .map(|(message, ordinal)| message.clone().stored(ordinal, Some(commit.turn_id)))
            .collect();
        let count = stored.last().map_or(first_ordinal - 1, |message| message.ordinal);
        self.cache.append(loaded.conversation.id, count, &stored).await;
    }
}
