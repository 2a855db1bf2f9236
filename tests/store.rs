//! The conformance suite of the database layer: every test body is written once and runs on PostgreSQL and on SQLite.
//!
//! Refuses to look into tables: what a verb promises is seen through the other verbs. The cases that are about one database
//! alone are at the end.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use turnwise::message::{
    Attachment, Author, Button, Channel, ConversationKey, ConversationStatus, DeliveryStatus, Form, OutboundPart, Peer,
    Platform, Role, TerminalState, Timestamp,
};
use turnwise::store::{
    ChatState, CommitOutcome, Committed, Conversation, ConversationFilter, ConversationPatch, Found, IdempotencyClaim,
    MergedMessage, NewConversation, NewMessage, Ownership, PendingDelivery, Position, Receipt, SendResult, SendStart,
    Store, StoreError, TurnCommit, TurnTimings,
};
use uuid::Uuid;

#[path = "support/postgres.rs"]
mod postgres_cluster;

use postgres_cluster::PostgresCluster;

/// Names the tests once, for both databases.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&super::Database::sqlite().await).await;
            })+
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&super::Database::postgres().await).await;
            })+
        }
    };
}

#[path = "store/deaths.rs"]
mod deaths;
#[path = "store/groups.rs"]
mod groups;
#[path = "store/journal.rs"]
mod journal;
#[path = "store/moves.rs"]
mod moves;
#[path = "store/operator.rs"]
mod operator;
#[path = "store/outcomes.rs"]
mod outcomes;

on_both!(
    a_commit_writes_everything_and_only_once,
    a_commit_of_another_turn_under_the_same_dedupe_id_changes_nothing,
    a_takeover_fences_the_former_owner,
    a_commit_racing_with_a_takeover_is_whole_or_fenced,
    changes_made_while_a_turn_runs_survive_it,
    a_handoff_never_reopens_or_closes,
    ordinals_have_no_gaps_under_concurrency,
    first_messages_at_once_open_one_conversation,
    a_turn_without_a_conversation_is_in_the_ledger,
    a_closed_conversation_is_followed_by_a_new_one,
    a_device_has_one_active_conversation,
    deliveries_go_through_their_states,
    a_delivery_of_a_partition_taken_over_is_not_begun,
    what_a_crash_left_is_found_in_order,
    checkpoints_only_go_forward_and_only_for_the_owner,
    an_idempotency_key_is_claimed_once,
    conversations_are_listed_in_pages,
    messages_are_listed_in_pages,
    settled_turns_are_found_in_bulk,
    the_ledger_tells_its_faults,
    merged_messages_have_their_rows_in_the_turn_that_answers_them,
    a_turn_with_a_message_that_is_done_already_writes_nothing,
    unusual_text_is_stored,
    migrations_run_twice_and_at_once,
);

async fn a_commit_writes_everything_and_only_once(database: &Database) {
    let store = &database.store;
    let owner = database.own(3).await;
    let mut turn = first_turn(owner, 7, "ann");
    turn.messages[0].attachments = vec![Attachment {
        kind: "photo".to_owned(),
        file_id: Some("f1".to_owned()),
        url: None,
        mime_type: None,
        name: None,
    }];
    turn.messages[1].tool = Some(json!({"calls": [{"id": "c1", "arguments": "{\"n\": 1.5}"}]}));
    turn.deliveries[0].buttons = vec![Button { label: "Yes".to_owned(), payload: "y".to_owned() }];

    let before = store.load_turn(&turn.key, &turn.dedupe_id).await.unwrap();
    assert!(before.already.is_none() && before.conversation.is_none());

    let (receipt, pending) = committed(store.commit(turn.clone()).await.unwrap());
    assert_eq!((receipt.turn_id(), receipt.state()), (turn.turn_id, TerminalState::Answered));
    assert!(receipt.covers(&turn.dedupe_id) && !receipt.covers("another"));
    assert_eq!(parts(&pending), turn.deliveries);
    assert!(pending.iter().all(|delivery| delivery.traceparent() == turn.traceparent.as_deref()));

    let again = store.commit(turn.clone()).await.unwrap();
    assert!(matches!(&again, CommitOutcome::AlreadyTerminal(found) if *found == receipt), "{again:?}");

    let id = turn.conversation_id.unwrap();
    let conversation = store.conversation(id).await.unwrap().unwrap();
    assert_eq!(conversation.key, turn.key);
    assert_eq!(conversation.message_count, 2);
    assert_eq!(conversation.snippet.as_deref(), Some("answer to ann 7"));
    assert_eq!(conversation.last_message_at, Some(turn.messages[1].created_at));
    assert_eq!(conversation.metadata["locale"], "de");
    let messages = store.recent_messages(id, 50).await.unwrap();
    assert_eq!(messages.iter().map(|message| message.ordinal).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(messages[0].attachments, turn.messages[0].attachments);
    assert_eq!(messages[1].tool, turn.messages[1].tool);
    assert_eq!(messages[1].created_at, turn.messages[1].created_at);
    assert!(messages.iter().all(|message| message.turn_id == Some(turn.turn_id)));

    let found = store.turn(turn.turn_id).await.unwrap().unwrap();
    assert_eq!(found.position, (owner.stream, 7));
    assert_eq!(found.received_at, turn.received_at);
    assert_eq!(found.replies, messages[1..]);
    assert!(store.turn(Uuid::now_v7()).await.unwrap().is_none());

    let after = store.load_turn(&turn.key, &turn.dedupe_id).await.unwrap();
    assert_eq!(after.already, Some(receipt));
    assert_eq!(after.conversation, Some(conversation));
    assert_eq!(store.pending_of_turn(turn.turn_id).await.unwrap(), pending);
}

async fn a_commit_of_another_turn_under_the_same_dedupe_id_changes_nothing(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let first = first_turn(owner, 1, "ann");
    committed(store.commit(first.clone()).await.unwrap());
    let mut second = next_turn(&first, 2);
    second.dedupe_id.clone_from(&first.dedupe_id);

    let outcome = store.commit(second.clone()).await.unwrap();
    assert!(matches!(&outcome, CommitOutcome::AlreadyTerminal(found) if found.turn_id() == first.turn_id));
    assert!(store.turn(second.turn_id).await.unwrap().is_none());
    assert!(store.deliveries_of_turn(second.turn_id).await.unwrap().is_empty());
    assert_eq!(store.recent_messages(first.conversation_id.unwrap(), 50).await.unwrap().len(), 2);
}

async fn a_takeover_fences_the_former_owner(database: &Database) {
    let store = &database.store;
    let former = database.own(5).await;
    let first = first_turn(former, 1, "ann");
    committed(store.commit(first.clone()).await.unwrap());
    let later = store.take_over(former.stream, &[5], 0).await.unwrap()[0].ownership;
    assert_eq!(later.epoch, former.epoch + 1);

    let mut second = next_turn(&first, 2);
    assert!(matches!(store.commit(second.clone()).await.unwrap(), CommitOutcome::Fenced));
    assert!(store.turn(second.turn_id).await.unwrap().is_none());
    second.ownership = later;
    committed(store.commit(second.clone()).await.unwrap());

    let higher = store.take_over(former.stream, &[5, 6], 40).await.unwrap();
    let epochs = higher.iter().map(|taken| (taken.ownership.partition, taken.ownership.epoch)).collect::<Vec<_>>();
    assert_eq!(epochs, [(5, 40), (6, 40)]);
    let unowned = Ownership { stream: former.stream, partition: 9, epoch: 0 };
    let mut third = next_turn(&second, 3);
    third.ownership = unowned;
    assert!(matches!(store.commit(third.clone()).await.unwrap(), CommitOutcome::Fenced));
}

/// Many commits run into a takeover. Whatever was committed before it is there when it returns, whole; nothing comes after.
async fn a_commit_racing_with_a_takeover_is_whole_or_fenced(database: &Database) {
    let owner = database.own(1).await;
    let turns = (1..=40).map(|number| first_turn(owner, number, &format!("user{number}"))).collect::<Vec<_>>();
    let dedupe_ids = turns.iter().map(|turn| turn.dedupe_id.clone()).collect::<Vec<_>>();
    let commits = turns.clone().into_iter().map(|turn| {
        let store = database.store.clone();
        tokio::spawn(async move { store.commit(turn).await.unwrap() })
    });
    let commits = commits.collect::<Vec<_>>();
    let taken = database.store.take_over(owner.stream, &[1], 0).await.unwrap();
    let settled = database.store.settled(&dedupe_ids).await.unwrap();
    let mut written = 0;
    for (outcome, turn) in join_all(commits).await.into_iter().zip(&turns) {
        match outcome.unwrap() {
            CommitOutcome::Committed { committed: receipt, .. } => {
                written += 1;
                assert!(settled.contains(&receipt), "committed after the takeover returned");
                assert_eq!(database.store.deliveries_of_turn(turn.turn_id).await.unwrap().len(), 2);
            }
            CommitOutcome::Fenced => assert!(database.store.turn(turn.turn_id).await.unwrap().is_none()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(settled.len(), written);
    assert_eq!(taken[0].ownership.epoch, owner.epoch + 1);
}

async fn changes_made_while_a_turn_runs_survive_it(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let first = first_turn(owner, 1, "ann");
    let id = first.conversation_id.unwrap();
    committed(store.commit(first.clone()).await.unwrap());

    let mut second = next_turn(&first, 2);
    second.metadata_patches = vec![
        object(json!({"topic": "shipping", "form": {"city": "Ulm"}, "locale": "de", "cart": null})),
        object(json!({"form": {"street": "Gasse 7"}, "locale": null, "cart": {"paid": false}})),
    ];
    second.workflow_state = Some(json!({"node": "ask"}));
    store.load_turn(&second.key, &second.dedupe_id).await.unwrap();
    let patch = ConversationPatch {
        status: Some(ConversationStatus::Human),
        assignee: Some(Some("maria".to_owned())),
        metadata: Some(object(json!({"vip": true, "form": {"name": "Ann"}, "cart": {"paid": true, "items": 2}}))),
        only_if: Some(Found { status: ConversationStatus::Bot, unassigned_with: None }),
    };
    let patched = store.patch_conversation(id, &patch, at(90)).await.unwrap().unwrap();
    assert_eq!(store.conversation(id).await.unwrap(), Some(patched.clone()));
    for found in [
        Found { status: ConversationStatus::Bot, unassigned_with: None },
        Found { status: ConversationStatus::Human, unassigned_with: Some("vip") },
    ] {
        let taken_back =
            ConversationPatch { status: Some(ConversationStatus::Bot), only_if: Some(found), ..patch.clone() };
        let unchanged = store.patch_conversation(id, &taken_back, at(91)).await.unwrap();
        assert_eq!(unchanged, Some(patched.clone()), "it is otherwise than {found:?}");
    }
    committed(store.commit(second.clone()).await.unwrap());

    let conversation = store.conversation(id).await.unwrap().unwrap();
    assert_eq!(conversation.status, ConversationStatus::Human);
    assert_eq!(conversation.assignee.as_deref(), Some("maria"));
    assert_eq!(conversation.snippet.as_deref(), Some("answer to ann 2"));
    let expected = json!({
        "vip": true, "topic": "shipping", "form": {"name": "Ann", "city": "Ulm", "street": "Gasse 7"},
        "cart": {"paid": false}, "workflow_state": {"node": "ask"},
    });
    assert_eq!(Value::Object(conversation.metadata), expected);
    assert_eq!(conversation.updated_at, at(90), "a turn that began earlier does not turn the time back");

    let clear = ConversationPatch { assignee: Some(None), ..ConversationPatch::default() };
    let cleared = store.patch_conversation(id, &clear, at(91)).await.unwrap().unwrap();
    assert_eq!((cleared.assignee, cleared.status), (None, ConversationStatus::Human));
    assert!(store.patch_conversation(Uuid::now_v7(), &clear, at(91)).await.unwrap().is_none());
}

async fn a_handoff_never_reopens_or_closes(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let check = async |peer: &str, before: ConversationStatus, after: ConversationStatus| {
        let first = first_turn(owner, 1, peer);
        let id = first.conversation_id.unwrap();
        committed(store.commit(first.clone()).await.unwrap());
        let patch = ConversationPatch { status: Some(before), ..ConversationPatch::default() };
        store.patch_conversation(id, &patch, at(5)).await.unwrap();
        let mut second = next_turn(&first, 2);
        second.handoff = true;
        committed(store.commit(second.clone()).await.unwrap());
        assert_eq!(store.conversation(id).await.unwrap().unwrap().status, after);
    };
    check("ann", ConversationStatus::Bot, ConversationStatus::Human).await;
    check("bob", ConversationStatus::Human, ConversationStatus::Human).await;
    check("cid", ConversationStatus::Closed, ConversationStatus::Closed).await;
}

/// Turns of several conversations and agents' messages into the same ones, all at once.
async fn ordinals_have_no_gaps_under_concurrency(database: &Database) {
    const TURNS: i64 = 8;
    let owner = database.own(0).await;
    let mut work = Vec::new();
    let mut conversations = Vec::new();
    for peer in ["ann", "bob", "cid"] {
        let first = first_turn(owner, 1, peer);
        committed(database.store.commit(first.clone()).await.unwrap());
        let id = first.conversation_id.unwrap();
        conversations.push(id);
        for number in 2..=1 + TURNS {
            let (store, turn) = (database.store.clone(), next_turn(&first, number.unsigned_abs()));
            work.push(tokio::spawn(async move {
                committed(store.commit(turn.clone()).await.unwrap());
            }));
            let store = database.store.clone();
            let messages =
                vec![message(Role::Assistant, Author::Agent, "hello"), message(Role::User, Author::User, "hi")];
            work.push(tokio::spawn(async move {
                let appended = store.append_messages(id, messages, at(1)).await.unwrap().unwrap();
                assert_eq!(appended[0].ordinal + 1, appended[1].ordinal);
            }));
        }
    }
    for done in join_all(work).await {
        done.unwrap();
    }
    for id in conversations {
        let expected = 2 + 4 * TURNS;
        assert_eq!(database.store.conversation(id).await.unwrap().unwrap().message_count, expected);
        let messages = database.store.recent_messages(id, 1_000).await.unwrap();
        let ordinals = messages.iter().map(|message| message.ordinal).collect::<Vec<_>>();
        assert_eq!(ordinals, (1..=expected).collect::<Vec<_>>());
    }
    assert!(database.store.append_messages(Uuid::now_v7(), Vec::new(), at(1)).await.unwrap().is_none());
}

async fn first_messages_at_once_open_one_conversation(database: &Database) {
    let owner = database.own(0).await;
    let turns = (1..=6).map(|number| first_turn(owner, number, "ann")).collect::<Vec<_>>();
    let commits = turns.iter().map(|turn| database.store.commit(turn.clone()));
    let mut winners = Vec::new();
    for (outcome, turn) in join_all(commits).await.into_iter().zip(&turns) {
        match outcome.unwrap() {
            CommitOutcome::Committed { .. } => winners.push(turn.clone()),
            CommitOutcome::ConversationMoved => {
                assert!(database.store.turn(turn.turn_id).await.unwrap().is_none(), "the loser wrote nothing");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    let loaded = database.store.load_turn(&turns[0].key, "unseen").await.unwrap().conversation.unwrap();
    assert_eq!(Some(loaded.id), winners[0].conversation_id);

    let mut lost = next_turn(&winners[0], 9);
    lost.conversation_id = Some(Uuid::now_v7());
    assert!(matches!(database.store.commit(lost.clone()).await.unwrap(), CommitOutcome::ConversationMoved));
}

async fn a_turn_without_a_conversation_is_in_the_ledger(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let mut turn = first_turn(owner, 1, "ann");
    turn.state = TerminalState::DeadLettered;
    turn.reason = Some("the model is gone".to_owned());
    (turn.conversation_id, turn.new_conversation) = (None, None);
    (turn.metadata_patches, turn.workflow_state) = (Vec::new(), None);
    turn.messages.clear();
    turn.deliveries.truncate(1);
    turn.deliveries[0].conversation_id = None;
    turn.deliveries[0].parts = 1;

    let (receipt, pending) = committed(store.commit(turn.clone()).await.unwrap());
    assert_eq!(receipt.state(), TerminalState::DeadLettered);
    assert_eq!(parts(&pending), turn.deliveries);
    let found = store.turn(turn.turn_id).await.unwrap().unwrap();
    assert_eq!((found.conversation_id, found.reason.as_deref()), (None, Some("the model is gone")));
    assert_eq!(store.pending_of_turn(turn.turn_id).await.unwrap(), pending);
    assert!(store.load_turn(&turn.key, "unseen").await.unwrap().conversation.is_none());
    assert_eq!(store.ledger_counts().await.unwrap(), [(TerminalState::DeadLettered, 1)]);
}

async fn a_closed_conversation_is_followed_by_a_new_one(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let first = first_turn(owner, 1, "ann");
    committed(store.commit(first.clone()).await.unwrap());
    let status = |status| ConversationPatch { status: Some(status), ..ConversationPatch::default() };
    let id = first.conversation_id.unwrap();
    store.patch_conversation(id, &status(ConversationStatus::Closed), at(5)).await.unwrap();
    assert!(store.load_turn(&first.key, "unseen").await.unwrap().conversation.is_none());

    let second = first_turn(owner, 2, "ann");
    committed(store.commit(second.clone()).await.unwrap());
    assert_ne!(second.conversation_id, first.conversation_id);
    let reopened = store.patch_conversation(id, &status(ConversationStatus::Bot), at(6)).await;
    assert!(matches!(reopened, Err(StoreError::AlreadyOpen)));
    let created = store.create_conversation(&second.new_conversation.clone().unwrap()).await;
    assert!(matches!(created, Err(StoreError::AlreadyOpen)));

    let web = web_conversation("support", "device", at(0));
    let created = store.create_conversation(&web).await.unwrap();
    assert_eq!(store.conversation(web.id).await.unwrap(), Some(created));
    store.patch_conversation(web.id, &status(ConversationStatus::Closed), at(5)).await.unwrap();
    let loaded = store.load_turn(&web.key, "unseen").await.unwrap().conversation.unwrap();
    assert_eq!((loaded.id, loaded.status), (web.id, ConversationStatus::Closed), "named by its id, it is found");
    let foreign = ConversationKey { bot: "other".into(), ..web.key };
    assert!(store.load_turn(&foreign, "unseen").await.unwrap().conversation.is_none());
}

async fn a_device_has_one_active_conversation(database: &Database) {
    let ttl = Duration::from_secs(60);
    let active = async |device: &str, now: Timestamp| -> Conversation {
        let id = Uuid::now_v7();
        database.store.active_conversation("support", device, Platform::Web, ttl, now, id).await.unwrap()
    };
    let at_once = join_all((0..8).map(|_| active("phone", at(0)))).await;
    let first = at_once[0].clone();
    assert!(at_once.iter().all(|conversation| conversation.id == first.id));
    assert_eq!(first.key.peer, Peer::Conversation(first.id));
    assert_ne!(active("tablet", at(0)).await.id, first.id);

    assert_eq!(active("phone", at(60)).await.id, first.id, "still within its time, which begins anew");
    assert_eq!(active("phone", at(120)).await.id, first.id);
    assert!(database.store.touch_conversation(first.id, at(170)).await.unwrap());
    assert_eq!(active("phone", at(230)).await.id, first.id);
    let second = active("phone", at(291)).await;
    assert_ne!(second.id, first.id);

    let closed = ConversationPatch { status: Some(ConversationStatus::Closed), ..ConversationPatch::default() };
    database.store.patch_conversation(second.id, &closed, at(292)).await.unwrap();
    let third = active("phone", at(293)).await;
    assert!(third.id != second.id && third.id != first.id);
    assert!(!database.store.touch_conversation(Uuid::now_v7(), at(0)).await.unwrap());
}

async fn deliveries_go_through_their_states(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let sender = database.own_outbound(0).await;
    let mut turn = first_turn(owner, 1, "ann");
    let template = turn.deliveries[0].clone();
    let part = |part| OutboundPart { delivery_id: Uuid::now_v7(), part, parts: 5, ..template.clone() };
    turn.deliveries = (0..5).map(part).collect();
    committed(store.commit(turn.clone()).await.unwrap());
    let ids = turn.deliveries.iter().map(|part| part.delivery_id).collect::<Vec<_>>();
    let begin_at = async |id: Uuid, seconds| store.begin_send(id, &sender, at(seconds)).await.unwrap();
    let begin = async |id: Uuid| begin_at(id, 1).await;
    let settle = async |id: Uuid, result: SendResult| {
        store.settle_send(id, &result, at(2)).await.unwrap().map(|settled| {
            assert!(settled.covers(&id.to_string()) && !settled.covers("another"));
            settled.status()
        })
    };
    let error = || "HTTP 500".to_owned();
    let sent = || SendResult::Sent { platform_message_id: Some("tg-1".to_owned()) };

    assert_eq!(begin(ids[0]).await, begun(1));
    assert_eq!(begin(ids[0]).await, begun(1), "the same beginning, its answer lost");
    assert_eq!(begin_at(ids[0], 2).await, SendStart::Interrupted);
    assert_eq!(settle(ids[0], SendResult::NotSent { error: error() }).await, None);
    assert_eq!(begin(ids[0]).await, begun(2));
    assert_eq!(settle(ids[0], sent()).await, Some(DeliveryStatus::Sent));
    assert!(matches!(begin(ids[0]).await, SendStart::Settled(found) if found.status() == DeliveryStatus::Sent));
    assert_eq!(settle(ids[0], SendResult::Failed { error: error() }).await, Some(DeliveryStatus::Sent));

    begin(ids[1]).await;
    assert_eq!(settle(ids[1], SendResult::Uncertain { error: error() }).await, Some(DeliveryStatus::Uncertain));
    assert_eq!(settle(ids[1], SendResult::NotSent { error: error() }).await, Some(DeliveryStatus::Uncertain));
    assert!(matches!(begin(ids[1]).await, SendStart::Settled(_)), "what is held is not sent");
    assert_eq!(settle(ids[1], sent()).await, Some(DeliveryStatus::Sent), "a late confirmation wins");

    assert_eq!(settle(ids[2], SendResult::Failed { error: error() }).await, Some(DeliveryStatus::Failed));
    assert!(matches!(begin(ids[2]).await, SendStart::Settled(_)));
    begin(ids[3]).await;

    let rows = store.deliveries_of_turn(turn.turn_id).await.unwrap();
    let expected = [
        (DeliveryStatus::Sent, 2, None, Some("tg-1"), Some(at(2))),
        (DeliveryStatus::Sent, 1, None, Some("tg-1"), Some(at(2))),
        (DeliveryStatus::Failed, 0, Some("HTTP 500"), None, Some(at(2))),
        (DeliveryStatus::Sending, 1, None, None, None),
        (DeliveryStatus::Pending, 0, None, None, None),
    ];
    for (row, expected) in rows.iter().zip(expected) {
        let found =
            (row.status, row.attempts, row.error.as_deref(), row.platform_message_id.as_deref(), row.settled_at);
        assert_eq!(found, expected, "part {}", row.part);
    }
    let pending = store.pending_of_turn(turn.turn_id).await.unwrap();
    assert_eq!(parts(&pending), turn.deliveries[3..]);
    assert!(matches!(begin(Uuid::now_v7()).await, SendStart::Unknown(_)));
    assert_eq!(settle(Uuid::now_v7(), sent()).await, None);
}

async fn a_delivery_of_a_partition_taken_over_is_not_begun(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let former = database.own_outbound(0).await;
    let turn = first_turn(owner, 1, "ann");
    committed(store.commit(turn.clone()).await.unwrap());
    let id = turn.deliveries[0].delivery_id;
    let later = store.take_over(former.stream, &[0], 0).await.unwrap()[0].ownership;
    assert_eq!(store.begin_send(id, &former, at(1)).await.unwrap(), SendStart::Fenced);
    assert_eq!(store.begin_send(id, &later, at(1)).await.unwrap(), begun(1));
}

async fn what_a_crash_left_is_found_in_order(database: &Database) {
    let store = &database.store;
    let owner = database.own(2).await;
    let elsewhere = database.own(3).await;
    let mut turns = Vec::new();
    for sequence in [30_u64, 10, 20] {
        turns.push(first_turn(owner, sequence, &format!("user{sequence}")));
    }
    turns.push(first_turn(elsewhere, 5, "dora"));
    // Written by a process whose clock is ahead: age must not matter.
    let mut young = first_turn(owner, 40, "eve");
    young.deliveries.iter_mut().for_each(|part| part.created_at = at(500));
    turns.push(young);
    for turn in &turns {
        committed(store.commit(turn.clone()).await.unwrap());
    }
    let settled = turns[1].deliveries[0].delivery_id;
    store.settle_send(settled, &SendResult::Failed { error: "blocked".to_owned() }, at(1)).await.unwrap();

    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.pending_of_partition(owner.stream, 2, after, 2).await.unwrap();
        assert!(page.deliveries.len() <= 2);
        found.extend(parts(&page.deliveries));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut expected = turns[1].deliveries[1..].to_vec();
    expected.extend(turns[2].deliveries.clone());
    expected.extend(turns[0].deliveries.clone());
    expected.extend(turns[4].deliveries.clone());
    assert_eq!(found, expected);

    let made_again = store.stream_number("turnwise_in", "second incarnation").await.unwrap();
    let page = store.pending_of_partition(made_again, 2, None, 100).await.unwrap();
    assert_eq!(parts(&page.deliveries), expected, "those of the former stream are not forgotten");
    let outbound = database.own_outbound(2).await;
    let page = store.pending_of_partition(outbound.stream, 2, None, 100).await.unwrap();
    assert!(page.deliveries.is_empty() && page.next.is_none());
}

async fn checkpoints_only_go_forward_and_only_for_the_owner(database: &Database) {
    let store = &database.store;
    let stream = store.stream_number("turnwise_in", "first").await.unwrap();
    assert_eq!(store.stream_number("turnwise_in", "first").await.unwrap(), stream);
    assert!(store.stream_number("turnwise_in", "later").await.unwrap() > stream);
    let take = async || store.take_over(stream, &[8, 1, 4], 0).await.unwrap();
    let checkpoints = async || take().await.iter().map(|taken| taken.checkpoint).collect::<Vec<_>>();

    let first = take().await;
    assert_eq!(first.iter().map(|taken| taken.ownership.partition).collect::<Vec<_>>(), [1, 4, 8]);
    assert!(first.iter().all(|taken| taken.checkpoint.is_none()));
    let owned = |index: usize| first[index].ownership;
    store.save_checkpoints(&[(owned(0), 10), (owned(1), 20)]).await.unwrap();
    store.save_checkpoints(&[(owned(0), 9), (owned(1), 25)]).await.unwrap();
    assert_eq!(checkpoints().await, [Some(10), Some(25), None]);
    store.save_checkpoints(&[(owned(0), 99), (owned(2), 99)]).await.unwrap();
    assert_eq!(checkpoints().await, [Some(10), Some(25), None], "the former owner's word does not count");
    store.save_checkpoints(&[]).await.unwrap();
    assert!(store.take_over(stream, &[], 0).await.unwrap().is_empty());
}

async fn an_idempotency_key_is_claimed_once(database: &Database) {
    let claim = async |scope: &str, fingerprint: &str| {
        let (turn_id, conversation_id) = (Uuid::now_v7(), Uuid::now_v7());
        let claimed = database.store.claim_idempotency_key(scope, "k", fingerprint, turn_id, conversation_id, at(0));
        claimed.await.unwrap()
    };
    let find =
        async |scope: &str, fingerprint: &str| database.store.idempotency_claim(scope, "k", fingerprint).await.unwrap();
    assert_eq!(find("support", "body").await, None);
    let at_once = join_all((0..6).map(|_| claim("support", "body"))).await;
    assert!(matches!(at_once[0], IdempotencyClaim::Granted { .. }));
    assert!(at_once.iter().all(|claimed| *claimed == at_once[0]));
    assert_eq!(claim("support", "another body").await, IdempotencyClaim::Conflict);
    assert_eq!(find("support", "body").await.as_ref(), Some(&at_once[0]));
    assert_eq!(find("support", "another body").await, Some(IdempotencyClaim::Conflict));
    assert_eq!(find("sales", "body").await, None);
    let elsewhere = claim("sales", "another body").await;
    assert!(matches!(elsewhere, IdempotencyClaim::Granted { .. }) && elsewhere != at_once[0]);
}

async fn conversations_are_listed_in_pages(database: &Database) {
    let store = &database.store;
    let mut made = Vec::new();
    for number in 0..7 {
        let bot = if number % 2 == 0 { "support" } else { "sales" };
        made.push(web_conversation(bot, &format!("device{}", number % 3), at(number / 2)));
        store.create_conversation(made.last().unwrap()).await.unwrap();
    }
    let human = ConversationPatch {
        status: Some(ConversationStatus::Human),
        assignee: Some(Some("maria".to_owned())),
        ..ConversationPatch::default()
    };
    store.patch_conversation(made[3].id, &human, at(100)).await.unwrap();
    made[3].created_at = at(100);
    made.sort_by_key(|new| (new.created_at, new.id));
    made.reverse();

    let list = async |filter: ConversationFilter| {
        let (mut ids, mut after) = (Vec::new(), filter.after);
        loop {
            let page = store.conversations(&ConversationFilter { limit: 2, after, ..filter.clone() }).await.unwrap();
            ids.extend(page.iter().map(|conversation| conversation.id));
            match page.last() {
                Some(last) => after = Some((last.updated_at, last.id)),
                None => return ids,
            }
        }
    };
    let all = list(ConversationFilter::default()).await;
    let expected = made.iter().map(|new| new.id).collect::<Vec<_>>();
    assert_eq!(all, expected);
    let of_bot =
        list(ConversationFilter { bots: Some(vec!["sales".to_owned()]), ..ConversationFilter::default() }).await;
    assert_eq!(of_bot.len(), 3);
    let device_id = Some("device1".to_owned());
    assert_eq!(list(ConversationFilter { device_id, ..ConversationFilter::default() }).await.len(), 2);
    let assignee = Some("maria".to_owned());
    let status = Some(ConversationStatus::Human);
    let assigned = list(ConversationFilter { assignee, status, ..ConversationFilter::default() }).await;
    assert_eq!(assigned, all[..1]);
    let closed = ConversationFilter { status: Some(ConversationStatus::Closed), ..ConversationFilter::default() };
    assert!(list(closed).await.is_empty());
}

async fn messages_are_listed_in_pages(database: &Database) {
    let store = &database.store;
    let conversation = web_conversation("support", "device", at(0));
    store.create_conversation(&conversation).await.unwrap();
    let many = (0..1_203).map(|number| message(Role::User, Author::Import, &format!("line {number}"))).collect();
    let stored = store.append_messages(conversation.id, many, at(50)).await.unwrap().unwrap();
    assert_eq!(stored.len(), 1_203);
    let mut again = message(Role::User, Author::Import, "the same ids again");
    again.id = stored[0].id;
    let more = message(Role::User, Author::Import, "nor this");
    assert_eq!(store.append_messages(conversation.id, vec![again, more], at(60)).await.unwrap().unwrap(), stored[..2]);

    let page = store.messages(conversation.id, None, 3).await.unwrap();
    assert_eq!(page, stored[1_200..]);
    let page = store.messages(conversation.id, Some(4), 10).await.unwrap();
    assert_eq!(page, stored[..3]);
    assert!(store.messages(conversation.id, Some(1), 10).await.unwrap().is_empty());
    assert_eq!(store.recent_messages(conversation.id, u32::MAX).await.unwrap(), stored[203..], "a page is bounded");
    let found = store.conversation(conversation.id).await.unwrap().unwrap();
    assert_eq!((found.message_count, found.snippet.as_deref()), (1_203, Some("line 1202")));
    assert_eq!(found.updated_at, at(50));
}

async fn settled_turns_are_found_in_bulk(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let mut expected = Vec::new();
    for number in 1..=5 {
        let turn = first_turn(owner, number, &format!("user{number}"));
        let (receipt, _) = committed(store.commit(turn.clone()).await.unwrap());
        expected.push(receipt);
    }
    let mut asked = (0..1_100).map(|number| format!("unknown {number}")).collect::<Vec<_>>();
    asked.extend(expected.iter().map(|receipt| receipt.dedupe_id().to_owned()));
    let mut found = store.settled(&asked).await.unwrap();
    found.sort_by_key(Committed::turn_id);
    expected.sort_by_key(Committed::turn_id);
    assert_eq!(found, expected);
    assert!(store.settled(&[]).await.unwrap().is_empty());
}

async fn the_ledger_tells_its_faults(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let first = first_turn(owner, 10, "ann");
    committed(store.commit(first.clone()).await.unwrap());
    committed(store.commit(next_turn(&first, 11)).await.unwrap());
    let faults = store.ledger_faults().await.unwrap();
    assert!(faults.doubled.is_empty() && faults.out_of_order.is_empty(), "{faults:?}");

    let mut doubled = next_turn(&first, 13);
    doubled.messages.insert(0, message(Role::User, Author::User, "twice"));
    committed(store.commit(doubled.clone()).await.unwrap());
    let overtaken = next_turn(&first, 12);
    committed(store.commit(overtaken.clone()).await.unwrap());
    let faults = store.ledger_faults().await.unwrap();
    assert_eq!(faults.doubled, [doubled.turn_id]);
    assert_eq!(faults.out_of_order, [doubled.turn_id], "it stands before the messages of sequence 12");
    assert_eq!(store.ledger_counts().await.unwrap(), [(TerminalState::Answered, 4)]);
}

async fn merged_messages_have_their_rows_in_the_turn_that_answers_them(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let mut turn = first_turn(owner, 14, "ann");
    turn.merged = vec![
        merged(11, TerminalState::Merged),
        merged(12, TerminalState::Ignored),
        merged(13, TerminalState::Superseded),
    ];
    for text in ["first", "third"] {
        turn.messages.insert(0, message(Role::User, Author::User, text));
    }
    let CommitOutcome::Committed { committed, merged: receipts, first_ordinal, .. } =
        store.commit(turn.clone()).await.unwrap()
    else {
        panic!("not committed")
    };
    assert_eq!((committed.turn_id(), first_ordinal), (turn.turn_id, Some(1)));
    for (receipt, message) in receipts.iter().zip(&turn.merged) {
        assert!(receipt.covers(&message.dedupe_id) && !receipt.covers(&turn.dedupe_id));
        assert_eq!((receipt.turn_id(), receipt.state()), (message.turn_id, message.state));
        let row = store.turn(message.turn_id).await.unwrap().unwrap();
        let merged_into = (message.state != TerminalState::Ignored).then_some(turn.turn_id);
        assert_eq!(
            (row.state, row.merged_into, row.conversation_id),
            (message.state, merged_into, turn.conversation_id)
        );
        assert_eq!((row.position, row.replies.len()), ((owner.stream, message.sequence), 0));
    }
    assert_eq!(receipts.len(), 3);
    let ids: Vec<_> = turn.dedupe_ids().map(str::to_owned).collect();
    assert_eq!(store.settled(&ids).await.unwrap().len(), 4);
    let again = store.commit(turn.clone()).await.unwrap();
    assert!(matches!(&again, CommitOutcome::AlreadyTerminal(found) if *found == committed), "{again:?}");
    committed_after(store, &turn, 15).await;
    let faults = store.ledger_faults().await.unwrap();
    assert!(faults.doubled.is_empty() && faults.out_of_order.is_empty(), "{faults:?}");

    // A user message too few is found like one too many.
    let mut short = next_turn(&turn, 17);
    short.merged = vec![merged(16, TerminalState::Merged)];
    self::committed(store.commit(short.clone()).await.unwrap());
    assert_eq!(store.ledger_faults().await.unwrap().doubled, [short.turn_id]);
}

async fn committed_after(store: &Store, first: &TurnCommit, sequence: u64) {
    committed(store.commit(next_turn(first, sequence)).await.unwrap());
}

async fn a_turn_with_a_message_that_is_done_already_writes_nothing(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let first = first_turn(owner, 1, "ann");
    committed(store.commit(first.clone()).await.unwrap());

    // In one transaction with others, which it does not disturb.
    let mut torn = next_turn(&first, 3);
    torn.merged = vec![merged(2, TerminalState::Merged), merged(1, TerminalState::Merged)];
    torn.merged[1].dedupe_id.clone_from(&first.dedupe_id);
    let others: Vec<_> = (4..30).map(|number| first_turn(owner, number, &format!("user{number}"))).collect();
    let (outcome, others_outcomes) =
        tokio::join!(store.commit(torn.clone()), join_all(others.iter().map(|turn| store.commit(turn.clone()))));
    let outcome = outcome.unwrap();
    assert!(
        matches!(&outcome, CommitOutcome::AlreadyTerminal(found) if found.turn_id() == first.turn_id),
        "{outcome:?}"
    );
    others_outcomes.into_iter().for_each(|outcome| drop(committed(outcome.unwrap())));
    for id in [torn.turn_id, torn.merged[0].turn_id, torn.merged[1].turn_id] {
        assert_eq!(store.turn(id).await.unwrap(), None);
    }
    assert_eq!(store.recent_messages(first.conversation_id.unwrap(), 10).await.unwrap().len(), 2);

    // The rest of it makes a turn of its own.
    torn.merged.truncate(1);
    torn.messages.insert(0, message(Role::User, Author::User, "second"));
    committed(store.commit(torn).await.unwrap());
    assert!(store.ledger_faults().await.unwrap().doubled.is_empty());
}

fn merged(sequence: u64, state: TerminalState) -> MergedMessage {
    let turn_id = Uuid::now_v7();
    MergedMessage {
        turn_id,
        dedupe_id: format!("telegram:support:{turn_id}"),
        sequence,
        state,
        reason: None,
        traceparent: None,
        timings: TurnTimings::default(),
        received_at: at(9),
    }
}

async fn unusual_text_is_stored(database: &Database) {
    let store = &database.store;
    let owner = database.own(0).await;
    let mut turn = first_turn(owner, 1, "o'brien\"; --");
    turn.messages[0].content = "a\0b \u{1F600} \"quoted\" 'single' \\u0000 line\nbreak".to_owned();
    turn.messages[1].content = "é\n".repeat(400);
    turn.metadata_patches = vec![object(json!({"nul\0": "\0", "number": 1.25e-7, "big": u64::MAX, "text": "7"}))];
    turn.deliveries[0].content = "a\0b".to_owned();
    turn.deliveries[0].buttons = vec![Button { label: "\0".to_owned(), payload: String::new() }];
    committed(store.commit(turn.clone()).await.unwrap());

    let conversation = store.conversation(turn.conversation_id.unwrap()).await.unwrap().unwrap();
    assert_eq!(conversation.key, turn.key);
    assert_eq!(conversation.snippet, Some("é ".repeat(80)));
    let expected = json!({"nul\u{FFFD}": "\u{FFFD}", "number": 1.25e-7, "big": u64::MAX, "text": "7", "locale": "de"});
    assert_eq!(Value::Object(conversation.metadata), expected);
    let messages = store.recent_messages(conversation.id, 10).await.unwrap();
    assert_eq!(messages[0].content, turn.messages[0].content.replace('\0', "\u{FFFD}"));
    assert_eq!(messages[1].content, turn.messages[1].content);
    let pending = store.pending_of_turn(turn.turn_id).await.unwrap();
    assert_eq!(pending[0].part().content, "a\u{FFFD}b");
    assert_eq!(pending[0].part().buttons[0].label, "\u{FFFD}");
}

async fn migrations_run_twice_and_at_once(database: &Database) {
    let fresh = database.another().await;
    let stores = join_all((0..4).map(|_| Store::connect(&fresh.url, 3))).await;
    let stores = stores.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    assert!(!stores[0].is_migrated().await.unwrap());
    for migrated in join_all(stores.iter().map(Store::migrate)).await {
        migrated.unwrap();
    }
    for store in &stores {
        assert!(store.is_migrated().await.unwrap());
        store.ping().await.unwrap();
    }
    stores[0].migrate().await.unwrap();
    assert_eq!(stores[0].stream_number("s", "i").await.unwrap(), stores[1].stream_number("s", "i").await.unwrap());
    stores[0].close().await;
    assert!(stores[0].ping().await.is_err());
}

#[tokio::test]
async fn bad_addresses_are_refused_with_a_reason() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().display();
    let cases = [
        ("mysql://ann:secret@localhost/db".to_owned(), "\"mysql\" is neither sqlite:// nor postgres://"),
        ("secret".to_owned(), "neither sqlite:// nor postgres://"),
        (String::new(), "neither sqlite:// nor postgres://"),
        ("sqlite://".to_owned(), "names no file"),
        ("sqlite://:memory:".to_owned(), "names no file"),
        (format!("sqlite://{path}/absent/turnwise.db"), "absent/turnwise.db does not exist"),
        (format!("sqlite://{path}"), path.to_string().leak()),
        ("postgres://ann:secret@127.0.0.1:99999/db".to_owned(), "cannot open the database"),
        ("postgres://ann:secret@127.0.0.1:1/db".to_owned(), "cannot open the database"),
    ];
    for (url, expected) in cases {
        let error = Store::connect(&url, 2).await.expect_err(&url);
        let said = format!("{error} {error:?}");
        assert!(error.to_string().contains(expected), "{url}: {error}");
        assert!(!said.contains("secret"), "{url}: {said}");
    }
}

#[tokio::test]
async fn sqlite_addresses_may_be_relative() {
    let folder = tempfile::Builder::new().prefix("relative-").tempdir_in(".").unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let store = Store::connect(&format!("sqlite://{name}/turnwise.db"), 2).await.unwrap();
    assert_eq!(format!("{store:?}"), "Store(SQLite)");
    assert!(folder.path().join("turnwise.db").is_file());
}

/// A server that dies takes no committed turn with it, says that the trouble may pass, and is used again once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_postgres_loses_nothing_committed() {
    let cluster = PostgresCluster::start().await;
    let url = cluster.create_database("turnwise").await;
    let store = Store::connect(&url, 4).await.unwrap();
    store.migrate().await.unwrap();
    let database = Database { store: store.clone(), url, _folder: None };
    let first = first_turn(database.own(0).await, 1, "ann");
    committed(store.commit(first.clone()).await.unwrap());

    cluster.kill();
    let refused = store.commit(next_turn(&first, 2)).await.unwrap_err();
    assert!(refused.is_transient(), "{refused:?}");
    cluster.restart().await;
    let again = store.commit(first.clone()).await.unwrap();
    assert!(matches!(again, CommitOutcome::AlreadyTerminal(found) if found.turn_id() == first.turn_id));
    committed(store.commit(next_turn(&first, 2)).await.unwrap());
}

/// A database of its own for one test, migrated.
struct Database {
    store: Store,
    url: String,
    /// Holds the file of an SQLite database.
    _folder: Option<TempDir>,
}

impl Database {
    async fn sqlite() -> Self {
        let folder = TempDir::new().unwrap();
        let url = format!("sqlite://{}/turnwise.db", folder.path().display());
        Self::migrated(url, Some(folder)).await
    }

    async fn postgres() -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        Self::migrated(PostgresCluster::shared().await.create_database(&name).await, None).await
    }

    async fn migrated(url: String, folder: Option<TempDir>) -> Self {
        let store = Store::connect(&url, 6).await.unwrap();
        store.migrate().await.unwrap();
        Self { store, url, _folder: folder }
    }

    /// The address of an empty database of the same kind.
    async fn another(&self) -> Empty {
        if self.url.starts_with("sqlite") {
            let folder = TempDir::new().unwrap();
            return Empty { url: format!("sqlite://{}/empty.db", folder.path().display()), _folder: Some(folder) };
        }
        let name = format!("test_{}", Uuid::now_v7().simple());
        Empty { url: PostgresCluster::shared().await.create_database(&name).await, _folder: None }
    }

    async fn own(&self, partition: u16) -> Ownership {
        self.own_of("turnwise_in", partition).await
    }

    async fn own_outbound(&self, partition: u16) -> Ownership {
        self.own_of("turnwise_out", partition).await
    }

    async fn own_of(&self, stream: &str, partition: u16) -> Ownership {
        let stream = self.store.stream_number(stream, "2026-11-21T09:00:00Z").await.unwrap();
        self.store.take_over(stream, &[partition], 0).await.unwrap()[0].ownership
    }
}

struct Empty {
    url: String,
    _folder: Option<TempDir>,
}

/// The first turn of a Telegram user: opens the conversation, one question, one answer in two parts.
fn first_turn(ownership: Ownership, sequence: u64, peer: &str) -> TurnCommit {
    let conversation_id = Uuid::now_v7();
    let key = ConversationKey { channel: Channel::Telegram, bot: "support".into(), peer: Peer::User(peer.to_owned()) };
    let new_conversation = NewConversation {
        id: conversation_id,
        key: key.clone(),
        platform: Platform::Telegram,
        device_id: None,
        metadata: object(json!({"locale": "de"})),
        created_at: at(0),
    };
    turn_in(ownership, sequence, peer, key, conversation_id, Some(new_conversation))
}

/// A later turn of the conversation that `first` opened.
fn next_turn(first: &TurnCommit, sequence: u64) -> TurnCommit {
    let Peer::User(peer) = &first.key.peer else { panic!("made by first_turn") };
    turn_in(first.ownership, sequence, peer, first.key.clone(), first.conversation_id.unwrap(), None)
}

fn turn_in(
    ownership: Ownership,
    sequence: u64,
    peer: &str,
    key: ConversationKey,
    conversation_id: Uuid,
    new_conversation: Option<NewConversation>,
) -> TurnCommit {
    let turn_id = Uuid::now_v7();
    let question = message(Role::User, Author::User, &format!("question of {peer} {sequence}"));
    let answer = message(Role::Assistant, Author::Bot, &format!("answer to {peer} {sequence}"));
    let part = |part: u16| OutboundPart {
        delivery_id: Uuid::now_v7(),
        turn_id,
        conversation_id: Some(conversation_id),
        message_id: answer.id,
        key: key.clone(),
        part,
        parts: 2,
        content: format!("part {part} to {peer}"),
        buttons: Vec::new(),
        form: Form::default(),
        created_at: at(20),
    };
    TurnCommit {
        ownership,
        position: Position { stream: ownership.stream, sequence },
        turn_id,
        dedupe_id: format!("telegram:support:{turn_id}"),
        merged: Vec::new(),
        state: TerminalState::Answered,
        reason: None,
        attempts: 1,
        responder: Some("echo".to_owned()),
        conversation_id: Some(conversation_id),
        new_conversation,
        messages_read: None,
        deliveries: vec![part(0), part(1)],
        messages: vec![question, answer],
        key,
        metadata_patches: Vec::new(),
        workflow_state: None,
        handoff: false,
        actions: Vec::new(),
        suppress_if_taken: false,
        tokens: 0,
        journal: None,
        record: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        timings: TurnTimings { stream_wait_us: 1, lane_wait_us: 2, responder_us: 3 },
        received_at: at(10),
        started_at: at(11),
        committed_at: at(20),
    }
}

fn begun(attempt: u32) -> SendStart {
    SendStart::Begun { attempt, chat: ChatState::default() }
}

fn message(role: Role, author: Author, content: &str) -> NewMessage {
    NewMessage {
        id: Uuid::now_v7(),
        role,
        author,
        content: content.to_owned(),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: Some("p1".to_owned()),
        created_at: at(15),
    }
}

fn web_conversation(bot: &str, device: &str, created_at: Timestamp) -> NewConversation {
    let id = Uuid::now_v7();
    NewConversation {
        id,
        key: ConversationKey { channel: Channel::Web, bot: bot.into(), peer: Peer::Conversation(id) },
        platform: Platform::Web,
        device_id: Some(device.to_owned()),
        metadata: Map::new(),
        created_at,
    }
}

/// So many seconds, and some microseconds, into the test.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_790_000_000_123_456 + seconds * 1_000_000)
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(object) = value else { panic!("not an object") };
    object
}

fn committed(outcome: CommitOutcome) -> (Committed, Vec<PendingDelivery>) {
    let CommitOutcome::Committed { committed: receipt, deliveries: pending, .. } = outcome else {
        panic!("{outcome:?}")
    };
    (receipt, pending)
}

fn parts(pending: &[PendingDelivery]) -> Vec<OutboundPart> {
    pending.iter().map(|delivery| delivery.part().clone()).collect()
}
