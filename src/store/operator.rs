//! What people did by hand: its records, and the receipt that lets a dead letter be taken off its stream.
//!
//! Refuses to do what it records. Invariant: a [`Recorded`] is made only here, so that nothing is taken away before the
//! database knows by whom and why.

use serde::Serialize;
use uuid::Uuid;

use super::merge::storable;
use super::{Receipt, values};
use crate::message::{Timestamp, words};

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperatorVerb {
    RedriveDeadLetter,
    DiscardDeadLetter,
    /// An uncertain delivery is taken for one that arrived.
    ConfirmDelivery,
    ResendDelivery,
    /// An uncertain delivery is taken for one that did not arrive.
    FailDelivery,
    /// Many dead letters at once; each has a row of its own as well.
    RedriveDeadLetters,
    DiscardDeadLetters,
    TakeOverConversation,
    HandBackConversation,
    CloseConversation,
    ReplyInConversation,
    PauseTurns,
    ResumeTurns,
    /// A person's data was taken out; whose is not said.
    ErasePerson,
}

words!(
    OperatorVerb,
    "operator's verb",
    RedriveDeadLetter = "redrive_dead_letter",
    DiscardDeadLetter = "discard_dead_letter",
    ConfirmDelivery = "confirm_delivery",
    ResendDelivery = "resend_delivery",
    FailDelivery = "fail_delivery",
    RedriveDeadLetters = "redrive_dead_letters",
    DiscardDeadLetters = "discard_dead_letters",
    TakeOverConversation = "take_over_conversation",
    HandBackConversation = "hand_back_conversation",
    CloseConversation = "close_conversation",
    ReplyInConversation = "reply_in_conversation",
    PauseTurns = "pause_turns",
    ResumeTurns = "resume_turns",
    ErasePerson = "erase_person",
);

/// One thing that a person does to one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorAction {
    pub verb: OperatorVerb,
    /// Of a dead letter, its message's id; of a delivery or conversation, its own; of a hold, its scope and name; of an
    /// erasure, its bot.
    pub target: String,
    /// Who, as far as can be told.
    pub actor: Option<String>,
    pub reason: Option<String>,
    pub at: Timestamp,
}

/// The receipt for a dead letter whose end the database knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    target: String,
}

impl Recorded {
    /// For actions that were written.
    pub(super) fn of(actions: &[OperatorAction]) -> Vec<Self> {
        actions.iter().map(|action| Self { target: action.target.clone() }).collect()
    }
}

impl Receipt for Recorded {
    fn covers(&self, message_id: &str) -> bool {
        self.target == message_id
    }
}

/// A row.
#[derive(Serialize)]
pub(super) struct OperatorValues {
    pub(super) id: Uuid,
    pub(super) verb: &'static str,
    pub(super) target: String,
    pub(super) actor: Option<String>,
    pub(super) reason: Option<String>,
    #[serde(serialize_with = "values::micros")]
    pub(super) created_at: Timestamp,
}

pub(super) fn rows(actions: &[OperatorAction]) -> Vec<OperatorValues> {
    let text = |text: &str| storable(text).into_owned();
    let row = |action: &OperatorAction| OperatorValues {
        id: Uuid::now_v7(),
        verb: action.verb.as_str(),
        target: text(&action.target),
        actor: action.actor.as_deref().map(text),
        reason: action.reason.as_deref().map(text),
        created_at: action.at,
    };
    actions.iter().map(row).collect()
}
