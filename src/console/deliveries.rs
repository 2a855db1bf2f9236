//! Deliveries that have not simply arrived, oldest first, and a person's word about those that nobody can tell of.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use uuid::Uuid;

use super::asked::{Action, Asked};
use super::conversations::badge;
use super::html::{Html, el, link};
use super::page::{self, View, choice, form, table};
use super::session::{Role, Who};
use super::timeline::{shortened, span};
use super::turns::delivery_class;
use super::{Console, done, not_found};
use crate::ingress::{MaySettle, Outcome, Problem, store_problem};
use crate::message::{DeliveryStatus, Timestamp};
use crate::store::AddressedDelivery;

/// Deliveries of one page.
const LISTED: u32 = 200;

/// What there is to look at, that which waits for a person first.
const TROUBLED: [DeliveryStatus; 4] =
    [DeliveryStatus::Uncertain, DeliveryStatus::Failed, DeliveryStatus::Pending, DeliveryStatus::Sending];

#[derive(Debug, Serialize)]
struct DeliveriesPage {
    status: DeliveryStatus,
    totals: Vec<Total>,
    deliveries: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Total {
    bot: String,
    status: DeliveryStatus,
    count: i64,
    oldest_at: Timestamp,
}

#[derive(Debug, Serialize)]
struct Line {
    id: Uuid,
    /// `<channel>.<bot>.<peer>`.
    name: String,
    conversation_id: Option<Uuid>,
    turn_id: Uuid,
    part: u16,
    parts: u16,
    content: String,
    status: DeliveryStatus,
    attempts: u32,
    error: Option<String>,
    created_at: Timestamp,
}

impl From<AddressedDelivery> for Line {
    fn from(AddressedDelivery { key, conversation_id, delivery }: AddressedDelivery) -> Self {
        Self {
            id: delivery.id,
            name: key.to_string(),
            conversation_id,
            turn_id: delivery.turn_id,
            part: delivery.part,
            parts: delivery.parts,
            content: shortened(&delivery.content),
            status: delivery.status,
            attempts: delivery.attempts,
            error: delivery.error,
            created_at: delivery.created_at,
        }
    }
}

pub(super) async fn list(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let status = match asked.word("status") {
        Ok(status) => status.unwrap_or(DeliveryStatus::Uncertain),
        Err(problem) => return page::problem(asked.format, problem),
    };
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let console = Arc::clone(&shared);
        async move {
            let failed = |error| store_problem(&error);
            let found = console.store.deliveries_in(status, LISTED).await.map_err(failed)?;
            let totals = console.store.delivery_totals(None).await.map_err(failed)?;
            let total = |total: crate::store::DeliveryTotal| Total {
                bot: total.bot,
                status: total.status,
                count: total.count,
                oldest_at: total.oldest_at,
            };
            let totals = totals.into_iter().map(total).collect();
            Ok(DeliveriesPage { status, totals, deliveries: found.into_iter().map(Line::from).collect() })
        }
    })
    .await
}

pub(super) async fn settle(State(console): State<Arc<Console>>, Path(id): Path<String>, action: Action) -> Response {
    let outcome = perform(&console, &id, &action).await;
    done(&action, "/console/deliveries", outcome)
}

async fn perform(console: &Console, id: &str, action: &Action) -> Result<(), Problem> {
    let id = Uuid::parse_str(id).map_err(|_| Problem::field(400, "id", "is not a UUID."))?;
    let outcome = Outcome::read(action.required("outcome")?);
    let outcome =
        outcome.ok_or_else(|| Problem::field(422, "outcome", "must be \"sent\", \"resend\" or \"failed\"."))?;
    let found = console.store.delivery(id).await.map_err(|error| store_problem(&error))?;
    let found = found.ok_or_else(|| not_found("delivery"))?;
    let may_settle = MaySettle::of(found.delivery.status, outcome)?;
    console.act(action, outcome.verb(), id.to_string(), console.ingress.settle(id, outcome, may_settle)).await
}

impl View for DeliveriesPage {
    fn title(&self) -> String {
        format!("Deliveries: {}", self.status)
    }

    fn body(&self, who: &Who) -> Html {
        let now = Timestamp::now();
        let age = |moment: Timestamp| span(now.micros_since(moment) / 1_000_000 * 1_000);
        let totals = self.totals.iter().map(|total| {
            vec![
                total.bot.as_str().into(),
                badge(delivery_class(total.status), total.status.as_str()).into(),
                total.count.to_string().into(),
                age(total.oldest_at).into(),
            ]
        });
        let words: Vec<&str> = TROUBLED.iter().map(|status| status.as_str()).collect();
        let filter = el("form")
            .attr("method", "get")
            .class("filter")
            .add(choice("status", "Status", "uncertain", &words, Some(self.status.as_str())))
            .add(el("button").text("Show"));
        let may_settle = self.status == DeliveryStatus::Uncertain && who.role == Role::Operator;
        let rows = self.deliveries.iter().map(|line| {
            let conversation = line.conversation_id.map_or_else(|| line.name.clone(), |id| id.to_string());
            let mut cells: Vec<Html> = vec![
                age(line.created_at).into(),
                link(format!("/console/conversations/{conversation}#t-{}", line.turn_id), &line.name).into(),
                link(format!("/console/turns/{}", line.turn_id), format!("{} of {}", line.part + 1, line.parts)).into(),
                line.content.as_str().into(),
                line.attempts.to_string().into(),
                line.error.as_deref().unwrap_or_default().into(),
            ];
            if may_settle {
                cells.push(settling(who, line));
            }
            cells
        });
        let mut head = vec!["Age", "Conversation", "Part", "Text", "Attempts", "Error"];
        if may_settle {
            head.push("What became of it?");
        }
        let nothing = self.deliveries.is_empty().then(|| el("p").attr("id", "nothing").text("None."));
        let list = (!self.deliveries.is_empty()).then(|| table("Deliveries, oldest first", &head, rows.collect()));
        let totals = (!self.totals.is_empty())
            .then(|| table("How many are not sent", &["Bot", "Status", "Deliveries", "Oldest"], totals.collect()));
        Html::from(el("h1").text("Deliveries")).then(totals).then(filter).then(nothing).then(list)
    }
}

fn settling(who: &Who, line: &Line) -> Html {
    let button = |outcome: &str, words: &str| {
        el("button")
            .attr("name", "outcome")
            .attr("value", outcome)
            .attr("id", format!("{outcome}-{}", line.id))
            .text(words)
    };
    let id = format!("reason-{}", line.id);
    form(who, format!("/console/deliveries/{}/settle", line.id))
        .class("settle")
        .add(el("label").attr("for", &id).text("Why"))
        .add(el("input").attr("id", &id).attr("name", "reason").attr("maxlength", 255).flag("required", true))
        .add(button("sent", "It arrived"))
        .add(button("failed", "It did not arrive"))
        .add(button("resend", "Send again"))
        .into()
}
