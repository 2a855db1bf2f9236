//! Replay runs: what `turnwise replay` left in its folders, listed, and their reports as they are.
//!
//! Refuses to leave the configured folder, and to let a report do anything: it is served in a sandbox that runs no script and
//! loads nothing. Invariant: a run's name is one plain folder name.

use std::path::Path as FilePath;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;

use super::asked::{Asked, Format};
use super::conversations::badge;
use super::html::{Html, el, link};
use super::page::{self, View, table};
use super::session::Who;
use super::{Console, not_found};
use crate::ingress::Problem;

/// Runs of the list, the newest by name.
const LISTED: usize = 200;

/// A run's description is some hundred bytes; a report of ten thousand turns some megabytes.
const RUN_BYTES_MAX: u64 = 64 * 1024;
const REPORT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Nothing runs, nothing is loaded, and the page counts as nobody's.
const SANDBOX: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'";

#[derive(Debug, Serialize)]
struct ReplaysPage {
    /// Whether a folder is configured.
    is_configured: bool,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    name: String,
    /// What the run says of itself.
    run: Value,
    has_report: bool,
}

pub(super) async fn list(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let console = Arc::clone(&shared);
        async move {
            let Some(folder) = console.replays.clone() else {
                return Ok(ReplaysPage { is_configured: false, runs: Vec::new() });
            };
            let read = tokio::task::spawn_blocking(move || runs(&folder)).await;
            let unreadable = |_| Problem::new(503, "unavailable", "The folder of replay runs cannot be read.");
            Ok(ReplaysPage { is_configured: true, runs: read.map_err(unreadable)? })
        }
    })
    .await
}

/// Those that say what they are; the newest first, by name.
fn runs(folder: &FilePath) -> Vec<Run> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_plain(name)).collect();
    names.sort_unstable_by(|left, right| right.cmp(left));
    let run = |name: String| {
        let path = folder.join(&name);
        let text = bounded(&path.join("run.json"), RUN_BYTES_MAX)?;
        let run = serde_json::from_slice(&text).ok()?;
        Some(Run { has_report: path.join("report.html").is_file(), name, run })
    };
    names.into_iter().filter_map(run).take(LISTED).collect()
}

pub(super) async fn report(State(console): State<Arc<Console>>, Path(run): Path<String>, _asked: Asked) -> Response {
    let folder = console.replays.clone().filter(|_| is_plain(&run));
    let path = folder.map(|folder| folder.join(&run).join("report.html"));
    let read = tokio::task::spawn_blocking(move || bounded(&path?, REPORT_BYTES_MAX)).await;
    let Some(text) = read.ok().flatten() else { return page::problem(Format::Html, not_found("report")) };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, SANDBOX),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

fn is_plain(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_known)
}

/// A file that is not larger than it may be.
fn bounded(path: &FilePath, bytes_max: u64) -> Option<Vec<u8>> {
    let found = std::fs::metadata(path).ok().filter(|found| found.is_file() && found.len() <= bytes_max)?;
    std::fs::read(path).ok().filter(|read| read.len() as u64 <= found.len().max(bytes_max))
}

impl View for ReplaysPage {
    fn title(&self) -> String {
        "Replays".to_owned()
    }

    fn body(&self, _: &Who) -> Html {
        let words = match (self.is_configured, self.runs.is_empty()) {
            (false, _) => Some("No folder is configured: set console.replays to where replay runs are kept."),
            (true, true) => Some("There are no runs in the configured folder."),
            (true, false) => None,
        };
        let rows = self.runs.iter().map(|Run { name, run, has_report }| {
            let word = |key: &str| match &run[key] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            let report = match has_report {
                true => link(format!("/console/replays/{name}/report"), name).into(),
                false => name.as_str().into(),
            };
            let state = word("state");
            let class = if state == "finished" { "answered" } else { "waiting" };
            let mut cells: Vec<Html> = vec![report, badge(class, &state).into()];
            let keys =
                ["started", "finished", "responder", "bot", "conversation", "turns", "changed", "errors", "tokens"];
            cells.extend(keys.iter().map(|key| Html::from(word(key))));
            cells
        });
        let head = [
            "Run",
            "State",
            "Started",
            "Finished",
            "Responder",
            "Bot",
            "Conversation",
            "Turns",
            "Changed",
            "Errors",
            "Tokens",
        ];
        Html::from(el("h1").text("Replays"))
            .then(words.map(|words| el("p").attr("id", "nothing").text(words)))
            .then((!self.runs.is_empty()).then(|| table("Runs, newest first", &head, rows.collect())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_one_plain_folder() {
        for (name, expected) in [
            ("2026-11-21T09:00:00Z-gpt", true),
            ("run_1", true),
            ("..", false),
            (".hidden", false),
            ("a/b", false),
            ("a\\b", false),
            ("", false),
        ] {
            assert_eq!(is_plain(name), expected, "{name}");
        }
    }
}
