//! Messenger webhooks and web messages: signatures, batches, dedupe ids.

use std::fs;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use turnwise::channel::{Refusal, Verified, messenger, telegram, web};
use turnwise::config::{BotChannel, MessengerBot, Secret};
use turnwise::message::{Amendment, Envelope, Platform, Replacement};
use uuid::Uuid;

use crate::{NOW, WEBHOOK_SECRET, bot, message, messenger_bot, outcome, receive_messenger, stamped, telegram_bot};

fn receive_page_event(event: &Value) -> Envelope {
    let body = json!({ "object": "page", "entry": [{ "id": "P1", "time": 1, "messaging": [event] }] }).to_string();
    let [envelope] = <[Envelope; 1]>::try_from(receive_messenger("P1", body.as_bytes()).unwrap()).unwrap();
    envelope
}

#[test]
fn the_published_signature_is_accepted_and_any_flipped_byte_is_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/messenger/_schema_examples");
    let vector: Value = serde_json::from_slice(&fs::read(root.join("signature_vector.json")).unwrap()).unwrap();
    let text = |name: &str| vector[name].as_str().unwrap().to_owned();
    let settings = MessengerBot { app_secret: Secret::new(text("app_secret")), ..messenger_bot("1751036168465324") };
    let bot = bot("demo", BotChannel::Messenger(settings.clone()));
    let check = |header: Option<&str>, body: &[u8]| {
        stamped(|stamp| messenger::receive(&bot, &settings, &[], header.map(str::as_bytes), body, stamp))
            .map(|accepted| accepted.into_iter().map(Verified::into_envelope).collect::<Vec<_>>())
    };
    let (body, header) = (text("body_exact_ascii").into_bytes(), text("x_hub_signature_256"));
    let accepted = check(Some(&header), &body).unwrap();
    assert_eq!(message(&accepted[0]).text, "Test äëï");
    assert_eq!(accepted[0].dedupe_id, "messenger:1751036168465324:mid.1460923697625:5c96e8279b55505308");

    for at in 0..body.len() {
        let mut flipped = body.clone();
        flipped[at] ^= 1;
        assert_eq!(check(Some(&header), &flipped).unwrap_err(), Refusal::Unauthorized, "byte {at}");
    }
    let decoded_first = format!("sha256={}", text("wrong_if_unicode_is_decoded_first_sha256"));
    let sha1 = text("x_hub_signature");
    let short = &header[..header.len() - 2];
    for wrong in [None, Some(""), Some("sha256="), Some(short), Some(&header[7..]), Some(&decoded_first), Some(&sha1)] {
        assert_eq!(check(wrong, &body).unwrap_err(), Refusal::Unauthorized, "{wrong:?}");
    }
    let open = MessengerBot { app_secret: Secret::new(String::new()), ..settings.clone() };
    let of_empty_key = Hmac::<Sha256>::new_from_slice(b"").unwrap().chain_update(&body).finalize().into_bytes();
    let header = format!("sha256={}", hex::encode(of_empty_key));
    let refused = stamped(|stamp| messenger::receive(&bot, &open, &[], Some(header.as_bytes()), &body, stamp));
    assert_eq!(refused.unwrap_err(), Refusal::Unauthorized);
}

#[test]
fn the_verification_request_is_answered_only_to_its_token() {
    let settings = messenger_bot("P1");
    let challenge = |mode, token, challenge| messenger::challenge(&settings, mode, token, challenge);
    assert_eq!(challenge(Some("subscribe"), Some("verify-me"), Some("115")).as_deref(), Some("115"));
    assert_eq!(challenge(Some("subscribe"), Some("verify-mE"), Some("115")), None);
    assert_eq!(challenge(Some("unsubscribe"), Some("verify-me"), Some("115")), None);
    assert_eq!(challenge(None, Some("verify-me"), Some("115")), None);
    assert_eq!(challenge(Some("subscribe"), None, Some("115")), None);
    assert_eq!(challenge(Some("subscribe"), Some("verify-me"), None), None);
}

#[test]
fn an_odd_event_does_not_affect_its_neighbours() {
    let person = json!({ "id": 77 });
    let turn = |mid: &str| json!({ "sender": person, "timestamp": "1", "message": { "mid": mid, "text": mid } });
    let body = json!({
        "object": "page",
        "entry": [
            7,
            { "id": "P1", "messaging": [turn("a"), null, "x", { "message": 5, "sender": person }, turn("b")] },
            { "id": "P1" },
            { "id": "P1", "messaging": "odd", "changes": [{ "field": "feed", "value": "v" }] },
            { "id": "P3", "messaging": [turn("c")] },
            { "id": ["odd"], "messaging": [turn("d")] },
            { "id": "P2", "messaging": [{ "message": { "mid": "m", "text": "from nobody" } }, turn("e")] },
        ]
    });
    let accepted = receive_messenger("P1", body.to_string().as_bytes()).unwrap();
    let outcomes: Vec<String> = accepted.iter().map(outcome).collect();
    let expected = [
        "demo.bot ignored entry: unreadable",
        "demo.user-77 turn \"a\"",
        "demo.bot ignored messaging: unreadable",
        "demo.bot ignored messaging: unreadable",
        "demo.user-77 ignored message: unreadable",
        "demo.user-77 turn \"b\"",
        "demo.bot ignored entry: no events",
        "demo.bot ignored changes: unreadable",
        "demo.bot ignored messaging: unknown page",
        "demo.bot ignored messaging: unknown page",
        "second.bot ignored message: no sender",
        "second.user-77 turn \"e\"",
    ];
    assert_eq!(outcomes, expected);
    let mut turn_ids: Vec<Uuid> = accepted.iter().map(|envelope| envelope.turn_id).collect();
    turn_ids.dedup();
    assert_eq!(turn_ids.len(), accepted.len());
    for body in [json!({ "object": "page" }), json!({ "entry": [] }), json!({}), json!({ "object": 1, "entry": 2 })] {
        assert_eq!(receive_messenger("P1", body.to_string().as_bytes()).unwrap().len(), 1, "{body}");
    }
    assert!(receive_messenger("P1", br#"{"object":"page","entry":[]}"#).unwrap().is_empty());
}

#[test]
fn edits_and_deletions_name_the_message_they_change() {
    let of = |event: Value| {
        let mut whole = json!({ "sender": { "id": "1" } });
        whole.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        receive_page_event(&whole).amendment
    };
    let edit = of(json!({ "message_edit": { "mid": "m_1", "text": "now", "num_edit": 1 } })).unwrap();
    let replacement = Some(Replacement { text: "now".to_owned(), attachments: None });
    assert_eq!(edit, Amendment { platform_message_id: "m_1".to_owned(), replacement });
    let deletion = of(json!({ "message": { "mid": "m_1", "is_deleted": true } })).unwrap();
    assert_eq!(deletion, Amendment { platform_message_id: "m_1".to_owned(), replacement: None });
    for other in [
        json!({ "message": { "mid": "m_1", "text": "hi" } }),
        json!({ "message": { "mid": "m_1", "is_deleted": true, "is_echo": true } }),
        json!({ "message": { "is_deleted": true } }),
        json!({ "message_edit": { "mid": "m_1" } }),
        json!({ "read": { "mid": "m_1", "text": "hi" } }),
    ] {
        assert_eq!(of(other.clone()), None, "{other}");
    }
}

#[test]
fn dedupe_ids_are_plain_bounded_and_the_message_keeps_its_own() {
    let of = |message: Value| receive_page_event(&json!({ "sender": { "id": "1" }, "message": message })).dedupe_id;
    assert_eq!(of(json!({ "mid": "m_1", "text": "hi" })), "messenger:P1:m_1");
    let echo = of(json!({ "mid": "m_1", "text": "hi", "is_echo": true }));
    let deleted = of(json!({ "mid": "m_1", "is_deleted": true }));
    assert!(echo.starts_with("messenger:P1:sha256-") && deleted.starts_with("messenger:P1:sha256-"));
    assert_ne!(echo, deleted);
    for mid in ["with space", "new\r\nline", "ünïcode", &"x".repeat(5_000)] {
        let dedupe_id = of(json!({ "mid": mid, "text": "hi" }));
        assert!(dedupe_id.len() < 128 && dedupe_id.bytes().all(|byte| byte.is_ascii_graphic()), "{dedupe_id}");
        assert_eq!(dedupe_id, of(json!({ "mid": mid, "text": "hi" })));
    }
    let settings = telegram_bot();
    let odd = bot("ödd näme", BotChannel::Telegram(settings.clone()));
    let secret = Some(WEBHOOK_SECRET.as_bytes());
    let verified = stamped(|stamp| telegram::receive(&odd, &settings, secret, b"{\"update_id\":1}", stamp)).unwrap();
    assert!(verified.envelope().dedupe_id.bytes().all(|byte| byte.is_ascii_graphic()));
}

#[test]
fn web_messages_become_envelopes() {
    let metadata = json!({ "plan": "pro\u{0}" });
    let verified = web::accept(web::ChatMessage {
        bot: "shop",
        conversation_id: Uuid::from_u128(1),
        turn_id: Uuid::from_u128(2),
        dedupe_id: "web:2".to_owned(),
        device_id: "device-1",
        platform: Platform::Api,
        message: "hel\u{0}lo",
        payload: None,
        metadata: metadata.as_object().cloned(),
        now: NOW,
    });
    insta::assert_snapshot!(serde_json::to_string_pretty(verified.envelope()).unwrap(), @r#"
    {
      "turn_id": "00000000-0000-0000-0000-000000000002",
      "key": {
        "channel": "web",
        "bot": "shop",
        "peer": "conv-00000000-0000-0000-0000-000000000001"
      },
      "platform": "api",
      "dedupe_id": "web:2",
      "received_at": "2026-08-17T20:53:20Z",
      "sender": {
        "id": "device-1"
      },
      "device_id": "device-1",
      "metadata": {
        "plan": "pro"
      },
      "event": {
        "type": "message",
        "text": "hello"
      }
    }
    "#);
}
