//! A stand-in HTTP server on loopback that sends exactly the bytes a test gives it, in exactly those pieces: answers that no
//! real model server gives on purpose.
//!
//! Refuses to guess: a request for which nothing is prepared has its connection closed. Each answer closes its connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// What happens next on the connection.
#[derive(Clone)]
pub(crate) enum Step {
    /// One chunk of the body.
    Bytes(Vec<u8>),
    /// The same chunk again and again, until the client goes away.
    Repeat { bytes: &'static [u8], every: Duration },
    /// Nothing until the test says so.
    Wait(Arc<Notify>),
    /// Nothing, until the client goes away.
    Silence,
    /// The connection is closed in the middle of the body.
    Break,
}

/// One answer: without a [`Step::Break`] or an endless step, its body ends properly after the last.
#[derive(Clone)]
pub(crate) struct Play {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) steps: Vec<Step>,
}

/// A request as it arrived; names of headers in lower case.
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

pub(crate) struct Wire {
    /// Without a path.
    pub(crate) base_url: String,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    _server: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn start(plays: impl IntoIterator<Item = Play>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::unbounded_channel();
        let mut plays: VecDeque<_> = plays.into_iter().collect();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                // A client that went away ends its connection and nothing else.
                let (play, sender) = (plays.pop_front(), sender.clone());
                connections.spawn(async move { serve(stream, play, &sender).await.ok() });
            }
        });
        Self { base_url, seen, _server: server }
    }
}

async fn serve(stream: TcpStream, play: Option<Play>, seen: &mpsc::UnboundedSender<Seen>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    seen.send(request(&mut stream).await?).ok();
    let Some(play) = play else { return Ok(()) };
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n", play.status);
    for (name, value) in &play.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    for step in play.steps {
        match step {
            Step::Bytes(bytes) => chunk(&mut stream, &bytes).await?,
            Step::Repeat { bytes, every } => {
                let mut ticks = tokio::time::interval(every);
                loop {
                    ticks.tick().await;
                    chunk(&mut stream, bytes).await?;
                }
            }
            Step::Wait(go) => go.notified().await,
            Step::Silence => drop(stream.read(&mut [0; 1]).await?),
            Step::Break => return Ok(()),
        }
    }
    stream.write_all(b"0\r\n\r\n").await?;
    stream.shutdown().await
}

/// One chunk of the transfer encoding, flushed: an empty one would end the body.
async fn chunk(stream: &mut BufReader<TcpStream>, bytes: &[u8]) -> std::io::Result<()> {
    if !bytes.is_empty() {
        let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
        framed.extend_from_slice(bytes);
        framed.extend_from_slice(b"\r\n");
        stream.write_all(&framed).await?;
    }
    stream.flush().await
}

async fn request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines[0].split(' ').nth(1).unwrap().to_owned();
    let header =
        |line: &String| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
    let headers: Vec<_> = lines[1..].iter().filter_map(header).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, value)| value.parse().unwrap());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    Ok(Seen { path, headers, body: serde_json::from_slice(&body).unwrap() })
}
