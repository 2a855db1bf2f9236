//! Everything that a stream holds of one chat, which chats there are, and the removal of messages.
//!
//! Refuses to decide whether a message may go. Invariant: what is removed is overwritten where it lay (JetStream's secure delete,
//! ADR-1: a deletion without `no_erase`), on every replica; other chats' messages are not touched.

use std::collections::BTreeSet;

use futures_util::TryStreamExt as _;

use super::page::PageOf;
use super::{StreamError, StreamHandle, StreamMessage, refused};
use crate::message::{Channel, ConversationKey, Peer, escape};

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

    /// The other ends of a bot's chats that have messages here.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub(crate) async fn peers_of_bot(&self, channel: Channel, bot: &str) -> Result<BTreeSet<Peer>, StreamError> {
        let what = || format!("list the chats on {}", self.name);
        let all = self.connection.names.all_subjects(self.lane);
        let subject = format!("{}*.{channel}.{}.*", all.trim_end_matches('>'), escape(bot));
        let stream = self.connection.jetstream.get_stream_no_info(&self.name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        let subjects = stream.info_with_subjects(subject).await.map_err(|error| refused(what(), error))?;
        let subjects = subjects.map_err(|error| refused(what(), error));
        let peer = |(subject, _): (String, usize)| subject.rsplit('.').next().and_then(|peer| peer.parse().ok());
        subjects.try_filter_map(|found| std::future::ready(Ok(peer(found)))).try_collect().await
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
