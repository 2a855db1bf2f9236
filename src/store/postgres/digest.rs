//! Digests of tables on PostgreSQL.

use futures_util::TryStreamExt as _;
use sqlx::Row as _;

use super::Postgres;
use crate::store::StoreError;
use crate::store::digest::{COMPARED, TableDigest, TableSum};
use crate::store::error::refused;

impl Postgres {
    /// Reads whole tables, for as long as that takes, all as of one moment.
    pub(in crate::store) async fn digests(&self) -> Result<Vec<TableDigest>, StoreError> {
        let refused = refused("read a table");
        let mut digests = Vec::with_capacity(COMPARED.len());
        let begun = self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await;
        let mut transaction = begun.map_err(&refused)?;
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(&refused)?;
        for (table, statement) in COMPARED {
            let mut sum = TableSum::of(table);
            let mut rows = sqlx::query(statement).fetch(&mut *transaction);
            while let Some(row) = rows.try_next().await.map_err(&refused)? {
                let columns = (0..row.len()).map(|column| row.try_get(column)).collect::<Result<Vec<_>, _>>();
                sum.add(columns.map_err(&refused)?.into_iter());
            }
            digests.push(sum.end());
        }
        Ok(digests)
    }
}
