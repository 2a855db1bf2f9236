//! An assistant with tools through the real processes: what a kill at each boundary of its journal leaves, tool calls that a
//! person has to agree to, and people who take over while the model thinks.
//!
//! Refuses to look into the process: what the model was asked, what the tools were called with, what the chat shows, what the
//! database holds.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::brain::{Point, Seen};
use support::ledger::Message;
use support::process::{CONSOLE_TOKEN, quoted};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment};
use support::tamper::execute;
use support::world::{ANN, BOB, World};
use support::{PATIENCE, eventually, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const TOOLS: [&str; 3] = ["look_up", "reserve", "notify"];

/// The same words whoever says them.
fn renamed(history: Vec<Message>, from: &str, to: &str) -> Vec<Message> {
    history.into_iter().map(|message| Message { content: message.content.replace(from, to), ..message }).collect()
}

/// SIGKILL wherever the outside can see that something has been done and the next thing has not: nothing that has a result is
/// done again, what was on its way is called again under the same key, and the history is that of a turn without a kill.
async fn kill_at_every_boundary(backend: Backend) {
    let rounds: [&[&str]; 2] = [&["look_up", "reserve"], &["notify"]];
    let mut world = World::start(backend, &rounds, &[("on_unknown", "\"retry\"")], &[]).await;
    world.deployment.telegram.send(ANN, "undisturbed");
    assert_eq!(world.texts(ANN, 1).await, [World::answer("undisturbed", &TOOLS)]);
    world.deployment.settled(1, PATIENCE).await;
    let expected = world.deployment.ledger.history_with("undisturbed").await;
    assert_eq!(expected.iter().filter(|message| message.role == "tool").count(), 3, "{expected:?}");

    let points = [
        Point::Asked { results: 0 },
        Point::Called { tool: "look_up" },
        Point::Called { tool: "reserve" },
        Point::Asked { results: 2 },
        Point::Called { tool: "notify" },
        Point::Asked { results: 3 },
    ];
    for (number, point) in points.iter().enumerate() {
        let (chat, text) = (8_000 + i64::try_from(number).unwrap(), format!("killed{number}"));
        let before = world.brain.seen().len();
        world.brain.hold(point.clone());
        world.deployment.telegram.send(chat, &text);
        world.brain.wait(&format!("{point:?}"), PATIENCE, |log| log[before..].iter().any(|s| point.is(s))).await;
        world.deployment.turnwise.kill9().await;
        world.brain.release();
        let at_kill = world.brain.seen();
        world.deployment.turnwise.start_again().await;
        assert_eq!(world.texts(chat, 1).await, [World::answer(&text, &TOOLS)], "after a kill at {point:?}");
        world.deployment.settled(number + 2, PATIENCE).await;

        let seen = world.brain.seen().split_off(before);
        let done_before_kill = &at_kill[before..at_kill.len() - 1];
        let again = &seen[at_kill.len() - before..];
        for seen in done_before_kill {
            assert!(!again.contains(seen), "{seen:?} was done again after a kill at {point:?}");
        }
        for tool in TOOLS {
            let is_ours = |(_, arguments): &(String, Value)| arguments["about"] == text;
            let calls: Vec<_> = world.brain.calls_of(tool).into_iter().filter(is_ours).collect();
            let keys: HashSet<_> = calls.iter().map(|(key, _)| key).collect();
            assert_eq!(keys.len(), 1, "the calls of {tool} have one key: {calls:?}");
            let on_its_way = usize::from(point.is(&Seen::Called {
                tool: tool.to_owned(),
                key: String::new(),
                arguments: Value::Null,
            }));
            assert_eq!(calls.len(), 1 + on_its_way, "calls of {tool} with a kill at {point:?}");
        }
        let history = world.deployment.ledger.history_with(&text).await;
        assert_eq!(renamed(history, &text, "undisturbed"), expected, "after a kill at {point:?}");
    }
    assert_eq!(world.deployment.ledger.journal_counts().await, (0, points.len() + 1), "journals and records");
    world.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_boundary_of_the_journal_on_sqlite() {
    kill_at_every_boundary(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_boundary_of_the_journal_on_postgres() {
    kill_at_every_boundary(Backend::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_outcome_nobody_knows_is_not_made_again() {
    let lines = [("on_unknown", "\"fail\"")];
    let mut world = World::start(Backend::Sqlite, &[&["reserve"]], &lines, &[]).await;
    let point = Point::Called { tool: "reserve" };
    world.brain.hold(point.clone());
    world.deployment.telegram.send(ANN, "book it");
    world.brain.wait("the call", PATIENCE, |log| log.iter().any(|seen| point.is(seen))).await;
    world.deployment.turnwise.kill9().await;
    world.brain.release();
    world.deployment.turnwise.start_again().await;
    let texts = world.texts(ANN, 1).await;
    assert_eq!(world.brain.calls_of("reserve").len(), 1);
    assert!(texts[0].contains("unknown") || texts[0].contains("not known"), "the model was told: {texts:?}");
    world.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_call_is_made_once_whoever_presses_how_often() {
    let world = World::start(Backend::Sqlite, &[&["reserve"]], &[("confirm", "true")], &[]).await;
    let telegram = &world.deployment.telegram;
    telegram.send(ANN, "book it");
    let question = world.question(ANN).await;
    let labels: Vec<_> = question.buttons.iter().map(|(label, _)| label.as_str()).collect();
    assert_eq!(labels, ["Yes", "No"]);
    assert!(question.buttons.iter().all(|(_, data)| data.len() <= 64), "Telegram's limit: {question:?}");
    assert_eq!(world.brain.calls_of("reserve"), [], "nothing was called before the word");

    let foreign = telegram.press(BOB, &question, "Yes");
    assert_eq!(world.texts(ANN, 2).await[1], "Only the person who was asked can answer this.");
    assert_eq!(world.brain.calls_of("reserve"), []);
    assert!(telegram.log(|log| log.unbuttoned.is_empty()), "the question is still open");

    let presses = [telegram.press(ANN, &question, "Yes"), telegram.press(ANN, &question, "Yes")];
    let contradiction = telegram.press(ANN, &question, "No");
    let texts = world.texts(ANN, 5).await;
    assert_eq!(texts[2..], ["Yes: reserve done", "This was confirmed already.", "This was confirmed already."]);
    let calls = world.brain.calls_of("reserve");
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(calls[0].1, json!({ "about": "book it" }), "the arguments of the question");

    let all = [&[foreign][..], &presses, &[contradiction]].concat();
    telegram.wait("every press acknowledged", PATIENCE, |log| log.acknowledged.len() == all.len()).await;
    let acknowledged: HashSet<_> = telegram.log(|log| log.acknowledged.iter().cloned().collect());
    assert_eq!(acknowledged, all.into_iter().collect());
    telegram.wait("the buttons taken away", PATIENCE, |log| !log.unbuttoned.is_empty()).await;
    telegram.log(|log| assert_eq!(log.unbuttoned[0], (ANN, question.message_id)));
    world.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_decide_and_another_subject_cancels() {
    let world = World::start(Backend::Sqlite, &[&["reserve"]], &[("confirm", "true")], &[]).await;
    let telegram = &world.deployment.telegram;
    telegram.send(ANN, "book it");
    world.question(ANN).await;
    telegram.send(ANN, "yes");
    assert_eq!(world.texts(ANN, 2).await[1], "yes: reserve done");
    assert_eq!(world.brain.calls_of("reserve").len(), 1);

    telegram.send(BOB, "book it too");
    let question = world.question(BOB).await;
    telegram.send(BOB, "no");
    let texts = world.texts(BOB, 2).await;
    assert!(texts[1].contains("declined"), "the model was told: {texts:?}");
    telegram.press(BOB, &question, "Yes");
    assert_eq!(world.texts(BOB, 3).await[2], "This was declined already.");

    telegram.send(BOB, "book another");
    telegram.wait("another question", PATIENCE, |log| log.buttons.iter().filter(|b| b.chat == BOB).count() == 2).await;
    let question = world.question(BOB).await;
    telegram.send(BOB, "what is the weather");
    telegram.wait("the next subject", PATIENCE, |log| log.buttons.iter().filter(|b| b.chat == BOB).count() == 3).await;
    let shown = world.texts(BOB, 5).await.len();
    telegram.press(BOB, &question, "Yes");
    assert_eq!(world.texts(BOB, shown + 1).await[shown], "This question is no longer open.");
    assert_eq!(world.brain.calls_of("reserve").len(), 1, "only what was agreed to");
    world.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_call_survives_a_kill() {
    let mut world = World::start(Backend::Sqlite, &[&["reserve"]], &[("confirm", "true")], &[]).await;
    world.deployment.telegram.send(ANN, "book it");
    let question = world.question(ANN).await;
    world.deployment.settled(1, PATIENCE).await;
    let point = Point::Asked { results: 1 };
    world.brain.hold(point.clone());
    world.deployment.telegram.press(ANN, &question, "Yes");
    world.brain.wait("the model to be told", PATIENCE, |log| log.iter().any(|seen| point.is(seen))).await;
    world.deployment.turnwise.kill9().await;
    world.brain.release();
    world.deployment.turnwise.start_again().await;
    assert_eq!(world.texts(ANN, 2).await[1], "Yes: reserve done");
    assert_eq!(world.brain.calls_of("reserve").len(), 1, "agreed to once, called once");
    world.deployment.turnwise.assert_audit_clean().await;
}

/// A question waits for an hour, here made shorter by hand: a press after that is told so, and does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_has_expired_is_no_longer_to_be_answered() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let world = World::start(backend, &[&["reserve"]], &[("confirm", "true")], &[]).await;
        let telegram = &world.deployment.telegram;
        telegram.send(ANN, "book it");
        let question = world.question(ANN).await;
        world.deployment.settled(1, PATIENCE).await;
        execute(world.deployment.database_url(), "UPDATE pending_actions SET expires_at = created_at").await;
        let press = telegram.press(ANN, &question, "Yes");
        assert_eq!(world.texts(ANN, 2).await[1], "This question has expired. Please ask again.");
        telegram.wait("the press acknowledged", PATIENCE, |log| log.acknowledged == [press.as_str()]).await;
        telegram.wait("the buttons taken away", PATIENCE, |log| !log.unbuttoned.is_empty()).await;
        telegram.log(|log| assert_eq!(log.unbuttoned, [(ANN, question.message_id)]));
        telegram.press(ANN, &question, "Yes");
        telegram.send(ANN, "yes");
        let texts = world.texts(ANN, 4).await;
        assert_eq!(texts[2], "This question has expired. Please ask again.", "also the second time");
        assert!(texts[3].starts_with("May I do this?"), "a word without an open question is a new subject: {texts:?}");
        assert_eq!(world.brain.calls_of("reserve"), [], "nothing was called");
        assert_eq!(world.deployment.ledger.actions().await, ["expired", "pending"]);
        let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
        assert_eq!(states, ["answered"; 4]);
        assert!(!world.brain.seen().contains(&Seen::asked("Yes", 0)), "no model is asked about a press");
        world.deployment.turnwise.assert_audit_clean().await;
    }
}

/// Whoever presses a button does so in his own name, which cannot be told to be that of an anonymous administrator: the model
/// is told at once that such a call cannot be asked for, instead of a question that nobody could ever answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_needs_a_word_is_not_asked_for_in_the_name_of_a_chat() {
    const GROUP: i64 = -5_005;
    let world = World::start(Backend::Sqlite, &[&["reserve"]], &[("confirm", "true")], &[]).await;
    let telegram = &world.deployment.telegram;
    for (from, title) in [(1_087_968_824, "Ann's"), (136_817_688, "A channel")] {
        let mut update = telegram.update(GROUP, "book it");
        update["message"]["from"] = json!({ "id": from, "is_bot": true, "first_name": "Group" });
        update["message"]["sender_chat"] = json!({ "id": GROUP, "type": "supergroup", "title": title });
        assert_eq!(telegram.post(&update).await, Some(reqwest::StatusCode::OK));
    }
    let texts = world.texts(GROUP, 2).await;
    let refused =
        "book it: Not called: it needs the word of whoever asks for it, and this was written in the name of a chat";
    assert!(texts.iter().all(|text| text.starts_with(refused)), "{texts:?}");
    telegram.log(|log| assert!(log.buttons.is_empty(), "no question: {:?}", log.buttons));
    assert_eq!(world.deployment.ledger.actions().await, [""; 0]);

    telegram.post(&telegram.update(GROUP, "book it")).await;
    let question = world.question(GROUP).await;
    telegram.press(GROUP.abs(), &question, "Yes");
    assert_eq!(world.texts(GROUP, 4).await[3], "Yes: reserve done", "under a name of one's own");
    assert_eq!(world.brain.calls_of("reserve").len(), 1);
    world.deployment.turnwise.assert_audit_clean().await;
}

/// A person takes over while the model thinks: what leaves, what the ledger says.
async fn taken_over(reply_in_flight: &str) -> (World, Vec<String>) {
    let world = World::start(Backend::Sqlite, &[], &[], &[("reply_in_flight", &quoted(reply_in_flight))]).await;
    world.deployment.telegram.send(ANN, "first");
    world.texts(ANN, 1).await;
    let ask = Seen::asked("second", 0);
    world.brain.hold(Point::Asked { results: 0 });
    world.deployment.telegram.send(ANN, "second");
    world.brain.wait("the model to be asked", PATIENCE, |log| log.contains(&ask)).await;
    world.deployment.patch_status("human").await;
    world.brain.release();
    world.deployment.settled(2, PATIENCE).await;
    // Whatever was to leave has left: everything behind it has, too.
    world.deployment.telegram.send(ANN, "third");
    world.deployment.settled(3, PATIENCE).await;
    assert!(!world.brain.seen().contains(&Seen::asked("third", 0)), "the bot is silent");
    let texts = world.deployment.telegram.log(|log| log.texts(ANN));
    eventually("the assignment to stay", Duration::from_secs(5), async || {
        let list = http_client().get(world.deployment.turnwise.url("/v1/conversations?status=human&assignee=carol"));
        let list: Value = list.bearer_auth(CONSOLE_TOKEN).send().await.unwrap().json().await.unwrap();
        (list["conversations"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    world.deployment.turnwise.assert_audit_clean().await;
    (world, texts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_in_flight_is_suppressed_when_a_person_takes_over() {
    let (world, texts) = taken_over("suppress").await;
    assert_eq!(texts, ["first:"]);
    let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(states, ["answered", "handed_off", "handed_off"]);
    let history = world.deployment.ledger.history_with("second").await;
    let said: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(said, ["first", "first: ", "second", "third"], "what was not sent is not in the history");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_in_flight_is_sent_when_a_person_takes_over() {
    let (world, texts) = taken_over("send").await;
    assert_eq!(texts, ["first:", "second:"]);
    let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(states, ["answered", "answered", "handed_off"]);
}

/// The last attempt fails after a person has taken over: the person speaks for the bot, and no apology comes in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_apology_leaves_once_a_person_has_taken_over() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let mut deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
            configuration.set("worker", "max_attempts", "1").set(&format!("bots.{BOT}"), "failure_reply", "\"Sorry.\"");
        })
        .await;
        deployment.model.always_fail("fails");
        for text in ["hello", "fails"] {
            deployment.telegram.send(ANN, text);
        }
        let texts = deployment.telegram.wait_for_texts(ANN, 2, PATIENCE).await;
        assert_eq!(texts, ["re: hello", "Sorry."], "as long as it is the bot's");
        deployment.model.hold("fails");
        deployment.telegram.send(ANN, "fails");
        deployment.model.wait("the second call", PATIENCE, |log| log.calls_for("fails") == 2).await;
        deployment.patch_status("human").await;
        deployment.model.release("fails");
        deployment.settled(3, PATIENCE).await;
        let states: Vec<_> = deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
        assert_eq!(states, ["answered", "dead_lettered", "dead_lettered"]);
        deployment.patch_status("bot").await;
        deployment.telegram.send(ANN, "fine");
        let texts = deployment.telegram.wait_for_texts(ANN, 3, PATIENCE).await;
        assert_eq!(texts, ["re: hello", "Sorry.", "re: fine"], "whatever was to leave has left before");
        deployment.turnwise.terminate().await;
        deployment.turnwise.assert_audit_clean().await;
    }
}

/// What a tool's server says when it refuses goes to the model, and nowhere else that anybody but the chat's people looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_words_of_a_tools_server_reach_the_model_alone() {
    let bot = [("failure_reply", "\"Sorry.\"")];
    let world = World::start(Backend::Sqlite, &[&["reserve"]], &[], &bot).await;
    world.brain.refuse_next(422);
    world.deployment.telegram.send(ANN, "book it");
    let texts = world.texts(ANN, 1).await;
    assert!(texts[0].starts_with("book it: Failed: ") && texts[0].contains("reserve done"), "the words: {texts:?}");
    world.brain.refuse_next(422);
    world.brain.fail_at(Point::Asked { results: 1 });
    world.deployment.telegram.send(BOB, "book that");
    assert_eq!(world.texts(BOB, 1).await, ["Sorry."]);
    world.deployment.settled(2, PATIENCE).await;
    assert_eq!(world.deployment.ledger.turns_by_state().await["dead_lettered"], 1);

    let letters = world.deployment.turnwise.run("dead-letters", &["list"]).await;
    let metrics = http_client().get(world.deployment.turnwise.url("/metrics")).send().await.unwrap();
    let seen = [
        ("the log", std::fs::read_to_string(world.deployment.turnwise.log()).unwrap()),
        ("the metrics", metrics.text().await.unwrap()),
        ("the reasons", world.deployment.ledger.reasons().await.join("\n")),
        ("the dead letters", format!("{letters:?}")),
    ];
    for (place, text) in seen {
        assert!(!text.is_empty() && !text.contains("reserve done"), "{place}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bot_whose_tokens_are_spent_says_so_and_asks_nobody() {
    // Each answer of the stand-in takes 120 tokens.
    let bot = [("tokens_per_day", "200"), ("budget_reply", "\"Come back tomorrow.\"")];
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let mut world = World::start(backend, &[], &[], &bot).await;
        world.deployment.telegram.send(ANN, "one");
        world.deployment.telegram.send(ANN, "two");
        assert_eq!(world.texts(ANN, 2).await, ["one:", "two:"], "a turn that has begun is finished");
        world.deployment.turnwise.kill9().await;
        world.deployment.turnwise.start_again().await;
        for chat in [ANN, BOB] {
            world.deployment.telegram.send(chat, "three");
        }
        assert_eq!(world.texts(ANN, 3).await[2], "Come back tomorrow.");
        assert_eq!(world.texts(BOB, 1).await, ["Come back tomorrow."]);
        assert!(!world.brain.seen().contains(&Seen::asked("three", 0)), "nobody is asked");
        let metrics = http_client().get(world.deployment.turnwise.url("/metrics")).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        assert!(metrics.contains(&format!("turnwise_budget_refusals_total{{bot=\"{BOT}\"}} 2")), "{metrics}");
        world.deployment.turnwise.assert_audit_clean().await;
    }
}
