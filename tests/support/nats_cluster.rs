//! A cluster of three real nats-servers with JetStream, each a process of its own; what they say to one another and what
//! clients say to them goes through gates that a test can shut.
//!
//! Refuses to let anybody around the gates: the servers tell routes and clients only the gates' addresses. Invariant: the
//! processes end with the value that holds them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::nats::find_binary;
use super::{PATIENCE, eventually, free_port};

const NODES: usize = 3;

/// An election takes 4 to 9 s, and a cluster that starts needs one for itself and one for each stream.
const ELECTION_LIMIT: Duration = Duration::from_secs(60);

/// A way for connections that can be shut: then those there are end, and new ones are refused.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

impl Gate {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = watch::Sender::new(true);
        let mut connections = JoinSet::new();
        let state = open.subscribe();
        connections.spawn(async move {
            let mut passing = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                passing.spawn(pass(client, port, state.clone()));
            }
        });
        Self { address, open, _connections: connections }
    }
}

async fn pass(mut client: TcpStream, port: u16, mut open: watch::Receiver<bool>) {
    if !*open.borrow() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    tokio::select! {
        _ = open.wait_for(|open| !open) => {}
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
    }
}

struct Node {
    name: String,
    client_port: u16,
    /// For clients.
    client_gate: Gate,
    /// For the routes of the node at that place to this one; its own place is the address that this node tells others of.
    route_gates: Vec<Gate>,
    child: Option<Child>,
}

pub(crate) struct NatsCluster {
    nodes: Vec<Node>,
    directory: TempDir,
    binary: PathBuf,
}

impl NatsCluster {
    /// Returns once JetStream answers on every node.
    pub(crate) async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let mut nodes = Vec::new();
        let mut route_ports = Vec::new();
        for place in 0..NODES {
            let (client_port, route_port) = (free_port(), free_port());
            let mut route_gates = Vec::new();
            for _ in 0..NODES {
                route_gates.push(Gate::to(route_port).await);
            }
            let client_gate = Gate::to(client_port).await;
            nodes.push(Node { name: format!("node-{place}"), client_port, client_gate, route_gates, child: None });
            route_ports.push(route_port);
        }
        for (place, node) in nodes.iter().enumerate() {
            let others = nodes.iter().enumerate().filter(|(other, _)| *other != place);
            let routes: Vec<_> =
                others.map(|(_, other)| format!("\"nats-route://{}\"", other.route_gates[place].address)).collect();
            let configuration = format!(
                "server_name: {}\nlisten: \"127.0.0.1:{}\"\nclient_advertise: \"{}\"\n\
                 jetstream {{\n  store_dir: \"{}\"\n}}\n\
                 cluster {{\n  name: stand-in\n  listen: \"127.0.0.1:{}\"\n  advertise: \"{}\"\n  routes: [{}]\n}}\n",
                node.name,
                node.client_port,
                node.client_gate.address,
                directory.path().join(&node.name).display(),
                route_ports[place],
                node.route_gates[place].address,
                routes.join(", ")
            );
            std::fs::write(directory.path().join(format!("{}.conf", node.name)), configuration).unwrap();
        }
        let mut cluster = Self { nodes, directory, binary: find_binary() };
        for place in 0..NODES {
            cluster.spawn(place);
        }
        for place in 0..NODES {
            cluster.answers(place).await;
        }
        cluster
    }

    /// For `nats.url`: every node, through its gate.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("nats://{}", node.client_gate.address)).collect()
    }

    /// The place of the node that leads this stream; waits while there is none.
    pub(crate) async fn leader(&self, stream: &str) -> usize {
        let leader = eventually("the stream to have a leader", ELECTION_LIMIT, async || {
            self.info(stream).await?.cluster?.leader
        });
        let leader = leader.await;
        self.nodes.iter().position(|node| node.name == leader).unwrap()
    }

    /// Returns once every copy of this stream has all of it; says how many copies there are.
    pub(crate) async fn whole(&self, stream: &str) -> usize {
        eventually("every copy of the stream to be current", ELECTION_LIMIT, async || {
            let cluster = self.info(stream).await?.cluster?;
            let whole = cluster.leader.is_some() && cluster.replicas.iter().all(|one| one.current && !one.offline);
            whole.then_some(cluster.replicas.len() + 1)
        })
        .await
    }

    /// SIGKILL.
    pub(crate) async fn kill9(&mut self, place: usize) {
        self.nodes[place].child.take().expect("the node runs").kill().await.unwrap();
    }

    /// Returns once JetStream answers on the node.
    pub(crate) async fn start_again(&mut self, place: usize) {
        self.spawn(place);
        self.answers(place).await;
    }

    /// Nobody hears this node any more, and it hears nobody.
    pub(crate) fn isolate(&self, place: usize) {
        self.open(place, false);
    }

    /// Ends the isolation.
    pub(crate) fn reconnect(&self, place: usize) {
        self.open(place, true);
    }

    fn open(&self, place: usize, open: bool) {
        self.nodes[place].client_gate.open.send_replace(open);
        for (to, node) in self.nodes.iter().enumerate() {
            for (from, gate) in node.route_gates.iter().enumerate() {
                // At its own place is the way in for whoever heard of the node from another; nobody can tell who that is.
                if to == place || from == place || to == from {
                    gate.open.send_replace(open);
                }
            }
        }
    }

    fn spawn(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        assert!(node.child.is_none(), "{} runs already", node.name);
        let path = |ending: &str| self.directory.path().join(format!("{}.{ending}", node.name));
        let log = std::fs::File::options().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(path("conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        node.child = Some(command.spawn().unwrap());
    }

    async fn answers(&self, place: usize) {
        eventually("JetStream to answer on a node", ELECTION_LIMIT, async || {
            self.jetstream(place).await?.query_account().await.ok()
        })
        .await;
    }

    /// What a node that runs and is not isolated says of the stream.
    async fn info(&self, stream: &str) -> Option<jetstream::stream::Info> {
        for (place, node) in self.nodes.iter().enumerate() {
            if node.child.is_some()
                && *node.client_gate.open.borrow()
                && let Some(jetstream) = self.jetstream(place).await
                && let Ok(stream) = jetstream.get_stream(stream).await
            {
                return Some(stream.cached_info().clone());
            }
        }
        None
    }

    async fn jetstream(&self, place: usize) -> Option<jetstream::Context> {
        let address = format!("127.0.0.1:{}", self.nodes[place].client_port);
        let client = tokio::time::timeout(PATIENCE, async_nats::connect(address)).await.ok()?.ok()?;
        Some(jetstream::new(client))
    }
}

impl Drop for NatsCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = self.directory.path().join(format!("{}.log", node.name));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                eprintln!("--- {} ---\n{}", node.name, lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
    }
}
