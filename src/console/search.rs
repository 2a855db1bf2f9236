//! Looking for conversations and messages: by what a platform calls them, by status, by assignee.
//!
//! Refuses to look for words: what people wrote has no index; and to look through the stream again and again for a page that is
//! left open. Invariant: an answer says how far it looked where it did not look everywhere.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use uuid::Uuid;

use super::asked::{Asked, Format};
use super::conversations::{badge, status_words};
use super::html::{Html, el, link};
use super::page::{self, View, choice, field, table};
use super::session::Who;
use super::timeline::Streamed;
use super::why::{self, Verdict, Why};
use super::{Console, stream_problem};
use crate::ingress::{Problem, store_problem};
use crate::message::{ConversationKey, ConversationStatus, Peer, Timestamp, escape};
use crate::store::{Conversation, ConversationSearch};
use crate::stream::{Lane, PageOf};

/// Conversations and messages of one page.
const FOUND: u32 = 100;

/// Messages of the stream that are looked through for one that has no place in any history: half a minute of the busiest
/// deployment, an hour of a usual one, in about a second.
const LOOKED_THROUGH: u64 = 20_000;

/// The same when the chat is named, of which alone the messages are read then.
const LOOKED_THROUGH_OF_CHAT: usize = 5_000;

/// Messages read at once.
const AT_ONCE: usize = 1_000;

/// What somebody looks for.
#[derive(Debug, Clone, Default)]
struct Question {
    text: Option<String>,
    status: Option<ConversationStatus>,
    assignee: Option<String>,
    bot: Option<String>,
}

/// What the text of a question names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    /// A conversation's or a turn's.
    Id(Uuid),
    Key(ConversationKey),
    /// What a platform calls a chat, a person or a message.
    One(String),
    /// A message of a chat.
    MessageOf {
        chat: String,
        message: String,
    },
}

impl Named {
    fn read(text: &str) -> Self {
        if let Ok(id) = Uuid::parse_str(text) {
            return Self::Id(id);
        }
        if let Ok(key) = text.parse() {
            return Self::Key(key);
        }
        let words: Vec<&str> = text.split([' ', '/', ',']).filter(|word| !word.is_empty()).collect();
        match words[..] {
            [chat, message] => {
                Self::MessageOf { chat: chat.to_owned(), message: message.trim_start_matches('#').to_owned() }
            }
            _ => Self::One(text.trim_start_matches('#').to_owned()),
        }
    }
}

/// The peers that a platform's id of a chat can stand for, as subjects have them.
fn peers(id: &str) -> Vec<String> {
    match id.parse::<Peer>() {
        Ok(peer) => vec![peer.to_string()],
        Err(_) => vec![format!("user-{}", escape(id)), format!("group-{}", escape(id))],
    }
}

#[derive(Debug, Default, Serialize)]
struct SearchPage {
    query: Option<String>,
    status: Option<ConversationStatus>,
    assignee: Option<String>,
    bot: Option<String>,
    conversations: Vec<Line>,
    messages: Vec<Hit>,
    /// How far it was looked, where not everywhere.
    note: Option<String>,
    #[serde(skip)]
    bots: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    id: Uuid,
    name: String,
    status: ConversationStatus,
    assignee: Option<String>,
    snippet: Option<String>,
    message_count: i64,
    updated_at: Timestamp,
}

/// A message that was looked for.
#[derive(Debug, Serialize)]
struct Hit {
    name: String,
    turn_id: Uuid,
    platform_message_id: String,
    at: Timestamp,
    state: String,
    #[serde(flatten)]
    why: Why,
    /// Where it can be looked at.
    place: String,
}

pub(super) async fn show(State(console): State<Arc<Console>>, asked: Asked) -> Response {
    let question = match question(&asked) {
        Ok(question) => question,
        Err(problem) => return page::problem(asked.format, problem),
    };
    let (shared, reads_stream) = (Arc::clone(&console), asked.format != Format::Events);
    page::show(&console, asked, move || {
        let (console, question) = (Arc::clone(&shared), question.clone());
        async move { console.search(question, reads_stream).await }
    })
    .await
}

fn question(asked: &Asked) -> Result<Question, Problem> {
    let own = |name| asked.parameter(name).map(str::to_owned);
    Ok(Question { text: own("q"), status: asked.word("status")?, assignee: own("assignee"), bot: own("bot") })
}

impl Console {
    async fn search(&self, question: Question, reads_stream: bool) -> Result<SearchPage, Problem> {
        let search = ConversationSearch {
            status: question.status,
            assignee: question.assignee.clone(),
            bot: question.bot.clone(),
            limit: FOUND,
            ..ConversationSearch::default()
        };
        let mut page = SearchPage { bots: self.bots.clone(), ..SearchPage::default() };
        match question.text.as_deref().map(Named::read) {
            None => page.list(self.find(search).await?),
            Some(Named::Id(id)) => self.by_id(id, &mut page).await?,
            Some(Named::Key(key)) => {
                let peers = Some(vec![key.peer.to_string()]);
                page.list(self.find(ConversationSearch { peers, bot: Some(key.bot.to_string()), ..search }).await?);
            }
            Some(Named::One(id)) => {
                page.list(self.find(ConversationSearch { peers: Some(peers(&id)), ..search.clone() }).await?);
                page.list(self.find(ConversationSearch { device_id: Some(id.clone()), ..search }).await?);
                self.messages(&id, None, &mut page).await?;
                if reads_stream && page.messages.is_empty() {
                    let looked = self.look_through_newest(&id).await?;
                    self.add_streamed(&id, looked, &mut page).await?;
                }
            }
            Some(Named::MessageOf { chat, message }) => {
                let peers = peers(&chat);
                page.list(self.find(ConversationSearch { peers: Some(peers.clone()), ..search }).await?);
                self.messages(&message, Some(&peers), &mut page).await?;
                if reads_stream && page.messages.is_empty() {
                    let looked = self.look_through_chats(&message, &peers).await?;
                    self.add_streamed(&message, looked, &mut page).await?;
                }
            }
        }
        let Question { text, status, assignee, bot } = question;
        Ok(SearchPage { query: text, status, assignee, bot, ..page })
    }

    async fn find(&self, search: ConversationSearch) -> Result<Vec<Conversation>, Problem> {
        self.store.search_conversations(&search).await.map_err(|error| store_problem(&error))
    }

    async fn by_id(&self, id: Uuid, page: &mut SearchPage) -> Result<(), Problem> {
        let failed = |error| store_problem(&error);
        page.list(self.store.conversation(id).await.map_err(failed)?.into_iter().collect());
        if let Some(row) = self.store.ledger_row(id).await.map_err(failed)? {
            page.messages.push(self.hit(row.key.to_string(), row.id, String::new(), row.received_at).await?);
        }
        Ok(())
    }

    /// The messages of this id that histories have, by their index.
    async fn messages(&self, id: &str, peers: Option<&[String]>, page: &mut SearchPage) -> Result<(), Problem> {
        let failed = |error| store_problem(&error);
        for found in self.store.messages_by_platform_id(id, FOUND).await.map_err(failed)? {
            let Some(conversation) = self.store.conversation(found.conversation_id).await.map_err(failed)? else {
                continue;
            };
            let name = conversation.key.to_string();
            if peers.is_some_and(|peers| !peers.contains(&conversation.key.peer.to_string())) {
                continue;
            }
            // One that was merged is stored with the turn that answers it.
            let turn_id = found.message.turn_id.unwrap_or_default();
            page.messages.push(self.hit(name, turn_id, id.to_owned(), found.message.created_at).await?);
        }
        Ok(())
    }

    /// Those that were found on the stream, because they have no place in any history.
    async fn add_streamed(
        &self,
        id: &str,
        (streamed, note): (Vec<Streamed>, String),
        page: &mut SearchPage,
    ) -> Result<(), Problem> {
        for streamed in streamed {
            let turn_id = streamed.envelope.as_ref().map_or(Uuid::nil(), |envelope| envelope.turn_id);
            let at = streamed.message.published_at;
            page.messages.push(self.hit(streamed.message.lane.to_string(), turn_id, id.to_owned(), at).await?);
        }
        page.note = Some(note);
        Ok(())
    }

    async fn look_through_chats(&self, id: &str, peers: &[String]) -> Result<(Vec<Streamed>, String), Problem> {
        let mut found = Vec::new();
        for peer in peers {
            let subject = self.inbound.connection.names.peer_filter(Lane::Inbound, Some(peer));
            let (mut after, mut seen) = (0, 0);
            while let Some(last) = self.look_through(id, &subject, after, &mut found, &mut seen).await? {
                after = last;
                if seen >= LOOKED_THROUGH_OF_CHAT || is_full(&found) {
                    break;
                }
            }
        }
        Ok((
            found,
            format!("The stream was looked through for this chat, up to {LOOKED_THROUGH_OF_CHAT} of its messages."),
        ))
    }

    async fn look_through_newest(&self, id: &str) -> Result<(Vec<Streamed>, String), Problem> {
        let info = self.inbound.info().await.map_err(|error| stream_problem(&error))?;
        let subject = self.inbound.connection.names.peer_filter(Lane::Inbound, None);
        let mut after = info.state.last_sequence.saturating_sub(LOOKED_THROUGH);
        let (mut found, mut seen) = (Vec::new(), 0);
        while let Some(last) = self.look_through(id, &subject, after, &mut found, &mut seen).await? {
            after = last;
            if is_full(&found) {
                break;
            }
        }
        let note = format!(
            "No history has a message of this id; the newest {} messages of the stream were looked through. Name the chat \
             before the message (\"CHAT MESSAGE\") to look through all of the chat's.",
            LOOKED_THROUGH.min(info.state.messages)
        );
        Ok((found, note))
    }

    /// One page; the place behind which the next begins.
    async fn look_through(
        &self,
        id: &str,
        subject: &str,
        after: u64,
        found: &mut Vec<Streamed>,
        seen: &mut usize,
    ) -> Result<Option<u64>, Problem> {
        let of = PageOf { subject: subject.to_owned(), limit: AT_ONCE, headers_only: false };
        let page = self.inbound.page(&of, after).await.map_err(|error| stream_problem(&error))?;
        *seen += page.messages.len();
        let read = page.messages.into_iter().map(|(message, _)| Streamed::read(message));
        let room = (FOUND as usize).saturating_sub(found.len());
        found.extend(read.filter(|streamed| streamed.platform_message_id() == Some(id)).take(room));
        Ok(page.last)
    }

    async fn hit(
        &self,
        name: String,
        turn_id: Uuid,
        platform_message_id: String,
        at: Timestamp,
    ) -> Result<Hit, Problem> {
        let failed = |error| store_problem(&error);
        let row = self.store.ledger_row(turn_id).await.map_err(failed)?;
        let deliveries = self.store.deliveries_of_turn(turn_id).await.map_err(failed)?;
        let turn = self.store.turn(turn_id).await.map_err(failed)?;
        let has_reply = turn.is_some_and(|turn| !turn.replies.is_empty());
        let (state, why) = match &row {
            Some(row) => (row.state.to_string(), why::of_row(row, &deliveries, has_reply)),
            None => {
                let why = "It has not ended yet; its conversation says what it waits for.".to_owned();
                ("waiting".to_owned(), Why { verdict: Verdict::Waiting, why })
            }
        };
        let conversation = row.and_then(|row| row.conversation_id).map_or_else(|| name.clone(), |id| id.to_string());
        let place = format!("/console/conversations/{conversation}#t-{turn_id}");
        Ok(Hit { name, turn_id, platform_message_id, at, state, why, place })
    }
}

const fn is_full(found: &[Streamed]) -> bool {
    found.len() >= FOUND as usize
}

impl SearchPage {
    fn list(&mut self, conversations: Vec<Conversation>) {
        for conversation in conversations {
            if self.conversations.iter().any(|line| line.id == conversation.id) {
                continue;
            }
            self.conversations.push(Line {
                id: conversation.id,
                name: conversation.key.to_string(),
                status: conversation.status,
                assignee: conversation.assignee,
                snippet: conversation.snippet,
                message_count: conversation.message_count,
                updated_at: conversation.updated_at,
            });
        }
    }
}

impl View for SearchPage {
    /// A hundred messages are some hundred questions to the database.
    const LOOK_AGAIN: Duration = Duration::from_secs(5);

    /// Without what only the stream has, which is looked through once for a page and not for its changes.
    fn fingerprint(&self) -> u64 {
        let indexed = if self.note.is_none() { &self.messages[..] } else { &[] };
        page::fingerprint(&(&self.conversations, indexed))
    }

    fn title(&self) -> String {
        "Conversations".to_owned()
    }

    fn body(&self, _: &Who) -> Html {
        let words: Vec<&str> = ConversationStatus::ALL.iter().map(|status| status.as_str()).collect();
        let bots: Vec<&str> = self.bots.iter().map(String::as_str).collect();
        let form = el("form")
            .attr("role", "search")
            .attr("method", "get")
            .attr("action", "/console/conversations")
            .class("filter")
            .add(field(
                "q",
                "Chat, person, message, conversation or turn id",
                self.query.as_deref().unwrap_or_default(),
            ))
            .add(choice("status", "Status", "any", &words, self.status.map(ConversationStatus::as_str)))
            .add(choice("bot", "Bot", "any", &bots, self.bot.as_deref()))
            .add(field("assignee", "Assignee", self.assignee.as_deref().unwrap_or_default()))
            .add(el("button").attr("id", "search").text("Search"));
        let hits = self.messages.iter().map(|hit| {
            el("li")
                .class(format!("entry {}", hit.why.verdict.as_str()))
                .add(
                    el("p")
                        .class("head")
                        .add(el("time").attr("datetime", hit.at).text(hit.at))
                        .add(el("span").class("number").text(format!("message {}", hit.platform_message_id)))
                        .add(badge(hit.why.verdict.as_str(), &hit.state))
                        .add(link(&hit.place, &hit.name)),
                )
                .add(el("p").class("why").text(&hit.why.why))
        });
        let found = (!self.messages.is_empty())
            .then(|| el("section").add(el("h2").text("Messages")).add(el("ol").class("timeline").all(hits)));
        let note = self.note.as_ref().map(|note| el("p").class("note").text(note));
        let nothing = (self.conversations.is_empty() && self.messages.is_empty())
            .then(|| el("p").attr("id", "nothing").text("Nothing was found."));
        let rows = self.conversations.iter().map(|line| {
            vec![
                link(format!("/console/conversations/{}", line.id), &line.name).into(),
                badge(line.status.as_str(), status_words(line.status)).into(),
                line.assignee.as_deref().unwrap_or_default().into(),
                line.snippet.as_deref().unwrap_or_default().into(),
                line.message_count.to_string().into(),
                line.updated_at.to_string().into(),
            ]
        });
        let head = ["Conversation", "Who answers", "Assignee", "Last message", "Messages", "Last change"];
        let list = (!self.conversations.is_empty()).then(|| table("Conversations", &head, rows.collect()));
        Html::from(el("h1").text("Conversations")).then(form).then(found).then(note).then(nothing).then(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_stream_has_is_no_news_of_a_page() {
        let hit = || Hit {
            name: "telegram.support.user-31".to_owned(),
            turn_id: Uuid::nil(),
            platform_message_id: "4711".to_owned(),
            at: Timestamp::from_micros(0),
            state: "dead_lettered".to_owned(),
            why: Why { verdict: Verdict::Trouble, why: "Given up.".to_owned() },
            place: String::new(),
        };
        let open = SearchPage::default();
        let shown = SearchPage { messages: vec![hit()], note: Some("The stream.".to_owned()), ..SearchPage::default() };
        assert_eq!(open.fingerprint(), shown.fingerprint());
        let indexed = SearchPage { messages: vec![hit()], ..SearchPage::default() };
        assert_ne!(indexed.fingerprint(), shown.fingerprint());
    }

    #[test]
    fn what_people_paste_is_understood() {
        let id = Uuid::from_u128(7);
        let of = |chat: &str, message: &str| Named::MessageOf { chat: chat.to_owned(), message: message.to_owned() };
        for (text, named) in [
            (id.to_string().as_str(), Named::Id(id)),
            ("telegram.support.user-31", Named::Key("telegram.support.user-31".parse().unwrap())),
            ("4711", Named::One("4711".to_owned())),
            ("#4711", Named::One("4711".to_owned())),
            ("-100123 4711", of("-100123", "4711")),
            ("31/4711", of("31", "4711")),
            ("user-31 #4711", of("user-31", "4711")),
        ] {
            assert_eq!(Named::read(text), named, "{text}");
        }
        assert_eq!(peers("-100123"), ["user--100123", "group--100123"]);
        assert_eq!(peers("group-5"), ["group-5"]);
        assert_eq!(peers("a.b"), ["user-a=2Eb", "group-a=2Eb"]);
    }
}
