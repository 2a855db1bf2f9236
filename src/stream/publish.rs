//! Publishing to the streams. A [`Published`] is the only proof that a message is durable, and the webhooks answer from it.

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use uuid::Uuid;

use super::{Connection, Lane, SCHEMA_HEADER, TRACEPARENT_HEADER};
use crate::channel::Verified;
use crate::message::{ConversationKey, SCHEMA_VERSION};
use crate::store::PendingDelivery;

/// Why the stream did not take a message. None of them says that it was not stored: the caller publishes again under the
/// same id.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the message is larger than the stream takes")]
    TooLarge,
    #[error("the stream did not acknowledge the message")]
    NotAcknowledged(#[source] async_nats::Error),
    #[error("the message cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
}

/// Proof that JetStream holds the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub(super) turn_id: Uuid,
    pub(super) sequence: u64,
    pub(super) duplicate: bool,
}

impl Published {
    #[must_use]
    pub const fn turn_id(&self) -> Uuid {
        self.turn_id
    }

    /// Its place on the stream; the earlier one's when it is a duplicate.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The stream already held a message with this id within its duplicate window.
    #[must_use]
    pub const fn duplicate(&self) -> bool {
        self.duplicate
    }
}

/// Publishes to the deployment's streams; cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    pub(super) connection: Connection,
    partitions: u16,
}

impl Publisher {
    #[must_use]
    pub const fn new(connection: Connection, partitions: u16) -> Self {
        Self { connection, partitions }
    }

    /// Makes an inbound event durable.
    ///
    /// # Errors
    /// When JetStream did not confirm it.
    pub async fn inbound(&self, verified: &Verified, traceparent: Option<&str>) -> Result<Published, PublishError> {
        let envelope = verified.envelope();
        let payload = serde_json::to_vec(envelope).map_err(PublishError::Encode)?;
        let subject = self.subject(Lane::Inbound, &envelope.key);
        let headers = headers(&envelope.dedupe_id, traceparent);
        let (sequence, duplicate) = self.publish(subject, headers, payload.into()).await?;
        Ok(Published { turn_id: envelope.turn_id, sequence, duplicate })
    }

    /// Puts a committed delivery on the outbound stream. Publishing one twice is harmless: the stream dedupes by the
    /// delivery's id, and the sender looks at its row. The next one of the same chat may be published only after this: of
    /// two on their way at once the first can be lost alone.
    ///
    /// # Errors
    /// When JetStream did not confirm it; it may lie on the stream.
    pub async fn outbound(&self, delivery: &PendingDelivery) -> Result<(), PublishError> {
        let part = delivery.part();
        let payload = serde_json::to_vec(part).map_err(PublishError::Encode)?;
        let subject = self.subject(Lane::Outbound, &part.key);
        let headers = headers(&part.delivery_id.to_string(), delivery.traceparent());
        self.publish(subject, headers, payload.into()).await.map(|_| ())
    }

    /// The same for one that was on the stream before and is settled there, because a person wants it sent once more: under
    /// an id of its own, which the stream does not know.
    ///
    /// # Errors
    /// Those of [`Publisher::outbound`].
    pub async fn outbound_again(&self, delivery: &PendingDelivery) -> Result<(), PublishError> {
        let part = delivery.part();
        let payload = serde_json::to_vec(part).map_err(PublishError::Encode)?;
        let subject = self.subject(Lane::Outbound, &part.key);
        let message_id = format!("{}.{}", part.delivery_id, Uuid::now_v7());
        self.publish(subject, headers(&message_id, delivery.traceparent()), payload.into()).await.map(|_| ())
    }

    /// Tells whoever waits for a turn, over core NATS, that its outcome can be read. Nobody has to hear it.
    pub async fn turn_notice(&self, turn_id: Uuid) {
        self.notify(self.connection.names.turn_notice(turn_id)).await;
    }

    /// The same to whoever waits for what is said next in a web conversation.
    pub async fn conversation_notice(&self, conversation_id: Uuid) {
        self.notify(self.connection.names.conversation_notice(conversation_id)).await;
    }

    async fn notify(&self, subject: String) {
        if let Err(error) = self.connection.client.publish(subject, Bytes::new()).await {
            tracing::debug!(error = %error, "a notice was not sent");
        }
    }

    /// How many partitions there are.
    #[must_use]
    pub const fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition that the conversation's messages lie in.
    #[must_use]
    pub fn partition(&self, key: &ConversationKey) -> u16 {
        key.partition(self.partitions)
    }

    fn subject(&self, lane: Lane, key: &ConversationKey) -> String {
        self.connection.names.subject(lane, self.partition(key), key)
    }

    pub(super) async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(u64, bool), PublishError> {
        let message = PublishMessage::build().headers(headers).payload(payload);
        let acknowledgement = self.connection.jetstream.send_publish(subject, message).await.map_err(refused)?;
        let acknowledgement = acknowledgement.await.map_err(refused)?;
        Ok((acknowledgement.sequence, acknowledgement.duplicate))
    }
}

fn refused(error: async_nats::jetstream::context::PublishError) -> PublishError {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge,
        _ => PublishError::NotAcknowledged(error.into()),
    }
}

pub(super) fn headers(message_id: &str, traceparent: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id);
    headers.insert(SCHEMA_HEADER, SCHEMA_VERSION.to_string().as_str());
    if let Some(traceparent) = traceparent {
        headers.insert(TRACEPARENT_HEADER, traceparent);
    }
    headers
}
