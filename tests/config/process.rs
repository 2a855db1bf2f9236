//! What is wrong with the tables of the process, its secrets and the TOML itself, in its exact words.

use crate::check;

#[test]
fn names_of_tables_and_namespace() {
    check(r#"namespace = """#, &["1 namespace: is empty; write 1 to 32 characters of A-Z a-z 0-9 _ -"]);
    check("namespace = 5", &["1 namespace: is an integer; write 1 to 32 characters of A-Z a-z 0-9 _ -"]);
    check(r#"namespace = "a.b""#, &["1 namespace: has the character '.'; write 1 to 32 characters of A-Z a-z 0-9 _ -"]);
    check(
        r#"namespace = "abcdefghijklmnopqrstuvwxyz0123456""#,
        &["1 namespace: has 33 characters; write 1 to 32 characters of A-Z a-z 0-9 _ -"],
    );
    check(
        r#"namespaces = "x"
[databse]
[bot.x]
[zzz]"#,
        &[
            r#"1 namespaces: unknown key; did you mean "namespace"?"#,
            r#"2 databse: unknown key; did you mean "database"?"#,
            r#"3 bot: unknown key; did you mean "bots"?"#,
            "4 zzz: unknown key; known here: namespace, http, database, nats, worker, telemetry, console, tools, responders, workflows, bots",
        ],
    );
    check("http = 5", &["1 http: is an integer; write a table [http]"]);
}

#[test]
fn http_worker_and_telemetry() {
    check(
        r#"[http]
listen = "localhost:8080"
public_url = "bots.example.com"
max_body_bytes = 1023
shutdown_grace = 30
lisen = 1"#,
        &[
            r#"2 http.listen: "localhost:8080" is not an address to listen on; write an IP address and a port, such as "127.0.0.1:8080" or "[::]:8080""#,
            r#"3 http.public_url: is not a URL; write an address such as "https://bots.example.com""#,
            "4 http.max_body_bytes: 1023 is out of range; write a whole number from 1024 to 67108864",
            r#"5 http.shutdown_grace: is an integer; write a duration from 0s to 10m, such as "30s""#,
            r#"6 http.lisen: unknown key; did you mean "listen"?"#,
        ],
    );
    check(
        r#"[http]
listen = true
public_url = "ftp://x"
max_body_bytes = 99999999999999999999
shutdown_grace = "11m""#,
        &[
            r#"2 http.listen: is a boolean; write an IP address and a port, such as "127.0.0.1:8080" or "[::]:8080""#,
            r#"3 http.public_url: does not start with http:// or https://; write an address such as "https://bots.example.com""#,
            "4 http.max_body_bytes: 99999999999999999999 is out of range; write a whole number from 1024 to 67108864",
            r#"5 http.shutdown_grace: "11m" is out of range; write a duration from 0s to 10m, such as "30s""#,
        ],
    );
    check(
        r#"[http]
public_url = "https://admin:hunter2@example.com"
max_body_bytes = 1.5
shutdown_grace = "1h 30m""#,
        &[
            r#"2 http.public_url: holds a user name or password, which belong into keys of their own; write an address such as "https://bots.example.com""#,
            "3 http.max_body_bytes: is a float; write a whole number from 1024 to 67108864",
            r#"4 http.shutdown_grace: "1h 30m" is not a duration; write a duration from 0s to 10m, such as "30s""#,
        ],
    );
    check(
        r#"[http]
public_url = "https://example.com?x=1""#,
        &[r#"2 http.public_url: has a query or fragment; write an address such as "https://bots.example.com""#],
    );
    check(
        r#"[worker]
max_turns = 0
lane_backlog = 10001
max_attempts = "4"
turn_timeout = "500ms""#,
        &[
            "2 worker.max_turns: 0 is out of range; write a whole number from 1 to 100000",
            "3 worker.lane_backlog: 10001 is out of range; write a whole number from 1 to 10000",
            "4 worker.max_attempts: is a string; write a whole number from 1 to 100",
            r#"5 worker.turn_timeout: "500ms" is out of range; write a duration from 1s to 1h, such as "2m""#,
        ],
    );
    check(
        r#"[telemetry]
otlp_endpoint = "127.0.0.1:4318"
service_name = ""
sample_ratio = 1.1
record_content = "no""#,
        &[
            r#"2 telemetry.otlp_endpoint: is not a URL; write an address such as "http://127.0.0.1:4318""#,
            "3 telemetry.service_name: is empty; write 1 to 255 characters",
            "4 telemetry.sample_ratio: 1.1 is out of range; write a number from 0 to 1",
            "5 telemetry.record_content: is a string; write true or false",
        ],
    );
    check(
        r#"[console]
token = "same"
read_token = "same"
trace_url = "https://traces.example.com/trace"
replay = "runs""#,
        &[
            "1 console: token and read_token are the same; give whoever may only look a token of their own",
            r#"4 console.trace_url: has no {trace_id} in it; write an address such as "https://traces.example.com/trace/{trace_id}""#,
            r#"5 console.replay: unknown key; did you mean "replays"?"#,
        ],
    );
    check(
        "[telemetry]
sample_ratio = nan",
        &["2 telemetry.sample_ratio: nan is out of range; write a number from 0 to 1"],
    );
    check(
        r#"[telemetry]
sample_ratio = "all""#,
        &["2 telemetry.sample_ratio: is a string; write a number from 0 to 1"],
    );
}

#[test]
fn nats_servers_and_logins() {
    check(
        "[nats]",
        &[
            r#"1 nats.url: is missing in [nats]; write url = "nats://127.0.0.1:4222", or managed = true for a server of our own"#,
        ],
    );
    check(
        r#"[nats]
url = "nats://a:4222"
managed = true"#,
        &["2 nats.url: stands beside managed = true; keep one of them"],
    );
    check(
        r#"[nats]
url = "a:4222"
sync = "always""#,
        &[
            r#"2 nats.url: does not start with nats:// or tls://; write an address such as "nats://127.0.0.1:4222" or "tls://nats.example.com:4222""#,
            "3 nats.sync: is a setting of the managed server only; remove it, or replace url by managed = true",
        ],
    );
    check(
        r#"[nats]
url = ["nats://a:4222", "http://b", 5]
managed = "yes""#,
        &["3 nats.managed: is a string; write true or false"],
    );
    check(
        "[nats]
url = []",
        &["2 nats.url: lists 0 addresses; write 1 to 16 addresses"],
    );
    check(
        r#"[nats]
url = 5
replicas = 2
partitions = 1025
max_age = "30m"
duplicate_window = "2d""#,
        &[
            r#"2 nats.url: is an integer; write an address such as "nats://127.0.0.1:4222" or "tls://nats.example.com:4222", in a list"#,
            "3 nats.replicas: 2 is out of range; write 1, or 3 or 5 in a cluster",
            "4 nats.partitions: 1025 is out of range; write a whole number from 1 to 1024",
            r#"5 nats.max_age: "30m" is out of range; write a duration from 1h to 3650d, such as "7d""#,
            r#"6 nats.duplicate_window: "2d" is out of range; write a duration from 1s to 1d, such as "10m""#,
        ],
    );
    check(
        r#"[nats]
url = "nats://user:hunter2@a:4222/x"
max_age = "2h"
duplicate_window = "3h""#,
        &[
            r#"2 nats.url: holds a user name or password, which belong into keys of their own; write an address such as "nats://127.0.0.1:4222" or "tls://nats.example.com:4222""#,
            r#"4 nats.duplicate_window: is longer than max_age; write at most "2h""#,
        ],
    );
    check(
        r#"[nats]
url = "nats://a/x"
user = "u"
tls = { ca = "ca.pem", cert = "c.pem" }"#,
        &[
            r#"2 nats.url: has a path; write an address such as "nats://127.0.0.1:4222" or "tls://nats.example.com:4222""#,
            "3 nats.user: has no password beside it; add password",
            "4 nats.tls.cert: has no key beside it; add key",
        ],
    );
    check(
        r#"[nats]
url = "nats://a"
password = "hunter2"
tls = { key = "c.pem", kay = "x" }"#,
        &[
            "3 nats.password: has no user beside it; add user",
            "4 nats.tls.key: has no cert beside it; add cert",
            r#"4 nats.tls.kay: unknown key; did you mean "key"?"#,
        ],
    );
    check(
        r#"[nats]
url = "nats://a"
token = "hunter2"
user = "u"
password = "hunter2"
credentials = "hunter2""#,
        &[
            "3 nats.token: stands beside credentials; keep one way to log in",
            r#"6 nats.credentials: is a string; write { file = "PATH" } of a .creds file"#,
        ],
    );
    check(
        r#"[nats]
url = "nats://a"
credentials = { env = "ANY" }"#,
        &[
            r#"3 nats.credentials: environment variable ANY is not a NATS credentials file; write { file = "PATH" } of a .creds file"#,
        ],
    );
    check(
        r#"[nats]
managed = true
replicas = 3
sync = "never"
token = "hunter2"
tls = {}"#,
        &[
            "3 nats.replicas: is more than the one server that managed = true runs; write 1, or replace managed by url",
            r#"4 nats.sync: "never" is not known; use "always" or "interval""#,
            "5 nats.token: has no meaning for the managed server, which serves this process only; remove it",
            "6 nats.tls: has no meaning for the managed server, which serves this process only; remove it",
        ],
    );
    check(
        r#"[nats]
managed = "yes""#,
        &["2 nats.managed: is a string; write true or false"],
    );
}

#[test]
fn databases() {
    check(
        r#"[database]
url = "mysql://root:hunter2@db/x"
max_connections = 0"#,
        &[
            r#"2 database.url: is not a sqlite:// or postgres:// address; write an address such as "sqlite://turnwise.db" or "postgres://user@host/database""#,
            "3 database.max_connections: 0 is out of range; write a whole number from 1 to 1000",
        ],
    );
    check(
        r#"[database]
url = "turnwise.db""#,
        &[
            r#"2 database.url: is not a URL; write an address such as "sqlite://turnwise.db" or "postgres://user@host/database""#,
        ],
    );
    check(
        r#"[database]
url = "sqlite::memory:""#,
        &[
            r#"2 database.url: would keep nothing: a database in memory is not durable; write an address such as "sqlite://turnwise.db" or "postgres://user@host/database""#,
        ],
    );
    check(
        r#"[database]
url = "sqlite://x.db?mode=rwc""#,
        &[
            r#"2 database.url: has parameters or escapes, which an SQLite address does not take here; write an address such as "sqlite://turnwise.db" or "postgres://user@host/database""#,
        ],
    );
    check(
        r#"[database]
url = """#,
        &[
            r#"2 database.url: is empty; write an address such as "sqlite://turnwise.db" or "postgres://user@host/database""#,
        ],
    );
    check(
        r#"[database]
url = { env = "ANY" }"#,
        &[
            r#"2 database.url: environment variable ANY is not a URL; write an address such as "sqlite://turnwise.db" or "postgres://user@host/database""#,
        ],
    );
}

#[test]
fn secrets() {
    check(
        "[console]
token = 5",
        &[r#"2 console.token: is an integer; write a string, { env = "NAME" } or { file = "PATH" }"#],
    );
    check(
        "[console]
token = {}",
        &[r#"2 console.token: has neither env nor file; write a string, { env = "NAME" } or { file = "PATH" }"#],
    );
    check(
        r#"[console]
token = """#,
        &[r#"2 console.token: is empty; write a string, { env = "NAME" } or { file = "PATH" }"#],
    );
    check(
        r#"[console]
token = { env = "UNSET" }"#,
        &["2 console.token: environment variable UNSET is not set; set it for this process"],
    );
    check(
        r#"[console]
token = { env = "EMPTY" }"#,
        &[
            r#"2 console.token: environment variable EMPTY is empty; write a string, { env = "NAME" } or { file = "PATH" }"#,
        ],
    );
    check(
        r#"[console]
token = { env = "TWO_LINES" }"#,
        &[
            r#"2 console.token: environment variable TWO_LINES holds a line break or control character; write a string, { env = "NAME" } or { file = "PATH" }"#,
        ],
    );
    check(
        r#"[console]
token = { env = "hunter2:x" }"#,
        &["2 console.token.env: is not the name of an environment variable; write a name of letters, digits and _"],
    );
    check(
        r#"[console]
token = { env = "A", file = "b" }"#,
        &["2 console.token: has both env and file; keep one of them"],
    );
    check(
        r#"[console]
token = { file = "secrets/none" }"#,
        &[
            r#"2 console.token: cannot read file "/etc/turnwise/secrets/none": No such file or directory (os error 2); name a readable text file of at most 65536 bytes"#,
        ],
    );
    check(
        r#"[console]
token = { evn = "A" }"#,
        &[
            r#"2 console.token.evn: unknown key; did you mean "env"?"#,
            r#"2 console.token: has neither env nor file; write a string, { env = "NAME" } or { file = "PATH" }"#,
        ],
    );
    check(
        "[console]
token = 1979-05-27
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa = 1",
        &[
            r#"2 console.token: is a datetime; write a string, { env = "NAME" } or { file = "PATH" }"#,
            r#"3 console."aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"...: unknown key; known here: token, read_token, trace_url, replays"#,
        ],
    );
    check(
        r#"[console]
"to\nken" = 1"#,
        &[r#"2 console."to\nken": unknown key; did you mean "token"?"#],
    );
    check(
        "[console]
token = { env = 5 }",
        &["2 console.token.env: is an integer; write a name of letters, digits and _"],
    );
}

#[test]
fn what_is_not_toml() {
    check(
        "a = 1
a = 2
[x",
        &[
            "2 syntax: duplicate key at column 1; see https://toml.io/en/v1.1.0",
            "3 syntax: unclosed table at column 3; expected `]`",
        ],
    );
    check(
        "[console]
token = hunter2",
        &["2 syntax: string values must be quoted at column 9; expected literal string"],
    );
    check(
        r#"[console]
token = "hunter2"#,
        &[r#"2 syntax: invalid basic string at column 17; expected `"`"#],
    );
}
