//! One turn is one trace: a Telegram message through the real binary, and what a collector, the log and `/metrics` have of
//! it afterwards. None of the three holds a word of the conversation or a secret.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::Value;
use support::process::{CONSOLE_TOKEN, WEB_KEY, quoted};
use support::responder::{API_KEY, Behaviour};
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::telegram::{Fault, SECRET, TOKEN};
use support::{PATIENCE, http_client};
use tokio::sync::mpsc;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const CHAT: i64 = 5151;
const QUESTION: &str = "my card ends in seventeen";
const ANSWER: &str = "then it is the blue card";

/// The trace that the outside world would like to be part of.
const OUTSIDE_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_turn_is_one_trace_and_tells_nothing_that_was_said() {
    let (endpoint, mut received) = collector().await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("telemetry", "otlp_endpoint", &quoted(&endpoint)).web_bot("web", RESPONDER);
    })
    .await;
    deployment.model.answer_with(QUESTION, ANSWER);
    // The platform asks for patience once: two attempts at one delivery.
    deployment.telegram.fail_next(CHAT, Fault::TooManyRequests { retry_after: 1 });
    let update = deployment.telegram.update(CHAT, QUESTION);
    let webhook = deployment.turnwise.url(&format!("/webhooks/telegram/{BOT}"));
    let send = |secret: &str| {
        let request = http_client().post(&webhook).header("X-Telegram-Bot-Api-Secret-Token", secret);
        request.header("traceparent", format!("00-{OUTSIDE_TRACE}-b7ad6b7169203331-01")).json(&update).send()
    };
    assert_eq!(send("wrong-stand-in").await.unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(send(SECRET).await.unwrap().status(), StatusCode::OK);
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, [ANSWER]);
    deployment.settled(1, PATIENCE).await;
    let metrics = http_client().get(deployment.turnwise.url("/metrics")).send().await.unwrap().text().await.unwrap();
    deployment.turnwise.terminate().await;

    let mut spans = Vec::new();
    while let Ok(batch) = received.try_recv() {
        spans.extend(batch);
    }
    check_trace(&spans);
    check_metrics(&metrics);
    let log = std::fs::read_to_string(deployment.turnwise.log()).unwrap();
    let lines = log.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>();
    let lines = lines.expect("every line of the log is JSON");
    assert!(lines.iter().any(|line| line["message"] == "waiting"), "the log tells of the platform's refusal");
    assert_silent("the log", &log);
    assert_silent("the metrics", &metrics);
    assert_silent("the spans", &format!("{spans:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_that_repeats_the_token_brings_it_nowhere() {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    deployment.telegram.fail_next(CHAT, Fault::Repeats);
    deployment.telegram.send(CHAT, QUESTION);
    deployment.settled(1, PATIENCE).await;
    assert_eq!(deployment.ledger.deliveries().await[0].status, "failed");
    deployment.turnwise.terminate().await;
    let log = std::fs::read_to_string(deployment.turnwise.log()).unwrap();
    assert!(log.contains("Bad Request: POST /bot[redacted]/sendMessage"), "the reason is told: {log}");
    assert_silent("the log", &log);
}

/// Names, parents and the attributes that dashboards rely on.
fn check_trace(spans: &[Span]) {
    let accepted = spans
        .iter()
        .find(|span| {
            span.name == "POST /webhooks/telegram/{bot}" && text(span, "turnwise.ingress.outcome") == "accepted"
        })
        .unwrap_or_else(|| panic!("no request among {:?}", tree(spans)));
    assert_ne!(hex::encode(&accepted.trace_id), OUTSIDE_TRACE, "an outside trace is not joined");
    assert!(accepted.parent_span_id.is_empty(), "the request is the root");
    let turn: Vec<Span> = spans.iter().filter(|span| span.trace_id == accepted.trace_id).cloned().collect();
    insta::assert_snapshot!(tree(&turn).join("\n"), @r"
    POST /webhooks/telegram/{bot} SERVER
      send turnwise.in PRODUCER
        process turnwise.in CONSUMER
          COMMIT turn CLIENT
          ack turnwise.in CLIENT
          invoke_agent assistant INTERNAL
            chat stand-in CLIENT
          process turnwise.out CONSUMER
            POST CLIENT
          process turnwise.out CONSUMER
            POST CLIENT
            ack turnwise.out CLIENT
            turnwise.egress.wait INTERNAL
        turnwise.lane.wait INTERNAL
        turnwise.stream.wait INTERNAL
    ");

    let refused = spans.iter().find(|span| text(span, "turnwise.ingress.outcome") == "unauthorized").unwrap();
    assert_eq!(text(refused, "http.response.status_code"), "401");
    assert_ne!(refused.trace_id, accepted.trace_id);

    let one = |name: &str| turn.iter().find(|span| span.name == name).unwrap();
    let (publish, process) = (one("send turnwise.in"), one("process turnwise.in"));
    assert_eq!(process.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [&publish.span_id]);
    for (span, attributes) in [
        (
            accepted,
            &["http.request.method=POST", "http.route=/webhooks/telegram/{bot}", "http.response.status_code=200"][..],
        ),
        (publish, &["messaging.system=nats", "turnwise.stream.sequence=1", "turnwise.publish.duplicate=false"]),
        (process, &["turnwise.attempt=1", "turnwise.epoch=1", "messaging.system=nats", "turnwise.stream.sequence=1"]),
        (one("chat stand-in"), &["gen_ai.operation.name=chat", "gen_ai.request.model=stand-in"]),
        (one("turnwise.lane.wait"), &["turnwise.lane.position=0"]),
        (one("COMMIT turn"), &["db.system.name=sqlite", "turnwise.commit.outcome=ok"]),
    ] {
        for attribute in attributes {
            let (name, value) = attribute.split_once('=').unwrap();
            assert_eq!(text(span, name), value, "{name} of {}", span.name);
        }
    }
    let partition = |span| text(span, "messaging.destination.partition.id");
    assert!(!partition(publish).is_empty() && partition(publish) == partition(process));
    for name in ["gen_ai.conversation.id", "turnwise.turn.id", "messaging.message.id"] {
        assert!(!text(process, name).is_empty(), "{name} of the turn");
    }
    let mut attempts: Vec<_> = turn
        .iter()
        .filter(|span| span.name == "POST")
        .map(|span| {
            ["http.request.resend_count", "http.response.status_code", "error.type"].map(|name| text(span, name))
        })
        .collect();
    attempts.sort();
    assert_eq!(attempts, [["0", "429", "rate_limited"], ["1", "200", ""]].map(|attempt| attempt.map(str::to_owned)));
    for span in &turn {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{} ends before it begins", span.name);
    }
}

/// The spans as an indented tree, children by time, then name; with kinds.
fn tree(spans: &[Span]) -> Vec<String> {
    const KINDS: [&str; 6] = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
    fn below(parent: &[u8], depth: usize, children: &BTreeMap<&[u8], Vec<&Span>>, lines: &mut Vec<String>) {
        let mut spans = children.get(parent).cloned().unwrap_or_default();
        spans.sort_by(|left, right| {
            (&left.name, left.start_time_unix_nano).cmp(&(&right.name, right.start_time_unix_nano))
        });
        for span in spans {
            let kind = KINDS[usize::try_from(span.kind).unwrap()];
            lines.push(format!("{}{} {kind}", "  ".repeat(depth), span.name));
            below(&span.span_id, depth + 1, children, lines);
        }
    }
    let mut children: BTreeMap<&[u8], Vec<&Span>> = BTreeMap::new();
    for span in spans {
        children.entry(&span.parent_span_id).or_default().push(span);
    }
    let mut lines = Vec::new();
    below(&[], 0, &children, &mut lines);
    assert_eq!(lines.len(), spans.len(), "every parent is exported: {lines:?}");
    lines
}

fn check_metrics(page: &str) {
    let mut helped = BTreeSet::new();
    let mut told = BTreeSet::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["#", "HELP", name, _, ..] => drop(helped.insert(name)),
            ["#", "TYPE", name, _] => drop(told.insert(name)),
            _ => {
                let name = line.split(['{', ' ']).next().unwrap();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
                let known = told.contains(name) || base.is_some_and(|base| told.contains(base));
                assert!(known, "{name} has no TYPE");
            }
        }
    }
    assert_eq!(helped, told, "every series has a HELP");
    for line in [
        format!("turnwise_ingress_messages_total{{channel=\"telegram\",bot=\"{BOT}\",outcome=\"accepted\"}} 1"),
        format!("turnwise_ingress_messages_total{{channel=\"telegram\",bot=\"{BOT}\",outcome=\"unauthorized\"}} 1"),
        "http_server_request_duration_seconds_count{route=\"/webhooks/telegram/{bot}\",status=\"200\"} 1".to_owned(),
        "turnwise_egress_wait_seconds_bucket{le=\"0.01\"} 1".to_owned(),
        "turnwise_egress_wait_seconds_count 2".to_owned(),
        format!("turnwise_turns_total{{bot=\"{BOT}\",outcome=\"answered\"}} 1"),
        format!("turnwise_turn_duration_seconds_count{{bot=\"{BOT}\",outcome=\"answered\"}} 1"),
        "turnwise_overhead_seconds_count 1".to_owned(),
        "turnwise_stream_wait_seconds_count 1".to_owned(),
        "turnwise_lane_wait_seconds_count 1".to_owned(),
        "turnwise_commit_duration_seconds_count 1".to_owned(),
        "turnwise_commits_fenced_total 0".to_owned(),
        "turnwise_egress_attempts_total{channel=\"telegram\",status_class=\"2xx\"} 1".to_owned(),
        "turnwise_egress_attempts_total{channel=\"telegram\",status_class=\"4xx\"} 1".to_owned(),
        "turnwise_end_to_end_seconds_count{channel=\"telegram\"} 1".to_owned(),
        "gen_ai_client_operation_duration_seconds_count{model=\"stand-in\",error_type=\"\"} 1".to_owned(),
        "turnwise_turns_in_flight 0".to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in:\n{page}");
    }
}

fn assert_silent(place: &str, text: &str) {
    let token = TOKEN.split_once(':').unwrap().1;
    for word in
        [QUESTION, ANSWER, "seventeen", "blue card", "Ann", SECRET, TOKEN, token, API_KEY, WEB_KEY, CONSOLE_TOKEN]
    {
        assert!(!text.contains(word), "{place} holds {word:?}");
    }
}

/// The attribute as text; empty when there is none.
fn text(span: &Span, name: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name);
    match attribute.and_then(|attribute| attribute.value.clone()?.value) {
        None => String::new(),
        Some(AnyValue::StringValue(text)) => text,
        Some(AnyValue::BoolValue(truth)) => truth.to_string(),
        Some(AnyValue::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
    }
}

async fn collector() -> (String, mpsc::UnboundedReceiver<Vec<Span>>) {
    let (spans, received) = mpsc::unbounded_channel();
    let take = move |body: Bytes| async move {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        spans.send(scopes.flat_map(|scope| scope.spans).collect()).unwrap();
        StatusCode::OK
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, service).await });
    (endpoint, received)
}
