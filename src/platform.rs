//! Calling the platforms: a [`Call`] out, its [`Answer`] back, over connections of the bot's own.
//!
//! Refuses to try again and to decide what an answer means for anybody. Invariant: neither the address called, which can hold
//! a token, nor a secret that the platform repeats is in an error.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::channel::{self, Answer, Call};
use crate::config::{Bot, BotChannel, HttpBot, Secret};
use crate::http::{self, guard};
use crate::message::{Channel, Timestamp};
use crate::telemetry::chain;

pub mod closures;
pub mod governor;

use self::closures::Closures;
use self::governor::Governor;

/// More than any answer to a call needs.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What came of a call.
#[derive(Debug)]
pub struct Called {
    /// The HTTP status; `None` when no answer came.
    pub status: Option<u16>,
    pub answer: Answer,
    /// How long the bot shall be silent, as the platform's figures of its usage have it.
    pub pause: Option<Duration>,
}

impl Called {
    /// Of a call that brought no answer.
    fn unanswered(answer: Answer) -> Self {
        Self { status: None, answer, pause: None }
    }
}

/// The HTTP clients of a deployment's bots.
#[derive(Debug)]
pub struct Platforms {
    /// Connections of a bot's own, so that one platform's slowness is not another's.
    clients: BTreeMap<String, reqwest::Client>,
    /// Held for a decision, never for a wait.
    governor: Mutex<Governor>,
    /// The same.
    closures: Mutex<Closures>,
}

impl Platforms {
    /// # Errors
    /// When a bot's HTTP client cannot be built: its address is `https://` and the system has no CA certificates.
    pub fn new(bots: &BTreeMap<String, Bot>) -> Result<Self, reqwest::Error> {
        let mut clients = BTreeMap::new();
        for (name, bot) in bots {
            let base = match &bot.channel {
                BotChannel::Telegram(telegram) => &telegram.api_base,
                BotChannel::Messenger(messenger) => &messenger.api_base,
                BotChannel::Http(http) => &http.callback_url,
                BotChannel::Web(_) => continue,
            };
            if let Ok(base) = reqwest::Url::parse(base) {
                let is_guarded = matches!(&bot.channel, BotChannel::Http(http) if !http.allow_private);
                let client = if is_guarded { http::guarded_client(&base)? } else { http::client(&base)? };
                clients.insert(name.clone(), client);
            }
        }
        let called = bots.values().filter(|bot| bot.channel() != Channel::Web);
        let governor = Governor::new(called.map(|bot| (bot.name.clone(), bot.limits)));
        Ok(Self { clients, governor: Mutex::new(governor), closures: Mutex::default() })
    }

    /// When calls may be made. A decision that panicked has left at worst a wait that is too long.
    pub fn governor(&self) -> MutexGuard<'_, Governor> {
        self.governor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which bots are shut out. A decision that panicked has left at worst a refusal too many.
    pub fn closures(&self) -> MutexGuard<'_, Closures> {
        self.closures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call. Without an answer within `timeout` nobody can tell what came of it.
    pub async fn call(&self, bot: &Bot, call: &Call, timeout: Duration) -> Called {
        let Some(client) = self.clients.get(&bot.name) else {
            let error = "the bot's api_base is not an address".to_owned();
            return Called::unanswered(Answer::Failed { error, unreachable: false });
        };
        let mut request = match &bot.channel {
            BotChannel::Http(settings) => match callback(client, settings, call, timeout) {
                Ok(request) => request,
                Err(error) => return Called::unanswered(Answer::Failed { error, unreachable: false }),
            },
            _ => client.post(call.url.expose()).timeout(timeout).json(&call.body),
        };
        if let Some(bearer) = &call.bearer {
            request = request.bearer_auth(bearer.expose());
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Called::unanswered(without_answer(error)),
        };
        let status = response.status().as_u16();
        if matches!(bot.channel, BotChannel::Http(_)) {
            // The status says it all; what else there is may never end.
            let retry_after = http::retry_after(response.headers(), Timestamp::now().to_offset_date_time());
            let answer = channel::classify(bot.channel(), status, retry_after, &[]);
            return Called { status: Some(status), answer, pause: None };
        }
        let retry_after = retry_after(&response);
        let usage = channel::usage_headers(bot.channel()).iter().flat_map(|name| response.headers().get_all(*name));
        let pause = channel::usage_pause(usage.map(reqwest::header::HeaderValue::as_bytes));
        let answer = match bounded_body(response, MAX_ANSWER_BYTES).await {
            Ok(body) => channel::classify(bot.channel(), status, retry_after, &without_secret(bot, body)),
            Err(error) => without_answer(error),
        };
        Called { status: Some(status), answer, pause }
    }
}

impl Platforms {
    /// One call that sends nothing to anybody: the HTTP status and the body, at most `bytes_max` of it.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub async fn fetch(
        &self,
        bot: &Bot,
        call: &Call,
        timeout: Duration,
        bytes_max: usize,
    ) -> Result<(u16, Vec<u8>), String> {
        let client = self.clients.get(&bot.name).ok_or_else(|| "the bot's api_base is not an address".to_owned())?;
        let words = |error: reqwest::Error| chain(&error.without_url());
        let response = client.post(call.url.expose()).timeout(timeout).json(&call.body).send().await.map_err(words)?;
        let status = response.status().as_u16();
        let body = bounded_body(response, bytes_max).await.map_err(words)?;
        Ok((status, without_secret(bot, body)))
    }
}

impl Platforms {
    /// A file's bytes, as they come; `timeout` is for all of them.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub async fn download(&self, bot: &Bot, url: &Secret, timeout: Duration) -> Result<reqwest::Response, String> {
        let client = self.clients.get(&bot.name).ok_or_else(|| "the bot's api_base is not an address".to_owned())?;
        let response = client.get(url.expose()).timeout(timeout).send().await;
        response.map_err(|error| chain(&error.without_url()))
    }
}

/// One attempt at a callback, signed for this moment.
fn callback(
    client: &reqwest::Client,
    settings: &HttpBot,
    call: &Call,
    timeout: Duration,
) -> Result<reqwest::RequestBuilder, String> {
    let url = reqwest::Url::parse(call.url.expose()).map_err(|_| "callback_url is not an address".to_owned())?;
    if !settings.allow_private && !guard::may_be_called(&url) {
        return Err("callback_url leads into the own network".to_owned());
    }
    let signed = channel::http::signed(settings, call, Timestamp::now());
    let request = client.post(url).timeout(timeout.min(settings.callback_timeout));
    let request = request.header(reqwest::header::CONTENT_TYPE, "application/json");
    let request = signed.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    Ok(request.body(signed.body))
}

/// What a call that brought no answer means. Nothing was sent when no connection was made; afterwards nobody can tell.
/// The address, which can hold a token, is taken out of the error.
fn without_answer(error: reqwest::Error) -> Answer {
    let not_sent = error.is_connect() || error.is_builder();
    let error = chain(&error.without_url());
    if not_sent { Answer::NotSent { error } } else { Answer::Uncertain { error } }
}

/// A server that repeats what it was asked must not bring the secret of the call into the log or the database.
fn without_secret(bot: &Bot, body: Vec<u8>) -> Vec<u8> {
    let secret = match &bot.channel {
        BotChannel::Telegram(telegram) => telegram.token.expose(),
        BotChannel::Messenger(messenger) => messenger.page_token.expose(),
        BotChannel::Web(_) | BotChannel::Http(_) => return body,
    };
    let text = String::from_utf8_lossy(&body);
    if text.contains(secret) { text.replace(secret, "[redacted]").into_bytes() } else { body }
}

/// `Retry-After` in seconds; the platforms do not use the date form.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let value = response.headers().get(reqwest::header::RETRY_AFTER)?;
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

async fn bounded_body(mut response: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = bytes_max - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == bytes_max {
            break;
        }
    }
    Ok(body)
}
