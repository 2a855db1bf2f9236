//! The loop: one closed set of events, one place where lanes, partitions and held messages change.
//!
//! Invariant: nothing here waits for anything but the next event; whatever takes time is a task that ends in one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::time::DelayQueue;

use super::feeder::Feeder;
use super::lanes::{Admission, LaneKey, Lanes, Slot, Start};
use super::parking::{self, Refilled};
use super::partitions::{Leaving, Partition, Partitions};
use super::progress::Arrival;
use super::{Limits, SchedulerError, Task, Verdict, Work, attempt};
use crate::cluster::{Assignment, Notice, Owned};
use crate::message::Timestamp;
use crate::store::{Ownership, Store};
use crate::stream::{self, Delivery, StreamHandle, StreamMessage};
use crate::telemetry::chain;

/// Batches on their way from the feeders to the loop: two per partition of the default 64.
const EVENTS_IN_FLIGHT: usize = 128;

/// How often checkpoints are written. They only save time: what lies behind one that was not written is delivered again and
/// found in the ledger.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// How often they are written beside the stream, too, for the day on which the database is lost.
const FLOOR_INTERVAL: Duration = Duration::from_secs(10);

/// How often the loop looks for messages that need a heartbeat.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(60);

/// After the grace, tasks get this long to notice their cancellation before they are left behind.
const ABORT_AFTER: Duration = Duration::from_secs(2);

/// The longest pause before an attempt, whatever a platform or a responder asks for: a lane must not stand still for ever,
/// and asking once an hour harms nobody.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// What can happen.
pub(super) enum Event<R> {
    Delivered {
        partition: u16,
        epoch: i64,
        batch: Vec<(Delivery, Option<R>)>,
    },
    Finished {
        key: LaneKey,
        slot: Slot,
        verdict: Verdict<R>,
        traceparent: Arc<OnceLock<String>>,
    },
    Refilled {
        partition: u16,
        epoch: i64,
        key: LaneKey,
        refilled: Refilled,
    },
    CheckpointsSaved(Vec<(Ownership, u64)>),
    /// The feeder found a newer owner.
    Lost {
        partition: u16,
        epoch: i64,
    },
    Broken(SchedulerError),
}

/// A message that is waiting or running here.
struct Held {
    message: Arc<StreamMessage>,
    /// What acknowledges it; `None` for one that was parked, and acknowledged then.
    delivery: Option<Delivery>,
    lane_position: usize,
    last_sign_of_life: Instant,
}

impl Held {
    fn new(message: Arc<StreamMessage>, delivery: Option<Delivery>, lane_position: usize) -> Self {
        Self { message, delivery, lane_position, last_sign_of_life: Instant::now() }
    }
}

pub(super) struct Engine<W: Work> {
    work: Arc<W>,
    handle: StreamHandle,
    store: Store,
    limits: Limits,
    notices: mpsc::Sender<Notice>,
    halt: CancellationToken,
    events: mpsc::Sender<Event<W::Receipt>>,
    partitions: Partitions,
    /// Taken while an earlier ownership of the same partition was still leaving.
    queued: HashMap<u16, Owned>,
    lanes: Lanes,
    held: HashMap<Slot, Held>,
    pauses: DelayQueue<LaneKey>,
    /// Lanes whose first message has failed at least once.
    backoffs: HashMap<LaneKey, ExponentialBackoff>,
    saving: bool,
    tasks: TaskTracker,
}

impl<W: Work> Engine<W> {
    pub(super) fn new(
        work: Arc<W>,
        handle: StreamHandle,
        store: Store,
        limits: Limits,
        notices: mpsc::Sender<Notice>,
        halt: CancellationToken,
    ) -> (Self, mpsc::Receiver<Event<W::Receipt>>) {
        let (events, inbox) = mpsc::channel(EVENTS_IN_FLIGHT);
        let engine = Self {
            work,
            handle,
            store,
            lanes: Lanes::new(limits.max_running, limits.lane_backlog),
            limits,
            notices,
            halt,
            events,
            partitions: Partitions::default(),
            queued: HashMap::new(),
            held: HashMap::new(),
            pauses: DelayQueue::new(),
            backoffs: HashMap::new(),
            saving: false,
            tasks: TaskTracker::new(),
        };
        (engine, inbox)
    }

    pub(super) async fn run(
        mut self,
        mut assignments: mpsc::Receiver<Assignment>,
        mut inbox: mpsc::Receiver<Event<W::Receipt>>,
    ) -> Result<(), SchedulerError> {
        let mut checkpoints = tokio::time::interval(CHECKPOINT_INTERVAL);
        let mut floors = tokio::time::interval(FLOOR_INTERVAL);
        let mut heartbeats = tokio::time::interval(HEARTBEAT_INTERVAL);
        let mut assigning = true;
        let halt = self.halt.clone();
        let outcome = loop {
            if !assigning && self.partitions.is_empty() {
                break Ok(());
            }
            self.start_ready();
            tokio::select! {
                Some(event) = inbox.recv() => if let Err(error) = self.handle(event) { break Err(error) },
                assignment = assignments.recv(), if assigning => match assignment {
                    Some(assignment) => self.assign(assignment),
                    None => assigning = false,
                },
                Some(due) = self.pauses.next() => self.lanes.resume(&due.into_inner()),
                _ = checkpoints.tick() => self.save_checkpoints(),
                _ = floors.tick() => self.keep_floors(),
                _ = heartbeats.tick() => self.heartbeats(),
                () = halt.cancelled() => break Ok(()),
            }
            self.work.observe(self.lanes.running(), self.lanes.len());
        };
        self.stop(inbox).await;
        outcome
    }

    fn handle(&mut self, event: Event<W::Receipt>) -> Result<(), SchedulerError> {
        match event {
            Event::Delivered { partition, epoch, batch } => self.deliver_all(partition, epoch, batch),
            Event::Finished { key, slot, verdict, traceparent } => self.finish(&key, slot, verdict, traceparent),
            Event::Refilled { partition, epoch, key, refilled } => self.refilled(partition, epoch, &key, refilled),
            Event::CheckpointsSaved(checkpoints) => {
                self.saving = false;
                self.partitions.saved(&checkpoints);
            }
            Event::Lost { partition, epoch } => {
                if self.partitions.current(partition, epoch).is_some() {
                    self.lose(partition);
                }
            }
            Event::Broken(error) => return Err(error),
        }
        Ok(())
    }
}

/// Partitions come and go.
impl<W: Work> Engine<W> {
    fn assign(&mut self, assignment: Assignment) {
        match assignment {
            Assignment::Take(owned) => self.take(owned),
            Assignment::Give { partition, released } => match self.partitions.get(partition) {
                Some(held) if held.leaving.is_none() => self.leave(partition, Leaving::Given(released)),
                // Not here any more: there is nothing to wait for.
                _ => drop(released.send(())),
            },
        }
    }

    fn take(&mut self, owned: Owned) {
        let number = owned.takeover.ownership.partition;
        if self.partitions.get(number).is_some() {
            // Our own earlier ownership, overtaken by ourselves or still leaving.
            self.queued.insert(number, owned);
            self.leave(number, Leaving::Lost);
            return;
        }
        let partition = Partition::new(&owned, &self.halt);
        let feeder = Feeder {
            work: Arc::clone(&self.work),
            handle: self.handle.clone(),
            store: self.store.clone(),
            partition: Arc::clone(&partition.shared),
            events: self.events.clone(),
        };
        let feeding = partition.feeding.clone();
        self.tasks.spawn(async move { feeding.run_until_cancelled(feeder.run()).await });
        self.partitions.insert(number, partition);
    }

    /// Somebody else owns the partition: whatever of it runs here is of no use any more.
    fn lose(&mut self, partition: u16) {
        if self.partitions.get(partition).is_some_and(|held| held.leaving.is_none()) {
            tracing::warn!(work = W::NAME, partition, "the partition has a newer owner");
            // The owner of the partitions is gone only when the process is stopping; there is room for one notice each.
            let _ = self.notices.try_send(Notice::Lost { partition });
            self.leave(partition, Leaving::Lost);
        }
    }

    /// No new messages, no new tasks. What runs of a partition given away may finish, what runs of a lost one is cancelled.
    fn leave(&mut self, number: u16, leaving: Leaving) {
        let Some(partition) = self.partitions.get_mut(number) else { return };
        partition.feeding.cancel();
        if matches!(leaving, Leaving::Lost) {
            partition.cancellation.cancel();
        }
        if partition.leaving.is_none() {
            partition.leaving = Some(leaving);
        }
        for key in self.lanes.drop_partition(number) {
            self.backoffs.remove(&key);
        }
        self.conclude(number);
    }

    /// Forgets a leaving partition once nothing of it runs.
    fn conclude(&mut self, number: u16) {
        if !self.partitions.get(number).is_some_and(|held| held.leaving.is_some() && held.running == 0) {
            return;
        }
        let Some(partition) = self.partitions.remove(number) else { return };
        self.held.retain(|slot, _| slot.partition != number);
        if let Some(Leaving::Given(released)) = partition.leaving {
            let (store, handle, ownership) = (self.store.clone(), self.handle.clone(), partition.shared.ownership);
            let watermark = partition.shared.watermark();
            self.tasks.spawn(async move {
                match store.save_checkpoints(&[(ownership, watermark)]).await {
                    Ok(()) => keep_floors(&handle, &[(number, watermark)]).await,
                    Err(error) => tracing::warn!(error = %chain(&error), "a last checkpoint was not written"),
                }
                // Whoever asked may have stopped waiting.
                let _ = released.send(());
            });
        }
        if let Some(owned) = self.queued.remove(&number) {
            self.take(owned);
        }
    }
}

/// Messages come and go.
impl<W: Work> Engine<W> {
    fn deliver_all(&mut self, partition: u16, epoch: i64, batch: Vec<(Delivery, Option<W::Receipt>)>) {
        for (delivery, receipt) in batch {
            self.deliver(partition, epoch, delivery, receipt);
        }
        if let Some(partition) = self.partitions.get(partition) {
            partition.publish();
        }
    }

    fn deliver(&mut self, number: u16, epoch: i64, delivery: Delivery, receipt: Option<W::Receipt>) {
        let Some(partition) = self.partitions.current(number, epoch) else { return };
        let message = Arc::clone(delivery.message());
        let slot = Slot { partition: number, sequence: message.sequence };
        match (partition.progress.arrive(slot.sequence), receipt) {
            (Arrival::Fresh, Some(receipt)) => {
                partition.progress.finish(slot.sequence);
                self.acknowledge(delivery, receipt, Arc::default());
            }
            (Arrival::Fresh, None) => match self.lanes.admit(&message.lane, slot) {
                Admission::Waiting { before } => {
                    self.held.insert(slot, Held::new(message, Some(delivery), before));
                }
                Admission::Parked { opens } => {
                    if opens {
                        partition.progress.hold(slot.sequence);
                    }
                    partition.progress.park(slot.sequence);
                    self.set_aside(delivery);
                }
            },
            // Delivered again by a consumer made again: from now on only the new address counts.
            (Arrival::Open, _) => {
                if let Some(held) = self.held.get_mut(&slot) {
                    held.delivery = Some(delivery);
                }
            }
            (Arrival::Past, Some(receipt)) => self.acknowledge(delivery, receipt, Arc::default()),
            (Arrival::Past, None) => {
                if self.lanes.is_parked(&message.lane, slot.sequence) {
                    self.set_aside(delivery);
                }
            }
        }
    }

    fn start_ready(&mut self) {
        while let Some(Start { key, slot, attempt: number }) = self.lanes.start() {
            let (Some(held), Some(partition)) = (self.held.get(&slot), self.partitions.get_mut(slot.partition)) else {
                debug_assert!(false, "a lane holds only messages that are held");
                continue;
            };
            partition.running += 1;
            let task = Task {
                message: Arc::clone(&held.message),
                ownership: partition.shared.ownership,
                attempt: number,
                started_at: Timestamp::now(),
                lane_position: held.lane_position,
                cancellation: partition.cancellation.child_token(),
                traceparent: Arc::default(),
            };
            let (work, events, max_attempts) = (Arc::clone(&self.work), self.events.clone(), self.limits.max_attempts);
            self.tasks.spawn(async move {
                let verdict = Box::pin(attempt(work.as_ref(), &task, max_attempts)).await;
                // The loop is gone only when the process is stopping; the message comes again then.
                let traceparent = task.traceparent;
                let _ = events.send(Event::Finished { key, slot, verdict, traceparent }).await;
            });
        }
    }

    fn finish(&mut self, key: &LaneKey, slot: Slot, verdict: Verdict<W::Receipt>, traceparent: Arc<OnceLock<String>>) {
        let Some(partition) = self.partitions.get_mut(slot.partition) else { return };
        partition.running -= 1;
        let leaving = partition.leaving.is_some();
        match verdict {
            Verdict::Done(receipt) => {
                partition.progress.finish(slot.sequence);
                partition.publish();
                self.lanes.done(key);
                self.backoffs.remove(key);
                if let Some(delivery) = self.held.remove(&slot).and_then(|held| held.delivery) {
                    self.acknowledge(delivery, receipt, traceparent);
                }
                self.refill(key);
            }
            // Its lane ends with it: the message is the next owner's.
            _ if leaving => self.lanes.done(key),
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
            Verdict::Fenced => {
                self.pause(key, false, Duration::ZERO);
                self.lose(slot.partition);
            }
            Verdict::Hopeless(_) | Verdict::Stopped => self.pause(key, false, Duration::ZERO),
        }
        self.conclude(slot.partition);
    }

    /// Has parked messages of the lane read, if there are any and there is room.
    fn refill(&mut self, key: &LaneKey) {
        let Some(refill) = self.lanes.refill(key) else { return };
        let Some(partition) = self.partitions.get(refill.partition) else { return };
        let (handle, events, epoch) = (self.handle.clone(), self.events.clone(), partition.epoch());
        let feeding = partition.feeding.clone();
        self.tasks.spawn(async move {
            if let Some(refilled) = feeding.run_until_cancelled(parking::read(&handle, &refill)).await {
                let event = Event::Refilled { partition: refill.partition, epoch, key: refill.key, refilled };
                let _ = events.send(event).await;
            }
        });
    }

    fn refilled(&mut self, number: u16, epoch: i64, key: &LaneKey, refilled: Refilled) {
        let Some(partition) = self.partitions.current(number, epoch) else { return };
        let sequences: Vec<u64> = refilled.messages.iter().map(|message| message.sequence).collect();
        for message in refilled.messages {
            partition.progress.reopen(message.sequence);
            let slot = Slot { partition: number, sequence: message.sequence };
            self.held.insert(slot, Held::new(Arc::new(message), None, self.limits.lane_backlog));
        }
        if let Some(moved) = self.lanes.refilled(key, &sequences, refilled.next) {
            partition.progress.let_go(moved.from);
            if let Some(to) = moved.to {
                partition.progress.hold(to);
            }
        }
        partition.publish();
        self.refill(key);
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

    // Acknowledgements are not awaited: the connection may be away, and the loop must go on.

    fn acknowledge(&self, delivery: Delivery, receipt: W::Receipt, traceparent: Arc<OnceLock<String>>) {
        self.tasks.spawn(async move { delivery.ack(&receipt, traceparent.get().map(String::as_str)).await });
    }

    fn set_aside(&self, delivery: Delivery) {
        self.tasks.spawn(delivery.park());
    }
}

/// What happens by the clock.
impl<W: Work> Engine<W> {
    fn heartbeats(&mut self) {
        let now = Instant::now();
        for held in self.held.values_mut() {
            if let Some(delivery) = &held.delivery
                && now.duration_since(held.last_sign_of_life) >= crate::stream::HEARTBEAT_AFTER
            {
                held.last_sign_of_life = now;
                self.tasks.spawn(delivery.heartbeat());
            }
        }
    }

    fn save_checkpoints(&mut self) {
        let checkpoints = self.partitions.checkpoints();
        if self.saving || checkpoints.is_empty() {
            return;
        }
        self.saving = true;
        let (store, events) = (self.store.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let saved = match store.save_checkpoints(&checkpoints).await {
                Ok(()) => checkpoints,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "checkpoints not written, will be tried again");
                    Vec::new()
                }
            };
            let _ = events.send(Event::CheckpointsSaved(saved)).await;
        });
    }

    fn keep_floors(&mut self) {
        let floors = self.partitions.floors();
        if !floors.is_empty() {
            let handle = self.handle.clone();
            self.tasks.spawn(async move { keep_floors(&handle, &floors).await });
        }
    }

    /// Lets cancelled tasks notice it, takes what they still finished, and leaves the rest unacknowledged.
    async fn stop(mut self, mut inbox: mpsc::Receiver<Event<W::Receipt>>) {
        let numbers: Vec<u16> = self.partitions.iter().map(|(number, _)| *number).collect();
        for number in numbers {
            self.leave(number, Leaving::Lost);
        }
        let deadline = Instant::now() + ABORT_AFTER;
        while !self.partitions.is_empty() {
            let Ok(Some(event)) = tokio::time::timeout_at(deadline, inbox.recv()).await else { break };
            if let Err(error) = self.handle(event) {
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

/// Nobody needs them as long as the database is there.
async fn keep_floors(handle: &StreamHandle, floors: &[(u16, u64)]) {
    if let Err(error) = stream::keep_floors(handle, floors).await {
        tracing::debug!(error = %chain(&error), "not written down beside the stream");
    }
}
