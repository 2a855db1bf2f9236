//! Whether the process lives, whether it can take messages, and its measurements.
//!
//! `/healthz` never depends on NATS or the database: a restart mends neither.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::openapi::{Operation, Routes};
use super::{Shared, json as answer};

/// A check that takes longer than this has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

const PLAIN: &str = "text/plain; charset=utf-8";

/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/healthz", alive, Operation::new("isAlive", "The process lives.").text(200, PLAIN, "It does."))
        .get(
            "/readyz",
            ready,
            Operation::new("isReady", "Whether messages are taken here.")
                .answer::<Readiness>(200, "They are.")
                .answer::<Readiness>(503, "They are not."),
        )
        .get(
            "/metrics",
            metrics,
            Operation::new("metrics", "Measurements of this process.").text(200, METRICS, "Prometheus text."),
        )
}

/// What a process needs to take messages, and whether it has it.
#[derive(Debug, Serialize, JsonSchema)]
struct Readiness {
    ready: bool,
    checks: Checks,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(inline)]
struct Checks {
    /// The inbound stream answers.
    stream: bool,
    database: bool,
    not_draining: bool,
    /// No bot is shut out by its platform, as far as this process has seen when it sent. Says nothing of readiness: messages are
    /// taken all the same.
    bots_served: bool,
}

async fn alive() -> &'static str {
    "ok\n"
}

async fn ready(State(ingress): Shared) -> Response {
    let stream = async { ingress.connection.is_connected() && ingress.inbound.info().await.is_ok() };
    let stream = tokio::time::timeout(CHECK_TIMEOUT, stream);
    let database = tokio::time::timeout(CHECK_TIMEOUT, ingress.store.ping());
    let (stream, database) = tokio::join!(stream, database);
    let checks = Checks {
        stream: stream.unwrap_or(false),
        database: database.is_ok_and(|pinged| pinged.is_ok()),
        not_draining: !ingress.draining.is_cancelled(),
        bots_served: !ingress.platforms.closures().any(),
    };
    let ready = checks.stream && checks.database && checks.not_draining;
    answer(if ready { 200 } else { 503 }, &Readiness { ready, checks })
}

async fn metrics(State(ingress): Shared) -> Response {
    ([("content-type", METRICS)], ingress.metrics.render()).into_response()
}
