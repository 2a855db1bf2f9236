//! `getUpdates`: updates that are fetched instead of sent (Bot API, "Getting updates").
//!
//! Refuses to read an update: what a batch holds goes the way of a webhook's bodies. Invariant: an update is in the batch with
//! its id, by which everything up to it is confirmed, or counted as unreadable.

use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;

use super::method;
use crate::channel::json::Object;
use crate::channel::{Call, error_line};
use crate::config::TelegramBot;

/// Update kinds that every bot reads.
const ALLOWED_UPDATES: [&str; 7] = [
    "message",
    "edited_message",
    "callback_query",
    "my_chat_member",
    "message_reaction",
    "guest_message",
    "stopped_message_generation",
];

/// Update kinds of business accounts that people have connected with a bot.
const BUSINESS_UPDATES: [&str; 4] =
    ["business_connection", "business_message", "edited_business_message", "deleted_business_messages"];

/// The update kinds that the bot reads; an explicit list keeps the rest from being sent at all. Telegram remembers it for
/// webhooks and `getUpdates` alike.
#[must_use]
pub fn allowed_updates(telegram: &TelegramBot) -> Vec<&'static str> {
    let posts = telegram.channel_posts.then_some("channel_post");
    let business = BUSINESS_UPDATES.into_iter().filter(|_| telegram.business);
    ALLOWED_UPDATES.into_iter().chain(posts).chain(business).collect()
}

/// How long Telegram may hold a request without updates, in seconds; it takes at most 50.
pub const POLL_SECONDS: u32 = 30;

/// One update that was fetched.
#[derive(Debug)]
pub struct Update {
    pub id: i64,
    pub raw: Box<RawValue>,
}

/// The answer to `getUpdates`.
#[derive(Debug, Default)]
pub struct Batch {
    /// In Telegram's order.
    pub updates: Vec<Update>,
    /// Elements without an integer `update_id`, which Telegram does not send.
    pub unreadable: usize,
}

/// Why there is no batch; the texts are Telegram's own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    /// 409: a webhook is set, or another program fetches the updates of the same bot.
    #[error("{0}")]
    Conflict(String),
    /// 401 or 404: the token is wrong or revoked.
    #[error("{0}")]
    Unauthorized(String),
    /// 429.
    #[error("{error}")]
    TooManyRequests { delay: Duration, error: String },
    /// Anything else; trying again can help.
    #[error("{0}")]
    Other(String),
}

/// The call for the updates from `offset` on, which confirms all before it; `None` for all that are not confirmed.
#[must_use]
pub fn get_updates(telegram: &TelegramBot, offset: Option<i64>) -> Call {
    let mut body = json!({ "timeout": POLL_SECONDS, "limit": 100, "allowed_updates": allowed_updates(telegram) });
    if let Some(offset) = offset {
        body["offset"] = json!(offset);
    }
    method(telegram, "getUpdates", body)
}

/// The call that tells whether a webhook is set.
#[must_use]
pub fn get_webhook_info(telegram: &TelegramBot) -> Call {
    method(telegram, "getWebhookInfo", json!({}))
}

/// Reads the answer to [`get_updates`].
///
/// # Errors
/// See [`PollError`].
pub fn batch(status: u16, body: &[u8]) -> Result<Batch, PollError> {
    let answer = Object::read_bytes(body);
    let Some(answer) = answer.filter(|answer| answer.has("ok")) else {
        return Err(PollError::Other(format!("HTTP status {status} without a readable body")));
    };
    if let Some(elements) = answer.list("result").filter(|_| answer.flag("ok")) {
        let mut batch = Batch::default();
        for raw in elements {
            match Object::read(raw).and_then(|update| update.integer("update_id")) {
                Some(id) => batch.updates.push(Update { id, raw: raw.to_owned() }),
                None => batch.unreadable += 1,
            }
        }
        return Ok(batch);
    }
    let code = answer.integer("error_code").unwrap_or_else(|| i64::from(status));
    let error = error_line(&answer.text("description").unwrap_or_else(|| format!("error {code}")));
    Err(match code {
        409 => PollError::Conflict(error),
        401 | 404 => PollError::Unauthorized(error),
        429 => {
            let asked = answer.object("parameters").and_then(|parameters| parameters.integer("retry_after"));
            let seconds = asked.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(1);
            PollError::TooManyRequests { delay: Duration::from_secs(seconds), error }
        }
        _ => PollError::Other(error),
    })
}

/// The host of the webhook that is set, by the answer to [`get_webhook_info`]; its path can hold a secret.
#[must_use]
pub fn webhook_host(body: &[u8]) -> Option<String> {
    let url = Object::read_bytes(body)?.object("result")?.text("url")?;
    url::Url::parse(&url).ok()?.host_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_or_its_error_told() {
        let check = |status: u16, body: &str, expected: Result<(&[i64], usize), PollError>| {
            let found = batch(status, body.as_bytes())
                .map(|batch| (batch.updates.iter().map(|update| update.id).collect::<Vec<_>>(), batch.unreadable));
            assert_eq!(found, expected.map(|(ids, unreadable)| (ids.to_vec(), unreadable)), "{body}");
        };
        check(200, r#"{"ok":true,"result":[]}"#, Ok((&[], 0)));
        check(
            200,
            r#"{"ok":true,"result":[{"update_id":7,"message":{}},{"id":1},8,{"update_id":9}]}"#,
            Ok((&[7, 9], 2)),
        );
        let conflict = "Conflict: can't use getUpdates method while webhook is active";
        let body = format!(r#"{{"ok":false,"error_code":409,"description":"{conflict}"}}"#);
        check(409, &body, Err(PollError::Conflict(conflict.to_owned())));
        let unauthorized = PollError::Unauthorized("Unauthorized".to_owned());
        check(401, r#"{"ok":false,"error_code":401,"description":"Unauthorized"}"#, Err(unauthorized));
        let limited = PollError::TooManyRequests { delay: Duration::from_secs(5), error: "slow".to_owned() };
        check(429, r#"{"ok":false,"description":"slow","parameters":{"retry_after":5}}"#, Err(limited));
        let strange = |status: u16| PollError::Other(format!("HTTP status {status} without a readable body"));
        check(502, "<html>", Err(strange(502)));
        check(200, "[]", Err(strange(200)));
        check(200, r#"{"ok":true,"result":7}"#, Err(PollError::Other("error 200".to_owned())));
    }

    #[test]
    fn of_a_webhook_only_the_host_is_told() {
        let host = |body: &str| webhook_host(body.as_bytes());
        let set = r#"{"ok":true,"result":{"url":"https://bots.example.com/webhooks/telegram/token"}}"#;
        assert_eq!(host(set).as_deref(), Some("bots.example.com"));
        assert_eq!(host(r#"{"ok":true,"result":{"url":""}}"#), None);
        assert_eq!(host("<html>"), None);
    }
}
