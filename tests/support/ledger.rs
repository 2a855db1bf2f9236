//! What the database holds at the end of a test, read around the code under test: plain SQL on the tables that operators
//! see.
//!
//! Refuses to write. Invariant: one statement per question, the same on PostgreSQL and SQLite, every column cast to text.

use std::collections::BTreeMap;
use std::str::FromStr;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{Column, Row};

/// A message as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: String,
    pub(crate) author: String,
    pub(crate) content: String,
    /// The state of the turn that wrote it; `None` for messages of no turn.
    pub(crate) turn_state: Option<String>,
}

/// A message's row in the ledger as a test sees it, by places on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) sequence: u64,
    pub(crate) state: String,
    /// The place of the message whose turn answers it.
    pub(crate) merged_into: Option<u64>,
}

/// A delivery as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) content: String,
    pub(crate) status: String,
    pub(crate) attempts: u32,
}

pub(crate) enum Ledger {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Ledger {
    /// Opens a database that exists; not migrated yet is an error of the first question.
    pub(crate) fn open(url: &str) -> Self {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).unwrap();
            Self::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options))
        } else {
            Self::Postgres(PgPoolOptions::new().max_connections(1).connect_lazy(url).unwrap())
        }
    }

    /// The ledger: how many turns ended in which state.
    pub(crate) async fn turns_by_state(&self) -> BTreeMap<String, usize> {
        let rows = self.rows("SELECT state, CAST(COUNT(*) AS TEXT) FROM turns GROUP BY state").await;
        rows.into_iter().map(|mut row| (text(&mut row, 0), number(&mut row, 1))).collect()
    }

    /// Every row of the ledger, in stream order.
    pub(crate) async fn turns(&self) -> Vec<Turn> {
        let rows = self
            .rows(
                "SELECT CAST(t.sequence AS TEXT), t.state, CAST(into_turn.sequence AS TEXT) \
                 FROM turns t LEFT JOIN turns into_turn ON into_turn.id = t.merged_into ORDER BY t.sequence",
            )
            .await;
        let row = |mut row: Vec<Option<String>>| Turn {
            sequence: number(&mut row, 0).try_into().unwrap(),
            state: text(&mut row, 1),
            merged_into: row[2].take().map(|sequence| sequence.parse().unwrap()),
        };
        rows.into_iter().map(row).collect()
    }

    pub(crate) async fn turn_count(&self) -> usize {
        self.turns_by_state().await.values().sum()
    }

    /// How many turns there are, and how many deliveries that are still on their way.
    pub(crate) async fn progress(&self) -> (usize, usize) {
        let rows = self
            .rows(
                "SELECT CAST((SELECT COUNT(*) FROM turns) AS TEXT), \
                 CAST((SELECT COUNT(*) FROM deliveries WHERE status IN ('pending', 'sending')) AS TEXT)",
            )
            .await;
        let mut row = rows.into_iter().next().unwrap();
        (number(&mut row, 0), number(&mut row, 1))
    }

    /// Every conversation's messages in the order of its history.
    pub(crate) async fn histories(&self) -> Vec<Vec<Message>> {
        let rows = self
            .rows(
                "SELECT CAST(dense_rank() OVER (ORDER BY m.conversation_id) AS TEXT), m.role, m.author, m.content, t.state \
                 FROM messages m LEFT JOIN turns t ON t.id = m.turn_id ORDER BY m.conversation_id, m.ordinal",
            )
            .await;
        let mut histories: BTreeMap<usize, Vec<Message>> = BTreeMap::new();
        for mut row in rows {
            let message = Message {
                role: text(&mut row, 1),
                author: text(&mut row, 2),
                content: text(&mut row, 3),
                turn_state: row[4].take(),
            };
            histories.entry(number(&mut row, 0)).or_default().push(message);
        }
        histories.into_values().collect()
    }

    /// The one history that holds a message with this content.
    pub(crate) async fn history_with(&self, content: &str) -> Vec<Message> {
        let mut histories = self.histories().await;
        histories.retain(|history| history.iter().any(|message| message.content == content));
        assert_eq!(histories.len(), 1, "conversations that hold {content:?}");
        histories.remove(0)
    }

    /// Steps in journals of turns that are not done, and records of turns that are.
    pub(crate) async fn journal_counts(&self) -> (usize, usize) {
        let rows = self
            .rows(
                "SELECT CAST((SELECT COUNT(*) FROM turn_journal) AS TEXT), CAST((SELECT COUNT(*) FROM turn_records) AS TEXT)",
            )
            .await;
        let mut row = rows.into_iter().next().unwrap();
        (number(&mut row, 0), number(&mut row, 1))
    }

    /// What is kept of turns that are done, in stream order.
    pub(crate) async fn records(&self) -> Vec<String> {
        let rows = self
            .rows("SELECT CAST(r.record AS TEXT) FROM turn_records r JOIN turns t ON t.id = r.turn_id ORDER BY t.sequence")
            .await;
        rows.into_iter().map(|mut row| text(&mut row, 0)).collect()
    }

    /// What became of the tool calls that a person was asked about, in their order.
    pub(crate) async fn actions(&self) -> Vec<String> {
        let rows = self.rows("SELECT status FROM pending_actions ORDER BY created_at, id").await;
        rows.into_iter().map(|mut row| text(&mut row, 0)).collect()
    }

    /// Why turns ended as they did, where the ledger says so.
    pub(crate) async fn reasons(&self) -> Vec<String> {
        let rows = self.rows("SELECT reason FROM turns WHERE reason IS NOT NULL ORDER BY sequence").await;
        rows.into_iter().map(|mut row| text(&mut row, 0)).collect()
    }

    pub(crate) async fn conversation_count(&self) -> usize {
        let mut rows = self.rows("SELECT CAST(COUNT(*) AS TEXT) FROM conversations").await;
        number(&mut rows[0], 0)
    }

    /// Every conversation's id, peer, status and number of messages.
    pub(crate) async fn conversations(&self) -> Vec<[String; 4]> {
        let rows = self
            .rows("SELECT CAST(id AS TEXT), peer, status, CAST(message_count AS TEXT) FROM conversations ORDER BY id")
            .await;
        rows.into_iter().map(|mut row| [0, 1, 2, 3].map(|column| text(&mut row, column))).collect()
    }

    /// Every delivery, in the order of the messages that they answer.
    pub(crate) async fn deliveries(&self) -> Vec<Delivery> {
        let rows = self
            .rows("SELECT content, status, CAST(attempts AS TEXT) FROM deliveries ORDER BY stream, sequence, ordinal")
            .await;
        let delivery = |mut row: Vec<Option<String>>| Delivery {
            content: text(&mut row, 0),
            status: text(&mut row, 1),
            attempts: number(&mut row, 2).try_into().unwrap(),
        };
        rows.into_iter().map(delivery).collect()
    }

    /// What people did by hand, in order: verb, target and reason.
    pub(crate) async fn operator_actions(&self) -> Vec<(String, String, Option<String>)> {
        let rows = self.rows("SELECT verb, target, reason FROM operator_actions ORDER BY id").await;
        rows.into_iter().map(|mut row| (text(&mut row, 0), text(&mut row, 1), row[2].take())).collect()
    }

    /// Conversations, messages, turns and deliveries: what must not change when a request is refused.
    pub(crate) async fn row_counts(&self) -> [usize; 4] {
        let rows = self
            .rows(
                "SELECT CAST((SELECT COUNT(*) FROM conversations) AS TEXT), CAST((SELECT COUNT(*) FROM messages) AS TEXT), \
                 CAST((SELECT COUNT(*) FROM turns) AS TEXT), CAST((SELECT COUNT(*) FROM deliveries) AS TEXT)",
            )
            .await;
        let mut row = rows.into_iter().next().unwrap();
        [0, 1, 2, 3].map(|column| number(&mut row, column))
    }

    async fn rows(&self, statement: &'static str) -> Vec<Vec<Option<String>>> {
        match self {
            Self::Postgres(pool) => {
                let rows = sqlx::query(statement).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| row.columns().iter().map(|column| row.get(column.ordinal())).collect()).collect()
            }
            Self::Sqlite(pool) => {
                let rows = sqlx::query(statement).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| row.columns().iter().map(|column| row.get(column.ordinal())).collect()).collect()
            }
        }
    }
}

fn text(row: &mut [Option<String>], column: usize) -> String {
    row[column].take().unwrap()
}

fn number(row: &mut [Option<String>], column: usize) -> usize {
    text(row, column).parse().unwrap()
}
