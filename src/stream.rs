//! JetStream as Turnwise uses it: the connection, the three streams, their subjects and headers.
//!
//! Refuses to change a stream that exists with other settings: it says what differs and how to settle it. Invariants: file
//! storage, limits retention, `DiscardNew`; a stream's creation time is its incarnation and part of every stored position.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{
    Config as StreamConfig, DirectGetErrorKind, DiscardPolicy, Info, RawMessageErrorKind, RetentionPolicy, StorageType,
};
use async_nats::{Client, ConnectOptions};
use tokio::sync::watch;

use crate::config::{Config, Nats, NatsAuth};
use crate::message::ConversationKey;

pub use backlog::{Backlog, Storage};
pub use dead::{DeadLetter, LETTERS_PAGE, Letter, LetterFilter, LettersPage};
pub(crate) use deliver::HEARTBEAT_AFTER;
pub use deliver::{Delivery, Lost, Source, SourceError, StreamMessage};
pub(crate) use floor::{keep_floors, kept_floors};
pub(crate) use page::PageOf;
pub use progress::{Progress, ToolNote, ToolState};
pub use publish::{PublishError, Published, Publisher};
pub use reader::Reader;

mod backlog;
mod dead;
mod deliver;
mod erase;
mod floor;
mod page;
mod progress;
mod publish;
mod reader;

/// Names the schema version of a message's body, so that a reader can refuse what it does not understand.
pub const SCHEMA_HEADER: &str = "Turnwise-Schema";

/// W3C trace context.
pub const TRACEPARENT_HEADER: &str = "traceparent";

/// How long a JetStream request may take before the caller hears that the stream did not take it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes waiting for their acknowledgement at once; past it, publishers wait. The measured throughput is flat from a
/// window of 1,000 on.
const MAX_PUBLISHES_IN_FLIGHT: usize = 4_096;

/// The metadata key under which a stream keeps the number of partitions it was made for.
const PARTITIONS_KEY: &str = "turnwise.partitions";

/// The three streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    Inbound,
    Outbound,
    Dead,
}

impl Lane {
    /// The word in stream names and subjects.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "in",
            Self::Outbound => "out",
            Self::Dead => "dead",
        }
    }
}

/// The deployment's names, all derived from the namespace.
#[derive(Debug, Clone)]
pub struct Names {
    namespace: String,
}

impl Names {
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    #[must_use]
    pub fn stream(&self, lane: Lane) -> String {
        format!("{}_{}", self.namespace, lane.as_str())
    }

    #[must_use]
    pub fn subject(&self, lane: Lane, partition: u16, key: &ConversationKey) -> String {
        format!("{}.{}.{partition}.{key}", self.namespace, lane.as_str())
    }

    /// Every subject of one partition.
    #[must_use]
    pub fn partition_filter(&self, lane: Lane, partition: u16) -> String {
        format!("{}.{}.{partition}.>", self.namespace, lane.as_str())
    }

    /// Every message of one peer, of whatever bot and partition; of every peer without one.
    pub(crate) fn peer_filter(&self, lane: Lane, peer: Option<&str>) -> String {
        match peer {
            Some(peer) => format!("{}.{}.*.*.*.{peer}", self.namespace, lane.as_str()),
            None => self.all_subjects(lane),
        }
    }

    /// Core NATS: what is held back has changed.
    #[must_use]
    pub fn holds_notice(&self) -> String {
        format!("{}.holds", self.namespace)
    }

    /// Core NATS: somebody waiting for a turn listens here.
    #[must_use]
    pub fn turn_notice(&self, turn_id: uuid::Uuid) -> String {
        format!("{}.turns.{turn_id}", self.namespace)
    }

    /// Core NATS: somebody waiting for what is said next in a web conversation listens here.
    #[must_use]
    pub fn conversation_notice(&self, conversation_id: uuid::Uuid) -> String {
        format!("{}.conversations.{conversation_id}", self.namespace)
    }

    /// Core NATS: what a running turn has made so far, for those who watch it.
    #[must_use]
    pub fn turn_progress(&self, turn_id: uuid::Uuid) -> String {
        format!("{}.turns.{turn_id}.progress", self.namespace)
    }

    /// Core NATS: whoever watches a turn says so here, to every process that may run it.
    #[must_use]
    pub fn turn_watch(&self, turn_id: uuid::Uuid) -> String {
        format!("{}.turns.{turn_id}.watch", self.namespace)
    }

    /// [`Names::turn_watch`] of every turn.
    #[must_use]
    pub fn turn_watches(&self) -> String {
        format!("{}.turns.*.watch", self.namespace)
    }

    /// The turn in a subject of [`Names::turn_watches`].
    pub(crate) fn watched_turn(&self, subject: &str) -> Option<uuid::Uuid> {
        let rest = subject.strip_prefix(self.namespace.as_str())?.strip_prefix(".turns.")?;
        rest.strip_suffix(".watch")?.parse().ok()
    }

    /// The KV bucket of members and leases.
    #[must_use]
    pub fn cluster_bucket(&self) -> String {
        format!("{}_cluster", self.namespace)
    }

    fn all_subjects(&self, lane: Lane) -> String {
        format!("{}.{}.>", self.namespace, lane.as_str())
    }
}

/// Errors of connecting and of preparing the streams.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("cannot connect to NATS at {address}")]
    Connect {
        address: String,
        #[source]
        source: async_nats::ConnectError,
    },
    #[error("the NATS credentials cannot be read")]
    Credentials(#[source] std::io::Error),
    #[error("JetStream refused to {what}")]
    JetStream {
        what: String,
        #[source]
        source: async_nats::Error,
    },
    #[error("the stream {stream} exists with other settings than configured: {}", differences.join("; "))]
    Differs { stream: String, differences: Vec<String> },
}

/// A connection that tells its users when it was interrupted: what was on its way then may be lost.
#[derive(Debug, Clone)]
pub struct Connection {
    pub client: Client,
    pub jetstream: Context,
    pub names: Names,
    interruptions: watch::Receiver<u64>,
}

impl Connection {
    /// Connects and stays connected: later interruptions are mended in the background for as long as it takes.
    ///
    /// # Errors
    /// When no server answers at first, or the credentials are refused.
    pub async fn open(config: &Config, addresses: &[String]) -> Result<Self, StreamError> {
        let (interrupted, interruptions) = watch::channel(0);
        let options = options(&config.nats)?
            .name(format!("turnwise {}", config.namespace))
            .custom_inbox_prefix(&config.nats.inbox_prefix)
            .event_callback(move |event| {
                // Both mean that messages sent to us may never have been seen by us.
                if matches!(event, async_nats::Event::Connected | async_nats::Event::SlowConsumer(_)) {
                    interrupted.send_modify(|count| *count += 1);
                }
                tracing::info!(event = %event, "NATS connection");
                std::future::ready(())
            })
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis(match attempt {
                    0..=1 => 0,
                    2..=20 => 50,
                    _ => 500,
                })
            });
        let client = options
            .connect(addresses)
            .await
            .map_err(|source| StreamError::Connect { address: addresses.join(", "), source })?;
        let jetstream = ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .max_ack_inflight(MAX_PUBLISHES_IN_FLIGHT)
            .backpressure_on_inflight(true)
            .build(client.clone());
        Ok(Self { client, jetstream, names: Names::new(&config.namespace), interruptions })
    }

    /// Whether the client believes itself connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self.client.connection_state(), async_nats::connection::State::Connected)
    }

    pub(crate) fn interruptions(&self) -> watch::Receiver<u64> {
        let mut receiver = self.interruptions.clone();
        receiver.mark_unchanged();
        receiver
    }
}

fn options(nats: &Nats) -> Result<ConnectOptions, StreamError> {
    let mut options = match &nats.auth {
        NatsAuth::None => ConnectOptions::new(),
        NatsAuth::Token(token) => ConnectOptions::with_token(token.expose().to_owned()),
        NatsAuth::Password { user, password } => {
            ConnectOptions::with_user_and_password(user.clone(), password.expose().to_owned())
        }
        NatsAuth::Credentials(text) => {
            ConnectOptions::with_credentials(text.expose()).map_err(StreamError::Credentials)?
        }
    };
    if let Some(tls) = &nats.tls {
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    Ok(options)
}

/// One existing stream.
#[derive(Debug, Clone)]
pub struct StreamHandle {
    pub connection: Connection,
    pub lane: Lane,
    pub name: String,
    /// Which stream of this name it is: its creation time.
    pub incarnation: String,
}

impl StreamHandle {
    /// The stream as it is now.
    ///
    /// # Errors
    /// When JetStream does not answer or the stream is gone.
    pub async fn info(&self) -> Result<Info, StreamError> {
        let what = || format!("describe the stream {}", self.name);
        let stream = self.connection.jetstream.get_stream(&self.name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        Ok(stream.cached_info().clone())
    }
}

impl StreamHandle {
    /// The first message of a lane at or after a place, read from the stream without a consumer.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn next_of_lane(
        &self,
        partition: u16,
        lane: &str,
        from: u64,
    ) -> Result<Option<StreamMessage>, StreamError> {
        let filter = self.connection.names.partition_filter(self.lane, partition);
        let subject = format!("{}{lane}", filter.trim_end_matches('>'));
        let what = || format!("read the stream {}", self.name);
        let stream = self.connection.jetstream.get_stream_no_info(&self.name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        let found = match stream.direct_get_next_for_subject(&subject, Some(from)).await {
            Ok(found) => found,
            // Any replica answers a direct read, also one that lags behind. Only the leader knows that there is nothing.
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => {
                match stream.raw_message_builder().sequence(from).next_by_subject(subject).send().await {
                    Ok(found) => found,
                    Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
                    Err(error) => return Err(refused(what(), error)),
                }
            }
            Err(error) => return Err(refused(what(), error)),
        };
        let (headers, published_at) = (found.headers, found.time.into());
        Ok(StreamMessage::read(self, &found.subject, &headers, found.payload, found.sequence, published_at))
    }
}

/// Looks a stream up, or makes it, and checks that it is as configured.
///
/// # Errors
/// When JetStream refuses, or when the stream exists with other settings ([`StreamError::Differs`]): nothing is changed then.
pub async fn ensure(connection: &Connection, nats: &Nats, lane: Lane) -> Result<StreamHandle, StreamError> {
    let name = connection.names.stream(lane);
    let wanted = stream_config(&connection.names, nats, lane);
    let stream = connection
        .jetstream
        .get_or_create_stream(wanted.clone())
        .await
        .map_err(|error| refused(format!("create the stream {name}"), error))?;
    let info = stream.cached_info();
    let differences = differences(&wanted, &info.config);
    if !differences.is_empty() {
        return Err(StreamError::Differs { stream: name, differences });
    }
    Ok(StreamHandle { connection: connection.clone(), lane, name, incarnation: incarnation(info) })
}

/// Looks a stream up without making it.
///
/// # Errors
/// When there is none, or JetStream does not answer.
pub async fn existing(connection: &Connection, lane: Lane) -> Result<StreamHandle, StreamError> {
    let name = connection.names.stream(lane);
    let stream = connection.jetstream.get_stream(&name).await;
    let stream = stream.map_err(|error| refused(format!("describe the stream {name}"), error))?;
    let incarnation = incarnation(stream.cached_info());
    Ok(StreamHandle { connection: connection.clone(), lane, name, incarnation })
}

fn incarnation(info: &Info) -> String {
    info.created.unix_timestamp_nanos().to_string()
}

fn refused(what: String, error: impl Into<async_nats::Error>) -> StreamError {
    StreamError::JetStream { what, source: error.into() }
}

fn stream_config(names: &Names, nats: &Nats, lane: Lane) -> StreamConfig {
    StreamConfig {
        name: names.stream(lane),
        subjects: vec![names.all_subjects(lane)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_age: nats.max_age,
        duplicate_window: nats.duplicate_window,
        num_replicas: nats.replicas,
        allow_direct: true,
        metadata: HashMap::from([(PARTITIONS_KEY.to_owned(), nats.partitions.to_string())]),
        ..StreamConfig::default()
    }
}

/// What an operator must know before anything is touched, each with the way out.
fn differences(wanted: &StreamConfig, found: &StreamConfig) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, found: String, wanted: String, remedy: &str| {
        if found != wanted {
            differences.push(format!("{what} is {found}, configured {wanted} ({remedy})"));
        }
    };
    let edit = "set the configuration to what the stream has, or change the stream with `nats stream edit`";
    let partitions =
        |config: &StreamConfig| config.metadata.get(PARTITIONS_KEY).cloned().unwrap_or_else(|| "not set".to_owned());
    compare(
        "partitions",
        partitions(found),
        partitions(wanted),
        "fixed when the stream was made: set nats.partitions back, or use another namespace and let this one drain",
    );
    compare("subjects", found.subjects.join(" "), wanted.subjects.join(" "), "use another namespace");
    compare("retention", format!("{:?}", found.retention), format!("{:?}", wanted.retention), "use another namespace");
    compare("storage", format!("{:?}", found.storage), format!("{:?}", wanted.storage), "use another namespace");
    compare("discard", format!("{:?}", found.discard), format!("{:?}", wanted.discard), edit);
    compare("max_age", format!("{:?}", found.max_age), format!("{:?}", wanted.max_age), edit);
    compare(
        "duplicate_window",
        format!("{:?}", found.duplicate_window),
        format!("{:?}", wanted.duplicate_window),
        edit,
    );
    compare("replicas", found.num_replicas.to_string(), wanted.num_replicas.to_string(), edit);
    differences
}

/// The consumer of one generation of one epoch of one partition: `p<partition>-e<epoch>-g<generation>`.
pub(crate) fn consumer_name(partition: u16, epoch: i64, generation: u32) -> String {
    format!("p{partition}-e{epoch}-g{generation}")
}

/// The partition and epoch in a consumer's name; `None` for one that is not ours.
pub(crate) fn parse_consumer_name(name: &str) -> Option<(u16, i64)> {
    let (partition, rest) = name.strip_prefix('p')?.split_once("-e")?;
    let (epoch, generation) = rest.split_once("-g")?;
    generation.parse::<u32>().ok()?;
    Some((partition.parse().ok()?, epoch.parse().ok()?))
}

/// A consumer that an earlier owner left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    pub name: String,
    pub partition: u16,
    pub epoch: i64,
    /// Everything at and below it was acknowledged.
    pub ack_floor: u64,
}

/// The consumers on a stream that earlier owners left behind.
///
/// # Errors
/// When JetStream does not answer.
pub async fn left_behind(handle: &StreamHandle) -> Result<Vec<LeftBehind>, StreamError> {
    Ok(handle
        .consumers()
        .await?
        .into_iter()
        .filter_map(|info| {
            let (partition, epoch) = parse_consumer_name(&info.name)?;
            Some(LeftBehind { name: info.name, partition, epoch, ack_floor: info.ack_floor.stream_sequence })
        })
        .collect())
}

/// Removes a consumer; one that is gone already is fine.
///
/// # Errors
/// When JetStream does not answer.
pub async fn remove_consumer(handle: &StreamHandle, name: &str) -> Result<(), StreamError> {
    use async_nats::jetstream::ErrorCode;
    use async_nats::jetstream::stream::ConsumerErrorKind;
    match handle.connection.jetstream.delete_consumer_from_stream(name, &handle.name).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ConsumerErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(()),
            _ => Err(refused(format!("remove the consumer {name} of {}", handle.name), error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumer_names_read_back() {
        assert_eq!(parse_consumer_name(&consumer_name(63, 17, 4)), Some((63, 17)));
        for foreign in ["p1", "p1-e2", "p1-e2-gx", "worker", "px-e1-g1"] {
            assert_eq!(parse_consumer_name(foreign), None, "{foreign}");
        }
    }
}
