//! Everything that a stream holds of one chat, and its removal.
//!
//! Refuses to decide whether a message may go. Invariant: what is removed is overwritten where it lay (JetStream's secure delete,
//! ADR-1: a deletion without `no_erase`), on every replica; other chats' messages are not touched.

use super::page::PageOf;
use super::{StreamError, StreamHandle, StreamMessage};
use crate::message::ConversationKey;

/// Messages read at once; at some kilobytes each, a few megabytes.
const PAGE: usize = 1_000;

impl StreamHandle {
    /// The messages of a chat, in stream order; without their bodies where nobody reads them.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub(crate) async fn messages_of_chat(
        &self,
        key: &ConversationKey,
        partitions: u16,
        headers_only: bool,
    ) -> Result<Vec<StreamMessage>, StreamError> {
        let subject = self.connection.names.subject(self.lane, key.partition(partitions), key);
        let of = PageOf { subject, limit: PAGE, headers_only };
        let (mut messages, mut after) = (Vec::new(), 0);
        loop {
            let page = self.page(&of, after).await?;
            messages.extend(page.messages.into_iter().map(|(message, _)| message));
            match page.last {
                Some(last) => after = last,
                None => return Ok(messages),
            }
        }
    }

    /// Removes messages for good; those that are gone already are fine.
    ///
    /// # Errors
    /// When JetStream does not answer: some may be gone.
    pub(crate) async fn erase(&self, messages: &[StreamMessage]) -> Result<(), StreamError> {
        for message in messages {
            self.remove(message.sequence).await?;
        }
        Ok(())
    }
}
