//! The API's description in the hands of others: schemathesis (<https://schemathesis.readthedocs.io>) makes requests of it, right ones
//! and wrong ones, and judges the answers; and a client that openapi-python-client generates from it makes a chat.
//!
//! Refuses to be random: the same requests each time, a bounded number of them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use support::http_client;
use support::process::{WEB_KEY, quoted};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment};
use support::telegram::SECRET;
use tempfile::TempDir;
use tokio::process::Command;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// For each operation and each of schemathesis's phases that makes examples up.
const EXAMPLES: &str = "10";

/// Several times what it takes.
const LIMIT: Duration = Duration::from_secs(300);

/// The longest part of a report that is shown: requests can be of any length.
const SHOWN_LINE_CHARS: usize = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_nothing() {
    let deployment = start().await;
    let mut command = Command::new(tool("schemathesis"));
    command
        .arg("--config-file")
        .arg(clients("schemathesis.toml"))
        .args(["run", &deployment.turnwise.url("/openapi.json")])
        .args(["--header", &format!("Authorization: Bearer {WEB_KEY}")])
        .args(["--header", &format!("X-Telegram-Bot-Api-Secret-Token: {SECRET}")])
        .args(["--checks", "all", "--max-examples", EXAMPLES, "--generation-deterministic", "--workers", "1"])
        .args(["--continue-on-failure", "--no-color", "--request-timeout", "60"]);
    let folder = TempDir::new().unwrap();
    let output = run(command, folder.path()).await;
    assert!(output.status.success(), "{}", report(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: ")?.parse().ok());
    assert_eq!(tested, Some(operations(&deployment).await), "operations: {}", report(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_client_makes_a_chat_and_reads_it() {
    let deployment = start().await;
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.yaml"), "project_name_override: turnwise-client\npost_hooks: []\n")
        .unwrap();
    let mut generate = Command::new(tool("openapi-python-client"));
    generate.args(["generate", "--url", &deployment.turnwise.url("/openapi.json")]).args([
        "--config",
        "config.yaml",
        "--output-path",
        "client",
    ]);
    let output = run(generate, folder.path()).await;
    assert!(output.status.success(), "{}", report(&output));

    let mut chat = Command::new(tool("python"));
    chat.arg(clients("generated.py")).args([&deployment.turnwise.url(""), WEB_KEY]);
    chat.env("PYTHONPATH", folder.path().join("client"));
    let output = run(chat, folder.path()).await;
    assert!(output.status.success(), "{}", report(&output));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({
        "status": "answered",
        "reply": "hello",
        "messages": [["user", "hello"], ["assistant", "hello"]],
        "device_id": "generated",
        "listed": true,
        "refused": [422, ["device_id"]],
    });
    assert_eq!(said, expected);
}

/// A deployment whose bots say what they are told, so that no time is spent on answers.
async fn start() -> Deployment {
    Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.set("responders.echo", "kind", "\"echo\"").web_bot("shop", "echo");
        configuration.set(&format!("bots.{BOT}"), "responder", &quoted("echo"));
        configuration.messenger_bot("page", "echo", &format!("http://127.0.0.1:{}", support::free_port()));
    })
    .await
}

/// How many the description has, apart from the one that it is read from, which is not tested.
async fn operations(deployment: &Deployment) -> usize {
    let document = http_client().get(deployment.turnwise.url("/openapi.json")).send().await.unwrap();
    let document: Value = document.json().await.unwrap();
    document["paths"].as_object().unwrap().values().map(|methods| methods.as_object().unwrap().len()).sum::<usize>() - 1
}

/// A program of scripts/python-tools.sh.
fn tool(name: &str) -> PathBuf {
    let folder = std::env::var_os("TURNWISE_PYTHON_TOOLS");
    Path::new(&folder.expect("TURNWISE_PYTHON_TOOLS is not set: `make test` does, by scripts/python-tools.sh"))
        .join(name)
}

fn clients(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// To its end, in a folder where it may leave what it likes.
async fn run(mut command: Command, folder: &Path) -> Output {
    command.current_dir(folder).env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
    tokio::time::timeout(LIMIT, command.output()).await.expect("it ends").unwrap()
}

fn report(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    said.lines().map(|line| line.chars().take(SHOWN_LINE_CHARS).collect::<String>() + "\n").collect()
}
