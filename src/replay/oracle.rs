//! Tools as a replay has them: each gives what it gave when the turn was recorded.
//!
//! Refuses to call anything: the tools of a replay's toolbox are all of this one type, which holds a recording and no address.
//! Invariant: a call that was never made is refused and noted as drift.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::past::{Call, Outcome, Recording};
use crate::tool::{Effects, OnUnknown, Tool, ToolContext, ToolError, ToolPolicy, ToolSpec};

/// The recorded tools of one turn.
#[derive(Debug)]
pub(super) struct Oracle {
    recording: Arc<Recording>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    times: HashMap<Call, usize>,
    drift: Vec<Call>,
}

impl Oracle {
    pub(super) fn new(recording: Arc<Recording>) -> Arc<Self> {
        Arc::new(Self { recording, asked: Mutex::default() })
    }

    /// The calls that were never made when the turn was recorded, in order.
    pub(super) fn drift(&self) -> Vec<Call> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).drift.clone()
    }

    fn outcome(&self, call: Call) -> Option<&Outcome> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let times = asked.times.entry(call.clone()).or_default();
        let outcome = self.recording.outcome(&call, *times);
        *times += 1;
        if outcome.is_none() {
            asked.drift.push(call);
        }
        outcome
    }
}

/// One tool of the oracle.
pub(super) struct RecordedTool {
    pub(super) spec: ToolSpec,
    /// Whether a person would be asked before each call.
    pub(super) confirm: bool,
    pub(super) oracle: Arc<Oracle>,
}

#[async_trait::async_trait]
impl Tool for RecordedTool {
    fn spec(&self) -> ToolSpec {
        self.spec.clone()
    }

    /// The most careful one: a call is never made again, and several come one after the other.
    fn policy(&self) -> ToolPolicy {
        ToolPolicy { confirm: self.confirm, on_unknown: OnUnknown::Fail, ..ToolPolicy::of(Effects::Destructive) }
    }

    async fn call(&self, _: &ToolContext, arguments: Value) -> Result<Value, ToolError> {
        match self.oracle.outcome(Call::new(&self.spec.name, &arguments.to_string())) {
            Some(Outcome::Gave(value)) => Ok(value.clone()),
            Some(Outcome::Failed(message)) => Err(ToolError::Failed { message: message.clone() }),
            Some(Outcome::Unknown) => Err(ToolError::Unknown { message: "recorded as unknown".to_owned() }),
            None => Err(ToolError::Failed { message: "this call was not made when the turn was recorded".to_owned() }),
        }
    }
}
