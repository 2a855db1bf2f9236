//! Messages come, run and end: what is held, which task is started, and what becomes of it.
//!
//! Refuses to acknowledge without a receipt. Invariant: a message is held from its admission until it is acknowledged,
//! parked, or its partition has gone.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backoff::backoff::Backoff as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Arrived, Ended, Engine, Event, Held};
use crate::message::Timestamp;
use crate::scheduler::holds::Holds;
use crate::scheduler::lanes::{Admission, LaneKey, Slot, Start, Step, Track};
use crate::scheduler::parking::{self, Refilled};
use crate::scheduler::progress::Arrival;
use crate::scheduler::{Task, Verdict, Work, attempt};
use crate::store::Receipt as _;
use crate::stream::Delivery;

/// The longest pause before an attempt, whatever a platform or a responder asks for: a lane must not stand still for ever,
/// and asking once an hour harms nobody.
const MAX_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Messages come and go.
impl<W: Work> Engine<W> {
    pub(super) fn deliver_all(&mut self, partition: u16, epoch: i64, batch: Vec<Arrived<W::Receipt>>) {
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

    pub(super) fn start_ready(&mut self) {
        while let Some(step) = self.lanes.start(Instant::now()) {
            match step {
                Step::Run(start) => self.start(start),
                Step::Wait { key, until } => drop(self.pauses.insert_at((key, Track::Turn), until)),
            }
        }
    }

    /// People have held something back, or let it go on.
    pub(super) fn hold(&mut self, holds: Arc<Holds>) {
        for key in self.lanes.hold(holds) {
            self.refill(&key);
        }
    }

    fn start(&mut self, start: Start) {
        let Start { key, track, partition: number, sequences, amendments, attempt: attempts, behind } = start;
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
            behind,
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

    pub(super) fn finish(&mut self, ended: &Ended, verdict: Verdict<W::Receipt>) {
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
            _ if leaving => self.abandon(ended),
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
            self.abandon(ended);
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

    /// The lane's messages are somebody else's from now on.
    fn abandon(&mut self, ended: &Ended) {
        self.lanes.abandon(&ended.key, ended.track);
        self.backoffs.remove(&(Arc::clone(&ended.key), ended.track));
        self.blockers.remove(&ended.key);
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

    pub(super) fn refilled(&mut self, number: u16, epoch: i64, key: &LaneKey, refilled: Refilled) {
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
