//! What keeps a part from leaving though its turn has come, and what a platform's refusal says beyond that one part.
//!
//! Refuses to settle deliveries. Invariant: what is refused here has made no call.

use super::Egress;
use crate::channel::{self, Answer, OUTSIDE_WINDOW};
use crate::config::Bot;
use crate::message::{ConversationStatus, OutboundPart, Timestamp};
use crate::store::StoreError;
use crate::telemetry::{chain, metric};
use crate::turn;

/// What the error of a delivery begins with whose bot is shut out.
pub(super) const DISABLED: &str = "disabled";

/// What the error of a delivery begins with whose conversation another application has.
pub(super) const TAKEN_OVER: &str = "taken_over";

impl Egress {
    /// Why a part must not be sent: its bot is shut out, or its person wrote too long ago.
    ///
    /// # Errors
    /// When the database does not say.
    pub(super) async fn hindrance(&self, bot: &Bot, part: &OutboundPart) -> Result<Option<String>, StoreError> {
        if let Some(error) = self.closures().refusal(&bot.name, tokio::time::Instant::now()) {
            return Ok(Some(format!("{DISABLED}: {error}")));
        }
        let Some(window) = channel::window(part.key.channel) else { return Ok(None) };
        let said_at = match part.conversation_id {
            Some(conversation_id) => self.store.last_said_at(conversation_id).await?,
            None => None,
        };
        let age = Timestamp::now().micros_since(said_at.unwrap_or(part.created_at));
        let is_outside = u128::from(age) >= window.as_micros();
        let hours = window.as_secs() / 3_600;
        Ok(is_outside.then(|| format!("{OUTSIDE_WINDOW}: the person's last message is older than {hours} hours")))
    }

    /// Takes note of a bot that its platform shuts out, and of one that it does not any more.
    pub(super) fn note(&self, bot: &Bot, answer: &Answer) {
        match answer {
            Answer::Closed { error } => {
                if self.closures().close(&bot.name, error, tokio::time::Instant::now()) {
                    tracing::error!(bot = bot.name, error, "the platform takes nothing from this bot any more");
                }
                metric::bot_shut_out(&bot.name, true);
            }
            Answer::Sent { .. } if self.closures().open(&bot.name) => {
                tracing::info!(bot = bot.name, "the platform takes this bot's messages again");
                metric::bot_shut_out(&bot.name, false);
            }
            _ => {}
        }
    }

    /// Lets the bot be silent while another application has the conversation. Where that cannot be recorded, the next reply is
    /// refused again.
    pub(super) async fn silence(&self, part: &OutboundPart) {
        let Some(id) = part.conversation_id else { return };
        let silenced = match self.store.conversation(id).await {
            Ok(Some(conversation)) if conversation.status == ConversationStatus::Bot => {
                let paused = turn::paused(part.key.channel);
                self.store.patch_conversation(id, &paused, Timestamp::now()).await.map(drop)
            }
            found => found.map(drop),
        };
        if let Err(error) = silenced {
            tracing::warn!(error = %chain(&error), "the bot could not be made silent");
        }
    }
}
