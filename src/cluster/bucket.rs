//! The bucket of members and leases: its keys, its writes, and what is heard of it.
//!
//! Refuses to decide anything. Invariants: a lease changes only against the revision that was seen; a member's key always
//! has a time-to-live, given with each write (the bucket's own operations lose it, so the writes go to its subjects).

use std::time::Duration;

use async_nats::jetstream::context::{KeyValueErrorKind, PublishErrorKind};
use async_nats::jetstream::kv::{Config, Entry, Operation, Store as KeyValue, Watch};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::StorageType;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::watch;

use super::view::{Change, Lease, Member};
use super::{ClusterError, Settings};
use crate::stream::StreamHandle;
use crate::telemetry::chain;

/// How long the bucket remembers that a key is gone: those who watch hear of it within milliseconds, those who look later
/// do not need to know.
const MARKER_TTL: Duration = Duration::from_secs(30);

/// The pause before the bucket is watched again after that failed.
const WATCH_PAUSE: Duration = Duration::from_millis(250);

/// The header by which a deleted key is told from one with an empty value (NATS ADR-8).
const OPERATION_HEADER: &str = "KV-Operation";

/// The bucket as one process uses it for one stream.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    handle: StreamHandle,
    name: String,
    member_id: String,
    ttl: Duration,
    replicas: usize,
    /// How long a write may take before its outcome counts as unknown.
    timeout: Duration,
}

/// Why a write is not known to have happened.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the key has changed meanwhile")]
    Conflict,
    #[error("there is no such bucket")]
    Missing,
    #[error("the bucket did not answer in time")]
    TimedOut,
    #[error("the bucket refused")]
    Refused(#[source] async_nats::Error),
}

impl Bucket {
    pub(super) fn new(settings: &Settings, handle: StreamHandle) -> Self {
        Self {
            name: handle.connection.names.cluster_bucket(),
            handle,
            member_id: settings.member_id.clone(),
            // The server counts whole seconds.
            ttl: Duration::from_secs(
                settings.lease_ttl.as_millis().div_ceil(1_000).max(1).try_into().unwrap_or(u64::MAX),
            ),
            replicas: settings.replicas,
            timeout: settings.lease_ttl / 2,
        }
    }

    /// Looks the bucket up, or makes it.
    pub(super) async fn ensure(&self) -> Result<KeyValue, ClusterError> {
        let jetstream = &self.handle.connection.jetstream;
        let failed = |source: async_nats::Error| ClusterError::Bucket { bucket: self.name.clone(), source };
        match jetstream.get_key_value(&self.name).await {
            Ok(found) => return Ok(found),
            Err(error) if error.kind() == KeyValueErrorKind::GetBucket => {
                tracing::debug!(bucket = self.name, error = %error, "no bucket yet");
            }
            Err(error) => return Err(failed(error.into())),
        }
        let config = Config {
            bucket: self.name.clone(),
            description: "Who works on which partitions".to_owned(),
            history: 1,
            storage: StorageType::File,
            num_replicas: self.replicas,
            limit_markers: Some(MARKER_TTL),
            ..Config::default()
        };
        jetstream.create_key_value(config).await.map_err(|error| failed(error.into()))
    }

    /// The error of a bucket that cannot be used at all.
    pub(super) fn unusable(&self, error: WriteError) -> ClusterError {
        ClusterError::Bucket { bucket: self.name.clone(), source: error.into() }
    }

    /// A sign of life. Returns the revision.
    pub(super) async fn renew(&self, member: &Member) -> Result<u64, WriteError> {
        let message = PublishMessage::build().payload(json(member)).ttl(self.ttl);
        self.publish(self.member_key(&self.member_id), message).await
    }

    /// Says goodbye: whoever watches need not wait for the time-to-live.
    pub(super) async fn leave(&self) -> Result<u64, WriteError> {
        let message = PublishMessage::build().header(OPERATION_HEADER, "DEL").ttl(MARKER_TTL);
        self.publish(self.member_key(&self.member_id), message).await
    }

    /// Changes a lease, if it is still the one of this revision (0: there is none). Returns the new revision.
    pub(super) async fn write(&self, partition: u16, expected: u64, lease: &Lease) -> Result<u64, WriteError> {
        let message = PublishMessage::build().payload(json(lease)).expected_last_subject_sequence(expected);
        self.publish(self.lease_key(partition), message).await
    }

    /// Who does a task that is not a partition's, as [`Self::hold`] wrote it.
    pub(super) async fn task(&self, task: &str) -> Result<Option<Entry>, ClusterError> {
        let failed = |source: async_nats::Error| ClusterError::Bucket { bucket: self.name.clone(), source };
        let bucket = self.ensure().await?;
        match tokio::time::timeout(self.timeout, bucket.entry(task_key(task))).await {
            Ok(entry) => entry.map_err(|error| failed(error.into())),
            Err(_) => Err(self.unusable(WriteError::TimedOut)),
        }
    }

    /// Takes or keeps a task for `ttl`, if nobody has written since `expected`. Returns the new revision.
    pub(super) async fn hold(&self, task: &str, expected: u64, ttl: Duration) -> Result<u64, WriteError> {
        let payload = Bytes::from(self.member_id.clone());
        let message = PublishMessage::build().payload(payload).ttl(ttl).expected_last_subject_sequence(expected);
        self.publish(task_key(task), message).await
    }

    /// Gives a task up, if it is still ours of this revision.
    pub(super) async fn let_go(&self, task: &str, revision: u64) -> Result<u64, WriteError> {
        let message = PublishMessage::build()
            .header(OPERATION_HEADER, "DEL")
            .ttl(MARKER_TTL)
            .expected_last_subject_sequence(revision);
        self.publish(task_key(task), message).await
    }

    pub(super) fn member_id(&self) -> &str {
        &self.member_id
    }

    /// What changes, from the whole present state on; never ends. Starts over when the connection was interrupted, when
    /// the bucket is gone, and when `doubts` says so.
    pub(super) fn changes(&self, doubts: watch::Receiver<u64>) -> impl Stream<Item = Change> + Send + use<> {
        let interruptions = self.handle.connection.interruptions();
        let watching =
            Watching { bucket: self.clone(), watch: None, told: None, interruptions, doubts, failing: false };
        stream::unfold(watching, |mut watching| async move {
            let change = watching.next().await;
            Some((change, watching))
        })
    }

    async fn watch(&self) -> Result<Watch, ClusterError> {
        let lane = self.handle.lane.as_str();
        let bucket = self.ensure().await?;
        let keys = [format!("members.{lane}.>"), format!("leases.{lane}.>")];
        bucket
            .watch_many_with_history(keys)
            .await
            .map_err(|error| ClusterError::Bucket { bucket: self.name.clone(), source: error.into() })
    }

    async fn publish(&self, key: String, message: PublishMessage) -> Result<u64, WriteError> {
        let subject = format!("$KV.{}.{key}", self.name);
        let published = async {
            let acknowledged = self.handle.connection.jetstream.send_publish(subject, message).await?;
            acknowledged.await
        };
        match tokio::time::timeout(self.timeout, published).await {
            Ok(Ok(acknowledged)) => Ok(acknowledged.sequence),
            Ok(Err(error)) => Err(match error.kind() {
                PublishErrorKind::WrongLastSequence => WriteError::Conflict,
                PublishErrorKind::StreamNotFound => WriteError::Missing,
                PublishErrorKind::TimedOut => WriteError::TimedOut,
                _ => WriteError::Refused(error.into()),
            }),
            Err(_) => Err(WriteError::TimedOut),
        }
    }

    fn member_key(&self, member: &str) -> String {
        format!("members.{}.{member}", self.handle.lane.as_str())
    }

    fn lease_key(&self, partition: u16) -> String {
        format!("leases.{}.{partition}", self.handle.lane.as_str())
    }

    fn read(&self, entry: &Entry) -> Option<Change> {
        let (kind, rest) = entry.key.split_once('.')?;
        let name = rest.strip_prefix(self.handle.lane.as_str())?.strip_prefix('.')?;
        match (kind, entry.operation) {
            ("members", Operation::Put) => {
                let member: Member = self.decode(entry)?;
                Some(Change::Member { id: name.to_owned(), leaving: member.leaving })
            }
            ("members", Operation::Delete) => Some(Change::Left { id: name.to_owned() }),
            // The server's mark for a key whose time-to-live is over.
            ("members", Operation::Purge) => Some(Change::Expired { id: name.to_owned() }),
            ("leases", operation) => {
                let lease = if operation == Operation::Put { self.decode(entry) } else { None };
                let (lease, revision) = (lease.unwrap_or_default(), entry.revision);
                Some(Change::Lease { partition: name.parse().ok()?, lease, revision })
            }
            _ => None,
        }
    }

    fn decode<T: serde::de::DeserializeOwned>(&self, entry: &Entry) -> Option<T> {
        serde_json::from_slice(&entry.value)
            .inspect_err(|error| tracing::warn!(bucket = self.name, key = entry.key, error = %error, "not readable"))
            .ok()
    }
}

/// A watch that is opened again for as long as somebody listens.
struct Watching {
    bucket: Bucket,
    watch: Option<Watch>,
    /// Read already, to be told next.
    told: Option<Change>,
    interruptions: watch::Receiver<u64>,
    doubts: watch::Receiver<u64>,
    failing: bool,
}

impl Watching {
    async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.told.take() {
                return change;
            }
            let Some(watch) = self.watch.as_mut() else {
                self.open().await;
                return Change::Restarted;
            };
            let entry = tokio::select! {
                biased;
                _ = self.interruptions.changed() => None,
                Ok(()) = self.doubts.changed() => None,
                entry = watch.next() => entry.and_then(Result::ok),
            };
            let Some(entry) = entry else {
                self.watch = None;
                continue;
            };
            // Whatever was there when the watch was opened comes before the first entry with none behind it.
            self.told = (entry.delta == 0).then_some(Change::Complete);
            if let Some(change) = self.bucket.read(&entry) {
                return change;
            }
        }
    }

    async fn open(&mut self) {
        loop {
            self.interruptions.mark_unchanged();
            self.doubts.mark_unchanged();
            match self.bucket.watch().await {
                Ok(watch) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(bucket = self.bucket.name, "members and leases are seen again");
                    }
                    self.watch = Some(watch);
                    return;
                }
                Err(error) if !self.failing => {
                    self.failing = true;
                    tracing::warn!(error = %chain(&error), "members and leases cannot be seen, will be tried again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }
}

fn task_key(task: &str) -> String {
    format!("tasks.{task}")
}

fn json(value: &impl Serialize) -> Bytes {
    // Records of strings and numbers; they cannot fail to be written.
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}
