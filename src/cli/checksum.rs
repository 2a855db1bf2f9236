//! `turnwise checksum`.
//!
//! Refuses to write to either database. Invariant: exit code 0 with `--against` means that no table differs in what the streams
//! hold.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{WithConfig, print, say};
use crate::config::Config;
use crate::rebuild::NOT_REBUILT;
use crate::store::{Archive, TableDigest};
use crate::telemetry::{self, LogFormat};

/// One digest for each table of what a rebuilt database must have in common with the original, the same on SQLite and
/// PostgreSQL. Exit code 1 when a table differs from that of --against.
#[derive(Debug, Args)]
pub(super) struct Checksum {
    #[command(flatten)]
    pub(super) config: WithConfig,
    /// The database to look at, instead of the configuration's
    #[arg(long, value_name = "DATABASE_URL")]
    database: Option<String>,
    /// Another database that should hold the same
    #[arg(long, value_name = "DATABASE_URL")]
    against: Option<String>,
    /// Print the digests as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    tables: &'a [TableDigest],
    against: Option<&'a [TableDigest]>,
    /// The tables that are not the same.
    differ: &'a [&'static str],
}

pub(super) async fn run(config: &Config, options: &Checksum, format: LogFormat) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let url = options.database.as_deref().unwrap_or(config.database.url.expose());
    let tables = digests(url).await?;
    let against = match options.against.as_deref() {
        Some(url) => Some(digests(url).await.context("--against")?),
        None => None,
    };
    let others = against.as_deref().unwrap_or(&tables);
    let pairs = tables.iter().zip(others);
    let differ: Vec<&str> = pairs.filter(|(one, other)| one != other).map(|(one, _)| one.table).collect();
    if options.json {
        let report = Report { tables: &tables, against: against.as_deref(), differ: &differ };
        print(&serde_json::to_string_pretty(&report).context("cannot write the digests as JSON")?)?;
    } else {
        tables.iter().try_for_each(|digest| print(&digest.to_string()))?;
    }
    guard.shutdown().await;
    if against.is_none() {
        return Ok(ExitCode::SUCCESS);
    }
    for (one, other) in tables.iter().zip(others).filter(|(one, other)| one != other) {
        say(&format!("error: {} differs: {} rows here, {} there", one.table, one.rows, other.rows));
    }
    if differ.is_empty() {
        say(&format!("the same in everything that the streams hold; not compared: {NOT_REBUILT}"));
    }
    Ok(if differ.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn digests(url: &str) -> anyhow::Result<Vec<TableDigest>> {
    let archive = Archive::open(url, 1).await?;
    let digests = archive.digests().await;
    archive.close().await;
    Ok(digests?)
}
