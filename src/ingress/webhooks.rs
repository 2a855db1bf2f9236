//! The platforms' webhooks: verify, decode, publish, and only then 200.
//!
//! Refuses to judge what an authentic event means; the channels decode, and what they do not know is kept and recorded as
//! ignored. Invariant: a batch is answered 200 only when every event of it is on the stream.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::extract::{Parameters, Segment};
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::{Ingress, Shared, body, count, json};
use crate::channel::http::signature;
use crate::channel::{Refusal, Stamp, http, messenger, telegram};
use crate::config::{Bot, BotChannel, MessengerBot};
use crate::message::{Channel, Timestamp};

pub(super) fn routes() -> Routes {
    Routes::default()
        .post(
            "/webhooks/telegram/{bot}",
            from_telegram,
            Operation::new("telegramUpdate", "An update of Telegram, as `setWebhook` asks for it.")
                .security(Security::TelegramSecret)
                .body::<Update>(body::JSON)
                .answer::<Nothing>(200, "The update is kept.")
                .problems(&[400, 401, 404, 408, 413, 503]),
        )
        .get(
            "/webhooks/messenger/{bot}",
            challenge,
            Operation::new("messengerChallenge", "Messenger asks whether this is the right address.")
                .query::<Challenge>()
                .text(200, PLAIN, "`hub.challenge`.")
                .problems(&[400, 403, 404]),
        )
        .post(
            "/webhooks/messenger/{bot}",
            from_messenger,
            Operation::new("messengerEvents", "A batch of Messenger's events.")
                .security(Security::MessengerSignature)
                .body::<Map<String, Value>>(body::JSON)
                .text(200, PLAIN, "`EVENT_RECEIVED`: every event is kept.")
                .problems(&[400, 401, 404, 408, 413, 503]),
        )
        .post(
            "/webhooks/http/{bot}",
            from_http,
            Operation::new("httpEvent", "An event of any other platform, as docs/http-channel.md has it.")
                .details("The same `webhook-id` stands for the same event.")
                .security(Security::WebhookSignature)
                .header("webhook-id", "Unique per event, and the same whenever it is sent again.")
                .header("webhook-timestamp", "Seconds since 1970-01-01T00:00:00Z; at most five minutes away.")
                .body::<Map<String, Value>>(body::JSON)
                .answer::<Nothing>(200, "The event is kept.")
                .problems(&[400, 401, 404, 408, 413, 503]),
        )
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// An update, of whatever kind (Bot API, "Update").
#[derive(Debug, JsonSchema)]
#[schemars(rename = "TelegramUpdate")]
#[expect(dead_code, reason = "the channel reads the body itself; this is what can be said of it beforehand")]
struct Update {
    #[schemars(range(min = i64::MIN, max = i64::MAX))]
    update_id: i64,
}

/// An empty object.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct Nothing {}

async fn from_telegram(
    State(ingress): Shared,
    Segment(name): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Some(bot) = ingress.bots.get(&name) else { return Err(no_such_bot(&name, Channel::Telegram)) };
    let BotChannel::Telegram(telegram) = &bot.channel else { return Err(no_such_bot(&name, Channel::Telegram)) };
    let body = ingress.body(body).await?;
    let _permit = ingress.admit()?;
    let secret = headers.get("x-telegram-bot-api-secret-token").map(HeaderValue::as_bytes);
    let verified = telegram::receive(bot, telegram, secret, &body, &mut stamp(&mut Uuid::now_v7))
        .map_err(|refusal| refused(bot, &refusal))?;
    let verified = ingress.filed(verified).await?;
    ingress.publish(&verified).await?;
    Ok(json(200, &Nothing {}))
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Challenge {
    #[serde(rename = "hub.mode")]
    mode: Option<String>,
    #[serde(rename = "hub.verify_token")]
    verify_token: Option<String>,
    #[serde(rename = "hub.challenge")]
    challenge: Option<String>,
}

async fn challenge(
    State(ingress): Shared,
    Segment(name): Segment,
    Parameters(query): Parameters<Challenge>,
) -> Result<Response, Problem> {
    let (_, messenger) = messenger_bot(&ingress, &name)?;
    let answer = messenger::challenge(
        messenger,
        query.mode.as_deref(),
        query.verify_token.as_deref(),
        query.challenge.as_deref(),
    );
    match answer {
        Some(challenge) => Ok(([("content-type", PLAIN)], challenge).into_response()),
        None => Err(Problem::new(403, "forbidden", "hub.verify_token is not the configured verify_token.")),
    }
}

async fn from_messenger(
    State(ingress): Shared,
    Segment(name): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (bot, messenger) = messenger_bot(&ingress, &name)?;
    let body = ingress.body(body).await?;
    let _permit = ingress.admit()?;
    let signature = headers.get("x-hub-signature-256").map(HeaderValue::as_bytes);
    let others: Vec<(&Bot, &MessengerBot)> = ingress.bots.values().filter_map(as_messenger).collect();
    let verified = messenger::receive(bot, messenger, &others, signature, &body, &mut stamp(&mut Uuid::now_v7))
        .map_err(|refusal| refused(bot, &refusal))?;
    // One after the other: when one is not taken, none behind it may be, or a sender's messages would change places.
    for event in &verified {
        ingress.publish(event).await?;
    }
    Ok("EVENT_RECEIVED".into_response())
}

async fn from_http(
    State(ingress): Shared,
    Segment(name): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Some(bot) = ingress.bots.get(&name) else { return Err(no_such_bot(&name, Channel::Http)) };
    let BotChannel::Http(settings) = &bot.channel else { return Err(no_such_bot(&name, Channel::Http)) };
    let body = ingress.body(body).await?;
    let _permit = ingress.admit()?;
    let verified = http::receive(bot, settings, signed(&headers), &body, &mut stamp(&mut Uuid::now_v7))
        .map_err(|refusal| refused(bot, &refusal))?;
    ingress.publish(&verified).await?;
    Ok(json(200, &Nothing {}))
}

/// The three headers of Standard Webhooks, if all are there.
fn signed(headers: &HeaderMap) -> Option<signature::Headers<'_>> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Some(signature::Headers {
        id: text("webhook-id")?,
        timestamp: text("webhook-timestamp")?,
        signature: text("webhook-signature")?,
    })
}

fn messenger_bot<'a>(ingress: &'a Ingress, name: &str) -> Result<(&'a Bot, &'a MessengerBot), Problem> {
    ingress.bots.get(name).and_then(as_messenger).ok_or_else(|| no_such_bot(name, Channel::Messenger))
}

fn as_messenger(bot: &Bot) -> Option<(&Bot, &MessengerBot)> {
    match &bot.channel {
        BotChannel::Messenger(messenger) => Some((bot, messenger)),
        _ => None,
    }
}

fn stamp(new_id: &mut dyn FnMut() -> Uuid) -> Stamp<'_> {
    Stamp { now: Timestamp::now(), new_id }
}

/// The longest name shown in the log of a bot that is not there: anybody can ask for any.
const NAME_CHARS_SHOWN: usize = 64;

fn no_such_bot(name: &str, channel: Channel) -> Problem {
    let name: String = name.chars().take(NAME_CHARS_SHOWN).collect();
    tracing::warn!(bot = name, %channel, "a webhook for a bot that is not configured");
    Problem::new(404, "not-found", format!("No {channel} bot of this name is configured."))
}

fn refused(bot: &Bot, refusal: &Refusal) -> Problem {
    tracing::warn!(bot = bot.name, refusal = %refusal, "a webhook request was refused");
    match refusal {
        Refusal::Unauthorized => {
            count(bot.channel(), &bot.name, "unauthorized");
            Problem::new(401, "unauthorized", "The request does not prove that the platform sent it.")
        }
        Refusal::Malformed { detail } => {
            count(bot.channel(), &bot.name, "malformed");
            Problem::new(400, "malformed", detail.clone())
        }
    }
}
