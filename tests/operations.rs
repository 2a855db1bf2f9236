//! What docs/operations.md tells operators to do, done with the real binary: a backup taken while everything runs and restored
//! after the database was lost, an older version beside a newer schema, another number of partitions.
//!
//! Refuses to be kinder than the guide: turns that ended after a backup run again, and are answered again.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use support::PATIENCE;
use support::ledger::Ledger;
use support::process::Turnwise;
use support::responder::{Behaviour, answer, message};
use support::scenario::{Backend, Deployment, Load};
use tempfile::TempDir;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const LIMIT: Duration = Duration::from_secs(60);

/// The chat that goes on after the backup.
const BUSY: i64 = 101;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_sqlite_database_goes_on_from_the_backup() {
    let directory = TempDir::new().unwrap();
    let backup = directory.path().join("backup.db");
    let mut deployment = loaded(Backend::Sqlite).await;
    let url = database_url(&deployment);
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    connection.execute(AssertSqlSafe(format!("VACUUM INTO '{}'", backup.display()))).await.unwrap();
    connection.close().await.unwrap();
    go_on_and_stop(&mut deployment).await;

    let database = PathBuf::from(url.trim_start_matches("sqlite://"));
    for suffix in ["", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{}{suffix}", database.display()));
        assert!(std::fs::remove_file(file).is_ok() || !suffix.is_empty(), "the database was there");
    }
    std::fs::copy(&backup, &database).unwrap();
    check_restored(&mut deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_postgresql_database_goes_on_from_the_backup() {
    let directory = TempDir::new().unwrap();
    let backup = directory.path().join("backup");
    let mut deployment = loaded(Backend::Postgres).await;
    let url = database_url(&deployment);
    run("pg_dump", &["--format=custom", "--file", &shown(&backup), &url]).await;
    go_on_and_stop(&mut deployment).await;

    let mut connection = PgConnection::connect(&deployment.postgres.as_ref().unwrap().url("postgres")).await.unwrap();
    connection.execute("DROP DATABASE turnwise WITH (FORCE)").await.unwrap();
    connection.execute("CREATE DATABASE turnwise").await.unwrap();
    connection.close().await.unwrap();
    run("pg_restore", &["--exit-on-error", "--no-owner", "--dbname", &url, &shown(&backup)]).await;
    check_restored(&mut deployment).await;
}

/// As when a process of the old version crashes in the middle of an upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_starts_on_a_newer_schema() {
    let mut deployment = loaded(Backend::Sqlite).await;
    deployment.turnwise.terminate().await;
    let mut connection = SqliteConnection::connect(&database_url(&deployment)).await.unwrap();
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'of a later version', TRUE, x'00', 0)";
    connection.execute(later).await.unwrap();
    connection.close().await.unwrap();
    deployment.turnwise.start_again().await;
    deployment.telegram.send(BUSY, &message(BUSY, 3));
    deployment.settled(9, LIMIT).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_go_on_in_a_namespace_with_more_partitions() {
    let mut deployment = loaded(Backend::Sqlite).await;
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
    let mut configuration = deployment.turnwise.configuration().clone();
    configuration.set("", "namespace", "\"more\"").set("nats", "partitions", "32");
    deployment.turnwise = Turnwise::spawn(configuration).await;
    let load = Load { chats: BUSY..BUSY + 4, per_chat: 4 };
    for n in 3..=4 {
        load.chats.clone().for_each(|chat| drop(deployment.telegram.send(chat, &message(chat, n))));
    }
    deployment.settled(load.total(), LIMIT).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    load.assert_one_at_a_time_in_order(&deployment.model);
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

/// As when NATS is restored from a backup, or its machine loses power before the disk has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_messages_on_a_stream_that_was_set_back_are_answered() {
    let directory = TempDir::new().unwrap();
    let (older, mut deployment) = (directory.path().join("store"), loaded(Backend::Sqlite).await);
    deployment.turnwise.terminate().await;
    deployment.nats.kill9().await;
    let store = deployment.nats.store();
    run("cp", &["-r", &shown(&store), &shown(&older)]).await;
    deployment.nats.start_again().await;
    deployment.turnwise.start_again().await;
    let load = Load { chats: BUSY..BUSY + 4, per_chat: 4 };
    load.chats.clone().for_each(|chat| drop(deployment.telegram.send(chat, &message(chat, 3))));
    deployment.settled(12, LIMIT).await;
    deployment.turnwise.terminate().await;

    deployment.nats.kill9().await;
    std::fs::remove_dir_all(&store).unwrap();
    run("cp", &["-r", &shown(&older), &shown(&store)]).await;
    deployment.nats.start_again().await;
    deployment.turnwise.start_again().await;
    load.chats.clone().for_each(|chat| drop(deployment.telegram.send(chat, &message(chat, 4))));
    deployment.settled(load.total(), LIMIT).await;
    load.assert_answered_once_in_order(&deployment.telegram);
    load.assert_persisted_once_in_order(&deployment.ledger).await;
    deployment.turnwise.terminate().await;
    // Two messages have had the same place, so the audit may call a conversation's turns out of order; nothing else is wrong.
    let (_, report) = deployment.turnwise.audit().await;
    assert_eq!((&report["missing"], &report["doubled"]), (&json!(0), &json!([])), "turnwise audit: {report:#}");
}

/// Two messages of each of four chats, answered.
async fn loaded(backend: Backend) -> Deployment {
    let deployment = Deployment::start(backend, Behaviour::default(), |_| ()).await;
    let load = Load { chats: BUSY..BUSY + 4, per_chat: 2 };
    load.send(&deployment.telegram);
    deployment.settled(load.total(), LIMIT).await;
    deployment
}

/// Another message is answered, of which the backup knows nothing.
async fn go_on_and_stop(deployment: &mut Deployment) {
    deployment.telegram.send(BUSY, &message(BUSY, 3));
    deployment.settled(9, LIMIT).await;
    deployment.turnwise.terminate().await;
}

async fn check_restored(deployment: &mut Deployment) {
    deployment.ledger = Ledger::open(&database_url(deployment));
    assert_eq!(deployment.ledger.turn_count().await, 8, "what the backup knows");
    deployment.turnwise.start_again().await;
    deployment.settled(9, LIMIT).await;
    deployment.telegram.send(BUSY, &message(BUSY, 4));
    deployment.settled(10, LIMIT).await;
    let texts = deployment.telegram.wait_for_texts(BUSY, 5, PATIENCE).await;
    assert_eq!(texts, [1, 2, 3, 3, 4].map(|n| answer(BUSY, n)), "the turn since the backup is answered again");
    let others = deployment.telegram.log(support::telegram::Log::texts_by_chat);
    assert!((BUSY + 1..BUSY + 4).all(|chat| others[&chat].len() == 2), "nothing else is: {others:?}");
    let broken = deployment.model.log(|log| log.broken_histories().len());
    assert_eq!(broken, 0, "every call was shown the whole conversation");
    let histories = deployment.ledger.histories().await;
    assert!(histories.iter().any(|history| history.len() == 8), "four questions and four answers: {histories:?}");
    deployment.turnwise.terminate().await;
    deployment.turnwise.assert_audit_clean().await;
}

fn database_url(deployment: &Deployment) -> String {
    deployment.turnwise.configuration().get("database", "url").trim_matches('"').to_owned()
}

async fn run(program: &str, arguments: &[&str]) {
    let output = tokio::process::Command::new(program).args(arguments).output().await;
    let output =
        output.unwrap_or_else(|error| panic!("{program} ({error}); it comes with PostgreSQL's client programs"));
    assert!(output.status.success(), "{program}: {output:?}");
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
