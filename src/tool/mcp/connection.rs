//! One session from handshake to end, over streamable HTTP or with a child process.
//!
//! Refuses to give a child our environment: it has `PATH` and what is configured. Invariant: a child ends with its session: its
//! input is closed, then it is told to end, then killed, some three seconds apart; it also ends when this process is gone,
//! since its input is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use reqwest::Url;
use rmcp::ClientHandler;
use rmcp::model::{ClientConfig, Implementation};
use rmcp::service::{ClientInitializeError, NotificationContext, Peer, RoleClient, RunningService, ServiceExt as _};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
};
use rmcp::transport::{DynamicTransportError, TokioChildProcess};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::wire::{RetryTwice, Wire, WireFault};
use crate::config::{Argument, McpTransport, Secret};
use crate::http;
use crate::tool::http::headers;

/// `npx` may have to fetch the server first.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);

/// Calls that found their session gone at the same moment still get to hear so.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Posts under way at once in one session; more would wait in the SDK, where nobody can tell whether they were sent.
const POSTS_AT_ONCE: usize = 1_024;

/// The largest message over HTTP: a result with a picture or two, which is dropped.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How to reach a server.
pub(super) enum Dial {
    Url { url: String, wire: Wire },
    Command { program: PathBuf, arguments: Vec<Argument>, env: BTreeMap<String, Secret>, folder: PathBuf },
}

/// A session that is open.
pub(super) struct Connection {
    pub(super) peer: Peer<RoleClient>,
    /// Cancelled when the server is found not to know the session any more.
    pub(super) lost: CancellationToken,
    /// The server offers other tools now.
    pub(super) changed: Arc<Notify>,
    end: CancellationToken,
    ended: Shared<BoxFuture<'static, ()>>,
}

impl Dial {
    /// `None` when the address is none.
    ///
    /// # Errors
    /// When the system has no CA certificates to check the server by.
    pub(super) fn new(transport: &McpTransport) -> Result<Option<Self>, reqwest::Error> {
        Ok(Some(match transport {
            McpTransport::Url { url, headers: configured } => {
                let Ok(address) = Url::parse(url) else { return Ok(None) };
                let wire = Wire::new(http::client(&address)?, headers(configured), MESSAGE_BYTES_MAX);
                Self::Url { url: url.clone(), wire }
            }
            McpTransport::Command { program, arguments, env, folder } => Self::Command {
                program: program.clone(),
                arguments: arguments.clone(),
                env: env.clone(),
                folder: folder.clone(),
            },
        }))
    }

    /// # Errors
    /// Why there is no session, without a word of the server's own.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let (lost, end, changed) = (CancellationToken::new(), CancellationToken::new(), Arc::new(Notify::new()));
        let client = Client { changed: Arc::clone(&changed) };
        let connected = async {
            match self {
                Self::Url { url, wire } => {
                    let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
                        .max_concurrent_requests(POSTS_AT_ONCE)
                        .max_sse_event_size(MESSAGE_BYTES_MAX)
                        .reinit_on_expired_session(false);
                    config.retry_config = Arc::new(RetryTwice);
                    let wire = wire.for_session(lost.clone());
                    let transport = StreamableHttpClientTransport::with_client(wire, config);
                    client.serve_with_ct(transport, end.clone()).await.map_err(|error| describe(&error))
                }
                Self::Command { program, arguments, env, folder } => {
                    let command = command(program, arguments, env, folder);
                    let spawned = TokioChildProcess::builder(command).stderr(Stdio::null()).spawn();
                    let (child, _) = spawned.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
                    client.serve_with_ct(child, end.clone()).await.map_err(|error| describe(&error))
                }
            }
        };
        match tokio::time::timeout(CONNECT_PATIENCE, connected).await {
            Ok(Ok(running)) => Ok(Connection::new(running, lost, changed, end)),
            Ok(Err(fault)) => Err(fault),
            Err(_) => Err(format!("no answer within {} s", CONNECT_PATIENCE.as_secs())),
        }
    }
}

impl Connection {
    fn new(
        running: RunningService<RoleClient, Client>,
        lost: CancellationToken,
        changed: Arc<Notify>,
        end: CancellationToken,
    ) -> Self {
        let peer = running.peer().clone();
        let ended = async move { drop(running.waiting().await) };
        Self { peer, lost, changed, end, ended: ended.boxed().shared() }
    }

    /// Returns when the server is gone.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + 'static {
        self.ended.clone()
    }

    /// Ends the session and waits for it; at once when the process stops.
    pub(super) async fn close(self, stop: CancellationToken) {
        self.lost.cancel();
        stop.run_until_cancelled(tokio::time::sleep(CLOSE_GRACE)).await;
        self.end.cancel();
        self.ended.await;
    }
}

/// Our side of a session: it offers the server nothing.
struct Client {
    changed: Arc<Notify>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::new(Default::default(), Implementation::new("turnwise", env!("CARGO_PKG_VERSION")))
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.changed.notify_one();
    }
}

/// A process group of its own, so that Ctrl-C at a terminal stops us first, and the child by us.
fn command(program: &Path, arguments: &[Argument], env: &BTreeMap<String, Secret>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.iter().map(|argument| argument.text.expose())).env_clear().current_dir(folder);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(env.iter().map(|(name, value)| (name, value.expose()))).process_group(0).kill_on_drop(true);
    command
}

fn describe(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::TransportError { error, .. } => describe_transport(error),
        ClientInitializeError::ConnectionClosed(_) => "the server ended during the handshake".to_owned(),
        ClientInitializeError::JsonRpcError(error) => {
            format!("it refused the handshake, JSON-RPC error {}", error.code.0)
        }
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => "it speaks another version of MCP".to_owned(),
        _ => "its answer to the handshake is not one".to_owned(),
    }
}

fn describe_transport(error: &DynamicTransportError) -> String {
    match error.error.downcast_ref::<StreamableHttpError<WireFault>>() {
        Some(StreamableHttpError::Client(fault)) => fault.to_string(),
        _ => "the connection broke during the handshake".to_owned(),
    }
}
