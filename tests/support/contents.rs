//! Everything that a database holds, as one digest for each table: what must be the same after something that only reads.
//!
//! Refuses to know what the tables mean. Invariant: every column of every row counts, and no order does.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use sha2::{Digest as _, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _};

/// Rows and digest by table.
pub(crate) async fn contents(url: &str) -> BTreeMap<String, (usize, String)> {
    let digest = |mut rows: Vec<String>| {
        rows.sort_unstable();
        (rows.len(), hex::encode(Sha256::digest(rows.join("\n"))))
    };
    rows(url).await.into_iter().map(|(table, rows)| (table, digest(rows))).collect()
}

/// Every row as text, by table.
pub(crate) async fn rows(url: &str) -> BTreeMap<String, Vec<String>> {
    if url.starts_with("sqlite:") { sqlite(url).await } else { postgres(url).await }
}

async fn sqlite(url: &str) -> BTreeMap<String, Vec<String>> {
    let mut connection = SqliteConnectOptions::from_str(url).unwrap().connect().await.unwrap();
    let names = sqlx::query("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'");
    let names = names.fetch_all(&mut connection).await.unwrap();
    let mut tables = BTreeMap::new();
    for name in names.iter().map(|row| row.get::<String, _>(0)) {
        let columns = sqlx::query("SELECT name FROM pragma_table_info($1)").bind(&name);
        let columns = columns.fetch_all(&mut connection).await.unwrap();
        let columns: Vec<_> = columns.iter().map(|row| format!("quote(\"{}\")", row.get::<String, _>(0))).collect();
        let statement = format!("SELECT {} FROM \"{name}\"", columns.join(" || '|' || "));
        let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap();
        tables.insert(name, rows.iter().map(|row| row.get(0)).collect());
    }
    connection.close().await.unwrap();
    tables
}

async fn postgres(url: &str) -> BTreeMap<String, Vec<String>> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let names = sqlx::query("SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = 'public'");
    let names = names.fetch_all(&mut connection).await.unwrap();
    let mut tables = BTreeMap::new();
    for name in names.iter().map(|row| row.get::<String, _>(0)) {
        let statement = format!("SELECT CAST(t AS TEXT) FROM \"{name}\" t");
        let rows = sqlx::query(AssertSqlSafe(statement)).fetch_all(&mut connection).await.unwrap();
        tables.insert(name, rows.iter().map(|row| row.get(0)).collect());
    }
    connection.close().await.unwrap();
    tables
}
