//! Where the messages of a chat are filed: a group that became a supergroup keeps its conversations, its lane and its order.
//!
//! Refuses to take the news of a move before it is recorded: the chat's queue waits for our answer, so whatever comes after it
//! finds the move known (Bot API server: updates of one chat are delivered one after another). Invariant: a message from the
//! new chat that was taken after the move is in the lane of the old one.

use std::time::Duration;

use super::Ingress;
use super::problem::Problem;
use super::store_problem;
use crate::channel::Verified;
use crate::message::{Channel, ConversationKey, Notice, Peer};
use crate::store::StoreError;
use crate::telemetry::chain;

/// A group's message does not wait longer for a database that is away: it goes into the lane of its own chat then, and the
/// turn finds its conversation.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(1);

impl Ingress {
    /// The event in the conversations to which it belongs.
    pub(super) async fn filed(&self, verified: Verified) -> Result<Verified, Problem> {
        self.file(verified).await.map_err(|error| store_problem(&error))
    }

    /// # Errors
    /// When the news of a move cannot be recorded: the event must not be taken then.
    pub(super) async fn file(&self, verified: Verified) -> Result<Verified, StoreError> {
        let envelope = verified.envelope();
        let (key, at) = (envelope.key.clone(), envelope.received_at);
        if let Some(Notice::Moved { from, to }) = &envelope.notice {
            let from = ConversationKey { peer: from.clone(), ..key.clone() };
            self.store.move_chat(&from, to, at, None).await?;
        }
        if key.channel != Channel::Telegram || !matches!(key.peer, Peer::Group(_)) {
            return Ok(verified);
        }
        match tokio::time::timeout(LOOK_UP_TIMEOUT, self.store.chat(&key)).await {
            Ok(Ok(chat)) => Ok(match chat.filed_under {
                Some(peer) => verified.filed_under(peer),
                None => verified,
            }),
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "a group's message is taken without asking whether the group has moved");
                Ok(verified)
            }
            Err(_) => {
                tracing::warn!("a group's message is taken without asking whether the group has moved: no answer");
                Ok(verified)
            }
        }
    }
}
