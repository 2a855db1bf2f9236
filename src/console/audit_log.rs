//! The audit log: who did what to what, why, and how it went.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use uuid::Uuid;

use super::Console;
use super::asked::Asked;
use super::html::{Html, el, link};
use super::page::{self, View, table};
use super::session::Who;
use crate::ingress::{Problem, store_problem};
use crate::message::Timestamp;
use crate::store::RecordedAction;

/// Rows of one page.
const LISTED: u32 = 100;

#[derive(Debug, Serialize)]
struct AuditPage {
    actions: Vec<RecordedAction>,
    /// For the page before this one in time.
    before: Option<String>,
}

pub(super) async fn show(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let before = match asked.parameter("before").map(read_place).transpose() {
        Ok(before) => before,
        Err(problem) => return page::problem(asked.format, problem),
    };
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let console = Arc::clone(&shared);
        async move {
            let actions = console.store.operator_actions(before, LISTED).await;
            let actions = actions.map_err(|error| store_problem(&error))?;
            let last = actions.last().filter(|_| actions.len() == LISTED as usize);
            let before = last.map(|last| format!("{}.{}", last.created_at.as_micros(), last.id));
            Ok(AuditPage { actions, before })
        }
    })
    .await
}

fn read_place(place: &str) -> Result<(Timestamp, Uuid), Problem> {
    let parts = place.split_once('.');
    let read = parts.and_then(|(at, id)| Some((Timestamp::from_micros(at.parse().ok()?), Uuid::parse_str(id).ok()?)));
    read.ok_or_else(|| Problem::field(400, "before", "is no place that this console gave out."))
}

impl View for AuditPage {
    fn title(&self) -> String {
        "Audit log".to_owned()
    }

    fn body(&self, _: &Who) -> Html {
        let rows = self.actions.iter().map(|action| {
            vec![
                action.created_at.to_string().into(),
                action.actor.as_deref().unwrap_or("unknown").into(),
                action.verb.as_str().into(),
                action.target.as_str().into(),
                action.reason.as_deref().unwrap_or_default().into(),
                action.result.as_deref().unwrap_or("not recorded").into(),
            ]
        });
        let nothing =
            self.actions.is_empty().then(|| el("p").attr("id", "nothing").text("Nobody has done anything yet."));
        let older = self.before.as_ref().map(|before| el("p").add(link(format!("?before={before}"), "Older")));
        let head = ["When", "Who", "What", "To what", "Why", "Result"];
        Html::from(el("h1").text("Audit log"))
            .then(nothing)
            .then((!self.actions.is_empty()).then(|| table("Newest first", &head, rows.collect())))
            .then(older)
    }
}
