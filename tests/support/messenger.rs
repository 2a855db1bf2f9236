//! A stand-in for Messenger: the Send API of the Graph, and webhook posts signed as Meta signs them.
//!
//! Refuses to deliver again: tests that need that post twice. Invariant: a message is in the log exactly when the bearer
//! token and the page were right.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
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

pub(crate) struct Messenger {
    log: Arc<watch::Sender<Vec<Sent>>>,
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Messenger {
    pub(crate) async fn start() -> Self {
        let log = Arc::new(watch::Sender::default());
        let router = axum::Router::new()
            .route("/{version}/{page}/messages", axum::routing::post(send_message))
            .with_state(Arc::clone(&log));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { log, address, _server: server }
    }

    /// For `api_base`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns everything sent, once there are at least `count` messages.
    pub(crate) async fn wait_for(&self, count: usize, limit: Duration) -> Vec<Sent> {
        let mut log = self.log.subscribe();
        let found = tokio::time::timeout(limit, log.wait_for(|sent| sent.len() >= count)).await.is_ok();
        let sent = self.log.borrow().clone();
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
    State(log): State<Arc<watch::Sender<Vec<Sent>>>>,
    Path((_version, page)): Path<(String, String)>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let authorized = headers.get(header::AUTHORIZATION).is_some_and(|value| value == &format!("Bearer {PAGE_TOKEN}"));
    if !authorized || (page != PAGE_ID && page != "me") {
        return (StatusCode::BAD_REQUEST, refusal("Invalid OAuth access token.", 190));
    }
    if let (Some(person), Some("typing_on")) = (request["recipient"]["id"].as_str(), request["sender_action"].as_str())
    {
        return (StatusCode::OK, Json(json!({ "recipient_id": person })));
    }
    let (Some(person), Some(text)) = (request["recipient"]["id"].as_str(), request["message"]["text"].as_str()) else {
        return (StatusCode::BAD_REQUEST, refusal("Invalid parameter", 100));
    };
    let mut message_id = String::new();
    log.send_modify(|sent| {
        sent.push((person.to_owned(), text.to_owned()));
        message_id = format!("m_stand_in_{}", sent.len());
    });
    (StatusCode::OK, Json(json!({ "recipient_id": person, "message_id": message_id })))
}

fn refusal(message: &str, code: u16) -> Json<Value> {
    Json(json!({ "error": { "message": message, "type": "OAuthException", "code": code, "fbtrace_id": "stand-in" } }))
}
