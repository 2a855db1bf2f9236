//! What the database does in groups: commits of turns, beginnings and ends of sends, steps of journals.
//!
//! Refuses to form groups ([`super::group`]) and to write ([`super::commit`], [`super::sending`], [`super::journal`]): it says which calls may share
//! a transaction, and on which database.

use std::sync::Arc;

use uuid::Uuid;

use super::group::{Group, Tasks, Work};
use super::journal::Writing;
use super::sending::{Beginning, Ending};
use super::{Backend, CommitOutcome, Journaled, SendStart, Settled, StoreError, TurnCommit, commit};
use crate::telemetry::metric;

/// While one PostgreSQL transaction waits for its disk or a round trip, another one runs; a third only makes groups smaller.
const POSTGRES_IN_FLIGHT_MAX: usize = 2;

/// SQLite has one writer.
const SQLITE_IN_FLIGHT_MAX: usize = 1;

#[derive(Clone)]
pub(super) struct Groups {
    tasks: Tasks,
    commits: Group<Commits>,
    begins: Group<Begins>,
    settles: Group<Settles>,
    journals: Group<Journals>,
}

impl Groups {
    pub(super) fn start(backend: &Backend) -> Self {
        let in_flight_max = match backend {
            Backend::Postgres(_) => POSTGRES_IN_FLIGHT_MAX,
            Backend::Sqlite(_) => SQLITE_IN_FLIGHT_MAX,
        };
        let tasks = Tasks::default();
        Self {
            commits: Group::start(Commits(backend.clone()), in_flight_max, &tasks),
            begins: Group::start(Begins(backend.clone()), in_flight_max, &tasks),
            settles: Group::start(Settles(backend.clone()), in_flight_max, &tasks),
            journals: Group::start(Journals(backend.clone()), in_flight_max, &tasks),
            tasks,
        }
    }

    /// Takes no more calls and waits for those that were taken.
    pub(super) async fn close(&self) {
        self.tasks.close().await;
    }

    pub(super) async fn commit(&self, turn: Arc<TurnCommit>) -> Result<CommitOutcome, StoreError> {
        self.commits.ask(turn).await
    }

    pub(super) async fn begin_send(&self, beginning: Beginning) -> Result<SendStart, StoreError> {
        self.begins.ask(beginning).await
    }

    pub(super) async fn settle_send(&self, ending: Ending) -> Result<Option<Settled>, StoreError> {
        self.settles.ask(ending).await
    }

    pub(super) async fn write_journal(&self, writing: Writing) -> Result<Journaled, StoreError> {
        self.journals.ask(writing).await
    }
}

struct Commits(Backend);

impl Work for Commits {
    type Asked = Arc<TurnCommit>;
    type Outcome = CommitOutcome;
    type Key = commit::Key;

    fn keys(turn: &Arc<TurnCommit>) -> Vec<commit::Key> {
        commit::keys(turn)
    }

    async fn run(&self, turns: &[Arc<TurnCommit>]) -> Result<Vec<CommitOutcome>, StoreError> {
        metric::commit_batch(turns.len());
        match &self.0 {
            Backend::Postgres(database) => database.commit(turns).await,
            Backend::Sqlite(database) => database.commit(turns).await,
        }
    }
}

struct Begins(Backend);

impl Work for Begins {
    type Asked = Beginning;
    type Outcome = SendStart;
    type Key = Uuid;

    fn keys(beginning: &Beginning) -> Vec<Uuid> {
        vec![beginning.delivery_id]
    }

    async fn run(&self, beginnings: &[Beginning]) -> Result<Vec<SendStart>, StoreError> {
        match &self.0 {
            Backend::Postgres(database) => database.begin_sends(beginnings).await,
            Backend::Sqlite(database) => database.begin_sends(beginnings).await,
        }
    }
}

struct Settles(Backend);

impl Work for Settles {
    type Asked = Ending;
    type Outcome = Option<Settled>;
    type Key = Uuid;

    fn keys(ending: &Ending) -> Vec<Uuid> {
        vec![ending.delivery_id]
    }

    async fn run(&self, endings: &[Ending]) -> Result<Vec<Option<Settled>>, StoreError> {
        match &self.0 {
            Backend::Postgres(database) => database.settle_sends(endings).await,
            Backend::Sqlite(database) => database.settle_sends(endings).await,
        }
    }
}

struct Journals(Backend);

impl Work for Journals {
    type Asked = Writing;
    type Outcome = Journaled;
    type Key = Uuid;

    fn keys(writing: &Writing) -> Vec<Uuid> {
        vec![writing.turn_id]
    }

    async fn run(&self, writings: &[Writing]) -> Result<Vec<Journaled>, StoreError> {
        match &self.0 {
            Backend::Postgres(database) => database.write_journals(writings).await,
            Backend::Sqlite(database) => database.write_journals(writings).await,
        }
    }
}
