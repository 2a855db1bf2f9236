//! `turnwise bench` against a real deployment: it measures a good one, catches a bad one, and leaves the rest of the world
//! alone.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use serde_json::Value;
use support::free_port;
use support::nats::NatsServer;
use support::process::{Configuration, Turnwise, quoted};
use tempfile::TempDir;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const BOT: &str = "bench";

struct Deployment {
    turnwise: Turnwise,
    _nats: NatsServer,
    _directory: TempDir,
}

impl Deployment {
    async fn start(api_base: &str, adjust: impl FnOnce(&mut Configuration)) -> Self {
        let directory = TempDir::new().unwrap();
        let nats = NatsServer::start().await;
        let database = format!("sqlite://{}", directory.path().join("turnwise.db").display());
        let mut configuration = Configuration::new(&nats, &database);
        configuration.telegram_bot(BOT, BOT, api_base);
        configuration.set("responders.bench", "kind", "\"echo\"");
        adjust(&mut configuration);
        Self { turnwise: Turnwise::spawn(configuration).await, _nats: nats, _directory: directory }
    }

    /// A small load; the exit code and the report.
    async fn bench(&self, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let size = ["--messages", "60", "--conversations", "3", "--in-flight", "12", "--json"];
        self.bench_whole(&[&size[..], arguments].concat()).await
    }

    /// A load of the shape's own size where `arguments` do not say another.
    async fn bench_whole(&self, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let output = self.turnwise.run("bench", arguments).await;
        let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), report, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn free_api_base() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_deployment_is_measured() {
    let deployment = Deployment::start(&free_api_base(), |_| {}).await;
    let (code, report, said) = deployment.bench(&["--shape", "s1,history"]).await;
    assert_eq!(code, Some(0), "{report:#}\n{said}");
    for phase in report["phases"].as_array().unwrap() {
        let load = &phase["loads"][0];
        assert_eq!((&load["messages"], &load["unanswered"]), (&60.into(), &0.into()), "{phase:#}");
        assert_eq!(load["violations"]["count"], 0, "{phase:#}");
        assert!(load["reply"]["p99_ms"].as_f64().unwrap() >= load["reply"]["p50_ms"].as_f64().unwrap(), "{load:#}");
        assert!(load["outstanding_peak"].as_u64().unwrap() <= 12, "the loop is not closed: {load:#}");
        assert!(phase["turns_per_second"].as_f64().unwrap() > 0.0, "{phase:#}");
        assert!(phase["turnwise"]["memory_mib"].as_f64().unwrap() > 1.0, "{phase:#}");
        assert!(phase["nats_server"]["cpu_seconds"].as_f64().unwrap() > 0.0, "{phase:#}");
    }
    for ceiling in ["publish", "publish_one_by_one", "consume", "commit"] {
        assert!(report["ceilings"][ceiling].as_f64().unwrap() > 0.0, "{ceiling}: {:#}", report["ceilings"]);
    }
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_takeover_from_a_killed_worker_is_measured() {
    let deployment = Deployment::start(&free_api_base(), |_| {}).await;
    let size = ["--messages", "800", "--conversations", "40", "--no-ceilings", "--json"];
    let (code, report, said) = deployment.bench_whole(&[&size[..], &["--shape", "takeover"]].concat()).await;
    assert_eq!(code, Some(0), "{report:#}\n{said}");
    let phases = report["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 3, "{report:#}");
    for phase in phases {
        let takeover_ms = phase["takeover_ms"].as_f64().unwrap();
        assert!(takeover_ms > 0.0, "{phase:#}");
        let load = &phase["loads"][0];
        assert_eq!((&load["messages"], &load["unanswered"]), (&800.into(), &0.into()), "{phase:#}");
        assert_eq!(load["violations"]["count"], 0, "{phase:#}");
    }
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_not_the_messages_own_are_caught() {
    let scripts = TempDir::new().unwrap();
    let script = scripts.path().join("script.toml");
    // Every conversation's third message is answered as if it were its first.
    std::fs::write(
        &script,
        "[[rule]]\npattern = '^0ms 2 '\nreply = '0ms 0 again'\n[[rule]]\nreply = '$text'\n".replace('\'', "\""),
    )
    .unwrap();
    let deployment = Deployment::start(&free_api_base(), |configuration| {
        configuration.set("responders.bench", "kind", "\"script\"").set(
            "responders.bench",
            "file",
            &quoted(&script.display().to_string()),
        );
    })
    .await;
    let (code, report, said) = deployment.bench(&["--no-ceilings", "--timeout", "5"]).await;
    assert_eq!(code, Some(1), "{report:#}\n{said}");
    let load = &report["phases"][0]["loads"][0];
    assert!(load["unanswered"].as_u64().unwrap() > 0, "{load:#}");
    let examples = load["violations"]["examples"].as_array().unwrap();
    assert!(examples.iter().any(|it| it.as_str().unwrap().ends_with("message 0 was answered again")), "{examples:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_beyond_this_machine_are_refused() {
    for api_base in ["https://api.telegram.org", "http://192.0.2.1:8081", "http://localhost:8081"] {
        let deployment = Deployment::start(api_base, |_| {}).await;
        let (code, report, said) = deployment.bench(&[]).await;
        assert_eq!((code, report), (Some(2), Value::Null), "{said}");
        assert!(said.contains("needs a free loopback address"), "{said}");
    }
}
