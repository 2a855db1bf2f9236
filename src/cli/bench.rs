//! `turnwise bench`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{WithConfig, print, say};
use crate::bench::{self, BenchError, Options, Scale, Shape};
use crate::config::Config;
use crate::telemetry::{self, LogFormat};

/// Plays Telegram for a bot whose api_base is a free loopback address: posts messages to its webhook, takes its replies, and
/// reports throughput, latency and what the processes used. Exit code 1 when a message was not answered exactly once and in
/// order.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(flatten)]
    pub(super) config: WithConfig,
    /// The Telegram bot to talk to, when there are several
    #[arg(long)]
    bot: Option<String>,
    /// The loads, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "s1")]
    shape: Vec<Shape>,
    /// Messages in all, instead of the shape's own number
    #[arg(long, value_name = "N", value_parser = count)]
    messages: Option<usize>,
    /// Conversations, instead of the shape's own number
    #[arg(long, value_name = "N", value_parser = count)]
    conversations: Option<usize>,
    /// Messages without a reply at once, instead of the shape's own number
    #[arg(long, value_name = "N", value_parser = count)]
    in_flight: Option<usize>,
    /// Seconds that one shape may take
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    timeout: u64,
    /// The deployment's processes [default: the one that listens on http.listen]
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// Leave out the ceilings of NATS and of the database
    #[arg(long)]
    no_ceilings: bool,
    /// Print the report as JSON instead of Markdown
    #[arg(long)]
    json: bool,
}

/// A million conversations are more than a machine with a load generator on it holds.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("a number from 1 to 1000000".to_owned()),
    }
}

pub(super) async fn run(config: &Config, arguments: &Bench, format: LogFormat) -> anyhow::Result<ExitCode> {
    let guard = telemetry::init_quiet(&config.telemetry, format)?;
    let options = Options {
        config_file: arguments.config.config.clone(),
        bot: arguments.bot.clone(),
        shapes: arguments.shape.clone(),
        scale: Scale {
            conversations: arguments.conversations,
            messages: arguments.messages,
            in_flight: arguments.in_flight,
        },
        timeout: Duration::from_secs(arguments.timeout),
        pids: arguments.pid.clone(),
        ceilings: !arguments.no_ceilings,
    };
    let report = bench::run(config, &options, |phase| say(&format!("bench: {phase}"))).await;
    guard.shutdown().await;
    let report = match report {
        Err(error @ BenchError::Unsuitable(_)) => {
            say(&format!("error: {error}"));
            return Ok(ExitCode::from(2));
        }
        report => report?,
    };
    if arguments.json {
        print(&serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?)?;
    } else {
        print(&report.to_markdown())?;
    }
    Ok(if report.is_correct() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
