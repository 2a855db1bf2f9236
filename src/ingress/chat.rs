//! `POST /v1/chat`: a message in, and its turn's outcome out, at once or by a URL.
//!
//! Invariant: everything that can be wrong with a request is found before anything is written or published.

use std::time::Duration;

use async_nats::Subscriber;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::StreamExt as _;
use tokio::time::Instant;
use uuid::Uuid;

use self::request::{ChatBody, ChatRequest};
use super::access::{Access, Caller};
use super::events::{self, Watch};
use super::headers::{IDEMPOTENCY_KEY, Preference, WAIT_MAX, idempotency_key};
use super::limit::Counted;
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::turns::{Queued as QueuedView, TurnView};
use super::{
    Ingress, RETRY_AFTER_SECONDS, Shared, body as bodies, conversations, count, json as answer, store_problem, turns,
};
use crate::config::{Bot, WebBot};
use crate::message::{Channel, ConversationStatus, Timestamp};
use crate::store::{IdempotencyClaim, Turn};
use crate::telemetry;

pub(super) mod request;

/// Room for what travels with a message on the stream: its id, schema version and trace context, with their names.
const STREAM_HEADERS_BYTES: usize = 1_024;

/// The notice of a finished turn can be lost, so the ledger is looked at this often as well.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Routes {
    Routes::default().post(
        "/v1/chat",
        chat,
        Operation::new("sendMessage", "A message in, its turn's outcome out.")
            .security(Security::KeyOfBot)
            .details(
                "Waits for the outcome unless the caller prefers not to. With `Accept: text/event-stream` the answer is \
                 the turn's events while it runs. A dropped connection does not cancel the turn.",
            )
            .header_like(
                "Idempotency-Key",
                IDEMPOTENCY_KEY,
                "The same key with the same body stands for the same turn; with another body it is refused (422).",
            )
            .header(
                "Prefer",
                "`respond-async`: do not wait. `wait=N`: wait for N seconds, 55 at most and by default (RFC 7240).",
            )
            .header("Last-Event-ID", "Of events: the last one seen.")
            .body::<ChatBody>(bodies::JSON)
            .answer::<TurnView>(200, "The turn has ended; its events come where they were asked for.")
            .events(200)
            .answer::<QueuedView>(202, "The message is kept, and its turn has not ended. `Location` tells where to ask.")
            .problems(&[400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503]),
    )
}

async fn chat(State(ingress): Shared, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let (queued, watch) = {
        let access = ingress.access(&headers)?;
        let request = ChatRequest::read(ingress.object(&headers, body, bodies::JSON).await?)?;
        let _permit = ingress.admit()?;
        let preference = Preference::read(&headers)?;
        let key = idempotency_key(&headers)?;
        let (bot, web) = access.bot(request.body.bot.as_deref())?;
        ingress.check_rate(bot, web, &access, &request.body.device_id)?;
        let seat = events::asked_for(&headers).then(|| ingress.seat()).transpose()?;
        let turn = ingress.identify(&access, bot, web, &request, key.as_deref()).await?;
        let watch = match seat {
            Some(seat) => Some(Watch::begin(&ingress, turn.turn_id, seat).await?),
            None => None,
        };
        (ingress.enqueue(&request, turn, preference, watch.is_some()).await?, watch)
    };
    match watch {
        Some(watch) => Ok(watch.respond(ingress, &headers, queued.view())),
        None => queued.answer(&ingress).await,
    }
}

/// Which turn of which conversation a request is.
struct Identified {
    bot: String,
    turn_id: Uuid,
    conversation_id: Uuid,
}

impl Identified {
    fn of(bot: &Bot, claim: &IdempotencyClaim) -> Result<Self, Problem> {
        match *claim {
            IdempotencyClaim::Granted { turn_id, conversation_id } => {
                Ok(Self { bot: bot.name.clone(), turn_id, conversation_id })
            }
            IdempotencyClaim::Conflict => Err(Problem::field(
                422,
                "Idempotency-Key",
                "was used for a request with another body; a new request needs a new key.",
            )),
        }
    }
}

impl Ingress {
    /// Finds the conversation, and the turn when the request is a repeated one.
    async fn identify(
        &self,
        access: &Access<'_>,
        bot: &Bot,
        web: &WebBot,
        request: &ChatRequest,
        key: Option<&str>,
    ) -> Result<Identified, Problem> {
        access.check_metadata(request.body.metadata.as_ref())?;
        self.check_size(&bot.name, request)?;
        // A caller without a key shares no name space with other devices.
        let scope = match access.caller {
            Caller::Open => format!("{}/{}", bot.name, request.body.device_id),
            Caller::Key | Caller::Operator => bot.name.clone(),
        };
        let now = Timestamp::now();
        let key = key.map(|key| format!("key {key}"));
        // Looked up first: a key that was used for another request must not open a conversation, and a repeated request is
        // its first turn's whatever became of the conversation since.
        if let Some(key) = &key {
            let earlier = self.store.idempotency_claim(&scope, key, &request.fingerprint).await;
            if let Some(claim) = earlier.map_err(|error| store_problem(&error))? {
                return Identified::of(bot, &claim);
            }
        }
        let conversation_id = match request.body.conversation_id {
            Some(id) => self.conversation_of(access, bot, id, &request.body.device_id).await?,
            None => {
                self.check_stream()?;
                self.store
                    .active_conversation(
                        &bot.name,
                        &request.body.device_id,
                        request.body.platform(),
                        web.conversation_ttl,
                        now,
                        Uuid::now_v7(),
                    )
                    .await
                    .map_err(|error| store_problem(&error))?
                    .id
            }
        };
        let turn_id = Uuid::now_v7();
        let key = key.unwrap_or_else(|| format!("turn {turn_id}"));
        let claim = self
            .store
            .claim_idempotency_key(&scope, &key, &request.fingerprint, turn_id, conversation_id, now)
            .await
            .map_err(|error| store_problem(&error))?;
        Identified::of(bot, &claim)
    }

    /// Each key is counted for itself, the console token as well; where there are no keys, each device.
    fn check_rate(&self, bot: &Bot, web: &WebBot, access: &Access<'_>, device_id: &str) -> Result<(), Problem> {
        let Some(rate) = web.rate_limit else { return Ok(()) };
        let counted = access.token.map_or(Counted::Device(device_id), Counted::Key);
        self.limits.take(rate, &bot.name, counted, Instant::now()).map_err(|wait| {
            count(Channel::Web, &bot.name, "rate_limited");
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            Problem::new(429, "rate-limited", "Too many messages from this caller; see the header `Retry-After`.")
                .retry_after(u32::try_from(seconds).unwrap_or(u32::MAX))
        })
    }

    /// What the stream would refuse for its size is refused before anything is written.
    fn check_size(&self, bot: &str, request: &ChatRequest) -> Result<(), Problem> {
        let limit = self.connection.client.server_info().max_payload;
        let turn = Identified { bot: bot.to_owned(), turn_id: Uuid::nil(), conversation_id: Uuid::nil() };
        let size = serde_json::to_vec(request.verified(&turn).envelope()).map_or(usize::MAX, |bytes| bytes.len());
        // Not connected yet, it is not known; then nothing is taken anyway.
        if limit > 0 && size.saturating_add(STREAM_HEADERS_BYTES) > limit {
            return Err(Problem::new(413, "too-large", "The message is larger than the stream takes."));
        }
        Ok(())
    }

    async fn conversation_of(
        &self,
        access: &Access<'_>,
        bot: &Bot,
        id: Uuid,
        device_id: &str,
    ) -> Result<Uuid, Problem> {
        let conversation = self.store.conversation(id).await.map_err(|error| store_problem(&error))?;
        let conversation = conversation
            .filter(|conversation| *conversation.key.bot == *bot.name && access.may_see(conversation, Some(device_id)))
            .ok_or_else(conversations::not_found)?;
        if conversation.status == ConversationStatus::Closed {
            return Err(Problem::new(
                409,
                "closed",
                "The conversation is closed. Leave conversation_id out to start one.",
            ));
        }
        self.check_stream()?;
        Ok(conversation.id)
    }

    /// Without a connection nothing can be made durable, so nothing is begun.
    pub(super) fn check_stream(&self) -> Result<(), Problem> {
        if self.connection.is_connected() {
            return Ok(());
        }
        Err(Problem::new(503, "not-taken", "The message could not be stored. Please send it again.")
            .retry_after(RETRY_AFTER_SECONDS))
    }

    async fn enqueue(
        &self,
        request: &ChatRequest,
        turn: Identified,
        preference: Preference,
        watched: bool,
    ) -> Result<Queued, Problem> {
        // Listening begins before publishing, so that the notice cannot come in between.
        let waiting = match preference {
            Preference { asynchronous: true, wait: None } => None,
            _ if watched => None,
            _ => {
                let subject = self.connection.names.turn_notice(turn.turn_id);
                self.connection.client.subscribe(subject).await.ok()
            }
        };
        let published = self.publish(&request.verified(&turn)).await?;
        debug_assert_eq!(published.turn_id(), turn.turn_id, "the receipt is for this message");
        let trace_id = telemetry::trace_id(&tracing::Span::current());
        Ok(Queued { turn, waiting, preference, trace_id })
    }
}

/// A message that is on the stream.
struct Queued {
    turn: Identified,
    waiting: Option<Subscriber>,
    preference: Preference,
    trace_id: Option<String>,
}

impl Queued {
    async fn answer(mut self, ingress: &Ingress) -> Result<Response, Problem> {
        let finished = match self.waiting.take() {
            Some(notices) => match ingress.waiting.try_acquire() {
                Ok(_permit) => {
                    let limit = self.preference.wait.unwrap_or(WAIT_MAX);
                    wait(ingress, self.turn.turn_id, notices, limit).await
                }
                Err(_) => None,
            },
            None => None,
        };
        let mut response = match finished {
            Some(turn) => {
                let mut body = turns::view(ingress, &turn).await?;
                body.facts.trace_id.clone_from(&self.trace_id);
                answer(200, &body)
            }
            None => self.view().accepted(),
        };
        if let Some(applied) = self.preference.applied() {
            response.headers_mut().insert("preference-applied", applied);
        }
        Ok(response)
    }

    fn view(&self) -> QueuedView {
        QueuedView::new(self.turn.conversation_id, self.turn.turn_id, self.trace_id.clone())
    }
}

/// Waits for the turn's outcome; `None` when it did not come in time. A stopping process keeps its callers as long as turns
/// may still finish.
pub(super) async fn wait(ingress: &Ingress, turn_id: Uuid, mut notices: Subscriber, limit: Duration) -> Option<Turn> {
    let deadline = Instant::now() + limit;
    let mut look = tokio::time::interval(LOOK_AGAIN);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Some(_) = notices.next() => {}
            () = tokio::time::sleep_until(deadline) => return None,
            () = ingress.closing.cancelled() => return None,
        }
        match ingress.store.turn(turn_id).await {
            Ok(Some(turn)) => return Some(turn),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = %telemetry::chain(&error), "the ledger did not answer a waiting caller");
            }
        }
    }
}
