//! A stand-in model server on loopback: plays prepared answers in order and keeps every request it was sent.
//!
//! Refuses to guess: once the answers are used up it answers 418, which no test expects.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use axum::routing::post;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

/// How one request is answered.
pub(crate) enum Play {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// The first half of a good answer, then the connection breaks.
    Cut,
    /// Nothing, until the client goes away.
    Silence,
    /// A good answer, held back until the test says so.
    Held(Arc<Semaphore>),
    /// More bytes than anybody should read.
    Endless,
    /// What the test says, word by word, for as long as it holds the other end.
    Spoken(mpsc::UnboundedReceiver<Spoken>),
}

/// What comes next in an answer.
pub(crate) enum Spoken {
    Text(String),
    /// The connection breaks.
    Cut,
}

impl Spoken {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A request as it arrived.
pub(crate) struct Seen {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

pub(crate) struct Model {
    /// As `base_url` in a configuration.
    pub(crate) base_url: String,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    server: tokio::task::JoinHandle<()>,
}

struct Stage {
    plays: Mutex<VecDeque<Play>>,
    seen: mpsc::UnboundedSender<Seen>,
}

impl Model {
    pub(crate) async fn start(plays: impl IntoIterator<Item = Play>) -> Self {
        let (sender, seen) = mpsc::unbounded_channel();
        let stage = Arc::new(Stage { plays: Mutex::new(plays.into_iter().collect()), seen: sender });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/chat/completions", post(play)).with_state(stage);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { base_url, seen, server }
    }

    /// The bodies of all requests so far.
    pub(crate) fn bodies(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).map(|seen| seen.body).collect()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer of this status and JSON body.
pub(crate) fn status(status: u16, body: &Value) -> Play {
    Play::Answer { status, headers: Vec::new(), body: body.to_string() }
}

/// A streamed answer in which the model says `content`.
pub(crate) fn says(content: &str) -> Play {
    Play::Answer { status: 200, headers: Vec::new(), body: streamed(content) }
}

fn streamed(content: &str) -> String {
    let (first, second) = content.split_at(content.floor_char_boundary(content.len() / 2));
    spoken(first) + &spoken(second) + &said()
}

/// The event of one piece of text.
fn spoken(text: &str) -> String {
    let choice = json!([{ "index": 0, "delta": { "role": "assistant", "content": text }, "finish_reason": null }]);
    format!("data: {}\n\n", chunk(&choice, &Value::Null))
}

/// The events that end an answer.
fn said() -> String {
    let stop = chunk(&json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }]), &Value::Null);
    let usage = json!({ "prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17 });
    format!("data: {stop}\n\ndata: {}\n\ndata: [DONE]\n\n", chunk(&json!([]), &usage))
}

fn chunk(choices: &Value, usage: &Value) -> Value {
    json!({
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "model": "llama3:8b",
        "choices": choices,
        "usage": usage,
    })
}

/// The body of an answer by a server that ignores `stream`.
pub(crate) fn completion(message: &Value, finish_reason: &Value) -> Value {
    json!({
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "model": "llama3:8b",
        "choices": [{ "index": 0, "message": message, "finish_reason": finish_reason }],
        "usage": { "prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17 },
    })
}

async fn play(State(stage): State<Arc<Stage>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    stage.seen.send(Seen { headers, body: serde_json::from_slice(&body).unwrap() }).ok();
    let next = stage.plays.lock().unwrap().pop_front();
    let good = streamed("held back");
    match next {
        None => Response::builder().status(418).body(Body::empty()).unwrap(),
        Some(Play::Answer { status, headers, body }) => {
            let response = headers
                .into_iter()
                .fold(Response::builder().status(status), |response, (name, value)| response.header(name, value));
            response.body(Body::from(body)).unwrap()
        }
        Some(Play::Cut) => {
            let half = Bytes::from(good[..good.len() / 2].to_owned());
            let broken = std::io::Error::other("cut");
            Response::new(Body::from_stream(stream::iter([Ok(half), Err(broken)])))
        }
        Some(Play::Silence) => std::future::pending().await,
        Some(Play::Held(go)) => {
            go.acquire().await.unwrap().forget();
            Response::new(Body::from(good))
        }
        Some(Play::Spoken(words)) => Response::new(Body::from_stream(stream::unfold(Some(words), next_spoken))),
        Some(Play::Endless) => {
            let chunk = Bytes::from(vec![b' '; 65_536]);
            Response::new(Body::from_stream(stream::repeat(chunk).map(Ok::<_, Infallible>)))
        }
    }
}

type Words = mpsc::UnboundedReceiver<Spoken>;

async fn next_spoken(words: Option<Words>) -> Option<(Result<Bytes, std::io::Error>, Option<Words>)> {
    let mut words = words?;
    Some(match words.recv().await {
        Some(Spoken::Text(text)) => (Ok(spoken(&text).into()), Some(words)),
        Some(Spoken::Cut) => (Err(std::io::Error::other("cut")), None),
        None => (Ok(said().into()), None),
    })
}
