//! The inbound stream for whoever only looks back.
//!
//! Refuses to publish, to acknowledge, and to make a consumer: messages are read by their place, which leaves no trace on the
//! server. Invariant: what is read is what was accepted, or nothing.

use super::{StreamError, StreamHandle};
use crate::message::Envelope;

/// An inbound stream that is only read.
#[derive(Debug, Clone)]
pub struct Reader {
    handle: StreamHandle,
}

impl Reader {
    #[must_use]
    pub const fn new(handle: StreamHandle) -> Self {
        Self { handle }
    }

    /// The stream's name and incarnation: one made anew has other messages at its places.
    #[must_use]
    pub fn stream(&self) -> (&str, &str) {
        (&self.handle.name, &self.handle.incarnation)
    }

    /// What was accepted at a place; `None` when the stream has nothing there any more, or nothing that this version reads.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn envelope(&self, sequence: u64) -> Result<Option<Envelope>, StreamError> {
        let found = self.handle.stored(sequence).await?;
        Ok(found.and_then(|(message, _)| serde_json::from_slice(&message.payload).ok()))
    }
}
