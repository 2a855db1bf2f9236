//! Tools written in Rust: typed arguments and results, adapted to the boxed [`Tool`].
//!
//! Refuses arguments that do not fit their type, also those that the schema let pass: the model is told. Invariant: the schema
//! that the model sees is made from the type that the tool is handed.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Effects, OnUnknown, Tool, ToolContext, ToolError, ToolPolicy, ToolSpec};
use crate::telemetry::json_fault;

/// A tool in Rust; [`boxed`] makes a [`Tool`] of it. See the [module's](super) example.
pub trait TypedTool: Send + Sync + 'static {
    /// An object: a struct with named fields, or an empty one. The comments of its fields reach the model.
    type Args: DeserializeOwned + JsonSchema + Send;
    type Output: Serialize;

    /// 1 to 64 of A-Z a-z 0-9 _ -.
    fn name(&self) -> &str;

    /// For the model: what it does and when to use it.
    fn description(&self) -> &str;

    /// What a call changes; decides what may be done with it after a crash.
    fn effects(&self) -> Effects {
        Effects::Destructive
    }

    /// Whether a person is asked before each call.
    fn confirm(&self) -> bool {
        false
    }

    /// For one call.
    fn timeout(&self) -> Duration {
        ToolPolicy::DEFAULT_TIMEOUT
    }

    /// What becomes of a call of which nobody knows whether it happened.
    fn on_unknown(&self) -> OnUnknown {
        self.effects().on_unknown()
    }

    /// Whether dropping the future of [`TypedTool::call`] in the middle leaves nothing half done.
    fn cancel_safe(&self) -> bool {
        self.effects() == Effects::ReadOnly
    }

    /// One call.
    ///
    /// # Errors
    /// See [`ToolError`].
    fn call(
        &self,
        context: &ToolContext,
        arguments: Self::Args,
    ) -> impl Future<Output = Result<Self::Output, ToolError>> + Send;
}

/// The boxed twin of a typed tool.
pub fn boxed(tool: impl TypedTool) -> Arc<dyn Tool> {
    let parameters = parameters(&tool);
    Arc::new(Boxed { tool, parameters })
}

struct Boxed<T> {
    tool: T,
    parameters: Value,
}

#[async_trait::async_trait]
impl<T: TypedTool> Tool for Boxed<T> {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: self.tool.name().to_owned(),
            description: self.tool.description().to_owned(),
            parameters: self.parameters.clone(),
        }
    }

    fn policy(&self) -> ToolPolicy {
        ToolPolicy {
            effects: self.tool.effects(),
            confirm: self.tool.confirm(),
            on_unknown: self.tool.on_unknown(),
            timeout: self.tool.timeout(),
            cancel_safe: self.tool.cancel_safe(),
        }
    }

    async fn call(&self, context: &ToolContext, arguments: Value) -> Result<Value, ToolError> {
        let arguments = serde_json::from_value(arguments)
            .map_err(|error| ToolError::failed(format!("the arguments do not fit: {}", fault(&error))))?;
        let output = self.tool.call(context, arguments).await?;
        serde_json::to_value(output).map_err(|error| {
            let name = self.tool.name();
            tracing::error!(tool = name, error = json_fault(&error), "a tool's result cannot be written as JSON");
            ToolError::failed("the call was carried out, but its result cannot be shown")
        })
    }
}

/// Inlined: some model servers do not follow references.
fn parameters<T: TypedTool>(_: &T) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T::Args>().into()
}

/// serde's words name the field and the kind of value; the model wrote both.
fn fault(error: &serde_json::Error) -> String {
    error.to_string().chars().take(FAULT_CHARS_MAX).collect()
}

const FAULT_CHARS_MAX: usize = 300;
