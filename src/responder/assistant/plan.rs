//! What becomes of each tool call that a model asks for: run, asked about first, or refused with a sentence for the model.
//!
//! Refuses to call anything. Invariants: no turn has more than [`CALLS_MAX`] calls, nor the same one more than [`REPEATS_MAX`]
//! times; after the last round, and after arguments were wrong too often, tools are off.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::model::{ToolCall, ToolSpec};
use crate::tool::{Effects, OnUnknown, Tool, ToolPolicy, Toolbox};

/// Tool calls in one turn.
pub const CALLS_MAX: usize = 16;

/// The same call, with the same arguments, in one turn.
pub const REPEATS_MAX: usize = 3;

/// How often a model may write arguments that its tool does not take.
const MISTAKES_MAX: usize = 2;

/// What is to be done about one call.
pub(super) enum Plan {
    /// The result is this sentence; nothing is run.
    Refuse(String),
    /// A person is asked first.
    Confirm,
    Run(Arc<dyn Tool>, Value),
}

impl Plan {
    /// What the tool says of itself; of one that is not to be run, nothing good is known.
    pub(super) fn policy(&self) -> ToolPolicy {
        match self {
            Self::Run(tool, _) => tool.policy(),
            Self::Refuse(_) | Self::Confirm => {
                ToolPolicy { on_unknown: OnUnknown::Fail, ..ToolPolicy::of(Effects::Destructive) }
            }
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Refuse(_) => "Refuse",
            Self::Confirm => "Confirm",
            Self::Run(..) => "Run",
        })
    }
}

/// How far a turn has used what it may.
pub(super) struct Bounds {
    rounds_max: u32,
    calls: usize,
    mistakes: usize,
    repeats: HashMap<(String, String), usize>,
}

impl Bounds {
    pub(super) fn new(rounds_max: u32) -> Self {
        Self { rounds_max, calls: 0, mistakes: 0, repeats: HashMap::new() }
    }

    /// Whether the model may call tools in this round, the first of which is 0.
    pub(super) const fn may_call(&self, round: u32) -> bool {
        round < self.rounds_max && self.calls < CALLS_MAX && self.mistakes <= MISTAKES_MAX
    }

    /// Judges one call and counts it.
    pub(super) fn plan(&mut self, call: &ToolCall, toolbox: &Toolbox, offered: &[ToolSpec]) -> Plan {
        self.calls += 1;
        if self.calls > CALLS_MAX {
            return refuse(format!(
                "Not called: this turn has had its {CALLS_MAX} tool calls. Answer with what you have."
            ));
        }
        let is_offered = offered.iter().any(|spec| spec.name == call.name);
        let Some(tool) = toolbox.get(&call.name).filter(|_| is_offered) else {
            self.mistakes += 1;
            return refuse(format!("Not called: there is no tool \"{}\".", call.name));
        };
        let arguments = match toolbox.validate(&call.name, &call.arguments) {
            Ok(arguments) => arguments,
            Err(sentence) => {
                self.mistakes += 1;
                return refuse(format!("Not called: {sentence}"));
            }
        };
        let repeats = self.repeats.entry((call.name.clone(), arguments.to_string())).or_default();
        *repeats += 1;
        if *repeats > REPEATS_MAX {
            return refuse(format!("Not called: this very call was made {REPEATS_MAX} times already."));
        }
        if tool.policy().confirm { Plan::Confirm } else { Plan::Run(tool, arguments) }
    }
}

fn refuse(sentence: String) -> Plan {
    Plan::Refuse(sentence)
}
