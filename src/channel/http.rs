//! The channel `http`, both directions: messages of any platform in, replies out as callbacks, and the meaning of their answers
//! (Standard Webhooks 1.0.0; docs/http-channel.md).
//!
//! Refuses to guess: a message whose fields are not those of [`receive`] is refused with the field's name, while an event of
//! another type is kept as it came. Invariants: nothing of a body is looked at before its signature is found right; a
//! callback's id is its delivery's, whatever attempt it is.

use std::time::Duration;

use serde_json::json;

use super::json::{self, Object};
use super::{Answer, Call, Reading, Refusal, Scope, Stamp, Verified};
use crate::config::{Bot, HttpBot, Secret};
use crate::message::{Attachment, Button, Event, InboundMessage, OutboundPart, Peer, Platform, Sender, Timestamp};

pub mod signature;

use signature::Headers;

/// The event that makes a turn.
const MESSAGE: &str = "message.created";

/// The event that a callback brings.
const REPLY: &str = "reply.created";

/// How long to wait when a receiver is overloaded and does not say for how long.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(5);

/// Attachments of one message; a platform that has more sends several messages.
const ATTACHMENTS_MAX: usize = 32;

/// Takes one webhook request: `{"type": "message.created", "timestamp", "data": {"conversation", "user"?, "text"?,
/// "attachments"?, "payload"?, "id"?}}`, with text or at least one attachment.
///
/// # Errors
/// [`Refusal::Unauthorized`] for a wrong or missing signature, and one that is too old or of the future;
/// [`Refusal::Malformed`] for a body that is no JSON object, and for a message without what makes one.
pub fn receive(
    bot: &Bot,
    settings: &HttpBot,
    headers: Option<Headers<'_>>,
    body: &[u8],
    stamp: &mut Stamp<'_>,
) -> Result<Verified, Refusal> {
    let headers = headers.ok_or(Refusal::Unauthorized)?;
    if !signature::is_authentic(&settings.secrets, &headers, body, stamp.now) {
        return Err(Refusal::Unauthorized);
    }
    let (raw, request) = json::body(body)?;
    let kind = request.text("type").ok_or_else(|| malformed("type", "must be a string"))?;
    let reading = match kind.as_str() {
        MESSAGE => message(&request.object("data").ok_or_else(|| malformed("data", "must be an object"))?)?,
        _ => Reading::ignored(Peer::Bot, &kind, "unknown type"),
    };
    // The sender's id is unique for one bot's sender only.
    let dedupe_id = format!("http:{}:{}", super::dedupe_piece(&bot.name), super::dedupe_piece(headers.id));
    Ok(super::verified(bot, Platform::Http, dedupe_id, reading, raw, stamp))
}

fn message(data: &Object<'_>) -> Result<Reading, Refusal> {
    let conversation =
        data.id("conversation").ok_or_else(|| malformed("data.conversation", "must be an id of 1 to 128 bytes"))?;
    let sender = match (data.id("user"), data.object("user")) {
        (Some(id), _) => Some(Sender { id, ..Sender::default() }),
        (None, Some(user)) => Some(sender(&user).ok_or_else(|| malformed("data.user.id", "must be an id"))?),
        (None, None) => None,
    };
    let payload = data.text("payload");
    let text = data.text("text").or_else(|| payload.clone()).unwrap_or_default();
    let attachments = data.list("attachments").unwrap_or_default();
    if attachments.len() > ATTACHMENTS_MAX {
        return Err(malformed("data.attachments", "has more than 32 elements"));
    }
    let attachments = attachments.into_iter().map(|one| Object::read(one).and_then(|one| attachment(&one)));
    let attachments: Option<Vec<Attachment>> = attachments.collect();
    let attachments = attachments
        .ok_or_else(|| malformed("data.attachments", "must have objects with a kind and a url or file_id"))?;
    if text.is_empty() && attachments.is_empty() {
        return Err(malformed("data.text", "must be a string that is not blank, unless there are attachments"));
    }
    let message =
        InboundMessage { text, attachments, payload, platform_message_id: data.id("id"), ..InboundMessage::default() };
    let peer = Peer::User(conversation);
    Ok(Reading { peer, sender, event: Event::Message(message), amendment: None, notice: None })
}

fn sender(user: &Object<'_>) -> Option<Sender> {
    Some(Sender {
        id: user.id("id")?,
        name: user.text("name"),
        username: user.text("username"),
        language: user.text("language"),
        ..Sender::default()
    })
}

fn attachment(attachment: &Object<'_>) -> Option<Attachment> {
    let (file_id, url) = (attachment.id("file_id"), attachment.text("url"));
    if file_id.is_none() && url.is_none() {
        return None;
    }
    Some(Attachment {
        kind: attachment.text("kind")?,
        file_id,
        url,
        mime_type: attachment.text("mime_type"),
        name: attachment.text("name"),
    })
}

fn malformed(field: &str, wrong: &str) -> Refusal {
    Refusal::Malformed { detail: format!("{field} {wrong}") }
}

/// The callback that brings `part`. `None` for [`Peer::Bot`], behind which nobody is.
pub(super) fn call(settings: &HttpBot, part: &OutboundPart) -> Option<Call> {
    let Peer::User(conversation) = &part.key.peer else { return None };
    let button = |button: &Button| json!({ "label": button.label, "payload": button.payload });
    let body = json!({
        "type": REPLY,
        "timestamp": part.created_at,
        "data": {
            "id": part.delivery_id,
            "conversation": conversation,
            "conversation_id": part.conversation_id,
            "turn_id": part.turn_id,
            "message_id": part.message_id,
            "text": part.content,
            "buttons": part.buttons.iter().map(button).collect::<Vec<_>>(),
        },
    });
    Some(Call { url: Secret::new(settings.callback_url.clone()), bearer: None, body })
}

/// A callback as it goes over the wire.
#[derive(Debug)]
pub struct Signed {
    pub body: Vec<u8>,
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    pub headers: [(&'static str, String); 3],
}

/// Signs one attempt at a callback: the id stays the delivery's, time and signature are the attempt's own.
#[must_use]
pub fn signed(settings: &HttpBot, call: &Call, now: Timestamp) -> Signed {
    let body = call.body.to_string().into_bytes();
    let id = call.body["data"]["id"].as_str().unwrap_or_default().to_owned();
    let timestamp = (now.as_micros() / 1_000_000).to_string();
    let signature = signature::sign(&settings.secrets, &id, &timestamp, &body);
    Signed { body, headers: [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)] }
}

/// The meaning of a callback's answer: any 2xx is a yes, a receiver that is gone is not called again, one that is overloaded
/// is given time. Everything else is a failure that may pass: receivers know what comes again by its id.
pub(super) fn classify(status: u16, retry_after: Option<Duration>) -> Answer {
    let error = format!("HTTP status {status}");
    match status {
        200..=299 => Answer::Sent { platform_message_id: None },
        410 => Answer::Closed { error },
        429 | 503 => super::retry(retry_after.unwrap_or(OVERLOAD_PAUSE), Scope::Bot, error),
        // What stands before the receiver has no answer of it: it may have died of just this one.
        504 => Answer::Uncertain { error },
        _ => Answer::NotSent { error },
    }
}
