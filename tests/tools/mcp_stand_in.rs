//! A stand-in MCP server that speaks streamable HTTP with JSON answers, knows its sessions, and refuses as it is told to.
//!
//! Refuses to guess: once the refusals are used up, calls succeed and say what they were handed. Invariant: a session that it
//! was told to forget is answered 404.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use axum::routing::post;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};

/// How a call is refused: status, `Retry-After`, body.
pub(crate) type Refusal = (u16, Option<&'static str>, String);

#[derive(Clone)]
pub(crate) struct StandIn {
    pub(crate) url: String,
    state: Arc<Shared>,
}

struct Shared {
    sessions: Mutex<HashSet<String>>,
    refusals: Mutex<VecDeque<Refusal>>,
    tools: Mutex<Vec<Value>>,
    calls: Mutex<Vec<(HeaderMap, Value)>>,
    pings: watch::Sender<usize>,
    events: broadcast::Sender<Value>,
}

impl StandIn {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let state = Arc::new(Shared {
            sessions: Mutex::default(),
            refusals: Mutex::default(),
            tools: Mutex::new(vec![tool("book")]),
            calls: Mutex::default(),
            pings: watch::Sender::new(0),
            events: broadcast::channel(8).0,
        });
        let router = Router::new().route("/mcp", post(answer).get(events).delete(end)).with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state }
    }

    /// The next call is refused like this.
    pub(crate) fn refuse(&self, status: u16, retry_after: Option<&'static str>, body: impl Into<String>) {
        self.state.refusals.lock().unwrap().push_back((status, retry_after, body.into()));
    }

    pub(crate) fn forget_sessions(&self) {
        self.state.sessions.lock().unwrap().clear();
    }

    /// From now on it offers these, and says so.
    pub(crate) fn offer(&self, tools: Vec<Value>) {
        *self.state.tools.lock().unwrap() = tools;
        let changed = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
        self.state.events.send(changed).unwrap();
    }

    /// Every call that was not refused, with its headers.
    pub(crate) fn calls(&self) -> Vec<(HeaderMap, Value)> {
        self.state.calls.lock().unwrap().clone()
    }

    /// Returns when it has been pinged so often.
    pub(crate) async fn pinged(&self, times: usize) {
        self.state.pings.subscribe().wait_for(|pings| *pings >= times).await.unwrap();
    }

    /// The sessions that it knows.
    pub(crate) fn sessions(&self) -> HashSet<String> {
        self.state.sessions.lock().unwrap().clone()
    }

    /// How many sessions are open and listening.
    pub(crate) fn listeners(&self) -> usize {
        self.state.events.receiver_count()
    }
}

pub(crate) fn tool(name: &str) -> Value {
    json!({ "name": name, "description": "Books.", "inputSchema": { "type": "object" } })
}

async fn answer(State(state): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let message: Value = serde_json::from_slice(&body).unwrap();
    let session = headers.get("mcp-session-id").map(|session| session.to_str().unwrap().to_owned());
    let known = session.is_some_and(|session| state.sessions.lock().unwrap().contains(&session));
    let method = message["method"].as_str().unwrap_or_default();
    if method != "initialize" && !known {
        return refusal(&(404, None, "no such session".to_owned()));
    }
    let (result, session) = match method {
        "initialize" => {
            let session = uuid::Uuid::now_v7().to_string();
            state.sessions.lock().unwrap().insert(session.clone());
            let result = json!({
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": { "tools": { "listChanged": true } },
                "serverInfo": { "name": "stand-in", "version": "1" },
            });
            (result, Some(session))
        }
        "tools/list" => (json!({ "tools": *state.tools.lock().unwrap() }), None),
        "tools/call" => {
            if let Some(refused) = state.refusals.lock().unwrap().pop_front() {
                return refusal(&refused);
            }
            state.calls.lock().unwrap().push((headers, message["params"].clone()));
            (json!({ "content": [{ "type": "text", "text": "booked" }] }), None)
        }
        "ping" => {
            state.pings.send_modify(|pings| *pings += 1);
            (json!({}), None)
        }
        _ => return Response::builder().status(202).body(Body::empty()).unwrap(),
    };
    let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result });
    let response = Response::builder().header("content-type", "application/json");
    let response = session.into_iter().fold(response, |response, session| response.header("mcp-session-id", session));
    response.body(Body::from(answer.to_string())).unwrap()
}

fn refusal((status, retry_after, body): &Refusal) -> Response<Body> {
    let response = Response::builder().status(*status).header("content-type", "application/json");
    let response = retry_after.iter().fold(response, |response, after| response.header("retry-after", *after));
    response.body(Body::from(body.clone())).unwrap()
}

async fn events(State(state): State<Arc<Shared>>) -> Response<Body> {
    let events = stream::unfold(state.events.subscribe(), |mut events| async move {
        let event = events.recv().await.ok()?;
        Some((format!("data: {event}\n\n"), events))
    });
    let body = Body::from_stream(events.map(Ok::<_, Infallible>));
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

async fn end(State(state): State<Arc<Shared>>, headers: HeaderMap) {
    if let Some(session) = headers.get("mcp-session-id") {
        state.sessions.lock().unwrap().remove(session.to_str().unwrap());
    }
}
