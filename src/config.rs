//! One [`Config`]: every setting, default and limit of `turnwise.toml`, and every problem found in one reading.
//!
//! Refuses to touch the network, the database or any file but the configuration, its secrets and its system prompts.
//! Invariants: a [`Secret`] shows as `[redacted]` in every output; a [`Config`] that exists is one that can be run, up to
//! what only the outside world knows; its paths do not depend on the working directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

mod bots;
mod commands;
mod duration;
mod expected;
mod http_bot;
mod limits;
mod nats;
mod problem;
mod reader;
mod responders;
mod secret;
mod sections;
mod settings;
mod tools;
mod workflows;

pub use commands::BotCommand;
pub(crate) use duration::parse as parse_duration;
pub use http_bot::{HttpBot, is_public_address};
pub use problem::{ConfigError, Problem, Problems};
pub use secret::Secret;
pub(crate) use sections::TRACE_ID_PLACE;
pub use settings::{
    Argument, Bot, BotChannel, Burst, Console, Database, Effects, Http, HttpService, HttpTool, McpServer, McpTransport,
    MessengerBot, ModelApi, ModelConfig, Nats, NatsAuth, NatsServer, NatsTls, OnUncertain, OnUnknown, OtlpProtocol,
    Rate, ReplyInFlight, ResponderConfig, ResponderKind, SendLimit, SendLimits, Streaming, Sync, TelegramBot,
    Telemetry, ToolConfig, ToolKind, Updates, WebBot, Worker,
};
pub(crate) use tools::compile_schema;
pub use workflows::{Accepts, Ask, Check, Condition, Node, Pattern, Rule, Say, Scalar, Subject, Test, Workflow};

use expected::{NAME_ALPHABET, in_name_alphabet, name};
use reader::Reading;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Prefix of streams, subjects and buckets: `[A-Za-z0-9_-]{1,32}`.
    pub namespace: String,
    pub http: Http,
    pub nats: Nats,
    pub database: Database,
    pub worker: Worker,
    pub telemetry: Telemetry,
    pub console: Console,
    pub bots: BTreeMap<String, Bot>,
    pub responders: BTreeMap<String, ResponderConfig>,
    pub tools: BTreeMap<String, ToolConfig>,
    pub workflows: BTreeMap<String, Workflow>,
}

/// JetStream's names of streams and buckets carry it together with a suffix of ours, and subjects with a peer's name.
const NAMESPACE_CHARS_MAX: usize = 32;

const DEFAULT_NAMESPACE: &str = "turnwise";

/// A bot takes some twenty lines, so this is a thousand of them; what is larger is not a configuration.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

impl Config {
    /// Reads a file with the secrets and prompts it names, for a program without responders and tools of its own in Rust.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`] when the file cannot be read, else every [`Problem`] of it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        ConfigReader::default().load(path)
    }

    /// Like [`Config::load`], with the text of the file and the environment given. `file` says where relative paths count
    /// from, and is named in problems; it is not read.
    ///
    /// # Errors
    ///
    /// Every [`Problem`] of the text.
    pub fn parse(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        ConfigReader::default().parse(text, file, env)
    }

    /// What `turnwise dev` runs with: SQLite and a managed NATS server below `data`, one open web bot `web` that answers from
    /// `script`.
    #[must_use]
    pub fn development(data: &Path, listen: SocketAddr, script: PathBuf) -> Self {
        let data = reader::absolute(data);
        let url = Database::sqlite_url(&data.join("turnwise.db"));
        let database = Database { url, max_connections: Database::DEFAULT_MAX_CONNECTIONS };
        let nats_data = database.nats_data(&data, DEFAULT_NAMESPACE);
        Self {
            namespace: DEFAULT_NAMESPACE.to_owned(),
            http: Http { listen, ..Http::default() },
            nats: Nats::new(NatsServer::Managed { sync: Sync::Always, data: nats_data }),
            database,
            worker: Worker::default(),
            telemetry: Telemetry::default(),
            console: Console { is_open: listen.ip().is_loopback(), ..Console::default() },
            bots: BTreeMap::from([("web".to_owned(), Bot::development("web", "demo"))]),
            responders: BTreeMap::from([(
                "demo".to_owned(),
                ResponderConfig::new(ResponderKind::Script { file: script }),
            )]),
            tools: BTreeMap::new(),
            workflows: BTreeMap::new(),
        }
    }

    /// What is allowed and may still surprise, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if matches!(self.nats.server, NatsServer::Managed { sync: Sync::Interval, .. }) {
            warnings.push("nats.sync: \"interval\" can lose two minutes of accepted messages on power loss".to_owned());
        }
        if self.telemetry.record_content && self.telemetry.otlp_endpoint.is_some() {
            warnings.push("telemetry.record_content: the text of messages leaves with the traces".to_owned());
        }
        for (name, bot) in &self.bots {
            let open = matches!(&bot.channel, BotChannel::Web(web) if web.api_keys.is_empty());
            if open && !self.http.listen.ip().is_loopback() {
                let listen = self.http.listen;
                warnings
                    .push(format!("bots.{name}.api_keys: without keys, everybody who reaches {listen} can talk to it"));
            }
        }
        for (name, responder) in &self.responders {
            if responder.timeout > self.worker.turn_timeout {
                warnings
                    .push(format!("responders.{name}.timeout: worker.turn_timeout is shorter and ends the turn first"));
            }
        }
        for (name, tool) in &self.tools {
            if tool.timeout > self.worker.turn_timeout {
                warnings.push(format!("tools.{name}.timeout: worker.turn_timeout is shorter and ends the turn first"));
            }
        }
        warnings
    }
}

/// Reads configurations for a program that has responders or tools of its own, written in Rust.
#[derive(Debug, Clone, Default)]
pub struct ConfigReader {
    registered_responders: Vec<String>,
    registered_tools: Vec<String>,
}

impl ConfigReader {
    /// Names that bots may give as their `responder` without a `[responders.*]` table.
    #[must_use]
    pub fn registered_responders(mut self, names: &[String]) -> Self {
        names.clone_into(&mut self.registered_responders);
        self
    }

    /// Names that responders may list as `tools` without a `[tools.*]` table.
    #[must_use]
    pub fn registered_tools(mut self, names: &[String]) -> Self {
        names.clone_into(&mut self.registered_tools);
        self
    }

    /// See [`Config::load`].
    ///
    /// # Errors
    ///
    /// Those of [`Config::load`].
    pub fn load(&self, path: &Path) -> Result<Config, ConfigError> {
        let text = secret::read_text(path, FILE_BYTES_MAX)
            .map_err(|source| ConfigError::Read { file: path.to_owned(), source })?;
        Ok(self.parse(&text, path, &|name| std::env::var(name).ok())?)
    }

    /// See [`Config::parse`].
    ///
    /// # Errors
    ///
    /// Those of [`Config::parse`].
    pub fn parse(&self, text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Problems> {
        let reading = Reading::new(text, reader::folder_of(file), env);
        let (document, errors) = DeTable::parse_recoverable(text);
        let config = if errors.is_empty() {
            self.config(&reading.root(&document))
        } else {
            // What the parser could save of a broken file would bring problems that are none.
            errors.iter().for_each(|error| reading.syntax(error));
            None
        };
        match (config, reading.into_problems()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(Problems { file: file.to_owned(), problems }),
        }
    }

    /// `None` after a problem.
    fn config(&self, root: &reader::Table<'_>) -> Option<Config> {
        let namespace = root.optional("namespace", &name(NAME_ALPHABET, in_name_alphabet, NAMESPACE_CHARS_MAX));
        let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let http = sections::http(&root.table("http"));
        let database = sections::database(&root.table("database"));
        let nats_data = database.as_ref().map(|database| database.nats_data(&root.reading.folder, &namespace));
        let nats = nats::read(&root.table("nats"), nats_data);
        let worker = sections::worker(&root.table("worker"));
        let telemetry = sections::telemetry(&root.table("telemetry"));
        let console = sections::console(&root.table("console"));

        let tool_tables = root.table("tools");
        let tools = tools::read(&tool_tables, &self.registered_tools);
        let responder_tables = root.table("responders");
        let tool_names = names(&tool_tables, &self.registered_tools);
        let workflow_tables = root.table("workflows");
        let workflows = workflows::read(&workflow_tables);
        let known = responders::Known { tools: &tool_names, workflows: &names(&workflow_tables, &[]) };
        let responders = responders::read(&responder_tables, &self.registered_responders, &known);
        let bots = bots::read(&root.table("bots"), &names(&responder_tables, &self.registered_responders));
        root.finish(&[]);
        let (nats, database) = (nats?, database?);
        Some(Config { namespace, http, nats, database, worker, telemetry, console, bots, responders, tools, workflows })
    }
}

/// Every name that exists, whether or not its table is right.
fn names<'n>(tables: &reader::Table<'n>, registered: &'n [String]) -> Vec<&'n str> {
    let written = tables.named().into_iter().map(|(name, _)| name);
    written.chain(registered.iter().map(String::as_str)).collect()
}
