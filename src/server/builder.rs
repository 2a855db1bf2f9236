//! Turnwise inside a Rust program: the bots of a configuration, with responders and tools written in Rust.
//!
//! Refuses to do anything that `turnwise serve` does not do. Invariant: dropping the future of a server that runs stops it
//! as SIGTERM does; nothing that was accepted is lost by it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{Notifier, Registered, Roles, run};
use crate::config::{Config, ConfigReader};
use crate::responder::Responder;
use crate::telemetry::{self, LogFormat};
use crate::tool::{TypedTool, boxed};

/// A server that is set up and not yet started.
///
/// ```no_run
/// use turnwise::responder::{Reply, Responder, TurnContext, TurnError, TurnRequest};
/// use turnwise::server::Server;
///
/// struct Greeter;
///
/// #[async_trait::async_trait]
/// impl Responder for Greeter {
///     async fn respond(&self, _context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
///         Ok(Reply::text(format!("Hello! You have written {} messages.", request.messages.len())))
///     }
/// }
///
/// # async fn start() -> anyhow::Result<()> {
/// // turnwise.toml has a bot with `responder = "greeter"`.
/// let server = Server::builder().config_file("turnwise.toml").responder("greeter", Greeter).build()?;
/// server.run().await
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    config: Config,
    roles: Roles,
    registered: Registered,
}

/// Collects what a [`Server`] is made of.
#[derive(Debug)]
pub struct ServerBuilder {
    source: Source,
    roles: Roles,
    registered: Registered,
    doubled: Option<String>,
}

#[derive(Debug)]
enum Source {
    Ready(Box<Config>),
    File(PathBuf),
    Text(String),
}

impl Server {
    /// All roles, and the configuration of `turnwise.toml`, unless it is told otherwise.
    #[must_use]
    pub fn builder() -> ServerBuilder {
        ServerBuilder {
            source: Source::File(PathBuf::from("turnwise.toml")),
            roles: Roles::ALL,
            registered: Registered::default(),
            doubled: None,
        }
    }

    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Runs as a whole program does: with logs on stderr and traces as `[telemetry]` says, until SIGTERM or Ctrl-C and the
    /// grace after it. A second signal ends the process at once.
    ///
    /// # Errors
    /// When something cannot be started, or a part stops by itself, such as after another process took over.
    pub async fn run(self) -> anyhow::Result<()> {
        let guard = telemetry::init(&self.config.telemetry, LogFormat::detect())?;
        for warning in self.config.warnings() {
            tracing::warn!("{warning}");
        }
        let outcome = match stop_signal() {
            Ok(stop) => {
                let manager = Arc::new(Notifier::start(stop.clone()));
                let told = Arc::clone(&manager);
                let ready = move |address| {
                    tracing::info!(%address, "ready");
                    told.ready();
                };
                self.run_until(stop, ready).await
            }
            Err(error) => Err(error),
        };
        guard.shutdown().await;
        outcome
    }

    /// Runs until `stop` is cancelled and what is running has ended, at most `http.shutdown_grace` later. Installs neither
    /// logs nor signal handlers. `ready` hears the address once everything is up.
    ///
    /// Dropping the future stops the server, too, in the background of the runtime.
    ///
    /// ```no_run
    /// use turnwise::server::Server;
    ///
    /// # async fn start() -> anyhow::Result<()> {
    /// let stop = tokio_util::sync::CancellationToken::new();
    /// let server = Server::builder().config_file("turnwise.toml").build()?;
    /// let running = tokio::spawn(server.run_until(stop.clone(), |address| eprintln!("http://{address}")));
    /// stop.cancel();
    /// running.await?
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Server::run`].
    pub async fn run_until(
        self,
        stop: CancellationToken,
        ready: impl FnOnce(SocketAddr) + Send + 'static,
    ) -> anyhow::Result<()> {
        let stop = stop.child_token();
        let _stops_when_dropped = stop.clone().drop_guard();
        let Self { config, roles, registered } = self;
        let running = tokio::spawn(async move { Box::pin(run(&config, roles, registered, stop, ready)).await });
        running.await.context("the server panicked")?
    }
}

impl ServerBuilder {
    /// The configuration's file. Names of responders and tools registered here count as known in it.
    #[must_use]
    pub fn config_file(self, file: impl AsRef<Path>) -> Self {
        Self { source: Source::File(file.as_ref().to_owned()), ..self }
    }

    /// The configuration as text; its relative paths count from the working directory.
    #[must_use]
    pub fn config_text(self, text: impl Into<String>) -> Self {
        Self { source: Source::Text(text.into()), ..self }
    }

    /// A configuration that was read already.
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        Self { source: Source::Ready(Box::new(config)), ..self }
    }

    /// A responder for bots with `responder = "name"`.
    #[must_use]
    pub fn responder(mut self, name: impl Into<String>, responder: impl Responder) -> Self {
        let name = name.into();
        if self.registered.responders.insert(name.clone(), Arc::new(responder)).is_some() {
            self.doubled = Some(name);
        }
        self
    }

    /// A tool for responders that list its name in `tools`.
    #[must_use]
    pub fn tool(mut self, tool: impl TypedTool) -> Self {
        self.registered.tools.push(boxed(tool));
        self
    }

    /// What this process does; [`Roles::ALL`] unless it is told otherwise.
    #[must_use]
    pub fn roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// When the file cannot be read, with every problem of the configuration, or when a responder's name was given twice.
    pub fn build(self) -> anyhow::Result<Server> {
        telemetry::install_crypto_provider();
        if let Some(name) = self.doubled {
            anyhow::bail!("two responders are registered as \"{name}\"; rename one of them");
        }
        let reader = self.registered.config_reader();
        let config = match self.source {
            Source::Ready(config) => *config,
            Source::File(file) => reader.load(&file)?,
            Source::Text(text) => reader.parse(&text, Path::new("turnwise.toml"), &|name| std::env::var(name).ok())?,
        };
        Ok(Server { config, roles: self.roles, registered: self.registered })
    }
}

impl Registered {
    /// One that knows the names of what is registered.
    fn config_reader(&self) -> ConfigReader {
        let responders: Vec<String> = self.responders.keys().cloned().collect();
        let tools: Vec<String> = self.tools.iter().map(|tool| tool.spec().name).collect();
        ConfigReader::default().registered_responders(&responders).registered_tools(&tools)
    }
}

/// Cancelled by the first SIGTERM or Ctrl-C; the second ends the process at once.
pub(crate) fn stop_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                token.cancel();
            } else {
                std::process::exit(1);
            }
        }
    });
    Ok(stop)
}
