//! The table `[nats]`: which server, how to prove who we are, and how long the streams keep what.
//!
//! Refuses a combination that means two things at once. Invariant: a managed server has no address, no login and one replica.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::duration::spell;
use super::expected::{Expected, duration, flag, nats_url, text, whole, word};
use super::reader::{Table, Value};
use super::secret::{self, path};
use super::{Nats, NatsAuth, NatsServer, NatsTls, Sync};

/// One KV key and one consumer each; a server allows 1,000 consumers per stream before it must be told otherwise, and
/// partitions are units of ownership, so a few per process are enough.
const PARTITIONS: RangeInclusive<u16> = 1..=1_024;

/// RAFT groups vote: an even number survives no more failures than the odd one below, and JetStream takes at most 5.
const REPLICAS: [usize; 3] = [1, 3, 5];

/// A message older than this leaves the stream even if no turn has run: an outage shorter than an hour must never lose one.
/// Ten years stay far below 2^63 nanoseconds, in which JetStream counts.
const MAX_AGE: RangeInclusive<Duration> = Duration::from_secs(3_600)..=Duration::from_secs(3_650 * 86_400);

/// A second covers a client's own retry. The server keeps every id of the window in memory, and the platforms send a message
/// again for at most a day; older ones are caught by the database.
const DUPLICATE_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Seeds of one cluster; the client learns the others.
const URLS_MAX: usize = 16;

/// NATS sets no limit; this keeps a pasted file out.
const USER_CHARS_MAX: usize = 255;

/// `None` after a problem.
///
/// `data` is the folder for a managed server's data, `None` after a problem that leaves it open.
pub(super) fn read(table: &Table<'_>, data: Option<PathBuf>) -> Option<Nats> {
    let managed = table.value("managed").map_or(Some(false), |value| value.read(&flag()));
    let server = server(table, managed, data);
    let auth = auth(table);
    let tls = tls(table);
    if managed == Some(true) {
        refuse_logins(table);
    }
    let max_age = table.optional("max_age", &duration(MAX_AGE, "7d")).unwrap_or(Nats::DEFAULT_MAX_AGE);
    let nats = Nats {
        replicas: replicas(table, managed == Some(true)),
        partitions: table.optional("partitions", &whole(PARTITIONS)).unwrap_or(Nats::DEFAULT_PARTITIONS),
        max_age,
        duplicate_window: duplicate_window(table, max_age),
        server: server?,
        auth,
        tls,
    };
    table.finish(&[]);
    Some(nats)
}

fn server(table: &Table<'_>, managed: Option<bool>, data: Option<PathBuf>) -> Option<NatsServer> {
    const SYNCS: &[(&str, Sync)] = &[("always", Sync::Always), ("interval", Sync::Interval)];
    let sync = table.value("sync");
    let urls = table.value("url");
    match (urls, managed?) {
        (Some(urls), true) => {
            urls.problem("stands beside managed = true", "keep one of them");
            None
        }
        (None, true) => {
            let sync = sync.map_or(Some(Sync::Always), |sync| sync.read(&word(SYNCS)));
            Some(NatsServer::Managed { sync: sync?, data: data? })
        }
        (urls, false) => {
            if let Some(sync) = sync {
                sync.problem("is a setting of the managed server only", "remove it, or replace url by managed = true");
            }
            let Some(urls) = urls else {
                table
                    .missing("url", "write url = \"nats://127.0.0.1:4222\", or managed = true for a server of our own");
                return None;
            };
            url_list(&urls).map(NatsServer::Urls)
        }
    }
}

fn url_list(value: &Value<'_>) -> Option<Vec<String>> {
    if value.as_str().is_some() {
        return Some(vec![value.read(&nats_url())?]);
    }
    let urls = value.list(&nats_url())?;
    if urls.is_empty() || urls.len() > URLS_MAX {
        value.problem(format!("lists {} addresses", urls.len()), format!("write 1 to {URLS_MAX} addresses"));
        return None;
    }
    Some(urls)
}

fn auth(table: &Table<'_>) -> NatsAuth {
    let ways = ["credentials", "token", "user"].map(|key| table.value(key).map(|value| (key, value)));
    let credentials = table.optional_secret("credentials", &secret::NATS_CREDENTIALS);
    let token = table.optional_secret("token", &secret::ANY);
    let user = table.optional("user", &text(USER_CHARS_MAX));
    let password = table.optional_secret("password", &secret::ANY);

    let mut ways = ways.into_iter().flatten();
    if let (Some((first, _)), Some((_, second))) = (ways.next(), ways.next()) {
        second.problem(format!("stands beside {first}"), "keep one way to log in");
    }
    match (table.value("user"), table.value("password")) {
        (Some(user), None) => user.problem("has no password beside it", "add password"),
        (None, Some(password)) => password.problem("has no user beside it", "add user"),
        _ => {}
    }
    match (credentials, token, user.zip(password)) {
        (Some(credentials), ..) => NatsAuth::Credentials(credentials),
        (None, Some(token), _) => NatsAuth::Token(token),
        (None, None, Some((user, password))) => NatsAuth::Password { user, password },
        (None, None, None) => NatsAuth::None,
    }
}

fn tls(table: &Table<'_>) -> Option<NatsTls> {
    let tls = table.value("tls")?.table()?;
    let file = |key| tls.optional(key, &path()).map(|path| table.reading.resolve(&path));
    let files = NatsTls { ca: file("ca"), cert: file("cert"), key: file("key") };
    match (tls.value("cert"), tls.value("key")) {
        (Some(cert), None) => cert.problem("has no key beside it", "add key"),
        (None, Some(key)) => key.problem("has no cert beside it", "add cert"),
        _ => {}
    }
    tls.finish(&[]);
    Some(files)
}

fn refuse_logins(table: &Table<'_>) {
    for key in ["credentials", "token", "user", "password", "tls"] {
        if let Some(value) = table.value(key) {
            value.problem("has no meaning for the managed server, which serves this process only", "remove it");
        }
    }
}

fn replicas(table: &Table<'_>, managed: bool) -> usize {
    let expected = Expected::integer("write 1, or 3 or 5 in a cluster", |number| {
        REPLICAS.into_iter().find(|replicas| i64::try_from(*replicas) == Ok(number))
    });
    let Some(replicas) = table.optional("replicas", &expected) else { return Nats::DEFAULT_REPLICAS };
    if managed && replicas > 1 {
        let wrong = "is more than the one server that managed = true runs";
        table.value("replicas").inspect(|value| value.problem(wrong, "write 1, or replace managed by url"));
    }
    replicas
}

fn duplicate_window(table: &Table<'_>, max_age: Duration) -> Duration {
    let Some(value) = table.value("duplicate_window") else { return Nats::DEFAULT_DUPLICATE_WINDOW };
    let Some(window) = value.read(&duration(DUPLICATE_WINDOW, "10m")) else { return Nats::DEFAULT_DUPLICATE_WINDOW };
    if window > max_age {
        value.problem("is longer than max_age", format!("write at most \"{}\"", spell(max_age)));
    }
    window
}
