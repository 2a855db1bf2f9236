//! The tools that an MCP server lists, made into tools of ours.
//!
//! Refuses tools that no model could be told of: more than there is room for, schemas that are too large or none. Invariant: a
//! server's word about its tools' effects counts only where the configuration has none.

use std::sync::Arc;

use rmcp::model::{PaginatedRequestParams, Tool as Listed};
use rmcp::service::{Peer, RoleClient};
use serde_json::Value;

use super::McpSessions;
use crate::tool::catalogue::Offer;
use crate::tool::schema::Schema;
use crate::tool::toolbox::policy;
use crate::tool::{Effects, Tool, ToolContext, ToolError, ToolPolicy, ToolSpec};

/// OpenAI takes 128 functions of all servers together; `only` chooses among more.
const TOOLS_MAX: usize = 256;

/// Servers list some fifty tools a page.
const PAGES_MAX: usize = 64;

/// Sent with every turn, so paid for with every turn.
const DESCRIPTION_CHARS_MAX: usize = 8_192;

/// Sent with every turn: some 16,000 tokens.
const SCHEMA_BYTES_MAX: usize = 64 * 1024;

/// # Errors
/// Why there is no list.
pub(super) async fn list(peer: &Peer<RoleClient>) -> Result<Vec<Listed>, &'static str> {
    let (mut tools, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let mut page = PaginatedRequestParams::default();
        page.cursor = cursor;
        let listed = peer.list_tools(Some(page)).await.map_err(|_| "it does not answer with a list of tools")?;
        tools.extend(listed.tools);
        cursor = listed.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    Ok(tools)
}

pub(super) fn offers(server: &Arc<McpSessions>, listed: &[Listed]) -> Vec<Offer> {
    let chosen = |tool: &&Listed| server.only.is_empty() || server.only.iter().any(|name| *name == tool.name);
    let chosen: Vec<&Listed> = listed.iter().filter(chosen).collect();
    for name in &server.only {
        if !chosen.iter().any(|tool| tool.name == *name) {
            tracing::warn!(
                server = server.name,
                tool = name,
                "an MCP server does not offer a tool that is listed in `only`"
            );
        }
    }
    if chosen.len() > TOOLS_MAX {
        tracing::warn!(
            server = server.name,
            tools = chosen.len(),
            "an MCP server offers more tools than there is room for"
        );
    }
    chosen.into_iter().take(TOOLS_MAX).filter_map(|tool| offer(server, tool)).collect()
}

fn offer(server: &Arc<McpSessions>, listed: &Listed) -> Option<Offer> {
    let parameters = Value::Object((*listed.input_schema).clone());
    let compiled = match parameters.to_string().len() {
        bytes if bytes > SCHEMA_BYTES_MAX => Err(format!("has {bytes} bytes")),
        _ => Schema::compile(&parameters).map_err(|error| error.to_string()),
    };
    let schema = compiled.map_err(|fault| {
        tracing::warn!(server = server.name, tool = %listed.name, fault, "a tool's schema cannot be used; it is left out");
    });
    let description = listed.description.as_deref().or(listed.title.as_deref()).unwrap_or_default();
    let spec = ToolSpec {
        name: listed.name.to_string(),
        description: description.chars().take(DESCRIPTION_CHARS_MAX).collect(),
        parameters,
    };
    let policy = policy(&server.settings, effects(listed));
    let tool = Arc::new(McpTool { server: Arc::clone(server), spec, policy });
    Some(Offer { tool, schema: Arc::new(schema.ok()?) })
}

/// The hints of <https://modelcontextprotocol.io/specification/2025-11-25/schema#toolannotations>; without one, the worst.
fn effects(listed: &Listed) -> Effects {
    let hints = listed.annotations.as_ref();
    if hints.and_then(|hints| hints.read_only_hint) == Some(true) {
        Effects::ReadOnly
    } else if hints.and_then(|hints| hints.idempotent_hint) == Some(true) {
        Effects::Idempotent
    } else {
        Effects::Destructive
    }
}

struct McpTool {
    server: Arc<McpSessions>,
    spec: ToolSpec,
    policy: ToolPolicy,
}

#[async_trait::async_trait]
impl Tool for McpTool {
    fn spec(&self) -> ToolSpec {
        self.spec.clone()
    }

    fn policy(&self) -> ToolPolicy {
        self.policy
    }

    async fn call(&self, context: &ToolContext, arguments: Value) -> Result<Value, ToolError> {
        self.server.call(&self.spec.name, context, &arguments, self.policy.effects).await
    }
}
