//! Fills the deployment's database before a load, so that growth can be measured.
//!
//! Its SQL is its own, because no part of the product writes rows without a turn. Refuses to touch rows that are there.
//! Invariant: what it writes could have come from turns; only ids and times are made up.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Map;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use uuid::Uuid;

use super::book::Book;
use super::shape::Fill;
use crate::config::Config;
use crate::message::{Author, Channel, ConversationKey, Peer, Platform, Role, Timestamp};
use crate::store::{NewConversation, NewMessage, Store, StoreError};

/// Rows of one statement; SQLite's write lock is free in between.
const ROWS: u64 = 100_000;

/// Messages appended at once, and conversations at once.
const MESSAGES: u32 = 500;
const CONVERSATIONS_AT_ONCE: usize = 4;

/// Why the database could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error("the database to fill does not answer")]
    Store(#[from] StoreError),
    #[error("the database did not take the rows")]
    Rows(#[from] sqlx::Error),
}

/// Does what `fill` says; `book` names the conversations of the load that comes next.
pub(super) async fn fill(config: &Config, bot: &str, fill: Fill, book: &Book) -> Result<(), FillError> {
    match fill {
        Fill::Conversations(count) => conversations(config, bot, count).await,
        Fill::History(messages) => histories(config, bot, messages, book).await,
    }
}

/// So many conversations that nobody speaks in. Those of an earlier fill count.
async fn conversations(config: &Config, bot: &str, count: u64) -> Result<(), FillError> {
    let mut written = 0;
    while written < count {
        let until = (written + ROWS).min(count);
        insert(config, bot, written + 1, until).await?;
        written = until;
    }
    Ok(())
}

async fn insert(config: &Config, bot: &str, from: u64, to: u64) -> Result<(), FillError> {
    // A configured bot's name has no quotes: `[A-Za-z0-9_-]`.
    let columns = "INSERT INTO conversations (id, channel, bot, peer, platform, status, snippet, last_message_at, \
                   message_count, metadata, created_at, updated_at)";
    if config.database.sqlite_file().is_some() {
        let statement = format!(
            "WITH RECURSIVE n (i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i < {to}) {columns} \
             SELECT printf('%08x-0000-7000-8000-%012x', i, i), 'telegram', '{bot}', 'user-fill' || i, 'telegram', 'bot', \
             'a message', i, 2, '{{}}', i, i FROM n WHERE TRUE ON CONFLICT DO NOTHING"
        );
        let mut connection = SqliteConnection::connect(config.database.url.expose()).await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await?;
    } else {
        let statement = format!(
            "{columns} SELECT gen_random_uuid(), 'telegram', '{bot}', 'user-fill' || i, 'telegram', 'bot', 'a message', \
             to_timestamp(i), 2, '{{}}', to_timestamp(i), to_timestamp(i) FROM generate_series({from}, {to}) AS i \
             ON CONFLICT DO NOTHING"
        );
        let mut connection = PgConnection::connect(config.database.url.expose()).await?;
        connection.execute(AssertSqlSafe(statement)).await?;
        connection.close().await?;
    }
    Ok(())
}

/// So many messages in each of the book's conversations.
async fn histories(config: &Config, bot: &str, messages: u32, book: &Book) -> Result<(), FillError> {
    let store = Store::connect(config.database.url.expose(), config.database.max_connections).await?;
    stream::iter(book.chat_ids())
        .map(|chat| history(&store, bot, chat, messages))
        .buffer_unordered(CONVERSATIONS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    store.close().await;
    Ok(())
}

async fn history(store: &Store, bot: &str, chat: i64, messages: u32) -> Result<(), StoreError> {
    let (id, now) = (Uuid::now_v7(), Timestamp::now());
    let key = ConversationKey { channel: Channel::Telegram, bot: bot.into(), peer: Peer::User(chat.to_string()) };
    let new = NewConversation {
        id,
        key,
        platform: Platform::Telegram,
        device_id: None,
        metadata: Map::new(),
        created_at: now,
    };
    store.create_conversation(&new).await?;
    let mut written = 0;
    while written < messages {
        let until = (written + MESSAGES).min(messages);
        store.append_messages(id, (written..until).map(|number| message(number, now)).collect(), now).await?;
        written = until;
    }
    Ok(())
}

fn message(number: u32, now: Timestamp) -> NewMessage {
    let (role, author) =
        if number.is_multiple_of(2) { (Role::User, Author::User) } else { (Role::Assistant, Author::Bot) };
    NewMessage {
        id: Uuid::now_v7(),
        role,
        author,
        content: format!("{number} and could you tell me where my order is? It should have come yesterday."),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: None,
        created_at: now,
    }
}
