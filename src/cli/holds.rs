//! `turnwise holds list|pause|resume`.
//!
//! Refuses to hold what cannot exist. Invariant: who paused or resumed what is written down before it is done.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{WithConfig, operator, print, say};
use crate::config::Config;
use crate::holds;
use crate::message::Timestamp;
use crate::server::Backends;
use crate::store::{Hold, HoldScope, OperatorAction, OperatorVerb};
use crate::telemetry::{self, LogFormat};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what is paused
    List(Listing),
    /// Begin no more turns of it: those that run end, messages wait in the stream
    Pause(Pausing),
    /// Let its turns go on, in the order of their messages
    Resume(Resuming),
}

#[derive(Debug, Args)]
pub(super) struct Listing {
    #[command(flatten)]
    config: WithConfig,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Pausing {
    #[command(flatten)]
    config: WithConfig,
    #[command(flatten)]
    what: What,
    /// Why, for the audit log and for those who wonder
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Resuming {
    #[command(flatten)]
    config: WithConfig,
    #[command(flatten)]
    what: What,
}

/// What is paused or resumed.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One conversation: CHANNEL.BOT.PEER, such as telegram.support.user-31
    #[arg(long)]
    conversation: Option<String>,
    /// Every conversation of this bot
    #[arg(long)]
    bot: Option<String>,
    /// Every conversation of this partition
    #[arg(long)]
    partition: Option<u16>,
}

impl What {
    fn named(&self) -> (HoldScope, String) {
        match (&self.conversation, &self.bot, self.partition) {
            (Some(conversation), _, _) => (HoldScope::Conversation, conversation.clone()),
            (_, Some(bot), _) => (HoldScope::Bot, bot.clone()),
            (_, _, partition) => (HoldScope::Partition, partition.unwrap_or_default().to_string()),
        }
    }
}

impl Command {
    pub(super) fn config(&self) -> &Path {
        match self {
            Self::List(listing) => &listing.config.config,
            Self::Pause(pausing) => &pausing.config.config,
            Self::Resume(resuming) => &resuming.config.config,
        }
    }
}

pub(super) async fn run(config: &Config, command: Command, format: LogFormat) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let outcome = match command {
        Command::List(listing) => list(config, &listing).await,
        Command::Pause(pausing) => change(config, &pausing.what, OperatorVerb::PauseTurns, pausing.reason).await,
        Command::Resume(resuming) => change(config, &resuming.what, OperatorVerb::ResumeTurns, None).await,
    };
    guard.shutdown().await;
    outcome
}

async fn list(config: &Config, listing: &Listing) -> anyhow::Result<ExitCode> {
    let backends = Backends::open(config).await?;
    let held = backends.store.holds().await;
    backends.close().await;
    let held = held?;
    if listing.json {
        print(&serde_json::to_string_pretty(&held).context("cannot write the holds as JSON")?)?;
    } else if held.is_empty() {
        say("nothing is paused");
    }
    for Hold { scope, target, actor, created_at, .. } in held.iter().filter(|_| !listing.json) {
        print(&format!("{scope} {target}  since {created_at}  by {}", actor.as_deref().unwrap_or("unknown")))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(config: &Config, what: &What, verb: OperatorVerb, reason: Option<String>) -> anyhow::Result<ExitCode> {
    let (scope, target) = what.named();
    let target = match holds::target(scope, &target, config.bots.keys(), config.nats.partitions) {
        Ok(target) => target,
        Err(error) => {
            say(&format!("error: {error}"));
            return Ok(ExitCode::from(2));
        }
    };
    let backends = Backends::open(config).await?;
    let changed = perform(&backends, scope, target, verb, reason).await;
    backends.close().await;
    say(&changed?);
    Ok(ExitCode::SUCCESS)
}

/// What there is to say of it.
async fn perform(
    backends: &Backends,
    scope: HoldScope,
    target: String,
    verb: OperatorVerb,
    reason: Option<String>,
) -> anyhow::Result<String> {
    let (store, connection, now) = (&backends.store, &backends.connection, Timestamp::now());
    let name = format!("{scope} {target}");
    let action = OperatorAction { verb, target: name.clone(), actor: operator(), reason: reason.clone(), at: now };
    let id = store.begin_operator_action(&action).await?;
    let said = if verb == OperatorVerb::PauseTurns {
        holds::pause(store, connection, &Hold { scope, target, actor: operator(), reason, created_at: now }).await?;
        format!("{name} is paused: turns that run end, none begins")
    } else if holds::resume(store, connection, scope, &target).await? {
        format!("{name} goes on")
    } else {
        format!("{name} was not paused")
    };
    store.end_operator_action(id, "done").await?;
    Ok(said)
}
