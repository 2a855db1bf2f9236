//! The loop between a stream and its work: partitions feed lanes, lanes start tasks, tasks end in receipts, receipts
//! acknowledge. The same loop runs conversations' turns and chats' deliveries; what the work is, [`Work`] says.
//!
//! Refuses to know messages' contents. Invariants: one task per lane at a time, in stream order; a message is acknowledged
//! only against a receipt; a failed one is tried again in its place, never behind later ones (nothing is ever NAKed).

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::time::DelayQueue;

use self::lanes::{LaneKey, Lanes, Slot, Start};
use self::progress::{Arrival, Progress};
use crate::cluster::Owned;
use crate::message::Timestamp;
use crate::store::{Ownership, Receipt, Store, StoreError};
use crate::stream::{Delivery, StreamHandle, StreamMessage};

mod checkpoints;
mod feeder;
pub mod lanes;
pub mod progress;

/// Batches on their way from the feeders to the loop: two per partition of the default 64.
const EVENTS_IN_FLIGHT: usize = 128;

/// How often the loop looks for messages that need a heartbeat.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// After the grace, tasks get this long to notice their cancellation before they are aborted.
const ABORT_AFTER: Duration = Duration::from_secs(2);

/// The longest pause before an attempt, whatever a platform or a responder asks for: a lane must not stand still for ever,
/// and asking once an hour harms nobody.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// One attempt at one message.
#[derive(Debug, Clone)]
pub struct Task {
    pub message: Arc<StreamMessage>,
    pub ownership: Ownership,
    /// Counts from 1; attempts cut short by outside trouble do not count.
    pub attempt: u32,
    /// When this attempt started.
    pub started_at: Timestamp,
    /// How many messages stood before it in its lane when it came.
    pub lane_position: usize,
    /// Cancelled when the attempt must stop without an outcome.
    pub cancellation: CancellationToken,
    /// The trace context of this attempt's span, set by the work, so that the acknowledgement is part of what it ends.
    pub traceparent: Arc<OnceLock<String>>,
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
    /// The work is durable.
    Done(R),
    /// The message failed: again after a growing pause, at least `after`, until the attempts run out.
    Failed { failure: Failure, after: Option<Duration> },
    /// The message failed, and trying again cannot help.
    Hopeless(Failure),
    /// Something outside is away or asked for patience; the message is not to blame and the attempt does not count.
    Wait { cause: String, after: Option<Duration> },
    /// The partition has a newer owner.
    Fenced,
    /// The attempt was cancelled and left nothing behind.
    Stopped,
}

/// What is done with the messages of a stream.
#[async_trait::async_trait]
pub trait Work: Send + Sync + 'static {
    type Receipt: Receipt + Send + Sync + 'static;

    /// A word for logs and metrics.
    const NAME: &'static str;

    /// Receipts for those of `messages` whose work is already durable; asked for messages that an earlier owner may have
    /// finished, in bulk.
    async fn settled(&self, messages: &[Arc<StreamMessage>]) -> Result<Vec<Self::Receipt>, StoreError>;

    /// Told the size of the loop after each event: tasks running, lanes with messages.
    fn observe(&self, _running: usize, _lanes: usize) {}

    /// One attempt.
    async fn run(&self, task: &Task) -> Verdict<Self::Receipt>;

    /// The attempts are used up, or hopeless: makes the failure durable, so that the lane can go on.
    async fn give_up(&self, task: &Task, failure: &Failure) -> Verdict<Self::Receipt>;
}

/// Bounds of one scheduler.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Tasks at once.
    pub max_running: usize,
    /// Attempts at a message before it is given up.
    pub max_attempts: u32,
    /// The pause after a counted failure.
    pub retry: ExponentialBackoff,
}

/// Why a scheduler stopped by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    #[error("partition {partition} of {stream} has a newer owner; this process stops working on the stream")]
    Fenced { stream: String, partition: u16 },
    #[error("{0}")]
    StreamReplaced(String),
}

/// What can happen to the loop.
enum Event<R> {
    Delivered { partition: u16, batch: Vec<(Delivery, Option<R>)> },
    Finished { key: LaneKey, slot: Slot, verdict: Verdict<R>, traceparent: Arc<OnceLock<String>> },
    Broken(SchedulerError),
}

/// One owned partition, shared between the loop, its feeder and the checkpoint writer.
#[derive(Debug)]
struct Partition {
    ownership: Ownership,
    /// At and below it everything is done; written by the loop, read by the others.
    watermark: AtomicU64,
}

/// How to stop: first softly, then for good.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// No new messages, no new tasks; running ones may finish.
    pub drain: CancellationToken,
    /// The grace is over: running tasks are cancelled.
    pub halt: CancellationToken,
}

/// Runs the work of the partitions taken over until stopped.
///
/// # Errors
/// When a partition has a newer owner or the stream was replaced: the caller must not go on as if nothing had happened.
pub async fn run<W: Work>(
    work: Arc<W>,
    handle: StreamHandle,
    store: Store,
    owned: Vec<Owned>,
    limits: Limits,
    stopping: Stopping,
) -> Result<(), SchedulerError> {
    let partitions: Arc<Vec<Partition>> = Arc::new(
        owned
            .into_iter()
            .map(|owned| Partition { ownership: owned.takeover.ownership, watermark: AtomicU64::new(owned.after) })
            .collect(),
    );
    let (events, inbox) = mpsc::channel(EVENTS_IN_FLIGHT);
    let feeding = stopping.drain.child_token();
    let feeders = TaskTracker::new();
    for index in 0..partitions.len() {
        let feeder = feeder::Feeder {
            work: Arc::clone(&work),
            handle: handle.clone(),
            store: store.clone(),
            partitions: Arc::clone(&partitions),
            index,
            events: events.clone(),
        };
        let feeding = feeding.clone();
        feeders.spawn(async move { feeding.run_until_cancelled(feeder.run()).await });
    }
    feeders.close();
    let checkpoints = tokio::spawn(checkpoints::keep(store, Arc::clone(&partitions), feeding.clone()));
    let progress = partitions
        .iter()
        .map(|partition| (partition.ownership.partition, Progress::new(partition.watermark.load(Ordering::Acquire))))
        .collect();
    let scheduler = Scheduler {
        work,
        stream: handle.name,
        partitions,
        progress,
        lanes: Lanes::new(limits.max_running),
        held: HashMap::new(),
        pauses: DelayQueue::new(),
        backoffs: HashMap::new(),
        limits,
        tasks: TaskTracker::new(),
        events,
        stopping,
    };
    let outcome = scheduler.turn_events(inbox).await;
    feeding.cancel();
    feeders.wait().await;
    if let Err(error) = checkpoints.await {
        tracing::error!(error = %error, "the checkpoint writer failed");
    }
    outcome
}

/// A message that is waiting or running here.
struct Held {
    delivery: Delivery,
    lane_position: usize,
    last_sign_of_life: Instant,
}

struct Scheduler<W: Work> {
    work: Arc<W>,
    stream: String,
    partitions: Arc<Vec<Partition>>,
    progress: HashMap<u16, Progress>,
    lanes: Lanes,
    held: HashMap<Slot, Held>,
    pauses: DelayQueue<LaneKey>,
    /// Lanes whose first message has failed at least once.
    backoffs: HashMap<LaneKey, ExponentialBackoff>,
    limits: Limits,
    tasks: TaskTracker,
    events: mpsc::Sender<Event<W::Receipt>>,
    stopping: Stopping,
}

impl<W: Work> Scheduler<W> {
    async fn turn_events(mut self, mut inbox: mpsc::Receiver<Event<W::Receipt>>) -> Result<(), SchedulerError> {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let outcome = loop {
            let draining = self.stopping.drain.is_cancelled();
            if draining && (self.lanes.running() == 0 || self.stopping.halt.is_cancelled()) {
                break Ok(());
            }
            if !draining {
                self.start_ready();
            }
            tokio::select! {
                Some(event) = inbox.recv() => if let Err(error) = self.handle(event) { break Err(error) },
                Some(due) = self.pauses.next() => self.lanes.resume(&due.into_inner()),
                _ = housekeeping.tick() => self.heartbeats(),
                () = self.stopping.drain.cancelled(), if !draining => {}
                () = self.stopping.halt.cancelled(), if draining => {}
            }
            self.work.observe(self.lanes.running(), self.lanes.len());
        };
        self.finish_tasks(inbox).await;
        outcome
    }

    fn handle(&mut self, event: Event<W::Receipt>) -> Result<(), SchedulerError> {
        match event {
            Event::Delivered { partition, batch } => {
                for (delivery, receipt) in batch {
                    self.deliver(partition, delivery, receipt);
                }
                self.publish_watermark(partition);
                Ok(())
            }
            Event::Finished { key, slot, verdict, traceparent } => self.finish(&key, slot, verdict, traceparent),
            Event::Broken(error) => Err(error),
        }
    }

    fn deliver(&mut self, partition: u16, delivery: Delivery, receipt: Option<W::Receipt>) {
        let message = Arc::clone(delivery.message());
        let slot = Slot { partition, sequence: message.sequence };
        let Some(progress) = self.progress.get_mut(&partition) else { return };
        match (progress.arrive(slot.sequence), receipt) {
            (Arrival::Fresh, None) => {
                let lane_position = self.lanes.admit(&message.lane, slot);
                self.held.insert(slot, Held { delivery, lane_position, last_sign_of_life: Instant::now() });
            }
            (Arrival::Fresh, Some(receipt)) => {
                progress.finish(slot.sequence);
                self.acknowledge(delivery, receipt, Arc::default());
            }
            // Delivered again by a re-created consumer: from now on only the new address counts.
            (Arrival::Open, _) => {
                if let Some(held) = self.held.get_mut(&slot) {
                    held.delivery = delivery;
                }
            }
            (Arrival::Done, Some(receipt)) => self.acknowledge(delivery, receipt, Arc::default()),
            // Its receipt was spent; the next consumer starts behind the watermark and will not bring it again.
            (Arrival::Done, None) => {}
        }
    }

    fn finish(
        &mut self,
        key: &LaneKey,
        slot: Slot,
        verdict: Verdict<W::Receipt>,
        traceparent: Arc<OnceLock<String>>,
    ) -> Result<(), SchedulerError> {
        match verdict {
            Verdict::Done(receipt) => {
                self.lanes.done(key);
                self.backoffs.remove(key);
                if let Some(progress) = self.progress.get_mut(&slot.partition) {
                    progress.finish(slot.sequence);
                }
                self.publish_watermark(slot.partition);
                if let Some(held) = self.held.remove(&slot) {
                    self.acknowledge(held.delivery, receipt, traceparent);
                }
            }
            Verdict::Failed { failure, after } => {
                let pause = self.next_pause(key).max(after.unwrap_or_default());
                tracing::warn!(
                    work = W::NAME,
                    sequence = slot.sequence,
                    reason = failure.reason,
                    error = failure.error,
                    pause_ms = pause.as_millis(),
                    "attempt failed, will be tried again"
                );
                self.pause(key, true, pause);
            }
            Verdict::Wait { cause, after } => {
                let pause = after.unwrap_or_else(|| self.next_pause(key));
                tracing::warn!(
                    work = W::NAME,
                    sequence = slot.sequence,
                    cause,
                    pause_ms = pause.as_millis(),
                    "waiting"
                );
                self.pause(key, false, pause);
            }
            // Given up already by the attempt itself; see `attempt`.
            Verdict::Hopeless(failure) => {
                let pause = self.next_pause(key);
                tracing::error!(work = W::NAME, sequence = slot.sequence, error = failure.error, "cannot be given up");
                self.pause(key, false, pause);
            }
            Verdict::Fenced => {
                return Err(SchedulerError::Fenced { stream: self.stream.clone(), partition: slot.partition });
            }
            Verdict::Stopped => self.pause(key, false, Duration::ZERO),
        }
        Ok(())
    }

    fn start_ready(&mut self) {
        while let Some(Start { key, slot, attempt }) = self.lanes.start() {
            let ownership = self.partitions.iter().find(|owned| owned.ownership.partition == slot.partition);
            let (Some(held), Some(partition)) = (self.held.get(&slot), ownership) else {
                debug_assert!(false, "a lane holds only messages that are held");
                continue;
            };
            let task = Task {
                message: Arc::clone(held.delivery.message()),
                ownership: partition.ownership,
                attempt,
                started_at: Timestamp::now(),
                lane_position: held.lane_position,
                cancellation: self.stopping.halt.child_token(),
                traceparent: Arc::default(),
            };
            let (work, events, max_attempts) = (Arc::clone(&self.work), self.events.clone(), self.limits.max_attempts);
            self.tasks.spawn(async move {
                let verdict = Box::pin(attempt_task(work.as_ref(), &task, max_attempts)).await;
                // The loop is gone only when the process is stopping; the message comes again then.
                let traceparent = task.traceparent;
                let _ = events.send(Event::Finished { key, slot, verdict, traceparent }).await;
            });
        }
    }

    fn next_pause(&mut self, key: &LaneKey) -> Duration {
        let fresh = &self.limits.retry;
        let backoff = self.backoffs.entry(Arc::clone(key)).or_insert_with(|| fresh.clone());
        backoff.next_backoff().unwrap_or(fresh.max_interval)
    }

    fn pause(&mut self, key: &LaneKey, counts: bool, pause: Duration) {
        self.lanes.failed(key, counts);
        self.pauses.insert(Arc::clone(key), pause.min(MAX_PAUSE));
    }

    fn acknowledge(&self, delivery: Delivery, receipt: W::Receipt, traceparent: Arc<OnceLock<String>>) {
        // Not awaited here: the connection may be away, and the loop must go on.
        self.tasks.spawn(async move { delivery.ack(&receipt, traceparent.get().map(String::as_str)).await });
    }

    fn publish_watermark(&self, partition: u16) {
        let shared = self.partitions.iter().find(|owned| owned.ownership.partition == partition);
        if let (Some(shared), Some(progress)) = (shared, self.progress.get(&partition)) {
            shared.watermark.store(progress.watermark(), Ordering::Release);
        }
    }

    fn heartbeats(&mut self) {
        let now = Instant::now();
        for held in self.held.values_mut() {
            if now.duration_since(held.last_sign_of_life) >= crate::stream::HEARTBEAT_AFTER {
                held.last_sign_of_life = now;
                let heartbeat = held.delivery.heartbeat();
                self.tasks.spawn(heartbeat);
            }
        }
    }

    /// Lets cancelled tasks notice it, takes what they still finished, and leaves the rest unacknowledged.
    async fn finish_tasks(mut self, mut inbox: mpsc::Receiver<Event<W::Receipt>>) {
        if self.lanes.running() > 0 {
            self.stopping.halt.cancel();
        }
        let deadline = Instant::now() + ABORT_AFTER;
        while self.lanes.running() > 0 {
            let Ok(Some(event)) = tokio::time::timeout_at(deadline, inbox.recv()).await else { break };
            if let Event::Finished { .. } = event
                && let Err(error) = self.handle(event)
            {
                tracing::debug!(error = %error, "while stopping");
            }
        }
        inbox.close();
        self.tasks.close();
        if tokio::time::timeout_at(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(work = W::NAME, "some tasks did not stop in time; their messages will come again");
        }
    }
}

/// One attempt and, when it was the last, what follows from it. A panic in the work is a failure like any other.
async fn attempt_task<W: Work>(work: &W, task: &Task, max_attempts: u32) -> Verdict<W::Receipt> {
    let failure = match guarded(work.run(task)).await {
        Verdict::Failed { failure, .. } if task.attempt >= max_attempts => failure,
        Verdict::Hopeless(failure) => failure,
        verdict => return verdict,
    };
    match guarded(work.give_up(task, &failure)).await {
        // Even giving up failed: the message stays in its place until it can be given up.
        Verdict::Failed { failure, after } => Verdict::Wait { cause: failure.error, after },
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
