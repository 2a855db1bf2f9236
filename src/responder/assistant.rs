//! The responder of the kinds `openai` and `anthropic`: a model is asked, and what it says is the reply.
//!
//! Refuses to retry by itself: a busy or broken server is a [`TurnError::Retryable`], and the lane's backoff is the one
//! retry layer. What it does ask again, once each and at once, is what another wait would not mend: a shorter history
//! after "context too long", and the same question after an empty answer. Invariant: a reply is never blank.

use std::sync::Arc;

use super::history::halve;
use super::request::model_messages;
use super::{Reply, Responder, TurnContext, TurnError, TurnRequest, within};
use crate::model::{Fault, Finish, Model, ModelCall, ModelFailure, ModelRequest, ModelResponse};

/// One `[responders.*]` table that names a model.
#[derive(Debug)]
pub struct Assistant {
    model: Arc<dyn Model>,
    system_prompt: Option<String>,
}

impl Assistant {
    #[must_use]
    pub fn new(model: Arc<dyn Model>, system_prompt: Option<String>) -> Self {
        Self { model, system_prompt }
    }

    /// At most three calls: one, one with half the history, one more after an empty answer.
    async fn converse(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let call = ModelCall {
            deadline: context.deadline,
            turn_id: context.turn_id,
            attempt: context.attempt,
            conversation_id: request.conversation.id,
            on_delta: &|_| {},
        };
        let mut history = Arc::clone(&request.history);
        let (mut halved, mut asked_again) = (false, false);
        loop {
            let question = ModelRequest {
                system: self.system_prompt.clone(),
                messages: model_messages(&history, &request.messages),
                ..ModelRequest::default()
            };
            match self.model.complete(&call, &question).await {
                Ok(answer) if is_missing(&answer) && !asked_again => asked_again = true,
                Ok(answer) => return reply(answer),
                Err(failure) if failure.fault == Fault::ContextTooLong && !halved && !history.is_empty() => {
                    halved = true;
                    history = halve(&history).into();
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

#[async_trait::async_trait]
impl Responder for Assistant {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        within(context, self.converse(context, request)).await?
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

/// Whether the model said nothing although nobody kept it from it.
fn is_missing(answer: &ModelResponse) -> bool {
    answer.content.trim().is_empty() && !matches!(answer.finish, Finish::ContentFilter | Finish::Refusal)
}

/// A refusal with words is an answer too. Tool calls are passed over, since none are offered.
fn reply(answer: ModelResponse) -> Result<Reply, TurnError> {
    let blank = answer.content.trim().is_empty();
    match answer.finish {
        Finish::ContentFilter => Err(terminal("the model server's content filter withheld the answer")),
        Finish::Refusal if blank => Err(terminal("the model refused to answer")),
        _ if blank => {
            Err(terminal("the model's answer was empty, twice; if it is a reasoning model, raise max_output_tokens"))
        }
        _ => Ok(Reply::text(answer.content)),
    }
}

fn terminal(message: &str) -> TurnError {
    TurnError::Terminal { message: message.to_owned(), user_message: None }
}
