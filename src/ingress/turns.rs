//! `GET /v1/turns/{turn_id}`, and how a turn looks to API callers.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::extract::{Parameters, Segment};
use super::problem::Problem;
use super::{Ingress, Shared, json as answer, store_problem};
use crate::store::Turn;

#[derive(Debug, Deserialize)]
pub(super) struct OfDevice {
    device_id: Option<String>,
}

pub(super) async fn show(
    State(ingress): Shared,
    Segment(turn_id): Segment,
    Parameters(query): Parameters<OfDevice>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let found = find(&ingress, &turn_id, &query, &headers).await?;
    match found.turn {
        Some(turn) => Ok(answer(200, &view(&ingress, &turn).await?)),
        None => Ok(answer(200, &queued(found.conversation_id, found.turn_id, None))),
    }
}

/// A turn that a caller may see.
pub(super) struct Found {
    pub(super) turn_id: Uuid,
    pub(super) conversation_id: Uuid,
    /// Once it has ended.
    pub(super) turn: Option<Turn>,
}

/// The turn's id is not guessable and was told only to its caller, who therefore needs no device id here.
pub(super) async fn find(
    ingress: &Ingress,
    turn_id: &str,
    query: &OfDevice,
    headers: &HeaderMap,
) -> Result<Found, Problem> {
    let access = ingress.access(headers)?;
    let turn_id = Uuid::parse_str(turn_id).map_err(|_| Problem::field(400, "turn_id", "must be a UUID."))?;
    let turn = ingress.store.turn(turn_id).await.map_err(|error| store_problem(&error))?;
    let claimed = ingress.store.claimed_turn(turn_id).await.map_err(|error| store_problem(&error))?;
    let conversation_id = turn.as_ref().and_then(|turn| turn.conversation_id).or(claimed).ok_or_else(not_found)?;
    let conversation = ingress.store.conversation(conversation_id).await.map_err(|error| store_problem(&error))?;
    let conversation = conversation.ok_or_else(not_found)?;
    let device_id = query.device_id.as_deref().or(conversation.device_id.as_deref());
    if !access.may_see(&conversation, device_id) {
        return Err(not_found());
    }
    Ok(Found { turn_id, conversation_id, turn })
}

/// A turn that has not ended.
pub(super) fn queued(conversation_id: Uuid, turn_id: Uuid, trace_id: Option<&str>) -> Value {
    let mut view = json!({
        "conversation_id": conversation_id,
        "turn_id": turn_id,
        "status": "queued",
        "url": format!("/v1/turns/{turn_id}"),
    });
    if let Some(trace_id) = trace_id {
        view["trace_id"] = json!(trace_id);
    }
    view
}

pub(super) fn trace_id(turn: &Turn) -> Option<&str> {
    turn.traceparent.as_deref().and_then(|traceparent| traceparent.split('-').nth(1))
}

/// A finished turn. A merged or superseded message has no reply of its own: `merged_into` and `url` tell where it is. `reply` is the first of `replies`; a given-up turn's failure reply, which is not in the history, comes
/// from its deliveries.
pub(super) async fn view(ingress: &Ingress, turn: &Turn) -> Result<Value, Problem> {
    let mut replies: Vec<Value> = turn
        .replies
        .iter()
        .map(|message| {
            json!({
                "id": message.id, "role": message.role, "content": message.content, "created_at": message.created_at,
            })
        })
        .collect();
    if replies.is_empty() {
        let deliveries = ingress.store.deliveries_of_turn(turn.id).await.map_err(|error| store_problem(&error))?;
        replies.extend(deliveries.iter().map(|delivery| {
            json!({
                "id": delivery.message_id, "role": "assistant", "content": delivery.content,
                "created_at": delivery.created_at,
            })
        }));
    }
    let actions = match turn.conversation_id {
        Some(id) => ingress.store.actions_of_turn(id, turn.id).await.map_err(|error| store_problem(&error))?,
        None => Vec::new(),
    };
    let actions: Vec<Value> = actions
        .iter()
        .map(|action| {
            json!({
                "id": action.id, "tool": action.tool, "arguments": action.arguments, "status": action.status,
                "expires_at": action.expires_at,
            })
        })
        .collect();
    Ok(json!({
        "actions": actions,
        "conversation_id": turn.conversation_id,
        "turn_id": turn.id,
        "status": turn.state,
        "merged_into": turn.merged_into,
        "url": format!("/v1/turns/{}", turn.merged_into.unwrap_or(turn.id)),
        "reply": replies.first(),
        "replies": replies,
        "trace_id": trace_id(turn),
    }))
}

fn not_found() -> Problem {
    Problem::new(404, "not-found", "There is no such turn.")
}
