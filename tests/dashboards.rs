//! The dashboards and alerts in `deploy/` on a real Prometheus that scrapes the real binary under load: every panel shows
//! something, every rule can be judged, and what `/metrics` says is as Prometheus wants it.
//!
//! Refuses to look at pictures: Grafana is not part of it.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "the harness shows what a process said when its test fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::brain::Brain;
use support::process::{WEB_KEY, quoted};
use support::responder::Behaviour;
use support::scenario::{Backend, Deployment, RESPONDER};
use support::{PATIENCE, eventually, free_port, http_client};
use tempfile::TempDir;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// The gauges that must be asked for are asked every 15 s.
const LIMIT: Duration = Duration::from_secs(90);

const CHATS: i64 = 5;

const HOPELESS: &str = "a message that no attempt survives";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_and_rule_finds_its_series() {
    let brain = Brain::start(&[&["orders"]]).await;
    let mut deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        let model = configuration.get(&format!("responders.{RESPONDER}"), "base_url").trim_matches('"').to_owned();
        configuration
            .openai_responder("failing", &model)
            .web_bot("web", "failing")
            .openai_responder(RESPONDER, &brain.base_url())
            .set(&format!("responders.{RESPONDER}"), "tools", "[\"orders\"]")
            .set("tools.orders", "kind", "\"http\"")
            .set("tools.orders", "url", &quoted(&brain.tool_url("orders")))
            .set("tools.orders", "description", "\"Orders.\"")
            .set("tools.orders", "parameters", "{ type = \"object\", properties = { about = { type = \"string\" } } }")
            .set("worker", "max_attempts", "1");
    })
    .await;
    deployment.model.always_fail(HOPELESS);
    let prometheus = Prometheus::start(deployment.turnwise.url("")).await;
    let mut blank: Vec<(String, String)> = panels();
    let panels = blank.len();
    let mut sent = 0;
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !blank.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "of {panels} queries these show nothing: {blank:#?}");
        let chat = sent % CHATS + 1;
        deployment.telegram.send(chat, &format!("message {sent}"));
        let answers = usize::try_from(sent / CHATS + 1).unwrap();
        deployment.telegram.wait_for_texts(chat, answers, PATIENCE).await;
        if sent == 0 {
            give_up_one(&deployment).await;
            // Consumers are made again, which is what the panel of redeliveries shows.
            deployment.nats.kill9().await;
            deployment.nats.start_again().await;
        }
        sent += 1;
        let mut still = Vec::new();
        for (panel, query) in blank {
            if !prometheus.shows(&query).await {
                still.push((panel, query));
            }
        }
        blank = still;
    }

    let rules = prometheus.rules().await;
    assert!(rules.len() >= 20, "{} rules", rules.len());
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{}: {}", rule["name"], rule["lastError"]);
        let quiet = ["TurnwisePartition", "TurnwiseNobody", "TurnwiseStream", "TurnwiseStorage", "TurnwiseDown"];
        if quiet.iter().any(|name| rule["name"].as_str().unwrap().starts_with(name)) {
            assert_eq!(rule["state"], "inactive", "nothing is wrong with that: {rule}");
        }
    }
    eventually("the alert for dead letters", LIMIT, async || {
        let rules = prometheus.rules().await;
        rules.iter().any(|rule| rule["name"] == "TurnwiseDeadLetters" && rule["state"] != "inactive").then_some(())
    })
    .await;

    let page = http_client().get(deployment.turnwise.url("/metrics")).send().await.unwrap().text().await.unwrap();
    check_metrics(&page);
    deployment.turnwise.terminate().await;
}

/// A message becomes a dead letter.
async fn give_up_one(deployment: &Deployment) {
    let body = json!({ "bot": "web", "device_id": "device", "message": HOPELESS });
    let call = http_client().post(deployment.turnwise.url("/v1/chat")).bearer_auth(WEB_KEY).json(&body);
    let answer: Value = call.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["status"], "dead_lettered", "{answer}");
}

/// `promtool check metrics`: help texts, types, names and units.
fn check_metrics(page: &str) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("metrics");
    std::fs::write(&file, page).unwrap();
    let input = std::fs::File::open(&file).unwrap();
    let checked = Command::new(programs().join("promtool")).args(["check", "metrics"]).stdin(input).output().unwrap();
    let said = [checked.stdout, checked.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).join("");
    assert!(checked.status.success() && said.is_empty(), "promtool check metrics: {said}");
}

/// Each panel of each dashboard with each of its queries, as Grafana would fill them in.
fn panels() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards");
    let mut panels = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let dashboard: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query =
                    target["expr"].as_str().unwrap().replace("$job", "turnwise").replace("$__rate_interval", "30s");
                assert!(!query.contains('$'), "an unknown variable in {query}");
                panels.push((format!("{} / {}", dashboard["title"], panel["title"]), query));
            }
        }
    }
    assert!(panels.len() > 40, "{} queries", panels.len());
    panels
}

struct Prometheus {
    url: String,
    _child: tokio::process::Child,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes one address every second, and judges the rules in `deploy/` as often.
    async fn start(address: String) -> Self {
        let directory = TempDir::new().unwrap();
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/rules.yml");
        let configuration = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules],
            "scrape_configs": [{
                "job_name": "turnwise",
                "static_configs": [{ "targets": [address.trim_start_matches("http://")] }],
            }],
        });
        // JSON is YAML.
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, configuration.to_string()).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let mut child = tokio::process::Command::new(programs().join("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = format!("http://{listen}");
        eventually("Prometheus to be ready", PATIENCE, async || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {}", std::fs::read_to_string(directory.path().join("log")).unwrap());
            }
            let answer = http_client().get(format!("{url}/-/ready")).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        Self { url, _child: child, _directory: directory }
    }

    /// Whether the query finds a number now.
    async fn shows(&self, query: &str) -> bool {
        let url = url::Url::parse_with_params(&format!("{}/api/v1/query", self.url), [("query", query)]).unwrap();
        let asked = http_client().get(url).send().await;
        let answer: Value = asked.unwrap().json().await.unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let found = answer["data"]["result"].as_array().unwrap();
        found.iter().any(|series| series["value"][1].as_str().unwrap().parse::<f64>().unwrap().is_finite())
    }

    async fn rules(&self) -> Vec<Value> {
        let answer = http_client().get(format!("{}/api/v1/rules", self.url)).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let groups = answer["data"]["groups"].as_array().unwrap();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}

/// `TURNWISE_PROMETHEUS`, else the project's tools folder, else PATH.
fn programs() -> PathBuf {
    if let Some(named) = std::env::var_os("TURNWISE_PROMETHEUS") {
        return PathBuf::from(named);
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/prometheus");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools)
        .chain(std::env::split_paths(&path))
        .find(|folder| folder.join("prometheus").is_file() && folder.join("promtool").is_file())
        .expect("no prometheus in .tools or on PATH\nhint: run `make test`, which fetches it")
}
