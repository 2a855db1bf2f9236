//! A turn as its watchers see it: text while it is made, the reply, coming back in the middle and afterwards, attempts that
//! fail, processes that die, callers that do not read; and "is typing" in a Telegram chat.
//!
//! The model says each word when the test says so, so that every order of events is one that the test has made.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use model::{Play, Spoken};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use support::process::{Configuration, Turnwise, WEB_KEY};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::{PATIENCE, eventually, http_client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/model.rs"]
mod model;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_comes_as_it_is_made_and_then_the_reply() {
    let mut stage = Stage::start(1).await;
    let mut stream = stage.say("hello").await;
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no")]
    {
        assert_eq!(stream.header(name), value, "{name}");
    }
    let accepted = stream.next().await;
    assert_eq!(accepted.name, "accepted", "{accepted:?}");
    for member in ["conversation_id", "turn_id", "trace_id"] {
        assert!(accepted.data[member].is_string(), "{member} in {accepted:?}");
    }
    assert_eq!(accepted.data["url"], format!("/v1/turns/{}", accepted.turn_id()));

    let model = stage.speaker();
    for words in ["Hel", "lo, \"you\"\n", "Grüße"] {
        model.send(Spoken::text(words)).unwrap();
        let delta = stream.next().await;
        assert_eq!((delta.name.as_str(), &delta.data), ("delta", &json!({ "text": words })));
    }
    drop(model);
    let reply = stream.next().await;
    assert_eq!(reply.name, "reply", "{reply:?}");
    assert_eq!(reply.data["status"], "answered");
    assert_eq!(reply.data["reply"]["content"], "Hello, \"you\"\nGrüße");
    assert_eq!(reply.data["trace_id"], accepted.data["trace_id"]);
    assert_eq!(stream.next().await.name, "done");
    assert!(stream.ended().await);
    let ids: Vec<_> = stream.seen.iter().map(|event| event.id.as_str()).collect();
    assert!(ids.iter().all(|id| !id.is_empty()) && ids.is_sorted_by(|left, right| left != right), "{ids:?}");

    // Without the header nothing has changed.
    let turn = stage.get(accepted.data["url"].as_str().unwrap(), None).await;
    assert_eq!(turn.json::<Value>().await.unwrap()["reply"]["content"], reply.data["reply"]["content"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_is_told_what_was_missed_and_nothing_twice() {
    let mut stage = Stage::start(1).await;
    let mut first = stage.say("hello").await;
    let turn_id = first.next().await.turn_id();
    let model = stage.speaker();
    model.send(Spoken::text("one ")).unwrap();
    let heard = first.next().await;
    drop(first);

    model.send(Spoken::text("two ")).unwrap();
    let mut back = stage.events(&turn_id, Some(&heard.id)).await;
    let missed = back.next().await;
    assert_eq!((missed.name.as_str(), &missed.data), ("delta", &json!({ "text": "two " })), "and no `accepted`");
    let mut stranger = stage.events(&turn_id, None).await;
    assert_eq!(stranger.next().await.name, "accepted");
    assert_eq!(stranger.text_until("one two ").await, "one two ");
    let mut lost = stage.events(&turn_id, Some("some id of long ago")).await;
    assert_eq!(lost.next().await.name, "accepted", "an unknown id is as good as none");
    model.send(Spoken::text("three")).unwrap();
    assert_eq!(back.next().await.data, json!({ "text": "three" }), "what the others asked for is not told again");
    assert_eq!(lost.text_until("one two three").await, "one two three");
    drop(model);
    for stream in [&mut back, &mut stranger, &mut lost] {
        let (reply, done) = stream.outcome().await;
        assert_eq!(reply.data["reply"]["content"], "one two three");
        assert_eq!(done.name, "done");
    }

    // Afterwards the words do not count any more.
    let mut late = stage.events(&turn_id, Some(&heard.id)).await;
    let (reply, done) = late.outcome().await;
    assert_eq!((reply.name.as_str(), late.seen.len()), ("reply", 2), "{:?}", late.seen);
    let mut later = stage.events(&turn_id, Some(&reply.id)).await;
    assert_eq!(later.next().await.name, "done");
    assert!(later.ended().await);
    let nothing = stage.get(&format!("/v1/turns/{turn_id}/events"), Some(&done.id)).await;
    assert_eq!(nothing.status(), StatusCode::NO_CONTENT);
    let url = stage.deployment.turnwise.url(&format!("/v1/turns/{turn_id}/events"));
    assert_eq!(http_client().get(url).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let unknown = stage.get("/v1/turns/0193e8a0-0000-7000-8000-000000000000/events", None).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_for_events_is_refused_before_anything_is_done() {
    let stage = Stage::start(1).await;
    let mut bad = say("hello");
    bad["device_id"] = json!(" ");
    let refused = stage.post(&bad).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    assert_eq!(stage.deployment.ledger.row_counts().await, [0; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_words_of_a_failed_attempt_are_taken_back() {
    let mut stage = Stage::start(2).await;
    let mut stream = stage.say("hello").await;
    let turn_id = stream.next().await.turn_id();
    let model = stage.speaker();
    model.send(Spoken::text("Wrong")).unwrap();
    let wrong = stream.next().await;
    assert_eq!(wrong.data, json!({ "text": "Wrong" }));
    model.send(Spoken::Cut).unwrap();

    let reset = stream.next().await;
    assert_eq!(reset.data["reset"], json!(true), "{reset:?}");
    let model = stage.speaker();
    model.send(Spoken::text("Right")).unwrap();
    assert_eq!(stream.text_until("Right").await, "Right");
    let mut back = stage.events(&turn_id, Some(&wrong.id)).await;
    assert_eq!(back.next().await.data, json!({ "text": "Right", "reset": true }));
    drop(model);
    for stream in [&mut stream, &mut back] {
        assert_eq!(stream.outcome().await.0.data["reply"]["content"], "Right");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_given_up_ends_with_the_problem() {
    let stage = Stage::start(0).await;
    let mut stream = stage.say("the model answers 418").await;
    stream.next().await;
    let (error, done) = stream.outcome().await;
    assert_eq!((error.name.as_str(), done.name.as_str()), ("error", "done"));
    assert_eq!(error.data["type"], "urn:turnwise:problem:dead-lettered");
    assert_eq!((&error.data["status"], &error.data["turn_status"]), (&json!(500), &json!("dead_lettered")));
    assert_eq!(error.data["reply"]["content"], "Sorry.", "the failure reply is there as well");
    assert!(error.data["title"].is_string() && error.data["detail"].is_string(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_that_runs_the_turn_may_be_another_one_and_may_die() {
    let mut stage = Stage::start_as(2, Some("worker,egress")).await;
    let front = stage.deployment.turnwise.configuration().beside();
    let front = Turnwise::spawn_as(front, Some("ingress")).await;
    stage.front = Some(front);
    let mut stream = stage.say("hello").await;
    assert_eq!(stream.next().await.name, "accepted");
    let model = stage.speaker();
    model.send(Spoken::text("The first")).unwrap();
    assert_eq!(stream.next().await.data, json!({ "text": "The first" }));

    stage.deployment.turnwise.kill9().await;
    stage.deployment.turnwise.start_again().await;
    let model = stage.speaker();
    model.send(Spoken::text("The second")).unwrap();
    assert_eq!(stream.text_until("The second").await, "The second");
    assert!(stream.seen.iter().any(|event| event.data["reset"] == json!(true)), "{:?}", stream.seen);
    drop(model);
    assert_eq!(stream.outcome().await.0.data["reply"]["content"], "The second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off_and_can_come_back() {
    const PIECE: usize = 32 * 1024;
    const PIECES: usize = 110;
    let mut stage = Stage::start(1).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let url: reqwest::Url = stage.deployment.turnwise.url("/v1/chat").parse().unwrap();
    let mut idle = socket.connect(([127, 0, 0, 1], url.port().unwrap()).into()).await.unwrap();
    let body = say("hello").to_string();
    let request = format!(
        "POST /v1/chat HTTP/1.1\r\nHost: turnwise\r\nAuthorization: Bearer {WEB_KEY}\r\nAccept: text/event-stream\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    idle.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let is_accepted = |head: &[u8]| {
        let head = String::from_utf8_lossy(head);
        head.split_once("event: accepted\n").is_some_and(|(_, event)| event.contains("\n\n"))
    };
    while !is_accepted(&head) {
        assert!(idle.read_buf(&mut head).await.unwrap() > 0, "the events begin");
    }

    let model = stage.speaker();
    for _ in 0..PIECES {
        model.send(Spoken::text(&"x".repeat(PIECE))).unwrap();
    }
    stage.metric("turnwise_event_streams_ended_total{reason=\"slow\"} 1").await;
    let (turns, _) = stage.deployment.ledger.progress().await;
    assert_eq!(turns, 0, "the turn still runs");
    drop(model);
    stage.deployment.settled(1, PATIENCE).await;

    let head = String::from_utf8_lossy(&head).into_owned();
    let turn_id = head.split("\"turn_id\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let mut back = stage.events(turn_id, Some("accepted")).await;
    let (reply, _) = back.outcome().await;
    assert_eq!(reply.data["reply"]["content"].as_str().map(str::len), Some(PIECE * PIECES));
    drop(idle);
    stage.metric("turnwise_event_streams 0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_is_seen_while_a_turn_takes_long_and_not_after_it() {
    const QUICK: i64 = 1;
    const SLOW: i64 = 2;
    const OTHER: i64 = 3;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    let (telegram, model) = (&deployment.telegram, &deployment.model);
    telegram.send(QUICK, "quick");
    telegram.wait_for_texts(QUICK, 1, PATIENCE).await;
    for (chat, message) in [(SLOW, "slow"), (OTHER, "slower")] {
        model.hold(message);
        telegram.send(chat, message);
        let actions = |log: &support::telegram::Log| log.actions.iter().filter(|action| action.chat == chat).count();
        telegram.wait("typing, and again", PATIENCE, |log| actions(log) >= 2).await;
        model.release(message);
        telegram.wait_for_texts(chat, 1, PATIENCE).await;
    }
    deployment.settled(3, PATIENCE).await;

    telegram.log(|log| {
        let of = |chat: i64| log.actions.iter().filter(move |action| action.chat == chat);
        assert_eq!(of(QUICK).count(), 0, "who answers at once is not seen typing");
        for chat in [SLOW, OTHER] {
            let times: Vec<_> = of(chat).map(|action| action.at).collect();
            let replied_at = log.delivered.iter().find(|sent| sent.chat == chat).unwrap().at;
            assert!(times.iter().all(|at| *at < replied_at), "none after the reply in chat {chat}");
            let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(pauses.min() > Some(Duration::from_secs(4)), "at most once per interval in chat {chat}: {times:?}");
        }
    });
    assert_eq!(deployment.ledger.deliveries().await.len(), 3, "typing is no delivery");
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bot_that_shall_not_is_not_seen_typing() {
    const CHAT: i64 = 1;
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set(&format!("bots.{BOT}"), "typing", "false").set(
            &format!("responders.{RESPONDER}"),
            "timeout",
            "\"1s\"",
        );
    })
    .await;
    // Until the call times out: long enough to have been seen.
    deployment.model.hold("slow");
    deployment.telegram.send(CHAT, "slow");
    deployment.model.wait("a second attempt", PATIENCE, |log| log.calls_for("slow") == 2).await;
    deployment.model.release("slow");
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    assert_eq!(deployment.telegram.log(|log| log.actions.len()), 0);
}

/// A deployment with a web bot whose model speaks as the test says.
struct Stage {
    deployment: Deployment,
    /// The process that is asked, where it is another one.
    front: Option<Turnwise>,
    speakers: Vec<mpsc::UnboundedSender<Spoken>>,
    _model: model::Model,
}

impl Stage {
    /// The model answers so many calls, then 418.
    async fn start(calls: usize) -> Self {
        Self::start_as(calls, None).await
    }

    async fn start_as(calls: usize, roles: Option<&'static str>) -> Self {
        let (mut speakers, plays): (Vec<_>, Vec<_>) = (0..calls)
            .map(|_| {
                let (speaker, words) = mpsc::unbounded_channel();
                (speaker, Play::Spoken(words))
            })
            .unzip();
        speakers.reverse();
        let model = model::Model::start(plays).await;
        let adjust = |configuration: &mut Configuration| {
            configuration.openai_responder("speaker", &model.base_url).web_bot("web", "speaker").set(
                "bots.web",
                "failure_reply",
                "\"Sorry.\"",
            );
        };
        let deployment = Deployment::start_as(Backend::Sqlite, Behaviour::default(), roles, adjust).await;
        Self { deployment, front: None, speakers, _model: model }
    }

    /// What the model says to the next call. Dropped, it has said everything.
    fn speaker(&mut self) -> mpsc::UnboundedSender<Spoken> {
        self.speakers.pop().expect("a call that the model answers")
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = self.front.as_ref().unwrap_or(&self.deployment.turnwise).url(path);
        http_client().request(method, url).bearer_auth(WEB_KEY).header("Accept", "text/event-stream")
    }

    async fn post(&self, body: &Value) -> Response {
        self.request(Method::POST, "/v1/chat").json(body).send().await.unwrap()
    }

    async fn get(&self, path: &str, last_event_id: Option<&str>) -> Response {
        let mut request = self.request(Method::GET, path);
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        request.send().await.unwrap()
    }

    async fn say(&self, message: &str) -> Stream {
        Stream::of(self.post(&say(message)).await)
    }

    async fn events(&self, turn_id: &str, last_event_id: Option<&str>) -> Stream {
        Stream::of(self.get(&format!("/v1/turns/{turn_id}/events"), last_event_id).await)
    }

    /// Returns when the measurements have this line.
    async fn metric(&self, line: &str) {
        eventually(&format!("the measurement {line}"), PATIENCE, async || {
            let page = self.get("/metrics", None).await.text().await.unwrap();
            page.lines().any(|found| found == line).then_some(())
        })
        .await;
    }
}

fn say(message: &str) -> Value {
    json!({ "bot": "web", "device_id": "phone", "message": message })
}

#[derive(Debug, Clone)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

impl Event {
    fn turn_id(&self) -> String {
        self.data["turn_id"].as_str().unwrap().to_owned()
    }
}

/// The events of one connection.
struct Stream {
    response: Response,
    text: String,
    seen: Vec<Event>,
}

impl Stream {
    fn of(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK, "{response:?}");
        Self { response, text: String::new(), seen: Vec::new() }
    }

    fn header(&self, name: &str) -> &str {
        self.response.headers()[name].to_str().unwrap()
    }

    /// The next event; panics at the end.
    async fn next(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.read()).await;
        event.unwrap_or_else(|_| panic!("nothing more after {:?}", self.seen)).expect("one more event")
    }

    /// Whether the connection ends without another event.
    async fn ended(&mut self) -> bool {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("an end").is_none()
    }

    /// Reads until the text so far ends with this; gives the text since the last reset.
    async fn text_until(&mut self, end: &str) -> String {
        loop {
            let text = self.text_so_far();
            if text.ends_with(end) {
                return text;
            }
            let event = self.next().await;
            assert_eq!(event.name, "delta", "{event:?} after {text:?}");
        }
    }

    fn text_so_far(&self) -> String {
        self.seen.iter().filter(|event| event.name == "delta").fold(String::new(), |text, delta| {
            let before = if delta.data["reset"] == json!(true) { String::new() } else { text };
            before + delta.data["text"].as_str().unwrap()
        })
    }

    /// Reads to the end; gives the last two events.
    async fn outcome(&mut self) -> (Event, Event) {
        while !self.ended().await {}
        let [.., outcome, done] = &self.seen[..] else { panic!("no outcome in {:?}", self.seen) };
        (outcome.clone(), done.clone())
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = event(block);
                self.text = rest.to_owned();
                if let Some(event) = event {
                    self.seen.push(event.clone());
                    return Some(event);
                }
            }
            let chunk = self.response.chunk().await.unwrap()?;
            self.text += std::str::from_utf8(&chunk).expect("events are not split within a character");
        }
    }
}

/// An event; `None` for comments and for what only says when to come back.
fn event(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let (name, id) = (field("event")?.to_owned(), field("id")?.to_owned());
    Some(Event { name, id, data: serde_json::from_str(field("data")?).unwrap() })
}
