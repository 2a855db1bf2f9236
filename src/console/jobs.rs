//! What is being done to dead letters in bulk, and was.

use serde::Serialize;

use super::conversations::badge;
use super::html::{Element, el};
use super::page::table;
use crate::dead_letters::STOPPED_AFTER;
use crate::ingress::{Problem, store_problem};
use crate::message::Timestamp;
use crate::store::{Job, JobState, Store};

/// Jobs that are shown, the newest.
const LISTED: u32 = 10;

#[derive(Debug, Serialize)]
pub(super) struct JobLine {
    #[serde(flatten)]
    job: Job,
    /// Its process died before it was done.
    is_stopped: bool,
}

pub(super) async fn jobs(store: &Store) -> Result<Vec<JobLine>, Problem> {
    let now = Timestamp::now();
    let line = |job: Job| {
        let is_silent = u128::from(now.micros_since(job.signed_at)) >= STOPPED_AFTER.as_micros();
        JobLine { is_stopped: job.state == JobState::Running && is_silent, job }
    };
    let jobs = store.jobs(LISTED).await.map_err(|error| store_problem(&error))?;
    Ok(jobs.into_iter().map(line).collect())
}

pub(super) fn list(lines: &[JobLine]) -> Element {
    let rows = lines.iter().map(|JobLine { job, is_stopped }| {
        let state = match (job.state, is_stopped) {
            (_, true) => badge("trouble", "stopped: its process ended. Do the rest as a new one"),
            (JobState::Running, false) => badge("waiting", "running"),
            (JobState::Done, false) => badge("answered", "done"),
            (JobState::Failed, false) => badge("trouble", "failed"),
        };
        let bar = el("progress").attr("max", job.total.max(1)).attr("value", job.seen).attr("aria-label", "Progress");
        vec![
            format!("{} {}", job.verb, job.selection).into(),
            state.into(),
            el("span").add(bar).text(format!(" {} of {}", job.seen, job.total)).into(),
            job.outcome.as_deref().unwrap_or_default().into(),
            job.actor.as_deref().unwrap_or_default().into(),
            job.created_at.to_string().into(),
        ]
    });
    let head = ["Job", "State", "Progress", "Outcome", "By", "Begun"];
    table("Jobs", &head, rows.collect())
}
