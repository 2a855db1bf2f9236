//! Tools: what a model may do besides talking, and what is known of a call afterwards.
//!
//! Refuses to decide whether a call runs, runs again or is asked about first: that is the turn's, by the [`ToolPolicy`] that a
//! tool declares. Invariant: every call ends as a result, or as one of the three errors of [`ToolError`], which differ in what
//! is known: nothing happened, it was refused, nobody can tell. Dropping a call's future is safe for us; whether it is for the
//! world outside is [`ToolPolicy::cancel_safe`].
//!
//! A tool in Rust is a [`TypedTool`]:
//!
//! ```
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! use turnwise::tool::{Effects, ToolContext, ToolError, Toolbox, TypedTool, boxed};
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Parcel {
//!     /// The number on the receipt.
//!     number: u64,
//! }
//!
//! #[derive(Serialize)]
//! struct Place {
//!     city: String,
//! }
//!
//! struct Track;
//!
//! impl TypedTool for Track {
//!     type Args = Parcel;
//!     type Output = Place;
//!
//!     fn name(&self) -> &str {
//!         "track"
//!     }
//!
//!     fn description(&self) -> &str {
//!         "Tells where a parcel is."
//!     }
//!
//!     fn effects(&self) -> Effects {
//!         Effects::ReadOnly
//!     }
//!
//!     async fn call(&self, _context: &ToolContext, parcel: Parcel) -> Result<Place, ToolError> {
//!         match parcel.number {
//!             7 => Ok(Place { city: "Lyon".to_owned() }),
//!             _ => Err(ToolError::Failed { message: "there is no such parcel".to_owned() }),
//!         }
//!     }
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let tools = Toolbox::of(vec![boxed(Track)]).map_err(|errors| format!("{errors:?}"))?;
//! let tool = tools.get("track").ok_or("it is registered")?;
//! let arguments = tools.validate("track", r#"{"number": 7}"#)?;
//! let context = ToolContext::new("call-1", "turn:1:0");
//! assert_eq!(tool.call(&context, arguments).await?, serde_json::json!({ "city": "Lyon" }));
//! assert!(tools.validate("track", r#"{"number": "seven"}"#).is_err());
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run()).unwrap();
//! ```

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

pub use crate::config::{Effects, OnUnknown};
pub use crate::model::ToolSpec;

mod answer;
mod catalogue;
mod http;
mod mcp;
mod schema;
mod toolbox;
mod typed;
mod watched;

pub use toolbox::{BuildError, Toolbox};
pub use typed::{TypedTool, boxed};

/// What a tool declares about its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolPolicy {
    pub effects: Effects,
    /// Whether a person is asked before each call.
    pub confirm: bool,
    /// What becomes of a call of which nobody knows whether it happened.
    pub on_unknown: OnUnknown,
    /// For one call; the turn's deadline may end it earlier.
    pub timeout: Duration,
    /// Whether a call may be abandoned in the middle, because the turn is interrupted.
    pub cancel_safe: bool,
}

impl ToolPolicy {
    /// When nothing else is said, in the configuration as in Rust.
    pub const DEFAULT_TIMEOUT: Duration = crate::config::ToolConfig::DEFAULT_TIMEOUT;

    /// What follows from the effects alone: not asked about, tried again where that is safe, 30 s.
    #[must_use]
    pub const fn of(effects: Effects) -> Self {
        Self {
            effects,
            confirm: false,
            on_unknown: effects.on_unknown(),
            timeout: Self::DEFAULT_TIMEOUT,
            cancel_safe: matches!(effects, Effects::ReadOnly),
        }
    }
}

/// The frame a call runs in.
#[derive(Debug, Clone)]
pub struct ToolContext {
    pub turn_id: Uuid,
    pub conversation_id: Uuid,
    /// The model's own id of the call, for traces.
    pub call_id: String,
    /// `turn:step:ordinal`: the same whenever this call is made again. Visible ASCII.
    pub idempotency_key: String,
    /// When the turn is given up.
    pub deadline: Instant,
    /// W3C trace context of the turn; within [`Toolbox`] that of the call's own span takes its place.
    pub traceparent: Option<String>,
}

impl ToolContext {
    /// For calls outside of a turn, such as in a test: no turn, no conversation, no trace, an hour of time.
    #[must_use]
    pub fn new(call_id: &str, idempotency_key: &str) -> Self {
        Self {
            turn_id: Uuid::nil(),
            conversation_id: Uuid::nil(),
            call_id: call_id.to_owned(),
            idempotency_key: idempotency_key.to_owned(),
            deadline: Instant::now() + Duration::from_secs(3_600),
            traceparent: None,
        }
    }
}

/// Why a call has no result. The message is a sentence for the model, which may hold words of the tool's server: it belongs
/// into the conversation and the journal, never into a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// Known not to have happened, and worth trying again, not before `after` when the other side named a time.
    #[error("{message}")]
    Retryable { message: String, after: Option<Duration> },
    /// Refused or failed, and the model is told.
    #[error("{message}")]
    Failed { message: String },
    /// Nobody knows whether it happened.
    #[error("{message}")]
    Unknown { message: String },
}

impl ToolError {
    /// For metrics and spans: a closed set of words.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Retryable { .. } => "retryable",
            Self::Failed { .. } => "failed",
            Self::Unknown { .. } => "unknown",
        }
    }

    fn retryable(message: impl Into<String>) -> Self {
        Self::Retryable { message: message.into(), after: None }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into() }
    }

    fn unknown(message: impl Into<String>) -> Self {
        Self::Unknown { message: message.into() }
    }
}

/// A tool as the turn calls it. Implement [`TypedTool`] instead, unless the arguments are known at run time only.
#[async_trait::async_trait]
pub trait Tool: Send + Sync + 'static {
    /// What the model is told. The same at every call.
    fn spec(&self) -> ToolSpec;

    fn policy(&self) -> ToolPolicy;

    /// One call. `arguments` fit the schema of [`Tool::spec`].
    ///
    /// # Errors
    /// See [`ToolError`].
    async fn call(&self, context: &ToolContext, arguments: Value) -> Result<Value, ToolError>;
}
