//! What the tables `bots.*` hold once they are read, and the defaults.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::HttpBot;
use crate::config::commands::BotCommand;
use crate::config::secret::Secret;
use crate::message::Channel;

/// What happens to messages that arrive while a turn of their conversation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Burst {
    /// Each message is a turn of its own.
    Queue,
    /// Whatever waits when a turn may start becomes one turn.
    Collect,
    /// They end the running turn, and one with all of them begins.
    Interrupt,
    /// They are answered with a notice.
    Reject,
}

/// What happens to a reply when a person takes the conversation over while it is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyInFlight {
    /// It still leaves.
    Send,
    /// It is dropped; what the user said is kept.
    Suppress,
}

/// What happens to a part of which nobody can tell whether it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUncertain {
    Resend,
    Hold,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Bot {
    pub name: String,
    /// Name of a `[responders.*]` table, or of a responder registered in Rust.
    pub responder: String,
    pub burst: Burst,
    /// With [`Burst::Collect`]: a turn waits for this long a pause; zero does not wait.
    pub quiet: Duration,
    /// With [`Burst::Reject`]: the notice.
    pub reject_reply: String,
    /// The bot's share of the turns in flight when bots compete for them: 1 to 100.
    pub weight: u32,
    /// The bot's turns in flight in this process; absent, only `worker.max_turns` bounds them.
    pub max_turns: Option<usize>,
    /// What the bot's models may use on a day (UTC); absent: as much as they like.
    pub tokens_per_day: Option<u64>,
    /// What who writes after that is told.
    pub budget_reply: String,
    pub reply_in_flight: ReplyInFlight,
    pub on_uncertain: OnUncertain,
    /// Sent when a turn is dead-lettered; absent: silence.
    pub failure_reply: Option<String>,
    /// Show in the chat that the bot is typing while a turn runs; Telegram and Messenger only.
    pub typing: bool,
    /// How fast replies may leave; without meaning for web bots.
    pub limits: SendLimits,
    pub channel: BotChannel,
}

/// How fast a bot's replies may leave. What is absent is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendLimits {
    /// All chats of the bot together.
    pub bot: Option<SendLimit>,
    /// One private chat.
    pub chat: Option<SendLimit>,
    /// One group, with all its topics.
    pub group: Option<SendLimit>,
}

/// So many messages in any window of such a length, at an even pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendLimit {
    /// 1 to 10000.
    pub messages: u32,
    /// 100 ms to a day.
    pub per: Duration,
    /// Messages that may leave at once after a rest; 1 keeps to the even pace.
    pub burst: u32,
}

impl SendLimits {
    pub(in crate::config) const NONE: Self = Self { bot: None, chat: None, group: None };

    /// About 30 a second in all and 20 a minute in a group; one a second in a chat, where short bursts go through:
    /// <https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this>. The lengths of the bursts are our
    /// own reading of "short".
    pub(in crate::config) const TELEGRAM: Self = Self {
        bot: Some(SendLimit { messages: 30, per: Duration::from_secs(1), burst: 1 }),
        chat: Some(SendLimit { messages: 60, per: Duration::from_secs(60), burst: 3 }),
        group: Some(SendLimit { messages: 20, per: Duration::from_secs(60), burst: 5 }),
    };

    /// 300 texts a second for a page: <https://developers.facebook.com/docs/messenger-platform/overview/rate-limiting>. For
    /// one person Meta gives no figure.
    pub(in crate::config) const MESSENGER: Self =
        Self { bot: Some(SendLimit { messages: 300, per: Duration::from_secs(1), burst: 1 }), chat: None, group: None };
}

impl SendLimit {
    /// Between two messages at an even pace.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.per / self.messages.max(1)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum BotChannel {
    Telegram(TelegramBot),
    Messenger(MessengerBot),
    Web(WebBot),
    Http(HttpBot),
}

impl Bot {
    pub(in crate::config) const DEFAULT_REJECT_REPLY: &str =
        "I am still busy with your last message. Please send this one again when I have answered.";
    pub(in crate::config) const DEFAULT_BUDGET_REPLY: &str =
        "I have answered as much as I can today. Please write again tomorrow.";
    pub(in crate::config) const DEFAULT_WEIGHT: u32 = 1;

    /// A web bot that everybody on this machine can talk to.
    pub(in crate::config) fn development(name: &str, responder: &str) -> Self {
        let web = WebBot {
            api_keys: Vec::new(),
            origins: Vec::new(),
            conversation_ttl: WebBot::DEFAULT_CONVERSATION_TTL,
            rate_limit: None,
        };
        Self {
            name: name.to_owned(),
            responder: responder.to_owned(),
            burst: Burst::Queue,
            quiet: Duration::ZERO,
            reject_reply: Self::DEFAULT_REJECT_REPLY.to_owned(),
            weight: Self::DEFAULT_WEIGHT,
            max_turns: None,
            tokens_per_day: None,
            budget_reply: Self::DEFAULT_BUDGET_REPLY.to_owned(),
            reply_in_flight: ReplyInFlight::Send,
            on_uncertain: OnUncertain::Hold,
            failure_reply: None,
            typing: true,
            limits: SendLimits::NONE,
            channel: BotChannel::Web(web),
        }
    }

    #[must_use]
    pub const fn channel(&self) -> Channel {
        match self.channel {
            BotChannel::Telegram(_) => Channel::Telegram,
            BotChannel::Messenger(_) => Channel::Messenger,
            BotChannel::Web(_) => Channel::Web,
            BotChannel::Http(_) => Channel::Http,
        }
    }
}

/// How an answer is shown while it is being made, beside "is typing".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    Off,
    /// As a draft, which ends with the reply and vanishes without one.
    Draft,
}

/// How updates come from Telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Updates {
    /// Telegram calls us.
    Webhook,
    /// `getUpdates`, for machines that Telegram cannot reach.
    Polling,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TelegramBot {
    pub token: Secret,
    /// Always present with [`Updates::Webhook`]: `[A-Za-z0-9_-]{1,256}`.
    pub webhook_secret: Option<Secret>,
    /// Without a slash at the end.
    pub api_base: String,
    pub updates: Updates,
    /// The bot's @name without the @, for groups: absent, only replies and text mentions address it there.
    pub username: Option<String>,
    /// Beside those that every bot has.
    pub commands: Vec<BotCommand>,
    /// For callers that fetch files.
    pub api_keys: Vec<Secret>,
    /// Whether links in replies show what is behind them.
    pub link_previews: bool,
    /// How an answer is shown in private chats while it is being made.
    pub streaming: Streaming,
    /// Whether posts in channels, of which the bot is an administrator, make turns.
    pub channel_posts: bool,
    /// Whether messages to business accounts that people have connected make turns.
    pub business: bool,
}

impl TelegramBot {
    pub(in crate::config) const DEFAULT_API_BASE: &str = "https://api.telegram.org";

    /// The commands that every bot has, unless the configuration says otherwise: one begins a new history, the other shows the
    /// menu.
    pub const NEW: &str = "new";
    pub const HELP: &str = "help";

    /// Name and description of each command, in the order of the names.
    #[must_use]
    pub fn menu(&self) -> BTreeMap<&str, &str> {
        let mut menu =
            BTreeMap::from([(Self::NEW, "Begin a new conversation"), (Self::HELP, "Show what I understand")]);
        menu.extend(self.commands.iter().map(|command| (command.name.as_str(), command.description.as_str())));
        menu
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct MessengerBot {
    pub app_secret: Secret,
    pub verify_token: Secret,
    pub page_token: Secret,
    /// Digits.
    pub page_id: String,
    /// Of the app that the bot is: tells its echoes and its turns at a thread from those of others. Digits.
    pub app_id: Option<String>,
    /// Without a slash at the end.
    pub api_base: String,
    /// Graph API version, such as `v26.0`.
    pub api_version: String,
}

impl MessengerBot {
    pub(in crate::config) const DEFAULT_API_BASE: &str = "https://graph.facebook.com";
    pub(in crate::config) const DEFAULT_API_VERSION: &str = "v26.0";
}

#[derive(Debug, Clone, PartialEq)]
pub struct WebBot {
    /// Empty: everybody who reaches the port may talk (development); `check` warns unless `listen` is a loopback address.
    pub api_keys: Vec<Secret>,
    /// Browser origins (RFC 6454) that may call, such as `https://shop.example.com`.
    pub origins: Vec<String>,
    /// A device's conversation idle for longer than this is not continued by a message without `conversation_id`.
    pub conversation_ttl: Duration,
    /// Messages that each process takes from one API key, or from one device where there are no keys; `None`: as many as come.
    pub rate_limit: Option<Rate>,
}

/// So many in this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    pub per: Duration,
}

impl WebBot {
    pub(in crate::config) const DEFAULT_CONVERSATION_TTL: Duration = Duration::from_secs(86_400);
}
