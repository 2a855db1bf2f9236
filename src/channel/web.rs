//! Web chat and plain API: the caller speaks our own protocol, so there is nothing to decode.
//!
//! Refuses to check callers, conversations or limits: the chat API does, before it calls [`accept`]. Invariant: the peer is
//! the conversation's own id. Replies are answered over core NATS, so there is no outgoing half.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Verified, json};
use crate::message::{Channel, ConversationKey, Envelope, Event, InboundMessage, Peer, Platform, Sender, Timestamp};
use crate::store::Conversation;

/// One message of a caller whose right to this conversation has been checked.
#[derive(Debug, Clone)]
pub struct ChatMessage<'a> {
    pub bot: &'a str,
    pub conversation_id: Uuid,
    pub turn_id: Uuid,
    /// Unique per message and the same when the caller repeats it; printable ASCII without spaces.
    pub dedupe_id: String,
    pub device_id: &'a str,
    /// [`Platform::Web`] or [`Platform::Api`].
    pub platform: Platform,
    pub message: &'a str,
    /// See [`InboundMessage::payload`].
    pub payload: Option<String>,
    pub metadata: Option<Map<String, Value>>,
    pub now: Timestamp,
}

/// The envelope of a chat message. U+0000, which the database cannot store, is left out of text and metadata.
#[must_use]
pub fn accept(message: ChatMessage<'_>) -> Verified {
    let device_id = json::without_nul(message.device_id);
    Verified(Envelope {
        turn_id: message.turn_id,
        key: ConversationKey {
            channel: Channel::Web,
            bot: message.bot.into(),
            peer: Peer::Conversation(message.conversation_id),
        },
        platform: message.platform,
        dedupe_id: message.dedupe_id,
        received_at: message.now,
        sender: Some(Sender { id: device_id.clone(), ..Sender::default() }),
        device_id: Some(device_id),
        metadata: message.metadata.map(json::map_without_nul),
        event: Event::Message(InboundMessage {
            text: json::without_nul(message.message),
            payload: message.payload,
            ..InboundMessage::default()
        }),
        amendment: None,
        notice: None,
        came_from: None,
        raw: None,
    })
}

/// The envelope of a human agent's message into a conversation of any channel. The caller's right to it has been checked.
#[must_use]
pub fn accept_agent(conversation: &Conversation, turn_id: Uuid, text: &str, now: Timestamp) -> Verified {
    Verified(Envelope {
        turn_id,
        key: conversation.key.clone(),
        platform: conversation.platform,
        dedupe_id: format!("agent:{turn_id}"),
        received_at: now,
        sender: None,
        device_id: conversation.device_id.clone(),
        metadata: None,
        event: Event::Agent { text: json::without_nul(text) },
        amendment: None,
        notice: None,
        came_from: None,
        raw: None,
    })
}
