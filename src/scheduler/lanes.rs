//! Which message may run next: one lane per conversation, one running message per lane, lanes side by side up to a bound.
//!
//! Pure: no clock, no I/O, no knowledge of what running means. Invariants, kept by the property tests below: never two
//! running messages of one lane, never one before an earlier one of its lane is done, no lane forgotten while it holds
//! messages, no memory for a lane without any.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The name of a lane: the conversation's subject tokens.
pub type LaneKey = Arc<str>;

/// A message waiting in or running on a lane, by its place in its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    pub partition: u16,
    pub sequence: u64,
}

/// A message that may run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub key: LaneKey,
    pub slot: Slot,
    /// Counts from 1; attempts that did not count (see [`Lanes::failed`]) keep the number.
    pub attempt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the ready queue.
    Ready,
    /// Its first message is running.
    Running,
    /// Its first message failed and waits for [`Lanes::resume`].
    Paused,
}

#[derive(Debug)]
struct Lane {
    waiting: VecDeque<Slot>,
    state: State,
    attempt: u32,
}

/// All lanes of a process.
#[derive(Debug)]
pub struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    /// Lanes in the order in which they may start: a lane that finished a message goes to the end, so that a long one does
    /// not hold up the others.
    ready: VecDeque<LaneKey>,
    running: usize,
    max_running: usize,
}

impl Lanes {
    #[must_use]
    pub fn new(max_running: usize) -> Self {
        Self { lanes: HashMap::new(), ready: VecDeque::new(), running: 0, max_running }
    }

    /// Puts a message at the end of its lane and returns how many stand before it. Messages of a lane are admitted in
    /// ascending sequence, each once: the caller's [`super::progress::Progress`] sees to it.
    pub fn admit(&mut self, key: &LaneKey, slot: Slot) -> usize {
        if let Some(lane) = self.lanes.get_mut(key) {
            debug_assert!(lane.waiting.back().is_none_or(|last| last.sequence < slot.sequence), "admitted in order");
            lane.waiting.push_back(slot);
            return lane.waiting.len() - 1;
        }
        let lane = Lane { waiting: VecDeque::from([slot]), state: State::Ready, attempt: 1 };
        self.lanes.insert(Arc::clone(key), lane);
        self.ready.push_back(Arc::clone(key));
        0
    }

    /// The next message that may run, now counted as running; `None` when no lane is ready or the bound is reached.
    pub fn start(&mut self) -> Option<Start> {
        while self.running < self.max_running {
            let key = self.ready.pop_front()?;
            // A lane dropped with its partition leaves its place in the queue behind.
            let Some(lane) = self.lanes.get_mut(&key).filter(|lane| lane.state == State::Ready) else { continue };
            let Some(&slot) = lane.waiting.front() else { continue };
            lane.state = State::Running;
            self.running += 1;
            return Some(Start { key, slot, attempt: lane.attempt });
        }
        None
    }

    /// The running message of the lane is done for good; the lane goes on with the next one or ceases to exist.
    pub fn done(&mut self, key: &LaneKey) -> Option<Slot> {
        let lane = self.lanes.get_mut(key).filter(|lane| lane.state == State::Running)?;
        self.running -= 1;
        let slot = lane.waiting.pop_front();
        if lane.waiting.is_empty() {
            self.lanes.remove(key);
        } else {
            lane.attempt = 1;
            lane.state = State::Ready;
            self.ready.push_back(Arc::clone(key));
        }
        slot
    }

    /// The running message failed and shall run again after [`Lanes::resume`]; everything behind it waits. An attempt that
    /// failed for reasons outside the message (the database was away) does not count.
    pub fn failed(&mut self, key: &LaneKey, counts: bool) {
        if let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.state == State::Running) {
            self.running -= 1;
            lane.state = State::Paused;
            lane.attempt += u32::from(counts);
        }
    }

    /// The pause after a failure is over.
    pub fn resume(&mut self, key: &LaneKey) {
        if let Some(lane) = self.lanes.get_mut(key).filter(|lane| lane.state == State::Paused) {
            lane.state = State::Ready;
            self.ready.push_back(Arc::clone(key));
        }
    }

    /// Messages running now.
    #[must_use]
    pub const fn running(&self) -> usize {
        self.running
    }

    /// Lanes that hold at least one message.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What may happen to the lanes; numbers choose among what is possible at that moment.
    #[derive(Debug, Clone)]
    enum Step {
        Arrive { lane: u8 },
        Start,
        Finish { which: usize },
        Fail { which: usize, counts: bool },
        Resume { which: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u8..6).prop_map(|lane| Step::Arrive { lane }),
            4 => Just(Step::Start),
            3 => any::<usize>().prop_map(|which| Step::Finish { which }),
            1 => (any::<usize>(), any::<bool>()).prop_map(|(which, counts)| Step::Fail { which, counts }),
            2 => any::<usize>().prop_map(|which| Step::Resume { which }),
        ];
        prop::collection::vec(step, 0..400)
    }

    /// The rules in their plainest form, beside which the lanes run.
    #[derive(Default)]
    struct Model {
        next_sequence: u64,
        waiting: BTreeMap<LaneKey, VecDeque<(Slot, u32)>>,
        running: Vec<LaneKey>,
        paused: Vec<LaneKey>,
    }

    impl Model {
        fn begin(&mut self, start: &Start) {
            assert!(!self.running.contains(&start.key), "two at once on {}", start.key);
            assert!(!self.paused.contains(&start.key), "{} ran during its pause", start.key);
            assert_eq!(self.waiting[&start.key].front(), Some(&(start.slot, start.attempt)), "out of order");
            self.running.push(Arc::clone(&start.key));
        }

        fn finish(&mut self, key: &LaneKey) -> Slot {
            let lane = self.waiting.get_mut(key).unwrap();
            let (slot, _) = lane.pop_front().unwrap();
            if lane.is_empty() {
                self.waiting.remove(key);
            }
            slot
        }
    }

    fn run(lanes: &mut Lanes, model: &mut Model, step: &Step) {
        match *step {
            Step::Arrive { lane } => {
                let key: LaneKey = format!("web.bot.user-{lane}").into();
                model.next_sequence += 1;
                let slot = Slot { partition: u16::from(lane), sequence: model.next_sequence };
                let queue = model.waiting.entry(Arc::clone(&key)).or_default();
                assert_eq!(lanes.admit(&key, slot), queue.len());
                queue.push_back((slot, 1));
            }
            Step::Start => {
                if let Some(start) = lanes.start() {
                    model.begin(&start);
                }
            }
            Step::Finish { which } if !model.running.is_empty() => {
                let key = model.running.remove(which % model.running.len());
                assert_eq!(lanes.done(&key), Some(model.finish(&key)));
            }
            Step::Fail { which, counts } if !model.running.is_empty() => {
                let key = model.running.remove(which % model.running.len());
                lanes.failed(&key, counts);
                model.waiting.get_mut(&key).unwrap()[0].1 += u32::from(counts);
                model.paused.push(key);
            }
            Step::Resume { which } if !model.paused.is_empty() => {
                let key = model.paused.remove(which % model.paused.len());
                lanes.resume(&key);
            }
            _ => {}
        }
        assert_eq!(lanes.running(), model.running.len());
        assert_eq!(lanes.len(), model.waiting.len());
    }

    proptest! {
        #[test]
        fn one_at_a_time_in_order_and_never_stuck(steps in steps(), max_running in 1_usize..5) {
            let mut lanes = Lanes::new(max_running);
            let mut model = Model::default();
            for step in &steps {
                run(&mut lanes, &mut model, step);
                prop_assert!(lanes.running() <= max_running);
            }
            // Whatever happened, everything that arrived can be brought to its end, and then nothing is left behind.
            while !model.waiting.is_empty() {
                let before = model.waiting.values().map(VecDeque::len).sum::<usize>();
                for step in [Step::Resume { which: 0 }, Step::Start, Step::Finish { which: 0 }] {
                    run(&mut lanes, &mut model, &step);
                }
                prop_assert!(model.waiting.values().map(VecDeque::len).sum::<usize>() < before, "stuck");
            }
            prop_assert!(lanes.is_empty() && lanes.ready.is_empty() && lanes.running() == 0);
        }
    }

    #[test]
    fn a_long_lane_does_not_hold_up_the_others() {
        let mut lanes = Lanes::new(1);
        let (long, short): (LaneKey, LaneKey) = ("web.bot.user-long".into(), "web.bot.user-short".into());
        for sequence in 1..=3 {
            lanes.admit(&long, Slot { partition: 0, sequence });
        }
        lanes.admit(&short, Slot { partition: 1, sequence: 4 });
        let order: Vec<_> = std::iter::from_fn(|| {
            let start = lanes.start()?;
            lanes.done(&start.key);
            Some(start.slot.sequence)
        })
        .collect();
        assert_eq!(order, [1, 4, 2, 3]);
    }
}
