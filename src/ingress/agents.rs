//! `POST /v1/conversations/{id}/messages`: what a human agent says to the person, and messages taken over from elsewhere.
//!
//! Refuses to write an agent's message itself: it goes through the stream like everything else that is said, so that it has its
//! place in the conversation, leaves in order and is accounted for. Imported messages are history: they are stored at once and
//! sent to nobody.

use std::sync::LazyLock;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::access::Caller;
use super::body::{self, Fields, not_null};
use super::chat::request::{MESSAGE_CHARS_MAX, NOT_BLANK, check_message, fingerprint};
use super::chat::wait;
use super::conversations::not_found;
use super::extract::Segment;
use super::headers::{IDEMPOTENCY_KEY, idempotency_key};
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::turns::{Queued, TurnView};
use super::{Ingress, Shared, json as answer, store_problem, turns};
use crate::channel::web;
use crate::message::{Author, ConversationStatus, Role, Timestamp};
use crate::store::{Conversation, IdempotencyClaim, NewMessage, StoredMessage};

/// Messages of one import; more come in several requests.
const IMPORT_MAX: usize = 500;

/// How long the caller of an agent's message waits for it to be stored before it is told where to look.
const WAIT: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Routes {
    Routes::default().post(
        "/v1/conversations/{id}/messages",
        post,
        Operation::new("addMessages", "A human agent's message to the person, or messages taken over from elsewhere.")
            .details("Imported messages become history: they are stored at once and sent to nobody.")
            .security(Security::Key)
            .header_like(
                "Idempotency-Key",
                IDEMPOTENCY_KEY,
                "The same key with the same body, in the same conversation, stands for the same messages.",
            )
            .body::<Posted>(body::JSON)
            .answer::<Stored>(201, "What was stored: the agent's message as a turn, or the imported messages.")
            .answer::<Queued>(202, "The agent's message is kept; something before it still runs.")
            .problems(&[400, 401, 403, 404, 408, 409, 413, 415, 422, 503]),
    )
}

async fn post(
    State(ingress): Shared,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let access = ingress.access(&headers)?;
    if access.caller == Caller::Open {
        return Err(Problem::unauthorized());
    }
    let body = ingress.object(&headers, body, body::JSON).await?;
    let permit = ingress.admit()?;
    let posted = Posted::read(&body)?;
    let key = idempotency_key(&headers)?;
    let request = key.map(|key| Keyed { key: format!("key {key}"), fingerprint: fingerprint(body) });
    let conversation = ingress.visible(&access, &id, None).await?;
    match posted {
        Posted { messages: Some(messages), .. } => ingress.import(&conversation, messages, request.as_ref()).await,
        Posted { content, messages: None } => {
            let content = content.unwrap_or_default();
            let said = ingress.say(&conversation, &content, request.as_ref()).await?;
            drop(permit);
            said.answer(&ingress).await
        }
    }
}

/// An agent's words, or messages to import: one of the two.
#[derive(Debug, JsonSchema)]
#[schemars(
    rename = "NewMessages",
    deny_unknown_fields,
    extend(
        "if" = { "required": ["messages"] },
        "then" = { "properties": { "content": false } },
        "else" = { "required": ["content"] },
    )
)]
pub(super) struct Posted {
    /// Not blank.
    #[schemars(length(min = 1, max = MESSAGE_CHARS_MAX), regex(pattern = NOT_BLANK), transform = not_null)]
    content: Option<String>,
    #[schemars(length(min = 1, max = IMPORT_MAX), transform = not_null)]
    messages: Option<Vec<Imported>>,
}

/// A message of the past.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "ImportedMessage", deny_unknown_fields)]
struct Imported {
    role: ImportedRole,
    /// Not blank.
    #[schemars(length(min = 1, max = MESSAGE_CHARS_MAX), regex(pattern = NOT_BLANK))]
    content: String,
    /// The moment of the import, where it is left out.
    created_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum ImportedRole {
    User,
    Assistant,
}

static POSTED_FIELDS: LazyLock<Fields> = LazyLock::new(Fields::of::<Posted>);
static IMPORTED_FIELDS: LazyLock<Fields> = LazyLock::new(Fields::of::<Imported>);

impl Posted {
    pub(super) fn read(body: &Map<String, Value>) -> Result<Self, Problem> {
        POSTED_FIELDS.check(body, "")?;
        match (body.get("content"), body.get("messages")) {
            (Some(Value::String(content)), None) => {
                check_message("content", content)?;
                Ok(Self { content: Some(content.clone()), messages: None })
            }
            (Some(_), None) => Err(Problem::field(422, "content", "must be a string.")),
            (None, Some(Value::Array(messages))) if (1..=IMPORT_MAX).contains(&messages.len()) => {
                let messages = messages.iter().enumerate().map(|(place, message)| Imported::read(place, message));
                Ok(Self { content: None, messages: Some(messages.collect::<Result<_, _>>()?) })
            }
            (None, Some(_)) => {
                Err(Problem::field(422, "messages", format!("must be a list of 1 to {IMPORT_MAX} messages.")))
            }
            _ => Err(Problem::field(422, "content", "must be given, or else messages, and not both.")),
        }
    }
}

impl Imported {
    fn read(place: usize, message: &Value) -> Result<Self, Problem> {
        let wrong = |field: &str, detail: &str| Problem::field(422, &format!("messages[{place}].{field}"), detail);
        let Some(message) = message.as_object() else {
            return Err(Problem::field(422, &format!("messages[{place}]"), "must be an object."));
        };
        IMPORTED_FIELDS.check(message, &format!("messages[{place}]."))?;
        let role = match message.get("role").and_then(Value::as_str) {
            Some("user") => ImportedRole::User,
            Some("assistant") => ImportedRole::Assistant,
            _ => return Err(wrong("role", "must be \"user\" or \"assistant\".")),
        };
        let Some(content) = message.get("content").and_then(Value::as_str) else {
            return Err(wrong("content", "must be a string."));
        };
        check_message(&format!("messages[{place}].content"), content)?;
        let created_at = match message.get("created_at") {
            None | Some(Value::Null) => None,
            Some(moment) => Some(
                serde_json::from_value(moment.clone())
                    .map_err(|_| wrong("created_at", "must be a moment such as 2026-11-21T09:00:00Z."))?,
            ),
        };
        Ok(Self { role, content: content.to_owned(), created_at })
    }

    fn into_message(self, now: Timestamp) -> NewMessage {
        NewMessage {
            id: Uuid::now_v7(),
            role: match self.role {
                ImportedRole::User => Role::User,
                ImportedRole::Assistant => Role::Assistant,
            },
            author: Author::Import,
            content: self.content,
            attachments: Vec::new(),
            tool: None,
            platform_message_id: None,
            created_at: self.created_at.unwrap_or(now),
        }
    }
}

/// What a request stored.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "StoredMessages")]
enum Stored {
    Said(Box<TurnView>),
    Imported { conversation_id: Uuid, messages: Vec<StoredMessage> },
}

impl Ingress {
    /// Under an idempotency key the first message has an id made from it, so that the same import again finds the first one.
    async fn import(
        &self,
        conversation: &Conversation,
        messages: Vec<Imported>,
        request: Option<&Keyed>,
    ) -> Result<Response, Problem> {
        let now = Timestamp::now();
        let mut messages: Vec<NewMessage> = messages.into_iter().map(|message| message.into_message(now)).collect();
        if let (Some(request), Some(first)) = (request, messages.first_mut()) {
            first.id = import_id(self.claim(conversation, request, now).await?);
        }
        let stored = self.store.append_messages(conversation.id, messages, now).await;
        let messages = stored.map_err(|error| store_problem(&error))?.ok_or_else(not_found)?;
        Ok(answer(201, &Stored::Imported { conversation_id: conversation.id, messages }))
    }

    /// An agent's message from the console; waits for a while until it is stored. True when it is.
    ///
    /// # Errors
    /// 409 for a closed conversation, 422 for text that is none, 503 when it is not on the stream.
    pub(crate) async fn say_as_agent(&self, conversation: &Conversation, content: &str) -> Result<bool, Problem> {
        check_message("content", content)?;
        let said = self.say(conversation, content, None).await?;
        Ok(match said.notices {
            Some(notices) => wait(self, said.turn_id, notices, WAIT).await.is_some(),
            None => false,
        })
    }

    async fn say(&self, conversation: &Conversation, content: &str, request: Option<&Keyed>) -> Result<Said, Problem> {
        if conversation.status == ConversationStatus::Closed {
            return Err(Problem::new(409, "closed", "The conversation is closed. Open it again first."));
        }
        self.check_stream()?;
        let now = Timestamp::now();
        let unkeyed = Keyed { key: format!("turn {}", Uuid::now_v7()), fingerprint: String::new() };
        let turn_id = self.claim(conversation, request.unwrap_or(&unkeyed), now).await?;
        // Listening begins before publishing, so that the notice cannot come in between.
        let notices = self.connection.client.subscribe(self.connection.names.turn_notice(turn_id)).await.ok();
        self.publish(&web::accept_agent(conversation, turn_id, content, now)).await?;
        Ok(Said { conversation_id: conversation.id, turn_id, notices })
    }

    /// The turn that the key stands for: a new one, or that of the same request before.
    async fn claim(&self, conversation: &Conversation, request: &Keyed, now: Timestamp) -> Result<Uuid, Problem> {
        let scope = format!("{}/agents", conversation.key.bot);
        let Keyed { key, fingerprint } = request;
        let claim =
            self.store.claim_idempotency_key(&scope, key, fingerprint, Uuid::now_v7(), conversation.id, now).await;
        match claim.map_err(|error| store_problem(&error))? {
            // The body says nothing of the conversation, which the address names.
            IdempotencyClaim::Granted { turn_id, conversation_id } if conversation_id == conversation.id => Ok(turn_id),
            IdempotencyClaim::Granted { .. } | IdempotencyClaim::Conflict => {
                let detail = "was used for another request; a new request needs a new key.";
                Err(Problem::field(422, "Idempotency-Key", detail))
            }
        }
    }
}

/// A request that may come again.
struct Keyed {
    key: String,
    fingerprint: String,
}

/// No turn's id, for there is no turn: UUIDv8 (RFC 9562, 5.8).
fn import_id(claimed: Uuid) -> Uuid {
    let digest = Sha256::digest(claimed.as_bytes());
    let mut head = [0; 16];
    head.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(head).into_uuid()
}

/// An agent's message that is on the stream.
struct Said {
    conversation_id: Uuid,
    turn_id: Uuid,
    notices: Option<async_nats::Subscriber>,
}

impl Said {
    /// 201 with the message once it is stored; 202 while something before it in the conversation still runs.
    async fn answer(self, ingress: &Ingress) -> Result<Response, Problem> {
        let turn = match self.notices {
            Some(notices) => wait(ingress, self.turn_id, notices, WAIT).await,
            None => None,
        };
        match turn {
            Some(turn) => Ok(answer(201, &Stored::Said(Box::new(turns::view(ingress, &turn).await?)))),
            None => Ok(Queued::new(self.conversation_id, self.turn_id, None).accepted()),
        }
    }
}
