//! The chat page at `/`, for a web bot that needs no key: development, and demonstrations.
//!
//! Refuses to show itself when every web bot needs a key: a page cannot keep one.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::problem::Problem;
use super::{Ingress, Shared};
use crate::config::BotChannel;

const INDEX: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/app.js");

/// Only what the page itself brings may run, and it may talk only to where it came from.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Arc<Ingress>> {
    Router::new()
        .route("/", get(index))
        .route("/assets/style.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/app.js", get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
}

async fn index(State(ingress): Shared) -> Result<Response, Problem> {
    let open =
        ingress.bots.values().find(|bot| matches!(&bot.channel, BotChannel::Web(web) if web.api_keys.is_empty()));
    let Some(bot) = open else {
        return Err(Problem::new(404, "not-found", "There is a chat page only for a web bot without api_keys."));
    };
    // Bot names are `[A-Za-z0-9_-]`, so nothing in them has to be escaped.
    let page = INDEX.replace("{{bot}}", &bot.name);
    let headers = [
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", CONTENT_SECURITY_POLICY),
        ("cache-control", "no-cache"),
        ("referrer-policy", "no-referrer"),
    ];
    Ok((headers, page).into_response())
}

async fn asset(content_type: &'static str, text: &'static str) -> Response {
    let headers =
        [("content-type", content_type), ("cache-control", "no-cache"), ("x-content-type-options", "nosniff")];
    (headers, text).into_response()
}
