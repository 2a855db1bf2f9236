//! A chat that moves while somebody writes in it for the first time, on PostgreSQL: SQLite has one writer.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use turnwise::message::Peer;

use super::{Database, at, committed, first_turn};

/// What else only a slow disk would do: the turn has written its conversation, and cannot commit it yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_opened_beside_a_move_becomes_one_with_the_moved_one() {
    let database = Database::postgres().await;
    let (store, owner) = (&database.store, database.own(0).await);
    let group = |id: &str| -> Peer { format!("group-{id}").parse().unwrap() };
    let in_group = |sequence, id: &str| {
        let mut turn = first_turn(owner, sequence, id);
        turn.key.peer = group(id);
        turn.new_conversation.as_mut().unwrap().key.peer = group(id);
        turn
    };
    let (old, new) = (in_group(1, "1"), in_group(2, "2"));
    committed(store.commit(old.clone()).await.unwrap());

    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE deliveries IN SHARE MODE").execute(&mut *lock).await.unwrap();
    let opening = tokio::spawn({
        let (store, new) = (store.clone(), new.clone());
        async move { store.commit(new).await }
    });
    waiting(&database, "NOT granted AND relation = 'deliveries'::regclass").await;
    let moving = tokio::spawn({
        let (store, from) = (store.clone(), old.key.clone());
        async move { store.move_chat(&from, &"group-2".parse().unwrap(), at(50), None).await }
    });
    waiting(&database, "NOT granted AND locktype = 'advisory'").await;
    lock.commit().await.unwrap();
    committed(opening.await.unwrap().unwrap());
    moving.await.unwrap().unwrap();

    for key in [&old.key, &new.key] {
        let found = store.load_turn(key, "none").await.unwrap().conversation.unwrap();
        assert_eq!((Some(found.id), found.message_count), (old.conversation_id, 4), "of {}", key.peer);
    }
}

/// Returns when the database says that somebody waits.
async fn waiting(database: &Database, what: &'static str) {
    const OWN: &str = "(SELECT oid FROM pg_database WHERE datname = current_database())";
    let mut looker = PgConnection::connect(&database.url).await.unwrap();
    let statement = format!("SELECT COUNT(*) FROM pg_locks WHERE {what} AND database = {OWN}");
    let mut looks = tokio::time::interval(Duration::from_millis(25));
    for _ in 0..1_000 {
        looks.tick().await;
        let count: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(statement.clone())).fetch_one(&mut looker).await.unwrap();
        if count > 0 {
            return;
        }
    }
    panic!("nobody waits: {what}");
}
