//! Clients that mean harm, or are broken, over TCP itself: requests that drip, swell, nest, repeat, lie about their length or are
//! no HTTP at all. Each gets a clear answer or the end of its connection, changes nothing, and the others are served meanwhile.
//!
//! Refuses to repeat `http_surface.rs`, which has what a proper client of HTTP can get wrong.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::Sha256;
use support::process::{NAMESPACE, WEB_KEY};
use support::responder::Behaviour;
use support::scenario::{BOT, Backend, Deployment, RESPONDER};
use support::{PATIENCE, eventually, http_client, messenger, telegram};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

const PAGE: &str = "page";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_is_refused() {
    let deployment = start().await;
    let before = everything_stored(&deployment).await;
    let body = say("hello").to_string();
    let length = body.len();
    let many = (0..150).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    let huge = format!("X-Huge: {}\r\n", "x".repeat(100_000));
    let head = format!("POST /v1/chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {WEB_KEY}\r\n");
    let post = |headers: &str, body: &str| format!("{head}{headers}\r\n{body}").into_bytes();
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000));
    for (what, request, statuses) in [
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400][..]),
        ("bytes", vec![0xff; 300], &[400]),
        // Closed without a word: who speaks it reads no other answer.
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[0]),
        ("no version", b"GET /healthz\r\n\r\n".to_vec(), &[400]),
        ("another version", b"GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n".to_vec(), &[400, 505]),
        ("a space in a name", post("Content-Length : 3\r\n", "abc"), &[400]),
        ("a fold", post("X-A: 1\r\n 2\r\nContent-Length: 0\r\n", ""), &[400]),
        ("a bare null", post("X-A: \0\r\n", ""), &[400]),
        ("two lengths", post(&format!("Content-Length: {length}\r\nContent-Length: 3\r\n"), &body), &[400]),
        ("a length below zero", post("Content-Length: -1\r\n", &body), &[400]),
        ("a length beyond numbers", post("Content-Length: 99999999999999999999\r\n", &body), &[400]),
        ("an unknown coding", post("Transfer-Encoding: gzip\r\n", &body), &[400, 501]),
        ("a chunk of no size", post("Transfer-Encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n"), &[400]),
        (
            "a chunk beyond numbers",
            post("Transfer-Encoding: chunked\r\n", "ffffffffffffffffff\r\nx\r\n0\r\n\r\n"),
            &[400],
        ),
        (
            "a body beyond the limit",
            post("Content-Length: 1048577\r\nConnection: close\r\n", &" ".repeat(1_048_577)),
            &[413],
        ),
        ("a huge field", post(&huge, ""), &[431]),
        ("too many fields", post(&many, ""), &[431]),
        ("a long address", long.into_bytes(), &[414, 431]),
    ] {
        let answer = exchange(&deployment, &request).await;
        assert!(statuses.contains(&status_of(&answer)), "{what}: {answer}");
        assert_eq!(everything_stored(&deployment).await, before, "{what} changed something");
    }
    // Chunked beside a length: the one that proxies and servers disagree about. The connection ends with it.
    let smuggled = post(
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let answer = exchange(&deployment, &smuggled).await;
    assert!(answer.matches("HTTP/1.1 ").count() == 1 && !answer.contains("HTTP/1.1 200"), "{answer}");
    assert_eq!(everything_stored(&deployment).await, before);
    assert_serves(&deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_bodies_that_drip_are_ended_and_nobody_waits_for_them() {
    let deployment = start().await;
    let before = everything_stored(&deployment).await;
    let mut dripping = JoinSet::new();
    for number in 0..200 {
        let begin = match number % 3 {
            0 => "POST /v1/chat HTTP/1.1\r\nHost: a\r\nX-",
            1 => "POST /v1/chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer KEY\r\nContent-Length: 9000\r\n\r\n{",
            _ => "POST /webhooks/telegram/support HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        };
        let begin = begin.replace("KEY", WEB_KEY);
        let stream = connect(&deployment).await;
        dripping.spawn(drip(stream, begin, if number % 3 == 2 { "1\r\nx\r\n" } else { "x" }));
    }
    for _ in 0..5 {
        assert_serves(&deployment).await;
    }
    while let Some(answer) = dripping.join_next().await {
        let (answer, took) = answer.unwrap();
        assert_eq!(status_of(&answer), 408, "{answer}");
        assert!(
            answer.contains("application/problem+json") && answer.contains("urn:turnwise:problem:timeout"),
            "{answer}"
        );
        assert!(took < Duration::from_secs(25), "ended after {took:?}");
    }
    // Apart from the five above.
    let (sequence, _) = everything_stored(&deployment).await;
    assert_eq!(sequence, before.0 + 5, "messages on the stream");
}

/// More of them than large bodies may come at once; and so many large ones that there is no room for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_take_no_place_of_those_of_another_size() {
    const LARGE_BODIES_MAX: usize = 1_024;
    let deployment = start().await;
    let large = format!("{}{}", " ".repeat(20_000), say("hello"));
    let post_large = async || {
        let request = http_client().post(deployment.turnwise.url("/v1/chat")).bearer_auth(WEB_KEY);
        let request = request.header("Content-Type", "application/json").body(large.clone());
        request.send().await.unwrap().status()
    };
    let slow = begin_bodies(&deployment, LARGE_BODIES_MAX + 76, 9_000).await;
    assert_eq!(post_large().await, StatusCode::OK, "beside {} slow small ones", slow.len());
    drop(slow);
    let slow = begin_bodies(&deployment, LARGE_BODIES_MAX, 20_000).await;
    assert_eq!(post_large().await, StatusCode::SERVICE_UNAVAILABLE, "beside {} slow large ones", slow.len());
    assert_serves(&deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_bound_are_told_and_room_comes_back() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        configuration.web_bot("shop", RESPONDER).set("http", "max_connections", "16");
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(connect(&deployment).await);
    }
    let refused = eventually("a refusal", PATIENCE, async || {
        let answer = exchange(&deployment, b"GET /v1/conversations HTTP/1.1\r\nHost: a\r\n\r\n").await;
        (status_of(&answer) == 503).then_some(answer)
    })
    .await;
    for expected in ["retry-after: 1", "application/problem+json", "connection: close", "Too many connections"] {
        assert!(refused.contains(expected), "{expected} in {refused}");
    }
    let alive = exchange(&deployment, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status_of(&alive), 200, "{alive}");
    drop(held);
    eventually("room", PATIENCE, async || {
        let request = format!("GET /v1/conversations HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {WEB_KEY}\r\n");
        let answer = exchange(&deployment, format!("{request}Connection: close\r\n\r\n").as_bytes()).await;
        (status_of(&answer) == 200).then_some(())
    })
    .await;
    assert_serves(&deployment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_one_go_are_answered_in_their_order() {
    let deployment = start().await;
    let mut requests = String::new();
    for number in 0..20 {
        let body = json!({ "bot": "shop", "device_id": "pipe", "message": format!("message {number}") }).to_string();
        requests.push_str(&format!(
            "POST /v1/chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {WEB_KEY}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }
    requests.push_str("GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let answer = exchange(&deployment, requests.as_bytes()).await;
    let places: Vec<_> = (0..20).map(|number| answer.find(&format!("re: message {number}\""))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}: {answer}");
    assert!(answer.contains("HTTP/1.1 404"), "{answer}");
    deployment.settled(20, PATIENCE).await;
    // A request that breaks off behind whole ones takes nothing from them.
    let body = say("whole").to_string();
    let whole = format!(
        "POST /v1/chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {WEB_KEY}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(&deployment, format!("{whole}\0\0\r\n\r\n").as_bytes()).await;
    assert!(answer.contains("re: whole") && answer.contains("HTTP/1.1 400"), "{answer}");
    deployment.settled(21, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_and_replayed_webhooks() {
    let deployment = start().await;
    let update = json!({
        "update_id": 41, "message": { "message_id": 7, "date": 1_700_000_000, "text": "hello",
            "from": { "id": 5, "is_bot": false, "first_name": "Kim" }, "chat": { "id": 5, "type": "private" } },
    })
    .to_string();
    let batch = json!({ "object": "page", "entry": [{ "id": messenger::PAGE_ID, "time": 1, "messaging": [{
        "sender": { "id": "9" }, "recipient": { "id": messenger::PAGE_ID }, "timestamp": 1_700_000_000_000_i64,
        "message": { "mid": "m_1", "text": "hello" } }] }] })
    .to_string();
    let post = |path: &str, header: &'static str, value: String, body: &str| {
        let request = http_client().post(deployment.turnwise.url(path)).body(body.to_owned());
        request.header(header, value).send()
    };
    let telegram = |secret: &str, body: &str| {
        post("/webhooks/telegram/support", "X-Telegram-Bot-Api-Secret-Token", secret.to_owned(), body)
    };
    let messenger =
        |signature: String, body: &str| post("/webhooks/messenger/page", "X-Hub-Signature-256", signature, body);

    let before = everything_stored(&deployment).await;
    let nested = format!("{{\"update_id\":1,\"message\":{}{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let right = telegram::SECRET;
    for (secret, body, status) in [
        ("", update.as_str(), 401),
        ("wrong", &update, 401),
        (&right[1..], &update, 401),
        (&format!("{right}x"), &update, 401),
        (right, "", 400),
        (right, "[]", 400),
        (right, "{\"update_id\":", 400),
        (right, "{\"update_id\":1e99}", 400),
        (right, &nested, 400),
    ] {
        let answer = telegram(secret, body).await.unwrap();
        let got = answer.status();
        assert_eq!(got, status, "{} bytes", body.len());
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], status);
    }
    for signature in [
        String::new(),
        "sha256=".to_owned(),
        format!("sha1={}", sign(&batch, messenger::APP_SECRET)),
        sign(&batch, messenger::APP_SECRET),
        format!("sha256={}", sign(&batch, "wrong")),
        format!("sha256={}", sign(&batch.replace("hello", "hacked"), messenger::APP_SECRET)),
        format!("sha256={}0", sign(&batch, messenger::APP_SECRET)),
    ] {
        assert_eq!(
            messenger(signature.clone(), &batch).await.unwrap().status(),
            StatusCode::UNAUTHORIZED,
            "{signature}"
        );
    }
    assert_eq!(everything_stored(&deployment).await, before);

    // The same bytes again are authentic, and stand for the one message that they are.
    let signature = format!("sha256={}", sign(&batch, messenger::APP_SECRET));
    for _ in 0..5 {
        assert_eq!(telegram(right, &update).await.unwrap().status(), StatusCode::OK);
        assert_eq!(messenger(signature.clone(), &batch).await.unwrap().status(), StatusCode::OK);
    }
    deployment.settled_at_least(2, PATIENCE).await;
    assert_eq!(deployment.ledger.turn_count().await, 2, "turns");
    deployment.turnwise.assert_audit_clean().await;
}

/// A deployment with a Telegram bot, a Messenger bot and a web bot with a key.
async fn start() -> Deployment {
    Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        let nowhere = format!("http://127.0.0.1:{}", support::free_port());
        configuration.web_bot("shop", RESPONDER).messenger_bot(PAGE, RESPONDER, &nowhere);
        assert_eq!(BOT, "support");
    })
    .await
}

fn say(message: &str) -> Value {
    json!({ "bot": "shop", "device_id": "phone", "message": message })
}

fn sign(body: &str, secret: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// Somebody else is answered, whatever goes on.
async fn assert_serves(deployment: &Deployment) {
    let request = http_client().post(deployment.turnwise.url("/v1/chat")).bearer_auth(WEB_KEY).json(&say("hello"));
    let answer = timeout(Duration::from_secs(5), request.send()).await.expect("served at once").unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn connect(deployment: &Deployment) -> TcpStream {
    let url = deployment.turnwise.url("");
    TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// So many requests whose bodies of this length the server waits for, and which do not come.
async fn begin_bodies(deployment: &Deployment, count: usize, length: usize) -> Vec<TcpStream> {
    const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let head = format!(
        "POST /v1/chat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {WEB_KEY}\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
    );
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(deployment).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = [0; GO_ON.len()];
        timeout(PATIENCE, stream.read_exact(&mut said)).await.expect("an answer").unwrap();
        assert_eq!(said, GO_ON, "body {number} of {length} bytes: {}", String::from_utf8_lossy(&said));
        streams.push(stream);
    }
    streams
}

/// Everything that is answered to these bytes until the server ends the connection.
async fn exchange(deployment: &Deployment, request: &[u8]) -> String {
    let (mut read, mut write) = connect(deployment).await.into_split();
    let mut answer = Vec::new();
    let talk = async {
        // The server may have answered and left before everything is written.
        let (_, read) = tokio::join!(write.write_all(request), read.read_to_end(&mut answer));
        read
    };
    timeout(PATIENCE, talk).await.unwrap_or_else(|_| panic!("no end after {} bytes", request.len())).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Goes on with a piece each half second until the server ends the connection: what it said, and after how long.
async fn drip(stream: TcpStream, begin: String, piece: &'static str) -> (String, Duration) {
    let started = Instant::now();
    let (mut read, mut write) = stream.into_split();
    let writer = tokio::spawn(async move {
        let mut beats = interval(Duration::from_millis(500));
        let mut next = write.write_all(begin.as_bytes()).await;
        while next.is_ok() {
            beats.tick().await;
            next = write.write_all(piece.as_bytes()).await;
        }
    });
    let mut answer = Vec::new();
    // Whatever the end looks like to TCP, what counts is what was said before.
    let _ = timeout(PATIENCE, read.read_to_end(&mut answer)).await.expect("the server gives up");
    writer.abort();
    (String::from_utf8_lossy(&answer).into_owned(), started.elapsed())
}

fn status_of(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0)
}

/// How many messages the inbound stream has taken, and how many rows each table has.
async fn everything_stored(deployment: &Deployment) -> (u64, [usize; 4]) {
    (deployment.nats.last_sequence(&format!("{NAMESPACE}_in")).await, deployment.ledger.row_counts().await)
}
