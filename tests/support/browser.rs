//! A real Chromium without a window, driven over the WebDriver protocol (<https://www.w3.org/TR/webdriver2/>).
//!
//! Refuses to know what a page shows. Invariant: each browser has a new profile, and ends with the value that holds it.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::support::{PATIENCE, eventually, free_port, http_client};

/// The name under which WebDriver hands out a node.
const NODE: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) const ENTER: &str = "\u{E007}";
pub(crate) const ESCAPE: &str = "\u{E00C}";

pub(crate) struct Browser {
    session: String,
    _driver: Child,
    _profile: TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let [browser, driver] = ["TURNWISE_CHROMIUM", "TURNWISE_CHROMEDRIVER"].map(|name| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} is not set: `make test` does, by scripts/chromium.sh"))
        });
        let port = free_port();
        let mut command = Command::new(driver);
        command.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let driver = command.spawn().unwrap();
        let base = format!("http://127.0.0.1:{port}");
        eventually("the driver to be ready", PATIENCE, async || {
            let status: Value = http_client().get(format!("{base}/status")).send().await.ok()?.json().await.ok()?;
            (status["value"]["ready"] == true).then_some(())
        })
        .await;
        let profile = TempDir::new().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--window-size=1000,800",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let options = json!({ "binary": browser, "args": arguments });
        let wanted = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let session =
            ask(Method::POST, &format!("{base}/session"), &json!({ "capabilities": { "alwaysMatch": wanted } })).await;
        let session = format!("{base}/session/{}", session["sessionId"].as_str().unwrap());
        Self { session, _driver: driver, _profile: profile }
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Value {
        ask(method, &format!("{}/{path}", self.session), body).await
    }

    pub(crate) async fn open(&self, url: &str) {
        self.ask(Method::POST, "url", &json!({ "url": url })).await;
    }

    pub(crate) async fn reload(&self) {
        self.ask(Method::POST, "refresh", &json!({})).await;
    }

    /// What the body of a function gives back.
    pub(crate) async fn run(&self, body: &str) -> Value {
        self.ask(Method::POST, "execute/sync", &json!({ "script": body, "args": [] })).await
    }

    /// Runs it until what it gives back fulfils the condition.
    pub(crate) async fn until(&self, what: &str, body: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = tokio::time::timeout(PATIENCE, async {
            let mut looks = tokio::time::interval(Duration::from_millis(50));
            loop {
                looks.tick().await;
                last = self.run(body).await;
                if condition(&last) {
                    return;
                }
            }
        })
        .await;
        assert!(found.is_ok(), "waited in vain for {what}; at last: {last:#}");
        last
    }

    /// Types into the node that an expression gives.
    pub(crate) async fn type_into(&self, node: &str, text: &str) {
        let node = self.run(&format!("return {node}")).await;
        let id = node[NODE].as_str().unwrap_or_else(|| panic!("no node: {node}"));
        self.ask(Method::POST, &format!("element/{id}/value"), &json!({ "text": text })).await;
    }

    pub(crate) async fn click(&self, node: &str) {
        let node = self.run(&format!("return {node}")).await;
        let id = node[NODE].as_str().unwrap_or_else(|| panic!("no node: {node}"));
        self.ask(Method::POST, &format!("element/{id}/click"), &json!({})).await;
    }

    /// One key, to whatever has the focus.
    pub(crate) async fn press(&self, key: &str) {
        let actions = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        self.ask(Method::POST, "actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] }))
            .await;
    }

    /// What a screen reader calls the node that an expression gives, and what it takes it for.
    pub(crate) async fn spoken(&self, node: &str) -> (String, String) {
        let node = self.run(&format!("return {node}")).await;
        let id = node[NODE].as_str().unwrap_or_else(|| panic!("no node: {node}"));
        let label = self.ask(Method::GET, &format!("element/{id}/computedlabel"), &Value::Null).await;
        let role = self.ask(Method::GET, &format!("element/{id}/computedrole"), &Value::Null).await;
        (role.as_str().unwrap().to_owned(), label.as_str().unwrap().to_owned())
    }

    pub(crate) async fn prefer_colors(&self, scheme: &str) {
        let parameters = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": parameters });
        self.ask(Method::POST, "goog/cdp/execute", &command).await;
    }

    /// What is seen now, as a PNG.
    pub(crate) async fn picture(&self) -> Vec<u8> {
        let picture = self.ask(Method::GET, "screenshot", &Value::Null).await;
        base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap()
    }

    /// What the browser has complained of since the last question.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.ask(Method::POST, "se/log", &json!({ "type": "browser" })).await;
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Ends the browser itself; dropping the value ends only its driver.
    pub(crate) async fn close(self) {
        ask(Method::DELETE, &self.session, &Value::Null).await;
    }
}

async fn ask(method: Method, url: &str, body: &Value) -> Value {
    let request = http_client().request(method, url);
    let request = if body.is_null() { request } else { request.json(body) };
    let mut answer: Value = request.send().await.unwrap().json().await.unwrap();
    let value = answer["value"].take();
    assert!(
        value.get("error").is_none_or(|error| !error.is_string() || value.get("stacktrace").is_none()),
        "{url}: {value:#}"
    );
    value
}
