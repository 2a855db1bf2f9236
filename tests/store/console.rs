//! What the operators' console keeps: holds, jobs, and how a person's action went.

use turnwise::message::{DeliveryStatus, Timestamp};
use turnwise::store::{
    ConversationSearch, Hold, HoldScope, Job, JobState, JobVerb, OperatorAction, OperatorVerb, RecordedAction,
};
use uuid::Uuid;

use super::{Database, at};

on_both!(
    what_is_held_stays_held_until_it_is_let_go,
    workers_know_every_hold,
    a_job_says_how_far_it_is,
    an_action_says_how_it_went
);

async fn what_is_held_stays_held_until_it_is_let_go(database: &Database) {
    let store = &database.store;
    let hold = |scope, target: &str, reason: &str| Hold {
        scope,
        target: target.to_owned(),
        actor: Some("operator (Kim)".to_owned()),
        reason: Some(reason.to_owned()),
        created_at: at(1),
    };
    let bot = hold(HoldScope::Bot, "7", "first");
    store.put_hold(&bot).await.unwrap();
    store.put_hold(&hold(HoldScope::Bot, "7", "second")).await.unwrap();
    let partition = hold(HoldScope::Partition, "7", "another of the same name");
    store.put_hold(&partition).await.unwrap();
    let held = store.holds().await.unwrap();
    assert!(held.len() == 2 && held.contains(&bot) && held.contains(&partition), "{held:?}");
    assert!(store.remove_hold(HoldScope::Bot, "7").await.unwrap());
    assert!(!store.remove_hold(HoldScope::Bot, "7").await.unwrap());
    assert_eq!(store.holds().await.unwrap(), [partition]);
}

/// More than a page of any list has.
const MANY: usize = 1_001;

async fn workers_know_every_hold(database: &Database) {
    let store = &database.store;
    let hold =
        |scope, target: String, seconds| Hold { scope, target, actor: None, reason: None, created_at: at(seconds) };
    for user in 0..MANY {
        let conversation = hold(HoldScope::Conversation, format!("telegram.support.user-{user}"), 1);
        store.put_hold(&conversation).await.unwrap();
    }
    let bot = hold(HoldScope::Bot, "support".to_owned(), 2);
    store.put_hold(&bot).await.unwrap();
    let held = store.holds().await.unwrap();
    assert_eq!((held.len(), &held[0]), (MANY + 1, &bot), "the widest first, though it is the newest");
}

async fn a_job_says_how_far_it_is(database: &Database) {
    let store = &database.store;
    let begun = Job {
        id: Uuid::now_v7(),
        verb: JobVerb::Redrive,
        selection: "bot support\u{0}".to_owned(),
        actor: None,
        reason: None,
        state: JobState::Running,
        total: 7,
        seen: 0,
        outcome: None,
        created_at: at(1),
        signed_at: at(1),
        ended_at: None,
    };
    store.create_job(&begun).await.unwrap();
    let ended = Job {
        state: JobState::Done,
        seen: 7,
        outcome: Some("7 redriven".to_owned()),
        signed_at: at(2),
        ended_at: Some(at(2)),
        ..begun
    };
    store.update_job(&ended).await.unwrap();
    let later = Job { id: Uuid::now_v7(), state: JobState::Running, ended_at: None, outcome: None, ..ended.clone() };
    store.create_job(&later).await.unwrap();
    let jobs = store.jobs(10).await.unwrap();
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    assert_eq!(ids, [later.id, ended.id], "the newest first");
    assert_eq!(jobs[1], Job { selection: jobs[1].selection.clone(), ..ended });
}

async fn an_action_says_how_it_went(database: &Database) {
    let store = &database.store;
    let action = |target: &str, at: Timestamp| OperatorAction {
        verb: OperatorVerb::PauseTurns,
        target: target.to_owned(),
        actor: Some("operator".to_owned()),
        reason: None,
        at,
    };
    let first = store.begin_operator_action(&action("bot a", at(1))).await.unwrap();
    let second = store.begin_operator_action(&action("bot b", at(2))).await.unwrap();
    store.end_operator_action(first, "done").await.unwrap();
    let told = |row: &RecordedAction| (row.id, row.verb.clone(), row.target.clone(), row.result.clone());
    let verb = "pause_turns".to_owned();
    let rows = store.operator_actions(None, 10).await.unwrap();
    let newest = (second, verb.clone(), "bot b".to_owned(), None);
    let oldest = (first, verb, "bot a".to_owned(), Some("done".to_owned()));
    assert_eq!(rows.iter().map(told).collect::<Vec<_>>(), [newest, oldest.clone()]);
    let before = store.operator_actions(Some((rows[0].created_at, rows[0].id)), 10).await.unwrap();
    assert_eq!(before.iter().map(told).collect::<Vec<_>>(), [oldest]);

    // Reads of what is not there.
    for status in DeliveryStatus::ALL {
        assert_eq!(store.deliveries_in(*status, 10).await.unwrap(), []);
    }
    let search = ConversationSearch {
        peers: Some(vec!["user-1".to_owned()]),
        bot: Some("support".to_owned()),
        device_id: Some("d".to_owned()),
        assignee: Some("ann".to_owned()),
        status: Some(turnwise::message::ConversationStatus::Human),
        limit: 10,
    };
    assert_eq!(store.search_conversations(&search).await.unwrap(), []);
    assert_eq!(store.messages_of_turns(&[Uuid::nil()]).await.unwrap(), []);
}
