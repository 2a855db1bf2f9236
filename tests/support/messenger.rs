//! A stand-in for Messenger: the Send API of the Graph with its refusals and figures of usage, and webhook posts signed as Meta
//! signs them.
//!
//! Refuses to deliver again: tests that need that post twice. Invariant: a message is in the log exactly when the bearer
//! token and the page were right.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) const APP_SECRET: &str = "stand-in-app-secret";
pub(crate) const VERIFY_TOKEN: &str = "stand-in-verify-token";
pub(crate) const PAGE_TOKEN: &str = "stand-in-page-token";
pub(crate) const PAGE_ID: &str = "555000555";

/// One message sent through the Send API: to whom, and what.
pub(crate) type Sent = (String, String);

/// What becomes of the next message instead of an ordinary answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Not taken, for a reason of this code and subcode.
    Refuse(u32, u32),
    /// Taken; the header `X-App-Usage` says this.
    Usage(Value),
    /// Taken, but the answer is lost on the way.
    LostAnswer,
}

#[derive(Default)]
struct Graph {
    log: watch::Sender<Vec<Sent>>,
    /// The bodies of all requests, in order.
    requests: watch::Sender<Vec<Value>>,
    faults: Mutex<VecDeque<Fault>>,
}

pub(crate) struct Messenger {
    graph: Arc<Graph>,
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Messenger {
    pub(crate) async fn start() -> Self {
        let graph = Arc::new(Graph::default());
        let router = axum::Router::new()
            .route("/{version}/{page}/messages", axum::routing::post(send_message))
            .with_state(Arc::clone(&graph));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { graph, address, _server: server }
    }

    /// For `api_base`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What becomes of the next messages, in order.
    pub(crate) fn fail(&self, faults: &[Fault]) {
        self.graph.faults.lock().unwrap().extend(faults.iter().cloned());
    }

    /// Every request's body, once so many of them fit.
    pub(crate) async fn wait_for_requests(&self, count: usize, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut requests = self.graph.requests.subscribe();
        let enough = |requests: &Vec<Value>| requests.iter().filter(|request| fits(request)).count() >= count;
        let found = tokio::time::timeout(super::PATIENCE, requests.wait_for(enough)).await.is_ok();
        let requests = self.requests();
        assert!(found, "not {count} requests of the kind wanted: {requests:?}");
        requests
    }

    pub(crate) fn requests(&self) -> Vec<Value> {
        self.graph.requests.borrow().clone()
    }

    /// Returns everything sent, once there are at least `count` messages.
    pub(crate) async fn wait_for(&self, count: usize, limit: Duration) -> Vec<Sent> {
        let mut log = self.graph.log.subscribe();
        let found = tokio::time::timeout(limit, log.wait_for(|sent| sent.len() >= count)).await.is_ok();
        let sent = self.graph.log.borrow().clone();
        assert!(found, "after {limit:?} Messenger has {} of {count} messages: {sent:?}", sent.len());
        sent
    }
}

/// A webhook body with one text message of each of these people: (page-scoped id, message id, text).
pub(crate) fn batch(messages: &[(&str, &str, &str)]) -> String {
    let event = |&(person, mid, text): &(&str, &str, &str)| {
        json!({
            "sender": { "id": person },
            "recipient": { "id": PAGE_ID },
            "timestamp": 1_800_000_000_000_u64,
            "message": { "mid": mid, "text": text },
        })
    };
    let events: Vec<Value> = messages.iter().map(event).collect();
    let entry = json!({ "id": PAGE_ID, "time": 1_800_000_000_000_u64, "messaging": events });
    json!({ "object": "page", "entry": [entry] }).to_string()
}

/// The value of `X-Hub-Signature-256` for a raw body.
pub(crate) fn signature(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(APP_SECRET.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

async fn send_message(
    State(graph): State<Arc<Graph>>,
    Path((_version, page)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Response {
    graph.requests.send_modify(|requests| requests.push(request.clone()));
    let authorized = headers.get(header::AUTHORIZATION).is_some_and(|value| value == &format!("Bearer {PAGE_TOKEN}"));
    if !authorized || (page != PAGE_ID && page != "me") {
        return refusal("Invalid OAuth access token.", 190, 0);
    }
    if let (Some(person), Some("typing_on" | "mark_seen")) =
        (request["recipient"]["id"].as_str(), request["sender_action"].as_str())
    {
        return Json(json!({ "recipient_id": person })).into_response();
    }
    let (Some(person), Some(text)) = (request["recipient"]["id"].as_str(), request["message"]["text"].as_str()) else {
        return refusal("Invalid parameter", 100, 0);
    };
    let fault = graph.faults.lock().unwrap().pop_front();
    if let Some(Fault::Refuse(code, subcode)) = fault {
        return refusal("Refused by the stand-in", code, subcode);
    }
    let mut message_id = String::new();
    graph.log.send_modify(|sent| {
        sent.push((person.to_owned(), text.to_owned()));
        message_id = format!("m_stand_in_{}", sent.len());
    });
    let answer = Json(json!({ "recipient_id": person, "message_id": message_id }));
    match fault {
        Some(Fault::Usage(usage)) => ([("x-app-usage", usage.to_string())], answer).into_response(),
        Some(Fault::LostAnswer) => {
            let cut = stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))]);
            Response::builder().header(header::CONTENT_LENGTH, 10).body(Body::from_stream(cut)).unwrap()
        }
        _ => answer.into_response(),
    }
}

fn refusal(message: &str, code: u32, subcode: u32) -> Response {
    let mut error = json!({ "message": message, "type": "OAuthException", "code": code, "fbtrace_id": "stand-in" });
    if subcode != 0 {
        error["error_subcode"] = json!(subcode);
    }
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))).into_response()
}
