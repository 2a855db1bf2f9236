//! What is in `deploy/`, used as it stands there: the logins of `nats/nats.conf` on a real nats-server with TLS, each role of
//! the real binary with its own, and what the service manager hears.
//!
//! Refuses to judge files by their words alone: validators do that, in `make check`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use collector::Collector;
use support::process::{Configuration, ENVIRONMENT, Turnwise, WEB_KEY, command, quoted};
use support::responder::{Behaviour, Model};
use support::scenario::{BOT, RESPONDER};
use support::telegram::Telegram;
use support::{PATIENCE, eventually, free_port};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

#[path = "support/collector.rs"]
#[expect(dead_code, reason = "each test binary uses its own part of it")]
mod collector;

/// A subject that no login may publish to.
const NOBODYS: &str = "nobodys.subject";

/// Of `TURNWISE_NATS_<ROLE>_PASSWORD`.
const PASSWORD: &str = "p-stand-in";

const LOGINS: [&str; 6] = ["ingress", "worker", "egress", "all", "audit", "admin"];

const CHAT: i64 = 4242;

/// nats-server with `deploy/nats/nats.conf`, but for its port and folders.
struct SecuredNats {
    port: u16,
    directory: TempDir,
    _child: Child,
}

impl SecuredNats {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let folder = directory.path();
        write_certificates(folder);
        let port = free_port();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats/nats.conf");
        let shown = |path: &Path| path.display().to_string();
        let text = std::fs::read_to_string(file)
            .unwrap()
            .replace("port: 4222", &format!("host: \"127.0.0.1\"\nport: {port}"))
            .replace("http: \"0.0.0.0:8222\"", &format!("http: \"127.0.0.1:{}\"", free_port()))
            .replace("/etc/nats/tls", &shown(folder))
            .replace("\"/data\"", &quoted(&shown(&folder.join("data"))));
        std::fs::write(folder.join("nats.conf"), text).unwrap();
        let log = std::fs::File::create(folder.join("nats.log")).unwrap();
        let mut command = Command::new(support::nats::find_binary());
        for role in LOGINS {
            command.env(format!("TURNWISE_NATS_{}_PASSWORD", role.to_uppercase()), PASSWORD);
        }
        command.arg("-c").arg(folder.join("nats.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.kill_on_drop(true).spawn().unwrap();
        let nats = Self { port, directory, _child: child };
        eventually("nats-server to let somebody in", PATIENCE, async || {
            nats.options("admin", PASSWORD).connect(nats.url()).await.ok()
        })
        .await;
        nats
    }

    fn url(&self) -> String {
        format!("tls://127.0.0.1:{}", self.port)
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("nats.log")).unwrap()
    }

    fn options(&self, user: &str, password: &str) -> async_nats::ConnectOptions {
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            .require_tls(true)
            .add_root_certificates(self.ca())
            .custom_inbox_prefix(format!("_INBOX_{user}"))
    }

    /// What the server says against publishing to these subjects and listening to those, in order.
    async fn refusals(&self, user: &str, publish: &[&str], subscribe: &[&str]) -> Vec<String> {
        let (said, mut heard) = mpsc::unbounded_channel();
        let options = self.options(user, PASSWORD).event_callback(move |event| {
            let _ = said.send(event.to_string());
            std::future::ready(())
        });
        let client = options.connect(self.url()).await.unwrap();
        for subject in publish {
            client.publish((*subject).to_owned(), "x".into()).await.unwrap();
        }
        let mut listening = Vec::new();
        for subject in subscribe {
            listening.push(client.subscribe((*subject).to_owned()).await.unwrap());
        }
        // The server takes one after the other, so once it has refused this, it has said all that it has against the others.
        client.publish(NOBODYS, "x".into()).await.unwrap();
        client.flush().await.unwrap();
        let mut refusals = Vec::new();
        while let Some(event) = heard.recv().await.filter(|event| !event.contains(NOBODYS)) {
            if event.to_lowercase().contains("violation") {
                refusals.push(event);
            }
        }
        refusals
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_login_may_do_what_its_role_does_and_nothing_else() {
    support::http_client();
    let nats = SecuredNats::start().await;
    assert!(nats.options("worker", "p-wrong").connect(nats.url()).await.is_err(), "the wrong password");
    let plain = async_nats::ConnectOptions::with_user_and_password("worker".to_owned(), PASSWORD.to_owned());
    assert!(plain.connect(nats.url()).await.is_err(), "a certificate that nobody vouches for");

    for (user, subjects) in [
        ("ingress", &["turnwise.in.1.telegram.support.user-1", "turnwise.turns.1.watch"][..]),
        ("worker", &["turnwise.out.1.telegram.support.user-1", "turnwise.dead.1.x", "$KV.turnwise_cluster.x"]),
        ("egress", &["$JS.ACK.turnwise_out.c.1.1.1.1.1", "$KV.turnwise_cluster.x"]),
        ("all", &["$JS.API.STREAM.MSG.DELETE.turnwise_dead", "turnwise.holds"]),
        ("audit", &["$JS.API.STREAM.INFO.turnwise_in"]),
        ("admin", &["turnwise.in.1.x", "$JS.API.STREAM.PURGE.turnwise_dead"]),
    ] {
        let inbox = format!("_INBOX_{user}.x");
        assert_eq!(nats.refusals(user, subjects, &[&inbox]).await, Vec::<String>::new(), "{user} may");
    }
    for (user, publish, subscribe) in [
        (
            "ingress",
            &["turnwise.out.1.x", "turnwise.dead.1.x", "$JS.API.STREAM.CREATE.turnwise_in", "$KV.turnwise_cluster.x"][..],
            &["turnwise.in.>", "turnwise.out.>", "_INBOX.>", "_INBOX_worker.>", ">"][..],
        ),
        (
            "worker",
            &["turnwise.in.1.x", "$JS.API.STREAM.DELETE.turnwise_in", "$JS.API.STREAM.PURGE.turnwise_in"],
            &["turnwise.in.>", "_INBOX.>", "_INBOX_egress.>"],
        ),
        (
            "egress",
            &["turnwise.out.1.x", "turnwise.in.1.x", "$JS.API.CONSUMER.MSG.NEXT.turnwise_in.p1-e1-g0"],
            &["turnwise.>", "_INBOX_worker.>"],
        ),
        (
            "audit",
            &["turnwise.in.1.x", "$JS.ACK.turnwise_in.c.1.1.1.1.1", "$JS.API.STREAM.MSG.DELETE.turnwise_dead"],
            &["turnwise.>", "_INBOX_worker.>"],
        ),
        ("all", &["$JS.API.STREAM.MSG.DELETE.turnwise_in", "$JS.API.STREAM.PURGE.turnwise_dead"], &["turnwise.in.>"]),
        ("admin", &["another.subject"], &["another.subject"]),
    ] {
        let refusals = nats.refusals(user, publish, subscribe).await;
        for subject in publish.iter().chain(subscribe) {
            let named = |refusal: &&String| refusal.contains(&format!("\"{subject}\""));
            assert!(refusals.iter().any(|refusal| named(&refusal)), "{user} got away with {subject}: {refusals:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_works_with_its_own_login() {
    let nats = SecuredNats::start().await;
    let directory = TempDir::new().unwrap();
    let database = format!("sqlite://{}", directory.path().join("turnwise.db").display());
    let model = Model::start(Behaviour::default()).await;
    let mut configuration = Configuration::with_nats(&[nats.url()], &database);
    let telegram = Telegram::start(configuration.url(&format!("/webhooks/telegram/{BOT}"))).await;
    configuration
        .openai_responder(RESPONDER, &model.base_url())
        .telegram_bot(BOT, RESPONDER, &telegram.base_url())
        .set("nats", "password", &quoted(PASSWORD))
        .set("nats", "tls", &format!("{{ ca = {} }}", quoted(&nats.ca().display().to_string())));
    let login = |configuration: &Configuration, role: &str| {
        let mut own = configuration.clone();
        own.set("nats", "user", &quoted(role)).set("nats", "inbox_prefix", &quoted(&format!("_INBOX_{role}")));
        own
    };
    let mut worker = Turnwise::spawn_as(login(&configuration.beside(), "worker"), Some("worker")).await;
    let mut egress = Turnwise::spawn_as(login(&configuration.beside(), "egress"), Some("egress")).await;
    let mut ingress = Turnwise::spawn_as(login(&configuration, "ingress"), Some("ingress")).await;
    for n in 1..=3 {
        telegram.send(CHAT, &support::responder::message(CHAT, n));
    }
    let expected: Vec<String> = (1..=3).map(|n| support::responder::answer(CHAT, n)).collect();
    assert_eq!(telegram.wait_for_texts(CHAT, 3, PATIENCE).await, expected);
    for role in [&mut ingress, &mut worker, &mut egress] {
        role.terminate().await;
    }
    let mut alone = Turnwise::spawn_as(login(&configuration, "all"), None).await;
    telegram.send(CHAT, &support::responder::message(CHAT, 4));
    assert_eq!(telegram.wait_for_texts(CHAT, 4, PATIENCE).await[3], support::responder::answer(CHAT, 4));
    alone.terminate().await;
    // Its own login is enough to look at everything.
    let file = directory.path().join("audit.toml");
    std::fs::write(&file, login(&configuration, "audit").to_toml()).unwrap();
    for words in [&["audit"][..], &["dead-letters", "list"]] {
        let mut looking = command_of(words, &file);
        let output = tokio::time::timeout(PATIENCE, looking.output()).await.expect("it ends").unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
    let log = nats.log();
    let violations: Vec<_> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert_eq!(violations, Vec::<&str>::new(), "what a role does and its login may not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_hears_how_far_it_is() {
    let nats = support::nats::NatsServer::start().await;
    let directory = TempDir::new().unwrap();
    let database = format!("sqlite://{}", directory.path().join("turnwise.db").display());
    let file = directory.path().join("turnwise.toml");
    let mut configuration = Configuration::new(&nats, &database);
    configuration.set("responders.echo", "kind", "\"echo\"").web_bot("web", "echo");
    std::fs::write(&file, configuration.to_toml()).unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = command("serve", &file)
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", Duration::from_millis(200).as_micros().to_string())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let manager = std::sync::Arc::new(manager);
    let next = || {
        let manager = std::sync::Arc::clone(&manager);
        tokio::task::spawn_blocking(move || {
            let mut said = [0; 64];
            let length = manager.recv(&mut said).unwrap();
            String::from_utf8(said[..length].to_vec()).unwrap()
        })
    };
    while next().await.unwrap() != "READY=1" {}
    assert_eq!(next().await.unwrap(), "WATCHDOG=1");
    let kill = Command::new("kill").arg("-TERM").arg(child.id().unwrap().to_string()).status().await.unwrap();
    assert!(kill.success());
    while next().await.unwrap() != "STOPPING=1" {}
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_behind_tls_is_one_that_the_system_trusts() {
    support::http_client();
    let nats = support::nats::NatsServer::start().await;
    let directory = TempDir::new().unwrap();
    write_certificates(directory.path());
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let mut collector = Collector::grpc_over_tls(&read("server.pem"), &read("server.key")).await;
    let database = format!("sqlite://{}", directory.path().join("turnwise.db").display());
    let mut configuration = Configuration::new(&nats, &database);
    configuration
        .set("responders.echo", "kind", "\"echo\"")
        .web_bot("web", "echo")
        .set("telemetry", "otlp_endpoint", &quoted(&collector.endpoint))
        .set("telemetry", "otlp_protocol", "\"grpc\"");
    let file = directory.path().join("turnwise.toml");
    std::fs::write(&file, configuration.to_toml()).unwrap();
    let mut serve = command("serve", &file);
    let mut child = serve.env("SSL_CERT_FILE", directory.path().join("ca.pem")).stderr(Stdio::null()).spawn().unwrap();
    let body = serde_json::json!({ "bot": "web", "device_id": "device", "message": "hello" });
    eventually("an answer", PATIENCE, async || {
        let call = support::http_client().post(configuration.url("/v1/chat")).bearer_auth(WEB_KEY).json(&body);
        call.send().await.ok().filter(|answer| answer.status().is_success())
    })
    .await;
    let kill = Command::new("kill").arg("-TERM").arg(child.id().unwrap().to_string()).status().await.unwrap();
    assert!(kill.success() && child.wait().await.unwrap().success());
    assert!(collector.spans().iter().any(|span| span.name == "process turnwise.in"), "the turn's trace has arrived");
}

/// What waits for a process to stop waits for longer than it takes, and the configurations are good.
#[tokio::test]
async fn the_configurations_are_good_and_the_graces_fit() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let read = |name: &str| std::fs::read_to_string(deploy.join(name)).unwrap();
    let seconds = |text: &str, key: &str| -> u64 {
        let line = text.lines().find(|line| line.trim_start().starts_with(key)).expect(key);
        line.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    // Requests and traces get five seconds each after the grace.
    let closing = 10;
    let grace = seconds(&read("compose/turnwise.toml"), "shutdown_grace");
    assert!(seconds(&read("compose.yaml"), "stop_grace_period") > grace + closing);
    assert!(seconds(&read("systemd/turnwise.service"), "TimeoutStopSec") > grace + closing);
    let grace = seconds(&read("kustomize/base/turnwise.toml"), "shutdown_grace");
    let pod = read("kustomize/base/deployment.yaml");
    let pause = seconds(&pod, "seconds:");
    assert!(seconds(&pod, "terminationGracePeriodSeconds") >= grace + pause + closing);

    for name in ["compose/turnwise.toml", "kustomize/base/turnwise.toml"] {
        let mut check = command("check", &deploy.join(name));
        for secret in ["TURNWISE_NATS_ALL_PASSWORD", "TURNWISE_WEB_KEY"] {
            check.env(secret, PASSWORD);
        }
        let output =
            check.env("TURNWISE_DATABASE_URL", "postgres://turnwise@postgres/turnwise").output().await.unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
}

/// `ca.pem`, `server.pem` and `server.key`, as `deploy/nats/certificates.sh` makes them.
fn write_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&server_key, &issuer).unwrap();
    for (name, text) in
        [("ca.pem", authority.pem()), ("server.pem", server.pem()), ("server.key", server_key.serialize_pem())]
    {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

fn command_of(words: &[&str], configuration: &Path) -> Command {
    let mut command = Command::new(support::process::BINARY);
    command.args(words).arg("--config").arg(configuration).envs(ENVIRONMENT.iter().copied());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}
