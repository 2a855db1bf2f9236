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

use super::bursts::Label;
use super::feeder::Feeder;
use super::lanes::{Admission, LaneKey, Lanes, Slot, Start, Step, Track};
use super::parking::{self, Refilled};
use super::partitions::{Leaving, Partition, Partitions};
use super::progress::Arrival;
use super::{Limits, SchedulerError, Task, Verdict, Work, attempt};
use crate::cluster::{Assignment, Notice, Owned};
use crate::message::Timestamp;
use crate::store::{Ownership, Receipt as _, Store};
use crate::stream::{self, Delivery, StreamHandle, StreamMessage};
use crate::telemetry::{chain, metric};

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
        batch: Vec<Arrived<R>>,
    },
    Finished {
        ended: Ended,
        verdict: Verdict<R>,
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

/// A message as it comes from the feeder.
pub(super) struct Arrived<R> {
    pub(super) delivery: Delivery,
    /// Of one whose work is already durable.
    pub(super) receipt: Option<R>,
    pub(super) label: Label,
}

/// A task that has ended.
pub(super) struct Ended {
    key: LaneKey,
    track: Track,
    partition: u16,
    messages: Vec<Arc<StreamMessage>>,
    traceparent: Arc<OnceLock<String>>,
}

/// A message that is waiting or running here.
struct Held {
    message: Arc<StreamMessage>,
    /// What acknowledges it; `None` for one that was parked, and acknowledged then.
    delivery: Option<Delivery>,
    lane_position: usize,
    last_sign_of_life: Instant,
}

impl Ended {
    fn last_sequence(&self) -> u64 {
        self.messages.last().map_or(0, |message| message.sequence)
    }
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
    /// Lanes that are resumed some time.
    pauses: DelayQueue<(LaneKey, Track)>,
    /// Lanes whose task has failed at least once.
    backoffs: HashMap<(LaneKey, Track), ExponentialBackoff>,
    /// The trace context of the turn that held the lane, for the turn that waited for it.
    blockers: HashMap<LaneKey, Arc<OnceLock<String>>>,
    /// What asks the running turns to end for a newer message.
    interruptions: HashMap<LaneKey, CancellationToken>,
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
            lanes: Lanes::new(limits.max_running, limits.lane_backlog, limits.rules.clone()),
            limits,
            notices,
            halt,
            events,
            partitions: Partitions::default(),
            queued: HashMap::new(),
            held: HashMap::new(),
            pauses: DelayQueue::new(),
            backoffs: HashMap::new(),
            blockers: HashMap::new(),
            interruptions: HashMap::new(),
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
                Some(due) = self.pauses.next() => {
                    let (key, track) = due.into_inner();
                    self.lanes.resume(&key, track);
                }
                _ = checkpoints.tick() => {
                    self.tell_oldest();
                    self.save_checkpoints();
                }
                _ = floors.tick() => self.keep_floors(),
                _ = heartbeats.tick() => self.heartbeats(),
                () = halt.cancelled() => break Ok(()),
            }
            self.work.observe(self.lanes.running(), self.lanes.len(), self.lanes.parked());
        };
        self.stop(inbox).await;
        outcome
    }

    fn handle(&mut self, event: Event<W::Receipt>) -> Result<(), SchedulerError> {
        match event {
            Event::Delivered { partition, epoch, batch } => self.deliver_all(partition, epoch, batch),
            Event::Finished { ended, verdict } => self.finish(&ended, verdict),
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
        self.tasks.spawn(async move { feeding.run_until_cancelled(Box::pin(feeder.run())).await });
        self.partitions.insert(number, partition);
        self.work.owns(self.partitions.len());
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
            for track in [Track::Turn, Track::Refusal] {
                self.backoffs.remove(&(Arc::clone(&key), track));
            }
            self.blockers.remove(&key);
        }
        self.conclude(number);
    }

    /// Forgets a leaving partition once nothing of it runs.
    fn conclude(&mut self, number: u16) {
        if !self.partitions.get(number).is_some_and(|held| held.leaving.is_some() && held.running == 0) {
            return;
        }
        let Some(partition) = self.partitions.remove(number) else { return };
        self.work.owns(self.partitions.len());
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
    fn deliver_all(&mut self, partition: u16, epoch: i64, batch: Vec<Arrived<W::Receipt>>) {
        let now = Instant::now();
        for arrived in batch {
            self.deliver(partition, epoch, arrived, now);
        }
        if let Some(partition) = self.partitions.get(partition) {
            partition.publish();
        }
    }

    fn deliver(&mut self, number: u16, epoch: i64, arrived: Arrived<W::Receipt>, now: Instant) {
        let Arrived { delivery, receipt, label } = arrived;
        let Some(partition) = self.partitions.current(number, epoch) else { return };
        let message = Arc::clone(delivery.message());
        let slot = Slot { partition: number, sequence: message.sequence };
        match (partition.progress.arrive(slot.sequence), receipt) {
            (Arrival::Fresh, Some(receipt)) => {
                partition.progress.finish(slot.sequence);
                self.acknowledge(delivery, receipt, Arc::default());
            }
            (Arrival::Fresh, None) => match self.lanes.admit(&message.lane, slot, label, now) {
                Admission::Waiting { before, interrupts } => {
                    if interrupts && let Some(interruption) = self.interruptions.get(&message.lane) {
                        interruption.cancel();
                    }
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
        while let Some(step) = self.lanes.start(Instant::now()) {
            match step {
                Step::Run(start) => self.start(start),
                Step::Wait { key, until } => drop(self.pauses.insert_at((key, Track::Turn), until)),
            }
        }
    }

    fn start(&mut self, start: Start) {
        let Start { key, track, partition: number, sequences, amendments, attempt: attempts } = start;
        let find = |sequence| self.held.get(&Slot { partition: number, sequence });
        let held: Vec<_> = sequences.into_iter().filter_map(find).collect();
        let amending = amendments.into_iter().filter_map(find).map(|held| Arc::clone(&held.message)).collect();
        let (Some(last), Some(partition)) = (held.last(), self.partitions.get_mut(number)) else {
            debug_assert!(false, "a lane holds only messages that are held");
            return;
        };
        partition.running += 1;
        // A refusal waits for nobody.
        let blocker = if track == Track::Turn { self.blockers.remove(&key) } else { None };
        let task = Task {
            messages: held.iter().map(|held| Arc::clone(&held.message)).collect(),
            amendments: amending,
            is_refusal: track == Track::Refusal,
            ownership: partition.shared.ownership,
            attempt: attempts,
            started_at: Timestamp::now(),
            lane_position: last.lane_position,
            blocker: blocker.and_then(|blocker| blocker.get().cloned()),
            cancellation: partition.cancellation.child_token(),
            interruption: CancellationToken::new(),
            traceparent: Arc::default(),
        };
        if track == Track::Turn {
            self.interruptions.insert(Arc::clone(&key), task.interruption.clone());
        }
        let (work, events, max_attempts) = (Arc::clone(&self.work), self.events.clone(), self.limits.max_attempts);
        self.tasks.spawn(async move {
            let verdict = Box::pin(attempt(work.as_ref(), &task, max_attempts)).await;
            let Task { mut messages, amendments, traceparent, .. } = task;
            messages.extend(amendments);
            let ended = Ended { key, track, partition: number, messages, traceparent };
            // The loop is gone only when the process is stopping; the messages come again then.
            let _ = events.send(Event::Finished { ended, verdict }).await;
        });
    }

    fn finish(&mut self, ended: &Ended, verdict: Verdict<W::Receipt>) {
        let (key, track) = (&ended.key, ended.track);
        let Some(partition) = self.partitions.get_mut(ended.partition) else { return };
        partition.running -= 1;
        if track == Track::Turn {
            self.interruptions.remove(key);
        }
        let leaving = partition.leaving.is_some();
        match verdict {
            Verdict::Done(receipts) => self.settle(ended, &receipts, leaving),
            // Its lane ends with it: the messages are the next owner's.
            _ if leaving => self.lanes.abandon(key, track),
            Verdict::Failed { failure, after } => {
                let pause = self.next_pause(ended).max(after.unwrap_or_default());
                tracing::warn!(
                    work = W::NAME,
                    sequence = ended.last_sequence(),
                    reason = failure.reason,
                    error = failure.error,
                    pause_ms = pause.as_millis(),
                    "attempt failed, will be tried again"
                );
                self.pause(ended, true, pause);
            }
            Verdict::Wait { cause, after } => {
                let pause = after.unwrap_or_else(|| self.next_pause(ended));
                tracing::warn!(
                    work = W::NAME,
                    sequence = ended.last_sequence(),
                    cause,
                    pause_ms = pause.as_millis(),
                    "waiting"
                );
                self.pause(ended, false, pause);
            }
            Verdict::Postponed { until } => {
                self.lanes.failed(key, track, false);
                self.pauses.insert_at((Arc::clone(key), track), until);
            }
            Verdict::Interrupted if track == Track::Turn => self.lanes.interrupted(key),
            Verdict::Admitted if track == Track::Refusal => self.lanes.readmit(key),
            Verdict::Fenced => {
                self.pause(ended, false, Duration::ZERO);
                self.lose(ended.partition);
            }
            Verdict::Interrupted | Verdict::Admitted | Verdict::Hopeless(_) | Verdict::Stopped => {
                self.pause(ended, false, Duration::ZERO);
            }
        }
        self.conclude(ended.partition);
    }

    /// Acknowledges each message against the receipt that covers it; those that none covers wait for another task.
    fn settle(&mut self, ended: &Ended, receipts: &[W::Receipt], leaving: bool) {
        let (key, track) = (&ended.key, ended.track);
        let mut done = Vec::with_capacity(ended.messages.len());
        for message in &ended.messages {
            let Some(receipt) = receipts.iter().find(|receipt| receipt.covers(&message.message_id)) else { continue };
            done.push(message.sequence);
            let slot = Slot { partition: ended.partition, sequence: message.sequence };
            if let Some(delivery) = self.held.remove(&slot).and_then(|held| held.delivery) {
                self.acknowledge(delivery, receipt.clone(), Arc::clone(&ended.traceparent));
            }
        }
        if let Some(partition) = self.partitions.get_mut(ended.partition) {
            done.iter().for_each(|sequence| partition.progress.finish(*sequence));
            partition.publish();
        }
        if leaving {
            self.lanes.abandon(key, track);
        } else if done.is_empty() {
            debug_assert!(false, "work that is done has a receipt");
            let pause = self.next_pause(ended);
            self.pause(ended, false, pause);
        } else {
            self.lanes.done(key, track, &done);
            self.backoffs.remove(&(Arc::clone(key), track));
            if track == Track::Turn && self.lanes.is_waiting(key) {
                self.blockers.insert(Arc::clone(key), Arc::clone(&ended.traceparent));
            }
            self.refill(key);
        }
    }

    /// Has parked messages of the lane read, if there are any and there is room.
    fn refill(&mut self, key: &LaneKey) {
        let Some(refill) = self.lanes.refill(key) else { return };
        let Some(partition) = self.partitions.get(refill.partition) else { return };
        let (handle, events, epoch) = (self.handle.clone(), self.events.clone(), partition.epoch());
        let (feeding, work) = (partition.feeding.clone(), Arc::clone(&self.work));
        self.tasks.spawn(async move {
            let read = parking::read(&handle, &refill, |message| work.label(message));
            if let Some(refilled) = feeding.run_until_cancelled(read).await {
                let event = Event::Refilled { partition: refill.partition, epoch, key: refill.key, refilled };
                let _ = events.send(event).await;
            }
        });
    }

    fn refilled(&mut self, number: u16, epoch: i64, key: &LaneKey, refilled: Refilled) {
        let Some(partition) = self.partitions.current(number, epoch) else { return };
        let mut read = Vec::with_capacity(refilled.messages.len());
        for (message, label) in refilled.messages {
            partition.progress.reopen(message.sequence);
            read.push((message.sequence, label));
            let slot = Slot { partition: number, sequence: message.sequence };
            self.held.insert(slot, Held::new(Arc::new(message), None, self.limits.lane_backlog));
        }
        if let Some(moved) = self.lanes.refilled(key, read, refilled.next, Instant::now()) {
            partition.progress.let_go(moved.from);
            if let Some(to) = moved.to {
                partition.progress.hold(to);
            }
        }
        partition.publish();
        self.refill(key);
    }

    fn next_pause(&mut self, ended: &Ended) -> Duration {
        let fresh = &self.limits.retry;
        let backoff = self.backoffs.entry((Arc::clone(&ended.key), ended.track)).or_insert_with(|| fresh.clone());
        backoff.next_backoff().unwrap_or(fresh.max_interval)
    }

    fn pause(&mut self, ended: &Ended, counts: bool, pause: Duration) {
        self.lanes.failed(&ended.key, ended.track, counts);
        self.pauses.insert((Arc::clone(&ended.key), ended.track), pause.min(MAX_PAUSE));
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

    /// What a lane has parked is younger than what it holds, but for the moment in which it is read again.
    fn tell_oldest(&self) {
        let first = |(number, partition): (&u16, &Partition)| {
            let slot = Slot { partition: *number, sequence: partition.progress.first_open()? };
            Some(self.held.get(&slot)?.message.published_at)
        };
        let oldest = self.partitions.iter().filter_map(first).min();
        let age = oldest.map_or(0, |oldest| Timestamp::now().micros_since(oldest));
        metric::oldest_unprocessed(self.handle.lane.as_str(), Duration::from_micros(age));
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
