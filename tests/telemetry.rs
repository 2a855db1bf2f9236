//! Spans arrive at a real OTLP endpoint, with the right parents, times and links, by the time shutdown returns.
//!
//! One test, because the subscriber is the process's own. That it fails when nothing arrives is its point: a trace exporter
//! whose HTTP client does not fit its thread exports nothing and says nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use collector::Collector;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use turnwise::config;
use turnwise::message::Timestamp;
use turnwise::telemetry::{self, KeyValue, LogFormat, Wait, span};

#[path = "support/collector.rs"]
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod collector;

const START: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);
const END: Timestamp = Timestamp::from_micros(1_790_000_000_250_000);

#[tokio::test]
async fn spans_reach_a_collector_whole() {
    let mut collector = Collector::http().await;
    let settings = config::Telemetry {
        otlp_endpoint: Some(collector.endpoint.clone()),
        otlp_protocol: config::OtlpProtocol::Http,
        service_name: "turnwise-test".to_owned(),
        sample_ratio: 1.0,
        record_content: false,
    };
    let guard = telemetry::init(&settings, LogFormat::Json).unwrap();
    assert!(telemetry::init(&settings, LogFormat::Json).is_err(), "a second subscriber is refused, not ignored");

    let mut headers = async_nats::HeaderMap::new();
    let trace_id = publish(&mut headers);
    let blocking = tracing::info_span!("blocking turn");
    process(&headers, &telemetry::current_traceparent(&blocking).unwrap());
    drop(blocking);
    tracing::info_span!(target: "reqwest::connect", "exporter's own request").in_scope(|| ());
    guard.shutdown().await;

    let exported = collector.batches();
    let service = &exported[0].resource.as_ref().unwrap().attributes;
    assert!(service.iter().any(|attribute| {
        attribute.key == "service.name" && format!("{:?}", attribute.value).contains("turnwise-test")
    }));
    let spans = by_name(exported);
    let names = [span::COMMIT, "blocking turn", span::PROCESS_IN, span::SEND_IN, span::LANE_WAIT];
    let mut found: Vec<_> = spans.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, names);

    let [send, process, wait, commit] =
        [span::SEND_IN, span::PROCESS_IN, span::LANE_WAIT, span::COMMIT].map(|name| &spans[name]);
    assert_eq!(hex::encode(&send.trace_id), trace_id);
    assert!(send.parent_span_id.is_empty(), "the message's trace starts where it is received");
    assert_eq!(process.parent_span_id, send.span_id);
    assert_eq!(process.links[0].span_id, send.span_id);
    assert_eq!(wait.parent_span_id, send.span_id);
    assert_eq!(commit.parent_span_id, process.span_id);
    assert!([process, wait, commit].iter().all(|span| span.trace_id == send.trace_id), "one turn is one trace");
    assert_eq!((send.kind, process.kind, wait.kind), (4, 5, 1), "producer, consumer, internal");

    let nanoseconds = |moment: Timestamp| u64::try_from(moment.as_micros()).unwrap() * 1_000;
    assert_eq!((wait.start_time_unix_nano, wait.end_time_unix_nano), (nanoseconds(START), nanoseconds(END)));
    assert_eq!(wait.links[0].span_id, spans["blocking turn"].span_id);
    assert_eq!(wait.attributes[0].key, "turnwise.lane.position");
}

/// What ingress does: a span, whose context goes into the message.
fn publish(headers: &mut async_nats::HeaderMap) -> String {
    let send = tracing::info_span!("send turnwise.in", otel.kind = "producer");
    telemetry::inject(headers, &send);
    telemetry::trace_id(&send).unwrap()
}

/// What a worker does: the parent comes from the message, waits are recorded when they are over.
fn process(headers: &async_nats::HeaderMap, blocking: &str) {
    let parent = telemetry::extract(headers).unwrap();
    telemetry::record_wait(&Wait {
        name: span::LANE_WAIT,
        parent: &parent,
        start: START,
        end: END,
        link: Some(blocking),
        attributes: vec![KeyValue::new("turnwise.lane.position", 3)],
    });
    let process = tracing::info_span!("process turnwise.in", otel.kind = "consumer");
    telemetry::set_parent(&process, Some(&parent));
    telemetry::link(&process, &parent);
    process.in_scope(|| tracing::info_span!("COMMIT turn").in_scope(|| ()));
}

fn by_name(exported: Vec<ResourceSpans>) -> HashMap<String, Span> {
    let scopes = exported.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| (span.name.clone(), span)).collect()
}
