//! Load for a running deployment, through its real webhook, with the Bot API's part played by this process; what came of it,
//! measured and checked.
//!
//! Refuses every address that is not loopback, in both directions: it is no tool against anybody. Invariant: a figure is only
//! reported together with whether every message was answered exactly once and in order.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

use self::book::Book;
use self::load::Webhook;
use self::platform::Platform;
use self::processes::Group;
use self::shape::{Load, Phase};
use self::stages::Reading;
use self::takeover::SecondWorker;
use crate::config::{Bot, BotChannel, Config, NatsServer, TelegramBot};
use crate::message::Timestamp;
use crate::stream::Connection;

mod book;
mod ceilings;
mod fill;
mod load;
mod platform;
mod processes;
mod report;
mod shape;
mod stages;
mod takeover;
mod wire;

pub use book::Violations;
pub use ceilings::Ceilings;
pub use fill::FillError;
pub use processes::Usage;
pub use report::{LoadReport, Percentiles, PhaseReport, Report};
pub use shape::{Scale, Shape};
pub use stages::Stage;
pub use takeover::TakeoverError;

/// After the last reply, replies too many get this long to show.
const AFTERMATH: Duration = Duration::from_secs(1);

/// How often the deployment is asked how many turns it runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the configuration was read from; a second worker is started with it.
    pub config_file: PathBuf,
    /// The Telegram bot to talk to; may be left out when the configuration has only one.
    pub bot: Option<String>,
    pub shapes: Vec<Shape>,
    pub scale: Scale,
    /// A phase that takes longer has failed.
    pub timeout: Duration,
    /// The deployment's processes; empty: the one that listens on `http.listen`.
    pub pids: Vec<u32>,
    /// Whether to measure ceilings.
    pub ceilings: bool,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{0}")]
    Unsuitable(String),
    #[error("cannot listen on {address}, where the bot's api_base points")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the database cannot be filled")]
    Fill(#[from] FillError),
    #[error("no takeover can be measured")]
    Takeover(#[from] TakeoverError),
}

/// Runs the shapes one after the other. `progress` hears the name of each phase before it begins.
///
/// # Errors
/// When the configuration is not one to bench, or the stand-in cannot listen. Messages without a reply are no error but part
/// of the report: see [`Report::is_correct`].
pub async fn run(config: &Config, options: &Options, mut progress: impl FnMut(&str)) -> Result<Report, BenchError> {
    let (bot, telegram) = bot(config, options.bot.as_deref())?;
    let target = loopback(config.http.listen)
        .ok_or_else(|| unsuitable(format!("http.listen is {}, which is not on loopback", config.http.listen)))?;
    let api_base = api_base(&bot.name, telegram)?;
    let platform = Platform::start(api_base, telegram.token.clone())
        .await
        .map_err(|source| BenchError::Listen { address: api_base, source })?;
    let Some(secret) = telegram.webhook_secret.clone() else {
        return Err(unsuitable(format!("bots.{}.webhook_secret is missing", bot.name)));
    };
    // Ids of an earlier run would be duplicates: the ledger remembers for ever.
    let first_id = Timestamp::now().as_micros();
    let webhook = Webhook {
        address: target,
        path: format!("/webhooks/telegram/{}", bot.name),
        secret,
        next_update_id: AtomicI64::new(first_id),
    };
    let groups = Groups::find(config, options, target.port());
    let machine = processes::machine();
    let ceilings = if options.ceilings {
        progress("ceilings");
        let connection = open_stream(config).await;
        ceilings::measure(config, connection.as_ref()).await
    } else {
        Ceilings::default()
    };
    let bench = Bench {
        config,
        config_file: &options.config_file,
        bot: &bot.name,
        platform,
        webhook: Arc::new(webhook),
        groups,
        timeout: options.timeout,
    };
    let mut next_chat = first_id;
    let mut phases = Vec::new();
    for phase in options.shapes.iter().flat_map(|shape| shape.phases(options.scale)) {
        progress(phase.name);
        phases.push(bench.phase(&phase, &mut next_chat).await?);
    }
    let database = if config.database.sqlite_file().is_some() { "SQLite" } else { "PostgreSQL" };
    Ok(Report { machine, database, ceilings, phases })
}

fn unsuitable(what: String) -> BenchError {
    BenchError::Unsuitable(what)
}

/// The bot named, or the only Telegram bot there is.
fn bot<'a>(config: &'a Config, name: Option<&str>) -> Result<(&'a Bot, &'a TelegramBot), BenchError> {
    let mut telegram_bots = config.bots.values().filter_map(|bot| match &bot.channel {
        BotChannel::Telegram(telegram) if name.is_none_or(|name| name == bot.name) => Some((bot, telegram)),
        _ => None,
    });
    match (telegram_bots.next(), telegram_bots.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(unsuitable("there are several Telegram bots; name one with --bot".to_owned())),
        (None, _) => Err(unsuitable(match name {
            Some(name) => format!("there is no Telegram bot \"{name}\""),
            None => "there is no Telegram bot".to_owned(),
        })),
    }
}

/// The address as it can be connected to; `None` when others than this machine could answer there.
fn loopback(address: SocketAddr) -> Option<SocketAddr> {
    address.ip().is_loopback().then_some(address)
}

fn api_base(bot: &str, telegram: &TelegramBot) -> Result<SocketAddr, BenchError> {
    let address = Url::parse(&telegram.api_base).ok().filter(|url| url.scheme() == "http" && url.path() == "/");
    let address = address.and_then(|url| {
        let ip = match url.host()? {
            Host::Ipv4(ip) => IpAddr::V4(ip),
            Host::Ipv6(ip) => IpAddr::V6(ip),
            Host::Domain(_) => return None,
        };
        loopback(SocketAddr::new(ip, url.port()?))
    });
    address.ok_or_else(|| {
        unsuitable(format!(
            "bots.{bot}.api_base is {}; the stand-in for the Bot API needs a free loopback address such as http://127.0.0.1:8081",
            telegram.api_base
        ))
    })
}

/// The deployment's NATS server; `None` when it runs its own, whose address nobody else knows, or when it is elsewhere.
async fn open_stream(config: &Config) -> Option<Connection> {
    let NatsServer::Urls(addresses) = &config.nats.server else { return None };
    addresses.iter().all(|address| loopback_port(address).is_some()).then_some(())?;
    Connection::open(config, addresses).await.ok()
}

/// The port of a URL whose host is loopback.
fn loopback_port(address: &str) -> Option<u16> {
    let url = Url::parse(address).ok()?;
    let local = match url.host()? {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
        Host::Domain(name) => name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
    };
    local.then_some(url.port().or_else(|| default_port(url.scheme()))?)
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "nats" | "tls" => Some(4_222),
        "postgres" | "postgresql" => Some(5_432),
        _ => None,
    }
}

/// The processes to account for.
struct Groups {
    turnwise: Group,
    nats_server: Group,
    database: Group,
    bench: Group,
}

impl Groups {
    fn find(config: &Config, options: &Options, port: u16) -> Self {
        let listening = |address: &str| loopback_port(address).map_or_else(Group::default, Group::listening_on);
        Self {
            turnwise: match options.pids.as_slice() {
                [] => Group::listening_on(port),
                pids => Group::of(pids.to_vec()),
            },
            nats_server: match &config.nats.server {
                NatsServer::Urls(addresses) => addresses.first().map_or_else(Group::default, |it| listening(it)),
                NatsServer::Managed { .. } => Group::default(),
            },
            database: listening(config.database.url.expose()),
            bench: Group::of(vec![std::process::id()]),
        }
    }

    fn all(&self) -> [&Group; 4] {
        [&self.turnwise, &self.nats_server, &self.database, &self.bench]
    }
}

struct Bench<'a> {
    config: &'a Config,
    config_file: &'a Path,
    bot: &'a str,
    platform: Platform,
    webhook: Arc<Webhook>,
    groups: Groups,
    timeout: Duration,
}

impl Bench<'_> {
    async fn phase(&self, phase: &Phase, next_chat: &mut i64) -> Result<PhaseReport, BenchError> {
        let loads: Vec<(Load, Arc<Book>)> =
            phase.loads.iter().map(|load| (load.clone(), book(load, next_chat))).collect();
        if let Some((fill, (_, book))) = phase.fill.zip(loads.first()) {
            fill::fill(self.config, self.bot, fill, book).await?;
        }
        let second_worker = match phase.kill {
            Some(_) => {
                Some(SecondWorker::join(self.config_file, self.webhook.address, self.config.nats.partitions).await?)
            }
            None => None,
        };
        self.platform.listen_for(loads.iter().map(|(_, book)| Arc::clone(book)).collect());
        self.groups.all().into_iter().for_each(Group::reset_peak);
        let stages_before = Reading::take(self.webhook.address).await;
        let used_before = self.groups.all().map(Group::usage);
        let started = Instant::now();
        let (turns, peak_of_turns) = watch::channel(0.0);
        let looking = AbortOnDropHandle::new(tokio::spawn(look(self.webhook.address, turns)));

        let load = async {
            match phase.idle {
                Some(span) => {
                    tokio::time::sleep(span).await;
                    Vec::new()
                }
                None => self.send(&loads).await,
            }
        };
        let (sent_again, takeover) = tokio::join!(load, kill(second_worker, phase.kill));
        let takeover = takeover?;

        let seconds = started.elapsed().as_secs_f64();
        drop(looking);
        let [turnwise, nats_server, database, bench] = self.groups.all().map(Group::usage);
        let stages = stages_before.until(&Reading::take(self.webhook.address).await);
        if phase.idle.is_none() {
            tokio::time::sleep(AFTERMATH).await;
        }
        let [turnwise_before, nats_server_before, database_before, bench_before] = used_before;
        let messages: usize = loads.iter().map(|(_, book)| book.messages() - book.unanswered()).sum();
        Ok(PhaseReport {
            phase: phase.name,
            turns_per_second: report::per_second(messages, seconds),
            loads: loads.iter().zip(sent_again).map(|((load, book), again)| report_load(load, book, again)).collect(),
            seconds,
            turns_in_flight_peak: *peak_of_turns.borrow(),
            turnwise: used(turnwise_before, turnwise),
            nats_server: used(nats_server_before, nats_server),
            database: used(database_before, database),
            bench: used(bench_before, bench),
            stages,
            strays: self.platform.strays(),
            takeover_ms: takeover.map(|time| time.as_secs_f64() * 1_000.0),
        })
    }

    /// Returns when all is answered or the time is over: of each load, how many posts had to be made again.
    async fn send(&self, loads: &[(Load, Arc<Book>)]) -> Vec<usize> {
        let mut sending = JoinSet::new();
        for (index, (load, book)) in loads.iter().enumerate() {
            let (webhook, load, book) = (Arc::clone(&self.webhook), load.clone(), Arc::clone(book));
            sending.spawn(async move {
                let again = load::send(webhook, &load, Arc::clone(&book)).await;
                book.finished().await;
                (index, again)
            });
        }
        let mut again = vec![0; loads.len()];
        let all = async {
            while let Some(Ok((index, count))) = sending.join_next().await {
                again[index] = count;
            }
        };
        if tokio::time::timeout(self.timeout, all).await.is_err() {
            tracing::error!(timeout_seconds = self.timeout.as_secs(), "not every message was answered in time");
        }
        again
    }
}

/// Asks the deployment again and again how many turns it runs, and keeps the most.
async fn look(address: SocketAddr, peak: watch::Sender<f64>) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let turns = Reading::take(address).await.turns_in_flight();
        peak.send_modify(|peak| *peak = peak.max(turns));
    }
}

/// Kills the second worker, if there is one, when its time has come; returns how long the takeover took.
async fn kill(worker: Option<SecondWorker>, after: Option<Duration>) -> Result<Option<Duration>, TakeoverError> {
    let Some((worker, after)) = worker.zip(after) else { return Ok(None) };
    tokio::time::sleep(after).await;
    worker.kill().await.map(Some)
}

/// A book with chats of its own.
fn book(load: &Load, next_chat: &mut i64) -> Arc<Book> {
    let book = Book::new(*next_chat, load.conversations, load.messages_each, load.in_flight);
    *next_chat = book.chat_id(load.conversations);
    Arc::new(book)
}

fn report_load(load: &Load, book: &Book, posted_again: usize) -> LoadReport {
    let times = book.times();
    LoadReport {
        load: load.name,
        conversations: load.conversations,
        messages: book.messages(),
        unanswered: book.unanswered(),
        posted_again,
        seconds: times.elapsed.as_secs_f64(),
        ideal_seconds: load.ideal().as_secs_f64(),
        outstanding_peak: times.outstanding_peak,
        reply: Percentiles::of(times.answered),
        accepted: Percentiles::of(times.accepted),
        violations: book.violations(),
    }
}

/// What was used in between; the peak of memory is the later one's.
fn used(before: Option<Usage>, after: Option<Usage>) -> Option<Usage> {
    let (before, after) = before.zip(after)?;
    Some(Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, memory_mib: after.memory_mib })
}
