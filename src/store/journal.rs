//! What a turn did before its commit (G8), and the actions that wait for a person's word: their records, and how a group of
//! journal writes is done.
//!
//! Refuses to decide what is run again: the turn does, from what it finds. Invariants: nothing is journaled under an epoch that
//! has passed; an action is decided once, whoever asks how often.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::commit::{Partition, Statements, is_owned};
use super::error::refused;
use super::values::JournalValues;
use super::{Ownership, StoreError};
use crate::message::{Timestamp, words};

/// What a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// One call of a model.
    Model,
    /// One call of a tool.
    Tool,
    /// A named step of a responder written in Rust.
    Step,
}

/// How far a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// Begun; nobody knows yet, or ever after a crash, whether it had its effect.
    Started,
    Done,
    /// It ended with an error that is its result.
    Failed,
    /// Whether it had its effect is not known, and it was not tried again.
    Unknown,
}

words!(StepKind, "kind of step", Model = "model", Tool = "tool", Step = "step");
words!(StepStatus, "status of a step", Started = "started", Done = "done", Failed = "failed", Unknown = "unknown",);

/// One step of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Its name, unique within the turn and the same in every attempt.
    pub step: String,
    /// Its place in the order in which the steps were begun, from 0.
    pub ordinal: u32,
    pub kind: StepKind,
    pub status: StepStatus,
    /// SHA-256 of what was asked, in hex: a result is used again only for the same question.
    pub request_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    pub started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// What became of a journal write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journaled {
    Written,
    /// The partition has a newer owner: nothing was written, and what was to follow must not happen.
    Fenced,
}

/// What became of an action that waits for a person's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActionStatus {
    Pending,
    Approved,
    Rejected,
    /// Nobody decided in time.
    Expired,
    /// The conversation went on with something else, or was given to a person.
    Cancelled,
}

words!(
    ActionStatus,
    "status of an action",
    Pending = "pending",
    Approved = "approved",
    Rejected = "rejected",
    Expired = "expired",
    Cancelled = "cancelled",
);

/// A tool call that is to wait for a person's word, written by the commit of the turn that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAction {
    /// The nonce that a button carries.
    pub id: String,
    /// Who alone may decide, as the platform names him; `None` where anybody in the conversation may.
    pub requester: Option<String>,
    pub tool: String,
    /// The arguments as the model wrote them: JSON text.
    pub arguments: String,
    pub expires_at: Timestamp,
}

/// A tool call that waits for a person's word, or did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Action {
    pub id: String,
    pub conversation_id: Uuid,
    /// The turn that asked.
    pub turn_id: Uuid,
    pub requester: Option<String>,
    pub tool: String,
    pub arguments: String,
    pub status: ActionStatus,
    /// The turn that decided: it, run again, sees its own decision.
    pub decided_turn_id: Option<Uuid>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// A step to be written.
pub(super) struct Writing {
    pub(super) turn_id: Uuid,
    pub(super) ownership: Ownership,
    pub(super) entry: JournalEntry,
}

/// Writes steps of different turns; in their order.
pub(super) async fn write_all(
    statements: &mut impl Statements,
    writings: &[Writing],
) -> Result<Vec<Journaled>, StoreError> {
    let partitions = writings.iter().map(|writing| Partition::of(&writing.ownership)).collect();
    let epochs = statements.lock(&partitions, &[]).await?.epochs;
    let is_owned = |writing: &Writing| is_owned(&epochs, &writing.ownership);
    let rows: Vec<JournalValues<'_>> =
        writings.iter().filter(|writing| is_owned(writing)).map(JournalValues::from).collect();
    if !rows.is_empty() {
        statements.write_journal(&rows).await.map_err(refused("journal steps"))?;
    }
    let outcome = |writing| if is_owned(writing) { Journaled::Written } else { Journaled::Fenced };
    Ok(writings.iter().map(outcome).collect())
}
