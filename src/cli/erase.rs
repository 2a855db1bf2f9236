//! `turnwise erase`.
//!
//! Refuses to erase without a yes: at the terminal, or as `--yes`. Invariant: neither its words nor the record that stays name
//! the person.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::consent::{Consent, refused, said};
use super::{WithConfig, open_inbound, print, say};
use crate::config::Config;
use crate::erasure::{Erasure, Extent, Person};
use crate::server::Backends;
use crate::stream::{self, Lane, StreamHandle};
use crate::telemetry::{self, LogFormat};

/// Takes one person's data out of the database and off the streams, while the deployment runs: their chats with everything
/// that was said in them, what was to be sent, records, dead letters, reactions. What has not been answered yet is not
/// answered. What they said in groups is not found.
#[derive(Debug, Args)]
pub(super) struct Erase {
    #[command(flatten)]
    pub(super) config: WithConfig,
    /// The bot that the person wrote to
    #[arg(long)]
    bot: String,
    /// The platform's id of the person; of a web bot, the device's id
    #[arg(long, value_name = "ID", value_parser = said)]
    person: String,
    /// Why, for the record; it should not say who
    #[arg(long, value_name = "TEXT", value_parser = said)]
    reason: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

pub(super) async fn run(config: &Config, options: &Erase, format: LogFormat) -> anyhow::Result<ExitCode> {
    let Some(bot) = config.bots.get(&options.bot) else {
        let known = config.bots.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        say(&format!("error: --bot: there is no bot {:?}; there is {known}", options.bot));
        return Ok(ExitCode::from(2));
    };
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let (backends, inbound) = open_inbound(config).await?;
    let person = Person { channel: bot.channel(), bot: options.bot.clone(), id: options.person.clone() };
    let outcome = erase(config, options, &backends, inbound, &person).await;
    backends.close().await;
    guard.shutdown().await;
    outcome
}

async fn erase(
    config: &Config,
    options: &Erase,
    backends: &Backends,
    inbound: StreamHandle,
    person: &Person,
) -> anyhow::Result<ExitCode> {
    let erasure = Erasure {
        store: backends.store.clone(),
        inbound,
        outbound: stream::existing(&backends.connection, Lane::Outbound).await?,
        dead: stream::existing(&backends.connection, Lane::Dead).await?,
        partitions: config.nats.partitions,
        actor: super::operator(),
        reason: options.reason.clone(),
    };
    let extent = erasure.extent(person).await?;
    say(&format!("there is: {}", words(&extent)));
    if options.consent.dry_run || extent.is_nothing() {
        return told(options, &extent);
    }
    if let Some(code) = refused(&options.consent, "erase").await? {
        return Ok(code);
    }
    let erased = erasure.run(person).await?;
    say(&format!("erased: {}", words(&erased)));
    told(options, &erased)
}

fn told(options: &Erase, extent: &Extent) -> anyhow::Result<ExitCode> {
    if options.consent.json {
        print(&serde_json::to_string_pretty(extent).context("cannot write the result as JSON")?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn words(extent: &Extent) -> String {
    let Extent { database, inbound, outbound, dead_letters } = extent;
    format!(
        "{} conversations with {} messages, {} deliveries, {} records, {} reactions, {} turns; on the streams {inbound} messages, \
         {outbound} replies, {dead_letters} dead letters; {} messages were not answered yet",
        database.conversations,
        database.messages,
        database.deliveries,
        database.turn_records,
        database.reactions,
        database.turns,
        database.unanswered,
    )
}
