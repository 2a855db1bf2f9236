//! Writes into the database around the code under test: what else only time or a fault would do there.
//!
//! Refuses to be part of what a test checks. Invariant: one statement, the same on PostgreSQL and SQLite, that changes
//! something.

use sqlx::{Connection as _, PgConnection, SqliteConnection};

/// Runs a statement on the database of this address; it must change one row at least.
pub(crate) async fn execute(database_url: &str, statement: &'static str) {
    let changed = if database_url.starts_with("sqlite:") {
        let mut connection = SqliteConnection::connect(database_url).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected()
    } else {
        let mut connection = PgConnection::connect(database_url).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap().rows_affected()
    };
    assert!(changed > 0, "{statement} changes nothing");
}
