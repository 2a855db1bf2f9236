//! Messenger to the letter, through the real processes and a stand-in for the Graph: what echoes prove, who has a thread, when a
//! page may write, and what its refusals mean. Signatures, batches and fixtures are in `tests/channels`.
//!
//! Refuses to look inside, but for the one row that is made a day older than it is.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use support::messenger::{Fault, Messenger, PAGE_ID, signature};
use support::process::{CONSOLE_TOKEN, Configuration, NAMESPACE};
use support::responder::Behaviour;
use support::scenario::{Backend, Deployment, RESPONDER};
use support::tamper::execute;
use support::{PATIENCE, eventually, http_client};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const PERSON: &str = "301";

struct Page {
    deployment: Deployment,
    graph: Messenger,
}

impl Page {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(adjust: impl FnOnce(&mut Configuration)) -> Self {
        let graph = Messenger::start().await;
        let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
            adjust(configuration.messenger_bot("page", RESPONDER, &graph.base_url()));
        })
        .await;
        Self { deployment, graph }
    }

    /// Makes what people have said a day older than it is.
    async fn age(&self) {
        const OLDER: &str = "UPDATE messages SET created_at = created_at - 86400000000 WHERE author = 'user'";
        execute(self.deployment.database_url(), OLDER).await;
    }

    /// One event of this person's thread; an echo goes the other way round.
    async fn event(&self, list: &str, person: &str, kind: &str, content: Value) {
        let (sender, recipient) = if content["is_echo"] == true { (PAGE_ID, person) } else { (person, PAGE_ID) };
        let event = json!({ "sender": { "id": sender }, "recipient": { "id": recipient }, kind: content });
        let entry = json!({ "id": PAGE_ID, "time": 1_800_000_000_000_u64, list: [event] });
        let body = json!({ "object": "page", "entry": [entry] }).to_string();
        let request = http_client().post(self.deployment.turnwise.url("/webhooks/messenger/page"));
        let response = request.header("X-Hub-Signature-256", signature(&body)).body(body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
    }

    /// A message whose text is its id.
    async fn say(&self, text: &str) {
        self.event("messaging", PERSON, "message", json!({ "mid": text, "text": text })).await;
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let request = http_client().request(method, self.deployment.turnwise.url(path)).bearer_auth(CONSOLE_TOKEN);
        let request = body.map_or(request.try_clone().unwrap(), |body| request.json(body));
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await.1
    }

    /// The listed deliveries, newest first, once there are so many.
    async fn listed(&self, query: &str, count: usize) -> Vec<Value> {
        eventually("deliveries to be listed", PATIENCE, async || {
            let listed = self.get(&format!("/v1/deliveries?bot=page&{query}")).await;
            let listed = listed["deliveries"].as_array().unwrap().clone();
            (listed.len() == count).then_some(listed)
        })
        .await
    }

    async fn conversation(&self) -> Value {
        self.get("/v1/conversations").await["conversations"][0].clone()
    }

    /// The texts of the history, with their authors.
    async fn history(&self) -> Vec<(String, String)> {
        let conversation = self.conversation().await["id"].as_str().unwrap().to_owned();
        let page = self.get(&format!("/v1/conversations/{conversation}/messages")).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let messages = page["messages"].as_array().unwrap().iter();
        messages.map(|message| (text(&message["author"]), text(&message["content"]))).collect()
    }

    /// What has been sent, once there is so much.
    async fn sent(&self, count: usize) -> Vec<String> {
        self.graph.wait_for(count, PATIENCE).await.into_iter().map(|(_, text)| text).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_proves_that_a_reply_arrived() {
    let mut page = Page::start().await;
    page.graph.fail(&[Fault::LostAnswer]);
    page.say("hello").await;
    let uncertain = page.listed("status=uncertain", 1).await;
    assert_eq!(page.get("/v1/deliveries/totals").await["totals"][0]["status"], "uncertain");
    let sent = page.graph.wait_for_requests(1, |request| request["message"].is_object()).await;
    let metadata = &sent.iter().find(|request| request["message"].is_object()).unwrap()["message"]["metadata"];
    assert_eq!(*metadata, uncertain[0]["id"]);

    let echo = json!({ "mid": "m_echo", "is_echo": true, "app_id": 1, "text": "re: hello", "metadata": metadata });
    page.event("messaging", "999", "message", echo.clone()).await;
    page.deployment.settled(2, PATIENCE).await;
    page.listed("status=uncertain", 1).await;
    page.event("messaging", PERSON, "message", echo).await;
    page.listed("status=uncertain", 0).await;
    page.deployment.settled(3, PATIENCE).await;
    assert_eq!(page.deployment.ledger.deliveries().await[0].status, "sent");
    assert_eq!(page.conversation().await["status"], "bot", "an echo of ours silences nobody");
    assert_eq!(page.get("/v1/deliveries/totals").await["totals"], json!([]));
    page.deployment.turnwise.terminate().await;
    page.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_settles_what_nobody_can_tell_of() {
    let mut page = Page::start().await;
    page.graph.fail(&[Fault::LostAnswer, Fault::LostAnswer, Fault::LostAnswer]);
    for text in ["1", "2", "3"] {
        page.say(text).await;
    }
    let listed = page.listed("status=uncertain", 3).await;
    let id = |text: &str| {
        let found = listed.iter().find(|delivery| delivery["content"] == text);
        found.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let settle = async |id: &str, outcome: &str| {
        let body = json!({ "outcome": outcome, "actor": "ann", "reason": "looked at the page" });
        page.call(Method::POST, &format!("/v1/deliveries/{id}/settle"), Some(&body)).await
    };
    assert_eq!(settle(&id("re: 1"), "sent").await.1["status"], "sent");
    assert_eq!(settle(&id("re: 2"), "failed").await.1["status"], "failed");
    let (status, answer) = settle(&id("re: 3"), "resend").await;
    assert!(status == 200 && answer["id"] == id("re: 3"), "{status} {answer}");
    assert_eq!(page.sent(4).await, ["re: 1", "re: 2", "re: 3", "re: 3"]);
    page.listed("status=uncertain", 0).await;
    page.deployment.settled(3, PATIENCE).await;
    let (status, answer) = settle(&id("re: 1"), "resend").await;
    assert!(status == 409 && answer["detail"].as_str().unwrap().contains("sent"), "{status} {answer}");
    let statuses: Vec<_> = page.deployment.ledger.deliveries().await.into_iter().map(|found| found.status).collect();
    assert_eq!(statuses, ["sent", "failed", "sent"]);
    let verbs: Vec<_> = page.deployment.ledger.operator_actions().await;
    let verbs: Vec<_> = verbs.iter().map(|(verb, target, why)| (&**verb, target.clone(), why.as_deref())).collect();
    let why = Some("looked at the page");
    assert_eq!(
        verbs,
        [
            ("confirm_delivery", id("re: 1"), why),
            ("fail_delivery", id("re: 2"), why),
            ("resend_delivery", id("re: 3"), why)
        ]
    );
    page.deployment.turnwise.terminate().await;
    page.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bot_is_silent_while_somebody_else_has_the_thread() {
    let mut page = Page::start().await;
    page.say("1").await;
    page.sent(1).await;
    let words = json!({ "mid": "m_echo", "is_echo": true, "text": "a person here" });
    page.event("messaging", PERSON, "message", words).await;
    page.say("2").await;
    page.deployment.settled(3, PATIENCE).await;
    assert_eq!(page.conversation().await["status"], "human");
    // What another app answers is only shown to this one.
    page.event("standby", PERSON, "message", json!({ "mid": "m_standby", "text": "not for the bot" })).await;
    page.event("messaging", PERSON, "pass_thread_control", json!({ "new_owner_app_id": "1" })).await;
    page.say("3").await;
    assert_eq!(page.sent(2).await, ["re: 1", "re: 3"]);
    let history = page.history().await;
    let history: Vec<(&str, &str)> = history.iter().map(|(author, text)| (&**author, &**text)).collect();
    let expected =
        [("user", "1"), ("bot", "re: 1"), ("agent", "a person here"), ("user", "2"), ("user", "3"), ("bot", "re: 3")];
    assert_eq!(history, expected);
    assert_eq!(page.conversation().await["status"], "bot");

    page.graph.fail(&[Fault::Refuse(10, 2_018_300)]);
    page.say("4").await;
    let failed = page.listed("status=failed", 1).await;
    assert_eq!(failed[0]["error"], "taken_over: 10/2018300: Refused by the stand-in");
    assert_eq!(page.conversation().await["status"], "human", "the thread is another app's");
    page.event("messaging", PERSON, "take_thread_control", json!({ "previous_owner_app_id": "1" })).await;
    page.deployment.settled(8, PATIENCE).await;
    page.deployment.turnwise.terminate().await;
    page.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_a_day_after_the_last_message() {
    let page = Page::start().await;
    page.say("hello").await;
    page.sent(1).await;
    page.deployment.settled(1, PATIENCE).await;
    let conversation = page.conversation().await["id"].as_str().unwrap().to_owned();
    let messages = format!("/v1/conversations/{conversation}/messages");
    let (status, _) = page.call(Method::POST, &messages, Some(&json!({ "content": "still here?" }))).await;
    assert_eq!(status, 201);
    page.sent(2).await;

    page.age().await;
    let (status, _) = page.call(Method::POST, &messages, Some(&json!({ "content": "a day later" }))).await;
    assert_eq!(status, 201);
    let failed = page.listed("status=failed", 1).await;
    let error = failed[0]["error"].as_str().unwrap();
    assert!(error.starts_with("outside_window: ") && failed[0]["content"] == "a day later", "{failed:?}");
    // They write again, and are answered; what Meta knows better is marked alike.
    page.graph.fail(&[Fault::Refuse(10, 2_018_278)]);
    page.say("back").await;
    page.say("again").await;
    assert_eq!(page.sent(3).await, ["re: hello", "still here?", "re: again"]);
    let failed = page.listed("status=failed", 2).await;
    assert!(failed.iter().all(|one| one["error"].as_str().unwrap().starts_with("outside_window: ")), "{failed:?}");
}

/// The person has just written, though nothing of it is in the history: the notice about it is within the window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_given_up_or_turned_away_opens_the_window_too() {
    let page = Page::start_with(|configuration| {
        configuration.set("worker", "max_attempts", "1").set("bots.page", "burst", "\"reject\"");
        configuration.set("bots.page", "failure_reply", "\"Sorry.\"").set("bots.page", "reject_reply", "\"Wait.\"");
    })
    .await;
    page.say("hello").await;
    page.deployment.settled(1, PATIENCE).await;
    page.age().await;
    let model = &page.deployment.model;
    model.always_fail("given up");
    page.say("given up").await;
    page.deployment.settled(2, PATIENCE).await;
    model.hold("slow");
    page.say("slow").await;
    model.wait_for_call("slow", PATIENCE).await;
    page.say("turned away").await;
    page.deployment.settled(3, PATIENCE).await;
    model.release("slow");
    page.deployment.settled(4, PATIENCE).await;
    assert_eq!(page.sent(4).await, ["re: hello", "Sorry.", "Wait.", "re: slow"]);
    page.listed("status=failed", 0).await;
}

/// The platform repeats a webhook long after, and the stream has forgotten it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_that_comes_again_does_not_undo_a_later_one() {
    let mut page = Page::start_with(|configuration| {
        configuration.set("nats", "duplicate_window", "\"1s\"");
    })
    .await;
    page.say("1").await;
    page.sent(1).await;
    let edit = async |number: u32, text: &str| {
        let content = json!({ "mid": "1", "text": text, "num_edit": number });
        page.event("messaging", PERSON, "message_edit", content).await;
    };
    edit(1, "one").await;
    edit(2, "two").await;
    page.deployment.settled(3, PATIENCE).await;
    let stream = format!("{NAMESPACE}_in");
    eventually("the stream to take the first edit again", PATIENCE, async || {
        edit(1, "one").await;
        (page.deployment.nats.last_sequence(&stream).await > 3).then_some(())
    })
    .await;
    page.say("2").await;
    page.sent(2).await;
    let texts: Vec<String> = page.history().await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["two", "re: 1", "2", "re: 2"]);
    page.deployment.turnwise.terminate().await;
    page.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_near_slows_the_page_down_and_a_void_token_stops_it() {
    let page = Page::start().await;
    // 80 percent: a second and a half of silence.
    page.graph.fail(&[Fault::Usage(json!({ "call_count": 80, "total_time": 3, "total_cputime": 2 }))]);
    page.say("1").await;
    page.sent(1).await;
    let begun = tokio::time::Instant::now();
    page.say("2").await;
    page.sent(2).await;
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(1_200), "the second came after {waited:?}");

    page.graph.fail(&[Fault::Refuse(190, 0)]);
    page.say("3").await;
    page.listed("status=failed", 1).await;
    page.say("4").await;
    let failed = page.listed("status=failed", 2).await;
    let error = "disabled: 190: Refused by the stand-in";
    assert!(failed.iter().all(|delivery| delivery["error"] == error), "{failed:?}");
    let calls = page.graph.requests().into_iter().filter(|request| request["message"].is_object()).count();
    assert_eq!(calls, 3, "messages that left this machine");
    let metrics = http_client().get(page.deployment.turnwise.url("/metrics")).send().await.unwrap();
    assert!(metrics.text().await.unwrap().contains("turnwise_bot_shut_out{bot=\"page\"} 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_seen_edited_and_deleted_is_shown_and_stored() {
    let mut page = Page::start().await;
    page.deployment.model.hold("1");
    page.say("1").await;
    let is = |action: &'static str| move |request: &Value| request["sender_action"] == action;
    let requests = page.graph.wait_for_requests(1, is("typing_on")).await;
    let first = json!({ "recipient": { "id": PERSON }, "sender_action": "mark_seen" });
    assert_eq!(requests[0], first, "seen first, then typing");
    page.deployment.model.release("1");
    page.sent(1).await;
    page.say("2").await;
    page.sent(2).await;
    page.event("messaging", PERSON, "message_edit", json!({ "mid": "1", "text": "one", "num_edit": "1" })).await;
    page.event("messaging", PERSON, "message", json!({ "mid": "2", "is_deleted": true })).await;
    let reaction = json!({ "mid": "1", "action": "react", "reaction": "love", "emoji": "x" });
    page.event("messaging", PERSON, "reaction", reaction).await;
    page.deployment.settled(5, PATIENCE).await;
    let texts: Vec<String> = page.history().await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["one", "re: 1", "[deleted]", "re: 2"]);
    page.say("3").await;
    assert_eq!(page.sent(3).await[2], "re: 3");
    page.deployment.turnwise.terminate().await;
    page.deployment.turnwise.assert_audit_clean().await;
}
