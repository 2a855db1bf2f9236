//! MCP servers: a session with each, made again when it is lost, and the tools that it offers.
//! <https://modelcontextprotocol.io/specification/2025-11-25>, by the official SDK.
//!
//! Refuses whatever a server asks of us (sampling, roots, elicitation), and to log what it says. Invariants: one keeper per
//! server makes sessions and lists tools, calls only use them; a call that is known not to have been carried out because its
//! session was gone is made once more in the next one; tools that were there once stay listed while their server is away.

use std::sync::Arc;
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use rmcp::model::{CallToolRequestParams, PingRequest};
use rmcp::service::{Peer, RoleClient, ServiceError};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Quotes;
use super::catalogue::Catalogue;
use super::{Effects, ToolContext, ToolError};
use crate::config::{McpServer, McpTransport, Secret, ToolConfig};
use crate::telemetry::metric;

mod connection;
mod offer;
mod outcome;
mod wire;

use connection::{Connection, Dial};
use outcome::Attempt;

/// How long a call waits for a session that is being made again. Then nothing has been sent, and the turn decides.
const SESSION_PATIENCE: Duration = Duration::from_secs(5);

/// A server that dies at once, each time, is started this often at least.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A call that waits for a session shortens the pause to this.
const PAUSE_WANTED: Duration = Duration::from_millis(250);

/// Between two looks whether a session still lives: what the specification leaves to the client, "periodically".
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// A ping, or a list of tools.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// One server, whoever speaks to it.
pub(super) struct McpSessions {
    name: String,
    settings: ToolConfig,
    only: Vec<String>,
    dial: Dial,
    quotes: Quotes,
    session: watch::Sender<Option<Session>>,
    /// Told by a call that finds no session.
    wanted: Notify,
    /// Whether the first attempt to connect is over.
    tried: watch::Sender<bool>,
}

/// What calls use of a session.
#[derive(Clone)]
struct Session {
    peer: Peer<RoleClient>,
    /// Cancelled by whoever finds that the session is no more.
    lost: CancellationToken,
}

impl McpSessions {
    /// `None` when the address is none, which a configuration that was read cannot have.
    ///
    /// # Errors
    /// When the system has no CA certificates to check the server by.
    pub(super) fn new(name: &str, settings: &ToolConfig, server: &McpServer) -> Result<Option<Self>, reqwest::Error> {
        let Some(dial) = Dial::new(&server.transport)? else { return Ok(None) };
        Ok(Some(Self {
            name: name.to_owned(),
            settings: settings.clone(),
            only: server.only.clone(),
            dial,
            quotes: Quotes::without(secrets(&server.transport)),
            session: watch::Sender::new(None),
            wanted: Notify::new(),
            tried: watch::Sender::new(false),
        }))
    }

    /// Returns once the first attempt to connect is over.
    pub(super) async fn tried(&self) {
        // The sender lives as long as `self`.
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    /// Connects, lists the tools, and does so again whenever the session is lost, until it is stopped.
    pub(super) async fn keep(self: Arc<Self>, catalogue: Arc<Catalogue>, stop: CancellationToken, tasks: TaskTracker) {
        let mut pause = pauses();
        metric::tool_server_up(&self.name, false);
        while !stop.is_cancelled() {
            let begun = Instant::now();
            match stop.run_until_cancelled(self.dial.connect()).await {
                Some(Ok(connection)) => {
                    self.attend(connection, &catalogue, &stop, &tasks).await;
                    if begun.elapsed() > PAUSE_MAX {
                        pause.reset();
                    }
                }
                Some(Err(fault)) => {
                    tracing::warn!(server = self.name, error = %fault, "an MCP server cannot be reached; its tools are absent");
                }
                None => {}
            }
            self.tried.send_replace(true);
            let pause = pause.next_backoff().unwrap_or(PAUSE_MAX);
            stop.run_until_cancelled(self.wait(begun, pause)).await;
        }
    }

    async fn wait(&self, begun: Instant, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.wanted.notified() => tokio::time::sleep_until(begun + PAUSE_WANTED).await,
        }
    }

    /// Returns when the session is over, for whatever reason.
    async fn attend(
        self: &Arc<Self>,
        mut connection: Connection,
        catalogue: &Catalogue,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) {
        match self.list(&connection.peer, catalogue).await {
            Ok(count) => {
                tracing::info!(server = self.name, tools = count, "an MCP server is there");
                metric::tool_server_up(&self.name, true);
                let (peer, lost) = (connection.peer.clone(), connection.lost.clone());
                self.session.send_replace(Some(Session { peer, lost }));
                self.tried.send_replace(true);
                let why = self.watch(&mut connection, catalogue, stop).await;
                self.session.send_replace(None);
                metric::tool_server_up(&self.name, false);
                if !stop.is_cancelled() {
                    tracing::warn!(server = self.name, reason = why, "the session with an MCP server is over");
                }
            }
            Err(fault) => tracing::warn!(server = self.name, error = fault, "an MCP server does not list its tools"),
        }
        tasks.spawn(connection.close(stop.clone()));
    }

    /// Why the session is over.
    async fn watch(
        self: &Arc<Self>,
        connection: &mut Connection,
        catalogue: &Catalogue,
        stop: &CancellationToken,
    ) -> &'static str {
        let mut pings = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return "stopped",
                () = connection.lost.cancelled() => return "the server does not know it any more",
                () = connection.ended() => return "the server is gone",
                () = connection.changed.notified() => match self.list(&connection.peer, catalogue).await {
                    Ok(count) => tracing::info!(server = self.name, tools = count, "an MCP server offers other tools"),
                    Err(fault) => return fault,
                },
                _ = pings.tick() => if !answers(&connection.peer).await {
                    return "the server does not answer";
                },
            }
        }
    }

    async fn list(self: &Arc<Self>, peer: &Peer<RoleClient>, catalogue: &Catalogue) -> Result<usize, &'static str> {
        let listed = tokio::time::timeout(ANSWER_PATIENCE, offer::list(peer));
        let tools = listed.await.map_err(|_| "the list of tools did not come in time")??;
        let offers = offer::offers(self, &tools);
        let count = offers.len();
        catalogue.replace(&self.name, offers);
        Ok(count)
    }

    /// One call, in this session or, if that turns out to be gone, in the next.
    async fn call(
        &self,
        tool: &str,
        context: &ToolContext,
        arguments: &Value,
        effects: Effects,
    ) -> Result<Value, ToolError> {
        let mut again = true;
        loop {
            let session = self.session(context.deadline).await?;
            let params = params(tool, context, arguments);
            match outcome::attempt(&session.peer, params, effects, &self.quotes).await {
                Attempt::Done(outcome) => return outcome,
                Attempt::SessionGone { .. } if again => {
                    again = false;
                    session.lost.cancel();
                }
                Attempt::SessionGone { otherwise } => return Err(otherwise),
            }
        }
    }

    /// The session, once there is one that lives. Waits for it half of the time that there is, so that running out of it is
    /// never taken for a call without an answer.
    async fn session(&self, deadline: Instant) -> Result<Session, ToolError> {
        let now = Instant::now();
        let patience = SESSION_PATIENCE.min(deadline.saturating_duration_since(now) / 2);
        let mut sessions = self.session.subscribe();
        let lives = |session: &Option<Session>| session.as_ref().is_some_and(Session::lives);
        if !lives(&sessions.borrow()) {
            self.wanted.notify_one();
        }
        let found = tokio::time::timeout(patience, sessions.wait_for(lives)).await;
        let session = found.ok().and_then(|found| found.ok().and_then(|session| session.clone()));
        session.ok_or_else(|| ToolError::retryable("the tool's server is not there"))
    }
}

impl Session {
    fn lives(&self) -> bool {
        !self.lost.is_cancelled() && !self.peer.is_transport_closed()
    }
}

/// The specification names `traceparent` in `_meta`; the idempotency key has a name of ours, for servers that want it.
fn params(tool: &str, context: &ToolContext, arguments: &Value) -> CallToolRequestParams {
    let mut params = CallToolRequestParams::new(tool.to_owned());
    params.arguments = arguments.as_object().cloned();
    let meta = params.meta.get_or_insert_default();
    if let Some(traceparent) = &context.traceparent {
        meta.0.set_traceparent(traceparent.clone());
    }
    meta.0.insert("turnwise/idempotency-key".to_owned(), context.idempotency_key.clone().into());
    params
}

async fn answers(peer: &Peer<RoleClient>) -> bool {
    let ping = peer.send_request(PingRequest::default().into());
    // A server that refuses to be pinged has answered.
    matches!(tokio::time::timeout(ANSWER_PATIENCE, ping).await, Ok(Ok(_) | Err(ServiceError::McpError(_))))
}

fn pauses() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(100))
        .with_max_interval(PAUSE_MAX)
        .with_max_elapsed_time(None)
        .build()
}

/// What a server is told that its answers must not bring into a conversation.
fn secrets(transport: &McpTransport) -> Vec<&Secret> {
    match transport {
        McpTransport::Url { headers, .. } => headers.values().collect(),
        McpTransport::Command { arguments, env, .. } => {
            let kept = arguments.iter().filter(|argument| argument.kept_elsewhere).map(|argument| &argument.text);
            kept.chain(env.values()).collect()
        }
    }
}
