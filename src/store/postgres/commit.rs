//! Writing groups on PostgreSQL: the statements of groups, rows given column by column.
//!
//! Refuses to loop over rows. Invariant: whatever locks or inserts several rows takes them in one order.

use std::collections::{BTreeSet, HashMap, HashSet};

use sqlx::PgConnection;
use sqlx::postgres::PgBindIterExt as _;
use sqlx::types::Json;
use uuid::Uuid;

use super::Postgres;
use super::chats::{Hold, chat_name, hold_chats};
use crate::message::{ConversationStatus, Timestamp};
use crate::store::commit::{End, Epochs, Locked, Partition, Rows, Statements};
use crate::store::error::refused;
use crate::store::rows::{self, conversation_columns};
use crate::store::sending::Found;
use crate::store::values::{
    ActionValues, ConversationChange, ConversationValues, DeliveryBegun, DeliveryEnded, DeliveryValues, JournalValues,
    MessageValues, RecordValues, TokenValues, TurnValues,
};
use crate::store::writes::{Asked, Outcome, Writes};
use crate::store::{Committed, Conversation, StoreError};

impl Postgres {
    /// Writes what a group asks for; the outcomes are in its order.
    pub(in crate::store) async fn write(&self, asked: &[Asked]) -> Result<Vec<Outcome>, StoreError> {
        let refused = refused("write a group");
        let mut writes = Writes::new(asked);
        loop {
            let mut transaction = self.pool.begin().await.map_err(&refused)?;
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

impl Statements for PgConnection {
    async fn lock(&mut self, partitions: &BTreeSet<Partition>, deliveries: &[Uuid]) -> Result<Locked, StoreError> {
        let epochs = if partitions.is_empty() { Epochs::new() } else { lock_partitions(self, partitions).await? };
        let deliveries = if deliveries.is_empty() { HashMap::new() } else { lock_deliveries(self, deliveries).await? };
        Ok(Locked { epochs, deliveries })
    }

    async fn insert_turns(&mut self, turns: &[TurnValues<'_>]) -> Result<HashSet<String>, sqlx::Error> {
        const INSERT: &str = "INSERT INTO turns (id, dedupe_id, stream, partition, sequence, channel, bot, peer, \
                 conversation_id, state, merged_into, reason, attempts, responder, traceparent, timings, received_at, \
                 started_at, committed_at) \
             SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) \
                 AS turn (id, dedupe_id) \
             ORDER BY dedupe_id ON CONFLICT DO NOTHING RETURNING dedupe_id";
        let entered: Vec<String> = sqlx::query_scalar(INSERT)
            .bind(turns.iter().map(|turn| turn.id).bind_iter())
            .bind(turns.iter().map(|turn| turn.dedupe_id).bind_iter())
            .bind(turns.iter().map(|turn| turn.stream).bind_iter())
            .bind(turns.iter().map(|turn| turn.partition).bind_iter())
            .bind(turns.iter().map(|turn| turn.sequence).bind_iter())
            .bind(turns.iter().map(|turn| turn.channel).bind_iter())
            .bind(turns.iter().map(|turn| turn.bot).bind_iter())
            .bind(turns.iter().map(|turn| &turn.peer).bind_iter())
            .bind(turns.iter().map(|turn| turn.conversation_id).bind_iter())
            .bind(turns.iter().map(|turn| turn.state).bind_iter())
            .bind(turns.iter().map(|turn| turn.merged_into).bind_iter())
            .bind(turns.iter().map(|turn| turn.reason.as_deref()).bind_iter())
            .bind(turns.iter().map(|turn| turn.attempts).bind_iter())
            .bind(turns.iter().map(|turn| turn.responder).bind_iter())
            .bind(turns.iter().map(|turn| turn.traceparent).bind_iter())
            .bind(turns.iter().map(|turn| Json(turn.timings)).bind_iter())
            .bind(turns.iter().map(|turn| turn.received_at.to_offset_date_time()).bind_iter())
            .bind(turns.iter().map(|turn| turn.started_at.to_offset_date_time()).bind_iter())
            .bind(turns.iter().map(|turn| turn.committed_at.to_offset_date_time()).bind_iter())
            .fetch_all(self)
            .await?;
        Ok(entered.into_iter().collect())
    }

    async fn find_turns(&mut self, dedupe_ids: &[&str]) -> Result<Vec<Committed>, StoreError> {
        const FIND: &str = "SELECT dedupe_id, id AS turn_id, state FROM turns WHERE dedupe_id = ANY($1)";
        let found = sqlx::query(FIND).bind(dedupe_ids).fetch_all(self).await.map_err(refused("look up turns"))?;
        found.iter().map(|row| rows::committed(row, rows::text(row, "dedupe_id")?)).collect()
    }

    async fn insert_conversations(&mut self, new: &[ConversationValues<'_>]) -> Result<HashSet<Uuid>, sqlx::Error> {
        const INSERT: &str = "INSERT INTO conversations (id, channel, bot, peer, platform, device_id, status, \
                 message_count, metadata, created_at, updated_at) \
             SELECT id, channel, bot, peer, platform, device_id, $9, 0, metadata, created_at, created_at \
             FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8) \
                 AS new (id, channel, bot, peer, platform, device_id, metadata, created_at) \
             ORDER BY channel, bot, peer ON CONFLICT DO NOTHING RETURNING id";
        let groups = new.iter().filter(|new| new.peer.starts_with("group-"));
        let groups: Vec<String> = groups.map(|new| chat_name(new.channel, new.bot, &new.peer)).collect();
        if !groups.is_empty() {
            hold_chats(self, &groups, Hold::ToOpen).await?;
        }
        let opened: Vec<Uuid> = sqlx::query_scalar(INSERT)
            .bind(new.iter().map(|new| new.id).bind_iter())
            .bind(new.iter().map(|new| new.channel).bind_iter())
            .bind(new.iter().map(|new| new.bot).bind_iter())
            .bind(new.iter().map(|new| &new.peer).bind_iter())
            .bind(new.iter().map(|new| new.platform).bind_iter())
            .bind(new.iter().map(|new| new.device_id).bind_iter())
            .bind(new.iter().map(|new| Json(&new.metadata)).bind_iter())
            .bind(new.iter().map(|new| new.created_at.to_offset_date_time()).bind_iter())
            .bind(ConversationStatus::Bot.as_str())
            .fetch_all(self)
            .await?;
        Ok(opened.into_iter().collect())
    }

    async fn lock_conversations(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, Conversation>, StoreError> {
        const LOCK: &str = concat!(
            "SELECT ",
            conversation_columns!(),
            " FROM conversations c WHERE c.id = ANY($1) ORDER BY c.id FOR NO KEY UPDATE"
        );
        let found = sqlx::query(LOCK).bind(ids).fetch_all(self).await.map_err(refused("lock conversations"))?;
        let current = found.iter().map(rows::conversation);
        current.map(|current| current.map(|current| (current.id, current))).collect()
    }

    async fn write(&mut self, rows: &Rows<'_>) -> Result<(), sqlx::Error> {
        if !rows.changes.is_empty() {
            update_conversations(self, rows.changes).await?;
        }
        if !rows.messages.is_empty() {
            insert_messages(self, rows.messages).await?;
        }
        if !rows.parts.is_empty() {
            insert_deliveries(self, rows.parts).await?;
        }
        if !rows.begun.is_empty() {
            begin_deliveries(self, rows.begun).await?;
        }
        if !rows.ended.is_empty() {
            end_deliveries(self, rows.ended).await?;
        }
        Ok(())
    }

    async fn hand_off_turns(&mut self, ids: &[Uuid]) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE turns SET state = 'handed_off' WHERE id = ANY($1)").bind(ids).execute(self).await.map(drop)
    }

    async fn write_journal(&mut self, steps: &[JournalValues<'_>]) -> Result<(), sqlx::Error> {
        const WRITE: &str = "INSERT INTO turn_journal (turn_id, step, ordinal, kind, status, request_hash, request, \
                 result, started_at, ended_at) \
             SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT (turn_id, step) DO UPDATE SET ordinal = excluded.ordinal, kind = excluded.kind, \
                 status = excluded.status, request_hash = excluded.request_hash, request = excluded.request, \
                 result = excluded.result, started_at = excluded.started_at, ended_at = excluded.ended_at";
        let write = sqlx::query(WRITE)
            .bind(steps.iter().map(|step| step.turn_id).bind_iter())
            .bind(steps.iter().map(|step| step.step).bind_iter())
            .bind(steps.iter().map(|step| step.ordinal).bind_iter())
            .bind(steps.iter().map(|step| step.kind).bind_iter())
            .bind(steps.iter().map(|step| step.status).bind_iter())
            .bind(steps.iter().map(|step| step.request_hash).bind_iter())
            .bind(steps.iter().map(|step| step.request.as_ref()).bind_iter())
            .bind(steps.iter().map(|step| step.result.as_ref()).bind_iter())
            .bind(steps.iter().map(|step| step.started_at.to_offset_date_time()).bind_iter())
            .bind(steps.iter().map(|step| step.ended_at.map(Timestamp::to_offset_date_time)).bind_iter());
        write.execute(self).await.map(drop)
    }

    async fn remove_journals(&mut self, turn_ids: &[Uuid]) -> Result<(), sqlx::Error> {
        sqlx::query("DELETE FROM turn_journal WHERE turn_id = ANY($1)").bind(turn_ids).execute(self).await.map(drop)
    }

    async fn insert_records(&mut self, records: &[RecordValues]) -> Result<(), sqlx::Error> {
        const INSERT: &str = "INSERT INTO turn_records (turn_id, record) SELECT * FROM UNNEST($1, $2)";
        let insert = sqlx::query(INSERT)
            .bind(records.iter().map(|record| record.turn_id).bind_iter())
            .bind(records.iter().map(|record| &record.record).bind_iter());
        insert.execute(self).await.map(drop)
    }

    async fn add_tokens(&mut self, tokens: &[TokenValues<'_>]) -> Result<(), sqlx::Error> {
        const ADD: &str = "INSERT INTO token_usage (bot, day, tokens) SELECT * FROM UNNEST($1, $2, $3) \
             ON CONFLICT (bot, day) DO UPDATE SET tokens = token_usage.tokens + excluded.tokens";
        let add = sqlx::query(ADD)
            .bind(tokens.iter().map(|used| used.bot).bind_iter())
            .bind(tokens.iter().map(|used| used.day).bind_iter())
            .bind(tokens.iter().map(|used| used.tokens).bind_iter());
        add.execute(self).await.map(drop)
    }

    async fn insert_actions(&mut self, actions: &[ActionValues<'_>]) -> Result<(), sqlx::Error> {
        const INSERT: &str = "INSERT INTO pending_actions (id, conversation_id, turn_id, requester, tool, arguments, \
                 created_at, expires_at, status) \
             SELECT *, 'pending' FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8)";
        let insert = sqlx::query(INSERT)
            .bind(actions.iter().map(|action| action.id).bind_iter())
            .bind(actions.iter().map(|action| action.conversation_id).bind_iter())
            .bind(actions.iter().map(|action| action.turn_id).bind_iter())
            .bind(actions.iter().map(|action| action.requester.as_deref()).bind_iter())
            .bind(actions.iter().map(|action| &*action.tool).bind_iter())
            .bind(actions.iter().map(|action| &*action.arguments).bind_iter())
            .bind(actions.iter().map(|action| action.created_at.to_offset_date_time()).bind_iter())
            .bind(actions.iter().map(|action| action.expires_at.to_offset_date_time()).bind_iter());
        insert.execute(self).await.map(drop)
    }

    async fn cancel_actions(&mut self, conversation_ids: &[Uuid]) -> Result<(), sqlx::Error> {
        const CANCEL: &str =
            "UPDATE pending_actions SET status = 'cancelled' WHERE status = 'pending' AND conversation_id = ANY($1)";
        sqlx::query(CANCEL).bind(conversation_ids).execute(self).await.map(drop)
    }
}

async fn lock_partitions(
    connection: &mut PgConnection,
    partitions: &BTreeSet<Partition>,
) -> Result<Epochs, StoreError> {
    const LOCK: &str = "SELECT stream, partition, epoch FROM partitions \
         WHERE (stream, partition) IN (SELECT * FROM UNNEST($1, $2)) ORDER BY stream, partition FOR KEY SHARE";
    let found = sqlx::query(LOCK)
        .bind(partitions.iter().map(|Partition(stream, _)| *stream).bind_iter())
        .bind(partitions.iter().map(|Partition(_, partition)| i32::from(*partition)).bind_iter())
        .fetch_all(connection)
        .await
        .map_err(refused("lock partitions"))?;
    let epoch = |row| {
        let partition = Partition(rows::number(row, "stream")?, rows::number(row, "partition")?);
        Ok((partition, rows::number(row, "epoch")?))
    };
    found.iter().map(epoch).collect()
}

async fn lock_deliveries(connection: &mut PgConnection, ids: &[Uuid]) -> Result<HashMap<Uuid, Found>, StoreError> {
    const LOCK: &str = "SELECT d.id, d.status, d.attempts, d.tried_at, d.unclear_attempts, (SELECT h.state FROM chats h \
             WHERE h.channel = d.channel AND h.bot = d.bot AND h.peer = d.peer) AS chat \
         FROM deliveries d WHERE d.id = ANY($1) ORDER BY d.id FOR NO KEY UPDATE";
    let found = sqlx::query(LOCK).bind(ids).fetch_all(connection).await.map_err(refused("lock deliveries"))?;
    found.iter().map(rows::found).collect()
}

async fn update_conversations(
    connection: &mut PgConnection,
    changes: &[ConversationChange],
) -> Result<(), sqlx::Error> {
    const UPDATE: &str = "UPDATE conversations AS c SET message_count = change.message_count, \
             snippet = change.snippet, last_message_at = change.last_message_at, updated_at = change.updated_at, \
             metadata = COALESCE(change.metadata, c.metadata), \
             status = CASE WHEN change.handoff AND c.status = 'bot' THEN 'human' ELSE c.status END \
         FROM UNNEST($1, $2, $3, $4, $5, $6, $7) \
             AS change (id, message_count, snippet, last_message_at, updated_at, metadata, handoff) \
         WHERE c.id = change.id";
    let update = sqlx::query(UPDATE)
        .bind(changes.iter().map(|change| change.id).bind_iter())
        .bind(changes.iter().map(|change| change.message_count).bind_iter())
        .bind(changes.iter().map(|change| change.snippet.as_deref()).bind_iter())
        .bind(changes.iter().map(|change| change.last_message_at.map(Timestamp::to_offset_date_time)).bind_iter())
        .bind(changes.iter().map(|change| change.updated_at.to_offset_date_time()).bind_iter())
        .bind(changes.iter().map(|change| change.metadata.as_ref()).bind_iter())
        .bind(changes.iter().map(|change| change.handoff).bind_iter());
    update.execute(connection).await.map(drop)
}

async fn insert_messages(connection: &mut PgConnection, messages: &[MessageValues<'_>]) -> Result<(), sqlx::Error> {
    const INSERT: &str = "INSERT INTO messages (id, conversation_id, ordinal, turn_id, role, author, content, \
             attachments, tool, platform_message_id, created_at) \
         SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let insert = sqlx::query(INSERT)
        .bind(messages.iter().map(|message| message.id).bind_iter())
        .bind(messages.iter().map(|message| message.conversation_id).bind_iter())
        .bind(messages.iter().map(|message| message.ordinal).bind_iter())
        .bind(messages.iter().map(|message| message.turn_id).bind_iter())
        .bind(messages.iter().map(|message| message.role).bind_iter())
        .bind(messages.iter().map(|message| message.author).bind_iter())
        .bind(messages.iter().map(|message| &*message.content).bind_iter())
        .bind(messages.iter().map(|message| message.attachments.as_ref()).bind_iter())
        .bind(messages.iter().map(|message| message.tool.as_ref()).bind_iter())
        .bind(messages.iter().map(|message| message.platform_message_id.as_deref()).bind_iter())
        .bind(messages.iter().map(|message| message.created_at.to_offset_date_time()).bind_iter());
    insert.execute(connection).await.map(drop)
}

async fn insert_deliveries(connection: &mut PgConnection, parts: &[DeliveryValues<'_>]) -> Result<(), sqlx::Error> {
    const INSERT: &str = "INSERT INTO deliveries (id, turn_id, stream, partition, sequence, ordinal, \
             conversation_id, message_id, channel, bot, peer, part, parts, content, buttons, form, traceparent, \
             created_at, status, attempts) \
         SELECT *, 'pending', 0 \
         FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)";
    let insert = sqlx::query(INSERT)
        .bind(parts.iter().map(|part| part.id).bind_iter())
        .bind(parts.iter().map(|part| part.turn_id).bind_iter())
        .bind(parts.iter().map(|part| part.stream).bind_iter())
        .bind(parts.iter().map(|part| part.partition).bind_iter())
        .bind(parts.iter().map(|part| part.sequence).bind_iter())
        .bind(parts.iter().map(|part| part.ordinal).bind_iter())
        .bind(parts.iter().map(|part| part.conversation_id).bind_iter())
        .bind(parts.iter().map(|part| part.message_id).bind_iter())
        .bind(parts.iter().map(|part| part.channel).bind_iter())
        .bind(parts.iter().map(|part| part.bot).bind_iter())
        .bind(parts.iter().map(|part| &part.peer).bind_iter())
        .bind(parts.iter().map(|part| part.part).bind_iter())
        .bind(parts.iter().map(|part| part.parts).bind_iter())
        .bind(parts.iter().map(|part| &*part.content).bind_iter())
        .bind(parts.iter().map(|part| part.buttons.as_ref()).bind_iter())
        .bind(parts.iter().map(|part| part.form.as_ref()).bind_iter())
        .bind(parts.iter().map(|part| part.traceparent).bind_iter())
        .bind(parts.iter().map(|part| part.created_at.to_offset_date_time()).bind_iter());
    insert.execute(connection).await.map(drop)
}

async fn begin_deliveries(connection: &mut PgConnection, begun: &[DeliveryBegun]) -> Result<(), sqlx::Error> {
    const BEGIN: &str = "UPDATE deliveries AS d \
         SET status = 'sending', attempts = begun.attempts, tried_at = begun.tried_at \
         FROM UNNEST($1, $2, $3) AS begun (id, attempts, tried_at) WHERE d.id = begun.id";
    let begin = sqlx::query(BEGIN)
        .bind(begun.iter().map(|begun| begun.id).bind_iter())
        .bind(begun.iter().map(|begun| begun.attempts).bind_iter())
        .bind(begun.iter().map(|begun| begun.tried_at.to_offset_date_time()).bind_iter());
    begin.execute(connection).await.map(drop)
}

async fn end_deliveries(connection: &mut PgConnection, ended: &[DeliveryEnded<'_>]) -> Result<(), sqlx::Error> {
    const END: &str = "UPDATE deliveries AS d SET status = ended.status, error = ended.error, \
             platform_message_id = ended.platform_message_id, settled_at = ended.settled_at, \
             unclear_attempts = d.unclear_attempts + ended.unclear_attempts \
         FROM UNNEST($1, $2, $3, $4, $5, $6) \
             AS ended (id, status, error, platform_message_id, settled_at, unclear_attempts) \
         WHERE d.id = ended.id";
    let end = sqlx::query(END)
        .bind(ended.iter().map(|ended| ended.id).bind_iter())
        .bind(ended.iter().map(|ended| ended.status.as_str()).bind_iter())
        .bind(ended.iter().map(|ended| ended.error.as_deref()).bind_iter())
        .bind(ended.iter().map(|ended| ended.platform_message_id.as_deref()).bind_iter())
        .bind(ended.iter().map(|ended| ended.settled_at.map(Timestamp::to_offset_date_time)).bind_iter())
        .bind(ended.iter().map(|ended| ended.unclear_attempts).bind_iter());
    end.execute(connection).await.map(drop)
}
