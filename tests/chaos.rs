//! Random faults against a whole deployment of several processes, judged from outside.
//!
//! Every random choice comes from a seed that is printed; `TURNWISE_TEST_SEED` repeats a run's choices. `make chaos` runs the
//! same at the size that `CHAOS_KILLS`, `CHAOS_TURNS`, `CHAOS_CHATS` and `CHAOS_SECONDS` say. Refuses to be lenient: one
//! finding of the judge fails it.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use support::chaos::{Fleet, Size, plan};
use support::judge::{DeliveryRow, Evidence, HistoryRow, Kind, LedgerRow, judge};
use support::responder::{Call, message};
use tokio::time::Instant;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// How long nothing may move while there is still something to do: longer than the longest pause between two attempts.
const STALL_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_swapped_whatever_fails() {
    let seed = std::env::var("TURNWISE_TEST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    let number = |name: &str, default: usize| {
        std::env::var(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
    };
    let size = Size {
        workers: number("CHAOS_WORKERS", 3),
        ingresses: 2,
        egresses: 2,
        kills: number("CHAOS_KILLS", 6),
        turns: number("CHAOS_TURNS", 600),
        chats: number("CHAOS_CHATS", 60),
        duration: Duration::from_secs(number("CHAOS_SECONDS", 25).try_into().unwrap()),
    };
    eprintln!("TURNWISE_TEST_SEED={seed} {size:?}");
    let began_at = Instant::now();
    let mut fleet = Fleet::start(seed, size).await;
    fleet.run(seed, plan(seed, &size), STALL_LIMIT).await;
    let ran_for = began_at.elapsed();
    let evidence = fleet.gather_evidence().await;
    let judgement = judge(&evidence);
    eprintln!("TURNWISE_TEST_SEED={seed}, {} s\n{}{}", ran_for.as_secs(), fleet.deeds(), judgement.table());
    if !judgement.is_clean() {
        panic!("promises were broken; the logs of all processes are in {}", fleet.keep_logs().display());
    }
}

#[test]
fn a_seed_always_gives_the_same_plan() {
    let size = Size {
        workers: 3,
        ingresses: 2,
        egresses: 2,
        kills: 50,
        turns: 600,
        chats: 60,
        duration: Duration::from_secs(60),
    };
    let plan_of = |seed| plan(seed, &size);
    assert_eq!(plan_of(7), plan_of(7));
    assert_ne!(plan_of(7), plan_of(8));
    assert_eq!(plan_of(7).len(), 100);
    assert!(plan_of(7).is_sorted_by_key(|(at, _)| *at));
}

/// Two chats of two messages each, nothing wrong.
fn flawless() -> Evidence {
    let mut evidence = Evidence { audit_exit_code: Some(0), ..Evidence::default() };
    let began_at = Instant::now();
    for (chat, n) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        let place = evidence.calls.len();
        let answer = answer(chat, n, place);
        evidence.taken.insert(chat, n);
        let row =
            |role: &str, content: String| HistoryRow { conversation: chat.to_string(), role: role.to_owned(), content };
        evidence.history.extend([row("user", message(chat, n)), row("assistant", answer.clone())]);
        evidence.ledger.push(LedgerRow { peer: format!("user-{chat}"), state: "answered".to_owned() });
        evidence.deliveries.push(DeliveryRow { content: answer.clone(), status: "sent".to_owned(), error: None });
        evidence.seen.push((chat, answer));
        let begun_ms = 10 * u64::try_from(place).unwrap();
        evidence.calls.push(Call {
            message: message(chat, n),
            history: (1..n).map(|before| message(chat, before)).collect(),
            began_at: began_at + Duration::from_millis(begun_ms),
            ended_at: Some(began_at + Duration::from_millis(begun_ms + 5)),
        });
    }
    evidence
}

fn answer(chat: i64, n: u32, call: usize) -> String {
    format!("re: {} call={call}", message(chat, n))
}

/// The judge finds exactly these kinds of fault after `doctor` was at work.
#[track_caller]
fn check(doctor: impl FnOnce(&mut Evidence), expected: &[Kind]) {
    let mut evidence = flawless();
    doctor(&mut evidence);
    let judgement = judge(&evidence);
    assert_eq!(judgement.counts.keys().copied().collect::<Vec<_>>(), expected, "{}", judgement.table());
    assert_eq!(judgement.is_clean(), expected.is_empty());
}

#[test]
fn the_judge_finds_nothing_where_nothing_is_wrong() {
    check(|_| (), &[]);
    let judgement = judge(&flawless());
    assert_eq!((judgement.messages, judgement.answers_seen, judgement.model_calls), (4, 4, 4));
    assert_eq!((judgement.uncertain, judgement.overlaps_without_effect), (0, 0));
}

#[test]
fn the_judge_finds_what_is_lost() {
    // A message without anything; without its answer; without a ledger row; with another end than an answer.
    check(|evidence| *evidence.taken.get_mut(&1).unwrap() = 3, &[Kind::Lost]);
    check(
        |evidence| {
            evidence.history.retain(|row| row.content != answer(2, 2, 3));
            evidence.deliveries.pop();
            evidence.seen.pop();
        },
        &[Kind::Lost],
    );
    check(|evidence| drop(evidence.ledger.pop()), &[Kind::Lost]);
    check(|evidence| "dead_lettered".clone_into(&mut evidence.ledger[0].state), &[Kind::Lost]);
    // An answer without a delivery; one that was `sent`, but not seen; one that failed or never left.
    check(|evidence| drop(evidence.deliveries.pop()), &[Kind::Lost]);
    check(|evidence| drop(evidence.seen.pop()), &[Kind::Lost]);
    for status in ["failed", "pending", "sending"] {
        check(|evidence| status.clone_into(&mut evidence.deliveries[0].status), &[Kind::Lost]);
    }
}

#[test]
fn the_judge_finds_what_is_doubled() {
    check(|evidence| evidence.history.push(evidence.history[7].clone()), &[Kind::Doubled]);
    check(|evidence| evidence.history.insert(0, evidence.history[0].clone()), &[Kind::Doubled]);
    check(|evidence| evidence.ledger.push(evidence.ledger[0].clone()), &[Kind::Doubled]);
    check(|evidence| evidence.seen.push(evidence.seen[3].clone()), &[Kind::Doubled]);
    check(|evidence| evidence.deliveries.push(evidence.deliveries[0].clone()), &[Kind::Doubled]);
    check(|evidence| "another".clone_into(&mut evidence.history[5].conversation), &[Kind::Doubled]);
}

#[test]
fn the_judge_finds_what_is_out_of_order() {
    check(|evidence| evidence.history.swap(0, 4), &[Kind::HistoryOrder]);
    check(|evidence| evidence.seen.swap(0, 2), &[Kind::SeenOrder]);
    check(
        |evidence| {
            evidence.calls[2].history.clear();
        },
        &[Kind::Context],
    );
}

#[test]
fn the_judge_finds_overlapping_turns_that_both_count() {
    let overlap = |evidence: &mut Evidence| evidence.calls[0].ended_at = Some(evidence.calls[2].began_at);
    // They only touch.
    check(overlap, &[]);
    check(|evidence| evidence.calls[0].ended_at = evidence.calls[2].ended_at, &[Kind::Overlap]);
    check(|evidence| evidence.calls[0].ended_at = None, &[Kind::Overlap]);

    // A dead call beside its successor: allowed, for only one of them has an effect.
    let mut evidence = flawless();
    evidence.calls.push(Call { ended_at: None, ..evidence.calls[0].clone() });
    evidence.calls[4].history = vec![message(1, 1)];
    let judgement = judge(&evidence);
    assert!(judgement.is_clean(), "{}", judgement.table());
    assert_eq!(judgement.overlaps_without_effect, 2, "with its successor and with the next message's call");
    assert_eq!(judgement.contexts_without_effect, 1, "it was given the message that it was about");
}

#[test]
fn the_judge_finds_answers_that_no_history_holds_and_a_failed_audit() {
    check(|evidence| evidence.seen.push((1, answer(1, 2, 9))), &[Kind::Unfounded]);
    check(|evidence| evidence.seen.push((1, "hello".to_owned())), &[Kind::Unfounded]);
    check(|evidence| evidence.audit_exit_code = Some(1), &[Kind::Audit]);
    check(|evidence| evidence.audit_exit_code = None, &[Kind::Audit]);
}

#[test]
fn the_judge_counts_what_is_owned_up_to() {
    let mut evidence = flawless();
    "uncertain".clone_into(&mut evidence.deliveries[0].status);
    evidence.seen.swap(0, 2);
    "uncertain".clone_into(&mut evidence.deliveries[3].status);
    evidence.seen.pop();
    let judgement = judge(&evidence);
    assert!(judgement.is_clean(), "{}", judgement.table());
    assert_eq!((judgement.uncertain, judgement.uncertain_late, judgement.uncertain_unseen), (2, 1, 1));
}
