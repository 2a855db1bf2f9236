//! The composition root: builds the roles of one process in order, watches them, and takes them down in reverse.
//!
//! Invariants: migrations run before anything else; readiness falls before anything stops; what is running gets the grace
//! to finish, and what does not finish stays on the stream.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::listener::Routes;
use self::share::{Share, Stopping, first_fault, member_id};
use crate::cluster::{self, Sole};
use crate::config::{Bot, Config, NatsServer};
use crate::egress::Egress;
use crate::ingress::{self, Ingress, Stops, menus, polling};
use crate::message::escape;
use crate::nats_server::ManagedServer;
use crate::platform::Platforms;
use crate::responder::history::{Budget, HistoryCache};
use crate::responder::{self, Responders};
use crate::scheduler::Limits;
use crate::scheduler::bursts::Rules;
use crate::store::Store;
use crate::stream::{self, Connection, Lane, Publisher, StreamHandle};
use crate::telemetry::{Metrics, chain};
use crate::tool::{Tool, Toolbox};
use crate::turn::outbox::Outbox;
use crate::turn::progress::Audience;
use crate::turn::suspects::Suspects;
use crate::turn::typing::Typing;
use crate::turn::{self, Settings, Turns};

mod builder;
mod gauges;
mod listener;
mod notify;
mod share;

pub(crate) use builder::stop_signal;
pub use builder::{Server, ServerBuilder};
use gauges::Gauges;
pub(crate) use notify::Notifier;

/// How long the database and NATS may take to come up at start, as when a whole machine boots.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Chats that are written to at once.
const SENDS_AT_ONCE: usize = 1_024;

/// Parts for one chat kept in memory; the rest waits in the stream.
const SENDS_BACKLOG: usize = 64;

/// Attempts at a part that is known not to have arrived, with pauses growing to [`SEND_PAUSE_MAX`]: about five minutes, in
/// which later replies of that chat wait.
const SEND_ATTEMPTS: u32 = 12;
const SEND_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The longest pause before a failed turn is tried again.
const TURN_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Memory for histories, in bytes: about 10,000 conversations of 40 short messages.
const HISTORY_CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// What one process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    pub ingress: bool,
    pub worker: bool,
    pub egress: bool,
}

impl Roles {
    pub const ALL: Self = Self { ingress: true, worker: true, egress: true };
}

/// What a program has written in Rust, for its configuration to name.
#[derive(Default)]
pub struct Registered {
    pub responders: Responders,
    pub tools: Vec<Arc<dyn Tool>>,
}

impl From<Responders> for Registered {
    fn from(responders: Responders) -> Self {
        Self { responders, tools: Vec::new() }
    }
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tools: Vec<String> = self.tools.iter().map(|tool| tool.spec().name).collect();
        formatter
            .debug_struct("Registered")
            .field("responders", &self.responders.keys())
            .field("tools", &tools)
            .finish()
    }
}

/// The address that requests shall come to is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

impl ListenError {
    /// What the user can do about it, for the line after `error:`.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        (self.source.kind() == std::io::ErrorKind::AddrInUse).then_some(
            "another program listens there: stop it, or choose another address (`--listen` of dev, http.listen of serve)",
        )
    }
}

/// Database, streams and managed server, opened for any command that needs them.
#[derive(Debug)]
pub struct Backends {
    pub store: Store,
    pub connection: Connection,
    managed: Option<ManagedServer>,
}

impl Backends {
    /// Starts the managed server if one is configured, opens and migrates the database, connects to NATS. Waits for what is
    /// not up yet, at most 30 s.
    ///
    /// # Errors
    /// When something is not there in time or refuses.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let store = open_store(config).await?;
        store.migrate().await?;
        let (managed, addresses) = match &config.nats.server {
            NatsServer::Urls(addresses) => (None, addresses.clone()),
            NatsServer::Managed { sync, data } => {
                let managed = ManagedServer::start(data, *sync).await?;
                let address = managed.url().to_owned();
                (Some(managed), vec![address])
            }
        };
        let connection = patiently(|| Connection::open(config, &addresses), |_| true).await?;
        Ok(Self { store, connection, managed })
    }

    /// Closes the connections, what was acknowledged last flushed, and stops the managed server, if there is one.
    pub async fn close(self) {
        if let Err(error) = self.connection.client.drain().await {
            tracing::debug!(error = %error, "the connection to NATS was gone already");
        }
        self.store.close().await;
        if let Some(managed) = self.managed {
            managed.stop().await;
        }
    }
}

/// Opens the database without migrating it.
///
/// # Errors
/// When it does not answer within 30 s, or refuses.
pub async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let database = &config.database;
    let store = patiently(
        || Store::connect(database.url.expose(), database.max_connections),
        crate::store::StoreError::is_transient,
    )
    .await?;
    Ok(store)
}

/// Runs the roles until `stop` is cancelled, then drains. `ready` hears the address once everything is up.
///
/// # Errors
/// When something cannot be started, or when a part stops by itself, such as after another process took over.
pub async fn run(
    config: &Config,
    roles: Roles,
    registered: impl Into<Registered>,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let Registered { responders, tools } = registered.into();
    // Bound first: a taken port must be found before partitions are taken over.
    let address = config.http.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| ListenError { address, source })?;
    let address = listener.local_addr().context("cannot tell the address listened on")?;
    let metrics = Metrics::install()?;
    let toolbox = Toolbox::build(config, tools).map_err(|errors| unusable("tools", &errors))?;
    let responders =
        responder::build(config, responders, &toolbox).map_err(|errors| unusable("responders", &errors))?;
    let backends = Backends::open(config).await?;
    if roles.worker {
        toolbox.connect().await;
    }
    let outcome = Running::start(config, roles, responders, &backends, metrics, listener).await;
    let outcome = match outcome {
        Ok(running) => {
            ready(address);
            running.until(stop, config.http.shutdown_grace).await
        }
        Err(error) => Err(error),
    };
    toolbox.shutdown().await;
    backends.close().await;
    outcome
}

/// The parts of a running process.
struct Running {
    shares: Vec<Share>,
    pollers: TaskTracker,
    http: JoinHandle<()>,
    stopping: Stopping,
    draining: CancellationToken,
    closing: CancellationToken,
}

impl Running {
    async fn start(
        config: &Config,
        roles: Roles,
        responders: Responders,
        backends: &Backends,
        metrics: Metrics,
        listener: TcpListener,
    ) -> anyhow::Result<Self> {
        let (store, connection) = (&backends.store, &backends.connection);
        let inbound = stream::ensure(connection, &config.nats, Lane::Inbound).await?;
        let outbound = stream::ensure(connection, &config.nats, Lane::Outbound).await?;
        let dead = stream::ensure(connection, &config.nats, Lane::Dead).await?;
        for handle in [&inbound, &outbound] {
            cluster::rewind_if_set_back(handle, store).await?;
        }
        let publisher = Publisher::new(connection.clone(), config.nats.partitions);
        let stopping = Stopping::default();
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        let platforms = Arc::new(Platforms::new(&config.bots)?);
        let mut shares = Vec::new();
        if roles.worker {
            let audience = Audience::new(publisher.clone());
            tokio::spawn(audience.clone().listen(closing.clone()));
            let outbox = Outbox::new(store.clone(), publisher.clone());
            tokio::spawn(outbox.clone().sweep(inbound.clone(), config.nats.partitions, stopping.drain.clone()));
            let turns = turns(config, store, &publisher, responders, audience, &platforms);
            shares.push(Share::join(turns, outbox, config, &inbound, store, turn_limits(config), &stopping).await?);
        }
        if roles.egress {
            let partitions = config.nats.partitions;
            let egress =
                Egress::new(store.clone(), publisher.clone(), config.bots.clone(), Arc::clone(&platforms), partitions);
            shares.push(Share::join(egress, (), config, &outbound, store, send_limits(), &stopping).await?);
        }
        let works = [(roles.worker, &inbound), (roles.egress, &outbound)];
        let worked: Vec<_> = works.into_iter().filter(|(does, _)| *does).map(|(_, handle)| handle.clone()).collect();
        if !worked.is_empty() {
            tokio::spawn(Gauges { worked, dead, store: store.clone() }.run(closing.clone()));
        }
        tokio::spawn({
            let (metrics, closing) = (metrics.clone(), closing.clone());
            async move { metrics.run_upkeep(closing).await }
        });
        let handle = inbound.clone();
        let stops = Stops { draining: draining.clone(), closing: closing.clone() };
        let shared = Ingress::new(config, store.clone(), inbound, publisher, Arc::clone(&platforms), metrics, stops);
        let shared = Arc::new(shared);
        let pollers = TaskTracker::new();
        if roles.ingress {
            tokio::spawn({
                let (platforms, bots, stop) = (Arc::clone(&platforms), config.bots.clone(), stopping.drain.clone());
                async move { menus::offer(&platforms, &bots, &stop).await }
            });
            start_pollers(config, &handle, &shared, &platforms, &stopping.drain, &pollers);
        }
        pollers.close();
        let routes =
            Routes { served: ingress::router(Arc::clone(&shared), roles.ingress), no_room: ingress::no_room(shared) };
        let http = tokio::spawn(listener::serve(listener, routes, config.http.max_connections, closing.clone()));
        Ok(Self { shares, pollers, http, stopping, draining, closing })
    }

    async fn until(mut self, stop: CancellationToken, grace: Duration) -> anyhow::Result<()> {
        let fault = tokio::select! {
            () = stop.cancelled() => None,
            fault = first_fault(&self.shares) => Some(fault),
            ended = &mut self.http => Some(anyhow::anyhow!("the HTTP server ended: {ended:?}")),
        };
        match &fault {
            None => tracing::info!(grace_seconds = grace.as_secs(), "stopping"),
            Some(error) => tracing::error!(error = format!("{error:#}"), "stopping because of a fault"),
        }
        self.drain(grace).await;
        fault.map_or(Ok(()), Err)
    }

    /// Readiness falls; webhooks are still taken; turns and sends finish within the grace; then the port closes.
    async fn drain(self, grace: Duration) {
        self.draining.cancel();
        self.stopping.drain.cancel();
        let halt = self.stopping.halt.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            halt.cancel();
        });
        // They end at once, with what they fetched on the stream or still Telegram's.
        self.pollers.wait().await;
        for share in self.shares {
            share.ended().await;
        }
        timer.abort();
        self.closing.cancel();
        // One that has ended was awaited already.
        if !self.http.is_finished() && tokio::time::timeout(CLOSE_PATIENCE, self.http).await.is_err() {
            tracing::warn!("some HTTP requests did not end in time");
        }
    }
}

/// Fetches the updates of the bots that are not sent them; one process at a time for each bot.
fn start_pollers(
    config: &Config,
    handle: &StreamHandle,
    ingress: &Arc<Ingress>,
    platforms: &Arc<Platforms>,
    stop: &CancellationToken,
    pollers: &TaskTracker,
) {
    let settings = cluster::Settings::new(member_id(config), config.nats.partitions, config.nats.replicas);
    for (bot, telegram) in polling::polled_bots(config.bots.values()) {
        let sole = Sole::new(&settings, handle.clone(), format!("poll-{}", bot.name));
        let (ingress, platforms, stop) = (Arc::clone(ingress), Arc::clone(platforms), stop.clone());
        let (bot, telegram) = (bot.clone(), telegram.clone());
        pollers.spawn(async move {
            sole.run(|| Box::pin(polling::poll(&ingress, &platforms, &bot, &telegram)), stop).await;
        });
    }
}

/// Requests that are being answered when the port closes get this long.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

fn turns(
    config: &Config,
    store: &Store,
    publisher: &Publisher,
    responders: Responders,
    audience: Audience,
    platforms: &Arc<Platforms>,
) -> Turns {
    let bots: BTreeMap<String, Settings> = config
        .bots
        .iter()
        .map(|(name, bot)| {
            let budget = config.responders.get(&bot.responder).map(Budget::from).unwrap_or_default();
            (name.clone(), Settings { bot: bot.clone(), budget })
        })
        .collect();
    let history_messages = bots.values().map(|settings| settings.budget.messages).max().unwrap_or_default();
    Turns {
        store: store.clone(),
        publisher: publisher.clone(),
        bots,
        responders,
        cache: HistoryCache::new(HISTORY_CACHE_BYTES, history_messages as usize),
        audience,
        typing: Typing::new(Arc::clone(platforms)),
        suspects: Suspects::new(config.worker.max_attempts),
        platforms: Arc::clone(platforms),
        history_messages,
        turn_timeout: config.worker.turn_timeout,
        record_content: config.telemetry.record_content,
    }
}

/// Every problem of what could not be built, a line each.
pub(crate) fn unusable<E: std::error::Error + 'static>(what: &str, errors: &[E]) -> anyhow::Error {
    let lines: Vec<String> = errors.iter().map(|error| chain(error)).collect();
    anyhow::anyhow!("the {what} cannot be built\n  {}", lines.join("\n  "))
}

fn turn_limits(config: &Config) -> Limits {
    Limits {
        max_running: config.worker.max_turns,
        rules: config.bots.iter().map(|(name, bot)| (rules_key(name, bot), rules(bot))).collect(),
        lane_backlog: config.worker.lane_backlog,
        max_attempts: config.worker.max_attempts,
        retry: turn::retry(TURN_PAUSE_MAX),
    }
}

/// The first tokens of the lanes of a bot's conversations.
fn rules_key(name: &str, bot: &Bot) -> String {
    format!("{}.{}", bot.channel(), escape(name))
}

fn rules(bot: &Bot) -> Rules {
    Rules { burst: bot.burst, quiet: bot.quiet, weight: bot.weight, max_running: bot.max_turns }
}

fn send_limits() -> Limits {
    Limits {
        max_running: SENDS_AT_ONCE,
        rules: HashMap::new(),
        lane_backlog: SENDS_BACKLOG,
        max_attempts: SEND_ATTEMPTS,
        retry: turn::retry(SEND_PAUSE_MAX),
    }
}

/// Tries until it works, an error is final, or [`START_PATIENCE`] is over.
async fn patiently<T, E, F>(mut attempt: impl FnMut() -> F, worth_waiting: impl Fn(&E) -> bool) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
    E: std::error::Error + 'static,
{
    let mut pause = ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(100))
        .with_max_interval(Duration::from_secs(2))
        .with_max_elapsed_time(Some(START_PATIENCE))
        .build();
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(pause) = pause.next_backoff().filter(|_| worth_waiting(&error)) else { return Err(error) };
        tracing::warn!(error = %chain(&error), "not up yet, waiting");
        tokio::time::sleep(pause).await;
    }
}
