//! `turnwise replay`: recorded turns asked of another responder, beside a deployment that must not notice.
//!
//! Refuses to look into the process: what counts is what the models and tools were asked, what the files say, what a browser
//! shows, and that every row of every table and every stream is as before.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use browser::Browser;
use clerk::Clerk;
use contents::contents;
use serde_json::{Value, json};
use support::brain::{Brain, Seen};
use support::process::{Configuration, command, quoted};
use support::scenario::{BOT, Backend, RESPONDER};
use support::world::{ANN, World};
use support::{PATIENCE, eventually};
use tempfile::TempDir;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/browser.rs"]
mod browser;
#[path = "support/clerk.rs"]
mod clerk;
#[path = "support/contents.rs"]
mod contents;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// What every replay here has in common: everything of the last hour.
const SINCE: [&str; 2] = ["--since", "1h"];

fn lines(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("turns.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn run_of(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("run.json")).unwrap()).unwrap()
}

fn changes(line: &Value) -> BTreeSet<&str> {
    line["changes"].as_array().unwrap().iter().map(|change| change.as_str().unwrap()).collect()
}

/// A deployment whose model looks something up and then asks a person; what a candidate that does otherwise would change, and
/// that nobody outside notices.
async fn nothing_happens_but_a_report(backend: Backend) {
    let candidate = Brain::start(&[&["look_up"], &["reserve"]]).await;
    let mut world = World::start_with(backend, &[&["look_up"], &["notify"]], |configuration| {
        let tool = |name: &str| format!("tools.{name}");
        configuration.set(&tool("notify"), "confirm", "true");
        for (key, value) in [("kind", "\"http\""), ("url", "\"http://127.0.0.1:1/\""), ("description", "\"reserve\"")] {
            configuration.set(&tool("reserve"), key, value);
        }
        configuration
            .set(&tool("reserve"), "parameters", "{ type = \"object\" }")
            .openai_responder("another", &candidate.base_url())
            .set("responders.another", "tools", "[\"look_up\", \"reserve\", \"notify\"]")
            .set("responders.parrot", "kind", "\"echo\"");
    })
    .await;
    for text in ["one", "two"] {
        world.deployment.telegram.send(ANN, text);
        let count = if text == "one" { 1 } else { 2 };
        world.texts(ANN, count).await;
    }
    world.deployment.settled(2, PATIENCE).await;
    let streams = async |world: &World| {
        let mut states = Vec::new();
        for stream in ["turnwise_in", "turnwise_out", "turnwise_dead"] {
            let stream = world.deployment.nats.jetstream().await.get_stream(stream).await.unwrap();
            let state = stream.cached_info().state.clone();
            states.push((state.messages, state.bytes, state.first_sequence, state.last_sequence, state.consumer_count));
        }
        states
    };
    let called = |world: &World| world.brain.seen().iter().filter(|seen| matches!(seen, Seen::Called { .. })).count();
    let calls = called(&world);
    let said = world.deployment.telegram.log(|log| log.texts(ANN));
    let rows = async |world: &World| {
        let mut rows = contents(world.deployment.database_url()).await;
        // The deployment goes on writing how far it has come.
        rows.remove("partitions");
        rows
    };
    let before = (rows(&world).await, streams(&world).await);

    let folder = TempDir::new().unwrap();
    for (name, arguments, expected) in [
        ("same", &["--responder", RESPONDER][..], [&[][..], &[]]),
        ("same-free", &["--responder", RESPONDER, "--free-run"], [&[], &[]]),
        (
            "other",
            &["--responder", "another"],
            [&["confirmation", "text", "tools"], &["confirmation", "text", "tools"]],
        ),
        (
            "free",
            &["--responder", "another", "--free-run"],
            [&["confirmation", "text", "tools"], &["confirmation", "text", "tools"]],
        ),
        (
            "parrot",
            &["--responder", "parrot"],
            [&["confirmation", "text", "tools"], &["confirmation", "text", "tools"]],
        ),
        ("aa", &["--responder", RESPONDER, "--aa", "--bot", BOT], [&[], &[]]),
    ] {
        let out = folder.path().join(name);
        let arguments = [&SINCE, arguments, &["--json", "--out", out.to_str().unwrap()]].concat();
        let Output { status, stdout, stderr } = world.deployment.turnwise.run("replay", &arguments).await;
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{name}: {status}: {stderr}");
        let (run, lines) = (run_of(&out), lines(&out));
        assert_eq!(run, serde_json::from_slice::<Value>(&stdout).unwrap(), "{name}");
        assert_eq!(
            (&run["state"], &run["turns"], &run["errors"]),
            (&json!("finished"), &json!(2), &json!(0)),
            "{run:#}"
        );
        let found: Vec<BTreeSet<_>> = lines.iter().map(changes).collect();
        let expected = expected.map(|kinds| kinds.iter().copied().collect::<BTreeSet<_>>());
        assert_eq!(found, expected, "{name}: {lines:#?}");
        for line in &lines {
            assert_ne!(line["trace_id"], line["original"].as_str().unwrap()[3..35], "a trace of its own");
            assert_eq!(line["drift"].is_array(), name == "free", "{name}: {line:#}");
        }
    }
    let free = lines(&folder.path().join("free"));
    assert_eq!(free[0]["drift"], json!([{ "tool": "reserve", "arguments": "{\"about\":\"one\"}" }]));
    assert_eq!(free[0]["recorded"]["calls"][0], free[0]["candidate"]["calls"][0], "what was recorded was given");

    assert_eq!((rows(&world).await, streams(&world).await), before, "rows and streams");
    assert_eq!(called(&world), calls, "calls of tools");
    assert_eq!(world.deployment.telegram.log(|log| log.texts(ANN)), said, "what was sent");
    world.deployment.turnwise.assert_audit_clean().await;
    world.deployment.turnwise.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_happens_but_a_report_on_sqlite() {
    nothing_happens_but_a_report(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_happens_but_a_report_on_postgres() {
    nothing_happens_but_a_report(Backend::Postgres).await;
}

/// A database of recorded turns, and a configuration with a changed prompt.
struct Desk {
    folder: TempDir,
    clerk: Clerk,
    database: String,
}

impl Desk {
    async fn with(turns: usize) -> Self {
        let (folder, clerk) = (TempDir::new().unwrap(), Clerk::start().await);
        let database = format!("sqlite://{}", folder.path().join("turnwise.db").display());
        clerk::record(&database, turns).await;
        let nowhere = "nats://127.0.0.1:1".to_owned();
        let mut configuration = Configuration::with_nats(&[nowhere], &database);
        for name in ["assistant", "formal"] {
            configuration.openai_responder(name, &clerk.base_url());
        }
        configuration.set("responders.formal", "system_prompt", "\"Be formal.\"").telegram_bot(
            BOT,
            "assistant",
            "http://127.0.0.1:1",
        );
        std::fs::write(folder.path().join("turnwise.toml"), configuration.to_toml()).unwrap();
        Self { folder, clerk, database }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, out: &str, arguments: &[&str]) -> tokio::process::Command {
        let mut command = command("replay", &self.folder.path().join("turnwise.toml"));
        command.args(arguments).arg("--out").arg(self.out(out)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A replay with the changed prompt, to its end: exit code and standard error.
    async fn replay(&self, out: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let arguments = [&SINCE, &["--responder", "formal"], arguments].concat();
        let output = self.command(out, &arguments).output();
        let output = tokio::time::timeout(Duration::from_secs(120), output).await.expect("the replay ends").unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_turns_of_which_a_browser_shows_those_that_changed() {
    const TURNS: usize = 10_000;
    let desk = Desk::with(TURNS).await;
    let before = contents(&desk.database).await;
    let (code, stderr) = desk.replay("out", &["--max-changed", "0.5%"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("1.00 % of the turns have changed"), "{stderr}");
    let run = run_of(&desk.out("out"));
    let numbers = (run["turns"].as_u64(), run["changed"].as_u64(), run["tokens"].as_u64());
    assert_eq!(numbers, (Some(10_000), Some(100), Some(1_200_000)), "{run:#}");
    assert_eq!(desk.clerk.asked().values().sum::<usize>(), TURNS, "each is asked about once");
    assert_eq!(contents(&desk.database).await, before);

    let lines = lines(&desk.out("out"));
    let changed: Vec<&str> = lines
        .iter()
        .filter(|line| line["changes"] == json!(["text"]))
        .map(|line| line["turn"].as_str().unwrap())
        .collect();
    let browser = Browser::start().await;
    browser.open(&format!("file://{}", desk.out("out").join("report.html").display())).await;
    let shown = browser.run("return [...document.querySelectorAll('article')].map((turn) => turn.dataset.turn)").await;
    assert_eq!(shown, json!(changed), "the turns that have changed, and no other");
    assert_eq!(browser.run("return document.getElementById('shown').textContent").await, "100 of 100 shown");
    let first = "document.querySelector('article')";
    let texts =
        browser.run(&format!("return [...{first}.querySelectorAll('.reply')].map((reply) => reply.textContent)")).await;
    let text = clerk::text(7);
    assert_eq!(texts, json!([format!("re: {text}"), format!("Dear customer, re: {text}")]), "text, not markup");
    let words = ".querySelectorAll('ins')].map((words) => words.textContent.trim()).filter(Boolean).join(' ')";
    assert_eq!(browser.run(&format!("return [...{first}{words}")).await, "Dear customer,");
    browser.type_into("document.getElementById('words')", &text[..text.len() - 5]).await;
    let sought = "return document.getElementById('shown').textContent";
    browser.until("what is searched for alone", sought, |shown| shown == "1 of 100 shown").await;
    browser.click("document.querySelector('input[value=text]')").await;
    browser.until("nothing without its kind", sought, |shown| shown == "0 of 100 shown").await;
    assert_eq!(browser.complaints().await, Vec::<String>::new(), "nothing is against the page's own policy");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_was_killed_goes_on_as_if_it_had_not_been() {
    const TURNS: usize = 600;
    const HELD: usize = 350;
    let desk = Desk::with(TURNS).await;
    let (code, stderr) = desk.replay("whole", &[]).await;
    assert_eq!(code, Some(0), "{stderr}");
    let order: Vec<Value> = lines(&desk.out("whole")).iter().map(|line| line["message"].clone()).collect();
    let held = order[HELD].as_str().unwrap().to_owned();

    let other = Desk { clerk: Clerk::start().await, ..desk };
    let configuration = other.folder.path().join("turnwise.toml");
    let text = std::fs::read_to_string(&configuration).unwrap();
    let port = text.lines().find(|line| line.starts_with("base_url")).unwrap().to_owned();
    std::fs::write(&configuration, text.replace(&port, &format!("base_url = {}", quoted(&other.clerk.base_url()))))
        .unwrap();
    other.clerk.hold(Some(held.clone()));
    let arguments = [&SINCE, &["--responder", "formal"][..]].concat();
    let mut replay = other.command("killed", &arguments).spawn().unwrap();
    other.clerk.wait_for(&held).await;
    let lines_file = other.out("killed").join("turns.jsonl");
    eventually("all turns before the one that hangs", PATIENCE, async || {
        (std::fs::read_to_string(&lines_file).ok()?.lines().count() == HELD).then_some(())
    })
    .await;
    replay.kill().await.unwrap();
    assert_eq!(run_of(&other.out("killed"))["state"], "running");
    let whole = std::fs::read(&lines_file).unwrap();
    std::fs::write(&lines_file, [&whole[..], b"{\"turn\":\"0192"].concat()).unwrap();
    other.clerk.hold(None);
    let (code, stderr) = other.replay("killed", &[]).await;
    assert_eq!(code, Some(0), "{stderr}");

    let asked = other.clerk.asked();
    let twice: Vec<_> = asked.iter().filter(|(_, times)| **times > 1).collect();
    assert!(asked.len() == TURNS && twice.len() <= 8 && twice.iter().all(|(_, times)| **times == 2), "{twice:?}");
    assert!(twice.iter().all(|(message, _)| order[HELD..].contains(&json!(message))), "{twice:?}");
    let timeless = |mut line: Value| {
        line["candidate"]["latency_ms"] = Value::Null;
        line["trace_id"] = Value::Null;
        line
    };
    let [whole, killed] =
        ["whole", "killed"].map(|name| lines(&other.out(name)).into_iter().map(timeless).collect::<Vec<_>>());
    assert_eq!(whole, killed);
    for number in ["turns", "changed", "errors", "tokens", "recorded", "changes"] {
        assert_eq!(run_of(&other.out("whole"))[number], run_of(&other.out("killed"))[number], "{number}");
    }
    let before = other.clerk.asked();
    let (code, stderr) = other.replay("killed", &[]).await;
    assert_eq!((code, other.clerk.asked()), (Some(0), before), "a run that is finished asks nobody: {stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spending_stops_samples_are_kept_and_texts_can_be_left_out() {
    let desk = Desk::with(200).await;
    let (code, stderr) = desk.replay("capped", &["--max-tokens", "2400", "--concurrency", "1"]).await;
    assert_eq!((code, &run_of(&desk.out("capped"))["state"]), (Some(1), &json!("stopped")), "{stderr}");
    assert!(desk.clerk.asked().len() <= 22, "{}", desk.clerk.asked().len());
    let (code, stderr) = desk.replay("capped", &["--max-tokens", "1000000"]).await;
    assert_eq!((code, &run_of(&desk.out("capped"))["turns"]), (Some(0), &json!(200)), "{stderr}");

    let (code, stderr) = desk.replay("sample", &["--sample", "20%", "--redact"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    let sampled = lines(&desk.out("sample"));
    assert!((15..70).contains(&sampled.len()), "{}", sampled.len());
    for file in ["turns.jsonl", "report.html", "run.json"] {
        let text = std::fs::read_to_string(desk.out("sample").join(file)).unwrap();
        assert!(!text.contains("re: message") && !text.contains("customer"), "{file} has what was said");
    }
    let (code, stderr) = desk.replay("one", &["--conversation", "user-7"]).await;
    assert_eq!(code, Some(0), "{stderr}");
    let of_one: Vec<Value> = lines(&desk.out("one")).iter().map(|line| line["message"].clone()).collect();
    assert_eq!(of_one, [json!(clerk::text(7))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_said_before_anything_is_asked() {
    let desk = Desk::with(3).await;
    let (code, stderr) = desk.replay("taken", &[]).await;
    assert_eq!(code, Some(0), "{stderr}");
    std::fs::create_dir(desk.out("full")).unwrap();
    std::fs::write(desk.out("full").join("notes.txt"), "mine").unwrap();
    let asked = desk.clerk.asked();
    let known = &["--since", "1h", "--responder", "formal"][..];
    for (out, arguments, words) in [
        ("new", &["--since", "yesterday", "--responder", "formal"][..], "expected a date"),
        ("new", &["--since", "1h", "--until", "2h", "--responder", "formal"], "not before --until"),
        (
            "new",
            &["--since", "1h", "--responder", "formall"],
            "there is no responder \"formall\"; there is assistant, formal",
        ),
        ("new", &[known, &["--bot", "nobody"]].concat(), "there is no bot \"nobody\""),
        ("new", &[known, &["--conversation", "?"]].concat(), "expected a conversation's id"),
        ("new", &[known, &["--sample", "200%"]].concat(), "from 0% to 100%"),
        ("full", known, "holds other files"),
        ("taken", &[known, &["--free-run"]].concat(), "holds another replay"),
        ("taken", &["--since", "2h", "--responder", "formal"], "holds another replay"),
    ] {
        let output = desk.command(out, arguments).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
    let nothing = desk.command("new", &["--since", "2001-01-01", "--until", "2001-01-02", "--responder", "formal"]);
    let output = { nothing }.output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("no turn to replay"), "{stderr}");
    assert_eq!(desk.clerk.asked(), asked, "nobody was asked");
}
