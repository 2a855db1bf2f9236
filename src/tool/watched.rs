//! Every call under one span, one metric and one limit of time, whatever kind of tool it is.
//!
//! Refuses to record arguments or results. Invariant: a call ends by its tool's timeout and by the turn's deadline, whichever
//! comes first.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::{Tool, ToolContext, ToolError, ToolPolicy, ToolSpec};
use crate::telemetry::{self, metric};

/// A tool under the name that the model calls it by.
pub(super) struct Watched {
    pub(super) name: String,
    /// `gen_ai.tool.type`: `function` for Rust code, `extension` for what is asked of a server.
    pub(super) kind: &'static str,
    pub(super) inner: Arc<dyn Tool>,
}

#[async_trait::async_trait]
impl Tool for Watched {
    fn spec(&self) -> ToolSpec {
        ToolSpec { name: self.name.clone(), ..self.inner.spec() }
    }

    fn policy(&self) -> ToolPolicy {
        self.inner.policy()
    }

    async fn call(&self, context: &ToolContext, arguments: Value) -> Result<Value, ToolError> {
        let span = self.span(context);
        let outcome = self.bounded(context, arguments, &span).instrument(span.clone()).await;
        metric::tool_call(&self.name, outcome.as_ref().map_or_else(ToolError::outcome, |_| "ok"));
        if let Err(error) = &outcome {
            span.record("error.type", error.outcome());
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }
}

impl Watched {
    async fn bounded(&self, context: &ToolContext, arguments: Value, span: &Span) -> Result<Value, ToolError> {
        let now = Instant::now();
        if context.deadline <= now {
            return Err(ToolError::retryable("the turn's time ran out before the tool was called"));
        }
        let deadline = context.deadline.min(now + self.inner.policy().timeout);
        let traceparent = telemetry::current_traceparent(span).or_else(|| context.traceparent.clone());
        let context = ToolContext { deadline, traceparent, ..context.clone() };
        match tokio::time::timeout_at(deadline, self.inner.call(&context, arguments)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let waited_ms = (deadline - now).as_millis();
                Err(ToolError::unknown(format!("the tool did not answer within {waited_ms} ms")))
            }
        }
    }

    /// A child of the span that the caller is in, else of the turn's trace.
    fn span(&self, context: &ToolContext) -> Span {
        let within = !Span::current().is_none();
        let span = tracing::info_span!(
            "execute_tool",
            otel.name = %format_args!("execute_tool {}", self.name),
            otel.kind = "internal",
            otel.status_code = Empty,
            gen_ai.operation.name = "execute_tool",
            gen_ai.tool.name = %self.name,
            gen_ai.tool.call.id = %context.call_id,
            gen_ai.tool.type = self.kind,
            gen_ai.conversation.id = %context.conversation_id,
            turnwise.turn.id = %context.turn_id,
            "error.type" = Empty,
        );
        if !within {
            telemetry::set_parent(&span, context.traceparent.as_deref());
        }
        span
    }
}
