//! The MCP server that exercises the whole protocol, as a process of the test's own: over HTTP on a port, to be killed and
//! started again on it, or as the command that a configuration names.
//!
//! Refuses to download anything. Invariant: the process ends with the value that holds it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::support::{PATIENCE, eventually, free_port};

pub(crate) struct Everything {
    port: u16,
    child: Option<Child>,
    /// How many requests it has been posted.
    pub(crate) heard: watch::Sender<usize>,
}

impl Everything {
    /// A port of its own, on which nobody listens yet.
    pub(crate) fn away() -> Self {
        Self { port: free_port(), child: None, heard: watch::Sender::new(0) }
    }

    pub(crate) async fn start() -> Self {
        let mut server = Self::away();
        server.start_again().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    pub(crate) async fn kill9(&mut self) {
        self.child.take().expect("the server runs").kill().await.unwrap();
    }

    /// On the same port, without any memory; returns once it listens.
    pub(crate) async fn start_again(&mut self) {
        let mut command = Command::new("node");
        command.arg(script()).arg("streamableHttp").env_clear().env("PORT", self.port.to_string());
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let child = self.child.insert(command.spawn().unwrap());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let heard = self.heard.clone();
        tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                heard.send_modify(|posts| *posts += usize::from(line == "Received MCP POST request"));
            }
        });
        eventually("the MCP server to listen", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
    }
}

/// A command for a configuration. The server ignores `mark`, by which its process is found.
pub(crate) fn command(mark: &str) -> String {
    format!("command = [\"node\", {:?}, \"stdio\", \"{mark}\"]", script().display().to_string())
}

/// The processes that have `mark` among their arguments.
pub(crate) fn processes(mark: &str) -> Vec<u32> {
    let has_mark = |process: &u32| {
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").unwrap();
    let numbers = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    numbers.filter(has_mark).collect()
}

/// SIGKILL to the one process that has `mark`, which is returned.
pub(crate) async fn kill9(mark: &str) -> u32 {
    let [process] = processes(mark)[..] else { panic!("one process has the mark {mark}") };
    let status = Command::new("kill").arg("-9").arg(process.to_string()).status().await.unwrap();
    assert!(status.success());
    process
}

/// `TURNWISE_MCP_EVERYTHING`, else the project's tools folder.
fn script() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/mcp-everything");
    let fetched = tools.join("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    let script = std::env::var_os("TURNWISE_MCP_EVERYTHING").map_or(fetched, PathBuf::from);
    assert!(script.is_file(), "no MCP server at {}\nhint: run `make test`, which fetches it", script.display());
    script
}
