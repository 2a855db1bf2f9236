//! Committing turns on SQLite: the statements of groups, rows given as one JSON text.
//!
//! Refuses to loop over rows. Invariant: a group holds the write lock from its first statement on, so whatever it reads stays
//! true until it ends.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::SqliteConnection;
use sqlx::types::Json;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Sqlite;
use crate::message::ConversationStatus;
use crate::store::commit::{End, Statements, Turns};
use crate::store::error::refused;
use crate::store::rows::{self, conversation_columns};
use crate::store::sending::Found;
use crate::store::values::{
    ConversationChange, ConversationValues, DeliveryBegun, DeliveryEnded, DeliveryValues, MessageValues, TurnValues,
};
use crate::store::{CommitOutcome, Committed, Conversation, StoreError, TurnCommit};

impl Sqlite {
    /// Commits a group of turns; the outcomes are in their order.
    pub(in crate::store) async fn commit(&self, turns: &[Arc<TurnCommit>]) -> Result<Vec<CommitOutcome>, StoreError> {
        let refused = refused("commit turns");
        let mut turns = Turns::new(turns);
        loop {
            let mut transaction = self.begin().await.map_err(&refused)?;
            let end = turns.write(&mut *transaction).await?;
            match end {
                End::Commit => transaction.commit().await.map_err(&refused)?,
                End::RollBack | End::RollBackAndRepeat => transaction.rollback().await.map_err(&refused)?,
            }
            if end != End::RollBackAndRepeat {
                return Ok(turns.outcomes());
            }
        }
    }
}

impl Statements for SqliteConnection {
    async fn lock_partitions(
        &mut self,
        partitions: &BTreeSet<(i64, u16)>,
    ) -> Result<HashMap<(i64, u16), i64>, StoreError> {
        const LOCK: &str = "SELECT p.stream, p.partition, p.epoch FROM json_each($1) AS wanted \
             JOIN partitions p ON p.stream = wanted.value ->> 0 AND p.partition = wanted.value ->> 1";
        let found = sqlx::query(LOCK).bind(Json(partitions)).fetch_all(self).await;
        let epoch = |row| {
            let partition = (rows::number(row, "stream")?, rows::number(row, "partition")?);
            Ok((partition, rows::number(row, "epoch")?))
        };
        found.map_err(refused("lock partitions"))?.iter().map(epoch).collect()
    }

    async fn insert_turns(&mut self, turns: &[TurnValues<'_>]) -> Result<HashSet<String>, sqlx::Error> {
        const INSERT: &str = "INSERT INTO turns (id, dedupe_id, stream, partition, sequence, channel, bot, peer, \
                 conversation_id, state, merged_into, reason, attempts, responder, traceparent, timings, received_at, \
                 started_at, committed_at) \
             SELECT value ->> 'id', value ->> 'dedupe_id', value ->> 'stream', value ->> 'partition', \
                 value ->> 'sequence', value ->> 'channel', value ->> 'bot', value ->> 'peer', \
                 value ->> 'conversation_id', value ->> 'state', value ->> 'merged_into', value ->> 'reason', \
                 value ->> 'attempts', value ->> 'responder', value ->> 'traceparent', value -> 'timings', \
                 value ->> 'received_at', value ->> 'started_at', value ->> 'committed_at' \
             FROM json_each($1) WHERE TRUE ON CONFLICT DO NOTHING RETURNING dedupe_id";
        let entered: Vec<String> = sqlx::query_scalar(INSERT).bind(Json(turns)).fetch_all(self).await?;
        Ok(entered.into_iter().collect())
    }

    async fn find_turns(&mut self, dedupe_ids: &[&str]) -> Result<Vec<Committed>, StoreError> {
        const FIND: &str =
            "SELECT dedupe_id, id AS turn_id, state FROM turns WHERE dedupe_id IN (SELECT value FROM json_each($1))";
        let found = sqlx::query(FIND).bind(Json(dedupe_ids)).fetch_all(self).await.map_err(refused("look up turns"))?;
        found.iter().map(|row| rows::committed(row, rows::text(row, "dedupe_id")?)).collect()
    }

    async fn insert_conversations(&mut self, new: &[ConversationValues<'_>]) -> Result<HashSet<Uuid>, sqlx::Error> {
        const INSERT: &str = "INSERT INTO conversations (id, channel, bot, peer, platform, device_id, status, \
                 message_count, metadata, created_at, updated_at) \
             SELECT value ->> 'id', value ->> 'channel', value ->> 'bot', value ->> 'peer', value ->> 'platform', \
                 value ->> 'device_id', $2, 0, value -> 'metadata', value ->> 'created_at', value ->> 'created_at' \
             FROM json_each($1) WHERE TRUE ON CONFLICT DO NOTHING RETURNING id";
        let insert = sqlx::query_scalar(INSERT).bind(Json(new)).bind(ConversationStatus::Bot.as_str());
        let opened: Vec<Hyphenated> = insert.fetch_all(self).await?;
        Ok(opened.into_iter().map(Hyphenated::into_uuid).collect())
    }

    async fn lock_conversations(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Conversation>, StoreError> {
        const LOCK: &str = concat!(
            "SELECT ",
            conversation_columns!(),
            " FROM conversations c WHERE c.id IN (SELECT value FROM json_each($1))"
        );
        let found = sqlx::query(LOCK).bind(Json(ids)).fetch_all(self).await.map_err(refused("lock conversations"))?;
        let current = found.iter().map(rows::conversation);
        current.map(|current| current.map(|current| (current.id, current))).collect()
    }

    async fn update_conversations(&mut self, changes: &[ConversationChange]) -> Result<(), sqlx::Error> {
        const UPDATE: &str = "UPDATE conversations AS c SET message_count = value ->> 'message_count', \
                 snippet = value ->> 'snippet', last_message_at = value ->> 'last_message_at', \
                 updated_at = value ->> 'updated_at', metadata = COALESCE(value ->> 'metadata', c.metadata), \
                 status = CASE WHEN value ->> 'handoff' AND c.status = 'bot' THEN 'human' ELSE c.status END \
             FROM json_each($1) WHERE c.id = value ->> 'id'";
        sqlx::query(UPDATE).bind(Json(changes)).execute(self).await.map(drop)
    }

    async fn insert_messages(&mut self, messages: &[MessageValues<'_>]) -> Result<(), sqlx::Error> {
        const INSERT: &str = "INSERT INTO messages (id, conversation_id, ordinal, turn_id, role, author, content, \
                 attachments, tool, platform_message_id, created_at) \
             SELECT value ->> 'id', value ->> 'conversation_id', value ->> 'ordinal', value ->> 'turn_id', \
                 value ->> 'role', value ->> 'author', value ->> 'content', value -> 'attachments', value -> 'tool', \
                 value ->> 'platform_message_id', value ->> 'created_at' \
             FROM json_each($1)";
        sqlx::query(INSERT).bind(Json(messages)).execute(self).await.map(drop)
    }

    async fn insert_deliveries(&mut self, parts: &[DeliveryValues<'_>]) -> Result<(), sqlx::Error> {
        const INSERT: &str = "INSERT INTO deliveries (id, turn_id, stream, partition, sequence, ordinal, \
                 conversation_id, message_id, channel, bot, peer, part, parts, content, buttons, traceparent, \
                 created_at, status, attempts) \
             SELECT value ->> 'id', value ->> 'turn_id', value ->> 'stream', value ->> 'partition', \
                 value ->> 'sequence', value ->> 'ordinal', value ->> 'conversation_id', value ->> 'message_id', \
                 value ->> 'channel', value ->> 'bot', value ->> 'peer', value ->> 'part', value ->> 'parts', \
                 value ->> 'content', value -> 'buttons', value ->> 'traceparent', value ->> 'created_at', \
                 'pending', 0 \
             FROM json_each($1)";
        sqlx::query(INSERT).bind(Json(parts)).execute(self).await.map(drop)
    }

    async fn lock_deliveries(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Found>, StoreError> {
        const LOCK: &str =
            "SELECT id, status, attempts, tried_at FROM deliveries WHERE id IN (SELECT value FROM json_each($1))";
        let found = sqlx::query(LOCK).bind(Json(ids)).fetch_all(self).await.map_err(refused("lock deliveries"))?;
        found.iter().map(rows::found).collect()
    }

    async fn begin_deliveries(&mut self, begun: &[DeliveryBegun]) -> Result<(), sqlx::Error> {
        const BEGIN: &str = "UPDATE deliveries AS d \
             SET status = 'sending', attempts = value ->> 'attempts', tried_at = value ->> 'tried_at' \
             FROM json_each($1) WHERE d.id = value ->> 'id'";
        sqlx::query(BEGIN).bind(Json(begun)).execute(self).await.map(drop)
    }

    async fn end_deliveries(&mut self, ended: &[DeliveryEnded<'_>]) -> Result<(), sqlx::Error> {
        const END: &str = "UPDATE deliveries AS d SET status = value ->> 'status', error = value ->> 'error', \
                 platform_message_id = value ->> 'platform_message_id', settled_at = value ->> 'settled_at' \
             FROM json_each($1) WHERE d.id = value ->> 'id'";
        sqlx::query(END).bind(Json(ended)).execute(self).await.map(drop)
    }
}
