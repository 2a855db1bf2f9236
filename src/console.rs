//! The operators' console at `/console`: what became of messages and why, and what people may do about it.
//!
//! Refuses to know more than the ledger, the streams and the holds say, and to act without writing down first who does what.
//! Invariants: every view is a page, JSON and news of its changes alike; a page brings nothing of another server and works under
//! a policy that forbids everything inline; nothing that anybody wrote becomes markup.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::handler::Handler;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::asked::{Action, Format, go_to};
use self::session::Tokens;
use crate::config::{Config, TRACE_ID_PLACE};
use crate::ingress::{Ingress, Problem, store_problem};
use crate::message::Timestamp;
use crate::store::{OperatorAction, OperatorVerb, Store};
use crate::stream::{Publisher, StreamError, StreamHandle};
use crate::telemetry::chain;

mod asked;
mod audit_log;
mod conversations;
mod deliveries;
mod door;
mod holds;
mod html;
mod jobs;
mod letters;
mod overview;
mod page;
mod replays;
mod search;
mod session;
mod timeline;
mod turns;
mod why;

/// Pages that are watched at once; each looks at the database every two seconds.
const SEATS_MAX: usize = 64;

/// What the handlers share.
pub struct Console {
    /// Says and settles what people say and settle, as its API does.
    ingress: Arc<Ingress>,
    store: Store,
    inbound: StreamHandle,
    dead: StreamHandle,
    publisher: Publisher,
    tokens: Tokens,
    is_open: bool,
    /// Whether browsers reach it by TLS, so that its cookie shall never leave without.
    is_secure: bool,
    trace_url: Option<String>,
    replays: Option<PathBuf>,
    bots: Vec<String>,
    seats: Arc<Semaphore>,
    closing: CancellationToken,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Console").field("bots", &self.bots).finish_non_exhaustive()
    }
}

impl Console {
    /// `closing` is cancelled when nobody is answered any more.
    #[must_use]
    pub fn new(
        config: &Config,
        ingress: Arc<Ingress>,
        store: Store,
        (inbound, dead): (StreamHandle, StreamHandle),
        publisher: Publisher,
        closing: CancellationToken,
    ) -> Self {
        Self {
            ingress,
            store,
            inbound,
            dead,
            publisher,
            tokens: Tokens::new(&config.console),
            is_open: config.console.is_open,
            is_secure: config.http.public_url.as_ref().is_some_and(|url| url.starts_with("https://")),
            trace_url: config.console.trace_url.clone(),
            replays: config.console.replays.clone(),
            bots: config.bots.keys().cloned().collect(),
            seats: Arc::new(Semaphore::new(SEATS_MAX)),
            closing,
        }
    }

    /// Does something that a person asks for, with a row in the audit log that says so before, and how it went after.
    async fn act<T>(
        &self,
        action: &Action,
        verb: OperatorVerb,
        target: impl Into<String>,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let action = OperatorAction {
            verb,
            target: target.into(),
            actor: Some(action.who.actor()),
            reason: action.field("reason").map(str::to_owned),
            at: Timestamp::now(),
        };
        let id = self.store.begin_operator_action(&action).await.map_err(|error| store_problem(&error))?;
        let done = work.await;
        let result =
            done.as_ref().map_or_else(|problem| format!("not done: {}", problem.detail()), |_| "done".to_owned());
        if let Err(error) = self.store.end_operator_action(id, &result).await {
            tracing::warn!(error = %chain(&error), "how an operator's action went is not written down");
        }
        done
    }

    /// The trace of this context, and where it can be looked at.
    fn trace(&self, traceparent: Option<&str>) -> Option<Trace> {
        let id = traceparent?.split('-').nth(1)?.to_owned();
        let url = self.trace_url.as_ref().map(|url| url.replace(TRACE_ID_PLACE, &id));
        Some(Trace { id, url })
    }
}

/// A trace as people find it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
struct Trace {
    id: String,
    url: Option<String>,
}

/// The routes, all below `/console`.
pub fn router(console: Arc<Console>) -> Router {
    let mut router = Router::new()
        .route("/console/login", get(door::show).post(door::enter))
        .route("/console/logout", post(door::leave))
        .route(
            "/console/console.css",
            get(async || asset("text/css; charset=utf-8", include_str!("console/console.css"))),
        )
        .route(
            "/console/console.js",
            get(async || asset("text/javascript; charset=utf-8", include_str!("console/console.js"))),
        )
        .route("/console/conversations/{id}", get(conversations::show))
        .route("/console/conversations/{id}/{deed}", post(conversations::act))
        .route("/console/turns/{id}", get(turns::show))
        .route("/console/dead-letters/{id}", get(letters::show))
        .route("/console/dead-letters/redrive", post(letters::redrive))
        .route("/console/dead-letters/discard", post(letters::discard))
        .route("/console/deliveries/{id}/settle", post(deliveries::settle))
        .route("/console/holds/{deed}", post(holds::act))
        .route("/console/replays/{run}/report", get(replays::report));
    router = view(router, "/console", "/console.json", overview::show);
    router = view(router, "/console/conversations", "/console/conversations.json", search::show);
    router = view(router, "/console/dead-letters", "/console/dead-letters.json", letters::list);
    router = view(router, "/console/deliveries", "/console/deliveries.json", deliveries::list);
    router = view(router, "/console/holds", "/console/holds.json", holds::list);
    router = view(router, "/console/replays", "/console/replays.json", replays::list);
    router = view(router, "/console/audit", "/console/audit.json", audit_log::show);
    router.with_state(console)
}

/// One view under its address, and under the one that says JSON.
fn view<H, T>(router: Router<Arc<Console>>, path: &str, json: &str, handler: H) -> Router<Arc<Console>>
where
    H: Handler<T, Arc<Console>>,
    T: 'static,
{
    router.route(path, get(handler.clone())).route(json, get(handler))
}

/// The variable part of a path, without the ending that asks for JSON.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let axum::extract::Path(name) =
            path.map_err(|_| Problem::new(400, "malformed", "The address is not percent-encoded UTF-8."))?;
        Ok(Self(name.strip_suffix(".json").map_or(name.clone(), str::to_owned)))
    }
}

impl Name {
    fn uuid(&self) -> Result<Uuid, Problem> {
        Uuid::parse_str(&self.0).map_err(|_| Problem::field(400, "id", "is not a UUID."))
    }
}

/// What follows an action: the page that shows it, or its outcome.
fn done(action: &Action, place: &str, outcome: Result<(), Problem>) -> Response {
    match outcome {
        Ok(()) if action.format == Format::Json => page::json(&serde_json::json!({ "result": "done", "place": place })),
        Ok(()) => go_to(place),
        Err(problem) => page::problem(action.format, problem),
    }
}

fn not_found(what: &str) -> Problem {
    Problem::new(404, "not-found", format!("There is no such {what}."))
}

/// The streams did not answer: an honest 503 for whoever looks.
fn stream_problem(error: &StreamError) -> Problem {
    tracing::error!(error = %chain(error), "the streams did not answer the console");
    Problem::new(503, "unavailable", "The streams did not answer. Please try again.").retry_after(1)
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}
