//! Ten thousand replies to 200 people and 20 groups: as fast as Telegram's limits allow, in order, and without a single 429.
//!
//! Refuses to wait as long as that takes: every limit allows ten times as much in the same time as Telegram's own.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use axum::Json;
use axum::routing::post;
use serde_json::{Value, json};
use support::PATIENCE;
use support::process::{Turnwise, quoted};
use support::responder::{Behaviour, message};
use support::scenario::{BOT, Backend, Deployment};
use support::telegram::RateLimits;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// Ten times 30 in a second, 1 a second after 3 at once, and 20 in a minute. The bot's window is long beside the pauses of a
/// loaded machine.
const LIMITS: RateLimits = RateLimits {
    bot: (1_200, Duration::from_secs(4)),
    chat: (3, Duration::from_millis(100)),
    group: (20, Duration::from_secs(6)),
};

/// The same for Turnwise, in the shape of its own defaults.
const CONFIGURED: &str = r#"{ bot = { messages = 1200, per = "4s" }, chat = { messages = 60, per = "6s", burst = 3 }, group = { messages = 20, per = "6s", burst = 5 } }"#;

/// Replies of one turn, and turns of a person and of a group.
const REPLIES: usize = 10;
const PERSONS_TURNS: u32 = 4;
const GROUPS_TURNS: u32 = 10;

const TOTAL: usize = REPLIES * (200 * PERSONS_TURNS as usize + 20 * GROUPS_TURNS as usize);

/// What the bot's limit allows, and a twentieth more; a group's needs 30 s of it.
const LONGEST: Duration = Duration::from_millis(TOTAL as u64 * 1_000 / 300 * 105 / 100);

/// A responder that says several things at once; gives its address.
async fn talkative() -> String {
    let respond = async |Json(request): Json<Value>| {
        let said = request["messages"][0]["text"].as_str().unwrap().to_owned();
        let replies: Vec<_> = (0..REPLIES).map(|n| json!({ "content": format!("{said} reply={n}") })).collect();
        Json(json!({ "replies": replies }))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/", post(respond))).await.unwrap() });
    format!("http://{address}/")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_replies_leave_at_the_pace_that_telegram_allows() {
    let responder = talkative().await;
    let roles = Some("ingress,worker");
    let mut deployment = Deployment::start_as(Backend::Sqlite, Behaviour::default(), roles, |configuration| {
        configuration.set("responders.talkative", "kind", "\"http\"");
        configuration.set("responders.talkative", "url", &quoted(&responder));
        let bot = format!("bots.{BOT}");
        configuration
            .set(&bot, "limits", CONFIGURED)
            .set(&bot, "responder", "\"talkative\"")
            .set(&bot, "typing", "false");
    })
    .await;
    let telegram = &deployment.telegram;
    telegram.limit(LIMITS);
    let people = (1_001..1_201).map(|chat| (chat, PERSONS_TURNS));
    let groups = (1..=20).map(|group| (-group, GROUPS_TURNS));
    let loads: Vec<(i64, u32)> = people.chain(groups).collect();
    for n in 1..=GROUPS_TURNS {
        for (chat, _) in loads.iter().filter(|(_, turns)| n <= *turns) {
            telegram.send(*chat, &message(*chat, n));
        }
    }
    deployment.settled_at_least(TOTAL / REPLIES, PATIENCE).await;
    // From here on it is about sending alone.
    let mut sender = Turnwise::spawn_as(deployment.turnwise.configuration().beside(), Some("egress")).await;
    telegram.wait("every reply", Duration::from_secs(120), |log| log.delivered.len() >= TOTAL).await;
    deployment.settled(TOTAL / REPLIES, PATIENCE).await;

    let seen = telegram.log(|log| {
        assert!(log.limited.is_empty(), "{} came too fast, such as {:?}", log.limited.len(), log.limited[0]);
        assert_eq!(log.delivered.len(), TOTAL);
        let taken = log.delivered[TOTAL - 1].at - log.delivered[0].at;
        assert!(taken <= LONGEST, "{TOTAL} replies took {taken:?}; the limits allow {LONGEST:?}");
        log.texts_by_chat()
    });
    for (chat, turns) in &loads {
        let replies = |n: u32| (0..REPLIES).map(move |reply| format!("{} reply={reply}", message(*chat, n)));
        let expected: Vec<String> = (1..=*turns).flat_map(replies).collect();
        assert_eq!(seen[chat], expected, "what chat {chat} sees");
    }
    sender.terminate().await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}
