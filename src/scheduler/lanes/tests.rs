//! The lanes beside a model of the rules in their plainest form, over random histories.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What may happen to the lanes; numbers choose among what is possible at that moment.
#[derive(Debug, Clone)]
enum Step {
    Arrive {
        lane: u8,
    },
    Start,
    Finish {
        which: usize,
    },
    Fail {
        which: usize,
        counts: bool,
    },
    Resume {
        which: usize,
    },
    /// A read of parked messages comes back, with at most this many.
    Read {
        which: usize,
        at_most: usize,
    },
    DropPartition {
        partition: u8,
    },
}

const LANES: u8 = 6;
/// Lanes share partitions: 0 and 3 are of partition 0, and so on.
const PARTITIONS: u8 = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => (0..LANES).prop_map(|lane| Step::Arrive { lane }),
        40 => Just(Step::Start),
        30 => any::<usize>().prop_map(|which| Step::Finish { which }),
        10 => (any::<usize>(), any::<bool>()).prop_map(|(which, counts)| Step::Fail { which, counts }),
        20 => any::<usize>().prop_map(|which| Step::Resume { which }),
        20 => (any::<usize>(), 1_usize..4).prop_map(|(which, at_most)| Step::Read { which, at_most }),
        1 => (0..PARTITIONS).prop_map(|partition| Step::DropPartition { partition }),
    ];
    prop::collection::vec(step, 0..400)
}

#[derive(Default)]
struct Model {
    next_sequence: u64,
    /// Everything of a lane, in memory or parked.
    messages: BTreeMap<LaneKey, VecDeque<u64>>,
    attempts: BTreeMap<LaneKey, u32>,
    running: Vec<LaneKey>,
    paused: Vec<LaneKey>,
    reads: Vec<Refill>,
}

fn key(lane: u8) -> LaneKey {
    format!("web.bot.user-{lane}").into()
}

fn partition_of(key: &LaneKey) -> u16 {
    u16::from(key.as_bytes()[key.len() - 1] - b'0') % u16::from(PARTITIONS)
}

impl Model {
    fn begin(&mut self, start: &Start) {
        assert!(!self.running.contains(&start.key), "two at once on {}", start.key);
        assert!(!self.paused.contains(&start.key), "{} ran during its pause", start.key);
        assert_eq!(self.messages[&start.key].front(), Some(&start.slot.sequence), "out of order");
        assert_eq!(self.attempts.get(&start.key).copied().unwrap_or(1), start.attempt);
        assert_eq!(partition_of(&start.key), start.slot.partition);
        self.running.push(Arc::clone(&start.key));
    }

    fn finish(&mut self, key: &LaneKey) {
        let lane = self.messages.get_mut(key).unwrap();
        lane.pop_front().unwrap();
        self.attempts.remove(key);
        if lane.is_empty() {
            self.messages.remove(key);
        }
    }
}

/// Answers a read as the stream would: the lane's messages in the range, no more than asked for.
fn read(lanes: &mut Lanes, model: &Model, refill: &Refill, at_most: usize) {
    let all = model.messages.get(&refill.key).cloned().unwrap_or_default();
    let in_range = all.into_iter().filter(|sequence| (refill.from..=refill.until).contains(sequence));
    let wanted: Vec<u64> = in_range.collect();
    let found: Vec<u64> = wanted.iter().copied().take(refill.count.min(at_most)).collect();
    let next = if found.len() == wanted.len() { refill.until + 1 } else { found[found.len() - 1] + 1 };
    lanes.refilled(&refill.key, &found, next);
}

fn run(lanes: &mut Lanes, model: &mut Model, step: &Step) {
    match *step {
        Step::Arrive { lane } => {
            let key = key(lane);
            model.next_sequence += 1;
            let slot = Slot { partition: partition_of(&key), sequence: model.next_sequence };
            let admission = lanes.admit(&key, slot);
            assert_eq!(lanes.is_parked(&key, slot.sequence), matches!(admission, Admission::Parked { .. }));
            model.messages.entry(key).or_default().push_back(slot.sequence);
        }
        Step::Start => {
            if let Some(start) = lanes.start() {
                model.begin(&start);
            }
        }
        Step::Finish { which } if !model.running.is_empty() => {
            let key = model.running.remove(which % model.running.len());
            lanes.done(&key);
            model.finish(&key);
            model.reads.extend(lanes.refill(&key));
        }
        Step::Fail { which, counts } if !model.running.is_empty() => {
            let key = model.running.remove(which % model.running.len());
            lanes.failed(&key, counts);
            *model.attempts.entry(Arc::clone(&key)).or_insert(1) += u32::from(counts);
            model.paused.push(key);
        }
        Step::Resume { which } if !model.paused.is_empty() => {
            let key = model.paused.remove(which % model.paused.len());
            lanes.resume(&key);
        }
        Step::Read { which, at_most } if !model.reads.is_empty() => {
            let refill = model.reads.remove(which % model.reads.len());
            read(lanes, model, &refill, at_most);
            model.reads.extend(lanes.refill(&refill.key));
        }
        Step::DropPartition { partition } => drop_partition(lanes, model, u16::from(partition)),
        _ => {}
    }
    assert_eq!(lanes.running(), model.running.len());
    assert_eq!(lanes.len(), model.messages.len());
    for lane in lanes.lanes.values() {
        assert!(lane.waiting.len() <= lanes.backlog, "more than the backlog in memory");
    }
}

fn drop_partition(lanes: &mut Lanes, model: &mut Model, partition: u16) {
    let dropped = lanes.drop_partition(partition);
    for key in model.messages.keys().filter(|key| partition_of(key) == partition) {
        assert_eq!(dropped.contains(key), !model.running.contains(key), "only running lanes outlive their partition");
    }
    let running = model.running.clone();
    model.messages.retain(|key, lane| {
        if partition_of(key) != partition {
            return true;
        }
        lane.truncate(1);
        let keep = running.contains(key);
        if !keep {
            model.attempts.remove(key);
        }
        keep
    });
    model.paused.retain(|key| partition_of(key) != partition);
    model.reads.retain(|refill| refill.partition != partition);
}

proptest! {
    #[test]
    fn one_at_a_time_in_order_bounded_and_never_stuck(
        steps in steps(), max_running in 1_usize..5, backlog in 1_usize..6,
    ) {
        let mut lanes = Lanes::new(max_running, backlog);
        let mut model = Model::default();
        for step in &steps {
            run(&mut lanes, &mut model, step);
            prop_assert!(lanes.running() <= max_running);
        }
        // Whatever happened, everything that arrived can be brought to its end, and then nothing is left behind.
        let mut rounds = 0;
        while !model.messages.is_empty() {
            for step in [Step::Resume { which: 0 }, Step::Read { which: 0, at_most: 3 }, Step::Start, Step::Finish { which: 0 }] {
                run(&mut lanes, &mut model, &step);
            }
            rounds += 1;
            prop_assert!(rounds < 4_000, "stuck with {:?}", model.messages);
        }
        prop_assert!(lanes.is_empty() && lanes.ready.is_empty() && lanes.running() == 0);
    }
}

#[test]
fn a_long_lane_does_not_hold_up_the_others() {
    let mut lanes = Lanes::new(1, 64);
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

#[test]
fn a_flooded_lane_keeps_its_backlog_and_parks_the_rest() {
    let mut lanes = Lanes::new(8, 4);
    let flooded = key(0);
    let parked = (1..=100_000)
        .filter(|&sequence| matches!(lanes.admit(&flooded, Slot { partition: 0, sequence }), Admission::Parked { .. }));
    assert_eq!(parked.count(), 100_000 - 4);
    assert_eq!(lanes.lanes[&flooded].waiting.len(), 4);
}
