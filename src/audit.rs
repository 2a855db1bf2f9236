//! The proof of G1: every message on the inbound stream has its one terminal state in the ledger, none is doubled, none is
//! out of order.
//!
//! Refuses to change anything. Invariant: the stream is read in batches of a fixed size, so memory does not grow with it.

use std::collections::{BTreeMap, HashSet};

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use serde::Serialize;
use uuid::Uuid;

use crate::message::{DeliveryStatus, TerminalState};
use crate::store::{Store, StoreError};
use crate::stream::{StreamError, StreamHandle, StreamMessage};

/// Messages looked up in the ledger at once.
const BATCH: usize = 1_000;

/// Entries listed of each kind of fault; the count beside the list is exact.
const LISTED: usize = 1_000;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Messages on the stream.
    pub messages: u64,
    /// Messages without a terminal state. While the deployment works, they are the ones on their way.
    pub missing: u64,
    pub missing_messages: Vec<Missing>,
    /// Turns whose message is stored more than once.
    pub doubled: Vec<Uuid>,
    /// Turns stored before an earlier message's turn of their conversation.
    pub out_of_order: Vec<Uuid>,
    /// The whole ledger, which reaches further back than the stream.
    pub states: BTreeMap<TerminalState, i64>,
    pub deliveries: BTreeMap<DeliveryStatus, i64>,
}

/// A message that the ledger does not know.
#[derive(Debug, Serialize)]
pub struct Missing {
    pub sequence: u64,
    pub message_id: String,
    pub conversation: String,
}

impl Report {
    /// Whether the guarantee holds.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.missing == 0 && self.doubled.is_empty() && self.out_of_order.is_empty()
    }
}

/// Why an audit could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the inbound stream cannot be read")]
    Stream(#[source] StreamError),
    #[error("the inbound stream cannot be read")]
    Read(#[source] async_nats::Error),
    #[error("the ledger cannot be read")]
    Store(#[source] StoreError),
}

/// Compares the stream as it is now with the ledger. `progress` hears how many of how many sequences are read.
///
/// # Errors
/// When either cannot be read.
pub async fn run(
    handle: &StreamHandle,
    store: &Store,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, AuditError> {
    let mut report = Report::default();
    let state = handle.info().await.map_err(AuditError::Stream)?.state;
    if state.messages > 0 {
        let config =
            OrderedConfig { deliver_policy: DeliverPolicy::All, headers_only: true, ..OrderedConfig::default() };
        let consumer = handle.connection.jetstream.create_consumer_on_stream(config, &handle.name).await;
        let consumer = consumer.map_err(|error| AuditError::Read(error.into()))?;
        let mut messages = consumer.messages().await.map_err(|error| AuditError::Read(error.into()))?;
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| AuditError::Read(error.into()))?;
            let info = message.info().map_err(AuditError::Read)?;
            let (sequence, pending) = (info.stream_sequence, info.pending);
            if sequence <= state.last_sequence {
                batch.extend(read(handle, &message, sequence));
            }
            let last = sequence >= state.last_sequence || pending == 0;
            if batch.len() == BATCH || last {
                check(&mut report, store, &batch).await?;
                batch.clear();
                progress(
                    sequence.saturating_sub(state.first_sequence) + 1,
                    state.last_sequence + 1 - state.first_sequence,
                );
            }
            if last {
                break;
            }
        }
    }
    let faults = store.ledger_faults().await.map_err(AuditError::Store)?;
    (report.doubled, report.out_of_order) = (faults.doubled, faults.out_of_order);
    report.states = store.ledger_counts().await.map_err(AuditError::Store)?.into_iter().collect();
    report.deliveries = store.delivery_counts().await.map_err(AuditError::Store)?.into_iter().collect();
    Ok(report)
}

fn read(handle: &StreamHandle, message: &async_nats::jetstream::Message, sequence: u64) -> Option<StreamMessage> {
    let headers = message.headers.clone().unwrap_or_default();
    let published_at = message.info().ok()?.published.into();
    StreamMessage::read(handle, &message.subject, &headers, bytes::Bytes::new(), sequence, published_at)
}

async fn check(report: &mut Report, store: &Store, batch: &[StreamMessage]) -> Result<(), AuditError> {
    let ids: Vec<String> = batch.iter().map(|message| message.message_id.clone()).collect();
    let settled = store.settled(&ids).await.map_err(AuditError::Store)?;
    let settled: HashSet<&str> = settled.iter().map(crate::store::Committed::dedupe_id).collect();
    report.messages += batch.len() as u64;
    for message in batch {
        if !settled.contains(message.message_id.as_str()) {
            report.missing += 1;
            if report.missing_messages.len() < LISTED {
                report.missing_messages.push(Missing {
                    sequence: message.sequence,
                    message_id: message.message_id.clone(),
                    conversation: message.lane.to_string(),
                });
            }
        }
    }
    Ok(())
}
