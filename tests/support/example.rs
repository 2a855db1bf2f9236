//! The worked examples of `deploy/examples` and `examples` as a newcomer runs them: their own files, with a NATS, a port and a
//! database of the test's.
//!
//! Refuses to change anything else in them than a test says. Invariant: every process ends with the value that holds it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::nats::NatsServer;
use super::process::{BINARY, quoted};
use super::{PATIENCE, eventually, free_port, http_client};

/// An example that runs.
pub(crate) struct Example {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
    _nats: NatsServer,
}

impl Example {
    /// `turnwise serve` with the files of `deploy/examples/NAME`; each edit is a text in its configuration and what to write
    /// instead.
    pub(crate) async fn serve(name: &str, edits: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        for entry in std::fs::read_dir(examples().join(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let text = std::fs::read_to_string(folder.path().join("turnwise.toml")).unwrap();
        let text = edits.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "the example has no {from}");
            text.replace(from, to)
        });
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config", "turnwise.toml"]);
        Self::start(folder, command, &text).await
    }

    /// A program with the path of its configuration as the one argument.
    pub(crate) async fn program(program: &Path, configuration: &str) -> Self {
        let mut command = Command::new(program);
        command.arg("turnwise.toml");
        Self::start(TempDir::new().unwrap(), command, configuration).await
    }

    async fn start(folder: TempDir, mut command: Command, configuration: &str) -> Self {
        let (nats, port) = (NatsServer::start().await, free_port());
        let (managed, listen) = ("managed = true", "listen = \"127.0.0.1:8080\"");
        assert!(configuration.contains(managed) && configuration.contains(listen), "{configuration}");
        let configuration = configuration
            .replace(managed, &format!("url = {}\npartitions = 4", quoted(&nats.url())))
            .replace(listen, &format!("listen = \"127.0.0.1:{port}\""));
        std::fs::write(folder.path().join("turnwise.toml"), configuration).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.current_dir(folder.path()).env("RUST_LOG", "info").kill_on_drop(true);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let ready = format!("http://127.0.0.1:{port}/readyz");
        eventually("the example to be ready", PATIENCE, async || {
            if let Some(status) = child.try_wait().unwrap() {
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                panic!("the example ended with {status} before it was ready: {log}");
            }
            let answer = http_client().get(&ready).send().await.ok()?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
        Self { folder, port, child: Some(child), _nats: nats }
    }

    /// Says something on `device`, and returns what the bot has said since, oldest first, with the conversation as it is now.
    pub(crate) async fn say(&self, device: &str, message: &str) -> (Vec<String>, Value) {
        let body = json!({ "device_id": device, "message": message });
        let answer = http_client().post(self.url("/v1/chat")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{message}");
        let answer: Value = answer.json().await.unwrap();
        let id = answer["conversation_id"].as_str().unwrap();
        let messages = self.get(&format!("/v1/conversations/{id}/messages?device_id={device}&limit=100")).await;
        let mut said: Vec<String> = Vec::new();
        for message in messages["messages"].as_array().unwrap() {
            match message["role"].as_str() {
                Some("user") => said.clear(),
                _ => said.push(message["content"].as_str().unwrap().to_owned()),
            }
        }
        (said, self.get(&format!("/v1/conversations/{id}?device_id={device}")).await)
    }

    /// SIGTERM, to the end; the process must end with exit code 0.
    pub(crate) async fn terminate(mut self) {
        let mut child = self.child.take().unwrap();
        let id = child.id().unwrap();
        let kill = Command::new("sh").arg("-c").arg(format!("kill -TERM {id}")).status().await.unwrap();
        assert!(kill.success(), "kill ended with {kill}");
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), Some(0), "exit code after SIGTERM");
    }

    async fn get(&self, path: &str) -> Value {
        let answer = http_client().get(self.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- what the example said ---\n{log}--- end ---");
        }
    }
}

/// A service that prints its address on its first line.
pub(crate) struct Service {
    pub(crate) url: String,
    _child: Child,
}

impl Service {
    pub(crate) async fn start(program: &Path, script: &str, token: Option<&str>) -> Self {
        let mut command = Command::new(program);
        command.arg(examples().join(script)).arg("0").kill_on_drop(true);
        command.envs(token.map(|token| ("BOT_TOKEN", token))).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
        Self { url: first.expect("the service says where it listens"), _child: child }
    }
}

/// What a script of `scripts/` finds or fetches; `make test` has run it already, and says so in `variable`.
pub(crate) async fn found(variable: &str, script: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let output = Command::new(&script).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(output.status.success(), "{} ended with {}", script.display(), output.status);
    String::from_utf8(output.stdout).unwrap().trim_end().into()
}

/// An example of the library, built; nothing happens when `cargo test` has built it already.
pub(crate) async fn built(name: &str) -> PathBuf {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    assert!(command.status().await.unwrap().success(), "the example {name} cannot be built");
    Path::new(BINARY).parent().unwrap().join("examples").join(name)
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples")
}
