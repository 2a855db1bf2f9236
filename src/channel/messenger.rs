//! Messenger, both directions: webhook events in, Send API calls out, and the meaning of their answers (Meta's Messenger
//! Platform documentation, Graph API v26.0).
//!
//! Refuses to let one odd event spoil a batch: each is read on its own, and what cannot be read is kept as it came.
//! Invariant: nothing of a body is looked at before its signature over the raw bytes is found right.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use serde_json::value::RawValue;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::json::{self, Object};
use super::{Call, Reading, Refusal, Stamp, Verified, split};
use crate::config::{Bot, BotChannel, MessengerBot, Secret};
use crate::message::{
    Amendment, Attachment, Button, Event, InboundMessage, OutboundPart, Peer, Platform, Replacement, Sender,
};

pub(super) mod answer;
mod notice;

/// The longest text of one message. Meta says 2000 characters; UTF-16 units never undercount.
pub(super) const TEXT_UNITS_MAX: usize = 2000;

/// Quick replies of one message, and the longest title and payload of one (Messenger Platform, "Quick Replies").
const QUICK_REPLIES_MAX: usize = 13;
const TITLE_UNITS_MAX: usize = 20;
const PAYLOAD_CHARS_MAX: usize = 1000;

/// "Is typing" ends by itself after some 20 s (Messenger Platform, "Sender Actions").
pub(super) const TYPING_AGAIN_AFTER: Duration = Duration::from_secs(12);

/// A page may write to a person for so long after they last wrote to it (Messenger Platform, "Messaging Window").
pub(super) const WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// What the error of a delivery begins with that the window kept from leaving.
pub(crate) const OUTSIDE_WINDOW: &str = "outside_window";

/// Marks a peer known by a plugin's `user_ref` instead of a page-scoped id, which is all digits.
const USER_REF: &str = "user_ref:";

/// Members of an event that do not name its kind.
const FRAME: [&str; 4] = ["sender", "recipient", "timestamp", "prior_message"];

/// Answers the verification request: the challenge when mode and token are right, else `None` (HTTP 403).
#[must_use]
pub fn challenge(
    messenger: &MessengerBot,
    mode: Option<&str>,
    token: Option<&str>,
    challenge: Option<&str>,
) -> Option<String> {
    let expected = messenger.verify_token.expose().as_bytes();
    let right = !expected.is_empty() && bool::from(expected.ct_eq(token?.as_bytes()));
    (mode == Some("subscribe") && right).then_some(challenge?.to_owned())
}

/// Takes one webhook request, whose header `X-Hub-Signature-256` is `signature_header`. One app serves many pages, so the
/// entry's page decides the bot: the request's own, or one of `others` that has this page and the same app secret.
///
/// # Errors
/// [`Refusal::Unauthorized`] for a wrong or missing signature; [`Refusal::Malformed`] for a body that is not a JSON object.
pub fn receive(
    bot: &Bot,
    messenger: &MessengerBot,
    others: &[(&Bot, &MessengerBot)],
    signature_header: Option<&[u8]>,
    body: &[u8],
    stamp: &mut Stamp<'_>,
) -> Result<Vec<Verified>, Refusal> {
    authenticate(messenger, signature_header, body)?;
    let (raw, request) = json::body(body)?;
    let mut batch = Batch { bot, messenger, others, stamp, accepted: Vec::new() };
    match (request.text("object").as_deref(), request.list("entry")) {
        (Some("page"), Some(entries)) => entries.into_iter().for_each(|entry| batch.entry(entry)),
        (Some("page"), None) => batch.keep(bot, "", "page", "no entries", raw),
        (object, _) => batch.keep(bot, "", object.unwrap_or("none"), "not a page", raw),
    }
    Ok(batch.accepted)
}

/// Meta signs the bytes it sends, so nothing may be parsed before this.
fn authenticate(messenger: &MessengerBot, header: Option<&[u8]>, body: &[u8]) -> Result<(), Refusal> {
    let secret = messenger.app_secret.expose();
    let hex_digest = header.and_then(|header| header.strip_prefix(b"sha256="));
    let signature = hex_digest.and_then(|digits| hex::decode(digits).ok()).ok_or(Refusal::Unauthorized)?;
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map_err(|_| Refusal::Unauthorized)?;
    let right = !secret.is_empty() && mac.chain_update(body).verify_slice(&signature).is_ok();
    if right { Ok(()) } else { Err(Refusal::Unauthorized) }
}

/// One authentic request while it is taken apart.
struct Batch<'a, 'stamp, 'id> {
    bot: &'a Bot,
    messenger: &'a MessengerBot,
    others: &'a [(&'a Bot, &'a MessengerBot)],
    stamp: &'stamp mut Stamp<'id>,
    accepted: Vec<Verified>,
}

impl<'a> Batch<'a, '_, '_> {
    /// Takes the events of one entry. `standby` holds what another app answers; `changes` wraps events in a field's value.
    fn entry(&mut self, raw: &RawValue) {
        let Some(entry) = Object::read(raw) else { return self.keep(self.bot, "", "entry", "unreadable", raw) };
        let page = entry.id("id").unwrap_or_default();
        let lists = ["messaging", "changes", "standby"].map(|name| (name, entry.list(name)));
        if lists.iter().all(|(_, events)| events.is_none()) {
            return self.keep(self.bot, &page, "entry", "no events", raw);
        }
        for (list, events) in lists {
            for event in events.unwrap_or_default() {
                self.event(&page, list, event);
            }
        }
    }

    fn event(&mut self, page: &str, list: &str, raw: &RawValue) {
        let Some(bot) = self.bot_of(page) else { return self.keep(self.bot, page, list, "unknown page", raw) };
        let change = if list == "changes" { Object::read(raw) } else { None };
        let raw = change.as_ref().and_then(|change| change.raw("value")).unwrap_or(raw);
        let Some(event) = Object::read(raw) else { return self.keep(bot, page, list, "unreadable", raw) };
        let (reading, mid) = read(&event, list == "standby", app_id(bot));
        let dedupe_id = match mid.filter(|_| matches!(reading.event, Event::Message(_))) {
            Some(mid) => format!("messenger:{}:{}", super::dedupe_piece(page), super::dedupe_piece(&mid)),
            None => hashed(page, list, raw),
        };
        self.accepted.push(super::verified(bot, Platform::Messenger, dedupe_id, reading, raw, self.stamp));
    }

    fn bot_of(&self, page: &str) -> Option<&'a Bot> {
        if page == self.messenger.page_id {
            return Some(self.bot);
        }
        let same_app = |other: &MessengerBot| {
            bool::from(other.app_secret.expose().as_bytes().ct_eq(self.messenger.app_secret.expose().as_bytes()))
        };
        let mut others = self.others.iter().filter(|(_, other)| other.page_id == page && same_app(other));
        others.next().map(|(bot, _)| *bot)
    }

    /// Keeps what is no event of a known page.
    fn keep(&mut self, bot: &Bot, page: &str, kind: &str, reason: &str, raw: &RawValue) {
        let reading = Reading::ignored(Peer::Bot, kind, reason);
        let dedupe_id = hashed(page, kind, raw);
        self.accepted.push(super::verified(bot, Platform::Messenger, dedupe_id, reading, raw, self.stamp));
    }
}

fn app_id(bot: &Bot) -> Option<&str> {
    match &bot.channel {
        BotChannel::Messenger(messenger) => messenger.app_id.as_deref(),
        _ => None,
    }
}

/// The dedupe id of what makes no turn. Not the `mid`: an echo, a deletion or a standby copy repeats the message's own, and
/// must never stand in the way of the message.
fn hashed(page: &str, list: &str, raw: &RawValue) -> String {
    let hash = super::dedupe_hash(format!("{list}\n{}", raw.get()).as_bytes());
    format!("messenger:{}:{hash}", super::dedupe_piece(page))
}

/// What an event is, and the id of its message if it has one.
fn read(event: &Object<'_>, standby: bool, app_id: Option<&str>) -> (Reading, Option<String>) {
    let mut names: Vec<&str> = event.names().filter(|name| !FRAME.contains(name)).collect();
    names.sort_by_key(|name| !matches!(*name, "message" | "postback"));
    let kind = names.first().copied().unwrap_or("none");
    let content = event.object(kind);
    let echo = content.as_ref().is_some_and(|content| content.flag("is_echo"));
    let person = event.object(if echo { "recipient" } else { "sender" });
    let peer = person.as_ref().and_then(peer);
    let turn = match (kind, &content) {
        _ if standby => Err("standby"),
        ("message" | "postback", None) => Err("unreadable"),
        ("message", Some(content)) => message(content),
        ("postback", Some(content)) => postback(content),
        _ => Err(reason(kind)),
    };
    let amendment = match (kind, &content) {
        _ if standby || echo || peer.is_none() => None,
        ("message" | "message_edit", Some(content)) => amendment(kind, content),
        _ => None,
    };
    let notice = content.as_ref().filter(|_| !standby && peer.is_some());
    let notice = notice.and_then(|content| notice::read(kind, content, app_id));
    let turn = turn.and_then(|message| if peer.is_some() { Ok(message) } else { Err("no sender") });
    let reading = Reading {
        sender: peer.as_ref().filter(|_| !echo).and_then(sender),
        peer: peer.unwrap_or(Peer::Bot),
        event: turn.map_or_else(|reason| super::ignored(kind, reason), Event::Message),
        amendment,
        notice,
    };
    (reading, content.and_then(|content| content.text("mid")))
}

/// What an edit or a deletion makes of the message. An edit names the text alone.
fn amendment(kind: &str, content: &Object<'_>) -> Option<Amendment> {
    let platform_message_id = content.text("mid")?;
    let replacement = match kind {
        "message_edit" => Some(Replacement { text: content.text("text")?, attachments: None }),
        _ if content.flag("is_deleted") => None,
        _ => return None,
    };
    Some(Amendment { platform_message_id, replacement })
}

fn reason(kind: &str) -> &'static str {
    match kind {
        "message_edit" => "edited",
        "pass_thread_control" | "take_thread_control" | "request_thread_control" | "app_roles" => "thread control",
        "account_linking" | "checkout_update" | "delivery" | "game_play" | "messaging_feedback" | "optin"
        | "payment" | "policy-enforcement" | "reaction" | "read" | "referral" | "response_feedback" => "not a message",
        _ => "unknown kind",
    }
}

fn peer(person: &Object<'_>) -> Option<Peer> {
    let user_ref = || person.id("user_ref").map(|user_ref| format!("{USER_REF}{user_ref}"));
    person.id("id").or_else(user_ref).map(Peer::User)
}

fn sender(peer: &Peer) -> Option<Sender> {
    match peer {
        Peer::User(id) => Some(Sender { id: id.clone(), ..Sender::default() }),
        _ => None,
    }
}

/// The turn a message makes, or why it makes none.
fn message(message: &Object<'_>) -> Result<InboundMessage, &'static str> {
    for (flag, reason) in [("is_echo", "echo"), ("is_deleted", "deleted"), ("is_unsupported", "unsupported")] {
        if message.flag(flag) {
            return Err(reason);
        }
    }
    let payload = message.object("quick_reply").and_then(|quick_reply| quick_reply.text("payload"));
    let text = message.text("text").or_else(|| payload.clone()).unwrap_or_default();
    let attachments = attachments(message);
    if text.is_empty() && attachments.is_empty() {
        return Err("no content");
    }
    Ok(InboundMessage {
        text,
        attachments,
        payload,
        platform_message_id: message.text("mid"),
        ..InboundMessage::default()
    })
}

fn attachments(message: &Object<'_>) -> Vec<Attachment> {
    let attachments = message.list("attachments").unwrap_or_default();
    attachments.into_iter().filter_map(Object::read).map(|one| attachment(&one)).collect()
}

/// The turn a pressed button makes, or why it makes none.
fn postback(postback: &Object<'_>) -> Result<InboundMessage, &'static str> {
    let payload = postback.text("payload");
    let text = postback.text("title").or_else(|| payload.clone()).ok_or("no content")?;
    Ok(InboundMessage { text, payload, platform_message_id: postback.text("mid"), ..InboundMessage::default() })
}

/// A place is named by a URI (RFC 5870), a sticker by its id.
fn attachment(attachment: &Object<'_>) -> Attachment {
    let payload = attachment.object("payload");
    let place = payload.as_ref().and_then(|payload| payload.object("coordinates"));
    let geo = place.and_then(|at| Some(format!("geo:{},{}", at.decimal("lat")?, at.decimal("long")?)));
    let url = payload.as_ref().and_then(|payload| payload.text("url"));
    Attachment {
        kind: attachment.text("type").unwrap_or_else(|| "unknown".to_owned()),
        file_id: payload.as_ref().and_then(|payload| payload.id("sticker_id")),
        url: url.or_else(|| attachment.text("url")).or(geo),
        mime_type: None,
        name: attachment.text("title"),
    }
}

/// The Send API call for `part`. The delivery's id rides along as `metadata` and comes back in the echo. `None` for peers
/// that are no person.
pub(super) fn call(messenger: &MessengerBot, part: &OutboundPart) -> Option<Call> {
    let recipient = recipient(&part.key.peer)?;
    let mut message = json!({ "text": part.content, "metadata": part.delivery_id.to_string() });
    let quick_replies = quick_replies(&part.buttons);
    if !quick_replies.is_empty() {
        message["quick_replies"] = json!(quick_replies);
    }
    Some(send(messenger, json!({ "recipient": recipient, "messaging_type": "RESPONSE", "message": message })))
}

/// The Send API call that shows "is typing". `None` for peers that are no person.
pub(super) fn typing(messenger: &MessengerBot, peer: &Peer) -> Option<Call> {
    Some(send(messenger, json!({ "recipient": recipient(peer)?, "sender_action": "typing_on" })))
}

/// The Send API call that shows the person's messages as seen. `None` for peers that are no person.
pub(super) fn seen(messenger: &MessengerBot, peer: &Peer) -> Option<Call> {
    Some(send(messenger, json!({ "recipient": recipient(peer)?, "sender_action": "mark_seen" })))
}

fn recipient(peer: &Peer) -> Option<serde_json::Value> {
    let Peer::User(person) = peer else { return None };
    Some(match person.strip_prefix(USER_REF) {
        Some(user_ref) => json!({ "user_ref": user_ref }),
        None => json!({ "id": person }),
    })
}

fn send(messenger: &MessengerBot, body: serde_json::Value) -> Call {
    let url = format!("{}/{}/{}/messages", messenger.api_base, messenger.api_version, messenger.page_id);
    Call { url: Secret::new(url), bearer: Some(messenger.page_token.clone()), body }
}

/// A button that Meta would refuse is left out: it would take the whole message with it.
fn quick_replies(buttons: &[Button]) -> Vec<serde_json::Value> {
    let title = |button: &Button| split::beginning(button.label.trim(), TITLE_UNITS_MAX).trim_end().to_owned();
    let payload_fits = |button: &&Button| (1..=PAYLOAD_CHARS_MAX).contains(&button.payload.chars().count());
    let quick_reply = |button: &Button| {
        let title = Some(title(button)).filter(|title| !title.is_empty())?;
        Some(json!({ "content_type": "text", "title": title, "payload": button.payload }))
    };
    buttons.iter().filter(payload_fits).filter_map(quick_reply).take(QUICK_REPLIES_MAX).collect()
}
