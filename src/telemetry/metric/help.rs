//! What each metric says, as `/metrics` shows it before the series.
//!
//! Refuses to count. Invariant: every name in [`super`] has its line here, with its unit; a test of that module sees to it.

use metrics::Unit;

use super::{
    BOT_SHUT_OUT, BUDGET_REFUSALS, COMMIT_BATCH_SIZE, COMMIT_DURATION, COMMITS_FENCED, DEAD_LETTERS,
    DEAD_LETTERS_PENDING, DELIVERIES_UNCERTAIN, DRAFTS, EGRESS_ATTEMPTS, EGRESS_WAIT, END_TO_END, EVENT_STREAMS,
    EVENT_STREAMS_ENDED, HTTP_REQUEST_DURATION, INGRESS_MESSAGES, LANE_WAIT, LANES, MEMBERS, MODEL_CALL_DURATION,
    MODEL_TOKENS, OLDEST_UNPROCESSED_AGE, OVERHEAD, PARKED_MESSAGES, PARTITION_OWNED, PARTITIONS, REBALANCES,
    REDELIVERIES, STORAGE_BYTES, STORAGE_BYTES_LIMIT, STREAM_ACK_PENDING, STREAM_BYTES, STREAM_BYTES_LIMIT, STREAM_LAG,
    STREAM_MAX_AGE, STREAM_MESSAGES, STREAM_WAIT, TOOL_CALLS, TOOL_SERVER_UP, TURN_DURATION, TURNS, TURNS_IN_FLIGHT,
    TYPING,
};

/// Registers every help text with the recorder in use; [`super::Metrics::install`] calls it.
pub fn describe_metrics() {
    for (name, help) in COUNTERS {
        metrics::describe_counter!(*name, Unit::Count, *help);
    }
    for (name, unit, help) in GAUGES {
        metrics::describe_gauge!(*name, *unit, *help);
    }
    for (name, help) in HISTOGRAMS {
        metrics::describe_histogram!(*name, Unit::Seconds, *help);
    }
    for (name, help) in SIZES {
        metrics::describe_histogram!(*name, Unit::Count, *help);
    }
}

pub(super) const COUNTERS: &[(&str, &str)] = &[
    (INGRESS_MESSAGES, "Messages received, by what became of them at the door."),
    (REDELIVERIES, "Messages that the stream delivered again, by reason."),
    (TURNS, "Turns that ended, by outcome."),
    (COMMITS_FENCED, "Commits that the database refused because the partition had moved to another owner."),
    (REBALANCES, "Partitions that this process took, gave up or lost, by reason."),
    (DEAD_LETTERS, "Messages given up after their attempts, by reason."),
    (TOOL_CALLS, "Calls of tools, by outcome; unknown means that nobody can tell whether the call happened."),
    (EGRESS_ATTEMPTS, "Attempts to deliver to a platform, by class of the HTTP status; none means no answer came."),
    (DRAFTS, "Calls that show drafts of answers, by class of the HTTP status; none means no answer came."),
    (TYPING, "Calls that show that a bot is typing, by class of the HTTP status; none means no answer came."),
    (BUDGET_REFUSALS, "Turns answered without a model, because the bot's tokens of the day were spent."),
    (EVENT_STREAMS_ENDED, "Callers that are sent no more events of a turn, by reason."),
];

pub(super) const GAUGES: &[(&str, Unit, &str)] = &[
    (TURNS_IN_FLIGHT, Unit::Count, "Turns running now in this process."),
    (LANES, Unit::Count, "Conversations with running or waiting messages in this process."),
    (PARTITIONS, Unit::Count, "Partitions of a stream."),
    (PARTITION_OWNED, Unit::Count, "1 for a partition that this process works on, 0 for another."),
    (EVENT_STREAMS, Unit::Count, "Callers that are being sent the events of a turn by this process."),
    (TOOL_SERVER_UP, Unit::Count, "1 while there is a session with an MCP server, 0 while there is none."),
    (
        BOT_SHUT_OUT,
        Unit::Count,
        "1 for a bot from which its platform takes nothing: a void token, a restricted page, a receiver that is gone.",
    ),
    (MEMBERS, Unit::Count, "Processes that share the work on a stream, as this process sees it."),
    (
        PARKED_MESSAGES,
        Unit::Count,
        "Messages of busy conversations left in the stream until their lane has room again.",
    ),
    (STREAM_LAG, Unit::Count, "Messages of a partition that the stream has not delivered yet."),
    (STREAM_ACK_PENDING, Unit::Count, "Messages of a partition that were delivered and not acknowledged yet."),
    (OLDEST_UNPROCESSED_AGE, Unit::Seconds, "Seconds since the first message came that waits or runs in this process."),
    (STREAM_MESSAGES, Unit::Count, "Messages that a stream holds."),
    (STREAM_BYTES, Unit::Bytes, "Bytes that a stream holds."),
    (STREAM_BYTES_LIMIT, Unit::Bytes, "Bytes that a stream may hold; absent without a limit."),
    (STREAM_MAX_AGE, Unit::Seconds, "Seconds after which a stream forgets a message, done or not."),
    (STORAGE_BYTES, Unit::Bytes, "Bytes on disk that the account uses of JetStream."),
    (STORAGE_BYTES_LIMIT, Unit::Bytes, "Bytes on disk that the account may use of JetStream; absent without a limit."),
    (DEAD_LETTERS_PENDING, Unit::Count, "Dead letters that nobody has redriven or discarded."),
    (DELIVERIES_UNCERTAIN, Unit::Count, "Deliveries of which nobody can tell whether they arrived."),
];

pub(super) const HISTOGRAMS: &[(&str, &str)] = &[
    (HTTP_REQUEST_DURATION, "Seconds to answer an HTTP request."),
    (LANE_WAIT, "Seconds from a message's delivery to the start of its turn."),
    (STREAM_WAIT, "Seconds a message lay in the stream before it was first delivered."),
    (TURN_DURATION, "Seconds from the start of a turn to its end, the responder included."),
    (OVERHEAD, "Seconds of a turn that were not spent in the responder."),
    (END_TO_END, "Seconds from receipt of a message to the platform's confirmation of the reply."),
    (EGRESS_WAIT, "Seconds that a part of a reply waited for the platform's rate limits before it left."),
    (COMMIT_DURATION, "Seconds that the transaction of a turn took."),
    (MODEL_CALL_DURATION, "Seconds of a call to a model server, by error; without one it succeeded."),
];

pub(super) const SIZES: &[(&str, &str)] = &[
    (COMMIT_BATCH_SIZE, "Turns that shared the transaction of a commit."),
    (MODEL_TOKENS, "Tokens that a call to a model used, input and output apart."),
];
