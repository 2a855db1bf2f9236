//! The public [`Responder`] trait: a bot's brain, handed one turn at a time.
//!
//! Refuses to persist or send anything: a turn's outcome is data, and only the commit makes it real. Dropping the future of
//! [`Responder::respond`] is safe at any moment. The built-in responders live below this file, one kind each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::{Config, ResponderConfig, ResponderKind};
use crate::message::{Attachment, ConversationKey, InboundMessage, Platform, ReplyMessage, Role, Sender};
use crate::model;
use crate::store::{NewAction, StoredMessage};
pub use crate::stream::ToolState;
use crate::tool::Toolbox;

pub mod assistant;
mod deltas;
pub mod echo;
pub mod history;
pub mod http;
pub mod journal;
pub mod request;
pub mod script;
pub mod workflow;

use assistant::{Assistant, Tools};
pub use deltas::Deltas;
pub(crate) use deltas::Draft;
use echo::Echo;
use http::HttpResponder;
use journal::Journal;
use script::{Script, ScriptError};
use workflow::WorkflowResponder;

/// What a responder is told about the conversation.
#[derive(Debug, Clone, Serialize)]
pub struct ConversationView {
    pub id: Uuid,
    pub key: ConversationKey,
    pub platform: Platform,
    pub metadata: Map<String, Value>,
}

/// One new message of the turn, with who wrote it.
#[derive(Debug, Clone, Serialize)]
pub struct NewUserMessage {
    #[serde(flatten)]
    pub message: InboundMessage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<Sender>,
}

/// One turn: the new messages and what went before. The history does not contain the new messages; it is pruned to the
/// responder's budget and starts with a user message.
#[derive(Debug, Clone, Serialize)]
pub struct TurnRequest {
    pub conversation: ConversationView,
    pub messages: Vec<NewUserMessage>,
    pub history: Arc<[StoredMessage]>,
    /// What a workflow adds to the responder's own instructions, for this turn alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// The frame a turn runs in.
#[derive(Debug, Clone)]
pub struct TurnContext {
    pub turn_id: Uuid,
    /// Counts from 1.
    pub attempt: u32,
    /// When the turn is given up.
    pub deadline: Instant,
    /// Cancelled when the turn must stop: shutdown, loss of ownership.
    pub cancellation: CancellationToken,
    /// What the turn has done so far; see [`TurnContext::step`].
    pub journal: Journal,
    /// Where text may go while it is being made. Provisional: only the reply counts.
    pub deltas: Deltas,
}

impl TurnContext {
    /// A first attempt with a minute to go, a journal in memory and nobody listening: for tests of responders.
    #[must_use]
    pub fn new(turn_id: Uuid) -> Self {
        Self {
            turn_id,
            attempt: 1,
            deadline: Instant::now() + Duration::from_secs(60),
            cancellation: CancellationToken::new(),
            journal: Journal::in_memory(turn_id),
            deltas: Deltas::default(),
        }
    }
}

/// What the turn shall say and change, once committed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    pub messages: Vec<ReplyMessage>,
    /// What came before the messages and belongs into the history with them: tool calls and their results.
    pub transcript: Vec<TranscriptMessage>,
    /// Tool calls that from now on wait for a person's word.
    pub actions: Vec<NewAction>,
    /// RFC 7386 merge patch for the conversation's metadata.
    pub metadata: Option<Map<String, Value>>,
    /// The new `metadata.workflow_state`.
    pub workflow_state: Option<Value>,
    /// Give the conversation to a person: its status becomes `human`.
    pub handoff: bool,
    /// The buttons under the message where one was pressed can do nothing any more.
    pub spent_buttons: bool,
}

impl Reply {
    /// One plain message.
    #[must_use]
    pub fn text(content: impl Into<String>) -> Self {
        Self { messages: vec![ReplyMessage::text(content)], ..Self::default() }
    }
}

/// A message of the turn that the user does not see.
#[derive(Debug, Clone, PartialEq)]
pub struct TranscriptMessage {
    /// `assistant` with tool calls, or `tool` with a result.
    pub role: Role,
    pub content: String,
    /// As [`StoredMessage::tool`].
    pub tool: Option<Value>,
}

/// Why a turn has no reply. Messages are for operators and must not hold secrets or message bodies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TurnError {
    /// Worth trying again, not before `after` when the other side named a time.
    #[error("{message}")]
    Retryable { message: String, after: Option<Duration> },
    /// Trying again cannot help. `user_message` replaces the bot's `failure_reply`.
    #[error("{message}")]
    Terminal { message: String, user_message: Option<String> },
    /// The turn was told to stop, and did.
    #[error("the turn was cancelled")]
    Cancelled,
}

/// A bot's brain. Implementations hold no per-conversation state: everything a turn may rely on is in the request.
#[async_trait::async_trait]
pub trait Responder: Send + Sync + 'static {
    /// Answers one turn.
    ///
    /// # Errors
    /// See [`TurnError`]; the turn's attempts are counted by the caller.
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError>;

    /// Whether it tells somebody outside of a turn under its [`TurnContext::turn_id`]. Then the turn keeps its messages from
    /// before the first attempt on: run again after a crash it is of the same ones, whatever has come meanwhile, so that one id
    /// means the same work to whoever was told.
    fn keeps_messages(&self) -> bool {
        false
    }

    /// What it is made of, such as model and parameters, for the record of its turns. No secret.
    fn describe(&self) -> Value {
        Value::Null
    }
}

/// The responders of a deployment, by name.
pub type Responders = BTreeMap<String, Arc<dyn Responder>>;

/// A responder that cannot be built from its configuration. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("responders.{name}.file: cannot read {}; name a file that this process may read", file.display())]
    ScriptUnreadable {
        name: String,
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("responders.{name}.file: the script is not valid")]
    Script {
        name: String,
        #[source]
        source: ScriptError,
    },
    #[error("responders.{name}.base_url: not an address; write one like http://127.0.0.1:11434/v1")]
    BaseUrl { name: String },
    #[error(
        "responders.{name}.api_key: has characters that no HTTP header may hold; check for a line break at its end"
    )]
    ApiKey { name: String },
    #[error("responders.{name}.url: not an address; write one like http://127.0.0.1:9000/turn")]
    Url { name: String },
    #[error("responders.{name}.headers: hold a name or value that no HTTP header may have")]
    Headers { name: String },
    #[error("responders.{name}: cannot set up an HTTP client; check that the system's CA certificates are installed")]
    HttpClient {
        name: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("responders.{name}: also registered in Rust; rename one of the two")]
    Doubled { name: String },
    #[error("bots.{bot}.responder: there is no responder \"{responder}\"; there is {known}")]
    Unknown { bot: String, responder: String, known: String },
}

impl BuildError {
    pub(crate) fn of_model(name: &str, error: model::BuildError) -> Self {
        let name = name.to_owned();
        match error {
            model::BuildError::BaseUrl => Self::BaseUrl { name },
            model::BuildError::ApiKey => Self::ApiKey { name },
            model::BuildError::HttpClient(source) => Self::HttpClient { name, source },
        }
    }
}

/// Builds the responders of a deployment: one per `[responders.*]` table, and those registered in Rust. Script files are
/// read and checked here, and every bot must find its responder.
///
/// # Errors
/// Every problem found, never none.
pub fn build(config: &Config, registered: Responders, toolbox: &Toolbox) -> Result<Responders, Vec<BuildError>> {
    let mut responders = registered;
    let mut errors = Vec::new();
    for (name, settings) in &config.responders {
        if responders.contains_key(name) {
            errors.push(BuildError::Doubled { name: name.clone() });
            continue;
        }
        match build_one(name, settings, toolbox) {
            Ok(responder) => drop(responders.insert(name.clone(), led(config, settings, responder))),
            Err(error) => errors.push(error),
        }
    }
    for (bot, settings) in &config.bots {
        // A table that could not be built was reported above, under its own name.
        if !responders.contains_key(&settings.responder) && !config.responders.contains_key(&settings.responder) {
            let known = known_names(&responders);
            errors.push(BuildError::Unknown { bot: bot.clone(), responder: settings.responder.clone(), known });
        }
    }
    if errors.is_empty() { Ok(responders) } else { Err(errors) }
}

/// The script of `turnwise dev`, as it is written beside its database, to be changed by whoever tries it out.
pub const DEMO_SCRIPT: &str = include_str!("responder/demo.toml");

fn build_one(name: &str, settings: &ResponderConfig, toolbox: &Toolbox) -> Result<Arc<dyn Responder>, BuildError> {
    match &settings.kind {
        ResponderKind::Echo => Ok(Arc::new(Echo)),
        ResponderKind::Script { file } => {
            let text = std::fs::read_to_string(file).map_err(|source| BuildError::ScriptUnreadable {
                name: name.to_owned(),
                file: file.clone(),
                source,
            })?;
            let script = Script::parse(&file.display().to_string(), &text)
                .map_err(|source| BuildError::Script { name: name.to_owned(), source })?;
            Ok(Arc::new(script))
        }
        ResponderKind::Http(service) => Ok(Arc::new(HttpResponder::new(name, settings, service)?)),
        ResponderKind::Model(model) => {
            let prompt = model.system_prompt.clone();
            let model = model::build(settings, model).map_err(|error| BuildError::of_model(name, error))?;
            let assistant = Assistant::new(model, prompt);
            if settings.tools.is_empty() {
                return Ok(Arc::new(assistant));
            }
            let (names, rounds_max) = (settings.tools.clone(), settings.max_tool_rounds);
            Ok(Arc::new(assistant.with_tools(Tools { toolbox: toolbox.clone(), names, rounds_max })))
        }
    }
}

/// With the workflow around it that its table names.
fn led(config: &Config, settings: &ResponderConfig, responder: Arc<dyn Responder>) -> Arc<dyn Responder> {
    let workflow = settings.workflow.as_ref().and_then(|name| config.workflows.get(name));
    match workflow {
        Some(workflow) => Arc::new(WorkflowResponder::new(workflow.clone(), responder)),
        None => responder,
    }
}

fn known_names(responders: &Responders) -> String {
    if responders.is_empty() {
        return "none: add a [responders.NAME] table".to_owned();
    }
    responders.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Waits for `work`, but not past the turn's cancellation or deadline.
async fn within<T>(context: &TurnContext, work: impl Future<Output = T>) -> Result<T, TurnError> {
    tokio::select! {
        biased;
        () = context.cancellation.cancelled() => Err(TurnError::Cancelled),
        done = work => Ok(done),
        () = tokio::time::sleep_until(context.deadline) => {
            Err(TurnError::Retryable { message: "the turn's time ran out".to_owned(), after: None })
        }
    }
}

/// A message as text: its own, then each attachment as `[kind]`, one a line.
fn as_text(text: &str, attachments: &[Attachment]) -> String {
    let mut whole = text.to_owned();
    for attachment in attachments {
        if !whole.is_empty() {
            whole.push('\n');
        }
        whole.push_str(&format!("[{}]", attachment.kind));
    }
    whole
}

/// The turn's new messages as one text, joined by newlines.
fn new_text(request: &TurnRequest) -> String {
    let texts = request.messages.iter().map(|new| as_text(&new.message.text, &new.message.attachments));
    texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
}
