//! One turn: where its time went, what its model and tools were asked and answered, and what left because of it.
//!
//! Refuses to depend on traces: everything shown is kept with the turn. Invariant: spans are drawn from stored moments alone.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::asked::Asked;
use super::conversations::badge;
use super::html::{Element, Html, el, link};
use super::page::{self, View, table};
use super::session::Who;
use super::timeline::{shortened, span};
use super::why::{self, Why};
use super::{Console, Name, Trace, not_found};
use crate::ingress::{Problem, store_problem};
use crate::message::{DeliveryStatus, Timestamp};
use crate::store::{DeliveryRow, JournalEntry, LedgerRow, StoredMessage};

/// The longest text of a step's request or result that a page shows, in characters; JSON has all of it.
const STEP_CHARS: usize = 20_000;

#[derive(Debug, Serialize)]
struct TurnPage {
    turn: Option<LedgerRow>,
    /// `<channel>.<bot>.<peer>`.
    name: Option<String>,
    why: Option<Why>,
    /// Where the time went, in order.
    spans: Vec<Span>,
    messages: Vec<StoredMessage>,
    deliveries: Vec<DeliveryRow>,
    /// Of a turn that has ended.
    record: Option<Value>,
    /// Of one that has not.
    steps: Vec<JournalEntry>,
    trace: Option<Trace>,
    id: uuid::Uuid,
}

/// A part of a turn's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Span {
    name: String,
    /// For its colour: `queue`, `lane`, `responder`, `model`, `tool`, `commit`, `egress`.
    kind: &'static str,
    started_at: Timestamp,
    ended_at: Timestamp,
}

pub(super) async fn show(State(console): State<Arc<Console>>, name: Name, asked: Asked) -> Response {
    let id = match name.uuid() {
        Ok(id) => id,
        Err(problem) => return page::problem(asked.format, problem),
    };
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let console = Arc::clone(&shared);
        async move { console.turn(id).await }
    })
    .await
}

impl Console {
    async fn turn(&self, id: uuid::Uuid) -> Result<TurnPage, Problem> {
        let failed = |error| store_problem(&error);
        let turn = self.store.ledger_row(id).await.map_err(failed)?;
        let steps = match &turn {
            Some(_) => Vec::new(),
            None => self.store.journal(id).await.map_err(failed)?,
        };
        if turn.is_none() && steps.is_empty() {
            return Err(not_found("turn; one that has not ended is seen in its conversation"));
        }
        let deliveries = self.store.deliveries_of_turn(id).await.map_err(failed)?;
        let messages = self.store.messages_of_turns(&[id]).await.map_err(failed)?;
        let record = self.store.turn_record(id).await.map_err(failed)?;
        let has_reply = messages.iter().any(|message| message.role == crate::message::Role::Assistant);
        Ok(TurnPage {
            name: turn.as_ref().map(|turn| turn.key.to_string()),
            why: turn.as_ref().map(|turn| why::of_row(turn, &deliveries, has_reply)),
            spans: turn.as_ref().map(|turn| spans(turn, record.as_ref(), &deliveries)).unwrap_or_default(),
            trace: self.trace(turn.as_ref().and_then(|turn| turn.traceparent.as_deref())),
            turn,
            messages,
            deliveries,
            record,
            steps,
            id,
        })
    }
}

fn spans(turn: &LedgerRow, record: Option<&Value>, deliveries: &[DeliveryRow]) -> Vec<Span> {
    let before = |moment: Timestamp, micros: u64| {
        Timestamp::from_micros(moment.as_micros().saturating_sub(i64::try_from(micros).unwrap_or(i64::MAX)))
    };
    let after = |moment: Timestamp, micros: u64| {
        Timestamp::from_micros(moment.as_micros().saturating_add(i64::try_from(micros).unwrap_or(i64::MAX)))
    };
    let span = |name: &str, kind, started_at, ended_at| Span { name: name.to_owned(), kind, started_at, ended_at };
    let delivered_at = before(turn.started_at, turn.timings.lane_wait_us);
    let published_at = before(delivered_at, turn.timings.stream_wait_us);
    let responded_at = after(turn.started_at, turn.timings.responder_us).min(turn.committed_at);
    let mut spans = vec![
        span("in the queue", "queue", published_at, delivered_at),
        span("in its lane", "lane", delivered_at, turn.started_at),
        span("responder", "responder", turn.started_at, responded_at),
    ];
    let steps = record.and_then(|record| record["steps"].as_array()).into_iter().flatten();
    spans.extend(steps.filter_map(|step| {
        let moment = |name: &str| serde_json::from_value::<Timestamp>(step[name].clone()).ok();
        let (started_at, ended_at) = (moment("started_at")?, moment("ended_at")?);
        let kind = if step["kind"] == "model" { "model" } else { "tool" };
        Some(span(&format!("{kind}: {}", step["step"].as_str().unwrap_or_default()), kind, started_at, ended_at))
    }));
    spans.push(span("load and commit", "commit", responded_at, turn.committed_at));
    spans.extend(deliveries.iter().filter_map(|delivery| {
        let name = format!("delivery, part {} of {}", delivery.part + 1, delivery.parts);
        Some(span(&name, "egress", delivery.created_at, delivery.settled_at?))
    }));
    spans
}

impl View for TurnPage {
    fn title(&self) -> String {
        format!("Turn {}", self.id)
    }

    fn body(&self, _: &Who) -> Html {
        let conversation = self.turn.as_ref().map(|turn| {
            let place = turn.conversation_id.map_or_else(|| turn.key.to_string(), |id| id.to_string());
            el("p").add("In the conversation ").add(link(
                format!("/console/conversations/{place}#t-{}", turn.id),
                self.name.as_deref().unwrap_or_default(),
            ))
        });
        let why = self.why.as_ref().map(|why| {
            let state = self.turn.as_ref().map(|turn| turn.state.to_string()).unwrap_or_default();
            el("p").class("why").add(badge(why.verdict.as_str(), &state)).add(" ").add(why.why.as_str())
        });
        let running = self.turn.is_none().then(|| el("p").class("why").text("This turn has begun and has not ended."));
        Html::from(el("h1").text(self.title()))
            .then(conversation)
            .then(why)
            .then(running)
            .then(self.turn.as_ref().map(|turn| self.facts(turn)))
            .then((!self.spans.is_empty()).then(|| waterfall(&self.spans)))
            .then(self.said())
            .then(self.steps())
            .then((!self.deliveries.is_empty()).then(|| self.parts()))
    }
}

impl TurnPage {
    fn facts(&self, turn: &LedgerRow) -> Element {
        let fact = |name: &str, value: Html| el("div").add(el("dt").text(name)).add(el("dd").add(value));
        let trace = self.trace.as_ref().map(|trace| match &trace.url {
            Some(url) => fact("Trace", link(url, &trace.id).into()),
            None => fact("Trace", trace.id.as_str().into()),
        });
        let merged =
            turn.merged_into.map(|into| fact("Answered by", link(format!("/console/turns/{into}"), into).into()));
        el("dl")
            .class("facts")
            .add(fact("Attempts", turn.attempts.to_string().into()))
            .add(fact("Responder", turn.responder.as_deref().unwrap_or("none").into()))
            .add(fact("Stream sequence", turn.sequence.to_string().into()))
            .add(fact("Partition", turn.partition.to_string().into()))
            .add(fact("Message id", turn.dedupe_id.as_str().into()))
            .add(fact("Received", turn.received_at.to_string().into()))
            .add(merged)
            .add(trace)
    }

    fn said(&self) -> Option<Element> {
        let lines = self.messages.iter().map(|message| {
            let tool = message.tool.as_ref().map(|tool| el("pre").text(pretty(tool)));
            el("li")
                .add(el("p").class("head").add(el("span").class("from").text(message.role)))
                .add(el("blockquote").class(format!("said {}", message.author)).text(&message.content))
                .add(tool)
        });
        let is_any = !self.messages.is_empty();
        is_any.then(|| el("section").add(el("h2").text("What was said")).add(el("ol").class("timeline").all(lines)))
    }

    /// Of the record, or of the journal while the turn has not ended.
    fn steps(&self) -> Option<Element> {
        let journal = serde_json::to_value(&self.steps).unwrap_or_default();
        let recorded = self.record.as_ref().map_or(&journal, |record| &record["steps"]);
        let steps = recorded.as_array().filter(|steps| !steps.is_empty())?;
        let items = steps.iter().enumerate().map(|(place, step)| {
            let word = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
            let summary = el("summary").text(format!("{} {}: {}", word("kind"), word("step"), word("status")));
            let part = |name: &str, key: &str| {
                let value = step.get(key).filter(|value| !value.is_null())?;
                Some(el("div").add(el("h3").text(name)).add(el("pre").attr("tabindex", "0").text(pretty(value))))
            };
            el("details")
                .attr("id", format!("step-{place}"))
                .add(summary)
                .add(part("Asked", "request"))
                .add(part("Answered", "result"))
        });
        Some(el("section").attr("id", "steps").add(el("h2").text("Models and tools")).all(items))
    }

    fn parts(&self) -> Element {
        let rows = self.deliveries.iter().map(|delivery| {
            let took = delivery.settled_at.map(|at| span(at.micros_since(delivery.created_at) / 1_000));
            vec![
                format!("{} of {}", delivery.part + 1, delivery.parts).into(),
                badge(delivery_class(delivery.status), delivery.status.as_str()).into(),
                delivery.attempts.to_string().into(),
                took.unwrap_or_default().into(),
                delivery.error.as_deref().unwrap_or_default().into(),
                delivery.platform_message_id.as_deref().unwrap_or_default().into(),
            ]
        });
        table("Deliveries", &["Part", "Status", "Attempts", "Took", "Error", "Platform's id"], rows.collect())
    }
}

pub(super) const fn delivery_class(status: DeliveryStatus) -> &'static str {
    match status {
        DeliveryStatus::Sent => "answered",
        DeliveryStatus::Pending | DeliveryStatus::Sending => "waiting",
        DeliveryStatus::Failed | DeliveryStatus::Uncertain => "trouble",
    }
}

fn pretty(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        value => serde_json::to_string_pretty(value).unwrap_or_default(),
    };
    match text.char_indices().nth(STEP_CHARS) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text,
    }
}

/// The bars of the waterfall, in units of a thousandth of its width; the table beside it says the same in words.
fn waterfall(spans: &[Span]) -> Element {
    const WIDTH: u64 = 1_000;
    const ROW: usize = 22;
    let first = spans.iter().map(|span| span.started_at).min().unwrap_or(Timestamp::from_micros(0));
    let last = spans.iter().map(|span| span.ended_at).max().unwrap_or(first);
    let whole = last.micros_since(first).max(1);
    let place = |moment: Timestamp| moment.micros_since(first) * WIDTH / whole;
    let bars = spans.iter().enumerate().map(|(row, span)| {
        let (from, to) = (place(span.started_at), place(span.ended_at));
        el("rect")
            .class(format!("bar {}", span.kind))
            .attr("x", from)
            .attr("y", row * ROW + 3)
            .attr("width", to.saturating_sub(from).max(2))
            .attr("height", ROW - 6)
    });
    let height = spans.len() * ROW;
    let drawing = el("svg")
        .class("waterfall")
        .attr("viewBox", format!("0 0 {WIDTH} {height}"))
        .attr("height", height)
        .attr("preserveAspectRatio", "none")
        .attr("aria-hidden", "true")
        .all(bars);
    let names = spans.iter().map(|span| {
        let took = super::timeline::span(span.ended_at.micros_since(span.started_at) / 1_000);
        el("li")
            .add(el("span").class(format!("key {}", span.kind)))
            .add(shortened(&span.name))
            .add(" ")
            .add(el("b").text(took))
    });
    el("section")
        .attr("id", "waterfall")
        .add(el("h2").text("Where the time went"))
        .add(el("div").class("chart").add(el("ol").class("names").all(names)).add(drawing))
}
