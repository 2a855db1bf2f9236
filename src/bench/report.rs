//! What a run found, as data and as the Markdown that people read.
//!
//! Refuses to round away what a reader compares: throughputs are whole numbers, times are milliseconds with two decimals.
//! Invariant: a figure that was not measured shows as a dash, never as zero.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::book::Violations;
use super::ceilings::Ceilings;
use super::processes::Usage;
use super::stages::Stage;

/// Everything that one run measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub machine: String,
    pub database: &'static str,
    pub ceilings: Ceilings,
    pub phases: Vec<PhaseReport>,
}

/// Loads that ran at the same time.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseReport {
    pub phase: &'static str,
    pub loads: Vec<LoadReport>,
    pub seconds: f64,
    /// Messages of all loads.
    pub turns_per_second: f64,
    /// The most turns that the deployment said it ran at once, looked at once a second.
    pub turns_in_flight_peak: f64,
    pub turnwise: Option<Usage>,
    pub nats_server: Option<Usage>,
    /// PostgreSQL; an embedded database is part of `turnwise`.
    pub database: Option<Usage>,
    /// The load generator and the stand-in Bot API, which share the machine.
    pub bench: Option<Usage>,
    pub stages: Vec<Stage>,
    /// Replies to chats that were not in the load.
    pub strays: usize,
    /// From the kill of a second worker until all partitions had an owner again.
    pub takeover_ms: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    pub load: &'static str,
    pub conversations: usize,
    pub messages: usize,
    pub unanswered: usize,
    /// Posts that had to be made again because they were not answered 200.
    pub posted_again: usize,
    pub seconds: f64,
    /// What a conversation's messages take one after the other in the responder alone.
    pub ideal_seconds: f64,
    pub outstanding_peak: usize,
    /// From the post to the reply.
    pub reply: Percentiles,
    /// From the post to the webhook's 200.
    pub accepted: Percentiles,
    pub violations: Violations,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Percentiles {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
        };
        Self { p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

impl Report {
    /// Every message was answered exactly once and in order.
    #[must_use]
    pub fn is_correct(&self) -> bool {
        self.phases.iter().all(|phase| {
            phase.strays == 0 && phase.loads.iter().all(|load| load.unanswered == 0 && load.violations.count == 0)
        })
    }

    /// Tables in Markdown.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "Machine: {}. Database: {}.\n", self.machine, self.database)?;
        self.write_ceilings(text)?;
        self.write_loads(text)?;
        self.write_use(text)?;
        self.write_takeovers(text)?;
        self.write_stages(text)?;
        self.write_faults(text)
    }

    fn write_ceilings(&self, text: &mut String) -> std::fmt::Result {
        let ceilings = &self.ceilings;
        writeln!(text, "| ceiling | per second |\n|---|---|")?;
        for (what, figure) in [
            ("publish with acknowledgement, 1,000 on their way", ceilings.publish),
            ("publish with acknowledgement, one at a time", ceilings.publish_one_by_one),
            ("consume and acknowledge, one consumer", ceilings.consume),
            ("commit a turn, 256 callers", ceilings.commit),
        ] {
            writeln!(text, "| {what} | {} |", whole(figure))?;
        }
        writeln!(text)
    }

    fn write_loads(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "| shape | load | conversations | messages | turns/s | seconds | ideal | reply p50 ms | p99 | max | accepted p50 ms | p99 \
             | outstanding | of publish | of consume | of commit |\n|{}",
            "---|".repeat(16)
        )?;
        for phase in &self.phases {
            for load in &phase.loads {
                let rate = per_second(load.messages - load.unanswered, load.seconds);
                let ratio = |ceiling: Option<f64>| ceiling.map_or("-".to_owned(), |it| format!("{:.3}", rate / it));
                writeln!(
                    text,
                    "| {} | {} | {} | {} | {rate:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {} |",
                    phase.phase,
                    load.load,
                    load.conversations,
                    load.messages,
                    load.seconds,
                    load.ideal_seconds,
                    load.reply.p50_ms,
                    load.reply.p99_ms,
                    load.reply.max_ms,
                    load.accepted.p50_ms,
                    load.accepted.p99_ms,
                    load.outstanding_peak,
                    ratio(self.ceilings.publish),
                    ratio(self.ceilings.consume),
                    ratio(self.ceilings.commit),
                )?;
            }
        }
        writeln!(text)
    }

    fn write_use(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "| shape | seconds | turns in flight | CPU s turnwise | nats-server | database | bench | peak MiB turnwise \
             | nats-server | database |\n|{}",
            "---|".repeat(10)
        )?;
        for phase in &self.phases {
            let cpu = |usage: Option<Usage>| usage.map_or("-".to_owned(), |usage| format!("{:.2}", usage.cpu_seconds));
            let memory =
                |usage: Option<Usage>| usage.map_or("-".to_owned(), |usage| format!("{:.0}", usage.memory_mib));
            writeln!(
                text,
                "| {} | {:.2} | {:.0} | {} | {} | {} | {} | {} | {} | {} |",
                phase.phase,
                phase.seconds,
                phase.turns_in_flight_peak,
                cpu(phase.turnwise),
                cpu(phase.nats_server),
                cpu(phase.database),
                cpu(phase.bench),
                memory(phase.turnwise),
                memory(phase.nats_server),
                memory(phase.database),
            )?;
        }
        writeln!(text)
    }

    fn write_takeovers(&self, text: &mut String) -> std::fmt::Result {
        for phase in &self.phases {
            let Some(takeover_ms) = phase.takeover_ms else { continue };
            let waited_ms = phase.loads.iter().map(|load| load.reply.max_ms).fold(0.0, f64::max);
            writeln!(
                text,
                "{}: the partitions of a killed worker had an owner again after {takeover_ms:.0} ms; no reply took longer than \
                 {waited_ms:.0} ms.\n",
                phase.phase
            )?;
        }
        Ok(())
    }

    fn write_stages(&self, text: &mut String) -> std::fmt::Result {
        for phase in self.phases.iter().filter(|phase| !phase.stages.is_empty()) {
            let stages: Vec<String> =
                phase.stages.iter().map(|stage| format!("{} {:.2} ms", stage.stage, stage.mean_ms)).collect();
            writeln!(text, "{}, means of the deployment's own metrics: {}.\n", phase.phase, stages.join(", "))?;
        }
        Ok(())
    }

    fn write_faults(&self, text: &mut String) -> std::fmt::Result {
        for phase in &self.phases {
            if phase.strays > 0 {
                writeln!(text, "**{}: {} replies to chats outside of the load.**", phase.phase, phase.strays)?;
            }
            for load in &phase.loads {
                if load.unanswered > 0 {
                    writeln!(text, "**{} {}: {} messages without a reply.**", phase.phase, load.load, load.unanswered)?;
                }
                if load.posted_again > 0 {
                    writeln!(text, "{} {}: {} posts were made again.", phase.phase, load.load, load.posted_again)?;
                }
                for example in &load.violations.examples {
                    writeln!(text, "**{} {}: {example}.**", phase.phase, load.load)?;
                }
            }
        }
        Ok(())
    }
}

/// A rate; 0 for no time at all.
pub(super) fn per_second(count: usize, seconds: f64) -> f64 {
    let count = u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

fn whole(figure: Option<f64>) -> String {
    figure.map_or("-".to_owned(), |figure| format!("{figure:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(Percentiles::of(times), Percentiles { p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 });
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
