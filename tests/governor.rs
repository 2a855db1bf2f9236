//! The platforms' rate limits, kept before they are hit: a stand-in for Telegram that answers 429 to whoever is too fast,
//! with the published limits made smaller, so that a load reaches them within seconds.
//!
//! Refuses to look inside; how a limit is kept, the properties in `src/platform/governor.rs` say.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use support::PATIENCE;
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment};
use support::telegram::{Fault, RateLimits};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// The windows are long beside the pauses of a loaded machine.
const LIMITS: RateLimits = RateLimits {
    bot: (60, Duration::from_secs(4)),
    chat: (3, Duration::from_millis(500)),
    group: (6, Duration::from_secs(3)),
};

/// The same limits, for Turnwise.
const CONFIGURED: &str = r#"{ bot = { messages = 60, per = "4s" }, chat = { messages = 20, per = "10s", burst = 3 }, group = { messages = 6, per = "3s", burst = 3 } }"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_to_many_chats_and_groups_leave_in_order_without_a_429() {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "limits", CONFIGURED);
    })
    .await;
    deployment.telegram.limit(LIMITS);
    // Forty chats with two messages, one with ten, three groups with ten.
    let mut loads: Vec<(i64, u32)> = (1_001..1_041).map(|chat| (chat, 2)).collect();
    loads.push((2_001, 10));
    loads.extend((1..=3).map(|group| (-group, 10)));
    let total: usize = loads.iter().map(|(_, messages)| *messages as usize).sum();
    for n in 1..=10 {
        for (chat, _) in loads.iter().filter(|(_, messages)| n <= *messages) {
            deployment.telegram.send(*chat, &message(*chat, n));
        }
    }
    deployment.telegram.wait("every answer", PATIENCE, |log| log.delivered.len() >= total).await;
    deployment.settled(total, PATIENCE).await;

    deployment.telegram.log(|log| {
        assert!(log.limited.is_empty(), "{} came too fast, such as {:?}", log.limited.len(), log.limited[0]);
        for (chat, messages) in &loads {
            let expected: Vec<String> = (1..=*messages).map(|n| answer(*chat, n)).collect();
            assert_eq!(log.texts(*chat), expected, "what chat {chat} sees");
        }
        // 120 answers are two windows of the bot; slower than three would be needlessly slow, also on a busy machine.
        let taken = log.delivered[total - 1].at - log.delivered[0].at;
        assert!(taken < Duration::from_secs(12), "{total} answers took {taken:?}");
    });
    let page = reqwest::get(deployment.turnwise.url("/metrics")).await.unwrap().text().await.unwrap();
    let counted = format!("turnwise_egress_wait_seconds_count {total}");
    assert!(page.contains(&counted), "no {counted} among the metrics");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_that_is_told_to_wait_holds_up_no_other_and_keeps_its_order() {
    const BLOCKED: i64 = 7;
    const FREE: i64 = 8;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "limits", CONFIGURED);
    })
    .await;
    let telegram = &deployment.telegram;
    telegram.fail_next(BLOCKED, Fault::TooManyRequests { retry_after: 3 });
    for n in 1..=3 {
        telegram.send(BLOCKED, &message(BLOCKED, n));
    }
    telegram.wait("the answer that is told to wait", PATIENCE, |log| !log.attempts.is_empty()).await;
    telegram.send(FREE, &message(FREE, 1));
    telegram.wait_for_texts(FREE, 1, PATIENCE).await;
    assert_eq!(telegram.log(|log| log.texts(BLOCKED)), Vec::<String>::new(), "before the pause is over");
    let texts = telegram.wait_for_texts(BLOCKED, 3, PATIENCE).await;
    assert_eq!(texts, [1, 2, 3].map(|n| answer(BLOCKED, n)));
    telegram.log(|log| {
        let calls: Vec<_> = log.attempts.iter().filter(|sent| sent.chat == BLOCKED).map(|sent| sent.at).collect();
        assert_eq!(calls.len(), 4, "one attempt too early, three answers");
        assert!(calls[1] - calls[0] >= Duration::from_secs(3), "tried again after {:?}", calls[1] - calls[0]);
    });
    deployment.settled(4, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// A reply whose formatting is refused is sent again as plain text: another call, which waits for its turn like any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_sent_simpler_keeps_to_the_limits() {
    const CHAT: i64 = 9;
    let slow = r#"{ chat = { messages = 1, per = "2s" } }"#;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "limits", slow);
    })
    .await;
    let telegram = &deployment.telegram;
    deployment.model.answer_with(&message(CHAT, 1), "**bold**");
    telegram.fail_next(CHAT, Fault::Unparsed);
    telegram.send(CHAT, &message(CHAT, 1));
    assert_eq!(telegram.wait_for_texts(CHAT, 1, PATIENCE).await, ["bold"]);
    telegram.log(|log| {
        let [refused, plain] = &log.attempts[..] else { panic!("{:?}", log.attempts) };
        assert!(refused.request["entities"].is_array() && plain.request["entities"].is_null());
        assert!(plain.at - refused.at >= Duration::from_millis(1_950), "after {:?}", plain.at - refused.at);
    });
    deployment.settled(1, PATIENCE).await;
    let delivery = deployment.ledger.deliveries().await.remove(0);
    assert_eq!(delivery.status, "sent", "{delivery:?}");
}
