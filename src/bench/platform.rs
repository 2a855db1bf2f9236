//! The Bot API's stand-in: takes every `sendMessage` of the deployment under test, notes when it came, and answers at once.
//!
//! Refuses other tokens. Invariant: what a book holds as a reply is what Telegram would have shown to the chat.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::book::{self, Book};
use super::wire::{Message, Wire};
use crate::config::Secret;

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Platform {
    shared: Arc<Shared>,
    /// The acceptor; it owns the connections' tasks.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    token: Secret,
    books: RwLock<Vec<Arc<Book>>>,
    next_message_id: AtomicI64,
    /// Messages to chats of no running load: left over from an earlier run of this deployment, or a reply too many.
    strays: AtomicUsize,
}

#[derive(Debug, Deserialize)]
struct SendMessage {
    chat_id: Value,
    text: String,
}

impl Platform {
    /// Listens on `address`, where the deployment believes `api.telegram.org` to be.
    pub(super) async fn start(address: SocketAddr, token: Secret) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let shared = Arc::new(Shared {
            token,
            books: RwLock::default(),
            next_message_id: AtomicI64::new(1),
            strays: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, _tasks: tasks })
    }

    /// From now on replies belong to these loads.
    pub(super) fn listen_for(&self, books: Vec<Arc<Book>>) {
        *self.shared.books.write().unwrap_or_else(PoisonError::into_inner) = books;
        self.shared.strays.store(0, Ordering::Relaxed);
    }

    /// Messages since then to chats that are not theirs.
    pub(super) fn strays(&self) -> usize {
        self.shared.strays.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| Wire::accepted(stream)) {
                Ok(wire) => {
                    connections.spawn(answer(wire, Arc::clone(&shared)));
                }
                // Such as too many open files: the connection stays in the queue until others have ended.
                Err(error) => {
                    tracing::warn!(error = %error, "a connection to the stand-in was not taken");
                    tokio::task::yield_now().await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(mut wire: Wire, shared: Arc<Shared>) {
    while let Ok(Some(request)) = wire.receive().await {
        let (status, body) = shared.call(&request, Instant::now());
        let body = body.to_string();
        let response = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if wire.send(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Shared {
    fn call(&self, request: &Message, now: Instant) -> (&'static str, Value) {
        let method = request.path().and_then(|path| {
            let (token, method) = path.strip_prefix("/bot")?.rsplit_once('/')?;
            (token == self.token.expose()).then_some(method)
        });
        match method {
            None => ("401 Unauthorized", refusal(401, "Unauthorized")),
            Some("sendMessage") => self.send_message(&request.body, now),
            Some(_) => ("200 OK", json!({ "ok": true, "result": true })),
        }
    }

    fn send_message(&self, body: &[u8], now: Instant) -> (&'static str, Value) {
        let Ok(SendMessage { chat_id, text }) = serde_json::from_slice(body) else {
            return ("400 Bad Request", refusal(400, "Bad Request: no such message"));
        };
        let Some(chat) = chat_id.as_i64().or_else(|| chat_id.as_str()?.parse().ok()) else {
            return ("400 Bad Request", refusal(400, "Bad Request: chat not found"));
        };
        let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
        match books.iter().find_map(|book| Some((book, book.index(chat)?))) {
            Some((book, index)) => book.replied(index, book::number(&text), now),
            None => {
                self.strays.fetch_add(1, Ordering::Relaxed);
            }
        }
        let message_id = self.next_message_id.fetch_add(1, Ordering::Relaxed);
        let result = json!({ "message_id": message_id, "date": 1_800_000_000, "chat": { "id": chat, "type": "private" }, "text": text });
        ("200 OK", json!({ "ok": true, "result": result }))
    }
}

fn refusal(code: u16, description: &str) -> Value {
    json!({ "ok": false, "error_code": code, "description": description })
}
