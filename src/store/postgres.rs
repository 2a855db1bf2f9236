//! PostgreSQL: connections, migrations, streams and partitions; turns, conversations and deliveries lie below this file.
//!
//! Refuses to hold a lock across anything but its own statements. Invariant: a commit shares the key of its partition's row
//! until it ends and a takeover excludes that, so the two are in one order; checkpoints conflict with neither.

use std::io;
use std::str::FromStr;

use serde_json::Value;
use sqlx::migrate::Migrate;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::error::refused;
use super::rows::{self, Columns};
use super::{CONNECT_TIMEOUT, Ownership, StoreError, Takeover, schema};
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

/// Set on every connection. No transaction of ours waits for anything between its statements, so one that does belongs to a
/// process that is stopped or cut off, and must not keep a takeover waiting. A commit is durable when it returns, whatever
/// the server's default.
const SESSION: &str = "SET statement_timeout = '30s'; \
     SET idle_in_transaction_session_timeout = '5s'; \
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

#[derive(Clone)]
pub(super) struct Postgres {
    pool: PgPool,
}

impl Postgres {
    pub(super) async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        Self::open(PgConnectOptions::from_str(url).map_err(StoreError::Open)?, max_connections).await
    }

    /// One that only reads: the server refuses every transaction that would write.
    pub(super) async fn open_to_read(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url).map_err(StoreError::Open)?;
        Self::open(options.options([("default_transaction_read_only", "on")]), max_connections).await
    }

    async fn open(options: PgConnectOptions, max_connections: u32) -> Result<Self, StoreError> {
        let options = options.disable_statement_logging();
        // The pool tries again until its time is up and then says only that; the first connection tells the reason.
        let first = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options));
        let first = first.await.map_err(|_| StoreError::Open(io::Error::from(io::ErrorKind::TimedOut).into()))?;
        first.map_err(StoreError::Open)?.close().await.map_err(StoreError::Open)?;

        let pool = PgPoolOptions::new()
            .max_connections(max_connections.max(1))
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(|connection, _| Box::pin(async move { connection.execute(SESSION).await.map(drop) }));
        Ok(Self { pool: pool.connect_lazy_with(options) })
    }

    /// On a connection of its own: the driver's lock belongs to the session and outlives a failed migration.
    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::Open)?.detach();
        let migrated = async {
            connection.execute("SET statement_timeout = 0").await?;
            connection.lock().await?;
            schema::migrator(schema::POSTGRES).run_direct(None, &mut connection, false).await
        };
        let migrated = migrated.await.map_err(StoreError::Migrate);
        connection.close().await.map_err(StoreError::Open)?;
        migrated
    }

    pub(super) async fn is_migrated(&self) -> Result<bool, StoreError> {
        let refused = refused("say which migrations ran");
        let known: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .map_err(&refused)?;
        if !known {
            return Ok(false);
        }
        let applied: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(&self.pool)
            .await
            .map_err(&refused)?;
        Ok(schema::is_complete(schema::POSTGRES, &applied))
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.pool.execute("SELECT 1").await.map(drop).map_err(refused("answer"))
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Looks first, because an insert that does nothing still uses up a number.
    pub(super) async fn stream_number(&self, name: &str, incarnation: &str) -> Result<i64, StoreError> {
        const INSERT: &str = "INSERT INTO streams (name, incarnation) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let refused = refused("number a stream");
        if let Some(number) = self.find_stream_number(name, incarnation).await? {
            return Ok(number);
        }
        sqlx::query(INSERT).bind(name).bind(incarnation).execute(&self.pool).await.map_err(&refused)?;
        let found = sqlx::query_scalar(FIND_STREAM).bind(name).bind(incarnation).fetch_one(&self.pool).await;
        found.map_err(&refused)
    }

    pub(super) async fn find_stream_number(&self, name: &str, incarnation: &str) -> Result<Option<i64>, StoreError> {
        let found = sqlx::query_scalar(FIND_STREAM).bind(name).bind(incarnation).fetch_optional(&self.pool).await;
        found.map_err(refused("look up a stream's number"))
    }

    pub(super) async fn take_over(
        &self,
        stream: i64,
        partitions: &[u16],
        epoch_at_least: i64,
    ) -> Result<Vec<Takeover>, StoreError> {
        const INSERT: &str = "INSERT INTO partitions (stream, partition, epoch) \
             SELECT $1, wanted, 0 FROM UNNEST($2) AS wanted ORDER BY wanted ON CONFLICT DO NOTHING";
        const LOCK: &str =
            "SELECT 1 FROM partitions WHERE stream = $1 AND partition = ANY($2) ORDER BY partition FOR UPDATE";
        const RAISE: &str = "UPDATE partitions SET epoch = GREATEST(epoch + 1, $3) \
             WHERE stream = $1 AND partition = ANY($2) RETURNING partition, epoch, checkpoint";
        let refused = refused("take over partitions");
        let wanted: Vec<i32> = partitions.iter().copied().map(i32::from).collect();
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        for statement in [INSERT, LOCK] {
            let query = sqlx::query(statement).bind(stream).bind(&wanted);
            query.execute(&mut *transaction).await.map_err(&refused)?;
        }
        let raise = sqlx::query(RAISE).bind(stream).bind(&wanted).bind(epoch_at_least);
        let raised = raise.fetch_all(&mut *transaction).await.map_err(&refused)?;
        let mut taken = raised.iter().map(|row| takeover(stream, row)).collect::<Result<Vec<_>, _>>()?;
        transaction.commit().await.map_err(&refused)?;
        taken.sort_by_key(|takeover| takeover.ownership.partition);
        Ok(taken)
    }

    pub(super) async fn owns(&self, ownership: &Ownership) -> Result<bool, StoreError> {
        let epoch: Option<i64> =
            sqlx::query_scalar("SELECT epoch FROM partitions WHERE stream = $1 AND partition = $2")
                .bind(ownership.stream)
                .bind(i32::from(ownership.partition))
                .fetch_optional(&self.pool)
                .await
                .map_err(refused("check an ownership"))?;
        Ok(epoch == Some(ownership.epoch))
    }

    /// The rows are locked in one order, so that two processes cannot wait for each other.
    pub(super) async fn save_checkpoints(&self, checkpoints: &[(Ownership, u64)]) -> Result<(), StoreError> {
        const SAVE: &str = "WITH locked AS ( \
                 SELECT p.stream, p.partition, wanted.checkpoint FROM partitions p \
                 JOIN UNNEST($1, $2, $3, $4) AS wanted (stream, partition, epoch, checkpoint) \
                     ON p.stream = wanted.stream AND p.partition = wanted.partition \
                 WHERE p.epoch = wanted.epoch AND (p.checkpoint IS NULL OR p.checkpoint < wanted.checkpoint) \
                 ORDER BY p.stream, p.partition FOR NO KEY UPDATE OF p \
             ) \
             UPDATE partitions p SET checkpoint = locked.checkpoint FROM locked \
             WHERE p.stream = locked.stream AND p.partition = locked.partition";
        let each = |value: fn(&(Ownership, u64)) -> i64| checkpoints.iter().map(value).collect::<Vec<i64>>();
        sqlx::query(SAVE)
            .bind(each(|(owned, _)| owned.stream))
            .bind(checkpoints.iter().map(|(owned, _)| i32::from(owned.partition)).collect::<Vec<_>>())
            .bind(each(|(owned, _)| owned.epoch))
            .bind(each(|(_, checkpoint)| rows::sequence(*checkpoint)))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(refused("save checkpoints"))
    }

    pub(super) async fn highest_checkpoint(&self, stream: i64) -> Result<Option<u64>, StoreError> {
        const HIGHEST: &str = "SELECT max(checkpoint) FROM partitions WHERE stream = $1";
        let found = sqlx::query_scalar::<_, Option<i64>>(HIGHEST).bind(stream).fetch_one(&self.pool).await;
        Ok(found.map_err(refused("look up checkpoints"))?.and_then(|highest| u64::try_from(highest).ok()))
    }

    pub(super) async fn rewind(&self, stream: i64) -> Result<(), StoreError> {
        const REWIND: &str = "WITH locked AS ( \
                 SELECT stream, partition FROM partitions WHERE stream = $1 \
                 ORDER BY stream, partition FOR NO KEY UPDATE \
             ) \
             UPDATE partitions p SET checkpoint = 0 FROM locked \
             WHERE p.stream = locked.stream AND p.partition = locked.partition";
        sqlx::query(REWIND).bind(stream).execute(&self.pool).await.map(drop).map_err(refused("rewind a stream"))
    }
}

fn takeover(stream: i64, row: &PgRow) -> Result<Takeover, StoreError> {
    let ownership =
        Ownership { stream, partition: rows::number(row, "partition")?, epoch: rows::number(row, "epoch")? };
    Ok(Takeover { ownership, checkpoint: rows::optional_number(row, "checkpoint")? })
}

impl Columns for PgRow {
    fn text_or_null(&self, column: &'static str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(column)
    }

    /// Narrow numbers are `INTEGER`, the rest is `BIGINT`, and the driver does not widen.
    fn number_or_null(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column).or_else(|_| Ok(self.try_get::<Option<i32>, _>(column)?.map(i64::from)))
    }

    fn uuid_or_null(&self, column: &'static str) -> Result<Option<Uuid>, sqlx::Error> {
        self.try_get(column)
    }

    fn moment_or_null(&self, column: &'static str) -> Result<Option<Timestamp>, sqlx::Error> {
        Ok(self.try_get::<Option<OffsetDateTime>, _>(column)?.map(Timestamp::from))
    }

    fn json_or_null(&self, column: &'static str) -> Result<Option<Value>, sqlx::Error> {
        self.try_get(column)
    }
}
