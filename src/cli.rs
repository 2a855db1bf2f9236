//! The command line: what each command does, in which words it answers, and with which exit code.
//!
//! Refuses to hold logic of its own beyond that. Invariants: data on stdout, everything else on stderr; 0 done, 1 the work
//! failed, 2 wrong usage or configuration.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigReader};
use crate::dead_letters::DeadLetters;
use crate::responder::{self, Responders};
use crate::server::{self, Backends, Notifier, Roles, stop_signal};
use crate::stream::{self, Lane, Publisher};
use crate::telemetry::{self, LogFormat, TelemetryGuard};
use crate::tool::Toolbox;

mod audit;
mod bench;
mod checksum;
mod consent;
mod dead_letters;
mod erase;
mod holds;
mod rebuild;
mod replay;
mod telegram;
mod values;

/// Runs the conversations of chat bots: durable, in order, one turn at a time.
#[derive(Debug, Parser)]
#[command(name = "turnwise", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// How logs are written to stderr [default: text on a terminal, json otherwise]
    #[arg(long, global = true, value_enum)]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything in one process: SQLite, a nats-server of its own, a scripted bot and a chat page
    Dev(Dev),
    /// Run a deployment's roles in this process
    Serve(Serve),
    /// Say everything that is wrong with a configuration, and where
    Check(WithConfig),
    /// Bring the database to this version's schema
    Migrate(WithConfig),
    /// Compare the stream with the ledger; exit 0 only if nothing is missing, doubled or out of order
    Audit(audit::Audit),
    /// Messages that were given up: list, show, redrive or discard them
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Pause and resume conversations, bots and partitions
    #[command(subcommand)]
    Holds(holds::Command),
    /// Take one person's data out of the database and off the streams
    Erase(erase::Erase),
    /// Make a database again from the streams alone, while no process of the deployment runs
    Rebuild(rebuild::Rebuild),
    /// Say what two databases, such as a rebuilt one and the original, have in common
    Checksum(checksum::Checksum),
    /// Ask another responder, prompt or model about recorded turns, and report what would have changed
    Replay(replay::Replay),
    /// Tell Telegram where to send a bot's updates, or ask what it knows
    #[command(subcommand)]
    Telegram(telegram::Telegram),
    /// Put load on a running deployment on this machine, and measure and check what comes of it
    Bench(bench::Bench),
}

#[derive(Debug, Args)]
struct Dev {
    /// Address of the chat page and the API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Folder of the database, the streams and the script
    #[arg(long, value_name = "DIR", default_value = ".turnwise")]
    data: PathBuf,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    config: WithConfig,
    /// What this process does
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ingress,worker,egress,console")]
    roles: Vec<Role>,
    /// Instead of the configuration's http.listen: several processes on one machine can share one file
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Takes webhooks and API calls
    Ingress,
    /// Runs turns
    Worker,
    /// Sends replies
    Egress,
    /// Serves the operators' console at /console
    Console,
}

#[derive(Debug, Args)]
struct WithConfig {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Parses the command line, runs the command and returns the process's exit code. `registered` are responders written in
/// Rust, by the name that `responder = "..."` uses.
pub async fn main(registered: Responders) -> ExitCode {
    telemetry::install_crypto_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for and go to stdout; the rest is wrong usage.
            let code = u8::from(error.use_stderr()) * 2;
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let format = cli.log_format.unwrap_or_else(LogFormat::detect);
    match Box::pin(run(cli.command, format, registered)).await {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            if let Some(hint) = hint(&error) {
                say(&format!("hint: {hint}"));
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, format: LogFormat, registered: Responders) -> anyhow::Result<ExitCode> {
    let names: Vec<String> = registered.keys().cloned().collect();
    let load = |path: &Path| load(path, &names);
    match command {
        Command::Dev(dev) => develop(&dev, format, registered).await,
        Command::Serve(serve) => match load(&serve.config.config) {
            Ok(mut config) => {
                config.http.listen = serve.listen.unwrap_or(config.http.listen);
                serve_roles(&config, &serve.roles, format, registered).await
            }
            Err(code) => Ok(code),
        },
        Command::Check(check) => {
            Ok(load(&check.config).map_or_else(|code| code, |config| describe(&config, registered)))
        }
        Command::Migrate(migrate) => match load(&migrate.config) {
            Ok(config) => {
                server::open_store(&config).await?.migrate().await?;
                say("the database has this version's schema");
                Ok(ExitCode::SUCCESS)
            }
            Err(code) => Ok(code),
        },
        Command::Audit(options) => match load(&options.config.config) {
            Ok(config) => audit::run(&config, &options, format).await,
            Err(code) => Ok(code),
        },
        Command::DeadLetters(command) => match load(command.config()) {
            Ok(config) => dead_letters::run(&config, command, format).await,
            Err(code) => Ok(code),
        },
        Command::Holds(command) => match load(command.config()) {
            Ok(config) => holds::run(&config, command, format).await,
            Err(code) => Ok(code),
        },
        Command::Rebuild(options) => match load(&options.config.config) {
            Ok(config) => rebuild::run(&config, &options, format).await,
            Err(code) => Ok(code),
        },
        Command::Erase(options) => match load(&options.config.config) {
            Ok(config) => erase::run(&config, &options, format).await,
            Err(code) => Ok(code),
        },
        Command::Checksum(options) => match load(&options.config.config) {
            Ok(config) => checksum::run(&config, &options, format).await,
            Err(code) => Ok(code),
        },
        Command::Replay(options) => match load(&options.config.config) {
            Ok(config) => replay::run(&config, &options, format).await,
            Err(code) => Ok(code),
        },
        Command::Bench(options) => match load(&options.config.config) {
            Ok(config) => bench::run(&config, &options, format).await,
            Err(code) => Ok(code),
        },
        Command::Telegram(command) => match load(command.config()) {
            Ok(config) => telegram::run(&config, &command).await,
            Err(code) => Ok(code),
        },
    }
}

/// The configuration, or exit code 2 after everything that is wrong with it was said.
fn load(path: &Path, registered: &[String]) -> Result<Config, ExitCode> {
    ConfigReader::default().registered_responders(registered).load(path).map_err(|error| {
        say(telemetry::chain(&error).trim_end());
        ExitCode::from(2)
    })
}

/// What is to be said of a configuration that can be read: also what its responders make of their settings and files.
fn describe(config: &Config, registered: Responders) -> ExitCode {
    for warning in config.warnings() {
        say(&format!("warning: {warning}"));
    }
    let built =
        Toolbox::build(config, Vec::new()).map_err(|errors| server::unusable("tools", &errors)).and_then(|toolbox| {
            responder::build(config, registered, &toolbox).map_err(|errors| server::unusable("responders", &errors))
        });
    match built {
        Ok(_) => {
            say("the configuration is good");
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}

async fn develop(dev: &Dev, format: LogFormat, registered: Responders) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&dev.data).with_context(|| format!("cannot create the folder {}", dev.data.display()))?;
    let data = dev.data.canonicalize().with_context(|| format!("cannot find the folder {}", dev.data.display()))?;
    let script = data.join("demo.toml");
    if !script.exists() {
        std::fs::write(&script, crate::responder::DEMO_SCRIPT)
            .with_context(|| format!("cannot write {}", script.display()))?;
    }
    let config = Config::development(&data, dev.listen, script.clone());
    let guard = telemetry::init(&config.telemetry, format)?;
    let ready = |address| {
        say(&format!(
            "\n  Turnwise is ready.\n\n  Chat page   http://{address}/\n  Chat API    POST http://{address}/v1/chat\n  \
             Console     http://{address}/console\n  \
             The script  {}\n  Stop        Ctrl-C\n",
            script.display()
        ));
    };
    let outcome = server::run(&config, Roles::ALL, registered, stop_signal()?, ready).await;
    finish(outcome, guard).await
}

async fn serve_roles(
    config: &Config,
    roles: &[Role],
    format: LogFormat,
    registered: Responders,
) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init(&config.telemetry, format)?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let has = |role| roles.contains(&role);
    let roles = Roles {
        ingress: has(Role::Ingress),
        worker: has(Role::Worker),
        egress: has(Role::Egress),
        console: has(Role::Console),
    };
    let stop = stop_signal()?;
    let manager = Notifier::start(stop.clone());
    let ready = |address| {
        tracing::info!(%address, ?roles, "ready");
        manager.ready();
    };
    let outcome = server::run(config, roles, registered, stop, ready).await;
    finish(outcome, guard).await
}

async fn finish(outcome: anyhow::Result<()>, guard: TelemetryGuard) -> anyhow::Result<ExitCode> {
    guard.shutdown().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// What a person at a terminal reads.
fn say(line: &str) {
    // Nobody can be told that stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Data for a person or a program.
fn print(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to stdout")
}

fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A bar on a terminal, of what may take long.
fn progress(done: u64, all: u64) {
    if on_terminal() {
        let filled = usize::try_from(done * 30 / all.max(1)).unwrap_or(30).min(30);
        let end = if done >= all { "\n" } else { "" };
        let _ = write!(std::io::stderr(), "\r[{:<30}] {done} of {all} {end}", "#".repeat(filled));
    }
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let server = error.downcast_ref::<crate::nats_server::Error>().and_then(crate::nats_server::Error::hint);
    server.or_else(|| error.downcast_ref::<server::ListenError>().and_then(server::ListenError::hint))
}

/// Backends and the inbound stream, for commands that read.
async fn open_inbound(config: &Config) -> anyhow::Result<(Backends, stream::StreamHandle)> {
    let backends = Backends::open(config).await?;
    match stream::existing(&backends.connection, Lane::Inbound).await {
        Ok(inbound) => Ok((backends, inbound)),
        Err(error) => {
            backends.close().await;
            Err(error.into())
        }
    }
}

/// Whom the system says is at work.
fn operator() -> Option<String> {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok()
}

/// Backends and the dead letters, with whom the system says is working on them.
async fn open_dead_letters(config: &Config) -> anyhow::Result<(Backends, DeadLetters)> {
    let (backends, inbound) = open_inbound(config).await?;
    match stream::existing(&backends.connection, Lane::Dead).await {
        Ok(dead) => {
            let publisher = Publisher::new(backends.connection.clone(), config.nats.partitions);
            let store = backends.store.clone();
            Ok((backends, DeadLetters { dead, inbound, publisher, store, actor: operator() }))
        }
        Err(error) => {
            backends.close().await;
            Err(error.into())
        }
    }
}
