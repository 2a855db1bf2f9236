//! Signing in and out.
//!
//! Refuses to keep a token: what comes of it is a cookie that only the console reads, and only from its own pages.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};

use super::Console;
use super::asked::{Asked, Format, Refusal, fields, go_to, is_same_origin, own_place, whole};
use super::html::{Html, el};
use super::page::{self, hidden, labelled};
use super::session::{COOKIE, NAME_CHARS_MAX};
use crate::ingress::Problem;
use crate::message::Timestamp;

/// A token and a name.
const FORM_BYTES_MAX: usize = 4 * 1024;

pub(super) async fn show(State(console): State<Arc<Console>>, uri: Uri) -> Response {
    if console.tokens.is_empty() {
        return page::refused(&Refusal::Closed, "/console");
    }
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let next = query.into_owned().find(|(name, _)| name == "next").map(|(_, value)| value);
    page::page(StatusCode::OK, "Sign in", None, form(own_place(next.as_deref()), None))
}

pub(super) async fn enter(State(console): State<Arc<Console>>, headers: HeaderMap, body: Body) -> Response {
    if !is_same_origin(&headers) {
        return page::problem(
            Format::Html,
            Problem::new(403, "foreign-origin", "Only the console's own page signs in."),
        );
    }
    let said = whole(body, FORM_BYTES_MAX).await.and_then(|body| fields(&headers, &body));
    let said = match said {
        Ok(said) => said,
        Err(problem) => return page::problem(Format::Html, problem),
    };
    let field = |name: &str| said.get(name).map(|value| value.trim()).filter(|value| !value.is_empty());
    let place = own_place(field("next"));
    let name: Option<String> = field("name")
        .map(|name| name.chars().filter(|character| !character.is_control()).take(NAME_CHARS_MAX).collect());
    let role = field("token").and_then(|token| console.tokens.role_of(token));
    let session = role.and_then(|role| console.tokens.session(role, name.as_deref(), Timestamp::now()));
    match session {
        Some(session) => with_cookie(&console, &session, go_to(place)),
        None => {
            tracing::warn!("a token that opens nothing was shown to the console");
            let body = form(place, Some("This token opens nothing here."));
            page::page(StatusCode::UNAUTHORIZED, "Sign in", None, body)
        }
    }
}

/// Needs no token of the form's: being signed out by another page is no harm that its origin does not already keep out.
pub(super) async fn leave(State(console): State<Arc<Console>>, headers: HeaderMap, _asked: Asked) -> Response {
    match is_same_origin(&headers) {
        true => with_cookie(&console, "", go_to("/console/login")),
        false => {
            page::problem(Format::Html, Problem::new(403, "foreign-origin", "Only the console's own page signs out."))
        }
    }
}

fn with_cookie(console: &Console, session: &str, response: Response) -> Response {
    let secure = if console.is_secure { "; Secure" } else { "" };
    let ends = if session.is_empty() { "; Max-Age=0" } else { "" };
    let cookie = format!("{COOKIE}={session}; Path=/console; HttpOnly; SameSite=Strict{secure}{ends}");
    ([(header::SET_COOKIE, cookie)], response).into_response()
}

fn form(next: &str, trouble: Option<&str>) -> Html {
    let token = el("input")
        .attr("id", "token")
        .attr("name", "token")
        .attr("type", "password")
        .attr("autocomplete", "current-password");
    let token = token.flag("required", true).flag("autofocus", true);
    let name = el("input")
        .attr("id", "name")
        .attr("name", "name")
        .attr("maxlength", NAME_CHARS_MAX)
        .attr("autocomplete", "name");
    el("section")
        .class("panel door")
        .add(el("h1").text("Turnwise console"))
        .add(trouble.map(|trouble| el("p").class("trouble").attr("role", "alert").text(trouble)))
        .add(
            el("form")
                .attr("method", "post")
                .attr("action", "/console/login")
                .add(hidden("next", next))
                .add(labelled("token", "Console token", token))
                .add(labelled("name", "Your name, for the audit log and as assignee", name))
                .add(el("button").text("Sign in")),
        )
        .into()
}
