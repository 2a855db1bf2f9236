//! Chaos: a fleet of real Turnwise processes with nats-server and PostgreSQL, users who write to it, and an operator who
//! carries out a plan of faults.
//!
//! The plan is a pure function of seed and size. Refuses to judge: that is `judge.rs`. Invariant: when [`Fleet::run`]
//! returns, every process runs again and every message was taken.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::judge::Evidence;
use super::nats::NatsServer;
use super::postgres::PostgresCluster;
use super::process::{self, Configuration};
use super::responder::{self, Behaviour, Model, Mood};
use super::scenario::{BOT, RESPONDER};
use super::telegram::{Fault as TelegramFault, SECRET, Telegram};
use super::{LOOK_AGAIN_AFTER, PATIENCE, eventually, http_client};

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) workers: usize,
    pub(crate) ingresses: usize,
    pub(crate) egresses: usize,
    /// SIGKILLs, of Turnwise's processes and of nats-server; as many other faults come with them.
    pub(crate) kills: usize,
    pub(crate) turns: usize,
    pub(crate) chats: usize,
    /// Over which the faults and the messages are spread.
    pub(crate) duration: Duration,
}

/// What happens to whom; a process is named by its place among those of its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL, and a new process after the pause.
    Kill { role: Role, place: usize, down: Duration },
    /// The same for nats-server.
    KillNats { down: Duration },
    /// SIGSTOP, SIGCONT after this time, which is longer than a lease.
    Pause { role: Role, place: usize, time: Duration },
    /// SIGTERM, and a new process when it has ended.
    Terminate { role: Role, place: usize },
    /// PostgreSQL stops without a checkpoint and starts again.
    RestartPostgres,
    /// Every call of the model takes this much longer for a while.
    SlowModel { delay: Duration, time: Duration },
    /// Half of the model's calls fail for a while.
    FailingModel { time: Duration },
    /// Telegram refuses the next message to some chats, with 429 or 500.
    FailingTelegram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Ingress,
    Worker,
    Egress,
}

impl Role {
    const ALL: [Self; 3] = [Self::Worker, Self::Ingress, Self::Egress];

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Worker => "worker",
            Self::Egress => "egress",
        }
    }
}

impl Fault {
    /// Under which it is counted.
    fn name(self) -> String {
        match self {
            Self::Kill { role, .. } => format!("SIGKILL {}", role.name()),
            Self::KillNats { .. } => "SIGKILL nats-server".to_owned(),
            Self::Pause { role, .. } => format!("SIGSTOP {}", role.name()),
            Self::Terminate { role, .. } => format!("SIGTERM {}", role.name()),
            Self::RestartPostgres => "PostgreSQL restart".to_owned(),
            Self::SlowModel { .. } => "slow model".to_owned(),
            Self::FailingModel { .. } => "failing model".to_owned(),
            Self::FailingTelegram => "Telegram refuses".to_owned(),
        }
    }

    const fn is_kill(self) -> bool {
        matches!(self, Self::Kill { .. } | Self::KillNats { .. })
    }
}

/// The faults of a run and when they happen, in order.
pub(crate) fn plan(seed: u64, size: &Size) -> Vec<(Duration, Fault)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults: Vec<Fault> = (0..size.kills).map(|index| kill(&mut random, size, index)).collect();
    faults.extend((0..size.kills).map(|index| other(&mut random, size, index)));
    faults.shuffle(&mut random);
    let longest_ms = u64::try_from(size.duration.as_millis()).unwrap();
    // The first faults wait for the load to begin.
    let mut times: Vec<u64> = faults.iter().map(|_| random.random_range(longest_ms / 20..longest_ms)).collect();
    times.sort_unstable();
    times.into_iter().map(Duration::from_millis).zip(faults).collect()
}

/// The first kills take one of each kind, so that a short run has them all too.
fn kill(random: &mut StdRng, size: &Size, index: usize) -> Fault {
    let down = Duration::from_millis(random.random_range(0..1_500));
    match if index < 4 { index } else { random.random_range(0..10) } {
        0 => Fault::KillNats { down },
        1 => Fault::Kill { role: Role::Ingress, place: random.random_range(0..size.ingresses), down },
        2 | 4 => Fault::Kill { role: Role::Egress, place: random.random_range(0..size.egresses), down },
        _ => Fault::Kill { role: Role::Worker, place: random.random_range(0..size.workers), down },
    }
}

fn other(random: &mut StdRng, size: &Size, index: usize) -> Fault {
    let any = |random: &mut StdRng| match random.random_range(0..4) {
        0 => (Role::Ingress, random.random_range(0..size.ingresses)),
        1 => (Role::Egress, random.random_range(0..size.egresses)),
        _ => (Role::Worker, random.random_range(0..size.workers)),
    };
    let while_ms = |random: &mut StdRng| Duration::from_millis(random.random_range(500..2_500));
    match if index < 6 { index } else { random.random_range(0..9) } {
        0 => Fault::Pause {
            role: Role::Worker,
            place: random.random_range(0..size.workers),
            time: Duration::from_millis(random.random_range(4_000..6_000)),
        },
        1 => {
            let (role, place) = any(random);
            Fault::Terminate { role, place }
        }
        2 => Fault::RestartPostgres,
        3 => Fault::SlowModel { delay: while_ms(random), time: while_ms(random) },
        4 => Fault::FailingModel { time: while_ms(random) },
        5 => Fault::FailingTelegram,
        6 | 7 => {
            let (role, place) = any(random);
            Fault::Pause { role, place, time: Duration::from_millis(random.random_range(4_000..6_000)) }
        }
        _ => {
            let (role, place) = any(random);
            Fault::Terminate { role, place }
        }
    }
}

/// What was done, for the summary.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    pub(crate) faults: BTreeMap<String, usize>,
    pub(crate) kills: usize,
    /// Processes that ended without being told to, by exit status; the operator started them again.
    pub(crate) ended_by_themselves: BTreeMap<String, usize>,
    /// Processes that did not end with 0 after SIGTERM, by exit status.
    pub(crate) ended_badly: BTreeMap<String, usize>,
    pub(crate) updates_posted_twice: usize,
}

impl fmt::Display for Deeds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "faults: {} in all, {} of them kills", self.faults.values().sum::<usize>(), self.kills)?;
        for (name, count) in &self.faults {
            writeln!(formatter, "  {name:<26} {count}")?;
        }
        writeln!(formatter, "  {:<26} {}", "updates posted twice", self.updates_posted_twice)?;
        for (what, ends) in [("ended by itself", &self.ended_by_themselves), ("ended badly", &self.ended_badly)] {
            for (status, count) in ends {
                writeln!(formatter, "  {:<26} {count}", format!("{what}: {status}"))?;
            }
        }
        Ok(())
    }
}

/// One Turnwise process with one role, and its successors.
struct Process {
    role: Role,
    configuration: Configuration,
    file: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// SIGTERM was sent then.
    terminated_at: Option<Instant>,
    paused: bool,
}

/// How long a process may take to end after SIGTERM: the grace of the configuration and as much again.
const TERMINATION_LIMIT: Duration = Duration::from_secs(15);

impl Process {
    fn start(&mut self) {
        assert!(self.child.is_none(), "the process runs already");
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = process::command("serve", &self.file);
        command.args(["--roles", self.role.name()]).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        (self.terminated_at, self.paused) = (None, false);
    }

    async fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    async fn signal(&self, name: &str) {
        if let Some(id) = self.child.as_ref().and_then(Child::id) {
            // It may have ended by itself meanwhile; then there is nobody to signal.
            Command::new("kill")
                .arg(format!("-{name}"))
                .arg(id.to_string())
                .stderr(Stdio::null())
                .status()
                .await
                .unwrap();
        }
    }

    const fn is_undisturbed(&self) -> bool {
        self.child.is_some() && self.terminated_at.is_none() && !self.paused
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }
}

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
enum Relief {
    Start(usize),
    Continue(usize),
    StartNats,
    CalmModel,
}

pub(crate) struct Fleet {
    processes: Vec<Process>,
    pub(crate) telegram: Arc<Telegram>,
    pub(crate) model: Model,
    nats: NatsServer,
    postgres: PostgresCluster,
    database_url: String,
    size: Size,
    random: StdRng,
    reliefs: Vec<(Instant, Relief)>,
    nats_runs: bool,
    deeds: Deeds,
    directory: TempDir,
}

impl Fleet {
    /// Starts everything; returns once each process says that it is ready.
    pub(crate) async fn start(seed: u64, size: Size) -> Self {
        let directory = TempDir::new().unwrap();
        let postgres = PostgresCluster::start().await;
        let database_url = postgres.create_database("turnwise").await;
        let nats = NatsServer::start().await;
        let behaviour = Behaviour { seed, longest_delay: Duration::from_millis(150), failures_percent: 3 };
        let model = Model::start(behaviour).await;
        model.sign_answers();
        let telegram = Arc::new(Telegram::start(String::new()).await);
        let mut shared = Configuration::new(&nats, &database_url);
        shared
            .openai_responder(RESPONDER, &model.base_url())
            .set(&format!("responders.{RESPONDER}"), "history", "{ messages = 10, tokens = 8000 }")
            .telegram_bot(BOT, RESPONDER, &telegram.base_url())
            .set(&format!("bots.{BOT}"), "on_uncertain", "\"hold\"")
            // The failing model must not exhaust a turn: what is judged is what crashes do.
            .set("worker", "max_attempts", "20")
            .set("nats", "partitions", "16");
        let mut processes = Vec::new();
        for role in Role::ALL {
            let count = match role {
                Role::Ingress => size.ingresses,
                Role::Worker => size.workers,
                Role::Egress => size.egresses,
            };
            for place in 0..count {
                let configuration = shared.beside();
                let path = |ending: &str| directory.path().join(format!("{}-{place}.{ending}", role.name()));
                let (file, log) = (path("toml"), path("log"));
                std::fs::write(&file, configuration.to_toml()).unwrap();
                let (child, terminated_at, paused) = (None, None, false);
                processes.push(Process { role, configuration, file, log, child, terminated_at, paused });
            }
        }
        let mut fleet = Self {
            processes,
            telegram,
            model,
            nats,
            postgres,
            database_url,
            size,
            random: StdRng::seed_from_u64(seed ^ 1),
            reliefs: Vec::new(),
            nats_runs: true,
            deeds: Deeds::default(),
            directory,
        };
        for index in 0..fleet.processes.len() {
            fleet.processes[index].start();
        }
        fleet.all_ready().await;
        fleet
    }

    /// Sends the load and carries out the plan beside it, then mends everything and waits until nothing is on its way any
    /// more, or nothing has moved for `stall_limit`.
    pub(crate) async fn run(&mut self, seed: u64, plan: Vec<(Duration, Fault)>, stall_limit: Duration) {
        let webhooks = self.processes.iter().filter(|process| process.role == Role::Ingress);
        let webhooks: Vec<_> =
            webhooks.map(|process| process.configuration.url(&format!("/webhooks/telegram/{BOT}"))).collect();
        let mut users = Users::start(seed, &self.size, &self.telegram, webhooks);
        let began_at = Instant::now();
        let mut plan: VecDeque<_> = plan.into();
        let mut looks = tokio::time::interval(LOOK_AGAIN_AFTER);
        while !plan.is_empty() || !self.reliefs.is_empty() || !self.calm() {
            looks.tick().await;
            self.relieve().await;
            self.supervise().await;
            if plan.front().is_some_and(|(at, _)| began_at + *at <= Instant::now())
                && let Some((_, fault)) = plan.pop_front()
            {
                self.cause(fault).await;
            }
        }
        self.all_taken(&mut users).await;
        self.deeds.updates_posted_twice = users.posted_twice.load(Ordering::Relaxed);
        self.settled(stall_limit).await;
    }

    /// Ends every process and gathers what the judge needs.
    pub(crate) async fn gather_evidence(&mut self) -> Evidence {
        for process in &mut self.processes {
            process.signal("TERM").await;
            process.terminated_at = Some(Instant::now());
        }
        for index in 0..self.processes.len() {
            let status =
                eventually("the process to end after SIGTERM", PATIENCE, async || self.processes[index].ended());
            let status = status.await;
            if !status.success() {
                *self.deeds.ended_badly.entry(status.to_string()).or_default() += 1;
            }
        }
        let mut audit = process::command("audit", &self.processes[0].file);
        let audit = audit.stdout(Stdio::null()).stderr(Stdio::null()).status().await.unwrap();
        let mut evidence = Evidence { audit_exit_code: audit.code(), ..Evidence::default() };
        evidence.taken = chats(&self.size);
        evidence.read_tables(&self.database_url).await;
        self.telegram.log(|log| evidence.read_telegram(log));
        self.model.log(|log| evidence.calls.clone_from(&log.calls));
        evidence
    }

    pub(crate) const fn deeds(&self) -> &Deeds {
        &self.deeds
    }

    /// Keeps the logs of all processes instead of removing them with the run; says where.
    pub(crate) fn keep_logs(mut self) -> PathBuf {
        self.directory.disable_cleanup(true);
        self.directory.path().to_owned()
    }

    async fn all_ready(&self) {
        let client = http_client();
        for process in &self.processes {
            eventually("a process of the fleet to be ready", PATIENCE, async || {
                let answer = client.get(process.configuration.url("/readyz")).send().await.ok()?;
                (answer.status() == StatusCode::OK).then_some(())
            })
            .await;
        }
    }

    fn calm(&self) -> bool {
        self.nats_runs && self.processes.iter().all(Process::is_undisturbed)
    }

    async fn cause(&mut self, fault: Fault) {
        let now = Instant::now();
        match fault {
            Fault::Kill { role, place, down } => {
                let Some(index) = self.victim(role, place) else { return };
                self.processes[index].kill9().await;
                self.reliefs.push((now + down, Relief::Start(index)));
            }
            Fault::KillNats { down } => {
                if !self.nats_runs {
                    return;
                }
                self.nats.kill9().await;
                self.nats_runs = false;
                self.reliefs.push((now + down, Relief::StartNats));
            }
            Fault::Pause { role, place, time } => {
                let Some(index) = self.victim(role, place) else { return };
                self.processes[index].signal("STOP").await;
                self.processes[index].paused = true;
                self.reliefs.push((now + time, Relief::Continue(index)));
            }
            Fault::Terminate { role, place } => {
                let Some(index) = self.victim(role, place) else { return };
                self.processes[index].signal("TERM").await;
                self.processes[index].terminated_at = Some(now);
            }
            Fault::RestartPostgres => self.postgres.restart().await,
            Fault::SlowModel { delay, time } => {
                self.model.set_mood(Mood { extra_delay: delay, extra_failures_percent: 0 });
                self.reliefs.push((now + time, Relief::CalmModel));
            }
            Fault::FailingModel { time } => {
                self.model.set_mood(Mood { extra_delay: Duration::ZERO, extra_failures_percent: 50 });
                self.reliefs.push((now + time, Relief::CalmModel));
            }
            Fault::FailingTelegram => {
                let chats: Vec<i64> = chats(&self.size).into_keys().collect();
                for chat in chats.sample(&mut self.random, 5) {
                    let faults = [TelegramFault::TooManyRequests { retry_after: 1 }, TelegramFault::ServerError];
                    self.telegram.fail_next(*chat, *faults.choose(&mut self.random).unwrap());
                }
            }
        }
        self.deeds.kills += usize::from(fault.is_kill());
        *self.deeds.faults.entry(fault.name()).or_default() += 1;
    }

    /// The process of that role and place, or another of the role when that one is down or paused already.
    fn victim(&self, role: Role, place: usize) -> Option<usize> {
        let of_role = || (0..self.processes.len()).filter(|&index| self.processes[index].role == role);
        let named = of_role().nth(place).into_iter();
        named.chain(of_role()).find(|&index| self.processes[index].is_undisturbed())
    }

    async fn relieve(&mut self) {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.reliefs.drain(..).partition(|(at, _)| *at <= now);
        self.reliefs = later;
        for (_, relief) in due {
            match relief {
                Relief::Start(index) => self.processes[index].start(),
                Relief::Continue(index) => {
                    self.processes[index].signal("CONT").await;
                    self.processes[index].paused = false;
                }
                Relief::StartNats => {
                    self.nats.start_again().await;
                    self.nats_runs = true;
                }
                Relief::CalmModel => self.model.set_mood(Mood::default()),
            }
        }
    }

    /// As a service manager would: what ended is started again, what does not end is killed.
    async fn supervise(&mut self) {
        for process in &mut self.processes {
            if let Some(status) = process.ended() {
                let ends = match process.terminated_at {
                    Some(_) if status.success() => None,
                    Some(_) => Some(&mut self.deeds.ended_badly),
                    None => Some(&mut self.deeds.ended_by_themselves),
                };
                if let Some(ends) = ends {
                    *ends.entry(format!("{} {status}", process.role.name())).or_default() += 1;
                }
                process.start();
            } else if process.terminated_at.is_some_and(|at| at.elapsed() > TERMINATION_LIMIT) {
                let what = format!("{} did not end within {TERMINATION_LIMIT:?}", process.role.name());
                *self.deeds.ended_badly.entry(what).or_default() += 1;
                process.kill9().await;
                process.start();
            }
        }
    }

    async fn all_taken(&mut self, users: &mut Users) {
        let mut looks = tokio::time::interval(LOOK_AGAIN_AFTER);
        loop {
            tokio::select! {
                ended = users.chats.join_next() => match ended {
                    Some(ended) => ended.unwrap(),
                    None => return,
                },
                _ = looks.tick() => self.supervise().await,
            }
        }
    }

    async fn settled(&mut self, stall_limit: Duration) {
        let mut looks = tokio::time::interval(Duration::from_millis(250));
        let ledger = super::ledger::Ledger::open(&self.database_url);
        let (mut last, mut moved_at) = ((0, 0), Instant::now());
        while moved_at.elapsed() < stall_limit {
            looks.tick().await;
            self.supervise().await;
            let now = ledger.progress().await;
            if now.0 >= self.size.turns && now.1 == 0 {
                return;
            }
            if now != last {
                (last, moved_at) = (now, Instant::now());
            }
        }
        eprintln!(
            "nothing moves any more at {} of {} turns, {} deliveries on their way",
            last.0, self.size.turns, last.1
        );
    }
}

/// How many messages each chat sends.
fn chats(size: &Size) -> BTreeMap<i64, u32> {
    let mut chats: BTreeMap<i64, u32> = BTreeMap::new();
    for turn in 0..size.turns {
        *chats.entry(10_001 + i64::try_from(turn % size.chats).unwrap()).or_default() += 1;
    }
    chats
}

/// A user gives up on an answer after this time and writes to whichever ingress comes next, as Telegram would.
const POST_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE_BETWEEN_POSTS: Duration = Duration::from_millis(100);

/// Of a hundred updates so many are posted twice.
const TWICE_PERCENT: u32 = 10;

/// Everybody who writes: each chat strictly one message after another, the same update until it is taken, chats side by
/// side, the messages spread over the run.
struct Users {
    chats: JoinSet<()>,
    posted_twice: Arc<AtomicUsize>,
}

impl Users {
    fn start(seed: u64, size: &Size, telegram: &Arc<Telegram>, webhooks: Vec<String>) -> Self {
        let mut users = Self { chats: JoinSet::new(), posted_twice: Arc::default() };
        let post_office = Arc::new(PostOffice { client: http_client(), webhooks });
        let began_at = Instant::now();
        for (chat, count) in chats(size) {
            let mut random = StdRng::seed_from_u64(seed ^ u64::try_from(chat).unwrap());
            let mut at_ms: Vec<_> = (0..count).map(|_| random.random_range(0..size.duration.as_millis())).collect();
            at_ms.sort_unstable();
            let (telegram, post_office) = (Arc::clone(telegram), Arc::clone(&post_office));
            let posted_twice = Arc::clone(&users.posted_twice);
            users.chats.spawn(async move {
                let mut repeats = JoinSet::new();
                for (n, at_ms) in (1..).zip(at_ms) {
                    tokio::time::sleep_until(began_at + Duration::from_millis(u64::try_from(at_ms).unwrap())).await;
                    let update = Arc::new(telegram.update(chat, &responder::message(chat, n)));
                    let first = random.random_range(0..post_office.webhooks.len());
                    if random.random_range(0..100) < TWICE_PERCENT {
                        posted_twice.fetch_add(1, Ordering::Relaxed);
                        let (post_office, update) = (Arc::clone(&post_office), Arc::clone(&update));
                        repeats.spawn(async move { post_office.until_taken(&update, first + 1).await });
                    }
                    post_office.until_taken(&update, first).await;
                }
                while repeats.join_next().await.is_some() {}
            });
        }
        users
    }
}

struct PostOffice {
    client: reqwest::Client,
    webhooks: Vec<String>,
}

impl PostOffice {
    async fn until_taken(&self, update: &Value, first: usize) {
        let mut pauses = tokio::time::interval(PAUSE_BETWEEN_POSTS);
        for webhook in self.webhooks.iter().cycle().skip(first) {
            pauses.tick().await;
            let post = self.client.post(webhook).header("X-Telegram-Bot-Api-Secret-Token", SECRET).json(update);
            if post.timeout(POST_TIMEOUT).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
        }
    }
}
