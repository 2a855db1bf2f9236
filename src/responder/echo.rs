//! The `echo` responder: answers with what was said.
//!
//! Refuses to interpret anything. Invariant: the same messages give the same reply, at once.

use super::{Reply, Responder, TurnContext, TurnError, TurnRequest, new_text};

/// Answers with the text of the new messages, joined by newlines; attachments as `[kind]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo;

#[async_trait::async_trait]
impl Responder for Echo {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        if context.cancellation.is_cancelled() {
            return Err(TurnError::Cancelled);
        }
        match new_text(request) {
            empty if empty.is_empty() => {
                Err(TurnError::Terminal { message: "the message has no text to echo".to_owned(), user_message: None })
            }
            text => Ok(Reply::text(text)),
        }
    }
}
