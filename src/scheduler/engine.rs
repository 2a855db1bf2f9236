//! The loop: one closed set of events, one place where lanes, partitions and held messages change. What an event does to
//! partitions is in `ownership`, what it does to messages in `messages`; what happens by the clock is here.
//!
//! Invariant: nothing here waits for anything but the next event; whatever takes time is a task that ends in one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backoff::ExponentialBackoff;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::time::DelayQueue;

use super::bursts::Label;
use super::holds::Holds;
use super::lanes::{LaneKey, Lanes, Slot, Track};
use super::parking::Refilled;
use super::partitions::{Leaving, Partition, Partitions};
use super::{Limits, SchedulerError, Verdict, Work};
use crate::cluster::{Assignment, Notice, Owned};
use crate::message::Timestamp;
use crate::store::{Ownership, Store};
use crate::stream::{self, Delivery, StreamHandle, StreamMessage};
use crate::telemetry::{chain, metric};

mod messages;
mod ownership;

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
        mut holds: watch::Receiver<Arc<Holds>>,
    ) -> Result<(), SchedulerError> {
        self.hold(holds.borrow_and_update().clone());
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
                Ok(()) = holds.changed() => {
                    let held = holds.borrow_and_update().clone();
                    self.hold(held);
                }
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
