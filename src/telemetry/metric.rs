//! The closed list of metrics: names, help texts, buckets, and one function per event that counts.
//!
//! Refuses labels of unbounded variety: a conversation, a person or an unchecked path is never one. Invariant: every series
//! that can appear has a help text, so `promtool check metrics` has nothing to say.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use crate::message::Channel;

pub use help::describe_metrics;

mod help;

pub const INGRESS_MESSAGES: &str = "turnwise_ingress_messages_total";
pub const HTTP_REQUEST_DURATION: &str = "http_server_request_duration_seconds";
pub const REDELIVERIES: &str = "turnwise_redeliveries_total";
pub const TURNS_IN_FLIGHT: &str = "turnwise_turns_in_flight";
pub const LANES: &str = "turnwise_lanes";
pub const PARKED_MESSAGES: &str = "turnwise_parked_messages";
pub const STREAM_LAG: &str = "turnwise_stream_lag_messages";
pub const STREAM_ACK_PENDING: &str = "turnwise_stream_ack_pending_messages";
pub const OLDEST_UNPROCESSED_AGE: &str = "turnwise_stream_oldest_unprocessed_age_seconds";
pub const STREAM_MESSAGES: &str = "turnwise_stream_messages";
pub const STREAM_BYTES: &str = "turnwise_stream_bytes";
pub const STREAM_BYTES_LIMIT: &str = "turnwise_stream_bytes_limit";
pub const STREAM_MAX_AGE: &str = "turnwise_stream_max_age_seconds";
pub const STORAGE_BYTES: &str = "turnwise_jetstream_storage_bytes";
pub const STORAGE_BYTES_LIMIT: &str = "turnwise_jetstream_storage_bytes_limit";
pub const DEAD_LETTERS_PENDING: &str = "turnwise_dead_letters_pending";
pub const DELIVERIES_UNCERTAIN: &str = "turnwise_deliveries_uncertain";
pub const LANE_WAIT: &str = "turnwise_lane_wait_seconds";
pub const STREAM_WAIT: &str = "turnwise_stream_wait_seconds";
pub const TURNS: &str = "turnwise_turns_total";
pub const TURN_DURATION: &str = "turnwise_turn_duration_seconds";
pub const OVERHEAD: &str = "turnwise_overhead_seconds";
pub const END_TO_END: &str = "turnwise_end_to_end_seconds";
pub const COMMIT_DURATION: &str = "turnwise_commit_duration_seconds";
pub const COMMIT_BATCH_SIZE: &str = "turnwise_commit_batch_size";
pub const COMMITS_FENCED: &str = "turnwise_commits_fenced_total";
pub const PARTITIONS: &str = "turnwise_partitions";
pub const PARTITION_OWNED: &str = "turnwise_partition_owned";
pub const REBALANCES: &str = "turnwise_rebalances_total";
pub const MEMBERS: &str = "turnwise_members";
pub const DEAD_LETTERS: &str = "turnwise_dead_letters_total";
pub const MODEL_CALL_DURATION: &str = "gen_ai_client_operation_duration_seconds";
pub const MODEL_TOKENS: &str = "gen_ai_client_token_usage";
pub const TOOL_CALLS: &str = "turnwise_tool_calls_total";
pub const TOOL_SERVER_UP: &str = "turnwise_tool_server_up";
pub const EGRESS_ATTEMPTS: &str = "turnwise_egress_attempts_total";
pub const EGRESS_WAIT: &str = "turnwise_egress_wait_seconds";
pub const TYPING: &str = "turnwise_typing_total";
pub const DRAFTS: &str = "turnwise_drafts_total";
pub const EVENT_STREAMS: &str = "turnwise_event_streams";
pub const BOT_SHUT_OUT: &str = "turnwise_bot_shut_out";
pub const BUDGET_REFUSALS: &str = "turnwise_budget_refusals_total";
pub const EVENT_STREAMS_ENDED: &str = "turnwise_event_streams_ended_total";

/// 10 ms doubling to 81.92 s: a turn is a model call, and a model call takes seconds.
const DURATION_BUCKETS_SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// 1 quadrupling to 4,194,304 tokens, as the GenAI conventions advise for `gen_ai.client.token.usage`.
const TOKEN_BUCKETS: [f64; 12] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// 0.5 ms doubling to 8.192 s, for what is our own doing.
const OVERHEAD_BUCKETS_SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];

/// 1 doubling to 256, above the most turns that share a transaction.
const SIZE_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Histograms keep raw values until somebody drains them; between two scrapes this does.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The recorder is the process's own, as the `metrics` crate has it; everybody who asks gets a handle to the one.
static INSTALLED: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();

/// What `/metrics` shows.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Installs the process's recorder, or finds the one that an earlier call installed.
    ///
    /// # Errors
    ///
    /// The program that embeds this library has installed a recorder of another kind.
    pub fn install() -> anyhow::Result<Self> {
        match INSTALLED.get_or_init(|| install_recorder().map_err(|error| format!("{error:#}"))) {
            Ok(handle) => Ok(Self { handle: handle.clone() }),
            Err(message) => Err(anyhow::anyhow!("{message}")),
        }
    }

    /// Every series in the Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Keeps memory bounded while nobody scrapes; runs until it is stopped.
    pub async fn run_upkeep(&self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

/// A webhook or API call brought a message. `bot` is a configured name, never the one in an unchecked path.
pub fn ingress_message(channel: Channel, bot: &str, outcome: &'static str) {
    counter!(INGRESS_MESSAGES, "channel" => channel.as_str(), "bot" => bot.to_owned(), "outcome" => outcome)
        .increment(1);
}

/// An HTTP request was answered. `route` is the template, never the path as requested.
pub fn http_request(route: &str, status: u16, duration: Duration) {
    histogram!(HTTP_REQUEST_DURATION, "route" => route.to_owned(), "status" => status.to_string()).record(duration);
}

/// A message came again.
pub fn redelivery(reason: &'static str) {
    counter!(REDELIVERIES, "reason" => reason).increment(1);
}

/// The scheduler's size now: turns that run, conversations that have work, and messages of theirs left in the stream.
#[expect(clippy::cast_precision_loss, reason = "a count of 2^53 turns is out of reach")]
pub fn scheduler_size(turns_in_flight: usize, lanes: usize, parked: usize) {
    gauge!(TURNS_IN_FLIGHT).set(turns_in_flight as f64);
    gauge!(LANES).set(lanes as f64);
    gauge!(PARKED_MESSAGES).set(parked as f64);
}

/// Since when the first message that waits or runs in this process has been in its stream; zero when there is none.
pub fn oldest_unprocessed(stream: &'static str, age: Duration) {
    gauge!(OLDEST_UNPROCESSED_AGE, "stream" => stream).set(age.as_secs_f64());
}

/// One partition's consumer, as the server tells it: messages not delivered yet, and delivered ones not acknowledged.
#[expect(clippy::cast_precision_loss, reason = "a count of 2^53 messages is out of reach")]
pub fn partition_backlog(stream: &'static str, partition: u16, lag: u64, ack_pending: usize) {
    let partition = partition.to_string();
    gauge!(STREAM_LAG, "stream" => stream, "partition" => partition.clone()).set(lag as f64);
    gauge!(STREAM_ACK_PENDING, "stream" => stream, "partition" => partition).set(ack_pending as f64);
}

/// What a stream holds and may hold, as the server tells it. `bytes_limit` is absent for a stream without one.
#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are 9 petabytes")]
pub fn stream_size(stream: &'static str, messages: u64, bytes: u64, bytes_limit: Option<u64>, max_age: Duration) {
    gauge!(STREAM_MESSAGES, "stream" => stream).set(messages as f64);
    gauge!(STREAM_BYTES, "stream" => stream).set(bytes as f64);
    gauge!(STREAM_MAX_AGE, "stream" => stream).set(max_age.as_secs_f64());
    if let Some(limit) = bytes_limit {
        gauge!(STREAM_BYTES_LIMIT, "stream" => stream).set(limit as f64);
    }
}

/// Dead letters that wait for somebody.
#[expect(clippy::cast_precision_loss, reason = "a count of 2^53 messages is out of reach")]
pub fn dead_letters_pending(count: u64) {
    gauge!(DEAD_LETTERS_PENDING).set(count as f64);
}

/// What the account uses of JetStream's disk. `limit` is absent where the account has none.
#[expect(clippy::cast_precision_loss, reason = "2^53 bytes are 9 petabytes")]
pub fn storage(bytes: u64, limit: Option<u64>) {
    gauge!(STORAGE_BYTES).set(bytes as f64);
    if let Some(limit) = limit {
        gauge!(STORAGE_BYTES_LIMIT).set(limit as f64);
    }
}

/// Deliveries of which nobody can tell whether they arrived.
#[expect(clippy::cast_precision_loss, reason = "a count of 2^53 deliveries is out of reach")]
pub fn deliveries_uncertain(count: u64) {
    gauge!(DELIVERIES_UNCERTAIN).set(count as f64);
}

/// From delivery to the start of the turn.
pub fn lane_wait(wait: Duration) {
    histogram!(LANE_WAIT).record(wait);
}

/// From the stream's time of the message to its first delivery.
pub fn stream_wait(wait: Duration) {
    histogram!(STREAM_WAIT).record(wait);
}

/// A turn ended: its whole duration, and the part of it that was spent in the responder.
pub fn turn_finished(bot: &str, outcome: &'static str, duration: Duration, responder: Duration) {
    counter!(TURNS, "bot" => bot.to_owned(), "outcome" => outcome).increment(1);
    histogram!(TURN_DURATION, "bot" => bot.to_owned(), "outcome" => outcome).record(duration);
    histogram!(OVERHEAD).record(duration.saturating_sub(responder));
}

/// A message ended as part of another one's turn, or without a turn.
pub fn message_finished(bot: &str, outcome: &'static str) {
    counter!(TURNS, "bot" => bot.to_owned(), "outcome" => outcome).increment(1);
}

/// A turn for which no model was asked, because the bot's tokens of the day are spent.
pub fn budget_refusal(bot: &str) {
    counter!(BUDGET_REFUSALS, "bot" => bot.to_owned()).increment(1);
}

/// From receipt of the message to the platform's confirmation of the reply.
pub fn end_to_end(channel: Channel, duration: Duration) {
    histogram!(END_TO_END, "channel" => channel.as_str()).record(duration);
}

/// One commit, fenced or not.
pub fn commit(duration: Duration, fenced: bool) {
    histogram!(COMMIT_DURATION).record(duration);
    counter!(COMMITS_FENCED).increment(u64::from(fenced));
}

/// A call to a model ended. `model` is the configured one; `error_type` a word of a closed set, empty when it succeeded.
pub fn model_call(model: &str, error_type: &'static str, duration: Duration) {
    histogram!(MODEL_CALL_DURATION, "model" => model.to_owned(), "error_type" => error_type).record(duration);
}

/// Tokens that one call used, as the model's server counted them; `token_type` is `input` or `output`.
#[expect(clippy::cast_precision_loss, reason = "a call of 2^53 tokens is out of reach")]
pub fn model_tokens(model: &str, token_type: &'static str, tokens: u64) {
    histogram!(MODEL_TOKENS, "model" => model.to_owned(), "token_type" => token_type).record(tokens as f64);
}

/// A call of a tool ended. `tool` is a name that the model was offered; `outcome` is `ok`, `failed`, `retryable` or `unknown`.
pub fn tool_call(tool: &str, outcome: &'static str) {
    counter!(TOOL_CALLS, "tool" => tool.to_owned(), "outcome" => outcome).increment(1);
}

/// Whether there is a session with an MCP server; `server` is the name of its `[tools.*]` table.
pub fn tool_server_up(server: &str, up: bool) {
    gauge!(TOOL_SERVER_UP, "server" => server.to_owned()).set(f64::from(u8::from(up)));
}

/// Whether this process works on a partition of a stream, named `in` or `out`.
pub fn partition_owned(stream: &'static str, partition: u16, owned: bool) {
    gauge!(PARTITION_OWNED, "stream" => stream, "partition" => partition.to_string()).set(f64::from(u8::from(owned)));
}

/// How many partitions a stream is divided into, all without an owner here so far.
pub fn partitions(stream: &'static str, count: u16) {
    gauge!(PARTITIONS, "stream" => stream).set(f64::from(count));
    for partition in 0..count {
        partition_owned(stream, partition, false);
    }
}

/// This process has taken, given up or lost a partition.
pub fn rebalance(stream: &'static str, reason: &'static str) {
    counter!(REBALANCES, "stream" => stream, "reason" => reason).increment(1);
}

/// How many processes share a stream, as this one sees it.
#[expect(clippy::cast_precision_loss, reason = "a count of 2^53 processes is out of reach")]
pub fn members(stream: &'static str, count: usize) {
    gauge!(MEMBERS, "stream" => stream).set(count as f64);
}

/// One transaction for so many turns began.
#[expect(clippy::cast_precision_loss, reason = "a group has at most hundreds of turns")]
pub fn commit_batch(turns: usize) {
    histogram!(COMMIT_BATCH_SIZE).record(turns as f64);
}

/// A message was given up.
pub fn dead_letter(reason: &'static str) {
    counter!(DEAD_LETTERS, "reason" => reason).increment(1);
}

/// One attempt at a platform; `status` is `None` when no answer came.
pub fn egress_attempt(channel: Channel, status: Option<u16>) {
    counter!(EGRESS_ATTEMPTS, "channel" => channel.as_str(), "status_class" => class(status)).increment(1);
}

/// Whether a bot's platform takes nothing from it at all.
pub fn bot_shut_out(bot: &str, shut_out: bool) {
    gauge!(BOT_SHUT_OUT, "bot" => bot.to_owned()).set(f64::from(u8::from(shut_out)));
}

/// From the moment at which a part was ready to leave until the rate limits let it.
pub fn egress_wait(wait: Duration) {
    histogram!(EGRESS_WAIT).record(wait);
}

/// "Is typing" was to be shown; `status` is `None` when no answer came.
pub fn typing(channel: Channel, status: Option<u16>) {
    counter!(TYPING, "channel" => channel.as_str(), "status_class" => class(status)).increment(1);
}

/// A draft of an answer was to be shown; `status` is `None` when no answer came.
pub fn draft(channel: Channel, status: Option<u16>) {
    counter!(DRAFTS, "channel" => channel.as_str(), "status_class" => class(status)).increment(1);
}

/// A caller began to be sent a turn's events.
pub fn event_stream_began() {
    gauge!(EVENT_STREAMS).increment(1.0);
}

/// Its connection is free again.
pub fn event_stream_closed() {
    gauge!(EVENT_STREAMS).decrement(1.0);
}

/// It is sent nothing more.
pub fn event_stream_ended(reason: &'static str) {
    counter!(EVENT_STREAMS_ENDED, "reason" => reason).increment(1);
}

fn class(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(100..=199) => "1xx",
        Some(200..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400..=499) => "4xx",
        Some(_) => "5xx",
    }
}

fn install_recorder() -> anyhow::Result<PrometheusHandle> {
    let fine = |name: &str| Matcher::Full(name.to_owned());
    let recorder = PrometheusBuilder::new()
        .set_buckets(&DURATION_BUCKETS_SECONDS)?
        .set_buckets_for_metric(fine(OVERHEAD), &OVERHEAD_BUCKETS_SECONDS)?
        .set_buckets_for_metric(fine(COMMIT_DURATION), &OVERHEAD_BUCKETS_SECONDS)?
        .set_buckets_for_metric(fine(MODEL_TOKENS), &TOKEN_BUCKETS)?
        .set_buckets_for_metric(fine(COMMIT_BATCH_SIZE), &SIZE_BUCKETS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)
        .map_err(|_| anyhow::anyhow!("this process already has a metrics recorder"))
        .context("metrics cannot be set up")?;
    describe_metrics();
    show_unlabelled_series();
    Ok(handle)
}

/// An alert on a series that is absent until the first failure never sees the first failure.
fn show_unlabelled_series() {
    scheduler_size(0, 0, 0);
    counter!(COMMITS_FENCED).absolute(0);
    gauge!(EVENT_STREAMS).set(0.0);
}

#[cfg(test)]
mod tests {
    use super::help::{COUNTERS, GAUGES, HISTOGRAMS, SIZES};
    use super::*;

    #[test]
    fn every_series_has_its_help_and_its_labels() -> anyhow::Result<()> {
        let metrics = Metrics::install()?;
        let second = Metrics::install()?;
        let moment = Duration::from_millis(3);
        ingress_message(Channel::Telegram, "support", "accepted");
        http_request("/v1/chat", 200, moment);
        redelivery("takeover");
        scheduler_size(3, 5, 700);
        oldest_unprocessed("in", Duration::from_millis(1_500));
        partition_backlog("in", 7, 12, 34);
        stream_size("in", 1_000, 512_000, Some(1_000_000), Duration::from_secs(604_800));
        dead_letters_pending(2);
        storage(900_000, Some(2_000_000));
        deliveries_uncertain(1);
        lane_wait(moment);
        stream_wait(moment);
        turn_finished("support", "answered", Duration::from_secs(2), Duration::from_millis(1_999));
        end_to_end(Channel::Web, moment);
        commit(moment, true);
        model_call("llama3", "", Duration::from_secs(2));
        model_call("llama3", "timeout", Duration::from_secs(60));
        model_tokens("llama3", "input", 700);
        partitions("in", 8);
        partition_owned("in", 7, true);
        rebalance("in", "owner_gone");
        members("in", 2);
        commit_batch(3);
        dead_letter("attempts");
        tool_call("orders", "ok");
        tool_server_up("files", true);
        egress_attempt(Channel::Messenger, Some(429));
        egress_attempt(Channel::Messenger, None);
        egress_wait(moment);
        typing(Channel::Telegram, Some(200));
        draft(Channel::Telegram, Some(200));
        bot_shut_out("page", true);
        event_stream_began();
        event_stream_began();
        event_stream_closed();
        event_stream_ended("done");
        budget_refusal("support");

        let page = metrics.render();
        let gauges = GAUGES.iter().map(|(name, _, help)| (name, help));
        for (name, help) in
            COUNTERS.iter().chain(HISTOGRAMS).chain(SIZES).map(|(name, help)| (name, help)).chain(gauges)
        {
            assert!(page.contains(&format!("# HELP {name} {help}\n")), "{name} has no help text:\n{page}");
        }
        let check = |line: &str| assert!(page.lines().any(|found| found == line), "no {line} in:\n{page}");
        check(r#"turnwise_ingress_messages_total{channel="telegram",bot="support",outcome="accepted"} 1"#);
        check(r#"http_server_request_duration_seconds_bucket{route="/v1/chat",status="200",le="0.01"} 1"#);
        check("turnwise_turns_in_flight 3");
        check("turnwise_lanes 5");
        check("turnwise_parked_messages 700");
        check(r#"turnwise_stream_oldest_unprocessed_age_seconds{stream="in"} 1.5"#);
        check(r#"turnwise_stream_lag_messages{stream="in",partition="7"} 12"#);
        check(r#"turnwise_stream_ack_pending_messages{stream="in",partition="7"} 34"#);
        check(r#"turnwise_stream_bytes{stream="in"} 512000"#);
        check(r#"turnwise_stream_bytes_limit{stream="in"} 1000000"#);
        check(r#"turnwise_stream_max_age_seconds{stream="in"} 604800"#);
        check("turnwise_jetstream_storage_bytes_limit 2000000");
        check("turnwise_dead_letters_pending 2");
        check("turnwise_deliveries_uncertain 1");
        check(r#"turnwise_turns_total{bot="support",outcome="answered"} 1"#);
        check(r#"turnwise_turn_duration_seconds_bucket{bot="support",outcome="answered",le="81.92"} 1"#);
        check(r#"turnwise_overhead_seconds_bucket{le="0.0005"} 0"#);
        check(r#"turnwise_overhead_seconds_bucket{le="0.001"} 1"#);
        check(r#"turnwise_commit_duration_seconds_bucket{le="0.004"} 1"#);
        check(r#"turnwise_commit_batch_size_bucket{le="2"} 0"#);
        check(r#"turnwise_commit_batch_size_bucket{le="4"} 1"#);
        check("turnwise_commits_fenced_total 1");
        check(r#"gen_ai_client_operation_duration_seconds_count{model="llama3",error_type="timeout"} 1"#);
        check(r#"gen_ai_client_token_usage_bucket{model="llama3",token_type="input",le="256"} 0"#);
        check(r#"gen_ai_client_token_usage_bucket{model="llama3",token_type="input",le="1024"} 1"#);
        check(r#"turnwise_partitions{stream="in"} 8"#);
        check(r#"turnwise_partition_owned{stream="in",partition="6"} 0"#);
        check(r#"turnwise_partition_owned{stream="in",partition="7"} 1"#);
        check(r#"turnwise_rebalances_total{stream="in",reason="owner_gone"} 1"#);
        check(r#"turnwise_members{stream="in"} 2"#);
        check(r#"turnwise_tool_calls_total{tool="orders",outcome="ok"} 1"#);
        check(r#"turnwise_tool_server_up{server="files"} 1"#);
        check(r#"turnwise_dead_letters_total{reason="attempts"} 1"#);
        check(r#"turnwise_egress_attempts_total{channel="messenger",status_class="4xx"} 1"#);
        check(r#"turnwise_egress_attempts_total{channel="messenger",status_class="none"} 1"#);
        check(r#"turnwise_egress_wait_seconds_bucket{le="0.01"} 1"#);
        check(r#"turnwise_typing_total{channel="telegram",status_class="2xx"} 1"#);
        check(r#"turnwise_drafts_total{channel="telegram",status_class="2xx"} 1"#);
        check("turnwise_event_streams 1");
        check(r#"turnwise_event_streams_ended_total{reason="done"} 1"#);
        let of_second = second.render();
        assert_eq!(sorted(&of_second), sorted(&page), "both handles show the one recorder");
        Ok(())
    }

    fn sorted(page: &str) -> Vec<&str> {
        let mut lines: Vec<_> = page.lines().collect();
        lines.sort_unstable();
        lines
    }
}
