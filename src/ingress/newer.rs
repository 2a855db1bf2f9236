//! Waiting for what is said next in a conversation: a long poll, for who expects a person's words, which belong to no turn of
//! theirs.
//!
//! Refuses to stream, and to wait without a seat. Invariant: a wait ends with a message, or with its time; a notice that is lost
//! costs no more than that.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::SemaphorePermit;
use uuid::Uuid;

use super::problem::Problem;
use super::{Ingress, RETRY_AFTER_SECONDS, store_problem};
use crate::store::StoredMessage;

/// The longest wait, in seconds: shorter than proxies keep a silent connection.
pub(super) const WAIT_SECONDS_MAX: u32 = 30;

/// Which messages a caller asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newer {
    pub(super) conversation_id: Uuid,
    /// The ordinal of the last one seen.
    pub(super) after: i64,
    pub(super) limit: u32,
    /// Zero does not wait.
    pub(super) wait: Duration,
}

impl Ingress {
    /// The oldest messages behind the one seen last, so that who goes on from the last of them misses none; none when the time
    /// is over. The permit is given back before it is waited.
    pub(super) async fn newer(&self, newer: Newer, permit: SemaphorePermit<'_>) -> Result<Vec<StoredMessage>, Problem> {
        let found = self.newer_now(newer).await?;
        drop(permit);
        if !found.is_empty() || newer.wait.is_zero() {
            return Ok(found);
        }
        let _seat = self.seat()?;
        let subject = self.connection.names.conversation_notice(newer.conversation_id);
        let mut notices = self.connection.client.subscribe(subject).await.map_err(|_| {
            Problem::new(503, "unavailable", "NATS is not connected. Please try again.")
                .retry_after(RETRY_AFTER_SECONDS)
        })?;
        let told = async {
            // Something may have been said before anybody listened.
            loop {
                let found = self.newer_now(newer).await?;
                if !found.is_empty() || notices.next().await.is_none() {
                    return Ok(found);
                }
            }
        };
        let waited = self.closing.run_until_cancelled(tokio::time::timeout(newer.wait, told)).await;
        waited.and_then(Result::ok).unwrap_or_else(|| Ok(Vec::new()))
    }

    async fn newer_now(&self, newer: Newer) -> Result<Vec<StoredMessage>, Problem> {
        let found = self.store.messages_after(newer.conversation_id, newer.after, newer.limit).await;
        found.map_err(|error| store_problem(&error))
    }
}
