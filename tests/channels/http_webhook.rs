//! The channel `http`: what becomes of each field of a message, and the callback that a reply becomes.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise::channel::http::{self, signature};
use turnwise::channel::{self, Refusal, Verified};
use turnwise::config::{BotChannel, HttpBot, Secret};
use turnwise::message::{Button, Channel, ConversationKey, Envelope, Form, OutboundPart, Peer, Timestamp};
use uuid::Uuid;

use crate::random::any_json;
use crate::{NOW, bot, outcome, stamped};

fn settings() -> HttpBot {
    HttpBot {
        secrets: vec![Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned())],
        callback_url: "https://kiosk.example.com/turnwise".to_owned(),
        callback_timeout: Duration::from_secs(20),
        allow_private: false,
    }
}

/// Receives a body signed under this id, as the bot `demo`.
fn receive_as(id: &str, body: &[u8]) -> Result<Envelope, Refusal> {
    let settings = settings();
    let bot = bot("demo", BotChannel::Http(settings.clone()));
    let timestamp = (NOW.as_micros() / 1_000_000).to_string();
    let signature = signature::sign(&settings.secrets, id, &timestamp, body);
    let headers = signature::Headers { id, timestamp: &timestamp, signature: &signature };
    stamped(|stamp| http::receive(&bot, &settings, Some(headers), body, stamp)).map(Verified::into_envelope)
}

fn receive(body: &[u8]) -> Result<Envelope, Refusal> {
    receive_as("msg_1", body)
}

#[test]
fn fields_of_a_message() {
    let check = |data: Value, expected: &str| {
        let body = json!({ "type": "message.created", "data": data }).to_string();
        let found = match receive(body.as_bytes()) {
            Ok(envelope) => outcome(&envelope),
            Err(Refusal::Malformed { detail }) => detail,
            Err(refusal) => refusal.to_string(),
        };
        assert_eq!(found, expected, "{body}");
    };
    check(json!({ "conversation": "c1", "text": "hi" }), "demo.user-c1 turn \"hi\"");
    check(json!({ "conversation": 7, "text": "hi", "extra": [1] }), "demo.user-7 turn \"hi\"");
    check(json!({ "conversation": "c 1", "text": " hi\u{0}" }), "demo.user-c=201 turn \" hi\"");
    check(json!({ "conversation": "c1", "payload": "yes" }), "demo.user-c1 turn \"yes\" =\"yes\"");
    let photo = json!({ "kind": "photo", "url": "https://a.example/1", "file_id": 5 });
    check(
        json!({ "conversation": "c1", "attachments": [photo] }),
        "demo.user-c1 turn \"\" +photo[\"5\", \"https://a.example/1\"]",
    );
    let no_conversation = "data.conversation must be an id of 1 to 128 bytes";
    for conversation in [json!(null), json!(""), json!(1.5), json!({}), json!("x".repeat(129))] {
        check(json!({ "conversation": conversation, "text": "hi" }), no_conversation);
    }
    let no_text = "data.text must be a string that is not blank, unless there are attachments";
    for text in [json!(null), json!(" \n"), json!(7)] {
        check(json!({ "conversation": "c1", "text": text }), no_text);
    }
    let no_attachment = "data.attachments must have objects with a kind and a url or file_id";
    for attachment in [json!(1), json!({ "kind": "photo" }), json!({ "url": "https://a.example/1" })] {
        check(json!({ "conversation": "c1", "text": "hi", "attachments": [attachment] }), no_attachment);
    }
    check(json!({ "conversation": "c1", "text": "hi", "user": { "name": "Ann" } }), "data.user.id must be an id");
    check(json!("hi"), "data must be an object");

    let user = json!({ "id": 9, "name": "Ann", "language": "en" });
    let body =
        json!({ "type": "message.created", "data": { "conversation": "c1", "text": "hi", "user": user, "id": "m" } });
    let envelope = receive(body.to_string().as_bytes()).unwrap();
    let sender = envelope.sender.clone().unwrap();
    assert_eq!((sender.id.as_str(), sender.name.as_deref()), ("9", Some("Ann")));
    assert_eq!(crate::message(&envelope).platform_message_id.as_deref(), Some("m"));
    assert_eq!(envelope.dedupe_id, "http:demo:msg_1");
    let long = "m.".repeat(100);
    let dedupe_id = receive_as(&long, body.to_string().as_bytes()).unwrap().dedupe_id;
    assert!(dedupe_id.starts_with("http:demo:sha256-") && dedupe_id.len() < 128, "{dedupe_id}");
    let other = receive(br#"{"type":"user.joined"}"#).unwrap();
    assert_eq!(outcome(&other), "demo.bot ignored user.joined: unknown type");
}

#[test]
fn a_reply_becomes_a_callback() {
    let bot = bot("demo", BotChannel::Http(settings()));
    let part = |peer: Peer| OutboundPart {
        delivery_id: Uuid::from_u128(1),
        turn_id: Uuid::from_u128(2),
        conversation_id: Some(Uuid::from_u128(3)),
        message_id: Uuid::from_u128(4),
        key: ConversationKey { channel: Channel::Http, bot: "demo".into(), peer },
        part: 0,
        parts: 1,
        content: "Sure?".to_owned(),
        buttons: vec![Button { label: "Yes".to_owned(), payload: "y".to_owned() }],
        form: Form::default(),
        created_at: NOW,
    };
    assert_eq!(channel::call(&bot, &part(Peer::Bot), &[]), None);
    let call = channel::call(&bot, &part(Peer::User("c1".to_owned())), &[]).unwrap();
    assert_eq!(call.url.expose(), "https://kiosk.example.com/turnwise");
    insta::assert_snapshot!(serde_json::to_string_pretty(&call.body).unwrap(), @r#"
    {
      "data": {
        "buttons": [
          {
            "label": "Yes",
            "payload": "y"
          }
        ],
        "conversation": "c1",
        "conversation_id": "00000000-0000-0000-0000-000000000003",
        "id": "00000000-0000-0000-0000-000000000001",
        "message_id": "00000000-0000-0000-0000-000000000004",
        "text": "Sure?",
        "turn_id": "00000000-0000-0000-0000-000000000002"
      },
      "timestamp": "2026-08-17T20:53:20Z",
      "type": "reply.created"
    }
    "#);

    let at = |seconds: i64| http::signed(&settings(), &call, Timestamp::from_micros(seconds * 1_000_000 + 7));
    let (first, second) = (at(1_614_265_330), at(1_614_265_331));
    assert_eq!(first.headers[0], ("webhook-id", Uuid::from_u128(1).to_string()));
    assert_eq!((&first.headers[0], &first.body), (&second.headers[0], &second.body), "the same delivery");
    assert_eq!(first.headers[1], ("webhook-timestamp", "1614265330".to_owned()));
    assert_ne!(first.headers[2], second.headers[2], "signed for its moment");
    let headers =
        signature::Headers { id: &first.headers[0].1, timestamp: &first.headers[1].1, signature: &first.headers[2].1 };
    let now = Timestamp::from_micros(1_614_265_330_000_000);
    assert!(signature::is_authentic(&settings().secrets, &headers, &first.body, now));
}

proptest! {
    #[test]
    fn no_bytes_crash_the_channel(body: Vec<u8>) {
        prop_assert!(!matches!(receive(&body), Err(Refusal::Unauthorized)));
    }

    #[test]
    fn no_json_crashes_the_channel(data in any_json(), whole in any_json()) {
        let message = json!({ "type": "message.created", "data": data }).to_string();
        for body in [message, whole.to_string()] {
            prop_assert!(!matches!(receive(body.as_bytes()), Err(Refusal::Unauthorized)));
        }
    }
}
