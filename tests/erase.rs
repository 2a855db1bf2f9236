//! `turnwise erase`: one person's data goes, everywhere and for good, beside a deployment that runs; nobody else's does.
//!
//! Refuses to look into the process: what counts is what the database and the streams hold, what the chats show, and what the
//! audit and a rebuild make of it.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::process::Output;

use async_nats::jetstream::stream::Stream;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use support::ledger::Ledger;
use support::process::CONSOLE_TOKEN;
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment};
use support::{PATIENCE, eventually, http_client};
use tempfile::TempDir;

#[path = "support/contents.rs"]
mod contents;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const ANN: i64 = 71;
const BOB: i64 = 72;
const STREAMS: [&str; 3] = ["turnwise_in", "turnwise_out", "turnwise_dead"];

/// `turnwise erase --json` of a person: exit code, what it printed, standard error.
async fn erase(deployment: &Deployment, person: &str, more: &[&str]) -> (Option<i32>, Value, String) {
    let arguments = [&["--bot", BOT, "--person", person, "--json"], more].concat();
    let Output { status, stdout, stderr } = deployment.turnwise.run("erase", &arguments).await;
    let printed = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    (status.code(), printed, String::from_utf8_lossy(&stderr).into_owned())
}

/// The subjects on the streams, and how many messages each has.
async fn subjects(deployment: &Deployment) -> Vec<String> {
    let mut subjects = Vec::new();
    for name in STREAMS {
        let stream: Stream = deployment.nats.jetstream().await.get_stream(name).await.unwrap();
        let found: Vec<_> = stream.info_with_subjects(">").await.unwrap().try_collect().await.unwrap();
        subjects.extend(found.into_iter().map(|(subject, count)| format!("{subject} {count}")));
    }
    subjects.sort_unstable();
    subjects
}

async fn one_person_goes(backend: Backend) {
    let mut deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "1");
    })
    .await;
    deployment.model.always_fail(&message(ANN, 3));
    for n in 1..=4 {
        deployment.telegram.send(ANN, &message(ANN, n));
        deployment.telegram.send(BOB, &message(BOB, n));
    }
    deployment.settled(8, PATIENCE).await;
    // One turn runs, another waits behind it.
    deployment.model.hold(&message(ANN, 5));
    deployment.telegram.send(ANN, &message(ANN, 5));
    deployment.model.wait_for_call(&message(ANN, 5), PATIENCE).await;
    deployment.telegram.send(ANN, &message(ANN, 6));
    deployment.telegram.all_taken(PATIENCE).await;
    // What operators do to her chat names her, too.
    let chat = format!("telegram.{BOT}.user-{ANN}");
    let paused = deployment.turnwise.run("holds pause", &["--conversation", &chat]).await;
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    for conversation in [chat, format!("user-{ANN}")] {
        let mut which = json!({ "for_reason": "none", "conversation": conversation, "reason": "a test" });
        let discard = async |which: &Value| {
            let discard = http_client().post(deployment.turnwise.url("/console/dead-letters/discard")).json(which);
            let answer = discard.bearer_auth(CONSOLE_TOKEN).header("Accept", "application/json").send().await.unwrap();
            assert!(answer.status().is_success(), "a filter that nothing matches");
            answer.json::<Value>().await.unwrap()
        };
        let counted = discard(&which).await;
        which["until"] = counted["until"].clone();
        which["confirmed"] = json!("yes");
        discard(&which).await;
    }
    let before = (contents::contents(deployment.database_url()).await["messages"].clone(), subjects(&deployment).await);

    let person = ANN.to_string();
    let (code, extent, stderr) = erase(&deployment, &person, &["--dry-run"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(extent["database"]["messages"], 6, "{extent:#}");
    assert_eq!((&extent["inbound"], &extent["outbound"], &extent["dead_letters"]), (&json!(6), &json!(3), &json!(1)));
    assert_eq!(extent["database"]["unanswered"], 2, "{extent:#}");
    let (code, _, stderr) = erase(&deployment, &person, &[]).await;
    assert!(code == Some(2) && stderr.contains("nobody can be asked"), "{stderr}");
    let after = (contents::contents(deployment.database_url()).await["messages"].clone(), subjects(&deployment).await);
    assert_eq!(after, before, "nothing without a yes");

    let (code, erased, stderr) = erase(&deployment, &person, &["--yes", "--reason", "was asked to"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    for kind in ["inbound", "outbound", "dead_letters"] {
        assert_eq!(erased[kind], extent[kind], "{kind}: {erased:#}");
    }
    assert_eq!(erased["database"]["unanswered"], 2, "{erased:#}");
    assert!(!stderr.contains(&format!("user-{person}")), "{stderr}");

    // The turn that ran finds that its message has ended.
    deployment.model.release(&message(ANN, 5));
    deployment.telegram.send(BOB, &message(BOB, 5));
    deployment.settled(11, PATIENCE).await;
    deployment.telegram.wait_for_texts(BOB, 5, PATIENCE).await;
    eventually("everything to be read", PATIENCE, async || {
        (deployment.turnwise.audit().await.0 == Some(0)).then_some(())
    })
    .await;
    let texts = deployment.telegram.log(|log| log.texts(ANN));
    assert!(!texts.contains(&answer(ANN, 5)) && !texts.contains(&answer(ANN, 6)), "{texts:?}");
    nothing_of_ann(&deployment, deployment.database_url()).await;
    let (mut actions, a_test) = (deployment.ledger.operator_actions().await, || Some("a test".to_owned()));
    actions.sort();
    let discarded = ("discard_dead_letters".to_owned(), "reason none, conversation user-erased".to_owned(), a_test());
    let erased = ("erase_person".to_owned(), BOT.to_owned(), Some("was asked to".to_owned()));
    let paused = ("pause_turns".to_owned(), "conversation user-erased".to_owned(), None);
    assert_eq!(actions, [discarded.clone(), discarded, erased, paused]);

    // Nothing comes back: not by a redelivery, not by a rebuild, and the next message begins anew.
    deployment.turnwise.kill9().await;
    deployment.turnwise.start_again().await;
    deployment.telegram.send(BOB, &message(BOB, 6));
    deployment.settled(12, PATIENCE).await;
    nothing_of_ann(&deployment, deployment.database_url()).await;
    let (code, nothing, stderr) = erase(&deployment, &person, &["--yes"]).await;
    assert_eq!((code, &nothing["inbound"], &nothing["database"]["turns"]), (Some(0), &json!(0), &json!(0)), "{stderr}");
    let directory = TempDir::new().unwrap();
    let rebuilt = format!("sqlite://{}", directory.path().join("rebuilt.db").display());
    deployment.telegram.send(ANN, &message(ANN, 7));
    deployment.settled(13, PATIENCE).await;
    let history = deployment.ledger.history_with(&message(ANN, 7)).await;
    assert_eq!(history.len(), 2, "{history:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
    let output = deployment.turnwise.run("rebuild", &["--into", &rebuilt]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let history = Ledger::open(&rebuilt).history_with(&message(ANN, 7)).await;
    assert_eq!(history.len(), 2, "{history:?}");
    let histories = Ledger::open(&rebuilt).histories().await;
    assert_eq!(histories.len(), 2, "what ann said before does not come back");
}

/// Neither the database nor a stream knows of any message of hers, nor of her.
async fn nothing_of_ann(deployment: &Deployment, url: &str) {
    nothing_of_ann_with(deployment, url, 2).await;
}

/// The same where the streams have so many subjects of somebody else.
async fn nothing_of_ann_with(deployment: &Deployment, url: &str, others: usize) {
    let (rows, subjects) = (contents::rows(url).await, subjects(deployment).await);
    let of_ann = |text: &&String| text.contains(&format!("chat={ANN} ")) || text.contains(&format!("user-{ANN}"));
    assert_eq!(subjects.iter().filter(of_ann).collect::<Vec<_>>(), Vec::<&String>::new(), "on the streams");
    for (table, rows) in rows {
        let found: Vec<_> = rows.iter().filter(of_ann).collect();
        assert!(found.is_empty(), "{table}: {found:#?}");
    }
    let of_bob = subjects.iter().filter(|subject| subject.contains(&format!("user-{BOB}"))).count();
    assert_eq!(of_bob, others, "somebody else's messages stay: {subjects:?}");
}

/// Chats with business accounts are the person's, too, whatever the account; also one of which no turn has ended yet.
async fn business_chats_go(backend: Backend) {
    let mut deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "business", "true");
    })
    .await;
    let say = |chat: i64, connection: &str, n: u32| {
        let mut content = deployment.telegram.update(chat, &message(chat, n))["message"].clone();
        content["business_connection_id"] = json!(connection);
        deployment.telegram.happen(chat, "business_message", &content);
    };
    deployment.model.hold(&message(ANN, 2));
    say(ANN, "shop", 1);
    say(BOB, "shop", 1);
    deployment.telegram.send(BOB, &message(BOB, 2));
    deployment.settled(3, PATIENCE).await;
    say(ANN, "other_shop", 2);
    deployment.model.wait_for_call(&message(ANN, 2), PATIENCE).await;
    let (code, erased, stderr) = erase(&deployment, &ANN.to_string(), &["--yes"]).await;
    assert_eq!((code, &erased["inbound"]), (Some(0), &json!(2)), "{stderr}");
    let rows = &erased["database"];
    assert_eq!((&rows["conversations"], &rows["unanswered"]), (&json!(1), &json!(1)), "{erased:#}");
    deployment.model.release(&message(ANN, 2));
    deployment.settled(4, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
    assert_eq!(deployment.telegram.log(|log| log.texts(ANN)), [answer(ANN, 1)]);
    let histories = deployment.ledger.histories().await;
    assert_eq!(histories.len(), 2, "{histories:?}");
    nothing_of_ann_with(&deployment, deployment.database_url(), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn business_chats_go_on_sqlite() {
    business_chats_go(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn business_chats_go_on_postgres() {
    business_chats_go(Backend::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_goes_on_sqlite() {
    one_person_goes(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_goes_on_postgres() {
    one_person_goes(Backend::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_usage_is_said_before_anything_is_done() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    for (arguments, words) in [
        (&["--bot", "nobody", "--person", "1", "--yes"][..], "there is no bot \"nobody\"; there is support"),
        (&["--bot", BOT, "--yes"], "--person"),
        (&["--bot", BOT, "--person", " ", "--yes"], "--person"),
    ] {
        let Output { status, stderr, .. } = deployment.turnwise.run("erase", arguments).await;
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(status.code() == Some(2) && stderr.contains(words), "{arguments:?}: {stderr}");
    }
}
