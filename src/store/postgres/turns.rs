//! Turns and the ledger on PostgreSQL, as they are read.
//!
//! Refuses to write: a turn is written by its commit alone.

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::Postgres;
use crate::message::{ConversationKey, Peer, TerminalState};
use crate::store::commit::Statements as _;
use crate::store::error::refused;
use crate::store::rows::{self, conversation_columns, message_columns};
use crate::store::{BATCH_ROWS, Committed, LedgerFaults, StoreError, Turn, TurnContextRow};

impl Postgres {
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
                sqlx::query(OF_ID).bind(dedupe_id).bind(key.channel.as_str()).bind(&*key.bot).bind(*id)
            }
            peer => {
                sqlx::query(OF_PEER).bind(dedupe_id).bind(key.channel.as_str()).bind(&*key.bot).bind(peer.to_string())
            }
        };
        let row = query.fetch_one(&self.pool).await.map_err(refused("load a turn"))?;
        let already = rows::optional_uuid(&row, "turn_id")?.map(|_| rows::committed(&row, dedupe_id.to_owned()));
        let conversation = rows::optional_uuid(&row, "id")?.map(|_| rows::conversation(&row));
        Ok(TurnContextRow { already: already.transpose()?, conversation: conversation.transpose()? })
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
