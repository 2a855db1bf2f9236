//! What can go wrong with the database, and which of it may pass.
//!
//! Refuses to carry an address, a password or a stored text: a variant names the operation, its source the driver's own words.

use std::path::PathBuf;
use std::sync::Arc;

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

/// Errors of the database layer. Code branches on [`StoreError::is_transient`]; people read the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("the database address \"{scheme}\" is neither sqlite:// nor postgres://")]
    UnknownScheme { scheme: String },
    #[error("the database address names no file: expected sqlite://PATH, and in-memory databases are not supported")]
    NoFile,
    #[error("the folder of the database file {} does not exist", path.display())]
    MissingFolder { path: PathBuf },
    #[error("cannot open the database file {}", path.display())]
    OpenFile {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
    #[error("cannot open the database")]
    Open(#[source] sqlx::Error),
    #[error("cannot migrate the database")]
    Migrate(#[source] MigrateError),
    #[error("the database refused to {what}")]
    Query {
        what: &'static str,
        #[source]
        source: sqlx::Error,
    },
    #[error("another conversation of the same channel, bot and peer is open")]
    AlreadyOpen,
    /// Nothing was written.
    #[error("the partition has a newer owner")]
    Fenced,
    #[error("a stored {what} cannot be read: {detail}")]
    Corrupt { what: &'static str, detail: String },
    #[error("the database was closed before it answered")]
    Closed,
    /// What all callers hear whose calls shared a transaction.
    #[error(transparent)]
    Shared(Arc<StoreError>),
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything: a lost connection, a database that starts
    /// or stops, a lock, a deadlock, resources that ran out.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Open(source) | Self::OpenFile { source, .. } | Self::Query { source, .. } => is_transient(source),
            Self::Migrate(MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) => {
                is_transient(source)
            }
            Self::Shared(error) => error.is_transient(),
            Self::UnknownScheme { .. }
            | Self::NoFile
            | Self::MissingFolder { .. }
            | Self::Migrate(_)
            | Self::AlreadyOpen
            | Self::Fenced
            | Self::Corrupt { .. }
            | Self::Closed => false,
        }
    }

    /// Whether the database itself is away or going, so that no other call of the same moment would fare better.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Query { source: sqlx::Error::Database(error), .. } => {
                error.code().is_some_and(|code| code.starts_with("08") || code.starts_with("57P"))
            }
            Self::Query { source: sqlx::Error::PoolClosed, .. } | Self::Closed => true,
            Self::Shared(error) => error.is_outage(),
            _ => self.is_transient(),
        }
    }
}

/// Names the operation that the driver's error belongs to.
pub(super) fn refused(what: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { what, source }
}

/// As [`refused`], and tells the index that keeps one open conversation per key from everything else: PostgreSQL names it,
/// and SQLite has only this unique index beside primary keys on the table.
pub(super) fn refused_or_open(what: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    const SQLITE_CONSTRAINT_UNIQUE: &str = "2067";
    move |source| match &source {
        sqlx::Error::Database(error)
            if error.constraint() == Some("conversations_open")
                || error.code().as_deref() == Some(SQLITE_CONSTRAINT_UNIQUE) =>
        {
            StoreError::AlreadyOpen
        }
        _ => refused(what)(source),
    }
}

/// Whether SQLite only asks to try again.
pub(super) fn sqlite_may_pass(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().and_then(|code| code.parse().ok()).is_some_and(is_busy))
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(error) => {
            if let Some(error) = error.try_downcast_ref::<PgDatabaseError>() {
                is_transient_sqlstate(error.code())
            } else if error.try_downcast_ref::<SqliteError>().is_some() {
                error.code().and_then(|code| code.parse().ok()).is_some_and(is_transient_sqlite_code)
            } else {
                false
            }
        }
        _ => false,
    }
}

/// By class, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>: 08 connection, 40 rollback (serialization,
/// deadlock), 53 resources (connections, disk, memory), 58 system error; and single codes of other classes.
fn is_transient_sqlstate(code: &str) -> bool {
    const CANCELLED_BY_TIMEOUT: &str = "57014";
    const ADMIN_SHUTDOWN: &str = "57P01";
    const CRASH_SHUTDOWN: &str = "57P02";
    const CANNOT_CONNECT_NOW: &str = "57P03";
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const IDLE_IN_TRANSACTION: &str = "25P03";
    /// A former primary after a failover; the next connection may find the new one.
    const READ_ONLY: &str = "25006";
    ["08", "40", "53", "58"].iter().any(|class| code.starts_with(class))
        || [
            CANCELLED_BY_TIMEOUT,
            ADMIN_SHUTDOWN,
            CRASH_SHUTDOWN,
            CANNOT_CONNECT_NOW,
            LOCK_NOT_AVAILABLE,
            IDLE_IN_TRANSACTION,
            READ_ONLY,
        ]
        .contains(&code)
}

/// The driver reports extended codes; their low byte is the primary one, see <https://www.sqlite.org/rescode.html>.
fn is_transient_sqlite_code(extended: i32) -> bool {
    const IO_ERROR: i32 = 10;
    const FULL: i32 = 13;
    is_busy(extended) || [IO_ERROR, FULL].contains(&(extended & 0xff))
}

fn is_busy(extended: i32) -> bool {
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    [BUSY, LOCKED].contains(&(extended & 0xff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_trouble_is_told_from_lasting() {
        for code in ["08006", "40001", "40P01", "53300", "57P01", "57P03", "25006"] {
            assert!(is_transient_sqlstate(code), "{code}");
        }
        for code in ["23505", "42P01", "28P01", "22021"] {
            assert!(!is_transient_sqlstate(code), "{code}");
        }
        assert!(is_transient_sqlite_code(5) && is_transient_sqlite_code(517) && is_transient_sqlite_code(6));
        assert!(!is_transient_sqlite_code(19) && !is_transient_sqlite_code(2067));
    }
}
