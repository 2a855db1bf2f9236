//! Tools of kind `http`: every row of the table of outcomes, and what a call carries.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use axum::routing::post;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use turnwise::tool::{Effects, OnUnknown, ToolError};

use crate::{SECRET, TRACEPARENT, call, configured, failed, map, retryable, unknown};

/// How a call is answered.
#[derive(Clone)]
enum Play {
    Answer(u16, Vec<(&'static str, &'static str)>, String),
    /// Nothing, until the client goes away.
    Silence,
    /// A text without end.
    Endless,
}

type Seen = Arc<Mutex<Vec<(HeaderMap, Value)>>>;

/// Answers every call in one way; gone with the test.
async fn server(play: Play) -> (String, Seen) {
    let seen = Seen::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    let router = Router::new().route("/orders", post(answer)).with_state((play, Arc::clone(&seen)));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, seen)
}

async fn answer(State((play, seen)): State<(Play, Seen)>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    seen.lock().unwrap().push((headers, serde_json::from_slice(&body).unwrap()));
    match play {
        Play::Answer(status, headers, body) => {
            let response = Response::builder().status(status);
            let response = headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
            response.body(Body::from(body)).unwrap()
        }
        Play::Silence => std::future::pending().await,
        Play::Endless => {
            let chunk = Bytes::from(vec![b'x'; 65_536]);
            Response::new(Body::from_stream(stream::repeat(chunk).map(Ok::<_, Infallible>)))
        }
    }
}

/// The table of one tool; `lines` add to it.
fn table(url: &str, lines: &str) -> String {
    format!("[tools.orders]\nkind = \"http\"\nurl = \"{url}\"\ndescription = \"Orders.\"\n{lines}\n")
}

async fn outcome(play: Play, lines: &str) -> Result<Value, ToolError> {
    let (url, _) = server(play).await;
    call(&configured(&table(&url, lines)), "orders", "").await
}

/// From a server that answers a request with these bytes and closes the connection.
async fn outcome_of_bytes(answer: &'static str) -> Result<Value, ToolError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"{}") {
            connection.read_buf(&mut request).await.unwrap();
        }
        connection.write_all(answer.as_bytes()).await.unwrap();
    });
    call(&configured(&table(&url, "")), "orders", "").await
}

fn status(status: u16) -> Play {
    Play::Answer(status, Vec::new(), "no".to_owned())
}

const TEXT: (&str, &str) = ("content-type", "text/plain");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
const READ_ONLY: &str = "effects = \"read_only\"";

#[tokio::test]
async fn a_call_carries_arguments_key_trace_and_headers() {
    let answer = Play::Answer(200, vec![JSON], r#"{"state": "sent"}"#.to_owned());
    let (url, seen) = server(answer).await;
    let lines = "bearer_token = { env = \"SECRET\" }\nheaders = { X-Team = \"shop\" }\n\
                 parameters = { type = \"object\", properties = { n = { type = \"integer\" } }, required = [\"n\"] }";
    let tools = configured(&table(&url, lines));
    assert_eq!(call(&tools, "orders", r#"{"n": 7}"#).await, Ok(json!({ "state": "sent" })));
    assert!(tools.validate("orders", "").unwrap_err().contains("required"));

    let seen = seen.lock().unwrap();
    let [(headers, body)] = &seen[..] else { panic!("one call, not {}", seen.len()) };
    assert_eq!(*body, json!({ "n": 7 }));
    let bearer = format!("Bearer {SECRET}");
    let expected = map([
        ("authorization", &bearer),
        ("content-type", "application/json"),
        ("idempotency-key", "turn-7:2:0"),
        ("traceparent", TRACEPARENT),
        ("x-team", "shop"),
    ]);
    for (name, value) in expected {
        assert_eq!(headers.get(&name).unwrap().to_str().unwrap(), value, "{name}");
    }
}

#[tokio::test]
async fn results() {
    let answer = |status, headers, body: &str| Play::Answer(status, headers, body.to_owned());
    assert_eq!(outcome(answer(200, vec![JSON], "[1]"), "").await, Ok(json!([1])));
    assert_eq!(outcome(answer(201, vec![("content-type", "application/hal+json")], "1"), "").await, Ok(json!(1)));
    assert_eq!(outcome(answer(200, vec![TEXT], "[1]"), "").await, Ok(json!("[1]")));
    assert_eq!(outcome(answer(200, vec![JSON], "[1"), "").await, Ok(json!("[1")));
    assert_eq!(outcome(answer(204, Vec::new(), ""), "").await, Ok(json!("")));
    let Ok(Value::String(endless)) = outcome(Play::Endless, "").await else { panic!("a text is cut") };
    assert_eq!(endless.len(), 1_048_576 + "\n[cut off after 1048576 bytes]".len());
    assert!(endless.ends_with("x\n[cut off after 1048576 bytes]"));
}

/// Whether it is known that nothing happened; and where it is not, whether that matters.
#[tokio::test]
async fn refusals_and_what_they_mean() {
    let told = |status: u16| format!("the tool's server answered HTTP {status}");
    for status in [408, 500, 501, 502, 504, 599] {
        assert_eq!(outcome(self::status(status), "").await, unknown(&told(status)));
        assert_eq!(outcome(self::status(status), READ_ONLY).await, retryable(&told(status), None));
        assert_eq!(outcome(self::status(status), "effects = \"idempotent\"").await, retryable(&told(status), None));
        let later = Play::Answer(status, vec![("retry-after", "3")], String::new());
        assert_eq!(outcome(later, "").await, retryable(&told(status), Some(3)));
    }
    for status in [425, 429, 503] {
        assert_eq!(outcome(self::status(status), "").await, retryable(&told(status), None));
    }
    let date = Play::Answer(503, vec![("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], String::new());
    assert_eq!(outcome(date, "").await, retryable(&told(503), Some(0)));
    for status in [400, 401, 403, 404, 409, 410, 422] {
        assert_eq!(outcome(self::status(status), "").await, failed(&format!("{}: no", told(status))));
        assert_eq!(outcome(self::status(status), READ_ONLY).await, failed(&format!("{}: no", told(status))));
    }
    let empty = Play::Answer(404, Vec::new(), String::new());
    assert_eq!(outcome(empty, "").await, failed(&told(404)));
    let broken_off = "HTTP/1.1 409 Conflict\r\ncontent-length: 100\r\n\r\nhalf of an ans";
    assert_eq!(outcome_of_bytes(broken_off).await, failed(&told(409)), "the status says enough");
    let elsewhere = Play::Answer(307, vec![("location", "/orders")], String::new());
    let told = format!("{}, a redirect, which is not followed", told(307));
    let (url, seen) = server(elsewhere).await;
    assert_eq!(call(&configured(&table(&url, "")), "orders", "").await, failed(&told));
    assert_eq!(seen.lock().unwrap().len(), 1, "the redirect is not followed");
}

#[tokio::test]
async fn words_of_the_server_are_bounded_and_hold_no_secret() {
    let said = Play::Answer(400, Vec::new(), format!("bad token {SECRET}\n{}", "x".repeat(100_000)));
    let Err(ToolError::Failed { message }) = outcome(said, "bearer_token = { env = \"SECRET\" }").await else {
        panic!("it is refused")
    };
    assert!(message.starts_with("the tool's server answered HTTP 400: bad token [redacted] xxx"), "{message}");
    assert!(message.len() < 600, "{}", message.len());
}

#[tokio::test]
async fn calls_without_an_answer() {
    let timeout = "timeout = \"200ms\"";
    assert_eq!(outcome(Play::Silence, timeout).await, unknown("the tool did not answer within 200 ms"));
    let read_only = outcome(Play::Silence, &format!("{timeout}\n{READ_ONLY}")).await;
    assert_eq!(read_only, unknown("the tool did not answer within 200 ms"), "the policy decides what becomes of it");
    let broken_off = outcome_of_bytes("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of an ans").await;
    let Err(ToolError::Unknown { message }) = broken_off else { panic!("{broken_off:?}") };
    assert!(message.starts_with("the tool's server broke off its answer: "), "{message}");
    let silent = outcome_of_bytes("").await;
    let Err(ToolError::Unknown { message }) = silent else { panic!("{silent:?}") };
    assert!(message.starts_with("the tool's server did not answer: "), "{message}");
    assert!(!message.contains("127.0.0.1"), "{message}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    drop(listener);
    let Err(ToolError::Retryable { message, after: None }) = call(&configured(&table(&url, "")), "orders", "").await
    else {
        panic!("nothing was sent")
    };
    assert!(message.starts_with("the tool's server cannot be reached: "), "{message}");
}

#[tokio::test]
async fn policies() {
    let policy = |lines: &str| configured(&table("http://127.0.0.1:9/", lines)).get("orders").unwrap().policy();
    let (plain, read_only) = (policy(""), policy(READ_ONLY));
    assert_eq!((plain.effects, plain.on_unknown, plain.cancel_safe), (Effects::Destructive, OnUnknown::Fail, false));
    assert_eq!((read_only.effects, read_only.on_unknown), (Effects::ReadOnly, OnUnknown::Retry));
    assert!(read_only.cancel_safe && !read_only.confirm);
    let told = policy("effects = \"idempotent\"\non_unknown = \"fail\"\ncancel_safe = true\nconfirm = true");
    assert_eq!((told.effects, told.on_unknown), (Effects::Idempotent, OnUnknown::Fail));
    assert!(told.cancel_safe && told.confirm);
}
