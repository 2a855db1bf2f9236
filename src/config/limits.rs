//! The key `limits` of a bot: how fast its replies may leave.
//!
//! Refuses to slow down what is not the platform: a Bot API server of one's own, or a stand-in, has other limits. Invariant:
//! a bot that calls the platform's own address keeps the platform's limits unless it is told otherwise.

use std::ops::RangeInclusive;
use std::time::Duration;

use url::Url;

use super::expected::{duration, whole, word};
use super::reader::Table;
use super::{BotChannel, MessengerBot, SendLimit, SendLimits, TelegramBot};

/// Each message of a window is remembered for each chat.
const MESSAGES: RangeInclusive<u32> = 1..=10_000;

/// Shorter windows are lost in the network; longer limits are quotas, which no pause between two replies keeps.
const PER: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

const WORDS: &[(&str, Chosen)] = &[("platform", Chosen::Platform), ("none", Chosen::None)];

#[derive(Debug, Clone, Copy)]
enum Chosen {
    Platform,
    None,
}

/// Reads the key of a Telegram, Messenger or HTTP bot; `channel` is `None` after a problem.
pub(super) fn read(table: &Table<'_>, channel: Option<&BotChannel>) -> SendLimits {
    let (platform, is_official) = match channel {
        Some(BotChannel::Telegram(bot)) => {
            (SendLimits::TELEGRAM, same_host(&bot.api_base, TelegramBot::DEFAULT_API_BASE))
        }
        Some(BotChannel::Messenger(bot)) => {
            (SendLimits::MESSENGER, same_host(&bot.api_base, MessengerBot::DEFAULT_API_BASE))
        }
        Some(BotChannel::Web(_) | BotChannel::Http(_)) | None => (SendLimits::NONE, false),
    };
    let Some(value) = table.value("limits") else {
        return if is_official { platform } else { SendLimits::NONE };
    };
    if !value.is_table() {
        return match value.read(&word(WORDS)) {
            Some(Chosen::Platform) => platform,
            Some(Chosen::None) | None => SendLimits::NONE,
        };
    }
    let Some(own) = value.table() else { return SendLimits::NONE };
    let mut limits = platform;
    for (key, limit) in [("bot", &mut limits.bot), ("chat", &mut limits.chat), ("group", &mut limits.group)] {
        if let Some(written) = own.value(key).and_then(|value| value.table()).and_then(|table| one(&table)) {
            *limit = Some(written);
        }
    }
    own.finish(&[]);
    limits
}

/// `None` after a problem.
fn one(table: &Table<'_>) -> Option<SendLimit> {
    let messages = table.required("messages", &whole(MESSAGES));
    let per = table.required("per", &duration(PER, "1m"));
    let burst = table.optional("burst", &whole(MESSAGES));
    table.finish(&[]);
    let messages = messages?;
    Some(SendLimit { messages, per: per?, burst: burst.unwrap_or(1).min(messages) })
}

fn same_host(address: &str, official: &str) -> bool {
    let host = |address: &str| Url::parse(address).ok().and_then(|url| url.host_str().map(str::to_owned));
    host(address) == host(official)
}
