//! `turnwise dead-letters list|show|redrive|discard`.
//!
//! Refuses to redrive or discard without a yes: at the terminal, or as `--yes`. Invariant: everything that is wrong with the
//! command is said before anything is changed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::consent::{Consent, refused, said};
use super::values::Conversation;
use super::{WithConfig, open_dead_letters, progress, say};
use crate::config::Config;
use crate::dead_letters::{DeadLetters, Plan, Report, Selection};
use crate::message::Peer;
use crate::stream::{self, Lane, LetterFilter};
use crate::telemetry::{self, LogFormat};

use words::{count, describe_redrive, plain, print_detail, print_json, print_list};

mod words;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List them, the newest last; what people wrote is not shown
    List(Listing),
    /// Show one with its message, error, attempts and trace
    Show(Showing),
    /// Make their messages new ones, each the last of its conversation by then, and remove them
    Redrive(Redriving),
    /// Remove them for good; the ledger keeps that they were given up
    Discard(Discarding),
}

#[derive(Debug, Args)]
pub(super) struct Listing {
    #[command(flatten)]
    config: WithConfig,
    /// Only those of this bot
    #[arg(long)]
    bot: Option<String>,
    /// Only those of this conversation: its id, its peer such as user-31, or CHANNEL.BOT.PEER
    #[arg(long)]
    conversation: Option<Conversation>,
    /// Only those given up for this reason
    #[arg(long)]
    reason: Option<String>,
    /// So many at most, the newest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Showing {
    #[command(flatten)]
    config: WithConfig,
    /// The dead letter, by the id that `list` shows
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Redriving {
    #[command(flatten)]
    config: WithConfig,
    #[command(flatten)]
    chosen: Chosen,
    /// Those given up for this reason
    #[arg(long, group = "Chosen", conflicts_with_all = ["ids", "all"])]
    reason: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Args)]
pub(super) struct Discarding {
    #[command(flatten)]
    config: WithConfig,
    #[command(flatten)]
    chosen: Chosen,
    /// Those given up for this reason
    #[arg(long, value_name = "REASON", group = "Chosen", conflicts_with_all = ["ids", "all"])]
    given_up_for: Option<String>,
    /// Why they are discarded, for the record
    #[arg(long, value_name = "TEXT", value_parser = said)]
    reason: String,
    #[command(flatten)]
    consent: Consent,
}

/// Which dead letters are meant: by their ids, all, or all that match.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Chosen {
    /// The dead letters, by the ids that `list` shows
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..), conflicts_with_all = ["all", "bot", "conversation"])]
    ids: Vec<u64>,
    /// Every one
    #[arg(long, conflicts_with_all = ["bot", "conversation"])]
    all: bool,
    /// Those of this bot
    #[arg(long)]
    bot: Option<String>,
    /// Those of this conversation: its id, its peer such as user-31, or CHANNEL.BOT.PEER
    #[arg(long)]
    conversation: Option<Conversation>,
}

/// Conversations and letters named to people; the JSON has more.
const LISTED: usize = 20;

impl Command {
    pub(super) fn config(&self) -> &Path {
        match self {
            Self::List(listing) => &listing.config.config,
            Self::Show(showing) => &showing.config.config,
            Self::Redrive(redriving) => &redriving.config.config,
            Self::Discard(discarding) => &discarding.config.config,
        }
    }
}

pub(super) async fn run(config: &Config, command: Command, format: LogFormat) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let (backends, letters) = open_dead_letters(config).await?;
    let outcome = match command {
        Command::List(listing) => list(&letters, &listing).await,
        Command::Show(showing) => show(&letters, &showing).await,
        Command::Redrive(redriving) => redrive(config, &letters, redriving).await,
        Command::Discard(discarding) => discard(&letters, discarding).await,
    };
    drop(letters);
    backends.close().await;
    guard.shutdown().await;
    outcome
}

async fn list(letters: &DeadLetters, listing: &Listing) -> anyhow::Result<ExitCode> {
    let Listing { bot, conversation, reason, .. } = listing;
    let filter = match filter(letters, bot.clone(), conversation.clone(), reason.clone()).await? {
        Ok(filter) => filter,
        Err(code) => return Ok(code),
    };
    let list = letters.list(&filter, usize::try_from(listing.limit).unwrap_or(usize::MAX)).await?;
    match listing.json {
        true => print_json(&list)?,
        false => print_list(&list)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(letters: &DeadLetters, showing: &Showing) -> anyhow::Result<ExitCode> {
    let Some(detail) = letters.show(showing.id).await? else { return Ok(unknown(&[showing.id])) };
    match showing.json {
        true => print_json(&detail)?,
        false => print_detail(&detail)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn redrive(config: &Config, letters: &DeadLetters, redriving: Redriving) -> anyhow::Result<ExitCode> {
    let Redriving { chosen, reason, consent, .. } = redriving;
    let (selection, plan) = match chosen_plan(letters, chosen, reason).await? {
        Ok(planned) => planned,
        Err(code) => return Ok(code),
    };
    describe_redrive(config, &plan);
    if plan.dead_letters == 0 || consent.dry_run {
        return planned(&plan, &consent);
    }
    if let Some(code) = refused(&consent, "redrive").await? {
        return Ok(code);
    }
    // Partitions other than the stream's would put messages where nobody looks for them.
    stream::ensure(&letters.inbound.connection, &config.nats, Lane::Inbound).await?;
    let report = letters.redrive(&selection, &plan, progress).await?;
    let again = match report.already_redriven {
        0 => String::new(),
        count => format!(", {count} had been before"),
    };
    done(&consent, &report, &format!("{} redriven{again}", count(report.redriven, "dead letter")))
}

async fn discard(letters: &DeadLetters, discarding: Discarding) -> anyhow::Result<ExitCode> {
    let Discarding { chosen, given_up_for, reason, consent, .. } = discarding;
    let (selection, plan) = match chosen_plan(letters, chosen, given_up_for).await? {
        Ok(planned) => planned,
        Err(code) => return Ok(code),
    };
    let (meant, places) = (count(plan.dead_letters, "dead letter"), count(plan.conversations, "conversation"));
    say(&format!("{meant} of {places} to be removed for good; the ledger keeps that they were given up"));
    if plan.dead_letters == 0 || consent.dry_run {
        return planned(&plan, &consent);
    }
    if let Some(code) = refused(&consent, "discard").await? {
        return Ok(code);
    }
    let report = letters.discard(&selection, &plan, &reason, progress).await?;
    done(&consent, &report, &format!("{} discarded: {}", count(report.discarded, "dead letter"), plain(&reason)))
}

/// The letters meant and what they come to, or the exit code after it was said what is wrong with them.
async fn chosen_plan(
    letters: &DeadLetters,
    chosen: Chosen,
    reason: Option<String>,
) -> anyhow::Result<Result<(Selection, Plan), ExitCode>> {
    let selection = match chosen.ids.is_empty() {
        false => Selection::Ids(chosen.ids.into_iter().collect::<BTreeSet<_>>()),
        true => match filter(letters, chosen.bot, chosen.conversation, reason).await? {
            Ok(filter) => Selection::Matching(filter),
            Err(code) => return Ok(Err(code)),
        },
    };
    let plan = letters.plan(&selection, None).await?;
    Ok(if plan.missing.is_empty() { Ok((selection, plan)) } else { Err(unknown(&plan.missing)) })
}

/// The filter, or exit code 2 when its parts cannot be true together.
async fn filter(
    letters: &DeadLetters,
    bot: Option<String>,
    conversation: Option<Conversation>,
    reason: Option<String>,
) -> anyhow::Result<Result<LetterFilter, ExitCode>> {
    let conversation = match conversation {
        Some(Conversation::Id(id)) => Some(match letters.store.conversation(id).await? {
            Some(conversation) => Conversation::Key(conversation.key),
            None => Conversation::Peer(Peer::Conversation(id)),
        }),
        conversation => conversation,
    };
    let mut filter = LetterFilter { bot, reason, ..LetterFilter::default() };
    match conversation {
        Some(Conversation::Key(key)) => {
            if filter.bot.as_deref().is_some_and(|bot| bot != &*key.bot) {
                say(&format!(
                    "error: the conversation is one of the bot \"{}\", and --bot names another",
                    plain(&key.bot)
                ));
                return Ok(Err(ExitCode::from(2)));
            }
            (filter.bot, filter.channel, filter.peer) = (Some(key.bot.to_string()), Some(key.channel), Some(key.peer));
        }
        Some(Conversation::Peer(peer)) => filter.peer = Some(peer),
        Some(Conversation::Id(_)) | None => {}
    }
    Ok(Ok(filter))
}

fn unknown(ids: &[u64]) -> ExitCode {
    let ids = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    say(&format!(
        "error: there is no dead letter {ids}; nothing was done\n\
         hint: `turnwise dead-letters list` shows them; those that were redriven or discarded are gone"
    ));
    ExitCode::FAILURE
}

fn planned(plan: &Plan, consent: &Consent) -> anyhow::Result<ExitCode> {
    if consent.json {
        print_json(plan)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn done(consent: &Consent, report: &Report, words: &str) -> anyhow::Result<ExitCode> {
    if consent.json {
        print_json(report)?;
    }
    for entry in report.listed.iter().filter(|entry| entry.error.is_some()).take(LISTED) {
        let error = entry.error.as_deref().unwrap_or_default();
        say(&format!("error: dead letter {} of {}: {}", entry.id, entry.conversation, plain(error)));
    }
    say(words);
    if report.is_complete() {
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("{} failed, {} not tried; they are dead letters as before", report.failed, report.left));
    Ok(ExitCode::FAILURE)
}
