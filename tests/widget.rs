//! The chat widget in a real browser: on the page at `/`, on a page of another site, and on one of a site that is not listed.
//!
//! Refuses to look at how it is made: what counts is what a person sees, hears and can reach with a keyboard. The model says each word
//! when the test says so.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::net::SocketAddr;

use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use browser::{Browser, ENTER, ESCAPE};
use model::{Play, Spoken};
use serde_json::{Value, json};
use support::brain::Brain;
use support::process::{CONSOLE_TOKEN, Configuration, quoted};
use support::responder::Behaviour;
use support::scenario::{Backend, Deployment};
use support::{free_port, http_client};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/browser.rs"]
mod browser;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/model.rs"]
mod model;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// The widget's shadow tree, wherever in the page it is.
const TREE: &str = "[...document.querySelectorAll('*')].find((node) => node.shadowRoot).shadowRoot";

/// Every line of the conversation as it is seen, a draft with a mark.
const LINES: &str = "const tree = [...document.querySelectorAll('*')].find((node) => node.shadowRoot)?.shadowRoot; \
     return [...tree?.querySelectorAll('#log li') ?? []].filter((line) => !line.hidden).map((line) => \
     (line.className.split(' ')[0]) + ': ' + (line.querySelector('.bubble')?.textContent ?? line.textContent))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_grows_survives_a_lost_connection_and_is_there_after_a_reload() {
    let mut stage = Stage::start(3).await;
    let browser = Browser::start().await;
    browser.open(&stage.line.url("/")).await;
    assert_eq!(spoken(&browser, "message").await, ("textbox".into(), "Your message".into()));
    assert_eq!(spoken(&browser, "send").await, ("button".into(), "Send".into()));
    assert_eq!(spoken(&browser, "log").await, ("log".into(), "Messages".into()));
    let focused = browser.run(&format!("return {TREE}.activeElement?.id")).await;
    assert_eq!(focused, "message", "one can type at once");

    browser.type_into(&node("message"), &format!("tell me{ENTER}")).await;
    let model = stage.speaker();
    browser
        .until("the typing sign", &format!("return {TREE}.getElementById('typing').hidden"), |hidden| hidden == false)
        .await;
    // Whatever the answer so far is ever seen to be.
    let watch = "window.seen = []; new MutationObserver(() => { \
         const text = log.querySelector('.draft .bubble')?.textContent; if (text) window.seen.push(text); \
         }).observe(log, { subtree: true, childList: true, characterData: true });";
    browser.run(&format!("const log = {TREE}.getElementById('log'); {watch}")).await;
    for (words, shown) in [("One ", "One "), ("two, ", "One two, ")] {
        model.send(Spoken::text(words)).unwrap();
        lines(&browser, &["user: tell me", &format!("assistant: {shown}")]).await;
    }
    stage.line.cut();
    model.send(Spoken::text("three <b>")).unwrap();
    lines(&browser, &["user: tell me", "assistant: One two, three <b>"]).await;
    stage.line.cut();
    model.send(Spoken::text("four")).unwrap();
    lines(&browser, &["user: tell me", "assistant: One two, three <b>four"]).await;
    drop(model);
    let done = format!("return {TREE}.querySelector('.draft') === null");
    browser.until("the reply in the draft's place", &done, |done| done == true).await;
    lines(&browser, &["user: tell me", "assistant: One two, three <b>four"]).await;
    let seen = browser.run("return window.seen").await;
    let seen: Vec<&str> = seen.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(seen.is_sorted_by(|left, right| right.starts_with(left)), "no word twice, none missing: {seen:?}");

    browser.reload().await;
    lines(&browser, &["user: tell me", "assistant: One two, three <b>four"]).await;
    // Reloaded in the middle of an answer: it goes on.
    browser.type_into(&node("message"), &format!("and then?{ENTER}")).await;
    let model = stage.speaker();
    model.send(Spoken::text("Then ")).unwrap();
    lines(&browser, &["user: tell me", "assistant: One two, three <b>four", "user: and then?", "assistant: Then "])
        .await;
    browser.reload().await;
    model.send(Spoken::text("nothing.")).unwrap();
    drop(model);
    let all = ["user: tell me", "assistant: One two, three <b>four", "user: and then?", "assistant: Then nothing."];
    lines(&browser, &all).await;

    for (scheme, color) in [("light", "rgb(243, 244, 247)"), ("dark", "rgb(18, 20, 26)")] {
        browser.prefer_colors(scheme).await;
        let background = format!("return getComputedStyle({TREE}.getElementById('panel')).backgroundColor");
        assert_eq!(browser.run(&background).await, color, "{scheme}");
    }
    browser.click(&node("new-conversation")).await;
    lines(&browser, &[]).await;
    assert_no_policy_broken(&browser).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_site_embeds_it_and_people_answer_there() {
    let mut stage = Stage::start(1).await;
    let browser = Browser::start().await;
    browser.open(&stage.site("127.0.0.1")).await;
    browser
        .until("the launcher", &format!("return {TREE}.getElementById('launcher')?.hidden"), |hidden| hidden == false)
        .await;
    assert_eq!(spoken(&browser, "launcher").await, ("button".into(), "Chat: Our shop".into()));
    browser.run(&format!("{TREE}.getElementById('launcher').focus()")).await;
    browser.press(ENTER).await;
    let focused = format!("return {TREE}.activeElement?.id");
    browser.until("the focus in the panel", &focused, |id| id == "message").await;
    assert_eq!(spoken(&browser, "panel").await, ("dialog".into(), "Our shop".into()));
    browser.press(ESCAPE).await;
    browser.until("the focus back", &focused, |id| id == "launcher").await;
    browser.press(ENTER).await;
    let outside = browser.run("return getComputedStyle(document.querySelector('h1')).color").await;
    assert_eq!(outside, "rgb(1, 2, 3)", "the page's own style is left alone");

    browser.type_into(&node("message"), &format!("hello{ENTER}")).await;
    let model = stage.speaker();
    model.send(Spoken::text("Welcome")).unwrap();
    lines(&browser, &["user: hello", "assistant: Welcome"]).await;
    drop(model);
    let done = format!("return {TREE}.querySelector('.draft') === null");
    browser.until("the reply", &done, |done| done == true).await;

    let conversation = stage.conversation().await;
    let path = format!("/v1/conversations/{conversation}");
    stage.operate(http_client().patch(stage.deployment.turnwise.url(&path)).json(&json!({ "status": "human" }))).await;
    browser.type_into(&node("message"), &format!("a person, please{ENTER}")).await;
    let notice = "notice: A person will answer here.";
    lines(&browser, &["user: hello", "assistant: Welcome", "user: a person, please", notice]).await;
    let agent = stage.deployment.turnwise.url(&format!("{path}/messages"));
    stage.operate(http_client().post(agent).json(&json!({ "content": "Kim here." }))).await;
    lines(&browser, &["user: hello", "assistant: Welcome", "user: a person, please", notice, "assistant: Kim here."])
        .await;
    browser.reload().await;
    lines(&browser, &["user: hello", "assistant: Welcome", "user: a person, please", "assistant: Kim here."]).await;
    assert_no_policy_broken(&browser).await;

    // The same page under another name is another origin, which nobody listed.
    browser.open(&stage.site("localhost")).await;
    browser.click(&node("launcher")).await;
    browser.type_into(&node("message"), &format!("hello{ENTER}")).await;
    let error =
        format!("return {TREE}.getElementById('error').hidden ? '' : {TREE}.getElementById('error-text').textContent");
    let refused = browser.until("an error", &error, |text| text != "").await;
    let refused = refused.as_str().unwrap();
    assert!(refused.contains("http://localhost:") && refused.contains("\"origins\""), "{refused}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_to_be_confirmed_has_buttons() {
    let stage = Stage::start(0).await;
    let browser = Browser::start().await;
    browser.open(&stage.page("desk")).await;
    browser.click(&node("launcher")).await;
    browser.type_into(&node("message"), &format!("a table{ENTER}")).await;
    let choices = format!("return [...{TREE}.querySelectorAll('.choices button')].map((button) => button.textContent)");
    browser.until("the buttons", &choices, |labels| *labels == json!(["Yes", "No"])).await;
    assert!(stage.brain.calls_of("reserve").is_empty());
    browser.reload().await;
    browser.click(&node("launcher")).await;
    browser.until("the buttons again", &choices, |labels| *labels == json!(["Yes", "No"])).await;
    browser.click(&format!("{TREE}.querySelector('.choices button')")).await;
    browser
        .until("the answer", LINES, |lines| {
            lines.as_array().unwrap().last() == Some(&json!("assistant: Yes: reserve done"))
        })
        .await;
    assert_eq!(stage.brain.calls_of("reserve").len(), 1);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_can_offer_answers() {
    let stage = Stage::start(0).await;
    let browser = Browser::start().await;
    browser.open(&stage.page("menu")).await;
    browser.click(&node("launcher")).await;
    browser.type_into(&node("message"), &format!("a shirt{ENTER}")).await;
    let choices = format!("return [...{TREE}.querySelectorAll('.choices button')].map((button) => button.textContent)");
    browser.until("the buttons", &choices, |labels| *labels == json!(["Red", "Blue"])).await;
    browser.reload().await;
    browser.click(&node("launcher")).await;
    browser.until("the buttons again", &choices, |labels| *labels == json!(["Red", "Blue"])).await;
    browser.click(&format!("{TREE}.querySelector('.choices button')")).await;
    let all = ["user: a shirt", "assistant: Which colour?", "user: Red", "assistant: pressed colour-1"];
    lines(&browser, &all).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_sees_the_buttons_and_waits_for_a_person() {
    let stage = Stage::start(0).await;
    let say = async |body: Value| {
        let request = http_client().post(stage.deployment.turnwise.url("/v1/chat")).json(&body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        answer.json::<Value>().await.unwrap()
    };
    let asked = say(json!({ "bot": "menu", "device_id": "d", "message": "a shirt" })).await;
    let buttons = json!([{ "label": "Red", "payload": "colour-1" }, { "label": "Blue", "payload": "colour-2" }]);
    assert_eq!(asked["reply"]["buttons"], buttons, "{asked:#}");
    let chosen = say(json!({ "bot": "menu", "device_id": "d", "message": "Blue", "payload": "colour-2" })).await;
    assert_eq!((&chosen["reply"]["content"], &chosen["reply"]["buttons"]), (&json!("pressed colour-2"), &json!([])));
    let long = json!({ "bot": "menu", "device_id": "d", "message": "x", "payload": "p".repeat(65) });
    let refused = http_client().post(stage.deployment.turnwise.url("/v1/chat")).json(&long).send().await.unwrap();
    assert_eq!(refused.status(), 422);

    let path = format!("/v1/conversations/{}/messages", asked["conversation_id"].as_str().unwrap());
    let url = stage.deployment.turnwise.url(&path);
    let newer = |after: u32, wait: u32| {
        let url = format!("{url}?device_id=d&after={after}&wait={wait}");
        async move { http_client().get(url).send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let contents = |page: &Value| -> Vec<Value> {
        page["messages"].as_array().unwrap().iter().map(|message| message["content"].clone()).collect()
    };
    assert_eq!(contents(&newer(2, 0).await), ["Blue", "pressed colour-2"]);
    assert_eq!(contents(&newer(4, 0).await), [""; 0]);
    let next = http_client().get(format!("{url}?device_id=d&after=1&limit=2")).send().await.unwrap();
    assert_eq!(
        contents(&next.json::<Value>().await.unwrap()),
        ["Which colour?", "Blue"],
        "the next ones, none left out"
    );
    let agent = stage.operate(http_client().post(&url).json(&json!({ "content": "Kim here." })));
    let (heard, ()) = tokio::join!(newer(4, 30), agent);
    assert_eq!(contents(&heard), ["Kim here."]);
}

/// A bot that offers two colours, and says what was pressed; gives its address.
async fn menu() -> String {
    let respond = async |Json(request): Json<Value>| {
        let pressed = request["messages"][0]["payload"].as_str();
        let button = |label: &str, payload: &str| json!({ "label": label, "payload": payload });
        let reply = match pressed {
            Some(payload) => json!({ "content": format!("pressed {payload}") }),
            None => json!({
                "content": "Which colour?", "buttons": [button("Red", "colour-1"), button("Blue", "colour-2")],
            }),
        };
        Json(json!({ "replies": [reply] }))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", post(respond))).await.unwrap() });
    format!("http://{address}/")
}

/// A deployment with open bots: `menu`, which offers answers, `desk`, whose tool has to be confirmed, and `shop`, whose model speaks when the test does; a line to it
/// that can be cut; and a site that embeds them.
struct Stage {
    deployment: Deployment,
    brain: Brain,
    line: Line,
    site_port: u16,
    /// Of the calls to come, the next one last.
    speakers: Vec<mpsc::UnboundedSender<Spoken>>,
    _model: model::Model,
    _site: JoinSet<()>,
}

impl Stage {
    async fn start(calls: usize) -> Self {
        let (mut speakers, plays): (Vec<_>, Vec<_>) = (0..calls)
            .map(|_| {
                let (speaker, words) = mpsc::unbounded_channel();
                (speaker, Play::Spoken(words))
            })
            .unzip();
        speakers.reverse();
        let model = model::Model::start(plays).await;
        let brain = Brain::start(&[&["reserve"]]).await;
        let menu = menu().await;
        let site_port = free_port();
        let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
            configuration.openai_responder("speaker", &model.base_url).openai_responder("clerk", &brain.base_url());
            configuration
                .set("responders.clerk", "tools", "[\"reserve\"]")
                .set("tools.reserve", "kind", "\"http\"")
                .set("tools.reserve", "url", &quoted(&brain.tool_url("reserve")))
                .set("tools.reserve", "description", "\"Reserves.\"")
                .set("tools.reserve", "parameters", "{ type = \"object\" }")
                .set("tools.reserve", "confirm", "true");
            // The page at `/` is for the first of them.
            open_bot(configuration, "chat", "speaker", site_port);
            configuration.set("responders.waiter", "kind", "\"http\"").set("responders.waiter", "url", &quoted(&menu));
            open_bot(configuration, "desk", "clerk", site_port);
            open_bot(configuration, "menu", "waiter", site_port);
            open_bot(configuration, "shop", "speaker", site_port);
        })
        .await;
        let line = Line::start(deployment.turnwise.url("").strip_prefix("http://").unwrap().to_owned()).await;
        let site = serve_site(site_port, &deployment.turnwise.url("")).await;
        Self { deployment, brain, line, site_port, speakers, _model: model, _site: site }
    }

    /// What the model says to the next call. Dropped, it has said everything.
    fn speaker(&mut self) -> mpsc::UnboundedSender<Spoken> {
        self.speakers.pop().expect("a call that the model answers")
    }

    fn site(&self, host: &str) -> String {
        format!("http://{host}:{}/shop", self.site_port)
    }

    fn page(&self, bot: &str) -> String {
        format!("http://127.0.0.1:{}/{bot}", self.site_port)
    }

    /// The one conversation there is.
    async fn conversation(&self) -> String {
        let url = self.deployment.turnwise.url("/v1/conversations");
        let listed: Value =
            http_client().get(url).bearer_auth(CONSOLE_TOKEN).send().await.unwrap().json().await.unwrap();
        listed["conversations"][0]["id"].as_str().unwrap().to_owned()
    }

    async fn operate(&self, request: reqwest::RequestBuilder) {
        let answer = request.bearer_auth(CONSOLE_TOKEN).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }
}

fn open_bot(configuration: &mut Configuration, name: &str, responder: &str, site_port: u16) {
    let table = format!("bots.{name}");
    configuration.set(&table, "channel", "\"web\"").set(&table, "responder", &quoted(responder)).set(
        &table,
        "origins",
        &format!("[\"http://127.0.0.1:{site_port}\"]"),
    );
}

/// A site with a strict policy of its own, a page for each bot.
async fn serve_site(port: u16, server: &str) -> JoinSet<()> {
    let policy = format!(
        "default-src 'none'; style-src 'self'; script-src {server}; connect-src {server}; require-trusted-types-for 'script'"
    );
    let page = |bot: &str| {
        let script =
            format!("<script src=\"{server}/widget.js\" data-bot=\"{bot}\" data-title=\"Our shop\" defer></script>");
        let style = "<link rel=\"stylesheet\" href=\"/style.css\">";
        Html(format!(
            "<!doctype html><html lang=\"en\"><head><title>Shop</title>{style}{script}</head><body><h1>Shop</h1></body></html>"
        ))
    };
    let style = || async { ([("content-type", "text/css")], "h1 { color: rgb(1, 2, 3); } * { margin: 40px; }") };
    let (shop, desk, menu) = (page("shop"), page("desk"), page("menu"));
    let headers = [("content-security-policy", policy)];
    let respond = |page: Html<String>| {
        let headers = headers.clone();
        get(async move || (headers, page))
    };
    let routes = Router::new()
        .route("/shop", respond(shop))
        .route("/desk", respond(desk))
        .route("/menu", respond(menu))
        .route("/style.css", get(style));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, routes).await.unwrap() });
    serving
}

/// A line between the browser and the server, which can be cut: then everything that goes over it breaks off.
struct Line {
    address: SocketAddr,
    cuts: tokio::sync::watch::Sender<u32>,
    _accepting: JoinSet<()>,
}

impl Line {
    async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = tokio::sync::watch::Sender::new(0);
        let mut accepting = JoinSet::new();
        let ends = cuts.clone();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (target, mut end) = (target.clone(), ends.subscribe());
                end.mark_unchanged();
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(&target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = end.changed() => {}
                    }
                });
            }
        });
        Self { address, cuts, _accepting: accepting }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

fn node(id: &str) -> String {
    format!("{TREE}.getElementById('{id}')")
}

async fn spoken(browser: &Browser, id: &str) -> (String, String) {
    browser.spoken(&node(id)).await
}

/// Returns when the conversation is seen to be these lines.
async fn lines(browser: &Browser, expected: &[&str]) {
    browser.until(&format!("{expected:?}"), LINES, |lines| *lines == json!(expected)).await;
}

async fn assert_no_policy_broken(browser: &Browser) {
    let complaints = browser.complaints().await;
    let broken: Vec<_> =
        complaints.iter().filter(|said| said.contains("Security Policy") || said.contains("Error")).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
