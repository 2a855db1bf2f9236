//! Telegram, both directions: webhook updates in (Bot API 10.3, "Update", "setWebhook"), `sendMessage` calls out, and the
//! meaning of their answers.
//!
//! Refuses to reject an authentic update for what it holds: Telegram would send it again for a day and hold back the chat
//! behind it. Invariant: every object with an integer `update_id` becomes exactly one envelope, with the update in `raw`.

use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

use self::addressing::Me;
use super::json::{self, Object};
use super::{Answer, Call, PartText, Piece, Reading, Refusal, Scope, Stamp, Verified};
use crate::config::{Bot, Secret, Streaming, TelegramBot};
use crate::message::{Amendment, Button, DraftId, Event, InboundMessage, OutboundPart, Peer, Platform, Replacement};

mod addressing;
mod content;
mod files;
mod markdown;
mod notice;
mod parts;
pub mod polling;

pub use files::{FileError, file, get_file};
pub(super) use parts::parts;

/// The longest text of one message, in UTF-16 units (Bot API, "sendMessage": 4096 characters).
pub(super) const TEXT_UNITS_MAX: usize = 4096;

/// "Is typing" is seen for 5 s or less (Bot API, "sendChatAction").
pub(super) const TYPING_AGAIN_AFTER: Duration = Duration::from_millis(4_500);

/// The longest callback data of a button, in bytes (Bot API, "InlineKeyboardButton").
const CALLBACK_DATA_BYTES_MAX: usize = 64;

/// The most buttons under one message that Telegram takes.
const BUTTONS_MAX: usize = 100;

/// Accounts that speak for a chat: GroupAnonymousBot for its anonymous administrators, Channel_Bot for people who post as a
/// channel. They are marked as bots, and people are behind them.
const STAND_INS: [i64; 2] = [1_087_968_824, 136_817_688];

/// Telegram's own account, which forwards a channel's posts to the group linked with it.
const TELEGRAM_ACCOUNT: i64 = 777_000;

/// The General topic of a forum: the group itself, which `sendMessage` addresses without a thread id.
const GENERAL_TOPIC: i64 = 1;

/// The update kind of the button that ends an answer.
const STOP: &str = "stopped_message_generation";

/// A guest's answer needs a title, which nobody sees.
const GUEST_TITLE: &str = "Answer";

const UNKNOWN_KIND: &str = "unknown kind";

/// Takes one webhook request, whose header `X-Telegram-Bot-Api-Secret-Token` is `secret_header`.
///
/// # Errors
/// [`Refusal::Unauthorized`] for a wrong or missing secret, or when the bot has none; [`Refusal::Malformed`] for a body
/// that is not a JSON object with an integer `update_id`.
pub fn receive(
    bot: &Bot,
    telegram: &TelegramBot,
    secret_header: Option<&[u8]>,
    body: &[u8],
    stamp: &mut Stamp<'_>,
) -> Result<Verified, Refusal> {
    authenticate(telegram, secret_header)?;
    let (raw, update) = json::body(body)?;
    accept(bot, telegram, raw, &update, stamp)
}

/// Takes one update that this process fetched itself with `getUpdates`.
///
/// # Errors
/// [`Refusal::Malformed`] as for [`receive`].
pub fn receive_polled(
    bot: &Bot,
    telegram: &TelegramBot,
    update: &RawValue,
    stamp: &mut Stamp<'_>,
) -> Result<Verified, Refusal> {
    let (raw, update) = json::body(update.get().as_bytes())?;
    accept(bot, telegram, raw, &update, stamp)
}

fn authenticate(telegram: &TelegramBot, header: Option<&[u8]>) -> Result<(), Refusal> {
    let (Some(secret), Some(header)) = (&telegram.webhook_secret, header) else {
        return Err(Refusal::Unauthorized);
    };
    let secret = secret.expose().as_bytes();
    let equal = !secret.is_empty() && bool::from(secret.ct_eq(header));
    if equal { Ok(()) } else { Err(Refusal::Unauthorized) }
}

fn accept(
    bot: &Bot,
    telegram: &TelegramBot,
    raw: &RawValue,
    update: &Object<'_>,
    stamp: &mut Stamp<'_>,
) -> Result<Verified, Refusal> {
    let update_id = update
        .integer("update_id")
        .ok_or_else(|| Refusal::Malformed { detail: "no integer member \"update_id\"".to_owned() })?;
    let dedupe_id = format!("telegram:{}:{update_id}", super::dedupe_piece(&bot.name));
    let kind = kind(update);
    let reading = match update.object(kind) {
        Some(content) => read(kind, &content, telegram),
        None if reason(kind) == UNKNOWN_KIND => Reading::ignored(Peer::Bot, kind, UNKNOWN_KIND),
        None => Reading::ignored(Peer::Bot, kind, "unreadable"),
    };
    Ok(super::verified(bot, Platform::Telegram, dedupe_id, reading, raw, stamp))
}

/// The member that names the update's kind. An update has one; should it have several, the one that can make a turn.
fn kind<'a>(update: &'a Object<'_>) -> &'a str {
    let mut names: Vec<&str> = update.names().filter(|name| *name != "update_id").collect();
    names.sort_by_key(|name| match *name {
        "message" => 0,
        "callback_query" => 1,
        name if reason(name) != UNKNOWN_KIND => 2,
        _ => 3,
    });
    names.first().copied().unwrap_or("none")
}

/// Why an update of this kind makes no turn.
fn reason(kind: &str) -> &'static str {
    match kind {
        "edited_message" | "edited_channel_post" | "edited_business_message" => "edited",
        "channel_post" => "channel post",
        "business_connection" | "business_message" | "deleted_business_messages" => "business account",
        "guest_message" => "guest mode",
        STOP => "stop button",
        "my_chat_member" | "chat_member" | "chat_join_request" | "chat_boost" | "removed_chat_boost" => "membership",
        "message"
        | "callback_query"
        | "message_reaction"
        | "message_reaction_count"
        | "inline_query"
        | "chosen_inline_result"
        | "shipping_query"
        | "pre_checkout_query"
        | "purchased_paid_media"
        | "subscription"
        | "poll"
        | "poll_answer"
        | "managed_bot" => "not a message",
        _ => UNKNOWN_KIND,
    }
}

fn read(kind: &str, content: &Object<'_>, telegram: &TelegramBot) -> Reading {
    let me = &Me::new(telegram);
    let place = if kind == "callback_query" { content.object("message") } else { None };
    let place = place.as_ref().unwrap_or(content);
    let peer = peer(kind, place);
    let event = match (kind, &peer) {
        ("message" | "callback_query", None) => Err("no chat"),
        ("message", Some(_)) => message(content, is_private(content), me),
        ("callback_query", Some(_)) => callback(content, place),
        ("channel_post", Some(_)) if telegram.channel_posts => message(content, true, me),
        ("business_message", Some(Peer::Business { .. })) if telegram.business => of_business(content, me),
        ("guest_message", Some(_)) => of_guest(content, me),
        _ => Err(reason(kind)),
    };
    let is_amended = kind == "edited_message" || (kind == "edited_business_message" && telegram.business);
    let amendment = if is_amended && peer.is_some() { amendment(content) } else { None };
    let notice = notice::notice(kind, content, peer.as_ref());
    Reading {
        peer: peer.unwrap_or(Peer::Bot),
        sender: content::sender(content),
        event: event.map_or_else(|reason| super::ignored(kind, reason), Event::Message),
        amendment,
        notice,
    }
}

/// What an edited message says now. One that says nothing any more is none that can be edited by a person.
fn amendment(edited: &Object<'_>) -> Option<Amendment> {
    let platform_message_id = edited.integer("message_id").filter(|id| *id != 0)?.to_string();
    let (text, _) = content::text(edited);
    let attachments = content::attachments(edited);
    let says_something = !text.is_empty() || !attachments.is_empty();
    let replacement = Replacement { text, attachments: Some(attachments) };
    says_something.then_some(Amendment { platform_message_id, replacement: Some(replacement) })
}

/// The conversation a message belongs to. `message_thread_id` alone is none: plain reply threads have one too. A stop has no
/// other mark, and comes from where the answer was being written.
fn peer(kind: &str, message: &Object<'_>) -> Option<Peer> {
    let id = message.object("chat")?.integer("id")?.to_string();
    if let Some(connection) = message.text("business_connection_id").filter(|connection| !connection.is_empty()) {
        return Some(Peer::Business { connection, user: id });
    }
    let topic = message.integer("message_thread_id").filter(|topic| *topic != GENERAL_TOPIC);
    match topic.filter(|_| message.flag("is_topic_message") || kind == STOP) {
        Some(topic) => Some(Peer::Topic { group: id, topic: topic.to_string() }),
        None if is_private(message) => Some(Peer::User(id)),
        None => Some(Peer::Group(id)),
    }
}

/// Whether the chat is a private one; Telegram's own sample updates leave out its type.
fn is_private(message: &Object<'_>) -> bool {
    message.object("chat").is_some_and(|chat| match chat.text("type") {
        Some(kind) => kind == "private",
        None => chat.integer("id").is_some_and(|id| id > 0),
    })
}

/// The turn a message makes, or why it makes none.
fn message(message: &Object<'_>, private: bool, me: &Me<'_>) -> Result<InboundMessage, &'static str> {
    let from = message.object("from");
    let from_id = from.as_ref().and_then(|from| from.integer("id"));
    if message.flag("is_automatic_forward") || from_id == Some(TELEGRAM_ACCOUNT) {
        return Err("automatic forward");
    }
    if from.is_some_and(|from| from.flag("is_bot")) && !from_id.is_some_and(|id| STAND_INS.contains(&id)) {
        return Err("sent by a bot");
    }
    let (text, entities) = content::text(message);
    let attachments = content::attachments(message);
    if text.is_empty() && attachments.is_empty() {
        let has_moved = ["migrate_to_chat_id", "migrate_from_chat_id"].into_iter().any(|name| message.has(name));
        return Err(if has_moved { "chat moved" } else { "service message" });
    }
    if !private {
        addressing::addressed(message, &text, entities, me)?;
    }
    let command = addressing::command_to(message, &text, entities, me);
    Ok(InboundMessage {
        text,
        attachments,
        // Ephemeral messages have 0, which cannot be quoted.
        platform_message_id: message.integer("message_id").filter(|id| *id != 0).map(|id| id.to_string()),
        album_id: message.id("media_group_id"),
        command,
        ..InboundMessage::default()
    })
}

/// The turn that a message to a business account makes: the owner's own, and what bots sent for the owner, make none.
fn of_business(message: &Object<'_>, me: &Me<'_>) -> Result<InboundMessage, &'static str> {
    let id_of = |member| message.object(member).and_then(|object| object.integer("id"));
    if message.has("sender_business_bot") || id_of("from") != id_of("chat") {
        return Err("sent by the business");
    }
    self::message(message, true, me)
}

/// The turn that a message makes which calls the bot where it is no member.
fn of_guest(message: &Object<'_>, me: &Me<'_>) -> Result<InboundMessage, &'static str> {
    let query = message.text("guest_query_id").ok_or("no query")?;
    Ok(InboundMessage { guest_query_id: Some(query), ..self::message(message, true, me)? })
}

/// The turn a button press makes, or why it makes none.
fn callback(query: &Object<'_>, under: &Object<'_>) -> Result<InboundMessage, &'static str> {
    if query.object("from").is_some_and(|from| from.flag("is_bot")) {
        return Err("sent by a bot");
    }
    let data = query.text("data").ok_or("no data")?;
    Ok(InboundMessage {
        text: label(under, &data).unwrap_or_else(|| data.clone()),
        payload: Some(data),
        callback_id: query.id("id"),
        pressed_under: under.id("message_id"),
        ..InboundMessage::default()
    })
}

/// The label of the button that carries `data`, if the message with the buttons came along.
fn label(message: &Object<'_>, data: &str) -> Option<String> {
    let rows = message.object("reply_markup")?.list("inline_keyboard")?;
    let buttons = rows.into_iter().filter_map(|row| serde_json::from_str::<Vec<&RawValue>>(row.get()).ok()).flatten();
    let mut pressed =
        buttons.filter_map(Object::read).filter(|button| button.text("callback_data").as_deref() == Some(data));
    pressed.next()?.text("text")
}

/// The `sendMessage` call for `part`. Formatting goes as entities: nothing in the text can be read as markup, so nothing can
/// be refused as broken markup. `None` for peers that are no chat.
pub(super) fn call(telegram: &TelegramBot, part: &OutboundPart, without: &[Piece]) -> Option<Call> {
    if let Some(query) = &part.form.guest_query_id {
        return Some(answer_guest(telegram, part, query, without));
    }
    let peer = match &part.key.peer {
        Peer::Topic { group, .. } if without.contains(&Piece::Topic) => &Peer::Group(group.clone()),
        peer => peer,
    };
    let mut body = addressed_to(peer)?;
    body["text"] = json!(part.content);
    body["link_preview_options"] = json!({ "is_disabled": !telegram.link_previews });
    if let Some(entities) = entities(part, without) {
        body["entities"] = entities;
    }
    // A message's id means something in its own chat only.
    let quote = part.form.quote.as_ref().filter(|quote| quote.chat == part.key.peer);
    if let Some(quote) = quote.filter(|_| !without.contains(&Piece::Quote)) {
        let message_id = number_if_possible(&quote.platform_message_id);
        body["reply_parameters"] = json!({ "message_id": message_id, "allow_sending_without_reply": true });
    }
    let keyboard = keyboard(&part.buttons);
    if !keyboard.is_empty() {
        body["reply_markup"] = json!({ "inline_keyboard": keyboard });
    }
    Some(method(telegram, "sendMessage", body))
}

/// The `answerGuestQuery` call: one article, which is shown in the chat where the bot was called.
fn answer_guest(telegram: &TelegramBot, part: &OutboundPart, query: &str, without: &[Piece]) -> Call {
    let mut content = json!({
        "message_text": part.content,
        "link_preview_options": { "is_disabled": !telegram.link_previews },
    });
    if let Some(entities) = entities(part, without) {
        content["entities"] = entities;
    }
    let id = part.delivery_id.simple().to_string();
    let result = json!({ "type": "article", "id": id, "title": GUEST_TITLE, "input_message_content": content });
    method(telegram, "answerGuestQuery", json!({ "guest_query_id": query, "result": result }))
}

fn entities(part: &OutboundPart, without: &[Piece]) -> Option<serde_json::Value> {
    let entities = Some(&part.form.entities).filter(|entities| !entities.is_empty());
    entities.filter(|_| !without.contains(&Piece::Formatting)).map(|entities| json!(entities))
}

/// The `setMyCommands` request with the bot's menu.
#[must_use]
pub fn menu(telegram: &TelegramBot) -> serde_json::Value {
    let entry = |(name, description): (&str, &str)| json!({ "command": name, "description": description });
    json!({ "commands": telegram.menu().into_iter().map(entry).collect::<Vec<_>>() })
}

/// The call that tells what the bot's menu offers.
#[must_use]
pub fn get_menu(telegram: &TelegramBot) -> Call {
    method(telegram, "getMyCommands", json!({}))
}

/// The call that makes the bot's menu that of the configuration.
#[must_use]
pub fn set_menu(telegram: &TelegramBot) -> Call {
    method(telegram, "setMyCommands", menu(telegram))
}

/// The `sendChatAction` call that shows "is typing". `None` for peers that are no chat.
pub(super) fn typing(telegram: &TelegramBot, peer: &Peer) -> Option<Call> {
    let mut body = addressed_to(peer)?;
    body["action"] = json!("typing");
    Some(method(telegram, "sendChatAction", body))
}

/// The `sendMessageDraft` call. The same id animates what is there, which is seen for 30 s, or until the bot's next message.
pub(super) fn draft(telegram: &TelegramBot, peer: &Peer, id: DraftId, text: &PartText) -> Option<Call> {
    let mut body = addressed_to(peer).filter(|_| shows_drafts(telegram, peer))?;
    body["draft_id"] = json!(id.get());
    body["text"] = json!(text.text);
    body["can_stop"] = json!(true);
    if !text.entities.is_empty() {
        body["entities"] = json!(text.entities);
    }
    Some(method(telegram, "sendMessageDraft", body))
}

/// Drafts are for private chats alone, with their topics (Bot API, "sendMessageDraft"); groups have negative ids.
pub(super) fn shows_drafts(telegram: &TelegramBot, peer: &Peer) -> bool {
    let is_private = match peer {
        Peer::User(chat) | Peer::Topic { group: chat, .. } => !chat.starts_with('-'),
        Peer::Group(_) | Peer::Business { .. } | Peer::Conversation(_) | Peer::Bot => false,
    };
    is_private && telegram.streaming == Streaming::Draft
}

/// The `answerCallbackQuery` call, without which the pressed button goes on spinning.
pub(super) fn acknowledgement(telegram: &TelegramBot, callback_id: &str) -> Call {
    method(telegram, "answerCallbackQuery", json!({ "callback_query_id": callback_id }))
}

/// The `editMessageReplyMarkup` call that takes the buttons away. `None` for peers that are no chat.
pub(super) fn without_buttons(telegram: &TelegramBot, peer: &Peer, message_id: &str) -> Option<Call> {
    let mut body = match peer {
        Peer::Topic { group, .. } => addressed_to(&Peer::Group(group.clone()))?,
        peer => addressed_to(peer)?,
    };
    body["message_id"] = number_if_possible(message_id);
    Some(method(telegram, "editMessageReplyMarkup", body))
}

/// The beginning of a request about a chat; `None` for peers that are none.
fn addressed_to(peer: &Peer) -> Option<serde_json::Value> {
    Some(match peer {
        Peer::User(chat) | Peer::Group(chat) => json!({ "chat_id": number_if_possible(chat) }),
        Peer::Topic { group, topic } => {
            json!({ "chat_id": number_if_possible(group), "message_thread_id": number_if_possible(topic) })
        }
        Peer::Business { connection, user } => {
            json!({ "chat_id": number_if_possible(user), "business_connection_id": connection })
        }
        Peer::Conversation(_) | Peer::Bot => return None,
    })
}

fn method(telegram: &TelegramBot, name: &str, body: serde_json::Value) -> Call {
    let url = format!("{}/bot{}/{name}", telegram.api_base, telegram.token.expose());
    Call { url: Secret::new(url), bearer: None, body }
}

/// One button a row, so that labels of any length stay readable. A button that Telegram would refuse is left out: it would
/// take the whole message with it.
fn keyboard(buttons: &[Button]) -> Vec<[serde_json::Value; 1]> {
    let fits = |button: &&Button| {
        !button.label.trim().is_empty() && (1..=CALLBACK_DATA_BYTES_MAX).contains(&button.payload.len())
    };
    let row = |button: &Button| [json!({ "text": button.label, "callback_data": button.payload })];
    buttons.iter().filter(fits).take(BUTTONS_MAX).map(row).collect()
}

fn number_if_possible(id: &str) -> serde_json::Value {
    id.parse::<i64>().map_or_else(|_| json!(id), |number| json!(number))
}

/// The meaning of an answer to `sendMessage` (Bot API, "Making requests"; `ResponseParameters`).
pub(super) fn classify(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Answer {
    let answer = Object::read_bytes(body).and_then(|answer| Some((answer.boolean("ok")?, answer)));
    let Some((ok, answer)) = answer else { return super::unreadable(status, retry_after) };
    if (200..300).contains(&status) && ok {
        let message_id = answer.object("result").and_then(|message| message.integer("message_id"));
        return Answer::Sent { platform_message_id: message_id.map(|id| id.to_string()) };
    }
    let code = answer.integer("error_code").unwrap_or_else(|| i64::from(status));
    let error = super::error_line(&answer.text("description").unwrap_or_else(|| format!("error {code}")));
    let parameters = answer.object("parameters");
    let parameter = |name| parameters.as_ref().and_then(|parameters| parameters.integer(name));
    match code {
        429 => {
            let asked = parameter("retry_after").and_then(|seconds| u64::try_from(seconds).ok());
            let delay = asked.map(Duration::from_secs).or(retry_after).unwrap_or(Duration::from_secs(1));
            // The Bot API does not say who is meant; in practice it is the chat.
            super::retry(delay, Scope::Chat, error)
        }
        500.. => Answer::NotSent { error },
        // The token is void, whatever it is used for.
        401 => Answer::Closed { error },
        403 => Answer::Failed { error, unreachable: true },
        _ => match (parameter("migrate_to_chat_id"), spoiled_by(&error)) {
            (Some(chat), _) => Answer::Moved { to: Peer::Group(chat.to_string()), error },
            (None, Some(by)) => Answer::Spoiled { by, error },
            (None, None) => Answer::Failed { unreachable: names_a_lost_chat(&error), error },
        },
    }
}

/// Which piece of a message Telegram did not like: it says so by nothing but the wording.
fn spoiled_by(description: &str) -> Option<Piece> {
    let description = description.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| description.contains(words));
    if says(&[
        "can't parse entities",
        "can't parse messageentity",
        "entity_bounds_invalid",
        "entity_",
        "entities_too_long",
    ]) {
        Some(Piece::Formatting)
    } else if says(&["message thread not found", "topic_closed", "topic_deleted"]) {
        Some(Piece::Topic)
    } else if says(&["message to be replied not found", "replied message not found", "reply_message_id_invalid"]) {
        Some(Piece::Quote)
    } else {
        None
    }
}

/// Telegram tells a lost chat from a bad text by nothing but the wording: both are code 400. Read wrongly, the delivery is
/// `failed` all the same; only the mark on the peer is missing.
fn names_a_lost_chat(description: &str) -> bool {
    let description = description.to_ascii_lowercase();
    ["chat not found", "user not found", "peer_id_invalid", "chat_write_forbidden", "not enough rights to send"]
        .iter()
        .any(|words| description.contains(words))
}
