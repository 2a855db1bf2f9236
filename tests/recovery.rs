//! What a turn that has acted keeps when it is run again: its messages, the answers of its model, the results of its tools, and
//! the record of what they did, whatever has changed since and whoever runs it.
//!
//! Refuses to look into the process: what the model was asked, what the tools were called with, what the chat shows, what the
//! database holds.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use support::brain::{Point, Seen};
use support::messenger::{Messenger, PAGE_ID, signature};
use support::process::quoted;
use support::scenario::{BOT, Backend, RESPONDER};
use support::tamper::execute;
use support::world::{ANN, BOB, World};
use support::{PATIENCE, eventually, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const BACKENDS: [Backend; 2] = [Backend::Sqlite, Backend::Postgres];

/// How often the model was asked this.
fn asked(world: &World, user: &str, results: usize) -> usize {
    let question = Seen::asked(user, results);
    world.brain.seen().iter().filter(|seen| **seen == question).count()
}

/// Says it, and kills the process once the model is asked with so many results, before there is an answer.
async fn kill_when_asked(world: &mut World, text: &'static str, results: usize) {
    world.brain.hold(Point::AskedAbout { user: text, results });
    world.deployment.telegram.send(ANN, text);
    let question = Seen::asked(text, results);
    world.brain.wait("the model to be asked", PATIENCE, |log| log.contains(&question)).await;
    world.deployment.turnwise.kill9().await;
}

/// A turn that has begun to change something keeps its messages: one that comes while the process is down makes a turn of its
/// own, however eager the policy is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_during_a_crash_does_not_join_a_turn_that_has_acted() {
    for policy in ["collect", "interrupt"] {
        let bot = [("burst", quoted(policy))];
        let bot: Vec<_> = bot.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut world = World::start(Backend::Sqlite, &[&["reserve"]], &[("confirm", "true")], &bot).await;
        world.deployment.telegram.send(ANN, "book it");
        world.question(ANN).await;
        world.deployment.settled(1, PATIENCE).await;
        let point = Point::Asked { results: 1 };
        world.brain.hold(point.clone());
        world.deployment.telegram.send(ANN, "yes");
        world.brain.wait("the model to be told", PATIENCE, |log| log.iter().any(|seen| point.is(seen))).await;
        world.deployment.turnwise.kill9().await;
        world.deployment.telegram.send(ANN, "hello?");
        world.brain.release();
        world.deployment.turnwise.start_again().await;
        assert_eq!(world.texts(ANN, 2).await[1], "yes: reserve done", "{policy}");
        world.deployment.settled(3, PATIENCE).await;
        assert_eq!(world.brain.calls_of("reserve").len(), 1, "{policy}: agreed to once, called once");
        let asked: Vec<_> = world.brain.seen().into_iter().filter(|seen| matches!(seen, Seen::Asked { .. })).collect();
        assert_eq!(asked.last(), Some(&Seen::asked("hello?", 0)), "{policy}: a turn of its own");
        world.deployment.turnwise.assert_audit_clean().await;
    }
}

/// Two messages of one turn are delivered again one by one, and a third behind them: the turn waits for its second, and does
/// not take the third.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_that_has_acted_waits_for_its_messages_and_takes_no_other() {
    for backend in BACKENDS {
        let mut world = World::start_with(backend, &[&["reserve"]], |configuration| {
            configuration.set("nats", "partitions", "1").set(&format!("bots.{BOT}"), "burst", "\"collect\"");
        })
        .await;
        world.brain.hold(Point::AskedAbout { user: "first", results: 0 });
        world.deployment.telegram.send(ANN, "first");
        world.brain.wait("the first turn", PATIENCE, |log| log.contains(&Seen::asked("first", 0))).await;
        world.deployment.telegram.send(ANN, "second");
        world.deployment.telegram.all_taken(PATIENCE).await;
        world.deployment.telegram.post_gap().await;
        world.deployment.telegram.send(ANN, "third");
        world.deployment.telegram.all_taken(PATIENCE).await;
        // The one partition is read in order: once somebody else is answered, all of this is in its lane.
        world.deployment.telegram.send(BOB, "other");
        world.texts(BOB, 1).await;
        let both = "second\n\nthird";
        world.brain.release_but(Point::AskedAbout { user: both, results: 1 });
        world.brain.wait("the turn of two", PATIENCE, |log| log.contains(&Seen::asked(both, 1))).await;
        world.deployment.turnwise.kill9().await;
        world.deployment.telegram.send(ANN, "fourth");
        world.brain.release();
        world.deployment.turnwise.start_again().await;
        let texts = world.texts(ANN, 3).await;
        assert_eq!(texts, ["first", both, "fourth"].map(|text| World::answer(text, &["reserve"])), "{backend:?}");
        assert_eq!(world.called_about("reserve"), ["other", "first", both, "fourth"], "{backend:?}");
        world.deployment.settled(305, PATIENCE).await;
        let states = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state);
        let states: Vec<_> = states.filter(|state| state != "ignored").collect();
        assert_eq!(states, ["answered", "merged", "answered", "answered", "answered"], "{backend:?}");
        world.deployment.turnwise.assert_audit_clean().await;
    }
}

/// What a tool gave counts, also when the tool has gone or takes other arguments once the turn is run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_result_counts_whatever_has_become_of_its_tool() {
    let is_away = (format!("responders.{RESPONDER}"), "tools", "[\"notify\"]");
    let other = "{ type = \"object\", properties = { place = { type = \"string\" } }, required = [\"place\"] }";
    let takes_other = ("tools.look_up".to_owned(), "parameters", other);
    for (table, key, value) in [is_away, takes_other] {
        let mut world = World::start(Backend::Sqlite, &[&["look_up"], &["notify"]], &[], &[]).await;
        kill_when_asked(&mut world, "book it", 1).await;
        world.brain.release();
        world.deployment.turnwise.reconfigure(|configuration| {
            configuration.set(&table, key, value);
        });
        world.deployment.turnwise.start_again().await;
        assert_eq!(world.texts(ANN, 1).await, [World::answer("book it", &["look_up", "notify"])], "{table}.{key}");
        assert_eq!((world.called_about("look_up").len(), world.called_about("notify").len()), (1, 1), "{table}.{key}");
        assert_eq!(asked(&world, "book it", 0), 1, "{table}.{key}");
        world.deployment.turnwise.assert_audit_clean().await;
    }
}

/// A round whose call was refused led to the one whose tool has run: neither is asked again, although the question is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_round_before_one_that_has_acted_is_asked_again() {
    let table = format!("responders.{RESPONDER}");
    let mut world = World::start_with(Backend::Sqlite, &[&["fly"], &["notify"]], |configuration| {
        configuration.set(&table, "tools", "[\"notify\"]");
    })
    .await;
    kill_when_asked(&mut world, "book it", 2).await;
    world.brain.release();
    world.deployment.turnwise.reconfigure(|configuration| {
        configuration.set(&table, "system_prompt", "\"Be brief.\"");
    });
    world.deployment.turnwise.start_again().await;
    let expected = "book it: Not called: there is no tool \"fly\"., notify done";
    assert_eq!(world.texts(ANN, 1).await, [expected]);
    assert_eq!([0, 1, 2].map(|results| asked(&world, "book it", results)), [1, 1, 2], "questions by results");
    assert_eq!(world.called_about("notify"), ["book it"]);
    world.deployment.turnwise.assert_audit_clean().await;
}

/// A yes that its owner has read, but not decided when it is replaced, is decided by the next owner alone, who knows more: that
/// the person has thought better of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_replaced_decides_nothing() {
    let world = undecided(Backend::Postgres).await;
    // The turn of the yes stands still before it has read what there is to decide.
    let mut holder = PgConnection::connect(world.deployment.database_url()).await.unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE pending_actions IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    world.deployment.telegram.send(ANN, "yes");
    eventually("the turn to stand still", PATIENCE, async || {
        let waiting = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'pending_actions'::regclass";
        let mut looker = PgConnection::connect(world.deployment.database_url()).await.unwrap();
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut looker).await.unwrap();
        (waiting == 1).then_some(())
    })
    .await;
    execute(world.deployment.database_url(), "UPDATE partitions SET epoch = epoch + 1").await;
    world.deployment.telegram.send(ANN, "no, wait");
    world.deployment.telegram.all_taken(PATIENCE).await;
    lock.commit().await.unwrap();
    assert_decided_by_the_next_owner(&world).await;
}

/// On SQLite nobody can be kept from reading: the turn knows what there is to decide, and stands still before it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_replaced_decides_nothing_of_what_it_has_read() {
    let world = undecided(Backend::Sqlite).await;
    let telegram = &world.deployment.telegram;
    let mut holder = SqliteConnection::connect(world.deployment.database_url()).await.unwrap();
    let mut lock = holder.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let shown = telegram.log(|log| log.actions.len());
    telegram.send(ANN, "yes");
    telegram.wait("the turn to stand still", PATIENCE, |log| log.actions.len() > shown).await;
    sqlx::query("UPDATE partitions SET epoch = epoch + 1").execute(&mut *lock).await.unwrap();
    telegram.send(ANN, "no, wait");
    telegram.all_taken(PATIENCE).await;
    lock.commit().await.unwrap();
    assert_decided_by_the_next_owner(&world).await;
}

/// A person is asked whether to book, and has not answered.
async fn undecided(backend: Backend) -> World {
    let world = World::start_with(backend, &[&["reserve"]], |configuration| {
        let bot = format!("bots.{BOT}");
        configuration.set("tools.reserve", "confirm", "true");
        configuration.set(&bot, "burst", "\"collect\"").set(&bot, "quiet", "\"1s\"");
    })
    .await;
    world.deployment.telegram.send(ANN, "book it");
    world.question(ANN).await;
    world.deployment.settled(1, PATIENCE).await;
    world
}

async fn assert_decided_by_the_next_owner(world: &World) {
    world.deployment.settled(3, PATIENCE).await;
    assert_eq!(world.brain.calls_of("reserve"), [], "nobody who may decide has agreed");
    assert_eq!(world.deployment.ledger.actions().await, ["cancelled", "pending"], "another subject, another question");
    assert_eq!(asked(world, "yes\n\nno, wait", 0), 1);
    world.deployment.turnwise.assert_audit_clean().await;
}

/// A person takes over after a tool has done something: the bot is silent, and what was done stays known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_before_a_person_took_over_stays_known() {
    for backend in BACKENDS {
        let mut world = World::start(backend, &[&["reserve"]], &[], &[]).await;
        world.deployment.telegram.send(ANN, "hello");
        world.texts(ANN, 1).await;
        kill_and_patch(&mut world).await;
        world.brain.release();
        world.deployment.turnwise.start_again().await;
        world.deployment.settled(2, PATIENCE).await;
        let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
        assert_eq!(states, ["answered", "handed_off"], "{backend:?}");
        assert_eq!(world.deployment.telegram.log(|log| log.texts(ANN)), ["hello: reserve done"], "{backend:?}");
        assert_eq!(world.called_about("reserve"), ["hello", "book it"], "{backend:?}");
        assert_acts_are_known(&world, 2).await;
    }
}

/// The status is changed while the turn is held; the kill comes after it.
async fn kill_and_patch(world: &mut World) {
    world.brain.hold(Point::AskedAbout { user: "book it", results: 1 });
    world.deployment.telegram.send(ANN, "book it");
    world.brain.wait("the model to be told", PATIENCE, |log| log.contains(&Seen::asked("book it", 1))).await;
    world.deployment.patch_status("human").await;
    world.deployment.turnwise.kill9().await;
}

/// No journal is left over, and the record of each turn with a tool names what it did.
async fn assert_acts_are_known(world: &World, records: usize) {
    assert_eq!(world.deployment.ledger.journal_counts().await, (0, records), "journals and records");
    for record in world.deployment.ledger.records().await {
        assert!(record.contains("0.tool.0") && record.contains("reserve done"), "{record}");
    }
    world.deployment.turnwise.assert_audit_clean().await;
}

/// The operator gives a command a reply of its own while a turn about it is away: what the turn has done stays known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_about_a_command_stays_known_when_it_gets_a_reply_of_its_own() {
    let commands = format!("bots.{BOT}");
    let mut world = World::start_with(Backend::Sqlite, &[&["reserve"]], |configuration| {
        configuration.set(&commands, "commands", "{ book = \"Book a table\" }");
    })
    .await;
    kill_when_asked(&mut world, "/book", 1).await;
    world.brain.release();
    world.deployment.turnwise.reconfigure(|configuration| {
        configuration.set(&commands, "commands", "{ book = { description = \"Book\", reply = \"Call us.\" } }");
    });
    world.deployment.turnwise.start_again().await;
    assert_eq!(world.texts(ANN, 1).await, ["Call us."]);
    world.deployment.settled(1, PATIENCE).await;
    assert_acts_are_known(&world, 1).await;
}

/// The budget is spent by somebody else while a turn that has acted is away: it is finished all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_has_acted_is_finished_beyond_the_budget() {
    for backend in BACKENDS {
        let bot = [("tokens_per_day", "200"), ("budget_reply", "\"Come back tomorrow.\"")];
        let mut world = World::start(backend, &[&["reserve"]], &[], &bot).await;
        world.brain.hold(Point::AskedAbout { user: "book it", results: 1 });
        world.deployment.telegram.send(ANN, "book it");
        world.brain.wait("the model to be told", PATIENCE, |log| log.contains(&Seen::asked("book it", 1))).await;
        // Two answers of 120 tokens each.
        world.deployment.telegram.send(BOB, "spend it");
        world.texts(BOB, 1).await;
        world.deployment.settled(1, PATIENCE).await;
        world.deployment.turnwise.kill9().await;
        world.brain.release();
        world.deployment.turnwise.start_again().await;
        assert_eq!(world.texts(ANN, 1).await, ["book it: reserve done"], "{backend:?}");
        world.deployment.settled(2, PATIENCE).await;
        assert_acts_are_known(&world, 2).await;
        world.deployment.telegram.send(ANN, "more");
        assert_eq!(world.texts(ANN, 2).await[1], "Come back tomorrow.", "{backend:?}");
    }
}

/// A message is taken back after its turn has done something: that cannot be taken back, so the turn is finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_taken_back_after_its_turn_has_acted_is_answered() {
    let (world, sent) = taken_back(&[&["reserve"]]).await;
    assert_eq!(sent, ["before", "book it", "after"].map(|text| World::answer(text, &["reserve"])));
    assert_eq!(world.called_about("reserve"), ["book it", "before", "after"]);
    let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(states, ["answered", "answered", "ignored", "answered"]);
    assert_acts_are_known(&world, 3).await;
}

/// Before that it can be, although the model has answered once: what it said stays known, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_taken_back_before_its_turn_has_acted_is_not_answered() {
    let (world, sent) = taken_back(&[&["fly"], &["reserve"]]).await;
    let answer = |user: &str| format!("{user}: Not called: there is no tool \"fly\"., reserve done");
    assert_eq!(sent, ["before", "after"].map(answer));
    assert_eq!(world.called_about("reserve"), ["before", "after"]);
    let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(states, ["answered", "ignored", "ignored", "answered"]);
    assert_eq!(world.deployment.ledger.journal_counts().await, (0, 3), "journals and records");
    world.deployment.turnwise.assert_audit_clean().await;
}

/// Kills the process when the model has been told the result of the first round, and lets the turn's message meet its deletion
/// before the turn is run again; gives what Messenger was sent, once all is done. The only tool there is is the last.
async fn taken_back(rounds: &[&[&'static str]]) -> (World, Vec<String>) {
    let graph = Messenger::start().await;
    let mut world = World::start_with(Backend::Sqlite, rounds, |configuration| {
        configuration.messenger_bot("page", RESPONDER, &graph.base_url()).set("nats", "partitions", "1");
        configuration.set(&format!("responders.{RESPONDER}"), "tools", "[\"reserve\"]");
    })
    .await;
    let url = world.deployment.turnwise.url("/webhooks/messenger/page");
    let post = async |person: &str, content: Value| {
        let event = json!({ "sender": { "id": person }, "recipient": { "id": PAGE_ID }, "message": content });
        let entry = json!({ "id": PAGE_ID, "time": 1_800_000_000_000_u64, "messaging": [event] });
        let body = json!({ "object": "page", "entry": [entry] }).to_string();
        let request = http_client().post(&url).header("X-Hub-Signature-256", signature(&body)).body(body);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    };
    let before = Point::AskedAbout { user: "before", results: 0 };
    world.brain.hold(before.clone());
    world.brain.hold(Point::AskedAbout { user: "book it", results: 1 });
    post("201", json!({ "mid": "m_1", "text": "before" })).await;
    post("202", json!({ "mid": "m_2", "text": "book it" })).await;
    world.brain.wait("the model to be told", PATIENCE, |log| log.contains(&Seen::asked("book it", 1))).await;
    world.deployment.turnwise.kill9().await;
    // One turn at a time: that of the first message holds the other up until it has met its deletion.
    world.brain.release_but(before);
    world.deployment.turnwise.reconfigure(|configuration| {
        configuration.set("bots.page", "max_turns", "1");
    });
    world.deployment.turnwise.start_again().await;
    let again = |log: &[Seen]| log.iter().filter(|seen| **seen == Seen::asked("before", 0)).count() == 2;
    world.brain.wait("the first turn again", PATIENCE, again).await;
    post("202", json!({ "mid": "m_2", "is_deleted": true })).await;
    post("203", json!({ "mid": "m_3", "text": "after" })).await;
    eventually("all three lanes", PATIENCE, async || {
        let metrics = http_client().get(world.deployment.turnwise.url("/metrics")).send().await.unwrap();
        metrics.text().await.unwrap().lines().any(|line| line == "turnwise_lanes 3").then_some(())
    })
    .await;
    world.brain.release();
    world.deployment.settled(4, PATIENCE).await;
    (world, graph.wait_for(0, PATIENCE).await.into_iter().map(|(_, text)| text).collect())
}

/// A journal that the database cannot give back any more ends its turn, and not its conversation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_read_ends_its_turn_and_the_conversation_goes_on() {
    for backend in BACKENDS {
        let mut world = World::start_with(backend, &[&["reserve"]], |configuration| {
            configuration.set("worker", "max_attempts", "2");
            configuration.set(&format!("bots.{BOT}"), "failure_reply", &quoted("Sorry."));
        })
        .await;
        kill_when_asked(&mut world, "book it", 1).await;
        execute(world.deployment.database_url(), "UPDATE turn_journal SET ordinal = 5000000000").await;
        world.brain.release();
        world.deployment.turnwise.start_again().await;
        world.deployment.telegram.send(ANN, "next");
        assert_eq!(world.texts(ANN, 2).await, ["Sorry.", "next: reserve done"], "{backend:?}");
        world.deployment.settled(2, PATIENCE).await;
        let states: Vec<_> = world.deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
        assert_eq!(states, ["dead_lettered", "answered"], "{backend:?}");
        let reasons = world.deployment.ledger.reasons().await;
        assert!(reasons[0].starts_with("store: a stored ordinal cannot be read"), "{reasons:?}");
        assert_eq!(world.called_about("reserve"), ["book it", "next"], "{backend:?}: nothing is done again");
        let (left, records) = world.deployment.ledger.journal_counts().await;
        assert!(left > 0 && records == 1, "what cannot be read stays where it is: {left} steps, {records} records");
        world.deployment.turnwise.assert_audit_clean().await;
    }
}
