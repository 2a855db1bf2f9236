//! The edges of the HTTP surface: methods and addresses that are wrong, pages of other sites, preferences and idempotency
//! keys in all their spellings, bodies that are too long, too slow or not text. Whatever is refused changes nothing.
//!
//! Refuses to repeat `chat_api.rs`, which has the ordinary ways of the chat API.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use reqwest::header::HeaderValue;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use support::process::{CONSOLE_TOKEN, NAMESPACE, WEB_KEY, quoted};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::{PATIENCE, http_client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const SHOP: &str = "https://shop.example.com";
const FORUM: &str = "https://forum.example.com";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_methods_and_addresses_are_problems_too() {
    let deployment = start().await;
    let before = everything_stored(&deployment).await;
    for (method, path, allowed) in [
        (Method::GET, "/v1/chat", "POST"),
        (Method::OPTIONS, "/v1/chat", "POST"),
        (Method::DELETE, "/v1/conversations", "GET,HEAD"),
        (Method::POST, "/v1/turns/x", "GET,HEAD"),
        (Method::GET, "/webhooks/telegram/support", "POST"),
        (Method::POST, "/metrics", "GET,HEAD"),
        (Method::from_bytes(b"BREW").unwrap(), "/healthz", "GET,HEAD"),
    ] {
        let response = keyed(&deployment, method.clone(), path).send().await.unwrap();
        assert_eq!(header(&response, "allow").as_deref(), Some(allowed), "{method} {path}");
        assert_problem(response, 405).await;
    }
    let unknown_cursor = "/v1/conversations?cursor=1.not-a-uuid";
    for (path, status) in [
        ("/v1/nothing", 404),
        ("/v1/turns/%ff", 400),
        ("/v1/turns/not-a-uuid", 400),
        ("/v1/conversations/%ff/messages", 400),
        ("/v1/conversations?limit=1&limit=2", 400),
        ("/v1/conversations?limit=0", 400),
        ("/v1/conversations?limit=201", 400),
        ("/v1/conversations?limit=-1", 400),
        ("/v1/conversations?limit=ten", 400),
        ("/v1/conversations?status=asleep", 422),
        ("/v1/conversations?assignee=%00", 422),
        ("/v1/conversations?device_id=%00", 422),
        ("/v1/conversations?cursor=", 400),
        (unknown_cursor, 400),
        ("/v1/conversations/0193e8a0-0000-7000-8000-000000000000/messages?before=soon", 400),
        ("/webhooks/messenger/nobody?hub.mode=a&hub.mode=b", 400),
        ("/webhooks/messenger/nobody", 404),
    ] {
        let response = keyed(&deployment, Method::GET, path).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        assert_problem(response, status).await;
    }
    // A place beyond every conversation is an odd cursor, not a wrong one.
    let far = format!("/v1/conversations?cursor={}.0193e8a0-0000-7000-8000-000000000000", i64::MIN);
    let listed = keyed(&deployment, Method::GET, &far).send().await.unwrap();
    assert_eq!(listed.status(), StatusCode::OK, "{far}");
    let head = keyed(&deployment, Method::HEAD, "/v1/conversations?device_id=phone").send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.bytes().await.unwrap().len(), 0, "HEAD has no body");
    assert_eq!(everything_stored(&deployment).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_listed_origins_may_talk_and_no_others() {
    let deployment = start().await;
    let preflight = async |origin: &str, path: &str| {
        let request = http_client().request(Method::OPTIONS, deployment.turnwise.url(path)).header("Origin", origin);
        let request = request.header("Access-Control-Request-Method", "POST");
        request.header("Access-Control-Request-Headers", "authorization,content-type").send().await.unwrap()
    };
    for origin in [SHOP, FORUM] {
        let answer = preflight(origin, "/v1/chat").await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        let headers = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer";
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-headers", headers),
            ("access-control-allow-methods", "GET, HEAD, POST, PATCH"),
            ("vary", "origin"),
        ] {
            assert_eq!(header(&answer, name).as_deref(), Some(value), "{name} for {origin}");
        }
    }
    let refused = preflight("https://evil.example.com", "/v1/chat").await;
    assert_eq!(header(&refused, "access-control-allow-origin"), None);
    assert_problem(refused, 403).await;
    // A site may let its name lead to this machine: then its page says that it is of this server.
    for (host, allowed) in [("evil.example.com:8080", false), ("localhost:8080", true), ("127.0.0.1:8080", true)] {
        let request = keyed(&deployment, Method::GET, "/v1/conversations?device_id=phone").header("Host", host);
        let answer = request.header("Origin", format!("http://{host}")).send().await.unwrap();
        let expected = if allowed { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(answer.status(), expected, "{host}");
    }
    let elsewhere = preflight(SHOP, "/metrics").await;
    assert_eq!(header(&elsewhere, "access-control-allow-origin"), None, "only /v1 is for pages");

    let before = everything_stored(&deployment).await;
    let from = |origin: HeaderValue, request: RequestBuilder| request.header("Origin", origin).send();
    let open = |message: &str| chat(&deployment, None, &say("forum", "phone", message));
    let keyed = |message: &str| chat(&deployment, Some(WEB_KEY), &say("shop", "phone", message));
    for (origin, request) in [
        (HeaderValue::from_static("https://evil.example.com"), open("hi")),
        (HeaderValue::from_static("https://shop.example.com.evil.com"), keyed("hi")),
        (HeaderValue::from_static("null"), open("hi")),
        (HeaderValue::from_bytes(b"https://shop.ex\xe4mple.com").unwrap(), open("hi")),
        // Listed, but for the other bot.
        (HeaderValue::from_static(SHOP), open("hi")),
        (HeaderValue::from_static(FORUM), keyed("hi")),
    ] {
        assert_problem(from(origin, request).await.unwrap(), 403).await;
    }
    assert_eq!(everything_stored(&deployment).await, before, "refused before anything was written");

    let answer = from(HeaderValue::from_static(SHOP), keyed("hello")).await.unwrap();
    assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some(SHOP));
    let exposed = header(&answer, "access-control-expose-headers");
    assert_eq!(exposed.as_deref(), Some("Location, Retry-After, Preference-Applied"));
    assert_eq!(answer.json::<Value>().await.unwrap()["reply"]["content"], "re: hello");
    let unauthorized =
        from(HeaderValue::from_static(SHOP), chat(&deployment, Some("wrong"), &say("shop", "phone", "hi")));
    let unauthorized = unauthorized.await.unwrap();
    assert_eq!(header(&unauthorized, "access-control-allow-origin").as_deref(), Some(SHOP), "a page may read errors");
    assert_problem(unauthorized, 401).await;
    let own = HeaderValue::from_str(deployment.turnwise.url("").as_str()).unwrap();
    assert_eq!(from(own, open("from our own page")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preferences_are_kept_or_said_to_be_wrong() {
    let deployment = start().await;
    let prefer = async |prefer: &[&str], message: &str| {
        let request = chat(&deployment, Some(WEB_KEY), &say("shop", "phone", message));
        prefer.iter().fold(request, |request, prefer| request.header("Prefer", *prefer)).send().await.unwrap()
    };
    for (given, status, applied) in [
        (&["wait=20"][..], 200, Some("wait=20")),
        (&["WAIT = \"20\"; foo=bar"], 200, Some("wait=20")),
        (&["wait=999999"], 200, Some("wait=55")),
        (&["respond-async, wait=20"], 200, Some("respond-async, wait=20")),
        (&["wait=20", "respond-async"], 200, Some("respond-async, wait=20")),
        (&["wait=20, wait=0"], 200, Some("wait=20")),
        (&["respond-async"], 202, Some("respond-async")),
        (&["handling=lenient"], 200, None),
        (&[""], 200, None),
    ] {
        let answer = prefer(given, "hello").await;
        assert_eq!(answer.status(), status, "{given:?}");
        assert_eq!(header(&answer, "preference-applied").as_deref(), applied, "{given:?}");
    }
    let before = everything_stored(&deployment).await;
    for wrong in ["wait=soon", "wait=-1", "wait=", "wait"] {
        assert_problem(prefer(&[wrong], "hello").await, 400).await;
    }
    assert_eq!(everything_stored(&deployment).await, before);

    deployment.model.hold("slow");
    let answer = prefer(&["respond-async, wait=1"], "slow").await;
    deployment.model.release("slow");
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let location = header(&answer, "location").expect("where to ask");
    assert_eq!(header(&answer, "retry-after").as_deref(), Some("1"));
    assert_eq!(answer.json::<Value>().await.unwrap()["url"], location);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idempotency_keys_in_every_spelling() {
    let deployment = start().await;
    let send = |key: &str, device: &str| {
        let request = chat(&deployment, Some(WEB_KEY), &say("shop", device, "buy"));
        request.header("Idempotency-Key", key).send()
    };
    let turn = async |response: Response| response.json::<Value>().await.unwrap()["turn_id"].clone();
    let (left, right) = tokio::join!(send("\"order 7\"", "phone"), send("order 7", "phone"));
    let (left, right) = (turn(left.unwrap()).await, turn(right.unwrap()).await);
    assert!(left.is_string() && left == right, "the same key at once, quoted and bare: {left} {right}");
    assert_eq!(deployment.model.log(|log| log.calls.len()), 1, "calls of the model");

    // Another device's message under the same key is another request, and opens no conversation.
    let before = everything_stored(&deployment).await;
    assert_problem(send("order 7", "tablet").await.unwrap(), 422).await;
    for wrong in ["\"\"", " ", &"k".repeat(256)] {
        assert_problem(send(wrong, "tablet").await.unwrap(), 400).await;
    }
    let request = chat(&deployment, Some(WEB_KEY), &say("shop", "tablet", "buy"));
    let not_ascii = request.header("Idempotency-Key", HeaderValue::from_bytes("schlüssel".as_bytes()).unwrap());
    assert_problem(not_ascii.send().await.unwrap(), 400).await;
    let request = chat(&deployment, Some(WEB_KEY), &say("shop", "tablet", "buy"));
    let twice = request.header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    assert_problem(twice.send().await.unwrap(), 400).await;
    assert_eq!(everything_stored(&deployment).await, before);

    // The conversation was closed meanwhile: the repeated request still gets its first turn, and opens nothing.
    let listed = keyed(&deployment, Method::GET, "/v1/conversations?device_id=phone").send().await.unwrap();
    let id = listed.json::<Value>().await.unwrap()["conversations"][0]["id"].as_str().unwrap().to_owned();
    let patch = keyed(&deployment, Method::PATCH, &format!("/v1/conversations/{id}"));
    assert_eq!(patch.json(&json!({ "status": "closed" })).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(turn(send("order 7", "phone").await.unwrap()).await, left);
    assert_eq!(deployment.ledger.conversation_count().await, 1, "conversations");

    // While another one is open, the closed one stays closed.
    let next = chat(&deployment, Some(WEB_KEY), &say("shop", "phone", "more")).send().await.unwrap();
    assert_ne!(next.json::<Value>().await.unwrap()["conversation_id"], json!(id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_devices_and_channels_are_kept_apart() {
    const CHAT: i64 = 4711;
    let deployment = start().await;
    deployment.telegram.send(CHAT, "from Telegram");
    deployment.telegram.wait_for_texts(CHAT, 1, PATIENCE).await;
    let operator = |path: &str| http_client().get(deployment.turnwise.url(path)).bearer_auth(CONSOLE_TOKEN).send();
    let listed: Value = operator("/v1/conversations").await.unwrap().json().await.unwrap();
    let conversation = &listed["conversations"][0];
    assert_eq!((&conversation["channel"], &conversation["bot"]), (&json!("telegram"), &json!(BOT)));
    let id = conversation["id"].as_str().unwrap();

    let before = everything_stored(&deployment).await;
    for (key, bot) in [(Some(WEB_KEY), "shop"), (None, "forum"), (Some(CONSOLE_TOKEN), "shop")] {
        let mut body = say(bot, "phone", "let me in");
        body["conversation_id"] = json!(id);
        assert_problem(chat(&deployment, key, &body).send().await.unwrap(), 404).await;
    }
    for path in [format!("/v1/conversations/{id}"), format!("/v1/conversations/{id}/messages?device_id=phone")] {
        assert_problem(keyed(&deployment, Method::GET, &path).send().await.unwrap(), 404).await;
    }
    // A key does not open the bot without keys, nor the other way round.
    let crossed = chat(&deployment, Some(WEB_KEY), &say("forum", "phone", "hi")).send().await.unwrap();
    assert_problem(crossed, 422).await;
    let crossed = chat(&deployment, None, &say("shop", "phone", "hi")).send().await.unwrap();
    assert_problem(crossed, 422).await;
    let unnamed = http_client().get(deployment.turnwise.url("/v1/conversations")).send().await.unwrap();
    assert_problem(unnamed, 422).await;
    let patch = http_client().patch(deployment.turnwise.url(&format!("/v1/conversations/{id}")));
    assert_problem(patch.json(&json!({ "status": "closed" })).send().await.unwrap(), 401).await;
    assert_eq!(everything_stored(&deployment).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_too_long_too_slow_or_not_text() {
    let deployment = start().await;
    let before = everything_stored(&deployment).await;
    let slow = tokio::spawn(raw(deployment.turnwise.url("/v1/chat"), "Content-Length: 100", "{"));
    let send =
        async |body: reqwest::Body| keyed(&deployment, Method::POST, "/v1/chat").body(body).send().await.unwrap();
    let nested = format!("{{\"metadata\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        b"{\"device_id\":\"phone\",\"message\":\"\xff\xfe\"}".to_vec(),
        b"{\"device_id\":\"phone\",\"message\":\"\\ud800\"}".to_vec(),
        b"{\"device_id\":\"phone\",\"message\":\"hi\",\"metadata\":{\"n\":1e999}}".to_vec(),
        nested.into_bytes(),
    ] {
        assert_problem(send(body.into()).await, 400).await;
    }
    let mut chunked = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(16);
    chunked.push_str("1\r\n \r\n");
    let answer = raw(deployment.turnwise.url("/v1/chat"), "Transfer-Encoding: chunked", &chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("application/problem+json"), "{answer}");
    assert_problem(send(vec![b' '; 1_048_577].into()).await, 413).await;
    // Within the limit for bodies, but the stream would not take it.
    let mut large = say("shop", "phone", "hi");
    large["metadata"] = json!({ "text": "x".repeat(1_048_576 - 150) });
    assert!(large.to_string().len() < 1_048_576);
    assert_problem(send(large.to_string().into()).await, 413).await;
    let answer = slow.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("application/problem+json"), "{answer}");
    assert_eq!(everything_stored(&deployment).await, before);

    // What no database can store in a text is left out, and the message answered.
    let mut odd = say("shop", "phone", "be\u{0}fore");
    odd["metadata"] = json!({ "n\u{0}ul": "\u{0}" });
    let answer = chat(&deployment, Some(WEB_KEY), &odd).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["reply"]["content"], "re: before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_other_kinds_and_unknown_fields_are_refused() {
    let deployment = start().await;
    let answered = chat(&deployment, Some(WEB_KEY), &say("shop", "phone", "hello")).send().await.unwrap();
    let id = answered.json::<Value>().await.unwrap()["conversation_id"].as_str().unwrap().to_owned();
    let before = everything_stored(&deployment).await;
    let send = async |method: Method, path: &str, headers: &[(&'static str, &str)], body: &str| {
        let request = keyed(&deployment, method, path).body(body.to_owned());
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
    };
    let body = say("shop", "phone", "hello").to_string();
    for (name, value) in [
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-type", "application/merge-patch+json"),
        ("content-type", ""),
        ("content-encoding", "gzip"),
    ] {
        assert_problem(send(Method::POST, "/v1/chat", &[(name, value)], &body).await, 415).await;
    }
    let (one, messages) = (format!("/v1/conversations/{id}"), format!("/v1/conversations/{id}/messages"));
    assert_problem(send(Method::PATCH, &one, &[("content-type", "text/json")], "{}").await, 415).await;
    assert_problem(send(Method::POST, &messages, &[("content-type", "text/json")], "{}").await, 415).await;

    for (method, path, body, field) in [
        (
            Method::POST,
            "/v1/chat",
            json!({ "device_id": "d", "message": "hi", "conversationId": id }),
            "conversationId",
        ),
        (
            Method::POST,
            "/v1/chat",
            json!({ "device_id": "d", "confirm": { "id": "x", "approve": true, "b": 1 } }),
            "confirm.b",
        ),
        (Method::PATCH, &one, json!({ "status": "human", "snippet": "x" }), "snippet"),
        (Method::PATCH, &one, json!({ "status": null }), "status"),
        (Method::PATCH, &one, json!({ "metadata": null }), "metadata"),
        (Method::PATCH, &one, json!({ "assignee": "" }), "assignee"),
        (Method::POST, &messages, json!({ "content": "hi", "messages": null }), "content"),
        (Method::POST, &messages, json!({ "content": " " }), "content"),
        (Method::POST, &messages, json!({ "messages": [] }), "messages"),
        (Method::POST, &messages, json!({ "messages": [7] }), "messages[0]"),
        (Method::POST, &messages, json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages[0].role"),
        (Method::POST, &messages, json!({ "messages": [{ "role": "user", "content": "x", "a": 1 }] }), "messages[0].a"),
    ] {
        let response = keyed(&deployment, method.clone(), path).json(&body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY, "{method} {path} {body}");
        assert_eq!(response.json::<Value>().await.unwrap()["errors"][0]["field"], field, "{method} {path} {body}");
    }
    // Other spellings of an id are mistakes.
    let mut spelled = say("shop", "phone", "hello");
    spelled["conversation_id"] = json!(id.replace('-', ""));
    assert_problem(chat(&deployment, Some(WEB_KEY), &spelled).send().await.unwrap(), 400).await;
    assert_eq!(everything_stored(&deployment).await, before);

    for media_type in ["application/json", "Application/JSON; charset=utf-8"] {
        let headers = [("content-type", media_type), ("content-encoding", "identity")];
        assert_eq!(send(Method::POST, "/v1/chat", &headers, &body).await.status(), StatusCode::OK, "{media_type}");
    }
    for headers in [&[][..], &[("content-type", "application/merge-patch+json")]] {
        assert_eq!(send(Method::PATCH, &one, headers, "{\"assignee\":\"kim\"}").await.status(), StatusCode::OK);
    }
    // Also where the body would go on for as long as the turn does.
    deployment.model.hold("slow");
    let running = chat(&deployment, Some(WEB_KEY), &say("shop", "phone", "slow")).header("Prefer", "respond-async");
    let running = running.send().await.unwrap().json::<Value>().await.unwrap();
    let events = format!("{}/events", running["url"].as_str().unwrap());
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", &events, &one] {
        let head = keyed(&deployment, Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.status(), StatusCode::OK, "HEAD {path}");
        assert_eq!(head.bytes().await.unwrap().len(), 0, "HEAD {path} has no body");
    }
    deployment.model.release("slow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_over_the_rate_waits_and_nobody_else() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.web_bot("shop", RESPONDER).set("bots.shop", "rate_limit", "\"2/h\"");
        configuration.set("bots.shop", "api_keys", "[{ env = \"TEST_WEB_KEY\" }, \"another-key\"]");
        configuration.set("bots.forum", "channel", "\"web\"").set("bots.forum", "responder", &quoted(RESPONDER));
        configuration.set("bots.forum", "rate_limit", "\"1/h\"");
        configuration.set("bots.free", "channel", "\"web\"").set("bots.free", "responder", &quoted(RESPONDER));
    })
    .await;
    let send = async |key: Option<&str>, bot: &str, device: &str| {
        chat(&deployment, key, &say(bot, device, "hello")).send().await.unwrap()
    };
    // What is refused anyway uses nothing up.
    assert_problem(send(Some(WEB_KEY), "shop", "").await, 422).await;
    for device in ["phone", "tablet"] {
        assert_eq!(send(Some(WEB_KEY), "shop", device).await.status(), StatusCode::OK);
    }
    assert_eq!(send(None, "forum", "phone").await.status(), StatusCode::OK);
    let before = everything_stored(&deployment).await;
    for (key, bot, device, longest) in [(Some(WEB_KEY), "shop", "watch", 1_800), (None, "forum", "phone", 3_600)] {
        let refused = send(key, bot, device).await;
        let wait: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
        assert!((longest - 60..=longest).contains(&wait), "{bot} comes back after {wait} s");
        assert_problem(refused, 429).await;
    }
    assert_eq!(everything_stored(&deployment).await, before);
    for (key, bot, device) in [
        (Some("another-key"), "shop", "phone"),
        (Some(CONSOLE_TOKEN), "shop", "phone"),
        (None, "forum", "tablet"),
        (None, "free", "phone"),
        (None, "free", "phone"),
    ] {
        assert_eq!(send(key, bot, device).await.status(), StatusCode::OK, "{bot} {device}");
    }
    let metrics = http_client().get(deployment.turnwise.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let counted = r#"turnwise_ingress_messages_total{channel="web",bot="shop",outcome="rate_limited"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
}

/// A request whose body never comes whole; what the server says in the end.
async fn raw(url: String, header: &str, body: &str) -> String {
    let authority = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap().to_owned();
    let mut socket = tokio::net::TcpStream::connect(&authority).await.unwrap();
    let head =
        format!("POST /v1/chat HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {WEB_KEY}\r\n{header}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the server gives up").unwrap();
    String::from_utf8(answer).unwrap()
}

/// A deployment with a Telegram bot, a web bot with a key and one without, each for the pages of one other site.
async fn start() -> Deployment {
    Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.web_bot("shop", RESPONDER).set("bots.shop", "origins", &format!("[\"{SHOP}\"]"));
        configuration.set("bots.forum", "channel", "\"web\"").set("bots.forum", "responder", &quoted(RESPONDER));
        configuration.set("bots.forum", "origins", &format!("[\"{FORUM}\"]"));
    })
    .await
}

fn say(bot: &str, device: &str, message: &str) -> Value {
    json!({ "bot": bot, "device_id": device, "message": message })
}

fn chat(deployment: &Deployment, key: Option<&str>, body: &Value) -> RequestBuilder {
    let request = http_client().post(deployment.turnwise.url("/v1/chat")).json(body);
    match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    }
}

fn keyed(deployment: &Deployment, method: Method, path: &str) -> RequestBuilder {
    http_client().request(method, deployment.turnwise.url(path)).bearer_auth(WEB_KEY)
}

fn header(response: &Response, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().unwrap().to_owned())
}

async fn assert_problem(response: Response, status: u16) {
    let url = response.url().clone();
    assert_eq!(header(&response, "content-type").as_deref(), Some("application/problem+json"), "{url}: {response:?}");
    let got = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!((got.as_u16(), &body["status"]), (status, &json!(status)), "{url}: {body}");
    for name in ["type", "title", "detail"] {
        assert!(body[name].is_string(), "{name} of {body}");
    }
}

/// How many messages the inbound stream has taken, and how many rows each table has.
async fn everything_stored(deployment: &Deployment) -> (u64, [usize; 4]) {
    (deployment.nats.last_sequence(&format!("{NAMESPACE}_in")).await, deployment.ledger.row_counts().await)
}
