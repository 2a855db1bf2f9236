//! Conversations, their messages and idempotency keys on SQLite.
//!
//! Invariant: whoever counts messages or changes metadata holds the write lock.

use std::time::Duration;

use serde_json::json;
use sqlx::{QueryBuilder, Sqlite as Database, SqliteConnection};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Sqlite;
use crate::message::{ConversationStatus, Platform, Timestamp};
use crate::store::commit::{Rows, Statements as _, hold};
use crate::store::error::{refused, refused_or_open};
use crate::store::rows::{self, conversation_columns, message_columns};
use crate::store::{
    BATCH_ROWS, Conversation, ConversationFilter, ConversationPatch, IdempotencyClaim, NewConversation, NewMessage,
    Ownership, PAGE_ROWS_MAX, StoreError, StoredMessage, merge, values,
};

impl Sqlite {
    pub(in crate::store) async fn create_conversation(
        &self,
        new: &NewConversation,
    ) -> Result<Conversation, StoreError> {
        let mut connection = self.writer.acquire().await.map_err(refused("open a conversation"))?;
        if !insert_conversation(&mut connection, new).await.map_err(refused("open a conversation"))? {
            return Err(StoreError::AlreadyOpen);
        }
        Ok(merge::opened(new))
    }

    pub(in crate::store) async fn conversation(&self, id: Uuid) -> Result<Option<Conversation>, StoreError> {
        const FIND: &str = concat!("SELECT ", conversation_columns!(), " FROM conversations c WHERE c.id = $1");
        let found = sqlx::query(FIND).bind(id.hyphenated()).fetch_optional(&self.readers).await;
        found.map_err(refused("show a conversation"))?.as_ref().map(rows::conversation).transpose()
    }

    /// The status is written into the statement, so that the index over conversations with humans serves it.
    pub(in crate::store) async fn conversations(
        &self,
        filter: &ConversationFilter,
    ) -> Result<Vec<Conversation>, StoreError> {
        const LIST: &str = concat!("SELECT ", conversation_columns!(), " FROM conversations c WHERE TRUE");
        let mut query = QueryBuilder::<Database>::new(LIST);
        if let Some(bots) = &filter.bots {
            query.push(" AND c.bot IN (SELECT value FROM json_each(").push_bind(json!(bots)).push("))");
        }
        if let Some(device_id) = &filter.device_id {
            query.push(" AND c.device_id = ").push_bind(device_id);
        }
        if let Some(assignee) = &filter.assignee {
            query.push(" AND c.assignee = ").push_bind(assignee);
        }
        if let Some(status) = filter.status {
            query.push(" AND c.status = '").push(status.as_str()).push("'");
        }
        if let Some((updated_at, id)) = filter.after {
            query.push(" AND (c.updated_at, c.id) < (").push_bind(updated_at.as_micros());
            query.push(", ").push_bind(id.hyphenated()).push(")");
        }
        query.push(" ORDER BY c.updated_at DESC, c.id DESC LIMIT ");
        query.push_bind(i64::from(filter.limit.clamp(1, PAGE_ROWS_MAX)));
        let found = query.build().fetch_all(&self.readers).await.map_err(refused("list conversations"))?;
        found.iter().map(rows::conversation).collect()
    }

    pub(in crate::store) async fn active_conversation(
        &self,
        bot: &str,
        device_id: &str,
        platform: Platform,
        ttl: Duration,
        now: Timestamp,
        new_id: Uuid,
    ) -> Result<Conversation, StoreError> {
        const FIND: &str = concat!(
            "SELECT ",
            conversation_columns!(),
            " FROM conversations c WHERE c.device_id = $1 AND c.bot = $2 AND c.channel = 'web' \
                 AND c.status <> 'closed' AND c.updated_at >= $3 ORDER BY c.updated_at DESC, c.id DESC LIMIT 1"
        );
        let refused = refused("find a device's conversation");
        let mut transaction = self.begin().await.map_err(&refused)?;
        let found = sqlx::query(FIND)
            .bind(device_id)
            .bind(bot)
            .bind(merge::earlier(now, ttl).as_micros())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(&refused)?;
        let conversation = match found {
            Some(row) => {
                let found = rows::conversation(&row)?;
                touch(&mut transaction, found.id, now).await.map_err(&refused)?;
                Conversation { updated_at: now.max(found.updated_at), ..found }
            }
            None => {
                let new = merge::device_conversation(bot, device_id, platform, now, new_id);
                if !insert_conversation(&mut transaction, &new).await.map_err(&refused)? {
                    return Err(StoreError::AlreadyOpen);
                }
                merge::opened(&new)
            }
        };
        transaction.commit().await.map_err(&refused)?;
        Ok(conversation)
    }

    pub(in crate::store) async fn touch_conversation(&self, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
        let refused = refused("touch a conversation");
        let mut connection = self.writer.acquire().await.map_err(&refused)?;
        touch(&mut connection, id, now).await.map_err(&refused)
    }

    pub(in crate::store) async fn patch_conversation(
        &self,
        id: Uuid,
        patch: &ConversationPatch,
        now: Timestamp,
        under: Option<&Ownership>,
    ) -> Result<Option<Conversation>, StoreError> {
        const UPDATE: &str = "UPDATE conversations SET status = $2, assignee = $3, metadata = $4, updated_at = $5 \
             WHERE id = $1";
        let refused = refused_or_open("change a conversation");
        let mut transaction = self.begin().await.map_err(&refused)?;
        hold(&mut *transaction, under).await?;
        let Some(current) = transaction.lock_conversations(&[id]).await?.remove(&id) else {
            return Ok(None);
        };
        if !patch.applies_to(&current) {
            return Ok(Some(current));
        }
        if matches!(patch.status, Some(ConversationStatus::Human | ConversationStatus::Closed)) {
            transaction.cancel_actions(&[id]).await.map_err(&refused)?;
        }
        let patched = merge::patched(current, patch, now);
        sqlx::query(UPDATE)
            .bind(id.hyphenated())
            .bind(patched.status.as_str())
            .bind(&patched.assignee)
            .bind(json!(patched.metadata))
            .bind(patched.updated_at.as_micros())
            .execute(&mut *transaction)
            .await
            .map_err(&refused)?;
        transaction.commit().await.map_err(&refused)?;
        Ok(Some(patched))
    }

    pub(in crate::store) async fn messages(
        &self,
        conversation_id: Uuid,
        before_ordinal: Option<i64>,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE conversation_id = $1 AND ordinal < $2 ORDER BY ordinal DESC LIMIT $3"
        );
        let found = sqlx::query(LIST)
            .bind(conversation_id.hyphenated())
            .bind(before_ordinal.unwrap_or(i64::MAX))
            .bind(i64::from(limit.clamp(1, PAGE_ROWS_MAX)))
            .fetch_all(&self.readers)
            .await
            .map_err(refused("list messages"))?;
        found.iter().rev().map(rows::message).collect()
    }

    pub(in crate::store) async fn messages_after(
        &self,
        conversation_id: Uuid,
        after_ordinal: i64,
        limit: u32,
    ) -> Result<Vec<StoredMessage>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE conversation_id = $1 AND ordinal > $2 ORDER BY ordinal LIMIT $3"
        );
        let list = sqlx::query(LIST).bind(conversation_id.hyphenated()).bind(after_ordinal);
        let found = list.bind(i64::from(limit.clamp(1, PAGE_ROWS_MAX))).fetch_all(&self.readers).await;
        found.map_err(refused("list newer messages"))?.iter().map(rows::message).collect()
    }

    pub(in crate::store) async fn append_messages(
        &self,
        conversation_id: Uuid,
        messages: &[NewMessage],
        now: Timestamp,
    ) -> Result<Option<Vec<StoredMessage>>, StoreError> {
        const UPDATE: &str = "UPDATE conversations SET message_count = $2, snippet = $3, last_message_at = $4, \
             updated_at = $5 WHERE id = $1";
        const EARLIER: &str = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE conversation_id = $1 AND ordinal >= (SELECT ordinal FROM messages WHERE id = $2 AND \
             conversation_id = $1) ORDER BY ordinal LIMIT $3"
        );
        let refused = refused("append messages");
        let mut transaction = self.begin().await.map_err(&refused)?;
        let Some(current) = transaction.lock_conversations(&[conversation_id]).await?.remove(&conversation_id) else {
            return Ok(None);
        };
        let first = messages.first().map(|message| message.id.hyphenated());
        let earlier = sqlx::query(EARLIER)
            .bind(conversation_id.hyphenated())
            .bind(first)
            .bind(i64::try_from(messages.len()).unwrap_or(i64::MAX));
        let earlier = earlier.fetch_all(&mut *transaction).await.map_err(&refused)?;
        if !earlier.is_empty() {
            return earlier.iter().map(rows::message).collect::<Result<_, _>>().map(Some);
        }
        let stored = rows::numbered(messages, None, current.message_count);
        let rows = values::messages(messages, conversation_id, None, current.message_count).collect::<Vec<_>>();
        for batch in rows.chunks(BATCH_ROWS) {
            transaction.write(&Rows { messages: batch, ..Rows::default() }).await.map_err(&refused)?;
        }
        let activity = merge::activity(&current, messages, now);
        sqlx::query(UPDATE)
            .bind(conversation_id.hyphenated())
            .bind(activity.message_count)
            .bind(activity.snippet)
            .bind(activity.last_message_at.map(Timestamp::as_micros))
            .bind(activity.updated_at.as_micros())
            .execute(&mut *transaction)
            .await
            .map_err(&refused)?;
        transaction.commit().await.map_err(&refused)?;
        Ok(Some(stored))
    }

    pub(in crate::store) async fn claimed_turn(&self, turn_id: Uuid) -> Result<Option<Uuid>, StoreError> {
        let found: Option<Hyphenated> =
            sqlx::query_scalar("SELECT conversation_id FROM idempotency_keys WHERE turn_id = $1")
                .bind(turn_id.hyphenated())
                .fetch_optional(&self.readers)
                .await
                .map_err(refused("find a claimed turn"))?;
        Ok(found.map(Hyphenated::into_uuid))
    }

    pub(in crate::store) async fn claim_idempotency_key(
        &self,
        scope: &str,
        key: &str,
        fingerprint: &str,
        turn_id: Uuid,
        conversation_id: Uuid,
        now: Timestamp,
    ) -> Result<IdempotencyClaim, StoreError> {
        const CLAIM: &str = "INSERT INTO idempotency_keys (scope, key, fingerprint, turn_id, conversation_id, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
        let refused = refused("claim an idempotency key");
        let claimed = sqlx::query(CLAIM)
            .bind(scope)
            .bind(key)
            .bind(fingerprint)
            .bind(turn_id.hyphenated())
            .bind(conversation_id.hyphenated())
            .bind(now.as_micros())
            .execute(&self.writer)
            .await
            .map_err(&refused)?;
        if claimed.rows_affected() == 1 {
            return Ok(IdempotencyClaim::Granted { turn_id, conversation_id });
        }
        let earlier = self.idempotency_claim(scope, key, fingerprint).await?;
        earlier.ok_or_else(|| refused(sqlx::Error::RowNotFound))
    }

    pub(in crate::store) async fn idempotency_claim(
        &self,
        scope: &str,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<IdempotencyClaim>, StoreError> {
        const FIND: &str = "SELECT turn_id, conversation_id, fingerprint = $3 AS same FROM idempotency_keys \
             WHERE scope = $1 AND key = $2";
        let find = sqlx::query_as(FIND).bind(scope).bind(key).bind(fingerprint);
        let found: Option<(Hyphenated, Hyphenated, bool)> =
            find.fetch_optional(&self.readers).await.map_err(refused("find an idempotency key"))?;
        Ok(found.map(|(turn_id, conversation_id, same)| match same {
            true => {
                IdempotencyClaim::Granted { turn_id: turn_id.into_uuid(), conversation_id: conversation_id.into_uuid() }
            }
            false => IdempotencyClaim::Conflict,
        }))
    }
}

/// Marks activity; false when there is no such conversation.
async fn touch(connection: &mut SqliteConnection, id: Uuid, now: Timestamp) -> Result<bool, sqlx::Error> {
    let touched = sqlx::query("UPDATE conversations SET updated_at = max(updated_at, $2) WHERE id = $1")
        .bind(id.hyphenated())
        .bind(now.as_micros())
        .execute(connection)
        .await?;
    Ok(touched.rows_affected() == 1)
}

/// Writes a new conversation; false when its id or its key is taken.
async fn insert_conversation(connection: &mut SqliteConnection, new: &NewConversation) -> Result<bool, sqlx::Error> {
    Ok(connection.insert_conversations(&[values::conversation(new)]).await?.contains(&new.id))
}
