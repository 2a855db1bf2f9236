//! What the server says of its streams: how much each partition's consumer still has before it, and how full the disk is.
//!
//! Refuses to touch a message. Invariant: of each partition only the consumer of the latest epoch and generation counts; what
//! earlier owners left behind says nothing about now.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::Info as ConsumerInfo;
use futures_util::TryStreamExt as _;

use super::{Connection, StreamError, StreamHandle, parse_consumer_name, refused};

/// What one partition's consumer has before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    pub partition: u16,
    /// Messages not delivered yet.
    pub lag: u64,
    /// Messages delivered and not acknowledged yet.
    pub ack_pending: usize,
}

/// The account's use of JetStream's disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    pub bytes: u64,
    /// `None` where the account has no limit.
    pub limit: Option<u64>,
}

impl StreamHandle {
    /// Of every partition that has a consumer, in order.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn backlogs(&self) -> Result<Vec<Backlog>, StreamError> {
        Ok(latest(self.consumers().await?))
    }

    pub(super) async fn consumers(&self) -> Result<Vec<ConsumerInfo>, StreamError> {
        let what = || format!("list the consumers of {}", self.name);
        let stream = self.connection.jetstream.get_stream_no_info(&self.name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        stream.consumers().try_collect().await.map_err(|error| refused(what(), error))
    }
}

impl Connection {
    /// What the account uses of JetStream's disk, replicas included.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn storage(&self) -> Result<Storage, StreamError> {
        let account = self.jetstream.query_account().await;
        let account = account.map_err(|error| refused("describe the account".to_owned(), error))?;
        // -1 stands for no limit.
        let limit = account.limits.max_storage.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
        Ok(Storage { bytes: account.storage, limit })
    }
}

fn latest(consumers: Vec<ConsumerInfo>) -> Vec<Backlog> {
    let mut latest: BTreeMap<u16, (i64, i128, Backlog)> = BTreeMap::new();
    for info in consumers {
        let Some((partition, epoch)) = parse_consumer_name(&info.name) else { continue };
        let made = info.created.unix_timestamp_nanos();
        let newer = latest.get(&partition).is_none_or(|(epoch_of, made_at, _)| (*epoch_of, *made_at) < (epoch, made));
        if newer {
            let backlog = Backlog { partition, lag: info.num_pending, ack_pending: info.num_ack_pending };
            latest.insert(partition, (epoch, made, backlog));
        }
    }
    latest.into_values().map(|(_, _, backlog)| backlog).collect()
}
