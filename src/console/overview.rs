//! How the deployment is doing: what waits, how fast turns are and where their time goes, what went wrong, who owns what.
//!
//! Refuses to sample: of the last quarter of an hour, every turn counts up to a bound that is said. Invariant: percentiles are of
//! turns that have ended; what hangs is seen by the age of the oldest message that has not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::asked::Asked;
use super::conversations::badge;
use super::html::{Element, Html, el, link};
use super::page::{self, View, table};
use super::session::Who;
use super::timeline::span;
use super::{Console, stream_problem};
use crate::cluster;
use crate::ingress::{Problem, store_problem};
use crate::message::{TerminalState, Timestamp};
use crate::store::{DeliveryTime, HoldScope, LedgerRow, PartitionRow};
use crate::stream::Backlog;

/// What counts as now.
const WINDOW_SECONDS: i64 = 15 * 60;

/// The most turns and deliveries that percentiles are made of, the newest.
const SAMPLED: u32 = 5_000;

/// Partitions whose oldest message is asked for at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Serialize)]
struct Overview {
    window_seconds: i64,
    /// The age of the oldest message that has not ended; `None` when there is none.
    oldest_unprocessed_seconds: Option<u64>,
    turns_per_second: f64,
    totals: BTreeMap<&'static str, i64>,
    /// Of how many turns.
    sampled: usize,
    stages: Vec<Stage>,
    deliveries_uncertain: u64,
    dead_letters: u64,
    holds: usize,
    partitions: Vec<PartitionLine>,
}

/// Where turns' time goes: one part of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Stage {
    name: &'static str,
    p50_ms: u64,
    p95_ms: u64,
}

#[derive(Debug, Serialize)]
struct PartitionLine {
    partition: u16,
    /// `host/pid`; `None` when nobody has it, or nothing is known.
    owner: Option<String>,
    epoch: i64,
    checkpoint: Option<u64>,
    lag: u64,
    ack_pending: usize,
    is_paused: bool,
}

pub(super) async fn show(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let console = Arc::clone(&shared);
        async move { console.overview().await }
    })
    .await
}

impl Console {
    async fn overview(&self) -> Result<Overview, Problem> {
        let failed = |error| store_problem(&error);
        let now = Timestamp::now();
        let since = Timestamp::from_micros(now.as_micros() - WINDOW_SECONDS * 1_000_000);
        let (rows, totals, times) = tokio::join!(
            self.store.recent_ledger_rows(since, SAMPLED),
            self.store.recent_turn_totals(since),
            self.store.recent_delivery_times(since, SAMPLED),
        );
        let (rows, totals, times) = (rows.map_err(failed)?, totals.map_err(failed)?, times.map_err(failed)?);
        let number = self.store.stream_number(&self.inbound.name, &self.inbound.incarnation).await.map_err(failed)?;
        let known = self.store.partitions(number).await.map_err(failed)?;
        let (backlogs, owners, dead) =
            tokio::join!(self.inbound.backlogs(), cluster::owners(&self.inbound), self.dead.info());
        let backlogs = backlogs.map_err(|error| stream_problem(&error))?;
        let holds = self.store.holds().await.map_err(failed)?;
        let is_paused = |partition: u16| {
            holds.iter().any(|hold| hold.scope == HoldScope::Partition && hold.target == partition.to_string())
        };
        let owners = owners.unwrap_or_default();
        let line = |row: &PartitionRow| {
            let backlog = backlogs.iter().find(|backlog| backlog.partition == row.partition);
            PartitionLine {
                partition: row.partition,
                owner: owners.get(&row.partition).cloned(),
                epoch: row.epoch,
                checkpoint: row.checkpoint,
                lag: backlog.map_or(0, |backlog| backlog.lag),
                ack_pending: backlog.map_or(0, |backlog| backlog.ack_pending),
                is_paused: is_paused(row.partition),
            }
        };
        let ended: i64 = totals.iter().map(|(_, count)| count).sum();
        Ok(Overview {
            window_seconds: WINDOW_SECONDS,
            oldest_unprocessed_seconds: self.oldest(&known, &backlogs, now).await?,
            turns_per_second: rate(ended),
            totals: totals.into_iter().map(|(state, count)| (TerminalState::as_str(state), count)).collect(),
            sampled: rows.len(),
            stages: stages(&rows, &times),
            deliveries_uncertain: self.store.uncertain_deliveries().await.map_err(failed)?,
            dead_letters: dead.map_err(|error| stream_problem(&error))?.state.messages,
            holds: holds.len(),
            partitions: known.iter().map(line).collect(),
        })
    }

    /// The age of the oldest message behind the checkpoints of partitions that have something before them, in seconds.
    async fn oldest(
        &self,
        known: &[PartitionRow],
        backlogs: &[Backlog],
        now: Timestamp,
    ) -> Result<Option<u64>, Problem> {
        // What is held back is parked: neither the consumer's lag nor what it waits to hear of says so.
        let info = self.inbound.info().await.map_err(|error| stream_problem(&error))?;
        let is_busy = |row: &&PartitionRow| {
            row.checkpoint.is_some_and(|checkpoint| checkpoint < info.state.last_sequence)
                || backlogs.iter().any(|backlog| backlog.partition == row.partition && backlog.lag > 0)
        };
        let busy: Vec<(u16, u64)> =
            known.iter().filter(is_busy).map(|row| (row.partition, row.checkpoint.unwrap_or(0))).collect();
        let asked = stream::iter(busy).map(|(partition, checkpoint)| self.first_unended(partition, checkpoint));
        let found: Vec<Result<Option<Timestamp>, Problem>> = asked.buffer_unordered(AT_ONCE).collect().await;
        let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().flatten().min().map(|oldest| now.micros_since(oldest) / 1_000_000))
    }

    /// A checkpoint is up to a second old, so the ledger is asked about what lies right behind it.
    async fn first_unended(&self, partition: u16, checkpoint: u64) -> Result<Option<Timestamp>, Problem> {
        const LOOKS: usize = 4;
        let mut from = checkpoint + 1;
        for _ in 0..LOOKS {
            let found =
                self.inbound.next_of_lane(partition, ">", from).await.map_err(|error| stream_problem(&error))?;
            let Some(message) = found else { return Ok(None) };
            let ids = [message.message_id.clone()];
            let settled = self.store.settled(&ids).await.map_err(|error| store_problem(&error))?;
            if settled.is_empty() {
                return Ok(Some(message.published_at));
            }
            from = message.sequence + 1;
        }
        Ok(None)
    }
}

fn rate(ended: i64) -> f64 {
    let per_mille = ended * 1_000 / WINDOW_SECONDS;
    f64::from(i32::try_from(per_mille).unwrap_or(i32::MAX)) / 1_000.0
}

fn stages(rows: &[LedgerRow], times: &[DeliveryTime]) -> Vec<Stage> {
    let commit =
        |row: &LedgerRow| row.committed_at.micros_since(row.started_at).saturating_sub(row.timings.responder_us);
    let of = |name, part: &dyn Fn(&LedgerRow) -> u64| stage(name, rows.iter().map(part).collect());
    vec![
        of("queue", &|row| row.timings.stream_wait_us),
        of("lane", &|row| row.timings.lane_wait_us),
        of("model and tools", &|row| row.timings.responder_us),
        of("load and commit", &commit),
        stage("egress", times.iter().map(|time| time.settled_at.micros_since(time.created_at)).collect()),
        of("from receipt to commit", &|row| row.committed_at.micros_since(row.received_at)),
    ]
}

/// The nearest-rank percentiles of durations in microseconds.
fn stage(name: &'static str, mut micros: Vec<u64>) -> Stage {
    micros.sort_unstable();
    let percentile = |percent: usize| {
        let rank = (micros.len() * percent).div_ceil(100).max(1);
        micros.get(rank - 1).copied().unwrap_or(0) / 1_000
    };
    Stage { name, p50_ms: percentile(50), p95_ms: percentile(95) }
}

impl View for Overview {
    const LOOK_AGAIN: Duration = Duration::from_secs(5);

    fn title(&self) -> String {
        "Overview".to_owned()
    }

    fn body(&self, _: &Who) -> Html {
        let card = |to: &str, value: String, name: &str, is_bad: bool| {
            let class = if is_bad { "card trouble" } else { "card" };
            el("li").class(class).add(link(to, "").add(el("b").text(value)).add(el("span").text(name)))
        };
        let count = |state: TerminalState| self.totals.get(state.as_str()).copied().unwrap_or(0);
        let oldest = self.oldest_unprocessed_seconds;
        let cards = el("ul")
            .class("cards")
            .add(card(
                "/console/conversations",
                oldest.map_or_else(|| "none".to_owned(), |seconds| span(seconds * 1_000)),
                "oldest message that has not ended",
                oldest.is_some_and(|seconds| seconds > 60),
            ))
            .add(card("/console", format!("{:.2}/s", self.turns_per_second), "turns, of 15 minutes", false))
            .add(card("/console/dead-letters", self.dead_letters.to_string(), "dead letters", self.dead_letters > 0))
            .add(card(
                "/console/deliveries",
                self.deliveries_uncertain.to_string(),
                "uncertain deliveries",
                self.deliveries_uncertain > 0,
            ))
            .add(card("/console/holds", self.holds.to_string(), "holds", self.holds > 0))
            .add(card(
                "/console/dead-letters",
                count(TerminalState::DeadLettered).to_string(),
                "given up in 15 minutes",
                count(TerminalState::DeadLettered) > 0,
            ));
        let stages = self
            .stages
            .iter()
            .map(|stage| vec![stage.name.into(), span(stage.p50_ms).into(), span(stage.p95_ms).into()]);
        let caption = format!("Where the time goes: the newest {} messages of 15 minutes", self.sampled);
        let totals = self.totals.iter().map(|(state, count)| vec![(*state).into(), count.to_string().into()]);
        Html::from(el("h1").text("Overview"))
            .then(cards)
            .then(table(&caption, &["Part of the way", "Median", "95 of 100 below"], stages.collect()))
            .then(
                (!self.totals.is_empty())
                    .then(|| table("How messages of 15 minutes ended", &["State", "Messages"], totals.collect())),
            )
            .then(self.table_of_partitions())
    }
}

impl Overview {
    fn table_of_partitions(&self) -> Element {
        let rows = self.partitions.iter().map(|line| {
            let owner: Html = match &line.owner {
                Some(owner) => owner.as_str().into(),
                None => badge("trouble", "nobody").into(),
            };
            vec![
                line.partition.to_string().into(),
                owner,
                line.epoch.to_string().into(),
                line.checkpoint.map(|checkpoint| checkpoint.to_string()).unwrap_or_default().into(),
                line.lag.to_string().into(),
                line.ack_pending.to_string().into(),
                line.is_paused.then(|| badge("waiting", "paused")).into(),
            ]
        });
        let head = ["Partition", "Owner", "Epoch", "Checkpoint", "Not delivered", "Not acknowledged", ""];
        table("Partitions", &head, rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let check = |micros: Vec<u64>, p50_ms, p95_ms| {
            assert_eq!(stage("x", micros.clone()), Stage { name: "x", p50_ms, p95_ms }, "{micros:?}");
        };
        check(vec![], 0, 0);
        check(vec![7_000], 7, 7);
        check(vec![2_000, 1_000], 1, 2);
        check((1..=100).rev().map(|ms| ms * 1_000).collect(), 50, 95);
    }
}
