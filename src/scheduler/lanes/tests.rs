//! The lanes beside a model of the rules in their plainest form, over random histories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Burst;
use crate::message::{DraftId, Timestamp};
use crate::scheduler::bursts::INTERRUPTIONS_MAX;
use crate::scheduler::bursts::TURN_MESSAGES_MAX;
use crate::store::{Hold, HoldScope};

/// What may happen to the lanes; numbers choose among what is possible at that moment.
#[derive(Debug, Clone)]
enum Step {
    Arrive {
        lane: u8,
        label: Label,
    },
    Start,
    /// Some or all of the messages of a task are done.
    Finish {
        which: usize,
        at_most: usize,
    },
    Fail {
        which: usize,
        counts: bool,
    },
    /// A task that was asked to end does, or a refusal is taken back.
    GiveWay {
        which: usize,
    },
    Resume {
        which: usize,
    },
    Time {
        passes_ms: u64,
    },
    /// A read of parked messages comes back, with at most this many.
    Read {
        which: usize,
        at_most: usize,
    },
    DropPartition {
        partition: u8,
    },
    /// From now on the lanes whose bit is set are held, and no others.
    Hold {
        lanes: u8,
    },
}

const LANES: u8 = 8;
/// Lanes share partitions: 0 and 3 are of partition 0, and so on.
const PARTITIONS: u8 = 3;
/// And they share bots: 0 and 4 are of bot 0, and so on.
const BOTS: u8 = 4;

fn label() -> impl Strategy<Value = Label> {
    prop_oneof![
        12 => Just(Label::Said { album: None, id: None }),
        4 => (0..2_u8).prop_map(|album| Label::Said { album: Some(album.to_string().into()), id: None }),
        4 => (0..3_u8).prop_map(|id| Label::Said { album: None, id: Some(id.to_string().into()) }),
        2 => (0..3_u8).prop_map(|id| Label::Amends { id: id.to_string().into() }),
        2 => Just(Label::Aside),
        1 => Just(Label::Pressed),
        1 => Just(Label::Opaque),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => (0..LANES, label()).prop_map(|(lane, label)| Step::Arrive { lane, label }),
        40 => Just(Step::Start),
        30 => (any::<usize>(), 1_usize..40).prop_map(|(which, at_most)| Step::Finish { which, at_most }),
        10 => (any::<usize>(), any::<bool>()).prop_map(|(which, counts)| Step::Fail { which, counts }),
        20 => any::<usize>().prop_map(|which| Step::GiveWay { which }),
        20 => any::<usize>().prop_map(|which| Step::Resume { which }),
        20 => (0..400_u64).prop_map(|passes_ms| Step::Time { passes_ms }),
        20 => (any::<usize>(), 1_usize..4).prop_map(|(which, at_most)| Step::Read { which, at_most }),
        1 => (0..PARTITIONS).prop_map(|partition| Step::DropPartition { partition }),
        3 => prop_oneof![Just(0), any::<u8>()].prop_map(|lanes| Step::Hold { lanes }),
    ];
    prop::collection::vec(step, 0..400)
}

fn rules() -> impl Strategy<Value = HashMap<String, Rules>> {
    let burst = prop_oneof![Just(Burst::Queue), Just(Burst::Collect), Just(Burst::Interrupt), Just(Burst::Reject)];
    let rules = (burst, 0..1_000_u64, 1..4_u32, prop::option::of(1..3_usize)).prop_map(
        |(burst, quiet_ms, weight, max_running)| Rules {
            burst,
            quiet: Duration::from_millis(quiet_ms),
            weight,
            max_running,
        },
    );
    prop::collection::vec(rules, usize::from(BOTS))
        .prop_map(|rules| rules.into_iter().enumerate().map(|(bot, rules)| (format!("web.bot{bot}"), rules)).collect())
}

struct Model {
    rules: HashMap<String, Rules>,
    now: Instant,
    next_sequence: u64,
    labels: BTreeMap<u64, Label>,
    /// Everything of a lane, in memory or parked.
    messages: BTreeMap<LaneKey, BTreeSet<u64>>,
    /// Messages that were to be refused at least once.
    refused: BTreeSet<u64>,
    attempts: BTreeMap<(LaneKey, Track), (u32, Vec<u64>)>,
    interruptions: BTreeMap<LaneKey, u32>,
    running: Vec<Start>,
    asked: BTreeSet<LaneKey>,
    paused: Vec<(LaneKey, Track)>,
    gathering: Vec<(LaneKey, Instant)>,
    reads: Vec<Refill>,
    held: BTreeSet<LaneKey>,
}

fn key(lane: u8) -> LaneKey {
    format!("web.bot{}.user-{lane}", lane % BOTS).into()
}

fn partition_of(key: &LaneKey) -> u16 {
    u16::from(key.as_bytes()[key.len() - 1] - b'0') % u16::from(PARTITIONS)
}

impl Model {
    fn new(rules: HashMap<String, Rules>) -> Self {
        Self {
            rules,
            now: Instant::now(),
            next_sequence: 0,
            labels: BTreeMap::new(),
            messages: BTreeMap::new(),
            refused: BTreeSet::new(),
            attempts: BTreeMap::new(),
            interruptions: BTreeMap::new(),
            running: Vec::new(),
            asked: BTreeSet::new(),
            paused: Vec::new(),
            gathering: Vec::new(),
            reads: Vec::new(),
            held: BTreeSet::new(),
        }
    }

    fn rules_of(&self, key: &LaneKey) -> &Rules {
        &self.rules[key.rsplit_once('.').unwrap().0]
    }

    fn is_running(&self, key: &LaneKey, track: Track) -> bool {
        self.running.iter().any(|start| start.key == *key && start.track == track)
    }

    fn asks(&self, sequence: u64) -> bool {
        matches!(self.labels[&sequence], Label::Said { .. } | Label::Pressed)
    }

    fn begin(&mut self, start: &Start) {
        let Start { key, track, sequences, attempt, partition, amendments, .. } = start;
        assert!(!self.is_running(key, *track), "two at once on {key}");
        assert!(!self.held.contains(key), "{key} is held");
        assert!(!self.paused.contains(&(Arc::clone(key), *track)), "{key} ran during its pause");
        assert!(!self.gathering.iter().any(|(gathering, _)| gathering == key) || *track == Track::Refusal);
        assert_eq!(partition_of(key), *partition);
        assert!(sequences.is_sorted_by(|left, right| left < right) && !sequences.is_empty());
        let lane = &self.messages[key];
        let mut all = sequences.iter().chain(amendments);
        assert!(all.all(|sequence| lane.contains(sequence)), "a message ran after its end");
        for amendment in amendments {
            let Label::Amends { id } = &self.labels[amendment] else { panic!("{amendment} amends nothing") };
            let names = |label: &Label| matches!(label, Label::Said { id: Some(said), .. } if said == id);
            assert!(sequences.iter().any(|sequence| sequence < amendment && names(&self.labels[sequence])));
            assert!(!sequences.contains(amendment));
        }
        match track {
            Track::Turn => self.begin_turn(start),
            Track::Refusal => {
                assert_eq!(self.rules_of(key).burst, Burst::Reject);
                assert_eq!(sequences.len(), 1);
                assert!(self.asks(sequences[0]));
                assert!(!self.running.iter().any(|other| other.sequences.contains(&sequences[0])));
                self.refused.insert(sequences[0]);
            }
        }
        let (expected, same) = self.attempts.entry((Arc::clone(key), *track)).or_insert((1, sequences.clone()));
        assert_eq!(*expected, *attempt);
        if *attempt > 1 {
            assert_eq!(same, sequences, "a turn that has failed keeps its messages");
        }
        same.clone_from(sequences);
        self.running.push(start.clone());
    }

    fn begin_turn(&self, start: &Start) {
        let rules = self.rules_of(&start.key);
        let lane = &self.messages[&start.key];
        let (first, last) = (start.sequences[0], start.sequences[start.sequences.len() - 1]);
        assert!(start.sequences.len() <= TURN_MESSAGES_MAX);
        // Asides may pass messages whose refusal is under way; what is said never passes what was said before.
        let before = |sequence: &&u64| **sequence < last && self.asks(**sequence);
        let skipped: Vec<_> =
            lane.iter().filter(before).filter(|sequence| !start.sequences.contains(sequence)).collect();
        if self.asks(last) {
            assert!(skipped.is_empty(), "{skipped:?} overtaken by {:?}", start.sequences);
        } else if rules.burst != Burst::Reject {
            assert_eq!(lane.first(), Some(&first), "out of order");
        }
    }

    fn finish(&mut self, start: &Start, done: &[u64]) {
        let lane = self.messages.get_mut(&start.key).unwrap();
        done.iter().for_each(|sequence| assert!(lane.remove(sequence), "{sequence} ended twice"));
        if lane.is_empty() {
            self.messages.remove(&start.key);
        }
        self.attempts.remove(&(Arc::clone(&start.key), start.track));
        if start.track == Track::Turn {
            self.asked.remove(&start.key);
            self.interruptions.remove(&start.key);
        }
    }
}

/// Answers a read as the stream would: the lane's messages in the range, no more than asked for.
fn read(lanes: &mut Lanes, model: &Model, refill: &Refill, at_most: usize) {
    let all = model.messages.get(&refill.key).cloned().unwrap_or_default();
    let wanted: Vec<u64> = all.range(refill.from..=refill.until).copied().collect();
    let found: Vec<u64> = wanted.iter().copied().take(refill.count.min(at_most)).collect();
    let next = if found.len() == wanted.len() { refill.until + 1 } else { found[found.len() - 1] + 1 };
    let found = found.into_iter().map(|sequence| (sequence, model.labels[&sequence].clone())).collect();
    lanes.refilled(&refill.key, found, next, model.now);
}

fn run(lanes: &mut Lanes, model: &mut Model, step: &Step) {
    match step {
        Step::Arrive { lane, label } => arrive(lanes, model, *lane, label),
        Step::Start => start(lanes, model),
        Step::Finish { which, at_most } if !model.running.is_empty() => {
            let start = model.running.swap_remove(which % model.running.len());
            let mut done = start.sequences.clone();
            done.extend(&start.amendments);
            done.truncate(*at_most);
            lanes.done(&start.key, start.track, &done);
            model.finish(&start, &done);
            model.reads.extend(lanes.refill(&start.key));
        }
        Step::Fail { which, counts } if !model.running.is_empty() => {
            let start = model.running.swap_remove(which % model.running.len());
            lanes.failed(&start.key, start.track, *counts);
            let lane = (Arc::clone(&start.key), start.track);
            model.attempts.get_mut(&lane).unwrap().0 += u32::from(*counts);
            if start.track == Track::Turn {
                model.asked.remove(&start.key);
            }
            model.paused.push(lane);
        }
        Step::GiveWay { which } if !model.running.is_empty() => give_way(lanes, model, which % model.running.len()),
        Step::Resume { which } if !model.paused.is_empty() => {
            let (key, track) = model.paused.remove(which % model.paused.len());
            lanes.resume(&key, track);
        }
        Step::Time { passes_ms } => {
            model.now += Duration::from_millis(*passes_ms);
            let (due, later) = model.gathering.drain(..).partition(|(_, until)| *until <= model.now);
            model.gathering = later;
            let due: Vec<(LaneKey, Instant)> = due;
            due.iter().for_each(|(key, _)| lanes.resume(key, Track::Turn));
        }
        Step::Read { which, at_most } if !model.reads.is_empty() => {
            let refill = model.reads.remove(which % model.reads.len());
            read(lanes, model, &refill, *at_most);
            model.reads.extend(lanes.refill(&refill.key));
        }
        Step::DropPartition { partition } => drop_partition(lanes, model, u16::from(*partition)),
        Step::Hold { lanes: held } => hold(lanes, model, *held),
        _ => {}
    }
    assert_eq!(lanes.running(), model.running.iter().filter(|start| start.track == Track::Turn).count());
    assert_eq!(lanes.len(), model.messages.len());
    for lane in lanes.lanes.values() {
        assert!(lane.in_memory() <= lanes.backlog, "more than the backlog in memory");
    }
}

fn hold(lanes: &mut Lanes, model: &mut Model, held: u8) {
    model.held = (0..LANES).filter(|lane| (held >> lane) & 1 == 1).map(key).collect();
    let holds: Vec<_> = model.held.iter().map(|key| held_lane(key)).collect();
    for key in lanes.hold(Arc::new(Holds::of(&holds))) {
        model.reads.extend(lanes.refill(&key));
    }
}

fn held_lane(key: &str) -> Hold {
    Hold {
        scope: HoldScope::Conversation,
        target: key.to_owned(),
        actor: None,
        reason: None,
        created_at: Timestamp::from_micros(0),
    }
}

fn arrive(lanes: &mut Lanes, model: &mut Model, lane: u8, label: &Label) {
    let key = key(lane);
    model.next_sequence += 1;
    let slot = Slot { partition: partition_of(&key), sequence: model.next_sequence };
    let admission = lanes.admit(&key, slot, label.clone(), model.now);
    assert_eq!(lanes.is_parked(&key, slot.sequence), matches!(admission, Admission::Parked { .. }));
    model.labels.insert(slot.sequence, label.clone());
    if matches!(admission, Admission::Waiting { interrupts: true, .. }) {
        assert_eq!(model.rules_of(&key).burst, Burst::Interrupt);
        assert!(model.is_running(&key, Track::Turn) && model.asked.insert(Arc::clone(&key)), "asked once");
        assert_eq!(model.attempts[&(Arc::clone(&key), Track::Turn)].0, 1);
        assert!(model.interruptions.get(&key).copied().unwrap_or_default() < INTERRUPTIONS_MAX);
    }
    model.messages.entry(key).or_default().insert(slot.sequence);
}

fn start(lanes: &mut Lanes, model: &mut Model) {
    let before = lanes.shares.loads();
    match lanes.start(model.now) {
        Some(super::Step::Run(start)) => {
            model.begin(&start);
            // Of a bot whose lanes are held, it is found out one by one that none may start.
            if start.track == Track::Turn && model.held.is_empty() {
                let bot = lanes.lanes[&start.key].bot;
                let (running, weight, _) = before[bot];
                for (other, other_weight, may_start) in before {
                    let waits =
                        may_start && other as u64 * u64::from(weight) < running as u64 * u64::from(other_weight);
                    assert!(!waits, "a bot with {other} of {other_weight} waits for one with {running} of {weight}");
                }
                let max = model.rules_of(&start.key).max_running;
                assert!(max.is_none_or(|max| running < max), "more than the bot's bound");
            }
        }
        Some(super::Step::Wait { key, until }) => {
            assert!(until > model.now);
            assert!(!model.is_running(&key, Track::Turn));
            model.gathering.push((key, until));
        }
        None => {}
    }
}

/// As the work does: a turn that was asked to end may, and a refusal may find that there is nothing to refuse.
fn give_way(lanes: &mut Lanes, model: &mut Model, place: usize) {
    let (key, track) = (Arc::clone(&model.running[place].key), model.running[place].track);
    match track {
        Track::Refusal => lanes.readmit(&key),
        Track::Turn if model.asked.remove(&key) => {
            *model.interruptions.entry(Arc::clone(&key)).or_default() += 1;
            lanes.interrupted(&key);
        }
        Track::Turn => return,
    }
    model.running.swap_remove(place);
    if track == Track::Refusal {
        model.attempts.remove(&(key, track));
    }
}

fn drop_partition(lanes: &mut Lanes, model: &mut Model, partition: u16) {
    let dropped = lanes.drop_partition(partition);
    let running: Vec<_> = model.running.iter().filter(|start| start.partition == partition).cloned().collect();
    for key in model.messages.keys().filter(|key| partition_of(key) == partition) {
        let outlives = running.iter().any(|start| start.key == *key);
        assert_eq!(dropped.contains(key), !outlives, "only running lanes outlive their partition");
    }
    // As the engine does: the partition is forgotten when nothing of it runs any more.
    for start in &running {
        lanes.abandon(&start.key, start.track);
    }
    model.running.retain(|start| start.partition != partition);
    model.messages.retain(|key, _| partition_of(key) != partition);
    model.attempts.retain(|(key, _), _| partition_of(key) != partition);
    model.interruptions.retain(|key, _| partition_of(key) != partition);
    model.asked.retain(|key| partition_of(key) != partition);
    model.paused.retain(|(key, _)| partition_of(key) != partition);
    model.gathering.retain(|(key, _)| partition_of(key) != partition);
    model.reads.retain(|refill| refill.partition != partition);
}

proptest! {
    #[test]
    fn one_at_a_time_in_order_fair_bounded_and_never_stuck(
        steps in steps(), rules in rules(), max_running in 1_usize..5, backlog in 1_usize..40,
    ) {
        let mut lanes = Lanes::new(max_running, backlog, rules.clone());
        let mut model = Model::new(rules);
        for step in &steps {
            run(&mut lanes, &mut model, step);
            prop_assert!(lanes.running() <= max_running && lanes.refusing <= max_running);
        }
        // Whatever happened, everything that arrived can be brought to its end, and then nothing is left behind.
        run(&mut lanes, &mut model, &Step::Hold { lanes: 0 });
        let mut rounds = 0;
        while !model.messages.is_empty() {
            let finish = Step::Finish { which: 0, at_most: usize::MAX };
            let time = Step::Time { passes_ms: 10_000 };
            for step in [Step::Resume { which: 0 }, Step::Read { which: 0, at_most: 3 }, Step::Start, finish, time] {
                run(&mut lanes, &mut model, &step);
            }
            rounds += 1;
            prop_assert!(rounds < 4_000, "stuck with {:?}", model.messages);
        }
        prop_assert!(lanes.is_empty() && lanes.shares.is_idle() && lanes.running() == 0 && lanes.refusing == 0);
        // Whatever was refused asked for an answer, of a bot that refuses.
        prop_assert!(model.refused.iter().all(|sequence| model.asks(*sequence)));
    }
}

fn plain() -> Label {
    Label::Said { album: None, id: None }
}

fn lanes(burst: Burst, backlog: usize) -> Lanes {
    let rules = Rules { burst, ..Rules::default() };
    Lanes::new(8, backlog, HashMap::from([("web.bot".to_owned(), rules)]))
}

/// The next task's sequences, and whether it is a refusal.
fn next(lanes: &mut Lanes, now: Instant) -> Option<(Track, Vec<u64>)> {
    match lanes.start(now)? {
        super::Step::Run(start) => Some((start.track, start.sequences)),
        super::Step::Wait { .. } => panic!("nothing to wait for"),
    }
}

#[test]
fn a_long_lane_does_not_hold_up_the_others() {
    let mut lanes = Lanes::new(1, 64, HashMap::new());
    let now = Instant::now();
    let (long, short): (LaneKey, LaneKey) = ("web.bot.user-long".into(), "web.bot.user-short".into());
    for sequence in 1..=3 {
        lanes.admit(&long, Slot { partition: 0, sequence }, plain(), now);
    }
    lanes.admit(&short, Slot { partition: 1, sequence: 4 }, plain(), now);
    let order: Vec<_> = std::iter::from_fn(|| {
        let super::Step::Run(start) = lanes.start(now)? else { return None };
        lanes.done(&start.key, start.track, &start.sequences);
        Some(start.sequences[0])
    })
    .collect();
    assert_eq!(order, [1, 4, 2, 3]);
}

#[test]
fn a_busy_bot_does_not_hold_up_the_others() {
    let mut lanes = Lanes::new(4, 64, HashMap::new());
    let now = Instant::now();
    for sequence in 1..=100 {
        lanes.admit(&format!("web.busy.user-{sequence}").into(), Slot { partition: 0, sequence }, plain(), now);
    }
    let started: Vec<LaneKey> = std::iter::from_fn(|| match lanes.start(now)? {
        super::Step::Run(start) => Some(start.key),
        super::Step::Wait { .. } => None,
    })
    .collect();
    assert_eq!(started.len(), 4);
    for sequence in 101..=103 {
        lanes.admit(&format!("web.quiet.user-{sequence}").into(), Slot { partition: 0, sequence }, plain(), now);
    }
    // Each of the next two places is the quiet bot's, until both have as many turns.
    for (ended, expected) in started.iter().zip(["web.quiet", "web.quiet"]) {
        lanes.done(ended, Track::Turn, &[ended.rsplit_once('-').unwrap().1.parse().unwrap()]);
        let Some(super::Step::Run(start)) = lanes.start(now) else { panic!("a place is free") };
        assert!(start.key.starts_with(expected), "{}", start.key);
    }
}

#[test]
fn a_flooded_lane_keeps_its_backlog_and_parks_the_rest() {
    let mut lanes = lanes(Burst::Queue, 4);
    let now = Instant::now();
    let flooded: LaneKey = "web.bot.user-0".into();
    let parked = (1..=100_000).filter(|&sequence| {
        matches!(lanes.admit(&flooded, Slot { partition: 0, sequence }, plain(), now), Admission::Parked { .. })
    });
    assert_eq!(parked.count(), 100_000 - 4);
    assert_eq!(lanes.lanes[&flooded].waiting.len(), 4);
}

#[test]
fn parked_messages_are_counted_until_they_are_read_again_or_somebody_elses() {
    let mut lanes = lanes(Burst::Queue, 4);
    let (now, key): (_, LaneKey) = (Instant::now(), "web.bot.user-0".into());
    for sequence in 1..=10 {
        lanes.admit(&key, Slot { partition: 0, sequence }, plain(), now);
    }
    assert_eq!(lanes.parked(), 6);
    for sequence in 1..=2 {
        assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![sequence])));
        lanes.done(&key, Track::Turn, &[sequence]);
    }
    assert!(lanes.refill(&key).is_some());
    // The sixth has left the stream with age.
    lanes.refilled(&key, vec![(5, plain())], 7, now);
    assert_eq!(lanes.parked(), 5);
    lanes.drop_partition(0);
    assert_eq!(lanes.parked(), 0);

    for sequence in 11..=16 {
        lanes.admit(&key, Slot { partition: 0, sequence }, plain(), now);
    }
    for sequence in 11..=12 {
        assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![sequence])));
        lanes.done(&key, Track::Turn, &[sequence]);
    }
    assert!(lanes.refill(&key).is_some());
    lanes.refilled(&key, vec![(15, plain())], 17, now);
    assert_eq!(lanes.parked(), 0, "what was counted and is gone does not count for ever");
}

#[test]
fn a_stop_ends_the_turn_that_runs_whichever_attempt_it_is_and_no_other() {
    let mut lanes = lanes(Burst::Queue, 2);
    let (now, key): (_, LaneKey) = (Instant::now(), "web.bot.user-0".into());
    let admit = |lanes: &mut Lanes, sequence, label| lanes.admit(&key, Slot { partition: 0, sequence }, label, now);
    let start = |lanes: &mut Lanes| match lanes.start(now) {
        Some(super::Step::Run(start)) => (start.sequences, start.amendments, start.attempt),
        other => panic!("{other:?}"),
    };
    admit(&mut lanes, 1, plain());
    assert_eq!(start(&mut lanes), (vec![1], vec![], 1));
    lanes.failed(&key, Track::Turn, true);
    lanes.resume(&key, Track::Turn);
    assert_eq!(start(&mut lanes), (vec![1], vec![], 2));
    assert!(matches!(admit(&mut lanes, 2, Label::Stops { draft: None }), Admission::Waiting { interrupts: true, .. }));
    lanes.interrupted(&key);
    assert_eq!(start(&mut lanes), (vec![1], vec![2], 2), "the stop is part of what is run again");
    lanes.done(&key, Track::Turn, &[1, 2]);

    for sequence in 3..=4 {
        admit(&mut lanes, sequence, plain());
    }
    assert_eq!(start(&mut lanes), (vec![3], vec![], 1));
    assert_eq!(admit(&mut lanes, 5, Label::Stops { draft: None }), Admission::Parked { opens: true });
    lanes.done(&key, Track::Turn, &[3]);
    assert!(lanes.refill(&key).is_some());
    lanes.refilled(&key, vec![(5, Label::Stops { draft: None })], 6, now);
    assert_eq!(start(&mut lanes), (vec![4], vec![], 1), "what it would have ended has ended before");
}

#[test]
fn a_stop_with_a_draft_ends_the_turn_of_that_draft_also_when_it_is_to_be_run_again() {
    let mut lanes = lanes(Burst::Queue, 8);
    let (now, key): (_, LaneKey) = (Instant::now(), "telegram.bot.user-0".into());
    let admit = |lanes: &mut Lanes, sequence, label| lanes.admit(&key, Slot { partition: 0, sequence }, label, now);
    let of = |first| Label::Stops { draft: Some(DraftId::of_turn(first)) };
    let waits = |before| Admission::Waiting { before, interrupts: false };
    let start = |lanes: &mut Lanes| match lanes.start(now) {
        Some(super::Step::Run(start)) => (start.sequences, start.amendments),
        other => panic!("{other:?}"),
    };
    admit(&mut lanes, 1, plain());
    admit(&mut lanes, 2, plain());
    assert_eq!(start(&mut lanes), (vec![1], vec![]));
    assert_eq!(admit(&mut lanes, 3, of(2)), waits(2), "the draft of a turn that has not begun is nobody's");
    assert_eq!(admit(&mut lanes, 4, of(1)), Admission::Waiting { before: 3, interrupts: true });
    lanes.interrupted(&key);
    assert_eq!(start(&mut lanes), (vec![1], vec![4]));
    lanes.done(&key, Track::Turn, &[1, 4]);
    assert_eq!(start(&mut lanes), (vec![2], vec![]));
    lanes.failed(&key, Track::Turn, true);
    assert_eq!(admit(&mut lanes, 5, of(1)), waits(2), "its turn is over");
    assert_eq!(admit(&mut lanes, 6, of(2)), waits(3));
    lanes.resume(&key, Track::Turn);
    assert_eq!(start(&mut lanes), (vec![2], vec![6]));
}

#[test]
fn an_interrupted_turn_starts_again_with_both_and_runs_to_its_end_in_the_end() {
    let mut lanes = lanes(Burst::Interrupt, 64);
    let (now, key): (_, LaneKey) = (Instant::now(), "web.bot.user-0".into());
    let admit = |lanes: &mut Lanes, sequence| lanes.admit(&key, Slot { partition: 0, sequence }, plain(), now);
    admit(&mut lanes, 1);
    for last in 1..=u64::from(INTERRUPTIONS_MAX) {
        assert_eq!(next(&mut lanes, now), Some((Track::Turn, (1..=last).collect())));
        assert!(matches!(admit(&mut lanes, last + 1), Admission::Waiting { interrupts: true, .. }));
        lanes.interrupted(&key);
    }
    let all: Vec<u64> = (1..=u64::from(INTERRUPTIONS_MAX) + 1).collect();
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, all.clone())));
    assert!(matches!(admit(&mut lanes, 100), Admission::Waiting { interrupts: false, .. }), "enough");
    lanes.done(&key, Track::Turn, &all);
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![100])));
}

#[test]
fn what_comes_during_a_turn_is_refused_and_what_comes_after_is_not() {
    let mut lanes = lanes(Burst::Reject, 64);
    let (now, key): (_, LaneKey) = (Instant::now(), "web.bot.user-0".into());
    for sequence in 1..=3 {
        lanes.admit(&key, Slot { partition: 0, sequence }, plain(), now);
    }
    assert_eq!(next(&mut lanes, now), Some((Track::Refusal, vec![2])));
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![1])));
    assert_eq!(next(&mut lanes, now), None, "refusals of a lane go one by one");
    lanes.done(&key, Track::Refusal, &[2]);
    assert_eq!(next(&mut lanes, now), Some((Track::Refusal, vec![3])));
    lanes.done(&key, Track::Turn, &[1]);
    lanes.done(&key, Track::Refusal, &[3]);
    assert!(lanes.is_empty());
    lanes.admit(&key, Slot { partition: 0, sequence: 4 }, plain(), now);
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![4])));
}

#[test]
fn what_is_held_does_not_start_is_parked_and_goes_on_where_it_stood() {
    let mut lanes = lanes(Burst::Queue, 64);
    let (now, held, free): (_, LaneKey, LaneKey) = (Instant::now(), "web.bot.user-0".into(), "web.bot.user-1".into());
    let admit =
        |lanes: &mut Lanes, key: &LaneKey, sequence| lanes.admit(key, Slot { partition: 0, sequence }, plain(), now);
    admit(&mut lanes, &held, 1);
    admit(&mut lanes, &held, 2);
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![1])));
    assert_eq!(lanes.hold(Arc::new(Holds::of(&[held_lane(&held)]))), Vec::<LaneKey>::new());
    assert_eq!(admit(&mut lanes, &held, 3), Admission::Parked { opens: true });
    admit(&mut lanes, &free, 4);
    // What runs ends, or fails and is not tried again for now.
    lanes.failed(&held, Track::Turn, true);
    lanes.resume(&held, Track::Turn);
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![4])), "others go on");
    assert_eq!(next(&mut lanes, now), None);
    assert_eq!(lanes.refill(&held), None, "what is parked stays so");

    assert_eq!(lanes.hold(Arc::default()), vec![Arc::clone(&held)], "its parked messages are to be read");
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![1])), "the one that failed first");
    lanes.done(&held, Track::Turn, &[1]);
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![2])));
    assert!(lanes.refill(&held).is_some());
    lanes.refilled(&held, vec![(3, plain())], 4, now);
    lanes.done(&held, Track::Turn, &[2]);
    assert_eq!(next(&mut lanes, now), Some((Track::Turn, vec![3])));

    // A lane of which nothing was in memory when it was held.
    lanes.done(&held, Track::Turn, &[3]);
    lanes.hold(Arc::new(Holds::of(&[held_lane(&held)])));
    assert_eq!(admit(&mut lanes, &held, 5), Admission::Parked { opens: true });
    assert_eq!(next(&mut lanes, now), None);
    assert_eq!(lanes.hold(Arc::default()), vec![Arc::clone(&held)]);
    assert!(lanes.refill(&held).is_some());
}
