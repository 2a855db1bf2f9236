//! Dead letters through the real binary: listed, shown, redriven and discarded, also twice and with crashes in between.
//!
//! Refuses to look inside: what was done is seen by what chats, the streams, the database and the audit say.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeMap;

use async_nats::jetstream::stream::Stream;
use serde_json::{Value, json};
use support::process::{BINARY, ENVIRONMENT, NAMESPACE};
use support::responder::{Behaviour, answer, message};
use support::scenario::{BOT, Backend, Deployment, Load};
use support::tamper::execute;
use support::{PATIENCE, eventually};
use tokio::process::Command;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

fn dead_letters(deployment: &Deployment, command: &str, arguments: &[&str]) -> Command {
    let mut process = Command::new(BINARY);
    process.args(["dead-letters", command, "--config"]).arg(deployment.turnwise.configuration_file()).args(arguments);
    process.envs(ENVIRONMENT.iter().copied()).env_remove("RUST_LOG").kill_on_drop(true);
    process.stdin(std::process::Stdio::null());
    process
}

async fn run(deployment: &Deployment, command: &str, arguments: &[&str]) -> Said {
    let output = tokio::time::timeout(PATIENCE, dead_letters(deployment, command, arguments).output());
    let output = output.await.unwrap_or_else(|_| panic!("{command} {arguments:?} does not end")).unwrap();
    Said {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn dead_stream(deployment: &Deployment) -> Stream {
    deployment.nats.jetstream().await.get_stream(format!("{NAMESPACE}_dead")).await.unwrap()
}

/// Letters on the dead stream and messages ever on the inbound one: what nothing but a redrive or a discard changes.
async fn counts(deployment: &Deployment) -> (u64, u64) {
    let dead = dead_stream(deployment).await.cached_info().state.messages;
    (dead, deployment.nats.last_sequence(&format!("{NAMESPACE}_in")).await)
}

/// A deployment in which these messages were given up, after everything else was answered.
async fn given_up(failing: &[String], load: &Load, partitions: u16) -> Deployment {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "2").set("nats", "partitions", &partitions.to_string()).set(
            "nats",
            "duplicate_window",
            "\"1s\"",
        );
    })
    .await;
    for message in failing {
        deployment.model.always_fail(message);
    }
    load.send(&deployment.telegram);
    deployment.settled(load.total(), PATIENCE).await;
    eventually("every dead letter", PATIENCE, async || {
        (counts(&deployment).await.0 == failing.len() as u64).then_some(())
    })
    .await;
    deployment
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_given_up_is_shown_mended_and_answered_once() {
    const CHAT: i64 = 31;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 3 };
    let mut deployment = given_up(&[message(CHAT, 2)], &load, 8).await;
    let peer = format!("user-{CHAT}");

    let listed = run(&deployment, "list", &["--json"]).await.json();
    let letter = &listed["dead_letters"][0];
    assert_eq!((&listed["matching"], &letter["id"]), (&json!(1), &json!(1)), "{listed:#}");
    assert_eq!((&letter["bot"], &letter["conversation"]), (&json!(BOT), &json!(peer)), "{listed:#}");
    assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("responder"), &json!(2)), "{listed:#}");
    let list = run(&deployment, "list", &[]).await;
    assert_eq!((list.code, list.stdout.lines().count()), (0, 2), "{list:?}");
    assert!(list.stdout.contains(&peer) && !list.stdout.contains("n=2"), "no text in the list: {list:?}");

    let shown = run(&deployment, "show", &["1", "--json"]).await.json();
    assert_eq!(shown["payload"]["event"]["text"], message(CHAT, 2), "{shown:#}");
    assert_eq!((&shown["turn"]["state"], &shown["redriven"]), (&json!("dead_lettered"), &Value::Null), "{shown:#}");
    assert!(shown["error"].as_str().unwrap().contains("500"), "{shown:#}");
    let show = run(&deployment, "show", &["1"]).await;
    let trace = shown["traceparent"].as_str().unwrap().split('-').nth(1).unwrap();
    assert!(show.stdout.contains(trace) && show.stdout.contains(&message(CHAT, 2)), "{show:?}");

    // Nothing happens unasked.
    let before = counts(&deployment).await;
    let unasked = run(&deployment, "redrive", &["1"]).await;
    assert_eq!(unasked.code, 2, "{unasked:?}");
    assert!(unasked.stderr.contains("--yes"), "{unasked:?}");
    let dry = run(&deployment, "redrive", &["--all", "--dry-run"]).await;
    let order = format!("telegram.{BOT}.{peer}: 1, behind 4 messages, the last of ");
    assert!(dry.code == 0 && dry.stderr.contains(&order), "{dry:?}");
    assert_eq!(counts(&deployment).await, before, "after a dry run");

    deployment.model.mend();
    let redriven = run(&deployment, "redrive", &["1", "--yes", "--json"]).await;
    assert_eq!((redriven.code, &redriven.json()["redriven"]), (0, &json!(1)), "{redriven:?}");
    let texts = deployment.telegram.wait_for_texts(CHAT, 3, PATIENCE).await;
    assert_eq!(texts, [1, 3, 2].map(|n| answer(CHAT, n)), "what the chat sees");
    deployment.settled(4, PATIENCE).await;
    let history = deployment.ledger.history_with(&message(CHAT, 2)).await;
    let contents: Vec<_> = history.into_iter().map(|row| row.content).collect();
    assert_eq!(contents, [1, 3, 2].map(|n| [message(CHAT, n), answer(CHAT, n)]).concat(), "the history");

    let after = counts(&deployment).await;
    assert_eq!(after, (0, before.1 + 1));
    for arguments in [&["1", "--yes"][..], &["--all", "--yes"]] {
        run(&deployment, "redrive", arguments).await;
    }
    let again = run(&deployment, "redrive", &["1", "--yes"]).await;
    assert!(again.code == 1 && again.stderr.contains("there is no dead letter 1"), "{again:?}");
    assert_eq!(counts(&deployment).await, after, "after redriving again");
    let actions = deployment.ledger.operator_actions().await;
    assert_eq!(actions.len(), 1, "{actions:?}");
    assert_eq!((actions[0].0.as_str(), &actions[0].2), ("redrive_dead_letter", &None), "{actions:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_comes_back_is_not_answered_again() {
    const CHAT: i64 = 41;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 1 };
    let mut deployment = given_up(&[message(CHAT, 1)], &load, 8).await;
    let letter = dead_stream(&deployment).await.get_raw_message(1).await.unwrap();

    // Given up again after the first redrive, it is a dead letter of its own.
    let first = run(&deployment, "redrive", &["--all", "--yes", "--json"]).await.json();
    assert_eq!(first["redriven"], 1, "{first:#}");
    deployment.settled(2, PATIENCE).await;
    let second = eventually("the second dead letter", PATIENCE, async || {
        let listed = run(&deployment, "list", &["--json"]).await.json();
        listed["dead_letters"][0]["id"].as_u64()
    })
    .await;
    deployment.model.mend();
    // As after a crash between publish and removal, past the stream's own window: the first one lies there once more.
    let jetstream = deployment.nats.jetstream().await;
    eventually("the dead stream to take it again", PATIENCE, async || {
        let (subject, headers) = (letter.subject.clone(), letter.headers.clone());
        let published = jetstream.publish_with_headers(subject, headers, letter.payload.clone()).await.unwrap();
        (!published.await.unwrap().duplicate).then_some(())
    })
    .await;
    let redriven = run(&deployment, "redrive", &["--all", "--yes", "--json"]).await.json();
    assert_eq!((&redriven["redriven"], &redriven["already_redriven"]), (&json!(1), &json!(1)), "{redriven:#}");
    assert_eq!(redriven["listed"][0]["id"], second, "{redriven:#}");
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, [answer(CHAT, 1)]);
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    let texts = deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    assert_eq!(texts, [1, 2].map(|n| answer(CHAT, n)), "what the chat sees");
    deployment.settled(4, PATIENCE).await;
    assert_eq!(counts(&deployment).await, (0, 4));
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// As after a restored stream: the message is read again long after, and has its letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_read_again_gets_no_second_letter() {
    const CHAT: i64 = 45;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 2 };
    let mut deployment = given_up(&[message(CHAT, 1), message(CHAT, 2)], &load, 1).await;
    deployment.turnwise.terminate().await;
    let (jetstream, dead) = (deployment.nats.jetstream().await, dead_stream(&deployment).await);
    // Once the stream has forgotten this one, it has forgotten those before.
    let probes = eventually("the dead stream to forget", PATIENCE, async || {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", "probe");
        let subject = format!("{NAMESPACE}.dead.0.web.none.user-1");
        let published = jetstream.publish_with_headers(subject, headers, "".into()).await.unwrap().await.unwrap();
        (published.sequence > 3).then_some([3, published.sequence])
    })
    .await;
    for probe in probes {
        dead.delete_message(probe).await.unwrap();
    }
    execute(deployment.database_url(), "UPDATE partitions SET checkpoint = 0").await;
    // One of the two was not published before a crash.
    dead.delete_message(2).await.unwrap();
    deployment.model.mend();
    deployment.turnwise.start_again().await;
    deployment.telegram.send(CHAT, &message(CHAT, 3));
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, [answer(CHAT, 3)]);
    let listed = run(&deployment, "list", &["--json"]).await.json();
    assert_eq!(listed["matching"], 2, "{listed:#}");
    let redriven = run(&deployment, "redrive", &["--all", "--yes", "--json"]).await.json();
    assert_eq!((&redriven["redriven"], &redriven["already_redriven"]), (&json!(2), &json!(0)), "{redriven:#}");
    let texts = deployment.telegram.wait_for_texts(CHAT, 3, PATIENCE).await;
    assert_eq!(texts, [3, 1, 2].map(|n| answer(CHAT, n)));
    deployment.settled(5, PATIENCE).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_letter_stays_away_after_a_crash() {
    const SLOW: i64 = 51;
    const CHAT: i64 = 52;
    let load = Load { chats: CHAT..CHAT + 1, per_chat: 2 };
    let failing = [message(CHAT, 1), message(CHAT, 2)];
    // One partition, and a turn that does not end before them: after a crash they come again, behind it.
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("worker", "max_attempts", "1").set("nats", "partitions", "1");
    })
    .await;
    deployment.model.hold(&message(SLOW, 1));
    deployment.telegram.send(SLOW, &message(SLOW, 1));
    deployment.model.wait_for_call(&message(SLOW, 1), PATIENCE).await;
    failing.iter().for_each(|message| deployment.model.always_fail(message));
    load.send(&deployment.telegram);
    deployment.settled(2, PATIENCE).await;
    eventually("the dead letters", PATIENCE, async || (counts(&deployment).await.0 == 2).then_some(())).await;

    for (arguments, words) in [
        (&["--all", "--yes"][..], "--reason <TEXT>"),
        (&["--all", "--yes", "--reason", " "], "say why"),
        (&["--yes", "--reason", "spam"], "--all"),
        (&["--all", "--reason", "spam"], "--yes"),
    ] {
        let said = run(&deployment, "discard", arguments).await;
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?} does not say {words:?}: {said:?}");
    }
    assert_eq!(counts(&deployment).await.0, 2, "after nothing but refusals");
    let peer = format!("user-{CHAT}");
    let reason = ["--reason", "spam of Friday", "--yes"];
    let other = [&["--conversation", &peer, "--given-up-for", "other"][..], &reason].concat();
    assert_eq!(run(&deployment, "discard", &other).await.code, 0);
    assert_eq!(counts(&deployment).await.0, 2, "after discarding what does not match");
    let said = run(&deployment, "discard", &[&["--conversation", &peer][..], &reason].concat()).await;
    assert!(said.code == 0 && said.stderr.contains("2 dead letters discarded: spam of Friday"), "{said:?}");
    let actions = deployment.ledger.operator_actions().await;
    assert_eq!(actions.len(), 2, "{actions:?}");
    for (verb, _, reason) in &actions {
        assert_eq!((verb.as_str(), reason.as_deref()), ("discard_dead_letter", Some("spam of Friday")));
    }

    // The stream's window knows only what still lies on the stream after this.
    deployment.turnwise.kill9().await;
    deployment.nats.kill9().await;
    deployment.nats.start_again().await;
    deployment.model.release(&message(SLOW, 1));
    deployment.turnwise.start_again().await;
    assert_eq!(deployment.telegram.wait_for_texts(SLOW, 1, PATIENCE).await, [answer(SLOW, 1)]);
    deployment.telegram.send(CHAT, &message(CHAT, 3));
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, [answer(CHAT, 3)]);
    deployment.settled(4, PATIENCE).await;
    assert_eq!(counts(&deployment).await.0, 0, "dead letters that came back");
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!((states["answered"], states["dead_lettered"]), (2, 2), "the ledger: {states:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_that_is_killed_is_finished_by_the_next_one() {
    let load = Load { chats: 61..67, per_chat: 4 };
    let failing: Vec<_> = load.chats.clone().flat_map(|chat| (1..=4).map(move |n| message(chat, n))).collect();
    let mut deployment = given_up(&failing, &load, 8).await;
    // A new process does not remember that the model server failed ten times in a row.
    deployment.turnwise.terminate().await;
    deployment.model.mend();
    let (dead, inbound) = counts(&deployment).await;
    assert_eq!((dead, inbound), (24, 24));
    let mut killed = dead_letters(&deployment, "redrive", &["--all", "--yes"]);
    let mut killed = killed.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    eventually("the first messages to come again", PATIENCE, async || {
        (counts(&deployment).await.1 > inbound).then_some(())
    })
    .await;
    // It may be done already: what must hold afterwards is the same.
    killed.kill().await.unwrap();
    let said = run(&deployment, "redrive", &["--all", "--yes", "--json"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    deployment.turnwise.start_again().await;
    deployment.settled(48, PATIENCE).await;
    let seen = deployment.telegram.log(support::telegram::Log::texts_by_chat);
    let expected: BTreeMap<_, Vec<_>> =
        load.chats.clone().map(|chat| (chat, (1..=4).map(|n| answer(chat, n)).collect())).collect();
    assert_eq!(seen, expected, "what the chats see");
    assert_eq!(counts(&deployment).await.0, 0);
    let states = deployment.ledger.turns_by_state().await;
    assert_eq!((states["answered"], states["dead_lettered"]), (24, 24), "the ledger: {states:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_letters_than_a_page_are_worked_off_in_order() {
    const COUNT: u64 = 1_203;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    // Bodies that nobody can read: given up again, as letters of their own.
    let jetstream = deployment.nats.jetstream().await;
    let mut published = Vec::new();
    for number in 1..=COUNT {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("m-{number}").as_str());
        headers.insert("Turnwise-Reason", if number % 2 == 0 { "even" } else { "odd" });
        let subject = format!("{NAMESPACE}.dead.0.telegram.{BOT}.user-{}", number % 40);
        published.push(jetstream.publish_with_headers(subject, headers, "{}".into()).await.unwrap());
    }
    for acknowledgement in published {
        acknowledgement.await.unwrap();
    }
    let listed = run(&deployment, "list", &["--reason", "odd", "--limit", "3", "--json"]).await.json();
    let ids: Vec<_> = listed["dead_letters"].as_array().unwrap().iter().map(|letter| &letter["id"]).collect();
    assert_eq!((&listed["matching"], ids), (&json!(602), vec![&json!(1_199), &json!(1_201), &json!(1_203)]));

    let redriven = run(&deployment, "redrive", &["--all", "--yes", "--json"]).await.json();
    assert_eq!((&redriven["redriven"], &redriven["failed"]), (&json!(COUNT), &json!(0)));
    deployment.settled(1_203, PATIENCE).await;
    eventually("every letter to be one again", PATIENCE, async || {
        (counts(&deployment).await == (COUNT, COUNT)).then_some(())
    })
    .await;
    let again = run(&deployment, "list", &["--conversation", "user-7", "--limit", "1000", "--json"]).await.json();
    let numbers = again["dead_letters"].as_array().unwrap().iter().map(|letter| {
        let id = letter["message_id"].as_str().unwrap();
        id.strip_prefix("m-").unwrap().strip_suffix(":redriven").unwrap().parse::<u64>().unwrap()
    });
    assert_eq!(numbers.collect::<Vec<_>>(), (7..=COUNT).step_by(40).collect::<Vec<_>>(), "one conversation's order");

    let discarded = run(&deployment, "discard", &["--bot", BOT, "--reason", "a test", "--yes", "--json"]).await.json();
    assert_eq!(discarded["discarded"], COUNT);
    assert_eq!(counts(&deployment).await, (0, COUNT));
    assert_eq!(deployment.ledger.operator_actions().await.len(), 2 * 1_203);
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_usage_says_what_is_wrong_and_changes_nothing() {
    let load = Load { chats: 71..73, per_chat: 1 };
    let deployment = given_up(&[message(71, 1), message(72, 1)], &load, 8).await;
    let before = counts(&deployment).await;
    for (command, arguments, code, words) in [
        ("redrive", &["--yes"][..], 2, "--all"),
        ("redrive", &["1", "--all", "--yes"], 2, "cannot be used with"),
        ("redrive", &["--all", "--bot", BOT, "--yes"], 2, "cannot be used with"),
        ("redrive", &["1", "--reason", "responder", "--yes"], 2, "cannot be used with"),
        ("redrive", &["0", "--yes"], 2, "0 is not in 1.."),
        ("redrive", &["first", "--yes"], 2, "invalid digit"),
        ("redrive", &["--conversation", "user 71", "--yes"], 2, "CHANNEL.BOT.PEER"),
        ("redrive", &["--bot", "other", "--conversation", "telegram.support.user-71", "--yes"], 2, "names another"),
        ("redrive", &["1", "2", "99", "98", "--yes"], 1, "there is no dead letter 98, 99"),
        ("discard", &["1", "99", "--reason", "spam", "--yes"], 1, "there is no dead letter 99"),
        ("show", &["99"], 1, "there is no dead letter 99"),
        ("show", &[], 2, "<ID>"),
        ("list", &["--limit", "0"], 2, "0 is not in 1..=100000"),
        ("list", &["--conversation", ""], 2, "CHANNEL.BOT.PEER"),
    ] {
        let said = run(&deployment, command, arguments).await;
        assert_eq!((said.code, said.stdout.as_str()), (code, ""), "{command} {arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{command} {arguments:?} does not say {words:?}: {said:?}");
    }
    // Filters that match nothing are no mistake, and nothing happens.
    for arguments in [["--bot", "other"], ["--reason", "timeout"], ["--conversation", "user-7"]] {
        let said = run(&deployment, "redrive", &[&arguments[..], &["--yes"]].concat()).await;
        assert!(said.code == 0 && said.stderr.contains("no dead letters"), "{arguments:?}: {said:?}");
        let said = run(&deployment, "list", &arguments).await;
        assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", "no dead letters\n"));
    }
    assert_eq!(counts(&deployment).await, before, "after nothing but refusals");
    assert_eq!(deployment.ledger.operator_actions().await, []);

    let newest = run(&deployment, "list", &["--limit", "1", "--json"]).await.json();
    assert_eq!((&newest["matching"], &newest["dead_letters"][0]["id"]), (&json!(2), &json!(2)), "{newest:#}");
    for name in ["user-71", "telegram.support.user-71"] {
        let one = run(&deployment, "list", &["--conversation", name, "--reason", "responder", "--json"]).await.json();
        assert_eq!((&one["matching"], &one["dead_letters"][0]["conversation"]), (&json!(1), &json!("user-71")));
    }
}
