//! One process among those that work on a stream: the loop between the bucket, the database and the scheduler.
//!
//! Refuses to wait for any of them: whatever takes time is under way beside the loop, so that the sign of life is given in
//! time. Invariant: nothing is assigned before it is taken over and prepared, and no lease is given up before the scheduler
//! has let go.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::bucket::{Bucket, WriteError};
use super::holdings::{Effect, Holdings, Write};
use super::takeover::take_over;
use super::view::{Change, Member};
use super::{Assignment, ClusterError, Notice, Owned, Prepare, Settings};
use crate::message::Timestamp;
use crate::store::Store;
use crate::stream::StreamHandle;
use crate::telemetry::{chain, metric};

/// One process that takes part in the work on one stream.
#[derive(Debug)]
pub struct Participant {
    settings: Settings,
    handle: StreamHandle,
    store: Store,
    bucket: Bucket,
    member: Member,
}

impl Participant {
    /// Becomes a member: from now on the others leave a share to this process, until `lease_ttl` without [`Self::run`].
    ///
    /// # Errors
    /// When the member id is unusable, or the bucket cannot be made or does not take the sign of life.
    pub async fn join(settings: Settings, handle: StreamHandle, store: Store) -> Result<Self, ClusterError> {
        let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if settings.member_id.is_empty() || !settings.member_id.bytes().all(usable) {
            return Err(ClusterError::MemberId(settings.member_id));
        }
        let bucket = Bucket::new(&settings, handle.clone());
        bucket.ensure().await?;
        let member = Member {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            started_at: Timestamp::now(),
            partitions_held: 0,
            leaving: false,
        };
        bucket.renew(&member).await.map_err(|error| bucket.unusable(error))?;
        metric::partitions(handle.lane.as_str(), settings.partitions);
        Ok(Self { settings, handle, store, bucket, member })
    }

    /// Takes and gives partitions until `stop` is cancelled; then gives everything back at once and returns when it is
    /// released. Neither NATS nor the database need be there all the time: what fails is tried again.
    ///
    /// # Errors
    /// [`ClusterError::SchedulerGone`] when nobody hears the assignments any more; everything is given back then too.
    pub async fn run<P: Prepare>(
        self,
        assignments: mpsc::Sender<Assignment>,
        notices: mpsc::Receiver<Notice>,
        prepare: P,
        stop: CancellationToken,
    ) -> Result<(), ClusterError> {
        let (doubts, doubted) = watch::channel(0);
        let changes = self.bucket.changes(doubted).boxed();
        let Settings { member_id, partitions, lease_ttl, .. } = self.settings.clone();
        let running = Running {
            holdings: Holdings::new(member_id, partitions, lease_ttl),
            participant: self,
            prepare: Arc::new(prepare),
            began: Instant::now(),
            flights: FuturesUnordered::new(),
            outbox: VecDeque::new(),
            doubts,
            renewing: false,
            renewed: 0,
            bucket_fails: false,
            take_over_fails: false,
            leaving: None,
            scheduler_gone: false,
        };
        Box::pin(running.turn_events(assignments, notices, changes, stop)).await
    }
}

/// What was under way has ended.
enum Landed {
    Renewed(Result<u64, WriteError>),
    Written(Write, Result<u64, WriteError>),
    TakenOver(Result<Vec<Owned>, ClusterError>),
    Released(u16),
}

struct Running<P> {
    participant: Participant,
    holdings: Holdings,
    prepare: Arc<P>,
    began: Instant,
    flights: FuturesUnordered<BoxFuture<'static, Landed>>,
    /// Never sent from within a branch: the scheduler may be waiting for its notice to be taken at that moment.
    outbox: VecDeque<Assignment>,
    doubts: watch::Sender<u64>,
    renewing: bool,
    /// The revision of the last sign of life.
    renewed: u64,
    bucket_fails: bool,
    take_over_fails: bool,
    /// Since when nobody here works on anything that is to be given back.
    leaving: Option<Instant>,
    scheduler_gone: bool,
}

impl<P: Prepare> Running<P> {
    async fn turn_events(
        mut self,
        assignments: mpsc::Sender<Assignment>,
        mut notices: mpsc::Receiver<Notice>,
        mut changes: BoxStream<'static, Change>,
        stop: CancellationToken,
    ) -> Result<(), ClusterError> {
        let mut ticks = tokio::time::interval(self.participant.settings.renew_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stopping, mut heard) = (false, true);
        while !self.is_done(stopping) {
            tokio::select! {
                biased;
                Some(change) = changes.next() => {
                    self.holdings.changed(change, self.began.elapsed());
                    // Whoever was away decides on what is now, not on what was then.
                    while let Some(Some(change)) = changes.next().now_or_never() {
                        self.holdings.changed(change, self.began.elapsed());
                    }
                }
                notice = notices.recv(), if heard => match notice {
                    Some(Notice::Lost { partition }) => self.lost(partition),
                    None => heard = false,
                },
                Some(landed) = self.flights.next() => self.land(landed),
                Ok(permit) = assignments.reserve(), if !self.outbox.is_empty() => {
                    if let Some(assignment) = self.outbox.pop_front() {
                        permit.send(assignment);
                    }
                }
                () = assignments.closed(), if !self.scheduler_gone => {
                    self.scheduler_gone = true;
                    self.outbox.clear();
                    self.holdings.scheduler_gone();
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.holdings.leave();
                    self.participant.member.leaving = true;
                    self.renew();
                }
                _ = ticks.tick() => {
                    self.holdings.tick();
                    self.renew();
                    metric::members(self.lane(), self.holdings.members(self.began.elapsed()));
                }
            }
            let effects = self.holdings.next(self.began.elapsed());
            self.perform(effects);
        }
        if let Err(error) = self.participant.bucket.leave().await {
            tracing::debug!(error = %chain(&error), "no goodbye; the time-to-live will tell the others");
        }
        if self.scheduler_gone && !stopping { Err(ClusterError::SchedulerGone) } else { Ok(()) }
    }

    /// Once nobody works here any more, the leases get one time-to-live to be cleared; after it they mean nothing anyway.
    fn is_done(&mut self, stopping: bool) -> bool {
        if !(stopping || self.scheduler_gone) {
            return false;
        }
        if self.holdings.is_empty() && self.outbox.is_empty() {
            return true;
        }
        if self.holdings.held() > 0 {
            return false;
        }
        let since = *self.leaving.get_or_insert_with(Instant::now);
        since.elapsed() > self.participant.settings.lease_ttl
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Write(write) => self.write(write),
                Effect::TakeOver(partitions) => self.take_over(partitions),
                Effect::Take { owned, reason } => {
                    self.count(owned.takeover.ownership.partition, true, reason);
                    self.outbox.push_back(Assignment::Take(owned));
                }
                Effect::Give { partition, reason } => {
                    tracing::info!(stream = self.participant.handle.name, partition, reason, "giving a partition");
                    self.count(partition, false, reason);
                    let (released, answer) = oneshot::channel();
                    self.outbox.push_back(Assignment::Give { partition, released });
                    // Dropping the sender is an answer too.
                    self.flights.push(answer.map(move |_| Landed::Released(partition)).boxed());
                }
            }
        }
    }

    fn land(&mut self, landed: Landed) {
        match landed {
            Landed::Renewed(result) => {
                self.renewing = false;
                // Revisions only grow, except in a bucket that was made anew.
                let replaced = result.as_ref().is_ok_and(|&revision| revision < self.renewed);
                if replaced || matches!(result, Err(WriteError::Missing)) {
                    self.doubts.send_modify(|count| *count += 1);
                }
                self.renewed = result.as_ref().copied().unwrap_or(self.renewed);
                self.note_bucket(result.err());
            }
            Landed::Written(write, result) => {
                self.holdings.written(write, result.as_ref().ok().copied(), self.began.elapsed());
                if let Err(error) = result {
                    tracing::debug!(error = %chain(&error), "a lease was not written");
                }
            }
            Landed::TakenOver(result) => {
                self.note_take_over(result.as_ref().err());
                let effects = self.holdings.taken_over(result.ok());
                self.perform(effects);
            }
            Landed::Released(partition) => self.holdings.released(partition),
        }
    }

    fn lost(&mut self, partition: u16) {
        if self.holdings.lost(partition) {
            tracing::warn!(stream = self.participant.handle.name, partition, "a partition has a newer owner");
            self.count(partition, false, "lost");
        }
    }

    fn renew(&mut self) {
        if self.renewing {
            return;
        }
        self.renewing = true;
        let Participant { bucket, member, .. } = &self.participant;
        let (bucket, member) = (bucket.clone(), Member { partitions_held: self.holdings.held(), ..member.clone() });
        self.flights.push(async move { Landed::Renewed(bucket.renew(&member).await) }.boxed());
    }

    fn write(&mut self, write: Write) {
        let bucket = self.participant.bucket.clone();
        let flight = async move {
            let result = bucket.write(write.partition, write.expected, &write.lease).await;
            Landed::Written(write, result)
        };
        self.flights.push(flight.boxed());
    }

    fn take_over(&mut self, partitions: Vec<u16>) {
        let Participant { handle, store, .. } = &self.participant;
        let (handle, store, prepare) = (handle.clone(), store.clone(), Arc::clone(&self.prepare));
        let flight = async move {
            let owned = take_over(&handle, &store, &partitions).await?;
            prepare.prepare(&owned).await.map_err(|error| ClusterError::Prepare(error.into()))?;
            Ok(owned)
        };
        self.flights.push(flight.map(Landed::TakenOver).boxed());
    }

    fn note_bucket(&mut self, error: Option<WriteError>) {
        match error {
            Some(error) if !self.bucket_fails => {
                tracing::warn!(error = %chain(&error), "no sign of life could be given; others may take our partitions");
                self.bucket_fails = true;
            }
            None if self.bucket_fails => {
                tracing::info!("signs of life are given again");
                self.bucket_fails = false;
            }
            _ => {}
        }
    }

    fn note_take_over(&mut self, error: Option<&ClusterError>) {
        match error {
            Some(error) if !self.take_over_fails => {
                tracing::warn!(error = %chain(error), "partitions cannot be taken over, will be tried again");
            }
            _ => {}
        }
        self.take_over_fails = error.is_some();
    }

    fn count(&self, partition: u16, owned: bool, reason: &'static str) {
        metric::partition_owned(self.lane(), partition, owned);
        metric::rebalance(self.lane(), reason);
    }

    fn lane(&self) -> &'static str {
        self.participant.handle.lane.as_str()
    }
}
