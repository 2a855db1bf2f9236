//! The tables `[bots.NAME]`: one bot on one channel, answered by one responder.
//!
//! Refuses two bots that would be the same one on the platform, and a key that belongs to another channel. Invariant: every
//! bot read here names a responder that exists.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::expected::{
    Expected, NAME_ALPHABET, base_url, duration, flag, in_name_alphabet, is_name, name, origin, rate, text, whole, word,
};
use super::problem::{nearest, quoted};
use super::reader::{Table, Value};
use super::secret::{self, Secret};
use super::sections::TURNS;
use super::{
    Bot, BotChannel, Burst, MessengerBot, OnUncertain, ReplyInFlight, SendLimits, Streaming, TelegramBot, Updates,
    WebBot,
};
use super::{commands, http_bot, limits};
use crate::message::Channel;

/// A name is a token of every subject; JetStream's subjects should stay below 256 bytes together with the peer's.
pub(super) const NAME_CHARS_MAX: usize = 64;

/// One part on every channel: Messenger's limit for a text, the smallest.
/// <https://developers.facebook.com/docs/messenger-platform/reference/send-api>
const REPLY_CHARS_MAX: usize = 2_000;

/// Who waits for longer than a minute has gone away.
const QUIET: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);

/// Shares finer than a hundredth do not show.
const WEIGHT: RangeInclusive<u32> = 1..=100;

const TOKENS_PER_DAY: RangeInclusive<u64> = 1..=1_000_000_000_000;

const BURSTS: &[(&str, Burst)] =
    &[("queue", Burst::Queue), ("collect", Burst::Collect), ("interrupt", Burst::Interrupt), ("reject", Burst::Reject)];

/// Bot names on Telegram end at 32 characters: <https://core.telegram.org/bots/features#creating-a-new-bot>.
const USERNAME_CHARS_MAX: usize = 32;

/// Ids of pages and apps are 64-bit numbers, so at most 20 digits.
const PAGE_ID_DIGITS_MAX: usize = 20;

/// Below a minute every pause for thought opens a new conversation; a year is as good as for ever.
const CONVERSATION_TTL: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(365 * 86_400);

/// A process takes fewer than this from all callers together.
const RATE: RangeInclusive<u32> = 1..=1_000_000;

/// Each key is compared with every request's.
const API_KEYS_MAX: usize = 64;

/// Each origin is compared with every browser's request.
const ORIGINS_MAX: usize = 256;

const CHANNELS: &[(&str, Channel)] = &[
    ("telegram", Channel::Telegram),
    ("messenger", Channel::Messenger),
    ("web", Channel::Web),
    ("http", Channel::Http),
];

/// Every key that not all channels have, and the channels that have it.
const CHANNEL_KEYS: &[(&str, &[Channel])] = &[
    ("typing", &[Channel::Telegram, Channel::Messenger]),
    ("limits", &[Channel::Telegram, Channel::Messenger, Channel::Http]),
    ("token", &[Channel::Telegram]),
    ("webhook_secret", &[Channel::Telegram]),
    ("updates", &[Channel::Telegram]),
    ("username", &[Channel::Telegram]),
    ("commands", &[Channel::Telegram]),
    ("link_previews", &[Channel::Telegram]),
    ("streaming", &[Channel::Telegram]),
    ("channel_posts", &[Channel::Telegram]),
    ("business", &[Channel::Telegram]),
    ("api_base", &[Channel::Telegram, Channel::Messenger]),
    ("app_secret", &[Channel::Messenger]),
    ("verify_token", &[Channel::Messenger]),
    ("page_token", &[Channel::Messenger]),
    ("page_id", &[Channel::Messenger]),
    ("app_id", &[Channel::Messenger]),
    ("api_version", &[Channel::Messenger]),
    ("api_keys", &[Channel::Telegram, Channel::Web]),
    ("origins", &[Channel::Web]),
    ("conversation_ttl", &[Channel::Web]),
    ("rate_limit", &[Channel::Web]),
    ("secrets", &[Channel::Http]),
    ("callback_url", &[Channel::Http]),
    ("callback_timeout", &[Channel::Http]),
    ("allow_private", &[Channel::Http]),
];

/// Reads every bot; `responders` are the names that exist, whether or not their tables are right.
pub(super) fn read(table: &Table<'_>, responders: &[&str]) -> BTreeMap<String, Bot> {
    let mut bots = BTreeMap::new();
    let mut accounts = Accounts::default();
    let named = table.named();
    if named.is_empty() {
        table.problem("names no bot", "add a table [bots.NAME] with channel and responder");
    }
    for (name, value) in named {
        if let Err(wrong) = is_name(name, in_name_alphabet, NAME_CHARS_MAX) {
            value.problem(
                format!("the name {wrong}"),
                format!("use 1 to {NAME_CHARS_MAX} characters of {NAME_ALPHABET}"),
            );
        }
        let Some(table) = value.table() else { continue };
        if let Some(bot) = bot(name, &table, responders, &mut accounts) {
            bots.insert(name.to_owned(), bot);
        }
    }
    bots
}

fn bot(name: &str, table: &Table<'_>, responders: &[&str], accounts: &mut Accounts) -> Option<Bot> {
    let channel = table.required("channel", &word(CHANNELS));
    let responder = responder(table, responders);
    let burst = table.value("burst").map_or(Some(Burst::Queue), |burst| burst.read(&word(BURSTS)));
    let quiet = quiet(table, burst);
    let reject_reply = reject_reply(table, burst);
    let weight = table.optional("weight", &whole(WEIGHT));
    let max_turns = table.optional("max_turns", &whole(TURNS));
    let tokens_per_day = table.optional("tokens_per_day", &whole(TOKENS_PER_DAY));
    let budget_reply = table.optional("budget_reply", &text(REPLY_CHARS_MAX));
    let reply_in_flight = table
        .optional("reply_in_flight", &word(&[("send", ReplyInFlight::Send), ("suppress", ReplyInFlight::Suppress)]));
    let on_uncertain =
        table.optional("on_uncertain", &word(&[("resend", OnUncertain::Resend), ("hold", OnUncertain::Hold)]));
    let failure_reply = table.optional("failure_reply", &text(REPLY_CHARS_MAX));

    let typing = match channel {
        Some(Channel::Telegram | Channel::Messenger) => table.optional("typing", &flag()),
        Some(Channel::Web | Channel::Http) | None => None,
    };

    let settings = match channel {
        Some(Channel::Telegram) => telegram(name, table, accounts).map(BotChannel::Telegram),
        Some(Channel::Messenger) => messenger(name, table, accounts).map(BotChannel::Messenger),
        Some(Channel::Web) => Some(BotChannel::Web(web(table))),
        Some(Channel::Http) => http_bot::read(table).map(BotChannel::Http),
        None => {
            table.ignore(CHANNEL_KEYS.iter().map(|(key, _)| *key));
            None
        }
    };
    let limits = match channel {
        Some(Channel::Telegram | Channel::Messenger | Channel::Http) => limits::read(table, settings.as_ref()),
        Some(Channel::Web) | None => SendLimits::NONE,
    };
    table.finish(&channel.map(strangers).unwrap_or_default());
    Some(Bot {
        name: name.to_owned(),
        responder: responder?,
        burst: burst.unwrap_or(Burst::Queue),
        quiet,
        reject_reply: reject_reply.unwrap_or_else(|| Bot::DEFAULT_REJECT_REPLY.to_owned()),
        weight: weight.unwrap_or(Bot::DEFAULT_WEIGHT),
        max_turns,
        tokens_per_day,
        budget_reply: budget_reply.unwrap_or_else(|| Bot::DEFAULT_BUDGET_REPLY.to_owned()),
        reply_in_flight: reply_in_flight.unwrap_or(ReplyInFlight::Send),
        on_uncertain: on_uncertain.unwrap_or(match channel {
            // Its receivers know a delivery that comes again by its id.
            Some(Channel::Http) => OnUncertain::Resend,
            _ => OnUncertain::Hold,
        }),
        failure_reply,
        typing: typing.unwrap_or(true),
        limits,
        channel: settings?,
    })
}

/// A pause to wait for belongs to `burst = "collect"`. The policy is `None` after a problem.
fn quiet(table: &Table<'_>, burst: Option<Burst>) -> Duration {
    let quiet = table.optional("quiet", &duration(QUIET, "2s")).unwrap_or(Duration::ZERO);
    if burst.is_some_and(|burst| burst != Burst::Collect) && !quiet.is_zero() {
        without_effect(table, "quiet", "collect");
    }
    quiet
}

fn reject_reply(table: &Table<'_>, burst: Option<Burst>) -> Option<String> {
    let reply = table.optional("reject_reply", &text(REPLY_CHARS_MAX));
    if burst.is_some_and(|burst| burst != Burst::Reject) && reply.is_some() {
        without_effect(table, "reject_reply", "reject");
    }
    reply
}

fn without_effect(table: &Table<'_>, key: &'static str, burst: &str) {
    if let Some(value) = table.value(key) {
        value.problem(format!("has an effect only with burst = \"{burst}\""), "set that, or remove it");
    }
}

fn responder(table: &Table<'_>, responders: &[&str]) -> Option<String> {
    let any = Expected::text("write the name of a responder", |text| Ok(text.to_owned()));
    let name = table.required("responder", &any)?;
    if responders.contains(&name.as_str()) {
        return Some(name);
    }
    let right = match nearest(&name, responders.iter().copied()) {
        _ if responders.is_empty() => "add a table [responders.NAME]".to_owned(),
        Some(meant) => format!("did you mean \"{meant}\"? Responders here: {}", responders.join(", ")),
        None => format!("responders here: {}", responders.join(", ")),
    };
    table.value("responder")?.problem(format!("there is no responder {}", quoted(&name)), right);
    None
}

fn telegram(name: &str, table: &Table<'_>, accounts: &mut Accounts) -> Option<TelegramBot> {
    let token = table.required_secret("token", &secret::TELEGRAM_TOKEN);
    let updates = table.optional("updates", &word(&[("webhook", Updates::Webhook), ("polling", Updates::Polling)]));
    let updates = updates.unwrap_or(Updates::Webhook);
    // A secret may stay in the file while a bot is polled; nothing comes that could have it.
    let is_secret_needed = updates == Updates::Webhook || table.value("webhook_secret").is_some();
    let webhook_secret = is_secret_needed.then(|| table.required_secret("webhook_secret", &secret::WEBHOOK_SECRET));
    let api_base = table.optional("api_base", &base_url(TelegramBot::DEFAULT_API_BASE));
    let username = table.optional("username", &username());
    let commands = commands::read(table);
    let keys = table.value("api_keys").and_then(|keys| api_keys(&keys, "nobody else"));
    let allowed = |key| table.optional(key, &flag()).unwrap_or(false);
    let (link_previews, channel_posts, business) =
        (allowed("link_previews"), allowed("channel_posts"), allowed("business"));

    let streaming = table.optional("streaming", &word(&[("off", Streaming::Off), ("draft", Streaming::Draft)]));

    let token = token?;
    if let Some(value) = table.value("token") {
        // The digits before the colon are the bot itself; the rest changes when the token is revoked.
        let id = token.expose().split(':').next().unwrap_or_default();
        accounts.claim(Channel::Telegram, id, name, &value);
    }
    Some(TelegramBot {
        token,
        webhook_secret: match webhook_secret {
            Some(secret) => Some(secret?),
            None => None,
        },
        api_base: api_base.unwrap_or_else(|| TelegramBot::DEFAULT_API_BASE.to_owned()),
        updates,
        username,
        commands,
        api_keys: keys.unwrap_or_default(),
        link_previews,
        streaming: streaming.unwrap_or(Streaming::Off),
        channel_posts,
        business,
    })
}

fn username() -> Expected<String> {
    let belongs = |character: char| character.is_ascii_alphanumeric() || character == '_';
    name("A-Z a-z 0-9 _, without the @", belongs, USERNAME_CHARS_MAX)
}

fn messenger(name: &str, table: &Table<'_>, accounts: &mut Accounts) -> Option<MessengerBot> {
    let app_secret = table.required_secret("app_secret", &secret::ANY);
    let verify_token = table.required_secret("verify_token", &secret::ANY);
    let page_token = table.required_secret("page_token", &secret::ANY);
    let id = || self::name("0-9", |digit| digit.is_ascii_digit(), PAGE_ID_DIGITS_MAX);
    let page_id = table.required("page_id", &id());
    let app_id = table.optional("app_id", &id());
    let api_base = table.optional("api_base", &base_url(MessengerBot::DEFAULT_API_BASE));
    let api_version = table.optional("api_version", &api_version());

    if let (Some(page_id), Some(value)) = (&page_id, table.value("page_id")) {
        accounts.claim(Channel::Messenger, page_id, name, &value);
    }
    Some(MessengerBot {
        app_secret: app_secret?,
        verify_token: verify_token?,
        page_token: page_token?,
        page_id: page_id?,
        app_id,
        api_base: api_base.unwrap_or_else(|| MessengerBot::DEFAULT_API_BASE.to_owned()),
        api_version: api_version.unwrap_or_else(|| MessengerBot::DEFAULT_API_VERSION.to_owned()),
    })
}

fn api_version() -> Expected<String> {
    let right = format!("write a Graph API version such as \"{}\"", MessengerBot::DEFAULT_API_VERSION);
    Expected::text(right, |text| {
        let digits = |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        match text.strip_prefix('v').and_then(|number| number.split_once('.')) {
            Some((major, minor)) if digits(major) && digits(minor) => Ok(text.to_owned()),
            _ => Err(format!("{} is not a version", quoted(text))),
        }
    })
}

fn web(table: &Table<'_>) -> WebBot {
    let keys = table.value("api_keys").and_then(|keys| api_keys(&keys, "everybody who reaches the port"));
    WebBot {
        api_keys: keys.unwrap_or_default(),
        origins: table.value("origins").and_then(|origins| self::origins(&origins)).unwrap_or_default(),
        conversation_ttl: table
            .optional("conversation_ttl", &duration(CONVERSATION_TTL, "24h"))
            .unwrap_or(WebBot::DEFAULT_CONVERSATION_TTL),
        rate_limit: table.optional("rate_limit", &rate(RATE)),
    }
}

/// An empty list is refused: it reads as "nobody", and would mean "everybody".
fn api_keys(value: &Value<'_>, without: &str) -> Option<Vec<Secret>> {
    let keys = value.items("write a list such as [{ env = \"NAME\" }]")?;
    if keys.is_empty() || keys.len() > API_KEYS_MAX {
        let right = format!("write 1 to {API_KEYS_MAX} keys, or remove it to let in {without}");
        value.problem(format!("lists {} keys", keys.len()), right);
    }
    Some(keys.iter().filter_map(|key| key.secret(&secret::ANY)).collect())
}

fn origins(value: &Value<'_>) -> Option<Vec<String>> {
    let origins = value.list(&origin())?;
    if origins.len() > ORIGINS_MAX {
        value.problem(format!("lists {} origins", origins.len()), format!("write at most {ORIGINS_MAX}"));
    }
    Some(origins)
}

/// The keys of other channels, and whose they are.
fn strangers(channel: Channel) -> Vec<(&'static str, String)> {
    let foreign = CHANNEL_KEYS.iter().filter(|(_, homes)| !homes.contains(&channel));
    foreign
        .map(|(key, homes)| {
            let article = if channel == Channel::Http { "an" } else { "a" };
            (*key, format!("belongs to {} bots; this is {article} {channel} bot", joined(homes)))
        })
        .collect()
}

/// `telegram, messenger and http`.
fn joined(channels: &[Channel]) -> String {
    let names: Vec<&str> = channels.iter().map(|channel| channel.as_str()).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Who a bot is on its platform. Two bots of one account would take each other's messages.
#[derive(Default)]
struct Accounts {
    owners: BTreeMap<(Channel, String), String>,
}

impl Accounts {
    fn claim(&mut self, channel: Channel, id: &str, bot: &str, value: &Value<'_>) {
        if let Some(owner) = self.owners.get(&(channel, id.to_owned())) {
            value
                .problem(format!("is the same account as that of bots.{owner}"), "give each bot an account of its own");
        } else {
            self.owners.insert((channel, id.to_owned()), bot.to_owned());
        }
    }
}
