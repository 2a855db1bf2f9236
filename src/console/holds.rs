//! What is paused, and pausing and resuming bots and partitions.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;

use super::asked::{Action, Asked};
use super::html::{Element, Html, el, link};
use super::page::{self, View, field, form, hidden, labelled, table};
use super::session::{Role, Who};
use super::{Console, done, not_found};
use crate::holds;
use crate::ingress::{Problem, store_problem};
use crate::message::Timestamp;
use crate::store::{Hold, HoldScope, OperatorVerb};

/// Holds of one page, those of bots and partitions first.
const LISTED: usize = 1_000;

#[derive(Debug, Serialize)]
struct HoldsPage {
    /// How many there are, listed or not.
    total: usize,
    holds: Vec<Hold>,
}

pub(super) async fn list(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let console = Arc::clone(&shared);
        async move {
            let mut holds = console.store.holds().await.map_err(|error| store_problem(&error))?;
            let total = holds.len();
            holds.truncate(LISTED);
            Ok(HoldsPage { total, holds })
        }
    })
    .await
}

pub(super) async fn act(State(console): State<Arc<Console>>, Path(deed): Path<String>, action: Action) -> Response {
    let perform = async {
        let scope = action.required("scope")?.parse();
        let scope = scope.map_err(|_| Problem::field(422, "scope", "must be conversation, bot or partition."))?;
        console.hold(&action, &deed, scope, action.required("target")?).await
    };
    let outcome = perform.await;
    done(&action, "/console/holds", outcome)
}

impl Console {
    /// Pauses or resumes.
    pub(super) async fn hold(
        &self,
        action: &Action,
        deed: &str,
        scope: HoldScope,
        target: &str,
    ) -> Result<(), Problem> {
        let target = holds::target(scope, target, &self.bots, self.publisher.partitions());
        let target = target.map_err(|error| Problem::field(422, "target", error.to_string()))?;
        let name = format!("{scope} {target}");
        let connection = &self.inbound.connection;
        match deed {
            "pause" => {
                let hold = Hold {
                    scope,
                    target,
                    actor: Some(action.who.actor()),
                    reason: action.field("reason").map(str::to_owned),
                    created_at: Timestamp::now(),
                };
                let paused =
                    async { holds::pause(&self.store, connection, &hold).await.map_err(|error| store_problem(&error)) };
                self.act(action, OperatorVerb::PauseTurns, name, paused).await
            }
            "resume" => {
                let resumed = async {
                    match holds::resume(&self.store, connection, scope, &target).await {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(Problem::new(409, "not-paused", "It is not paused.")),
                        Err(error) => Err(store_problem(&error)),
                    }
                };
                self.act(action, OperatorVerb::ResumeTurns, name, resumed).await
            }
            _ => Err(not_found("action")),
        }
    }
}

impl View for HoldsPage {
    fn title(&self) -> String {
        "Holds".to_owned()
    }

    fn body(&self, who: &Who) -> Html {
        let may_act = who.role == Role::Operator;
        let rows = self.holds.iter().map(|hold| {
            let name = match hold.scope {
                HoldScope::Conversation => link(format!("/console/conversations/{}", hold.target), &hold.target).into(),
                HoldScope::Bot | HoldScope::Partition => hold.target.as_str().into(),
            };
            let resume = may_act.then(|| {
                form(who, "/console/holds/resume")
                    .class("inline")
                    .add(hidden("scope", hold.scope))
                    .add(hidden("target", &hold.target))
                    .add(el("button").attr("id", format!("resume-{}-{}", hold.scope, hold.target)).text("Resume"))
            });
            vec![
                hold.scope.as_str().into(),
                name,
                hold.actor.as_deref().unwrap_or_default().into(),
                hold.reason.as_deref().unwrap_or_default().into(),
                hold.created_at.to_string().into(),
                resume.into(),
            ]
        });
        let head = ["What", "Name", "By", "Why", "Since", ""];
        let nothing = self.holds.is_empty().then(|| el("p").attr("id", "nothing").text("Nothing is paused."));
        let more = (self.total > self.holds.len())
            .then(|| el("p").attr("id", "more").text(format!("{} of {} are shown.", self.holds.len(), self.total)));
        let words = "While something is paused, its turns that run end and none begins. Messages are taken as ever and wait in \
             the stream; nothing is lost, and the others go on. Resumed, they are answered in their order.";
        Html::from(el("h1").text("Holds"))
            .then(el("p").text(words))
            .then(nothing)
            .then(more)
            .then((!self.holds.is_empty()).then(|| table("Paused", &head, rows.collect())))
            .then(may_act.then(|| pausing(who)))
    }
}

fn pausing(who: &Who) -> Element {
    let option = |scope: &HoldScope| el("option").attr("value", scope).text(scope);
    let scopes = [HoldScope::Bot, HoldScope::Partition, HoldScope::Conversation];
    let scope = el("select").attr("id", "scope").attr("name", "scope").all(scopes.iter().map(option));
    form(who, "/console/holds/pause")
        .class("filter")
        .add(labelled("scope", "What", scope))
        .add(field("target", "Name, number, or CHANNEL.BOT.PEER", ""))
        .add(field("reason", "Why", ""))
        .add(el("button").attr("id", "pause").text("Pause"))
}
