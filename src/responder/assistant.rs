//! The responder of the kinds `openai` and `anthropic`: a model is asked, its tools are called, and so on round by round until
//! it answers.
//!
//! Refuses to retry by itself: a busy or broken server is a [`TurnError::Retryable`], and the lane's backoff is the one retry
//! layer; what was done so far is in the journal then. What it does ask again, once each and at once, is what another wait
//! would not mend: a shorter prompt after "context too long", and the same question after an empty answer. Invariants: a
//! reply is never blank; a model's answer is durable before any of its tools is called; a round of which a tool was begun
//! stays, whatever has changed when the turn is run again.

use std::sync::Arc;

use serde_json::{Value, json};

use self::calls::Calls;
use self::confirm::{Confirmations, Decided};
use self::plan::{Bounds, Plan};
use self::talk::{Round, Talk};
use super::journal::hash;
use super::{Reply, Responder, TurnContext, TurnError, TurnRequest, within};
use crate::message::Timestamp;
use crate::model::{Fault, Finish, Model, ModelCall, ModelFailure, ModelRequest, ModelResponse, ToolSpec};
use crate::store::{JournalEntry, StepKind, StepStatus};
use crate::tool::Toolbox;

mod calls;
pub mod confirm;
mod plan;
mod talk;

pub use plan::{CALLS_MAX, REPEATS_MAX};

/// One `[responders.*]` table that names a model.
#[derive(Debug)]
pub struct Assistant {
    model: Arc<dyn Model>,
    system_prompt: Option<String>,
    tools: Option<Tools>,
}

/// What an assistant may use.
#[derive(Debug, Clone)]
pub struct Tools {
    pub toolbox: Toolbox,
    /// Tools by name; that of an MCP server stands for all of its tools.
    pub names: Vec<String>,
    /// Rounds of calls before the model has to answer.
    pub rounds_max: u32,
}

impl Assistant {
    /// A model without tools.
    #[must_use]
    pub fn new(model: Arc<dyn Model>, system_prompt: Option<String>) -> Self {
        Self { model, system_prompt, tools: None }
    }

    #[must_use]
    pub fn with_tools(self, tools: Tools) -> Self {
        Self { tools: Some(tools), ..self }
    }

    async fn converse(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let mut talk = Talk::new(request);
        let calls = Calls { context, conversation_id: request.conversation.id };
        let Some(tools) = &self.tools else {
            let answer = self.answer(context, request, &mut talk, &[], true).await?;
            return reply(answer, &talk);
        };
        let confirmations = Confirmations { context, request, toolbox: &tools.toolbox };
        match confirmations.decide().await? {
            Decided::Nothing => self.rounds(context, request, talk, tools).await,
            Decided::Notice { text, spent } => Ok(Reply { spent_buttons: spent, ..Reply::text(text) }),
            Decided::Call { call, plan } => {
                let results = calls.run("confirmed", std::slice::from_ref(&call), vec![plan]).await?;
                talk.add(Round { content: String::new(), calls: vec![call], results });
                let reply = self.rounds(context, request, talk, tools).await?;
                Ok(Reply { spent_buttons: true, ..reply })
            }
        }
    }

    /// The model is asked and its tools are called, until it answers or a person has to be asked.
    async fn rounds(
        &self,
        context: &TurnContext,
        request: &TurnRequest,
        mut talk: Talk,
        tools: &Tools,
    ) -> Result<Reply, TurnError> {
        let calls = Calls { context, conversation_id: request.conversation.id };
        let offered = tools.toolbox.specs(&tools.names);
        let mut bounds = Bounds::new(tools.rounds_max);
        loop {
            let round = talk.rounds_asked();
            let tools_off = !bounds.may_call(round);
            let answer = self.answer(context, request, &mut talk, &offered, tools_off).await?;
            if answer.tool_calls.is_empty() || tools_off {
                return reply(answer, &talk);
            }
            if !answer.content.is_empty() {
                // What a model says before it calls a tool is a paragraph of its own to those who watch.
                context.deltas.send("\n\n");
            }
            let obstacle = confirm::obstacle(request);
            let plan = |call| match (bounds.plan(call, &tools.toolbox, &offered), obstacle) {
                (Plan::Confirm, Some(sentence)) => Plan::Refuse(sentence.to_owned()),
                (plan, _) => plan,
            };
            let plans: Vec<Plan> = answer.tool_calls.iter().map(plan).collect();
            let asked = confirm::questions(&answer, &plans, request);
            let results = calls.run(&round.to_string(), &answer.tool_calls, plans).await?;
            let content = answer.content.clone();
            talk.add(Round { content: answer.content, calls: answer.tool_calls, results });
            if let Some((messages, actions)) = asked {
                tracing::debug!(
                    actions = actions.len(),
                    content_bytes = content.len(),
                    "the turn ends with a question"
                );
                return Ok(Reply { messages, actions, transcript: talk.transcript(), ..Reply::default() });
            }
        }
    }

    /// The model's answer in this round: the recorded one, if it is an answer to the same question or some of its tools were
    /// begun already, else a new one, recorded before anything follows from it.
    async fn answer(
        &self,
        context: &TurnContext,
        request: &TurnRequest,
        talk: &mut Talk,
        tools: &[ToolSpec],
        tools_off: bool,
    ) -> Result<ModelResponse, TurnError> {
        let round = talk.rounds_asked();
        let step = format!("{round}.model");
        let question = self.question(talk, tools, tools_off);
        let asked = hash(&serde_json::to_vec(&(self.model.describe(), &question)).unwrap_or_default());
        let recorded = context.journal.find(&step).await?.filter(|entry| entry.status == StepStatus::Done);
        if let Some(entry) = recorded
            && (entry.request_hash == asked || context.journal.any(|entry| is_tool_since(entry, round)).await)
            && let Some(answer) = entry.result.and_then(|result| serde_json::from_value(result).ok())
        {
            if entry.request.is_some_and(|request| request["shortened"] == json!(true)) {
                talk.shorten();
            }
            talk.asked();
            return Ok(answer);
        }
        let started_at = Timestamp::now();
        let (answer, shortened) = self.ask(context, request, talk, question, (tools, tools_off)).await?;
        // Later rounds follow from the first one; only a question that was shortened cannot be made again from the rest.
        let request = (round == 0 || shortened)
            .then(|| json!({ "shortened": shortened, "question": self.question(talk, tools, tools_off) }));
        let entry = JournalEntry {
            step,
            ordinal: 0,
            kind: StepKind::Model,
            status: StepStatus::Done,
            request_hash: asked,
            request,
            result: serde_json::to_value(&answer).ok(),
            started_at,
            ended_at: Some(Timestamp::now()),
        };
        context.journal.record(entry).await?;
        talk.asked();
        Ok(answer)
    }

    /// At most three calls: one, one with a shorter prompt, one more after an empty answer.
    async fn ask(
        &self,
        context: &TurnContext,
        request: &TurnRequest,
        talk: &mut Talk,
        mut question: ModelRequest,
        (tools, tools_off): (&[ToolSpec], bool),
    ) -> Result<(ModelResponse, bool), TurnError> {
        let call = ModelCall {
            deadline: context.deadline,
            turn_id: context.turn_id,
            attempt: context.attempt,
            conversation_id: request.conversation.id,
            on_delta: &|text| context.deltas.send(text),
        };
        let (mut shortened, mut asked_again) = (false, false);
        loop {
            match self.model.complete(&call, &question).await {
                Ok(answer) if is_missing(&answer) && !asked_again => asked_again = true,
                Ok(answer) => return usable(answer).map(|answer| (answer, shortened)),
                Err(failure) if failure.fault == Fault::ContextTooLong && talk.shorten() => {
                    shortened = true;
                    question = self.question(talk, tools, tools_off);
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    fn question(&self, talk: &Talk, tools: &[ToolSpec], tools_off: bool) -> ModelRequest {
        ModelRequest {
            system: talk.instructions(self.system_prompt.as_deref()),
            messages: talk.messages(),
            tools: tools.to_vec(),
            tools_off: tools_off && !tools.is_empty(),
        }
    }
}

#[async_trait::async_trait]
impl Responder for Assistant {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        within(context, self.converse(context, request)).await?
    }

    fn describe(&self) -> Value {
        self.model.describe()
    }
}

impl From<ModelFailure> for TurnError {
    fn from(failure: ModelFailure) -> Self {
        match failure.is_retryable() {
            true => Self::Retryable { message: failure.message, after: failure.after },
            false => terminal(&failure.message),
        }
    }
}

/// Whether the step is a call of a tool in this round or a later one: those follow from the answer to this round's question.
fn is_tool_since(entry: &JournalEntry, round: u32) -> bool {
    let of_round = entry.step.split_once(".tool.").and_then(|(round, _)| round.parse::<u32>().ok());
    of_round.is_some_and(|of_round| of_round >= round)
}

/// Whether the model said nothing although nobody kept it from it.
fn is_missing(answer: &ModelResponse) -> bool {
    answer.is_empty() && !matches!(answer.finish, Finish::ContentFilter | Finish::Refusal)
}

/// Refuses what nothing may follow from. A refusal with words is an answer.
fn usable(answer: ModelResponse) -> Result<ModelResponse, TurnError> {
    match answer.finish {
        Finish::ContentFilter => Err(terminal("the model server's content filter withheld the answer")),
        Finish::Refusal if answer.is_empty() => Err(terminal("the model refused to answer")),
        Finish::Length if !answer.tool_calls.is_empty() => {
            Err(terminal("the model's tool calls were cut off; raise max_output_tokens"))
        }
        _ if answer.is_empty() => {
            Err(terminal("the model's answer was empty, twice; if it is a reasoning model, raise max_output_tokens"))
        }
        _ => Ok(answer),
    }
}

fn reply(answer: ModelResponse, talk: &Talk) -> Result<Reply, TurnError> {
    if answer.content.trim().is_empty() {
        return Err(terminal("the model asked for tools where none are left to call, and said nothing"));
    }
    Ok(Reply { transcript: talk.transcript(), ..Reply::text(answer.content) })
}

fn terminal(message: &str) -> TurnError {
    TurnError::Terminal { message: message.to_owned(), user_message: None }
}

#[cfg(test)]
mod tests;
