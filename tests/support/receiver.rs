//! A stand-in for any other platform: it signs what it sends, and takes callbacks, as Standard Webhooks 1.0.0 has both.
//!
//! Refuses to dedupe: tests look at what came. Invariant: the log holds every callback, with whether its signature was right.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http_client;

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(crate) const NEXT_SECRET: &str = "whsec_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

/// What becomes of a callback; without one, 204.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reaction {
    Status(u16),
    /// 503 with `Retry-After`, in seconds.
    Overloaded(u32),
    /// No answer comes.
    Hang,
}

/// One callback as it came.
#[derive(Debug, Clone)]
pub(crate) struct Callback {
    pub(crate) id: String,
    pub(crate) is_authentic: bool,
    pub(crate) signatures: usize,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

impl Callback {
    pub(crate) fn text(&self) -> &str {
        self.body["data"]["text"].as_str().unwrap()
    }
}

#[derive(Default)]
struct Shared {
    log: watch::Sender<Vec<Callback>>,
    reactions: Mutex<VecDeque<Reaction>>,
}

pub(crate) struct Receiver {
    shared: Arc<Shared>,
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let router = axum::Router::new().route("/replies", axum::routing::post(take)).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, address, _server: server }
    }

    /// For `callback_url`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/replies", self.address)
    }

    /// What becomes of the next callbacks, in order.
    pub(crate) fn react(&self, reactions: &[Reaction]) {
        self.shared.reactions.lock().unwrap().extend(reactions);
    }

    /// Everything that came, once there are so many.
    pub(crate) async fn wait_for(&self, count: usize, limit: Duration) -> Vec<Callback> {
        let mut log = self.shared.log.subscribe();
        let found = tokio::time::timeout(limit, log.wait_for(|log| log.len() >= count)).await.is_ok();
        let log = self.log();
        assert!(found, "after {limit:?} there are {} of {count} callbacks: {log:?}", log.len());
        log
    }

    pub(crate) fn log(&self) -> Vec<Callback> {
        self.shared.log.borrow().clone()
    }
}

/// A message of a person, as the platform sends it.
pub(crate) fn message(conversation: &str, text: &str) -> Value {
    json!({
        "type": "message.created",
        "timestamp": "2026-11-21T18:00:00Z",
        "data": { "conversation": conversation, "user": { "id": "u1", "name": "Ann" }, "text": text },
    })
}

/// One signed request, `age` seconds old.
pub(crate) fn request(url: &str, secret: &str, id: &str, age: i64, body: &str) -> reqwest::RequestBuilder {
    let timestamp = OffsetDateTime::now_utc().unix_timestamp() - age;
    let signature = format!("v1,{}", STANDARD.encode(digest(secret, id, &timestamp.to_string(), body.as_bytes())));
    let request = http_client().post(url).header("Content-Type", "application/json");
    let request = request.header("webhook-id", id).header("webhook-timestamp", timestamp.to_string());
    request.header("webhook-signature", signature).body(body.to_owned())
}

fn digest(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    mac.finalize().into_bytes().to_vec()
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let (id, timestamp, signatures) = (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"));
    let signatures: Vec<&str> = signatures.split(' ').collect();
    let expected = format!("v1,{}", STANDARD.encode(digest(SECRET, &id, &timestamp, &body)));
    let age = OffsetDateTime::now_utc().unix_timestamp() - timestamp.parse::<i64>().unwrap();
    let callback = Callback {
        is_authentic: signatures.contains(&expected.as_str()) && age.abs() <= 5,
        signatures: signatures.len(),
        body: serde_json::from_slice(&body).unwrap(),
        at: Instant::now(),
        id,
    };
    shared.log.send_modify(|log| log.push(callback));
    let reaction = shared.reactions.lock().unwrap().pop_front();
    let answer = |status: u16| Response::builder().status(status);
    match reaction {
        None => answer(204).body(Body::empty()),
        Some(Reaction::Status(status)) => answer(status).body(Body::empty()),
        Some(Reaction::Overloaded(seconds)) => answer(503).header("Retry-After", seconds).body(Body::empty()),
        Some(Reaction::Hang) => std::future::pending().await,
    }
    .unwrap()
}
