//! `/v1/conversations`: reading them, and changing what people may change.
//!
//! Refuses to wait for turns: a change is one short transaction, and a running turn's commit writes over none of it.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::{Access, Caller};
use super::chat::{check_device_id, conversation_id, object, text};
use super::extract::{Parameters, Segment};
use super::problem::Problem;
use super::{Ingress, Shared, json as answer, store_problem};
use crate::message::Timestamp;
use crate::store::{Conversation, ConversationFilter, ConversationPatch};

/// Rows of one page when the caller does not say, and at most.
const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 200;

/// The longest assignee, in characters.
const ASSIGNEE_CHARS_MAX: usize = 255;

/// The longest name shown of a field that cannot be changed.
const FIELD_CHARS_SHOWN: usize = 64;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    device_id: Option<String>,
    status: Option<String>,
    assignee: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
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
    let conversations: Vec<Value> = conversations.iter().map(view).collect();
    Ok(answer(200, &json!({ "conversations": conversations, "next_cursor": next })))
}

#[derive(Debug, Deserialize)]
pub(super) struct ShowQuery {
    device_id: Option<String>,
}

pub(super) async fn show(
    State(ingress): Shared,
    Segment(id): Segment,
    Parameters(query): Parameters<ShowQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    let conversation = ingress.visible(&access, &id, query.device_id.as_deref()).await?;
    Ok(answer(200, &view(&conversation)))
}

#[derive(Debug, Deserialize)]
pub(super) struct MessagesQuery {
    device_id: Option<String>,
    limit: Option<String>,
    before: Option<String>,
}

/// The newest page, oldest message first; `before` takes the `next_before` of the page seen last.
pub(super) async fn messages(
    State(ingress): Shared,
    Segment(id): Segment,
    Parameters(query): Parameters<MessagesQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    let limit = limit(query.limit.as_deref())?;
    let before = query
        .before
        .map(|before| before.parse().map_err(|_| Problem::field(400, "before", "must be a whole number.")))
        .transpose()?;
    let conversation = ingress.visible(&access, &id, query.device_id.as_deref()).await?;
    let messages =
        ingress.store.messages(conversation.id, before, limit).await.map_err(|error| store_problem(&error))?;
    let next_before = messages.first().map(|message| message.ordinal).filter(|ordinal| *ordinal > 1);
    Ok(answer(200, &json!({ "messages": messages, "next_before": next_before })))
}

/// A JSON merge patch (RFC 7396) of status, assignee and metadata.
pub(super) async fn patch(
    State(ingress): Shared,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    if access.caller == Caller::Open {
        return Err(Problem::unauthorized());
    }
    let patch = read_patch(&ingress.body(body).await?)?;
    let conversation = ingress.visible(&access, &id, None).await?;
    let patched = ingress.store.patch_conversation(conversation.id, &patch, Timestamp::now()).await;
    let patched = patched.map_err(|error| store_problem(&error))?.ok_or_else(not_found)?;
    Ok(answer(200, &view(&patched)))
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

fn read_patch(bytes: &[u8]) -> Result<ConversationPatch, Problem> {
    let body = object(bytes)?;
    if let Some(unknown) = body.keys().find(|key| !matches!(key.as_str(), "status" | "assignee" | "metadata")) {
        let name: String = unknown.chars().take(FIELD_CHARS_SHOWN).collect();
        return Err(Problem::field(422, &name, "cannot be changed; status, assignee and metadata can."));
    }
    let assignee = match body.get("assignee") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(_) => Some(text(&body, "assignee")?),
    };
    if let Some(Some(name)) = &assignee {
        check_assignee(name)?;
    }
    let metadata = match body.get("metadata") {
        None => None,
        Some(Value::Object(metadata)) => Some(metadata.clone()),
        Some(_) => return Err(Problem::field(422, "metadata", "must be an object.")),
    };
    let status = text(&body, "status")?.as_deref().map(status).transpose()?;
    Ok(ConversationPatch { status, assignee, metadata })
}

fn check_assignee(name: &str) -> Result<(), Problem> {
    if name.trim().is_empty() || name.chars().count() > ASSIGNEE_CHARS_MAX || name.chars().any(char::is_control) {
        let detail = "must have 1 to 255 characters and no control characters; in a change it may be null.";
        return Err(Problem::field(422, "assignee", detail));
    }
    Ok(())
}

fn status(word: &str) -> Result<crate::message::ConversationStatus, Problem> {
    word.parse().map_err(|_| Problem::field(422, "status", "must be \"bot\", \"human\" or \"closed\"."))
}

fn limit(text: Option<&str>) -> Result<u32, Problem> {
    let limit = text.map_or(Ok(PAGE_DEFAULT), str::parse).ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| Problem::field(400, "limit", format!("must be a whole number from 1 to {PAGE_MAX}.")))
}

fn view(conversation: &Conversation) -> Value {
    json!({
        "id": conversation.id,
        "channel": conversation.key.channel,
        "bot": conversation.key.bot,
        "peer": conversation.key.peer,
        "platform": conversation.platform,
        "device_id": conversation.device_id,
        "status": conversation.status,
        "assignee": conversation.assignee,
        "snippet": conversation.snippet,
        "last_message_at": conversation.last_message_at,
        "message_count": conversation.message_count,
        "metadata": conversation.metadata,
        "created_at": conversation.created_at,
        "updated_at": conversation.updated_at,
    })
}

/// The place of the last row seen; opaque to callers.
fn write_cursor(conversation: &Conversation) -> String {
    format!("{}.{}", conversation.updated_at.as_micros(), conversation.id)
}

fn read_cursor(cursor: &str) -> Result<(Timestamp, Uuid), Problem> {
    let parts = cursor.split_once('.');
    let read =
        parts.and_then(|(micros, id)| Some((Timestamp::from_micros(micros.parse().ok()?), Uuid::parse_str(id).ok()?)));
    read.ok_or_else(|| Problem::field(400, "cursor", "is not one that this API gave out."))
}
