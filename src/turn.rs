//! One turn: load, decide, commit, publish.
//!
//! Refuses to retry (the scheduler does, in the lane) and to send (the egress does, from the outbound stream). Invariants:
//! no transaction and no lock is held across a model call; nothing of a failed turn is in the history; what was committed
//! is on the outbound stream before the lane goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use self::burst::Burst;
use self::compose::{compose, frame, parts, unsaved};
use self::progress::Audience;
use self::trace::{process_span, record_content, record_waits};
use self::typing::Typing;
use crate::config::Bot;
use crate::message::{
    Channel, ConversationKey, ConversationStatus, Envelope, Event, Peer, ReplyMessage, SCHEMA_VERSION, TerminalState,
    Timestamp,
};
use crate::platform::Platforms;
use crate::responder::history::{self, Budget, HistoryCache};
use crate::responder::journal::{Fault, Journal};
use crate::responder::{ConversationView, Reply, Responder, Responders, TurnContext, TurnError, TurnRequest};
use crate::scheduler::bursts::Label;
use crate::scheduler::{Failure, Task, Verdict, Work};
use crate::store::{
    CommitOutcome, Committed, Conversation, JournalEntry, NewConversation, PendingDelivery, StepKind, Store,
    StoreError, StoredMessage, TurnCommit,
};
use crate::stream::{DeadLetter, Publisher, StreamMessage};
use crate::telemetry::{chain, json_fault, metric};

pub(crate) use burst::ignored;
pub(crate) use compose::new_conversation;

mod burst;
mod buttons;
mod compose;
pub mod outbox;
pub mod progress;
mod trace;
pub mod typing;

/// How a bot's turns are run.
#[derive(Debug, Clone)]
pub struct Settings {
    pub bot: Bot,
    pub budget: Budget,
}

/// Runs the turns of a deployment's bots.
pub struct Turns {
    pub store: Store,
    pub publisher: Publisher,
    pub bots: BTreeMap<String, Settings>,
    pub responders: Responders,
    pub cache: HistoryCache,
    pub audience: Audience,
    pub typing: Typing,
    pub platforms: Arc<Platforms>,
    /// Messages read of a history: as many as the bot with the widest budget may send.
    pub history_messages: u32,
    /// One attempt may take this long.
    pub turn_timeout: Duration,
    /// Whether spans hold what was said.
    pub record_content: bool,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Turns").field("bots", &self.bots.keys()).finish_non_exhaustive()
    }
}

/// A step's value, or how the attempt ends here.
type Step<T> = Result<T, Box<Verdict<Committed>>>;

#[async_trait::async_trait]
impl Work for Turns {
    type Receipt = Committed;

    const NAME: &'static str = "turn";

    async fn settled(&self, messages: &[Arc<StreamMessage>]) -> Result<Vec<Committed>, StoreError> {
        let ids: Vec<String> = messages.iter().map(|message| message.message_id.clone()).collect();
        let settled = self.store.settled(&ids).await?;
        for committed in settled.iter().filter(|committed| committed.state() == TerminalState::DeadLettered) {
            if let Some(message) = messages.iter().find(|message| message.message_id == committed.dedupe_id()) {
                self.bury_again(message, committed).await?;
            }
        }
        Ok(settled)
    }

    fn label(&self, message: &StreamMessage) -> Label {
        burst::label(message)
    }

    fn observe(&self, running: usize, lanes: usize, parked: usize) {
        metric::scheduler_size(running, lanes, parked);
    }

    async fn run(&self, task: &Task) -> Verdict<Committed> {
        let span = process_span(task);
        record_waits(task);
        let started = std::time::Instant::now();
        let mut responder_time = Duration::ZERO;
        let verdict = async {
            let ended =
                if task.is_refusal { self.refuse(task).await } else { self.attempt(task, &mut responder_time).await };
            match ended {
                Ok(committed) => Verdict::Done(committed),
                Err(verdict) => *verdict,
            }
        }
        .instrument(span)
        .await;
        if let Verdict::Done(committed) = &verdict {
            let bot = bot_of(task.message());
            for committed in committed {
                let outcome = committed.state().as_str();
                match committed.dedupe_id() == task.message().message_id && !task.is_refusal {
                    true => metric::turn_finished(&bot, outcome, started.elapsed(), responder_time),
                    false => metric::message_finished(&bot, outcome),
                }
            }
        }
        verdict
    }

    async fn give_up(&self, task: &Task, failure: &Failure) -> Verdict<Committed> {
        let span = process_span(task);
        async {
            match self.bury(task, failure).await {
                Ok(committed) => Verdict::Done(committed),
                Err(verdict) => *verdict,
            }
        }
        .instrument(span)
        .await
    }
}

impl Turns {
    async fn attempt(&self, task: &Task, responder_time: &mut Duration) -> Step<Vec<Committed>> {
        let burst = match Burst::read(task) {
            Ok(burst) => burst,
            Err((message, verdict)) => return self.set_apart(task, message, verdict).await,
        };
        if task.all().count() > 1 {
            // After a crash, messages come again that were part of other turns; the rest make a new one.
            let settled = self.settle(task).await?;
            if !settled.is_empty() {
                return Ok(settled);
            }
        }
        let deleted = burst.deleted();
        let envelope = &burst.envelope;
        let may_grow = self.bots.get(&*envelope.key.bot).is_some_and(|settings| burst.may_grow(&settings.bot));
        if may_grow || !deleted.is_empty() {
            let steps = self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?;
            if let Some(task) = burst.held_to(&steps)? {
                return Box::pin(self.attempt(&task, responder_time)).await;
            }
            // What has had effects can no longer be taken back.
            if !deleted.is_empty() && steps.iter().all(|step| step.kind == StepKind::Model) {
                return self.withdraw(&task.only(deleted)).await;
            }
        }
        if let Event::Ignored { kind, reason } = &envelope.event {
            return self.ignore(task, envelope, burst::ignored(kind, reason)).await;
        }
        if let Event::Agent { text } = &envelope.event {
            return self.say(task, envelope, text).await;
        }
        let span = tracing::Span::current();
        span.record("turnwise.turn.id", tracing::field::display(envelope.turn_id));
        let settings = self.settings(&envelope.key.bot)?;
        let mut loaded = match self.load(task, envelope).await? {
            Loaded::Open(loaded) => loaded,
            Loaded::Settled(committed) => return Box::pin(self.finish_settled(task, vec![committed])).await,
        };
        span.record("gen_ai.conversation.id", tracing::field::display(loaded.conversation.id));
        let decided = match loaded.conversation.status {
            ConversationStatus::Bot if self.is_out_of_budget(&burst, &settings.bot).await? => {
                metric::budget_refusal(&settings.bot.name);
                Decided::out_of_budget(&settings.bot)
            }
            ConversationStatus::Bot => self.decide(&burst, settings, &mut loaded, responder_time).await?,
            // Stored for the person who has taken over; the bot is silent.
            ConversationStatus::Human | ConversationStatus::Closed => self.keep_silent(&burst, &settings.bot).await?,
        };
        let spent_buttons = decided.reply.spent_buttons;
        let commit = compose(&burst, settings, &loaded, decided, *responder_time);
        let committed = self.commit(task, commit, Some(&loaded)).await?;
        if let Some(message_id) = burst.pressed_under().filter(|_| spent_buttons) {
            buttons::take_away(&self.platforms, &settings.bot, &envelope.key.peer, message_id);
        }
        Ok(committed)
    }

    /// A message that cannot be read takes no other one with it.
    async fn set_apart(
        &self,
        task: &Task,
        message: &Arc<StreamMessage>,
        verdict: Box<Verdict<Committed>>,
    ) -> Step<Vec<Committed>> {
        match *verdict {
            Verdict::Hopeless(failure) if task.all().count() > 1 => {
                self.bury(&task.only(vec![Arc::clone(message)]), &failure).await
            }
            verdict => Err(Box::new(verdict)),
        }
    }

    /// Messages that were deleted before their turn, and the events that deleted them, leave the lane without one; what
    /// else was to be in their turn makes another.
    async fn withdraw(&self, task: &Task) -> Step<Vec<Committed>> {
        let Ok(burst) = Burst::read(task) else {
            return Err(hopeless("undecodable", "was readable before".to_owned()));
        };
        let envelope = &burst.envelope;
        let commit = TurnCommit {
            state: TerminalState::Ignored,
            reason: Some(burst::withdrawal(&envelope.event)),
            merged: burst.withdrawn(),
            ..frame(task, envelope.key.clone(), envelope.turn_id, envelope.received_at)
        };
        self.commit(task, commit, None).await
    }

    /// Answers a message that its lane's policy lets not wait with a notice, at once: beside the turn that runs, and before
    /// its reply. Nothing of it is in the history. A conversation that a person has taken over refuses nothing.
    async fn refuse(&self, task: &Task) -> Step<Vec<Committed>> {
        let envelope = decode(task.message())?;
        let settings = self.settings(&envelope.key.bot)?;
        let row =
            self.store.load_turn(&envelope.key, &task.message().message_id).await.map_err(|error| away(&error))?;
        if let Some(committed) = row.already {
            return self.finish_settled(task, vec![committed]).await;
        }
        if row.conversation.as_ref().is_some_and(|conversation| conversation.status != ConversationStatus::Bot) {
            return Err(Box::new(Verdict::Admitted));
        }
        let mut commit = TurnCommit {
            state: TerminalState::Rejected,
            reason: Some("an earlier message was being answered".to_owned()),
            ..frame(task, envelope.key.clone(), envelope.turn_id, envelope.received_at)
        };
        let notice = ReplyMessage::text(settings.bot.reject_reply.clone());
        let conversation = row.conversation.map(|conversation| conversation.id);
        commit.deliveries = parts(&commit, conversation, Uuid::now_v7(), &notice);
        self.commit(task, commit, None).await
    }

    fn settings(&self, bot: &str) -> Step<&Settings> {
        self.bots.get(bot).ok_or_else(|| hopeless("no_such_bot", format!("no bot \"{bot}\" is configured")))
    }

    /// Whether the bot's models have used what they may on this day. Turns that run at once can pass it together, and one that
    /// has begun is finished.
    async fn is_out_of_budget(&self, burst: &Burst<'_>, bot: &Bot) -> Step<bool> {
        let Some(most) = bot.tokens_per_day else { return Ok(false) };
        let used = self.store.tokens_used(&bot.name, Timestamp::now().day()).await.map_err(|error| away(&error))?;
        if used < most {
            return Ok(false);
        }
        let steps = self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?;
        Ok(steps.is_empty())
    }

    /// A turn of which the bot says nothing; what an earlier attempt at it has done stays known.
    async fn keep_silent(&self, burst: &Burst<'_>, bot: &Bot) -> Step<Decided> {
        let steps = self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?;
        let record = (!steps.is_empty()).then(|| record(&Value::Null, &steps));
        Ok(Decided { record, tokens: counted_tokens(bot, &steps), ..Decided::silent() })
    }

    async fn load(&self, task: &Task, envelope: &Envelope) -> Step<Loaded> {
        let row =
            self.store.load_turn(&envelope.key, &task.message().message_id).await.map_err(|error| away(&error))?;
        if let Some(committed) = row.already {
            return Ok(Loaded::Settled(committed));
        }
        if let Some(conversation) = row.conversation {
            return Ok(Loaded::Open(Box::new(Open { conversation, new: None })));
        }
        if let Peer::Conversation(id) = envelope.key.peer {
            return Err(hopeless("no_such_conversation", format!("the conversation {id} does not exist")));
        }
        let new = new_conversation(envelope);
        Ok(Loaded::Open(Box::new(Open { conversation: unsaved(&new), new: Some(new) })))
    }

    async fn decide(
        &self,
        burst: &Burst<'_>,
        settings: &Settings,
        loaded: &mut Open,
        responder_time: &mut Duration,
    ) -> Step<Decided> {
        let (task, envelope) = (burst.task, &burst.envelope);
        let name = &settings.bot.responder;
        let responder = self
            .responders
            .get(name)
            .ok_or_else(|| hopeless("no_such_responder", format!("no responder \"{name}\"")))?;
        let history = self.history(&loaded.conversation).await.map_err(|error| away(&error))?;
        // Somebody wrote between the two readings: an agent, or, when this process was paused meanwhile, the partition's new
        // owner this very turn. A model that was asked now would be shown its own answer as history.
        if history.last().is_some_and(|message| message.ordinal > loaded.conversation.message_count) {
            let cause = "the conversation went on while it was read".to_owned();
            return Err(Box::new(Verdict::Wait { cause, after: Some(Duration::ZERO) }));
        }
        let request = TurnRequest {
            conversation: ConversationView {
                id: loaded.conversation.id,
                key: envelope.key.clone(),
                platform: envelope.platform,
                // The commit reads them again, under the conversation's lock.
                metadata: std::mem::take(&mut loaded.conversation.metadata),
            },
            messages: burst.new_messages(),
            history: history::prune(&history, settings.budget).into(),
            prompt: None,
        };
        let run = self.audience.begin(task, envelope);
        let context = TurnContext {
            turn_id: envelope.turn_id,
            attempt: task.attempt,
            deadline: tokio::time::Instant::now() + self.turn_timeout,
            cancellation: task.cancellation.clone(),
            journal: Journal::durable(
                burst.first_turn_id(),
                self.store.clone(),
                task.ownership,
                burst.may_grow(&settings.bot).then(|| burst.members()),
            ),
            deltas: run.deltas(),
        };
        let span =
            tracing::info_span!("invoke_agent", otel.name = format!("invoke_agent {name}"), otel.kind = "internal");
        let started = std::time::Instant::now();
        let reply = ask(responder.as_ref(), &context, &request, &task.interruption);
        let reply = run.during(self.typing.during(&settings.bot, &envelope.key, reply)).instrument(span.clone()).await;
        *responder_time = started.elapsed();
        let reply = reply.map_err(Box::new)?;
        if self.record_content {
            record_content(&span, &request, &reply);
        }
        let steps = context.journal.written().await;
        let tokens = counted_tokens(&settings.bot, &steps);
        let record = (!steps.is_empty()).then(|| record(&responder.describe(), &steps));
        Ok(Decided { reply, responder: Some(name.clone()), reason: None, record, tokens, silent: false })
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

    /// A human agent's message: it has its place among the turns, but nobody is asked.
    async fn say(&self, task: &Task, envelope: &Envelope, text: &str) -> Step<Vec<Committed>> {
        match self.load(task, envelope).await? {
            Loaded::Settled(committed) => self.finish_settled(task, vec![committed]).await,
            Loaded::Open(loaded) if loaded.new.is_some() => {
                self.ignore(task, envelope, "agent: the conversation was closed before".to_owned()).await
            }
            Loaded::Open(loaded) => {
                let commit = compose::say(task, envelope, &loaded, text);
                let committed = self.commit(task, commit, Some(&loaded)).await?;
                self.publisher.turn_notice(envelope.turn_id).await;
                Ok(committed)
            }
        }
    }

    async fn ignore(&self, task: &Task, envelope: &Envelope, reason: String) -> Step<Vec<Committed>> {
        let commit = TurnCommit {
            state: TerminalState::Ignored,
            reason: Some(reason),
            ..frame(task, envelope.key.clone(), envelope.turn_id, envelope.received_at)
        };
        self.commit(task, commit, None).await
    }

    /// Apart from the rest of the turn in memory, because a turn spends its time in the responder, and many do at once.
    fn commit<'a>(
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
        match outcome {
            CommitOutcome::Committed { committed, merged, deliveries, first_ordinal } => {
                // Less was stored than was to be when a person took over meanwhile.
                let may_be_less = commit.suppress_if_taken && commit.state == TerminalState::HandedOff;
                let is_whole = committed.state() == commit.state && !may_be_less;
                let receipts: Vec<_> = std::iter::once(committed).chain(merged).collect();
                if let (Some(loaded), Some(first)) = (loaded, first_ordinal) {
                    match is_whole {
                        true => self.remember(loaded, &commit, first).await,
                        false => self.cache.invalidate(loaded.conversation.id).await,
                    }
                }
                if commit.key.channel == Channel::Web {
                    for receipt in &receipts {
                        self.publisher.turn_notice(receipt.turn_id()).await;
                    }
                }
                self.publish(task, &deliveries).await?;
                Ok(receipts)
            }
            CommitOutcome::AlreadyTerminal(committed) if task.all().count() == 1 => {
                self.finish_settled(task, vec![committed]).await
            }
            CommitOutcome::AlreadyTerminal(_) => self.settle(task).await,
            CommitOutcome::Fenced => Err(Box::new(Verdict::Fenced)),
            CommitOutcome::ConversationMoved => Err(Box::new(Verdict::Wait {
                cause: "the conversation was opened or removed by somebody else meanwhile".to_owned(),
                after: None,
            })),
        }
    }

    /// Those of the messages that the ledger has already, with what their commits left to do.
    async fn settle(&self, task: &Task) -> Step<Vec<Committed>> {
        let ids: Vec<String> = task.all().map(|message| message.message_id.clone()).collect();
        let settled = self.store.settled(&ids).await.map_err(|error| away(&error))?;
        self.finish_settled(task, settled).await
    }

    /// The ledger has these messages already: what their commits left to do is done, in case a crash came between.
    async fn finish_settled(&self, task: &Task, settled: Vec<Committed>) -> Step<Vec<Committed>> {
        for committed in &settled {
            let message = task.all().find(|message| message.message_id == committed.dedupe_id());
            if let Some(message) = message.filter(|_| committed.state() == TerminalState::DeadLettered) {
                self.bury_again(message, committed).await.map_err(|error| away(&error))?;
            }
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

    /// Makes the end of given-up messages durable: the ledger first, then the dead-letter stream. All that were tried
    /// together end together, with one notice.
    async fn bury(&self, task: &Task, failure: &Failure) -> Step<Vec<Committed>> {
        let burst = Burst::read(task).ok();
        let envelope = burst.as_ref().map(|burst| &burst.envelope);
        let key = envelope.map(|envelope| envelope.key.clone());
        let key = match key.map_or_else(|| task.message().lane.parse(), Ok) {
            Ok(key) => key,
            Err(_) => ConversationKey { channel: Channel::Web, bot: "unknown".into(), peer: Peer::Bot },
        };
        let received_at = envelope.map_or(task.message().published_at, |envelope| envelope.received_at);
        let turn_id = self.free_turn_id(envelope.map(|envelope| envelope.turn_id)).await?;
        let why = format!("{}: {}", failure.reason, failure.error);
        let mut merged = burst.as_ref().map(|burst| burst.given_up(&why)).unwrap_or_default();
        for message in &mut merged {
            message.turn_id = self.free_turn_id(Some(message.turn_id)).await?;
        }
        let mut commit = TurnCommit {
            state: TerminalState::DeadLettered,
            reason: Some(why),
            merged,
            ..frame(task, key.clone(), turn_id, received_at)
        };
        // What its tools did stays known, though nothing of it is in the history.
        let journal = burst.as_ref().map_or(turn_id, Burst::first_turn_id);
        let steps = self.store.journal(journal).await.map_err(|error| away(&error))?;
        if !steps.is_empty() {
            commit.journal = Some(journal);
            commit.record = Some(record(&Value::Null, &steps));
            commit.tokens = self.bots.get(&*key.bot).map_or(0, |settings| counted_tokens(&settings.bot, &steps));
        }
        if let Some(text) = self.notice(&key, failure) {
            let row = self.store.load_turn(&key, &task.message().message_id).await.map_err(|error| away(&error))?;
            // Who has taken the conversation over speaks for the bot.
            if row.conversation.as_ref().is_none_or(|conversation| conversation.status == ConversationStatus::Bot) {
                let conversation = row.conversation.map(|conversation| conversation.id);
                commit.deliveries = parts(&commit, conversation, Uuid::now_v7(), &ReplyMessage::text(text));
            }
        }
        let receipts = self.commit(task, commit, None).await?;
        // When the last attempt failed after its commit, the messages are answered, and no dead letters.
        for receipt in receipts.iter().filter(|receipt| receipt.state() == TerminalState::DeadLettered) {
            for message in task.all().filter(|message| message.message_id == receipt.dedupe_id()) {
                let buried = self.bury_letter(message, failure.reason, &failure.error, task.attempt).await;
                buried.map_err(|error| away(&error))?;
                metric::dead_letter(failure.reason);
            }
        }
        Ok(receipts)
    }

    /// The id of a ledger row: a new one when the message is unreadable, or its id that of another message's row, as of one
    /// put on the stream again by hand.
    async fn free_turn_id(&self, wanted: Option<Uuid>) -> Step<Uuid> {
        match wanted {
            Some(id) if self.store.turn(id).await.map_err(|error| away(&error))?.is_none() => Ok(id),
            _ => Ok(Uuid::now_v7()),
        }
    }

    /// What the user of a given-up message reads; nothing when the bot has no failure reply.
    fn notice(&self, key: &ConversationKey, failure: &Failure) -> Option<String> {
        let settings = self.bots.get(&*key.bot).filter(|_| key.peer != Peer::Bot)?;
        failure.user_message.clone().or_else(|| settings.bot.failure_reply.clone())
    }

    /// A crash may have come between the ledger and the dead-letter stream; publishing again is deduped by the stream, as long
    /// as its window lasts, and by what people have done to the dead letter since.
    async fn bury_again(&self, message: &StreamMessage, committed: &Committed) -> Result<(), StoreError> {
        if self.store.is_dead_letter_ended(&message.message_id).await? {
            return Ok(());
        }
        let Some(turn) = self.store.turn(committed.turn_id()).await? else { return Ok(()) };
        let reason = turn.reason.unwrap_or_default();
        let (word, error) = reason.split_once(": ").unwrap_or(("unknown", &reason));
        self.bury_letter(message, word, error, turn.attempts).await
    }

    async fn bury_letter(
        &self,
        message: &StreamMessage,
        reason: &str,
        error: &str,
        attempts: u32,
    ) -> Result<(), StoreError> {
        let letter = DeadLetter { message, partition: message.partition, reason, error, attempts };
        let mut pause = patience();
        while let Err(error) = self.publisher.dead(&letter).await {
            tracing::warn!(error = %chain(&error), "dead letter not on the stream yet, trying again");
            tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
        }
        Ok(())
    }
}

/// What a turn starts from.
struct Open {
    /// As read; not yet stored when `new` is set.
    conversation: Conversation,
    new: Option<NewConversation>,
}

enum Loaded {
    Open(Box<Open>),
    Settled(Committed),
}

/// What a turn comes to.
struct Decided {
    reply: Reply,
    responder: Option<String>,
    /// Why nobody was asked, where the conversation is the bot's.
    reason: Option<&'static str>,
    /// Of a turn that has a journal.
    record: Option<Value>,
    /// To be counted against the bot's budget.
    tokens: u64,
    silent: bool,
}

impl Decided {
    fn silent() -> Self {
        Self { reply: Reply::default(), responder: None, reason: None, record: None, tokens: 0, silent: true }
    }

    fn out_of_budget(bot: &Bot) -> Self {
        let reply = Reply::text(bot.budget_reply.clone());
        Self { reply, reason: Some("the bot's tokens of the day are spent"), silent: false, ..Self::silent() }
    }

    fn state(&self) -> TerminalState {
        let handed_off = self.silent || (self.reply.handoff && self.reply.messages.is_empty());
        if handed_off { TerminalState::HandedOff } else { TerminalState::Answered }
    }
}

fn decode(message: &StreamMessage) -> Step<Envelope> {
    if message.schema_version.is_some_and(|version| version > SCHEMA_VERSION) {
        return Err(hopeless("undecodable", "the message was written by a newer version".to_owned()));
    }
    let envelope: Envelope = serde_json::from_slice(&message.payload)
        .map_err(|error| hopeless("undecodable", format!("the message is not an envelope: {}", json_fault(&error))))?;
    // The platform's own words are for people and later versions; they need not lie in memory twice.
    Ok(Envelope { raw: None, ..envelope })
}

/// Runs the responder within its time, and stops it when the turn must stop or a newer message wants its place.
async fn ask(
    responder: &dyn Responder,
    context: &TurnContext,
    request: &TurnRequest,
    interruption: &CancellationToken,
) -> Result<Reply, Verdict<Committed>> {
    let failure = |reason, error: String, user_message| Failure { reason, error, user_message };
    let answer = tokio::time::timeout_at(context.deadline, responder.respond(context, request));
    let mut answer = std::pin::pin!(context.cancellation.run_until_cancelled(answer));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // A turn that has begun to change something outside runs to its end.
        () = interruption.cancelled() => match context.journal.has_effects() {
            true => answer.await,
            false => return Err(Verdict::Interrupted),
        },
    };
    match context.journal.fault() {
        Some(Fault::Fenced) => return Err(Verdict::Fenced),
        Some(Fault::Away(cause)) => return Err(Verdict::Wait { cause: cause.clone(), after: None }),
        Some(Fault::Refused(cause)) => {
            return Err(Verdict::Failed { failure: failure("store", cause.clone(), None), after: None });
        }
        None => {}
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

/// What replay and people need of a turn: who decided it, and everything that was asked and answered on the way.
fn record(responder: &Value, steps: &[JournalEntry]) -> Value {
    json!({ "responder": responder, "steps": steps })
}

/// More than any turn can use; a server that says so is wrong.
const TURN_TOKENS_MAX: u64 = 1_000_000_000;

/// What the models of a bot with a budget used, as far as their servers said.
fn counted_tokens(bot: &Bot, steps: &[JournalEntry]) -> u64 {
    if bot.tokens_per_day.is_none() {
        return 0;
    }
    let answers = steps.iter().filter(|step| step.kind == StepKind::Model);
    let usages = answers.filter_map(|step| step.result.as_ref()?.get("usage"));
    let tokens = usages.flat_map(|usage| ["input_tokens", "output_tokens"].map(|key| usage[key].as_u64()));
    tokens.flatten().fold(0, u64::saturating_add).min(TURN_TOKENS_MAX)
}

fn bot_of(message: &StreamMessage) -> String {
    message.lane.parse::<ConversationKey>().map_or_else(|_| "unknown".to_owned(), |key| key.bot.to_string())
}

fn hopeless(reason: &'static str, error: String) -> Box<Verdict<Committed>> {
    Box::new(Verdict::Hopeless(Failure { reason, error, user_message: None }))
}

fn failed(reason: &'static str, error: String, after: Option<Duration>) -> Box<Verdict<Committed>> {
    Box::new(Verdict::Failed { failure: Failure { reason, error, user_message: None }, after })
}

/// The database is away, and the message not to blame; or it refuses this message's data, and then it is.
fn away(error: &StoreError) -> Box<Verdict<Committed>> {
    if error.is_transient() {
        Box::new(Verdict::Wait { cause: chain(error), after: None })
    } else {
        failed("store", chain(error), None)
    }
}

/// The pauses between the attempts at a message: growing from a quarter of a second, with jitter.
#[must_use]
pub fn retry(longest: Duration) -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_multiplier(2.0)
        .with_max_interval(longest)
        .with_max_elapsed_time(None)
        .build()
}

const MAX_PAUSE: Duration = Duration::from_secs(2);

fn patience() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(20))
        .with_max_interval(MAX_PAUSE)
        .with_max_elapsed_time(None)
        .build()
}
