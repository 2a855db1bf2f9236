//! Tools from outside: Rust code, an HTTP server that answers in every way there is, and real MCP servers that die and come
//! back.
//!
//! Needs the MCP server that `make test` fetches.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use turnwise::config::Config;
use turnwise::tool::{ToolContext, ToolError, Toolbox};
use uuid::Uuid;

#[path = "tools/everything.rs"]
mod everything;
#[path = "tools/http.rs"]
mod http;
#[path = "tools/mcp.rs"]
mod mcp;
#[path = "tools/mcp_stand_in.rs"]
mod mcp_stand_in;
#[path = "tools/mcp_wire.rs"]
mod mcp_wire;
#[path = "tools/rust.rs"]
mod rust;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const SECRET: &str = "tool-secret-123";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The tools of a configuration that has these tables.
fn configured(tools: &str) -> Toolbox {
    let base =
        "[nats]\nmanaged = true\n[bots.b]\nchannel = \"web\"\nresponder = \"r\"\n[responders.r]\nkind = \"echo\"\n";
    let environment = |name: &str| (name == "SECRET").then(|| SECRET.to_owned());
    let config = Config::parse(&format!("{base}{tools}"), Path::new("/turnwise.toml"), &environment);
    Toolbox::build(&config.unwrap_or_else(|problems| panic!("{problems}")), Vec::new()).unwrap()
}

fn context() -> ToolContext {
    ToolContext {
        turn_id: Uuid::from_u128(7),
        conversation_id: Uuid::from_u128(1),
        call_id: "call_9".to_owned(),
        idempotency_key: "turn-7:2:0".to_owned(),
        deadline: Instant::now() + Duration::from_secs(60),
        traceparent: Some(TRACEPARENT.to_owned()),
    }
}

/// Validated as a turn does it, then called.
async fn call(tools: &Toolbox, name: &str, arguments: &str) -> Result<Value, ToolError> {
    let arguments = tools.validate(name, arguments).unwrap();
    tools.get(name).unwrap().call(&context(), arguments).await
}

fn names(tools: &Toolbox, listed: &[&str]) -> Vec<String> {
    let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
    tools.specs(&listed).into_iter().map(|spec| spec.name).collect()
}

fn failed(message: &str) -> Result<Value, ToolError> {
    Err(ToolError::Failed { message: message.to_owned() })
}

fn retryable(message: &str, after_seconds: Option<u64>) -> Result<Value, ToolError> {
    Err(ToolError::Retryable { message: message.to_owned(), after: after_seconds.map(Duration::from_secs) })
}

fn unknown(message: &str) -> Result<Value, ToolError> {
    Err(ToolError::Unknown { message: message.to_owned() })
}

/// By name, of everything that tools are made of.
fn map<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
