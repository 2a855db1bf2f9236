//! A real aimock of the test's own: an independent imitation of OpenAI's and Anthropic's APIs, playing the fixtures given.
//!
//! Refuses to install anything. Invariant: the process ends with the value that holds it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

pub(crate) struct Aimock {
    /// Without a path.
    pub(crate) base_url: String,
    _fixtures: NamedTempFile,
    /// Kept open: a process that cannot write its log ends.
    _log: BufReader<ChildStdout>,
    _child: Child,
}

impl Aimock {
    /// `fixtures` as <https://aimock.copilotkit.dev/fixtures> has them.
    pub(crate) async fn start(fixtures: &Value) -> Self {
        let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
        std::fs::write(file.path(), fixtures.to_string()).unwrap();
        let mut child = Command::new(find_program())
            .args(["--port", "0", "--fixtures"])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let base_url = loop {
            let mut line = String::new();
            let bytes = log.read_line(&mut line).await.unwrap();
            assert!(bytes > 0, "aimock ended with {}", child.wait().await.unwrap());
            if let Some((_, address)) = line.split_once("listening on ") {
                break address.trim().to_owned();
            }
        };
        Self { base_url, _fixtures: file, _log: log, _child: child }
    }

    /// The requests so far, as aimock understood them: their headers and bodies.
    pub(crate) async fn journal(&self) -> Vec<Value> {
        let response = reqwest::get(format!("{}/__aimock/journal", self.base_url)).await.unwrap();
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }
}

/// `TURNWISE_AIMOCK`, else the project's tools folder.
fn find_program() -> PathBuf {
    if let Some(named) = std::env::var_os("TURNWISE_AIMOCK") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "TURNWISE_AIMOCK names no file: {}", named.display());
        return named;
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/aimock/aimock");
    assert!(installed.is_file(), "no aimock in .tools\nhint: run `make test`, which fetches it");
    installed
}
