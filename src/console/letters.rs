//! Dead letters: why there are any, what is in them, and another try or an end for everything that matches.
//!
//! Refuses to act on what nobody has counted: the first word shows what it comes to, the second does it. Invariant: the second
//! word does no more than was shown, for it names the place in the stream up to which was counted.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::asked::{Action, Asked, Format};
use super::conversations::badge;
use super::html::{Element, Html, el, link};
use super::jobs::{JobLine, jobs};
use super::page::{self, Frame, View, choice, field, form, hidden, table};
use super::session::{Role, Who};
use super::{Console, Name, Trace, done, not_found};
use crate::dead_letters::{DeadLetterError, DeadLetters, Detail, Group, List, Plan, Selection};
use crate::ingress::{Problem, store_problem};
use crate::message::{ConversationKey, Peer};
use crate::store::{JobVerb, OperatorVerb};
use crate::stream::LetterFilter;

/// Letters of one page, the newest.
const LISTED: usize = 100;

/// Conversations that a plan names.
const PLACES: usize = 20;

/// What an action says: which letters, why, and that it is meant.
const FIELDS: [&str; 6] = ["bot", "for_reason", "conversation", "reason", "confirmed", "until"];

/// Which letters are meant, in the words of a form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Which {
    bot: Option<String>,
    reason: Option<String>,
    /// A peer, or `<channel>.<bot>.<peer>`.
    conversation: Option<String>,
}

impl Which {
    /// `field` gives what a form or a query says; `for_reason` is the reason for which they were given up.
    fn of<'f>(field: impl Fn(&str) -> Option<&'f str>) -> Self {
        let own = |name| field(name).map(str::to_owned);
        Self { bot: own("bot"), reason: own("for_reason"), conversation: own("conversation") }
    }

    fn filter(&self) -> Result<LetterFilter, Problem> {
        let mut filter = LetterFilter { bot: self.bot.clone(), reason: self.reason.clone(), ..LetterFilter::default() };
        let Some(name) = &self.conversation else { return Ok(filter) };
        if let Ok(key) = name.parse::<ConversationKey>() {
            if filter.bot.as_deref().is_some_and(|bot| bot != &*key.bot) {
                return Err(Problem::field(422, "conversation", "is one of another bot than the one named."));
            }
            (filter.bot, filter.channel, filter.peer) = (Some(key.bot.to_string()), Some(key.channel), Some(key.peer));
        } else {
            let peer: Result<Peer, _> = name.parse();
            let detail = "must be a peer such as user-31, or CHANNEL.BOT.PEER.";
            filter.peer = Some(peer.map_err(|_| Problem::field(422, "conversation", detail))?);
        }
        Ok(filter)
    }

    /// For a job's row.
    fn words(&self) -> String {
        let part = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
        let parts = [part("bot", &self.bot), part("reason", &self.reason), part("conversation", &self.conversation)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
    }

    fn fields(&self) -> Html {
        let field = |name, value: &Option<String>| value.as_ref().map(|value| hidden(name, value));
        Html::from(field("bot", &self.bot))
            .then(field("for_reason", &self.reason))
            .then(field("conversation", &self.conversation))
    }
}

#[derive(Debug, Serialize)]
struct LettersPage {
    which: Which,
    groups: Arc<Vec<Group>>,
    jobs: Vec<JobLine>,
    #[serde(flatten)]
    list: Arc<List>,
    #[serde(skip)]
    bots: Vec<String>,
}

pub(super) async fn list(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let which = Which::of(|name| asked.parameter(name));
    let (shared, read) = (Arc::clone(&console), Arc::new(Mutex::new(None)));
    page::show(&console, asked, move || {
        let (console, which, read) = (Arc::clone(&shared), which.clone(), Arc::clone(&read));
        async move {
            let (groups, list) = console.letters(&which, &read).await?;
            let jobs = jobs(&console.store).await?;
            Ok(LettersPage { which, groups, jobs, list, bots: console.bots.clone() })
        }
    })
    .await
}

/// What was read of the stream, and how far it was then: its last sequence, and how many letters there were.
type Read = Mutex<Option<((u64, u64), (Arc<Vec<Group>>, Arc<List>))>>;

impl Console {
    /// All letters are read for it, so they are read again only when there are others.
    async fn letters(&self, which: &Which, read: &Read) -> Result<(Arc<Vec<Group>>, Arc<List>), Problem> {
        let letters = self.dead_letters(None);
        let filter = which.filter()?;
        let state = self.dead.info().await.map_err(|error| super::stream_problem(&error))?.state;
        let seen = (state.last_sequence, state.messages);
        let mut read = read.lock().await;
        if let Some((_, found)) = read.as_ref().filter(|(then, _)| *then == seen) {
            return Ok(found.clone());
        }
        let groups = letters.groups(&LetterFilter::default()).await.map_err(|error| problem(&error))?;
        let list = letters.list(&filter, LISTED).await.map_err(|error| problem(&error))?;
        let found = (Arc::new(groups), Arc::new(list));
        *read = Some((seen, found.clone()));
        Ok(found)
    }
}

#[derive(Debug, Serialize)]
struct LetterPage {
    #[serde(flatten)]
    detail: Detail,
    trace: Option<Trace>,
}

pub(super) async fn show(State(console): State<Arc<Console>>, name: Name, asked: Asked) -> Response {
    let shared = Arc::clone(&console);
    page::show(&console, asked, move || {
        let (console, id) = (Arc::clone(&shared), name.0.parse().ok());
        async move {
            let missing = || not_found("dead letter; one that was redriven or discarded is gone");
            let found = console.dead_letters(None).show(id.ok_or_else(missing)?).await;
            let detail = found.map_err(|error| problem(&error))?.ok_or_else(missing)?;
            Ok(LetterPage { trace: console.trace(detail.traceparent.as_deref()), detail })
        }
    })
    .await
}

pub(super) async fn redrive(State(console): State<Arc<Console>>, action: Action) -> Response {
    work(&console, JobVerb::Redrive, action).await
}

pub(super) async fn discard(State(console): State<Arc<Console>>, action: Action) -> Response {
    work(&console, JobVerb::Discard, action).await
}

async fn work(console: &Arc<Console>, verb: JobVerb, action: Action) -> Response {
    let which = Which::of(|name| action.field(name));
    let prepared = async {
        // A filter that is misspelt would mean every letter.
        action.only(&FIELDS)?;
        if verb == JobVerb::Discard {
            action.required("reason")?;
        }
        let counted = counted(&action)?;
        let selection = Selection::Matching(which.filter()?);
        let plan = console.dead_letters(None).plan(&selection, counted).await.map_err(|error| problem(&error))?;
        Ok((selection, plan, counted.is_some()))
    };
    let (selection, plan, is_confirmed) = match prepared.await {
        Ok(prepared) => prepared,
        Err(problem) => return page::problem(action.format, problem),
    };
    if !is_confirmed {
        return planned(verb, &which, &plan, &action);
    }
    let audited = match verb {
        JobVerb::Redrive => OperatorVerb::RedriveDeadLetters,
        JobVerb::Discard => OperatorVerb::DiscardDeadLetters,
    };
    let reason = action.field("reason").map(str::to_owned);
    let letters = console.dead_letters(Some(action.who.actor()));
    let begun = letters.begin(verb, which.words(), selection, plan, reason, console.closing.clone());
    let outcome = console
        .act(&action, audited, which.words(), async { begun.await.map(drop).map_err(|error| store_problem(&error)) })
        .await;
    done(&action, "/console/dead-letters", outcome)
}

/// Up to where was counted what is confirmed now; `None` while nothing is.
fn counted(action: &Action) -> Result<Option<u64>, Problem> {
    match action.field("confirmed") {
        None => Ok(None),
        Some("yes") => {
            let until = action.required("until")?.parse();
            until.map(Some).map_err(|_| Problem::field(422, "until", "must be the number that the count came with."))
        }
        Some(_) => Err(Problem::field(422, "confirmed", "must be yes.")),
    }
}

fn planned(verb: JobVerb, which: &Which, plan: &Plan, action: &Action) -> Response {
    if action.format == Format::Json {
        let next = "send the same again with this \"until\" and \"confirmed\": \"yes\"";
        // A string, as every field that is sent.
        let until = plan.until.to_string();
        return page::json(&json!({ "verb": verb, "which": which, "plan": plan, "until": until, "next": next }));
    }
    let body = confirmation(verb, which, plan, action);
    let frame = Frame { who: &action.who, place: "/console/dead-letters", fingerprint: None };
    page::page(StatusCode::OK, "Go on?", Some(frame), body)
}

fn confirmation(verb: JobVerb, which: &Which, plan: &Plan, action: &Action) -> Html {
    let what = match verb {
        JobVerb::Redrive => {
            "Redriving makes each of their messages a new one, the last of its conversation by then: the bot answers \
             it behind whatever was said since. Within a conversation they keep their order, and nothing is answered twice."
        }
        JobVerb::Discard => {
            "Discarding removes them for good. The ledger keeps that they were given up, and the audit log why they \
             were discarded. Nobody is told."
        }
    };
    let count =
        format!("{} dead letters of {} conversations ({})", plan.dead_letters, plan.conversations, which.words());
    let rows = plan.listed.iter().take(PLACES).map(|place| {
        let last = place.last_message_at.map(|at| at.to_string()).unwrap_or_default();
        vec![
            place.conversation.as_str().into(),
            place.dead_letters.to_string().into(),
            place.messages_before.to_string().into(),
            last.into(),
        ]
    });
    let head = ["Conversation", "Dead letters", "Messages before them", "The last of them"];
    let go_on = form(&action.who, format!("/console/dead-letters/{verb}"))
        .add(which.fields())
        .add(action.field("reason").map(|reason| hidden("reason", reason)))
        .add(hidden("until", plan.until))
        .add(hidden("confirmed", "yes"))
        .add(
            el("button")
                .attr("id", "confirm")
                .flag("disabled", plan.dead_letters == 0)
                .text(format!("Yes, {verb} {}", plan.dead_letters)),
        );
    Html::from(el("h1").text("Go on?"))
        .then(el("p").attr("id", "count").add(el("b").text(count)))
        .then(el("p").text(what))
        .then((!plan.listed.is_empty()).then(|| table("Where they come again", &head, rows.collect())))
        .then(el("div").class("deeds").add(go_on).add(link("/console/dead-letters", "No, go back")))
}

impl Console {
    pub(super) fn dead_letters(&self, actor: Option<String>) -> DeadLetters {
        DeadLetters {
            dead: self.dead.clone(),
            inbound: self.inbound.clone(),
            publisher: self.publisher.clone(),
            store: self.store.clone(),
            actor,
        }
    }
}

fn problem(error: &DeadLetterError) -> Problem {
    match error {
        DeadLetterError::Store(error) => store_problem(error),
        DeadLetterError::Stream(error) => super::stream_problem(error),
    }
}

impl View for LettersPage {
    const LOOK_AGAIN: Duration = Duration::from_secs(3);

    fn title(&self) -> String {
        "Dead letters".to_owned()
    }

    fn body(&self, who: &Who) -> Html {
        let groups = self.groups.iter().map(|group| {
            let query: String = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("bot", &group.bot)
                .append_pair("for_reason", &group.reason)
                .finish();
            vec![
                link(format!("/console/dead-letters?{query}"), &group.reason).into(),
                group.bot.as_str().into(),
                group.dead_letters.to_string().into(),
                group.oldest_at.to_string().into(),
                group.newest_at.to_string().into(),
            ]
        });
        let bots: Vec<&str> = self.bots.iter().map(String::as_str).collect();
        let filter = el("form")
            .attr("method", "get")
            .attr("action", "/console/dead-letters")
            .class("filter")
            .add(choice("bot", "Bot", "any", &bots, self.which.bot.as_deref()))
            .add(field("for_reason", "Given up for", self.which.reason.as_deref().unwrap_or_default()))
            .add(field("conversation", "Conversation", self.which.conversation.as_deref().unwrap_or_default()))
            .add(el("button").attr("id", "filter").text("Filter"));
        let matching = el("p").attr("id", "matching").text(format!("{} match.", self.list.matching));
        let rows = self.list.dead_letters.iter().rev().map(|letter| {
            vec![
                link(format!("/console/dead-letters/{}", letter.id), letter.id).into(),
                letter.time.to_string().into(),
                letter.bot.as_str().into(),
                letter.conversation.as_str().into(),
                letter.reason.as_str().into(),
                letter.attempts.to_string().into(),
            ]
        });
        let head = ["Id", "Given up at", "Bot", "Conversation", "Reason", "Attempts"];
        let may_act = who.role == Role::Operator && self.list.matching > 0;
        let reasons = ["Reason", "Bot", "Dead letters", "Oldest", "Newest"];
        Html::from(el("h1").text("Dead letters"))
            .then((!self.jobs.is_empty()).then(|| super::jobs::list(&self.jobs)))
            .then((!self.groups.is_empty()).then(|| table("By reason", &reasons, groups.collect())))
            .then(filter)
            .then(matching)
            .then(may_act.then(|| self.deeds(who)))
            .then((self.list.matching > 0).then(|| table("The newest of them", &head, rows.collect())))
    }
}

impl LettersPage {
    /// On everything that matches, not on one page of it.
    fn deeds(&self, who: &Who) -> Element {
        let redrive = form(who, "/console/dead-letters/redrive")
            .add(self.which.fields())
            .add(el("button").attr("id", "redrive").text("Redrive all that match"));
        let why = el("input").attr("id", "reason").attr("name", "reason").attr("maxlength", 255).flag("required", true);
        let discard = form(who, "/console/dead-letters/discard")
            .class("settle")
            .add(self.which.fields())
            .add(el("label").attr("for", "reason").text("Why discard them"))
            .add(why)
            .add(el("button").attr("id", "discard").text("Discard all that match"));
        el("div").class("deeds").attr("role", "group").attr("aria-label", "Actions").add(redrive).add(discard)
    }
}

impl View for LetterPage {
    fn title(&self) -> String {
        format!("Dead letter {}", self.detail.summary.id)
    }

    fn body(&self, _: &Who) -> Html {
        let Detail { summary, error, turn, redriven, payload, record, .. } = &self.detail;
        let fact = |name: &str, value: Html| el("div").add(el("dt").text(name)).add(el("dd").add(value));
        let conversation = format!("{}.{}.{}", summary.channel, summary.bot, summary.conversation);
        let facts = el("dl")
            .class("facts")
            .add(fact("Given up at", summary.time.to_string().into()))
            .add(fact("Reason", badge("trouble", &summary.reason).into()))
            .add(fact("Attempts", summary.attempts.to_string().into()))
            .add(fact("Conversation", link(format!("/console/conversations/{conversation}"), &conversation).into()))
            .add(turn.as_ref().map(|turn| fact("Turn", link(format!("/console/turns/{}", turn.id), turn.id).into())))
            .add(redriven.as_ref().map(|again| {
                fact("Redriven as", link(format!("/console/turns/{}", again.turn_id), again.state).into())
            }))
            .add(self.trace.as_ref().map(|trace| {
                let words = trace.id.as_str();
                fact("Trace", trace.url.as_ref().map_or_else(|| words.into(), |url| link(url, words).into()))
            }));
        let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap_or_default();
        let part = |name: &str, text: String| {
            el("section").add(el("h2").text(name)).add(el("pre").attr("tabindex", "0").text(text))
        };
        Html::from(el("h1").text(self.title()))
            .then(facts)
            .then(part("Last error", error.clone()))
            .then(part("Message", payload.as_ref().map_or_else(|| "It lies on no stream any more.".to_owned(), pretty)))
            .then(record.as_ref().map(|record| part("What its steps asked and answered", pretty(record))))
    }
}
