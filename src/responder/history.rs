//! Which part of the history a model is shown, and a cache of histories in memory.
//!
//! Refuses to read or write the database: the caller does, when the cache has nothing. Invariants of [`prune`]: the result
//! is within the budget, begins with a user message or is empty, holds a turn whole or not at all, and answers every tool
//! call in it; pruning twice is pruning once.

use std::collections::HashSet;
use std::sync::Arc;

use moka::future::Cache;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::as_text;
use crate::config::ResponderConfig;
use crate::message::{Attachment, Author, Role};
use crate::model;
use crate::store::StoredMessage;

/// How much history a model is shown at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub messages: u32,
    /// As [`tokens`] counts them.
    pub tokens: u32,
}

impl From<&ResponderConfig> for Budget {
    fn from(settings: &ResponderConfig) -> Self {
        Self { messages: settings.history_messages, tokens: settings.history_tokens }
    }
}

/// For responders registered in Rust, which have no table: the defaults of one.
impl Default for Budget {
    fn default() -> Self {
        Self { messages: 40, tokens: 8_000 }
    }
}

/// An upper estimate of a message's tokens, as [`model::tokens`] makes them.
#[must_use]
pub fn tokens(message: &StoredMessage) -> u64 {
    let tool_bytes = message.tool.as_ref().map_or(0, |tool| tool.to_string().len());
    model::tokens::of_bytes(as_text(&message.content, &message.attachments).len() + tool_bytes)
}

/// The newest turns of `messages` (oldest first) that fit `budget`, without a gap. A turn begins with a user message and is
/// whole or absent. Left out: what comes before the first user message, user messages nobody answered, and tool results
/// nobody asked for. A tool call without a result gets one that says "cancelled", since model APIs refuse a call without.
#[must_use]
pub fn prune(messages: &[StoredMessage], budget: Budget) -> Vec<StoredMessage> {
    let turns: Vec<_> = turns(messages).into_iter().filter_map(repair).collect();
    let (mut count_left, mut tokens_left) = (u64::from(budget.messages), u64::from(budget.tokens));
    let mut first = turns.len();
    for (index, turn) in turns.iter().enumerate().rev() {
        let count = u64::try_from(turn.len()).unwrap_or(u64::MAX);
        let cost = turn.iter().map(tokens).fold(0, u64::saturating_add);
        let (Some(fewer), Some(cheaper)) = (count_left.checked_sub(count), tokens_left.checked_sub(cost)) else {
            break;
        };
        (count_left, tokens_left, first) = (fewer, cheaper, index);
    }
    turns.into_iter().skip(first).flatten().collect()
}

/// [`prune`] to half of what `messages` are now: for a model that finds them too long.
#[must_use]
pub fn halve(messages: &[StoredMessage]) -> Vec<StoredMessage> {
    let half = |whole: u64| u32::try_from(whole / 2).unwrap_or(u32::MAX);
    let cost = messages.iter().map(tokens).fold(0, u64::saturating_add);
    let budget = Budget { messages: half(u64::try_from(messages.len()).unwrap_or(u64::MAX)), tokens: half(cost) };
    prune(messages, budget)
}

/// The tool calls that an assistant message asks for: its `tool` is the model API's list of calls, or an object with that
/// list under `tool_calls`.
#[must_use]
pub fn call_list(message: &StoredMessage) -> &[Value] {
    let Some(tool) = message.tool.as_ref().filter(|_| message.role == Role::Assistant) else { return &[] };
    tool.get("tool_calls").unwrap_or(tool).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The ids of the calls of [`call_list`].
#[must_use]
pub fn calls(message: &StoredMessage) -> Vec<&str> {
    call_list(message).iter().filter_map(|call| call.get("id").and_then(Value::as_str)).collect()
}

/// The id of the call that a tool message answers: its `tool` is the call, or an object with a `tool_call_id`.
#[must_use]
pub fn answered_call(message: &StoredMessage) -> Option<&str> {
    let tool = message.tool.as_ref().filter(|_| message.role == Role::Tool)?;
    tool.get("tool_call_id").or_else(|| tool.get("id")).and_then(Value::as_str)
}

/// Cuts before each user message that follows something else; what comes before the first one belongs to no turn.
fn turns(messages: &[StoredMessage]) -> Vec<&[StoredMessage]> {
    let user = |message: &StoredMessage| message.role == Role::User;
    let start = messages.iter().position(user).unwrap_or(messages.len());
    messages[start..].chunk_by(|before, after| user(before) || !user(after)).collect()
}

/// A turn as a model may see it; `None` when nobody answered.
fn repair(turn: &[StoredMessage]) -> Option<Vec<StoredMessage>> {
    let users = turn.iter().take_while(|message| message.role == Role::User).count();
    let (asked, said) = turn.split_at(users);
    let reply = said.iter().find(|message| message.role == Role::Assistant)?;
    let mut repaired: Vec<_> = asked.iter().filter(|question| answers(reply, question)).cloned().collect();
    if repaired.is_empty() {
        return None;
    }
    let mut rest = said;
    while let Some((message, mut tail)) = rest.split_first() {
        if message.role != Role::Tool {
            let results = tail.iter().take_while(|message| message.role == Role::Tool).count();
            repaired.push(message.clone());
            let (given, after) = tail.split_at(results);
            repaired.extend(results_of(message, given));
            tail = after;
        }
        rest = tail;
    }
    Some(repaired)
}

/// Whether `reply`, the first after a run of user messages, speaks to `question`. A bot answers the messages of its own
/// turn; those before it were left by turns that said nothing. A person answers all that was waiting, and of messages
/// without a turn, such as imported ones, nothing else is known.
fn answers(reply: &StoredMessage, question: &StoredMessage) -> bool {
    match (reply.author, reply.turn_id, question.turn_id) {
        (Author::Bot, Some(own), Some(asked)) => own == asked,
        _ => true,
    }
}

/// One result for each call of `asking`: those of `given` that answer one, then "cancelled" for the rest.
fn results_of(asking: &StoredMessage, given: &[StoredMessage]) -> Vec<StoredMessage> {
    let mut seen = HashSet::new();
    let mut open: Vec<_> = calls(asking).into_iter().filter(|call| seen.insert(*call)).collect();
    let mut results = Vec::new();
    for result in given {
        if let Some(place) = answered_call(result).and_then(|id| open.iter().position(|call| *call == id)) {
            open.remove(place);
            results.push(result.clone());
        }
    }
    results.extend(open.into_iter().map(|call| cancelled(asking, call)));
    results
}

/// A result for a call that never got one. Its id depends on nothing but the call, so that pruning repeats.
fn cancelled(asking: &StoredMessage, call: &str) -> StoredMessage {
    let mut hash = Sha256::new();
    hash.update(asking.id.as_bytes());
    hash.update(call.as_bytes());
    let mut id = [0_u8; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    StoredMessage {
        id: uuid::Builder::from_custom_bytes(id).into_uuid(),
        role: Role::Tool,
        author: Author::Bot,
        content: "cancelled".to_owned(),
        attachments: Vec::new(),
        tool: Some(json!({ "tool_call_id": call })),
        platform_message_id: None,
        ..asking.clone()
    }
}

/// What the cache holds of a conversation: its newest messages, and how many it had in all.
#[derive(Debug, Clone)]
struct Cached {
    message_count: i64,
    messages: Arc<[StoredMessage]>,
}

/// The newest messages of recently active conversations. Losing it costs a read of the database, never context: an entry
/// counts only while its message count is that of the conversation's row, and stored messages never change.
#[derive(Debug, Clone)]
pub struct HistoryCache {
    cache: Cache<Uuid, Cached>,
    messages_max: usize,
}

/// What a message takes beside its texts: the struct, and the allocator's share for its strings.
const MESSAGE_OVERHEAD_BYTES: usize = size_of::<StoredMessage>() + 64;

impl HistoryCache {
    /// Keeps up to `capacity_bytes` in all, and of each conversation the newest `messages_max`, which must be no fewer than
    /// the largest [`Budget::messages`] of any responder.
    #[must_use]
    pub fn new(capacity_bytes: u64, messages_max: usize) -> Self {
        let cache = Cache::builder()
            .max_capacity(capacity_bytes)
            .weigher(|_, cached: &Cached| {
                u32::try_from(cached.messages.iter().map(bytes).sum::<usize>()).unwrap_or(u32::MAX)
            })
            .build();
        Self { cache, messages_max }
    }

    /// The newest messages, oldest first, if they are those of a conversation of `message_count` messages.
    pub async fn get(&self, conversation_id: Uuid, message_count: i64) -> Option<Arc<[StoredMessage]>> {
        let cached = self.cache.get(&conversation_id).await?;
        (cached.message_count == message_count).then_some(cached.messages)
    }

    /// Remembers what was read from the database: the newest messages, oldest first, of `message_count` in all.
    pub async fn put(&self, conversation_id: Uuid, message_count: i64, messages: &[StoredMessage]) {
        let newest = &messages[messages.len().saturating_sub(self.messages_max)..];
        self.cache.insert(conversation_id, Cached { message_count, messages: newest.into() }).await;
    }

    /// Adds what a commit has written to a conversation that now has `message_count` messages. An entry that does not fit
    /// together with them (an agent wrote in between) is forgotten.
    pub async fn append(&self, conversation_id: Uuid, message_count: i64, added: &[StoredMessage]) {
        let added_count = i64::try_from(added.len()).unwrap_or(i64::MAX);
        match self.get(conversation_id, message_count.saturating_sub(added_count)).await {
            Some(before) => self.put(conversation_id, message_count, &[&before, added].concat()).await,
            None => self.cache.invalidate(&conversation_id).await,
        }
    }

    /// Forgets a conversation.
    pub async fn invalidate(&self, conversation_id: Uuid) {
        self.cache.invalidate(&conversation_id).await;
    }
}

/// Roughly what a message takes in memory.
fn bytes(message: &StoredMessage) -> usize {
    let attachment = |attachment: &Attachment| {
        let optional = [&attachment.file_id, &attachment.url, &attachment.mime_type, &attachment.name];
        attachment.kind.len() + optional.into_iter().flatten().map(String::len).sum::<usize>()
    };
    MESSAGE_OVERHEAD_BYTES
        + message.content.len()
        + message.attachments.iter().map(attachment).sum::<usize>()
        + message.tool.as_ref().map_or(0, |tool| tool.to_string().len())
        + message.platform_message_id.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Timestamp;

    #[tokio::test]
    async fn the_cache_stays_within_its_capacity() {
        let message = StoredMessage {
            id: Uuid::from_u128(1),
            ordinal: 1,
            turn_id: None,
            role: Role::User,
            author: Author::User,
            content: "x".repeat(10_000),
            attachments: Vec::new(),
            tool: None,
            platform_message_id: None,
            created_at: Timestamp::from_micros(0),
        };
        let cache = HistoryCache::new(1_000_000, 10);
        for conversation in 0..1_000 {
            cache.put(Uuid::from_u128(conversation), 1, std::slice::from_ref(&message)).await;
        }
        cache.cache.run_pending_tasks().await;
        assert!(cache.cache.weighted_size() <= 1_000_000);
        assert!((50..100).contains(&cache.cache.entry_count()), "{}", cache.cache.entry_count());
    }
}
