//! The spans and measurements of a turn's waits.

use std::time::Duration;

use crate::message::Timestamp;
use crate::scheduler::Task;
use crate::stream::StreamMessage;
use crate::telemetry::{self, metric};

/// The span of one attempt, child of the message's publication and linked to it.
pub(super) fn process_span(task: &Task) -> tracing::Span {
    let message = &task.message;
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
    if let Some(parent) = message.traceparent.as_deref() {
        telemetry::link(&span, parent);
    }
    if task.attempt == 1 {
        record_waits(message, task.started_at);
    }
    span
}

/// The waits that lie in the past when a turn starts, once per message.
fn record_waits(message: &StreamMessage, started_at: Timestamp) {
    metric::stream_wait(Duration::from_micros(message.delivered_at.micros_since(message.published_at)));
    metric::lane_wait(Duration::from_micros(started_at.micros_since(message.delivered_at)));
    let Some(parent) = message.traceparent.as_deref() else { return };
    let wait = |name, start, end| telemetry::Wait { name, parent, start, end, link: None, attributes: Vec::new() };
    telemetry::record_wait(&wait(telemetry::span::STREAM_WAIT, message.published_at, message.delivered_at));
    telemetry::record_wait(&wait(telemetry::span::LANE_WAIT, message.delivered_at, started_at));
}
