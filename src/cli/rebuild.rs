//! `turnwise rebuild`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::{WithConfig, print, progress, say};
use crate::config::{Config, Database, Secret};
use crate::rebuild::{self, NOT_REBUILT, RebuildError, Report, Streams};
use crate::server::{self, Backends};
use crate::store::StoreError;
use crate::stream::{self, Lane};
use crate::telemetry::{self, LogFormat};

#[derive(Debug, Args)]
pub(super) struct Rebuild {
    #[command(flatten)]
    pub(super) config: WithConfig,
    /// The empty database to be filled: sqlite://PATH or postgres://...
    #[arg(long, value_name = "DATABASE_URL")]
    into: String,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Config, options: &Rebuild, format: LogFormat) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let database = Database { url: Secret::new(options.into.clone()), ..config.database.clone() };
    let config = Config { database, ..config.clone() };
    if let Some(code) = unusable(&config).await? {
        return Ok(code);
    }
    let backends = Backends::open(&config).await?;
    let report = fill(&config, &backends).await;
    backends.close().await;
    let report = report?;
    match options.json {
        true => print(&serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?)?,
        false => describe(&report)?,
    }
    say(&format!("not on the streams, and so not rebuilt: {NOT_REBUILT}"));
    guard.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

/// The exit code when the database cannot be filled, after it was said why. Looked at before anything is changed.
async fn unusable(config: &Config) -> anyhow::Result<Option<ExitCode>> {
    let store = match server::open_store(config).await {
        Ok(store) => store,
        Err(error) => {
            let is_wrong = error.downcast_ref::<StoreError>().is_some_and(|error| {
                matches!(
                    error,
                    StoreError::UnknownScheme { .. } | StoreError::NoFile | StoreError::MissingFolder { .. }
                )
            });
            if is_wrong {
                say(&format!("error: --into: {error:#}"));
                return Ok(Some(ExitCode::from(2)));
            }
            return Err(error);
        }
    };
    let refused = rebuild::refuse_used(&store).await;
    store.close().await;
    match refused {
        Err(RebuildError::NotEmpty) => {
            say("error: --into: the database is not empty; nothing was done\nhint: name a new one");
            Ok(Some(ExitCode::from(2)))
        }
        refused => Ok(refused.map(|()| None)?),
    }
}

async fn fill(config: &Config, backends: &Backends) -> anyhow::Result<Report> {
    let connection = &backends.connection;
    // One that is missing must not be made, and one of other partitions would be read in vain.
    stream::existing(connection, Lane::Inbound).await?;
    let streams = Streams {
        inbound: stream::ensure(connection, &config.nats, Lane::Inbound).await?,
        outbound: stream::existing(connection, Lane::Outbound).await?,
        dead: stream::existing(connection, Lane::Dead).await?,
    };
    Ok(rebuild::run(&streams, &backends.store, &config.bots, config.nats.partitions, progress).await?)
}

fn describe(report: &Report) -> anyhow::Result<()> {
    print(&format!("messages on the stream    {}", report.messages))?;
    for (state, count) in &report.states {
        print(&format!("  in the ledger           {count} {state}"))?;
    }
    print(&format!("  without a known reply   {}, among those handed_off", report.without_reply))?;
    print(&format!("  sent twice              {}", report.repeated))?;
    print(&format!("  not ended yet           {}, to run when the deployment starts", report.left))?;
    print(&format!("conversations             {}", report.conversations))?;
    print(&format!("deliveries                {}, all uncertain", report.deliveries))?;
    print(&format!("replies joined of parts   {}", report.joined))
}
