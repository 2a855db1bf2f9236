//! One flooded conversation beside quiet ones: what is beyond a lane's bound waits in the stream, comes back in order, and
//! holds up nobody, also across crashes.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use support::PATIENCE;
use support::responder::{Behaviour, message};
use support::scenario::{Backend, Deployment, Load};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const LIMIT: Duration = Duration::from_secs(120);

const FLOODED: i64 = 700;

/// Far more than the four messages of a lane that are kept in memory.
const FLOOD: u32 = 400;

async fn flooded() -> (Deployment, Load, Load) {
    let behaviour = Behaviour { seed: 7, longest_delay: Duration::from_millis(2), failures_percent: 0 };
    let deployment = Deployment::start(Backend::Sqlite, behaviour, |configuration| {
        configuration.set("worker", "lane_backlog", "4");
    })
    .await;
    let flood = Load { chats: FLOODED..FLOODED + 1, per_chat: FLOOD };
    let quiet = Load { chats: 701..731, per_chat: 2 };
    // The flooded chat's first turn does not end, so that everything behind it piles up.
    deployment.model.hold(&message(FLOODED, 1));
    flood.send(&deployment.telegram);
    deployment.model.wait_for_call(&message(FLOODED, 1), PATIENCE).await;
    deployment.telegram.all_taken(LIMIT).await;
    (deployment, flood, quiet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_waits_in_the_stream_and_holds_up_nobody() {
    let (mut deployment, flood, quiet) = flooded().await;
    quiet.send(&deployment.telegram);
    deployment.settled(quiet.total(), LIMIT).await;
    assert_eq!(
        deployment.model.log(support::responder::Log::running_calls),
        1,
        "the flooded chat's first turn still runs, and no other of it"
    );

    deployment.model.release(&message(FLOODED, 1));
    deployment.settled(flood.total() + quiet.total(), LIMIT).await;
    let began = deployment.model.log(|log| log.first_attempts()[&FLOODED].clone());
    assert_eq!(began, (1..=FLOOD).collect::<Vec<_>>(), "the order in which the flooded chat's turns began");
    let texts = deployment.telegram.wait_for_texts(FLOODED, flood.total(), PATIENCE).await;
    let expected: Vec<String> = (1..=FLOOD).map(|n| support::responder::answer(FLOODED, n)).collect();
    assert_eq!(texts, expected, "what the flooded chat sees");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_messages_survive_crashes_of_the_process_and_of_nats() {
    let (mut deployment, flood, _) = flooded().await;
    deployment.turnwise.kill9().await;
    deployment.model.release(&message(FLOODED, 1));
    deployment.turnwise.start_again().await;
    for (at, victim_is_nats) in [(60, true), (150, false), (240, true)] {
        deployment.settled_at_least(at, LIMIT).await;
        if victim_is_nats {
            deployment.nats.kill9().await;
            deployment.nats.start_again().await;
        } else {
            deployment.turnwise.kill9().await;
            deployment.turnwise.start_again().await;
        }
    }
    deployment.settled(flood.total(), LIMIT).await;
    flood.assert_persisted_once_in_order(&deployment.ledger).await;
    flood.assert_answered_or_uncertain(&deployment.telegram, &deployment.ledger).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}
