//! Chats and what people feel about messages, on PostgreSQL.
//!
//! Invariant: whoever changes a chat's state holds its row and locks rows in the order of the peers.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Postgres;
use crate::message::{ConversationKey, Peer, Timestamp};
use crate::store::chats::{self, ChatState, Join, Opened};
use crate::store::commit::hold;
use crate::store::error::refused;
use crate::store::rows;
use crate::store::{Feedback, NewFeedback, Ownership, StoreError};

impl Postgres {
    pub(in crate::store) async fn chat(&self, key: &ConversationKey) -> Result<ChatState, StoreError> {
        const FIND: &str = "SELECT state AS chat FROM chats WHERE channel = $1 AND bot = $2 AND peer = $3";
        let find = sqlx::query(FIND).bind(key.channel.as_str()).bind(&*key.bot).bind(key.peer.to_string());
        let found = find.fetch_optional(&self.pool).await.map_err(refused("look up a chat"))?;
        found.as_ref().map_or_else(|| Ok(ChatState::default()), rows::chat)
    }

    pub(in crate::store) async fn note_reachability(
        &self,
        key: &ConversationKey,
        unreachable: Option<&str>,
        at: Timestamp,
        under: Option<&Ownership>,
    ) -> Result<(), StoreError> {
        let refused = refused("note whether a chat can be reached");
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        hold(&mut *transaction, under).await?;
        let state = lock_chat(&mut transaction, key).await?;
        if let Some(state) = state.with_reachability(unreachable, at) {
            put_chat(&mut transaction, key, &state).await.map_err(&refused)?;
        }
        transaction.commit().await.map_err(&refused)
    }

    pub(in crate::store) async fn move_chat(
        &self,
        from: &ConversationKey,
        to: &Peer,
        now: Timestamp,
        under: Option<&Ownership>,
    ) -> Result<(), StoreError> {
        let refused = refused("move a chat");
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        hold(&mut *transaction, under).await?;
        for peer in chats::in_order(&from.peer, to) {
            lock_chat(&mut transaction, &chats::of_peer(from, peer)).await?;
        }
        // A chat that was moved before is filed where it was then.
        let home = lock_chat(&mut transaction, from).await?.filed_under.unwrap_or_else(|| from.peer.clone());
        let (home, new) = (chats::of_peer(from, &home), chats::of_peer(from, to));
        if home == new {
            return Ok(());
        }
        let of_home = lock_chat(&mut transaction, &home).await?;
        let of_new = lock_chat(&mut transaction, &new).await?;
        let names = [&home, &new].map(|key| chat_name(key.channel.as_str(), &key.bot, &key.peer.to_string()));
        hold_chats(&mut transaction, &names, Hold::ToMove).await.map_err(&refused)?;
        if of_home.moved_to.as_ref() == Some(to) && of_new.filed_under.as_ref() == Some(&home.peer) {
            return Ok(());
        }
        let of_home = ChatState { moved_to: Some(to.clone()), ..of_home };
        let of_new = ChatState { filed_under: Some(home.peer.clone()), moved_to: None, ..of_new };
        put_chat(&mut transaction, &home, &of_home).await.map_err(&refused)?;
        put_chat(&mut transaction, &new, &of_new).await.map_err(&refused)?;
        bring_home(&mut transaction, &home, &new, now).await?;
        transaction.commit().await.map_err(&refused)
    }

    pub(in crate::store) async fn record_feedback(&self, new: &NewFeedback) -> Result<(), StoreError> {
        const RECORD: &str = "INSERT INTO feedback (channel, bot, peer, platform_message_id, sender, reactions, \
                 received_at) VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (channel, bot, peer, platform_message_id, sender) DO UPDATE \
                 SET reactions = excluded.reactions, received_at = excluded.received_at \
                 WHERE feedback.received_at <= excluded.received_at";
        let record = sqlx::query(RECORD)
            .bind(new.key.channel.as_str())
            .bind(&*new.key.bot)
            .bind(new.key.peer.to_string())
            .bind(&new.platform_message_id)
            .bind(&new.sender)
            .bind(json!(new.reactions))
            .bind(new.received_at.to_offset_date_time());
        record.execute(&self.pool).await.map(drop).map_err(refused("record feedback"))
    }

    pub(in crate::store) async fn feedback(
        &self,
        conversation_id: Uuid,
        ordinals: (i64, i64),
    ) -> Result<Vec<Feedback>, StoreError> {
        const FIND: &str = "SELECT m.id AS message_id, f.sender, f.reactions, f.received_at FROM messages m \
             JOIN deliveries d ON d.turn_id = m.turn_id AND d.message_id = m.id \
             JOIN feedback f ON f.channel = d.channel AND f.bot = d.bot AND f.peer = split_part(d.peer, '-topic-', 1) \
                 AND f.platform_message_id = d.platform_message_id \
             WHERE m.conversation_id = $1 AND m.ordinal BETWEEN $2 AND $3 ORDER BY m.ordinal, f.received_at, f.sender \
             LIMIT 1000";
        let find = sqlx::query(FIND).bind(conversation_id).bind(ordinals.0).bind(ordinals.1);
        let found = find.fetch_all(&self.pool).await.map_err(refused("look up feedback"))?;
        found.iter().map(rows::feedback).collect()
    }
}

/// What somebody does with a chat that a move and the opening of a conversation must not both do at once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hold {
    /// Beside others who do the same.
    ToOpen,
    ToMove,
}

/// A chat, for [`hold_chats`].
pub(super) fn chat_name(channel: &str, bot: &str, peer: &str) -> String {
    format!("{channel}.{bot}.{peer}")
}

/// Waits until nobody moves these chats, or opens conversations there, until the transaction ends. A conversation that is being opened
/// has no row yet that a move could see, nor the move one that says so to whoever opens it.
pub(super) async fn hold_chats(connection: &mut PgConnection, chats: &[String], hold: Hold) -> Result<(), sqlx::Error> {
    const TO_OPEN: &str = "SELECT pg_advisory_xact_lock_shared(key) FROM \
         (SELECT DISTINCT hashtextextended(chat, 0) AS key FROM UNNEST($1) AS chat ORDER BY key) AS keys";
    const TO_MOVE: &str = "SELECT pg_advisory_xact_lock(key) FROM \
         (SELECT DISTINCT hashtextextended(chat, 0) AS key FROM UNNEST($1) AS chat ORDER BY key) AS keys";
    let statement = match hold {
        Hold::ToOpen => TO_OPEN,
        Hold::ToMove => TO_MOVE,
    };
    sqlx::query(statement).bind(chats).execute(connection).await.map(drop)
}

/// The chat's state; nobody else changes it until the transaction ends.
async fn lock_chat(connection: &mut PgConnection, key: &ConversationKey) -> Result<ChatState, StoreError> {
    const MAKE: &str = "INSERT INTO chats (channel, bot, peer, state) VALUES ($1, $2, $3, '{}') ON CONFLICT DO NOTHING";
    const LOCK: &str = "SELECT state AS chat FROM chats WHERE channel = $1 AND bot = $2 AND peer = $3 FOR UPDATE";
    let refused = refused("lock a chat");
    for statement in [MAKE, LOCK] {
        let run = sqlx::query(statement).bind(key.channel.as_str()).bind(&*key.bot).bind(key.peer.to_string());
        let found = run.fetch_optional(&mut *connection).await.map_err(&refused)?;
        if let Some(row) = found {
            return rows::chat(&row);
        }
    }
    Ok(ChatState::default())
}

async fn put_chat(connection: &mut PgConnection, key: &ConversationKey, state: &ChatState) -> Result<(), sqlx::Error> {
    const PUT: &str = "INSERT INTO chats (channel, bot, peer, state) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (channel, bot, peer) DO UPDATE SET state = excluded.state";
    let put = sqlx::query(PUT).bind(key.channel.as_str()).bind(&*key.bot).bind(key.peer.to_string()).bind(json!(state));
    put.execute(connection).await.map(drop)
}

/// Makes the open conversation of `new`, if there is one, that of `home`, or a part of it.
async fn bring_home(
    connection: &mut PgConnection,
    home: &ConversationKey,
    new: &ConversationKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    const RENAME: &str = "UPDATE conversations SET peer = $2 WHERE id = $1";
    let Some(came) = open_conversation(connection, new).await? else { return Ok(()) };
    match open_conversation(connection, home).await? {
        Some(kept) => join(connection, &Join::new(&kept, &came), now).await,
        None => sqlx::query(RENAME).bind(came.id).bind(home.peer.to_string()).execute(connection).await.map(drop),
    }
    .map_err(refused("bring a conversation home"))
}

async fn open_conversation(connection: &mut PgConnection, key: &ConversationKey) -> Result<Option<Opened>, StoreError> {
    const FIND: &str = "SELECT id, message_count, status FROM conversations \
         WHERE channel = $1 AND bot = $2 AND peer = $3 AND status <> 'closed' FOR NO KEY UPDATE";
    let find = sqlx::query(FIND).bind(key.channel.as_str()).bind(&*key.bot).bind(key.peer.to_string());
    let found = find.fetch_optional(connection).await.map_err(refused("find an open conversation"))?;
    found.as_ref().map(rows::opened).transpose()
}

/// Gives everything of one conversation to another, behind what that has.
async fn join(connection: &mut PgConnection, join: &Join, now: Timestamp) -> Result<(), sqlx::Error> {
    const GIVE: [&str; 3] = [
        "UPDATE deliveries SET conversation_id = $1 WHERE turn_id IN (SELECT id FROM turns WHERE conversation_id = $2)",
        "UPDATE turns SET conversation_id = $1 WHERE conversation_id = $2",
        "UPDATE pending_actions SET conversation_id = $1 WHERE conversation_id = $2",
    ];
    const RENUMBER: &str =
        "UPDATE messages SET conversation_id = $1, ordinal = ordinal + $3 WHERE conversation_id = $2";
    const GROW: &str = "UPDATE conversations SET message_count = message_count + $2, status = $3, \
             updated_at = GREATEST(updated_at, $4) WHERE id = $1";
    const END: &str = "UPDATE conversations SET message_count = 0, snippet = NULL, status = 'closed' WHERE id = $1";
    for give in GIVE {
        sqlx::query(give).bind(join.kept).bind(join.ended).execute(&mut *connection).await?;
    }
    let renumber = sqlx::query(RENUMBER).bind(join.kept).bind(join.ended).bind(join.ordinals);
    renumber.execute(&mut *connection).await?;
    let grow =
        sqlx::query(GROW).bind(join.kept).bind(join.added).bind(join.status.as_str()).bind(now.to_offset_date_time());
    grow.execute(&mut *connection).await?;
    sqlx::query(END).bind(join.ended).execute(connection).await.map(drop)
}
