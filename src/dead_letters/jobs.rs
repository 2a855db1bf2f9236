//! Redriving and discarding in the background, with a row in the database that says how far it is.
//!
//! Refuses to go on by itself after its process died: what was done is done, a sign of life that is old says that it stopped,
//! and doing the rest is a new job. Invariant: a job does what its plan counted, nothing that came later.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{DeadLetterError, DeadLetters, Plan, Report, Selection};
use crate::message::Timestamp;
use crate::store::{Job, JobState, JobVerb, StoreError};
use crate::telemetry::chain;

/// How often a job gives a sign of life.
const SIGN_INTERVAL: Duration = Duration::from_secs(1);

/// After so long without one, a job's process has died; a database that was away for as long is the other way to it.
pub const STOPPED_AFTER: Duration = Duration::from_secs(15);

impl DeadLetters {
    /// Writes the job down and does it in the background, until it is done or `stop` is cancelled.
    ///
    /// # Errors
    /// When the database does not take it; then nothing is done.
    pub async fn begin(
        self,
        verb: JobVerb,
        which: String,
        selection: Selection,
        plan: Plan,
        reason: Option<String>,
        stop: CancellationToken,
    ) -> Result<Uuid, StoreError> {
        let now = Timestamp::now();
        let job = Job {
            id: Uuid::now_v7(),
            verb,
            selection: which,
            actor: self.actor.clone(),
            reason,
            state: JobState::Running,
            total: plan.dead_letters,
            seen: 0,
            outcome: None,
            created_at: now,
            signed_at: now,
            ended_at: None,
        };
        self.store.create_job(&job).await?;
        let id = job.id;
        // On a thread of its own: the compiler cannot see that what borrows so much may move between threads.
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(self.perform(job, &selection, &plan, &stop)));
        Ok(id)
    }

    async fn perform(&self, mut job: Job, selection: &Selection, plan: &Plan, stop: &CancellationToken) {
        let (seen, progress) = watch::channel(0);
        let ended = {
            let work = self.work(&job, selection, plan, seen);
            let mut work = std::pin::pin!(work);
            let mut signs = tokio::time::interval(SIGN_INTERVAL);
            loop {
                tokio::select! {
                    ended = &mut work => break Some(ended),
                    () = stop.cancelled() => break None,
                    _ = signs.tick() => {
                        let seen = *progress.borrow();
                        self.sign(&job, seen).await;
                    }
                }
            }
        };
        job.seen = *progress.borrow();
        (job.state, job.outcome) = match &ended {
            Some(Ok(report)) if report.is_complete() => (JobState::Done, Some(report.words())),
            Some(Ok(report)) => (JobState::Failed, Some(report.words())),
            Some(Err(error)) => (JobState::Failed, Some(chain(error))),
            None => (JobState::Failed, Some("stopped with its process; do the rest as a new one".to_owned())),
        };
        let now = Timestamp::now();
        (job.signed_at, job.ended_at) = (now, Some(now));
        if let Err(error) = self.store.update_job(&job).await {
            tracing::warn!(job_id = %job.id, error = %chain(&error), "the end of a job is not written down");
        }
    }

    async fn work(
        &self,
        job: &Job,
        selection: &Selection,
        plan: &Plan,
        seen: watch::Sender<u64>,
    ) -> Result<Report, DeadLetterError> {
        let progress = |done, _| seen.send_modify(|seen| *seen = done);
        match job.verb {
            JobVerb::Redrive => self.redrive(selection, plan, progress).await,
            JobVerb::Discard => {
                let reason = job.reason.as_deref().unwrap_or_default();
                self.discard(selection, plan, reason, progress).await
            }
        }
    }

    async fn sign(&self, job: &Job, seen: u64) {
        let signed = Job { seen, signed_at: Timestamp::now(), ..job.clone() };
        if let Err(error) = self.store.update_job(&signed).await {
            tracing::warn!(job_id = %job.id, error = %chain(&error), "how far a job is, is not written down");
        }
    }
}

impl Report {
    /// The counts that are not zero.
    fn words(&self) -> String {
        let counts = [
            (self.redriven, "redriven"),
            (self.already_redriven, "had been redriven before"),
            (self.discarded, "discarded"),
            (self.failed, "failed"),
            (self.left, "not tried"),
        ];
        let parts: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        if parts.is_empty() { "nothing was left to do".to_owned() } else { parts.join(", ") }
    }
}
