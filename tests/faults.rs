//! Crashes, redeliveries and failures, from outside: Turnwise and nats-server are killed at random moments, updates come
//! again long after, a message fails for ever; users and the database must not tell.
//!
//! Every random choice comes from a seed that the test prints; `TURNWISE_TEST_SEED` repeats a run's choices.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use support::process::{NAMESPACE, Turnwise, quoted};
use support::responder::{Behaviour, Log, answer, message};
use support::scenario::{BOT, Backend, Deployment, Load};
use support::{PATIENCE, eventually};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// Several times what the platform's rate limits need for the answers: 30 a second for a bot, 1 a second for a chat.
const LOAD_LIMIT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_processes_are_killed_on_sqlite() {
    survive_kills(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_processes_are_killed_on_postgres() {
    survive_kills(Backend::Postgres).await;
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Turnwise,
    Nats,
}

/// Eight waves of chats; in the middle of each but the last somebody is killed: Turnwise five times, nats-server twice.
async fn survive_kills(backend: Backend) {
    const CHATS_PER_WAVE: i64 = 6;
    let mut victims = [Victim::Turnwise; 7];
    victims[..2].fill(Victim::Nats);
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    victims.shuffle(&mut random);

    let behaviour = Behaviour { seed, longest_delay: Duration::from_millis(40), failures_percent: 5 };
    let mut deployment = Deployment::start(backend, behaviour, |configuration| {
        configuration.set("worker", "max_attempts", "8").set(&format!("bots.{BOT}"), "on_uncertain", "\"hold\"");
    })
    .await;
    let waves = i64::try_from(victims.len()).unwrap() + 1;
    let load = Load { chats: 10_001..10_001 + waves * CHATS_PER_WAVE, per_chat: 20 };

    let mut wave_start = load.chats.start;
    for victim in victims {
        let calls_before = deployment.model.log(|log| log.calls.len());
        load.send_chats(&deployment.telegram, wave_start..wave_start + CHATS_PER_WAVE);
        wave_start += CHATS_PER_WAVE;
        // Every message of the wave makes at least one call, so that this point is always reached.
        let calls_in_wave = usize::try_from(CHATS_PER_WAVE).unwrap() * load.per_chat as usize;
        let kill_at = calls_before + random.random_range(1..=calls_in_wave);
        eprintln!("killing {victim:?} at call {kill_at} of the model");
        deployment.model.wait("the moment to kill", LOAD_LIMIT, |log| log.calls.len() >= kill_at).await;
        match victim {
            Victim::Turnwise => {
                deployment.turnwise.kill9().await;
                deployment.turnwise.start_again().await;
            }
            Victim::Nats => {
                deployment.nats.kill9().await;
                deployment.nats.start_again().await;
            }
        }
    }
    load.send_chats(&deployment.telegram, wave_start..load.chats.end);

    deployment.telegram.all_taken(LOAD_LIMIT).await;
    deployment.settled(load.total(), LOAD_LIMIT).await;
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_answered_or_uncertain(&deployment.telegram, &deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// From `TURNWISE_TEST_SEED`, else random; printed, so that a failure can be tried again.
fn seed() -> u64 {
    let seed = std::env::var("TURNWISE_TEST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    eprintln!("TURNWISE_TEST_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_comes_again_is_answered_once_also_after_the_dedupe_window() {
    const CHAT: i64 = 77;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("nats", "duplicate_window", "\"1s\"");
    })
    .await;
    let update = deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;

    // Within the window the stream absorbs it; past the window the stream takes it anew, and only the ledger can know.
    again_until_the_stream_takes_it(&deployment, &update).await;
    deployment.turnwise.kill9().await;
    deployment.turnwise.start_again().await;
    again_until_the_stream_takes_it(&deployment, &update).await;

    // The chat's next answer proves that everything before it has been worked off.
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 2 };
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    assert_eq!(deployment.model.log(|log| log.calls.len()), 2, "calls of the model");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// Posts the update again and again, as Telegram does when the answers are lost, until the stream has stored it once more.
async fn again_until_the_stream_takes_it(deployment: &Deployment, update: &serde_json::Value) {
    let stream = format!("{NAMESPACE}_in");
    let before = deployment.nats.last_sequence(&stream).await;
    eventually("the stream to take the update again", PATIENCE, async || {
        let status = deployment.telegram.post(update).await.expect("the webhook answers");
        assert!(status.is_success(), "a repeated update is answered with {status}");
        (deployment.nats.last_sequence(&stream).await > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_always_fails_is_set_aside_and_the_next_is_answered() {
    const CHAT: i64 = 501;
    const FAILING_FROM_THE_FIRST: i64 = 502;
    const OTHER_CHAT: i64 = 503;
    const APOLOGY: &str = "Sorry, I could not answer that. Please try again.";
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "3").set(&format!("bots.{BOT}"), "failure_reply", &quoted(APOLOGY));
    })
    .await;
    let failing = [message(CHAT, 2), message(FAILING_FROM_THE_FIRST, 1)];
    for message in &failing {
        deployment.model.always_fail(message);
    }
    for n in 1..=3 {
        for chat in [CHAT, FAILING_FROM_THE_FIRST, OTHER_CHAT] {
            deployment.telegram.send(chat, &message(chat, n));
        }
    }

    let apology = || APOLOGY.to_owned();
    for (chat, expected) in [
        (CHAT, [answer(CHAT, 1), apology(), answer(CHAT, 3)]),
        (FAILING_FROM_THE_FIRST, [apology(), answer(FAILING_FROM_THE_FIRST, 2), answer(FAILING_FROM_THE_FIRST, 3)]),
        (OTHER_CHAT, [1, 2, 3].map(|n| answer(OTHER_CHAT, n))),
    ] {
        assert_eq!(deployment.telegram.wait_for_texts(chat, 3, PATIENCE).await, expected, "what chat {chat} sees");
    }
    deployment.settled(9, PATIENCE).await;
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!((states["answered"], states["dead_lettered"]), (7, 2), "the ledger: {states:?}");
    for (chat, answered) in [(CHAT, [1, 3]), (FAILING_FROM_THE_FIRST, [2, 3])] {
        let history = deployment.ledger.history_with(&message(chat, 3)).await;
        let contents: Vec<_> = history.into_iter().map(|row| row.content).collect();
        let expected: Vec<_> = answered.into_iter().flat_map(|n| [message(chat, n), answer(chat, n)]).collect();
        assert_eq!(contents, expected, "the history of chat {chat}");
    }
    deployment.model.log(|log| {
        assert_eq!(failing.each_ref().map(|message| log.calls_for(message)), [3, 3], "attempts");
        let next = log.calls.iter().find(|call| call.message == message(CHAT, 3)).unwrap();
        assert_eq!(next.history, [message(CHAT, 1)], "what the model is told of the failed turn");
    });
    for chat in [CHAT, FAILING_FROM_THE_FIRST] {
        assert_dead_letter_says_why(&deployment, chat).await;
    }
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// The dead letter of this chat lies under the chat's own subject, with the error in a header.
async fn assert_dead_letter_says_why(deployment: &Deployment, chat: i64) {
    let stream = deployment.nats.jetstream().await.get_stream(format!("{NAMESPACE}_dead")).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 2, "dead letters");
    let subject = format!("{NAMESPACE}.dead.*.telegram.{BOT}.user-{chat}");
    let letter = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    let error = letter.headers.iter().find(|(name, _)| name.to_string().to_ascii_lowercase().contains("error"));
    let (_, error) = error.unwrap_or_else(|| panic!("no header carries the error: {:?}", letter.headers));
    assert!(!error[0].as_str().is_empty(), "the error in the header");
}

/// Partitions are given to a second process while turns of theirs have failed and messages wait behind them: nothing of those lanes is
/// kept (the process checks that for itself, and would not end well).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_with_failing_turns_are_given_away_whole() {
    let chats = || 21..29;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "20");
    })
    .await;
    let model = &deployment.model;
    let load = Load { chats: chats(), per_chat: 3 };
    for chat in chats() {
        model.always_fail(&message(chat, 2));
    }
    load.send(&deployment.telegram);
    model.wait("each to have failed", PATIENCE, |log| chats().all(|chat| log.calls_for(&message(chat, 2)) > 1)).await;
    chats().for_each(|chat| model.hold(&message(chat, 2)));
    let held = |log: &Log| log.running_calls() == chats().count();
    model.wait("each to be tried again", PATIENCE, held).await;
    let mut second = Turnwise::spawn(deployment.turnwise.configuration().beside()).await;
    let given = || {
        let log = std::fs::read_to_string(deployment.turnwise.log()).unwrap();
        let is_given = |line: &&str| line.contains("giving a partition") && line.contains("turnwise_in");
        log.lines().filter(is_given).count()
    };
    eventually("a partition to be given away", PATIENCE, async || (given() > 0).then_some(())).await;
    chats().for_each(|chat| model.release(&message(chat, 2)));
    eventually("the second process to have its share", PATIENCE, async || (given() == 4).then_some(())).await;
    model.mend();
    deployment.settled(load.total(), PATIENCE).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    deployment.turnwise.terminate().await;
    second.terminate().await;
    second.assert_audit_clean().await;
}
