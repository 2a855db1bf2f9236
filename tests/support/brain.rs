//! A stand-in for a model server (OpenAI's Chat Completions) that calls tools, and for the service behind these tools.
//!
//! What the model does next is a function of the conversation that it is shown: `calls` says which tools in which round, and
//! after the last round it answers with the results that it was given. Refuses to know Turnwise. Invariant: whatever came in is
//! in the log before it is answered.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Something that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The model was asked; how many results of tools it was shown since the last message of the user.
    Asked {
        user: String,
        results: usize,
    },
    Called {
        tool: String,
        key: String,
        arguments: Value,
    },
}

impl Seen {
    pub(crate) fn asked(user: &str, results: usize) -> Self {
        Self::Asked { user: user.to_owned(), results }
    }

    fn is_call_of(&self, name: &str) -> bool {
        matches!(self, Self::Called { tool, .. } if tool == name)
    }
}

/// Where the stand-in stops answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Point {
    Asked {
        results: usize,
    },
    /// The same, about this alone.
    AskedAbout {
        user: &'static str,
        results: usize,
    },
    Called {
        tool: &'static str,
    },
}

impl Point {
    pub(crate) fn is(&self, seen: &Seen) -> bool {
        match (self, seen) {
            (Self::Asked { results: at }, Seen::Asked { results, .. }) => at == results,
            (Self::AskedAbout { user: about, results: at }, Seen::Asked { user, results }) => {
                about == user && at == results
            }
            (Self::Called { tool }, seen) => seen.is_call_of(tool),
            (Self::Asked { .. } | Self::AskedAbout { .. }, Seen::Called { .. }) => false,
        }
    }
}

pub(crate) struct Brain {
    stage: Arc<Stage>,
    address: std::net::SocketAddr,
    _server: JoinSet<()>,
}

struct Stage {
    /// The tools that the model calls in each round.
    rounds: Vec<Vec<&'static str>>,
    log: watch::Sender<Vec<Seen>>,
    held: watch::Sender<Vec<Point>>,
    /// What the next calls of a tool are answered with instead of 200.
    refusals: Mutex<Vec<u16>>,
    /// Where the model refuses for good.
    failing: Mutex<Option<Point>>,
}

impl Brain {
    pub(crate) async fn start(rounds: &[&[&'static str]]) -> Self {
        let stage = Arc::new(Stage {
            rounds: rounds.iter().map(|round| round.to_vec()).collect(),
            log: watch::Sender::default(),
            held: watch::Sender::default(),
            refusals: Mutex::default(),
            failing: Mutex::default(),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/tools/{name}", post(tool))
            .with_state(Arc::clone(&stage));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { stage, address, _server: server }
    }

    /// For `base_url`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// For `url` of a tool.
    pub(crate) fn tool_url(&self, name: &str) -> String {
        format!("http://{}/tools/{name}", self.address)
    }

    /// From now on there is no answer at this point.
    pub(crate) fn hold(&self, point: Point) {
        self.stage.held.send_modify(|held| held.push(point));
    }

    /// There is an answer everywhere again.
    pub(crate) fn release(&self) {
        self.stage.held.send_modify(Vec::clear);
    }

    /// The same but for this point.
    pub(crate) fn release_but(&self, point: Point) {
        self.stage.held.send_replace(vec![point]);
    }

    /// From now on the model answers 400 at this point.
    pub(crate) fn fail_at(&self, point: Point) {
        *self.stage.failing.lock().unwrap() = Some(point);
    }

    /// The next call of a tool is answered with this status.
    pub(crate) fn refuse_next(&self, status: u16) {
        self.stage.refusals.lock().unwrap().push(status);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.stage.log.borrow().clone()
    }

    /// The calls of a tool: their idempotency keys and arguments.
    pub(crate) fn calls_of(&self, name: &str) -> Vec<(String, Value)> {
        let call = |seen| match seen {
            Seen::Called { tool, key, arguments } if tool == name => Some((key, arguments)),
            _ => None,
        };
        self.seen().into_iter().filter_map(call).collect()
    }

    /// Returns when the log fulfils `condition`.
    pub(crate) async fn wait(&self, what: &str, limit: Duration, mut condition: impl FnMut(&[Seen]) -> bool) {
        let mut log = self.stage.log.subscribe();
        let found = tokio::time::timeout(limit, log.wait_for(|log| condition(log))).await.is_ok();
        assert!(found, "waited {limit:?} in vain for {what}: {:?}", self.seen());
    }
}

impl Stage {
    /// Writes down what came, and returns when it may be answered.
    async fn note(&self, seen: Seen) {
        self.log.send_modify(|log| log.push(seen.clone()));
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held.iter().any(|point| point.is(&seen))).await.unwrap();
    }
}

async fn complete(State(stage): State<Arc<Stage>>, Json(request): Json<Value>) -> (StatusCode, Json<Value>) {
    let messages = request["messages"].as_array().unwrap();
    let last_user = messages.iter().rposition(|message| message["role"] == "user").unwrap();
    let results: Vec<String> = messages[last_user..]
        .iter()
        .filter(|message| message["role"] == "tool")
        .map(|message| message["content"].as_str().unwrap().to_owned())
        .collect();
    let user = messages[last_user]["content"].as_str().unwrap().to_owned();
    let seen = Seen::Asked { user: user.clone(), results: results.len() };
    stage.note(seen.clone()).await;
    if stage.failing.lock().unwrap().as_ref().is_some_and(|point| point.is(&seen)) {
        return (
            StatusCode::BAD_REQUEST,
            Json(json!({ "error": { "message": "no", "type": "invalid_request_error" } })),
        );
    }
    (StatusCode::OK, Json(completion(&answer(&stage, &user, &results))))
}

/// What the model says next.
fn answer(stage: &Stage, user: &str, results: &[String]) -> Value {
    let mut before = 0;
    for round in &stage.rounds {
        if results.len() == before {
            return calls(round, before, user);
        }
        before += round.len();
    }
    json!({ "role": "assistant", "content": format!("{user}: {}", results.join(", ")) })
}

fn calls(round: &[&str], before: usize, user: &str) -> Value {
    let calls: Vec<_> = round
        .iter()
        .enumerate()
        .map(|(place, tool)| {
            let arguments = json!({ "about": user }).to_string();
            let function = json!({ "name": tool, "arguments": arguments });
            json!({ "id": format!("call_{}", before + place), "type": "function", "function": function })
        })
        .collect();
    json!({ "role": "assistant", "content": null, "tool_calls": calls })
}

fn completion(message: &Value) -> Value {
    let finish_reason = if message["tool_calls"].is_null() { "stop" } else { "tool_calls" };
    json!({
        "id": "chatcmpl-stand-in",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "stand-in",
        "choices": [{ "index": 0, "message": message, "finish_reason": finish_reason }],
        "usage": { "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120 },
    })
}

async fn tool(
    State(stage): State<Arc<Stage>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(arguments): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    stage.note(Seen::Called { tool: name.clone(), key, arguments }).await;
    let status = stage.refusals.lock().unwrap().pop().unwrap_or(200);
    (StatusCode::from_u16(status).unwrap(), Json(json!(format!("{name} done"))))
}
