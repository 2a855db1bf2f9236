//! One conversation: its timeline, and what a person may do about it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;
use uuid::Uuid;

use super::asked::{Action, Asked};
use super::html::{Element, Html, el, link};
use super::page::{self, View, form, labelled};
use super::session::{Role, Who};
use super::timeline::{Entry, Reply, Timeline, hold_of, read_place, span};
use super::{Console, Name, done, not_found};
use crate::ingress::{Problem, store_problem};
use crate::message::{Author, ConversationKey, ConversationStatus, Peer, Timestamp};
use crate::store::{Conversation, ConversationPatch, Hold, HoldScope, OperatorVerb};

/// A conversation, by its id, or by `<channel>.<bot>.<peer>` whether or not there is one.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: ConversationKey,
    pub(super) conversation: Option<Conversation>,
}

#[derive(Debug, Serialize)]
struct ConversationPage {
    /// `<channel>.<bot>.<peer>`.
    name: String,
    partition: u16,
    conversation: Option<Conversation>,
    unreachable: Option<String>,
    hold: Option<Hold>,
    #[serde(flatten)]
    timeline: Timeline,
}

pub(super) async fn show(State(console): State<Arc<Console>>, name: Name, asked: Asked) -> Response {
    let before = match asked.parameter("before").map(read_place).transpose() {
        Ok(before) => before,
        Err(problem) => return page::problem(asked.format, problem),
    };
    let (shared, name) = (Arc::clone(&console), Arc::new(name.0));
    let load = move || {
        let (console, name) = (Arc::clone(&shared), Arc::clone(&name));
        async move {
            let Found { key, conversation } = console.conversation(&name).await?;
            let timeline = console.timeline(&key, conversation.as_ref(), before).await?;
            let partition = console.publisher.partition(&key);
            let unreachable = conversation.as_ref().and_then(|conversation| conversation.chat.unreachable.clone());
            let hold = console.held_by(&key).await?;
            Ok(ConversationPage { name: key.to_string(), partition, conversation, unreachable, hold, timeline })
        }
    };
    page::show(&console, asked, load).await
}

impl Console {
    pub(super) async fn conversation(&self, name: &str) -> Result<Found, Problem> {
        let failed = |error| store_problem(&error);
        if let Ok(id) = Uuid::parse_str(name) {
            let conversation = self.store.conversation(id).await.map_err(failed)?;
            let conversation = conversation.ok_or_else(|| not_found("conversation"))?;
            return Ok(Found { key: conversation.key.clone(), conversation: Some(conversation) });
        }
        let key: ConversationKey = name.parse().map_err(|_| not_found("conversation"))?;
        let row = self.store.load_turn(&key, "").await.map_err(failed)?;
        if row.conversation.is_none() && matches!(key.peer, Peer::Conversation(_)) {
            return Err(not_found("conversation"));
        }
        Ok(Found { key, conversation: row.conversation })
    }

    /// The hold that keeps this conversation's turns from beginning.
    async fn held_by(&self, key: &ConversationKey) -> Result<Option<Hold>, Problem> {
        let holds = self.store.holds().await.map_err(|error| store_problem(&error))?;
        Ok(hold_of(&holds, key, self.publisher.partition(key)).cloned())
    }

    /// An agent's reply is a turn like others: it would wait with them, while the person who wrote it thinks that it left.
    async fn refuse_while_held(&self, key: &ConversationKey) -> Result<(), Problem> {
        self.held_by(key).await?.map_or(Ok(()), |hold| {
            let detail = format!("The {} is paused, and no reply would leave. Resume it first.", hold.scope);
            Err(Problem::new(409, "paused", detail))
        })
    }
}

pub(super) async fn act(
    State(console): State<Arc<Console>>,
    Path((name, deed)): Path<(String, String)>,
    action: Action,
) -> Response {
    let outcome = perform(&console, &name, &deed, &action).await;
    done(&action, &format!("/console/conversations/{name}#latest"), outcome)
}

async fn perform(console: &Console, name: &str, deed: &str, action: &Action) -> Result<(), Problem> {
    let Found { key, conversation } = console.conversation(name).await?;
    match deed {
        "pause" | "resume" => return console.hold(action, deed, HoldScope::Conversation, &key.to_string()).await,
        _ => {}
    }
    let conversation = conversation.ok_or_else(|| not_found("conversation"))?;
    let target = conversation.id.to_string();
    let (verb, status, assignee) = match deed {
        "take-over" => (OperatorVerb::TakeOverConversation, ConversationStatus::Human, Some(action.who.assignee())),
        "hand-back" => (OperatorVerb::HandBackConversation, ConversationStatus::Bot, None),
        "close" => (OperatorVerb::CloseConversation, ConversationStatus::Closed, None),
        "reply" => {
            let content = action.required("content")?;
            let said = async {
                console.refuse_while_held(&key).await?;
                console.ingress.say_as_agent(&conversation, content).await
            };
            return console.act(action, OperatorVerb::ReplyInConversation, target, said).await.map(drop);
        }
        _ => return Err(not_found("action")),
    };
    let patch = ConversationPatch { status: Some(status), assignee: Some(assignee), ..ConversationPatch::default() };
    console
        .act(action, verb, target, async {
            let patched = console.store.patch_conversation(conversation.id, &patch, Timestamp::now()).await;
            patched.map_err(|error| store_problem(&error))?.map(drop).ok_or_else(|| not_found("conversation"))
        })
        .await
}

impl View for ConversationPage {
    fn title(&self) -> String {
        self.name.clone()
    }

    fn body(&self, who: &Who) -> Html {
        let entries = self.timeline.entries.iter().map(entry);
        let older = self
            .timeline
            .before
            .as_ref()
            .map(|before| el("p").add(link(format!("?before={before}"), "Older messages")));
        let empty = self.timeline.entries.is_empty().then(|| el("p").text("Nothing of this conversation is known."));
        Html::from(el("h1").text(&self.name))
            .then(self.facts())
            .then((who.role == Role::Operator).then(|| self.deeds(who)))
            .then(older)
            .then(empty)
            .then(el("ol").class("timeline").all(entries))
            .then(el("p").attr("id", "latest"))
            .then((who.role == Role::Operator).then(|| self.reply(who)).flatten())
    }
}

impl ConversationPage {
    fn facts(&self) -> Element {
        let fact = |name: &str, value: Html| el("div").add(el("dt").text(name)).add(el("dd").add(value));
        let list = el("dl").class("facts");
        let list = match &self.conversation {
            Some(conversation) => {
                let assignee = conversation.assignee.as_deref().map(|name| format!(" - {name}")).unwrap_or_default();
                let status = format!("{}{assignee}", status_words(conversation.status));
                list.add(fact("Who answers", badge(conversation.status.as_str(), &status).into()))
                    .add(fact("Messages", conversation.message_count.to_string().into()))
                    .add(fact("Conversation", conversation.id.to_string().into()))
            }
            None => list.add(fact("Conversation", "none is open; below are messages that opened none".into())),
        };
        let list = list.add(fact("Partition", link("/console/holds", self.partition).into()));
        let list = match &self.unreachable {
            Some(reason) => list.add(fact("Unreachable", badge("trouble", reason).into())),
            None => list,
        };
        match &self.hold {
            Some(hold) => {
                let by = hold.actor.as_deref().unwrap_or("somebody");
                let words = format!("{} paused by {by} since {}", hold.scope.as_str(), hold.created_at);
                list.add(fact("Paused", badge("waiting", &words).into()))
            }
            None => list,
        }
    }

    fn deeds(&self, who: &Who) -> Element {
        let deed = |deed: &str, words: &str| {
            let name = self.conversation.as_ref().map_or_else(|| self.name.clone(), |found| found.id.to_string());
            form(who, format!("/console/conversations/{name}/{deed}"))
                .class("inline")
                .add(el("button").attr("id", format!("deed-{deed}")).text(words))
        };
        let status = self.conversation.as_ref().map(|conversation| conversation.status);
        let is_held = self.hold.as_ref().is_some_and(|hold| hold.scope == HoldScope::Conversation);
        let row = el("div").class("deeds").attr("role", "group").attr("aria-label", "Actions");
        let row = match status {
            Some(ConversationStatus::Bot) => row.add(deed("take-over", "Take over")).add(deed("close", "Close")),
            Some(ConversationStatus::Human) => {
                row.add(deed("hand-back", "Hand back to the bot")).add(deed("close", "Close"))
            }
            Some(ConversationStatus::Closed) | None => row,
        };
        if is_held { row.add(deed("resume", "Resume")) } else { row.add(deed("pause", "Pause")) }
    }

    fn reply(&self, who: &Who) -> Option<Element> {
        let conversation = self.conversation.as_ref().filter(|found| found.status != ConversationStatus::Closed)?;
        if let Some(hold) = &self.hold {
            let words = format!("The {} is paused: no reply would leave. Resume it first.", hold.scope);
            return Some(el("p").class("note").attr("id", "no-reply").text(words));
        }
        let text = el("textarea").attr("id", "content").attr("name", "content").attr("rows", 3).flag("required", true);
        let form = form(who, format!("/console/conversations/{}/reply", conversation.id)).class("reply");
        Some(
            form.add(labelled("content", "Reply to the person", text))
                .add(el("button").attr("id", "send-reply").text("Send")),
        )
    }
}

pub(super) const fn status_words(status: ConversationStatus) -> &'static str {
    match status {
        ConversationStatus::Bot => "the bot",
        ConversationStatus::Human => "a person",
        ConversationStatus::Closed => "nobody: closed",
    }
}

pub(super) fn badge(class: &str, words: &str) -> Element {
    el("span").class(format!("badge {class}")).text(words)
}

fn entry(entry: &Entry) -> Element {
    let time = el("time").attr("datetime", entry.at).text(entry.at);
    let head = el("p").class("head").add(time).add(el("span").class("from").text(entry.from));
    let head = match &entry.platform_message_id {
        Some(id) => head.add(el("span").class("number").attr("id", format!("m-{id}")).text(format!("message {id}"))),
        None => head,
    };
    let verdict = entry.why.verdict.as_str();
    let head = head.add(badge(verdict, &entry.state)).add(link(format!("/console/turns/{}", entry.turn_id), "turn"));
    let notes = entry.notes.iter().map(|note| el("li").text(note));
    let said = entry.text.as_ref().map(|text| el("blockquote").class(format!("said {}", entry.from)).text(text));
    let merged =
        entry.merged_into.map(|turn| el("p").add(link(format!("/console/turns/{turn}"), "The turn that answers it")));
    el("li")
        .class(format!("entry {verdict}"))
        .attr("id", format!("t-{}", entry.turn_id))
        .add(head)
        .add(said)
        .add(el("p").class("why").text(&entry.why.why))
        .add(merged)
        .add((!entry.notes.is_empty()).then(|| el("ul").class("notes").all(notes)))
        .all(entry.replies.iter().map(reply))
        .add(details(entry))
}

fn reply(reply: &Reply) -> Element {
    let by = match reply.author {
        Author::Agent => "agent",
        Author::Bot | Author::User | Author::Import => "bot",
    };
    let parts = reply.deliveries.iter().map(|delivery| {
        let part = if delivery.parts > 1 {
            format!("part {} of {}: ", delivery.part + 1, delivery.parts)
        } else {
            String::new()
        };
        let error = delivery.error.as_deref().map(|error| format!(", {error}")).unwrap_or_default();
        let attempts = match delivery.attempts {
            0 | 1 => String::new(),
            attempts => format!(" after {attempts} attempts"),
        };
        let words = format!("{part}{}{attempts}{error}", delivery.status);
        el("li").class(delivery.status.as_str()).text(words)
    });
    el("div").class(format!("reply-of {by}")).add(el("blockquote").class(format!("said {by}")).text(&reply.text)).add(
        (!reply.deliveries.is_empty()).then(|| el("ul").class("parts").attr("aria-label", "Deliveries").all(parts)),
    )
}

fn details(entry: &Entry) -> Element {
    let waits = entry.waits.map(|waits| {
        let words = format!(
            "queue {}, lane {}, responder {}, in all {}",
            span(waits.queue_ms),
            span(waits.lane_ms),
            span(waits.responder_ms),
            span(waits.total_ms)
        );
        el("li").text(words)
    });
    let trace = entry.trace.as_ref().map(|trace| match &trace.url {
        Some(url) => el("li").add("trace ").add(link(url, &trace.id)),
        None => el("li").text(format!("trace {}", trace.id)),
    });
    let place = format!("{} attempts, stream sequence {}, id {}", entry.attempts, entry.sequence, entry.dedupe_id);
    let list = el("ul").add(waits).add(el("li").text(place)).add(trace);
    el("details").attr("id", format!("d-{}", entry.turn_id)).add(el("summary").text("Details")).add(list)
}
