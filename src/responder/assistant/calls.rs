//! Calling tools, each through the journal (G8).
//!
//! Invariants: a call is in the journal before it is made, and its result before anything follows from it; a call that has a
//! result is never made again; one of which nobody knows whether it happened is made again only if its tool says that this
//! is safe, always under the same idempotency key.

use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::plan::Plan;
use crate::model::ToolCall;
use crate::responder::journal::hash;
use crate::responder::{ToolState, TurnContext, TurnError};
use crate::store::{JournalEntry, StepKind, StepStatus};
use crate::telemetry;
use crate::tool::{Effects, OnUnknown, Tool, ToolContext, ToolError, ToolPolicy};

/// Past a tool's own time limit, which it should keep by itself.
const TIMEOUT_GRACE: Duration = Duration::from_secs(1);

/// What the model hears of a call that waits for a person.
const WAITING: &str = "Not called yet: the user is being asked to confirm it. It is called only if the user agrees, in a later \
     turn; if the conversation goes on with something else, it is cancelled.";

/// What the model hears of a call of which nobody knows whether it happened.
const UNKNOWN: &str = "The outcome is unknown: the call may or may not have taken effect. Do not repeat it. Tell the user that \
     it has to be checked.";

pub(super) struct Calls<'a> {
    pub(super) context: &'a TurnContext,
    pub(super) conversation_id: Uuid,
}

impl Calls<'_> {
    /// The results of a round's calls, in their order. Calls that change nothing run side by side, others one after the other.
    pub(super) async fn run(
        &self,
        round: &str,
        calls: &[ToolCall],
        plans: Vec<Plan>,
    ) -> Result<Vec<String>, TurnError> {
        let side_by_side = plans.iter().all(|plan| match plan {
            Plan::Run(tool, _) => tool.policy().effects == Effects::ReadOnly,
            Plan::Refuse(_) | Plan::Confirm => true,
        });
        let runs = calls.iter().zip(plans).enumerate().map(|(place, (call, plan))| {
            let step = format!("{round}.tool.{place}");
            async move {
                if let Some(result) = self.recorded(&step, call, &plan).await? {
                    return Ok(result);
                }
                match plan {
                    Plan::Refuse(sentence) => Ok(sentence),
                    Plan::Confirm => {
                        self.context.deltas.tool(&call.name, ToolState::Waiting);
                        Ok(WAITING.to_owned())
                    }
                    Plan::Run(tool, arguments) => self.call(&step, call, tool.as_ref(), arguments).await,
                }
            }
        });
        if side_by_side {
            return try_join_all(runs).await;
        }
        let mut results = Vec::with_capacity(calls.len());
        for run in runs {
            results.push(run.await?);
        }
        Ok(results)
    }

    /// What is known of a call whatever would be made of it now: its tool may be away, or changed, since it was made.
    async fn recorded(&self, step: &str, call: &ToolCall, plan: &Plan) -> Result<Option<String>, TurnError> {
        let journal = &self.context.journal;
        let is_this = |entry: &JournalEntry| {
            let request = entry.request.as_ref();
            request
                .is_some_and(|request| request["call_id"] == call.id.as_str() && request["tool"] == call.name.as_str())
        };
        let Some(entry) = journal.find(step).await?.filter(is_this) else { return Ok(None) };
        match known(&entry, plan.policy()) {
            Known::Result(text) => Ok(Some(text)),
            Known::Lost => {
                journal.end(step, StepStatus::Unknown, None).await?;
                Ok(Some(UNKNOWN.to_owned()))
            }
            Known::Nothing => Ok(None),
        }
    }

    async fn call(&self, step: &str, call: &ToolCall, tool: &dyn Tool, arguments: Value) -> Result<String, TurnError> {
        let journal = &self.context.journal;
        let policy = tool.policy();
        let asked = hash(format!("{}\n{arguments}", call.name).as_bytes());
        let request = serde_json::json!({ "call_id": call.id, "tool": call.name, "arguments": arguments });
        journal.begin(step, StepKind::Tool, &asked, Some(request)).await?;
        let context = ToolContext {
            turn_id: self.context.turn_id,
            conversation_id: self.conversation_id,
            call_id: call.id.clone(),
            idempotency_key: self.context.idempotency_key(step),
            deadline: self.context.deadline,
            traceparent: telemetry::current_traceparent(&tracing::Span::current()),
        };
        let give_up = self.context.deadline.min(Instant::now() + policy.timeout + TIMEOUT_GRACE);
        self.context.deltas.tool(&call.name, ToolState::Started);
        let outcome = tokio::time::timeout_at(give_up, tool.call(&context, arguments)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(ToolError::Unknown { message: "no answer in time".to_owned() }));
        let state = if outcome.is_ok() { ToolState::Succeeded } else { ToolState::Failed };
        self.context.deltas.tool(&call.name, state);
        match outcome {
            Ok(value) => {
                let text = text(&value);
                journal.end(step, StepStatus::Done, Some(value)).await?;
                Ok(text)
            }
            Err(ToolError::Failed { message }) => {
                journal.end(step, StepStatus::Failed, Some(Value::from(message.clone()))).await?;
                Ok(failed(&message))
            }
            Err(ToolError::Retryable { after, .. }) => self.again(step, &call.name, after).await,
            Err(ToolError::Unknown { .. }) if may_repeat(policy) => self.again(step, &call.name, None).await,
            Err(ToolError::Unknown { .. }) => {
                journal.end(step, StepStatus::Unknown, None).await?;
                Ok(UNKNOWN.to_owned())
            }
        }
    }

    /// The lane tries the turn again later, and finds that this call is still to be made. The tool's own words stay out of the
    /// error: they may hold what the user said.
    async fn again(&self, step: &str, tool: &str, after: Option<Duration>) -> Result<String, TurnError> {
        self.context.journal.end(step, StepStatus::Failed, None).await?;
        Err(TurnError::Retryable { message: format!("the tool \"{tool}\" could not be called"), after })
    }
}

/// What the journal knows of a call.
enum Known {
    Result(String),
    /// Begun, and never heard of again; not to be repeated.
    Lost,
    Nothing,
}

fn known(entry: &JournalEntry, policy: ToolPolicy) -> Known {
    match (entry.status, &entry.result) {
        (StepStatus::Done, Some(value)) => Known::Result(text(value)),
        (StepStatus::Failed, Some(message)) => Known::Result(failed(message.as_str().unwrap_or_default())),
        (StepStatus::Unknown, _) => Known::Result(UNKNOWN.to_owned()),
        (StepStatus::Started, _) if !may_repeat(policy) => Known::Lost,
        (StepStatus::Started | StepStatus::Failed | StepStatus::Done, _) => Known::Nothing,
    }
}

fn may_repeat(policy: ToolPolicy) -> bool {
    policy.effects != Effects::Destructive || policy.on_unknown == OnUnknown::Retry
}

/// A result as the model reads it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn failed(message: &str) -> String {
    format!("Failed: {message}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::message::Timestamp;

    #[test]
    fn what_is_known_of_a_call_decides_whether_it_is_made_again() {
        let entry = |status, result| JournalEntry {
            step: "0.tool.0".to_owned(),
            ordinal: 0,
            kind: StepKind::Tool,
            status,
            request_hash: String::new(),
            request: None,
            result,
            started_at: Timestamp::from_micros(0),
            ended_at: None,
        };
        let seen = |status, result: Option<Value>, policy| match known(&entry(status, result), policy) {
            Known::Result(text) => text,
            Known::Lost => "lost".to_owned(),
            Known::Nothing => "call".to_owned(),
        };
        let destructive = ToolPolicy::of(Effects::Destructive);
        let fail = ToolPolicy { on_unknown: OnUnknown::Fail, ..destructive };
        let retry = ToolPolicy { on_unknown: OnUnknown::Retry, ..destructive };
        for policy in [fail, retry, ToolPolicy::of(Effects::ReadOnly)] {
            assert_eq!(seen(StepStatus::Done, Some(json!({"a": 1})), policy), r#"{"a":1}"#);
            assert_eq!(seen(StepStatus::Failed, Some(json!("no")), policy), "Failed: no");
            assert_eq!(seen(StepStatus::Failed, None, policy), "call");
            assert_eq!(seen(StepStatus::Unknown, None, policy), UNKNOWN);
        }
        assert_eq!(seen(StepStatus::Started, None, fail), "lost");
        assert_eq!(seen(StepStatus::Started, None, retry), "call");
        assert_eq!(seen(StepStatus::Started, None, ToolPolicy::of(Effects::Idempotent)), "call");
    }
}
