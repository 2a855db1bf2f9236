//! The real binary as a child process, and its configuration file.
//!
//! Refuses to look inside: what a test learns it learns from HTTP, exit codes and standard output. Invariant: the process
//! ends with the value that holds it, and what it said on standard error is shown when the test fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::nats::NatsServer;
use super::{PATIENCE, eventually, free_port, http_client, messenger, receiver, responder, telegram};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_turnwise");

pub(crate) const NAMESPACE: &str = "turnwise";
pub(crate) const CONSOLE_TOKEN: &str = "stand-in-console-token";
pub(crate) const WEB_KEY: &str = "stand-in-web-key";

/// The secrets that a configuration of these tests may name by `{ env = "..." }`.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("TEST_TELEGRAM_TOKEN", telegram::TOKEN),
    ("TEST_TELEGRAM_SECRET", telegram::SECRET),
    ("TEST_APP_SECRET", messenger::APP_SECRET),
    ("TEST_VERIFY_TOKEN", messenger::VERIFY_TOKEN),
    ("TEST_PAGE_TOKEN", messenger::PAGE_TOKEN),
    ("TEST_HTTP_SECRET", receiver::SECRET),
    ("TEST_HTTP_NEXT_SECRET", receiver::NEXT_SECRET),
    ("TEST_WEB_KEY", WEB_KEY),
    ("TEST_CONSOLE_TOKEN", CONSOLE_TOKEN),
    ("TEST_MODEL_KEY", responder::API_KEY),
];

/// One of these secrets, as a configuration read by the tests themselves asks for it.
pub(crate) fn environment(name: &str) -> Option<String> {
    ENVIRONMENT.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

/// A `turnwise.toml` in the making: table, key, and the value as TOML writes it. Setting a key again replaces it.
#[derive(Debug, Clone)]
pub(crate) struct Configuration {
    port: u16,
    tables: BTreeMap<String, BTreeMap<String, String>>,
}

impl Configuration {
    /// Nothing yet.
    pub(crate) fn empty() -> Self {
        Self { port: 0, tables: BTreeMap::new() }
    }

    /// What every test needs: a free port, this NATS, this database, a console token.
    pub(crate) fn new(nats: &NatsServer, database_url: &str) -> Self {
        Self::with_nats(&[nats.url()], database_url)
    }

    /// The same on any of these NATS servers.
    pub(crate) fn with_nats(urls: &[String], database_url: &str) -> Self {
        let quoted_urls: Vec<_> = urls.iter().map(|url| quoted(url)).collect();
        let urls = if let [url] = &quoted_urls[..] { url.clone() } else { format!("[{}]", quoted_urls.join(", ")) };
        let port = free_port();
        let mut configuration = Self { port, tables: BTreeMap::new() };
        configuration
            .set("", "namespace", &quoted(NAMESPACE))
            .set("http", "listen", &quoted(&format!("127.0.0.1:{port}")))
            .set("http", "shutdown_grace", "\"5s\"")
            .set("nats", "url", &urls)
            .set("nats", "partitions", "8")
            .set("database", "url", &quoted(database_url))
            .set("console", "token", "{ env = \"TEST_CONSOLE_TOKEN\" }");
        configuration
    }

    pub(crate) fn set(&mut self, table: &str, key: &str, value: &str) -> &mut Self {
        self.tables.entry(table.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// A value as it was set; panics when it was not.
    pub(crate) fn get(&self, table: &str, key: &str) -> &str {
        &self.tables[table][key]
    }

    /// The same deployment for a second process, which listens on a port of its own.
    pub(crate) fn beside(&self) -> Self {
        let mut beside = Self { port: free_port(), ..self.clone() };
        let listen = quoted(&format!("127.0.0.1:{}", beside.port));
        beside.set("http", "listen", &listen);
        beside
    }

    pub(crate) fn openai_responder(&mut self, name: &str, base_url: &str) -> &mut Self {
        let table = format!("responders.{name}");
        self.set(&table, "kind", "\"openai\"")
            .set(&table, "base_url", &quoted(base_url))
            .set(&table, "api_key", "{ env = \"TEST_MODEL_KEY\" }")
            .set(&table, "model", "\"stand-in\"")
    }

    pub(crate) fn telegram_bot(&mut self, name: &str, responder: &str, api_base: &str) -> &mut Self {
        let table = format!("bots.{name}");
        self.set(&table, "channel", "\"telegram\"")
            .set(&table, "responder", &quoted(responder))
            .set(&table, "token", "{ env = \"TEST_TELEGRAM_TOKEN\" }")
            .set(&table, "webhook_secret", "{ env = \"TEST_TELEGRAM_SECRET\" }")
            .set(&table, "api_base", &quoted(api_base))
    }

    pub(crate) fn messenger_bot(&mut self, name: &str, responder: &str, api_base: &str) -> &mut Self {
        let table = format!("bots.{name}");
        self.set(&table, "channel", "\"messenger\"")
            .set(&table, "responder", &quoted(responder))
            .set(&table, "app_secret", "{ env = \"TEST_APP_SECRET\" }")
            .set(&table, "verify_token", "{ env = \"TEST_VERIFY_TOKEN\" }")
            .set(&table, "page_token", "{ env = \"TEST_PAGE_TOKEN\" }")
            .set(&table, "page_id", &quoted(messenger::PAGE_ID))
            .set(&table, "api_base", &quoted(api_base))
    }

    /// A bot of the channel `http`, whose receiver may be on this machine.
    pub(crate) fn http_bot(&mut self, name: &str, responder: &str, callback_url: &str) -> &mut Self {
        let table = format!("bots.{name}");
        self.set(&table, "channel", "\"http\"")
            .set(&table, "responder", &quoted(responder))
            .set(&table, "secrets", "[{ env = \"TEST_HTTP_SECRET\" }]")
            .set(&table, "callback_url", &quoted(callback_url))
            .set(&table, "allow_private", "true")
    }

    pub(crate) fn web_bot(&mut self, name: &str, responder: &str) -> &mut Self {
        let table = format!("bots.{name}");
        self.set(&table, "channel", "\"web\"").set(&table, "responder", &quoted(responder)).set(
            &table,
            "api_keys",
            "[{ env = \"TEST_WEB_KEY\" }]",
        )
    }

    /// An address on the server that this configuration describes.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        for (table, values) in &self.tables {
            if !table.is_empty() {
                lines.push(format!("\n[{table}]"));
            }
            lines.extend(values.iter().map(|(key, value)| format!("{key} = {value}")));
        }
        lines.join("\n") + "\n"
    }
}

/// Text as a TOML basic string.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `turnwise SUBCOMMAND --config FILE`, with every secret that the file may name.
pub(crate) fn command(subcommand: &str, configuration_file: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.args(subcommand.split(' ')).arg("--config").arg(configuration_file);
    command.envs(ENVIRONMENT.iter().copied()).env("RUST_LOG", "info").stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub(crate) struct Turnwise {
    configuration: Configuration,
    directory: TempDir,
    client: reqwest::Client,
    child: Option<Child>,
    roles: Option<&'static str>,
}

impl Turnwise {
    /// Starts `turnwise serve`; returns once it says that it is ready.
    pub(crate) async fn spawn(configuration: Configuration) -> Self {
        Self::spawn_as(configuration, None).await
    }

    /// The same with these roles only, as the command line has them.
    pub(crate) async fn spawn_as(configuration: Configuration, roles: Option<&'static str>) -> Self {
        let directory = TempDir::new().unwrap();
        let mut turnwise = Self { configuration, directory, client: http_client(), child: None, roles };
        std::fs::write(turnwise.configuration_file(), turnwise.configuration.to_toml()).unwrap();
        turnwise.start_again().await;
        turnwise
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub(crate) async fn kill9(&mut self) {
        self.child.take().expect("turnwise runs").kill().await.unwrap();
    }

    /// Changes the configuration of a process that has ended, for the next one.
    pub(crate) fn reconfigure(&mut self, adjust: impl FnOnce(&mut Configuration)) {
        assert!(self.child.is_none(), "turnwise runs");
        adjust(&mut self.configuration);
        std::fs::write(self.configuration_file(), self.configuration.to_toml()).unwrap();
    }

    /// The same configuration again; returns once it is ready.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.is_none(), "turnwise runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.command("serve");
        if let Some(roles) = self.roles {
            command.arg("--roles").arg(roles);
        }
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        eventually("turnwise to be ready", PATIENCE, async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("turnwise ended with {status} before it was ready");
            }
            (self.readiness().await == Some(StatusCode::OK)).then_some(())
        })
        .await;
        self.child = Some(child);
    }

    /// What `/readyz` says; `None` when nobody answers.
    pub(crate) async fn readiness(&self) -> Option<StatusCode> {
        Some(self.client.get(self.url("/readyz")).send().await.ok()?.status())
    }

    /// SIGTERM, without waiting for anything.
    pub(crate) async fn ask_to_stop(&self) {
        self.signal("TERM").await;
    }

    pub(crate) async fn signal(&self, name: &str) {
        let id = self.child.as_ref().and_then(Child::id).expect("turnwise runs");
        let kill = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status().await.unwrap();
        assert!(kill.success(), "kill ended with {kill}");
    }

    /// Returns how the process ended; panics when it does not end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("turnwise runs");
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        ended.expect("turnwise ends").unwrap()
    }

    /// SIGTERM; the process must end with exit code 0.
    pub(crate) async fn terminate(&mut self) {
        self.ask_to_stop().await;
        assert_eq!(self.ended().await.code(), Some(0), "exit code after SIGTERM");
    }

    /// Another command with the same configuration, to its end.
    pub(crate) async fn run(&self, subcommand: &str, arguments: &[&str]) -> Output {
        let command = self.command(subcommand).args(arguments).stderr(Stdio::piped()).output();
        tokio::time::timeout(Duration::from_secs(120), command).await.expect("the command ends").unwrap()
    }

    /// `turnwise audit --json`: its exit code and what it printed.
    pub(crate) async fn audit(&self) -> (Option<i32>, Value) {
        let audit = self.command("audit").arg("--json").stderr(Stdio::piped()).output();
        let output = tokio::time::timeout(Duration::from_secs(60), audit).await.expect("the audit ends").unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("audit --json printed no JSON ({error}): {output:?}");
        });
        (output.status.code(), report)
    }

    /// The audit finds nothing missing and nothing doubled.
    pub(crate) async fn assert_audit_clean(&self) {
        let (code, report) = self.audit().await;
        assert_eq!(code, Some(0), "turnwise audit: {report:#}");
    }

    pub(crate) fn url(&self, path: &str) -> String {
        self.configuration.url(path)
    }

    pub(crate) const fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    pub(crate) fn command(&self, subcommand: &str) -> Command {
        command(subcommand, &self.configuration_file())
    }

    pub(crate) fn configuration_file(&self) -> PathBuf {
        self.directory.path().join("turnwise.toml")
    }

    /// Everything it said on standard error.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("turnwise.log")
    }
}

impl Drop for Turnwise {
    fn drop(&mut self) {
        const TAIL_LINES: usize = 200;
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            eprintln!("--- the last lines of turnwise ---\n{tail}\n--- end of turnwise ---");
        }
    }
}
