//! "Seen" and "is typing", shown in the chat of a turn, the latter for as long as it runs.
//!
//! Refuses to matter: a turn never waits for it and never fails with it, and nothing of it is recorded. Invariant: at most one
//! call at a time and per interval for a chat, none once the turn has ended, and of all chats a bounded number.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::channel::{self, Answer};
use crate::config::Bot;
use crate::message::{Channel, ConversationKey};
use crate::platform::Platforms;
use crate::telemetry::metric;

/// A turn that answers faster than this shows nothing: the answer is there before anybody has seen the indicator.
const BEGIN_AFTER: Duration = Duration::from_millis(300);

/// A call that takes longer comes too late to be of use.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls at once, of all bots. When so many are on their way already, the next ones are left out: with tens of thousands of
/// turns at once they would take more of the platform's patience, and of memory, than the replies.
const CALLS_MAX: usize = 64;

/// Chats whose last call is remembered, for longer than any interval: more than turns can run at once.
const CHATS_MAX: u64 = 16_384;
const REMEMBERED: Duration = Duration::from_secs(60);

/// Shows that the bots of a deployment are typing.
#[derive(Debug, Clone)]
pub struct Typing {
    platforms: Arc<Platforms>,
    calls: Arc<Semaphore>,
    /// When a chat may be shown it again.
    due: Cache<ConversationKey, Instant>,
}

impl Typing {
    #[must_use]
    pub fn new(platforms: Arc<Platforms>) -> Self {
        let calls = Arc::new(Semaphore::new(CALLS_MAX));
        Self { platforms, calls, due: Cache::builder().max_capacity(CHATS_MAX).time_to_live(REMEMBERED).build() }
    }

    /// Runs `work`, and shows meanwhile that the bot is typing, unless it shall not or its channel cannot.
    pub async fn during<T>(&self, bot: &Bot, key: &ConversationKey, work: impl Future<Output = T>) -> T {
        if !bot.typing || matches!(key.channel, Channel::Web | Channel::Http) {
            return work.await;
        }
        tokio::select! {
            biased;
            outcome = work => outcome,
            never = self.show(bot, key) => match never {},
        }
    }

    /// What takes kilobytes only while it is done is on the heap for that long: so many turns are between two calls.
    async fn show(&self, bot: &Bot, key: &ConversationKey) -> Infallible {
        tokio::time::sleep(BEGIN_AFTER).await;
        let Some(typing) = channel::typing(bot, &key.peer) else { return std::future::pending().await };
        if let Some(due) = Box::pin(self.due.get(key)).await {
            tokio::time::sleep_until(due).await;
        }
        if let Some(seen) = channel::seen(bot, &key.peer) {
            let called = Box::pin(self.platforms.call(bot, &seen, CALL_TIMEOUT)).await;
            metric::typing(bot.channel(), called.status);
        }
        loop {
            let again_at = Instant::now() + typing.again_after;
            let Ok(permit) = self.calls.try_acquire() else {
                tokio::time::sleep_until(again_at).await;
                continue;
            };
            Box::pin(self.due.insert(key.clone(), again_at)).await;
            let called = Box::pin(self.platforms.call(bot, &typing.call, CALL_TIMEOUT)).await;
            drop(permit);
            metric::typing(bot.channel(), called.status);
            let wait = match called.answer {
                Answer::Sent { .. } => Duration::ZERO,
                Answer::RetryAfter { delay, error, .. } => {
                    tracing::debug!(
                        bot = bot.name,
                        error,
                        delay_ms = delay.as_millis(),
                        "typing is not shown for a while"
                    );
                    delay
                }
                Answer::NotSent { error } | Answer::Uncertain { error } => {
                    tracing::debug!(bot = bot.name, error, "typing may not have been shown");
                    Duration::ZERO
                }
                Answer::Failed { error, .. }
                | Answer::Moved { error, .. }
                | Answer::Spoiled { error, .. }
                | Answer::Closed { error }
                | Answer::TakenOver { error } => {
                    tracing::debug!(bot = bot.name, error, "typing cannot be shown in this chat");
                    return std::future::pending().await;
                }
            };
            tokio::time::sleep_until(again_at.max(Instant::now() + wait)).await;
        }
    }
}
