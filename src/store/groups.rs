//! What the database does in groups: everything that turns and sends write, in one transaction, and what turns read to begin.
//!
//! Refuses to form groups ([`super::group`]) and to write ([`super::writes`]): it says which calls may share a transaction or a
//! statement, and on which database.

use std::sync::Arc;

use tracing::{Instrument as _, Span};

use super::commit::{self, Key};
use super::group::{Group, Tasks, Work};
use super::sending::{Beginning, Ending};
use super::writes::{Asked, Outcome};
use super::{
    Backend, CommitOutcome, Journaled, SendStart, Settled, StoreError, TurnCommit, TurnContextRow, answered, journal,
};
use crate::message::ConversationKey;
use crate::telemetry::{self, metric};

/// While one PostgreSQL transaction waits for its disk or a round trip, another one runs; a third only makes groups smaller.
const POSTGRES_IN_FLIGHT_MAX: usize = 2;

/// SQLite has one writer; a second reader at a time would make groups smaller.
const SQLITE_IN_FLIGHT_MAX: usize = 1;

#[derive(Clone)]
pub(super) struct Groups {
    tasks: Tasks,
    writes: Group<Writing>,
    loads: Group<Loading>,
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
            writes: Group::start(Writing(backend.clone()), in_flight_max, &tasks),
            loads: Group::start(Loading(backend.clone()), in_flight_max, &tasks),
            journals: Group::start(Journals(backend.clone()), in_flight_max, &tasks),
            tasks,
        }
    }

    /// Takes no more calls and waits for those that were taken.
    pub(super) async fn close(&self) {
        self.tasks.close().await;
    }

    pub(super) async fn commit(&self, turn: Arc<TurnCommit>) -> Result<CommitOutcome, StoreError> {
        match self.writes.ask(Asked::Commit(turn, tracing::Span::current())).await? {
            Outcome::Commit(outcome) => Ok(outcome),
            Outcome::Begin(_) | Outcome::End(_) => Err(StoreError::Closed),
        }
    }

    pub(super) async fn begin_send(&self, beginning: Beginning) -> Result<SendStart, StoreError> {
        match self.writes.ask(Asked::Begin(beginning)).await? {
            Outcome::Begin(start) => Ok(start),
            Outcome::Commit(_) | Outcome::End(_) => Err(StoreError::Closed),
        }
    }

    pub(super) async fn settle_send(&self, ending: Ending) -> Result<Option<Settled>, StoreError> {
        match self.writes.ask(Asked::End(ending)).await? {
            Outcome::End(settled) => Ok(settled),
            Outcome::Commit(_) | Outcome::Begin(_) => Err(StoreError::Closed),
        }
    }

    pub(super) async fn load_turn(&self, load: Load) -> Result<TurnContextRow, StoreError> {
        self.loads.ask(load).await
    }

    pub(super) async fn write_journal(&self, writing: journal::Writing) -> Result<Journaled, StoreError> {
        self.journals.ask(writing).await
    }
}

struct Writing(Backend);

impl Work for Writing {
    type Asked = Asked;
    type Outcome = Outcome;
    type Key = Key;

    fn keys(asked: &Asked) -> Vec<Key> {
        match asked {
            Asked::Commit(turn, _) => commit::keys(turn),
            Asked::Begin(Beginning { delivery_id, .. }) | Asked::End(Ending { delivery_id, .. }) => {
                vec![Key::Delivery(*delivery_id)]
            }
        }
    }

    /// What became of a send is only written down; a commit and the beginning of a send hold a reply up.
    fn is_patient(asked: &Asked) -> bool {
        matches!(asked, Asked::End(_))
    }

    async fn run(&self, asked: &[Asked]) -> Result<Vec<Outcome>, StoreError> {
        let span = self.span(asked);
        let write = async {
            match &self.0 {
                Backend::Postgres(database) => answered("write a group", database.write(asked)).await,
                Backend::Sqlite(database) => database.write(asked).await,
            }
        };
        write.instrument(span).await
    }
}

impl Writing {
    /// The transaction is no single turn's: its span is a root, and it and the turns' spans are linked both ways.
    fn span(&self, asked: &[Asked]) -> Span {
        let commits = asked.iter().filter_map(|asked| match asked {
            Asked::Commit(turn, span) => Some((turn, span)),
            Asked::Begin(_) | Asked::End(_) => None,
        });
        let commits: Vec<_> = commits.collect();
        if commits.is_empty() {
            return Span::none();
        }
        metric::commit_batch(commits.len());
        let group = tracing::info_span!(
            parent: None,
            "COMMIT group",
            otel.kind = "client",
            db.system.name = self.0.system(),
            db.operation.batch.size = commits.len(),
        );
        if let Some(context) = telemetry::current_traceparent(&group) {
            for (turn, span) in commits {
                telemetry::link(span, &context);
                if let Some(context) = &turn.traceparent {
                    telemetry::link(&group, context);
                }
            }
        }
        group
    }
}

/// Which turn is to be loaded.
pub(super) struct Load {
    pub(super) key: ConversationKey,
    pub(super) dedupe_id: String,
}

struct Loading(Backend);

impl Work for Loading {
    type Asked = Load;
    type Outcome = TurnContextRow;
    type Key = Key;

    /// Reading disturbs nobody.
    fn keys(_load: &Load) -> Vec<Key> {
        Vec::new()
    }

    async fn run(&self, loads: &[Load]) -> Result<Vec<TurnContextRow>, StoreError> {
        match &self.0 {
            Backend::Postgres(database) => answered("load turns", database.load_turns(loads)).await,
            Backend::Sqlite(database) => database.load_turns(loads).await,
        }
    }
}

struct Journals(Backend);

impl Work for Journals {
    type Asked = journal::Writing;
    type Outcome = Journaled;
    type Key = uuid::Uuid;

    fn keys(writing: &journal::Writing) -> Vec<uuid::Uuid> {
        vec![writing.turn_id]
    }

    async fn run(&self, writings: &[journal::Writing]) -> Result<Vec<Journaled>, StoreError> {
        match &self.0 {
            Backend::Postgres(database) => answered("journal steps", database.write_journals(writings)).await,
            Backend::Sqlite(database) => database.write_journals(writings).await,
        }
    }
}
