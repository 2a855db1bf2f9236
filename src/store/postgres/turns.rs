//! Turns and the ledger on PostgreSQL, as they are read.
//!
//! Refuses to write: a turn is written by its commit alone.

use sqlx::postgres::{PgBindIterExt as _, PgRow};
use uuid::Uuid;

use super::Postgres;
use crate::message::TerminalState;
use crate::store::commit::Statements as _;
use crate::store::error::refused;
use crate::store::groups::Load;
use crate::store::rows::{self, conversation_columns, message_columns};
use crate::store::{BATCH_ROWS, Committed, LedgerFaults, StoreError, Turn, TurnContextRow};

impl Postgres {
    /// Reads what a group of turns needs to begin; in its order. The limits keep the planner from reading whole tables.
    pub(in crate::store) async fn load_turns(&self, loads: &[Load]) -> Result<Vec<TurnContextRow>, StoreError> {
        const LOAD: &str = concat!(
            "SELECT t.id AS turn_id, t.state, f.filed_under, f.was_unreachable, ",
            conversation_columns!(),
            " FROM UNNEST($1, $2, $3, $4, $5) WITH ORDINALITY AS wanted (dedupe_id, channel, bot, peer, id, place) \
             LEFT JOIN LATERAL (SELECT id, state FROM turns WHERE dedupe_id = wanted.dedupe_id LIMIT 1) t ON TRUE \
             LEFT JOIN LATERAL (SELECT state ->> 'filed_under' AS filed_under, state ->> 'unreachable' AS was_unreachable \
                 FROM chats WHERE channel = wanted.channel AND bot = wanted.bot AND peer = wanted.peer LIMIT 1) f ON TRUE \
             LEFT JOIN LATERAL ( \
                 (SELECT * FROM conversations WHERE id = wanted.id AND channel = wanted.channel AND bot = wanted.bot \
                  LIMIT 1) \
                 UNION ALL \
                 (SELECT * FROM conversations WHERE wanted.id IS NULL AND channel = wanted.channel \
                      AND bot = wanted.bot AND peer = COALESCE(f.filed_under, wanted.peer) AND status <> 'closed' LIMIT 1) \
             ) c ON TRUE ORDER BY wanted.place"
        );
        let (peers, ids): (Vec<_>, Vec<_>) = loads.iter().map(|load| rows::peer_or_id(&load.key.peer)).unzip();
        let found = sqlx::query(LOAD)
            .bind(loads.iter().map(|load| &load.dedupe_id).bind_iter())
            .bind(loads.iter().map(|load| load.key.channel.as_str()).bind_iter())
            .bind(loads.iter().map(|load| &*load.key.bot).bind_iter())
            .bind(peers)
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(refused("load turns"))?;
        loads.iter().zip(&found).map(|(load, row)| rows::turn_context(row, &load.dedupe_id)).collect()
    }

    pub(in crate::store) async fn settled(&self, dedupe_ids: &[String]) -> Result<Vec<Committed>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(refused("look up turns"))?;
        let mut settled = Vec::with_capacity(dedupe_ids.len());
        for batch in dedupe_ids.chunks(BATCH_ROWS) {
            let batch = batch.iter().map(String::as_str).collect::<Vec<_>>();
            settled.extend(connection.find_turns(&batch).await?);
        }
        Ok(settled)
    }

    pub(in crate::store) async fn turn(&self, turn_id: Uuid) -> Result<Option<Turn>, StoreError> {
        const FIND: &str = "SELECT id, conversation_id, state, merged_into, reason, attempts, responder, stream, sequence, \
             traceparent, received_at, committed_at FROM turns WHERE id = $1";
        const REPLIES: &str = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE turn_id = $1 AND role = 'assistant' ORDER BY ordinal"
        );
        let refused = refused("show a turn");
        let Some(row) = sqlx::query(FIND).bind(turn_id).fetch_optional(&self.pool).await.map_err(&refused)? else {
            return Ok(None);
        };
        let replies = sqlx::query(REPLIES).bind(turn_id).fetch_all(&self.pool).await.map_err(&refused)?;
        rows::turn(&row, replies.iter().map(rows::message).collect::<Result<_, _>>()?).map(Some)
    }

    pub(in crate::store) async fn ledger_faults(&self) -> Result<LedgerFaults, StoreError> {
        const DOUBLED: &str = "SELECT m.turn_id FROM messages m WHERE m.turn_id IS NOT NULL AND m.role = 'user' \
             GROUP BY m.turn_id HAVING count(*) <> 1 + (SELECT count(*) FROM turns t WHERE t.merged_into = m.turn_id) \
             ORDER BY m.turn_id LIMIT 1000";
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

    /// Reads whole tables, for as long as that takes.
    pub(super) async fn audit(&self, statement: &'static str) -> Result<Vec<PgRow>, StoreError> {
        let refused = refused("audit the ledger");
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(&refused)?;
        let found = sqlx::query(statement).fetch_all(&mut *transaction).await.map_err(&refused)?;
        transaction.commit().await.map_err(&refused)?;
        Ok(found)
    }
}
