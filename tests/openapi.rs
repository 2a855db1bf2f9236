//! The API's description against the running program: it is sound, it names the routes and methods there are, and every answer
//! that can be had is one that it describes, schema and all.
//!
//! Refuses to judge what answers mean: `chat_api.rs` and `http_surface.rs` do.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::collections::BTreeSet;
use std::sync::Mutex;

use jsonschema::Validator;
use reqwest::{Method, RequestBuilder, Response, header};
use serde_json::{Value, json};
use support::process::{CONSOLE_TOKEN, WEB_KEY, quoted};
use support::receiver::Receiver;
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::telegram::SECRET;
use support::{PATIENCE, eventually, http_client, messenger, receiver};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const CHAT: &str = "/v1/chat";
const TURN: &str = "/v1/turns/{turn_id}";
const EVENTS: &str = "/v1/turns/{turn_id}/events";
const CONVERSATIONS: &str = "/v1/conversations";
const CONVERSATION: &str = "/v1/conversations/{id}";
const FILE: &str = "/v1/files/{bot}/{file_id}";
const MESSAGES: &str = "/v1/conversations/{id}/messages";
const TELEGRAM: &str = "/webhooks/telegram/{bot}";
const MESSENGER: &str = "/webhooks/messenger/{bot}";
const HTTP: &str = "/webhooks/http/{bot}";
const DELIVERIES: &str = "/v1/deliveries";
const TOTALS: &str = "/v1/deliveries/totals";
const SETTLE: &str = "/v1/deliveries/{id}/settle";

const NOBODY: &str = "0193e8a0-0000-7000-8000-000000000000";

/// Statuses that no request can bring about here: a body that never ends, and a database that fails.
const NOT_PROVOKED: &[u16] = &[408, 503];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_sound_and_names_the_routes_there_are() {
    let api = Api::start().await;
    let document = &api.document;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."), "{}", document["openapi"]);
    assert_eq!(document["servers"][0]["url"], "https://bots.example.com");
    let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let known = ["/openapi.json", "/healthz", "/readyz", "/metrics"];
    let talk = [CHAT, TURN, EVENTS, CONVERSATIONS, CONVERSATION, MESSAGES, FILE, DELIVERIES, TOTALS, SETTLE];
    let known = [TELEGRAM, MESSENGER, HTTP].into_iter().chain(talk).chain(known);
    assert_eq!(paths, known.collect());

    let mut ids = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{id} stands for two operations");
            assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
            let segments: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
            let documented = operation["parameters"].as_array().unwrap().iter();
            let documented = documented.filter(|parameter| parameter["in"] == "path");
            assert_eq!(
                documented.map(|parameter| parameter["name"].as_str().unwrap()).collect::<BTreeSet<_>>(),
                segments
            );
        }
        // The router itself says which methods it takes.
        let url = api.deployment.turnwise.url(&path.replace(['{', '}'], ""));
        let refused = http_client().request(Method::from_bytes(b"BREW").unwrap(), url).send().await.unwrap();
        let allowed = refused.headers()[header::ALLOW].to_str().unwrap().to_lowercase();
        let allowed: BTreeSet<&str> = allowed.split(',').filter(|method| *method != "head").collect();
        assert_eq!(allowed, methods.as_object().unwrap().keys().map(String::as_str).collect(), "methods of {path}");
    }
    for reference in references(document) {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads elsewhere"));
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        api.validator(schema);
        assert!(!name.is_empty() && schema.is_object(), "{name}");
    }
    let unused = document["components"]["schemas"].as_object().unwrap().keys();
    let references: BTreeSet<String> = references(document).into_iter().collect();
    for name in unused {
        assert!(references.contains(&format!("#/components/schemas/{name}")), "nothing refers to {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_one_that_is_described() {
    let mut api = Api::start().await;
    chat_answers(&api).await;
    turn_answers(&api).await;
    conversation_answers(&api).await;
    webhook_answers(&api).await;
    delivery_answers(&api).await;
    file_answers(&api).await;
    for path in ["/openapi.json", "/healthz", "/readyz", "/metrics"] {
        api.expect(200, "get", path, api.request(Method::GET, path)).await;
    }
    let missed = api.statuses_not_seen();
    assert!(missed.is_empty(), "described, but never seen: {missed:?}");

    api.deployment.nats.kill9().await;
    api.expect(503, "post", CHAT, api.say(&json!({ "device_id": "phone", "message": "hi" }))).await;
    api.expect(503, "get", "/readyz", api.request(Method::GET, "/readyz")).await;
    let update = json!({ "update_id": 1 });
    api.expect(503, "post", TELEGRAM, api.telegram(SECRET, &update)).await;
}

async fn chat_answers(api: &Api) {
    let ended = api.expect(200, "post", CHAT, api.say(&json!({ "device_id": "phone", "message": "hello" }))).await;
    assert_eq!(ended["reply"]["content"], "re: hello");
    let whole = json!({
        "bot": "shop", "device_id": "phone", "conversation_id": ended["conversation_id"], "message": "again",
        "platform": "api", "metadata": { "a": null }, "confirm": null,
    });
    api.expect(200, "post", CHAT, api.say(&whole)).await;
    api.expect(202, "post", CHAT, api.say(&whole).header("Prefer", "respond-async")).await;
    let body = json!({ "device_id": "events", "message": "tell me" });
    let events = api.expect(200, "post", CHAT, api.say(&body).header("Accept", "text/event-stream")).await;
    let names: BTreeSet<&str> = events.as_array().unwrap().iter().map(|event| event.as_str().unwrap()).collect();
    assert!(names.is_superset(&BTreeSet::from(["accepted", "reply", "done"])), "{names:?}");
    api.deployment.model.always_fail("broken");
    let body = json!({ "device_id": "failing", "message": "broken" });
    let events = api.expect(200, "post", CHAT, api.say(&body).header("Accept", "text/event-stream")).await;
    assert!(events.as_array().unwrap().contains(&json!("error")), "{events}");

    let valid = json!({ "device_id": "phone", "message": "hi" });
    api.expect(400, "post", CHAT, api.say(&json!({ "device_id": "phone", "message": "hi", "conversation_id": "x" })))
        .await;
    api.expect(401, "post", CHAT, api.anybody(Method::POST, CHAT).bearer_auth("wrong").json(&valid)).await;
    api.expect(403, "post", CHAT, api.say(&valid).header("Origin", "https://evil.example.com")).await;
    api.expect(
        404,
        "post",
        CHAT,
        api.say(&json!({ "device_id": "phone", "message": "hi", "conversation_id": NOBODY })),
    )
    .await;
    api.expect(413, "post", CHAT, api.request(Method::POST, CHAT).body(" ".repeat(2_000_000))).await;
    api.expect(415, "post", CHAT, api.request(Method::POST, CHAT).header("Content-Type", "text/plain").body("hi"))
        .await;
    api.expect(422, "post", CHAT, api.say(&json!({ "device_id": "", "message": "hi" }))).await;
    let busy = json!({ "bot": "busy", "device_id": "phone", "message": "hi" });
    api.expect(200, "post", CHAT, api.anybody(Method::POST, CHAT).json(&busy)).await;
    api.expect(429, "post", CHAT, api.anybody(Method::POST, CHAT).json(&busy)).await;
    let id = api.closed_conversation().await;
    api.expect(409, "post", CHAT, api.say(&json!({ "device_id": "closed", "message": "hi", "conversation_id": id })))
        .await;
}

async fn turn_answers(api: &Api) {
    let body = json!({ "device_id": "turns", "message": "hello" });
    let turn = api.expect(200, "post", CHAT, api.say(&body)).await;
    let turn = turn["turn_id"].as_str().unwrap();
    api.deployment.model.hold("slow");
    let body = json!({ "device_id": "turns", "message": "slow" });
    let queued = api.expect(202, "post", CHAT, api.say(&body).header("Prefer", "respond-async")).await;
    for id in [turn, queued["turn_id"].as_str().unwrap()] {
        api.expect(200, "get", TURN, api.request(Method::GET, &format!("/v1/turns/{id}"))).await;
    }
    api.deployment.model.release("slow");
    let events = format!("/v1/turns/{turn}/events");
    api.expect(200, "get", EVENTS, api.request(Method::GET, &events)).await;
    api.expect(204, "get", EVENTS, api.request(Method::GET, &events).header("Last-Event-ID", "done")).await;
    for (path, suffix) in [(TURN, ""), (EVENTS, "/events")] {
        for (status, id) in [(400, "x"), (404, NOBODY)] {
            api.expect(status, "get", path, api.request(Method::GET, &format!("/v1/turns/{id}{suffix}"))).await;
        }
        let one = format!("/v1/turns/{turn}{suffix}");
        api.expect(401, "get", path, api.anybody(Method::GET, &one).bearer_auth("wrong")).await;
        let foreign = api.request(Method::GET, &one).header("Origin", "https://evil.example.com");
        api.expect(403, "get", path, foreign).await;
    }
}

async fn conversation_answers(api: &Api) {
    let body = json!({ "device_id": "reader", "message": "hello" });
    let id = api.expect(200, "post", CHAT, api.say(&body)).await["conversation_id"].as_str().unwrap().to_owned();
    let one = format!("/v1/conversations/{id}");
    let messages = format!("{one}/messages");
    let listed = api.expect(200, "get", CONVERSATIONS, api.request(Method::GET, "/v1/conversations?limit=1")).await;
    let next = format!("/v1/conversations?limit=1&cursor={}", listed["next_cursor"].as_str().unwrap());
    api.expect(200, "get", CONVERSATIONS, api.request(Method::GET, &next)).await;
    api.expect(200, "get", CONVERSATION, api.request(Method::GET, &one)).await;
    api.expect(200, "get", MESSAGES, api.request(Method::GET, &format!("{messages}?limit=1"))).await;
    for (path, url) in [(CONVERSATIONS, "/v1/conversations"), (CONVERSATION, &one), (MESSAGES, &messages)] {
        api.expect(401, "get", path, api.anybody(Method::GET, url).bearer_auth("wrong")).await;
        let foreign = api.request(Method::GET, url).header("Origin", "https://evil.example.com");
        api.expect(403, "get", path, foreign).await;
    }
    api.expect(400, "get", CONVERSATIONS, api.request(Method::GET, "/v1/conversations?limit=0")).await;
    api.expect(422, "get", CONVERSATIONS, api.request(Method::GET, "/v1/conversations?status=asleep")).await;
    for (path, suffix) in [(CONVERSATION, ""), (MESSAGES, "/messages")] {
        for (status, id) in [(400, "x"), (404, NOBODY)] {
            let url = format!("/v1/conversations/{id}{suffix}");
            api.expect(status, "get", path, api.request(Method::GET, &url)).await;
        }
    }
    for (method, name, path, suffix, valid) in [
        (Method::PATCH, "patch", CONVERSATION, "", json!({ "assignee": "kim", "metadata": { "a": 1 } })),
        (Method::POST, "post", MESSAGES, "/messages", json!({ "messages": [{ "role": "user", "content": "before" }] })),
    ] {
        let url = format!("{one}{suffix}");
        let to = |url: &str| api.request(method.clone(), url);
        api.expect(if name == "patch" { 200 } else { 201 }, name, path, to(&url).json(&valid)).await;
        api.expect(400, name, path, to(&url).body("no json")).await;
        api.expect(401, name, path, api.anybody(method.clone(), &url).json(&valid)).await;
        api.expect(403, name, path, to(&url).json(&valid).header("Origin", "https://evil.example.com")).await;
        let nobody = format!("/v1/conversations/{NOBODY}{suffix}");
        api.expect(404, name, path, to(&nobody).json(&valid)).await;
        api.expect(413, name, path, to(&url).body(" ".repeat(2_000_000))).await;
        api.expect(415, name, path, to(&url).header("Content-Type", "text/csv").body("a,b")).await;
        api.expect(422, name, path, to(&url).json(&json!({ "unheard-of": 1 }))).await;
    }
    let closed = api.closed_conversation().await;
    let url = format!("/v1/conversations/{closed}");
    let say = api.request(Method::POST, &format!("{url}/messages")).json(&json!({ "content": "too late" }));
    api.expect(409, "post", MESSAGES, say).await;
    reopened(api).await;

    let said = api.request(Method::POST, &messages).json(&json!({ "content": "a person here" }));
    api.expect(201, "post", MESSAGES, said).await;
    api.deployment.model.hold("think");
    let body = json!({ "device_id": "reader", "message": "think" });
    api.expect(202, "post", CHAT, api.say(&body).header("Prefer", "respond-async")).await;
    let said = api.request(Method::POST, &messages).json(&json!({ "content": "meanwhile" }));
    api.expect(202, "post", MESSAGES, said).await;
    api.deployment.model.release("think");
}

async fn file_answers(api: &Api) {
    for (status, file) in [(200, "photo-1"), (404, "unknown"), (413, "huge"), (400, "%ff")] {
        let request = api.anybody(Method::GET, &format!("/v1/files/{BOT}/{file}")).bearer_auth(CONSOLE_TOKEN);
        api.expect(status, "get", FILE, request).await;
    }
    let nobody = api.anybody(Method::GET, &format!("/v1/files/{BOT}/photo-1"));
    api.expect(401, "get", FILE, nobody).await;
}

/// A person of Telegram has one open conversation at most.
async fn reopened(api: &Api) {
    const CHAT_ID: i64 = 4711;
    let operator = |method, path: &str| api.anybody(method, path).bearer_auth(CONSOLE_TOKEN);
    api.deployment.telegram.send(CHAT_ID, "hello");
    api.deployment.telegram.wait_for_texts(CHAT_ID, 1, PATIENCE).await;
    let listed = operator(Method::GET, "/v1/conversations?limit=200");
    let listed = api.expect(200, "get", CONVERSATIONS, listed).await;
    let mut listed = listed["conversations"].as_array().unwrap().iter();
    let found = listed.find(|conversation| conversation["channel"] == "telegram").expect("the conversation");
    let url = format!("/v1/conversations/{}", found["id"].as_str().unwrap());
    let set = |status: &str| operator(Method::PATCH, &url).json(&json!({ "status": status }));
    api.expect(200, "patch", CONVERSATION, set("closed")).await;
    api.deployment.telegram.send(CHAT_ID, "hello again");
    api.deployment.telegram.wait_for_texts(CHAT_ID, 2, PATIENCE).await;
    api.expect(409, "patch", CONVERSATION, set("bot")).await;
}

async fn webhook_answers(api: &Api) {
    let update = api.deployment.telegram.update(7, "hello");
    api.expect(200, "post", TELEGRAM, api.telegram(SECRET, &update)).await;
    api.expect(400, "post", TELEGRAM, api.telegram(SECRET, &json!("no update"))).await;
    api.expect(401, "post", TELEGRAM, api.telegram("wrong", &update)).await;
    api.expect(404, "post", TELEGRAM, api.anybody(Method::POST, "/webhooks/telegram/nobody").json(&update)).await;
    let url = format!("/webhooks/telegram/{BOT}");
    api.expect(413, "post", TELEGRAM, api.anybody(Method::POST, &url).body(" ".repeat(2_000_000))).await;

    let ask = |query: &str| api.anybody(Method::GET, &format!("/webhooks/messenger/page{query}"));
    let right = format!("?hub.mode=subscribe&hub.challenge=42&hub.verify_token={}", messenger::VERIFY_TOKEN);
    api.expect(200, "get", MESSENGER, ask(&right)).await;
    api.expect(400, "get", MESSENGER, ask("?hub.mode=a&hub.mode=b")).await;
    api.expect(403, "get", MESSENGER, ask("?hub.mode=subscribe&hub.challenge=42&hub.verify_token=wrong")).await;
    api.expect(404, "get", MESSENGER, api.anybody(Method::GET, "/webhooks/messenger/nobody")).await;
    let send = |name: &str, body: &str| {
        let request = api.anybody(Method::POST, &format!("/webhooks/messenger/{name}"));
        request.header("X-Hub-Signature-256", messenger::signature(body)).body(body.to_owned())
    };
    let batch = messenger::batch(&[("12345", "mid.1", "hello")]);
    api.expect(200, "post", MESSENGER, send("page", &batch)).await;
    api.expect(400, "post", MESSENGER, send("page", "no json")).await;
    api.expect(401, "post", MESSENGER, api.anybody(Method::POST, "/webhooks/messenger/page").body(batch.clone())).await;
    api.expect(404, "post", MESSENGER, send("nobody", &batch)).await;
    api.expect(413, "post", MESSENGER, send("page", &" ".repeat(2_000_000))).await;
}

/// The kiosk's receiver does not answer, and what nobody can tell of is held.
async fn delivery_answers(api: &Api) {
    let send = |name: &str, secret: &str, body: &str| {
        let url = api.deployment.turnwise.url(&format!("/webhooks/http/{name}"));
        receiver::request(&url, secret, "msg_1", 0, body)
    };
    let message = receiver::message("c1", "hello").to_string();
    api.receiver.react(&[receiver::Reaction::Hang]);
    api.expect(200, "post", HTTP, send("kiosk", receiver::SECRET, &message)).await;
    api.expect(400, "post", HTTP, send("kiosk", receiver::SECRET, "{}")).await;
    api.expect(401, "post", HTTP, send("kiosk", receiver::NEXT_SECRET, &message)).await;
    api.expect(404, "post", HTTP, send("nobody", receiver::SECRET, &message)).await;
    api.expect(413, "post", HTTP, send("kiosk", receiver::SECRET, &" ".repeat(2_000_000))).await;

    let operator = |method, path: &str| api.anybody(method, path).bearer_auth(CONSOLE_TOKEN);
    let path = "/v1/deliveries?bot=kiosk&status=uncertain&limit=1";
    let listed = eventually("an uncertain delivery", PATIENCE, async || {
        let listed = api.expect(200, "get", DELIVERIES, operator(Method::GET, path)).await;
        (!listed["deliveries"].as_array().unwrap().is_empty()).then_some(listed)
    })
    .await;
    let next = format!("{path}&cursor={}", listed["next_cursor"].as_str().unwrap());
    api.expect(200, "get", DELIVERIES, operator(Method::GET, &next)).await;
    let own = api.expect(200, "get", DELIVERIES, api.request(Method::GET, "/v1/deliveries")).await;
    assert_eq!(own["deliveries"], json!([]), "a web bot's key shows nothing of other bots");
    api.expect(400, "get", DELIVERIES, operator(Method::GET, "/v1/deliveries?limit=0")).await;
    api.expect(422, "get", DELIVERIES, operator(Method::GET, "/v1/deliveries?status=sent")).await;
    api.expect(200, "get", TOTALS, operator(Method::GET, TOTALS)).await;
    for (name, path) in [(DELIVERIES, "/v1/deliveries"), (TOTALS, TOTALS)] {
        api.expect(401, "get", name, api.anybody(Method::GET, path)).await;
        let foreign = api.request(Method::GET, path).header("Origin", "https://evil.example.com");
        api.expect(403, "get", name, foreign).await;
    }

    let id = listed["deliveries"][0]["id"].as_str().unwrap();
    let url = format!("/v1/deliveries/{id}/settle");
    let word = json!({ "outcome": "sent", "actor": "ann", "reason": "asked the receiver" });
    let settle = |url: &str, body: &Value| operator(Method::POST, url).json(body);
    api.expect(400, "post", SETTLE, settle("/v1/deliveries/x/settle", &word)).await;
    api.expect(401, "post", SETTLE, api.anybody(Method::POST, &url).json(&word)).await;
    api.expect(403, "post", SETTLE, settle(&url, &word).header("Origin", "https://evil.example.com")).await;
    api.expect(404, "post", SETTLE, settle(&format!("/v1/deliveries/{NOBODY}/settle"), &word)).await;
    api.expect(404, "post", SETTLE, api.request(Method::POST, &url).json(&word)).await;
    api.expect(413, "post", SETTLE, operator(Method::POST, &url).body(" ".repeat(2_000_000))).await;
    api.expect(415, "post", SETTLE, operator(Method::POST, &url).header("Content-Type", "text/csv").body("a,b")).await;
    for wrong in [json!({}), json!({ "outcome": "sent", "actor": "ann" }), json!({ "outcome": "lost" })] {
        api.expect(422, "post", SETTLE, settle(&url, &wrong)).await;
    }
    let settled = api.expect(200, "post", SETTLE, settle(&url, &word)).await;
    assert_eq!(settled["status"], "sent");
    api.expect(409, "post", SETTLE, settle(&url, &word)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_schemas_refuse_the_server_refuses() {
    let api = Api::start().await;
    let id = api.expect(200, "post", CHAT, api.say(&json!({ "device_id": "d", "message": "hello" }))).await;
    let id = id["conversation_id"].as_str().unwrap().to_owned();
    let odd = || {
        [json!(null), json!(""), json!(" "), json!("\n"), json!("word"), json!(7), json!(true), json!([]), json!({})]
    };
    let valid_chat = json!({ "device_id": "d", "message": "hi" });
    let valid_import = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let mut bodies: Vec<(&str, &str, Value)> = Vec::new();
    for value in odd().into_iter().chain([json!("x".repeat(255)), json!("x".repeat(256))]) {
        for field in ["bot", "device_id", "conversation_id", "message", "platform", "metadata", "confirm", "devise_id"]
        {
            let mut body = valid_chat.clone();
            body[field] = value.clone();
            bodies.push(("post", CHAT, body));
        }
        for field in ["id", "approve", "note"] {
            let mut body = json!({ "device_id": "d", "confirm": { "id": "x", "approve": true } });
            body["confirm"][field] = value.clone();
            bodies.push(("post", CHAT, body));
        }
        for field in ["status", "assignee", "metadata", "snippet"] {
            bodies.push(("patch", CONVERSATION, json!({ field: value })));
        }
        for field in ["role", "content", "created_at", "author"] {
            let mut body = valid_import.clone();
            body["messages"][0][field] = value.clone();
            bodies.push(("post", MESSAGES, body));
        }
        for field in ["content", "messages", "author"] {
            bodies.push(("post", MESSAGES, json!({ field: value })));
            let mut both = valid_import.clone();
            both[field] = value.clone();
            bodies.push(("post", MESSAGES, both));
        }
    }
    bodies.extend([
        ("post", CHAT, json!({ "device_id": "d" })),
        ("post", CHAT, json!({ "message": "hi" })),
        ("post", CHAT, json!({ "device_id": "d", "message": "x".repeat(32_769) })),
        ("post", MESSAGES, json!({})),
        ("post", MESSAGES, json!({ "messages": vec![json!({ "role": "user", "content": "x" }); 501] })),
        (
            "post",
            MESSAGES,
            json!({ "messages": [{ "role": "user", "content": "x", "created_at": "2026-11-21T09:00:00Z" }] }),
        ),
        ("patch", CONVERSATION, json!({})),
    ]);
    let (mut taken, mut refused) = (0, 0);
    for (method, path, body) in bodies {
        let fits = api.validator(&api.operation(method, path)["requestBody"]["content"]["application/json"]["schema"]);
        let fits = fits.is_valid(&body);
        let url = path.replace("{id}", &id);
        let request = api.request(Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(), &url);
        let request = request.header("Prefer", "respond-async");
        let (status, _) = api.answer(method, path, request.json(&body)).await;
        assert!(fits || (400..500).contains(&status), "{method} {path} {body} does not fit, and got {status}");
        if status < 300 { taken += 1 } else { refused += 1 }
    }
    assert!(taken > 20 && refused > 100, "{taken} taken, {refused} refused");
}

/// A deployment and what it says of itself.
struct Api {
    deployment: Deployment,
    receiver: Receiver,
    document: Value,
    seen: Mutex<BTreeSet<(String, String, u16)>>,
}

impl Api {
    async fn start() -> Self {
        let receiver = Receiver::start().await;
        let callback_url = receiver.url();
        let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
            configuration.set("http", "public_url", "\"https://bots.example.com\"").set("worker", "max_attempts", "1");
            configuration.web_bot("shop", RESPONDER).messenger_bot("page", RESPONDER, "http://127.0.0.1:9");
            configuration.set("bots.busy", "channel", "\"web\"").set("bots.busy", "responder", &quoted(RESPONDER));
            configuration.set("bots.busy", "rate_limit", "\"1/h\"");
            configuration.http_bot("kiosk", RESPONDER, &callback_url).set("bots.kiosk", "on_uncertain", "\"hold\"");
            configuration.set("bots.kiosk", "callback_timeout", "\"200ms\"");
        })
        .await;
        let response = http_client().get(deployment.turnwise.url("/openapi.json")).send().await.unwrap();
        let document = response.json().await.unwrap();
        Self { deployment, receiver, document, seen: Mutex::default() }
    }

    fn anybody(&self, method: Method, path: &str) -> RequestBuilder {
        http_client().request(method, self.deployment.turnwise.url(path))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anybody(method, path).bearer_auth(WEB_KEY)
    }

    fn say(&self, body: &Value) -> RequestBuilder {
        self.request(Method::POST, CHAT).json(body)
    }

    fn telegram(&self, secret: &str, update: &Value) -> RequestBuilder {
        let request = self.anybody(Method::POST, &format!("/webhooks/telegram/{BOT}"));
        request.header("X-Telegram-Bot-Api-Secret-Token", secret).json(update)
    }

    /// A conversation of the device `closed`.
    async fn closed_conversation(&self) -> String {
        let body = json!({ "device_id": "closed", "message": "hello" });
        let id = self.expect(200, "post", CHAT, self.say(&body)).await["conversation_id"].as_str().unwrap().to_owned();
        let close = self.anybody(Method::PATCH, &format!("/v1/conversations/{id}")).bearer_auth(CONSOLE_TOKEN);
        let close = close.header("Content-Type", "application/merge-patch+json");
        self.expect(200, "patch", CONVERSATION, close.body(json!({ "status": "closed" }).to_string())).await;
        id
    }

    async fn expect(&self, status: u16, method: &str, path: &str, request: RequestBuilder) -> Value {
        let (got, body) = self.answer(method, path, request).await;
        assert_eq!(got, status, "{method} {path}: {body}");
        body
    }

    /// The answer, which has to be described. Of a stream of events, their names.
    async fn answer(&self, method: &str, path: &str, request: RequestBuilder) -> (u16, Value) {
        let response: Response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let place = format!("{status} of {method} {path}");
        self.seen.lock().unwrap().insert((method.to_owned(), path.to_owned(), status));
        let described = self.resolve(&self.operation(method, path)["responses"][status.to_string()]);
        assert!(described.is_object(), "{place} is not described");
        for name in described["headers"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            assert!(response.headers().contains_key(name.as_str()), "{name} of {place}");
        }
        let media_type = response.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        let text = response.text().await.unwrap();
        let Some(media_type) = media_type else {
            assert!(described.get("content").is_none() && text.is_empty(), "{place} has no media type: {text}");
            return (status, Value::Null);
        };
        let media = &described["content"][&media_type];
        assert!(media.is_object(), "{media_type} is not described for {place}");
        if media_type == "text/event-stream" {
            return (status, self.events(&media["x-events"], &text));
        }
        let body = if media_type.ends_with("json") { serde_json::from_str(&text).unwrap() } else { json!(text) };
        self.assert_fits(&media["schema"], &body, &place);
        (status, body)
    }

    fn events(&self, schemas: &Value, text: &str) -> Value {
        let mut names = Vec::new();
        for block in text.split("\n\n") {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let Some(name) = field("event") else { continue };
            assert!(schemas[name].is_object(), "the event {name} is not described");
            self.assert_fits(&schemas[name], &serde_json::from_str(field("data").unwrap()).unwrap(), name);
            names.push(name);
        }
        json!(names)
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        &self.document["paths"][path][method]
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let pointer = value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        pointer.map_or(value, |pointer| self.document.pointer(pointer).unwrap())
    }

    /// Of a schema whose references lead into the document.
    fn validator(&self, schema: &Value) -> Validator {
        let root = json!({ "allOf": [schema], "components": self.document["components"] });
        jsonschema::options()
            .should_validate_formats(true)
            .build(&root)
            .unwrap_or_else(|error| panic!("{schema}: {error}"))
    }

    fn assert_fits(&self, schema: &Value, value: &Value, place: &str) {
        let errors: Vec<String> = self
            .validator(schema)
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{place}: {value:#} does not fit: {errors:#?}");
    }

    /// What is described and could have been had.
    fn statuses_not_seen(&self) -> Vec<(String, String, u16)> {
        let seen = self.seen.lock().unwrap();
        let mut missed = Vec::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let statuses = operation["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap());
                missed.extend(
                    statuses
                        .map(|status| (method.clone(), path.clone(), status))
                        .filter(|described| !NOT_PROVOKED.contains(&described.2) && !seen.contains(described)),
                );
            }
        }
        missed
    }
}

/// Every `$ref` of a document.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Object(members) => {
            let own = members.get("$ref").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(members.values().flat_map(references)).collect()
        }
        _ => Vec::new(),
    }
}
