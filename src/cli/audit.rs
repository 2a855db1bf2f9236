//! `turnwise audit`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::{WithConfig, open_inbound, print, progress};
use crate::audit::{self, Report};
use crate::config::Config;
use crate::telemetry::{self, LogFormat};

#[derive(Debug, Args)]
pub(super) struct Audit {
    #[command(flatten)]
    pub(super) config: WithConfig,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Lines of each kind of fault in the report for people; the JSON has more.
const LISTED: usize = 20;

pub(super) async fn run(config: &Config, options: &Audit, format: LogFormat) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let (backends, inbound) = open_inbound(config).await?;
    let report = audit::run(&inbound, &backends.store, progress).await;
    backends.close().await;
    let report = report?;
    if options.json {
        print(&serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?)?;
    } else {
        describe(&report)?;
    }
    guard.shutdown().await;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(report: &Report) -> anyhow::Result<()> {
    print(&format!("messages on the stream    {}", report.messages))?;
    for (state, count) in &report.states {
        print(&format!("  in the ledger           {count} {state}"))?;
    }
    for (status, count) in &report.deliveries {
        print(&format!("  deliveries              {count} {status}"))?;
    }
    print(&format!("missing from the ledger   {}", report.missing))?;
    for missing in report.missing_messages.iter().take(LISTED) {
        print(&format!("  {} {} at {}", missing.conversation, missing.message_id, missing.sequence))?;
    }
    print(&format!("doubled turns             {}", report.doubled.len()))?;
    print(&format!("turns out of order        {}", report.out_of_order.len()))?;
    for turn in report.doubled.iter().chain(&report.out_of_order).take(LISTED) {
        print(&format!("  {turn}"))?;
    }
    Ok(())
}
