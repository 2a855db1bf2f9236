//! What the tables `responders.*` hold once they are read, and the defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::secret::Secret;

#[derive(Debug, Clone, PartialEq)]
pub struct ResponderConfig {
    pub kind: ResponderKind,
    /// For one answer.
    pub timeout: Duration,
    /// Answers being made at once in this process.
    pub max_concurrency: usize,
    /// The newest messages of the conversation that are sent along, at most.
    pub history_messages: u32,
    /// Tokens of history that are sent along, at most.
    pub history_tokens: u32,
    /// What the model may call: names of `[tools.*]` tables, or of tools registered in Rust.
    pub tools: Vec<String>,
    /// Rounds of tool calls within one turn, before the model has to answer: 1 to 64.
    pub max_tool_rounds: u32,
    /// Name of the `[workflows.*]` table that leads the conversation and asks this responder where it says so.
    pub workflow: Option<String>,
}

impl ResponderConfig {
    /// A responder with everything else at its default.
    #[must_use]
    pub const fn new(kind: ResponderKind) -> Self {
        Self {
            kind,
            timeout: Duration::from_secs(60),
            max_concurrency: 256,
            history_messages: 40,
            history_tokens: 8_000,
            tools: Vec::new(),
            max_tool_rounds: 8,
            workflow: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum ResponderKind {
    Echo,
    /// `file`: patterns and answers, see `responder/script.rs`.
    Script {
        file: PathBuf,
    },
    Model(ModelConfig),
    Http(HttpService),
}

/// A service that answers turns over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpService {
    pub url: String,
    /// Sent with every call, by lower-case name; the bearer token is one of them.
    pub headers: BTreeMap<String, Secret>,
}

/// The API that a model is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelApi {
    /// OpenAI's Chat Completions, which most servers speak.
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
}

impl ModelApi {
    /// As `kind` in the configuration, and as `gen_ai.provider.name` on spans.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub api: ModelApi,
    /// Without a slash at the end.
    pub base_url: String,
    pub api_key: Option<Secret>,
    pub model: String,
    pub system_prompt: Option<String>,
    /// 0 to 2; Anthropic's to 1.
    pub temperature: Option<f64>,
    pub max_output_tokens: Option<u32>,
}

impl ModelConfig {
    pub(in crate::config) const ANTHROPIC_BASE_URL: &str = "https://api.anthropic.com";
}
