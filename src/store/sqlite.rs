//! SQLite: connections, migrations, streams and partitions; turns, conversations and deliveries lie below this file.
//!
//! Refuses to write on more than one connection: SQLite has one writer at a time, and a queue in this process is fairer and
//! quicker than its busy timeout. Invariant: every transaction that writes takes the write lock when it begins, so what it
//! reads stays true until it ends; a commit is on the disk when it returns (WAL with `synchronous=FULL`).

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Executor, Row, Sqlite as Database, SqlitePool, Transaction};
use tokio::time::Instant;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::error::{refused, sqlite_may_pass};
use super::rows::{self, Columns};
use super::{BATCH_ROWS, CONNECT_TIMEOUT, Ownership, StoreError, Takeover, schema};
use crate::message::Timestamp;

mod archive;
mod chats;
mod commit;
mod console;
mod conversations;
mod deaths;
mod deliveries;
mod digest;
mod erasure;
mod journal;
mod operator;
mod outcomes;
mod turns;

const FIND_STREAM: &str = "SELECT id FROM streams WHERE name = $1 AND incarnation = $2";

/// How long one process waits for another's write, which is a transaction of milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct Sqlite {
    /// One connection.
    writer: SqlitePool,
    /// The rest, unable to write.
    readers: SqlitePool,
}

impl Sqlite {
    pub(super) async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url).map_err(StoreError::Open)?.disable_statement_logging();
        let path = options.get_filename().to_owned();
        check_path(&path)?;
        let options = options.create_if_missing(true).foreign_keys(true).busy_timeout(BUSY_TIMEOUT);
        // The driver's thread would wait for whoever reads the rows.
        let options = options.row_buffer_size(BATCH_ROWS);

        let writing = options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let writer = open_writer(writing).await.map_err(|source| StoreError::OpenFile { path, source })?;
        let readers = pool(max_connections.saturating_sub(1)).connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self { writer, readers })
    }

    /// One that only reads, of a file that exists; what would write finds a connection that refuses.
    pub(super) async fn open_to_read(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url).map_err(StoreError::Open)?.disable_statement_logging();
        let path = options.get_filename().to_owned();
        check_path(&path)?;
        let options = options.create_if_missing(false).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let options = options.row_buffer_size(BATCH_ROWS).pragma("query_only", "ON");
        let readers = pool(max_connections).connect_with(options).await;
        let readers = readers.map_err(|source| StoreError::OpenFile { path, source })?;
        Ok(Self { writer: readers.clone(), readers })
    }

    /// The driver does not lock SQLite, so one transaction around all of it does.
    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin().await.map_err(StoreError::Open)?;
        let migrated = schema::migrator(schema::SQLITE).run_direct(None, &mut *transaction, false).await;
        migrated.map_err(StoreError::Migrate)?;
        transaction.commit().await.map_err(|error| StoreError::Migrate(error.into()))
    }

    pub(super) async fn is_migrated(&self) -> Result<bool, StoreError> {
        let refused = refused("say which migrations ran");
        let known: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'")
            .fetch_one(&self.readers)
            .await
            .map_err(&refused)?;
        if known == 0 {
            return Ok(false);
        }
        let applied: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(&self.readers)
            .await
            .map_err(&refused)?;
        Ok(schema::is_complete(schema::SQLITE, &applied))
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.readers.execute("SELECT 1").await.map(drop).map_err(refused("answer"))
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    pub(super) async fn stream_number(&self, name: &str, incarnation: &str) -> Result<i64, StoreError> {
        const INSERT: &str = "INSERT INTO streams (name, incarnation) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let refused = refused("number a stream");
        if let Some(number) = self.find_stream_number(name, incarnation).await? {
            return Ok(number);
        }
        sqlx::query(INSERT).bind(name).bind(incarnation).execute(&self.writer).await.map_err(&refused)?;
        let found = sqlx::query_scalar(FIND_STREAM).bind(name).bind(incarnation).fetch_one(&self.readers).await;
        found.map_err(&refused)
    }

    pub(super) async fn find_stream_number(&self, name: &str, incarnation: &str) -> Result<Option<i64>, StoreError> {
        let found = sqlx::query_scalar(FIND_STREAM).bind(name).bind(incarnation).fetch_optional(&self.readers).await;
        found.map_err(refused("look up a stream's number"))
    }

    pub(super) async fn take_over(
        &self,
        stream: i64,
        partitions: &[u16],
        epoch_at_least: i64,
    ) -> Result<Vec<Takeover>, StoreError> {
        const TAKE: &str = "INSERT INTO partitions (stream, partition, epoch) \
             SELECT DISTINCT $1, value, max(1, $3) FROM jsonb_each($2) WHERE TRUE \
             ON CONFLICT (stream, partition) DO UPDATE SET epoch = max(epoch + 1, $3) \
             RETURNING partition, epoch, checkpoint";
        let query = sqlx::query(TAKE).bind(stream).bind(json!(partitions)).bind(epoch_at_least);
        let taken = query.fetch_all(&self.writer).await.map_err(refused("take over partitions"))?;
        let mut taken = taken.iter().map(|row| takeover(stream, row)).collect::<Result<Vec<_>, _>>()?;
        taken.sort_by_key(|takeover| takeover.ownership.partition);
        Ok(taken)
    }

    pub(super) async fn owns(&self, ownership: &Ownership) -> Result<bool, StoreError> {
        let epoch: Option<i64> =
            sqlx::query_scalar("SELECT epoch FROM partitions WHERE stream = $1 AND partition = $2")
                .bind(ownership.stream)
                .bind(ownership.partition)
                .fetch_optional(&self.readers)
                .await
                .map_err(refused("check an ownership"))?;
        Ok(epoch == Some(ownership.epoch))
    }

    pub(super) async fn save_checkpoints(&self, checkpoints: &[(Ownership, u64)]) -> Result<(), StoreError> {
        const SAVE: &str = "UPDATE partitions AS p SET checkpoint = wanted.value ->> 3 FROM jsonb_each($1) AS wanted \
             WHERE p.stream = wanted.value ->> 0 AND p.partition = wanted.value ->> 1 AND p.epoch = wanted.value ->> 2 \
                 AND (p.checkpoint IS NULL OR p.checkpoint < wanted.value ->> 3)";
        let row = |(owned, checkpoint): &(Ownership, u64)| {
            json!([owned.stream, owned.partition, owned.epoch, rows::sequence(*checkpoint)])
        };
        let wanted: Value = checkpoints.iter().map(row).collect();
        sqlx::query(SAVE).bind(wanted).execute(&self.writer).await.map(drop).map_err(refused("save checkpoints"))
    }

    pub(super) async fn highest_checkpoint(&self, stream: i64) -> Result<Option<u64>, StoreError> {
        const HIGHEST: &str = "SELECT max(checkpoint) FROM partitions WHERE stream = $1";
        let found = sqlx::query_scalar::<_, Option<i64>>(HIGHEST).bind(stream).fetch_one(&self.readers).await;
        Ok(found.map_err(refused("look up checkpoints"))?.and_then(|highest| u64::try_from(highest).ok()))
    }

    pub(super) async fn rewind(&self, stream: i64) -> Result<(), StoreError> {
        const REWIND: &str = "UPDATE partitions SET checkpoint = 0 WHERE stream = $1";
        sqlx::query(REWIND).bind(stream).execute(&self.writer).await.map(drop).map_err(refused("rewind a stream"))
    }

    /// A transaction that may write.
    async fn begin(&self) -> Result<Transaction<'static, Database>, sqlx::Error> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }
}

/// A file that SQLite can make: it makes files, not folders.
fn check_path(path: &Path) -> Result<(), StoreError> {
    let name = path.to_string_lossy();
    if name.is_empty() || name == "/" || name == ":memory:" || name.starts_with("file:") {
        return Err(StoreError::NoFile);
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(StoreError::MissingFolder { path: PathBuf::from(path) })
        }
        _ => Ok(()),
    }
}

/// Turning a new file's journal into a WAL is the one thing for which SQLite does not wait when another process does the
/// same, so this waits instead.
async fn open_writer(options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    const PAUSE: Duration = Duration::from_millis(20);
    let give_up_at = Instant::now() + BUSY_TIMEOUT;
    loop {
        match pool(1).connect_with(options.clone()).await {
            Err(error) if sqlite_may_pass(&error) && Instant::now() < give_up_at => tokio::time::sleep(PAUSE).await,
            opened => return opened,
        }
    }
}

/// Connections of a file do not age, and opening one again would empty its caches.
fn pool(max_connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(max_connections.max(1))
        .acquire_timeout(CONNECT_TIMEOUT)
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
}

fn takeover(stream: i64, row: &SqliteRow) -> Result<Takeover, StoreError> {
    let ownership =
        Ownership { stream, partition: rows::number(row, "partition")?, epoch: rows::number(row, "epoch")? };
    Ok(Takeover { ownership, checkpoint: rows::optional_number(row, "checkpoint")? })
}

impl Columns for SqliteRow {
    fn text_or_null(&self, column: &'static str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(column)
    }

    fn number_or_null(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column)
    }

    fn uuid_or_null(&self, column: &'static str) -> Result<Option<Uuid>, sqlx::Error> {
        Ok(self.try_get::<Option<Hyphenated>, _>(column)?.map(Hyphenated::into_uuid))
    }

    fn moment_or_null(&self, column: &'static str) -> Result<Option<Timestamp>, sqlx::Error> {
        Ok(self.try_get::<Option<i64>, _>(column)?.map(Timestamp::from_micros))
    }

    fn json_or_null(&self, column: &'static str) -> Result<Option<Value>, sqlx::Error> {
        self.try_get(column)
    }
}
