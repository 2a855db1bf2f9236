//! What people did by hand, on SQLite.

use sqlx::types::Json;

use super::Sqlite;
use crate::store::error::refused;
use crate::store::operator::{self, OperatorAction, Recorded};
use crate::store::{BATCH_ROWS, StoreError};

impl Sqlite {
    pub(in crate::store) async fn record_operator_actions(
        &self,
        actions: &[OperatorAction],
    ) -> Result<Vec<Recorded>, StoreError> {
        const INSERT: &str = "INSERT INTO operator_actions (id, verb, target, actor, reason, created_at) \
             SELECT value ->> 'id', value ->> 'verb', value ->> 'target', value ->> 'actor', value ->> 'reason', \
                 value ->> 'created_at' \
             FROM json_each($1)";
        for batch in actions.chunks(BATCH_ROWS) {
            let insert = sqlx::query(INSERT).bind(Json(operator::rows(batch)));
            insert.execute(&self.writer).await.map_err(refused("record an operator's actions"))?;
        }
        Ok(Recorded::of(actions))
    }

    pub(in crate::store) async fn is_dead_letter_ended(&self, message_id: &str) -> Result<bool, StoreError> {
        const FIND: &str = "SELECT EXISTS (SELECT 1 FROM operator_actions WHERE target = $1 \
             AND verb IN ('redrive_dead_letter', 'discard_dead_letter'))";
        let found: bool = sqlx::query_scalar(FIND)
            .bind(message_id)
            .fetch_one(&self.readers)
            .await
            .map_err(refused("look up a dead letter's end"))?;
        Ok(found)
    }
}
