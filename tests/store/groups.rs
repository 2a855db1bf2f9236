//! Calls that share a transaction: each has its own outcome, and the rows are those of one call after the other.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use proptest::prelude::any;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::json;
use turnwise::message::{ConversationStatus, DeliveryStatus};
use turnwise::store::{
    CommitOutcome, ConversationPatch, Ownership, Receipt as _, SendResult, SendStart, Store, StoreError, TurnCommit,
};
use uuid::Uuid;

use super::postgres_cluster::PostgresCluster;
use super::{Database, at, committed, first_turn, next_turn, object};

on_both!(
    a_group_has_an_outcome_for_each_of_its_turns,
    a_random_list_at_once_writes_what_it_writes_one_by_one,
    many_commits_at_once_number_every_message_once,
    a_takeover_fences_its_own_turns_of_a_group_and_no_others,
    callers_who_leave_disturb_nobody,
    sends_of_a_group_have_each_their_outcome,
    closing_finishes_what_was_asked,
);

async fn a_group_has_an_outcome_for_each_of_its_turns(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let former = database.own(1).await;
    store.take_over(former.stream, &[1], 0).await.unwrap();
    let known = first_turn(owner, 1, "known");
    committed(store.commit(known.clone()).await.unwrap());

    let mut expected = Vec::new();
    // Fewer calls than wait in front of the groups: of more, it is not settled in which order they come in.
    for number in 0..30 {
        let good = first_turn(owner, 10 + number, &format!("good{number}"));
        let second = next_turn(&good, 100 + number);
        let fenced = first_turn(former, 10 + number, &format!("fenced{number}"));
        let mut again = next_turn(&known, 200 + number);
        again.dedupe_id.clone_from(&known.dedupe_id);
        let mut lost = first_turn(owner, 300 + number, &format!("lost{number}"));
        lost.new_conversation = None;
        let late = first_turn(owner, 400 + number, &format!("good{number}"));
        let mut refused = first_turn(owner, 500 + number, &format!("refused{number}"));
        refused.deliveries[1].parts = 0;
        let all = [
            (good, "committed"),
            (second, "committed"),
            (fenced, "fenced"),
            (again, "already"),
            (lost, "moved"),
            (late, "moved"),
            (refused, "refused"),
        ];
        // One refused turn in some of the groups, so that others are written at the first attempt.
        expected.extend(all.into_iter().filter(|(_, outcome)| *outcome != "refused" || number % 20 == 7));
    }
    let outcomes = at_once(expected.iter().map(|(turn, _)| store.commit(turn.clone()))).await;
    for (outcome, (turn, expected)) in outcomes.iter().zip(&expected) {
        assert_eq!(kind(outcome), *expected, "{outcome:?}");
        let found = store.turn(turn.turn_id).await.unwrap();
        assert_eq!(found.is_some(), *expected == "committed", "{expected}");
        let deliveries = store.deliveries_of_turn(turn.turn_id).await.unwrap().len();
        assert_eq!(deliveries, if *expected == "committed" { 2 } else { 0 });
        if let Ok(CommitOutcome::Committed { committed, deliveries, .. }) = outcome {
            assert!(committed.covers(&turn.dedupe_id) && super::parts(deliveries) == turn.deliveries);
        }
        if let Ok(CommitOutcome::AlreadyTerminal(found)) = outcome {
            assert_eq!(found.turn_id(), known.turn_id);
        }
    }
}

/// The same turns, in the same order, all at once to one database and one after the other to another.
async fn a_random_list_at_once_writes_what_it_writes_one_by_one(database: &Database) {
    const LISTS: usize = 6;
    let empty = database.another().await;
    let store = Store::connect(&empty.url, 4).await.unwrap();
    store.migrate().await.unwrap();
    let other = Database { store, url: empty.url.clone(), _folder: None };
    let owner = database.own(0).await;
    assert_eq!(other.own(0).await, owner);

    let lists = proptest::collection::vec((0..6_u8, any::<u8>()), 1..120);
    let mut runner = TestRunner::deterministic();
    for list in 0..LISTS {
        let choices = lists.new_tree(&mut runner).unwrap().current();
        let turns = random_turns(owner, list, &choices);
        let grouped = at_once(turns.iter().map(|turn| database.store.commit(turn.clone()))).await;
        for (turn, grouped) in turns.iter().zip(grouped) {
            let single = other.store.commit(turn.clone()).await;
            assert_eq!(format!("{:?}", grouped.unwrap()), format!("{:?}", single.unwrap()), "{choices:?}");
        }
        for turn in &turns {
            assert_eq!(written(&database.store, turn).await, written(&other.store, turn).await, "{choices:?}");
        }
    }
    let all = database.store.ledger_counts().await.unwrap();
    assert_eq!(all, other.store.ledger_counts().await.unwrap());
}

/// Turns of a few people: openings, later turns, repeats, strays, with all that a turn can change.
fn random_turns(owner: Ownership, list: usize, choices: &[(u8, u8)]) -> Vec<Arc<TurnCommit>> {
    let mut turns = Vec::<TurnCommit>::new();
    let mut opened = BTreeMap::<u8, TurnCommit>::new();
    for ((person, what), sequence) in choices.iter().zip(1..) {
        let peer = format!("list{list} person{person}");
        let mut turn = match opened.get(person) {
            Some(first) if what % 8 != 0 => next_turn(first, sequence),
            _ => first_turn(owner, sequence, &peer),
        };
        match what % 16 {
            1 => {
                turn.metadata_patches = vec![object(json!({"form": {"city": peer, "step": sequence}, "locale": null}))];
            }
            2 => turn.workflow_state = Some(json!({"node": sequence})),
            3 => turn.handoff = true,
            4 => turn.messages.clear(),
            5 => turn.ownership.epoch -= 1,
            6 => turn.conversation_id = Some(Uuid::now_v7()),
            7 => turn.committed_at = at(i64::from(*what)),
            9 => turn.messages[1].tool = Some(json!(["null", null, 1.5])),
            10 => (turn.conversation_id, turn.new_conversation) = (None, None),
            11 => turns.last().into_iter().for_each(|last| turn.dedupe_id.clone_from(&last.dedupe_id)),
            12 => turns.last().into_iter().for_each(|last| turn.clone_from(last)),
            _ => {}
        }
        if turn.conversation_id.is_none() {
            turn.messages.clear();
            turn.deliveries.iter_mut().for_each(|part| part.conversation_id = None);
        }
        if turn.new_conversation.is_some() && turn.key.peer.to_string().ends_with(&format!("person{person}")) {
            opened.entry(*person).or_insert_with(|| turn.clone());
        }
        turns.push(turn);
    }
    turns.into_iter().map(Arc::new).collect()
}

/// Everything that can be seen of a turn and its conversation.
async fn written(store: &Store, turn: &TurnCommit) -> String {
    let row = store.turn(turn.turn_id).await.unwrap();
    let deliveries = store.deliveries_of_turn(turn.turn_id).await.unwrap();
    let id = turn.conversation_id.unwrap_or_default();
    let conversation = store.conversation(id).await.unwrap();
    let messages = store.recent_messages(id, 1_000).await.unwrap();
    format!("{row:#?} {deliveries:#?} {conversation:#?} {messages:#?}")
}

async fn many_commits_at_once_number_every_message_once(database: &Database) {
    const CONVERSATIONS: usize = 300;
    const TURNS: usize = 500;
    let owner = database.own(0).await;
    let first = |number| first_turn(owner, 1, &format!("user{number}"));
    let firsts = (0..CONVERSATIONS).map(first).collect::<Vec<_>>();
    let commit = |turn: TurnCommit| {
        let store = database.store.clone();
        tokio::spawn(async move { committed(store.commit(turn).await.unwrap()) })
    };
    for done in join_all(firsts.iter().cloned().map(commit)).await {
        done.unwrap();
    }
    let turns = (0..TURNS).map(|number| next_turn(&firsts[number % CONVERSATIONS], 2)).collect::<Vec<_>>();
    for (done, turn) in join_all(turns.iter().cloned().map(commit)).await.into_iter().zip(&turns) {
        assert_eq!(done.unwrap().0.turn_id(), turn.turn_id);
    }
    let mut seen = HashSet::new();
    for first in &firsts {
        let id = first.conversation_id.unwrap();
        let messages = database.store.recent_messages(id, 1_000).await.unwrap();
        let ordinals = messages.iter().map(|message| message.ordinal).collect::<Vec<_>>();
        assert_eq!(ordinals, (1..=i64::try_from(messages.len()).unwrap()).collect::<Vec<_>>());
        for pair in messages.chunks(2) {
            assert_eq!(pair[0].turn_id, pair[1].turn_id, "the messages of a turn stand together");
        }
        let count = database.store.conversation(id).await.unwrap().unwrap().message_count;
        assert_eq!(usize::try_from(count).unwrap(), messages.len());
        seen.extend(messages.iter().map(|message| message.id));
    }
    assert_eq!(seen.len(), 2 * (CONVERSATIONS + TURNS));
}

async fn a_takeover_fences_its_own_turns_of_a_group_and_no_others(database: &Database) {
    let owners = [database.own(0).await, database.own(1).await, database.own(2).await];
    let turns = (0..300).map(|number| first_turn(owners[number % 3], 1, &format!("user{number}"))).collect::<Vec<_>>();
    let dedupe_ids = turns.iter().map(|turn| turn.dedupe_id.clone()).collect::<Vec<_>>();
    let commits = turns.iter().cloned().map(|turn| {
        let store = database.store.clone();
        tokio::spawn(async move { store.commit(turn).await.unwrap() })
    });
    let mut commits = commits.collect::<Vec<_>>();
    let first = commits.remove(0).await.unwrap();
    assert!(matches!(first, CommitOutcome::Committed { .. }));
    database.store.take_over(owners[1].stream, &[1], 0).await.unwrap();
    let settled = database.store.settled(&dedupe_ids).await.unwrap();
    for (outcome, turn) in join_all(commits).await.into_iter().zip(&turns[1..]) {
        match outcome.unwrap() {
            CommitOutcome::Committed { committed: receipt, .. } => {
                let is_settled = settled.contains(&receipt);
                assert!(turn.ownership != owners[1] || is_settled, "committed after the takeover returned");
                assert_eq!(database.store.deliveries_of_turn(turn.turn_id).await.unwrap().len(), 2);
            }
            CommitOutcome::Fenced => {
                assert_eq!(turn.ownership, owners[1]);
                assert!(database.store.turn(turn.turn_id).await.unwrap().is_none());
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn callers_who_leave_disturb_nobody(database: &Database) {
    let owner = database.own(0).await;
    let turns = (0..200).map(|number| first_turn(owner, 1, &format!("user{number}"))).collect::<Vec<_>>();
    let commits = turns.iter().cloned().map(|turn| {
        let store = database.store.clone();
        tokio::spawn(async move { store.commit(turn).await.unwrap() })
    });
    let mut commits = commits.collect::<Vec<_>>();
    committed(commits.remove(0).await.unwrap());
    commits.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
    for (number, outcome) in join_all(commits).await.into_iter().enumerate() {
        match outcome {
            Ok(outcome) => drop(committed(outcome)),
            Err(left) => assert!(left.is_cancelled() && number % 2 == 0),
        }
    }
    for turn in &turns {
        let found = database.store.turn(turn.turn_id).await.unwrap();
        let deliveries = database.store.deliveries_of_turn(turn.turn_id).await.unwrap().len();
        assert_eq!(deliveries, if found.is_some() { 2 } else { 0 }, "whole or not at all");
        match database.store.commit(turn.clone()).await.unwrap() {
            CommitOutcome::AlreadyTerminal(known) => assert_eq!(known.turn_id(), turn.turn_id),
            CommitOutcome::Committed { .. } => assert!(found.is_none()),
            other => panic!("{other:?}"),
        }
    }
}

async fn sends_of_a_group_have_each_their_outcome(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let sender = database.own_outbound(0).await;
    let former = Ownership { epoch: sender.epoch - 1, ..sender };
    let turns = (0..60).map(|number| first_turn(owner, 1, &format!("user{number}"))).collect::<Vec<_>>();
    for outcome in join_all(turns.iter().map(|turn| store.commit(turn.clone()))).await {
        committed(outcome.unwrap());
    }
    let ids = turns.iter().map(|turn| turn.deliveries.iter().map(|part| part.delivery_id).collect::<Vec<_>>());
    let ids = ids.collect::<Vec<_>>();
    let mut expected = Vec::new();
    for parts in &ids {
        expected.push((parts[0], sender, at(1), "begun"));
        // Another beginning; the same one asked for again, at the same moment, would be told that it has begun.
        expected.push((parts[0], sender, at(2), "interrupted"));
        expected.push((parts[1], former, at(1), "fenced"));
        expected.push((Uuid::now_v7(), sender, at(1), "unknown"));
    }
    let starts = at_once(expected.iter().map(|(id, ownership, now, _)| store.begin_send(*id, ownership, *now))).await;
    for (start, (id, _, _, expected)) in starts.into_iter().zip(&expected) {
        let found = match start.unwrap() {
            SendStart::Begun { attempt: 1, .. } => "begun",
            SendStart::Interrupted => "interrupted",
            SendStart::Fenced => "fenced",
            SendStart::Unknown(settled) if settled.covers(&id.to_string()) => "unknown",
            other => panic!("{other:?}"),
        };
        assert_eq!(found, *expected);
    }

    let error = || "HTTP 500\0".to_owned();
    let results = [
        (SendResult::Sent { platform_message_id: Some("tg\0".to_owned()) }, Some(DeliveryStatus::Sent)),
        (SendResult::NotSent { error: error() }, None),
        (SendResult::Failed { error: error() }, Some(DeliveryStatus::Failed)),
        (SendResult::Uncertain { error: error() }, Some(DeliveryStatus::Uncertain)),
    ];
    let settles = ids.iter().zip(results.iter().cycle());
    let settles = settles.map(|(parts, (result, _))| store.settle_send(parts[0], result, at(2)));
    let unknown = store.settle_send(Uuid::now_v7(), &results[0].0, at(2));
    let (settled, unknown) = tokio::join!(join_all(settles), unknown);
    assert_eq!(unknown.unwrap(), None);
    for ((settled, turn), (result, expected)) in settled.into_iter().zip(&turns).zip(results.iter().cycle()) {
        let settled = settled.unwrap();
        assert!(settled.iter().all(|settled| settled.covers(&turn.deliveries[0].delivery_id.to_string())));
        assert_eq!(settled.map(|settled| settled.status()), *expected);
        let rows = store.deliveries_of_turn(turn.turn_id).await.unwrap();
        assert_eq!((rows[0].status, rows[0].attempts), (expected.unwrap_or(DeliveryStatus::Pending), 1));
        assert_eq!((rows[1].status, rows[1].attempts), (DeliveryStatus::Pending, 0), "nobody touched it");
        assert_eq!(rows[0].settled_at, expected.map(|_| at(2)));
        let is_sent = matches!(result, SendResult::Sent { .. });
        assert_eq!(rows[0].error.as_deref(), (!is_sent).then_some("HTTP 500\u{FFFD}"));
        assert_eq!(rows[0].platform_message_id.as_deref(), is_sent.then_some("tg\u{FFFD}"));
    }
}

async fn closing_finishes_what_was_asked(database: &Database) {
    let owner = database.own(0).await;
    let turns = (0..100).map(|number| first_turn(owner, 1, &format!("user{number}"))).collect::<Vec<_>>();
    let store = &database.store;
    // All have asked when closing begins: what is joined is polled in its order.
    let (outcomes, ()) = tokio::join!(at_once(turns.iter().map(|turn| store.commit(turn.clone()))), store.close());
    for outcome in outcomes {
        committed(outcome.unwrap());
    }
    let late = store.commit(turns[0].clone()).await.unwrap_err();
    assert!(matches!(late, StoreError::Closed) && !late.is_transient());
    let patch = ConversationPatch { status: Some(ConversationStatus::Human), ..ConversationPatch::default() };
    assert!(store.patch_conversation(Uuid::now_v7(), &patch, at(1)).await.is_err());
}

/// A server that dies while groups are under way: every caller hears something, and what it hears is true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_postgres_in_the_middle_of_groups_is_told_truly() {
    let cluster = PostgresCluster::start().await;
    let url = cluster.create_database("turnwise").await;
    let store = Store::connect(&url, 4).await.unwrap();
    store.migrate().await.unwrap();
    let database = Database { store: store.clone(), url, _folder: None };
    let owner = database.own(0).await;
    let turns = (0..250).map(|number| first_turn(owner, 1, &format!("user{number}"))).collect::<Vec<_>>();
    let commits = turns.iter().cloned().map(|turn| {
        let store = store.clone();
        tokio::spawn(async move { store.commit(turn).await })
    });
    let mut commits = commits.collect::<Vec<_>>();
    committed(commits.remove(0).await.unwrap().unwrap());
    cluster.kill();
    let late = first_turn(owner, 1, "late");
    let refused = store.commit(late.clone()).await.unwrap_err();
    assert!(refused.is_transient(), "{refused:?}");
    let outcomes = join_all(commits).await;
    cluster.restart().await;

    for (outcome, turn) in outcomes.into_iter().zip(&turns[1..]) {
        match outcome.unwrap() {
            Ok(outcome) => {
                let (receipt, _) = committed(outcome);
                assert_eq!(store.turn(receipt.turn_id()).await.unwrap().map(|found| found.id), Some(turn.turn_id));
            }
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
    let again = join_all(turns.iter().chain([&late]).map(|turn| store.commit(turn.clone()))).await;
    for (outcome, turn) in again.into_iter().zip(turns.iter().chain([&late])) {
        assert!(matches!(kind(&outcome), "committed" | "already"), "{outcome:?}");
        assert_eq!(store.recent_messages(turn.conversation_id.unwrap(), 10).await.unwrap().len(), 2);
    }
}

/// Calls that are made in their order, none waiting for an earlier one. The runtime would let some of so many calls of one
/// task wait for its next turn, and others overtake them.
fn at_once<F: Future>(calls: impl Iterator<Item = F>) -> impl Future<Output = Vec<F::Output>> {
    tokio::task::unconstrained(join_all(calls))
}

fn kind(outcome: &Result<CommitOutcome, StoreError>) -> &'static str {
    match outcome {
        Ok(CommitOutcome::Committed { .. }) => "committed",
        Ok(CommitOutcome::AlreadyTerminal(_)) => "already",
        Ok(CommitOutcome::Fenced) => "fenced",
        Ok(CommitOutcome::ConversationMoved) => "moved",
        Err(error) if error.is_transient() => "passing",
        Err(_) => "refused",
    }
}
