//! The command line as its users see it: help texts, exit codes, what goes to which stream, and that no answer of a Bot API,
//! however odd, brings the token to light.
//!
//! `turnwise serve` and `dev` are `end_to_end.rs` and `dev.rs`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::path::{Path, PathBuf};
use std::process::Stdio;

use axum::http::StatusCode;
use serde_json::{Value, json};
use support::process::{BINARY, Configuration, ENVIRONMENT, NAMESPACE, quoted};
use support::responder::{Behaviour, message};
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::telegram::{SECRET, TOKEN, Telegram};
use support::{PATIENCE, free_port};
use tempfile::TempDir;
use tokio::process::Command;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

async fn turnwise(arguments: &[&str]) -> Said {
    let mut command = Command::new(BINARY);
    command.args(arguments).envs(ENVIRONMENT.iter().copied()).env_remove("RUST_LOG").stdin(Stdio::null());
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output());
    let output = output.await.unwrap_or_else(|_| panic!("turnwise {arguments:?} does not end")).unwrap();
    Said {
        code: output.status.code().unwrap_or_else(|| panic!("turnwise {arguments:?} ended with {}", output.status)),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[tokio::test]
async fn every_command_has_its_help() {
    let mut all = String::new();
    for command in [
        "",
        "dev",
        "serve",
        "check",
        "migrate",
        "audit",
        "dead-letters",
        "dead-letters list",
        "dead-letters show",
        "dead-letters redrive",
        "dead-letters discard",
        "holds",
        "holds list",
        "holds pause",
        "holds resume",
        "rebuild",
        "telegram",
        "telegram set-webhook",
        "telegram delete-webhook",
        "telegram info",
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let said = turnwise(&arguments).await;
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{command}");
        all.push_str(&format!("$ turnwise {}\n{}\n", arguments.join(" "), said.stdout));
    }
    insta::assert_snapshot!(all);
    let version = turnwise(&["--version"]).await;
    assert_eq!((version.code, version.stdout), (0, format!("turnwise {}\n", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn wrong_usage_ends_with_2_and_says_what_would_be_right() {
    for (arguments, words) in [
        (&[][..], "Usage: turnwise"),
        (&["sevre"], "'serve'"),
        (&["check"], "--config <FILE>"),
        (&["dev", "--listen", "8080"], "--listen <ADDR>"),
        (&["serve", "--config", "x.toml", "--roles", "desk"], "possible values: ingress, worker, egress, console"),
        (&["serve", "--config", "x.toml", "--roles", "worker,"], "possible values"),
        (&["telegram", "info", "--config", "x.toml"], "--bot <BOT>"),
        (&["rebuild", "--config", "x.toml"], "--into <DATABASE_URL>"),
        (&["dead-letters"], "Usage: turnwise dead-letters"),
        (&["dead-letters", "list", "--config", "/nowhere/turnwise.toml"], "cannot read the configuration /nowhere"),
        (&["check", "--config", "/nowhere/turnwise.toml"], "cannot read the configuration /nowhere/turnwise.toml"),
        (&["serve", "--config", "/nowhere/turnwise.toml"], "cannot read the configuration /nowhere/turnwise.toml"),
        (&["audit", "--config", "/nowhere/turnwise.toml"], "cannot read the configuration /nowhere/turnwise.toml"),
    ] {
        let said = turnwise(arguments).await;
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?} does not say {words:?}: {}", said.stderr);
    }
}

#[tokio::test]
async fn a_configuration_is_checked_whole() {
    let bad = Folder::new();
    bad.write(
        "namespace = \"turn wise\"\n[http]\nlisten = \"8080\"\nmax_bodybytes = 5\n[bots.support]\nchannel = \"telegramm\"\n\
         responder = \"asistant\"\ntoken = \"424242:stand-in-token\"\n[responders.assistant]\nkind = \"echo\"\n",
    );
    let said = bad.turnwise(&["check"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
    insta::assert_snapshot!(said.stderr.replace(bad.file().to_str().unwrap(), "turnwise.toml"), @r#"
    turnwise.toml:1 namespace: has the character ' '; write 1 to 32 characters of A-Z a-z 0-9 _ -
    turnwise.toml:1 nats.url: is missing in [nats]; write url = "nats://127.0.0.1:4222", or managed = true for a server of our own
    turnwise.toml:3 http.listen: "8080" is not an address to listen on; write an IP address and a port, such as "127.0.0.1:8080" or "[::]:8080"
    turnwise.toml:4 http.max_bodybytes: unknown key; did you mean "max_body_bytes"?
    turnwise.toml:6 bots.support.channel: "telegramm" is not known; use "telegram", "messenger", "web" or "http"
    turnwise.toml:7 bots.support.responder: there is no responder "asistant"; did you mean "assistant"? Responders here: assistant
    "#);

    let good = Folder::new();
    let script = good.0.path().join("script.toml");
    let text = "[bots.demo]\nchannel = \"web\"\nresponder = \"demo\"\n[responders.demo]\nkind = \"script\"\nfile = \"script.toml\"\n\
        [http]\nlisten = \"0.0.0.0:8080\"\n[nats]\nurl = \"nats://127.0.0.1:4222\"\n";
    good.write(text);
    let said = good.turnwise(&["check"]).await;
    assert_eq!(said.code, 2, "the script is missing: {said:?}");
    assert!(said.stderr.contains("responders.demo.file"), "{said:?}");
    std::fs::write(&script, "[[rules]]\nmatch = 7\n").unwrap();
    let said = good.turnwise(&["check"]).await;
    assert_eq!(said.code, 2, "the script is not valid: {said:?}");
    assert!(said.stderr.contains("script.toml:"), "{said:?}");
    std::fs::write(&script, turnwise::responder::DEMO_SCRIPT).unwrap();
    let said = good.turnwise(&["check"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{said:?}");
    insta::assert_snapshot!(said.stderr, @r"
    warning: bots.demo.api_keys: without keys, everybody who reaches 0.0.0.0:8080 can talk to it
    the configuration is good
    ");
}

#[tokio::test]
async fn a_database_is_migrated_once_and_again() {
    let folder = Folder::new();
    let text = "[bots.demo]\nchannel = \"web\"\nresponder = \"demo\"\n[responders.demo]\nkind = \"echo\"\n[database]\nurl = \"sqlite://DATABASE\"\n[nats]\nurl = \"nats://127.0.0.1:4222\"\n";
    folder.write(&text.replace("DATABASE", "turnwise.db"));
    for _ in 0..2 {
        let said = folder.turnwise(&["migrate"]).await;
        assert_eq!((said.code, said.stderr.as_str()), (0, "the database has this version's schema\n"), "{said:?}");
    }
    assert!(folder.0.path().join("turnwise.db").exists());
    folder.write(&text.replace("DATABASE", "missing/turnwise.db"));
    let said = folder.turnwise(&["migrate"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{said:?}");
    assert!(said.stderr.starts_with("error: ") && said.stderr.contains("does not exist"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_finds_what_no_worker_has_seen() {
    const CHAT: i64 = 31;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |_| ()).await;
    for n in 1..=2 {
        deployment.telegram.send(CHAT, &message(CHAT, n));
    }
    deployment.telegram.wait_for_texts(CHAT, 2, PATIENCE).await;
    deployment.settled(2, PATIENCE).await;
    deployment.turnwise.terminate().await;

    let clean = audit(&deployment, &[]).await;
    assert_eq!(clean.code, 0, "{clean:?}");
    insta::assert_snapshot!(clean.stdout, @r"
    messages on the stream    2
      in the ledger           2 answered
      deliveries              2 sent
    missing from the ledger   0
    doubled turns             0
    turns out of order        0
    ");
    assert_eq!(clean.stderr, "", "nothing but data");
    let (code, report) = deployment.turnwise.audit().await;
    assert_eq!((code, &report["messages"], &report["missing"]), (Some(0), &json!(2), &json!(0)), "{report:#}");
    assert_eq!((&report["states"]["answered"], &report["deliveries"]["sent"]), (&json!(2), &json!(2)), "{report:#}");

    let subject = format!("{NAMESPACE}.in.0.telegram.{BOT}.user-{CHAT}");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", "telegram:support:9999");
    let stream = deployment.nats.jetstream().await;
    stream.publish_with_headers(subject, headers, "{}".into()).await.unwrap().await.unwrap();
    let faulty = audit(&deployment, &[]).await;
    assert_eq!(faulty.code, 1, "{faulty:?}");
    insta::assert_snapshot!(faulty.stdout, @r"
    messages on the stream    3
      in the ledger           2 answered
      deliveries              2 sent
    missing from the ledger   1
      telegram.support.user-31 telegram:support:9999 at 3
    doubled turns             0
    turns out of order        0
    ");
    let (code, report) = deployment.turnwise.audit().await;
    assert_eq!((code, &report["missing"]), (Some(1), &json!(1)), "{report:#}");
    let missing =
        json!([{ "sequence": 3, "message_id": "telegram:support:9999", "conversation": "telegram.support.user-31" }]);
    assert_eq!(report["missing_messages"], missing);

    // The next worker settles even this one, and then nothing is missing.
    deployment.turnwise.start_again().await;
    deployment.settled(3, PATIENCE).await;
    deployment.turnwise.terminate().await;
    assert_eq!(audit(&deployment, &[]).await.code, 0);
    deployment.nats.kill9().await;
}

async fn audit(deployment: &Deployment, arguments: &[&str]) -> Said {
    let file = deployment.turnwise.configuration_file();
    turnwise(&[&["audit", "--config", file.to_str().unwrap()], arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_is_set_and_deleted_and_described() {
    let telegram = Telegram::start("http://127.0.0.1:1/unused".to_owned()).await;
    let folder = Folder::with_bot(&telegram.base_url(), Some("https://bots.example.com/"));
    let set = folder.telegram("set-webhook").await;
    assert_eq!((set.code, set.stdout.as_str()), (0, ""), "{set:?}");
    insta::assert_snapshot!(set.stderr, @r#"Telegram sends the updates of "support" to https://bots.example.com/webhooks/telegram/support"#);
    let info = folder.telegram("info").await;
    assert_eq!(info.code, 0, "{info:?}");
    let described: Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!(described["pending_update_count"], 0);
    insta::assert_snapshot!(info.stderr, @r"
    Telegram sends the updates of this bot to its webhook
    warning: no webhook is set; run `turnwise telegram set-webhook`
    ");
    let deleted = folder.telegram("delete-webhook").await;
    assert_eq!((deleted.code, deleted.stdout.as_str()), (0, ""), "{deleted:?}");
    insta::assert_snapshot!(deleted.stderr, @r#"Telegram keeps the updates of "support", for at most 24 hours"#);

    let stranger = folder.turnwise(&["telegram", "info", "--bot", "nobody"]).await;
    assert_eq!(stranger.code, 2, "{stranger:?}");
    insta::assert_snapshot!(stranger.stderr, @r#"
    error: no bot "nobody" is configured
    hint: the bots are support
    "#);
    for (public_url, words) in [(None, "http.public_url: not set"), (Some("http://bots.example.com"), "https://")] {
        let said = Folder::with_bot(&telegram.base_url(), public_url).telegram("set-webhook").await;
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.stderr.contains(words), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bot_api_that_fails_in_any_way_brings_no_token_to_light() {
    let refusal = json!({ "ok": false, "error_code": 401, "description": "Unauthorized" }).to_string();
    let mut said = Vec::new();
    for (status, body) in [
        (StatusCode::UNAUTHORIZED, refusal),
        (StatusCode::BAD_GATEWAY, "<html>Bad Gateway</html>".to_owned()),
        (StatusCode::OK, "{\"ok\":true".to_owned()),
        (StatusCode::OK, "{\"ok\":true}".to_owned()),
        (StatusCode::OK, "[]".to_owned()),
        // What was asked, repeated: as a value of the wrong kind, and as a reason.
        (StatusCode::OK, json!({ "ok": format!("/bot{TOKEN}/getMe") }).to_string()),
        (StatusCode::NOT_FOUND, json!({ "ok": false, "description": format!("no method /bot{TOKEN}/x") }).to_string()),
        (StatusCode::OK, "x".repeat(2_000_000)),
        (StatusCode::FOUND, String::new()),
    ] {
        let (address, server) = always(status, body).await;
        let folder = Folder::with_bot(&address, Some("https://bots.example.com"));
        for command in ["set-webhook", "info", "delete-webhook"] {
            let one = folder.failing(command).await;
            said.push(format!("{status} {command}: {}", one.stderr.replace(&address, "API")));
        }
        server.abort();
    }
    // Telegram once advised to make the token part of the webhook's address.
    let known = json!({ "url": format!("https://old.example.com/{TOKEN}"), "pending_update_count": 2,
        "last_error_date": 1, "last_error_message": format!("Not found: /{TOKEN}") });
    let (address, server) = always(StatusCode::OK, json!({ "ok": true, "result": known }).to_string()).await;
    let info = Folder::with_bot(&address, Some("https://bots.example.com")).telegram("info").await;
    assert!(info.code == 0 && info.stdout.contains("https://old.example.com/[redacted]"), "{info:?}");
    server.abort();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let folder = Folder::with_bot(&nobody, Some("https://bots.example.com"));
    said.push(format!("unreachable: {}", folder.failing("info").await.stderr.replace(&nobody, "API")));
    insta::assert_snapshot!(said.concat().replace(" (os error 111)", ""));
}

/// A server that knows one answer.
async fn always(status: StatusCode, body: String) -> (String, tokio::task::JoinHandle<std::io::Result<()>>) {
    let answer = move || async move { (status, body) };
    let router = axum::Router::new().fallback(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (address, tokio::spawn(async move { axum::serve(listener, router).await }))
}

/// A folder with a configuration.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// One Telegram bot, called `support`.
    fn with_bot(api_base: &str, public_url: Option<&str>) -> Self {
        let folder = Self::new();
        let mut configuration = Configuration::empty();
        configuration.set("nats", "url", "\"nats://127.0.0.1:4222\"").telegram_bot(BOT, RESPONDER, api_base).set(
            &format!("responders.{RESPONDER}"),
            "kind",
            "\"echo\"",
        );
        if let Some(url) = public_url {
            configuration.set("http", "public_url", &quoted(url));
        }
        folder.write(&configuration.to_toml());
        folder
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("turnwise.toml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), text).unwrap();
    }

    async fn turnwise(&self, arguments: &[&str]) -> Said {
        turnwise(&[arguments, &["--config", Path::to_str(&self.file()).unwrap()]].concat()).await
    }

    /// `turnwise telegram COMMAND`; whatever it says, it does not tell the secrets.
    async fn telegram(&self, command: &str) -> Said {
        let said = self.turnwise(&["telegram", command, "--bot", BOT]).await;
        for secret in [TOKEN, SECRET, TOKEN.split_once(':').unwrap().1] {
            assert!(!said.stdout.contains(secret) && !said.stderr.contains(secret), "a secret is told: {said:?}");
        }
        said
    }

    /// The same, and it must fail.
    async fn failing(&self, command: &str) -> Said {
        let said = self.telegram(command).await;
        assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{said:?}");
        said
    }
}
