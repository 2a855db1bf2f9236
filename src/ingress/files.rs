//! `/v1/files`: the files of messages, fetched from the platform when somebody wants them.
//!
//! Refuses to keep any, and to give out the platform's address of one: the bot's token is part of it. Invariant: no more than
//! [`FILE_BYTES_MAX`] of a file passes, a chunk at a time.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;

use super::access::has_key;
use super::extract::Segments;
use super::openapi::{Operation, Routes, Security};
use super::problem::Problem;
use super::{Ingress, RETRY_AFTER_SECONDS, Shared};
use crate::channel::telegram::{self, FileError};
use crate::config::{Bot, BotChannel, TelegramBot};

/// As much as Telegram's own servers give to a bot (Bot API, "getFile": 20 MB).
const FILE_BYTES_MAX: u64 = 20 * 1024 * 1024;

/// What `getFile` answers with is a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

const CALL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

const OCTETS: &str = "application/octet-stream";

pub(super) fn routes() -> Routes {
    Routes::default().get(
        "/v1/files/{bot}/{file_id}",
        show,
        Operation::new("getFile", "A file of a message, by the `file_id` of its attachment.")
            .details(
                "For Telegram bots: with one of the bot's `api_keys`, or the console token. At most 20 MiB; nothing is kept.",
            )
            .security(Security::Key)
            .text(200, OCTETS, "The file's bytes.")
            .problems(&[400, 401, 404, 413, 503]),
    )
}

async fn show(
    State(ingress): Shared,
    Segments(name, file_id): Segments,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let _permit = ingress.admit()?;
    let bot = ingress.bots.get(&name);
    let telegram = bot.and_then(|bot| match &bot.channel {
        BotChannel::Telegram(telegram) => Some((bot, telegram)),
        _ => None,
    });
    let keys = telegram.map_or(&[][..], |(_, telegram)| &telegram.api_keys);
    if !has_key(&headers, ingress.console_token.as_ref(), keys) {
        return Err(Problem::unauthorized());
    }
    let (bot, telegram) = telegram.ok_or_else(not_found)?;
    ingress.fetch_file(bot, telegram, &file_id).await
}

impl Ingress {
    async fn fetch_file(&self, bot: &Bot, telegram: &TelegramBot, file_id: &str) -> Result<Response, Problem> {
        let call = telegram::get_file(telegram, file_id);
        let answer = self.platforms.fetch(bot, &call, CALL_TIMEOUT, ANSWER_BYTES_MAX).await;
        let (status, body) = answer.map_err(|error| away(&bot.name, &error))?;
        let file = telegram::file(telegram, status, &body).map_err(|error| match error {
            FileError::Unknown => not_found(),
            FileError::TooLarge => too_large(),
            FileError::Away(error) => away(&bot.name, &error),
        })?;
        let response = self.platforms.download(bot, &file, CALL_TIMEOUT).await;
        let response = response.map_err(|error| away(&bot.name, &error))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Err(not_found()),
            status => return Err(away(&bot.name, &format!("HTTP status {status}"))),
        }
        if response.content_length().is_some_and(|length| length > FILE_BYTES_MAX) {
            return Err(too_large());
        }
        let headers = [
            ("content-type", OCTETS),
            ("content-disposition", "attachment"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "private, no-store"),
        ];
        Ok((headers, Body::from_stream(stream::try_unfold((response, 0), chunk))).into_response())
    }
}

/// The next chunk; one too many breaks the answer off, so that nobody takes a part for the whole.
async fn chunk(
    (mut response, passed): (reqwest::Response, u64),
) -> Result<Option<(Bytes, (reqwest::Response, u64))>, std::io::Error> {
    let chunk = response.chunk().await.map_err(|error| std::io::Error::other(error.without_url()))?;
    let Some(chunk) = chunk else { return Ok(None) };
    let passed = passed + chunk.len() as u64;
    if passed > FILE_BYTES_MAX {
        return Err(std::io::Error::other("the file is longer than the limit"));
    }
    Ok(Some((chunk, (response, passed))))
}

fn not_found() -> Problem {
    Problem::new(404, "not-found", "No Telegram bot of this name is configured, or it knows no such file.")
}

fn too_large() -> Problem {
    Problem::new(413, "too-large", format!("The file is longer than {FILE_BYTES_MAX} bytes."))
}

fn away(bot: &str, error: &str) -> Problem {
    tracing::warn!(bot, error, "a file cannot be fetched");
    Problem::new(503, "unavailable", "The platform did not give the file. Please try again.")
        .retry_after(RETRY_AFTER_SECONDS)
}
