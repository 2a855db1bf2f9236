//! What a turn comes to: the responder's reply, silence where a person has the conversation, or a word about a spent budget.
//!
//! Refuses to write anything but the journal. Invariant: what an earlier attempt at the turn has done stays known, whatever is
//! decided now.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::burst::Burst;
use super::drafts::Place;
use super::record::TurnRecord;
use super::trace::record_content;
use super::verdict::{Step, away};
use super::{Open, Settings, Turns, commands};
use crate::channel;
use crate::config::Bot;
use crate::message::{ConversationKey, DraftId, TerminalState, Timestamp};
use crate::responder::history;
use crate::responder::journal::{Fault, Journal};
use crate::responder::{ConversationView, Deltas, Draft, Reply, Responder, TurnContext, TurnError, TurnRequest};
use crate::scheduler::{Failure, Verdict};
use crate::store::{Committed, Conversation, StoreError, StoredMessage};

/// What a turn comes to.
pub(super) struct Decided {
    pub(super) reply: Reply,
    pub(super) responder: Option<String>,
    /// Why nobody was asked, where the conversation is the bot's.
    pub(super) reason: Option<&'static str>,
    /// What stays known of its steps.
    pub(super) kept: TurnRecord,
    pub(super) silent: bool,
}

impl Decided {
    pub(super) fn silent() -> Self {
        Self { reply: Reply::default(), responder: None, reason: None, kept: TurnRecord::default(), silent: true }
    }

    pub(super) fn out_of_budget(bot: &Bot) -> Self {
        let reply = Reply::text(bot.budget_reply.clone());
        Self { reply, reason: Some("the bot's tokens of the day are spent"), silent: false, ..Self::silent() }
    }

    pub(super) fn state(&self) -> TerminalState {
        let handed_off = self.silent || (self.reply.handoff && self.reply.messages.is_empty());
        if handed_off { TerminalState::HandedOff } else { TerminalState::Answered }
    }
}

impl Turns {
    pub(super) async fn decide(
        &self,
        burst: &Burst<'_>,
        settings: &Settings,
        loaded: &mut Open,
        responder_time: &mut Duration,
    ) -> Step<Decided> {
        let (task, envelope) = (burst.task, &burst.envelope);
        let (name, responder) = (&settings.bot.responder, self.responder(&settings.bot)?);
        let history = Box::pin(self.history(&loaded.conversation)).await.map_err(|error| away(&error))?;
        // Somebody wrote between the two readings: an agent, or, when this process was paused meanwhile, the partition's new
        // owner this very turn. A model that was asked now would be shown its own answer as history.
        if history.last().is_some_and(|message| message.ordinal > loaded.conversation.message_count) {
            let cause = "the conversation went on while it was read".to_owned();
            return Err(Box::new(Verdict::Wait { cause, after: Some(Duration::ZERO) }));
        }
        let history = history::prune(commands::present(&history, &loaded.conversation.metadata), settings.budget);
        let request = TurnRequest {
            conversation: ConversationView {
                id: loaded.conversation.id,
                key: envelope.key.clone(),
                platform: envelope.platform,
                // The commit reads them again, under the conversation's lock.
                metadata: std::mem::take(&mut loaded.conversation.metadata),
            },
            messages: burst.new_messages(),
            history: history.into(),
            prompt: None,
        };
        let run = self.audience.begin(task, envelope);
        let address = ConversationKey { peer: loaded.conversation.address().clone(), ..envelope.key.clone() };
        let is_drafted = channel::shows_drafts(&settings.bot, &address.peer) && burst.guest_query().is_none();
        let draft = is_drafted.then(Arc::<Draft>::default);
        let context = TurnContext {
            turn_id: envelope.turn_id,
            attempt: task.attempt,
            deadline: tokio::time::Instant::now() + self.turn_timeout,
            cancellation: task.cancellation.clone(),
            journal: Journal::durable(
                burst.first_turn_id(),
                self.store.clone(),
                task.ownership,
                burst.may_change(&settings.bot, responder).then(|| burst.members()),
            ),
            deltas: draft.clone().map_or_else(|| run.deltas(), Deltas::into_draft),
        };
        let span =
            tracing::info_span!("invoke_agent", otel.name = format!("invoke_agent {name}"), otel.kind = "internal");
        let started = std::time::Instant::now();
        // Each on the heap: what wraps a future is else as large as that future several times over.
        let reply = Box::pin(ask(responder, &context, &request, &task.interruption));
        let reply = Box::pin(self.typing.during(&settings.bot, &address, reply));
        let reply = run.during(reply).instrument(span.clone());
        let reply = match &draft {
            None => reply.await,
            Some(draft) => {
                let id = DraftId::of_turn(task.messages[0].sequence);
                let place = Place {
                    bot: &settings.bot,
                    partition: task.ownership.partition,
                    filed_as: &loaded.conversation.key,
                    address: &address,
                    id,
                };
                Box::pin(self.drafts.during(&place, draft, reply)).await
            }
        };
        *responder_time = started.elapsed();
        let reply = reply.map_err(Box::new)?;
        if self.record_content {
            record_content(&span, &request, &reply);
        }
        let steps = context.journal.written().await;
        let kept = TurnRecord::of(&steps, || responder.describe(), Some(&settings.bot));
        let kept = kept.decided(&request.conversation.metadata, &reply, || responder.describe());
        Ok(Decided { reply, responder: Some(name.clone()), reason: None, kept, silent: false })
    }

    /// Whether the bot's models have used what they may on this day. Turns that run at once can pass it together, and one that
    /// has begun is finished.
    pub(super) async fn is_out_of_budget(&self, burst: &Burst<'_>, bot: &Bot) -> Step<bool> {
        let Some(most) = bot.tokens_per_day else { return Ok(false) };
        let used = self.store.tokens_used(&bot.name, Timestamp::now().day()).await.map_err(|error| away(&error))?;
        if used < most {
            return Ok(false);
        }
        let steps = self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?;
        Ok(steps.is_empty())
    }

    /// A turn of which the bot says nothing.
    pub(super) async fn keep_silent(&self, burst: &Burst<'_>, bot: &Bot) -> Step<Decided> {
        Ok(Decided { kept: self.done_before(burst, bot).await?, ..Decided::silent() })
    }

    /// What earlier attempts at a turn have done that is decided without a responder now.
    pub(super) async fn done_before(&self, burst: &Burst<'_>, bot: &Bot) -> Step<TurnRecord> {
        let steps = self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?;
        Ok(TurnRecord::of(&steps, || Value::Null, Some(bot)))
    }

    /// The stored messages of a conversation, from the cache when it is up to date, else from the database.
    async fn history(&self, conversation: &Conversation) -> Result<Arc<[StoredMessage]>, StoreError> {
        if conversation.message_count == 0 {
            return Ok(Arc::from([]));
        }
        if let Some(history) = self.cache.get(conversation.id, conversation.message_count).await {
            return Ok(history);
        }
        let history: Arc<[StoredMessage]> =
            self.store.recent_messages(conversation.id, self.history_messages).await?.into();
        // As many as there were when the last one was written: not the count read with the conversation before.
        let count = history.last().map_or(0, |message| message.ordinal);
        self.cache.put(conversation.id, count, &history).await;
        Ok(history)
    }
}

/// Runs the responder within its time, and stops it when the turn must stop or a newer message wants its place.
async fn ask(
    responder: &dyn Responder,
    context: &TurnContext,
    request: &TurnRequest,
    interruption: &CancellationToken,
) -> Result<Reply, Verdict<Committed>> {
    let failure = |reason, error: String, user_message| Failure { reason, error, user_message };
    let answer = async {
        if responder.keeps_messages() {
            Box::pin(context.journal.hold_members()).await?;
        }
        responder.respond(context, request).await
    };
    let answer = tokio::time::timeout_at(context.deadline, answer);
    // On the heap, so that it can be dropped before what it has begun is looked at.
    let mut answer = Box::pin(context.cancellation.run_until_cancelled(answer));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // A turn that has begun to change something outside runs to its end.
        () = interruption.cancelled() => match context.journal.has_effects() {
            true => answer.await,
            false => {
                drop(answer);
                return Err(Box::pin(interrupted(context)).await);
            }
        },
    };
    if let Some(verdict) = fault(&context.journal) {
        return Err(verdict);
    }
    match answer {
        None => Err(Verdict::Stopped),
        Some(Ok(Err(TurnError::Cancelled))) if context.cancellation.is_cancelled() => Err(Verdict::Stopped),
        // Stopped attempts do not count, so a responder that only says so would be asked for ever.
        Some(Ok(Err(error @ TurnError::Cancelled))) => {
            Err(Verdict::Failed { failure: failure("responder", format!("{error} by nobody"), None), after: None })
        }
        Some(Err(_)) => Err(Verdict::Failed {
            failure: failure("timeout", "the responder did not answer within the turn's time".to_owned(), None),
            after: None,
        }),
        Some(Ok(Ok(reply))) => Ok(reply),
        Some(Ok(Err(TurnError::Retryable { message, after }))) => {
            Err(Verdict::Failed { failure: failure("responder", message, None), after })
        }
        Some(Ok(Err(TurnError::Terminal { message, user_message }))) => {
            Err(Verdict::Hopeless(failure("responder", message, user_message)))
        }
    }
}

/// The turn makes room for one with the newer messages, too.
async fn interrupted(context: &TurnContext) -> Verdict<Committed> {
    let released = context.cancellation.run_until_cancelled(context.journal.release_members()).await;
    match (released, fault(&context.journal)) {
        (_, Some(verdict)) => verdict,
        (None, None) => Verdict::Stopped,
        (Some(_), None) => Verdict::Interrupted,
    }
}

/// What trouble with the journal makes of the attempt, whatever the responder says.
fn fault(journal: &Journal) -> Option<Verdict<Committed>> {
    Some(match journal.fault()? {
        Fault::Fenced => Verdict::Fenced,
        Fault::Away(cause) => Verdict::Wait { cause: cause.clone(), after: None },
        Fault::Refused(cause) => {
            let failure = Failure { reason: "store", error: cause.clone(), user_message: None };
            Verdict::Failed { failure, after: None }
        }
    })
}
