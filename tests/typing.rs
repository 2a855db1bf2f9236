//! How many chats are shown at once that the bot is typing, when its platform does not answer.
//!
//! Refuses to send messages: only the indicator is looked at, called in this process.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use support::process::{Configuration, environment};
use support::{PATIENCE, http_client};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use turnwise::config::ConfigReader;
use turnwise::message::{Channel, ConversationKey, Peer};
use turnwise::platform::Platforms;
use turnwise::turn::typing::Typing;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// Calls at once.
const CALLS_MAX: usize = 64;

/// Longer than a turn has to last for the indicator to be shown.
const LONG_ENOUGH: Duration = Duration::from_secs(1);

/// Counts the calls of a Bot API that answers none of them.
async fn silent(State(calls): State<watch::Sender<usize>>) -> String {
    calls.send_modify(|calls| *calls += 1);
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_64_chats_are_called_at_once() {
    drop(http_client());
    let calls = watch::Sender::new(0);
    let router = Router::new().fallback(silent).with_state(calls.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    let mut configuration = Configuration::empty();
    configuration.telegram_bot("support", "echo", &api).set("responders.echo", "kind", "\"echo\"");
    configuration.set("database", "url", "\"sqlite://none.db\"").set("nats", "url", "\"nats://127.0.0.1:1\"");
    let config = ConfigReader::default().parse(&configuration.to_toml(), Path::new("turnwise.toml"), &environment);
    let config = config.unwrap();
    let (bot, typing) = (&config.bots["support"], Typing::new(Arc::new(Platforms::new(&config.bots).unwrap())));
    let key = |chat: usize| {
        let peer = Peer::User(chat.to_string());
        ConversationKey { channel: Channel::Telegram, bot: "support".into(), peer }
    };

    let mut turns = JoinSet::new();
    let mut ends = Vec::new();
    for chat in 0..CALLS_MAX {
        let (end, ended) = oneshot::channel::<()>();
        let (bot, typing, key) = (bot.clone(), typing.clone(), key(chat));
        turns.spawn(async move { typing.during(&bot, &key, ended).await });
        ends.push(end);
    }
    let mut seen = calls.subscribe();
    let all = tokio::time::timeout(PATIENCE, seen.wait_for(|calls| *calls == CALLS_MAX)).await;
    all.expect("a call for each chat").unwrap();
    // One turn more, which lasts for so long that its chat would be called.
    typing.during(bot, &key(CALLS_MAX), tokio::time::sleep(LONG_ENOUGH)).await;
    assert_eq!(*calls.borrow(), CALLS_MAX, "while none of them is answered");
    // Their turns end, and there is room.
    drop(ends);
    while turns.join_next().await.is_some() {}
    typing.during(bot, &key(CALLS_MAX + 1), tokio::time::sleep(LONG_ENOUGH)).await;
    assert_eq!(*calls.borrow(), CALLS_MAX + 1);
}
