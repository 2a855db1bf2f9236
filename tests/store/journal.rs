//! Journals of turns, records, actions that wait for a person's word, and turns whose conversation was taken over meanwhile.

use serde_json::json;
use turnwise::message::{ConversationStatus, Role, TerminalState};
use turnwise::store::{
    Action, ActionStatus, CommitOutcome, ConversationPatch, JournalEntry, Journaled, NewAction, StepKind, StepStatus,
};
use uuid::Uuid;

use super::{Database, at, committed, first_turn, next_turn, object};

on_both!(
    a_step_is_read_back_as_it_was_written_last,
    a_journal_is_fenced_with_its_partition,
    a_commit_ends_the_journal_and_keeps_the_record,
    an_action_is_decided_once,
    an_action_expires,
    actions_end_when_a_person_takes_over,
    a_taken_conversation_suppresses_what_was_decided_meanwhile,
);

async fn a_step_is_read_back_as_it_was_written_last(database: &Database) {
    let (store, owner, turn_id) = (&database.store, database.own(0).await, Uuid::now_v7());
    let model = JournalEntry { result: Some(json!({"text": "a\u{0}b"})), ..step("0.model", 0, StepStatus::Done) };
    let begun = step("0.tool.0", 1, StepStatus::Started);
    let ended = JournalEntry { status: StepStatus::Failed, result: Some(json!(null)), ..begun.clone() };
    for entry in [begun, model.clone(), ended.clone()] {
        assert_eq!(store.write_journal(turn_id, &owner, entry).await.unwrap(), Journaled::Written);
    }
    let model = JournalEntry { result: Some(json!({"text": "a\u{FFFD}b"})), ..model };
    let found = store.journal(turn_id).await.unwrap();
    assert_eq!(found.iter().map(|entry| &*entry.step).collect::<Vec<_>>(), ["0.model", "0.tool.0"]);
    assert_eq!(found[0], model);
    assert_eq!((found[1].status, found[1].kind), (ended.status, ended.kind));
    assert!(store.journal(Uuid::now_v7()).await.unwrap().is_empty());
}

async fn a_journal_is_fenced_with_its_partition(database: &Database) {
    let (store, former, turn_id) = (&database.store, database.own(0).await, Uuid::now_v7());
    let owner = database.own(0).await;
    let entry = step("0.tool.0", 0, StepStatus::Started);
    assert_eq!(store.write_journal(turn_id, &former, entry.clone()).await.unwrap(), Journaled::Fenced);
    assert!(store.journal(turn_id).await.unwrap().is_empty());
    assert_eq!(store.write_journal(turn_id, &owner, entry).await.unwrap(), Journaled::Written);
}

async fn a_commit_ends_the_journal_and_keeps_the_record(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let mut turn = first_turn(owner, 1, "ann");
    let other = Uuid::now_v7();
    for id in [turn.turn_id, other] {
        store.write_journal(id, &owner, step("0.model", 0, StepStatus::Done)).await.unwrap();
    }
    turn.journal = Some(turn.turn_id);
    turn.record = Some(json!({"steps": [1, 2]}));
    committed(store.commit(turn.clone()).await.unwrap());
    assert!(store.journal(turn.turn_id).await.unwrap().is_empty());
    assert_eq!(store.journal(other).await.unwrap().len(), 1);
    assert_eq!(store.turn_record(turn.turn_id).await.unwrap(), turn.record);
    assert_eq!(store.turn_record(other).await.unwrap(), None);
}

async fn an_action_is_decided_once(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let mut asking = first_turn(owner, 1, "ann");
    asking.actions = vec![action("one", 1_000), action("two", 1_000)];
    committed(store.commit(asking.clone()).await.unwrap());
    let conversation = asking.conversation_id.unwrap();
    let open = store.open_actions(conversation, Uuid::now_v7()).await.unwrap();
    assert_eq!(open.iter().map(|action| &*action.id).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!((open[0].turn_id, &*open[0].arguments), (asking.turn_id, "{\"id\": 1}"));

    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    for (turn, decision) in
        [(first, ActionStatus::Approved), (second, ActionStatus::Rejected), (first, ActionStatus::Rejected)]
    {
        let decided = store.decide_action("one", decision, turn, at(30)).await.unwrap().unwrap();
        assert_eq!((decided.status, decided.decided_turn_id), (ActionStatus::Approved, Some(first)));
    }
    let ids = |actions: Vec<Action>| actions.into_iter().map(|action| action.id).collect::<Vec<_>>();
    assert_eq!(ids(store.open_actions(conversation, second).await.unwrap()), ["two"]);
    assert_eq!(ids(store.open_actions(conversation, first).await.unwrap()), ["one", "two"]);
    assert_eq!(ids(store.actions_of_turn(conversation, asking.turn_id).await.unwrap()), ["one", "two"]);
    assert!(store.decide_action("none", ActionStatus::Approved, first, at(30)).await.unwrap().is_none());
}

async fn an_action_expires(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let mut asking = first_turn(owner, 1, "ann");
    asking.actions = vec![action("one", 100), action("two", 100)];
    committed(store.commit(asking).await.unwrap());
    let late = |id, decision| store.decide_action(id, decision, Uuid::now_v7(), at(100));
    assert_eq!(late("one", ActionStatus::Approved).await.unwrap().unwrap().status, ActionStatus::Expired);
    assert_eq!(late("two", ActionStatus::Cancelled).await.unwrap().unwrap().status, ActionStatus::Cancelled);
}

async fn actions_end_when_a_person_takes_over(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let (mut patched, mut handed_off) = (first_turn(owner, 1, "ann"), first_turn(owner, 2, "bob"));
    patched.actions = vec![action("one", 1_000)];
    handed_off.actions = vec![action("two", 1_000)];
    committed(store.commit(patched.clone()).await.unwrap());
    committed(store.commit(handed_off.clone()).await.unwrap());

    let patch = ConversationPatch { metadata: Some(object(json!({"seen": true}))), ..ConversationPatch::default() };
    store.patch_conversation(patched.conversation_id.unwrap(), &patch, at(30)).await.unwrap().unwrap();
    assert_eq!(store.action("one").await.unwrap().unwrap().status, ActionStatus::Pending);
    let patch = ConversationPatch { status: Some(ConversationStatus::Human), ..patch };
    store.patch_conversation(patched.conversation_id.unwrap(), &patch, at(30)).await.unwrap().unwrap();
    assert_eq!(store.action("one").await.unwrap().unwrap().status, ActionStatus::Cancelled);

    let mut giving = next_turn(&handed_off, 3);
    giving.handoff = true;
    committed(store.commit(giving).await.unwrap());
    assert_eq!(store.action("two").await.unwrap().unwrap().status, ActionStatus::Cancelled);
}

async fn a_taken_conversation_suppresses_what_was_decided_meanwhile(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let opening = first_turn(owner, 1, "ann");
    committed(store.commit(opening.clone()).await.unwrap());
    let conversation = opening.conversation_id.unwrap();
    let (mut suppressed, mut sent) = (next_turn(&opening, 2), next_turn(&opening, 3));
    for turn in [&mut suppressed, &mut sent] {
        turn.workflow_state = Some(json!({"node": "next"}));
        turn.actions = vec![action(&turn.turn_id.to_string(), 1_000)];
        turn.record = Some(json!({}));
    }
    suppressed.suppress_if_taken = true;
    let patch = ConversationPatch {
        status: Some(ConversationStatus::Human),
        assignee: Some(Some("eve".to_owned())),
        ..ConversationPatch::default()
    };
    store.patch_conversation(conversation, &patch, at(15)).await.unwrap().unwrap();

    let outcome = store.commit(suppressed.clone()).await.unwrap();
    let CommitOutcome::Committed { committed: receipt, deliveries, first_ordinal } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((receipt.state(), deliveries.len(), first_ordinal), (TerminalState::HandedOff, 0, Some(3)));
    assert_eq!(store.turn(suppressed.turn_id).await.unwrap().unwrap().state, TerminalState::HandedOff);
    assert!(store.deliveries_of_turn(suppressed.turn_id).await.unwrap().is_empty());
    assert!(store.open_actions(conversation, Uuid::now_v7()).await.unwrap().is_empty());
    assert!(store.turn_record(suppressed.turn_id).await.unwrap().is_some());
    let messages = store.recent_messages(conversation, 50).await.unwrap();
    assert_eq!(
        messages.iter().map(|message| message.role).collect::<Vec<_>>(),
        [Role::User, Role::Assistant, Role::User]
    );
    let now = store.conversation(conversation).await.unwrap().unwrap();
    assert_eq!((now.status, now.assignee.as_deref(), now.message_count), (ConversationStatus::Human, Some("eve"), 3));
    assert!(!now.metadata.contains_key("workflow_state"));

    let (receipt, deliveries) = committed(store.commit(sent).await.unwrap());
    assert_eq!((receipt.state(), deliveries.len()), (TerminalState::Answered, 2));
    let now = store.conversation(conversation).await.unwrap().unwrap();
    assert_eq!((now.status, now.assignee.as_deref()), (ConversationStatus::Human, Some("eve")));
}

fn step(name: &str, ordinal: u32, status: StepStatus) -> JournalEntry {
    JournalEntry {
        step: name.to_owned(),
        ordinal,
        kind: if name.contains("tool") { StepKind::Tool } else { StepKind::Model },
        status,
        request_hash: "00".repeat(32),
        request: None,
        result: None,
        started_at: at(1),
        ended_at: (status != StepStatus::Started).then(|| at(2)),
    }
}

fn action(id: &str, expires_after: i64) -> NewAction {
    NewAction {
        id: id.to_owned(),
        requester: Some("ann".to_owned()),
        tool: "refund".to_owned(),
        arguments: "{\"id\": 1}".to_owned(),
        expires_at: at(expires_after),
    }
}
