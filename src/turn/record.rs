//! What stays known of a turn's steps when it ends, however it ends.
//!
//! Pure. Invariant: a journal that was read goes with the commit that keeps what is in it.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::config::Bot;
use crate::responder::Reply;
use crate::responder::journal::MEMBERS_STEP;
use crate::responder::workflow::STATE_KEY;
use crate::store::{JournalEntry, StepKind, TurnCommit};

/// More than any turn can use; a server that says so is wrong.
const TURN_TOKENS_MAX: u64 = 1_000_000_000;

/// What a commit keeps of the steps.
#[derive(Debug, Default)]
pub(super) struct TurnRecord {
    has_journal: bool,
    /// What replay and people need: who decided the turn, and everything that was asked and answered on the way.
    record: Option<Value>,
    /// To be counted against the bot's budget.
    tokens: u64,
}

impl TurnRecord {
    /// `responder` describes who decided; null where nobody did in this attempt.
    pub(super) fn of(steps: &[JournalEntry], responder: impl FnOnce() -> Value, bot: Option<&Bot>) -> Self {
        // Which messages a turn was of stands in the ledger.
        let is_worth_it = steps.iter().any(|step| step.step != MEMBERS_STEP);
        Self {
            has_journal: !steps.is_empty(),
            record: is_worth_it.then(|| json!({ "responder": responder(), "steps": steps })),
            tokens: bot.map_or(0, |bot| counted_tokens(bot, steps)),
        }
    }

    /// Keeps, too, what the decision rested on beside its steps, and whether it gave the conversation to a person. A turn that
    /// a workflow led is worth a record for its place in it alone.
    pub(super) fn decided(
        mut self,
        metadata: &Map<String, Value>,
        reply: &Reply,
        responder: impl FnOnce() -> Value,
    ) -> Self {
        let is_led = reply.workflow_state.is_some() || metadata.contains_key(STATE_KEY);
        if self.record.is_none() && is_led {
            self.record = Some(json!({ "responder": responder(), "steps": [] }));
        }
        if let Some(record) = &mut self.record {
            record["metadata"] = json!(metadata);
            record["handoff"] = json!(reply.handoff);
        }
        self
    }

    /// Ends the journal of this id with the commit, and keeps what it says.
    pub(super) fn keep_in(self, commit: &mut TurnCommit, journal: Uuid) {
        commit.journal = self.has_journal.then_some(journal);
        commit.record = self.record;
        commit.tokens = self.tokens;
    }
}

/// What the models of a bot with a budget used, as far as their servers said.
fn counted_tokens(bot: &Bot, steps: &[JournalEntry]) -> u64 {
    if bot.tokens_per_day.is_none() {
        return 0;
    }
    let answers = steps.iter().filter(|step| step.kind == StepKind::Model);
    let usages = answers.filter_map(|step| step.result.as_ref()?.get("usage"));
    let tokens = usages.flat_map(|usage| ["input_tokens", "output_tokens"].map(|key| usage[key].as_u64()));
    tokens.flatten().fold(0, u64::saturating_add).min(TURN_TOKENS_MAX)
}
