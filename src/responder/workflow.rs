//! A workflow around a responder: leads the conversation along a graph, and asks the responder where the graph says so.
//!
//! ```toml
//! [workflows.intake]
//! version = 1                       # raise it with every change of the nodes
//! start = "topic"
//! fallback = "again"                # for conversations that are within another version; without it, start
//!
//! [workflows.intake.nodes.topic]
//! kind = "ask"                      # says the text; the next message is the answer
//! text = "What is it about?"
//! choices = ["Order", { label = "Something else", value = "other" }]    # or pattern = '\d{5}'; or neither: anything
//! retry_text = "Please choose one of these."
//! max_attempts = 3                  # after that, else
//! save_as = "topic"                 # metadata.topic
//! next = "route"
//! else = "person"
//!
//! [workflows.intake.nodes.route]
//! kind = "condition"                # the first rule that holds names the next node
//! rules = [
//!     { value = "metadata.topic", equals = "Order", next = "chat" },
//!     { any = [{ value = "text", matches = "(?i)lawyer" }, { value = "metadata.debt", at_least = 100 }], next = "person" },
//! ]
//! else = "chat"
//!
//! [workflows.intake.nodes.chat]
//! kind = "respond"                  # the responder answers, with the prompt added to its own; or text = "...": just that
//! prompt = "The user's topic is ${metadata.topic|unknown}."
//! next = "chat"
//!
//! [workflows.intake.nodes.person]
//! kind = "handoff"
//! text = "A colleague will be with you."
//!
//! [workflows.intake.nodes.again]
//! kind = "end"
//! text = "Something has changed on our side; please start again."
//! ```
//!
//! A turn walks from node to node until it comes to a question, a handoff or an end, to a `respond` node that it has been to,
//! or to a second one that needs the responder: there it waits, and the conditions that led there are asked again with the
//! next message. It stops after [`HOPS_MAX`] nodes and goes on from there with the next message. `end` and `handoff` clear the place: a later message that the bot gets begins
//! at `start`. To let people talk to the responder after the graph, end it in a `respond` node whose `next` is itself.
//!
//! The place is `metadata.workflow_state`: `{ workflow, version, node, asked }`. One that is of another workflow or version,
//! names no node or cannot be read goes to `fallback`.
//!
//! Refuses to remember anything itself, and to let the responder write the place. Invariants: the same conversation, messages
//! and answer of the responder give the same reply; the responder is asked once a turn at most; while a question of its own
//! waits (a confirmation), the place stays with it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use self::walk::{Input, Stop, Walk};
use super::assistant::confirm;
use super::{Reply, Responder, TurnContext, TurnError, TurnRequest, new_text};
use crate::config::Workflow;
use crate::message::Role;

mod condition;
#[cfg(test)]
mod tests;
mod walk;

pub use walk::{HOPS_MAX, Place};

/// Key of the conversation's metadata that holds the [`Place`].
pub const STATE_KEY: &str = "workflow_state";

/// A responder that is led by a workflow.
pub struct WorkflowResponder {
    workflow: Workflow,
    inner: Arc<dyn Responder>,
}

impl WorkflowResponder {
    #[must_use]
    pub fn new(workflow: Workflow, inner: Arc<dyn Responder>) -> Self {
        Self { workflow, inner }
    }

    async fn lead(&self, context: &TurnContext, request: &TurnRequest, mut walk: Walk<'_>) -> Result<Reply, TurnError> {
        let mut reply = Reply::default();
        let stop = loop {
            match walk.go() {
                Stop::Responder { prompt } => {
                    let answer = self.inner.respond(context, &asked(request, walk.metadata(), prompt)).await?;
                    let waits = !answer.actions.is_empty();
                    reply.transcript = answer.transcript;
                    reply.spent_buttons = answer.spent_buttons;
                    reply.actions = answer.actions;
                    reply.handoff = answer.handoff;
                    walk.answered(answer.messages, answer.metadata, waits);
                    if waits || reply.handoff {
                        break Stop::Waits;
                    }
                }
                stop => break stop,
            }
        };
        if walk.is_exhausted() {
            let Place { workflow, node, .. } = walk.place();
            tracing::warn!(workflow, node, "the turn has come to {HOPS_MAX} nodes and waits for the next message");
        }
        let mut metadata = walk.changes().clone();
        match stop {
            Stop::Waits | Stop::Responder { .. } => reply.workflow_state = Some(json!(walk.place())),
            Stop::HandsOff | Stop::Ends => {
                reply.handoff |= matches!(stop, Stop::HandsOff);
                metadata.insert(STATE_KEY.to_owned(), Value::Null);
            }
        }
        reply.metadata = (!metadata.is_empty()).then_some(metadata);
        reply.messages = walk.into_said();
        Ok(reply)
    }
}

/// The turn as the responder is asked about it.
fn asked(request: &TurnRequest, metadata: &Map<String, Value>, prompt: Option<String>) -> TurnRequest {
    let mut request = request.clone();
    request.conversation.metadata.clone_from(metadata);
    request.prompt = prompt;
    request
}

#[async_trait::async_trait]
impl Responder for WorkflowResponder {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let text = new_text(request);
        let said = request.history.iter().filter(|message| message.role == Role::User).count();
        let input = Input {
            text: text.trim(),
            payload: request.messages.last().and_then(|new| new.message.payload.as_deref()),
            attempt: context.attempt,
            count: said + request.messages.len(),
        };
        let walk = Walk::begin(&self.workflow, &request.conversation.metadata, input);
        // An answer to a question of the responder's, from before the graph went on: nothing of the graph waits for it.
        if request.messages.last().is_some_and(confirm::is_press) && !walk.is_with_responder() {
            return self.inner.respond(context, request).await;
        }
        self.lead(context, request, walk).await
    }

    fn keeps_messages(&self) -> bool {
        self.inner.keeps_messages()
    }

    fn describe(&self) -> Value {
        let Workflow { name, version, .. } = &self.workflow;
        json!({ "workflow": name, "version": version, "responder": self.inner.describe() })
    }
}

impl std::fmt::Debug for WorkflowResponder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WorkflowResponder").field("workflow", &self.workflow).finish_non_exhaustive()
    }
}
