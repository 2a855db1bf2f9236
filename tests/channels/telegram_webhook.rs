//! Telegram webhooks: who may send them, which conversation and turn an update makes.

use serde_json::{Value, json};
use turnwise::channel::{Refusal, telegram};
use turnwise::config::{BotChannel, Secret, TelegramBot};
use turnwise::message::{Amendment, Event, Peer, Replacement};

use crate::{
    WEBHOOK_SECRET, bot, fixtures, ignored_for, message, receive_telegram, receive_update, stamped, telegram_bot,
};

#[test]
fn telegram_requests_need_the_secret() {
    let settings = telegram_bot();
    let without = TelegramBot { webhook_secret: None, ..settings.clone() };
    let empty = TelegramBot { webhook_secret: Some(Secret::new(String::new())), ..settings.clone() };
    let check = |settings: &TelegramBot, header: Option<&str>| {
        let bot = bot("demo", BotChannel::Telegram(settings.clone()));
        let header = header.map(str::as_bytes);
        stamped(|stamp| telegram::receive(&bot, settings, header, br#"{"update_id":1}"#, stamp)).map(|_| ())
    };
    assert_eq!(check(&settings, Some(WEBHOOK_SECRET)), Ok(()));
    for header in [None, Some(""), Some("hook-secreT"), Some("hook-secret "), Some("hook")] {
        assert_eq!(check(&settings, header), Err(Refusal::Unauthorized), "{header:?}");
    }
    assert_eq!(check(&without, Some(WEBHOOK_SECRET)), Err(Refusal::Unauthorized));
    assert_eq!(check(&empty, Some("")), Err(Refusal::Unauthorized));
}

#[test]
fn an_edit_names_the_message_it_changes() {
    let of = |kind: &str, edited: Value| receive_update(&json!({ "update_id": 7, kind: edited })).amendment;
    let edited = |text: &str| json!({ "message_id": 12, "chat": { "id": 5, "type": "private" }, "text": text });
    let amendment = of("edited_message", edited("now")).unwrap();
    let replacement = Some(Replacement { text: "now".to_owned(), attachments: Some(Vec::new()) });
    assert_eq!(amendment, Amendment { platform_message_id: "12".to_owned(), replacement });
    assert_eq!(of("edited_message", edited("")), None, "an edit of what a person cannot say");
    assert_eq!(of("edited_message", json!({ "message_id": 12, "text": "now" })), None, "of no chat");
    for kind in ["message", "edited_channel_post", "edited_business_message"] {
        assert_eq!(of(kind, edited("now")), None, "{kind}");
    }
}

#[test]
fn polled_updates_need_no_secret_and_become_the_same() {
    let settings = telegram_bot();
    let bot = bot("demo", BotChannel::Telegram(settings.clone()));
    let body = r#"{"update_id":7,"message":{"message_id":1,"chat":{"id":5,"type":"private"},"text":"hi"}}"#;
    let raw = serde_json::value::RawValue::from_string(body.to_owned()).unwrap();
    let polled = stamped(|stamp| telegram::receive_polled(&bot, &settings, &raw, stamp)).unwrap().into_envelope();
    let pushed = receive_telegram(body.as_bytes()).unwrap();
    assert_eq!(serde_json::to_value(&polled).unwrap(), serde_json::to_value(&pushed).unwrap());
}

#[test]
fn telegram_conversations_follow_chats_and_topics() {
    let peer = |chat: Value, extra: Value| {
        let mut update = json!({ "update_id": 1, "message": { "message_id": 1, "chat": chat, "text": "hi" } });
        update["message"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        receive_update(&update).key.peer
    };
    let topic = |group: &str, topic: &str| Peer::Topic { group: group.to_owned(), topic: topic.to_owned() };
    assert_eq!(peer(json!({ "id": 5, "type": "private" }), json!({})), Peer::User("5".to_owned()));
    assert_eq!(peer(json!({ "id": 5 }), json!({})), Peer::User("5".to_owned()));
    assert_eq!(peer(json!({ "id": -5 }), json!({})), Peer::Group("-5".to_owned()));
    assert_eq!(peer(json!({ "id": -5, "type": "group" }), json!({})), Peer::Group("-5".to_owned()));
    let thread = json!({ "message_thread_id": 40 });
    assert_eq!(peer(json!({ "id": -5, "type": "supergroup" }), thread), Peer::Group("-5".to_owned()));
    let in_topic = json!({ "message_thread_id": 40, "is_topic_message": true });
    assert_eq!(peer(json!({ "id": -5, "type": "supergroup" }), in_topic.clone()), topic("-5", "40"));
    assert_eq!(peer(json!({ "id": 5, "type": "private" }), in_topic), topic("5", "40"));
    let general = json!({ "message_thread_id": 1, "is_topic_message": true });
    assert_eq!(peer(json!({ "id": -5, "type": "supergroup" }), general), Peer::Group("-5".to_owned()));
    assert_eq!(peer(json!("odd"), json!({})), Peer::Bot);
}

#[test]
fn group_messages_make_turns_only_when_addressed() {
    let check = |expected: &str, extra: Value| {
        let chat = json!({ "id": -100, "type": "supergroup" });
        let mut update = json!({ "update_id": 1, "message": { "message_id": 1, "chat": chat, "from": { "id": 9 } } });
        update["message"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let actual = match receive_update(&update).event {
            Event::Message(_) => "turn".to_owned(),
            Event::Ignored { reason, .. } => reason,
            Event::Agent { .. } => "agent".to_owned(),
        };
        assert_eq!(actual, expected, "{extra}");
    };
    let command = |length: usize| json!([{ "type": "bot_command", "offset": 0, "length": length }]);
    let mention = |offset: i64, length: i64| json!([{ "type": "mention", "offset": offset, "length": length }]);
    check("turn", json!({ "text": "/ask", "entities": command(4) }));
    check("turn", json!({ "text": "/ask@demollmbot now", "entities": command(15) }));
    check("for another bot", json!({ "text": "/ask@OtherBot", "entities": command(13) }));
    let reply = json!({ "from": { "id": 7_000_000_001_i64, "is_bot": true } });
    check("for another bot", json!({ "text": "/ask@OtherBot", "entities": command(13), "reply_to_message": reply }));
    check("not addressed", json!({ "text": "/ask", "entities": command(4), "forward_origin": { "type": "user" } }));
    check("not addressed", json!({ "text": "/ask" }));
    check("turn", json!({ "text": "hm", "reply_to_message": reply }));
    check("not addressed", json!({ "text": "hm", "reply_to_message": { "from": { "id": 9 } } }));
    check("turn", json!({ "text": "😀 @DEMOllmBot", "entities": mention(3, 11) }));
    check(
        "turn",
        json!({ "caption": "@DemoLLMBot", "caption_entities": mention(0, 11), "photo": [{ "file_id": "f" }] }),
    );
    check("not addressed", json!({ "text": "@DemoLLMBots", "entities": mention(0, 12) }));
    check("turn", json!({ "text": "@DemoLLMBot", "entities": mention(-3, i64::MAX), "from": 1 }));
    check("not addressed", json!({ "text": "hello", "entities": mention(i64::MAX, i64::MAX) }));
    check("not addressed", json!({ "text": "hello", "entities": [7, null, { "type": 1 }] }));
    check("sent by a bot", json!({ "text": "/ask", "entities": command(4), "from": { "id": 8, "is_bot": true } }));
    check("automatic forward", json!({ "text": "/ask", "entities": command(4), "from": { "id": 777_000 } }));
    let channel_bot = json!({ "id": 136_817_688, "is_bot": true });
    check("turn", json!({ "text": "/ask", "entities": command(4), "from": channel_bot }));
}

#[test]
fn odd_members_cost_no_message() {
    let envelope = receive_update(&json!({
        "update_id": 1,
        "message": {
            "message_id": "odd", "from": [1], "chat": { "id": 5, "type": 7 }, "date": "x", "text": "still here",
            "entities": "odd", "photo": {}, "reply_to_message": 1, "media_group_id": 12, "rich_message": false
        }
    }));
    let message = message(&envelope);
    assert_eq!((message.text.as_str(), message.album_id.as_deref()), ("still here", Some("12")));
    let surrogate = br#"{"update_id":1,"message":{"chat":{"id":5},"text":"half \ud83d and \u0000zero"}}"#;
    let envelope = receive_telegram(surrogate).unwrap();
    let text = &self::message(&envelope).text;
    assert!(text.starts_with("half \u{fffd}") && text.ends_with(" and zero"), "{text:?}");
    let unreadable = receive_update(&json!({ "update_id": 1, "message": [1] }));
    assert_eq!((ignored_for(&unreadable), &unreadable.key.peer), ("unreadable", &Peer::Bot));
    let nothing = receive_update(&json!({ "update_id": 1 }));
    assert_eq!(ignored_for(&nothing), "unknown kind");
}

#[test]
fn rich_messages_become_text() {
    let fixture = fixtures("telegram").into_iter().find(|(name, _)| name.contains("rich_message")).unwrap();
    let mut update: Value = serde_json::from_slice(&fixture.1).unwrap();
    update["message"]["from"] = json!({ "id": 5 });
    let envelope = receive_update(&update);
    let expected = "it's me\nmario\nCodes\tColors\nEI136 EI136\tredOnecapiscored blue\nbold\nprefixboldsuffix";
    assert_eq!(message(&envelope).text, expected);
}

#[test]
fn button_presses_carry_label_payload_and_callback() {
    let fixture = fixtures("telegram").into_iter().find(|(name, _)| name == "callback_query__kotlintgbot").unwrap();
    let envelope = receive_telegram(&fixture.1).unwrap();
    let message = message(&envelope);
    assert_eq!(message.text, "Show alert");
    assert_eq!(message.payload.as_deref(), Some("showAlert"));
    assert_eq!(message.callback_id.as_deref(), Some("1"));
    assert_eq!(envelope.sender.unwrap().name.as_deref(), Some("TestName"));
}
