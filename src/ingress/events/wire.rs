//! What the events of a turn hold.
//!
//! Refuses to know when one is due. Invariant: whatever is sent as an event's data has its schema in [`schemas`].

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::ingress::problem::Problem;
use crate::ingress::turns::{Queued, TurnFacts, TurnView};
use crate::message::TerminalState;
use crate::stream::ToolState;

/// More text of the answer that is being made.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeltaEvent")]
pub(super) struct Delta {
    pub(super) text: String,
    /// Everything before this text is void.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) reset: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ToolEvent")]
pub(super) struct ToolCall {
    pub(super) name: String,
    pub(super) state: ToolState,
}

/// Nothing more comes.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DoneEvent")]
pub(super) struct Done {
    pub(super) turn_id: Uuid,
}

/// The last thing to say about a turn, as `GET /v1/turns/{turn_id}` shows it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Reply(Box<TurnView>),
    Error(Box<Failure>),
}

/// An error keeps the turn's members beside those of the problem.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ErrorEvent")]
pub(super) struct Failure {
    turn_status: TerminalState,
    #[serde(flatten)]
    facts: TurnFacts,
    #[serde(flatten)]
    problem: Problem,
}

impl Outcome {
    pub(super) fn of(view: TurnView) -> Self {
        let problem = match view.status {
            TerminalState::DeadLettered => Problem::new(500, "dead-lettered", "The message could not be answered."),
            TerminalState::Rejected => {
                Problem::new(409, "rejected", "The message was not taken: an earlier one was being answered.")
            }
            _ => return Self::Reply(Box::new(view)),
        };
        Self::Error(Box::new(Failure { turn_status: view.status, facts: view.facts, problem }))
    }

    pub(super) const fn event(&self) -> &'static str {
        match self {
            Self::Reply(_) => "reply",
            Self::Error(_) => "error",
        }
    }
}

/// The events by their names, and what their data looks like.
pub(in crate::ingress) fn schemas(generator: &mut SchemaGenerator) -> [(String, Value); 6] {
    [
        ("accepted", generator.subschema_for::<Queued>()),
        ("delta", generator.subschema_for::<Delta>()),
        ("tool", generator.subschema_for::<ToolCall>()),
        ("reply", generator.subschema_for::<TurnView>()),
        ("error", generator.subschema_for::<Failure>()),
        ("done", generator.subschema_for::<Done>()),
    ]
    .map(|(name, schema)| (name.to_owned(), schema.to_value()))
}
