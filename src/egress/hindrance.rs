//! What keeps a part from leaving though its turn has come, and what a platform's refusal says beyond that one part.
//!
//! Refuses to settle deliveries. Invariant: what is refused here has made no call.

use super::Egress;
use crate::channel::{self, Answer, OUTSIDE_WINDOW};
use crate::config::Bot;
use crate::message::{ConversationStatus, OutboundPart, TerminalState, Timestamp};
use crate::store::{StoreError, Turn};
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
        if let Some(error) = self.platforms.closures().refusal(&bot.name, part.part == 0, tokio::time::Instant::now()) {
            return Ok(Some(format!("{DISABLED}: {error}")));
        }
        let Some(window) = channel::window(part.key.channel) else { return Ok(None) };
        let now = Timestamp::now();
        let is_over = |said_at: Timestamp| u128::from(now.micros_since(said_at)) >= window.as_micros();
        let said_at = match part.conversation_id {
            Some(conversation_id) => self.store.last_said_at(conversation_id).await?,
            None => None,
        };
        let is_outside = is_over(said_at.unwrap_or(part.created_at)) && self.unstored(part).await?.is_none_or(is_over);
        let hours = window.as_secs() / 3_600;
        Ok(is_outside.then(|| format!("{OUTSIDE_WINDOW}: the person's last message is older than {hours} hours")))
    }

    /// When the message came that the part is about, if it is in no history: one that was given up or turned away.
    async fn unstored(&self, part: &OutboundPart) -> Result<Option<Timestamp>, StoreError> {
        let turn = self.store.turn(part.turn_id).await?;
        let is_unstored = |turn: &Turn| matches!(turn.state, TerminalState::DeadLettered | TerminalState::Rejected);
        Ok(turn.filter(is_unstored).map(|turn| turn.received_at))
    }

    /// Takes note of a bot that its platform shuts out, and of one that it does not any more.
    pub(super) fn note(&self, bot: &Bot, answer: &Answer) {
        match answer {
            Answer::Closed { error } => {
                if self.platforms.closures().close(&bot.name, error, tokio::time::Instant::now()) {
                    tracing::error!(bot = bot.name, error, "the platform takes nothing from this bot any more");
                }
                metric::bot_shut_out(&bot.name, true);
            }
            // Whatever the platform said of this one chat, it did not refuse the bot.
            Answer::Sent { .. }
            | Answer::Failed { .. }
            | Answer::Moved { .. }
            | Answer::Spoiled { .. }
            | Answer::TakenOver { .. }
            | Answer::RetryAfter { .. }
                if self.platforms.closures().open(&bot.name) =>
            {
                tracing::info!(bot = bot.name, "the platform takes this bot's messages again");
                metric::bot_shut_out(&bot.name, false);
            }
            Answer::Sent { .. }
            | Answer::Failed { .. }
            | Answer::Moved { .. }
            | Answer::Spoiled { .. }
            | Answer::TakenOver { .. }
            | Answer::RetryAfter { .. }
            | Answer::NotSent { .. }
            | Answer::Uncertain { .. } => {}
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
