//! MCP against a real server, over both transports; killed, started again, away.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use turnwise::config::Config;
use turnwise::tool::{Effects, OnUnknown, ToolError, Toolbox};

use crate::everything::{Everything, command, kill9, processes};
use crate::support::{PATIENCE, eventually};
use crate::{call, configured, names, unknown};

/// Connected to one server under the name `all`; `lines` add to its table.
async fn connected(transport: &str, lines: &str) -> Toolbox {
    let tools = configured(&format!("[tools.all]\nkind = \"mcp\"\n{transport}\n{lines}\n"));
    tools.connect().await;
    tools
}

fn at(server: &Everything) -> String {
    format!("url = \"{}\"", server.url())
}

async fn echo(tools: &Toolbox, message: &str) -> Result<Value, ToolError> {
    call(tools, "echo", &json!({ "message": message }).to_string()).await
}

/// A call that the server needs a minute for.
fn long_call(tools: &Toolbox) -> tokio::task::JoinHandle<Result<Value, ToolError>> {
    let tools = tools.clone();
    let arguments = r#"{"duration": 60, "steps": 60}"#;
    tokio::spawn(async move { call(&tools, "trigger-long-running-operation", arguments).await })
}

#[tokio::test]
async fn the_same_tools_over_both_transports() {
    let server = Everything::start().await;
    for transport in [at(&server), command("both-transports")] {
        let tools = connected(&transport, "").await;
        let listed = names(&tools, &["all"]);
        for name in ["echo", "get-sum", "get-tiny-image", "get-structured-content"] {
            assert!(listed.iter().any(|listed| listed == name), "{name} in {listed:?}");
        }
        assert_eq!(echo(&tools, "héllo").await, Ok(json!("Echo: héllo")), "{transport}");
        let weather = call(&tools, "get-structured-content", r#"{"location": "Chicago"}"#).await;
        let expected = json!({ "temperature": 36, "conditions": "Light rain / drizzle", "humidity": 82 });
        assert_eq!(weather, Ok(expected));
        let image = "Here's the image you requested:\n[image]\nThe image above is the MCP logo.";
        assert_eq!(call(&tools, "get-tiny-image", "").await, Ok(json!(image)));
        assert_eq!(
            tools.validate("get-sum", r#"{"a": "1", "b": 2}"#).unwrap_err(),
            r#"The arguments do not fit the tool's schema: at /a: "1" is not of type "number"."#
        );
        let refused = tools.get("get-sum").unwrap().call(&crate::context(), json!({ "a": "1" })).await;
        let Err(ToolError::Failed { message }) = refused else { panic!("{refused:?}") };
        assert!(message.contains("Invalid arguments for tool get-sum"), "the model is told: {message}");
        assert_eq!(echo(&tools, "again").await, Ok(json!("Echo: again")));
        tools.shutdown().await;
    }
}

#[tokio::test]
async fn hints_and_settings_make_the_policy() {
    let server = Everything::start().await;
    let tools = connected(&at(&server), "").await;
    let policy = |tools: &Toolbox, name: &str| tools.get(name).unwrap().policy();
    let hinted = policy(&tools, "echo");
    assert_eq!((hinted.effects, hinted.on_unknown, hinted.cancel_safe), (Effects::ReadOnly, OnUnknown::Retry, true));
    let worst = policy(&tools, "toggle-simulated-logging");
    assert_eq!((worst.effects, worst.on_unknown, worst.cancel_safe), (Effects::Destructive, OnUnknown::Fail, false));

    let lines = "effects = \"idempotent\"\nconfirm = true\ntimeout = \"3s\"\nonly = [\"echo\", \"nothing\"]";
    let tools = connected(&at(&server), lines).await;
    assert_eq!(names(&tools, &["all"]), ["echo"]);
    let told = policy(&tools, "echo");
    assert_eq!((told.effects, told.confirm, told.timeout), (Effects::Idempotent, true, Duration::from_secs(3)));
    assert!(tools.get("get-sum").is_none());
    assert!(tools.get("all_echo").is_some(), "its full name leads to it, too");
}

#[tokio::test]
async fn a_name_that_two_servers_use_is_neithers() {
    let server = Everything::start().await;
    let table = |name: &str| format!("[tools.{name}]\nkind = \"mcp\"\n{}\nonly = [\"echo\"]\n", at(&server));
    let tools = configured(&format!("{}{}", table("left"), table("right")));
    tools.connect().await;
    assert_eq!(names(&tools, &["right", "left"]), ["right_echo", "left_echo"]);
    assert!(tools.get("echo").is_none());
    assert_eq!(call(&tools, "left_echo", r#"{"message": "x"}"#).await, Ok(json!("Echo: x")));
    tools.shutdown().await;
}

#[tokio::test]
async fn a_child_has_the_environment_that_is_configured() {
    let tools = connected(&command("environment"), "env = { SHOP = { env = \"SECRET\" } }").await;
    let Ok(Value::String(environment)) = call(&tools, "get-env", "").await else { panic!("it is a text") };
    let environment: serde_json::Map<String, Value> = serde_json::from_str(&environment).unwrap();
    let names: Vec<&str> = environment.keys().map(String::as_str).collect();
    assert_eq!(names, ["PATH", "SHOP"]);
    assert_eq!(environment["SHOP"], crate::SECRET);
    tools.shutdown().await;
}

/// The server that comes back does not know the session.
#[tokio::test]
async fn after_a_server_was_killed_and_started_again_the_next_call_works() {
    let mut server = Everything::start().await;
    let tools = connected(&at(&server), "").await;
    assert_eq!(echo(&tools, "before").await, Ok(json!("Echo: before")));
    server.kill9().await;
    server.start_again().await;
    assert_eq!(echo(&tools, "after").await, Ok(json!("Echo: after")));
    tools.shutdown().await;
}

#[tokio::test]
async fn after_a_child_was_killed_the_next_call_works() {
    let tools = connected(&command("killed-child"), "").await;
    assert_eq!(echo(&tools, "before").await, Ok(json!("Echo: before")));
    let killed = kill9("killed-child").await;
    eventually("another child", PATIENCE, async || {
        processes("killed-child").iter().find(|child| **child != killed).copied()
    })
    .await;
    assert_eq!(echo(&tools, "after").await, Ok(json!("Echo: after")));
    tools.shutdown().await;
    assert_eq!(processes("killed-child"), [] as [u32; 0], "it ends with us");
}

#[tokio::test]
async fn while_a_server_is_away_its_tools_are_absent_and_then_there() {
    let mut server = Everything::away();
    let tools = connected(&at(&server), "").await;
    assert_eq!(names(&tools, &["all"]), [] as [&str; 0]);
    assert!(tools.get("echo").is_none());
    server.start_again().await;
    eventually("the tools to be there", PATIENCE, async || tools.get("echo")).await;
    assert_eq!(echo(&tools, "there").await, Ok(json!("Echo: there")));

    // Away again, they stay listed; nothing is sent to nobody.
    server.kill9().await;
    let gone = echo(&tools, "gone").await;
    let Err(ToolError::Retryable { after: None, .. }) = gone else { panic!("{gone:?}") };
    server.start_again().await;
    assert_eq!(echo(&tools, "back").await, Ok(json!("Echo: back")));
    tools.shutdown().await;
}

#[tokio::test]
async fn a_command_that_does_not_run_stops_nobody() {
    let transport = "command = [\"/nowhere/server\"]";
    let begun = Instant::now();
    let tools = connected(transport, "").await;
    assert!(begun.elapsed() < Duration::from_secs(10), "it does not wait for a command that cannot be run");
    assert_eq!(names(&tools, &["all"]), [] as [&str; 0]);
    tools.shutdown().await;
}

/// Nobody knows whether it happened, and that is known soon.
#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_a_call() {
    let tools = connected(&command("dies-in-call"), "").await;
    let call = long_call(&tools);
    tokio::task::yield_now().await;
    // The child reads line by line: what answers a later call has read the earlier.
    echo(&tools, "later").await.unwrap();
    kill9("dies-in-call").await;
    assert_eq!(call.await.unwrap(), unknown("the tool's server was gone before it answered"));
    tools.shutdown().await;

    let mut server = Everything::start().await;
    let tools = connected(&at(&server), "timeout = \"50s\"").await;
    let mut heard = server.heard.subscribe();
    let before = *heard.borrow();
    let call = long_call(&tools);
    heard.wait_for(|posts| *posts > before).await.unwrap();
    let begun = Instant::now();
    server.kill9().await;
    // Before the head of the answer or after it: that makes another sentence.
    let outcome = call.await.unwrap();
    assert!(matches!(outcome, Err(ToolError::Unknown { .. })), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    tools.shutdown().await;
}

#[tokio::test]
async fn a_call_that_takes_too_long_does_not_hold_up_the_next() {
    let server = Everything::start().await;
    for transport in [command("too-long"), at(&server)] {
        let tools = connected(&transport, "timeout = \"1s\"").await;
        let late = call(&tools, "trigger-long-running-operation", r#"{"duration": 60, "steps": 1}"#).await;
        assert_eq!(late, unknown("the tool did not answer within 1000 ms"));
        assert_eq!(echo(&tools, "next").await, Ok(json!("Echo: next")));
        tools.shutdown().await;
    }
}

#[tokio::test]
async fn the_last_toolbox_takes_its_children_along() {
    let tools = connected(&command("dropped"), "").await;
    assert_eq!(processes("dropped").len(), 1);
    drop(tools);
    eventually("the child to end", PATIENCE, async || processes("dropped").is_empty().then_some(())).await;
}

#[test]
fn a_toolbox_is_built_without_contacting_anybody() {
    let text = "[nats]\nmanaged = true\n[bots.b]\nchannel = \"web\"\nresponder = \"r\"\n[responders.r]\nkind = \"echo\"\n\
                [tools.all]\nkind = \"mcp\"\ncommand = [\"/nowhere/server\"]\n";
    let config = Config::parse(text, "/t.toml".as_ref(), &|_| None).unwrap();
    let tools = Toolbox::build(&config, Vec::new()).unwrap();
    assert_eq!(tools.validate("echo", "").unwrap_err(), r#"There is no tool "echo"."#);
    let twice = Toolbox::build(&config, vec![crate::rust::named("all")]).unwrap_err();
    assert_eq!(twice[0].to_string(), "tools.all: also registered in Rust; rename one of the two");
}
