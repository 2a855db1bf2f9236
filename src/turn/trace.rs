//! The spans and measurements of a turn's waits.

use std::time::Duration;

use serde_json::{Value, json};

use crate::responder::{Reply, TurnRequest};
use crate::scheduler::Task;
use crate::stream::StreamMessage;
use crate::telemetry::{self, KeyValue, metric};

/// The span of one attempt, child of the publication of the message that is answered and linked to it. The traces of those
/// merged into it each get a span that links to this one.
pub(super) fn process_span(task: &Task) -> tracing::Span {
    let message = task.message();
    let span = span_of(task, message);
    if let Some(parent) = message.traceparent.as_deref() {
        telemetry::link(&span, parent);
    }
    for earlier in task.earlier() {
        if let Some(answering) = telemetry::current_traceparent(&span) {
            telemetry::link(&span_of(task, earlier), &answering);
        }
    }
    if let Some(context) = telemetry::current_traceparent(&span) {
        // A message that is given up has a second span in its last attempt; the acknowledgement belongs to the first.
        let _ = task.traceparent.set(context);
    }
    span
}

fn span_of(task: &Task, message: &StreamMessage) -> tracing::Span {
    let span = tracing::info_span!(
        "process turnwise.in",
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.message.id = message.message_id,
        messaging.destination.partition.id = message.partition,
        turnwise.stream.sequence = message.sequence,
        gen_ai.conversation.id = tracing::field::Empty,
        turnwise.turn.id = tracing::field::Empty,
        turnwise.attempt = task.attempt,
        turnwise.epoch = task.ownership.epoch,
    );
    telemetry::set_parent(&span, message.traceparent.as_deref());
    span
}

/// The waits that lie in the past when a turn starts. Not for giving up, which is the end of an attempt that recorded them.
pub(super) fn record_waits(task: &Task) {
    if task.attempt == 1 {
        task.messages.iter().for_each(|message| record_waits_of(task, message));
    }
}

fn record_waits_of(task: &Task, message: &StreamMessage) {
    let started_at = task.started_at;
    metric::stream_wait(Duration::from_micros(message.delivered_at.micros_since(message.published_at)));
    metric::lane_wait(Duration::from_micros(started_at.micros_since(message.delivered_at)));
    let Some(parent) = message.traceparent.as_deref() else { return };
    let wait = |name, start, end, attributes| telemetry::Wait { name, parent, start, end, link: None, attributes };
    let position = i64::try_from(task.lane_position).unwrap_or(i64::MAX);
    let position = vec![KeyValue::new("turnwise.lane.position", position)];
    telemetry::record_wait(&wait(telemetry::span::STREAM_WAIT, message.published_at, message.delivered_at, Vec::new()));
    let lane_wait = wait(telemetry::span::LANE_WAIT, message.delivered_at, started_at, position);
    telemetry::record_wait(&telemetry::Wait { link: task.blocker.as_deref(), ..lane_wait });
}

/// What was asked and answered, in the form of the GenAI conventions' `gen_ai.input.messages` and `gen_ai.output.messages`:
/// <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>. Only where the operator wants it.
pub(super) fn record_content(span: &tracing::Span, request: &TurnRequest, reply: &Reply) {
    let said = |role: &str, text: &str| json!({ "role": role, "parts": [{ "type": "text", "content": text }] });
    let asked = request.messages.iter().map(|new| said("user", &new.message.text));
    let answered = reply.messages.iter().map(|message| said("assistant", &message.content));
    telemetry::set_attribute(span, "gen_ai.input.messages", asked.collect::<Value>().to_string());
    telemetry::set_attribute(span, "gen_ai.output.messages", answered.collect::<Value>().to_string());
}
