//! The way of a message from webhook to delivery through the real processes: Turnwise, nats-server, a database, with
//! stand-ins for Telegram, Messenger and the model. Loads first, then one test per promise of a channel.
//!
//! Refuses to look inside; crashes under load are in `faults.rs`, the chat API in `chat_api.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::ledger::Delivery;
use support::messenger::{Messenger, VERIFY_TOKEN, batch, signature};
use support::process::CONSOLE_TOKEN;
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment, Load, RESPONDER};
use support::telegram::{Fault, SECRET};
use support::{PATIENCE, eventually, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// Several times what the platform's rate limits need for the answers: 30 a second for a bot, 1 a second for a chat.
const LOAD_LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_are_answered_once_and_in_order_on_postgres() {
    keep_every_promise(Backend::Postgres, &Load { chats: 10_001..10_101, per_chat: 20 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_are_answered_once_and_in_order_on_sqlite() {
    keep_every_promise(Backend::Sqlite, &Load { chats: 10_001..10_016, per_chat: 20 }).await;
}

/// A burst per chat, all chats at once, a model that is slow and fails now and then, never often enough to give up.
async fn keep_every_promise(backend: Backend, load: &Load) {
    let behaviour = Behaviour { seed: 7, longest_delay: Duration::from_millis(40), failures_percent: 5 };
    let mut deployment = Deployment::start(backend, behaviour, |configuration| {
        configuration.set("worker", "max_attempts", "8");
    })
    .await;
    load.send(&deployment.telegram);
    deployment.telegram.all_taken(LOAD_LIMIT).await;
    deployment.telegram.wait("every answer", LOAD_LIMIT, |log| log.delivered.len() >= load.total()).await;
    deployment.settled(load.total(), PATIENCE).await;

    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    deployment.turnwise.assert_audit_clean().await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_who_takes_over_during_a_turn_is_never_overwritten() {
    const CHAT: i64 = 31;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    let telegram = &deployment.telegram;
    telegram.send(CHAT, &message(CHAT, 1));
    telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    let conversation = only_conversation(&deployment).await;
    let url = deployment.turnwise.url(&format!("/v1/conversations/{}", conversation["id"].as_str().unwrap()));

    // The model thinks until it is released, so an answer to the patch proves that it did not wait for the turn.
    deployment.model.hold(&message(CHAT, 2));
    telegram.send(CHAT, &message(CHAT, 2));
    deployment.model.wait_for_call(&message(CHAT, 2), PATIENCE).await;
    let patch = json!({ "status": "human", "assignee": "ann", "metadata": { "x": 1 } });
    let request = http_client().patch(&url).bearer_auth(CONSOLE_TOKEN).json(&patch);
    let response = tokio::time::timeout(PATIENCE, request.send()).await.expect("the patch does not wait").unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    deployment.model.release(&message(CHAT, 2));

    let texts = telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    assert_eq!(texts, [answer(CHAT, 1), answer(CHAT, 2)], "the reply in flight still leaves");
    let conversation = only_conversation(&deployment).await;
    assert_eq!(conversation["status"], "human");
    assert_eq!(conversation["assignee"], "ann");
    assert_eq!(conversation["metadata"]["x"], 1);
    assert_eq!(conversation["snippet"], answer(CHAT, 2).as_str());

    telegram.send(CHAT, &message(CHAT, 3));
    deployment.settled(3, PATIENCE).await;
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!((states.get("answered"), states.get("handed_off")), (Some(&2), Some(&1)), "the ledger");
    let history = deployment.ledger.history_with(&message(CHAT, 1)).await;
    assert_eq!(history.len(), 5, "the history: {history:?}");
    assert_eq!((history[4].role.as_str(), history[4].content.as_str()), ("user", message(CHAT, 3).as_str()));

    // Handed back, the bot answers again; had it wanted to answer the third message, that would have come first.
    let back = http_client().patch(&url).bearer_auth(CONSOLE_TOKEN).json(&json!({ "status": "bot" })).send().await;
    assert_eq!(back.unwrap().status(), StatusCode::OK);
    telegram.send(CHAT, &message(CHAT, 4));
    let texts = telegram.wait_for_texts(CHAT, 3, PATIENCE).await;
    assert_eq!(texts, [answer(CHAT, 1), answer(CHAT, 2), answer(CHAT, 4)], "what the chat sees");
    assert_eq!(deployment.model.log(|log| log.calls_for(&message(CHAT, 3))), 0, "calls for the handed-off message");
    let conversation = only_conversation(&deployment).await;
    assert_eq!((&conversation["status"], &conversation["assignee"]), (&json!("bot"), &json!("ann")));
}

/// The list of conversations, as the console's token sees it, has one entry.
async fn only_conversation(deployment: &Deployment) -> Value {
    let request = http_client().get(deployment.turnwise.url("/v1/conversations")).bearer_auth(CONSOLE_TOKEN);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let list: Value = response.json().await.unwrap();
    let conversations = list["conversations"].as_array().unwrap_or_else(|| panic!("no list of conversations: {list}"));
    assert_eq!(conversations.len(), 1, "conversations: {list}");
    conversations[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telegram_webhook_takes_what_is_authentic_and_nothing_else() {
    const CHAT: i64 = 41;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    let url = deployment.turnwise.url(&format!("/webhooks/telegram/{BOT}"));
    let post = async |secret: Option<&str>, body: String| {
        let mut request = http_client().post(&url).header("Content-Type", "application/json").body(body);
        if let Some(secret) = secret {
            request = request.header("X-Telegram-Bot-Api-Secret-Token", secret);
        }
        request.send().await.unwrap().status()
    };
    let update = deployment.telegram.update(CHAT, &message(CHAT, 1)).to_string();
    for secret in [None, Some(""), Some("wrong"), Some("stand-in-secre"), Some("stand-in-secret2")] {
        assert_eq!(post(secret, update.clone()).await, StatusCode::UNAUTHORIZED, "secret {secret:?}");
    }
    for body in ["", "no json", "[]", "{}", "{\"update_id\":\"seven\"}", "{\"message\":{}}"] {
        assert_eq!(post(Some(SECRET), body.to_owned()).await, StatusCode::BAD_REQUEST, "body {body:?}");
    }
    assert_eq!(deployment.ledger.row_counts().await, [0; 4], "rows after nothing but refusals");
    assert_eq!(deployment.nats.last_sequence("turnwise_in").await, 0, "messages after nothing but refusals");

    let odd = [
        json!({ "update_id": 1, "an_update_of_the_future": { "x": [1, 2] } }),
        json!({ "update_id": 2, "another": [1] }),
        json!({ "update_id": 3, "poll": { "id": "1", "question": "?", "options": [], "total_voter_count": 0 } }),
        json!({ "update_id": 4 }),
    ];
    for update in &odd {
        assert_eq!(post(Some(SECRET), update.to_string()).await, StatusCode::OK, "update {update}");
    }
    deployment.settled(odd.len(), PATIENCE).await;
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!(states.get("ignored"), Some(&odd.len()), "the ledger: {states:?}");

    deployment.telegram.send(CHAT, &message(CHAT, 1));
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, [answer(CHAT, 1)]);
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messenger_is_verified_and_each_sender_of_a_batch_answered() {
    let graph = Messenger::start().await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.messenger_bot("page", RESPONDER, &graph.base_url());
    })
    .await;
    let url = deployment.turnwise.url("/webhooks/messenger/page");
    let subscribe = async |token: &str| {
        let url = format!("{url}?hub.mode=subscribe&hub.verify_token={token}&hub.challenge=1158201444");
        let response = http_client().get(url).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    assert_eq!(subscribe(VERIFY_TOKEN).await, (StatusCode::OK, "1158201444".to_owned()));
    let (status, body) = subscribe("wrong").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(!body.contains("1158201444") && !body.contains(VERIFY_TOKEN), "the refusal tells: {body}");

    let post = async |signature: Option<String>, body: String| {
        let mut request = http_client().post(&url).header("Content-Type", "application/json").body(body);
        if let Some(signature) = signature {
            request = request.header("X-Hub-Signature-256", signature);
        }
        let response = request.send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let body = batch(&[("201", "mid.1", &message(201, 1)), ("202", "mid.2", &message(202, 1))]);
    let forged = [None, Some(String::new()), Some("sha256=00".to_owned()), Some(signature(&format!("{body} ")))];
    for signature in forged {
        let label = format!("signature {signature:?}");
        assert_eq!(post(signature, body.clone()).await.0, StatusCode::UNAUTHORIZED, "{label}");
    }
    assert_eq!(post(Some(signature("no json")), "no json".to_owned()).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(deployment.ledger.row_counts().await, [0; 4], "rows after nothing but refusals");

    // Twice, as Meta does when the answer came too late.
    for _ in 0..2 {
        let taken = post(Some(signature(&body)), body.clone()).await;
        assert_eq!(taken, (StatusCode::OK, "EVENT_RECEIVED".to_owned()));
    }
    let next = batch(&[("201", "mid.3", &message(201, 2))]);
    assert_eq!(post(Some(signature(&next)), next).await.0, StatusCode::OK);
    let mut sent = graph.wait_for(3, PATIENCE).await;
    sent.sort();
    let expected = [("201", answer(201, 1)), ("201", answer(201, 2)), ("202", answer(202, 1))];
    assert_eq!(sent, expected.map(|(person, text)| (person.to_owned(), text)), "what the Send API got");
    deployment.settled(3, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
    assert_eq!(graph.wait_for(3, PATIENCE).await.len(), 3, "messages sent in all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_telegram_puts_off_is_sent_later_once_and_in_order() {
    const CHAT: i64 = 51;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    deployment.telegram.fail_next(CHAT, Fault::TooManyRequests { retry_after: 2 });
    for n in 1..=3 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    let texts = deployment.telegram.wait_for_texts(CHAT, 3, PATIENCE).await;
    assert_eq!(texts, [1, 2, 3].map(|n| answer(CHAT, n)), "what the chat sees");
    deployment.settled(3, PATIENCE).await;
    deployment.telegram.log(|log| {
        let attempts: Vec<_> = log.attempts.iter().map(|sent| sent.text.clone()).collect();
        assert_eq!(attempts, [1, 1, 2, 3].map(|n| answer(CHAT, n)), "calls of sendMessage");
        let pause = log.attempts[1].at - log.attempts[0].at;
        assert!(pause >= Duration::from_secs(2), "sent again after {pause:?}, asked for 2 s");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_blocked_the_bot_is_not_tried_again_and_harms_nobody() {
    const BLOCKED: i64 = 61;
    const OTHER: i64 = 62;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    deployment.telegram.fail_next(BLOCKED, Fault::Forbidden);
    for chat in [BLOCKED, OTHER] {
        deployment.telegram.send(chat, &message(chat, 1));
    }
    assert_eq!(deployment.telegram.wait_for_texts(OTHER, 1, PATIENCE).await, [answer(OTHER, 1)]);
    deployment.settled(2, PATIENCE).await;
    assert_eq!(delivery(&deployment, &answer(BLOCKED, 1)).await.status, "failed");
    assert_eq!(deployment.telegram.log(|log| log.attempts.len()), 2, "calls of sendMessage");
    let history = deployment.ledger.history_with(&message(BLOCKED, 1)).await;
    assert_eq!(history.len(), 2, "the history is kept: {history:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reply_leaves_in_parts_and_in_order() {
    const CHAT: i64 = 71;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    let paragraph = |number: usize| format!("Paragraph {number}: {}", "a word or two \u{1f980} ".repeat(40).trim_end());
    let long = (1..=20).map(paragraph).collect::<Vec<_>>().join("\n\n");
    deployment.model.answer_with(&message(CHAT, 1), &long);
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    deployment
        .telegram
        .wait("the second answer", PATIENCE, |log| log.texts(CHAT).last() == Some(&answer(CHAT, 2)))
        .await;

    let mut parts = deployment.telegram.log(|log| log.texts(CHAT));
    parts.pop();
    assert!(parts.len() >= 3, "{} parts", parts.len());
    let without_space = |text: &str| text.split_whitespace().collect::<String>();
    assert_eq!(without_space(&parts.concat()), without_space(&long), "the parts make the whole");
    let history = deployment.ledger.history_with(&message(CHAT, 1)).await;
    assert_eq!(history[1].content, long, "the history has the reply in one piece");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_cut_off_by_a_crash_is_uncertain_and_held() {
    const CHAT: i64 = 81;
    let mut deployment = crash_while_telegram_hangs(CHAT, "hold").await;
    eventually("the delivery to be uncertain", PATIENCE, async || {
        (delivery(&deployment, &answer(CHAT, 1)).await.status == "uncertain").then_some(())
    })
    .await;
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    let texts = deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    assert_eq!(texts, [answer(CHAT, 2)], "later replies still leave");
    let attempts = deployment.telegram.log(|log| log.attempts.len());
    assert_eq!(attempts, 2, "calls of sendMessage: the held reply is not tried again");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_cut_off_by_a_crash_is_sent_again_where_the_operator_says_so() {
    const CHAT: i64 = 82;
    let mut deployment = crash_while_telegram_hangs(CHAT, "resend").await;
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    let texts = deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    assert_eq!(texts, [answer(CHAT, 1), answer(CHAT, 2)], "what the chat sees");
    deployment.settled(2, PATIENCE).await;
    assert_eq!(delivery(&deployment, &answer(CHAT, 1)).await.status, "sent");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// Telegram has the first answer and says nothing; Turnwise is killed there and started again.
async fn crash_while_telegram_hangs(chat: i64, on_uncertain: &str) -> Deployment {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "on_uncertain", &format!("\"{on_uncertain}\""));
    })
    .await;
    deployment.telegram.fail_next(chat, Fault::Hang);
    deployment.telegram.send(chat, &message(chat, 1));
    deployment.telegram.wait("the first send", PATIENCE, |log| log.attempts.len() == 1).await;
    deployment.turnwise.kill9().await;
    deployment.turnwise.start_again().await;
    deployment
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_telegram_that_say_nothing_clear_never_double_a_held_reply() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "on_uncertain", "\"hold\"");
    })
    .await;
    let faults = [Fault::ServerError, Fault::BadGateway, Fault::Cut];
    let load = Load { chats: 91..94, per_chat: 2 };
    for (chat, fault) in load.chats.clone().zip(faults) {
        deployment.telegram.fail_next(chat, fault);
    }
    load.send(&deployment.telegram);
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_or_uncertain(&deployment.telegram, &deployment.ledger).await;
    for chat in load.chats {
        let texts = deployment.telegram.log(|log| log.texts(chat));
        assert_eq!(texts.last(), Some(&answer(chat, 2)), "the reply after the unclear one leaves");
    }
}

/// The one delivery with this content.
async fn delivery(deployment: &Deployment, content: &str) -> Delivery {
    let mut deliveries = deployment.ledger.deliveries().await;
    deliveries.retain(|delivery| delivery.content == content);
    assert_eq!(deliveries.len(), 1, "deliveries of {content:?}");
    deliveries.remove(0)
}
