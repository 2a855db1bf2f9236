//! Logs, traces and metrics: what is installed once per process, and the closed lists of names.
//!
//! Refuses to record message bodies or secrets: nothing here is handed any. Invariant: whether or not traces are exported,
//! every span has a trace id, so that an answer of the API can name one and a log line can be found by it; without
//! `otlp_endpoint` spans are named when somebody asks, which is the whole cost.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{self, OtlpProtocol};

mod context;
pub mod metric;
pub mod span;

pub use context::{Wait, current_traceparent, extract, inject, link, record_wait, set_attribute, set_parent, trace_id};
pub use metric::Metrics;
pub use opentelemetry::KeyValue;

/// How long the last spans may take to leave when the process stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// One batch of spans is sent or given up within this time.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a log line looks on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line: `timestamp`, `level`, `target`, `message`, the event's fields, `span`.
    Json,
}

impl LogFormat {
    /// Text when stderr is a terminal, JSON otherwise.
    #[must_use]
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// An error with its causes on one line, each said once, as logs show it.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !line.ends_with(&said) {
            line.push_str(": ");
            line.push_str(&said);
        }
        source = cause.source();
    }
    line
}

/// What is wrong with a JSON text, and where: serde_json's own words quote the value at fault, which may be what a person
/// wrote.
#[must_use]
pub fn json_fault(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let fault = match error.classify() {
        Category::Io => "it cannot be read",
        Category::Syntax => "it is not JSON",
        Category::Data => "a value is not of the expected kind",
        Category::Eof => "it ends too early",
    };
    format!("{fault}, line {} column {}", error.line(), error.column())
}

/// Keeps the exporter; spans still queued are sent by [`TelemetryGuard::shutdown`].
#[derive(Debug)]
#[must_use = "spans of the last seconds are lost unless it is shut down"]
pub struct TelemetryGuard {
    /// None where no traces are exported.
    provider: Option<SdkTracerProvider>,
}

/// Installs logs and traces for the whole process; called once, by `main` or by a program that embeds this library.
///
/// Logs go to stderr, their level by `RUST_LOG` (default `info`), which does not touch traces: those take every span and
/// event from `info` upward, except of the HTTP client that exports them.
///
/// # Errors
///
/// `RUST_LOG` or `otlp_endpoint` is malformed, or a subscriber is already installed.
///
/// # Panics
///
/// With `otlp_protocol = "grpc"` outside a Tokio runtime.
pub fn init(config: &config::Telemetry, format: LogFormat) -> anyhow::Result<TelemetryGuard> {
    // The clients of NATS and MCP tell every connection's life, the latter with the messages on it; what matters of it is
    // logged by whoever holds the connection.
    install(config, format, "info,async_nats=error,rmcp=off")
}

/// The same for a command that is over soon and whose own words are what its user wants: logs only from `warn` upward,
/// unless `RUST_LOG` says otherwise, and no traces.
///
/// # Errors
///
/// As [`init`].
pub fn init_quiet(config: &config::Telemetry, format: LogFormat) -> anyhow::Result<TelemetryGuard> {
    let local = config::Telemetry { otlp_endpoint: None, ..config.clone() };
    install(&local, format, "warn,async_nats=error,rmcp=off")
}

/// The same for a command that has traces of its own to export.
///
/// # Errors
///
/// As [`init`].
///
/// # Panics
///
/// As [`init`].
pub fn init_command(config: &config::Telemetry, format: LogFormat) -> anyhow::Result<TelemetryGuard> {
    install(config, format, "warn,async_nats=error,rmcp=off")
}

fn install(config: &config::Telemetry, format: LogFormat, levels: &str) -> anyhow::Result<TelemetryGuard> {
    install_crypto_provider();
    let levels = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| levels.to_owned());
    let provider = tracer_provider(config)?;
    tracing_subscriber::registry()
        .with(trace_layer(provider.as_ref()))
        .with(filtered(log_layer(format, std::io::stderr), &levels)?)
        .try_init()
        .context("logging is already set up in this process")?;
    Ok(TelemetryGuard { provider })
}

impl TelemetryGuard {
    /// Sends what is queued and stops exporting; returns after at most five seconds, also when nobody listens.
    pub async fn shutdown(self) {
        // The exporter's client blocks, and its runtime must not be dropped on one of ours.
        let Some(provider) = self.provider else { return };
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
        match tokio::time::timeout(SHUTDOWN_TIMEOUT, sent).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(error = %error, "the last traces could not be exported"),
            Ok(Err(error)) => tracing::warn!(error = %error, "the trace exporter did not stop cleanly"),
            Err(_) => tracing::warn!("the last traces could not be exported in time"),
        }
    }
}

/// Chooses ring for every TLS connection of the process; calling it again, or after another choice, changes nothing.
///
/// `reqwest` is built without a provider of its own, and building any client of it before this call panics.
pub fn install_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Err means that another thread was quicker, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// None when traces are not to be exported.
fn tracer_provider(config: &config::Telemetry) -> anyhow::Result<Option<SdkTracerProvider>> {
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
    let resource = Resource::builder()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let provider = SdkTracerProvider::builder().with_resource(resource);
    let exporter = exporter(config.otlp_protocol, endpoint)?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
    Ok(Some(provider.with_batch_exporter(exporter).with_sampler(sampler).build()))
}

fn exporter(protocol: OtlpProtocol, endpoint: &str) -> anyhow::Result<SpanExporter> {
    let exporter = match protocol {
        OtlpProtocol::Http => SpanExporter::builder()
            .with_http()
            .with_http_client(blocking_client()?)
            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
            .with_endpoint(traces_url(endpoint))
            .with_timeout(EXPORT_TIMEOUT)
            .build(),
        // Connects when there is something to send, on the runtime of this call.
        OtlpProtocol::Grpc => {
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT);
            match endpoint.starts_with("https://") {
                // Without being told, it trusts nobody.
                true => exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots()).build(),
                false => exporter.build(),
            }
        }
    };
    exporter.context("telemetry.otlp_endpoint cannot be used")
}

/// The batch processor runs on a thread without a reactor, so only the blocking client exports anything. It is named here
/// because the default is whichever client some crate's feature switches on. Built on a thread of its own, since it
/// refuses to be built inside an async runtime.
fn blocking_client() -> anyhow::Result<reqwest::blocking::Client> {
    let built = std::thread::spawn(|| reqwest::blocking::Client::builder().timeout(EXPORT_TIMEOUT).build()).join();
    built
        .map_err(|_| anyhow::anyhow!("the trace exporter's HTTP client panicked while it was set up"))?
        .context("the trace exporter's HTTP client could not be set up")
}

/// The log's lines of these levels. Directives that name only targets, as most do, are judged without a look at the spans
/// around each line.
fn filtered<S>(layer: Box<dyn Layer<S> + Send + Sync>, levels: &str) -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + Send + Sync + for<'lookup> LookupSpan<'lookup>,
{
    if let Ok(targets) = levels.parse::<Targets>() {
        let default = targets.default_level().unwrap_or(LevelFilter::INFO);
        return Ok(layer.with_filter(targets.with_default(default)).boxed());
    }
    let levels = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(levels)
        .context("RUST_LOG is malformed; right would be for example info or warn,turnwise=debug")?;
    Ok(layer.with_filter(levels).boxed())
}

fn trace_layer<S>(provider: Option<&SdkTracerProvider>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + Send + Sync + for<'lookup> LookupSpan<'lookup>,
{
    let Some(provider) = provider else { return context::Naming.with_filter(traced_targets()).boxed() };
    let tracer = provider.tracer("turnwise");
    tracing_opentelemetry::layer()
        .with_tracer(tracer.clone())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .and_then(context::Backdating::new(tracer))
        .with_filter(traced_targets())
        .boxed()
}

/// The OTLP specification's path for traces, unless the setting already has it.
fn traces_url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") }
}

/// An exporter that traces its own requests would never fall silent. The MCP client has spans as long as a session, and events
/// that hold messages.
fn traced_targets() -> Targets {
    ["h2", "hyper", "opentelemetry", "process_wrap", "reqwest", "rmcp", "rustls", "tonic", "tower"]
        .into_iter()
        .fold(Targets::new().with_default(LevelFilter::INFO), |targets, target| {
            targets.with_target(target, LevelFilter::OFF)
        })
}

fn log_layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + Send + Sync + for<'lookup> LookupSpan<'lookup>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            layer.with_ansi(!plain && std::io::stderr().is_terminal()).boxed()
        }
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::registry().with(log_layer(format, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn a_json_line_has_flat_fields_and_its_span() -> Result<(), serde_json::Error> {
        let output = logged(LogFormat::Json, || {
            tracing::info_span!("outer").in_scope(|| {
                tracing::info_span!("turn", partition = 7).in_scope(|| tracing::warn!(delay_ms = 20, "slow turn"));
            });
        });
        assert_eq!(output.lines().count(), 1, "one event is one line: {output}");
        let line: serde_json::Value = serde_json::from_str(&output)?;
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "slow turn");
        assert_eq!(line["delay_ms"], 20);
        assert_eq!(line["span"], serde_json::json!({ "name": "turn", "partition": 7 }));
        assert_eq!(line["target"], "turnwise::telemetry::tests");
        assert!(line["timestamp"].as_str().is_some_and(|moment| moment.ends_with('Z')), "UTC: {line}");
        assert!(line.get("spans").is_none(), "the list of spans would repeat the span: {line}");
        Ok(())
    }

    #[test]
    fn text_away_from_a_terminal_has_no_colours() {
        let output = logged(LogFormat::Text, || tracing::info!(count = 3, "started"));
        assert!(output.contains("started") && output.contains("count=3"), "{output}");
        assert!(io::stderr().is_terminal() || !output.contains('\u{1b}'), "{output:?}");
    }

    #[test]
    fn secrets_are_redacted_in_both_formats() {
        let secret = config::Secret::new("hunter2".to_owned());
        for format in [LogFormat::Text, LogFormat::Json] {
            let output = logged(format, || tracing::info!(token = ?secret, "configured"));
            assert!(output.contains("[redacted]") && !output.contains("hunter2"), "{output}");
        }
    }

    #[test]
    fn without_an_exporter_there_are_trace_ids_that_ask_nobody_to_record() -> anyhow::Result<()> {
        let settings = config::Telemetry {
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Http,
            service_name: "turnwise".to_owned(),
            sample_ratio: 1.0,
            record_content: false,
        };
        let provider = tracer_provider(&settings)?;
        let silent = log_layer(LogFormat::Text, io::sink).with_filter(LevelFilter::OFF);
        let subscriber = tracing_subscriber::registry().with(trace_layer(provider.as_ref())).with(silent);
        tracing::subscriber::with_default(subscriber, || {
            let received = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let span = tracing::info_span!("turn");
            set_parent(&span, Some(received));
            assert_eq!(trace_id(&span).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
            assert!(current_traceparent(&span).is_some_and(|context| context.ends_with("-00")));
            let other = tracing::info_span!("another turn");
            set_parent(&other, Some("nonsense"));
            assert!(trace_id(&other).is_some_and(|id| id.len() == 32 && Some(id) != trace_id(&span)));
        });
        Ok(())
    }

    #[test]
    fn the_traces_path_is_added_once() {
        let check = |endpoint, expected| assert_eq!(traces_url(endpoint), expected);
        check("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces");
        check("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces");
        check("https://collector.example/otel/v1/traces", "https://collector.example/otel/v1/traces");
    }
}
