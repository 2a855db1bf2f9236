//! The HTTP listener: takes connections and serves HTTP/1.1 on them (RFC 9112).
//!
//! Refuses to wait for clients that do not go on: heads that drip, answers that nobody reads, connections on which nothing
//! happens. Invariants: the connections served at once are bounded, those beyond the bound are told so, and beyond a second
//! bound they wait in the system's queue; whatever a client sends or leaves out, the others are served.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::future::{BoxFuture, poll_fn};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::io::ClientIo;
use self::timer::HeadTimer;

mod io;
mod timer;

/// The head of a request has come whole this long after its first byte: slower than any network, faster than a slow-drip attack.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection without a request is closed after this time. Longer than the 60 s for which the common proxies keep theirs, so
/// that it is they who close it, and no request of theirs meets a connection that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// The longest head, and the most of a body that is read ahead: eight times what browsers send at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The most fields in a head. Beyond either bound the answer is 431.
const FIELDS_MAX: usize = 100;

/// Connections beyond the bound that are answered at once: enough for those who ask for health, few enough to forget.
const TURNED_AWAY_MAX: usize = 64;

/// A connection that was answered is still read for this long, so that a client that is still sending gets the answer before
/// the connection's end (RFC 9112, 9.6); and at most so many bytes of it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The pause after the system could not give another connection, as when too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What is served.
pub(super) struct Routes {
    pub(super) served: Router,
    /// To those for whom there is no room.
    pub(super) no_room: Router,
}

/// Serves until `stop` is cancelled and every connection has ended.
pub(super) async fn serve(listener: TcpListener, routes: Routes, max_connections: usize, stop: CancellationToken) {
    let rooms = Arc::new(Semaphore::new(affordable(max_connections)));
    let doors = Arc::new(Semaphore::new(TURNED_AWAY_MAX));
    let connections = TaskTracker::new();
    let served = TowerToHyperService::new(routes.served);
    let no_room = TowerToHyperService::new(routes.no_room);
    while let Some((stream, place)) = stop.run_until_cancelled(next(&listener, &rooms, &doors)).await {
        let connection = match place {
            Place::Room(permit) => connection(stream, served.clone(), Some(IDLE_TIMEOUT), stop.clone(), permit),
            Place::Door(permit) => connection(stream, no_room.clone(), None, stop.clone(), permit),
        };
        connections.spawn(connection);
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Each connection is an open file. The process raises its own bound as far as it may and leaves a quarter for the database,
/// NATS, models and platforms.
fn affordable(max_connections: usize) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused, the bound stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let affordable = files / 4 * 3;
    if affordable < max_connections {
        tracing::warn!(open_files_max = files, connections_max = affordable, "the system allows fewer connections");
    }
    affordable.clamp(1, max_connections)
}

/// What there is for a connection; it ends with it.
enum Place {
    Room(OwnedSemaphorePermit),
    Door(OwnedSemaphorePermit),
}

async fn next(listener: &TcpListener, rooms: &Arc<Semaphore>, doors: &Arc<Semaphore>) -> (TcpStream, Place) {
    // Held before a connection is taken, so that there is a place for whoever comes.
    let mut place = tokio::select! {
        biased;
        room = acquire(rooms) => Place::Room(room),
        door = acquire(doors) => Place::Door(door),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Room may have been made while nobody came.
                if let (Place::Door(_), Ok(room)) = (&place, Arc::clone(rooms).try_acquire_owned()) {
                    place = Place::Room(room);
                }
                return (stream, place);
            }
            // The client's own doing.
            Err(error) if is_of_client(error.kind()) => {}
            Err(error) => {
                tracing::error!(error = %error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_owned().await {
        Ok(permit) => permit,
        // Nobody closes it.
        Err(_) => std::future::pending().await,
    }
}

fn is_of_client(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset)
}

type Service = TowerToHyperService<Router>;

/// One connection, to its end. Without `idle_timeout` it may bring one request, at once.
async fn connection(
    stream: TcpStream,
    service: Service,
    idle_timeout: Option<Duration>,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    // Events are small and shall not wait for each other; where it is refused, they come later.
    let _ = stream.set_nodelay(true);
    let received = Arc::new(AtomicU64::new(0));
    let respond = |request: Request<Incoming>| -> BoxFuture<'_, Result<_, Infallible>> {
        Box::pin(hyper::service::Service::call(&service, request.map(Body::new)))
    };
    let mut connection = http1::Builder::new()
        .timer(HeadTimer::new(Arc::clone(&received), HEAD_TIMEOUT))
        .header_read_timeout(idle_timeout.unwrap_or(HEAD_TIMEOUT))
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .keep_alive(idle_timeout.is_some())
        .serve_connection(TokioIo::new(ClientIo::new(stream, Arc::clone(&received))), service_fn(respond));
    let ended = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    if let Err(error) = &ended {
        tracing::debug!(error = %error, "a connection ended early");
        // A head of which something has come; before the first byte there is nothing to answer.
        if error.is_timeout() && !parts.read_buf.is_empty() {
            let _ = io.write_all(HEAD_LATE.as_bytes()).await;
        }
    }
    linger(io).await;
}

/// Written here, since there is no request that a handler could answer.
const HEAD_LATE: &str = "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
     connection: close\r\ncontent-length: 125\r\n\r\n\
     {\"type\":\"urn:turnwise:problem:timeout\",\"title\":\"Request Timeout\",\"status\":408,\"detail\":\"The request did not arrive in time.\"}";

/// Ends a connection so that what was written last is read: closed at once, with bytes of the client's unread, the system would
/// throw the answer away.
async fn linger(mut io: ClientIo) {
    if io.shutdown().await.is_err() {
        return;
    }
    let drain = async {
        let mut thrown_away = [0; 4096];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match io.read(&mut thrown_away).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    // Who has not ended it by then has had the time to read.
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Bytes received on a connection so far.
type Received = Arc<AtomicU64>;

fn received(counter: &Received) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_that_is_written_by_hand_is_as_long_as_it_says() {
        let body = HEAD_LATE.split("\r\n\r\n").nth(1).unwrap_or_default();
        assert!(HEAD_LATE.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        assert_eq!(problem["status"], 408);
    }
}
