//! `POST /v1/conversations/{id}/messages`: what a human agent says to the person, and messages taken over from elsewhere.
//!
//! Refuses to write an agent's message itself: it goes through the stream like everything else that is said, so that it has its
//! place in the conversation, leaves in order and is accounted for. Imported messages are history: they are stored at once and
//! sent to nobody.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::access::Caller;
use super::chat::{check_message, idempotency_key, object, text, wait};
use super::conversations::not_found;
use super::extract::Segment;
use super::problem::Problem;
use super::{Ingress, Shared, json as answer, store_problem, turns};
use crate::channel::web;
use crate::message::{Author, ConversationStatus, Role, Timestamp};
use crate::store::{Conversation, IdempotencyClaim, NewMessage};

/// Messages of one import; more come in several requests.
const IMPORT_MAX: usize = 500;

/// How long the caller of an agent's message waits for it to be stored before it is told where to look.
const WAIT: Duration = Duration::from_secs(10);

pub(super) async fn post(
    State(ingress): Shared,
    Segment(id): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let permit = ingress.admit()?;
    let access = ingress.access(&headers)?;
    if access.caller == Caller::Open {
        return Err(Problem::unauthorized());
    }
    let body = object(&ingress.body(body).await?)?;
    let message = Posted::read(&body)?;
    let key = idempotency_key(&headers)?;
    let conversation = ingress.visible(&access, &id, None).await?;
    match message {
        Posted::Import(messages) => ingress.import(&conversation, messages).await,
        Posted::Said(content) => {
            let fingerprint = hex::encode(Sha256::digest(Value::Object(body).to_string()));
            let said = ingress.say(&conversation, &content, key.as_deref(), &fingerprint).await?;
            drop(permit);
            said.answer(&ingress).await
        }
    }
}

/// What the body asks for.
enum Posted {
    Said(String),
    Import(Vec<NewMessage>),
}

impl Posted {
    fn read(body: &Map<String, Value>) -> Result<Self, Problem> {
        match (text(body, "content")?, body.get("messages")) {
            (Some(content), None) => {
                check_message(&content)?;
                Ok(Self::Said(content))
            }
            (None, Some(Value::Array(messages))) if (1..=IMPORT_MAX).contains(&messages.len()) => {
                let now = Timestamp::now();
                let read = |(place, message)| imported(place, message, now);
                messages.iter().enumerate().map(read).collect::<Result<_, _>>().map(Self::Import)
            }
            (None, Some(_)) => {
                Err(Problem::field(422, "messages", format!("must be a list of 1 to {IMPORT_MAX} messages.")))
            }
            _ => Err(Problem::field(422, "content", "must be given, or else messages, and not both.")),
        }
    }
}

fn imported(place: usize, message: &Value, now: Timestamp) -> Result<NewMessage, Problem> {
    let wrong = |field: &str, detail: &str| Err(Problem::field(422, &format!("messages[{place}].{field}"), detail));
    let role = match message["role"].as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => return wrong("role", "must be \"user\" or \"assistant\"."),
    };
    let Some(content) = message["content"].as_str().filter(|content| check_message(content).is_ok()) else {
        return wrong("content", "must be a text that is not blank, of at most 32768 characters.");
    };
    let created_at = match message.get("created_at") {
        None | Some(Value::Null) => now,
        Some(moment) => match serde_json::from_value(moment.clone()) {
            Ok(moment) => moment,
            Err(_) => return wrong("created_at", "must be a moment such as 2026-11-21T09:00:00Z."),
        },
    };
    Ok(NewMessage {
        id: Uuid::now_v7(),
        role,
        author: Author::Import,
        content: content.to_owned(),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: None,
        created_at,
    })
}

impl Ingress {
    async fn import(&self, conversation: &Conversation, messages: Vec<NewMessage>) -> Result<Response, Problem> {
        let stored = self.store.append_messages(conversation.id, messages, Timestamp::now()).await;
        let stored = stored.map_err(|error| store_problem(&error))?.ok_or_else(not_found)?;
        Ok(answer(201, &json!({ "conversation_id": conversation.id, "messages": stored })))
    }

    async fn say(
        &self,
        conversation: &Conversation,
        content: &str,
        key: Option<&str>,
        fingerprint: &str,
    ) -> Result<Said, Problem> {
        if conversation.status == ConversationStatus::Closed {
            return Err(Problem::new(409, "closed", "The conversation is closed. Open it again first."));
        }
        self.check_stream()?;
        let turn_id = Uuid::now_v7();
        let scope = format!("{}/agents", conversation.key.bot);
        let key = key.map_or_else(|| format!("turn {turn_id}"), |key| format!("key {key}"));
        let now = Timestamp::now();
        let claim = self.store.claim_idempotency_key(&scope, &key, fingerprint, turn_id, conversation.id, now).await;
        let turn_id = match claim.map_err(|error| store_problem(&error))? {
            IdempotencyClaim::Granted { turn_id, .. } => turn_id,
            IdempotencyClaim::Conflict => {
                let detail = "was used for a request with another body; a new request needs a new key.";
                return Err(Problem::field(422, "Idempotency-Key", detail));
            }
        };
        // Listening begins before publishing, so that the notice cannot come in between.
        let notices = self.connection.client.subscribe(self.connection.names.turn_notice(turn_id)).await.ok();
        self.publish(&web::accept_agent(conversation, turn_id, content, now)).await?;
        Ok(Said { conversation_id: conversation.id, turn_id, notices })
    }
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
            Some(turn) => Ok(answer(201, &turns::view(ingress, &turn).await?)),
            None => Ok(answer(
                202,
                &json!({
                    "conversation_id": self.conversation_id,
                    "turn_id": self.turn_id,
                    "status": "queued",
                    "url": format!("/v1/turns/{}", self.turn_id),
                }),
            )),
        }
    }
}
