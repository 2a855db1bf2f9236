//! One turn is one trace: a Telegram message through the real binary, and what a collector, the log and `/metrics` have of
//! it afterwards. None of the three holds a word of the conversation or a secret.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeSet;

use axum::http::StatusCode;
use collector::{Collector, text, tree};
use futures_util::TryStreamExt as _;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use support::process::{CONSOLE_TOKEN, Turnwise, WEB_KEY, quoted};
use support::responder::{API_KEY, Behaviour};
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::telegram::{Fault, SECRET, TOKEN};
use support::{PATIENCE, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

#[path = "support/collector.rs"]
#[expect(dead_code, reason = "each test binary uses its own part of it")]
mod collector;

const CHAT: i64 = 5151;
const QUESTION: &str = "my card ends in seventeen";
const ANSWER: &str = "then it is the blue card";

/// The trace that the outside world would like to be part of.
const OUTSIDE_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_turn_is_one_trace_and_tells_nothing_that_was_said() {
    let mut collector = Collector::http().await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("telemetry", "otlp_endpoint", &quoted(&collector.endpoint)).web_bot("web", RESPONDER);
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

    let spans = collector.spans();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_share_the_work_share_the_trace() {
    const SECOND: &str = "and the other one?";
    let mut collector = Collector::grpc().await;
    let mut deployment =
        Deployment::start_as(Backend::Postgres, Behaviour::default(), Some("ingress"), |configuration| {
            configuration
                .set("telemetry", "otlp_endpoint", &quoted(&collector.endpoint))
                .set("telemetry", "otlp_protocol", "\"grpc\"")
                .set("telemetry", "record_content", "true");
        })
        .await;
    let beside = deployment.turnwise.configuration().beside();
    let mut worker = Turnwise::spawn_as(beside, Some("worker,egress")).await;
    deployment.model.answer_with(QUESTION, ANSWER);
    deployment.model.hold(QUESTION);
    deployment.telegram.send(CHAT, QUESTION);
    deployment.model.wait_for_call(QUESTION, PATIENCE).await;
    deployment.telegram.send(CHAT, SECOND);
    let jetstream = deployment.nats.jetstream().await;
    support::eventually("both messages to be delivered", PATIENCE, async || {
        let stream = jetstream.get_stream("turnwise_in").await.ok()?;
        let consumers: Vec<_> = stream.consumers().try_collect().await.ok()?;
        (consumers.iter().map(|consumer| consumer.num_ack_pending).sum::<usize>() == 2).then_some(())
    })
    .await;
    deployment.model.release(QUESTION);
    deployment.settled(2, PATIENCE).await;
    deployment.turnwise.terminate().await;
    worker.terminate().await;

    let spans = collector.spans();
    let turns: Vec<&Span> = spans.iter().filter(|span| span.name == "process turnwise.in").collect();
    let [first, second] = turns[..] else { panic!("two turns, not {}", turns.len()) };
    assert_ne!(first.trace_id, second.trace_id, "each message has a trace of its own");
    for turn in [first, second] {
        let trace: Vec<Span> = spans.iter().filter(|span| span.trace_id == turn.trace_id).cloned().collect();
        insta::allow_duplicates! {
            insta::assert_snapshot!(tree(&trace).join("\n"), @r"
            POST /webhooks/telegram/{bot} SERVER
              send turnwise.in PRODUCER
                process turnwise.in CONSUMER
                  COMMIT turn CLIENT
                  ack turnwise.in CLIENT
                  invoke_agent assistant INTERNAL
                    chat stand-in CLIENT
                  process turnwise.out CONSUMER
                    POST CLIENT
                    ack turnwise.out CLIENT
                turnwise.lane.wait INTERNAL
                turnwise.stream.wait INTERNAL
            ");
        }
        check_commit(turn, &trace, &spans);
    }
    let lane_wait = |turn: &Span| {
        let of_turn = |span: &&Span| span.name == "turnwise.lane.wait" && span.trace_id == turn.trace_id;
        spans.iter().find(of_turn).unwrap().links.iter().map(|link| link.span_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(lane_wait(first), Vec::<Vec<u8>>::new(), "nothing was in its way");
    assert_eq!(lane_wait(second), std::slice::from_ref(&first.span_id), "it waited for the first turn");

    let asked = spans.iter().find(|span| span.name == "invoke_agent assistant" && span.trace_id == first.trace_id);
    let said = |name: &str| serde_json::from_str::<Value>(&text(asked.unwrap(), name)).unwrap();
    let message =
        |role: &str, content: &str| json!([{ "role": role, "parts": [{ "type": "text", "content": content }] }]);
    assert_eq!(said("gen_ai.input.messages"), message("user", QUESTION));
    assert_eq!(said("gen_ai.output.messages"), message("assistant", ANSWER));
    for process in [&deployment.turnwise, &worker] {
        let log = std::fs::read_to_string(process.log()).unwrap();
        assert_silent("the log", &log);
    }
    assert_no_secrets("the spans", &format!("{spans:?}"));
}

/// The transaction is linked to the group that it was part of, and the group to the turn.
fn check_commit(turn: &Span, trace: &[Span], spans: &[Span]) {
    let commit = trace.iter().find(|span| span.name == "COMMIT turn").unwrap();
    let [link] = &commit.links[..] else { panic!("links of the commit: {:?}", commit.links) };
    let group = spans.iter().find(|span| span.span_id == link.span_id).expect("the group is exported");
    assert_eq!((group.name.as_str(), group.kind), ("COMMIT group", 3));
    assert!(group.parent_span_id.is_empty() && group.trace_id != turn.trace_id, "it is nobody's child");
    assert!(group.links.iter().any(|link| link.span_id == turn.span_id), "it names the turns in it");
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
        (
            one("chat stand-in"),
            &[
                "gen_ai.operation.name=chat",
                "gen_ai.provider.name=openai",
                "gen_ai.request.model=stand-in",
                "gen_ai.usage.input_tokens=10",
                "gen_ai.usage.output_tokens=5",
                "error.type=",
            ],
        ),
        (one("POST"), &["http.request.method=POST", "server.address=127.0.0.1"]),
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
    for word in [QUESTION, ANSWER, "seventeen", "blue card", "Ann"] {
        assert!(!text.contains(word), "{place} holds {word:?}");
    }
    assert_no_secrets(place, text);
}

fn assert_no_secrets(place: &str, text: &str) {
    let token = TOKEN.split_once(':').unwrap().1;
    for word in [SECRET, TOKEN, token, API_KEY, WEB_KEY, CONSOLE_TOKEN] {
        assert!(!text.contains(word), "{place} holds {word:?}");
    }
}
