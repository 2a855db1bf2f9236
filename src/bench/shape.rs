//! The shapes of load, as data: which conversations say how much, how fast the responder answers, and how much is on its way
//! at once.
//!
//! Decides only what is sent. Invariant: a shape's phases do not share a conversation.

use std::time::Duration;

/// A named load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// 20,000 messages of 2,000 conversations, answered at once
    S1,
    /// 20,000 messages of 100 conversations, answered at once
    S1k,
    /// 5,000 conversations that wait for 5 s at the same time
    #[value(name = "s2-5k")]
    S2x5k,
    /// 50,000 conversations that wait for 5 s at the same time
    #[value(name = "s2-50k")]
    S2x50k,
    /// 2,000 messages of 500 conversations at 50 ms, beside a flood of 500 messages in one conversation and without it
    S3,
    /// 500 messages a second, answered at once: the time that is not the responder's
    Overhead,
    /// The same load with 1,000 and 1,000,000 conversations stored
    Growth,
    /// The same load with 10 and 10,000 messages of history in each conversation
    History,
    /// 200 messages a second while a second worker is killed, three times: how long its conversations wait
    Takeover,
    /// No load for 10 s
    Idle,
}

/// What bounds and scales a shape; `None` leaves it as the shape has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scale {
    pub conversations: Option<usize>,
    /// In all, spread over the conversations.
    pub messages: Option<usize>,
    pub in_flight: Option<usize>,
}

/// Loads that run at the same time, after the database was filled as asked.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) fill: Option<Fill>,
    pub(super) loads: Vec<Load>,
    /// How long it lasts when there are no loads.
    pub(super) idle: Option<Duration>,
    /// When, after the load began, a second worker is killed that joined before it.
    pub(super) kill: Option<Duration>,
}

/// What is in the database before the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// So many conversations besides the load's own.
    Conversations(u64),
    /// So many messages in each of the load's conversations.
    History(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) conversations: usize,
    pub(super) messages_each: usize,
    /// How long the responder takes; the message's text asks for it.
    pub(super) delay: Duration,
    /// Messages without a reply at once.
    pub(super) in_flight: usize,
    pub(super) per_second: Option<u64>,
}

/// Enough to keep every stage busy, and few enough that a median latency means something.
const IN_FLIGHT: usize = 512;

/// At 50 ms a turn these are 640 turns a second at most, below saturation: the others' wait shall come from the flood alone.
const IN_FLIGHT_BESIDE_FLOOD: usize = 32;

const IDLE: Duration = Duration::from_secs(10);

/// The load has settled by then, and goes on for twice as long after it.
const KILL_AFTER: Duration = Duration::from_secs(3);

impl Shape {
    pub(super) fn phases(self, scale: Scale) -> Vec<Phase> {
        let at_once = Duration::ZERO;
        let mut phases = match self {
            Self::S1 => vec![phase("s1", vec![load("all", 2_000, 10, at_once, IN_FLIGHT)])],
            Self::S1k => vec![phase("s1k", vec![load("all", 100, 200, at_once, IN_FLIGHT)])],
            Self::S2x5k => vec![phase("s2-5k", vec![load("all", 5_000, 1, Duration::from_secs(5), 5_000)])],
            Self::S2x50k => vec![phase("s2-50k", vec![load("all", 50_000, 1, Duration::from_secs(5), 50_000)])],
            Self::S3 => {
                let delay = Duration::from_millis(50);
                let others = load("others", 500, 4, delay, IN_FLIGHT_BESIDE_FLOOD);
                let flood = load("flood", 1, 500, delay, 500);
                vec![phase("s3 without flood", vec![others.clone()]), phase("s3", vec![others, flood])]
            }
            Self::Overhead => {
                let paced = Load { per_second: Some(500), ..load("all", 1_000, 10, at_once, IN_FLIGHT) };
                vec![phase("overhead", vec![paced])]
            }
            Self::Growth => {
                let stored = |name, count| Phase {
                    fill: Some(Fill::Conversations(count)),
                    ..phase(name, vec![load("all", 500, 10, at_once, 256)])
                };
                vec![stored("growth 1k", 1_000), stored("growth 1M", 1_000_000)]
            }
            Self::History => {
                let spoken = |name, messages| Phase {
                    fill: Some(Fill::History(messages)),
                    ..phase(name, vec![load("all", 50, 20, at_once, 256)])
                };
                vec![spoken("history 10", 10), spoken("history 10k", 10_000)]
            }
            Self::Takeover => {
                let paced = Load { per_second: Some(200), ..load("all", 500, 4, at_once, 1_000) };
                ["takeover 1", "takeover 2", "takeover 3"]
                    .map(|name| Phase { kill: Some(KILL_AFTER), ..phase(name, vec![paced.clone()]) })
                    .into()
            }
            Self::Idle => vec![Phase { idle: Some(IDLE), ..phase("idle", Vec::new()) }],
        };
        for load in phases.iter_mut().flat_map(|phase| &mut phase.loads) {
            load.scale(scale);
        }
        phases
    }
}

fn phase(name: &'static str, loads: Vec<Load>) -> Phase {
    Phase { name, fill: None, loads, idle: None, kill: None }
}

fn load(name: &'static str, conversations: usize, messages_each: usize, delay: Duration, in_flight: usize) -> Load {
    Load { name, conversations, messages_each, delay, in_flight, per_second: None }
}

impl Load {
    /// The flood stays one conversation: several would be another shape.
    fn scale(&mut self, scale: Scale) {
        let flood = self.conversations == 1;
        if let Some(conversations) = scale.conversations.filter(|_| !flood) {
            self.conversations = conversations.max(1);
        }
        if let Some(messages) = scale.messages {
            self.messages_each = messages.div_ceil(self.conversations).max(1);
        }
        if let Some(in_flight) = scale.in_flight.filter(|_| !flood) {
            self.in_flight = in_flight.max(1);
        }
    }

    /// The longest that one conversation's messages take one after the other.
    pub(super) fn ideal(&self) -> Duration {
        self.delay.saturating_mul(u32::try_from(self.messages_each).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_changes_size_and_nothing_else() {
        let scale = Scale { conversations: Some(5), messages: Some(50), in_flight: Some(4) };
        let phases = Shape::S3.phases(scale);
        let sizes: Vec<_> = phases[1].loads.iter().map(|load| (load.conversations, load.messages_each)).collect();
        assert_eq!(sizes, [(5, 10), (1, 50)]);
        assert_eq!(phases[1].loads[0].in_flight, 4);
        assert_eq!(phases[1].loads[1].ideal(), Duration::from_millis(2_500));
        assert_eq!(Shape::S1.phases(Scale::default())[0].loads[0].messages_each, 10);
    }
}
