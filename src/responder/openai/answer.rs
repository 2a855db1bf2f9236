//! A Chat Completions answer of status 200: what it means for the turn.
//!
//! Refuses an answer without `finish_reason`: it was cut off on its way, however complete it looks. Tool calls are passed
//! over, since none are offered. Invariant: [`Answer::Text`] is never blank.

use serde_json::Value;

use super::failure::Failure;
use crate::responder::TurnError;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// What the model said; a refusal is an answer too.
    Text(String),
    Empty,
}

pub(super) fn read(body: &Value) -> Result<Answer, Failure> {
    let choice =
        body.pointer("/choices/0").ok_or_else(|| Failure::malformed("the model server's answer has no choices"))?;
    let finish_reason = choice
        .get("finish_reason")
        .and_then(Value::as_str)
        .filter(|reason| !reason.is_empty())
        .ok_or_else(|| Failure::malformed("the model's answer was cut off: it has no finish_reason"))?;
    if let Some(refusal) = choice.pointer("/message/refusal").map(text).filter(|refusal| !refusal.trim().is_empty()) {
        return Ok(Answer::Text(refusal));
    }
    if finish_reason == "content_filter" {
        return Err(Failure::content_filter());
    }
    let content = choice.pointer("/message/content").map(text).unwrap_or_default();
    if content.trim().is_empty() { Ok(Answer::Empty) } else { Ok(Answer::Text(content)) }
}

pub(super) fn empty_twice() -> TurnError {
    let message = "the model's answer was empty, twice; if it is a reasoning model, raise max_output_tokens".to_owned();
    TurnError::Terminal { message, user_message: None }
}

/// A text, or the text parts of a list of parts, which some servers send instead.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<Vec<_>>().concat()
        }
        _ => String::new(),
    }
}
