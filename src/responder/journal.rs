//! What a turn has done so far, durable step by step (G8): a turn that is run again, in this process or another one, finds its
//! model's answers and its tools' results here instead of asking and calling again.
//!
//! Refuses to decide what a step without a result means: whoever runs it does. Invariants: a step is written before what it
//! announces happens; nothing is written under an ownership that has passed, and a turn that hears so stops.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{TurnContext, TurnError};
use crate::message::Timestamp;
use crate::store::{JournalEntry, Journaled, Ownership, StepKind, StepStatus, Store, StoreError};
use crate::telemetry::{chain, json_fault};

/// The journal of one turn; clones are the same journal.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    turn_id: Uuid,
    /// Where it is durable; absent in tests of responders and in replays.
    backing: Option<(Store, Ownership)>,
    /// `None` until the first step asks for it: most turns that begin have no journal to read.
    entries: Mutex<Option<Vec<JournalEntry>>>,
    fault: OnceLock<Fault>,
    /// Whether a step was begun that may change something outside.
    has_effects: AtomicBool,
    /// The messages of the turn, where others may join them; recorded before the first effect, and before anybody outside is
    /// told of them.
    members: Option<Vec<String>>,
}

/// The step that names the messages of a turn: `done` while they are held to, `failed` once they may be others again.
pub(crate) const MEMBERS_STEP: &str = "members";

/// Whether a step may have changed something outside.
pub(crate) fn is_effect(entry: &JournalEntry) -> bool {
    entry.kind != StepKind::Model && entry.step != MEMBERS_STEP
}

/// Why a journal let its turn down. The turn is not to blame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The partition has a newer owner.
    Fenced,
    /// The database is away; the text is for operators.
    Away(String),
    /// The database refuses this journal, and will again.
    Refused(String),
}

impl Fault {
    pub(crate) fn store(error: &StoreError) -> Self {
        match error.is_transient() {
            true => Self::Away(chain(error)),
            false => Self::Refused(chain(error)),
        }
    }
}

impl Journal {
    /// One that lasts as long as the process, for tests of responders.
    #[must_use]
    pub fn in_memory(turn_id: Uuid) -> Self {
        Self::new(turn_id, None, None)
    }

    /// `members` are the dedupe ids of the turn's messages, where after a crash there may be others; `None` where the turn is
    /// that of one message whatever happens.
    pub(crate) fn durable(turn_id: Uuid, store: Store, ownership: Ownership, members: Option<Vec<String>>) -> Self {
        Self::new(turn_id, Some((store, ownership)), members)
    }

    fn new(turn_id: Uuid, backing: Option<(Store, Ownership)>, members: Option<Vec<String>>) -> Self {
        let inner = Inner {
            turn_id,
            backing,
            entries: Mutex::new(None),
            fault: OnceLock::new(),
            has_effects: AtomicBool::new(false),
            members,
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.inner.fault.get()
    }

    /// The database behind it, for what built-in responders look up.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.inner.backing.as_ref().map(|(store, _)| store)
    }

    /// Whether, as far as this attempt knows, a step was begun that may change something outside.
    pub(crate) fn has_effects(&self) -> bool {
        self.inner.has_effects.load(Ordering::Relaxed)
    }

    /// Whose journal it is: the turn of the first of its messages, which stays when others join them.
    pub(crate) fn turn_id(&self) -> Uuid {
        self.inner.turn_id
    }

    /// Every step so far, in the order in which they were begun; none when no step was ever asked for.
    pub(crate) async fn written(&self) -> Vec<JournalEntry> {
        self.inner.entries.lock().await.clone().unwrap_or_default()
    }

    /// Whether there is such a step among those that this attempt knows of.
    pub(crate) async fn any(&self, test: impl Fn(&JournalEntry) -> bool + Send) -> bool {
        self.inner.entries.lock().await.as_deref().unwrap_or_default().iter().any(test)
    }

    pub(crate) async fn find(&self, step: &str) -> Result<Option<JournalEntry>, TurnError> {
        let mut entries = self.inner.entries.lock().await;
        let entries = self.read(&mut entries).await?;
        Ok(entries.iter().find(|entry| entry.step == step).cloned())
    }

    /// Makes the turn one of its messages of now: run again after a crash, it will be of the same.
    pub(crate) async fn hold_members(&self) -> Result<(), TurnError> {
        let Some(members) = &self.inner.members else { return Ok(()) };
        if self.find(MEMBERS_STEP).await?.is_some_and(|held| held.status == StepStatus::Done) {
            return Ok(());
        }
        let now = Timestamp::now();
        self.write(JournalEntry {
            step: MEMBERS_STEP.to_owned(),
            ordinal: 0,
            kind: StepKind::Step,
            status: StepStatus::Done,
            request_hash: hash(b""),
            request: None,
            result: Some(members.clone().into()),
            started_at: now,
            ended_at: Some(now),
        })
        .await
    }

    /// The turn ends for one with other messages, too, before it has had an effect.
    pub(crate) async fn release_members(&self) -> Result<(), TurnError> {
        let is_held = |entry: &JournalEntry| entry.step == MEMBERS_STEP && entry.status == StepStatus::Done;
        match self.any(is_held).await {
            true => self.end(MEMBERS_STEP, StepStatus::Failed, None).await,
            false => Ok(()),
        }
    }

    /// Announces a step. What it does may only happen after this.
    pub(crate) async fn begin(
        &self,
        step: &str,
        kind: StepKind,
        request_hash: &str,
        request: Option<Value>,
    ) -> Result<(), TurnError> {
        self.inner.has_effects.store(true, Ordering::Relaxed);
        self.hold_members().await?;
        let entry = JournalEntry {
            step: step.to_owned(),
            ordinal: 0,
            kind,
            status: StepStatus::Started,
            request_hash: request_hash.to_owned(),
            request,
            result: None,
            started_at: Timestamp::now(),
            ended_at: None,
        };
        self.write(entry).await
    }

    /// Records how a step that was announced has ended.
    pub(crate) async fn end(&self, step: &str, status: StepStatus, result: Option<Value>) -> Result<(), TurnError> {
        let Some(begun) = self.find(step).await? else { return Ok(()) };
        self.write(JournalEntry { status, result, ended_at: Some(Timestamp::now()), ..begun }).await
    }

    /// Records a step that had no effect before it ended, such as a model's answer.
    pub(crate) async fn record(&self, entry: JournalEntry) -> Result<(), TurnError> {
        self.write(entry).await
    }

    /// Writes for as long as the database takes: a result that got lost would be one more call whose outcome nobody knows.
    async fn write(&self, mut entry: JournalEntry) -> Result<(), TurnError> {
        let mut entries = self.inner.entries.lock().await;
        let entries = self.read(&mut entries).await?;
        let place = entries.iter().position(|known| known.step == entry.step);
        entry.ordinal = match place {
            Some(place) => entries[place].ordinal,
            None => u32::try_from(entries.len()).unwrap_or(u32::MAX),
        };
        if let Some((store, ownership)) = &self.inner.backing {
            let mut pause = patience();
            loop {
                match store.write_journal(self.inner.turn_id, ownership, entry.clone()).await {
                    Ok(Journaled::Written) => break,
                    Ok(Journaled::Fenced) => return Err(self.fail(Fault::Fenced)),
                    Err(error) if error.is_transient() => {
                        tracing::warn!(error = %chain(&error), "a step is not in the journal yet, trying again");
                        tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
                    }
                    Err(error) => return Err(self.refused(&error)),
                }
            }
        }
        match place {
            Some(place) => entries[place] = entry,
            None => entries.push(entry),
        }
        Ok(())
    }

    async fn read<'a>(
        &self,
        entries: &'a mut Option<Vec<JournalEntry>>,
    ) -> Result<&'a mut Vec<JournalEntry>, TurnError> {
        let read = match (entries.take(), &self.inner.backing) {
            (Some(known), _) => known,
            (None, None) => Vec::new(),
            (None, Some((store, _))) => {
                store.journal(self.inner.turn_id).await.map_err(|error| self.refused(&error))?
            }
        };
        if read.iter().any(is_effect) {
            self.inner.has_effects.store(true, Ordering::Relaxed);
        }
        Ok(entries.insert(read))
    }

    fn refused(&self, error: &StoreError) -> TurnError {
        self.fail(Fault::store(error))
    }

    pub(crate) fn fail(&self, fault: Fault) -> TurnError {
        // The first one tells why; what follows it follows from it.
        let _ = self.inner.fault.set(fault);
        TurnError::Cancelled
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Journal").field("turn_id", &self.inner.turn_id).finish_non_exhaustive()
    }
}

impl TurnContext {
    /// Does something once per turn: when the turn is run again after a crash or a failed attempt, the recorded value is used
    /// and `work` is dropped unrun. Names must be unique within the turn and the same in every attempt. A crash between the
    /// end of `work` and its record runs it once more: give whatever it calls the [`TurnContext::idempotency_key`].
    ///
    /// # Errors
    /// What `work` says, which is not recorded; [`TurnError::Cancelled`] when the turn cannot go on here;
    /// [`TurnError::Terminal`] when the value cannot be written as JSON, or a recorded one is of another form.
    pub async fn step<T, F>(&self, name: &str, work: F) -> Result<T, TurnError>
    where
        T: Serialize + DeserializeOwned + Send,
        F: Future<Output = Result<T, TurnError>> + Send,
    {
        let step = format!("step.{name}");
        let of_another_form = |error: &serde_json::Error| TurnError::Terminal {
            message: format!("the value of the step \"{name}\" is not of its form: {}", json_fault(error)),
            user_message: None,
        };
        let recorded = self.journal.find(&step).await?.filter(|entry| entry.status == StepStatus::Done);
        if let Some(value) = recorded.and_then(|entry| entry.result) {
            return serde_json::from_value(value).map_err(|error| of_another_form(&error));
        }
        self.journal.begin(&step, StepKind::Step, &hash(name.as_bytes()), None).await?;
        let value = work.await?;
        let result = serde_json::to_value(&value).map_err(|error| of_another_form(&error))?;
        self.journal.end(&step, StepStatus::Done, Some(result)).await?;
        Ok(value)
    }

    /// A key that is the same for this step in every attempt of this turn, and for no other: for services that recognise a
    /// request they have seen.
    #[must_use]
    pub fn idempotency_key(&self, step: &str) -> String {
        format!("{}:{step}", self.journal.turn_id())
    }
}

/// SHA-256, in hex.
pub(crate) fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The longest pause before somebody who is away is asked again.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The pauses before somebody who is away, the database or NATS, is asked again.
pub(crate) fn patience() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(20))
        .with_max_interval(MAX_PAUSE)
        .with_max_elapsed_time(None)
        .build()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_step_runs_until_it_has_a_value_and_never_again() {
        let context = TurnContext::new(Uuid::from_u128(1));
        let runs = AtomicU32::new(0);
        let run = |outcome: Result<u32, TurnError>| {
            let runs = &runs;
            context.step("price", async move {
                runs.fetch_add(1, Ordering::Relaxed);
                outcome
            })
        };
        let failure = TurnError::Retryable { message: "away".to_owned(), after: None };
        assert_eq!(run(Err(failure.clone())).await, Err(failure));
        assert_eq!(run(Ok(7)).await, Ok(7));
        assert_eq!(run(Ok(8)).await, Ok(7));
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        let other: Result<String, TurnError> = context.step("price", async { Ok(String::new()) }).await;
        assert!(matches!(other, Err(TurnError::Terminal { .. })), "{other:?}");
    }
}
