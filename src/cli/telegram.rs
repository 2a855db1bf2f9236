//! `turnwise telegram set-webhook|delete-webhook|info`: a bot's webhook at the Bot API
//! (<https://core.telegram.org/bots/api#setwebhook>).
//!
//! Refuses to print or log the token: it is part of every address called here, of the webhook's own where somebody has put it
//! there, and of whatever answers by repeating what it was asked. Invariant: what came from outside is printed only by way of
//! [`without_token`].

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use self::diagnosis::{Expected, diagnose};
use super::{WithConfig, print, say};
use crate::channel::telegram::{self, polling::allowed_updates};
use crate::config::{BotChannel, Config, TelegramBot, Updates};
use crate::http;
use crate::message::Timestamp;
use crate::telemetry;

mod diagnosis;

#[derive(Debug, Subcommand)]
pub(super) enum Telegram {
    /// Have updates sent to `http.public_url`
    SetWebhook(OfBot),
    /// Have updates kept by Telegram
    DeleteWebhook(OfBot),
    /// What Telegram knows of the webhook, and what is wrong with it
    Info(OfBot),
}

#[derive(Debug, Args)]
pub(super) struct OfBot {
    #[command(flatten)]
    config: WithConfig,
    /// The bot, by its name in the configuration
    #[arg(long)]
    bot: String,
}

/// More than any of these methods answers with.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

const TIMEOUT: Duration = Duration::from_secs(30);

impl Telegram {
    const fn of_bot(&self) -> &OfBot {
        match self {
            Self::SetWebhook(of_bot) | Self::DeleteWebhook(of_bot) | Self::Info(of_bot) => of_bot,
        }
    }

    pub(super) fn config(&self) -> &Path {
        &self.of_bot().config.config
    }
}

pub(super) async fn run(config: &Config, command: &Telegram) -> anyhow::Result<ExitCode> {
    let name = &command.of_bot().bot;
    let Some(bot) = config.bots.get(name) else {
        let known: Vec<&str> = config.bots.keys().map(String::as_str).collect();
        say(&format!("error: no bot \"{name}\" is configured\nhint: the bots are {}", known.join(", ")));
        return Ok(ExitCode::from(2));
    };
    let BotChannel::Telegram(telegram) = &bot.channel else {
        say(&format!("error: the bot \"{name}\" is not a Telegram bot"));
        return Ok(ExitCode::from(2));
    };
    match command {
        Telegram::SetWebhook(_) if telegram.updates == Updates::Polling => {
            let wrong = format!("bots.{name}.updates: is \"polling\"; a webhook would keep updates from being fetched");
            return Ok(wrong_configuration(&wrong));
        }
        Telegram::SetWebhook(_) => {
            let url = match webhook_url(config, name) {
                Ok(url) => url,
                Err(wrong) => return Ok(wrong_configuration(&wrong)),
            };
            let Some(secret) = &telegram.webhook_secret else {
                let wrong = format!("bots.{name}.webhook_secret: not set; without one no update would be accepted");
                return Ok(wrong_configuration(&wrong));
            };
            let body = json!({
                "url": url, "secret_token": secret.expose(), "allowed_updates": allowed_updates(telegram),
                "max_connections": diagnosis::CONNECTIONS,
            });
            call::<Value>(telegram, "setWebhook", &body).await?;
            say(&format!("Telegram sends the updates of \"{name}\" to {url}"));
            if !telegram.commands.is_empty() {
                call::<Value>(telegram, "setMyCommands", &telegram::menu(telegram)).await?;
                say(&format!("its menu offers {} commands", telegram.menu().len()));
            }
        }
        Telegram::DeleteWebhook(_) => {
            call::<Value>(telegram, "deleteWebhook", &json!({})).await?;
            say(&format!("Telegram keeps the updates of \"{name}\", for at most 24 hours"));
        }
        Telegram::Info(_) => {
            let info: Value = call(telegram, "getWebhookInfo", &json!({})).await?;
            let text = serde_json::to_string_pretty(&info).context("cannot write JSON")?;
            print(&without_token(telegram, &text))?;
            let mode = match telegram.updates {
                Updates::Webhook => "Telegram sends the updates of this bot to its webhook",
                Updates::Polling => {
                    "Turnwise fetches the updates of this bot while `serve` runs (updates = \"polling\")"
                }
            };
            say(mode);
            let url = webhook_url(config, name).ok();
            let expected =
                Expected { updates: telegram.updates, url: url.as_deref(), kinds: &allowed_updates(telegram) };
            for finding in diagnose(&info, &expected, Timestamp::now()) {
                say(&format!("warning: {}", without_token(telegram, &finding)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn wrong_configuration(wrong: &str) -> ExitCode {
    say(&format!("error: {wrong}"));
    ExitCode::from(2)
}

/// The address of the bot's webhook, or what the configuration lacks for there to be one.
fn webhook_url(config: &Config, bot: &str) -> Result<String, String> {
    let Some(public) = &config.http.public_url else {
        let wrong = "http.public_url: not set; Telegram needs the https address under which it reaches this server";
        return Err(wrong.to_owned());
    };
    if !public.starts_with("https://") {
        return Err("http.public_url: must begin with https://, or Telegram will not call it".to_owned());
    }
    Ok(format!("{}/webhooks/telegram/{bot}", public.trim_end_matches('/')))
}

#[derive(Debug, Deserialize)]
struct Envelope<T> {
    ok: bool,
    result: Option<T>,
    error_code: Option<i64>,
    description: Option<String>,
}

async fn call<T: serde::de::DeserializeOwned>(bot: &TelegramBot, method: &str, body: &Value) -> anyhow::Result<T> {
    let url = format!("{}/bot{}/{method}", bot.api_base, bot.token.expose());
    let base = reqwest::Url::parse(&bot.api_base).context("api_base is not an address")?;
    let client = http::client(&base).context("cannot build an HTTP client; are the CA certificates installed?")?;
    let response = client.post(url).timeout(TIMEOUT).json(body).send().await.map_err(reqwest::Error::without_url);
    let response = response.with_context(|| format!("cannot reach the Bot API at {}", bot.api_base))?;
    let status = response.status();
    let strange = || format!("the Bot API answered {status}, and not in its own form");
    let body = bounded_body(response).await.with_context(strange)?;
    let answer: Envelope<T> =
        serde_json::from_slice(&body).map_err(|error| anyhow!(telemetry::json_fault(&error))).with_context(strange)?;
    match answer.result {
        Some(result) if answer.ok => Ok(result),
        _ => bail!(
            "the Bot API refused {method}: {} {}",
            answer.error_code.unwrap_or_else(|| i64::from(status.as_u16())),
            without_token(bot, answer.description.as_deref().unwrap_or("without a reason"))
        ),
    }
}

async fn bounded_body(mut response: reqwest::Response) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        body.extend_from_slice(&chunk);
        ensure!(body.len() <= ANSWER_BYTES_MAX, "it is longer than {ANSWER_BYTES_MAX} bytes");
    }
    Ok(body)
}

/// The text without the bot's token, whole or its secret half.
fn without_token(bot: &TelegramBot, text: &str) -> String {
    let token = bot.token.expose();
    let secret = token.split_once(':').map_or(token, |(_, secret)| secret);
    text.replace(token, "[redacted]").replace(secret, "[redacted]")
}
