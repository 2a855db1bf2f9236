//! Messages whose process died, on SQLite.

use sqlx::types::Json;

use super::Sqlite;
use crate::store::commit::hold;
use crate::store::error::refused;
use crate::store::{BATCH_ROWS, Ownership, StoreError, rows};

impl Sqlite {
    pub(in crate::store) async fn charge_deaths(
        &self,
        dedupe_ids: &[String],
        owner: &Ownership,
    ) -> Result<Vec<(String, u32)>, StoreError> {
        const FORGET: &str = "DELETE FROM process_deaths WHERE dedupe_id IN (SELECT dedupe_id FROM turns)";
        const CHARGE: &str = "INSERT INTO process_deaths AS p (dedupe_id, deaths, begun, stream, epoch) \
             SELECT value, 1, 1, $2, $3 FROM json_each($1) WHERE TRUE \
             ON CONFLICT (dedupe_id) DO UPDATE SET \
             deaths = p.deaths + CASE WHEN p.stream = $2 AND p.epoch = $3 THEN 0 ELSE p.begun END, \
             begun = CASE WHEN p.stream = $2 AND p.epoch = $3 THEN p.begun ELSE 0 END, \
             stream = $2, epoch = $3 RETURNING dedupe_id, deaths";
        let refused = refused("count deaths of processes");
        let mut transaction = self.begin().await.map_err(&refused)?;
        hold(&mut *transaction, Some(owner)).await?;
        sqlx::query(FORGET).execute(&mut *transaction).await.map_err(&refused)?;
        let mut charged = Vec::with_capacity(dedupe_ids.len());
        for batch in dedupe_ids.chunks(BATCH_ROWS) {
            let charge = sqlx::query(CHARGE).bind(Json(batch)).bind(owner.stream).bind(owner.epoch);
            charged.extend(charge.fetch_all(&mut *transaction).await.map_err(&refused)?);
        }
        transaction.commit().await.map_err(&refused)?;
        charged.iter().map(|row| Ok((rows::text(row, "dedupe_id")?, rows::number(row, "deaths")?))).collect()
    }

    pub(in crate::store) async fn deaths(&self, dedupe_ids: &[String]) -> Result<Vec<(String, u32)>, StoreError> {
        const FIND: &str = "SELECT dedupe_id, deaths FROM process_deaths \
             WHERE dedupe_id IN (SELECT value FROM json_each($1))";
        let found = sqlx::query(FIND).bind(Json(dedupe_ids)).fetch_all(&self.readers).await;
        let found = found.map_err(refused("look up deaths of processes"))?;
        found.iter().map(|row| Ok((rows::text(row, "dedupe_id")?, rows::number(row, "deaths")?))).collect()
    }

    pub(in crate::store) async fn note_begun(
        &self,
        dedupe_id: &str,
        is_begun: bool,
        owner: &Ownership,
    ) -> Result<(), StoreError> {
        const NOTE: &str = "UPDATE process_deaths SET begun = $2 WHERE dedupe_id = $1";
        let refused = refused("note that a message is being worked on");
        let mut transaction = self.begin().await.map_err(&refused)?;
        hold(&mut *transaction, Some(owner)).await?;
        let note = sqlx::query(NOTE).bind(dedupe_id).bind(i64::from(is_begun));
        note.execute(&mut *transaction).await.map_err(&refused)?;
        transaction.commit().await.map_err(&refused)
    }
}
