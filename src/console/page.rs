//! The frame of every page, and the three forms in which a view is answered: a page, JSON, and news of its changes.
//!
//! Refuses everything inline and foreign by its policy. Invariant: a page, its JSON and its news are made of the same view.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::Console;
use super::asked::{Asked, FORM_TOKEN, Format, Refusal, go_to};
use super::html::{Element, Html, el, link};
use super::session::Who;
use crate::ingress::Problem;

/// How often a view that somebody looks at is made again: an operator's glance, and at most a few hundred reads a second.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A comment this often keeps proxies from closing a silent connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// After this time a page has to come back.
const EVENTS_MAX: Duration = Duration::from_secs(15 * 60);

/// Only what the console itself brings may run, and it may talk only to where it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
     frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The parameter that says which view a page shows already.
const SEEN: &str = "seen";

/// Where one can go, in the order of importance.
const PLACES: [(&str, &str); 7] = [
    ("/console", "Overview"),
    ("/console/conversations", "Conversations"),
    ("/console/dead-letters", "Dead letters"),
    ("/console/deliveries", "Deliveries"),
    ("/console/holds", "Holds"),
    ("/console/replays", "Replays"),
    ("/console/audit", "Audit log"),
];

/// Something to look at.
pub(super) trait View: Serialize + Send {
    /// How often it is made again while somebody looks at it; longer where that is much work.
    const LOOK_AGAIN: Duration = LOOK_AGAIN;

    /// By which its changes are known: of all that it says.
    fn fingerprint(&self) -> u64
    where
        Self: Sized,
    {
        fingerprint(self)
    }

    fn title(&self) -> String;

    fn body(&self, who: &Who) -> Html;
}

/// Answers with what `load` gives, in the form that is asked for.
pub(super) async fn show<V, L>(console: &Arc<Console>, asked: Asked, load: L) -> Response
where
    V: View,
    L: AsyncViews<V>,
{
    match asked.format {
        Format::Events => follow(console, asked.parameter(SEEN).and_then(|seen| seen.parse().ok()), load),
        format => match load.load().await {
            Ok(view) if format == Format::Json => json(&view),
            Ok(view) => {
                let body = view.body(&asked.who);
                let frame = Frame { who: &asked.who, place: &asked.place, fingerprint: Some(view.fingerprint()) };
                page(StatusCode::OK, &view.title(), Some(frame), body)
            }
            Err(error) => problem(format, error),
        },
    }
}

/// Makes the same view again and again. A trait of its own, so that its future is known to be one that may go to a task.
pub(super) trait AsyncViews<V>: Send + 'static {
    fn load(&self) -> impl Future<Output = Result<V, Problem>> + Send;
}

impl<V, F, R> AsyncViews<V> for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Result<V, Problem>> + Send,
{
    fn load(&self) -> impl Future<Output = Result<V, Problem>> + Send {
        self()
    }
}

pub(super) fn json(view: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept, cookie"),
    ];
    // Nothing that is answered here fails to be written.
    (headers, serde_json::to_string(view).unwrap_or_default()).into_response()
}

/// Tells whenever the view is another one than `seen`, and then than before.
fn follow<V: View, L: AsyncViews<V>>(console: &Arc<Console>, seen: Option<u64>, load: L) -> Response {
    let Ok(seat) = Arc::clone(&console.seats).try_acquire_owned() else {
        return Problem::new(503, "overloaded", "Too many pages are being watched.").retry_after(15).into_response();
    };
    let (writer, reader) = mpsc::channel::<Bytes>(2);
    let closing = console.closing.clone();
    tokio::spawn(async move {
        let _seat = seat;
        let told = tokio::time::timeout(EVENTS_MAX, tell(writer, seen, load));
        let _ = closing.run_until_cancelled(told).await;
    });
    let lines = futures_util::stream::unfold(reader, async |mut reader| {
        let line = reader.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), reader))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Read by nginx and its kind, which would hold the news back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(lines)).into_response()
}

async fn tell<V: View, L: AsyncViews<V>>(writer: mpsc::Sender<Bytes>, mut seen: Option<u64>, load: L) {
    let mut looks = tokio::time::interval(V::LOOK_AGAIN);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said_at = Instant::now();
    loop {
        looks.tick().await;
        let now = load.load().await.ok().map(|view| view.fingerprint());
        let line = match (seen, now) {
            (Some(seen), Some(now)) if seen != now => "event: changed\ndata: {}\n\n",
            (None, Some(_)) => "retry: 2000\n\n",
            _ if said_at.elapsed() >= KEEP_ALIVE => ": still here\n\n",
            _ => {
                if writer.is_closed() {
                    return;
                }
                continue;
            }
        };
        seen = now.or(seen);
        said_at = Instant::now();
        if writer.send(Bytes::from_static(line.as_bytes())).await.is_err() {
            return;
        }
    }
}

pub(super) fn fingerprint(view: &impl Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(view).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// Something went wrong, in the form that was asked for.
pub(super) fn problem(format: Format, problem: Problem) -> Response {
    if format != Format::Html {
        return problem.into_response();
    }
    let status = StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = el("section")
        .class("panel")
        .add(el("h1").text("That did not work"))
        .add(el("p").class("trouble").attr("role", "alert").text(problem.detail()));
    let body = body.add(el("p").add(link("/console", "To the overview")));
    page(status, "That did not work", None, body.into())
}

/// For somebody who may not come in: to the door, or why there is none.
pub(super) fn refused(refusal: &Refusal, place: &str) -> Response {
    match refusal {
        Refusal::SignIn => {
            let next: String = url::form_urlencoded::byte_serialize(place.as_bytes()).collect();
            go_to(&format!("/console/login?next={next}"))
        }
        Refusal::Closed => {
            let body = el("section").class("panel").add(el("h1").text("The console is closed")).add(
                el("p").text(
                    "No token is configured. Set console.token (and console.read_token for those who only look) in \
                     the configuration and start again. Only `turnwise dev` is open without one, and only to this machine.",
                ),
            );
            page(StatusCode::FORBIDDEN, "Closed", None, body.into())
        }
    }
}

/// Who sees a page, where, and whether it is kept as it is now.
pub(super) struct Frame<'a> {
    pub(super) who: &'a Who,
    pub(super) place: &'a str,
    /// Of the view, by which its changes since are known.
    pub(super) fingerprint: Option<u64>,
}

/// A whole page; without a frame, for somebody who is not known.
pub(super) fn page(status: StatusCode, title: &str, framed: Option<Frame<'_>>, body: Html) -> Response {
    let head = el("head")
        .add(el("meta").attr("charset", "utf-8"))
        .add(el("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1"))
        .add(el("meta").attr("name", "color-scheme").attr("content", "light dark"))
        .add(el("title").text(format!("{title} - Turnwise")))
        .add(el("link").attr("rel", "stylesheet").attr("href", "/console/console.css"))
        .add(el("script").attr("src", "/console/console.js").flag("defer", true));
    let main = el("main").attr("id", "main").attr("tabindex", "-1");
    let main = match framed.as_ref().and_then(|framed| framed.fingerprint) {
        Some(fingerprint) => main.attr("data-seen", fingerprint),
        None => main,
    };
    let body = el("body")
        .add(link("#main", "To the content").class("skip"))
        .add(framed.map(|Frame { who, place, .. }| frame(who, place)))
        .add(el("p").attr("id", "news").attr("role", "status"))
        .add(main.add(body));
    let document = Html::from(el("html").attr("lang", "en").add(head).add(body)).into_document();
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::VARY, "accept, cookie"),
    ];
    (status, headers, document).into_response()
}

fn frame(who: &Who, place: &str) -> Element {
    let path = place.split('?').next().unwrap_or_default();
    let here = |to: &str| to == path || (to != "/console" && path.starts_with(&format!("{to}/")));
    let items = PLACES.iter().map(|(to, name)| {
        let item = link(to, name);
        el("li").add(if here(to) { item.attr("aria-current", "page") } else { item })
    });
    let nav = el("nav").attr("aria-label", "Console").add(el("ul").all(items));
    let leave = who
        .form_token
        .as_ref()
        .map(|_| form(who, "/console/logout").class("inline").add(el("button").class("quiet").text("Sign out")));
    let name = el("span").class("who").text(who.actor());
    let header = el("header").add(el("strong").class("brand").text("Turnwise")).add(nav).add(name).add(leave);
    match &who.form_token {
        Some(_) => header,
        None => header
            .add(el("p").class("note").text("Open without a token, to this machine only: this is `turnwise dev`.")),
    }
}

/// A form that this session may send.
pub(super) fn form(who: &Who, to: impl std::fmt::Display) -> Element {
    let form = el("form").attr("method", "post").attr("action", to);
    match &who.form_token {
        Some(token) => form.add(hidden(FORM_TOKEN, token)),
        None => form,
    }
}

pub(super) fn hidden(name: &'static str, value: impl std::fmt::Display) -> Element {
    el("input").attr("type", "hidden").attr("name", name).attr("value", value)
}

/// A labelled field of one line.
pub(super) fn field(id: &'static str, label: &'static str, value: &str) -> Html {
    let input = el("input").attr("id", id).attr("name", id).attr("value", value).attr("autocomplete", "off");
    labelled(id, label, input)
}

pub(super) fn labelled(id: &'static str, label: &'static str, control: Element) -> Html {
    el("div").class("field").add(el("label").attr("for", id).text(label)).add(control).into()
}

/// A labelled choice of words; the first is no choice.
pub(super) fn choice(id: &'static str, label: &'static str, none: &str, words: &[&str], chosen: Option<&str>) -> Html {
    let option = |word: &&str| el("option").attr("value", word).flag("selected", chosen == Some(*word)).text(word);
    let select = el("select").attr("id", id).attr("name", id).add(el("option").attr("value", "").text(none));
    labelled(id, label, select.all(words.iter().map(option)))
}

/// A table with a head, for those who hear it as well.
pub(super) fn table(caption: &str, head: &[&str], rows: Vec<Vec<Html>>) -> Element {
    let head = el("tr").all(head.iter().map(|name| el("th").attr("scope", "col").text(name)));
    let row = |cells: Vec<Html>| el("tr").all(cells.into_iter().map(|cell| el("td").add(cell)));
    let table = el("table").add(el("caption").text(caption)).add(el("thead").add(head));
    el("div")
        .class("scroll")
        .attr("tabindex", "0")
        .attr("role", "region")
        .attr("aria-label", caption)
        .add(table.add(el("tbody").all(rows.into_iter().map(row))))
}
