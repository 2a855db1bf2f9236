//! Telegram through the whole deployment: chats that move, people who block the bot, formatted replies, commands.
//!
//! Refuses to look inside: what is right is seen in the chats, in the database, and at the API.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::process::Configuration;
use support::responder::{Behaviour, answer, message};
use support::scenario::{Backend, Deployment};
use support::telegram::Fault;
use support::{PATIENCE, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/model.rs"]
mod model;

mod telegram {
    mod commands;
    mod drafts;
    mod formatting;
    mod moves;
    mod people;
    mod updates;
}

const TOKEN: &str = "operators-token";

fn with_console(configuration: &mut Configuration) {
    configuration.set("console", "token", &format!("\"{TOKEN}\""));
}

async fn start(backend: Backend) -> Deployment {
    Deployment::start(backend, Behaviour::default(), with_console).await
}

/// What the API answers an operator.
async fn get(deployment: &Deployment, path: &str) -> Value {
    let request = http_client().get(deployment.turnwise.url(path)).bearer_auth(TOKEN);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    response.json().await.unwrap()
}

/// The one conversation that there is.
async fn conversation(deployment: &Deployment) -> Value {
    let list = get(deployment, "/v1/conversations").await;
    let conversations = list["conversations"].as_array().unwrap();
    assert_eq!(conversations.len(), 1, "{list:#}");
    conversations[0].clone()
}
