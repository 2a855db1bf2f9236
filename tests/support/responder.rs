//! A stand-in for a model server (OpenAI's Chat Completions) that watches how it is called: which conversation, which
//! message, in which order, and whether two calls of one conversation ever overlap.
//!
//! Messages name themselves: `chat=<id> n=<k>`, k counting from 1. The answer is `re: <message>`. Delays and failures are
//! a function of seed, message and attempt, so that they do not depend on who came first. Refuses to know Turnwise.
//! Invariant: a call is running exactly until its answer is made or its caller is gone, whichever comes first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(crate) const API_KEY: &str = "stand-in-model-key";

/// The text by which the responder knows a message again.
pub(crate) fn message(chat: i64, n: u32) -> String {
    format!("chat={chat} n={n}")
}

/// The answer to [`message`].
pub(crate) fn answer(chat: i64, n: u32) -> String {
    format!("re: {}", message(chat, n))
}

/// Chat and number of a message, or of the answer to one.
pub(crate) fn parse(text: &str) -> Option<(i64, u32)> {
    let (chat, n) = text.strip_prefix("re: ").unwrap_or(text).strip_prefix("chat=")?.split_once(" n=")?;
    Some((chat.parse().ok()?, n.parse().ok()?))
}

/// How the model behaves; the default answers everything at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Behaviour {
    pub(crate) seed: u64,
    /// Each call takes a random time up to this.
    pub(crate) longest_delay: Duration,
    /// Of a hundred calls so many fail in one of the ways that a caller should try again after: 500, 429, an answer that
    /// breaks off.
    pub(crate) failures_percent: u32,
}

/// What comes on top of the behaviour for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mood {
    pub(crate) extra_delay: Duration,
    pub(crate) extra_failures_percent: u32,
}

/// One call, as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The last user message.
    pub(crate) message: String,
    /// The user messages before it.
    pub(crate) history: Vec<String>,
    pub(crate) began_at: Instant,
    /// When its answer was made or its caller was found gone; `None` while it is running.
    pub(crate) ended_at: Option<Instant>,
}

/// What has been asked of the model so far, in order of arrival, and what was wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) calls: Vec<Call>,
    /// Calls of one conversation that came while another of it was running.
    pub(crate) overlaps: Vec<String>,
    running: HashSet<i64>,
    attempts: HashMap<String, u32>,
}

impl Log {
    /// The numbers of each conversation's messages in the order in which they were first asked.
    pub(crate) fn first_attempts(&self) -> BTreeMap<i64, Vec<u32>> {
        let mut chats: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (chat, n) in self.calls.iter().filter_map(|call| parse(&call.message)) {
            let numbers = chats.entry(chat).or_default();
            if !numbers.contains(&n) {
                numbers.push(n);
            }
        }
        chats
    }

    /// Conversations with a call that has neither been answered nor abandoned.
    pub(crate) fn running_calls(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn calls_for(&self, message: &str) -> usize {
        self.calls.iter().filter(|call| call.message == message).count()
    }

    /// Calls whose history was not the messages right before theirs: something of the context was lost, doubled or swapped.
    pub(crate) fn broken_histories(&self) -> Vec<&Call> {
        self.calls.iter().filter(|call| !is_whole(call)).collect()
    }
}

/// Whether the history ends with the message before, and has no gap; it may begin anywhere, for it is pruned.
pub(crate) fn is_whole(call: &Call) -> bool {
    let Some((chat, n)) = parse(&call.message) else { return true };
    let numbers: Vec<_> = call.history.iter().map(|text| parse(text)).collect();
    let first = n - u32::try_from(numbers.len()).unwrap().min(n - 1);
    (n == 1 || !numbers.is_empty()) && numbers.into_iter().eq((first..n).map(|before| Some((chat, before))))
}

pub(crate) struct Model {
    state: Arc<ModelState>,
    address: SocketAddr,
    _server: JoinSet<()>,
}

struct ModelState {
    behaviour: Behaviour,
    mood: Mutex<Mood>,
    signs_answers: AtomicBool,
    log: watch::Sender<Log>,
    always_failing: Mutex<HashSet<String>>,
    answers: Mutex<HashMap<String, String>>,
    held: watch::Sender<HashSet<String>>,
}

impl Model {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        let state = Arc::new(ModelState {
            behaviour,
            mood: Mutex::default(),
            signs_answers: AtomicBool::new(false),
            log: watch::Sender::default(),
            always_failing: Mutex::default(),
            answers: Mutex::default(),
            held: watch::Sender::default(),
        });
        let router = axum::Router::new()
            .route("/v1/chat/completions", axum::routing::post(complete))
            .with_state(Arc::clone(&state));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { state, address, _server: server }
    }

    /// For `base_url`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// From now on every answer ends with ` call=<k>`, k being the call's place in [`Log::calls`], so that one can tell
    /// which of several calls for a message had an effect.
    pub(crate) fn sign_answers(&self) {
        self.state.signs_answers.store(true, Ordering::Relaxed);
    }

    /// For calls from now on.
    pub(crate) fn set_mood(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// From now on every call for this message gets a 500.
    pub(crate) fn always_fail(&self, message: &str) {
        self.state.always_failing.lock().unwrap().insert(message.to_owned());
    }

    /// From now on nothing always fails any more.
    pub(crate) fn mend(&self) {
        self.state.always_failing.lock().unwrap().clear();
    }

    /// From now on the answer to this message is `answer`.
    pub(crate) fn answer_with(&self, message: &str, answer: &str) {
        self.state.answers.lock().unwrap().insert(message.to_owned(), answer.to_owned());
    }

    /// From now on calls for this message get no answer until [`Model::release`].
    pub(crate) fn hold(&self, message: &str) {
        self.state.held.send_modify(|held| {
            held.insert(message.to_owned());
        });
    }

    pub(crate) fn release(&self, message: &str) {
        self.state.held.send_modify(|held| {
            held.remove(message);
        });
    }

    /// Looks at the log.
    pub(crate) fn log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.state.log.borrow())
    }

    /// Returns when the log fulfils `condition`, looked at after each call and each end of a call.
    pub(crate) async fn wait(&self, what: &str, limit: Duration, condition: impl FnMut(&Log) -> bool) {
        let mut log = self.state.log.subscribe();
        let found = tokio::time::timeout(limit, log.wait_for(condition)).await.is_ok();
        let calls = self.log(|log| log.calls.len());
        assert!(found, "waited {limit:?} in vain for {what}: the model was called {calls} times");
    }

    /// Returns when the model has been asked about this message.
    pub(crate) async fn wait_for_call(&self, message: &str, limit: Duration) {
        self.wait(&format!("a call for {message:?}"), limit, |log| log.calls_for(message) > 0).await;
    }
}

/// Ends a call in the log when it is dropped: with the answer made, or with the caller gone.
struct Running<'a> {
    state: &'a ModelState,
    chat: Option<i64>,
    /// Its place in [`Log::calls`].
    place: usize,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.state.log.send_modify(|log| {
            log.calls[self.place].ended_at = Some(Instant::now());
            if let Some(chat) = self.chat {
                log.running.remove(&chat);
            }
        });
    }
}

async fn complete(State(state): State<Arc<ModelState>>, Json(request): Json<Value>) -> Response {
    let mut users = user_messages(&request);
    let message = users.pop().unwrap_or_default();
    // Messages of one turn come as paragraphs.
    let chat = message.split("\n\n").next().and_then(parse).map(|(chat, _)| chat);
    let call = Call { message: message.clone(), history: users, began_at: Instant::now(), ended_at: None };
    let (attempt, place) = begin(&state, call, chat);
    let _running = Running { state: &state, chat, place };

    let mut random = StdRng::seed_from_u64(call_seed(state.behaviour.seed, &message, attempt));
    let longest_ms = u64::try_from(state.behaviour.longest_delay.as_millis()).unwrap();
    let mood = *state.mood.lock().unwrap();
    tokio::time::sleep(Duration::from_millis(random.random_range(0..=longest_ms)) + mood.extra_delay).await;
    state.held.subscribe().wait_for(|held| !held.contains(&message)).await.unwrap();

    if state.always_failing.lock().unwrap().contains(&message) {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "the model is out of order");
    }
    if random.random_range(0..100) < state.behaviour.failures_percent + mood.extra_failures_percent {
        return match random.random_range(0..3) {
            0 => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the model stumbled"),
            1 => ([(header::RETRY_AFTER, "0")], refusal(StatusCode::TOO_MANY_REQUESTS, "slow down")).into_response(),
            _ => Body::from_stream(stream::iter([Ok("{\"id\":\"chat"), Err(std::io::Error::other("cut"))]))
                .into_response(),
        };
    }
    let mut answer = state.answers.lock().unwrap().get(&message).cloned().unwrap_or_else(|| format!("re: {message}"));
    if state.signs_answers.load(Ordering::Relaxed) {
        answer += &format!(" call={place}");
    }
    if request["stream"].as_bool() == Some(true) { streamed(&answer) } else { whole(&answer) }
}

/// How many calls there have been for this message, and the call's place in the log.
fn begin(state: &ModelState, call: Call, chat: Option<i64>) -> (u32, usize) {
    let (mut attempt, mut place) = (0, 0);
    state.log.send_modify(|log| {
        let attempts = log.attempts.entry(call.message.clone()).or_default();
        *attempts += 1;
        attempt = *attempts;
        if chat.is_some_and(|chat| !log.running.insert(chat)) {
            log.overlaps.push(call.message.clone());
        }
        place = log.calls.len();
        log.calls.push(call);
    });
    (attempt, place)
}

/// The texts of the user's messages; content is a string or a list of parts.
fn user_messages(request: &Value) -> Vec<String> {
    let text = |content: &Value| match content {
        Value::String(text) => text.clone(),
        parts => parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect(),
    };
    let messages = request["messages"].as_array().into_iter().flatten();
    messages.filter(|message| message["role"] == "user").map(|message| text(&message["content"])).collect()
}

/// FNV-1a over seed, message and attempt: the same on every machine and in every run.
fn call_seed(seed: u64, message: &str, attempt: u32) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(message.bytes()).chain(attempt.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn whole(answer: &str) -> Response {
    Json(json!({
        "id": "chatcmpl-stand-in",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "stand-in",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": answer },
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 },
    }))
    .into_response()
}

fn streamed(answer: &str) -> Response {
    let chunk = |choices: &Value, usage: &Value| {
        let chunk = json!({
            "id": "chatcmpl-stand-in",
            "object": "chat.completion.chunk",
            "created": 1_800_000_000,
            "model": "stand-in",
            "choices": choices,
            "usage": usage,
        });
        format!("data: {chunk}\n\n")
    };
    let choice =
        |delta: Value, finish_reason: Value| json!([{ "index": 0, "delta": delta, "finish_reason": finish_reason }]);
    let mut events = chunk(&choice(json!({ "role": "assistant", "content": "" }), Value::Null), &Value::Null);
    events += &chunk(&choice(json!({ "content": answer }), Value::Null), &Value::Null);
    events += &chunk(&choice(json!({}), json!("stop")), &Value::Null);
    events += &chunk(&json!([]), &json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15 }));
    events += "data: [DONE]\n\n";
    ([(header::CONTENT_TYPE, "text/event-stream")], events).into_response()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let error = json!({ "message": message, "type": "server_error", "param": null, "code": null });
    (status, Json(json!({ "error": error }))).into_response()
}
