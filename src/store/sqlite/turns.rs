//! Turns and the ledger on SQLite.
//!
//! Invariant: a commit holds the write lock from its first statement on, so the fence and the conversation it reads stay true.

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::conversations::{insert_conversation, insert_messages, lock_conversation};
use super::deliveries::insert_deliveries;
use super::{Sqlite, holds};
use crate::message::{ConversationKey, Peer, TerminalState, Timestamp};
use crate::store::error::refused;
use crate::store::rows::{self, conversation_columns, message_columns};
use crate::store::{
    BATCH_ROWS, CommitOutcome, Committed, Conversation, LedgerFaults, PendingDelivery, StoreError, Turn, TurnCommit,
    TurnContextRow, merge,
};

impl Sqlite {
    pub(in crate::store) async fn load_turn(
        &self,
        key: &ConversationKey,
        dedupe_id: &str,
    ) -> Result<TurnContextRow, StoreError> {
        const OF_PEER: &str = concat!(
            "SELECT t.id AS turn_id, t.state, ",
            conversation_columns!(),
            " FROM (SELECT 1) one LEFT JOIN turns t ON t.dedupe_id = $1 \
             LEFT JOIN conversations c ON c.channel = $2 AND c.bot = $3 AND c.peer = $4 AND c.status <> 'closed'"
        );
        const OF_ID: &str = concat!(
            "SELECT t.id AS turn_id, t.state, ",
            conversation_columns!(),
            " FROM (SELECT 1) one LEFT JOIN turns t ON t.dedupe_id = $1 \
             LEFT JOIN conversations c ON c.channel = $2 AND c.bot = $3 AND c.id = $4"
        );
        let query = match &key.peer {
            Peer::Conversation(id) => {
                sqlx::query(OF_ID).bind(dedupe_id).bind(key.channel.as_str()).bind(&*key.bot).bind(id.hyphenated())
            }
            peer => {
                sqlx::query(OF_PEER).bind(dedupe_id).bind(key.channel.as_str()).bind(&*key.bot).bind(peer.to_string())
            }
        };
        let row = query.fetch_one(&self.readers).await.map_err(refused("load a turn"))?;
        let already = rows::optional_uuid(&row, "turn_id")?.map(|_| rows::committed(&row, dedupe_id.to_owned()));
        let conversation = rows::optional_uuid(&row, "id")?.map(|_| rows::conversation(&row));
        Ok(TurnContextRow { already: already.transpose()?, conversation: conversation.transpose()? })
    }

    pub(in crate::store) async fn settled(&self, dedupe_ids: &[String]) -> Result<Vec<Committed>, StoreError> {
        const FIND: &str =
            "SELECT dedupe_id, id AS turn_id, state FROM turns WHERE dedupe_id IN (SELECT value FROM json_each($1))";
        let mut settled = Vec::with_capacity(dedupe_ids.len());
        for batch in dedupe_ids.chunks(BATCH_ROWS) {
            let found = sqlx::query(FIND)
                .bind(json!(batch))
                .fetch_all(&self.readers)
                .await
                .map_err(refused("look up turns"))?;
            for row in &found {
                settled.push(rows::committed(row, rows::text(row, "dedupe_id")?)?);
            }
        }
        Ok(settled)
    }

    pub(in crate::store) async fn commit(&self, turn: &TurnCommit) -> Result<CommitOutcome, StoreError> {
        let refused = refused("commit a turn");
        let mut transaction = self.begin().await.map_err(&refused)?;
        let outcome = write_turn(&mut transaction, turn).await?;
        match outcome {
            CommitOutcome::Committed { .. } => transaction.commit().await.map_err(&refused)?,
            _ => transaction.rollback().await.map_err(&refused)?,
        }
        Ok(outcome)
    }

    pub(in crate::store) async fn turn(&self, turn_id: Uuid) -> Result<Option<Turn>, StoreError> {
        const FIND: &str = "SELECT id, conversation_id, state, reason, attempts, responder, stream, sequence, \
             traceparent, received_at, committed_at FROM turns WHERE id = $1";
        const REPLIES: &str = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE turn_id = $1 AND role = 'assistant' ORDER BY ordinal"
        );
        let refused = refused("show a turn");
        let Some(row) =
            sqlx::query(FIND).bind(turn_id.hyphenated()).fetch_optional(&self.readers).await.map_err(&refused)?
        else {
            return Ok(None);
        };
        let replies =
            sqlx::query(REPLIES).bind(turn_id.hyphenated()).fetch_all(&self.readers).await.map_err(&refused)?;
        rows::turn(&row, replies.iter().map(rows::message).collect::<Result<_, _>>()?).map(Some)
    }

    pub(in crate::store) async fn ledger_faults(&self) -> Result<LedgerFaults, StoreError> {
        const DOUBLED: &str = "SELECT turn_id FROM messages WHERE turn_id IS NOT NULL AND role = 'user' \
             GROUP BY turn_id HAVING count(*) > 1 ORDER BY turn_id LIMIT 1000";
        const OUT_OF_ORDER: &str = "WITH spans AS ( \
                 SELECT t.id, m.conversation_id, t.stream, t.sequence, \
                     min(m.ordinal) AS first_ordinal, max(m.ordinal) AS last_ordinal \
                 FROM messages m JOIN turns t ON t.id = m.turn_id \
                 GROUP BY t.id, m.conversation_id, t.stream, t.sequence \
             ), compared AS ( \
                 SELECT id, first_ordinal, max(last_ordinal) OVER ( \
                     PARTITION BY conversation_id ORDER BY stream, sequence \
                     ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING \
                 ) AS reached FROM spans \
             ) \
             SELECT id AS turn_id FROM compared WHERE first_ordinal < reached ORDER BY id LIMIT 1000";
        let doubled: Result<_, StoreError> =
            self.audit(DOUBLED).await?.iter().map(|row| rows::uuid(row, "turn_id")).collect();
        let out_of_order: Result<_, StoreError> =
            self.audit(OUT_OF_ORDER).await?.iter().map(|row| rows::uuid(row, "turn_id")).collect();
        Ok(LedgerFaults { doubled: doubled?, out_of_order: out_of_order? })
    }

    pub(in crate::store) async fn ledger_counts(&self) -> Result<Vec<(TerminalState, i64)>, StoreError> {
        let counted = self.audit("SELECT state, count(*) AS count FROM turns GROUP BY state ORDER BY state").await?;
        counted.iter().map(|row| Ok((rows::word(row, "state")?, rows::number(row, "count")?))).collect()
    }

    /// Reads whole tables, beside the writer.
    pub(super) async fn audit(&self, statement: &'static str) -> Result<Vec<SqliteRow>, StoreError> {
        sqlx::query(statement).fetch_all(&self.readers).await.map_err(refused("audit the ledger"))
    }
}

/// Everything of a commit but its end. Only [`CommitOutcome::Committed`] may be made durable.
async fn write_turn(connection: &mut SqliteConnection, turn: &TurnCommit) -> Result<CommitOutcome, StoreError> {
    let refused = refused("commit a turn");
    if !holds(connection, &turn.ownership).await.map_err(&refused)? {
        return Ok(CommitOutcome::Fenced);
    }
    if !insert_turn(connection, turn).await.map_err(&refused)? {
        let row = sqlx::query("SELECT id AS turn_id, state FROM turns WHERE dedupe_id = $1").bind(&turn.dedupe_id);
        let row = row.fetch_one(connection).await.map_err(&refused)?;
        return rows::committed(&row, turn.dedupe_id.clone()).map(CommitOutcome::AlreadyTerminal);
    }
    if let Some(new) = &turn.new_conversation
        && !insert_conversation(connection, new).await.map_err(&refused)?
    {
        return Ok(CommitOutcome::ConversationMoved);
    }
    let mut first_ordinal = None;
    if let Some(id) = turn.conversation_id {
        let Some(current) = lock_conversation(connection, id).await? else {
            return Ok(CommitOutcome::ConversationMoved);
        };
        update_conversation(connection, &current, turn).await.map_err(&refused)?;
        let messages = rows::numbered(&turn.messages, Some(turn.turn_id), current.message_count);
        first_ordinal = messages.first().map(|message| message.ordinal);
        insert_messages(connection, id, &messages).await.map_err(&refused)?;
    }
    insert_deliveries(connection, turn).await.map_err(&refused)?;
    let pending = |part| PendingDelivery { part, traceparent: turn.traceparent.clone() };
    Ok(CommitOutcome::Committed {
        committed: Committed { dedupe_id: turn.dedupe_id.clone(), turn_id: turn.turn_id, state: turn.state },
        deliveries: turn.deliveries.iter().cloned().map(pending).collect(),
        first_ordinal,
    })
}

/// Writes the ledger row; false when there is one already.
async fn insert_turn(connection: &mut SqliteConnection, turn: &TurnCommit) -> Result<bool, sqlx::Error> {
    const INSERT: &str = "INSERT INTO turns (id, dedupe_id, stream, partition, sequence, channel, bot, peer, \
             conversation_id, state, reason, attempts, responder, traceparent, timings, received_at, started_at, \
             committed_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
         ON CONFLICT DO NOTHING";
    let written = sqlx::query(INSERT)
        .bind(turn.turn_id.hyphenated())
        .bind(&turn.dedupe_id)
        .bind(turn.position.stream)
        .bind(turn.ownership.partition)
        .bind(rows::sequence(turn.position.sequence))
        .bind(turn.key.channel.as_str())
        .bind(&*turn.key.bot)
        .bind(turn.key.peer.to_string())
        .bind(turn.conversation_id.map(Uuid::hyphenated))
        .bind(turn.state.as_str())
        .bind(turn.reason.as_deref().map(merge::storable))
        .bind(i64::from(turn.attempts))
        .bind(turn.responder.as_deref())
        .bind(turn.traceparent.as_deref())
        .bind(Json(turn.timings))
        .bind(turn.received_at.as_micros())
        .bind(turn.started_at.as_micros())
        .bind(turn.committed_at.as_micros())
        .execute(connection)
        .await?;
    Ok(written.rows_affected() == 1)
}

/// Writes the columns a turn owns (G6); nothing at all when it has nothing to say about the conversation.
async fn update_conversation(
    connection: &mut SqliteConnection,
    current: &Conversation,
    turn: &TurnCommit,
) -> Result<(), sqlx::Error> {
    const UPDATE: &str = "UPDATE conversations SET message_count = $2, snippet = $3, last_message_at = $4, \
             updated_at = $5, metadata = COALESCE($6, metadata), \
             status = CASE WHEN $7 AND status = 'bot' THEN 'human' ELSE status END \
         WHERE id = $1";
    let metadata = merge::turn_metadata(current, turn);
    let changed = (metadata != current.metadata).then(|| json!(metadata));
    if turn.messages.is_empty() && changed.is_none() && !turn.handoff {
        return Ok(());
    }
    let activity = merge::activity(current, &turn.messages, turn.committed_at);
    sqlx::query(UPDATE)
        .bind(current.id.hyphenated())
        .bind(activity.message_count)
        .bind(activity.snippet)
        .bind(activity.last_message_at.map(Timestamp::as_micros))
        .bind(activity.updated_at.as_micros())
        .bind(changed)
        .bind(turn.handoff)
        .execute(connection)
        .await
        .map(drop)
}
