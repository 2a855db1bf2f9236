//! Between a stream and its work: partitions feed lanes, lanes start tasks, tasks end in receipts, receipts acknowledge.
//! The same machinery runs conversations' turns and chats' deliveries; what the work is, [`Work`] says.
//!
//! Refuses to know messages' contents: whoever does the work labels them. Invariants: one turn per lane at a time, in stream
//! order; a message is acknowledged only against a receipt of its own; a failed one is tried again in its place, never behind
//! later ones (nothing is ever NAKed).

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backoff::ExponentialBackoff;
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::bursts::{Label, Rules};
use self::engine::Engine;
use self::holds::Holds;
use crate::cluster::{Assignment, Notice};
use crate::message::Timestamp;
use crate::store::{Ownership, Receipt, Store, StoreError};
use crate::stream::{StreamHandle, StreamMessage};

pub mod bursts;
mod engine;
mod feeder;
pub mod holds;
pub mod lanes;
mod parking;
mod partitions;
pub mod progress;
mod shares;

/// One attempt at one message, or at several of a lane that make one turn.
#[derive(Debug, Clone)]
pub struct Task {
    /// One or more, in stream order: the last is the one the turn answers, those before it are merged into it.
    pub messages: Vec<Arc<StreamMessage>>,
    /// Edits and deletions of these messages that came while they waited, in stream order.
    pub amendments: Vec<Arc<StreamMessage>>,
    /// The message is to be refused: a turn of its lane is to be made first, and its policy lets nothing wait. Then it is
    /// alone.
    pub is_refusal: bool,
    pub ownership: Ownership,
    /// Counts from 1; attempts cut short by outside trouble do not count.
    pub attempt: u32,
    /// When this attempt started.
    pub started_at: Timestamp,
    /// How many messages stood before the last one in its lane when it came; at least so many for one that was parked.
    pub lane_position: usize,
    /// How many of its lane wait behind it, as far as they have come.
    pub behind: usize,
    /// The trace context of the turn that the message waited for, if one held its lane until now.
    pub blocker: Option<String>,
    /// Cancelled when the attempt must stop without an outcome.
    pub cancellation: CancellationToken,
    /// Cancelled when a newer message of the lane asks the attempt to end at its next safe point, with
    /// [`Verdict::Interrupted`]. One that is being committed already goes on.
    pub interruption: CancellationToken,
    /// The trace context of this attempt's span, set by the work, so that the acknowledgement is part of what it ends.
    pub traceparent: Arc<OnceLock<String>>,
}

impl Task {
    /// The message that is answered: the last one.
    #[must_use]
    pub fn message(&self) -> &Arc<StreamMessage> {
        &self.messages[self.messages.len() - 1]
    }

    /// Those that are merged into it.
    #[must_use]
    pub fn earlier(&self) -> &[Arc<StreamMessage>] {
        &self.messages[..self.messages.len() - 1]
    }

    /// Everything that ends with the task.
    pub fn all(&self) -> impl Iterator<Item = &Arc<StreamMessage>> {
        self.messages.iter().chain(&self.amendments)
    }

    /// The same attempt at those of its messages and amendments that `keep` names; `None` without a message among them.
    #[must_use]
    pub fn cut(&self, keep: impl Fn(&StreamMessage) -> bool) -> Option<Self> {
        let kept = |messages: &[Arc<StreamMessage>]| messages.iter().filter(|message| keep(message)).cloned().collect();
        let task = Self { messages: kept(&self.messages), amendments: kept(&self.amendments), ..self.clone() };
        (!task.messages.is_empty()).then_some(task)
    }

    /// The same attempt at some of its messages alone; one at least.
    #[must_use]
    pub fn only(&self, messages: Vec<Arc<StreamMessage>>) -> Self {
        Self { messages, amendments: Vec::new(), ..self.clone() }
    }
}

/// Why an attempt failed, for people and for the one who gives up on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A word for grouping: `responder`, `timeout`, `undecodable`, ...
    pub reason: &'static str,
    pub error: String,
    /// What the user shall read instead of the configured failure reply.
    pub user_message: Option<String>,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Verdict<R> {
    /// The work is durable for the messages that these receipts cover, one at least. Those that none covers make another
    /// turn, with what has come meanwhile.
    Done(Vec<R>),
    /// The attempt ended because [`Task::interruption`] asked it to, and left nothing behind.
    Interrupted,
    /// A message to be refused is not to be: it waits for its turn.
    Admitted,
    /// The messages failed: again after a growing pause, at least `after`, until the attempts run out.
    Failed { failure: Failure, after: Option<Duration> },
    /// They failed, and trying again cannot help.
    Hopeless(Failure),
    /// Something outside is away or asked for patience; the messages are not to blame and the attempt does not count.
    Wait { cause: String, after: Option<Duration> },
    /// Nothing was done, because it is too early; again at this moment. That is not an attempt, and no news.
    Postponed { until: Instant },
    /// The partition has a newer owner.
    Fenced,
    /// The attempt was cancelled and left nothing behind.
    Stopped,
}

/// What is done with the messages of a stream.
#[async_trait::async_trait]
pub trait Work: Send + Sync + 'static {
    type Receipt: Receipt + Clone + Send + Sync + 'static;

    /// A word for logs and metrics.
    const NAME: &'static str;

    /// Receipts for those of `messages` whose work is already durable; asked for messages that an earlier owner may have
    /// finished, in bulk.
    async fn settled(&self, messages: &[Arc<StreamMessage>]) -> Result<Vec<Self::Receipt>, StoreError>;

    /// Told of what the owner before left behind in a partition: each the first message of its lane that is not done. If the
    /// owner died, it may have been worked on at that moment. Before they are admitted.
    ///
    /// # Errors
    /// When it cannot be recorded, or what was recorded cannot be read; it is told again.
    async fn outlived(
        &self,
        _ownership: &Ownership,
        _heads: &[Arc<StreamMessage>],
        _after_death: bool,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// What a message is to the lane's burst policy. Cheap: it is called for each message before it is admitted.
    fn label(&self, _message: &StreamMessage) -> Label {
        Label::Opaque
    }

    /// Told the size of the scheduler after each event: tasks running, lanes with messages, messages parked.
    fn observe(&self, _running: usize, _lanes: usize, _parked: usize) {}

    /// Told how many partitions it is done for in this process, whenever that changes.
    fn owns(&self, _partitions: usize) {}

    /// One attempt.
    async fn run(&self, task: &Task) -> Verdict<Self::Receipt>;

    /// The attempts are used up, or hopeless: makes the failure of all its messages durable, so that the lane can go on.
    async fn give_up(&self, task: &Task, failure: &Failure) -> Verdict<Self::Receipt>;
}

/// Bounds of one scheduler.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Turns at once, and as many refusals.
    pub max_running: usize,
    /// How each bot's turns are formed and how many run, by `<channel>.<bot>` as in its lanes; the default for others.
    pub rules: HashMap<String, Rules>,
    /// Messages of one lane in memory; the rest is read again from the stream when its turn comes near.
    pub lane_backlog: usize,
    /// Attempts at a turn before its messages are given up.
    pub max_attempts: u32,
    /// The pause after a counted failure.
    pub retry: ExponentialBackoff,
}

/// Why a scheduler stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    #[error("{0}")]
    StreamReplaced(String),
}

/// The two ends that a scheduler and the owner of its partitions talk through, and what people say.
#[derive(Debug)]
pub struct Orders {
    pub assignments: mpsc::Receiver<Assignment>,
    pub notices: mpsc::Sender<Notice>,
    /// Whose tasks are not to start.
    pub holds: watch::Receiver<Arc<Holds>>,
}

/// Runs the work of the partitions assigned, until the assignments end and every partition has been given back. `halt` is
/// cancelled when the grace for running tasks is over.
///
/// # Errors
/// When the stream was replaced: the caller must not go on as if nothing had happened.
pub async fn run<W: Work>(
    work: Arc<W>,
    handle: StreamHandle,
    store: Store,
    limits: Limits,
    orders: Orders,
    halt: CancellationToken,
) -> Result<(), SchedulerError> {
    let (engine, inbox) = Engine::new(work, handle, store, limits, orders.notices, halt);
    engine.run(orders.assignments, inbox, orders.holds).await
}

/// One attempt and, when it was the last, what follows from it. A panic in the work is a failure like any other.
async fn attempt<W: Work>(work: &W, task: &Task, max_attempts: u32) -> Verdict<W::Receipt> {
    let failure = match guarded(work.run(task)).await {
        Verdict::Failed { failure, .. } if task.attempt >= max_attempts => failure,
        Verdict::Hopeless(failure) => failure,
        verdict => return verdict,
    };
    match guarded(work.give_up(task, &failure)).await {
        // Even giving up failed: the message stays in its place until it can be given up.
        Verdict::Failed { failure, after } => Verdict::Wait { cause: failure.error, after },
        Verdict::Hopeless(failure) => Verdict::Wait { cause: failure.error, after: None },
        verdict => verdict,
    }
}

async fn guarded<R>(work: impl Future<Output = Verdict<R>>) -> Verdict<R> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(verdict) => verdict,
        Err(_) => Verdict::Failed {
            failure: Failure { reason: "panic", error: "the attempt panicked".to_owned(), user_message: None },
            after: None,
        },
    }
}
