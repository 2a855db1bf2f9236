//! MCP's HTTP transport where a real server does not go: every refusal, lost sessions, lists that change, secrets.

use std::time::Duration;

use serde_json::{Value, json};
use turnwise::tool::{ToolError, Toolbox};

use crate::mcp_stand_in::{StandIn, tool};
use crate::support::{PATIENCE, eventually};
use crate::{SECRET, TRACEPARENT, call, configured, failed, names, retryable, unknown};

async fn connected(server: &StandIn, lines: &str) -> Toolbox {
    let url = &server.url;
    let tools = configured(&format!("[tools.hotel]\nkind = \"mcp\"\nurl = \"{url}\"\n{lines}\n"));
    tools.connect().await;
    tools
}

async fn book(tools: &Toolbox) -> Result<Value, ToolError> {
    call(tools, "book", r#"{"room": 7}"#).await
}

#[tokio::test]
async fn a_call_carries_arguments_key_trace_and_headers() {
    let server = StandIn::start().await;
    let tools = connected(&server, "bearer_token = { env = \"SECRET\" }\nheaders = { X-Team = \"shop\" }").await;
    assert_eq!(book(&tools).await, Ok(json!("booked")));
    let calls = server.calls();
    let [(headers, params)] = &calls[..] else { panic!("one call, not {}", calls.len()) };
    assert_eq!((&params["name"], &params["arguments"]), (&json!("book"), &json!({ "room": 7 })));
    assert_eq!(params["_meta"]["turnwise/idempotency-key"], "turn-7:2:0");
    assert_eq!(params["_meta"]["traceparent"], TRACEPARENT);
    assert_eq!(headers["authorization"].to_str().unwrap(), format!("Bearer {SECRET}"));
    assert_eq!(headers["x-team"], "shop");
    tools.shutdown().await;
}

/// The same table as that of tools of kind `http`; without a hint, a tool is destructive.
#[tokio::test]
async fn refusals_and_what_they_mean() {
    let server = StandIn::start().await;
    let tools = connected(&server, "bearer_token = { env = \"SECRET\" }").await;
    let told = |status: u16| format!("the tool's server answered HTTP {status}");
    server.refuse(429, Some("3"), "");
    assert_eq!(book(&tools).await, retryable(&told(429), Some(3)));
    server.refuse(503, None, "");
    assert_eq!(book(&tools).await, retryable(&told(503), None));
    server.refuse(500, None, "");
    assert_eq!(book(&tools).await, unknown(&told(500)));
    server.refuse(502, Some("1"), "");
    assert_eq!(book(&tools).await, retryable(&told(502), Some(1)));
    server.refuse(403, None, json!({ "error": { "message": format!("no, {SECRET}") } }).to_string());
    assert_eq!(book(&tools).await, failed(&format!("{}: no, [redacted]", told(403))));
    server.refuse(401, None, "who are you?");
    assert_eq!(book(&tools).await, failed(&format!("{}: who are you?", told(401))));
    server.refuse(200, None, json!({ "jsonrpc": "2.0", "id": 1 }).to_string());
    assert_eq!(
        book(&tools).await,
        unknown("the server's answer is not an MCP message: a value is not of the expected kind, line 0 column 0")
    );
    assert_eq!(server.calls().len(), 0);
    assert_eq!(book(&tools).await, Ok(json!("booked")), "the session has outlived them all");
    let read_only = connected(&server, "effects = \"read_only\"").await;
    server.refuse(500, None, "");
    assert_eq!(book(&read_only).await, retryable(&told(500), None));
}

#[tokio::test]
async fn a_lost_session_is_made_again_once_for_a_call() {
    let server = StandIn::start().await;
    let tools = connected(&server, "").await;
    server.forget_sessions();
    assert_eq!(book(&tools).await, Ok(json!("booked")), "404 says that there is no such session");
    server.refuse(400, None, "no such session");
    assert_eq!(book(&tools).await, Ok(json!("booked")), "so does 400, from many servers");
    server.refuse(400, None, "bad header");
    server.refuse(400, None, "bad header");
    assert_eq!(book(&tools).await, failed("the tool's server answered HTTP 400: bad header"), "but not twice");
    assert_eq!(server.calls().len(), 2);
    tools.shutdown().await;
}

#[tokio::test]
async fn calls_that_lose_their_session_together_are_all_made_again() {
    let server = StandIn::start().await;
    let tools = connected(&server, "").await;
    server.forget_sessions();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let tools = tools.clone();
            tokio::spawn(async move { book(&tools).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(json!("booked")));
    }
    assert_eq!(server.calls().len(), 20);
    tools.shutdown().await;
}

#[tokio::test]
async fn a_list_that_changes_is_read_again() {
    let server = StandIn::start().await;
    let tools = connected(&server, "").await;
    assert_eq!(names(&tools, &["hotel"]), ["book"]);
    eventually("the session's own stream", PATIENCE, async || (server.listeners() > 0).then_some(())).await;
    let broken = json!({ "name": "broken", "inputSchema": { "type": "object", "properties": 1 } });
    server.offer(vec![tool("rooms.free"), broken, tool("book")]);
    eventually("the new list", PATIENCE, async || tools.get("rooms_free").map(drop)).await;
    assert_eq!(names(&tools, &["hotel"]), ["rooms_free", "book"], "a schema that cannot be used is left out");
    assert_eq!(call(&tools, "rooms_free", "").await, Ok(json!("booked")));
    assert_eq!(server.calls()[0].1["name"], "rooms.free", "the server hears its own name for it");
    server.offer(vec![tool("book")]);
    eventually("the old list", PATIENCE, async || tools.get("rooms_free").is_none().then_some(())).await;
    tools.shutdown().await;
    assert_eq!(tools.validate("rooms_free", "").unwrap_err(), r#"There is no tool "rooms_free"."#);
}

/// Without a call, half a minute later: the clock is put forward.
#[tokio::test]
async fn a_session_is_looked_after() {
    let half_a_minute = async || {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
    };
    let server = StandIn::start().await;
    let tools = connected(&server, "").await;
    let sessions = server.sessions();
    for times in 1..3 {
        half_a_minute().await;
        server.pinged(times).await;
    }
    assert_eq!(book(&tools).await, Ok(json!("booked")));
    assert_eq!(server.sessions(), sessions, "a session that lives is kept");
    server.forget_sessions();
    half_a_minute().await;
    eventually("another session", PATIENCE, async || (server.sessions().len() == 1).then_some(())).await;
    tools.shutdown().await;
}
