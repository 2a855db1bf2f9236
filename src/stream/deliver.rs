//! Taking messages from one partition of a stream, in order and without gaps, and acknowledging them against a receipt.
//!
//! A [`Source`] owns one pull consumer. It refuses to hand out a message after a gap in the consumer's sequence, after an
//! interrupted connection or a missed heartbeat: it reports [`Lost`] instead, and its owner re-creates the consumer from
//! where everything is done. Invariant: between two `Lost`, messages come in ascending stream order, none left out.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{BatchConfig, Config as PullConfig};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tracing::Instrument as _;

use super::{Lane, SCHEMA_HEADER, StreamError, StreamHandle, TRACEPARENT_HEADER, consumer_name, refused};
use crate::message::Timestamp;
use crate::store::{Ownership, Receipt};
use crate::telemetry;

/// How long the server waits for an acknowledgement before it delivers again. Redelivery is not how Turnwise recovers
/// (taking over re-creates the consumer), and it comes out of order, so this is long; heartbeats reset it.
const ACK_WAIT: Duration = Duration::from_secs(30 * 60);

/// A message open for longer than this gets a heartbeat: three chances before [`ACK_WAIT`] runs out.
pub(crate) const HEARTBEAT_AFTER: Duration = Duration::from_secs(10 * 60);

/// Open messages of one partition: past it the server holds the rest back. A hundred times and more the messages that a
/// lane keeps in memory, so that a flood in one conversation does not stop its neighbours.
const MAX_ACK_PENDING: i64 = 10_000;

/// Messages asked for at once; the next request goes out when half have come.
const PULL_BATCH: usize = 256;

/// A pull request lives this long; the server sends heartbeats meanwhile. 256 idle consumers were measured at 0.1 % of a core
/// with a heartbeat every 15 s; these are three times as many.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// In a cluster, a request is known only to the node that leads the consumer. When that node dies and our own does not, these
/// missing is all that tells us, so they decide how long the partition then stands still.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);

/// Silence longer than two heartbeats and a bit means that nobody is sending.
const SILENCE: Duration = Duration::from_secs(11);

/// One message of a stream.
#[derive(Debug, Clone)]
pub struct StreamMessage {
    pub partition: u16,
    /// `<channel>.<bot>.<peer>`, as in the subject.
    pub lane: Arc<str>,
    pub sequence: u64,
    /// Its `Nats-Msg-Id`; for a message published without one, a name made of its place.
    pub message_id: String,
    /// The version its body was written in; `None` when it does not say.
    pub schema_version: Option<u16>,
    pub traceparent: Option<String>,
    pub published_at: Timestamp,
    pub delivered_at: Timestamp,
    pub payload: Bytes,
}

impl StreamMessage {
    /// Reads a stored message's subject and headers.
    pub(crate) fn read(
        handle: &StreamHandle,
        subject: &str,
        headers: &HeaderMap,
        payload: Bytes,
        sequence: u64,
        published_at: Timestamp,
    ) -> Option<Self> {
        let rest = subject.strip_prefix(handle.connection.names.all_subjects(handle.lane).trim_end_matches('>'))?;
        let (partition, lane) = rest.split_once('.')?;
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        Some(Self {
            partition: partition.parse().ok()?,
            lane: lane.into(),
            sequence,
            message_id: text("Nats-Msg-Id").unwrap_or_else(|| format!("{}-{sequence}", handle.incarnation)),
            schema_version: text(SCHEMA_HEADER).and_then(|version| version.parse().ok()),
            traceparent: text(TRACEPARENT_HEADER),
            published_at,
            delivered_at: Timestamp::now(),
            payload,
        })
    }
}

/// A delivered message that has not been acknowledged. Dropping it leaves it unacknowledged.
#[derive(Debug)]
pub struct Delivery {
    message: Arc<StreamMessage>,
    lane: Lane,
    reply: Subject,
    client: Client,
}

impl Delivery {
    #[must_use]
    pub const fn message(&self) -> &Arc<StreamMessage> {
        &self.message
    }

    /// Acknowledges the message: the only way, and only with proof that its work is durable. A lost acknowledgement costs
    /// a redelivery, nothing else. `traceparent` is the context of the work that it ends; without one it is the message's.
    pub async fn ack(self, receipt: &(impl Receipt + Sync), traceparent: Option<&str>) {
        if !receipt.covers(&self.message.message_id) {
            tracing::error!(
                sequence = self.message.sequence,
                "a receipt for another message was shown; not acknowledged"
            );
            debug_assert!(false, "a receipt speaks for its own message");
            return;
        }
        let span = tracing::info_span!(
            "ack turnwise.in",
            otel.name = format!("ack turnwise.{}", self.lane.as_str()),
            otel.kind = "client",
            turnwise.stream.sequence = self.message.sequence,
        );
        telemetry::set_parent(&span, traceparent.or(self.message.traceparent.as_deref()));
        if let Err(error) = self.client.publish(self.reply, Bytes::from_static(b"+ACK")).instrument(span).await {
            tracing::debug!(error = %error, sequence = self.message.sequence, "acknowledgement not sent");
        }
    }

    /// Frees the message's place among those that the consumer keeps open, without its work being done: it is left in the
    /// stream, and the partition's checkpoint stays before it until it is. Acknowledgements only bound what the server
    /// sends; nobody recovers by them.
    pub async fn park(self) {
        if let Err(error) = self.client.publish(self.reply, Bytes::from_static(b"+ACK")).await {
            tracing::debug!(error = %error, sequence = self.message.sequence, "parking not sent");
        }
    }

    /// Tells the server that the message is still being worked on. The future does not borrow the delivery.
    pub fn heartbeat(&self) -> impl Future<Output = ()> + Send + use<> {
        let (client, reply, sequence) = (self.client.clone(), self.reply.clone(), self.message.sequence);
        async move {
            if let Err(error) = client.publish(reply, Bytes::from_static(b"+WPI")).await {
                tracing::debug!(error = %error, sequence, "heartbeat not sent");
            }
        }
    }
}

/// Messages may have been missed: nothing more may be taken from this consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the connection was interrupted")]
    Interrupted,
    #[error("a message sent to us did not arrive")]
    Gap,
    #[error("the server went silent")]
    Silence,
    #[error("the consumer is gone")]
    ConsumerGone,
}

impl Lost {
    /// A word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interrupted => "reconnect",
            Self::Gap => "gap",
            Self::Silence => "silence",
            Self::ConsumerGone => "consumer_gone",
        }
    }
}

/// Why a source could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the consumer cannot be created")]
    Create(#[source] StreamError),
    /// The stream was deleted and made again: positions of the old one mean nothing in the new one.
    #[error("the stream {0} is not the one this process started with")]
    OtherIncarnation(String),
    /// The stream has lost its end: new messages get the places of those that are gone.
    #[error("the stream {0} ends before what was done of it: it was set back")]
    SetBack(String),
}

/// The messages of one partition.
#[derive(Debug)]
pub struct Source {
    handle: StreamHandle,
    partition: u16,
    consumer: Consumer<PullConfig>,
    subscriber: Subscriber,
    inbox: Subject,
    interruptions: watch::Receiver<u64>,
    last_sequence_before: u64,
    /// The consumer's sequence of the last message taken.
    last_consumer_sequence: u64,
    /// Messages asked for and not yet come.
    outstanding: usize,
}

impl Source {
    /// Creates the consumer of this `generation` (counted by the caller within one ownership) behind `after`, and removes
    /// the generation before it. `seen` is the last sequence that came to the caller: a stream that ends before it has lost
    /// its end.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn open(
        handle: &StreamHandle,
        ownership: Ownership,
        generation: u32,
        after: u64,
        seen: u64,
    ) -> Result<Self, SourceError> {
        let interruptions = handle.connection.interruptions();
        let info = handle.info().await.map_err(SourceError::Create)?;
        if super::incarnation(&info) != handle.incarnation {
            return Err(SourceError::OtherIncarnation(handle.name.clone()));
        }
        if info.state.last_sequence < after.max(seen) {
            return Err(SourceError::SetBack(handle.name.clone()));
        }
        let name = consumer_name(ownership.partition, ownership.epoch, generation);
        // This one may be there already, when the answer to its creation got lost. It would not start at `after`, and the
        // server refuses to change where a consumer starts.
        let before =
            generation.checked_sub(1).map(|before| consumer_name(ownership.partition, ownership.epoch, before));
        for name in before.iter().chain([&name]) {
            super::remove_consumer(handle, name).await.map_err(SourceError::Create)?;
        }
        let config = consumer_config(handle, &name, ownership.partition, after);
        let consumer = handle
            .connection
            .jetstream
            .create_consumer_on_stream(config, &handle.name)
            .await
            .map_err(|error| SourceError::Create(refused(format!("create the consumer {name}"), error)))?;
        // Looked at again: between the first look and the consumer's creation the stream may have been replaced.
        let info = handle.info().await.map_err(SourceError::Create)?;
        if super::incarnation(&info) != handle.incarnation {
            super::remove_consumer(handle, &name).await.map_err(SourceError::Create)?;
            return Err(SourceError::OtherIncarnation(handle.name.clone()));
        }
        let client = &handle.connection.client;
        let inbox = Subject::from(client.new_inbox());
        let subscriber = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| SourceError::Create(refused("listen for messages".to_owned(), error)))?;
        Ok(Self {
            handle: handle.clone(),
            partition: ownership.partition,
            consumer,
            subscriber,
            inbox,
            interruptions,
            last_sequence_before: info.state.last_sequence,
            last_consumer_sequence: 0,
            outstanding: 0,
        })
    }

    /// The last message that was on the stream when the consumer was made: up to it, somebody may have finished messages
    /// before.
    #[must_use]
    pub const fn last_sequence_before(&self) -> u64 {
        self.last_sequence_before
    }

    /// The next messages: at least one, and what has arrived with it. Safe to drop while waiting.
    ///
    /// # Errors
    /// [`Lost`] when messages may have been missed; the source is of no use then.
    pub async fn next(&mut self) -> Result<Vec<Delivery>, Lost> {
        let mut deliveries = Vec::new();
        loop {
            self.ask_for_more().await?;
            let message = tokio::select! {
                biased;
                _ = self.interruptions.changed() => return Err(Lost::Interrupted),
                next = tokio::time::timeout(SILENCE, self.subscriber.next()) => match next {
                    Ok(Some(message)) => message,
                    Ok(None) => return Err(Lost::Interrupted),
                    Err(_) => return Err(Lost::Silence),
                },
            };
            self.take(message, &mut deliveries)?;
            while deliveries.len() < PULL_BATCH {
                let Some(Some(message)) = self.subscriber.next().now_or_never() else { break };
                self.take(message, &mut deliveries)?;
            }
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    async fn ask_for_more(&mut self) -> Result<(), Lost> {
        if self.outstanding > PULL_BATCH / 2 {
            return Ok(());
        }
        let request = BatchConfig {
            batch: PULL_BATCH,
            expires: Some(PULL_EXPIRES),
            idle_heartbeat: PULL_HEARTBEAT,
            ..BatchConfig::default()
        };
        self.consumer.request_batch(request, self.inbox.clone()).await.map_err(|_| Lost::Interrupted)?;
        self.outstanding += PULL_BATCH;
        Ok(())
    }

    fn take(&mut self, message: Message, deliveries: &mut Vec<Delivery>) -> Result<(), Lost> {
        match message.status {
            None | Some(StatusCode::OK) => {
                deliveries.extend(self.read(message)?);
                Ok(())
            }
            Some(StatusCode::IDLE_HEARTBEAT) => self.check_heartbeat(&message),
            // A request that ran out says how much of it was not used.
            Some(StatusCode::TIMEOUT) => {
                self.outstanding = self.outstanding.saturating_sub(unused(&message).unwrap_or(PULL_BATCH));
                Ok(())
            }
            Some(_) => Err(Lost::ConsumerGone),
        }
    }

    /// A heartbeat names the last message sent to us; everything sent before it has come before it, or never will.
    fn check_heartbeat(&self, message: &Message) -> Result<(), Lost> {
        let sent = number(message, "Nats-Last-Consumer");
        if sent.is_some_and(|sent| sent > self.last_consumer_sequence) { Err(Lost::Gap) } else { Ok(()) }
    }

    fn read(&mut self, message: Message) -> Result<Option<Delivery>, Lost> {
        let message = async_nats::jetstream::Message { message, context: self.handle.connection.jetstream.clone() };
        let Ok(info) = message.info() else { return Ok(None) };
        if info.consumer_sequence != self.last_consumer_sequence + 1 {
            return Err(Lost::Gap);
        }
        let (sequence, published_at) = (info.stream_sequence, Timestamp::from(info.published));
        self.last_consumer_sequence = info.consumer_sequence;
        self.outstanding = self.outstanding.saturating_sub(1);
        let message = message.message;
        let headers = message.headers.unwrap_or_default();
        let read =
            StreamMessage::read(&self.handle, &message.subject, &headers, message.payload, sequence, published_at);
        let (Some(read), Some(reply)) = (read, message.reply) else {
            // The consumer's filter lets only subjects of this form through.
            tracing::error!(sequence, "a message of an impossible subject was delivered");
            return Err(Lost::Gap);
        };
        debug_assert_eq!(read.partition, self.partition, "the filter is the partition");
        let client = self.handle.connection.client.clone();
        Ok(Some(Delivery { message: Arc::new(read), lane: self.handle.lane, reply, client }))
    }
}

fn consumer_config(handle: &StreamHandle, name: &str, partition: u16, after: u64) -> PullConfig {
    debug_assert_ne!(handle.lane, Lane::Dead, "dead letters are read by sequence, not consumed");
    PullConfig {
        durable_name: Some(name.to_owned()),
        name: Some(name.to_owned()),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: MAX_ACK_PENDING,
        // Its state would be written to a file of its own after any acknowledgement, and nobody recovers by it.
        memory_storage: true,
        filter_subject: handle.connection.names.partition_filter(handle.lane, partition),
        ..PullConfig::default()
    }
}

fn unused(message: &Message) -> Option<usize> {
    number(message, "Nats-Pending-Messages").and_then(|count| usize::try_from(count).ok())
}

fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}
