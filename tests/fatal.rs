//! A message that its process dies of: given up after some deaths, and nobody else with it.
//!
//! Refuses to be kind: whenever the model is asked about the message, the process is killed at once.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use support::PATIENCE;
use support::process::quoted;
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const KILLER: i64 = 1_000;
const BYSTANDERS: std::ops::Range<i64> = 1_001..1_006;
const APOLOGY: &str = "Sorry.";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_its_process_is_given_up_and_no_other_with_it() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        survive(backend).await;
    }
}

async fn survive(backend: Backend) {
    let mut deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "failure_reply", &quoted(APOLOGY)).set("worker", "max_attempts", "1");
    })
    .await;
    let mut open: Vec<String> = BYSTANDERS.chain([KILLER]).map(|chat| message(chat, 1)).collect();
    open.iter().for_each(|text| deployment.model.hold(text));
    for chat in BYSTANDERS.chain([KILLER]) {
        deployment.telegram.send(chat, &message(chat, 1));
    }
    deployment.telegram.send(KILLER, &message(KILLER, 2));
    deployment.telegram.all_taken(PATIENCE).await;
    // Nobody can tell yet which of them it is: each time all are under way.
    for calls in 1..=3 {
        let all = |log: &support::responder::Log| open.iter().all(|text| log.calls_for(text) == calls);
        deployment.model.wait("everybody to be asked about", PATIENCE, all).await;
        deployment.turnwise.kill9().await;
        deployment.turnwise.start_again().await;
    }
    // From now on one at a time: the others are answered, until it is the killer's turn.
    loop {
        let is_asked = |log: &support::responder::Log| open.iter().any(|text| log.calls_for(text) == 4);
        deployment.model.wait("one of them to be asked about", PATIENCE, is_asked).await;
        let asked = deployment.model.log(|log| open.iter().position(|text| log.calls_for(text) == 4)).unwrap();
        let text = open.remove(asked);
        let calls = deployment.model.log(|log| open.iter().map(|other| log.calls_for(other)).collect::<Vec<_>>());
        assert!(calls.iter().all(|calls| *calls == 3), "{backend:?}: others beside {text:?}: {calls:?}");
        if text == message(KILLER, 1) {
            break;
        }
        deployment.model.release(&text);
    }
    deployment.turnwise.kill9().await;
    open.iter().for_each(|text| deployment.model.release(text));
    deployment.turnwise.start_again().await;

    let texts = deployment.telegram.wait_for_texts(KILLER, 2, PATIENCE).await;
    assert_eq!(texts, [APOLOGY.to_owned(), answer(KILLER, 2)], "{backend:?}");
    for chat in BYSTANDERS {
        assert_eq!(deployment.telegram.wait_for_texts(chat, 1, PATIENCE).await, [answer(chat, 1)], "{backend:?}");
    }
    deployment.settled(7, PATIENCE).await;
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!((states["answered"], states["dead_lettered"]), (6, 1), "{backend:?}: {states:?}");
    assert_eq!(deployment.ledger.reasons().await, ["process_death: 4 processes died while they worked on it"]);
    assert_eq!(deployment.model.log(|log| log.calls_for(&message(KILLER, 1))), 4, "{backend:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}
