//! What `POST /v1/chat` is sent: the body, and the rules for its fields that other requests share.
//!
//! Refuses to look anything up. Invariant: what is read here is the type that the API's description is made from.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Identified;
use crate::channel::Verified;
use crate::channel::web::{ChatMessage, accept};
use crate::ingress::body::{Fields, text};
use crate::ingress::problem::Problem;
use crate::message::{Platform, Timestamp};
use crate::responder::assistant::confirm;

/// The longest message, in characters: eight times the longest that a platform delivers.
pub(in crate::ingress) const MESSAGE_CHARS_MAX: usize = 32_768;

/// The longest device id, in characters.
pub(in crate::ingress) const DEVICE_ID_CHARS_MAX: usize = 255;

/// The longest payload of a button, in characters: as many as a button of ours carries bytes.
const PAYLOAD_CHARS_MAX: usize = 64;

/// Of a text that is a name: no control characters, and not blank. As JSON Schema reads it (ECMA-262).
pub(in crate::ingress) const NAME: &str =
    r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$";

/// Of a text that says something.
pub(in crate::ingress) const NOT_BLANK: &str = r"\S";

/// The longest id of an action that is looked up; ours have 32.
const ACTION_ID_BYTES_MAX: usize = 64;

/// A request whose every field is well-formed.
pub(in crate::ingress) struct ChatRequest {
    pub(in crate::ingress) body: ChatBody,
    /// SHA-256 of the body's canonical form, for telling a repeated request from another one.
    pub(in crate::ingress) fingerprint: String,
}

impl ChatRequest {
    pub(in crate::ingress) fn read(body: Map<String, Value>) -> Result<Self, Problem> {
        let read = ChatBody::read(&body)?;
        Ok(Self { body: read, fingerprint: fingerprint(body) })
    }

    pub(super) fn verified(&self, turn: &Identified) -> Verified {
        accept(ChatMessage {
            bot: &turn.bot,
            conversation_id: turn.conversation_id,
            turn_id: turn.turn_id,
            dedupe_id: format!("web:{}", turn.turn_id),
            device_id: &self.body.device_id,
            platform: self.body.platform(),
            message: self.body.words(),
            payload: self.body.confirm.as_ref().map(Confirmation::payload).or_else(|| self.body.payload.clone()),
            metadata: self.body.metadata.clone(),
            now: Timestamp::now(),
        })
    }
}

/// A message to a bot, or the answer to a question about an action.
// The schema says so with a condition: of two kinds of bodies (`anyOf`), generators of clients make types that do not fit.
#[derive(Debug, JsonSchema)]
#[schemars(
    rename = "ChatRequest",
    deny_unknown_fields,
    extend(
        "if" = { "properties": { "confirm": { "type": "object" } }, "required": ["confirm"] },
        "else" = { "properties": { "message": { "type": "string" } }, "required": ["message"] },
    )
)]
pub(in crate::ingress) struct ChatBody {
    /// The web bot that the message is for. May be left out by who can reach only one.
    pub(super) bot: Option<String>,
    /// The device or account that the person writes from, as the caller names it: not blank, no control characters.
    #[schemars(length(min = 1, max = DEVICE_ID_CHARS_MAX), regex(pattern = NAME))]
    pub(in crate::ingress) device_id: String,
    /// Left out, the device's open conversation goes on, or a new one begins.
    pub(super) conversation_id: Option<Uuid>,
    /// Not blank. May be left out beside `confirm`.
    #[schemars(length(min = 1, max = MESSAGE_CHARS_MAX), regex(pattern = NOT_BLANK))]
    message: Option<String>,
    /// Of the button of a reply that was pressed, whose label is the message. Without meaning beside `confirm`.
    #[schemars(length(min = 1, max = PAYLOAD_CHARS_MAX), regex(pattern = NAME))]
    payload: Option<String>,
    platform: Option<ChatPlatform>,
    /// Kept with the conversation: its members are merged into the conversation's metadata (RFC 7396).
    pub(super) metadata: Option<Map<String, Value>>,
    confirm: Option<Confirmation>,
}

/// Where the person sits: at a browser's widget, which is the default, or behind a program.
#[derive(Debug, Clone, Copy, JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum ChatPlatform {
    Web,
    Api,
}

/// The answer to one of a turn's `actions`.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Confirmation {
    /// The action's id.
    #[schemars(length(min = 1, max = ACTION_ID_BYTES_MAX))]
    id: String,
    approve: bool,
}

static CHAT_FIELDS: LazyLock<Fields> = LazyLock::new(Fields::of::<ChatBody>);
static CONFIRMATION_FIELDS: LazyLock<Fields> = LazyLock::new(Fields::of::<Confirmation>);

impl ChatBody {
    fn read(body: &Map<String, Value>) -> Result<Self, Problem> {
        CHAT_FIELDS.check(body, "")?;
        let conversation_id = match body.get("conversation_id") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(conversation_id(text)?),
            Some(_) => return Err(Problem::field(400, "conversation_id", "must be a UUID as a string.")),
        };
        let platform = match text(body, "platform")?.as_deref() {
            None => None,
            Some("web") => Some(ChatPlatform::Web),
            Some("api") => Some(ChatPlatform::Api),
            Some(_) => return Err(Problem::field(422, "platform", "must be \"web\" or \"api\".")),
        };
        let metadata = match body.get("metadata") {
            None | Some(Value::Null) => None,
            Some(Value::Object(metadata)) => Some(metadata.clone()),
            Some(_) => return Err(Problem::field(422, "metadata", "must be an object.")),
        };
        let device_id = text(body, "device_id")?.unwrap_or_default();
        check_device_id(&device_id)?;
        let confirm = Confirmation::read(body)?;
        let message = text(body, "message")?;
        match (&message, &confirm) {
            (None, Some(_)) => {}
            (message, _) => check_message("message", message.as_deref().unwrap_or_default())?,
        }
        let payload = text(body, "payload")?;
        if let Some(payload) = &payload {
            check_payload(payload)?;
        }
        let bot = text(body, "bot")?;
        Ok(Self { bot, device_id, conversation_id, message, payload, platform, metadata, confirm })
    }

    /// What the history shows; of an answer without words, what the button under the question would say.
    pub(in crate::ingress) fn words(&self) -> &str {
        let confirmed = self.confirm.as_ref().map(Confirmation::word);
        self.message.as_deref().or(confirmed).unwrap_or_default()
    }

    pub(super) const fn platform(&self) -> Platform {
        match self.platform {
            None | Some(ChatPlatform::Web) => Platform::Web,
            Some(ChatPlatform::Api) => Platform::Api,
        }
    }
}

impl Confirmation {
    fn read(body: &Map<String, Value>) -> Result<Option<Self>, Problem> {
        let wrong =
            || Problem::field(422, "confirm", "must be { \"id\": an action's id, \"approve\": true or false }.");
        let confirm = match body.get("confirm") {
            None | Some(Value::Null) => return Ok(None),
            Some(confirm) => confirm.as_object().ok_or_else(wrong)?,
        };
        CONFIRMATION_FIELDS.check(confirm, "confirm.")?;
        match (confirm.get("id"), confirm.get("approve")) {
            (Some(Value::String(id)), Some(Value::Bool(approve)))
                if !id.is_empty() && id.len() <= ACTION_ID_BYTES_MAX =>
            {
                Ok(Some(Self { id: id.clone(), approve: *approve }))
            }
            _ => Err(wrong()),
        }
    }

    const fn word(&self) -> &'static str {
        if self.approve { confirm::YES_LABEL } else { confirm::NO_LABEL }
    }

    /// As a button under the question would carry it.
    fn payload(&self) -> String {
        confirm::payload(&self.id, self.approve)
    }
}

/// What tells a repeated request from another one under the same key.
pub(in crate::ingress) fn fingerprint(body: Map<String, Value>) -> String {
    hex::encode(Sha256::digest(Value::Object(body).to_string()))
}

pub(in crate::ingress) fn conversation_id(text: &str) -> Result<Uuid, Problem> {
    uuid(text).ok_or_else(|| Problem::field(400, "conversation_id", "must be a UUID."))
}

/// With hyphens, as they are given out: other spellings of the same id are taken for mistakes.
pub(in crate::ingress) fn uuid(text: &str) -> Option<Uuid> {
    text.parse().ok().map(Hyphenated::into_uuid)
}

pub(in crate::ingress) fn check_device_id(device_id: &str) -> Result<(), Problem> {
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

fn check_payload(payload: &str) -> Result<(), Problem> {
    let fits = (1..=PAYLOAD_CHARS_MAX).contains(&payload.chars().count());
    if !fits || payload.trim().is_empty() || payload.chars().any(char::is_control) {
        let detail = "must have 1 to 64 characters, not all blank, and no control characters.";
        return Err(Problem::field(422, "payload", detail));
    }
    Ok(())
}

pub(in crate::ingress) fn check_message(field: &str, message: &str) -> Result<(), Problem> {
    if message.trim().is_empty() {
        return Err(Problem::field(422, field, "must not be empty or blank."));
    }
    if message.chars().count() > MESSAGE_CHARS_MAX {
        return Err(Problem::field(422, field, format!("must have at most {MESSAGE_CHARS_MAX} characters.")));
    }
    Ok(())
}
