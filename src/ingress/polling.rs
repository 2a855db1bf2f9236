//! `updates = "polling"`: a Telegram bot's updates are fetched with `getUpdates` and go the way of a webhook's.
//!
//! Refuses to delete a webhook that is set: somebody may be receiving there. Invariant: Telegram is told that it can forget an
//! update only after the stream has acknowledged it, or said that it never will; so a crash makes updates come again, which
//! the same dedupe ids absorb, and loses none. One process polls a bot at a time; two for a moment do no harm, since each
//! publishes all that is not confirmed, in order.

use std::collections::HashMap;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Ingress, count};
use crate::channel::telegram::polling::{self, Batch, POLL_SECONDS, PollError, Update};
use crate::channel::{Stamp, Verified, telegram};
use crate::config::{Bot, BotChannel, TelegramBot, Updates};
use crate::message::{ConversationKey, Timestamp};
use crate::platform::Platforms;
use crate::stream::PublishError;
use crate::telemetry::chain;

/// Telegram's own time for an answer without updates, and some for the way.
const CALL_TIMEOUT: Duration = Duration::from_secs(POLL_SECONDS as u64 + 10);

/// A hundred updates take at most about 4 MiB.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Somebody has to do something about a webhook or a second program.
const CONFLICT_PAUSE: Duration = Duration::from_secs(5);

/// And about a token that is not right.
const UNAUTHORIZED_PAUSE: Duration = Duration::from_secs(60);

/// The bots whose updates are fetched.
pub fn polled_bots<'a>(bots: impl IntoIterator<Item = &'a Bot>) -> impl Iterator<Item = (&'a Bot, &'a TelegramBot)> {
    bots.into_iter().filter_map(|bot| match &bot.channel {
        BotChannel::Telegram(telegram) if telegram.updates == Updates::Polling => Some((bot, telegram)),
        _ => None,
    })
}

/// Fetches a bot's updates and publishes them, for ever; dropping the future is harmless at any moment.
pub async fn poll(ingress: &Ingress, platforms: &Platforms, bot: &Bot, telegram: &TelegramBot) {
    let mut offset = None;
    let mut pause = pauses(Duration::from_secs(30));
    // The last trouble that was told, so that one that lasts is told once.
    let mut told: Option<String> = None;
    loop {
        match fetch(platforms, bot, telegram, offset).await {
            Ok(batch) => {
                if told.take().is_some() {
                    tracing::info!(bot = bot.name, "updates can be fetched again");
                }
                pause.reset();
                let is_stuck = batch.updates.is_empty() && batch.unreadable > 0;
                let last = batch.updates.iter().map(|update| update.id).max();
                take(ingress, bot, telegram, batch).await;
                offset = last.map(|last| last.saturating_add(1)).or(offset);
                if is_stuck {
                    tokio::time::sleep(pause.next_backoff().unwrap_or(CONFLICT_PAUSE)).await;
                }
            }
            Err(error) => {
                let (wait, trouble) = diagnose(platforms, bot, telegram, &error, &mut pause).await;
                if told.as_ref() != Some(&trouble) {
                    tracing::warn!(bot = bot.name, trouble, "updates cannot be fetched, will be tried again");
                    told = Some(trouble);
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}

async fn fetch(
    platforms: &Platforms,
    bot: &Bot,
    telegram: &TelegramBot,
    offset: Option<i64>,
) -> Result<Batch, PollError> {
    let call = polling::get_updates(telegram, offset);
    let (status, body) = platforms.fetch(bot, &call, CALL_TIMEOUT, ANSWER_BYTES_MAX).await.map_err(PollError::Other)?;
    polling::batch(status, &body)
}

/// How long to wait, and what to tell.
async fn diagnose(
    platforms: &Platforms,
    bot: &Bot,
    telegram: &TelegramBot,
    error: &PollError,
    pause: &mut ExponentialBackoff,
) -> (Duration, String) {
    match error {
        PollError::Conflict(_) => {
            let info = polling::get_webhook_info(telegram);
            let info = platforms.fetch(bot, &info, CALL_TIMEOUT, ANSWER_BYTES_MAX).await;
            let trouble = match info.ok().and_then(|(_, body)| polling::webhook_host(&body)) {
                Some(host) => format!(
                    "a webhook at {host} is set; `turnwise telegram delete-webhook` removes it, updates = \"webhook\" uses one"
                ),
                None => format!("another program fetches this bot's updates: {error}"),
            };
            (CONFLICT_PAUSE, trouble)
        }
        PollError::Unauthorized(_) => {
            (UNAUTHORIZED_PAUSE, format!("Telegram does not know the token of bots.{}: {error}", bot.name))
        }
        PollError::TooManyRequests { delay, .. } => (*delay, error.to_string()),
        PollError::Other(_) => (pause.next_backoff().unwrap_or(CONFLICT_PAUSE), error.to_string()),
    }
}

/// Publishes a batch: the updates of a conversation one after the other, the conversations side by side. Returns when each is
/// on the stream, or can never be.
async fn take(ingress: &Ingress, bot: &Bot, telegram: &TelegramBot, batch: Batch) {
    let mut conversations: HashMap<ConversationKey, Vec<Verified>> = HashMap::new();
    for update in batch.updates {
        if let Some(verified) = read(bot, telegram, &update) {
            let verified = file(ingress, verified).await;
            conversations.entry(verified.envelope().key.clone()).or_default().push(verified);
        }
    }
    if batch.unreadable > 0 {
        tracing::warn!(bot = bot.name, updates = batch.unreadable, "updates without an id were left where they are");
        count(bot.channel(), &bot.name, "malformed");
    }
    let in_order = async |updates: Vec<Verified>| {
        for verified in updates {
            publish(ingress, bot, &verified).await;
        }
    };
    join_all(conversations.into_values().map(in_order)).await;
}

fn read(bot: &Bot, telegram: &TelegramBot, update: &Update) -> Option<Verified> {
    let mut stamp = Stamp { now: Timestamp::now(), new_id: &mut Uuid::now_v7 };
    telegram::receive_polled(bot, telegram, &update.raw, &mut stamp)
        .inspect_err(|refusal| {
            tracing::error!(bot = bot.name, update_id = update.id, refusal = %refusal, "an update was dropped");
            count(bot.channel(), &bot.name, "malformed");
        })
        .ok()
}

/// Files an event, for as long as it takes to record a move: behind it in the batch can be messages that depend on it.
async fn file(ingress: &Ingress, verified: Verified) -> Verified {
    let mut pause = pauses(Duration::from_secs(5));
    loop {
        match ingress.file(verified.clone()).await {
            Ok(filed) => return filed,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the move of a chat is not recorded yet");
                tokio::time::sleep(pause.next_backoff().unwrap_or(CONFLICT_PAUSE)).await;
            }
        }
    }
}

async fn publish(ingress: &Ingress, bot: &Bot, verified: &Verified) {
    let mut pause = pauses(Duration::from_secs(5));
    loop {
        match ingress.make_durable(verified).await {
            Ok(_) => return,
            // It can never be taken, and waiting for it would hold up everybody else.
            Err(error @ (PublishError::TooLarge | PublishError::Encode(_))) => {
                let dedupe_id = &verified.envelope().dedupe_id;
                tracing::error!(bot = bot.name, dedupe_id, error = %chain(&error), "an update was dropped");
                return;
            }
            Err(PublishError::NotAcknowledged(_)) => {
                tokio::time::sleep(pause.next_backoff().unwrap_or(CONFLICT_PAUSE)).await;
            }
        }
    }
}

/// Growing pauses, without an end.
fn pauses(longest: Duration) -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(200))
        .with_multiplier(2.0)
        .with_max_interval(longest)
        .with_max_elapsed_time(None)
        .build()
}
