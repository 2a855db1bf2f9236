//! What people did by hand, on PostgreSQL.

use sqlx::postgres::PgBindIterExt as _;

use super::Postgres;
use crate::store::error::refused;
use crate::store::operator::{self, OperatorAction, Recorded};
use crate::store::{BATCH_ROWS, StoreError};

impl Postgres {
    pub(in crate::store) async fn record_operator_actions(
        &self,
        actions: &[OperatorAction],
    ) -> Result<Vec<Recorded>, StoreError> {
        const INSERT: &str = "INSERT INTO operator_actions (id, verb, target, actor, reason, created_at) \
             SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6)";
        for batch in actions.chunks(BATCH_ROWS) {
            let rows = operator::rows(batch);
            let insert = sqlx::query(INSERT)
                .bind(rows.iter().map(|row| row.id).bind_iter())
                .bind(rows.iter().map(|row| row.verb).bind_iter())
                .bind(rows.iter().map(|row| &*row.target).bind_iter())
                .bind(rows.iter().map(|row| row.actor.as_deref()).bind_iter())
                .bind(rows.iter().map(|row| row.reason.as_deref()).bind_iter())
                .bind(rows.iter().map(|row| row.created_at.to_offset_date_time()).bind_iter());
            insert.execute(&self.pool).await.map_err(refused("record an operator's actions"))?;
        }
        Ok(Recorded::of(actions))
    }

    pub(in crate::store) async fn is_dead_letter_ended(&self, message_id: &str) -> Result<bool, StoreError> {
        const FIND: &str = "SELECT EXISTS (SELECT 1 FROM operator_actions WHERE target = $1 \
             AND verb IN ('redrive_dead_letter', 'discard_dead_letter'))";
        let found: bool = sqlx::query_scalar(FIND)
            .bind(message_id)
            .fetch_one(&self.pool)
            .await
            .map_err(refused("look up a dead letter's end"))?;
        Ok(found)
    }
}
