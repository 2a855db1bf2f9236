//! A stand-in for a bad network between Turnwise and nats-server: it passes the protocol on message by message, swallows
//! those that a test names, and cuts connections.
//!
//! Refuses to change a message. Invariant: what is passed on keeps its order and stays whole.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toward {
    Client,
    Server,
}

/// Of the messages of one direction that hold a text, every so-manieth is swallowed until so many are.
#[derive(Debug)]
struct Rule {
    toward: Toward,
    text: &'static str,
    every: usize,
    left: usize,
    seen: usize,
}

pub(crate) struct NatsProxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
    _accepting: JoinSet<()>,
}

struct ProxyState {
    target: Mutex<Option<String>>,
    rules: Mutex<Vec<Rule>>,
    swallowed: watch::Sender<usize>,
    cuts: watch::Sender<usize>,
}

impl NatsProxy {
    /// Listens; where to, [`NatsProxy::forward_to`] says.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(ProxyState {
            target: Mutex::default(),
            rules: Mutex::default(),
            swallowed: watch::Sender::default(),
            cuts: watch::Sender::default(),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let state = Arc::clone(&state);
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    connections.spawn(pass_on(Arc::clone(&state), client));
                }
            }
        });
        Self { address, state, _accepting: accepting }
    }

    /// For `nats.url`.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// `url` is the real server's.
    pub(crate) fn forward_to(&self, url: &str) {
        *self.state.target.lock().unwrap() = Some(url.trim_start_matches("nats://").to_owned());
    }

    /// Of the messages toward that side which hold `text` anywhere, swallows every `every`-th, `count` in all.
    pub(crate) fn swallow(&self, toward: Toward, text: &'static str, every: usize, count: usize) {
        self.state.rules.lock().unwrap().push(Rule { toward, text, every, left: count, seen: 0 });
    }

    /// Lets everything pass again.
    pub(crate) fn swallow_nothing(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    /// How many messages were swallowed so far.
    pub(crate) fn swallowed(&self) -> usize {
        *self.state.swallowed.borrow()
    }

    /// Returns when so many messages were swallowed.
    pub(crate) async fn wait_swallowed(&self, count: usize, limit: Duration) {
        let mut swallowed = self.state.swallowed.subscribe();
        let reached = tokio::time::timeout(limit, swallowed.wait_for(|swallowed| *swallowed >= count)).await.is_ok();
        assert!(reached, "waited {limit:?} in vain for {count} swallowed messages: {}", self.swallowed());
    }

    /// Ends every connection at once, whatever is on its way.
    pub(crate) fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl ProxyState {
    fn swallows(&self, toward: Toward, message: &[u8]) -> bool {
        let mut rules = self.rules.lock().unwrap();
        let swallows = rules.iter_mut().any(|rule| rule.applies(toward, message));
        if swallows {
            self.swallowed.send_modify(|swallowed| *swallowed += 1);
        }
        swallows
    }
}

impl Rule {
    fn applies(&mut self, toward: Toward, message: &[u8]) -> bool {
        let holds = || message.windows(self.text.len()).any(|window| window == self.text.as_bytes());
        if self.toward != toward || self.left == 0 || !holds() {
            return false;
        }
        self.seen += 1;
        let applies = self.seen.is_multiple_of(self.every);
        self.left -= usize::from(applies);
        applies
    }
}

async fn pass_on(state: Arc<ProxyState>, client: TcpStream) {
    let mut cuts = state.cuts.subscribe();
    cuts.mark_unchanged();
    let target = state.target.lock().unwrap().clone().unwrap();
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whichever side ends first, and a cut, ends both.
    tokio::select! {
        _ = cuts.changed() => {}
        _ = copy(&state, Toward::Server, from_client, to_server) => {}
        _ = copy(&state, Toward::Client, from_server, to_client) => {}
    }
}

async fn copy(
    state: &ProxyState,
    toward: Toward,
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut message = Vec::new();
        if from.read_until(b'\n', &mut message).await? == 0 {
            return Ok(());
        }
        if let Some(length) = payload_length(&message) {
            let start = message.len();
            message.resize(start + length + 2, 0);
            from.read_exact(&mut message[start..]).await?;
        }
        if !state.swallows(toward, &message) {
            to.write_all(&message).await?;
        }
    }
}

/// The length that the first line of a message with a payload names last, without the line break behind the payload.
fn payload_length(line: &[u8]) -> Option<usize> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let operation = words.next()?;
    matches!(operation, "PUB" | "HPUB" | "MSG" | "HMSG").then(|| words.next_back().unwrap().parse().unwrap())
}
