//! What the tables `tools.*` hold once they are read, and the defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::secret::Secret;

/// What a call changes in the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effects {
    /// Nothing.
    ReadOnly,
    /// The same, however often it is made with the same arguments.
    Idempotent,
    /// Something, each time; unless its server keeps to the `Idempotency-Key`.
    Destructive,
}

impl Effects {
    /// What becomes of a call of unknown outcome when nothing else is said: made again where that is safe.
    #[must_use]
    pub const fn on_unknown(self) -> OnUnknown {
        match self {
            Self::ReadOnly | Self::Idempotent => OnUnknown::Retry,
            Self::Destructive => OnUnknown::Fail,
        }
    }
}

/// What becomes of a call of which nobody knows whether it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// It is made again, under the same idempotency key.
    Retry,
    /// The model and the user are told that nobody knows.
    Fail,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ToolConfig {
    pub kind: ToolKind,
    /// For one call.
    pub timeout: Duration,
    /// Whether a person is asked before each call.
    pub confirm: bool,
    /// Absent: what an MCP server says of its tool, else [`Effects::Destructive`].
    pub effects: Option<Effects>,
    /// Absent: as the effects have it.
    pub on_unknown: Option<OnUnknown>,
    /// Whether a call may be abandoned in the middle. Absent: if it is read-only.
    pub cancel_safe: Option<bool>,
}

impl ToolConfig {
    pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// A tool with everything else at its default.
    #[must_use]
    pub const fn new(kind: ToolKind) -> Self {
        Self {
            kind,
            timeout: Self::DEFAULT_TIMEOUT,
            confirm: false,
            effects: None,
            on_unknown: None,
            cancel_safe: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ToolKind {
    /// One tool: the arguments are posted as JSON.
    Http(HttpTool),
    /// As many tools as the server offers.
    Mcp(McpServer),
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpTool {
    pub url: String,
    /// By lower-case name; any of them may be a password.
    pub headers: BTreeMap<String, Secret>,
    pub description: String,
    /// JSON Schema of an object; it compiles.
    pub parameters: serde_json::Value,
}

impl HttpTool {
    /// The schema of a tool that takes no arguments.
    #[must_use]
    pub fn no_parameters() -> serde_json::Value {
        serde_json::json!({ "type": "object", "properties": {}, "additionalProperties": false })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct McpServer {
    pub transport: McpTransport,
    /// The server's tools that are offered, by its own names for them; empty: all.
    pub only: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum McpTransport {
    /// Streamable HTTP.
    Url {
        url: String,
        /// By lower-case name; any of them may be a password.
        headers: BTreeMap<String, Secret>,
    },
    /// A child process that is spoken to over its standard input and output.
    Command {
        program: PathBuf,
        arguments: Vec<Argument>,
        /// All that the child has of an environment, but for `PATH`.
        env: BTreeMap<String, Secret>,
        /// The child's working directory.
        folder: PathBuf,
    },
}

/// One word of a command, which may hold a password.
#[derive(Debug, Clone, PartialEq)]
pub struct Argument {
    pub text: Secret,
    /// Whether it is kept in the environment or a file, as a secret is.
    pub kept_elsewhere: bool,
}
