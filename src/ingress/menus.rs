//! The commands in the bots' menus are those of the configuration.
//!
//! Refuses to touch the menu of a bot whose configuration names no commands: somebody may have made one by hand. Invariant: a
//! menu that is right already is not written again, so any number of processes can look.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::channel::telegram;
use crate::config::{Bot, BotChannel};
use crate::platform::Platforms;

const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A hundred commands of 300 bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Looks at the menus one after the other, and writes those that are not right; a bot that cannot be asked is left for the next
/// start, or for `turnwise telegram set-webhook`.
pub async fn offer(platforms: &Platforms, bots: &BTreeMap<String, Bot>, stop: &CancellationToken) {
    for bot in bots.values() {
        if stop.run_until_cancelled(offer_one(platforms, bot)).await.is_none() {
            return;
        }
    }
}

async fn offer_one(platforms: &Platforms, bot: &Bot) {
    let BotChannel::Telegram(settings) = &bot.channel else { return };
    if settings.commands.is_empty() {
        return;
    }
    let ask = async |call| platforms.fetch(bot, &call, CALL_TIMEOUT, ANSWER_BYTES_MAX).await;
    let wanted = telegram::menu(settings);
    let result = match ask(telegram::get_menu(settings)).await {
        Ok((200, body)) if same(&body, &wanted["commands"]) => return,
        Ok((200, _)) => ask(telegram::set_menu(settings)).await,
        other => other,
    };
    match result {
        Ok((200, _)) => tracing::info!(bot = bot.name, "the bot's menu offers the commands of the configuration"),
        Ok((status, _)) => tracing::warn!(bot = bot.name, status, "the bot's menu could not be written"),
        Err(error) => tracing::warn!(bot = bot.name, error, "the bot's menu could not be written"),
    }
}

/// Whether an answer to `getMyCommands` holds these commands, in whatever order.
fn same(body: &[u8], wanted: &Value) -> bool {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let (Some(found), Some(wanted)) = (answer["result"].as_array(), wanted.as_array()) else { return false };
    found.len() == wanted.len() && wanted.iter().all(|command| found.contains(command))
}
