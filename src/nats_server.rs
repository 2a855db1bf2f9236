//! The managed nats-server: a child process for `turnwise dev` and `nats.managed = true`, its data beside the database.
//!
//! Refuses to be a cluster, to listen beyond loopback and to download anything. It asks for no password: every local user
//! can reach it, so it is for development and for machines of one service. Invariant: at most one server ever uses a data
//! folder. A lock file keeps a second Turnwise away. A child cannot be made to die with a parent that is killed without
//! unsafe code, so the next start looks for the orphan of a killed predecessor and stops it before it starts its own.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Sync;

mod binary;
mod files;
mod orphan;

pub use binary::{Binary, find_binary};
use files::Files;

/// From the start of the process to a JetStream that answers, and from a request to stop to the end of the process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at a process that is starting or stopping: nothing there tells us when it is done.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A port that was free a moment ago can be taken by another process before the server binds it.
const PORT_ATTEMPTS: u32 = 3;

/// Doubled after every failed restart up to the maximum; a server that ran for longer than the maximum starts anew.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no nats-server found in TURNWISE_NATS_SERVER, ./.tools or PATH")]
    NotFound,
    #[error("{} is nats-server {version}, and {}.{} or newer is needed", path.display(), binary::OLDEST.0, binary::OLDEST.1)]
    TooOld { path: PathBuf, version: String },
    #[error("{} cannot be run as nats-server", path.display())]
    NotRunnable { path: PathBuf, source: std::io::Error },
    #[error("{} does not say which version of nats-server it is", path.display())]
    UnknownVersion { path: PathBuf },
    #[error("{} is in use by another turnwise", path.display())]
    InUse { path: PathBuf },
    #[error("{} cannot be read or written", path.display())]
    Files { path: PathBuf, source: std::io::Error },
    #[error("no free port on 127.0.0.1")]
    Port(#[source] std::io::Error),
    #[error("nats-server (process {pid}) of an earlier run still uses {} and does not stop", path.display())]
    Orphan { pid: u32, path: PathBuf },
    #[error("nats-server ended with {status} before it was ready; its log is {}", log.display())]
    Exited { status: ExitStatus, log: PathBuf },
    #[error("nats-server was not ready within {} s; its log is {}", PATIENCE.as_secs(), log.display())]
    NotReady { log: PathBuf },
}

impl Error {
    /// What the user can do about it, for the line after `error:`.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound | Self::TooOld { .. } | Self::NotRunnable { .. } | Self::UnknownVersion { .. } => {
                Some("`make run` fetches one into ./.tools; or set TURNWISE_NATS_SERVER to the path of a nats-server")
            }
            Self::InUse { .. } => Some("stop the other one, or choose another folder for the data"),
            Self::Orphan { .. } => Some("end that process, then start again"),
            _ => None,
        }
    }
}

/// A running server. Dropping it stops the server in the background; [`ManagedServer::stop`] also waits.
#[derive(Debug)]
pub struct ManagedServer {
    url: String,
    pid_file: PathBuf,
    stop: DropGuard,
    supervisor: JoinHandle<()>,
}

impl ManagedServer {
    /// Starts the server that [`find_binary`] finds, on a free port of 127.0.0.1, and waits until JetStream answers.
    ///
    /// `data_dir` is made if need be; in it, `jetstream/` holds the streams and `nats-server.*` the configuration, log,
    /// process id and lock.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing is left running.
    pub async fn start(data_dir: &Path, sync: Sync) -> Result<Self, Error> {
        Self::start_binary(find_binary().await?, data_dir, sync).await
    }

    /// The same with a server of the caller's choice.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing is left running.
    pub async fn start_binary(binary: Binary, data_dir: &Path, sync: Sync) -> Result<Self, Error> {
        let files = Files::prepare(data_dir)?;
        let lock = lock(&files)?;
        orphan::stop_all(&binary, &files).await?;
        let mut attempt = 1;
        let (url, child) = loop {
            let port = free_port()?;
            files.write_config(port, sync)?;
            let url = format!("nats://127.0.0.1:{port}");
            match spawn_ready(&binary, &files, &url).await {
                Ok(child) => break (url, child),
                Err(Error::Exited { .. }) if attempt < PORT_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        tracing::info!(url, version = binary.version(), log = %files.log.display(), "nats-server started");
        let stop = CancellationToken::new();
        let pid_file = files.pid.clone();
        let server = Supervised { binary, files, url: url.clone(), _lock: lock };
        let supervisor = tokio::spawn(supervise(server, child, stop.clone()));
        Ok(Self { url, pid_file, stop: stop.drop_guard(), supervisor })
    }

    /// `nats://127.0.0.1:PORT`; stays the same when the server is restarted.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the server writes its process id.
    #[must_use]
    pub fn pid_file(&self) -> &Path {
        &self.pid_file
    }

    /// Stops the server after what it has accepted is on disk; kills it when that takes longer than ten seconds.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.supervisor.await {
            tracing::error!(error = %error, "the supervision of nats-server ended abnormally");
        }
    }
}

/// What the supervising task owns: the lock is held for as long as a server may run.
#[derive(Debug)]
struct Supervised {
    binary: Binary,
    files: Files,
    url: String,
    _lock: File,
}

/// Restarts the server whenever it ends, until it is told to stop.
async fn supervise(server: Supervised, mut child: Child, stop: CancellationToken) {
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let started = Instant::now();
        let Some(ended) = stop.run_until_cancelled(child.wait()).await else {
            return end(&server, child).await;
        };
        match ended {
            Ok(status) => tracing::error!(%status, log = %server.files.log.display(), "nats-server ended by itself"),
            Err(error) => tracing::error!(error = %error, "nats-server cannot be watched"),
        }
        if started.elapsed() > RESTART_DELAY_MAX {
            delay = RESTART_DELAY_MIN;
        }
        child = loop {
            if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                return;
            }
            delay = RESTART_DELAY_MAX.min(delay * 2);
            // Cancelled in between, the child is killed as it is dropped: it was not ready, so nobody has used it.
            match stop.run_until_cancelled(spawn_ready(&server.binary, &server.files, &server.url)).await {
                None => return,
                Some(Ok(child)) => break child,
                Some(Err(error)) => tracing::error!(error = chain(&error), "nats-server could not be restarted"),
            }
        };
        tracing::warn!(url = server.url, "nats-server restarted");
    }
}

/// Starts the server with the configuration that is written, and waits for it; kills it again when it is not ready in time.
async fn spawn_ready(binary: &Binary, files: &Files, url: &str) -> Result<Child, Error> {
    let mut child = spawn(binary, files)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let exited =
            child.try_wait().map_err(|source| Error::NotRunnable { path: binary.path().to_owned(), source })?;
        if let Some(status) = exited {
            return Err(Error::Exited { status, log: files.log.clone() });
        }
        if tokio::time::timeout_at(deadline, jetstream_answers(url, files)).await == Ok(true) {
            return Ok(child);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Err(Error::NotReady { log: files.log.clone() })
}

fn spawn(binary: &Binary, files: &Files) -> Result<Child, Error> {
    let output = files.open_log()?;
    let errors = output.try_clone().map_err(|source| Error::Files { path: files.log.clone(), source })?;
    Command::new(binary.path())
        .arg("-c")
        .arg(&files.config)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // Ctrl-C at the terminal goes to the whole group: in its own, the server lives until we have drained. (A service
        // manager that signals every process of the unit has to be told not to: `KillMode=mixed` in systemd.)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::NotRunnable { path: binary.path().to_owned(), source })
}

/// Whether it is our server that listens there, and not a stranger who took the port; and whether JetStream is up.
async fn jetstream_answers(url: &str, files: &Files) -> bool {
    let options = async_nats::ConnectOptions::new().connection_timeout(PATIENCE).max_reconnects(1);
    let Ok(client) = options.connect(url).await else { return false };
    client.server_info().server_name == files.server_name
        && async_nats::jetstream::new(client).query_account().await.is_ok()
}

async fn end(server: &Supervised, mut child: Child) {
    if let Some(pid) = child.id() {
        orphan::terminate(&server.binary, pid).await;
    }
    match tokio::time::timeout(PATIENCE, child.wait()).await {
        Ok(Ok(_)) => tracing::info!("nats-server stopped"),
        Ok(Err(error)) => tracing::error!(error = %error, "nats-server cannot be watched"),
        Err(_) => {
            tracing::warn!(log = %server.files.log.display(), "nats-server does not stop and is killed");
            if let Err(error) = child.kill().await {
                tracing::error!(error = %error, "nats-server cannot be killed");
            }
        }
    }
}

fn lock(files: &Files) -> Result<File, Error> {
    let io_error = |source| Error::Files { path: files.lock.clone(), source };
    let lock = File::options().create(true).append(true).open(&files.lock).map_err(io_error)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: files.data_dir.clone() }),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

fn free_port() -> Result<u16, Error> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(Error::Port)?;
    Ok(listener.local_addr().map_err(Error::Port)?.port())
}

fn chain(error: &Error) -> &(dyn std::error::Error + 'static) {
    error
}
