//! `POST /v1/chat`: a message in, and its turn's outcome out, at once or by a URL.
//!
//! Invariant: everything that can be wrong with a request is found before anything is written or published.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use super::access::{Access, Caller};
use super::events::{self, Watch};
use super::problem::Problem;
use super::{Ingress, RETRY_AFTER_SECONDS, Shared, agents, conversations, json as answer, store_problem, turns};
use crate::channel::Verified;
use crate::channel::web::{ChatMessage, accept};
use crate::config::Bot;
use crate::message::{ConversationStatus, Platform, Timestamp};
use crate::responder::assistant::confirm;
use crate::store::{IdempotencyClaim, Turn};
use crate::telemetry;

/// The longest message, in characters: eight times the longest that a platform delivers.
const MESSAGE_CHARS_MAX: usize = 32_768;

/// The longest device id, in characters.
pub(super) const DEVICE_ID_CHARS_MAX: usize = 255;

/// The longest `Idempotency-Key`, in characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// The longest id of an action that is looked up; ours have 32.
const ACTION_ID_BYTES_MAX: usize = 64;

/// Room for what travels with a message on the stream: its id, schema version and trace context, with their names.
const STREAM_HEADERS_BYTES: usize = 1_024;

/// The longest and the default wait for an answer; proxies in between tend to close after 60 s.
const WAIT_MAX: Duration = Duration::from_secs(55);

/// The notice of a finished turn can be lost, so the ledger is looked at this often as well.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Router<Arc<Ingress>> {
    Router::new()
        .route("/v1/chat", post(chat))
        .route("/v1/turns/{turn_id}", get(turns::show))
        .route("/v1/turns/{turn_id}/events", get(events::resume))
        .route("/v1/conversations", get(conversations::list))
        .route("/v1/conversations/{id}", get(conversations::show).patch(conversations::patch))
        .route("/v1/conversations/{id}/messages", get(conversations::messages).post(agents::post))
}

async fn chat(State(ingress): Shared, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let (queued, watch) = {
        let _permit = ingress.admit()?;
        let access = ingress.access(&headers)?;
        let bytes = ingress.body(body).await?;
        let request = ChatRequest::read(&bytes)?;
        let preference = Preference::read(&headers)?;
        let key = idempotency_key(&headers)?;
        let seat = events::asked_for(&headers).then(|| ingress.seat()).transpose()?;
        let turn = ingress.identify(&access, &request, key.as_deref()).await?;
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

/// A request whose every field is well-formed.
struct ChatRequest {
    bot: Option<String>,
    device_id: String,
    conversation_id: Option<Uuid>,
    message: String,
    /// The answer to a question about an action, as a button under the question would carry it.
    payload: Option<String>,
    platform: Platform,
    metadata: Option<Map<String, Value>>,
    /// SHA-256 of the body's canonical form, for telling a repeated request from another one.
    fingerprint: String,
}

impl ChatRequest {
    fn read(bytes: &[u8]) -> Result<Self, Problem> {
        let body = object(bytes)?;
        let fingerprint = hex::encode(Sha256::digest(Value::Object(body.clone()).to_string()));
        let conversation_id = match body.get("conversation_id") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(conversation_id(text)?),
            Some(_) => return Err(Problem::field(400, "conversation_id", "must be a UUID as a string.")),
        };
        let platform = match text(&body, "platform")?.as_deref() {
            None | Some("web") => Platform::Web,
            Some("api") => Platform::Api,
            Some(_) => return Err(Problem::field(422, "platform", "must be \"web\" or \"api\".")),
        };
        let metadata = match body.get("metadata") {
            None | Some(Value::Null) => None,
            Some(Value::Object(metadata)) => Some(metadata.clone()),
            Some(_) => return Err(Problem::field(422, "metadata", "must be an object.")),
        };
        let device_id = text(&body, "device_id")?.unwrap_or_default();
        check_device_id(&device_id)?;
        let confirmation = Confirmation::read(&body)?;
        let message = match (text(&body, "message")?, &confirmation) {
            (None, Some(confirmation)) => confirmation.word().to_owned(),
            (message, _) => message.unwrap_or_default(),
        };
        check_message(&message)?;
        let payload = confirmation.map(|confirmation| confirmation.payload());
        let bot = text(&body, "bot")?;
        Ok(Self { bot, device_id, conversation_id, message, payload, platform, metadata, fingerprint })
    }
}

impl ChatRequest {
    fn verified(&self, turn: &Identified) -> Verified {
        accept(ChatMessage {
            bot: &turn.bot,
            conversation_id: turn.conversation_id,
            turn_id: turn.turn_id,
            dedupe_id: format!("web:{}", turn.turn_id),
            device_id: &self.device_id,
            platform: self.platform,
            message: &self.message,
            payload: self.payload.clone(),
            metadata: self.metadata.clone(),
            now: Timestamp::now(),
        })
    }
}

/// `"confirm": { "id", "approve" }`: the answer to one of a turn's `actions`.
struct Confirmation {
    id: String,
    approve: bool,
}

impl Confirmation {
    fn read(body: &Map<String, Value>) -> Result<Option<Self>, Problem> {
        let wrong =
            || Problem::field(422, "confirm", "must be { \"id\": an action's id, \"approve\": true or false }.");
        match body.get("confirm") {
            None | Some(Value::Null) => Ok(None),
            Some(confirm) => match (&confirm["id"], &confirm["approve"]) {
                (Value::String(id), Value::Bool(approve)) if !id.is_empty() && id.len() <= ACTION_ID_BYTES_MAX => {
                    Ok(Some(Self { id: id.clone(), approve: *approve }))
                }
                _ => Err(wrong()),
            },
        }
    }

    /// What the history shows, as if the button had been pressed.
    const fn word(&self) -> &'static str {
        if self.approve { confirm::YES_LABEL } else { confirm::NO_LABEL }
    }

    fn payload(&self) -> String {
        confirm::payload(&self.id, self.approve)
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
        request: &ChatRequest,
        key: Option<&str>,
    ) -> Result<Identified, Problem> {
        let (bot, web) = access.bot(request.bot.as_deref())?;
        self.check_size(&bot.name, request)?;
        // A caller without a key shares no name space with other devices.
        let scope = match access.caller {
            Caller::Open => format!("{}/{}", bot.name, request.device_id),
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
        let conversation_id = match request.conversation_id {
            Some(id) => self.conversation_of(access, bot, id, &request.device_id).await?,
            None => {
                self.check_stream()?;
                self.store
                    .active_conversation(
                        &bot.name,
                        &request.device_id,
                        request.platform,
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
                body["trace_id"] = json!(self.trace_id);
                answer(200, &body)
            }
            None => self.accepted(),
        };
        if let Some(applied) = self.preference.applied() {
            response.headers_mut().insert("preference-applied", applied);
        }
        Ok(response)
    }

    fn view(&self) -> Value {
        let mut view = turns::queued(self.turn.conversation_id, self.turn.turn_id, None);
        view["trace_id"] = json!(self.trace_id);
        view
    }

    fn accepted(&self) -> Response {
        let body = self.view();
        let mut response = answer(202, &body);
        if let Some(location) = body["url"].as_str().and_then(|url| HeaderValue::from_str(url).ok()) {
            response.headers_mut().insert("location", location);
        }
        response.headers_mut().insert("retry-after", HeaderValue::from(RETRY_AFTER_SECONDS));
        response
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

/// How the caller wants its answer (RFC 7240). `respond-async, wait=N` together ask to wait for N seconds and then be
/// answered 202 (section 4.3), which is what a wait that runs out comes to anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Preference {
    asynchronous: bool,
    wait: Option<Duration>,
}

impl Preference {
    /// Of a preference given twice the first counts (section 2); those of other names, and parameters, are passed over.
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut preference = Self::default();
        let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
        for token in values.flat_map(|value| value.split(',')) {
            let token = token.split(';').next().unwrap_or_default();
            let (name, value) = token.split_once('=').unwrap_or((token, ""));
            if name.trim().eq_ignore_ascii_case("respond-async") {
                preference.asynchronous = true;
            } else if name.trim().eq_ignore_ascii_case("wait") && preference.wait.is_none() {
                let seconds: u64 = value.trim().trim_matches('"').parse().map_err(|_| {
                    Problem::field(400, "Prefer", "wait must be a whole number of seconds, such as wait=20.")
                })?;
                preference.wait = Some(Duration::from_secs(seconds).min(WAIT_MAX));
            }
        }
        Ok(preference)
    }

    fn applied(self) -> Option<HeaderValue> {
        let wait = self.wait.map(|wait| format!("wait={}", wait.as_secs()));
        let asynchronous = self.asynchronous.then(|| "respond-async".to_owned());
        let applied: Vec<String> = asynchronous.into_iter().chain(wait).collect();
        HeaderValue::from_str(&applied.join(", ")).ok().filter(|value| !value.is_empty())
    }
}

/// The key, bare or as a quoted string of structured fields.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::field(400, "Idempotency-Key", "must be given once."));
    }
    let key = value.to_str().map(str::trim).unwrap_or_default();
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX {
        let detail = format!("must have 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters.");
        return Err(Problem::field(400, "Idempotency-Key", detail));
    }
    Ok(Some(key.to_owned()))
}

/// A JSON object, or why it is none.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::new(400, "malformed", "The body must be a JSON object.")),
        // Its text names a line and column, never the content.
        Err(error) => Err(Problem::new(400, "malformed", format!("The body is not JSON: {error}."))),
    }
}

/// A string field that may be absent.
pub(super) fn text(body: &Map<String, Value>, field: &str) -> Result<Option<String>, Problem> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Problem::field(422, field, "must be a string.")),
    }
}

pub(super) fn conversation_id(text: &str) -> Result<Uuid, Problem> {
    Uuid::parse_str(text).map_err(|_| Problem::field(400, "conversation_id", "must be a UUID."))
}

pub(super) fn check_device_id(device_id: &str) -> Result<(), Problem> {
    let wrong = if device_id.trim().is_empty() {
        "must not be empty or blank."
    } else if device_id.chars().count() > DEVICE_ID_CHARS_MAX {
        "must have at most 255 characters."
    } else if device_id.chars().any(char::is_control) {
        "must not have control characters."
    } else {
        return Ok(());
    };
    Err(Problem::field(422, "device_id", wrong))
}

pub(super) fn check_message(message: &str) -> Result<(), Problem> {
    if message.trim().is_empty() {
        return Err(Problem::field(422, "message", "must not be empty or blank."));
    }
    if message.chars().count() > MESSAGE_CHARS_MAX {
        return Err(Problem::field(422, "message", format!("must have at most {MESSAGE_CHARS_MAX} characters.")));
    }
    Ok(())
}
