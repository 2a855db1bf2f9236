//! A model that is led through the recorded rounds of a turn: each is asked of it anew, and whatever it answers, the next one
//! begins where the recorded one began.
//!
//! Refuses to call tools; it knows of no toolbox. Invariant: no answer of the model's changes a later question.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::past::Recording;
use crate::message::{ReplyMessage, Timestamp};
use crate::model::{Model, ModelCall, ModelRequest, ModelResponse, ToolSpec};
use crate::responder::assistant::confirm;
use crate::responder::{Reply, Responder, TurnContext, TurnError, TurnRequest};
use crate::store::NewAction;

pub(super) struct Teacher<M> {
    pub(super) model: Arc<M>,
    pub(super) prompt: Option<String>,
    pub(super) tools: Vec<ToolSpec>,
    /// Those that a person would be asked about.
    pub(super) confirm: HashSet<String>,
    pub(super) rounds_max: u32,
    pub(super) recording: Arc<Recording>,
    /// Of the rounds so far: a turn that is tried again goes on where it failed.
    pub(super) answers: Mutex<Vec<ModelResponse>>,
}

#[async_trait::async_trait]
impl<M: Model> Responder for Teacher<M> {
    /// The reply is that of the last round; which tools were asked for in the others is for whoever watches the model.
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let call = ModelCall {
            deadline: context.deadline,
            turn_id: context.turn_id,
            attempt: context.attempt,
            conversation_id: request.conversation.id,
            on_delta: &|_| (),
        };
        let instructions: Vec<&str> = self.prompt.as_deref().into_iter().chain(request.prompt.as_deref()).collect();
        let system = (!instructions.is_empty()).then(|| instructions.join("\n\n"));
        let mut reply = Reply::default();
        for round in 0..self.recording.rounds() {
            let is_past = u32::try_from(round).is_ok_and(|round| round >= self.rounds_max);
            let question = || ModelRequest {
                system: system.clone(),
                messages: self.recording.messages(round),
                tools: self.tools.clone(),
                tools_off: !self.tools.is_empty() && (is_past || self.recording.tools_off(round)),
            };
            let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(round).cloned();
            let answer = match known {
                Some(answer) => answer,
                None => {
                    let answer = self.model.complete(&call, &question()).await?;
                    self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer.clone());
                    answer
                }
            };
            let asked = answer.tool_calls.iter().filter(|call| self.confirm.contains(&call.name));
            let said = Some(answer.content.trim()).filter(|content| !content.is_empty());
            reply = Reply::default();
            reply.messages.extend(said.map(ReplyMessage::text));
            for call in asked {
                reply.messages.push(ReplyMessage::text(confirm::question(&call.name, &call.arguments)));
                reply.actions.push(NewAction {
                    id: call.id.clone(),
                    requester: None,
                    tool: call.name.clone(),
                    arguments: call.arguments.clone(),
                    expires_at: Timestamp::now(),
                });
            }
        }
        Ok(reply)
    }

    fn describe(&self) -> Value {
        self.model.describe()
    }
}
