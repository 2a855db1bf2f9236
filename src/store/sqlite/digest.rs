//! Digests of tables on SQLite.

use futures_util::TryStreamExt as _;
use sqlx::Row as _;

use super::Sqlite;
use crate::store::StoreError;
use crate::store::digest::{COMPARED, TableDigest, TableSum};
use crate::store::error::refused;

impl Sqlite {
    pub(in crate::store) async fn digests(&self) -> Result<Vec<TableDigest>, StoreError> {
        let refused = refused("read a table");
        let mut digests = Vec::with_capacity(COMPARED.len());
        for (table, statement) in COMPARED {
            let mut sum = TableSum::of(table);
            let mut rows = sqlx::query(statement).fetch(&self.readers);
            while let Some(row) = rows.try_next().await.map_err(&refused)? {
                let columns = (0..row.len()).map(|column| row.try_get(column)).collect::<Result<Vec<_>, _>>();
                sum.add(columns.map_err(&refused)?.into_iter());
            }
            digests.push(sum.end());
        }
        Ok(digests)
    }
}
