//! Posts a load's messages to the webhook, closed-loop: as many on their way at once as the load allows, each chat's in order.
//!
//! Refuses to give up on a message, as Telegram does: what is not answered 200 is posted again. Invariant: a chat's next
//! message is posted only after its last one was answered 200.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::book::{self, Book};
use super::shape::Load;
use super::wire::Wire;
use crate::config::Secret;
use crate::message::Timestamp;

/// Connections that post at once; Telegram uses up to 100 (Bot API, "setWebhook", `max_connections`).
const CONNECTIONS_MAX: usize = 64;

/// Before a message that was refused is posted again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The webhook of the bot under test.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) address: SocketAddr,
    pub(super) path: String,
    pub(super) secret: Secret,
    pub(super) next_update_id: AtomicI64,
}

/// One load under way.
#[derive(Debug)]
struct Sending {
    webhook: Arc<Webhook>,
    load: Load,
    book: Arc<Book>,
    started: Instant,
    /// Messages posted by all connections, for the pace.
    posted: AtomicUsize,
    /// Posts that were not answered 200.
    refused: AtomicUsize,
}

/// Posts all of it; returns how many posts had to be made again. Ends early only when dropped.
pub(super) async fn send(webhook: Arc<Webhook>, load: &Load, book: Arc<Book>) -> usize {
    let connections = CONNECTIONS_MAX.min(load.in_flight).min(load.conversations).max(1);
    let sending = Arc::new(Sending {
        webhook,
        load: load.clone(),
        book,
        started: Instant::now(),
        posted: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
    });
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let sending = Arc::clone(&sending);
        tasks.spawn(async move { sending.run(connection, connections).await });
    }
    while tasks.join_next().await.is_some() {}
    sending.refused.load(Ordering::Relaxed)
}

impl Sending {
    /// One connection and the chats that are its own: a round over them for each message.
    async fn run(&self, connection: usize, connections: usize) {
        let mut wire = None;
        for number in 0..self.load.messages_each {
            for index in (connection..self.load.conversations).step_by(connections) {
                self.keep_pace().await;
                let Ok(permit) = self.book.room.acquire().await else { return };
                // The reply gives it back.
                permit.forget();
                let request = self.request(index, number);
                self.book.posted(index, Instant::now());
                self.post(&mut wire, &request).await;
                self.book.accepted(index, Instant::now());
            }
        }
    }

    async fn keep_pace(&self) {
        let ticket = self.posted.fetch_add(1, Ordering::Relaxed);
        if let Some(rate) = self.load.per_second {
            let due = Duration::from_micros(u64::try_from(ticket).unwrap_or(u64::MAX).saturating_mul(1_000_000) / rate);
            tokio::time::sleep_until((self.started + due).into()).await;
        }
    }

    async fn post(&self, wire: &mut Option<Wire>, request: &[u8]) {
        while !self.taken(wire, request).await {
            self.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn taken(&self, wire: &mut Option<Wire>, request: &[u8]) -> bool {
        let mut open = match wire.take() {
            Some(open) => open,
            None => match Wire::connect(self.webhook.address).await {
                Ok(open) => open,
                Err(_) => return false,
            },
        };
        let Ok(response) = open.exchange(request).await else { return false };
        *wire = Some(open);
        response.status() == Some(200)
    }

    /// A private chat's text message as Telegram posts it (Bot API, "Update").
    fn request(&self, index: usize, number: usize) -> Vec<u8> {
        let update_id = self.webhook.next_update_id.fetch_add(1, Ordering::Relaxed);
        let (chat, text) = (self.book.chat_id(index), book::text(self.load.delay, number));
        let date = Timestamp::now().as_micros() / 1_000_000;
        let body = format!(
            "{{\"update_id\":{update_id},\"message\":{{\"message_id\":{},\"from\":{{\"id\":{chat},\"is_bot\":false,\
             \"first_name\":\"Ann\",\"language_code\":\"en\"}},\"chat\":{{\"id\":{chat},\"first_name\":\"Ann\",\
             \"type\":\"private\"}},\"date\":{date},\"text\":\"{text}\"}}}}",
            number * 2 + 1
        );
        let Webhook { address, path, secret, .. } = &*self.webhook;
        format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             x-telegram-bot-api-secret-token: {}\r\ncontent-length: {}\r\n\r\n{body}",
            secret.expose(),
            body.len()
        )
        .into_bytes()
    }
}
