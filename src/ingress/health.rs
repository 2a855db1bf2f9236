//! Whether the process lives, whether it can take messages, and its measurements.
//!
//! `/healthz` never depends on NATS or the database: a restart mends neither.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::{Shared, json as answer};

/// A check that takes longer than this has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn alive() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(ingress): Shared) -> Response {
    let stream = async { ingress.connection.is_connected() && ingress.inbound.info().await.is_ok() };
    let stream = tokio::time::timeout(CHECK_TIMEOUT, stream);
    let database = tokio::time::timeout(CHECK_TIMEOUT, ingress.store.ping());
    let (stream, database) = tokio::join!(stream, database);
    let checks = [
        ("stream", stream.unwrap_or(false)),
        ("database", database.is_ok_and(|pinged| pinged.is_ok())),
        ("not_draining", !ingress.draining.is_cancelled()),
    ];
    let ready = checks.iter().all(|(_, passed)| *passed);
    let checks: serde_json::Map<_, _> =
        checks.iter().map(|(name, passed)| ((*name).to_owned(), json!(passed))).collect();
    answer(if ready { 200 } else { 503 }, &json!({ "ready": ready, "checks": checks }))
}

pub(super) async fn metrics(State(ingress): Shared) -> Response {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], ingress.metrics.render()).into_response()
}
