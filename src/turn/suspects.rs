//! Messages that were open when the process that had them died: which of them may be worked on now, and which have seen
//! enough deaths.
//!
//! Refuses to count by itself: a count that dies with the process is of no use, so it is in the database. Invariants: a message is
//! given up only after it was worked on with no other suspect beside it, and the process died once more; what nobody died with
//! costs nothing but a look into an empty map.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Turns;
use super::burst::Burst;
use super::verdict::{Step, away};
use crate::responder::journal::MEMBERS_STEP;
use crate::scheduler::{Failure, Task};
use crate::store::{Committed, Ownership, StoreError};
use crate::stream::StreamMessage;
use crate::telemetry::chain;

/// Why a message is given up that its processes died with.
const PROCESS_DEATH: &str = "process_death";

/// From so many deaths on, a message waits for its turn among few.
const FEW_FROM: u32 = 2;

/// So many of those run at once: a 64th of the turns at once by default, so that the next death is charged to no more.
const FEW: usize = 64;

/// From so many deaths on, it waits until it is alone among the suspects.
const ALONE_FROM: u32 = 3;

/// The least number of deaths before a message is given up: it has died alone at least once then.
const DEATHS_MIN: u32 = ALONE_FROM + 1;

/// How often a suspect that waits looks whether there is room, and one whose end cannot be written down tries again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The suspects among the messages of this process.
#[derive(Debug)]
pub struct Suspects {
    /// By message, those from [`FEW_FROM`] on.
    deaths: Mutex<HashMap<String, u32>>,
    few: Arc<Semaphore>,
    alone: Arc<Semaphore>,
    deaths_max: u32,
}

/// What a message may do.
pub(super) enum Asked {
    /// Nobody died with it, or only once.
    Free,
    /// There is no room for it before this moment.
    Later(Instant),
    Suspected(Suspicion),
}

/// What becomes of a message that several processes have died with.
pub(super) enum Suspicion {
    /// It is worked on, under this watch.
    Watched(Watch),
    GivenUp {
        deaths: u32,
    },
}

/// A suspect's place, until it is dropped.
pub(super) struct Watch {
    is_alone: bool,
    _place: OwnedSemaphorePermit,
}

impl Suspects {
    /// `max_attempts` deaths of its processes are enough for a message, or four if that is more.
    #[must_use]
    pub fn new(max_attempts: u32) -> Self {
        let (few, alone) = (Arc::new(Semaphore::new(FEW)), Arc::new(Semaphore::new(1)));
        Self { deaths: Mutex::default(), few, alone, deaths_max: max_attempts.max(DEATHS_MIN) }
    }

    pub(super) fn ask(&self, message_id: &str) -> Asked {
        let Some(deaths) = self.deaths().get(message_id).copied() else { return Asked::Free };
        if deaths >= self.deaths_max {
            return Asked::Suspected(Suspicion::GivenUp { deaths });
        }
        let is_alone = deaths >= ALONE_FROM;
        let room = if is_alone { &self.alone } else { &self.few };
        match Arc::clone(room).try_acquire_owned() {
            Ok(place) => Asked::Suspected(Suspicion::Watched(Watch { is_alone, _place: place })),
            Err(_) => Asked::Later(Instant::now() + LOOK_AGAIN_AFTER),
        }
    }

    fn learn(&self, charged: Vec<(String, u32)>) {
        self.deaths().extend(charged.into_iter().filter(|(_, deaths)| *deaths >= FEW_FROM));
    }

    fn forget(&self, message_id: &str) {
        self.deaths().remove(message_id);
    }

    /// A count that a panic left behind is as good as before.
    fn deaths(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    /// The owner before left these behind. If it died, it may have been working on them; if not, what is known of them is learnt.
    pub(super) async fn suspect(
        &self,
        ownership: &Ownership,
        heads: &[Arc<StreamMessage>],
        after_death: bool,
    ) -> Result<(), StoreError> {
        let ids: Vec<String> = heads.iter().map(|message| message.message_id.clone()).collect();
        let known = match after_death {
            true => self.store.charge_deaths(&ids, ownership).await,
            false => self.store.deaths(&ids).await,
        };
        match known {
            Ok(charged) => {
                self.suspects.learn(charged);
                Ok(())
            }
            // Whoever owns the partition now counts.
            Err(StoreError::Fenced) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One attempt at a message that processes have died with, which is written down while it runs; or its end.
    pub(super) async fn attempt_suspect(
        &self,
        task: &Task,
        suspicion: Suspicion,
        responder_time: &mut Duration,
    ) -> Step<Vec<Committed>> {
        let head = &task.messages[0].message_id;
        let ended = match suspicion {
            Suspicion::GivenUp { deaths } => {
                let error = format!("{deaths} processes died while they worked on it");
                let failure = Failure { reason: PROCESS_DEATH, error, user_message: None };
                let task = Task { attempt: deaths, ..self.alone(task).await? };
                self.bury(&task, &failure).await
            }
            Suspicion::Watched(watch) => {
                let alone = if watch.is_alone { self.alone(task).await? } else { task.clone() };
                let ended = match self.store.note_begun(head, true, &task.ownership).await {
                    Ok(()) => AssertUnwindSafe(self.attempt(&alone, responder_time)).catch_unwind().await,
                    // It may be noted all the same.
                    Err(error) => Ok(Err(away(&error))),
                };
                if !matches!(ended, Ok(Ok(_))) {
                    self.note_ended(head, task).await;
                }
                ended.unwrap_or_else(|panic| resume_unwind(panic))
            }
        };
        if ended.is_ok() {
            self.suspects.forget(head);
        }
        ended
    }

    /// The attempt has ended and the message has not. It keeps its place until that is written down: a death from then on is no
    /// more charged to a message that waits. Once the task is cancelled, somebody else will have it.
    async fn note_ended(&self, head: &str, task: &Task) {
        while let Err(error) = self.store.note_begun(head, false, &task.ownership).await {
            if matches!(error, StoreError::Fenced) {
                return;
            }
            tracing::warn!(error = %chain(&error), "the end of an attempt cannot be written down, will be tried again");
            tokio::select! {
                () = task.cancellation.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
            }
        }
    }

    /// The first message alone, so that no other is taken for what it does; unless an attempt at several has acted.
    async fn alone(&self, task: &Task) -> Step<Task> {
        let steps = match Burst::read(task) {
            Ok(burst) => self.store.journal(burst.first_turn_id()).await.map_err(|error| away(&error))?,
            Err(_) => Vec::new(),
        };
        let has_acted = steps.iter().any(|step| step.step == MEMBERS_STEP);
        Ok(if has_acted { task.clone() } else { task.only(vec![Arc::clone(&task.messages[0])]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_deaths_the_fewer_at_once() {
        let suspects = Suspects::new(1);
        let charge = |deaths: u32| suspects.learn((0..100).map(|n| (n.to_string(), deaths)).collect());
        let allowed = || {
            let asked: Vec<Asked> = (0..100).map(|n| suspects.ask(&n.to_string())).collect();
            let count = |is: fn(&Asked) -> bool| asked.iter().filter(|asked| is(asked)).count();
            [
                count(|asked| matches!(asked, Asked::Free)),
                count(|asked| matches!(asked, Asked::Suspected(Suspicion::Watched(_)))),
                count(|asked| matches!(asked, Asked::Suspected(Suspicion::GivenUp { .. }))),
            ]
        };
        for (deaths, expected) in [(1, [100, 0, 0]), (2, [0, FEW, 0]), (3, [0, 1, 0]), (4, [0, 0, 100])] {
            charge(deaths);
            assert_eq!(allowed(), expected, "after {deaths} deaths");
        }
        suspects.forget("7");
        assert!(matches!(suspects.ask("7"), Asked::Free));
    }
}
