//! `turnwise dev` as a newcomer meets it: one command, a page, an answer; stopped, started again, killed; and what it says
//! when it cannot start.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::process::BINARY;
use support::{PATIENCE, eventually, free_port, http_client};
use tempfile::TempDir;
use tokio::process::{Child, Command};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_an_answer_and_nothing_left_behind() {
    let folder = TempDir::new().unwrap();
    let mut dev = Dev::start(folder.path()).await;

    let page = dev.get("/").await;
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let policy = header(&page, "content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    assert_eq!(header(&page, "referrer-policy"), "no-referrer");
    let html = page.text().await.unwrap();
    assert!(html.contains("data-bot=\"web\"") && !html.contains("{{"), "the bot's name is filled in: {html}");
    for (path, content_type) in
        [("/assets/page.css", "text/css; charset=utf-8"), ("/widget.js", "text/javascript; charset=utf-8")]
    {
        assert!(html.contains(path), "the page asks for {path}");
        let asset = dev.get(path).await;
        assert_eq!(
            (header(&asset, "content-type"), header(&asset, "x-content-type-options")),
            (content_type, "nosniff")
        );
        assert!(asset.bytes().await.unwrap().len() > 100, "{path} is empty");
    }

    let console = dev.get("/console").await;
    assert_eq!(header(&console, "content-type"), "text/html; charset=utf-8");
    assert!(console.text().await.unwrap().contains("Open without a token, to this machine only"));

    let answer = dev.say("hello").await;
    let conversation = answer["conversation_id"].as_str().unwrap().to_owned();
    assert!(answer["reply"]["content"].as_str().is_some_and(|content| !content.is_empty()), "{answer}");
    let before = dev.messages(&conversation).await;
    assert_eq!(before.as_array().map(Vec::len), Some(2), "{before}");
    let nats = dev.nats_server().expect("a nats-server runs");

    dev.signal("INT").await;
    assert_eq!(dev.ended().await.code(), Some(0), "exit code after Ctrl-C");
    assert!(!runs(nats), "nats-server is left behind");
    assert_eq!(dev.nats_server(), None, "its pid file is gone, or names nobody");

    dev.start_again().await;
    assert_eq!(dev.messages(&conversation).await, before, "the conversation outlives the process");
    let again = dev.say("hello again").await;
    assert_eq!(again["conversation_id"], json!(conversation));

    // Killed, it cannot stop its nats-server: the next start finds the orphan, and everything is still there.
    let orphan = dev.nats_server().expect("a nats-server runs");
    dev.kill9().await;
    assert!(runs(orphan), "a child in a group of its own outlives its parent");
    dev.start_again().await;
    assert!(!runs(orphan), "the orphan is stopped before another one starts");
    assert_eq!(dev.messages(&conversation).await.as_array().map(Vec::len), Some(4));
    dev.say("still there?").await;
    dev.signal("TERM").await;
    assert_eq!(dev.ended().await.code(), Some(0), "exit code after SIGTERM");
    assert_eq!(dev.nats_server(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_way_is_named() {
    let folder = TempDir::new().unwrap();
    let mut dev = Dev::start(folder.path()).await;
    let elsewhere = TempDir::new().unwrap();
    let said = refusal(elsewhere.path(), dev.port, None).await;
    let said = said.replace(&dev.port.to_string(), "PORT").replace(" (os error 98)", "");
    insta::assert_snapshot!(said, @r"
    error: cannot listen on 127.0.0.1:PORT: Address already in use
    hint: another program listens there: stop it, or choose another address (`--listen` of dev, http.listen of serve)
    ");
    assert!(!elsewhere.path().join("turnwise.db").exists(), "nothing is begun");
    let said = refusal(folder.path(), free_port(), None).await;
    let real = folder.path().canonicalize().unwrap();
    insta::assert_snapshot!(said.replace(real.to_str().unwrap(), "DATA"), @r"
    error: DATA/turnwise.db-nats is in use by another turnwise
    hint: stop the other one, or choose another folder for the data
    ");
    dev.say("the first one is none the worse").await;

    let said = refusal(elsewhere.path(), free_port(), Some("/nowhere/nats-server")).await;
    insta::assert_snapshot!(said, @r"
    error: /nowhere/nats-server cannot be run as nats-server: No such file or directory (os error 2)
    hint: `make run` fetches one into ./.tools; or set TURNWISE_NATS_SERVER to the path of a nats-server
    ");
    std::fs::write(elsewhere.path().join("demo.toml"), "[[rule]]\npattern = 7\n").unwrap();
    let said = refusal(elsewhere.path(), free_port(), None).await;
    assert!(said.contains("demo.toml:2"), "the script's fault has its place: {said}");
    let file = folder.path().join("demo.toml");
    let said = refusal(&file, free_port(), None).await;
    assert!(said.contains("cannot create the folder"), "{said}");
    dev.signal("INT").await;
    assert_eq!(dev.ended().await.code(), Some(0));
}

/// What `dev` says of why it does not start; it must end with exit code 1. Log lines, which are JSON, are left out.
async fn refusal(data: &Path, port: u16, nats_server: Option<&str>) -> String {
    let mut command = command(data, port);
    if let Some(path) = nats_server {
        command.env("TURNWISE_NATS_SERVER", path);
    }
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends by itself").unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{stderr}");
    stderr.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n")
}

fn command(data: &Path, port: u16) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("dev").arg("--data").arg(data).args(["--listen", &format!("127.0.0.1:{port}")]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A `turnwise dev`. Its nats-server is stopped with it, by the next start or at the end of the test.
struct Dev {
    data: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Dev {
    async fn start(data: &Path) -> Self {
        let mut dev = Self { data: data.to_owned(), port: free_port(), child: None };
        dev.start_again().await;
        dev
    }

    async fn start_again(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut child = command(&self.data, self.port).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let ready = format!("http://127.0.0.1:{}/readyz", self.port);
        eventually("turnwise dev to be ready", PATIENCE, async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("turnwise dev ended with {status} before it was ready");
            }
            let answer = http_client().get(&ready).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
        self.child = Some(child);
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let response = http_client().get(format!("http://127.0.0.1:{}{path}", self.port)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response
    }

    async fn say(&self, message: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/v1/chat", self.port);
        let body = json!({ "device_id": "phone", "message": message });
        let answer = http_client().post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{message}");
        answer.json().await.unwrap()
    }

    async fn messages(&self, conversation: &str) -> Value {
        let path = format!("/v1/conversations/{conversation}/messages?device_id=phone");
        self.get(&path).await.json::<Value>().await.unwrap()["messages"].clone()
    }

    async fn signal(&self, signal: &str) {
        let id = self.child.as_ref().and_then(Child::id).expect("turnwise dev runs");
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {id}")).status().await.unwrap();
        assert!(sent.success(), "kill ended with {sent}");
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("turnwise dev runs");
        tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends after the signal").unwrap()
    }

    async fn kill9(&mut self) {
        self.child.take().expect("turnwise dev runs").kill().await.unwrap();
    }

    /// The process that the pid file names, if it runs.
    fn nats_server(&self) -> Option<u32> {
        let file = find(&self.data, "nats-server.pid")?;
        let pid = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
        runs(pid).then_some(pid)
    }

    fn log(&self) -> PathBuf {
        self.data.join("dev.log")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- turnwise dev ---\n{}", std::fs::read_to_string(self.log()).unwrap_or_default());
        }
        // A test that fails must not leave a server behind; the file names ours and nobody else's.
        if let Some(pid) = self.nats_server() {
            let _sent = std::process::Command::new("sh").arg("-c").arg(format!("kill -KILL {pid}")).status();
        }
    }
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name}: {response:?}")).to_str().unwrap()
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let here = paths.iter().find(|path| path.file_name().is_some_and(|found| found == name)).cloned();
    here.or_else(|| paths.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}

/// Whether the process runs; one that has ended and waits for its parent does not.
fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}
