//! Who answers in a replay: a responder of the configuration, asked about one recorded turn.
//!
//! Refuses responders written in Rust, of which nobody knows what they do, and hands nobody a journal that is durable, a tool
//! that acts, or a way to send: an answer is data. Invariant: a model sees the recorded question, under its own instructions.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backoff::backoff::Backoff as _;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::oracle::{Oracle, RecordedTool};
use super::past::{Answer, Call, Recording, joined};
use super::teacher::Teacher;
use crate::config::{Config, ResponderConfig, ResponderKind, Secret, ToolConfig, ToolKind, Workflow};
use crate::model::{self, Model, ModelCall, ModelFailure, ModelRequest, ModelResponse, ToolSpec};
use crate::responder::assistant::{Assistant, Tools};
use crate::responder::history::Budget;
use crate::responder::workflow::WorkflowResponder;
use crate::responder::{self, BuildError, Responder, Responders, TurnContext, TurnError, TurnRequest};
use crate::tool::Toolbox;
use crate::turn;

/// Tries at one turn; what fails more often is an error of the candidate.
const TRIES_MAX: u32 = 4;

/// The longest pause between two tries, unless the other side names a longer one.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// By which a service can tell a replay from the real thing.
const REPLAY_HEADER: &str = "turnwise-replay";

/// A responder that can be asked about recorded turns.
pub(super) struct Candidate {
    kind: Kind,
    settings: ResponderConfig,
    workflow: Option<Workflow>,
    /// The tables that it may use.
    tools: BTreeMap<String, ToolConfig>,
    turn_timeout: Duration,
}

enum Kind {
    Model {
        model: Arc<dyn Model>,
        prompt: Option<String>,
    },
    /// One without tools: a script, a service, an echo.
    Other(Arc<dyn Responder>),
}

/// A recorded turn, ready to be asked about.
pub(super) struct Case {
    pub(super) request: TurnRequest,
    pub(super) recording: Arc<Recording>,
    /// The tools that a person was asked about.
    pub(super) confirmed: HashSet<String>,
}

/// What a candidate made of a turn.
pub(super) struct Attempt {
    pub(super) answer: Answer,
    /// Calls that were not made when the turn was recorded; empty where the recorded rounds are gone through.
    pub(super) drift: Vec<Call>,
    /// Of every round and try, also where the server does not count.
    pub(super) tokens: u64,
}

impl Candidate {
    /// `None` when the configuration has no such responder.
    ///
    /// # Errors
    /// When it cannot be built.
    pub(super) fn build(config: &Config, name: &str) -> Result<Option<Self>, Vec<BuildError>> {
        let Some(settings) = config.responders.get(name) else { return Ok(None) };
        let kind = match &settings.kind {
            ResponderKind::Model(model) => {
                let built = model::build(settings, model).map_err(|error| vec![BuildError::of_model(name, error)])?;
                Kind::Model { model: built, prompt: model.system_prompt.clone() }
            }
            _ => Kind::Other(alone(config, name, settings)?),
        };
        let workflow = settings.workflow.as_ref().and_then(|workflow| config.workflows.get(workflow)).cloned();
        let tools = settings.tools.iter().filter_map(|name| Some((name.clone(), config.tools.get(name)?.clone())));
        let turn_timeout = config.worker.turn_timeout;
        Ok(Some(Self { kind, settings: settings.clone(), workflow, tools: tools.collect(), turn_timeout }))
    }

    pub(super) fn budget(&self) -> Budget {
        Budget::from(&self.settings)
    }

    /// Whether the recorded question is all that it needs, so that neither the history nor the stream has to be read.
    pub(super) fn needs_only(&self, recording: &Recording) -> bool {
        matches!(self.kind, Kind::Model { .. }) && self.workflow.is_none() && recording.opening().is_some()
    }

    /// Whether who wrote, and which button was pressed, can matter to it.
    pub(super) fn needs_stream(&self) -> bool {
        !matches!(self.kind, Kind::Model { .. }) || self.workflow.is_some()
    }

    /// Asks about one turn. `None` when `stop` was cancelled before there was an answer.
    pub(super) async fn ask(&self, case: &Case, free_run: bool, stop: &CancellationToken) -> Option<Attempt> {
        let oracle = Oracle::new(Arc::clone(&case.recording));
        let watch = Arc::new(Watch::default());
        let mut answer = Answer::default();
        match self.responder(case, free_run, &oracle, &watch) {
            Err(message) => answer.error = Some(message),
            Ok(responder) => {
                let started = Instant::now();
                let said = self.converse(responder.as_ref(), case, stop).await?;
                answer.latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                match said {
                    Ok(reply) => {
                        answer.reply = joined(reply.messages.iter().map(|message| message.content.as_str()));
                        answer.handoff = reply.handoff;
                        let asked = reply.actions.into_iter().map(|action| action.tool);
                        answer.questions = asked.collect::<BTreeSet<_>>().into_iter().collect();
                    }
                    Err(message) => answer.error = Some(message),
                }
            }
        }
        let seen = watch.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Kind::Model { .. } = self.kind {
            answer.latency_ms = seen.latency_ms;
        }
        answer.calls.clone_from(&seen.calls);
        (answer.input_tokens, answer.output_tokens) = (seen.input_tokens, seen.output_tokens);
        Some(Attempt { answer, drift: oracle.drift(), tokens: seen.input_tokens + seen.output_tokens })
    }

    /// Tries until there is an answer, or none to be had; `None` when it was stopped.
    async fn converse(
        &self,
        responder: &dyn Responder,
        case: &Case,
        stop: &CancellationToken,
    ) -> Option<Result<responder::Reply, String>> {
        // An id of its own: a service that knows the turn's would answer what it answered then.
        let mut context = TurnContext::new(Uuid::now_v7());
        context.cancellation = stop.clone();
        let mut pause = turn::retry(PAUSE_MAX);
        loop {
            context.deadline = Instant::now() + self.turn_timeout;
            let after = match stop.run_until_cancelled(responder.respond(&context, &case.request)).await? {
                Ok(reply) => return Some(Ok(reply)),
                Err(TurnError::Retryable { after, .. }) if context.attempt < TRIES_MAX => after,
                Err(error) => return Some(Err(error.to_string())),
            };
            let wait = pause.next_backoff().unwrap_or(PAUSE_MAX).max(after.unwrap_or_default());
            stop.run_until_cancelled(tokio::time::sleep(wait)).await?;
            context.attempt += 1;
        }
    }

    /// Who is asked about this turn.
    fn responder(
        &self,
        case: &Case,
        free_run: bool,
        oracle: &Arc<Oracle>,
        watch: &Arc<Watch>,
    ) -> Result<Arc<dyn Responder>, String> {
        let inner: Arc<dyn Responder> = match &self.kind {
            Kind::Other(responder) => Arc::clone(responder),
            Kind::Model { model, prompt } => {
                let opening = case.recording.opening().filter(|_| free_run).map(<[_]>::to_vec);
                let model = Arc::new(Watched {
                    inner: Arc::clone(model),
                    watch: Arc::clone(watch),
                    opening: opening.map(|opening| (opening, Mutex::default())),
                });
                let tools = self.recorded_tools(case, oracle);
                if !free_run && case.recording.rounds() > 0 {
                    let confirm = tools.iter().filter(|tool| tool.confirm).map(|tool| tool.spec.name.clone());
                    Arc::new(Teacher {
                        model,
                        prompt: prompt.clone(),
                        confirm: confirm.collect(),
                        tools: tools.into_iter().map(|tool| tool.spec).collect(),
                        rounds_max: self.settings.max_tool_rounds,
                        recording: Arc::clone(&case.recording),
                        answers: Mutex::default(),
                    })
                } else {
                    Arc::new(assistant(model, prompt.clone(), tools, self.settings.max_tool_rounds)?)
                }
            }
        };
        Ok(match &self.workflow {
            Some(workflow) => Arc::new(WorkflowResponder::new(workflow.clone(), inner)),
            None => inner,
        })
    }

    /// The tools as its tables describe them; those of MCP servers as they were when the turn was recorded, because servers
    /// are not asked.
    fn recorded_tools(&self, case: &Case, oracle: &Arc<Oracle>) -> Vec<RecordedTool> {
        let mut tools = Vec::new();
        let tool = |spec: ToolSpec, confirm: bool| {
            let confirm = confirm || case.confirmed.contains(&spec.name);
            RecordedTool { spec, confirm, oracle: Arc::clone(oracle) }
        };
        let mut offered_by_servers = false;
        for name in &self.settings.tools {
            let Some(table) = self.tools.get(name) else { continue };
            match &table.kind {
                ToolKind::Http(http) => {
                    let (description, parameters) = (http.description.clone(), http.parameters.clone());
                    tools.push(tool(ToolSpec { name: name.clone(), description, parameters }, table.confirm));
                }
                ToolKind::Mcp(_) if !offered_by_servers => {
                    offered_by_servers = true;
                    let offered = case.recording.offered().iter().filter(|spec| !self.is_http(&spec.name));
                    tools.extend(offered.map(|spec| tool(spec.clone(), table.confirm)));
                }
                ToolKind::Mcp(_) => {}
            }
        }
        tools
    }

    fn is_http(&self, name: &str) -> bool {
        self.tools.get(name).is_some_and(|table| matches!(table.kind, ToolKind::Http(_)))
    }
}

fn assistant(
    model: Arc<Watched>,
    prompt: Option<String>,
    tools: Vec<RecordedTool>,
    rounds_max: u32,
) -> Result<Assistant, String> {
    let assistant = Assistant::new(model, prompt);
    if tools.is_empty() {
        return Ok(assistant);
    }
    let names = tools.iter().map(|tool| tool.spec.name.clone()).collect();
    let tools = tools.into_iter().map(|tool| Arc::new(tool) as Arc<dyn crate::tool::Tool>);
    let toolbox = Toolbox::of(tools.collect()).map_err(|errors| {
        let texts = errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        format!("the recorded tools cannot be used: {}", texts.join("; "))
    })?;
    Ok(assistant.with_tools(Tools { toolbox, names, rounds_max }))
}

/// A responder that uses no tools, built by itself: the bots and other tables do not matter.
fn alone(config: &Config, name: &str, settings: &ResponderConfig) -> Result<Arc<dyn Responder>, Vec<BuildError>> {
    let mut settings = ResponderConfig { workflow: None, tools: Vec::new(), ..settings.clone() };
    if let ResponderKind::Http(service) = &mut settings.kind {
        service.headers.insert(REPLAY_HEADER.to_owned(), Secret::new("1".to_owned()));
    }
    let (responders, bots) = (BTreeMap::from([(name.to_owned(), settings)]), BTreeMap::new());
    let config = Config { responders, bots, tools: BTreeMap::new(), ..config.clone() };
    // No tools are no trouble.
    let nothing = Toolbox::of(Vec::new()).map_err(|_| Vec::new())?;
    let mut built = responder::build(&config, Responders::new(), &nothing)?;
    built.remove(name).ok_or_else(Vec::new)
}

/// What a model is seen to answer.
#[derive(Default)]
struct Watch {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: Vec<Call>,
    latency_ms: u64,
    input_tokens: u64,
    output_tokens: u64,
}

/// A model whose answers are counted, and whose first question is the recorded one where there is one.
struct Watched {
    inner: Arc<dyn Model>,
    watch: Arc<Watch>,
    /// The recorded messages, and how many of its own they take the place of, once that is known.
    opening: Option<(Vec<model::ModelMessage>, Mutex<Option<usize>>)>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watched").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl Model for Watched {
    async fn complete(&self, call: &ModelCall<'_>, request: &ModelRequest) -> Result<ModelResponse, ModelFailure> {
        let mut request = request.clone();
        if let Some((recorded, own)) = &self.opening {
            let own = *own.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(request.messages.len());
            let since = request.messages.split_off(own.min(request.messages.len()));
            request.messages = recorded.iter().cloned().chain(since).collect();
        }
        let answer = self.inner.complete(call, &request).await?;
        let mut seen = self.watch.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.calls.extend(answer.tool_calls.iter().map(Call::of));
        seen.latency_ms += answer.duration_ms;
        let said = || model::tokens::of_bytes(answer.content.len());
        seen.input_tokens += answer.usage.input_tokens.unwrap_or_else(|| self.inner.estimate_tokens(&request));
        seen.output_tokens += answer.usage.output_tokens.unwrap_or_else(said);
        Ok(answer)
    }

    fn describe(&self) -> Value {
        self.inner.describe()
    }
}
