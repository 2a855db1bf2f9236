//! `GET /v1/turns/{turn_id}`, and how a turn looks to API callers.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::body::not_null;
use super::chat::request::uuid;
use super::extract::{Parameters, Segment};
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::{Ingress, RETRY_AFTER_SECONDS, Shared, events, json as answer, store_problem};
use crate::message::{Button, Role, TerminalState, Timestamp};
use crate::responder::assistant::confirm;
use crate::store::{Action, ActionStatus, DeliveryRow, StoredMessage, Turn};

pub(super) fn routes() -> Routes {
    Routes::default()
        .get(
            "/v1/turns/{turn_id}",
            show,
            Operation::new("getTurn", "How a turn ended, or that it has not.")
                .security(Security::KeyOfBot)
                .query::<OfDevice>()
                .answer::<AnyTurn>(200, "The turn.")
                .problems(&[400, 401, 403, 404, 503]),
        )
        .get(
            "/v1/turns/{turn_id}/events",
            events::resume,
            Operation::new("followTurn", "A turn's events, from its beginning or after the last one seen.")
                .security(Security::KeyOfBot)
                .query::<OfDevice>()
                .header("Last-Event-ID", "The last event seen.")
                .events(200)
                .empty(204, "Everything was seen: there is no reason to come back.")
                .problems(&[400, 401, 403, 404, 503]),
        )
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct OfDevice {
    /// Whose turn it has to be.
    #[schemars(transform = not_null)]
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
    let turn = match found.turn {
        Some(turn) => AnyTurn::Ended(Box::new(view(&ingress, &turn).await?)),
        None => AnyTurn::Queued(Queued::new(found.conversation_id, found.turn_id, None)),
    };
    Ok(answer(200, &turn))
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
    let turn_id = uuid(turn_id).ok_or_else(|| Problem::field(400, "turn_id", "must be a UUID."))?;
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

pub(super) fn trace_id(turn: &Turn) -> Option<String> {
    turn.traceparent.as_deref().and_then(|traceparent| traceparent.split('-').nth(1)).map(str::to_owned)
}

/// A turn that has not ended.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "QueuedTurn")]
pub(super) struct Queued {
    conversation_id: Uuid,
    turn_id: Uuid,
    status: QueuedStatus,
    /// Where to ask for the outcome.
    url: String,
    /// Of the request that brought the message.
    pub(super) trace_id: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum QueuedStatus {
    Queued,
}

impl Queued {
    pub(super) fn new(conversation_id: Uuid, turn_id: Uuid, trace_id: Option<String>) -> Self {
        let url = format!("/v1/turns/{turn_id}");
        Self { conversation_id, turn_id, status: QueuedStatus::Queued, url, trace_id }
    }

    /// 202, and where to ask for the outcome.
    pub(super) fn accepted(&self) -> Response {
        let mut response = answer(202, self);
        if let Ok(location) = HeaderValue::from_str(&self.url) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        response
    }
}

/// A turn, whether or not it has ended.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Turn")]
pub(super) enum AnyTurn {
    Ended(Box<TurnView>),
    Queued(Queued),
}

/// A turn that has ended.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EndedTurn")]
pub(super) struct TurnView {
    pub(super) status: TerminalState,
    #[serde(flatten)]
    pub(super) facts: TurnFacts,
}

/// What there is to know of a turn that has ended, but for how.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TurnFacts {
    conversation_id: Option<Uuid>,
    turn_id: Uuid,
    /// The turn that answers this one's message, of one that is `merged` or `superseded`.
    merged_into: Option<Uuid>,
    /// Where the answer is: of a merged or superseded turn, the other one's address.
    url: String,
    /// The first of `replies`.
    reply: Option<Reply>,
    /// Also those of a given-up turn to its user, which are not in the history.
    replies: Vec<Reply>,
    /// What a person is asked to confirm.
    actions: Vec<ActionView>,
    /// Of the request that brought the message.
    pub(super) trace_id: Option<String>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
struct Reply {
    id: Uuid,
    role: Role,
    content: String,
    /// What a person can answer with; those that answer one of the `actions` are left out.
    buttons: Vec<ReplyButton>,
    created_at: Timestamp,
}

/// One of the answers that a reply offers.
#[derive(Debug, Clone, Serialize, JsonSchema)]
struct ReplyButton {
    /// For `message` of the next message.
    label: String,
    /// For its `payload`.
    payload: String,
}

/// A tool call that waits for a person's word, or did.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Action")]
struct ActionView {
    /// For `confirm` of the next message.
    id: String,
    tool: String,
    /// JSON text.
    arguments: String,
    status: ActionStatus,
    expires_at: Timestamp,
}

/// A turn that has ended, as callers see it.
pub(super) async fn view(ingress: &Ingress, turn: &Turn) -> Result<TurnView, Problem> {
    let replies = replies(ingress, turn).await?;
    let actions = match turn.conversation_id {
        Some(id) => ingress.store.actions_of_turn(id, turn.id).await.map_err(|error| store_problem(&error))?,
        None => Vec::new(),
    };
    let facts = TurnFacts {
        conversation_id: turn.conversation_id,
        turn_id: turn.id,
        merged_into: turn.merged_into,
        url: format!("/v1/turns/{}", turn.merged_into.unwrap_or(turn.id)),
        reply: replies.first().cloned(),
        replies,
        actions: actions.into_iter().map(ActionView::from).collect(),
        trace_id: trace_id(turn),
    };
    Ok(TurnView { status: turn.state, facts })
}

/// A given-up turn's failure reply is not in the history; it comes from its deliveries.
async fn replies(ingress: &Ingress, turn: &Turn) -> Result<Vec<Reply>, Problem> {
    let deliveries = ingress.store.deliveries_of_turn(turn.id).await.map_err(|error| store_problem(&error))?;
    if turn.replies.is_empty() {
        return Ok(deliveries.into_iter().map(Reply::from).collect());
    }
    Ok(turn.replies.iter().map(|message| Reply::new(message, &deliveries)).collect())
}

impl Reply {
    /// Its buttons are with the deliveries: no history holds them.
    fn new(message: &StoredMessage, deliveries: &[DeliveryRow]) -> Self {
        let of_message = deliveries.iter().filter(|delivery| delivery.message_id == message.id);
        let buttons = of_message.flat_map(|delivery| delivery.buttons.iter().cloned());
        let StoredMessage { id, role, content, created_at, .. } = message.clone();
        Self { id, role, content, buttons: offered(buttons), created_at }
    }
}

impl From<DeliveryRow> for Reply {
    fn from(delivery: DeliveryRow) -> Self {
        let DeliveryRow { message_id, content, buttons, created_at, .. } = delivery;
        Self { id: message_id, role: Role::Assistant, content, buttons: offered(buttons), created_at }
    }
}

fn offered(buttons: impl IntoIterator<Item = Button>) -> Vec<ReplyButton> {
    let plain = buttons.into_iter().filter(|button| !confirm::is_answer(&button.payload));
    plain.map(|Button { label, payload }| ReplyButton { label, payload }).collect()
}

impl From<Action> for ActionView {
    fn from(action: Action) -> Self {
        let Action { id, tool, arguments, status, expires_at, .. } = action;
        Self { id, tool, arguments, status, expires_at }
    }
}

fn not_found() -> Problem {
    Problem::new(404, "not-found", "There is no such turn.")
}
