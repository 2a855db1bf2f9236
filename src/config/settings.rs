//! What the tables of the configuration hold once they are read, and the defaults: here those of the deployment.
//!
//! Refuses to read anything: that is the neighbours' work. Invariant: a default is written here and nowhere else.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::secret::Secret;

mod bots;
mod responders;
mod tools;

pub use bots::*;
pub use responders::*;
pub use tools::*;

#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    pub listen: SocketAddr,
    /// Where platforms reach us, without a slash at the end.
    pub public_url: Option<String>,
    /// 1024 to 67108864.
    pub max_body_bytes: usize,
    /// Connections of clients that are served at once, 8 to 1000000; those beyond are told so and closed.
    pub max_connections: usize,
    /// How long running turns and requests may take to end after the signal to stop.
    pub shutdown_grace: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8_080)),
            public_url: None,
            max_body_bytes: 1_048_576,
            // Those of 10,000 callers that wait for answers, and half as many again for everybody else.
            max_connections: 16_384,
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Every publish is on the disk before it is acknowledged.
    Always,
    /// Every two minutes: faster, and a power loss takes what came since.
    Interval,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Nats {
    pub server: NatsServer,
    pub auth: NatsAuth,
    pub tls: Option<NatsTls>,
    /// Where answers and deliveries come to, so that the server can keep other users of the account from listening.
    pub inbox_prefix: String,
    /// 1, 3 or 5.
    pub replicas: usize,
    /// 1 to 1024.
    pub partitions: u16,
    /// How long the streams keep a message, so how far back replay can reach.
    pub max_age: Duration,
    /// How long the streams recognise a message that was published before; at most `max_age`.
    pub duplicate_window: Duration,
}

impl Nats {
    pub(super) const DEFAULT_INBOX_PREFIX: &str = "_INBOX";
    pub(super) const DEFAULT_REPLICAS: usize = 1;
    pub(super) const DEFAULT_PARTITIONS: u16 = 64;
    pub(super) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
    pub(super) const DEFAULT_DUPLICATE_WINDOW: Duration = Duration::from_secs(600);

    /// A server with everything else at its default.
    pub(super) fn new(server: NatsServer) -> Self {
        Self {
            inbox_prefix: Self::DEFAULT_INBOX_PREFIX.to_owned(),
            server,
            auth: NatsAuth::None,
            tls: None,
            replicas: Self::DEFAULT_REPLICAS,
            partitions: Self::DEFAULT_PARTITIONS,
            max_age: Self::DEFAULT_MAX_AGE,
            duplicate_window: Self::DEFAULT_DUPLICATE_WINDOW,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum NatsServer {
    /// Connect to these addresses.
    Urls(Vec<String>),
    /// Run a nats-server child on a free loopback port.
    Managed {
        sync: Sync,
        /// The folder of its data: beside the database if that is a file, else beside the configuration.
        data: PathBuf,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum NatsAuth {
    None,
    Token(Secret),
    Password {
        user: String,
        password: Secret,
    },
    /// The contents of a `.creds` file.
    Credentials(Secret),
}

/// TLS is required, also towards addresses that do not say so.
#[derive(Debug, Clone, PartialEq)]
pub struct NatsTls {
    /// Absent: the certificates that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our own certificate; present exactly when `key` is.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// `sqlite://PATH` with an absolute path, in which `%` and `?` are written `%25` and `%3F`, or `postgres://...`, which may
    /// hold a password.
    pub url: Secret,
    pub max_connections: u32,
}

impl Database {
    pub(super) const DEFAULT_MAX_CONNECTIONS: u32 = 16;

    /// The address of an SQLite file; sqlx ends the path at a `?` and then undoes the escapes.
    pub(super) fn sqlite_url(file: &Path) -> Secret {
        let path = file.to_string_lossy().replace('%', "%25").replace('?', "%3F");
        Secret::new(format!("sqlite://{path}"))
    }

    /// The file, if the database is one.
    #[must_use]
    pub fn sqlite_file(&self) -> Option<PathBuf> {
        let path = self.url.expose().strip_prefix("sqlite://")?;
        Some(PathBuf::from(path.replace("%3F", "?").replace("%25", "%")))
    }

    /// Where a managed NATS server keeps its data: beside the file, or in `folder` when the database is a server.
    pub(super) fn nats_data(&self, folder: &Path, namespace: &str) -> PathBuf {
        let file = self.sqlite_file().unwrap_or_else(|| folder.join(namespace));
        let mut data = file.into_os_string();
        data.push("-nats");
        PathBuf::from(data)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Turns in flight in this process: 1 to 100000.
    pub max_turns: usize,
    /// Messages of one conversation kept in memory: 1 to 10000.
    pub lane_backlog: usize,
    /// How often a turn is tried before it is dead-lettered: 1 to 100.
    pub max_attempts: u32,
    /// For one attempt.
    pub turn_timeout: Duration,
}

impl Default for Worker {
    fn default() -> Self {
        Self { max_turns: 4_096, lane_backlog: 64, max_attempts: 4, turn_timeout: Duration::from_secs(120) }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Without a slash at the end; absent: traces are not exported.
    pub otlp_endpoint: Option<String>,
    pub otlp_protocol: OtlpProtocol,
    pub service_name: String,
    /// Share of traces that are kept: 0 to 1.
    pub sample_ratio: f64,
    /// Whether the text of messages is put on spans.
    pub record_content: bool,
}

/// How traces travel to `otlp_endpoint`: <https://opentelemetry.io/docs/specs/otlp/>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP; collectors listen on port 4318.
    Http,
    /// Collectors listen on port 4317.
    Grpc,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Http,
            service_name: "turnwise".to_owned(),
            sample_ratio: 1.0,
            record_content: false,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Console {
    /// Opens everything: the console, and every bot's conversations in the API.
    pub token: Option<Secret>,
    /// Opens the console to look at, and nothing else.
    pub read_token: Option<Secret>,
    /// Where a trace can be looked at; `{trace_id}` stands for its id.
    pub trace_url: Option<String>,
    /// The folder of replay runs, each a folder of its own.
    pub replays: Option<PathBuf>,
    /// Whether the console needs no token: in `turnwise dev` alone, and only where no other machine reaches it.
    pub is_open: bool,
}
