//! What a model is told of a tool.
//!
//! Refuses to call anything. Invariant: `parameters` is a JSON Schema of an object.

use serde::{Deserialize, Serialize};

/// A tool as model APIs know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments.
    pub parameters: serde_json::Value,
}
