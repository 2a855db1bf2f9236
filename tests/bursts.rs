//! Bursts through the real processes: twenty messages in a fifth of a second under each policy, albums, what callers and
//! people see of merged, superseded and rejected messages, and crashes in the middle of a turn of several.
//!
//! Refuses to know when which message came: what a turn consists of depends on the machine. Each test asserts what must hold
//! however it was cut, and prints how it was.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::ledger::Turn;
use support::messenger::{Messenger, PAGE_ID, signature};
use support::process::{NAMESPACE, WEB_KEY, quoted};
use support::responder::{Behaviour, Mood, message, parse};
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::{PATIENCE, eventually, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const CHAT: i64 = 9_001;
const MESSAGES: u32 = 20;
const PACE: Duration = Duration::from_millis(10);
const NOTICE: &str = "One at a time, please.";

/// Far longer than the burst takes, so that all of it comes during the first turn.
const MODEL_DELAY: Duration = Duration::from_millis(1_500);

/// What a burst came to.
#[derive(Debug)]
struct Seen {
    /// Of each model call, which messages were new and which were history.
    calls: Vec<Vec<u32>>,
    /// Of each answer that the chat sees, the messages it answers; notices apart.
    answers: Vec<Vec<u32>>,
    notices: usize,
    ledger: Vec<Turn>,
    /// The user's messages in the history.
    history: Vec<u32>,
}

impl Seen {
    async fn of(deployment: &Deployment) -> Self {
        let texts = deployment.telegram.log(|log| log.texts(CHAT));
        let (notices, answers): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| text == NOTICE);
        let history = deployment.ledger.history_with(&message(CHAT, 1)).await;
        let history = history.iter().filter(|message| message.role == "user");
        Self {
            calls: deployment.model.log(|log| log.calls.iter().map(|call| numbers(&call.message)).collect()),
            answers: answers.iter().map(|text| numbers(text.strip_prefix("re: ").unwrap_or(text))).collect(),
            notices: notices.len(),
            ledger: deployment.ledger.turns().await,
            history: history.flat_map(|message| numbers(&message.content)).collect(),
        }
    }

    fn count(&self, state: &str) -> usize {
        self.ledger.iter().filter(|row| row.state == state).count()
    }

    /// As a row of the table in the README.
    fn print(&self, policy: &str) {
        let calls: Vec<_> = self.calls.iter().map(|call| span(call)).collect();
        let answers: Vec<_> = self.answers.iter().map(|answer| span(answer)).collect();
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        self.ledger.iter().for_each(|row| *states.entry(row.state.as_str()).or_default() += 1);
        let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let notices = if self.notices > 0 { format!("{} notices; ", self.notices) } else { String::new() };
        eprintln!("| `{policy}` | {} | {notices}{} | {} |", calls.join(", "), answers.join(", "), states.join(", "));
    }

    /// Every message is answered once, in order, by the turn that the ledger names, and is in the history once.
    fn assert_all_answered(&self, earlier_state: &str) {
        let all: Vec<u32> = (1..=MESSAGES).collect();
        assert_eq!(self.answers.concat(), all, "what was answered: {self:?}");
        assert_eq!(self.history, all, "the history: {self:?}");
        let mut expected = Vec::new();
        for answer in &self.answers {
            let last = answer[answer.len() - 1];
            expected.extend(answer.iter().map(|n| (*n != last).then_some(last)));
        }
        let first = self.ledger[0].sequence - 1;
        let merged_into = |row: &Turn| row.merged_into.map(|sequence| u32::try_from(sequence - first).unwrap());
        assert_eq!(self.ledger.iter().map(merged_into).collect::<Vec<_>>(), expected, "{self:?}");
        for row in &self.ledger {
            let state = if row.merged_into.is_some() { earlier_state } else { "answered" };
            assert_eq!(row.state, state, "{self:?}");
        }
    }
}

/// `3` or `1-20`; runs only.
fn span(numbers: &[u32]) -> String {
    match numbers {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => "-".to_owned(),
    }
}

/// The numbers of the messages that a text holds, one a paragraph.
fn numbers(text: &str) -> Vec<u32> {
    text.split("\n\n").filter_map(parse).map(|(_, n)| n).collect()
}

async fn start(burst: &str, quiet: &str) -> Deployment {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        let table = format!("bots.{BOT}");
        configuration.set(&table, "burst", &quoted(burst));
        if burst == "collect" {
            configuration.set(&table, "quiet", &quoted(quiet));
        }
        if burst == "reject" {
            configuration.set(&table, "reject_reply", &quoted(NOTICE));
        }
    })
    .await;
    deployment.model.set_mood(Mood { extra_delay: MODEL_DELAY, ..Mood::default() });
    deployment
}

/// Twenty messages, one every ten milliseconds, and what they came to.
async fn burst(policy: &str, quiet: &str) -> (Deployment, Seen) {
    let mut deployment = start(policy, quiet).await;
    let mut pace = tokio::time::interval(PACE);
    for n in 1..=MESSAGES {
        pace.tick().await;
        deployment.telegram.send(CHAT, &message(CHAT, n));
        if policy == "interrupt" && n == 1 {
            // Else a slow machine has interrupted it as often as it may before the model is asked at all.
            deployment.model.wait_for_call(&message(CHAT, 1), PATIENCE).await;
        }
    }
    deployment.settled(MESSAGES as usize, Duration::from_secs(120)).await;
    let seen = Seen::of(&deployment).await;
    seen.print(policy);
    deployment.model.log(|log| assert!(log.overlaps.is_empty(), "turns at once: {:?}", log.overlaps));
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
    (deployment, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_messages_are_turns_of_their_own() {
    let (_deployment, seen) = burst("queue", "0s").await;
    seen.assert_all_answered("nothing");
    assert_eq!(seen.calls, (1..=MESSAGES).map(|n| vec![n]).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collected_messages_are_one_turn() {
    let (_deployment, seen) = burst("collect", "0s").await;
    seen.assert_all_answered("merged");
    assert_eq!(seen.calls, seen.answers, "the model is asked once about each");
    assert!(seen.answers.len() <= 3, "two turns unless the machine stood still: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collected_messages_are_waited_for() {
    let (_deployment, seen) = burst("collect", "1s").await;
    seen.assert_all_answered("merged");
    assert_eq!(seen.calls, seen.answers, "the model is asked once about each");
    assert!(seen.answers.len() <= 2, "one turn unless the machine stood still: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupting_messages_take_the_running_turns_place() {
    let (_deployment, seen) = burst("interrupt", "0s").await;
    seen.assert_all_answered("superseded");
    assert!(seen.answers.len() <= 3, "two turns unless the machine stood still: {seen:?}");
    assert!(seen.calls.len() > seen.answers.len(), "nothing was interrupted: {seen:?}");
    // Each call of a turn knows all that the call before it knew, and no output of a call that was cut short leaves.
    let mut answers = seen.answers.iter();
    let mut answered = 0;
    for calls in seen.calls.windows(2) {
        if calls[1][0] == calls[0][0] {
            assert!(calls[1].starts_with(&calls[0]), "{seen:?}");
        } else {
            assert_eq!(answers.next(), Some(&calls[0]), "{seen:?}");
            answered += 1;
        }
    }
    assert_eq!((answers.next(), answered + 1), (seen.calls.last(), seen.answers.len()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_during_a_turn_are_rejected_with_a_notice() {
    let (deployment, seen) = burst("reject", "0s").await;
    assert_eq!((seen.count("answered"), seen.count("rejected")), (seen.answers.len(), seen.notices), "{seen:?}");
    assert_eq!(seen.ledger.len(), MESSAGES as usize);
    assert_eq!(seen.calls, seen.answers, "the model never sees what was rejected");
    assert_eq!(seen.history, seen.answers.concat(), "nor does the history hold it");
    assert!(seen.answers.len() <= 2 && seen.answers[0] == [1], "one turn unless the machine stood still: {seen:?}");
    let texts = deployment.telegram.log(|log| log.texts(CHAT));
    assert_eq!(texts[0], NOTICE, "the notice does not wait for the turn");
}

/// A person's conversation holds everything, also what comes while something else of it is being stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_that_a_person_has_rejects_nothing() {
    let mut deployment = start("reject", "0s").await;
    deployment.model.set_mood(Mood::default());
    deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    deployment.settled(1, PATIENCE).await;
    deployment.patch_status("human").await;

    for n in 2..=MESSAGES {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.settled(MESSAGES as usize, PATIENCE).await;
    let seen = Seen::of(&deployment).await;
    assert_eq!((seen.count("answered"), seen.count("handed_off")), (1, MESSAGES as usize - 1), "{seen:?}");
    assert_eq!(seen.history, (1..=MESSAGES).collect::<Vec<_>>());
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_collected_turn_is_lost_or_doubled_by_a_kill() {
    survive_kills("collect", "merged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_interrupted_turn_is_lost_or_doubled_by_a_kill() {
    survive_kills("interrupt", "superseded").await;
}

/// Killed in the middle of the first turn, with messages behind it or on their way into it, and once more in the middle of
/// the one after the restart.
async fn survive_kills(policy: &str, earlier_state: &str) {
    let mut deployment = start(policy, "100ms").await;
    deployment.model.set_mood(Mood { extra_delay: Duration::from_secs(600), ..Mood::default() });
    for n in 1..=5 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.telegram.all_taken(PATIENCE).await;
    for kill in 1..=2 {
        let before = deployment.model.log(|log| log.calls.len());
        for n in kill * 5 + 1..=kill * 5 + 5 {
            deployment.telegram.send(CHAT, &message(CHAT, n));
        }
        deployment.telegram.all_taken(PATIENCE).await;
        deployment
            .model
            .wait("a turn to kill", PATIENCE, |log| log.running_calls() > 0 && log.calls.len() >= before)
            .await;
        deployment.turnwise.kill9().await;
        deployment.turnwise.start_again().await;
    }
    deployment.model.wait("the turn again", PATIENCE, |log| log.running_calls() > 0).await;
    // What runs now would run for minutes; the next process is answered at once.
    deployment.turnwise.kill9().await;
    deployment.model.set_mood(Mood::default());
    deployment.turnwise.start_again().await;
    for n in 16..=MESSAGES {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.settled(MESSAGES as usize, Duration::from_secs(120)).await;
    let seen = Seen::of(&deployment).await;
    seen.print(policy);
    seen.assert_all_answered(earlier_state);
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// Far more than a lane keeps in memory, and a kill in the middle: every policy takes up again what waits in the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_under_every_policy_and_survives_a_kill() {
    const FLOOD: u32 = 150;
    for policy in ["collect", "interrupt", "reject"] {
        let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
            configuration.set("worker", "lane_backlog", "6").set(&format!("bots.{BOT}"), "burst", &quoted(policy));
        })
        .await;
        deployment.model.set_mood(Mood { extra_delay: Duration::from_millis(50), ..Mood::default() });
        for n in 1..=FLOOD {
            deployment.telegram.send(CHAT, &message(CHAT, n));
        }
        deployment.settled_at_least(FLOOD as usize / 4, PATIENCE).await;
        deployment.turnwise.kill9().await;
        deployment.turnwise.start_again().await;
        deployment.telegram.all_taken(PATIENCE).await;
        deployment.settled_at_least(FLOOD as usize, PATIENCE).await;
        deployment.turnwise.terminate().await;

        let seen = Seen::of(&deployment).await;
        assert_eq!(seen.ledger.len(), FLOOD as usize, "{policy}");
        assert!(seen.history.is_sorted_by(|left, right| left < right), "{policy}: {:?}", seen.history);
        assert_eq!(seen.history.len(), FLOOD as usize - seen.count("rejected"), "{policy}");
        assert_eq!(seen.count("rejected") > 0, policy == "reject");
        deployment.turnwise.assert_audit_clean().await;
    }
}

/// A message that was answered comes again past the stream's memory, together with a new one: only that one is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_done_leaves_the_turn_it_comes_again_in() {
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        let table = format!("bots.{BOT}");
        configuration.set("nats", "duplicate_window", "\"1s\"");
        configuration.set(&table, "burst", "\"collect\"").set(&table, "quiet", "\"3s\"");
    })
    .await;
    let update = deployment.telegram.send(CHAT, &message(CHAT, 1));
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    let stream = format!("{NAMESPACE}_in");
    eventually("the stream to take the update again", PATIENCE, async || {
        assert_eq!(deployment.telegram.post(&update).await, Some(StatusCode::OK));
        (deployment.nats.last_sequence(&stream).await == 2).then_some(())
    })
    .await;
    deployment.telegram.send(CHAT, &message(CHAT, 2));
    let texts = deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    assert_eq!(texts, [1, 2].map(|n| support::responder::answer(CHAT, n)));
    deployment.settled(2, PATIENCE).await;
    let seen = Seen::of(&deployment).await;
    assert_eq!((seen.calls.as_slice(), seen.history.as_slice()), (&[vec![1], vec![2]][..], &[1, 2][..]), "{seen:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_given_up_takes_all_its_messages_and_tells_the_user_once() {
    const APOLOGY: &str = "Sorry.";
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        let table = format!("bots.{BOT}");
        configuration.set("worker", "max_attempts", "2").set(&table, "failure_reply", &quoted(APOLOGY));
        configuration.set(&table, "burst", "\"collect\"").set(&table, "quiet", "\"2s\"");
    })
    .await;
    let both = [message(CHAT, 1), message(CHAT, 2)].join("\n\n");
    deployment.model.always_fail(&both);
    for n in 1..=2 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    assert_eq!(deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await, [APOLOGY]);
    deployment.telegram.send(CHAT, &message(CHAT, 3));
    deployment.settled(3, PATIENCE).await;
    let states: Vec<_> = deployment.ledger.turns().await.into_iter().map(|row| (row.state, row.merged_into)).collect();
    let dead = || ("dead_lettered".to_owned(), None);
    assert_eq!(states, [dead(), dead(), ("answered".to_owned(), None)]);
    assert_eq!(deployment.model.log(|log| log.calls_for(&both)), 2, "attempts");
    let letters = deployment.nats.jetstream().await.get_stream(format!("{NAMESPACE}_dead")).await.unwrap();
    assert_eq!(letters.cached_info().state.messages, 2, "dead letters");
    assert_eq!(deployment.telegram.log(|log| log.texts(CHAT).len()), 2, "one apology, one answer");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_album_is_one_turn_under_any_policy() {
    for policy in ["queue", "reject"] {
        let mut deployment = start(policy, "0s").await;
        deployment.model.set_mood(Mood::default());
        let part = |caption: &str| {
            let mut update = deployment.telegram.update(CHAT, "");
            let content = update["message"].as_object_mut().unwrap();
            content.remove("text");
            content.insert("media_group_id".to_owned(), json!("77"));
            content.insert(
                "photo".to_owned(),
                json!([{ "file_id": "f", "file_unique_id": "u", "width": 1, "height": 1 }]),
            );
            if !caption.is_empty() {
                content.insert("caption".to_owned(), json!(caption));
            }
            update
        };
        let parts = [part("Which of these?"), part(""), part("")];
        for update in &parts {
            assert_eq!(deployment.telegram.post(update).await, Some(StatusCode::OK));
        }
        deployment.settled(3, PATIENCE).await;
        let seen = deployment.telegram.log(|log| log.texts(CHAT));
        assert_eq!(seen, ["re: Which of these?\n[photo]\n\n[photo]\n\n[photo]"], "{policy}");
        let rows = deployment.ledger.turns().await;
        let states: Vec<_> = rows.iter().map(|row| row.state.as_str()).collect();
        assert_eq!(states, ["merged", "merged", "answered"], "{policy}");
        assert!(rows[..2].iter().all(|row| row.merged_into == Some(rows[2].sequence)), "{rows:?}");
        deployment.turnwise.terminate().await;
        deployment.turnwise.assert_audit_clean().await;
    }
}

/// What is changed or taken back while it waits behind a running turn is answered as it is then, or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_and_deletions_reach_messages_that_still_wait() {
    const PERSON: &str = "201";
    let graph = Messenger::start().await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.messenger_bot("page", RESPONDER, &graph.base_url()).set("nats", "partitions", "1");
    })
    .await;
    let post = async |person: &str, event: &str, content: Value| {
        let event = json!({ "sender": { "id": person }, "recipient": { "id": PAGE_ID }, event: content });
        let entry = json!({ "id": PAGE_ID, "time": 1_800_000_000_000_u64, "messaging": [event] });
        let body = json!({ "object": "page", "entry": [entry] }).to_string();
        let request = http_client().post(deployment.turnwise.url("/webhooks/messenger/page"));
        let request = request.header("X-Hub-Signature-256", signature(&body)).body(body);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    };
    deployment.model.hold("one");
    for (mid, text) in [("m_1", "one"), ("m_2", "two"), ("m_3", "three"), ("m_4", "four")] {
        post(PERSON, "message", json!({ "mid": mid, "text": text })).await;
    }
    deployment.model.wait_for_call("one", PATIENCE).await;
    post(PERSON, "message_edit", json!({ "mid": "m_1", "text": "too late", "num_edit": 1 })).await;
    post(PERSON, "message_edit", json!({ "mid": "m_2", "text": "2", "num_edit": 1 })).await;
    post(PERSON, "message", json!({ "mid": "m_3", "is_deleted": true })).await;
    post(PERSON, "message_edit", json!({ "mid": "m_2", "text": "twice two", "num_edit": 2 })).await;
    // The one partition is read in order: once somebody else is answered, all of this is in its lane.
    post("202", "message", json!({ "mid": "m_5", "text": "other" })).await;
    graph.wait_for(1, PATIENCE).await;
    deployment.model.release("one");
    deployment.settled(9, PATIENCE).await;

    let sent: Vec<String> = graph.wait_for(4, PATIENCE).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(sent, ["re: other", "re: one", "re: twice two", "re: four"]);
    let states: Vec<String> = deployment.ledger.turns().await.into_iter().map(|turn| turn.state).collect();
    assert_eq!(
        states,
        ["answered", "answered", "ignored", "answered", "ignored", "ignored", "ignored", "ignored", "answered"],
        "an edit that came too late makes no turn"
    );
    let history = deployment.ledger.history_with("re: one").await;
    let said: Vec<_> =
        history.iter().filter(|message| message.role == "user").map(|message| &*message.content).collect();
    assert_eq!(said, ["too late", "twice two", "four"], "the stored copy of what was answered is the edited one");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_whose_message_was_merged_is_told_where_the_answer_is() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration
            .web_bot("web", RESPONDER)
            .set("bots.web", "burst", "\"collect\"")
            .set("bots.web", "quiet", "\"2s\"");
    })
    .await;
    let say = async |message: &str, conversation: Option<&Value>| {
        let mut body = json!({ "bot": "web", "device_id": "phone", "message": message });
        if let Some(conversation) = conversation {
            body["conversation_id"] = conversation.clone();
        }
        let request = http_client().post(deployment.turnwise.url("/v1/chat")).bearer_auth(WEB_KEY);
        let answer = request.header("Prefer", "respond-async").json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        answer.json::<Value>().await.unwrap()
    };
    let get = async |url: &Value| {
        let url = deployment.turnwise.url(url.as_str().unwrap());
        http_client().get(url).bearer_auth(WEB_KEY).send().await.unwrap().json::<Value>().await.unwrap()
    };
    let first = say("hello", None).await;
    let second = say("world", Some(&first["conversation_id"])).await;
    let merged = eventually("the first message to be merged", PATIENCE, async || {
        let turn = get(&first["url"]).await;
        (turn["status"] != "queued").then_some(turn)
    })
    .await;
    assert_eq!((&merged["status"], &merged["merged_into"]), (&json!("merged"), &second["turn_id"]), "{merged}");
    assert_eq!((&merged["reply"], &merged["url"]), (&Value::Null, &second["url"]), "{merged}");
    let answer = get(&merged["url"]).await;
    assert_eq!(answer["status"], "answered", "{answer}");
    assert_eq!(answer["reply"]["content"], "re: hello\n\nworld");
    assert_eq!((&answer["merged_into"], &answer["url"]), (&Value::Null, &second["url"]), "{answer}");
}
