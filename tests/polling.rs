//! `updates = "polling"`: a stand-in for Telegram keeps the updates until they are fetched and confirmed.
//!
//! Refuses to look inside: what was fetched is seen at the stand-in, what became of it in the chats and in the database.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::process::Output;
use std::time::Duration;

use support::process::{BINARY, Configuration, ENVIRONMENT, Turnwise};
use support::responder::{Behaviour, message};
use support::scenario::{BOT, Backend, Deployment, Load};
use support::telegram::Telegram;
use support::{PATIENCE, eventually};
use tokio::process::Command;
use tokio::time::Instant;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

fn by_polling(configuration: &mut Configuration) {
    configuration.set(&format!("bots.{BOT}"), "updates", "\"polling\"");
}

fn keep(load: &Load, telegram: &Telegram) {
    for n in 1..=load.per_chat {
        for chat in load.chats.clone() {
            telegram.keep(chat, &message(chat, n));
        }
    }
}

/// `turnwise telegram SUBCOMMAND` for the bot, to its end.
async fn telegram_command(turnwise: &Turnwise, subcommand: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.args(["telegram", subcommand, "--bot", BOT, "--config"]).arg(turnwise.configuration_file());
    let output = command.envs(ENVIRONMENT.iter().copied()).kill_on_drop(true).output();
    tokio::time::timeout(PATIENCE, output).await.expect("the command ends").unwrap()
}

/// Returns when the process's log holds `words`.
async fn said(turnwise: &Turnwise, words: &str) {
    eventually(words, PATIENCE, async || {
        std::fs::read_to_string(turnwise.log()).unwrap().contains(words).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_is_answered_once_and_in_order() {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), by_polling).await;
    // More than a batch.
    let load = Load { chats: 10_001..10_026, per_chat: 6 };
    keep(&load, &deployment.telegram);
    deployment.telegram.wait("every answer", PATIENCE, |log| log.delivered.len() >= load.total()).await;
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    assert_eq!(deployment.telegram.kept(), 0, "everything is confirmed");

    // Telegram holds the last request for half a minute; nobody waits for that.
    let asked_at = Instant::now();
    deployment.turnwise.terminate().await;
    assert!(asked_at.elapsed() < Duration::from_secs(10), "stopping took {:?}", asked_at.elapsed());
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_the_process_is_killed() {
    let behaviour = Behaviour { seed: 3, longest_delay: Duration::from_millis(20), failures_percent: 0 };
    let mut deployment = Deployment::start(Backend::Sqlite, behaviour, by_polling).await;
    let load = Load { chats: 10_001..10_061, per_chat: 6 };
    for wave in [10_001..10_016, 10_016..10_031, 10_031..10_046] {
        let fetched = deployment.telegram.log(|log| log.fetched);
        keep(&Load { chats: wave, per_chat: load.per_chat }, &deployment.telegram);
        // The batch is on its way to Turnwise or from there to the stream.
        deployment.telegram.wait("a batch to be fetched", PATIENCE, |log| log.fetched > fetched).await;
        deployment.turnwise.kill9().await;
        deployment.turnwise.start_again().await;
    }
    keep(&Load { chats: 10_046..10_061, per_chat: load.per_chat }, &deployment.telegram);
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_answered_or_uncertain(&deployment.telegram, &deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    let fetched = deployment.telegram.log(|log| log.fetched);
    assert!(fetched > load.total(), "{fetched} updates were fetched: nobody was killed before confirming them");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_one_fetches_and_the_other_takes_over() {
    let mut deployment = Deployment::start(Backend::Postgres, Behaviour::default(), by_polling).await;
    said(&deployment.turnwise, "this process does it").await;
    let mut heir = Turnwise::spawn(deployment.turnwise.configuration().beside()).await;
    said(&heir, "another process does it").await;
    let first = Load { chats: 10_001..10_006, per_chat: 2 };
    keep(&first, &deployment.telegram);
    deployment.settled(first.total(), PATIENCE).await;
    deployment.telegram.log(|log| assert_eq!(log.conflicts, 0, "both fetched"));

    deployment.turnwise.kill9().await;
    let second = Load { chats: 10_006..10_011, per_chat: 2 };
    keep(&second, &deployment.telegram);
    let all = Load { chats: 10_001..10_011, per_chat: 2 };
    deployment.settled(all.total(), PATIENCE).await;
    all.assert_persisted_once_in_order(&deployment.ledger).await;
    all.assert_answered_once_in_order(&deployment.telegram);
    heir.terminate().await;
    heir.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_set_is_named_and_left_alone() {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), by_polling).await;
    let telegram = &deployment.telegram;
    said(&deployment.turnwise, "this process does it").await;
    telegram.set_webhook("https://elsewhere.example.com/hook/secret-path");
    let load = Load { chats: 7..8, per_chat: 2 };
    keep(&load, telegram);
    said(&deployment.turnwise, "a webhook at elsewhere.example.com is set").await;
    let info = telegram_command(&deployment.turnwise, "info").await;
    let told = String::from_utf8(info.stderr).unwrap();
    assert!(told.contains("updates = \"polling\"") && told.contains("a webhook is set"), "{told}");
    let refused = telegram_command(&deployment.turnwise, "set-webhook").await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    telegram.log(|log| assert_eq!((log.deletions, log.delivered.len()), (0, 0), "nobody was asked"));

    let deleted = telegram_command(&deployment.turnwise, "delete-webhook").await;
    assert_eq!(deleted.status.code(), Some(0), "{deleted:?}");
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_once_in_order(telegram);
    said(&deployment.turnwise, "updates can be fetched again").await;
    let log = std::fs::read_to_string(deployment.turnwise.log()).unwrap();
    assert!(!log.contains("secret-path"), "the path of a webhook can be a secret");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}
