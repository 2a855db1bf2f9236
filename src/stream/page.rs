//! Reading a stream's stored messages page by page, for commands that look at what is there.
//!
//! Refuses to acknowledge anything. Invariant: a page is read by a consumer of its own, so it does not matter how long its
//! reader takes, nor what is taken away meanwhile; a page with a gap is an error.

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{StreamError, StreamHandle, StreamMessage, refused};

/// Which messages of a stream a page is made of.
#[derive(Debug, Clone)]
pub(crate) struct PageOf {
    /// May hold wildcards.
    pub(crate) subject: String,
    pub(crate) limit: usize,
    pub(crate) headers_only: bool,
}

/// Messages in stream order.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) messages: Vec<(StreamMessage, HeaderMap)>,
    /// The last sequence looked at, behind which the next page begins; `None` when there is nothing more.
    pub(crate) last: Option<u64>,
}

impl StreamHandle {
    /// The messages behind a place.
    ///
    /// # Errors
    /// When JetStream does not answer, or the connection was interrupted meanwhile.
    pub(crate) async fn page(&self, of: &PageOf, after: u64) -> Result<Page, StreamError> {
        let what = || format!("read the stream {}", self.name);
        let config = PullConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
            ack_policy: AckPolicy::None,
            filter_subject: of.subject.clone(),
            headers_only: of.headers_only,
            memory_storage: true,
            ..PullConfig::default()
        };
        let consumer = self.connection.jetstream.create_consumer_on_stream(config, &self.name).await;
        let consumer = consumer.map_err(|error| refused(what(), error))?;
        let fetched = consumer.fetch().max_messages(of.limit).messages().await;
        let mut fetched = fetched.map_err(|error| refused(what(), error))?;
        let mut page = Page { messages: Vec::new(), last: None };
        let mut count = 0;
        while let Some(message) = fetched.next().await {
            let message = message.map_err(|error| refused(what(), error))?;
            let info = message.info().map_err(|error| refused(what(), error))?;
            count += 1;
            if info.consumer_sequence != count {
                return Err(refused(what(), "a message sent to us did not arrive".to_owned()));
            }
            page.last = Some(info.stream_sequence);
            let (sequence, published_at) = (info.stream_sequence, info.published.into());
            let message = message.message;
            let headers = message.headers.unwrap_or_default();
            let payload = if of.headers_only { Bytes::new() } else { message.payload };
            let read = StreamMessage::read(self, &message.subject, &headers, payload, sequence, published_at);
            page.messages.extend(read.map(|read| (read, headers)));
        }
        drop(fetched);
        super::remove_consumer(self, &consumer.cached_info().name).await?;
        Ok(page)
    }
}
