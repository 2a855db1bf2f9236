//! A real nats-server of the test's own: free port, own store, JetStream that syncs every publish to disk; it can be killed
//! and started again on the same port and store.
//!
//! Refuses to download anything. Invariant: the process ends with the value that holds it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_nats::jetstream;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{PATIENCE, eventually, free_port};

pub(crate) struct NatsServer {
    binary: PathBuf,
    port: u16,
    directory: TempDir,
    child: Option<Child>,
}

impl NatsServer {
    pub(crate) async fn start() -> Self {
        let mut server =
            Self { binary: find_binary(), port: free_port(), directory: TempDir::new().unwrap(), child: None };
        let store = server.store();
        let configuration = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{\n  store_dir: \"{}\"\n  sync_interval: always\n}}\n",
            server.port,
            store.display()
        );
        std::fs::write(server.configuration(), configuration).unwrap();
        server.start_again().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// SIGKILL: nothing is flushed, nobody is told.
    pub(crate) async fn kill9(&mut self) {
        let mut child = self.child.take().expect("nats-server runs");
        child.kill().await.unwrap();
    }

    /// Starts on the same port and store; returns once JetStream answers.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.is_none(), "nats-server runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new(&self.binary)
            .arg("-c")
            .arg(self.configuration())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let child = self.child.insert(child);
        let url = format!("nats://127.0.0.1:{}", self.port);
        let log = self.directory.path().join("nats.log");
        eventually("nats-server to answer", PATIENCE, async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("nats-server ended with {status}:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            let client = async_nats::connect(&url).await.ok()?;
            jetstream::new(client).query_account().await.ok()
        })
        .await;
    }

    /// A JetStream context on a connection of its own.
    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(async_nats::connect(self.url()).await.unwrap())
    }

    /// How many messages the stream has ever taken; 0 when there is no such stream.
    pub(crate) async fn last_sequence(&self, stream: &str) -> u64 {
        match self.jetstream().await.get_stream(stream).await {
            Ok(stream) => stream.cached_info().state.last_sequence,
            Err(_) => 0,
        }
    }

    /// Where its streams lie.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("nats.conf")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("nats.log")
    }
}

/// `TURNWISE_NATS_SERVER`, else the project's tools folder, else PATH.
pub(crate) fn find_binary() -> PathBuf {
    if let Some(named) = std::env::var_os("TURNWISE_NATS_SERVER") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "TURNWISE_NATS_SERVER names no file: {}", named.display());
        return named;
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/nats-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools)
        .chain(std::env::split_paths(&path).map(|folder| folder.join("nats-server")))
        .find(|candidate| candidate.is_file())
        .expect("no nats-server in .tools or on PATH\nhint: run `make test`, which fetches it")
}
