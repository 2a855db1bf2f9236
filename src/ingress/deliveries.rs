//! `/v1/deliveries`: what became of replies that did not simply arrive, and a person's word about those that nobody can tell of.
//!
//! Refuses to change what is known: only an `uncertain` delivery is settled by hand. Invariant: who settles one and why is in
//! the database before anything changes.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::access::{Access, Caller};
use super::body::{self, Fields, not_null, text};
use super::chat::request::NAME;
use super::conversations::{CURSOR, PAGE_MAX, limit, read_cursor};
use super::extract::{Parameters, Segment};
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::{Ingress, Shared, json as answer, not_taken, store_problem};
use crate::message::{Channel, DeliveryStatus, Timestamp};
use crate::store::{AddressedDelivery, DeliveryTotal, OperatorAction, OperatorVerb, OutcomeFilter, Resolution};

/// The longest name and reason, in characters.
const WORDS_CHARS_MAX: usize = 255;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get(
            "/v1/deliveries",
            list,
            Operation::new("listDeliveries", "Deliveries that are `failed` or `uncertain`, newest first.")
                .security(Security::Key)
                .query::<ListQuery>()
                .answer::<DeliveriesPage>(200, "A page.")
                .problems(&[400, 401, 403, 422, 503]),
        )
        .get(
            "/v1/deliveries/totals",
            totals,
            Operation::new("countDeliveries", "How many deliveries of each bot are in each state but `sent`.")
                .security(Security::Key)
                .answer::<Totals>(200, "By bot and state; states without any are left out.")
                .problems(&[401, 403, 503]),
        )
        .post(
            "/v1/deliveries/{id}/settle",
            settle,
            Operation::new("settleDelivery", "A person's word about an `uncertain` delivery.")
                .details(
                    "`sent`: it arrived. `failed`: it did not, and need not. `resend`: it leaves once more, behind what waits \
                     in its chat; asking again while it is `pending` is safe.",
                )
                .security(Security::Key)
                .body::<Word>(body::JSON)
                .answer::<DeliveryView>(200, "The delivery as it is now.")
                .problems(&[400, 401, 403, 404, 408, 409, 413, 415, 422, 503]),
        )
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ListQuery {
    /// Only deliveries of this bot.
    #[schemars(transform = not_null)]
    bot: Option<String>,
    #[schemars(with = "Option<Troubled>", transform = not_null)]
    status: Option<String>,
    #[schemars(with = "Option<u32>", range(min = 1, max = PAGE_MAX), transform = not_null)]
    limit: Option<String>,
    /// The `next_cursor` of the page before.
    #[schemars(regex(pattern = CURSOR), transform = not_null)]
    cursor: Option<String>,
}

/// The states that a person may want to look at.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "the words of a parameter, for the description")]
enum Troubled {
    Failed,
    Uncertain,
}

#[derive(Debug, Serialize, JsonSchema)]
struct DeliveriesPage {
    deliveries: Vec<DeliveryView>,
    /// For the next page, which may be empty; null when there is none.
    next_cursor: Option<String>,
}

async fn list(
    State(ingress): Shared,
    Parameters(query): Parameters<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = keyed(ingress.access(&headers)?)?;
    let limit = limit(query.limit.as_deref())?;
    let bots = match (bots(&access), query.bot) {
        (None, bot) => bot.map(|bot| vec![bot]),
        (Some(own), Some(bot)) => Some(own.into_iter().filter(|own| *own == bot).collect()),
        (own, None) => own,
    };
    let filter = OutcomeFilter {
        bots,
        status: query.status.as_deref().map(status).transpose()?,
        after: query.cursor.as_deref().map(read_cursor).transpose()?,
        limit,
    };
    let found = ingress.store.outcomes(&filter).await.map_err(|error| store_problem(&error))?;
    let full = found.len() == limit as usize;
    let next_cursor = found.last().filter(|_| full).map(|last| {
        let AddressedDelivery { delivery, .. } = last;
        format!("{}.{}", delivery.created_at.as_micros(), delivery.id)
    });
    let deliveries = found.into_iter().map(DeliveryView::from).collect();
    Ok(answer(200, &DeliveriesPage { deliveries, next_cursor }))
}

#[derive(Debug, Serialize, JsonSchema)]
struct Totals {
    totals: Vec<Total>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeliveryTotal")]
struct Total {
    bot: String,
    status: DeliveryStatus,
    count: i64,
    /// Since the oldest of them was committed.
    oldest_age_seconds: u64,
}

async fn totals(State(ingress): Shared, headers: HeaderMap) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let access = keyed(ingress.access(&headers)?)?;
    let found = ingress.store.delivery_totals(bots(&access).as_deref()).await;
    let now = Timestamp::now();
    let total = |total: DeliveryTotal| Total {
        bot: total.bot,
        status: total.status,
        count: total.count,
        oldest_age_seconds: now.micros_since(total.oldest_at) / 1_000_000,
    };
    let totals = found.map_err(|error| store_problem(&error))?.into_iter().map(total).collect();
    Ok(answer(200, &Totals { totals }))
}

/// What a person says of a delivery.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "DeliveryWord", deny_unknown_fields)]
struct Word {
    outcome: Outcome,
    /// Who says so.
    #[schemars(length(min = 1, max = WORDS_CHARS_MAX), regex(pattern = NAME))]
    actor: String,
    /// Why.
    #[schemars(length(min = 1, max = WORDS_CHARS_MAX), regex(pattern = NAME))]
    reason: String,
}

#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
pub(crate) enum Outcome {
    Sent,
    Resend,
    Failed,
}

impl Outcome {
    pub(crate) fn read(word: &str) -> Option<Self> {
        match word {
            "sent" => Some(Self::Sent),
            "resend" => Some(Self::Resend),
            "failed" => Some(Self::Failed),
            _ => None,
        }
    }

    /// What is written down of it.
    pub(crate) const fn verb(self) -> OperatorVerb {
        match self {
            Self::Sent => OperatorVerb::ConfirmDelivery,
            Self::Resend => OperatorVerb::ResendDelivery,
            Self::Failed => OperatorVerb::FailDelivery,
        }
    }
}

static WORD_FIELDS: LazyLock<Fields> = LazyLock::new(Fields::of::<Word>);

impl Word {
    fn read(body: &Map<String, Value>) -> Result<Self, Problem> {
        WORD_FIELDS.check(body, "")?;
        let outcome = body.get("outcome").and_then(Value::as_str).and_then(Outcome::read);
        let outcome =
            outcome.ok_or_else(|| Problem::field(422, "outcome", "must be \"sent\", \"resend\" or \"failed\"."))?;
        Ok(Self { outcome, actor: words(body, "actor")?, reason: words(body, "reason")? })
    }

    fn action(&self, id: Uuid) -> OperatorAction {
        OperatorAction {
            verb: self.outcome.verb(),
            target: id.to_string(),
            actor: Some(self.actor.clone()),
            reason: Some(self.reason.clone()),
            at: Timestamp::now(),
        }
    }
}

fn words(body: &Map<String, Value>, field: &str) -> Result<String, Problem> {
    let words = text(body, field)?.filter(|words| !words.trim().is_empty());
    let words = words.filter(|words| words.chars().count() <= WORDS_CHARS_MAX && !words.chars().any(char::is_control));
    words.ok_or_else(|| {
        let detail = format!("must have 1 to {WORDS_CHARS_MAX} characters, not all blank, and no control characters.");
        Problem::field(422, field, detail)
    })
}

async fn settle(
    State(ingress): Shared,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let access = keyed(ingress.access(&headers)?)?;
    let word = Word::read(&ingress.object(&headers, body, body::JSON).await?)?;
    let _permit = ingress.admit()?;
    let id = Uuid::parse_str(&id).map_err(|_| Problem::field(400, "id", "is not a UUID."))?;
    let found = ingress.visible_delivery(&access, id).await?;
    let may_settle = MaySettle::of(found.delivery.status, word.outcome)?;
    let recorded = ingress.store.record_operator_actions(&[word.action(id)]).await;
    recorded.map_err(|error| store_problem(&error))?;
    ingress.settle(id, word.outcome, may_settle).await?;
    let settled = ingress.visible_delivery(&access, id).await?;
    Ok(answer(200, &DeliveryView::from(settled)))
}

/// A delivery of which a person may say what they said: who says so and why is written down next, then it is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaySettle {
    /// It was said before, and may not have been published.
    is_again: bool,
}

impl MaySettle {
    /// # Errors
    /// 409 for a delivery of which it is known what became of it.
    pub(crate) fn of(status: DeliveryStatus, outcome: Outcome) -> Result<Self, Problem> {
        let is_again = matches!(outcome, Outcome::Resend) && status == DeliveryStatus::Pending;
        if !is_again && status != DeliveryStatus::Uncertain {
            return Err(not_uncertain(status));
        }
        Ok(Self { is_again })
    }
}

impl Ingress {
    /// Does what a person says of a delivery.
    ///
    /// # Errors
    /// 409 when somebody was quicker, 503 when the database or the stream did not answer.
    pub(crate) async fn settle(&self, id: Uuid, outcome: Outcome, may_settle: MaySettle) -> Result<(), Problem> {
        if !may_settle.is_again {
            self.resolve(id, outcome).await?;
        }
        if matches!(outcome, Outcome::Resend) {
            self.publish_again(id).await?;
        }
        tracing::info!(delivery_id = %id, outcome = ?outcome, "a delivery was settled by hand");
        Ok(())
    }

    /// The delivery, if it exists and the caller may see it; the two cases look the same from outside.
    async fn visible_delivery(&self, access: &Access<'_>, id: Uuid) -> Result<AddressedDelivery, Problem> {
        let found = self.store.delivery(id).await.map_err(|error| store_problem(&error))?;
        let own = bots(access);
        let is_visible =
            |found: &AddressedDelivery| own.as_ref().is_none_or(|own| own.iter().any(|bot| **bot == *found.key.bot));
        found.filter(is_visible).ok_or_else(|| Problem::field(404, "id", "there is no such delivery."))
    }

    async fn resolve(&self, id: Uuid, outcome: Outcome) -> Result<(), Problem> {
        let resolution = match outcome {
            Outcome::Sent => Resolution::Sent,
            Outcome::Resend => Resolution::Resend,
            Outcome::Failed => Resolution::Failed,
        };
        let resolved = self.store.resolve_delivery(id, resolution, Timestamp::now()).await;
        match resolved.map_err(|error| store_problem(&error))? {
            true => Ok(()),
            // Somebody else, or an echo of the platform's, was quicker.
            false => Err(not_uncertain(DeliveryStatus::Sent)),
        }
    }

    async fn publish_again(&self, id: Uuid) -> Result<(), Problem> {
        let pending = self.store.pending_delivery(id).await.map_err(|error| store_problem(&error))?;
        let Some(pending) = pending else { return Ok(()) };
        self.publisher.outbound_again(&pending).await.map_err(|error| not_taken(&error))
    }
}

fn not_uncertain(status: DeliveryStatus) -> Problem {
    Problem::new(409, "not-uncertain", format!("The delivery is {status}; only an uncertain one is settled by hand."))
}

/// Settling and reading what was said to everybody is for those who hold a key.
fn keyed(access: Access<'_>) -> Result<Access<'_>, Problem> {
    if access.caller == Caller::Open { Err(Problem::unauthorized()) } else { Ok(access) }
}

/// The bots whose deliveries the caller may see; `None` for all.
fn bots(access: &Access<'_>) -> Option<Vec<String>> {
    match access.caller {
        Caller::Operator => None,
        Caller::Key | Caller::Open => Some(access.bots.iter().map(|bot| bot.name.clone()).collect()),
    }
}

fn status(word: &str) -> Result<DeliveryStatus, Problem> {
    let status =
        word.parse().ok().filter(|status| matches!(status, DeliveryStatus::Failed | DeliveryStatus::Uncertain));
    status.ok_or_else(|| Problem::field(422, "status", "must be \"failed\" or \"uncertain\"."))
}

/// A delivery as callers see it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Delivery")]
struct DeliveryView {
    id: Uuid,
    channel: Channel,
    bot: String,
    /// To whom it was to go, as its channel names it.
    peer: String,
    conversation_id: Option<Uuid>,
    turn_id: Uuid,
    /// The message that it is a part of.
    message_id: Uuid,
    /// From 0; `parts` in all.
    part: u16,
    parts: u16,
    content: String,
    status: DeliveryStatus,
    attempts: u32,
    /// Why it is not `sent`. What stands before the first colon may be `outside_window`, `disabled` or `taken_over`.
    error: Option<String>,
    platform_message_id: Option<String>,
    created_at: Timestamp,
    settled_at: Option<Timestamp>,
}

impl From<AddressedDelivery> for DeliveryView {
    fn from(AddressedDelivery { key, conversation_id, delivery }: AddressedDelivery) -> Self {
        Self {
            id: delivery.id,
            channel: key.channel,
            bot: key.bot.to_string(),
            peer: key.peer.to_string(),
            conversation_id,
            turn_id: delivery.turn_id,
            message_id: delivery.message_id,
            part: delivery.part,
            parts: delivery.parts,
            content: delivery.content,
            status: delivery.status,
            attempts: delivery.attempts,
            error: delivery.error,
            platform_message_id: delivery.platform_message_id,
            created_at: delivery.created_at,
            settled_at: delivery.settled_at,
        }
    }
}
