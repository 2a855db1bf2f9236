//! What the tables of the configuration hold once they are read, and the defaults.
//!
//! Refuses to read anything: that is the neighbours' work. Invariant: a default is written here and nowhere else.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HttpBot;
use super::commands::BotCommand;
use super::secret::Secret;
use crate::message::Channel;

#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    pub listen: SocketAddr,
    /// Where platforms reach us, without a slash at the end.
    pub public_url: Option<String>,
    /// 1024 to 67108864.
    pub max_body_bytes: usize,
    /// Connections of clients that are served at once, 8 to 1000000; those beyond are told so and closed.
    pub max_connections: usize,
    /// How long running turns and requests may take to end after the signal to stop.
    pub shutdown_grace: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8_080)),
            public_url: None,
            max_body_bytes: 1_048_576,
            // Those of 10,000 callers that wait for answers, and half as many again for everybody else.
            max_connections: 16_384,
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Every publish is on the disk before it is acknowledged.
    Always,
    /// Every two minutes: faster, and a power loss takes what came since.
    Interval,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Nats {
    pub server: NatsServer,
    pub auth: NatsAuth,
    pub tls: Option<NatsTls>,
    /// Where answers and deliveries come to, so that the server can keep other users of the account from listening.
    pub inbox_prefix: String,
    /// 1, 3 or 5.
    pub replicas: usize,
    /// 1 to 1024.
    pub partitions: u16,
    /// How long the streams keep a message, so how far back replay can reach.
    pub max_age: Duration,
    /// How long the streams recognise a message that was published before; at most `max_age`.
    pub duplicate_window: Duration,
}

impl Nats {
    pub(super) const DEFAULT_INBOX_PREFIX: &str = "_INBOX";
    pub(super) const DEFAULT_REPLICAS: usize = 1;
    pub(super) const DEFAULT_PARTITIONS: u16 = 64;
    pub(super) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
    pub(super) const DEFAULT_DUPLICATE_WINDOW: Duration = Duration::from_secs(600);

    /// A server with everything else at its default.
    pub(super) fn new(server: NatsServer) -> Self {
        Self {
            inbox_prefix: Self::DEFAULT_INBOX_PREFIX.to_owned(),
            server,
            auth: NatsAuth::None,
            tls: None,
            replicas: Self::DEFAULT_REPLICAS,
            partitions: Self::DEFAULT_PARTITIONS,
            max_age: Self::DEFAULT_MAX_AGE,
            duplicate_window: Self::DEFAULT_DUPLICATE_WINDOW,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum NatsServer {
    /// Connect to these addresses.
    Urls(Vec<String>),
    /// Run a nats-server child on a free loopback port.
    Managed {
        sync: Sync,
        /// The folder of its data: beside the database if that is a file, else beside the configuration.
        data: PathBuf,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum NatsAuth {
    None,
    Token(Secret),
    Password {
        user: String,
        password: Secret,
    },
    /// The contents of a `.creds` file.
    Credentials(Secret),
}

/// TLS is required, also towards addresses that do not say so.
#[derive(Debug, Clone, PartialEq)]
pub struct NatsTls {
    /// Absent: the certificates that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate; present exactly when `key` is.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// `sqlite://PATH` with an absolute path, in which `%` and `?` are written `%25` and `%3F`, or `postgres://...`, which may
    /// hold a password.
    pub url: Secret,
    pub max_connections: u32,
}

impl Database {
    pub(super) const DEFAULT_MAX_CONNECTIONS: u32 = 16;

    /// The address of an SQLite file; sqlx ends the path at a `?` and then undoes the escapes.
    pub(super) fn sqlite_url(file: &Path) -> Secret {
        let path = file.to_string_lossy().replace('%', "%25").replace('?', "%3F");
        Secret::new(format!("sqlite://{path}"))
    }

    /// The file, if the database is one.
    #[must_use]
    pub fn sqlite_file(&self) -> Option<PathBuf> {
        let path = self.url.expose().strip_prefix("sqlite://")?;
        Some(PathBuf::from(path.replace("%3F", "?").replace("%25", "%")))
    }

    /// Where a managed NATS server keeps its data: beside the file, or in `folder` when the database is a server.
    pub(super) fn nats_data(&self, folder: &Path, namespace: &str) -> PathBuf {
        let file = self.sqlite_file().unwrap_or_else(|| folder.join(namespace));
        let mut data = file.into_os_string();
        data.push("-nats");
        PathBuf::from(data)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Turns in flight in this process: 1 to 100000.
    pub max_turns: usize,
    /// Messages of one conversation kept in memory: 1 to 10000.
    pub lane_backlog: usize,
    /// How often a turn is tried before it is dead-lettered: 1 to 100.
    pub max_attempts: u32,
    /// For one attempt.
    pub turn_timeout: Duration,
}

impl Default for Worker {
    fn default() -> Self {
        Self { max_turns: 4_096, lane_backlog: 64, max_attempts: 4, turn_timeout: Duration::from_secs(120) }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Without a slash at the end; absent: traces are not exported.
    pub otlp_endpoint: Option<String>,
    pub otlp_protocol: OtlpProtocol,
    pub service_name: String,
    /// Share of traces that are kept: 0 to 1.
    pub sample_ratio: f64,
    /// Whether the text of messages is put on spans.
    pub record_content: bool,
}

/// How traces travel to `otlp_endpoint`: <https://opentelemetry.io/docs/specs/otlp/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP; collectors listen on port 4318.
    Http,
    /// Collectors listen on port 4317.
    Grpc,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Http,
            service_name: "turnwise".to_owned(),
            sample_ratio: 1.0,
            record_content: false,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Console {
    pub token: Option<Secret>,
}

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
    pub(super) const NONE: Self = Self { bot: None, chat: None, group: None };

    /// About 30 a second in all and 20 a minute in a group; one a second in a chat, where short bursts go through:
    /// <https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this>. The lengths of the bursts are our
    /// own reading of "short".
    pub(super) const TELEGRAM: Self = Self {
        bot: Some(SendLimit { messages: 30, per: Duration::from_secs(1), burst: 1 }),
        chat: Some(SendLimit { messages: 60, per: Duration::from_secs(60), burst: 3 }),
        group: Some(SendLimit { messages: 20, per: Duration::from_secs(60), burst: 5 }),
    };

    /// 300 texts a second for a page: <https://developers.facebook.com/docs/messenger-platform/overview/rate-limiting>. For
    /// one person Meta gives no figure.
    pub(super) const MESSENGER: Self =
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
    pub(super) const DEFAULT_REJECT_REPLY: &str =
        "I am still busy with your last message. Please send this one again when I have answered.";
    pub(super) const DEFAULT_BUDGET_REPLY: &str =
        "I have answered as much as I can today. Please write again tomorrow.";
    pub(super) const DEFAULT_WEIGHT: u32 = 1;

    /// A web bot that everybody on this machine can talk to.
    pub(super) fn development(name: &str, responder: &str) -> Self {
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
    /// Whether posts in channels, of which the bot is an administrator, make turns.
    pub channel_posts: bool,
    /// Whether messages to business accounts that people have connected make turns.
    pub business: bool,
}

impl TelegramBot {
    pub(super) const DEFAULT_API_BASE: &str = "https://api.telegram.org";

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
    pub(super) const DEFAULT_API_BASE: &str = "https://graph.facebook.com";
    pub(super) const DEFAULT_API_VERSION: &str = "v26.0";
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
    pub(super) const DEFAULT_CONVERSATION_TTL: Duration = Duration::from_secs(86_400);
}

#[derive(Debug, Clone, PartialEq)]
pub struct ResponderConfig {
    pub kind: ResponderKind,
    /// For one answer.
    pub timeout: Duration,
    /// Answers being made at once in this process.
    pub max_concurrency: usize,
    /// The newest messages of the conversation that are sent along, at most.
    pub history_messages: u32,
    /// Tokens of history that are sent along, at most.
    pub history_tokens: u32,
    /// What the model may call: names of `[tools.*]` tables, or of tools registered in Rust.
    pub tools: Vec<String>,
    /// Rounds of tool calls within one turn, before the model has to answer: 1 to 64.
    pub max_tool_rounds: u32,
    /// Name of the `[workflows.*]` table that leads the conversation and asks this responder where it says so.
    pub workflow: Option<String>,
}

impl ResponderConfig {
    /// A responder with everything else at its default.
    #[must_use]
    pub const fn new(kind: ResponderKind) -> Self {
        Self {
            kind,
            timeout: Duration::from_secs(60),
            max_concurrency: 256,
            history_messages: 40,
            history_tokens: 8_000,
            tools: Vec::new(),
            max_tool_rounds: 8,
            workflow: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ResponderKind {
    Echo,
    /// `file`: patterns and answers, see `responder/script.rs`.
    Script {
        file: PathBuf,
    },
    Model(ModelConfig),
    Http(HttpService),
}

/// A service that answers turns over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpService {
    pub url: String,
    /// Sent with every call, by lower-case name; the bearer token is one of them.
    pub headers: BTreeMap<String, Secret>,
}

/// The API that a model is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelApi {
    /// OpenAI's Chat Completions, which most servers speak.
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
}

impl ModelApi {
    /// As `kind` in the configuration, and as `gen_ai.provider.name` on spans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub api: ModelApi,
    /// Without a slash at the end.
    pub base_url: String,
    pub api_key: Option<Secret>,
    pub model: String,
    pub system_prompt: Option<String>,
    /// 0 to 2; Anthropic's to 1.
    pub temperature: Option<f64>,
    pub max_output_tokens: Option<u32>,
}

impl ModelConfig {
    pub(super) const ANTHROPIC_BASE_URL: &str = "https://api.anthropic.com";
}

/// What a call changes in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effects {
    /// Nothing.
    ReadOnly,
    /// The same, however often it is made with the same arguments.
    Idempotent,
    /// Something, each time; unless its server keeps to the `Idempotency-Key`.
    Destructive,
}

impl Effects {
    /// What becomes of a call of unknown outcome when nothing else is said: made again where that is safe.
    #[must_use]
    pub const fn on_unknown(self) -> OnUnknown {
        match self {
            Self::ReadOnly | Self::Idempotent => OnUnknown::Retry,
            Self::Destructive => OnUnknown::Fail,
        }
    }
}

/// What becomes of a call of which nobody knows whether it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// It is made again, under the same idempotency key.
    Retry,
    /// The model and the user are told that nobody knows.
    Fail,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ToolConfig {
    pub kind: ToolKind,
    /// For one call.
    pub timeout: Duration,
    /// Whether a person is asked before each call.
    pub confirm: bool,
    /// Absent: what an MCP server says of its tool, else [`Effects::Destructive`].
    pub effects: Option<Effects>,
    /// Absent: as the effects have it.
    pub on_unknown: Option<OnUnknown>,
    /// Whether a call may be abandoned in the middle. Absent: if it is read-only.
    pub cancel_safe: Option<bool>,
}

impl ToolConfig {
    pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// A tool with everything else at its default.
    #[must_use]
    pub const fn new(kind: ToolKind) -> Self {
        Self {
            kind,
            timeout: Self::DEFAULT_TIMEOUT,
            confirm: false,
            effects: None,
            on_unknown: None,
            cancel_safe: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ToolKind {
    /// One tool: the arguments are posted as JSON.
    Http(HttpTool),
    /// As many tools as the server offers.
    Mcp(McpServer),
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpTool {
    pub url: String,
    /// By lower-case name; any of them may be a password.
    pub headers: BTreeMap<String, Secret>,
    pub description: String,
    /// JSON Schema of an object; it compiles.
    pub parameters: serde_json::Value,
}

impl HttpTool {
    /// The schema of a tool that takes no arguments.
    #[must_use]
    pub fn no_parameters() -> serde_json::Value {
        serde_json::json!({ "type": "object", "properties": {}, "additionalProperties": false })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct McpServer {
    pub transport: McpTransport,
    /// The server's tools that are offered, by its own names for them; empty: all.
    pub only: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum McpTransport {
    /// Streamable HTTP.
    Url {
        url: String,
        /// By lower-case name; any of them may be a password.
        headers: BTreeMap<String, Secret>,
    },
    /// A child process that is spoken to over its standard input and output.
    Command {
        program: PathBuf,
        arguments: Vec<Argument>,
        /// All that the child has of an environment, but for `PATH`.
        env: BTreeMap<String, Secret>,
        /// The child's working directory.
        folder: PathBuf,
    },
}

/// One word of a command, which may hold a password.
#[derive(Debug, Clone, PartialEq)]
pub struct Argument {
    pub text: Secret,
    /// Whether it is kept in the environment or a file, as a secret is.
    pub kept_elsewhere: bool,
}
