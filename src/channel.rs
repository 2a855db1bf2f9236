//! The closed set of channels: what comes in becomes an [`Envelope`], what goes out becomes a [`Call`], and the platform's
//! answer becomes an [`Answer`]. Each platform is one file below, both directions in it.
//!
//! Refuses to do I/O or read a clock: bytes, time and ids are arguments. Invariants: only a channel makes a [`Verified`],
//! and only after it checked the request; an authentic body is never refused for what it means, only for not being JSON.

use std::fmt;
use std::time::Duration;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::config::{Bot, BotChannel, Secret};
use crate::message::{
    Amendment, Channel, ConversationKey, DraftId, Entity, Envelope, Event, InboundMessage, Notice, OutboundPart, Peer,
    Platform, Sender, Timestamp,
};

pub mod http;
mod json;
pub mod messenger;
mod split;
pub mod telegram;
pub mod web;

/// An authentic inbound event: what may be published. The field is private, so only the channels can make one.
#[derive(Debug, Clone)]
pub struct Verified(Envelope);

impl Verified {
    #[must_use]
    pub const fn envelope(&self) -> &Envelope {
        &self.0
    }

    #[must_use]
    pub fn into_envelope(self) -> Envelope {
        self.0
    }

    /// The same event in the conversations of another chat, which this one continues.
    #[must_use]
    pub fn filed_under(mut self, peer: Peer) -> Self {
        self.0.came_from = Some(std::mem::replace(&mut self.0.key.peer, peer));
        self
    }
}

/// Why a webhook request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// HTTP 401: the secret or signature is missing or wrong, or the bot has none configured.
    #[error("the request does not prove that the platform sent it")]
    Unauthorized,
    /// HTTP 400: authentic, but no event of this platform. The detail never quotes the body.
    #[error("the body is not an event of this platform: {detail}")]
    Malformed { detail: String },
}

/// What an accepted event is marked with: when it came, and where its turn's id comes from (one id per event).
pub struct Stamp<'a> {
    pub now: Timestamp,
    pub new_id: &'a mut dyn FnMut() -> Uuid,
}

impl fmt::Debug for Stamp<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stamp").field("now", &self.now).finish_non_exhaustive()
    }
}

/// One HTTP POST with a JSON body. Neither the address, which can hold a token, nor the body shows in `Debug`.
#[derive(Clone, PartialEq)]
pub struct Call {
    pub url: Secret,
    /// For the header `Authorization: Bearer`.
    pub bearer: Option<Secret>,
    pub body: serde_json::Value,
}

impl fmt::Debug for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Call").finish_non_exhaustive()
    }
}

/// What a platform's answer to a [`Call`] means for the delivery (G10). Errors are the platform's own words, at most
/// [`ERROR_CHARS_MAX`] characters of them, with no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The platform has it.
    Sent { platform_message_id: Option<String> },
    /// It was not delivered, and nothing will be for `delay`, at most [`RETRY_AFTER_MAX`].
    RetryAfter { delay: Duration, scope: Scope, error: String },
    /// It was not delivered; trying again can help.
    NotSent { error: String },
    /// Refused for good. `unreachable`: this peer can get nothing from the bot until it writes again.
    Failed { error: String, unreachable: bool },
    /// It was not delivered, because the chat is another one now.
    Moved { to: Peer, error: String },
    /// It was not delivered, and would be without one of its pieces.
    Spoiled { by: Piece, error: String },
    /// It may or may not have been delivered.
    Uncertain { error: String },
    /// Refused, because another application has this conversation.
    TakenOver { error: String },
    /// Refused for good, as will be everything else of the bot until somebody sees to it: its token is void, its page
    /// restricted, its receiver gone.
    Closed { error: String },
}

/// What a message can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// The formatting: its text says the same.
    Formatting,
    /// The place in a topic that is no more.
    Topic,
    /// The message that it answers.
    Quote,
}

/// To whom nothing will be delivered for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The chat of the call.
    Chat,
    /// Everybody whom the bot writes to.
    Bot,
}

/// The longest error text kept of a platform's answer, in characters: one line in a log or a table.
pub const ERROR_CHARS_MAX: usize = 200;

/// The longest pause a platform can ask for: a day, after which every earlier reason to wait is worth checking again.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// One part of a reply as its channel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartText {
    pub text: String,
    /// The formatting of the text, where the channel takes it apart from the text.
    pub entities: Vec<Entity>,
    /// The whole reply as it was written, with its first part, where the text is another one.
    pub source: Option<String>,
}

/// The parts in which `content` leaves on `channel`, each within the channel's limit; none when there is nothing to see.
/// Web and HTTP take any length in one part. For Telegram Markdown becomes formatting; elsewhere it stays as it is.
#[must_use]
pub fn parts(channel: Channel, content: &str) -> Vec<PartText> {
    let plain = |text: String| PartText { text, ..PartText::default() };
    match channel {
        Channel::Telegram => telegram::parts(content),
        Channel::Messenger => split::split(content, messenger::TEXT_UNITS_MAX).into_iter().map(plain).collect(),
        Channel::Web | Channel::Http if content.trim().is_empty() => Vec::new(),
        Channel::Web | Channel::Http => vec![plain(content.to_owned())],
    }
}

/// The call that sends `part` without some of its pieces; `None` when there is nothing to call: web replies go over core NATS,
/// and nobody is behind [`Peer::Bot`].
#[must_use]
pub fn call(bot: &Bot, part: &OutboundPart, without: &[Piece]) -> Option<Call> {
    match &bot.channel {
        BotChannel::Telegram(telegram) => telegram::call(telegram, part, without),
        BotChannel::Messenger(messenger) => messenger::call(messenger, part),
        BotChannel::Http(http) => http::call(http, part),
        BotChannel::Web(_) => None,
    }
}

/// A call that shows "is typing" for a while, and how soon it has to be made again for as long as it shall be seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Typing {
    pub call: Call,
    pub again_after: Duration,
}

/// How `bot` shows that it is typing; `None` where nothing of the kind can be shown. Its answer reads like that to a reply.
#[must_use]
pub fn typing(bot: &Bot, peer: &Peer) -> Option<Typing> {
    let (call, again_after) = match &bot.channel {
        BotChannel::Telegram(settings) => (telegram::typing(settings, peer)?, telegram::TYPING_AGAIN_AFTER),
        BotChannel::Messenger(settings) => (messenger::typing(settings, peer)?, messenger::TYPING_AGAIN_AFTER),
        BotChannel::Web(_) | BotChannel::Http(_) => return None,
    };
    Some(Typing { call, again_after })
}

/// The call that shows `text`, an answer in the making, in the draft `id`; `None` where drafts are not shown. Its answer reads
/// like that to a reply.
#[must_use]
pub fn draft(bot: &Bot, peer: &Peer, id: DraftId, text: &PartText) -> Option<Call> {
    match &bot.channel {
        BotChannel::Telegram(settings) => telegram::draft(settings, peer, id, text),
        BotChannel::Messenger(_) | BotChannel::Web(_) | BotChannel::Http(_) => None,
    }
}

/// Whether [`draft`] shows anything to this peer.
#[must_use]
pub fn shows_drafts(bot: &Bot, peer: &Peer) -> bool {
    matches!(&bot.channel, BotChannel::Telegram(settings) if telegram::shows_drafts(settings, peer))
}

/// How `bot` shows that what was written to it has been seen; `None` where that cannot be shown.
#[must_use]
pub fn seen(bot: &Bot, peer: &Peer) -> Option<Call> {
    match &bot.channel {
        BotChannel::Messenger(settings) => messenger::seen(settings, peer),
        BotChannel::Telegram(_) | BotChannel::Web(_) | BotChannel::Http(_) => None,
    }
}

/// For how long after a person's last message a bot may write to them; `None` for as long as it likes.
#[must_use]
pub const fn window(channel: Channel) -> Option<Duration> {
    match channel {
        Channel::Messenger => Some(messenger::WINDOW),
        Channel::Telegram | Channel::Web | Channel::Http => None,
    }
}

/// What the error of a delivery begins with that [`window`] kept from leaving.
pub const OUTSIDE_WINDOW: &str = messenger::OUTSIDE_WINDOW;

/// The call by which a platform learns that a press of a button has arrived; `None` for other messages, and where nobody waits
/// for it.
#[must_use]
pub fn acknowledgement(bot: &Bot, message: &InboundMessage) -> Option<Call> {
    match &bot.channel {
        BotChannel::Telegram(settings) => {
            message.callback_id.as_deref().map(|id| telegram::acknowledgement(settings, id))
        }
        BotChannel::Messenger(_) | BotChannel::Web(_) | BotChannel::Http(_) => None,
    }
}

/// The call that takes the buttons under an earlier message away; `None` where they go by themselves, or are the client's.
#[must_use]
pub fn without_buttons(bot: &Bot, peer: &Peer, message_id: &str) -> Option<Call> {
    match &bot.channel {
        BotChannel::Telegram(settings) => telegram::without_buttons(settings, peer, message_id),
        BotChannel::Messenger(_) | BotChannel::Web(_) | BotChannel::Http(_) => None,
    }
}

/// What the platform's answer to a [`Call`] means. `retry_after` is the answer's `Retry-After` header.
#[must_use]
pub fn classify(channel: Channel, status: u16, retry_after: Option<Duration>, body: &[u8]) -> Answer {
    match channel {
        Channel::Telegram => telegram::classify(status, retry_after, body),
        Channel::Messenger => messenger::answer::classify(status, retry_after, body),
        Channel::Http => http::classify(status, retry_after),
        Channel::Web => unreadable(status, retry_after),
    }
}

/// The headers in which the channel's platform says how much of its limits is used.
#[must_use]
pub const fn usage_headers(channel: Channel) -> &'static [&'static str] {
    match channel {
        Channel::Messenger => &messenger::answer::USAGE_HEADERS,
        Channel::Telegram | Channel::Web | Channel::Http => &[],
    }
}

/// How long a bot shall be silent so that none of those limits is reached, by the values of [`usage_headers`] that came;
/// `None` while there is enough left.
#[must_use]
pub fn usage_pause<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Duration> {
    messenger::answer::pause(values)
}

/// The meaning of an answer that is not the platform's own JSON: a proxy spoke, or the body was cut. A refusal (4xx) was
/// passed nowhere; of a success, a timeout or a gateway's error nobody can tell what the platform behind it did.
fn unreadable(status: u16, retry_after: Option<Duration>) -> Answer {
    let error = format!("HTTP status {status} without a readable body");
    match status {
        429 => retry(retry_after.unwrap_or(Duration::from_secs(1)), Scope::Chat, error),
        300..=407 | 409..=499 => Answer::Failed { error, unreachable: false },
        _ => Answer::Uncertain { error },
    }
}

fn retry(delay: Duration, scope: Scope, error: String) -> Answer {
    Answer::RetryAfter { delay: delay.min(RETRY_AFTER_MAX), scope, error }
}

/// A platform's error text on one line, cut to [`ERROR_CHARS_MAX`].
fn error_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_CHARS_MAX).collect()
}

/// What a channel made of one event.
struct Reading {
    peer: Peer,
    sender: Option<Sender>,
    event: Event,
    amendment: Option<Amendment>,
    notice: Option<Notice>,
}

impl Reading {
    fn ignored(peer: Peer, kind: &str, reason: &str) -> Self {
        Self { peer, sender: None, event: ignored(kind, reason), amendment: None, notice: None }
    }
}

/// The longest kind kept of an event we do not know, in characters.
const KIND_CHARS_MAX: usize = 64;

fn ignored(kind: &str, reason: &str) -> Event {
    let kind = kind.chars().filter(|c| !c.is_control()).take(KIND_CHARS_MAX).collect();
    Event::Ignored { kind, reason: reason.to_owned() }
}

fn verified(
    bot: &Bot,
    platform: Platform,
    dedupe_id: String,
    reading: Reading,
    raw: &RawValue,
    stamp: &mut Stamp<'_>,
) -> Verified {
    Verified(Envelope {
        turn_id: (stamp.new_id)(),
        key: ConversationKey { channel: bot.channel(), bot: bot.name.as_str().into(), peer: reading.peer },
        platform,
        dedupe_id,
        received_at: stamp.now,
        sender: reading.sender,
        device_id: None,
        metadata: None,
        event: reading.event,
        amendment: reading.amendment,
        notice: reading.notice,
        came_from: None,
        raw: Some(raw.to_owned()),
    })
}

/// The longest piece of a dedupe id that is used as it is, in bytes; three of them stay far below a header's limits.
const DEDUPE_PIECE_BYTES_MAX: usize = 128;

/// `text` as a piece of a dedupe id, which travels in a NATS header: itself when it is short printable ASCII without
/// spaces, else its hash.
fn dedupe_piece(text: &str) -> String {
    let plain = text.len() <= DEDUPE_PIECE_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { text.to_owned() } else { dedupe_hash(text.as_bytes()) }
}

fn dedupe_hash(bytes: &[u8]) -> String {
    format!("sha256-{}", hex::encode(Sha256::digest(bytes)))
}
