//! One attempt at a call within one session, and what its end says about whether the call happened.
//!
//! Refuses to call anything "not sent" that may have been. Invariant: only a refusal for want of a session, or a message that
//! never left, is `SessionGone`.

use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, ResourceContents};
use rmcp::service::{Peer, RoleClient, ServiceError};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::streamable_http_client::StreamableHttpError;
use serde_json::Value;

use super::wire::WireFault;
use crate::tool::answer::{Quotes, refused};
use crate::tool::{Effects, ToolError};

/// Largest text kept of a result: the rest is cut off, with a marker. What reaches the model is cut far shorter.
const RESULT_BYTES_MAX: usize = 1024 * 1024;

pub(super) enum Attempt {
    Done(Result<Value, ToolError>),
    /// It was not carried out because there is no such session, or no such server; `otherwise` is what it means when there is
    /// no other session to try it in.
    SessionGone {
        otherwise: ToolError,
    },
}

/// Dropped before its end, it tells the server that the call is cancelled.
pub(super) async fn attempt(
    peer: &Peer<RoleClient>,
    params: CallToolRequestParams,
    effects: Effects,
    quotes: &Quotes,
) -> Attempt {
    match peer.call_tool_once(params).await {
        Ok(CallToolResponse::Complete(result)) => Attempt::Done(complete(result, quotes)),
        Ok(CallToolResponse::InputRequired(_)) => {
            Attempt::Done(Err(ToolError::failed("the tool asks for input in a way that is not supported")))
        }
        Ok(_) => unknown("the tool's server answered with something else than a result"),
        Err(ServiceError::McpError(error)) => Attempt::Done(Err(ToolError::failed(told(&error, quotes)))),
        Err(ServiceError::TransportSend(error)) => not_answered(&error, effects, quotes),
        Err(ServiceError::TransportClosed) => unknown("the tool's server was gone before it answered"),
        Err(_) => unknown("the tool's server did not answer as MCP has it"),
    }
}

fn complete(result: CallToolResult, quotes: &Quotes) -> Result<Value, ToolError> {
    if result.is_error == Some(true) {
        let words = quotes.quote(&text(result.content));
        return Err(ToolError::failed(if words.is_empty() { "the tool failed".to_owned() } else { words }));
    }
    match result.structured_content {
        Some(structured) => {
            let text = structured.to_string();
            Ok(if text.len() > RESULT_BYTES_MAX { Value::String(cut(text)) } else { structured })
        }
        None => Ok(Value::String(cut(text(result.content)))),
    }
}

/// Parts joined by line breaks; what is no text is named in brackets.
fn text(content: Vec<ContentBlock>) -> String {
    let part = |block: ContentBlock| match block {
        ContentBlock::Text(text) => text.text,
        ContentBlock::Image(_) => "[image]".to_owned(),
        ContentBlock::Audio(_) => "[audio]".to_owned(),
        ContentBlock::Resource(embedded) => match embedded.resource {
            ResourceContents::TextResourceContents { text, .. } => text,
            _ => "[resource]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => format!("[resource {}]", link.uri),
        _ => "[content]".to_owned(),
    };
    content.into_iter().map(part).collect::<Vec<_>>().join("\n")
}

fn cut(mut text: String) -> String {
    if text.len() > RESULT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(RESULT_BYTES_MAX));
        text.push_str(&format!("\n[cut off after {RESULT_BYTES_MAX} bytes]"));
    }
    text
}

fn told(error: &ErrorData, quotes: &Quotes) -> String {
    format!("the tool's server refused the call, JSON-RPC error {}: {}", error.code.0, quotes.quote(&error.message))
}

fn not_answered(error: &DynamicTransportError, effects: Effects, quotes: &Quotes) -> Attempt {
    if error.error.is::<std::io::Error>() {
        // A child that did not take the whole line has not read a message.
        return gone(ToolError::retryable("the tool's server is gone"));
    }
    let Some(StreamableHttpError::Client(fault)) = error.error.downcast_ref::<StreamableHttpError<WireFault>>() else {
        return unknown("the tool's server was gone before it answered");
    };
    match fault {
        WireFault::NotSent(_) => gone(ToolError::retryable(fault.to_string())),
        WireFault::Refused { status, after, in_session, body } => {
            let error = refused(*status, *after, effects, &quotes.quote(body));
            // 404 by the specification; 400 from many servers.
            let forgotten = *in_session && matches!(status, 400 | 404);
            if forgotten { gone(error) } else { Attempt::Done(Err(error)) }
        }
        WireFault::Broken(_) | WireFault::TooLarge(_) | WireFault::NotMcp(_) => unknown(&fault.to_string()),
    }
}

fn unknown(message: &str) -> Attempt {
    Attempt::Done(Err(ToolError::unknown(message)))
}

const fn gone(otherwise: ToolError) -> Attempt {
    Attempt::SessionGone { otherwise }
}
