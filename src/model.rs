//! Calls to language models: one question in, one streamed answer out, whoever the provider is.
//!
//! Refuses to retry, to run tools, and to know of conversations, turns or the database: whoever asks decides what an answer
//! means. Invariant: an `Ok` is an answer that its server said was complete. One that was cut off on its way, however
//! complete it looks, is a [`ModelFailure`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::{ModelConfig, ResponderConfig};

mod answer;
mod anthropic;
mod breaker;
mod endpoint;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod openai;
pub mod tokens;

pub use endpoint::{BuildError, Endpoint, Timeouts};
pub use failure::{Fault, ModelFailure};

/// One message as model APIs know it. Serialized into the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum ModelMessage {
    User {
        content: String,
    },
    Assistant {
        content: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
    },
    /// What the call `call_id` of an earlier assistant message gave.
    Tool {
        call_id: String,
        content: String,
    },
}

/// A tool that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within its answer and never empty.
    pub id: String,
    pub name: String,
    /// The JSON text as the model wrote it, so perhaps no JSON at all; `{}` when it wrote nothing.
    pub arguments: String,
}

/// A tool as it is described to the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// 1 to 64 of `A-Z a-z 0-9 _ -`: what both OpenAI and Anthropic take.
    pub name: String,
    pub description: String,
    /// A JSON Schema of type object.
    pub parameters: Value,
}

/// What is asked. Two messages of one role in a row are joined on their way out, since several servers refuse them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelRequest {
    pub system: Option<String>,
    pub messages: Vec<ModelMessage>,
    pub tools: Vec<ToolSpec>,
    /// The last round: the tools are described, because the messages speak of them, but none may be called.
    pub tools_off: bool,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    Stop,
    /// The model waits for results. Decided by the presence of calls, whatever the server gave as the reason.
    ToolCalls,
    /// The limit of output was reached: the text is cut, and so may be the arguments of tool calls, none of which may run.
    Length,
    /// The provider withheld the rest; what came before it should not be shown either.
    ContentFilter,
    /// The content is the model's refusal.
    Refusal,
}

/// Tokens as the server counted them; some servers do not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The whole prompt, what was served from the provider's cache included.
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
}

/// A complete answer. Serialized into the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelResponse {
    pub content: String,
    pub tool_calls: Vec<ToolCall>,
    pub finish: Finish,
    pub usage: Usage,
    /// As the server names it, which may be more exact than what was asked for.
    pub model: Option<String>,
    pub response_id: Option<String>,
    /// From the beginning of the call to the first text or tool call; `None` when there was neither.
    pub first_token_ms: Option<u64>,
    pub duration_ms: u64,
}

impl ModelResponse {
    /// Neither a word nor a tool call: asking once more usually helps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content.trim().is_empty() && self.tool_calls.is_empty()
    }
}

/// The frame of one call.
#[derive(Clone, Copy)]
pub struct ModelCall<'a> {
    /// When the turn is given up, and the call with it.
    pub deadline: Instant,
    pub turn_id: Uuid,
    /// The turn's, counted from 1.
    pub attempt: u32,
    pub conversation_id: Uuid,
    /// Handed text as it comes, in order. Provisional: the call may still fail. Must not block.
    pub on_delta: &'a (dyn Fn(&str) + Send + Sync),
}

impl fmt::Debug for ModelCall<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ModelCall")
            .field("turn_id", &self.turn_id)
            .field("attempt", &self.attempt)
            .field("conversation_id", &self.conversation_id)
            .finish_non_exhaustive()
    }
}

/// A model behind some API. Dropping the future of [`Model::complete`] is safe at any moment.
#[async_trait::async_trait]
pub trait Model: Send + Sync + fmt::Debug + 'static {
    /// One call, streamed, within the provider's limits. Never retries by itself.
    ///
    /// # Errors
    /// See [`Fault`]. Whether the same call may succeed later: [`ModelFailure::is_retryable`].
    async fn complete(&self, call: &ModelCall<'_>, request: &ModelRequest) -> Result<ModelResponse, ModelFailure>;

    /// Provider, model and parameters, for the record of a turn; nothing secret.
    fn describe(&self) -> Value;

    /// Tokens that `request` will take of the model's context: an upper estimate, corrected by what the server counted in
    /// earlier calls of this process. The same request may so be given another number later.
    fn estimate_tokens(&self, request: &ModelRequest) -> u64 {
        tokens::of_request(request)
    }
}

/// The model of one `[responders.*]` table.
///
/// # Errors
/// When the address or the key cannot be used in a request, or the system has no CA certificates to check one by.
pub fn build(shared: &ResponderConfig, settings: &ModelConfig) -> Result<Arc<dyn Model>, BuildError> {
    Ok(Arc::new(Endpoint::new(shared, settings, Timeouts::default())?))
}

/// A call's arguments as the object that APIs take back. `Err`: the model wrote no JSON object; its text is wrapped into one,
/// under the name that Anthropic's documentation advises, so that the model sees what it did.
fn sendable_arguments(arguments: &str) -> Result<Value, Value> {
    match serde_json::from_str(arguments) {
        Ok(object @ Value::Object(_)) => Ok(object),
        _ => Err(serde_json::json!({ "INVALID_JSON": arguments })),
    }
}

/// Whole milliseconds, for what is recorded of a call.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
