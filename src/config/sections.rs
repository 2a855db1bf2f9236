//! The tables that describe the process: `[http]`, `[database]`, `[worker]`, `[telemetry]`, `[console]`.
//!
//! Refuses to look at more than its own table. Invariant: every number has a range, and its reason stands beside it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::expected::{Expected, base_url, duration, flag, number, socket_address, text, whole, word};
use super::reader::{Reading, Table};
use super::secret::{self, Secret};
use super::{Console, Database, Http, OtlpProtocol, Telemetry, Worker};

/// Below 1 KiB not even an empty update fits. A Telegram update has at most 512 KiB; 64 MiB is JetStream's own largest message.
const BODY_BYTES: RangeInclusive<usize> = 1_024..=67_108_864;

/// Each takes a socket and some 30 KiB of buffers: a million of them are 30 GiB.
const HTTP_CONNECTIONS: RangeInclusive<usize> = 8..=1_000_000;

/// Orchestrators kill what has not stopped after some minutes, whatever is written here.
const SHUTDOWN_GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

pub(super) fn http(table: &Table<'_>) -> Http {
    let default = Http::default();
    let http = Http {
        listen: table.optional("listen", &socket_address()).unwrap_or(default.listen),
        public_url: table.optional("public_url", &base_url("https://bots.example.com")),
        max_body_bytes: table.optional("max_body_bytes", &whole(BODY_BYTES)).unwrap_or(default.max_body_bytes),
        max_connections: table.optional("max_connections", &whole(HTTP_CONNECTIONS)).unwrap_or(default.max_connections),
        shutdown_grace: table
            .optional("shutdown_grace", &duration(SHUTDOWN_GRACE, "30s"))
            .unwrap_or(default.shutdown_grace),
    };
    table.finish(&[]);
    http
}

/// PostgreSQL's default is 100 connections for everybody together; 1,000 is a server tuned for it.
const CONNECTIONS: RangeInclusive<u32> = 1..=1_000;

/// `None` after a problem.
pub(super) fn database(table: &Table<'_>) -> Option<Database> {
    let url = match table.value("url") {
        Some(value) => value.secret(&secret::DATABASE_URL).map(|url| absolute(table.reading, &url)),
        None => Some(absolute(table.reading, &Secret::new("sqlite://turnwise.db".to_owned()))),
    };
    let max_connections =
        table.optional("max_connections", &whole(CONNECTIONS)).unwrap_or(Database::DEFAULT_MAX_CONNECTIONS);
    table.finish(&[]);
    Some(Database { url: url?, max_connections })
}

/// An SQLite path counts from the configuration file's folder, whatever the working directory is.
fn absolute(reading: &Reading<'_>, url: &Secret) -> Secret {
    match url.expose().strip_prefix("sqlite:") {
        Some(path) => Database::sqlite_url(&reading.resolve(path.strip_prefix("//").unwrap_or(path))),
        None => url.clone(),
    }
}

/// Each turn in flight holds its history, some 40 KiB: 100,000 of them are 4 GiB.
pub(super) const TURNS: RangeInclusive<usize> = 1..=100_000;

/// The stream consumer's window is 10,000 unacknowledged messages; a longer lane could fill it alone.
const LANE_BACKLOG: RangeInclusive<usize> = 1..=10_000;

/// At the retries' longest pause, a hundred attempts are hours in which the conversation stands still.
const ATTEMPTS: RangeInclusive<u32> = 1..=100;

/// A person does not wait for an hour; below a second no model answers.
const TURN_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);

pub(super) fn worker(table: &Table<'_>) -> Worker {
    let default = Worker::default();
    let worker = Worker {
        max_turns: table.optional("max_turns", &whole(TURNS)).unwrap_or(default.max_turns),
        lane_backlog: table.optional("lane_backlog", &whole(LANE_BACKLOG)).unwrap_or(default.lane_backlog),
        max_attempts: table.optional("max_attempts", &whole(ATTEMPTS)).unwrap_or(default.max_attempts),
        turn_timeout: table.optional("turn_timeout", &duration(TURN_TIMEOUT, "2m")).unwrap_or(default.turn_timeout),
    };
    table.finish(&[]);
    worker
}

/// OpenTelemetry limits no attribute's length by default; a service name stands in every list and legend.
const SERVICE_NAME_CHARS_MAX: usize = 255;

const OTLP_PROTOCOLS: &[(&str, OtlpProtocol)] = &[("http", OtlpProtocol::Http), ("grpc", OtlpProtocol::Grpc)];

pub(super) fn telemetry(table: &Table<'_>) -> Telemetry {
    let default = Telemetry::default();
    let telemetry = Telemetry {
        otlp_endpoint: table.optional("otlp_endpoint", &base_url("http://127.0.0.1:4318")),
        otlp_protocol: table.optional("otlp_protocol", &word(OTLP_PROTOCOLS)).unwrap_or(default.otlp_protocol),
        service_name: table.optional("service_name", &text(SERVICE_NAME_CHARS_MAX)).unwrap_or(default.service_name),
        sample_ratio: table.optional("sample_ratio", &number(0.0..=1.0)).unwrap_or(default.sample_ratio),
        record_content: table.optional("record_content", &flag()).unwrap_or(default.record_content),
    };
    table.finish(&[]);
    telemetry
}

pub(super) fn console(table: &Table<'_>) -> Console {
    let console = Console {
        token: table.optional_secret("token", &secret::ANY),
        read_token: table.optional_secret("read_token", &secret::ANY),
        trace_url: table.optional("trace_url", &trace_url()),
        replays: table.optional("replays", &text(PATH_CHARS_MAX)).map(|path| table.reading.resolve(&path)),
        is_open: false,
    };
    if let (Some(token), Some(read_token)) = (&console.token, &console.read_token)
        && token == read_token
    {
        table.problem("token and read_token are the same", "give whoever may only look a token of their own");
    }
    table.finish(&[]);
    console
}

/// The longest path that Linux takes.
const PATH_CHARS_MAX: usize = 4_096;

/// What stands for a trace's id in `console.trace_url`.
pub(crate) const TRACE_ID_PLACE: &str = "{trace_id}";

fn trace_url() -> Expected<String> {
    let right = "write an address such as \"https://traces.example.com/trace/{trace_id}\"";
    Expected::text(right, |text| match url::Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => Err("is no http:// or https:// address".to_owned()),
        Ok(_) if text.contains(TRACE_ID_PLACE) => Ok(text.to_owned()),
        Ok(_) => Err(format!("has no {TRACE_ID_PLACE} in it")),
        Err(_) => Err("is not an address".to_owned()),
    })
}
