//! Many processes over one imagined bucket and database: they join, leave, die, freeze, hear late, lose answers, and are
//! cut off from the bucket for a while.
//!
//! Drives the real [`Holdings`]; only the I/O is imagined. Checks at each step that nobody works without the right to and
//! that no partition lies idle for long, and at the end that the shares are even and nothing moves any more.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::Owned;
use super::holdings::{Effect, Holdings, Write};
use super::view::{Change, Lease};
use crate::store::{Ownership, Takeover};

const PARTITIONS: u16 = 12;
/// One step is 100 ms.
const TTL: u64 = 30;
const RENEW: u64 = 10;
/// The longest that a change takes to be heard, a write to happen, and a turn to end.
const LATENCY: u64 = 4;
const GRACE: u64 = 15;

/// The longest that a partition lies idle after the last thing that went wrong: a time-to-live until the owner counts as
/// dead, another when the view was lost meanwhile, a tick to try again, and the ways of the messages.
const IDLE_MAX: u64 = 2 * TTL + RENEW + 8 * LATENCY;

/// Enough for every partition to be given once by one member.
const QUIET_AFTER: u64 = PARTITIONS as u64 * (GRACE + 6 * LATENCY) + 4 * TTL;

#[derive(Debug, Clone)]
enum Trouble {
    Join,
    Leave(usize),
    Kill(usize),
    Freeze(usize, u64),
    Interrupt(usize),
    /// The bucket is deleted and made anew, empty.
    Wipe,
}

fn trouble() -> impl Strategy<Value = (u64, Trouble)> {
    let what = prop_oneof![
        3 => Just(Trouble::Join),
        1 => any::<usize>().prop_map(Trouble::Leave),
        1 => any::<usize>().prop_map(Trouble::Kill),
        2 => (any::<usize>(), 5..3 * TTL).prop_map(|(who, steps)| Trouble::Freeze(who, steps)),
        1 => any::<usize>().prop_map(Trouble::Interrupt),
        1 => Just(Trouble::Wipe),
    ];
    (0..4 * TTL, what)
}

/// On its way between a process and the world.
enum Flight {
    Write(Write),
    Written(Write, Option<u64>),
    TakeOver(Vec<u16>),
    Released(u16),
}

struct Process {
    id: String,
    holdings: Holdings,
    frozen_until: u64,
    leaving: bool,
    heard: usize,
    /// It will notice then that its view is of a bucket that is gone.
    deaf_until: Option<u64>,
    flights: Vec<(u64, Flight)>,
    /// What its scheduler works on, under which epoch.
    working: BTreeMap<u16, i64>,
    phase: u64,
}

struct World {
    step: u64,
    random: StdRng,
    /// In percent; part of them did happen.
    failures: u32,
    members: BTreeMap<String, (bool, u64)>,
    leases: BTreeMap<u16, (Lease, u64)>,
    revision: u64,
    log: Vec<(u64, Change)>,
    epochs: [i64; PARTITIONS as usize],
    idle_since: [u64; PARTITIONS as usize],
    processes: Vec<Process>,
    joined: usize,
    moves: usize,
}

impl World {
    fn new(seed: u64, failures: u32) -> Self {
        Self {
            step: 0,
            random: StdRng::seed_from_u64(seed),
            failures,
            members: BTreeMap::new(),
            leases: BTreeMap::new(),
            revision: 0,
            log: Vec::new(),
            epochs: [0; PARTITIONS as usize],
            idle_since: [0; PARTITIONS as usize],
            processes: Vec::new(),
            joined: 0,
            moves: 0,
        }
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.step * 100)
    }

    fn tell(&mut self, change: Change) {
        self.log.push((self.step, change));
    }

    fn went_wrong(&mut self) {
        self.idle_since = [self.step; PARTITIONS as usize];
    }

    fn make(&mut self, trouble: &Trouble) {
        self.went_wrong();
        let count = self.processes.len();
        match *trouble {
            Trouble::Join => self.join(),
            Trouble::Wipe => self.wipe(),
            _ if count == 0 => {}
            Trouble::Leave(who) => {
                let process = &mut self.processes[who % count];
                process.leaving = true;
                process.holdings.leave();
            }
            Trouble::Kill(who) => drop(self.processes.remove(who % count)),
            Trouble::Freeze(who, steps) => self.processes[who % count].frozen_until = self.step + steps,
            Trouble::Interrupt(who) => self.retell(who % count),
        }
    }

    fn join(&mut self) {
        self.joined += 1;
        let id = format!("p{}", self.joined);
        let holdings = Holdings::new(id.clone(), PARTITIONS, Duration::from_millis(TTL * 100));
        self.processes.push(Process {
            id,
            holdings,
            frozen_until: 0,
            leaving: false,
            heard: 0,
            deaf_until: None,
            flights: Vec::new(),
            working: BTreeMap::new(),
            phase: self.random.random_range(0..RENEW),
        });
        let index = self.processes.len() - 1;
        self.renew(index);
        self.retell(index);
    }

    fn wipe(&mut self) {
        self.members.clear();
        self.leases.clear();
        self.revision = 0;
        for process in &mut self.processes {
            process.deaf_until = Some(self.step + self.random.random_range(1..=RENEW));
        }
    }

    fn retell(&mut self, index: usize) {
        let now = self.now();
        let process = &mut self.processes[index];
        process.holdings.changed(Change::Restarted, now);
        for (id, &(leaving, _)) in &self.members {
            process.holdings.changed(Change::Member { id: id.clone(), leaving }, now);
        }
        for (&partition, (lease, revision)) in &self.leases {
            let change = Change::Lease { partition, lease: lease.clone(), revision: *revision };
            process.holdings.changed(change, now);
        }
        process.holdings.changed(Change::Complete, now);
        process.heard = self.log.len();
    }

    fn renew(&mut self, index: usize) {
        let Process { id, leaving, .. } = &self.processes[index];
        let (id, leaving) = (id.clone(), *leaving);
        self.members.insert(id.clone(), (leaving, self.step + TTL));
        self.tell(Change::Member { id, leaving });
    }

    fn step(&mut self) {
        self.step += 1;
        let dead: Vec<String> =
            self.members.iter().filter(|(_, (_, until))| *until < self.step).map(|(id, _)| id.clone()).collect();
        for id in dead {
            self.members.remove(&id);
            self.tell(Change::Expired { id });
        }
        for index in 0..self.processes.len() {
            self.land(index);
            if self.processes[index].frozen_until <= self.step {
                self.act(index);
            }
        }
        let gone: Vec<String> = self
            .processes
            .iter()
            .filter(|one| one.leaving && one.holdings.is_empty())
            .map(|one| one.id.clone())
            .collect();
        for id in gone {
            self.processes.retain(|process| process.id != id);
            self.members.remove(&id);
            self.tell(Change::Left { id });
        }
        self.check();
    }

    /// What a process has sent happens, whether it is frozen or not; what it does itself, and what it hears, waits.
    fn land(&mut self, index: usize) {
        let frozen = self.processes[index].frozen_until > self.step;
        let mut waiting = Vec::new();
        for (due, flight) in std::mem::take(&mut self.processes[index].flights) {
            if due > self.step || (frozen && !matches!(flight, Flight::Write(_))) {
                waiting.push((due, flight));
                continue;
            }
            match flight {
                Flight::Write(write) => {
                    let answer = self.compare_and_set(&write);
                    waiting.push((self.step + 1, Flight::Written(write, answer)));
                }
                Flight::Written(write, revision) => {
                    let now = self.now();
                    self.processes[index].holdings.written(write, revision, now);
                }
                Flight::TakeOver(partitions) => self.take_over(index, &partitions),
                Flight::Released(partition) => {
                    let process = &mut self.processes[index];
                    process.working.remove(&partition);
                    process.holdings.released(partition);
                }
            }
        }
        self.processes[index].flights.extend(waiting);
    }

    fn compare_and_set(&mut self, write: &Write) -> Option<u64> {
        let fails = self.fails();
        if fails && self.random.random_bool(0.5) {
            return None;
        }
        let found = self.leases.get(&write.partition).map_or(0, |(_, revision)| *revision);
        if found != write.expected {
            return None;
        }
        self.revision += 1;
        let (partition, lease, revision) = (write.partition, write.lease.clone(), self.revision);
        self.leases.insert(partition, (lease.clone(), revision));
        self.tell(Change::Lease { partition, lease, revision });
        (!fails).then_some(revision)
    }

    fn take_over(&mut self, index: usize, partitions: &[u16]) {
        let fails = self.fails();
        let owned = partitions.iter().map(|&partition| {
            let epoch = &mut self.epochs[usize::from(partition)];
            *epoch += 1;
            let ownership = Ownership { stream: 1, partition, epoch: *epoch };
            Owned { takeover: Takeover { ownership, checkpoint: None }, after: 0, after_death: false }
        });
        let owned: Vec<Owned> = owned.collect();
        let effects = self.processes[index].holdings.taken_over((!fails).then_some(owned));
        self.perform(index, effects);
    }

    fn fails(&mut self) -> bool {
        let fails = self.random.random_ratio(self.failures, 100);
        if fails {
            self.went_wrong();
        }
        fails
    }

    fn act(&mut self, index: usize) {
        let now = self.now();
        match self.processes[index].deaf_until {
            Some(until) if until > self.step => self.processes[index].heard = self.log.len(),
            Some(_) => {
                self.processes[index].deaf_until = None;
                self.retell(index);
            }
            None => {}
        }
        let heard = self.processes[index].heard;
        let delay = self.random.random_range(0..=LATENCY);
        let news = self.log[heard..].iter().take_while(|(told, _)| told + delay <= self.step).cloned();
        let news: Vec<_> = news.collect();
        let due = self.step % RENEW == self.processes[index].phase;
        if due {
            self.renew(index);
        }
        let fenced = self.random.random_bool(0.2);
        let process = &mut self.processes[index];
        process.heard += news.len();
        for (_, change) in news {
            process.holdings.changed(change, now);
        }
        if due {
            process.holdings.tick();
        }
        if fenced {
            let lost =
                process.working.iter().find(|(partition, epoch)| **epoch < self.epochs[usize::from(**partition)]);
            if let Some((&partition, _)) = lost {
                process.working.remove(&partition);
                process.holdings.lost(partition);
            }
        }
        let effects = process.holdings.next(now);
        self.perform(index, effects);
    }

    fn perform(&mut self, index: usize, effects: Vec<Effect>) {
        for effect in effects {
            let (latency, flight) = match effect {
                Effect::Write(write) => (LATENCY, Flight::Write(write)),
                Effect::TakeOver(partitions) => (LATENCY, Flight::TakeOver(partitions)),
                Effect::Give { partition, .. } => (GRACE, Flight::Released(partition)),
                Effect::Take { owned, .. } => {
                    let Ownership { partition, epoch, .. } = owned.takeover.ownership;
                    let before = self.processes[index].working.insert(partition, epoch);
                    assert!(before.is_none_or(|before| before < epoch), "taken twice");
                    self.moves += 1;
                    continue;
                }
            };
            let due = self.step + self.random.random_range(1..=latency);
            self.processes[index].flights.push((due, flight));
        }
    }

    fn check(&mut self) {
        let anybody = self.processes.iter().any(|process| !process.leaving && process.frozen_until <= self.step);
        for partition in 0..PARTITIONS {
            let index = usize::from(partition);
            let epoch = self.epochs[index];
            let owners = self.processes.iter().filter(|process| process.working.get(&partition) == Some(&epoch));
            let owners: Vec<&Process> = owners.collect();
            assert!(owners.len() <= 1, "partition {partition} has two owners of epoch {epoch}");
            if !anybody || owners.iter().any(|process| process.frozen_until <= self.step) {
                self.idle_since[index] = self.step;
            }
            let idle = self.step - self.idle_since[index];
            assert!(idle <= IDLE_MAX, "partition {partition} lay idle for {idle} steps at {}", self.step);
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// Everything is owned, evenly, by those whom the leases name; and stays so.
    fn assert_settled(&mut self) {
        if self.processes.is_empty() {
            return;
        }
        let shares: Vec<usize> = self.processes.iter().map(|process| process.working.len()).collect();
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert_eq!(shares.iter().sum::<usize>(), usize::from(PARTITIONS), "{shares:?}");
        assert!(most - least <= 1, "{shares:?}");
        for process in &self.processes {
            assert_eq!(process.holdings.held(), process.working.len());
            for (partition, epoch) in &process.working {
                let expected = Lease { member: Some(process.id.clone()), epoch: Some(*epoch) };
                assert_eq!(self.leases[partition].0, expected);
            }
        }
        let revision = self.revision;
        self.run(2 * TTL);
        assert_eq!(self.revision, revision, "something still moves");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_everything_ends_owned_and_even(
        seed in any::<u64>(),
        failures in prop_oneof![Just(0_u32), 1..25_u32],
        troubles in proptest::collection::vec(trouble(), 1..14),
    ) {
        let mut world = World::new(seed, failures);
        for (wait, trouble) in &troubles {
            world.run(*wait);
            world.make(trouble);
        }
        world.failures = 0;
        world.went_wrong();
        world.run(3 * TTL + QUIET_AFTER);
        world.assert_settled();
    }

    #[test]
    fn as_many_partitions_move_as_must(seed in any::<u64>(), count in 1..6_usize) {
        let mut world = World::new(seed, 0);
        let settle = |world: &mut World, trouble| {
            world.moves = 0;
            world.make(&trouble);
            world.run(QUIET_AFTER);
            world.moves
        };
        for _ in 0..count {
            settle(&mut world, Trouble::Join);
        }
        let joined = settle(&mut world, Trouble::Join);
        let all = usize::from(PARTITIONS);
        prop_assert!((all / (count + 1)..=all.div_ceil(count + 1)).contains(&joined), "{joined} move when one joins");
        for trouble in [Trouble::Leave(count), Trouble::Kill(0)] {
            let (Trouble::Leave(who) | Trouble::Kill(who)) = trouble else { continue };
            let had = world.processes[who].working.len();
            let moved = settle(&mut world, trouble);
            prop_assert_eq!(moved, if world.processes.is_empty() { 0 } else { had }, "when one of {} goes", count + 1);
        }
        world.assert_settled();
    }
}
