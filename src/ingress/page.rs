//! The chat widget, one script that any page can embed (`/widget.js`), and the page at `/` that is nothing but the widget, for a web
//! bot that needs no key: development, and demonstrations.
//!
//! Refuses to show the page when every web bot needs a key: a page cannot keep one. Invariant: neither brings or asks for anything
//! of another server, and both work under a content security policy that forbids everything inline.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::problem::Problem;
use super::{Ingress, Shared};
use crate::config::BotChannel;

const INDEX: &str = include_str!("page/index.html");
const PAGE_STYLE: &str = include_str!("page/page.css");
const STYLE: &str = include_str!("page/style.css");

/// In one scope of its own, so that nothing of it is seen by the page around it.
static WIDGET: LazyLock<String> = LazyLock::new(|| {
    // A JSON string is one of JavaScript as well (ECMA-262, JSON superset).
    let style = serde_json::Value::from(STYLE);
    let parts = [
        include_str!("page/wire.js"),
        include_str!("page/talk.js"),
        include_str!("page/view.js"),
        include_str!("page/start.js"),
    ];
    format!("(() => {{\n\"use strict\";\nconst STYLE = {style};\n{}}})();\n", parts.join("\n"))
});

/// Only what the page itself brings may run, and it may talk only to where it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

pub(super) fn routes() -> Router<Arc<Ingress>> {
    Router::new()
        .route("/", get(index))
        .route("/assets/page.css", get(async || asset("text/css; charset=utf-8", PAGE_STYLE)))
        .route("/widget.js", get(async || asset("text/javascript; charset=utf-8", &WIDGET)))
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
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, page).into_response())
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE.as_str(), content_type),
        (CACHE_CONTROL.as_str(), "no-cache"),
        (X_CONTENT_TYPE_OPTIONS.as_str(), "nosniff"),
        // Also for pages that take only what says that it may be taken.
        ("cross-origin-resource-policy", "cross-origin"),
    ];
    (headers, text).into_response()
}
