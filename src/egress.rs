//! Sending: one outbound part, one call to its platform, one honest row about it (G10).
//!
//! Refuses to reorder (one lane per chat, see the scheduler) and to guess: a call whose outcome nobody can know ends as
//! `uncertain` or is sent again, as the operator decided. Invariants: `sending` is in the database before the first byte
//! leaves, so that a crash in between is seen as what it is; and nothing is `sending` that waits for a rate limit, nor does
//! it keep others from being sent: its lane is resumed when its time has come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tracing::Instrument as _;
use uuid::Uuid;

use self::closures::Closures;
use self::governor::{Ended, Governor, Permission};
use self::hindrance::{DISABLED, TAKEN_OVER};
use crate::channel::{self, Answer, Call};
use crate::config::{Bot, BotChannel, OnUncertain};
use crate::message::{Channel, ConversationKey, OutboundPart, Peer, Timestamp};
use crate::platform::{Called, Platforms};
use crate::scheduler::{Failure, Task, Verdict, Work};
use crate::store::{ChatState, SendResult, SendStart, Settled, Store, StoreError};
use crate::stream::{Publisher, StreamMessage};
use crate::telemetry::{self, Wait, chain, json_fault, metric};

mod closures;
pub mod governor;
mod hindrance;

/// A call without an answer after this time is uncertain. Both platforms answer within a second or two.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// After a beginning that took longer than this it is asked again who owns the partition: a third of the time after which
/// another process may have taken over.
const STALE_AFTER: Duration = Duration::from_millis(600);

/// Sends the parts of a deployment's bots.
#[derive(Debug)]
pub struct Egress {
    store: Store,
    publisher: Publisher,
    bots: BTreeMap<String, Bot>,
    platforms: Arc<Platforms>,
    /// Held for a decision, never for a wait.
    governor: Mutex<Governor>,
    /// The same.
    closures: Mutex<Closures>,
    /// Of the outbound stream.
    partitions: u16,
}

impl Egress {
    #[must_use]
    pub fn new(
        store: Store,
        publisher: Publisher,
        bots: BTreeMap<String, Bot>,
        platforms: Arc<Platforms>,
        partitions: u16,
    ) -> Self {
        let called = bots.values().filter(|bot| bot.channel() != Channel::Web);
        let governor = Mutex::new(Governor::new(called.map(|bot| (bot.name.clone(), bot.limits))));
        let closures = Mutex::default();
        Self { store, publisher, bots, platforms, governor, closures, partitions }
    }
}

#[async_trait::async_trait]
impl Work for Egress {
    type Receipt = Settled;

    const NAME: &'static str = "delivery";

    async fn settled(&self, messages: &[Arc<StreamMessage>]) -> Result<Vec<Settled>, StoreError> {
        let ids: Vec<Uuid> = messages.iter().filter_map(|message| delivery_id(message)).collect();
        self.store.settled_deliveries(&ids).await
    }

    fn owns(&self, partitions: usize) {
        self.governor().share(partitions, self.partitions);
    }

    async fn run(&self, task: &Task) -> Verdict<Settled> {
        let message = task.message();
        let permit = match Permit::ask(self, message) {
            Ok(permit) => permit,
            Err(until) => return Verdict::Postponed { until },
        };
        let span = tracing::info_span!(
            "process turnwise.out",
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.message.id = message.message_id,
            messaging.destination.partition.id = message.partition,
            turnwise.stream.sequence = message.sequence,
            turnwise.attempt = task.attempt,
        );
        telemetry::set_parent(&span, message.traceparent.as_deref());
        if let Some(context) = telemetry::current_traceparent(&span) {
            // Nobody else sets it.
            let _ = task.traceparent.set(context);
        }
        if let Some(permit) = &permit {
            permit.record_wait(&span);
        }
        self.deliver(task, permit).instrument(span).await
    }

    async fn give_up(&self, task: &Task, failure: &Failure) -> Verdict<Settled> {
        let Some(id) = delivery_id(task.message()) else { return self.disown(task.message()) };
        tracing::error!(delivery_id = %id, reason = failure.reason, error = failure.error, "a reply was given up");
        self.settle(task, id, SendResult::Failed { error: failure.error.clone() }).await
    }
}

impl Egress {
    /// A decision that panicked has left at worst a wait that is too long.
    fn governor(&self) -> MutexGuard<'_, Governor> {
        self.governor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same.
    fn closures(&self) -> MutexGuard<'_, Closures> {
        self.closures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn deliver(&self, task: &Task, permit: Option<Permit<'_>>) -> Verdict<Settled> {
        let Some(id) = delivery_id(task.message()) else { return self.disown(task.message()) };
        // The same for every try: a beginning whose answer got lost must not be taken for one that a crash interrupted.
        let begun_at = Timestamp::now();
        let asked = Instant::now();
        let mut pause = patience();
        let start = loop {
            match self.store.begin_send(id, &task.ownership, begun_at).await {
                Ok(start) => break start,
                Err(error) => {
                    tracing::warn!(delivery_id = %id, error = %chain(&error), "a delivery cannot be begun yet");
                    let sleep = tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE));
                    if task.cancellation.run_until_cancelled(sleep).await.is_none() {
                        return Verdict::Stopped;
                    }
                }
            }
        };
        match start {
            SendStart::Begun { chat: ChatState { unreachable: Some(reason), .. }, .. } => {
                self.settle(task, id, SendResult::Failed { error: format!("the chat cannot be reached: {reason}") })
                    .await
            }
            SendStart::Begun { attempt, chat } => {
                let start = Start { attempt, begun_at, moved_to: chat.moved_to };
                match asked.elapsed() > STALE_AFTER {
                    true => self.send_if_owner(task, id, start, permit).await,
                    false => self.send(task, id, start, permit).await,
                }
            }
            SendStart::Interrupted => {
                self.unclear(task, id, "the process ended between the call and its answer".to_owned()).await
            }
            SendStart::Settled(settled) => Verdict::Done(vec![settled]),
            SendStart::Unknown(settled) => {
                tracing::error!(delivery_id = %id, "no such delivery in this database; not sent");
                Verdict::Done(vec![settled])
            }
            SendStart::Fenced => Verdict::Fenced,
        }
    }

    /// The beginning took so long that this process may have been paused and replaced meanwhile; then later replies of the
    /// chat may have left already. If so, nothing was sent, and that is recorded for the new owner. Only a pause in the call
    /// itself can still send late.
    async fn send_if_owner(&self, task: &Task, id: Uuid, start: Start, permit: Option<Permit<'_>>) -> Verdict<Settled> {
        let (error, verdict) = match self.store.owns(&task.ownership).await {
            Ok(true) => return self.send(task, id, start, permit).await,
            Ok(false) => ("the process was paused before the call".to_owned(), Verdict::Fenced),
            Err(error) => (chain(&error), Verdict::Wait { cause: chain(&error), after: None }),
        };
        let recorded = self.settle(task, id, SendResult::NotSent { error }).await;
        again(recorded, verdict)
    }

    async fn send(&self, task: &Task, id: Uuid, start: Start, permit: Option<Permit<'_>>) -> Verdict<Settled> {
        let mut part: OutboundPart = match serde_json::from_slice(&task.message().payload) {
            Ok(part) => part,
            Err(error) => {
                let error = format!("the message is not an outbound part: {}", json_fault(&error));
                return self.refuse(task, id, error).await;
            }
        };
        let Some(bot) = self.bots.get(&*part.key.bot) else {
            return self.refuse(task, id, format!("no bot \"{}\" is configured", part.key.bot)).await;
        };
        match self.hindrance(bot, &part).await {
            Ok(None) => {}
            Ok(Some(error)) => {
                tracing::warn!(delivery_id = %id, error, "a reply must not leave");
                return self.settle(task, id, SendResult::Failed { error }).await;
            }
            Err(error) => {
                let recorded = self.settle(task, id, SendResult::NotSent { error: chain(&error) }).await;
                return again(recorded, Verdict::Wait { cause: chain(&error), after: None });
            }
        }
        let filed_as = part.key.clone();
        part.key.peer = start.moved_to.clone().unwrap_or(part.key.peer);
        let answer = match &bot.channel {
            BotChannel::Web(_) => {
                self.publisher.turn_notice(part.turn_id).await;
                Answer::Sent { platform_message_id: None }
            }
            _ => self.call_with_less(bot, &part, start.attempt, permit).await,
        };
        if matches!(answer, Answer::Sent { .. }) {
            let taken = Timestamp::now().micros_since(part.created_at);
            metric::end_to_end(part.key.channel, Duration::from_micros(taken));
        }
        match answer {
            Answer::Moved { to, .. } if to != part.key.peer => self.follow(task, id, &filed_as, &to).await,
            Answer::Failed { unreachable: true, error } => {
                let news = News::Unreachable { error: error.clone(), at: start.begun_at };
                if !self.learn(task, &filed_as, &news).await {
                    return Verdict::Stopped;
                }
                self.conclude(task, id, Answer::Failed { unreachable: true, error }).await
            }
            answer => self.conclude(task, id, answer).await,
        }
    }

    /// The part with everything; then, for as long as the platform says that it would take it without a piece, with less.
    async fn call_with_less(
        &self,
        bot: &Bot,
        part: &OutboundPart,
        attempt: u32,
        mut permit: Option<Permit<'_>>,
    ) -> Answer {
        let mut without = Vec::new();
        loop {
            let Some(call) = channel::call(bot, part, &without) else {
                return Answer::Failed { error: "this peer cannot be written to".to_owned(), unreachable: true };
            };
            match self.call(bot, &call, attempt, permit.take()).await {
                Answer::Spoiled { by, error } if !without.contains(&by) => {
                    tracing::warn!(
                        bot = bot.name,
                        ?by,
                        error,
                        "the platform does not take a reply like this; simpler now"
                    );
                    without.push(by);
                }
                answer => return answer,
            }
        }
    }

    /// The chat is another one now: from here on everything for it goes there, and this part first.
    async fn follow(&self, task: &Task, id: Uuid, filed_as: &ConversationKey, to: &Peer) -> Verdict<Settled> {
        tracing::info!(delivery_id = %id, "a chat has moved; its replies follow");
        if !self.learn(task, filed_as, &News::Moved { to: to.clone() }).await {
            return Verdict::Stopped;
        }
        let cause = "the chat has moved".to_owned();
        let recorded = self.settle(task, id, SendResult::NotSent { error: cause.clone() }).await;
        again(recorded, Verdict::Wait { cause, after: Some(Duration::ZERO) })
    }

    /// Records what was learnt of a chat, for as long as it takes; false when the task is to stop before.
    async fn learn(&self, task: &Task, chat: &ConversationKey, news: &News) -> bool {
        let mut pause = patience();
        loop {
            let recorded = match news {
                News::Moved { to } => self.store.move_chat(chat, to, Timestamp::now(), None).await,
                News::Unreachable { error, at } => self.store.note_reachability(chat, Some(error), *at, None).await,
            };
            let Err(error) = recorded else { return true };
            tracing::warn!(error = %chain(&error), "what was learnt of a chat is not recorded yet");
            let sleep = tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE));
            if task.cancellation.run_until_cancelled(sleep).await.is_none() {
                return false;
            }
        }
    }

    async fn conclude(&self, task: &Task, id: Uuid, answer: Answer) -> Verdict<Settled> {
        match answer {
            Answer::Sent { platform_message_id } => {
                self.settle(task, id, SendResult::Sent { platform_message_id }).await
            }
            Answer::RetryAfter { delay, error, .. } => {
                let verdict = self.settle(task, id, SendResult::NotSent { error: error.clone() }).await;
                again(verdict, Verdict::Wait { cause: error, after: Some(delay) })
            }
            Answer::NotSent { error } => {
                let verdict = self.settle(task, id, SendResult::NotSent { error: error.clone() }).await;
                again(verdict, Verdict::Failed { failure: failure("not_sent", error), after: None })
            }
            Answer::Moved { error, .. } | Answer::Spoiled { error, .. } => {
                tracing::warn!(delivery_id = %id, error, "the platform refused a reply");
                self.settle(task, id, SendResult::Failed { error }).await
            }
            Answer::Failed { error, unreachable } => {
                tracing::warn!(delivery_id = %id, error, unreachable, "the platform refused a reply");
                self.settle(task, id, SendResult::Failed { error }).await
            }
            Answer::TakenOver { error } => {
                tracing::warn!(delivery_id = %id, error, "another application has the conversation");
                if let Ok(part) = serde_json::from_slice::<OutboundPart>(&task.message().payload) {
                    self.silence(&part).await;
                }
                self.settle(task, id, SendResult::Failed { error: format!("{TAKEN_OVER}: {error}") }).await
            }
            Answer::Closed { error } => {
                self.settle(task, id, SendResult::Failed { error: format!("{DISABLED}: {error}") }).await
            }
            Answer::Uncertain { error } => self.unclear(task, id, error).await,
        }
    }

    /// Nobody can tell whether it arrived: the operator's policy decides.
    async fn unclear(&self, task: &Task, id: Uuid, error: String) -> Verdict<Settled> {
        let part: Option<OutboundPart> = serde_json::from_slice(&task.message().payload).ok();
        let bot = part.and_then(|part| self.bots.get(&*part.key.bot));
        match bot.map_or(OnUncertain::Hold, |bot| bot.on_uncertain) {
            OnUncertain::Hold => {
                tracing::warn!(delivery_id = %id, error, "nobody can tell whether a reply arrived; held");
                self.settle(task, id, SendResult::Uncertain { error }).await
            }
            OnUncertain::Resend => {
                let verdict = self.settle(task, id, SendResult::Unclear { error: error.clone() }).await;
                again(verdict, Verdict::Failed { failure: failure("uncertain", error), after: None })
            }
        }
    }

    fn disown(&self, message: &StreamMessage) -> Verdict<Settled> {
        tracing::error!(sequence = message.sequence, "a message on the outbound stream is not ours; not sent");
        Verdict::Done(vec![self.store.disown(&message.message_id)])
    }

    async fn refuse(&self, task: &Task, id: Uuid, error: String) -> Verdict<Settled> {
        tracing::error!(delivery_id = %id, error, "a reply cannot be sent");
        self.settle(task, id, SendResult::Failed { error }).await
    }

    /// Records what is known, for as long as it takes: forgetting it would turn knowledge into uncertainty. `Done` when the
    /// delivery is settled, a plain `Wait` when it is to be tried again.
    async fn settle(&self, task: &Task, id: Uuid, result: SendResult) -> Verdict<Settled> {
        let mut pause = patience();
        loop {
            match self.store.settle_send(id, &result, Timestamp::now()).await {
                Ok(Some(settled)) => return Verdict::Done(vec![settled]),
                Ok(None) => return Verdict::Wait { cause: "not sent".to_owned(), after: None },
                Err(error) => {
                    tracing::warn!(delivery_id = %id, error = %chain(&error), "a delivery's state is not recorded yet");
                    let sleep = tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE));
                    if task.cancellation.run_until_cancelled(sleep).await.is_none() {
                        return Verdict::Stopped;
                    }
                }
            }
        }
    }

    async fn call(&self, bot: &Bot, call: &Call, attempt: u32, mut permit: Option<Permit<'_>>) -> Answer {
        let span = tracing::info_span!(
            "POST",
            otel.kind = "client",
            http.request.method = "POST",
            http.request.resend_count = attempt.saturating_sub(1),
            server.address = host(call),
            http.response.status_code = tracing::field::Empty,
            error.type = tracing::field::Empty,
        );
        let started = Instant::now();
        if let Some(permit) = &mut permit {
            // Until it is known better, also when this is cancelled.
            permit.ended = Ended::Unanswered;
        }
        let Called { status, answer, pause } =
            self.platforms.call(bot, call, CALL_TIMEOUT).instrument(span.clone()).await;
        if let Some(permit) = permit {
            permit.answered(status, &answer);
        }
        self.note(bot, &answer);
        if let Some(pause) = pause {
            tracing::info!(
                bot = bot.name,
                pause_ms = pause.as_millis(),
                "a limit of the platform is near, slowing down"
            );
            self.governor().hold(&bot.name, pause, tokio::time::Instant::now());
        }
        metric::egress_attempt(bot.channel(), status);
        span.record("http.response.status_code", status);
        let error_type = match &answer {
            Answer::Sent { .. } => None,
            Answer::RetryAfter { .. } => Some("rate_limited"),
            Answer::NotSent { .. } => Some("not_sent"),
            Answer::Failed { .. } | Answer::Moved { .. } | Answer::Spoiled { .. } => Some("refused"),
            Answer::TakenOver { .. } => Some("taken_over"),
            Answer::Closed { .. } => Some("shut_out"),
            Answer::Uncertain { .. } => Some("uncertain"),
        };
        if let Some(error_type) = error_type {
            span.record("error.type", error_type);
        }
        tracing::debug!(bot = bot.name, duration_ms = started.elapsed().as_millis(), "platform called");
        answer
    }
}

/// What an answer of the platform says of the chat.
enum News {
    Moved {
        to: Peer,
    },
    Unreachable {
        error: String,
        /// When the call was begun.
        at: Timestamp,
    },
}

/// What sending starts from.
struct Start {
    attempt: u32,
    /// When the attempt began: what the platform says of the chat is as of then.
    begun_at: Timestamp,
    /// Where the chat is now.
    moved_to: Option<Peer>,
}

/// The governor's permission for one call; given back when the call has its answer, or is not made.
struct Permit<'a> {
    egress: &'a Egress,
    key: ConversationKey,
    lane: Arc<str>,
    begun: tokio::time::Instant,
    waited: Duration,
    ended: Ended,
}

impl<'a> Permit<'a> {
    /// `None` for what no platform is called for; else, where it is too early, when to ask again.
    fn ask(egress: &'a Egress, message: &StreamMessage) -> Result<Option<Self>, tokio::time::Instant> {
        let Ok(key) = message.lane.parse::<ConversationKey>() else { return Ok(None) };
        if key.channel == Channel::Web {
            return Ok(None);
        }
        let lane = Arc::clone(&message.lane);
        let begun = tokio::time::Instant::now();
        let permission = egress.governor().ask(&key.bot, &key.peer, &lane, begun);
        match permission {
            Permission::Go { waited } => Ok(Some(Self { egress, key, lane, begun, waited, ended: Ended::Unmade })),
            Permission::At(until) => Err(until),
        }
    }

    fn record_wait(&self, span: &tracing::Span) {
        metric::egress_wait(self.waited);
        if self.waited.is_zero() {
            return;
        }
        let end = Timestamp::now();
        let micros = i64::try_from(self.waited.as_micros()).unwrap_or(i64::MAX);
        let start = Timestamp::from_micros(end.as_micros().saturating_sub(micros));
        if let Some(parent) = telemetry::current_traceparent(span) {
            let name = telemetry::span::EGRESS_WAIT;
            telemetry::record_wait(&Wait { name, parent: &parent, start, end, link: None, attributes: Vec::new() });
        }
    }

    fn answered(mut self, status: Option<u16>, answer: &Answer) {
        self.ended = match (status, answer) {
            (Some(_), _) => Ended::Answered,
            (None, Answer::NotSent { .. }) => Ended::Unmade,
            (None, _) => Ended::Unanswered,
        };
        if let Answer::RetryAfter { delay, scope, .. } = answer {
            let (key, now) = (&self.key, tokio::time::Instant::now());
            self.egress.governor().refused(&key.bot, &key.peer, &self.lane, *scope, *delay, now);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let (key, now) = (&self.key, tokio::time::Instant::now());
        self.egress.governor().ended(&key.bot, &key.peer, self.begun, self.ended, now);
    }
}

const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Waiting for the database to come back, for as long as it takes.
fn patience() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(20))
        .with_max_interval(MAX_PAUSE)
        .with_max_elapsed_time(None)
        .build()
}

/// `next`, unless recording the state ended otherwise than with "to be tried again".
fn again(recorded: Verdict<Settled>, next: Verdict<Settled>) -> Verdict<Settled> {
    if matches!(recorded, Verdict::Wait { .. }) { next } else { recorded }
}

fn failure(reason: &'static str, error: String) -> Failure {
    Failure { reason, error, user_message: None }
}

/// The delivery that a message was published for. One without an id, or with one in another spelling, was not published by us;
/// behind a dot stands which time it is, if a person had it sent again.
fn delivery_id(message: &StreamMessage) -> Option<Uuid> {
    let id = message.message_id.split('.').next().unwrap_or_default();
    Uuid::parse_str(id).ok().filter(|parsed| parsed.to_string() == id)
}

fn host(call: &Call) -> String {
    let url = reqwest::Url::parse(call.url.expose()).ok();
    url.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}
