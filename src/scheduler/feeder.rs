//! Feeds one partition's messages into the loop and re-creates the consumer whenever something may have been missed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::engine::{Arrived, Event};
use super::partitions::Shared;
use super::{SchedulerError, Work};
use crate::cluster::Doubt;
use crate::store::{Receipt as _, Store};
use crate::stream::{self, Delivery, Source, SourceError, StreamHandle, StreamMessage, consumer_name};
use crate::telemetry::{chain, metric};

pub(super) struct Feeder<W: Work> {
    pub(super) work: Arc<W>,
    pub(super) handle: StreamHandle,
    pub(super) store: Store,
    pub(super) partition: Arc<Shared>,
    pub(super) events: mpsc::Sender<Event<W::Receipt>>,
    /// The partition's owner before died.
    pub(super) after_death: bool,
}

impl<W: Work> Feeder<W> {
    /// Feeds until the partition is lost for good; dropping it stops it at any point.
    pub(super) async fn run(self) {
        let ownership = self.partition.ownership;
        let mut generation = 0;
        // The lanes whose first open message was told of; of no use any more once all that the owner before had has come.
        let mut left_behind = Some(HashSet::new());
        loop {
            let mut source = match self.open(generation).await {
                Ok(source) => source,
                Err(event) => return self.report(event).await,
            };
            // Messages up to here may have been finished by an earlier owner, or by us before the consumer was made again.
            let recovering_until = source.last_sequence_before();
            let lost = loop {
                match source.next().await {
                    Ok(deliveries) => self.feed(deliveries, recovering_until, &mut left_behind).await,
                    Err(lost) => break lost,
                }
            };
            tracing::info!(
                work = W::NAME, partition = ownership.partition, reason = %lost,
                "messages may have been missed; the consumer is made again"
            );
            metric::redelivery(lost.as_str());
            if !self.still_owner().await {
                return self.report(self.lost()).await;
            }
            generation += 1;
            left_behind = None;
        }
    }

    fn lost(&self) -> Event<W::Receipt> {
        Event::Lost { partition: self.partition.ownership.partition, epoch: self.partition.ownership.epoch }
    }

    /// A consumer that is ours: the ownership is looked at after it was made, because a new owner removes only what was
    /// there when it took over.
    async fn open(&self, generation: u32) -> Result<Source, Event<W::Receipt>> {
        let ownership = self.partition.ownership;
        let mut backoff = patience();
        let mut doubt = Doubt::default();
        let source = loop {
            let (after, seen) = (self.partition.watermark(), self.partition.highest());
            let pause = match Source::open(&self.handle, ownership, generation, after, seen).await {
                Ok(source) => break source,
                Err(error @ SourceError::OtherIncarnation(_)) => return Err(broken(&error)),
                Err(error @ SourceError::SetBack(_)) => {
                    if doubt.is_over(Instant::now()) {
                        return Err(broken(&error));
                    }
                    tracing::warn!(error = %chain(&error), "the stream is looked at again before that is believed");
                    Doubt::PAUSE
                }
                Err(error) => {
                    doubt = Doubt::default();
                    tracing::warn!(error = %chain(&error), "no consumer yet, will be tried again");
                    backoff.next_backoff().unwrap_or(MAX_PAUSE)
                }
            };
            tokio::time::sleep(pause).await;
        };
        if self.still_owner().await {
            return Ok(source);
        }
        let name = consumer_name(ownership.partition, ownership.epoch, generation);
        if let Err(error) = stream::remove_consumer(&self.handle, &name).await {
            tracing::warn!(error = %chain(&error), "a consumer is left to the next owner to remove");
        }
        Err(self.lost())
    }

    async fn feed(
        &self,
        deliveries: Vec<Delivery>,
        recovering_until: u64,
        left_behind: &mut Option<HashSet<Arc<str>>>,
    ) {
        let old: Vec<_> = deliveries
            .iter()
            .map(Delivery::message)
            .filter(|message| message.sequence <= recovering_until)
            .map(Arc::clone)
            .collect();
        let mut receipts = if old.is_empty() { Vec::new() } else { self.settled(&old).await };
        if let Some(lanes) = left_behind {
            let is_open =
                |message: &&Arc<StreamMessage>| !receipts.iter().any(|receipt| receipt.covers(&message.message_id));
            let open = old.iter().filter(is_open);
            let heads: Vec<_> =
                open.filter(|message| lanes.insert(Arc::clone(&message.lane))).map(Arc::clone).collect();
            self.outlived(&heads).await;
        }
        if old.len() < deliveries.len() {
            *left_behind = None;
        }
        let batch = deliveries
            .into_iter()
            .map(|delivery| {
                let found = receipts.iter().position(|receipt| receipt.covers(&delivery.message().message_id));
                let receipt = found.map(|index| receipts.swap_remove(index));
                let label = self.work.label(delivery.message());
                Arrived { delivery, receipt, label }
            })
            .collect();
        let (partition, epoch) = (self.partition.ownership.partition, self.partition.ownership.epoch);
        self.report(Event::Delivered { partition, epoch, batch }).await;
    }

    async fn settled(&self, messages: &[Arc<StreamMessage>]) -> Vec<W::Receipt> {
        let mut pause = patience();
        loop {
            match self.work.settled(messages).await {
                Ok(receipts) => return receipts,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the ledger cannot be read, will be tried again");
                    tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
                }
            }
        }
    }

    async fn outlived(&self, heads: &[Arc<StreamMessage>]) {
        let mut pause = patience();
        while !heads.is_empty()
            && let Err(error) = self.work.outlived(&self.partition.ownership, heads, self.after_death).await
        {
            tracing::warn!(error = %chain(&error), "what an owner left behind cannot be looked up, will be tried again");
            tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
        }
    }

    async fn still_owner(&self) -> bool {
        let mut pause = patience();
        loop {
            match self.store.owns(&self.partition.ownership).await {
                Ok(owns) => return owns,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the ownership cannot be checked, will be tried again");
                    tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
                }
            }
        }
    }

    async fn report(&self, event: Event<W::Receipt>) {
        // The loop is gone only when the process is stopping.
        let _ = self.events.send(event).await;
    }
}

fn broken<R>(error: &SourceError) -> Event<R> {
    Event::Broken(SchedulerError::StreamReplaced(error.to_string()))
}

const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Waiting for a server to come back: quick at first, at most every two seconds, for ever.
pub(super) fn patience() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(50))
        .with_max_interval(MAX_PAUSE)
        .with_max_elapsed_time(None)
        .build()
}
