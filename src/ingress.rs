//! The HTTP surface: webhooks, the chat API, health, metrics, and the chat page.
//!
//! Refuses to run turns or to answer before it may: a 2xx that stands for a message is made from a
//! [`crate::stream::Published`]. Invariants: bodies, requests in flight and waiting times are bounded; a refused request
//! publishes and writes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::limit::Limits;
use crate::channel::{self, Answer, Verified};
use crate::config::{Bot, Config, Secret};
use crate::message::{Channel, Envelope, Event};
use crate::platform::Platforms;
use crate::store::{Store, StoreError};
use crate::stream::{Connection, PublishError, Published, Publisher, StreamHandle};
use crate::telemetry::{self, chain, metric};

mod access;
mod agents;
mod body;
mod chat;
mod conversations;
mod cors;
mod deliveries;
mod events;
mod extract;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod headers;
mod health;
mod limit;
pub mod menus;
mod moves;
mod newer;
mod openapi;
mod page;
pub mod polling;
mod problem;
mod turns;
mod webhooks;

pub(crate) use deliveries::{MaySettle, Outcome};
pub(crate) use problem::Problem;

/// Requests that are being worked on at once, after their bodies have come: 1,024 publishes in flight are where JetStream's
/// throughput levels off.
const REQUESTS_MAX: usize = 1_024;

/// A body of which is said that it is no longer takes no place of the others': whoever sends slowly keeps nobody from
/// sending. Platforms' events have a few kilobytes; times `http.max_connections` it is 256 MiB.
const SMALL_BODY_BYTES: u64 = 16 * 1024;

/// Longer bodies, or of a length that is not said, that are being received at once; times `max_body_bytes` it is the memory
/// that they can take.
const LARGE_BODIES_MAX: usize = 1_024;

/// Chat callers that wait for an answer at once, those of events included; each is a subscription or two and a socket.
const WAITING_MAX: usize = 10_000;

/// A body must have come within this time: slower than any platform, faster than a slow-drip attack.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An acknowledgement of a press that takes longer comes too late to be of use.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a client that was refused for load is asked to wait, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// How the process comes to its end.
#[derive(Debug)]
pub struct Stops {
    /// Cancelled when the process begins to stop: not ready any more.
    pub draining: CancellationToken,
    /// Cancelled when no more turns will finish here: nobody waits any longer.
    pub closing: CancellationToken,
}

/// What the handlers share.
pub struct Ingress {
    store: Store,
    connection: Connection,
    inbound: StreamHandle,
    publisher: Publisher,
    platforms: Arc<Platforms>,
    bots: BTreeMap<String, Bot>,
    console_token: Option<Secret>,
    public_url: Option<String>,
    max_body_bytes: usize,
    metrics: metric::Metrics,
    requests: Semaphore,
    large_bodies: Semaphore,
    waiting: Arc<Semaphore>,
    limits: Limits,
    /// Cancelled when the process begins to stop: not ready any more.
    draining: CancellationToken,
    /// Cancelled when no more turns will finish here: nobody waits any longer.
    closing: CancellationToken,
}

impl std::fmt::Debug for Ingress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Ingress").field("bots", &self.bots.keys()).finish_non_exhaustive()
    }
}

impl Ingress {
    #[must_use]
    pub fn new(
        config: &Config,
        store: Store,
        inbound: StreamHandle,
        publisher: Publisher,
        platforms: Arc<Platforms>,
        metrics: metric::Metrics,
        Stops { draining, closing }: Stops,
    ) -> Self {
        Self {
            store,
            connection: inbound.connection.clone(),
            inbound,
            publisher,
            platforms,
            bots: config.bots.clone(),
            console_token: config.console.token.clone(),
            public_url: config.http.public_url.clone(),
            max_body_bytes: config.http.max_body_bytes,
            metrics,
            requests: Semaphore::new(REQUESTS_MAX),
            large_bodies: Semaphore::new(LARGE_BODIES_MAX),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            limits: Limits::new(tokio::time::Instant::now()),
            draining,
            closing,
        }
    }
}

/// The routes, and others' beside them. Without `messages` only those that every role has: health and metrics.
pub fn router(ingress: Arc<Ingress>, messages: bool, others: Router) -> Router {
    let mut routes = health::routes();
    let mut pages = others.with_state(());
    if messages {
        let talk = chat::routes().merge(turns::routes()).merge(conversations::routes());
        let talk = talk.merge(deliveries::routes()).merge(files::routes());
        routes = routes.merge(webhooks::routes()).merge(talk);
        pages = pages.merge(page::routes());
    }
    routes
        .described(ingress.public_url.as_deref())
        .merge(pages)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&ingress), cors::allow))
        .layer(middleware::from_fn(observe))
        .with_state(ingress)
}

/// What is answered over connections for which there is no room: health and measurements as ever, so that nobody restarts a
/// process for having many clients, and nothing else.
pub fn no_room(ingress: Arc<Ingress>) -> Router {
    let refuse =
        async || Problem::new(503, "overloaded", "Too many connections are open.").retry_after(RETRY_AFTER_SECONDS);
    health::routes().described(None).fallback(refuse).layer(middleware::from_fn(observe)).with_state(ingress)
}

async fn unknown_route() -> Problem {
    Problem::new(404, "not-found", "There is nothing at this address.")
}

/// The framework adds the header `Allow`.
async fn wrong_method() -> Problem {
    Problem::new(405, "method-not-allowed", "This address does not take requests of this method; see `Allow`.")
}

/// One span and one measurement per request, under the route's template.
async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = known_method(request.method());
    let quiet = matches!(route.as_str(), "/healthz" | "/readyz" | "/metrics");
    let span = if quiet {
        tracing::Span::none()
    } else {
        tracing::info_span!(
            "http request",
            otel.name = format!("{method} {route}"),
            otel.kind = "server",
            http.request.method = method,
            http.route = route,
            http.response.status_code = tracing::field::Empty,
            turnwise.ingress.outcome = tracing::field::Empty,
        )
    };
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    metric::http_request(&route, response.status().as_u16(), started.elapsed());
    response
}

/// The method, or the word that OpenTelemetry's HTTP conventions have for those that nobody knows: a caller can send any.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn overloaded() -> Problem {
    Problem::new(503, "overloaded", "Too many requests are in flight.").retry_after(RETRY_AFTER_SECONDS)
}

impl Ingress {
    /// A place among the requests in flight, or the answer to give.
    fn admit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.requests.try_acquire().map_err(|_| overloaded())
    }

    async fn body(&self, body: Body) -> Result<Bytes, Problem> {
        let limit = self.max_body_bytes;
        let _large = match body.size_hint().exact() {
            Some(0..=SMALL_BODY_BYTES) => None,
            _ => Some(self.large_bodies.try_acquire().map_err(|_| overloaded())?),
        };
        match tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) if is_too_long(&error) => {
                Err(Problem::new(413, "too-large", format!("The body is longer than {limit} bytes.")))
            }
            Ok(Err(_)) => Err(Problem::new(400, "incomplete", "The body did not arrive whole.")),
            Err(_) => Err(Problem::new(408, "timeout", "The body did not arrive in time.")),
        }
    }

    /// Makes an event durable, or says what to answer.
    async fn publish(&self, verified: &Verified) -> Result<Published, Problem> {
        self.make_durable(verified).await.map_err(|error| not_taken(&error))
    }

    /// Makes an event durable. Nothing but the stream's acknowledgement lets a webhook answer 2xx, or Telegram forget an
    /// update.
    async fn make_durable(&self, verified: &Verified) -> Result<Published, PublishError> {
        let envelope = verified.envelope();
        let span = tracing::info_span!(
            "send turnwise.in",
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.message.id = envelope.dedupe_id,
            messaging.destination.partition.id = self.publisher.partition(&envelope.key),
            turnwise.turn.id = %envelope.turn_id,
            turnwise.stream.sequence = tracing::field::Empty,
            turnwise.publish.duplicate = tracing::field::Empty,
        );
        let traceparent = telemetry::current_traceparent(&span);
        let published = self.publisher.inbound(verified, traceparent.as_deref()).instrument(span.clone()).await;
        let (channel, bot) = (envelope.key.channel, &*envelope.key.bot);
        match published {
            Ok(published) => {
                span.record("turnwise.stream.sequence", published.sequence());
                span.record("turnwise.publish.duplicate", published.duplicate());
                let ignored = matches!(envelope.event, Event::Ignored { .. });
                let outcome = match (published.duplicate(), ignored) {
                    (true, _) => "duplicate",
                    (false, true) => "ignored",
                    (false, false) => "accepted",
                };
                count(channel, bot, outcome);
                self.acknowledge(envelope);
                Ok(published)
            }
            Err(error) => {
                count(channel, bot, "not_taken");
                tracing::warn!(bot, error = %chain(&error), "the stream did not take a message");
                Err(error)
            }
        }
    }

    /// Tells the platform that a press of a button has arrived. Nothing waits for it: whoever pressed sees the button spin for
    /// a while if it is lost.
    fn acknowledge(&self, envelope: &Envelope) {
        let Event::Message(message) = &envelope.event else { return };
        let Some(bot) = self.bots.get(&*envelope.key.bot) else { return };
        let Some(call) = channel::acknowledgement(bot, message) else { return };
        let (platforms, bot) = (Arc::clone(&self.platforms), bot.clone());
        tokio::spawn(async move {
            let called = platforms.call(&bot, &call, ACKNOWLEDGE_TIMEOUT).await;
            if !matches!(called.answer, Answer::Sent { .. }) {
                tracing::debug!(bot = bot.name, status = called.status, "a press may not have been acknowledged");
            }
        });
    }
}

/// What became of a message at the door, as a metric and on the request's span.
fn count(channel: Channel, bot: &str, outcome: &'static str) {
    tracing::Span::current().record("turnwise.ingress.outcome", outcome);
    metric::ingress_message(channel, bot, outcome);
}

fn not_taken(error: &PublishError) -> Problem {
    match error {
        PublishError::TooLarge => Problem::new(413, "too-large", "The message is larger than the stream takes."),
        PublishError::NotAcknowledged(_) | PublishError::Encode(_) => {
            Problem::new(503, "not-taken", "The message could not be stored. Please send it again.")
                .retry_after(RETRY_AFTER_SECONDS)
        }
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The database did not answer: an honest 503 for whoever waits.
pub(crate) fn store_problem(error: &StoreError) -> Problem {
    if matches!(error, StoreError::AlreadyOpen) {
        return Problem::new(409, "already-open", "Another conversation with the same person is open; close it first.");
    }
    tracing::error!(error = %chain(error), "the database did not answer a request");
    Problem::new(503, "unavailable", "The database did not answer. Please try again.").retry_after(RETRY_AFTER_SECONDS)
}

type Shared = State<Arc<Ingress>>;

fn json(status: u16, body: &impl Serialize) -> Response {
    let headers = [("content-type", "application/json"), ("cache-control", "no-store")];
    let status = axum::http::StatusCode::from_u16(status).unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    // Nothing that is answered here fails to be written.
    (status, headers, serde_json::to_string(body).unwrap_or_default()).into_response()
}
