//! Writing groups on SQLite: the statements of groups, rows given as one JSON text.
//!
//! Refuses to loop over rows. Invariant: a group holds the write lock from its first statement on, so whatever it reads stays
//! true until it ends.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::SqliteConnection;
use sqlx::types::Json;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::Sqlite;
use crate::message::ConversationStatus;
use crate::store::commit::{End, Locked, Partition, Rows, Statements};
use crate::store::error::refused;
use crate::store::rows::{self, conversation_columns};
use crate::store::values::{ActionValues, ConversationValues, JournalValues, RecordValues, TokenValues, TurnValues};
use crate::store::writes::{Asked, Outcome, Writes};
use crate::store::{Committed, Conversation, StoreError};

impl Sqlite {
    /// Writes what a group asks for; the outcomes are in its order.
    pub(in crate::store) async fn write(&self, asked: &[Asked]) -> Result<Vec<Outcome>, StoreError> {
        let refused = refused("write a group");
        let mut writes = Writes::new(asked);
        loop {
            let mut transaction = self.begin().await.map_err(&refused)?;
            let end = writes.write(&mut *transaction).await?;
            match end {
                End::Commit => transaction.commit().await.map_err(&refused)?,
                End::RollBack | End::RollBackAndRepeat => transaction.rollback().await.map_err(&refused)?,
            }
            if end != End::RollBackAndRepeat {
                return Ok(writes.outcomes());
            }
        }
    }
}

impl Statements for SqliteConnection {
    async fn lock(&mut self, partitions: &BTreeSet<Partition>, deliveries: &[Uuid]) -> Result<Locked, StoreError> {
        const LOCK: &str = "SELECT p.stream, p.partition, p.epoch, NULL AS id, NULL AS status, NULL AS attempts, \
                 NULL AS tried_at, NULL AS unclear_attempts, NULL AS chat \
             FROM jsonb_each($1) AS wanted \
             JOIN partitions p ON p.stream = wanted.value ->> 0 AND p.partition = wanted.value ->> 1 \
             UNION ALL \
             SELECT NULL, NULL, NULL, d.id, d.status, d.attempts, d.tried_at, d.unclear_attempts, \
                 (SELECT h.state FROM chats h \
                 WHERE h.channel = d.channel AND h.bot = d.bot AND h.peer = d.peer) FROM deliveries d \
             WHERE d.id IN (SELECT value FROM jsonb_each($2))";
        let found = sqlx::query(LOCK).bind(Json(partitions)).bind(Json(deliveries)).fetch_all(self).await;
        let mut locked = Locked::default();
        for row in &found.map_err(refused("lock partitions and deliveries"))? {
            if rows::optional_uuid(row, "id")?.is_some() {
                locked.deliveries.extend([rows::found(row)?]);
            } else {
                let partition = Partition(rows::number(row, "stream")?, rows::number(row, "partition")?);
                locked.epochs.insert(partition, rows::number(row, "epoch")?);
            }
        }
        Ok(locked)
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
             FROM jsonb_each($1) WHERE TRUE ON CONFLICT DO NOTHING RETURNING dedupe_id";
        let entered: Vec<String> = sqlx::query_scalar(INSERT).bind(Json(turns)).fetch_all(self).await?;
        Ok(entered.into_iter().collect())
    }

    async fn find_turns(&mut self, dedupe_ids: &[&str]) -> Result<Vec<Committed>, StoreError> {
        const FIND: &str =
            "SELECT dedupe_id, id AS turn_id, state FROM turns WHERE dedupe_id IN (SELECT value FROM jsonb_each($1))";
        let found = sqlx::query(FIND).bind(Json(dedupe_ids)).fetch_all(self).await.map_err(refused("look up turns"))?;
        found.iter().map(|row| rows::committed(row, rows::text(row, "dedupe_id")?)).collect()
    }

    async fn insert_conversations(&mut self, new: &[ConversationValues<'_>]) -> Result<HashSet<Uuid>, sqlx::Error> {
        const INSERT: &str = "INSERT INTO conversations (id, channel, bot, peer, platform, device_id, status, \
                 message_count, metadata, created_at, updated_at) \
             SELECT value ->> 'id', value ->> 'channel', value ->> 'bot', value ->> 'peer', value ->> 'platform', \
                 value ->> 'device_id', $2, 0, value -> 'metadata', value ->> 'created_at', value ->> 'created_at' \
             FROM jsonb_each($1) WHERE TRUE ON CONFLICT DO NOTHING RETURNING id";
        let insert = sqlx::query_scalar(INSERT).bind(Json(new)).bind(ConversationStatus::Bot.as_str());
        let opened: Vec<Hyphenated> = insert.fetch_all(self).await?;
        Ok(opened.into_iter().map(Hyphenated::into_uuid).collect())
    }

    async fn lock_conversations(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Conversation>, StoreError> {
        const LOCK: &str = concat!(
            "SELECT ",
            conversation_columns!(),
            " FROM conversations c WHERE c.id IN (SELECT value FROM jsonb_each($1))"
        );
        let found = sqlx::query(LOCK).bind(Json(ids)).fetch_all(self).await.map_err(refused("lock conversations"))?;
        let current = found.iter().map(rows::conversation);
        current.map(|current| current.map(|current| (current.id, current))).collect()
    }

    /// One text of several statements, because each trip to the connection's thread and back costs more than most of them.
    async fn write(&mut self, rows: &Rows<'_>) -> Result<(), sqlx::Error> {
        const WRITE: &str = "UPDATE conversations AS c SET message_count = value ->> 'message_count', \
                 snippet = value ->> 'snippet', last_message_at = value ->> 'last_message_at', \
                 updated_at = value ->> 'updated_at', metadata = COALESCE(value ->> 'metadata', c.metadata), \
                 status = CASE WHEN value ->> 'handoff' AND c.status = 'bot' THEN 'human' ELSE c.status END \
             FROM jsonb_each($1) WHERE c.id = value ->> 'id'; \
             INSERT INTO messages (id, conversation_id, ordinal, turn_id, role, author, content, \
                 attachments, tool, platform_message_id, created_at) \
             SELECT value ->> 'id', value ->> 'conversation_id', value ->> 'ordinal', value ->> 'turn_id', \
                 value ->> 'role', value ->> 'author', value ->> 'content', value -> 'attachments', value -> 'tool', \
                 value ->> 'platform_message_id', value ->> 'created_at' \
             FROM jsonb_each($2); \
             INSERT INTO deliveries (id, turn_id, stream, partition, sequence, ordinal, \
                 conversation_id, message_id, channel, bot, peer, part, parts, content, buttons, form, traceparent, \
                 created_at, status, attempts) \
             SELECT value ->> 'id', value ->> 'turn_id', value ->> 'stream', value ->> 'partition', \
                 value ->> 'sequence', value ->> 'ordinal', value ->> 'conversation_id', value ->> 'message_id', \
                 value ->> 'channel', value ->> 'bot', value ->> 'peer', value ->> 'part', value ->> 'parts', \
                 value ->> 'content', value -> 'buttons', value -> 'form', value ->> 'traceparent', value ->> 'created_at', \
                 'pending', 0 \
             FROM jsonb_each($3); \
             UPDATE deliveries AS d \
             SET status = 'sending', attempts = value ->> 'attempts', tried_at = value ->> 'tried_at' \
             FROM jsonb_each($4) WHERE d.id = value ->> 'id'; \
             UPDATE deliveries AS d SET status = value ->> 'status', error = value ->> 'error', \
                 platform_message_id = value ->> 'platform_message_id', settled_at = value ->> 'settled_at', \
                 unclear_attempts = d.unclear_attempts + (value ->> 'unclear_attempts') \
             FROM jsonb_each($5) WHERE d.id = value ->> 'id'";
        sqlx::query(WRITE)
            .bind(Json(rows.changes))
            .bind(Json(rows.messages))
            .bind(Json(rows.parts))
            .bind(Json(rows.begun))
            .bind(Json(rows.ended))
            .execute(self)
            .await
            .map(drop)
    }

    async fn hand_off_turns(&mut self, ids: &[Uuid]) -> Result<(), sqlx::Error> {
        const UPDATE: &str = "UPDATE turns SET state = 'handed_off' WHERE id IN (SELECT value FROM json_each($1))";
        sqlx::query(UPDATE).bind(Json(ids)).execute(self).await.map(drop)
    }

    async fn write_journal(&mut self, steps: &[JournalValues<'_>]) -> Result<(), sqlx::Error> {
        const WRITE: &str = "INSERT INTO turn_journal (turn_id, step, ordinal, kind, status, request_hash, request, \
                 result, started_at, ended_at) \
             SELECT value ->> 'turn_id', value ->> 'step', value ->> 'ordinal', value ->> 'kind', value ->> 'status', \
                 value ->> 'request_hash', value -> 'request', value -> 'result', value ->> 'started_at', \
                 value ->> 'ended_at' \
             FROM json_each($1) WHERE TRUE \
             ON CONFLICT (turn_id, step) DO UPDATE SET ordinal = excluded.ordinal, kind = excluded.kind, \
                 status = excluded.status, request_hash = excluded.request_hash, request = excluded.request, \
                 result = excluded.result, started_at = excluded.started_at, ended_at = excluded.ended_at";
        sqlx::query(WRITE).bind(Json(steps)).execute(self).await.map(drop)
    }

    async fn remove_journals(&mut self, turn_ids: &[Uuid]) -> Result<(), sqlx::Error> {
        const REMOVE: &str = "DELETE FROM turn_journal WHERE turn_id IN (SELECT value FROM json_each($1))";
        sqlx::query(REMOVE).bind(Json(turn_ids)).execute(self).await.map(drop)
    }

    async fn insert_records(&mut self, records: &[RecordValues]) -> Result<(), sqlx::Error> {
        const INSERT: &str = "INSERT INTO turn_records (turn_id, record) \
             SELECT value ->> 'turn_id', value -> 'record' FROM json_each($1)";
        sqlx::query(INSERT).bind(Json(records)).execute(self).await.map(drop)
    }

    async fn add_tokens(&mut self, tokens: &[TokenValues<'_>]) -> Result<(), sqlx::Error> {
        const ADD: &str = "INSERT INTO token_usage (bot, day, tokens) \
             SELECT value ->> 'bot', value ->> 'day', value ->> 'tokens' FROM json_each($1) WHERE TRUE \
             ON CONFLICT (bot, day) DO UPDATE SET tokens = token_usage.tokens + excluded.tokens";
        sqlx::query(ADD).bind(Json(tokens)).execute(self).await.map(drop)
    }

    async fn insert_actions(&mut self, actions: &[ActionValues<'_>]) -> Result<(), sqlx::Error> {
        const INSERT: &str = "INSERT INTO pending_actions (id, conversation_id, turn_id, requester, tool, arguments, \
                 status, created_at, expires_at) \
             SELECT value ->> 'id', value ->> 'conversation_id', value ->> 'turn_id', value ->> 'requester', \
                 value ->> 'tool', value ->> 'arguments', 'pending', value ->> 'created_at', value ->> 'expires_at' \
             FROM json_each($1)";
        sqlx::query(INSERT).bind(Json(actions)).execute(self).await.map(drop)
    }

    async fn cancel_actions(&mut self, conversation_ids: &[Uuid]) -> Result<(), sqlx::Error> {
        const CANCEL: &str = "UPDATE pending_actions SET status = 'cancelled' \
             WHERE status = 'pending' AND conversation_id IN (SELECT value FROM json_each($1))";
        sqlx::query(CANCEL).bind(Json(conversation_ids)).execute(self).await.map(drop)
    }
}
