//! `/v1/conversations`: reading them, and changing what people may change.
//!
//! Refuses to wait for turns: a change is one short transaction, and a running turn's commit writes over none of it.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::access::{Access, Caller};
use super::body::{Fields, MERGE_PATCH, not_null, text};
use super::chat::request::{DEVICE_ID_CHARS_MAX, NAME, check_device_id, conversation_id};
use super::extract::{Parameters, Segment};
use super::newer::{Newer, WAIT_SECONDS_MAX};
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::{Ingress, Shared, agents, json as answer, store_problem};
use crate::message::{Channel, ConversationStatus, Platform, Timestamp};
use crate::store::{Conversation, ConversationFilter, ConversationPatch, Feedback, StoredMessage};

/// Rows of one page when the caller does not say, and at most.
const PAGE_DEFAULT: u32 = 50;
pub(super) const PAGE_MAX: u32 = 200;

/// The longest assignee, in characters.
const ASSIGNEE_CHARS_MAX: usize = 255;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get(
            "/v1/conversations",
            list,
            Operation::new("listConversations", "Conversations, those with the newest changes first.")
                .security(Security::KeyOfBot)
                .query::<ListQuery>()
                .answer::<ConversationsPage>(200, "A page.")
                .problems(&[400, 401, 403, 422, 503]),
        )
        .get(
            "/v1/conversations/{id}",
            show,
            Operation::new("getConversation", "One conversation.")
                .security(Security::KeyOfBot)
                .query::<ShowQuery>()
                .answer::<ConversationView>(200, "The conversation.")
                .problems(&[400, 401, 403, 404, 503]),
        )
        .patch(
            "/v1/conversations/{id}",
            patch,
            Operation::new("changeConversation", "Status, assignee and metadata.")
                .details("A merge patch (RFC 7396). Never waits for a running turn, which writes over none of it.")
                .security(Security::Key)
                .body::<Change>(MERGE_PATCH)
                .answer::<ConversationView>(200, "The conversation as it is now.")
                .problems(&[400, 401, 403, 404, 408, 409, 413, 415, 422, 503]),
        )
        .get(
            "/v1/conversations/{id}/messages",
            messages,
            Operation::new("listMessages", "A conversation's messages: the newest, or those before or behind one.")
                .security(Security::KeyOfBot)
                .query::<MessagesQuery>()
                .answer::<MessagesPage>(200, "A page, oldest message first.")
                .problems(&[400, 401, 403, 404, 503]),
        )
        .merge(agents::routes())
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListQuery {
    /// Needed by a caller without a key.
    #[schemars(length(min = 1, max = DEVICE_ID_CHARS_MAX), regex(pattern = NAME), transform = not_null)]
    device_id: Option<String>,
    #[schemars(with = "Option<ConversationStatus>", transform = not_null)]
    status: Option<String>,
    #[schemars(length(min = 1, max = ASSIGNEE_CHARS_MAX), regex(pattern = NAME), transform = not_null)]
    assignee: Option<String>,
    #[schemars(with = "Option<u32>", range(min = 1, max = PAGE_MAX), transform = not_null)]
    limit: Option<String>,
    /// The `next_cursor` of the page before.
    #[schemars(regex(pattern = CURSOR), transform = not_null)]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ConversationsPage {
    conversations: Vec<ConversationView>,
    /// For the next page, which may be empty; null when there is none.
    next_cursor: Option<String>,
}

async fn list(
    State(ingress): Shared,
    Parameters(query): Parameters<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    if let Some(device_id) = &query.device_id {
        check_device_id(device_id)?;
    } else if access.caller == Caller::Open {
        return Err(Problem::field(422, "device_id", "must be given by a caller without a key."));
    }
    if let Some(assignee) = &query.assignee {
        check_assignee(assignee)?;
    }
    let limit = limit(query.limit.as_deref())?;
    let filter = ConversationFilter {
        bots: match access.caller {
            Caller::Operator => None,
            Caller::Key | Caller::Open => Some(access.bots.iter().map(|bot| bot.name.clone()).collect()),
        },
        device_id: query.device_id,
        status: query.status.as_deref().map(status).transpose()?,
        assignee: query.assignee,
        after: query.cursor.as_deref().map(read_cursor).transpose()?,
        limit,
    };
    let conversations = ingress.store.conversations(&filter).await.map_err(|error| store_problem(&error))?;
    let full = conversations.len() == limit as usize;
    let next = conversations.last().filter(|_| full).map(write_cursor);
    let conversations = conversations.into_iter().map(ConversationView::from).collect();
    Ok(answer(200, &ConversationsPage { conversations, next_cursor: next }))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ShowQuery {
    /// Whose conversation it has to be; needed by a caller without a key.
    #[schemars(transform = not_null)]
    device_id: Option<String>,
}

async fn show(
    State(ingress): Shared,
    Segment(id): Segment,
    Parameters(query): Parameters<ShowQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    let conversation = ingress.visible(&access, &id, query.device_id.as_deref()).await?;
    Ok(answer(200, &ConversationView::from(conversation)))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct MessagesQuery {
    /// Whose conversation it has to be; needed by a caller without a key.
    #[schemars(transform = not_null)]
    device_id: Option<String>,
    #[schemars(with = "Option<u32>", range(min = 1, max = PAGE_MAX), transform = not_null)]
    limit: Option<String>,
    /// The `next_before` of the page seen last.
    #[schemars(with = "Option<i64>", transform = not_null)]
    before: Option<String>,
    /// Only messages behind the one with this `ordinal`: of those the oldest.
    #[schemars(with = "Option<i64>", transform = not_null)]
    after: Option<String>,
    /// With `after`: where there is none yet, one is waited for, so many seconds. Then the page may be empty.
    #[schemars(with = "Option<u32>", range(max = WAIT_SECONDS_MAX), transform = not_null)]
    wait: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct MessagesPage {
    messages: Vec<MessageView>,
    /// For the page before this one in time; null on the first one.
    next_before: Option<i64>,
}

/// A message, with what people feel about it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "MessageWithFeedback")]
struct MessageView {
    #[serde(flatten)]
    message: StoredMessage,
    /// Reactions, one entry for each person who has any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    feedback: Vec<FeedbackView>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Feedback")]
struct FeedbackView {
    /// The platform's id of the person.
    sender: String,
    /// Emoji, or the platform's names of others.
    reactions: Vec<String>,
    received_at: Timestamp,
}

/// Puts each person's reactions beside the message that they are to.
fn with_feedback(messages: Vec<StoredMessage>, feedback: Vec<Feedback>) -> Vec<MessageView> {
    let mut by_message: HashMap<Uuid, Vec<FeedbackView>> = HashMap::new();
    for Feedback { message_id, sender, reactions, received_at } in feedback {
        if !reactions.is_empty() {
            by_message.entry(message_id).or_default().push(FeedbackView { sender, reactions, received_at });
        }
    }
    let view = |message: StoredMessage| {
        let feedback = by_message.remove(&message.id).unwrap_or_default();
        MessageView { message, feedback }
    };
    messages.into_iter().map(view).collect()
}

/// The newest page, oldest message first; `before` takes the `next_before` of the page seen last, `after` the last ordinal.
async fn messages(
    State(ingress): Shared,
    Segment(id): Segment,
    Parameters(query): Parameters<MessagesQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    let limit = limit(query.limit.as_deref())?;
    let (before, after) = (ordinal("before", query.before)?, ordinal("after", query.after)?);
    let wait = wait(query.wait.as_deref())?;
    let conversation = ingress.visible(&access, &id, query.device_id.as_deref()).await?;
    let messages = match after {
        None => ingress.store.messages(conversation.id, before, limit).await.map_err(|error| store_problem(&error))?,
        Some(after) => ingress.newer(Newer { conversation_id: conversation.id, after, limit, wait }, permit).await?,
    };
    let next_before = messages.first().map(|message| message.ordinal).filter(|ordinal| *ordinal > 1);
    let ordinals = messages.first().zip(messages.last()).map(|(first, last)| (first.ordinal, last.ordinal));
    let feedback = match ordinals.filter(|_| conversation.key.channel == Channel::Telegram) {
        Some(ordinals) => ingress.store.feedback(conversation.id, ordinals).await,
        None => Ok(Vec::new()),
    };
    let messages = with_feedback(messages, feedback.map_err(|error| store_problem(&error))?);
    Ok(answer(200, &MessagesPage { messages, next_before }))
}

/// A JSON merge patch (RFC 7396) of status, assignee and metadata.
async fn patch(
    State(ingress): Shared,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let access = ingress.access(&headers)?;
    if access.caller == Caller::Open {
        return Err(Problem::unauthorized());
    }
    let change = Change::read(&ingress.object(&headers, body, MERGE_PATCH).await?)?;
    let _permit = ingress.admit()?;
    access.check_metadata(change.metadata.as_ref())?;
    let conversation = ingress.visible(&access, &id, None).await?;
    let patched = ingress.store.patch_conversation(conversation.id, &change.into(), Timestamp::now()).await;
    let patched = patched.map_err(|error| store_problem(&error))?.ok_or_else(not_found)?;
    Ok(answer(200, &ConversationView::from(patched)))
}

impl Ingress {
    /// The conversation, if it exists and the caller may see it; the two cases look the same from outside.
    pub(super) async fn visible(
        &self,
        access: &Access<'_>,
        id: &str,
        device_id: Option<&str>,
    ) -> Result<Conversation, Problem> {
        let id = conversation_id(id)?;
        let conversation = self.store.conversation(id).await.map_err(|error| store_problem(&error))?;
        conversation.filter(|conversation| access.may_see(conversation, device_id)).ok_or_else(not_found)
    }
}

pub(super) fn not_found() -> Problem {
    Problem::field(404, "conversation_id", "there is no such conversation.")
}

/// A merge patch of what people may change.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "ConversationChange", deny_unknown_fields)]
pub(super) struct Change {
    #[schemars(transform = not_null)]
    status: Option<ConversationStatus>,
    /// The person who has it; null for nobody.
    #[schemars(length(min = 1, max = ASSIGNEE_CHARS_MAX), regex(pattern = NAME))]
    assignee: Option<Option<String>>,
    /// Its members are merged into those there are; a member that is null is removed.
    #[schemars(transform = not_null)]
    metadata: Option<Map<String, Value>>,
}

static CHANGE_FIELDS: LazyLock<Fields> = LazyLock::new(Fields::of::<Change>);

impl Change {
    pub(super) fn read(body: &Map<String, Value>) -> Result<Self, Problem> {
        CHANGE_FIELDS.check(body, "")?;
        let status = match body.get("status") {
            None => None,
            Some(Value::String(word)) => Some(status(word)?),
            Some(_) => return Err(not_a_status()),
        };
        let assignee = match body.get("assignee") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(_) => Some(text(body, "assignee")?),
        };
        if let Some(Some(name)) = &assignee {
            check_assignee(name)?;
        }
        let metadata = match body.get("metadata") {
            None => None,
            Some(Value::Object(metadata)) => Some(metadata.clone()),
            Some(_) => return Err(Problem::field(422, "metadata", "must be an object.")),
        };
        Ok(Self { status, assignee, metadata })
    }
}

impl From<Change> for ConversationPatch {
    fn from(Change { status, assignee, metadata }: Change) -> Self {
        Self { status, assignee, metadata, only_if: None }
    }
}

fn check_assignee(name: &str) -> Result<(), Problem> {
    if name.trim().is_empty() || name.chars().count() > ASSIGNEE_CHARS_MAX || name.chars().any(char::is_control) {
        let detail = "must have 1 to 255 characters and no control characters; in a change it may be null.";
        return Err(Problem::field(422, "assignee", detail));
    }
    Ok(())
}

fn status(word: &str) -> Result<ConversationStatus, Problem> {
    word.parse().map_err(|_| not_a_status())
}

fn not_a_status() -> Problem {
    Problem::field(422, "status", "must be \"bot\", \"human\" or \"closed\".")
}

pub(super) fn limit(text: Option<&str>) -> Result<u32, Problem> {
    let limit = text.map_or(Ok(PAGE_DEFAULT), str::parse).ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| Problem::field(400, "limit", format!("must be a whole number from 1 to {PAGE_MAX}.")))
}

fn ordinal(name: &str, text: Option<String>) -> Result<Option<i64>, Problem> {
    text.map(|text| text.parse().map_err(|_| Problem::field(400, name, "must be a whole number."))).transpose()
}

fn wait(text: Option<&str>) -> Result<Duration, Problem> {
    let seconds: Option<u32> = text.map_or(Ok(0), str::parse).ok().filter(|seconds| *seconds <= WAIT_SECONDS_MAX);
    let wrong = || Problem::field(400, "wait", format!("must be a whole number up to {WAIT_SECONDS_MAX}."));
    seconds.map(|seconds| Duration::from_secs(seconds.into())).ok_or_else(wrong)
}

/// A conversation as callers see it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Conversation")]
struct ConversationView {
    id: Uuid,
    channel: Channel,
    bot: String,
    /// The other end as its channel names it: `user-`, `group-` or `conv-` and an id.
    peer: String,
    /// The peer that its messages are sent to: another one than `peer` once the platform has moved the chat.
    address: String,
    /// Why nothing that is sent arrives, until the person writes again; null while nothing is known to be wrong.
    unreachable: Option<String>,
    /// When that was learnt.
    unreachable_since: Option<Timestamp>,
    platform: Platform,
    device_id: Option<String>,
    status: ConversationStatus,
    /// The person who has it.
    assignee: Option<String>,
    /// The beginning of the last message.
    snippet: Option<String>,
    last_message_at: Option<Timestamp>,
    message_count: i64,
    metadata: Map<String, Value>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Conversation> for ConversationView {
    fn from(conversation: Conversation) -> Self {
        Self {
            id: conversation.id,
            channel: conversation.key.channel,
            bot: conversation.key.bot.to_string(),
            peer: conversation.key.peer.to_string(),
            address: conversation.address().to_string(),
            unreachable_since: conversation.chat.reachability_at.filter(|_| conversation.chat.unreachable.is_some()),
            unreachable: conversation.chat.unreachable,
            platform: conversation.platform,
            device_id: conversation.device_id,
            status: conversation.status,
            assignee: conversation.assignee,
            snippet: conversation.snippet,
            last_message_at: conversation.last_message_at,
            message_count: conversation.message_count,
            metadata: conversation.metadata,
            created_at: conversation.created_at,
            updated_at: conversation.updated_at,
        }
    }
}

/// A moment in microseconds and a conversation's id, as JSON Schema reads it (ECMA-262).
pub(super) const CURSOR: &str = "^-?[0-9]{1,18}\\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$";

/// The place of the last row seen; opaque to callers.
fn write_cursor(conversation: &Conversation) -> String {
    format!("{}.{}", conversation.updated_at.as_micros(), conversation.id)
}

pub(super) fn read_cursor(cursor: &str) -> Result<(Timestamp, Uuid), Problem> {
    let parts = cursor.split_once('.');
    let read =
        parts.and_then(|(micros, id)| Some((Timestamp::from_micros(micros.parse().ok()?), Uuid::parse_str(id).ok()?)));
    read.ok_or_else(|| Problem::field(400, "cursor", "is not one that this API gave out."))
}
