//! Ownership of partitions among several processes: real nats-server, real database, the real participants; only the
//! schedulers are imagined, and they say what they were told.
//!
//! Refuses to sleep: each wait ends with a condition. What must not wait for a time-to-live is tried with one far longer than
//! the test.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use support::nats::NatsServer;
use support::{PATIENCE, eventually};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turnwise::cluster::{self, Assignment, ClusterError, Notice, Owned, Participant, Prepare, Settings};
use turnwise::config::Config;
use turnwise::store::{Ownership, Store};
use turnwise::stream::{self, Connection, Lane, StreamHandle};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const PARTITIONS: u16 = 12;
const TTL: Duration = Duration::from_secs(3);

/// Nothing in a test may wait for it.
const FOREVER: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_join_get_an_even_share_and_those_who_leave_hand_it_over_at_once() {
    let world = World::start().await;
    let mut first = world.join("first", FOREVER).await;
    world.settled(&[&first]).await;
    let second = world.join("second", FOREVER).await;
    world.settled(&[&first, &second]).await;
    let third = world.join("third", FOREVER).await;
    world.settled(&[&first, &second, &third]).await;
    assert_eq!(world.count_of_epochs(), 12 + 6 + 4, "each takes only its share");

    // Everything is asked back at once: the answers wait until all has been asked for.
    first.scheduler.withhold_answers(4);
    first.leave().await;
    world.settled(&[&second, &third]).await;
    assert_eq!(world.count_of_epochs(), 12 + 6 + 4 + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_alone_starts_at_once_on_what_another_left() {
    let world = World::start().await;
    for name in ["first", "second"] {
        let mut alone = world.join(name, FOREVER).await;
        world.settled(&[&alone]).await;
        alone.leave().await;
    }
    let mut killed = world.join("killed", FOREVER).await;
    world.settled(&[&killed]).await;
    killed.kill().await;
    let same = world.join("killed", FOREVER).await;
    world.settled(&[&same]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_partitions_of_a_killed_process_are_taken_over() {
    let world = World::start().await;
    let mut victim = world.join("victim", TTL).await;
    let heir = world.join("heir", TTL).await;
    world.settled(&[&victim, &heir]).await;
    let killed_at = Instant::now();
    victim.kill().await;
    world.settled(&[&heir]).await;
    // 3.5 s at most, and some for a machine that is busy with other tests.
    assert!(killed_at.elapsed() < Duration::from_secs(6), "took {:?}", killed_at.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_froze_loses_its_partitions_and_gets_a_share_again() {
    let world = World::start().await;
    let frozen = world.join("frozen", TTL).await;
    let other = world.join("other", TTL).await;
    world.settled(&[&frozen, &other]).await;
    let before = frozen.scheduler.working();
    frozen.gate.close();
    eventually("the other to take everything over", PATIENCE, async || {
        (other.scheduler.working().len() == usize::from(PARTITIONS)).then_some(())
    })
    .await;
    // Its scheduler finds out for half of them, and its participant, once awake, for the rest.
    let half: Vec<u16> = before.keys().copied().take(before.len() / 2).collect();
    for &partition in &half {
        assert!(!world.store.owns(&before[&partition]).await.unwrap(), "{partition} has been taken over");
        frozen.scheduler.lose(partition);
    }
    frozen.gate.open();
    world.settled(&[&frozen, &other]).await;
    for (partition, ownership) in frozen.scheduler.working() {
        assert!(
            before.get(&partition).is_none_or(|before| before.epoch < ownership.epoch),
            "{partition} was taken anew"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_taken_by_force_is_taken_again() {
    let world = World::start().await;
    let process = world.join("process", FOREVER).await;
    world.settled(&[&process]).await;
    let (handle, _connection) = world.connect().await;
    let stolen = cluster::take_over_all(&handle, &world.store, PARTITIONS).await.unwrap();
    for owned in &stolen {
        process.scheduler.lose(owned.takeover.ownership.partition);
    }
    world.settled(&[&process]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_moves_nothing() {
    let mut world = World::start().await;
    let first = world.join("first", TTL).await;
    let second = world.join("second", TTL).await;
    world.settled(&[&first, &second]).await;
    let before = (first.scheduler.working(), second.scheduler.working());

    for outage in [Duration::ZERO, TTL + TTL / 2] {
        world.nats.kill9().await;
        let down_since = Instant::now();
        eventually("the outage to pass", PATIENCE, async || (down_since.elapsed() >= outage).then_some(())).await;
        world.nats.start_again().await;
        world.signs_of_life(&["first", "second"], 5).await;
        assert_eq!((first.scheduler.working(), second.scheduler.working()), before, "after {outage:?}");
    }
    let third = world.join("third", TTL).await;
    world.settled(&[&first, &second, &third]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_was_deleted_is_made_again() {
    let world = World::start().await;
    let first = world.join("first", TTL).await;
    let second = world.join("second", TTL).await;
    world.settled(&[&first, &second]).await;
    let before = (first.scheduler.working(), second.scheduler.working());
    world.nats.jetstream().await.delete_key_value(BUCKET).await.unwrap();
    world.signs_of_life(&["first", "second"], 5).await;
    world.settled(&[&first, &second]).await;
    assert_eq!((first.scheduler.working(), second.scheduler.working()), before, "who works goes on working");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_worked_on_before_it_is_prepared() {
    let world = World::start().await;
    let prepare = FailsAtFirst { failures_left: Arc::new(AtomicUsize::new(2)) };
    let failures_left = Arc::clone(&prepare.failures_left);
    let process = world.join_with("process", FOREVER, prepare).await;
    world.settled(&[&process]).await;
    assert_eq!(failures_left.load(Ordering::Acquire), 0);
    let lowest = process.scheduler.working().values().map(|ownership| ownership.epoch).min();
    assert!(lowest > Some(2), "each attempt takes over anew: {lowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_scheduler_is_gone_everything_is_given_back() {
    let world = World::start().await;
    let mut broken = world.join("broken", FOREVER).await;
    let other = world.join("other", FOREVER).await;
    world.settled(&[&broken, &other]).await;
    broken.scheduler.task.abort();
    let outcome = broken.participant.take().unwrap().await.unwrap();
    assert!(matches!(outcome, Err(ClusterError::SchedulerGone)), "{outcome:?}");
    world.settled(&[&other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_member_id_is_refused() {
    let world = World::start().await;
    let (handle, _connection) = world.connect().await;
    for id in ["", "a.b", "a b", "a>"] {
        let settings = Settings::new(id.to_owned(), PARTITIONS, 1);
        let refused = Participant::join(settings, handle.clone(), world.store.clone()).await;
        assert!(matches!(refused, Err(ClusterError::MemberId(_))), "{id:?}: {refused:?}");
    }
}

const BUCKET: &str = "turnwise_cluster";

/// Every epoch that any scheduler was given, with what it was for: none may be given twice.
type Epochs = Arc<Mutex<BTreeSet<(u16, i64)>>>;

struct World {
    nats: NatsServer,
    store: Store,
    config: Config,
    epochs: Epochs,
    _directory: TempDir,
}

impl World {
    async fn start() -> Self {
        let nats = NatsServer::start().await;
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("turnwise.db");
        let store = Store::connect(&format!("sqlite://{}", file.display()), 4).await.unwrap();
        store.migrate().await.unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::development(directory.path(), listen, directory.path().join("unused"));
        config.nats.partitions = PARTITIONS;
        assert_eq!(format!("{}_cluster", config.namespace), BUCKET);
        Self { nats, store, config, epochs: Epochs::default(), _directory: directory }
    }

    async fn connect(&self) -> (StreamHandle, Connection) {
        let connection = Connection::open(&self.config, &[self.nats.url()]).await.unwrap();
        (stream::ensure(&connection, &self.config.nats, Lane::Inbound).await.unwrap(), connection)
    }

    async fn join(&self, name: &'static str, ttl: Duration) -> Process {
        self.join_with(name, ttl, ()).await
    }

    async fn join_with<P: Prepare>(&self, name: &'static str, ttl: Duration, prepare: P) -> Process {
        let (handle, _connection) = self.connect().await;
        let settings = Settings { lease_ttl: ttl, ..Settings::new(name.to_owned(), PARTITIONS, 1) };
        let participant = Participant::join(settings, handle, self.store.clone()).await.unwrap();
        let (assignments, inbox) = mpsc::channel(1);
        let (notices, noticed) = mpsc::channel(1);
        let scheduler = Scheduler::start(inbox, notices, Arc::clone(&self.epochs));
        let (stop, gate) = (CancellationToken::new(), Gate::default());
        let run = participant.run(assignments, noticed, prepare, stop.clone());
        let participant = tokio::spawn(Pausable { future: Box::pin(run), gate: gate.clone() });
        Process { name, scheduler, stop, gate, participant: Some(participant) }
    }

    /// Waits until the partitions are shared evenly among exactly these, each owned under the newest epoch, and the leases
    /// say so.
    async fn settled(&self, processes: &[&Process]) {
        let deadline = Instant::now() + PATIENCE;
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        loop {
            looks.tick().await;
            let Err(unsettled) = self.look(processes).await else { return };
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {unsettled}");
        }
    }

    async fn look(&self, processes: &[&Process]) -> Result<(), String> {
        let working: Vec<_> = processes.iter().map(|process| process.scheduler.working()).collect();
        let shares: Vec<usize> = working.iter().map(BTreeMap::len).collect();
        let even = shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1;
        if !even || shares.iter().sum::<usize>() != usize::from(PARTITIONS) {
            return Err(format!("the shares are {shares:?}"));
        }
        let bucket = self.nats.jetstream().await.get_key_value(BUCKET).await.map_err(|error| error.to_string())?;
        for (process, working) in processes.iter().zip(working) {
            for (partition, ownership) in working {
                if !self.store.owns(&ownership).await.unwrap() {
                    return Err(format!("{} works on {partition}, fenced", process.name));
                }
                let lease = bucket.get(format!("leases.in.{partition}")).await.map_err(|error| error.to_string())?;
                let lease: serde_json::Value = serde_json::from_slice(&lease.unwrap_or_default()).unwrap_or_default();
                if lease != serde_json::json!({ "member": process.name, "epoch": ownership.epoch }) {
                    return Err(format!("{} works on {partition}, the lease says {lease}", process.name));
                }
            }
        }
        Ok(())
    }

    /// Waits until each of these has given so many signs of life from now on.
    async fn signs_of_life(&self, names: &[&str], count: usize) {
        for name in names {
            let mut seen = BTreeSet::new();
            eventually("signs of life", PATIENCE, async || {
                let bucket = self.nats.jetstream().await.get_key_value(BUCKET).await.ok()?;
                let entry = bucket.entry(format!("members.in.{name}")).await.ok()??;
                seen.insert(entry.revision);
                (seen.len() > count).then_some(())
            })
            .await;
        }
    }

    fn count_of_epochs(&self) -> usize {
        self.epochs.lock().unwrap().len()
    }
}

struct Process {
    name: &'static str,
    scheduler: Scheduler,
    stop: CancellationToken,
    gate: Gate,
    participant: Option<JoinHandle<Result<(), ClusterError>>>,
}

impl Process {
    async fn leave(&mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.participant.take().unwrap()).await;
        ended.expect("the participant ends").unwrap().unwrap();
        assert_eq!(self.scheduler.working(), BTreeMap::new());
    }

    async fn kill(&mut self) {
        let participant = self.participant.take().unwrap();
        participant.abort();
        assert!(participant.await.unwrap_err().is_cancelled());
        self.scheduler.task.abort();
    }
}

/// Does what it is told, and nothing else.
struct Scheduler {
    told: Arc<Mutex<Told>>,
    notices: mpsc::Sender<Notice>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Told {
    working: BTreeMap<u16, Ownership>,
    /// Answers held back until there are so many.
    withhold: usize,
    withheld: Vec<(u16, oneshot::Sender<()>)>,
}

impl Scheduler {
    fn start(mut inbox: mpsc::Receiver<Assignment>, notices: mpsc::Sender<Notice>, epochs: Epochs) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let task = tokio::spawn({
            let told = Arc::clone(&told);
            async move {
                while let Some(assignment) = inbox.recv().await {
                    told.lock().unwrap().take(assignment, &epochs);
                }
            }
        });
        Self { told, notices, task }
    }

    fn working(&self) -> BTreeMap<u16, Ownership> {
        self.told.lock().unwrap().working.clone()
    }

    fn withhold_answers(&self, count: usize) {
        self.told.lock().unwrap().withhold = count;
    }

    fn lose(&self, partition: u16) {
        self.told.lock().unwrap().working.remove(&partition);
        let notices = self.notices.clone();
        // Not awaited: the participant may be frozen.
        tokio::spawn(async move { notices.send(Notice::Lost { partition }).await });
    }
}

impl Told {
    fn take(&mut self, assignment: Assignment, epochs: &Epochs) {
        match assignment {
            Assignment::Take(Owned { takeover, .. }) => {
                let Ownership { partition, epoch, .. } = takeover.ownership;
                assert!(
                    epochs.lock().unwrap().insert((partition, epoch)),
                    "epoch {epoch} of {partition} was given twice"
                );
                let before = self.working.insert(partition, takeover.ownership);
                assert_eq!(before, None, "{partition} was given back before it is taken again");
            }
            Assignment::Give { partition, released } => {
                self.withheld.push((partition, released));
                if self.withheld.len() >= self.withhold {
                    for (partition, released) in self.withheld.drain(..) {
                        self.working.remove(&partition);
                        released.send(()).unwrap();
                    }
                }
            }
        }
    }
}

/// Fails some times; each time, as if the process had then lost its connection.
struct FailsAtFirst {
    failures_left: Arc<AtomicUsize>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot be prepared yet")]
struct NotYet;

impl Prepare for FailsAtFirst {
    type Error = NotYet;

    async fn prepare(&self, owned: &[Owned]) -> Result<(), NotYet> {
        assert_eq!(owned.len(), usize::from(PARTITIONS), "all at once");
        let take_one = |left: usize| left.checked_sub(1);
        let failed = self.failures_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take_one);
        failed.map_or(Ok(()), |_| Err(NotYet))
    }
}

/// Lets a future run, or not.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<(bool, Option<Waker>)>>);

impl Gate {
    fn close(&self) {
        self.0.lock().unwrap().0 = true;
    }

    fn open(&self) {
        let mut gate = self.0.lock().unwrap();
        gate.0 = false;
        if let Some(waker) = gate.1.take() {
            waker.wake();
        }
    }
}

struct Pausable<F> {
    future: Pin<Box<F>>,
    gate: Gate,
}

impl<F: Future> Future for Pausable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut gate = self.gate.0.lock().unwrap();
            if gate.0 {
                gate.1 = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.future.as_mut().poll(context)
    }
}
