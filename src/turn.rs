//! One turn: load, decide, commit, publish.
//!
//! Refuses to retry (the scheduler does, in the lane) and to send (the egress does, from the outbound stream). Invariants:
//! no transaction and no lock is held across a model call; nothing of a failed turn is in the history; what was committed
//! is on the outbound stream before the lane goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use serde_json::Value;
use tracing::Instrument as _;
use uuid::Uuid;

use self::burst::Burst;
use self::compose::{compose, frame, parts, unsaved};
use self::decide::Decided;
use self::drafts::Drafts;
use self::progress::Audience;
use self::record::TurnRecord;
use self::suspects::{Asked, Suspects};
use self::trace::{process_span, record_waits};
use self::typing::Typing;
use self::verdict::{Step, away, decode, hopeless};
use crate::config::Bot;
use crate::message::{ConversationKey, ConversationStatus, Envelope, Event, Peer, ReplyMessage, TerminalState};
use crate::platform::Platforms;
use crate::responder::history::{Budget, HistoryCache};
use crate::responder::journal::is_effect;
use crate::responder::{Responder, Responders};
use crate::scheduler::bursts::Label;
use crate::scheduler::{Failure, Task, Verdict, Work};
use crate::store::{Committed, Conversation, JournalEntry, NewConversation, Ownership, Store, StoreError, TurnCommit};
use crate::stream::{Publisher, StreamMessage};
use crate::telemetry::metric;

pub(crate) use burst::ignored;
pub(crate) use commands::present;
pub(crate) use compose::new_conversation;
pub(crate) use notices::paused;

mod burial;
mod burst;
mod buttons;
mod commands;
mod commit;
mod compose;
mod decide;
pub mod drafts;
mod notices;
pub mod outbox;
pub mod progress;
mod record;
pub mod suspects;
mod trace;
pub mod typing;
mod verdict;

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
    pub drafts: Drafts,
    pub suspects: Suspects,
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

#[async_trait::async_trait]
impl Work for Turns {
    type Receipt = Committed;

    const NAME: &'static str = "turn";

    async fn settled(&self, messages: &[Arc<StreamMessage>]) -> Result<Vec<Committed>, StoreError> {
        let ids: Vec<String> = messages.iter().map(|message| message.message_id.clone()).collect();
        let settled = self.store.settled(&ids).await?;
        self.bury_again(messages, &settled).await?;
        Ok(settled)
    }

    async fn outlived(
        &self,
        ownership: &Ownership,
        heads: &[Arc<StreamMessage>],
        after_death: bool,
    ) -> Result<(), StoreError> {
        self.suspect(ownership, heads, after_death).await
    }

    fn label(&self, message: &StreamMessage) -> Label {
        burst::label(message)
    }

    fn observe(&self, running: usize, lanes: usize, parked: usize) {
        metric::scheduler_size(running, lanes, parked);
    }

    async fn run(&self, task: &Task) -> Verdict<Committed> {
        let suspicion = match self.suspects.ask(&task.messages[0].message_id) {
            Asked::Free => None,
            Asked::Later(until) => return Verdict::Postponed { until },
            Asked::Suspected(suspicion) => Some(suspicion),
        };
        let span = process_span(task);
        record_waits(task);
        let started = std::time::Instant::now();
        let mut responder_time = Duration::ZERO;
        let verdict = async {
            let ended = match suspicion {
                _ if task.is_refusal => Box::pin(self.refuse(task)).await,
                None => self.attempt(task, &mut responder_time).await,
                Some(suspicion) => Box::pin(self.attempt_suspect(task, suspicion, &mut responder_time)).await,
            };
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
    /// Tens of thousands of turns wait in their responders at once, so what is done only before or after that, and takes
    /// kilobytes while it is done, is on the heap for that long.
    async fn attempt(&self, task: &Task, responder_time: &mut Duration) -> Step<Vec<Committed>> {
        let burst = match Burst::read(task) {
            Ok(burst) => burst,
            Err((message, verdict)) => return Box::pin(self.set_apart(task, message, verdict)).await,
        };
        if task.all().count() > 1 {
            // After a crash, messages come again that were part of other turns; the rest make a new one.
            let settled = Box::pin(self.settle(task)).await?;
            if !settled.is_empty() {
                return Ok(settled);
            }
        }
        let deleted = burst.deleted();
        let envelope = &burst.envelope;
        if self.may_change(&burst) || !deleted.is_empty() {
            let steps = self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?;
            if let Some(task) = burst.held_to(&steps)? {
                return Box::pin(self.attempt(&task, responder_time)).await;
            }
            // What has had effects can no longer be taken back.
            if !deleted.is_empty() && !steps.iter().any(is_effect) {
                Box::pin(self.amend_stored(task, &burst)).await?;
                return Box::pin(self.withdraw(&task.only(deleted), &burst, &steps)).await;
            }
        }
        for (envelope, notice) in burst.notices() {
            Box::pin(self.heed(task, envelope, notice)).await.map_err(|error| away(&error))?;
        }
        Box::pin(self.amend_stored(task, &burst)).await?;
        if let Event::Ignored { kind, reason } = &envelope.event {
            let reason = burst::ignored(kind, reason);
            return match &envelope.notice {
                Some(notice) if notice.changes_who_answers() => {
                    Box::pin(self.change_who_answers(task, envelope, notice, reason)).await
                }
                _ => self.ignore(task, envelope, reason).await,
            };
        }
        if let Event::Agent { text } = &envelope.event {
            return Box::pin(self.say(task, envelope, text)).await;
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
            ConversationStatus::Bot
                if let Some(decided) = commands::answer(&burst, &settings.bot, &loaded.conversation) =>
            {
                let kept = Box::pin(self.done_before(&burst, &settings.bot)).await?;
                Decided { kept, ..decided }
            }
            ConversationStatus::Bot if Box::pin(self.is_out_of_budget(&burst, &settings.bot)).await? => {
                metric::budget_refusal(&settings.bot.name);
                Decided::out_of_budget(&settings.bot)
            }
            ConversationStatus::Bot => self.decide(&burst, settings, &mut loaded, responder_time).await?,
            // Stored for the person who has taken over; the bot is silent.
            ConversationStatus::Human | ConversationStatus::Closed => self.keep_silent(&burst, &settings.bot).await?,
        };
        let spent_buttons = decided.reply.spent_buttons;
        let commit = compose(&burst, settings, &mut loaded, decided, *responder_time);
        let committed = self.commit(task, commit, Some(&loaded)).await?;
        if let Some(message_id) = burst.pressed_under().filter(|_| spent_buttons) {
            let under = envelope.came_from.as_ref().unwrap_or(&envelope.key.peer);
            buttons::take_away(&self.platforms, &settings.bot, under, message_id);
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
    async fn withdraw(&self, task: &Task, whole: &Burst<'_>, steps: &[JournalEntry]) -> Step<Vec<Committed>> {
        let Ok(burst) = Burst::read(task) else {
            return Err(hopeless("undecodable", "was readable before".to_owned()));
        };
        let envelope = &burst.envelope;
        let mut commit = TurnCommit {
            state: TerminalState::Ignored,
            reason: Some(burst::withdrawal(envelope, false)),
            merged: burst.withdrawn(),
            ..frame(task, envelope.key.clone(), envelope.turn_id, envelope.received_at)
        };
        // The journal is that of the first message, and goes with it.
        if burst.first_turn_id() == whole.first_turn_id() {
            let bot = self.bots.get(&*envelope.key.bot).map(|settings| &settings.bot);
            TurnRecord::of(steps, || Value::Null, bot).keep_in(&mut commit, whole.first_turn_id());
        }
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
        commit.key.peer = row.filed_under.unwrap_or(commit.key.peer);
        commit.deliveries = parts(&commit, conversation, Uuid::now_v7(), &notice);
        self.commit(task, commit, None).await
    }

    fn settings(&self, bot: &str) -> Step<&Settings> {
        self.bots.get(bot).ok_or_else(|| hopeless("no_such_bot", format!("no bot \"{bot}\" is configured")))
    }

    fn responder(&self, bot: &Bot) -> Step<&dyn Responder> {
        let responder = self.responders.get(&bot.responder);
        responder
            .map(AsRef::as_ref)
            .ok_or_else(|| hopeless("no_such_responder", format!("no responder \"{}\"", bot.responder)))
    }

    /// Whether an earlier attempt can have been one at other messages, and that matters.
    fn may_change(&self, burst: &Burst<'_>) -> bool {
        let settings = self.bots.get(&*burst.envelope.key.bot);
        let responder = settings.and_then(|settings| self.responder(&settings.bot).ok());
        settings.zip(responder).is_some_and(|(settings, responder)| burst.may_change(&settings.bot, responder))
    }

    async fn load(&self, task: &Task, envelope: &Envelope) -> Step<Loaded> {
        let row =
            self.store.load_turn(&envelope.key, &task.message().message_id).await.map_err(|error| away(&error))?;
        if let Some(committed) = row.already {
            return Ok(Loaded::Settled(committed));
        }
        if let Some(conversation) = row.conversation {
            if conversation.chat.unreachable.is_some() && matches!(envelope.event, Event::Message(_)) {
                self.note_reachable(task, &conversation.key, envelope).await?;
            }
            return Ok(Loaded::Open(Box::new(Open { conversation, new: None })));
        }
        if let Peer::Conversation(id) = envelope.key.peer {
            return Err(hopeless("no_such_conversation", format!("the conversation {id} does not exist")));
        }
        let mut new = new_conversation(envelope);
        new.key.peer = row.filed_under.unwrap_or(new.key.peer);
        if row.was_unreachable && matches!(envelope.event, Event::Message(_)) {
            self.note_reachable(task, &new.key, envelope).await?;
        }
        Ok(Loaded::Open(Box::new(Open { conversation: unsaved(&new), new: Some(new) })))
    }

    /// Who writes can be written to.
    async fn note_reachable(&self, task: &Task, key: &ConversationKey, envelope: &Envelope) -> Step<()> {
        let noted = self.store.note_reachability(key, None, envelope.received_at, Some(&task.ownership)).await;
        noted.map_err(|error| away(&error))
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
}

/// What a turn starts from.
struct Open {
    /// As read; not yet stored when `new` is set.
    conversation: Conversation,
    /// Goes with the commit.
    new: Option<NewConversation>,
}

enum Loaded {
    Open(Box<Open>),
    Settled(Committed),
}

fn bot_of(message: &StreamMessage) -> String {
    message.lane.parse::<ConversationKey>().map_or_else(|_| "unknown".to_owned(), |key| key.bot.to_string())
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
