//! `turnwise replay`.
//!
//! Refuses to migrate, to write to the database or to a stream, and to begin anything before the whole command is known to make
//! sense. Invariant: exit code 0 means that the run is finished and what has changed is within the threshold.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::values::{Conversation, Moment, percent};
use super::{WithConfig, print, progress, say};
use crate::config::{Config, NatsServer};
use crate::message::Timestamp;
use crate::replay::{self, Asked, Options, REPORT_FILE, ReplayError, Run, State};
use crate::server::stop_signal;
use crate::store::Archive;
use crate::stream::{self, Connection, Lane, Reader};
use crate::telemetry::{self, LogFormat};

/// Asks another responder, prompt or model about turns that have ended, and reports what would have changed. Nothing is sent,
/// written or executed: tools give what they gave then. Exit code 1 when more has changed than --max-changed allows, or when
/// the run was stopped; the same command goes on where it stopped.
#[derive(Debug, Args)]
pub(super) struct Replay {
    #[command(flatten)]
    pub(super) config: WithConfig,
    /// Turns received since then: 2026-11-01, 2026-11-01T08:30:00Z, or how long ago, such as 24h
    #[arg(long, value_name = "T")]
    since: Moment,
    /// Turns received before then [default: now]
    #[arg(long, value_name = "T")]
    until: Option<Moment>,
    /// Only those of this bot
    #[arg(long)]
    bot: Option<String>,
    /// Only those of this conversation: its id, its peer such as user-31, or CHANNEL.BOT.PEER
    #[arg(long, value_name = "K")]
    conversation: Option<Conversation>,
    /// Only those of so many of a hundred conversations, always the same ones
    #[arg(long, value_name = "PERCENT", default_value = "100%", value_parser = percent)]
    sample: f64,
    /// The responder of the configuration to be asked
    #[arg(long, value_name = "R")]
    responder: String,
    /// The folder for turns.jsonl, run.json and report.html
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Let the candidate go its own way, instead of through the recorded rounds; a call that was not recorded is drift
    #[arg(long)]
    free_run: bool,
    /// Ask the bot's own responder twice, too, and count only what changes beyond its own variation
    #[arg(long)]
    aa: bool,
    /// Leave out of the result what anybody said
    #[arg(long)]
    redact: bool,
    /// Stop once so many tokens have been used
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    /// Turns asked about at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    concurrency: u16,
    /// Fail when a larger share of the turns has changed
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_changed: Option<f64>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, options: &Replay, format: LogFormat) -> anyhow::Result<ExitCode> {
    let asked = match asked(config, options) {
        Ok(asked) => asked,
        Err(wrong) => {
            say(&format!("error: {wrong}"));
            return Ok(ExitCode::from(2));
        }
    };
    let wants_stream = match replay::wants_stream(config, &options.responder) {
        Ok(wants) => wants,
        Err(error) => return wrong_usage(error),
    };
    let guard = telemetry::init_command(&config.telemetry, format)?;
    let archive = Archive::open(config.database.url.expose(), config.database.max_connections).await?;
    if !archive.is_migrated().await? {
        say("error: the database has not this version's schema\nhint: turnwise migrate");
        return Ok(ExitCode::FAILURE);
    }
    let reader = if wants_stream { reader(config).await? } else { None };
    let how = Options {
        out: options.out.clone(),
        concurrency: usize::from(options.concurrency),
        tokens_max: options.max_tokens,
    };
    let stop = stop_signal()?;
    let outcome = Box::pin(replay::run(config, &archive, reader.as_ref(), asked, &how, &stop, progress)).await;
    archive.close().await;
    guard.shutdown().await;
    match outcome {
        Ok(run) => judged(&run, options),
        Err(error) => wrong_usage(error),
    }
}

/// What is to be replayed, or what is wrong with it.
fn asked(config: &Config, options: &Replay) -> Result<Asked, String> {
    let now = Timestamp::now();
    let (since, until) = (options.since.before(now), options.until.as_ref().map_or(now, |until| until.before(now)));
    if since >= until {
        return Err("--since: is not before --until".to_owned());
    }
    let mut bot = options.bot.clone();
    let conversation = match &options.conversation {
        Some(Conversation::Key(key)) => {
            if bot.as_deref().is_some_and(|bot| bot != &*key.bot) {
                return Err("--conversation: is one of another bot than --bot names".to_owned());
            }
            bot = Some(key.bot.to_string());
            Some(key.peer.to_string())
        }
        Some(Conversation::Id(id)) => Some(id.to_string()),
        Some(Conversation::Peer(peer)) => Some(peer.to_string()),
        None => None,
    };
    if let Some(unknown) = bot.as_deref().filter(|bot| !config.bots.contains_key(*bot)) {
        let known = config.bots.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(format!("--bot: there is no bot {unknown:?}; there is {known}"));
    }
    Ok(Asked {
        since,
        until,
        given: (options.since.text.clone(), options.until.as_ref().map(|until| until.text.clone())),
        bot,
        conversation,
        responder: options.responder.clone(),
        sample_percent: options.sample,
        free_run: options.free_run,
        noise_floor: options.aa,
        redact: options.redact,
    })
}

/// The inbound stream. A managed server belongs to its deployment and is not started for looking back.
async fn reader(config: &Config) -> anyhow::Result<Option<Reader>> {
    let NatsServer::Urls(addresses) = &config.nats.server else {
        say("note: nats.managed: the stream is not read, so who wrote and which button was pressed is not known");
        return Ok(None);
    };
    let connection = Connection::open(config, addresses).await?;
    Ok(Some(Reader::new(stream::existing(&connection, Lane::Inbound).await?)))
}

fn judged(run: &Run, options: &Replay) -> anyhow::Result<ExitCode> {
    match options.json {
        true => print(&serde_json::to_string_pretty(run).context("cannot write the result as JSON")?)?,
        false => describe(run)?,
    }
    say(&format!("the report is {}", options.out.join(REPORT_FILE).display()));
    if run.state == State::Stopped {
        say("stopped before the end\nhint: the same command goes on; with --max-tokens, allow more");
        return Ok(ExitCode::FAILURE);
    }
    if run.turns == 0 {
        say("error: there is no turn to replay\nhint: look at --since, --until, --bot, --conversation and --sample");
        return Ok(ExitCode::FAILURE);
    }
    let percent = run.changed_percent();
    match options.max_changed {
        Some(most) if percent > most => {
            say(&format!("error: {percent:.2} % of the turns have changed; --max-changed allows {most} %"));
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn describe(run: &Run) -> anyhow::Result<()> {
    print(&format!("turns                     {}", run.turns))?;
    print(&format!("changed                   {} ({:.1} %)", run.changed, run.changed_percent()))?;
    for (change, count) in &run.changes {
        print(&format!("  {:<23} {count}", change.as_str()))?;
    }
    print(&format!("calls not in a recording  {} turns", run.drifted))?;
    print(&format!("tokens used               {}", run.tokens))?;
    for (name, side) in [("recorded", &run.recorded), ("candidate", &run.candidate)] {
        let (p50, p95) = (side.latency_p50_ms, side.latency_p95_ms);
        print(&format!("latency, {name:<16} p50 {p50} ms, p95 {p95} ms"))?;
    }
    Ok(())
}

/// Exit code 2 for what is wrong with the command itself; other errors go on.
fn wrong_usage(error: ReplayError) -> anyhow::Result<ExitCode> {
    let option = match &error {
        ReplayError::UnknownResponder { .. } => "--responder",
        ReplayError::Occupied { .. } => "--out",
        ReplayError::Build(errors) => {
            errors.iter().for_each(|error| say(&format!("error: {}", telemetry::chain(error))));
            return Ok(ExitCode::from(2));
        }
        ReplayError::Store(_) | ReplayError::File { .. } | ReplayError::Stream(_) => return Err(error.into()),
    };
    say(&format!("error: {option}: {error}"));
    Ok(ExitCode::from(2))
}
