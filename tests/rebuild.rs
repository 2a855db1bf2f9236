//! A database made again from the streams alone: compared with the one that was lost, and worked on.
//!
//! Refuses to look inside: both databases are read by the same questions.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::process::Output;

use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use support::ledger::{Ledger, Message};
use support::process::{CONSOLE_TOKEN, Turnwise, WEB_KEY, quoted};
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment, Load, RESPONDER};
use support::tamper::execute;
use support::{PATIENCE, eventually, http_client};
use tempfile::TempDir;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// `turnwise rebuild --into URL --json`; it must succeed.
async fn rebuilt(deployment: &Deployment, url: &str) -> Value {
    let Output { status, stdout, stderr } = deployment.turnwise.run("rebuild", &["--into", url, "--json"]).await;
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(status.success() && stderr.contains("not rebuilt: "), "{status}: {stderr}");
    serde_json::from_slice(&stdout).unwrap()
}

/// `turnwise checksum` of the deployment's database against this one: its exit code, and the tables that differ.
async fn differing(deployment: &Deployment, url: &str) -> (Option<i32>, Value) {
    let Output { status, stdout, stderr } = deployment.turnwise.run("checksum", &["--against", url, "--json"]).await;
    let report: Value = serde_json::from_slice(&stdout)
        .unwrap_or_else(|error| panic!("no JSON ({error}): {}", String::from_utf8_lossy(&stderr)));
    (status.code(), report["differ"].clone())
}

/// What both databases must have in common.
async fn contents(ledger: &Ledger) -> (Vec<[String; 4]>, Vec<Vec<Message>>, Vec<support::ledger::Turn>) {
    let mut histories = ledger.histories().await;
    histories.sort_by(|left, right| left[0].content.cmp(&right[0].content));
    (ledger.conversations().await, histories, ledger.turns().await)
}

/// Goes on with the rebuilt database, and has each of these chats say and hear one thing more.
async fn go_on(deployment: &mut Deployment, url: &str, load: &Load) {
    let mut configuration = deployment.turnwise.configuration().clone();
    configuration.set("database", "url", &quoted(url));
    deployment.turnwise = Turnwise::spawn(configuration).await;
    deployment.ledger = Ledger::open(url);
    let next = load.per_chat + 1;
    for chat in load.chats.clone() {
        deployment.telegram.send(chat, &message(chat, next));
    }
    for chat in load.chats.clone() {
        let last = answer(chat, next);
        deployment.telegram.wait("the next answer", PATIENCE, |log| log.texts(chat).last() == Some(&last)).await;
        let texts = deployment.telegram.log(|log| log.texts(chat));
        assert_eq!(texts.len(), usize::try_from(next).unwrap(), "chat {chat} sees {texts:?}");
    }
    deployment.settled(load.total() + load.chats.clone().count(), PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

async fn a_lost_database_is_made_again(backend: Backend) {
    const APOLOGY: &str = "Sorry, I could not answer that.";
    let load = Load { chats: 11..21, per_chat: 6 };
    let mut deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "1").set(&format!("bots.{BOT}"), "failure_reply", &quoted(APOLOGY));
    })
    .await;
    // One from its first message on, one in the middle.
    for failing in [message(11, 1), message(12, 3)] {
        deployment.model.always_fail(&failing);
    }
    load.send(&deployment.telegram);
    deployment.settled(load.total(), PATIENCE).await;
    deployment.turnwise.terminate().await;

    let directory = TempDir::new().unwrap();
    let url = match &deployment.postgres {
        Some(cluster) => cluster.create_database("rebuilt").await,
        None => format!("sqlite://{}", directory.path().join("rebuilt.db").display()),
    };
    let report = rebuilt(&deployment, &url).await;
    assert_eq!((&report["messages"], &report["conversations"]), (&json!(60), &json!(10)), "{report:#}");
    assert_eq!(report["states"], json!({ "answered": 58, "dead_lettered": 2 }), "{report:#}");
    assert_eq!((&report["left"], &report["without_reply"]), (&json!(0), &json!(0)), "{report:#}");
    let ledger = Ledger::open(&url);
    assert_eq!(contents(&ledger).await, contents(&deployment.ledger).await);
    assert_eq!(differing(&deployment, &url).await, (Some(0), json!([])));
    // Whatever kind of database it is made again in.
    let other = format!("sqlite://{}", directory.path().join("another.db").display());
    rebuilt(&deployment, &other).await;
    assert_eq!(differing(&deployment, &other).await, (Some(0), json!([])));
    execute(&other, "UPDATE messages SET content = content || '.' WHERE ordinal = 2 AND turn_id IS NOT NULL").await;
    execute(&other, "DELETE FROM deliveries WHERE part = 0 AND content LIKE '%n=2'").await;
    assert_eq!(differing(&deployment, &other).await, (Some(1), json!(["messages", "deliveries"])));
    let delivered = async |ledger: &Ledger| {
        ledger.deliveries().await.into_iter().map(|delivery| delivery.content).collect::<Vec<_>>()
    };
    assert_eq!(delivered(&ledger).await, delivered(&deployment.ledger).await);
    assert!(ledger.deliveries().await.iter().all(|delivery| delivery.status == "uncertain"));
    drop(ledger);
    go_on(&mut deployment, &url, &load).await;
    deployment.model.log(|log| {
        let call = log.calls.iter().find(|call| call.message == message(15, 7)).unwrap();
        assert_eq!(call.history, (1..=6).map(|n| message(15, n)).collect::<Vec<_>>(), "what the model is told");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_database_is_made_again_on_sqlite() {
    a_lost_database_is_made_again(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_database_is_made_again_on_postgres() {
    a_lost_database_is_made_again(Backend::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collected_messages_are_in_the_turn_that_answered_them() {
    const CHAT: i64 = 31;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "burst", "\"collect\"");
    })
    .await;
    deployment.model.hold(&message(CHAT, 1));
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.model.wait_for_call(&message(CHAT, 1), PATIENCE).await;
    for n in 2..=5 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.telegram.all_taken(PATIENCE).await;
    deployment.model.release(&message(CHAT, 1));
    deployment.settled(5, PATIENCE).await;
    deployment.turnwise.terminate().await;
    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().join("rebuilt.db").display());
    let report = rebuilt(&deployment, &url).await;
    assert!(report["states"]["merged"].as_u64().unwrap() >= 3, "{report:#}");
    assert_eq!(contents(&Ledger::open(&url)).await, contents(&deployment.ledger).await);
    assert_eq!(differing(&deployment, &url).await, (Some(0), json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_conversation_is_followed_by_another() {
    const CHAT: i64 = 61;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    for n in 1..=4_u32 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
        deployment.telegram.wait_for_texts(CHAT, usize::try_from(n).unwrap(), PATIENCE).await;
        if n == 2 {
            let [id, ..] = deployment.ledger.conversations().await.remove(0);
            let url = deployment.turnwise.url(&format!("/v1/conversations/{id}"));
            let patch = http_client().patch(url).bearer_auth(CONSOLE_TOKEN).json(&json!({ "status": "closed" }));
            assert!(patch.send().await.unwrap().status().is_success());
        }
    }
    deployment.settled(4, PATIENCE).await;
    deployment.turnwise.terminate().await;
    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().join("rebuilt.db").display());
    let report = rebuilt(&deployment, &url).await;
    assert_eq!(report["conversations"], 2, "{report:#}");
    assert_eq!(contents(&Ledger::open(&url)).await, contents(&deployment.ledger).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_of_the_chat_api_keep_their_ids_and_what_agents_said() {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.web_bot("shop", RESPONDER);
    })
    .await;
    let post = async |path: &str, body: Value| {
        let request = http_client().post(deployment.turnwise.url(path)).bearer_auth(WEB_KEY).json(&body);
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.json::<Value>().await.unwrap()
    };
    let long = "many words of one answer ".repeat(400);
    deployment.model.answer_with("tell me more", &long);
    let mut conversation = Value::Null;
    for text in ["hello", "tell me more"] {
        let said = json!({ "bot": "shop", "device_id": "phone", "message": text, "metadata": { "locale": "de" } });
        conversation = post("/v1/chat", said).await["conversation_id"].clone();
    }
    let path = format!("/v1/conversations/{}/messages", conversation.as_str().unwrap());
    post(&path, json!({ "content": "a person speaking" })).await;
    deployment.settled(3, PATIENCE).await;
    deployment.turnwise.terminate().await;
    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().join("rebuilt.db").display());
    let report = rebuilt(&deployment, &url).await;
    assert_eq!(report["states"], json!({ "answered": 3 }), "{report:#}");
    assert_eq!(contents(&Ledger::open(&url)).await, contents(&deployment.ledger).await);
    assert_eq!(differing(&deployment, &url).await, (Some(0), json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_ended_is_left_to_run_and_a_used_database_refused() {
    const CHAT: i64 = 41;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 3 };
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    deployment.model.hold(&message(CHAT, 2));
    load.send(&deployment.telegram);
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    deployment.telegram.all_taken(PATIENCE).await;
    deployment.model.wait_for_call(&message(CHAT, 2), PATIENCE).await;
    deployment.turnwise.kill9().await;

    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().join("rebuilt.db").display());
    let used = deployment.turnwise.configuration().get("database", "url").trim_matches('"').to_owned();
    let before = deployment.ledger.row_counts().await;
    for (into, words) in [
        (used.as_str(), "not empty"),
        ("mysql://somewhere/db", "neither sqlite:// nor postgres://"),
        ("sqlite:///nowhere/at/all.db", "does not exist"),
        ("turnwise.db", "neither sqlite:// nor postgres://"),
    ] {
        let Output { status, stdout, stderr } = deployment.turnwise.run("rebuild", &["--into", into]).await;
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), stdout.as_slice()), (Some(2), &b""[..]), "{into}: {stderr}");
        assert!(stderr.contains(words), "{into}: {stderr}");
    }
    assert_eq!(deployment.ledger.row_counts().await, before, "rows of the used database");

    let report = rebuilt(&deployment, &url).await;
    assert_eq!((&report["left"], &report["states"]), (&json!(2), &json!({ "answered": 1 })), "{report:#}");
    deployment.model.release(&message(CHAT, 2));
    go_on(&mut deployment, &url, &load).await;
    let history = deployment.ledger.history_with(&message(CHAT, 1)).await;
    let contents: Vec<_> = history.into_iter().map(|row| row.content).collect();
    let expected: Vec<_> = (1..=4).flat_map(|n| [message(CHAT, n), answer(CHAT, n)]).collect();
    assert_eq!(contents, expected, "the history");
    eventually("every answer", PATIENCE, async || {
        deployment.telegram.log(|log| (log.texts(CHAT).len() == 4).then_some(()))
    })
    .await;
}

/// A held message is acknowledged long before it ends, so what the consumers say of it is no proof.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_behind_a_pause_is_answered_once_after_a_rebuild() {
    const CHAT: i64 = 51;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 5 };
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    let paused = deployment.turnwise.run("holds pause", &["--bot", BOT]).await;
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    // A process that starts anew knows of it before it takes a message; one that ends writes down how far it is.
    deployment.turnwise.terminate().await;
    deployment.turnwise.start_again().await;
    load.send(&deployment.telegram);
    deployment.telegram.all_taken(PATIENCE).await;
    eventually("everything to be acknowledged", PATIENCE, async || {
        let stream = deployment.nats.jetstream().await.get_stream("turnwise_in").await.unwrap();
        let consumers: Vec<_> = stream.consumers().try_collect().await.unwrap();
        let acknowledged = consumers.iter().map(|consumer| consumer.ack_floor.stream_sequence).max();
        (acknowledged == Some(load.total() as u64)).then_some(())
    })
    .await;
    deployment.turnwise.kill9().await;

    let directory = TempDir::new().unwrap();
    let url = format!("sqlite://{}", directory.path().join("rebuilt.db").display());
    let report = rebuilt(&deployment, &url).await;
    assert_eq!((&report["left"], &report["without_reply"]), (&json!(5), &json!(0)), "{report:#}");
    go_on(&mut deployment, &url, &load).await;
    let (answered, expected) = (deployment.telegram.log(|log| log.texts(CHAT)), 1..=6);
    assert_eq!(answered, expected.map(|n| answer(CHAT, n)).collect::<Vec<_>>(), "in order, each once");
}
