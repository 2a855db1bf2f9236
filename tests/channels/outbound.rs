//! What leaves: request bodies, parts, and the meaning of the platforms' answers.

use std::time::Duration;

use serde_json::{Value, json};
use turnwise::channel::{self, Answer, Call, Scope};
use turnwise::config::{BotChannel, Secret};
use turnwise::message::{Button, Channel, ConversationKey, Form, OutboundPart, Peer};
use uuid::Uuid;

use crate::{NOW, api_response, bot, messenger_bot, telegram_bot};

fn part(channel: Channel, peer: Peer, content: &str, buttons: Vec<Button>) -> OutboundPart {
    OutboundPart {
        delivery_id: Uuid::from_u128(0xd),
        turn_id: Uuid::from_u128(0xa),
        conversation_id: None,
        message_id: Uuid::from_u128(0xb),
        key: ConversationKey { channel, bot: "demo".into(), peer },
        part: 0,
        parts: 1,
        content: content.to_owned(),
        buttons,
        form: Form::default(),
        created_at: NOW,
    }
}

fn buttons(labels_and_payloads: &[(&str, &str)]) -> Vec<Button> {
    let button = |(label, payload): &(&str, &str)| Button { label: (*label).into(), payload: (*payload).into() };
    labels_and_payloads.iter().map(button).collect()
}

fn telegram_call(peer: Peer, buttons: Vec<Button>) -> Option<Call> {
    let bot = bot("demo", BotChannel::Telegram(telegram_bot()));
    channel::call(&bot, &part(Channel::Telegram, peer, "Hello *there* <b>", buttons), &[])
}

fn messenger_call(peer: Peer, buttons: Vec<Button>) -> Option<Call> {
    let bot = bot("demo", BotChannel::Messenger(messenger_bot("P1")));
    channel::call(&bot, &part(Channel::Messenger, peer, "Hello *there* <b>", buttons), &[])
}

#[test]
fn telegram_request_bodies() {
    let topic = Peer::Topic { group: "-100123".to_owned(), topic: "12".to_owned() };
    let too_long = "x".repeat(65);
    let offered = buttons(&[("Yes", "y:1"), ("No", "n:1"), (" ", "blank"), ("Long", &too_long), ("None", "")]);
    let call = telegram_call(topic, offered).unwrap();
    assert_eq!(call.url.expose(), "https://api.telegram.org/bot7000000001:bot-token/sendMessage");
    assert_eq!(call.bearer, None);
    insta::assert_snapshot!(serde_json::to_string_pretty(&call.body).unwrap(), @r#"
    {
      "chat_id": -100123,
      "link_preview_options": {
        "is_disabled": true
      },
      "message_thread_id": 12,
      "reply_markup": {
        "inline_keyboard": [
          [
            {
              "callback_data": "y:1",
              "text": "Yes"
            }
          ],
          [
            {
              "callback_data": "n:1",
              "text": "No"
            }
          ]
        ]
      },
      "text": "Hello *there* <b>"
    }
    "#);
    let plain = telegram_call(Peer::User("5".to_owned()), Vec::new()).unwrap();
    insta::assert_snapshot!(plain.body, @r#"{"chat_id":5,"link_preview_options":{"is_disabled":true},"text":"Hello *there* <b>"}"#);
    let named = telegram_call(Peer::Group("@channel".to_owned()), Vec::new()).unwrap();
    assert_eq!(named.body["chat_id"], "@channel");
    assert_eq!(telegram_call(Peer::Bot, Vec::new()), None);
    assert!(!format!("{call:?}").contains("bot-token"));
}

#[test]
fn messenger_request_bodies() {
    let too_long = "x".repeat(1001);
    let offered =
        buttons(&[("Yes, please send me the whole list", "y"), ("👨‍👩‍👧‍👦👨‍👩‍👧‍👦", "family"), ("", "blank"), ("No", &too_long)]);
    let call = messenger_call(Peer::User("982337261802700".to_owned()), offered).unwrap();
    assert_eq!(call.url.expose(), "https://graph.facebook.com/v26.0/P1/messages");
    assert_eq!(call.bearer, Some(Secret::new("page-token".to_owned())));
    insta::assert_snapshot!(serde_json::to_string_pretty(&call.body).unwrap(), @r#"
    {
      "message": {
        "metadata": "00000000-0000-0000-0000-00000000000d",
        "quick_replies": [
          {
            "content_type": "text",
            "payload": "y",
            "title": "Yes, please send me"
          },
          {
            "content_type": "text",
            "payload": "family",
            "title": "👨‍👩‍👧‍👦"
          }
        ],
        "text": "Hello *there* <b>"
      },
      "messaging_type": "RESPONSE",
      "recipient": {
        "id": "982337261802700"
      }
    }
    "#);
    let plain = messenger_call(Peer::User("user_ref:R1".to_owned()), Vec::new()).unwrap();
    insta::assert_snapshot!(plain.body, @r#"{"message":{"metadata":"00000000-0000-0000-0000-00000000000d","text":"Hello *there* <b>"},"messaging_type":"RESPONSE","recipient":{"user_ref":"R1"}}"#);
    let many: Vec<(&str, &str)> = vec![("a", "b"); 20];
    let crowded = messenger_call(Peer::User("1".to_owned()), buttons(&many)).unwrap();
    assert_eq!(crowded.body["message"]["quick_replies"].as_array().unwrap().len(), 13);
    assert_eq!(messenger_call(Peer::Bot, Vec::new()), None);
}

#[test]
fn typing_is_shown_where_there_is_somebody_to_see_it() {
    let check = |channel: BotChannel, peer: Peer, expected: Option<(&str, serde_json::Value)>| {
        let typing = channel::typing(&bot("b", channel), &peer);
        let found = typing.map(|typing| (typing.call.url.expose().to_owned(), typing.call.body));
        assert_eq!(found, expected.map(|(url, body)| (url.to_owned(), body)), "{peer:?}");
    };
    let telegram = || BotChannel::Telegram(telegram_bot());
    let messenger = || BotChannel::Messenger(messenger_bot("P1"));
    let action = "https://api.telegram.org/bot7000000001:bot-token/sendChatAction";
    let user = || Peer::User("7".to_owned());
    let topic = Peer::Topic { group: "-100".to_owned(), topic: "5".to_owned() };
    check(telegram(), user(), Some((action, json!({ "chat_id": 7, "action": "typing" }))));
    let in_topic = json!({ "chat_id": -100, "message_thread_id": 5, "action": "typing" });
    check(telegram(), topic, Some((action, in_topic)));
    check(telegram(), Peer::Bot, None);
    let send = "https://graph.facebook.com/v26.0/P1/messages";
    let body = json!({ "recipient": { "id": "7" }, "sender_action": "typing_on" });
    check(messenger(), user(), Some((send, body)));
    check(messenger(), Peer::Bot, None);
}

#[test]
fn parts_keep_to_each_channels_limit() {
    let long = "word ".repeat(2_000);
    let sizes = |channel| channel::parts(channel, &long).iter().map(|part| part.text.len()).collect::<Vec<_>>();
    assert_eq!(sizes(Channel::Telegram), [4094, 4094, 1809]);
    assert_eq!(sizes(Channel::Messenger), [1999, 1999, 1999, 1999, 1999]);
    assert_eq!(sizes(Channel::Web), [10_000]);
    for channel in Channel::ALL {
        assert!(channel::parts(*channel, " \n\t ").is_empty());
        let hello = channel::parts(*channel, "hello");
        assert_eq!(hello.iter().map(|part| part.text.as_str()).collect::<Vec<_>>(), ["hello"]);
    }
}

fn failed(error: &str, unreachable: bool) -> Answer {
    Answer::Failed { error: error.to_owned(), unreachable }
}

fn retry_after(seconds: u64, error: &str) -> Answer {
    Answer::RetryAfter { delay: Duration::from_secs(seconds), scope: Scope::Chat, error: error.to_owned() }
}

#[test]
fn telegram_answers() {
    let check = |status: u16, header: Option<u64>, body: &[u8], expected: Answer| {
        let header = header.map(Duration::from_secs);
        assert_eq!(channel::classify(Channel::Telegram, status, header, body), expected);
    };
    let fixture = |name: &str| api_response("telegram", name);
    let sent = |id: Option<&str>| Answer::Sent { platform_message_id: id.map(ToOwned::to_owned) };
    check(200, None, br#"{"ok":true,"result":{"message_id":42,"date":1}}"#, sent(Some("42")));
    check(200, None, &fixture("ResponseWithoutError__rubenlagus.json"), sent(None));
    check(200, None, &fixture("chat_members__nutgram.json"), sent(None));
    check(
        400,
        None,
        &fixture("ResponseWithError__rubenlagus.json"),
        Answer::Moved { to: Peer::Group("12345".to_owned()), error: "Error descriptions".to_owned() },
    );
    check(400, None, &fixture("too_long__nutgram.json"), failed("Bad Request: message is too long", false));
    let wrong_file = "Bad Request: wrong file_id or the file is temporarily unavailable";
    check(400, None, &fixture("wrong_file_id__nutgram.json"), failed(wrong_file, false));
    check(403, None, &fixture("user_deactivated__nutgram.json"), failed("Forbidden: user is deactivated", true));
    let limited = retry_after(14, "Too Many Requests: retry after 14");
    check(429, Some(3), &fixture("too_many_requests__nutgram.json"), limited);
    check(429, Some(3), br#"{"ok":false,"description":"slow"}"#, retry_after(3, "slow"));
    check(429, None, br#"{"ok":false}"#, retry_after(1, "error 429"));
    check(429, None, b"<html>", retry_after(1, "HTTP status 429 without a readable body"));
    let forever =
        br#"{"ok":false,"error_code":429,"description":"x","parameters":{"retry_after":9223372036854775807}}"#;
    check(429, None, forever, retry_after(86_400, "x"));
    let not_found = br#"{"ok":false,"error_code":400,"description":"Bad Request: chat not found"}"#;
    check(400, None, not_found, failed("Bad Request: chat not found", true));
    let closed = Answer::Closed { error: "Unauthorized".to_owned() };
    check(401, None, br#"{"ok":false,"error_code":401,"description":"Unauthorized"}"#, closed);
    check(404, None, br#"{"ok":false,"error_code":404,"description":"Not Found"}"#, failed("Not Found", false));
    let internal = Answer::NotSent { error: "Internal".to_owned() };
    check(500, None, br#"{"ok":false,"error_code":500,"description":"Internal"}"#, internal);
    let unknown = |status: u16| Answer::Uncertain { error: format!("HTTP status {status} without a readable body") };
    check(502, None, b"<html>bad gateway</html>", unknown(502));
    check(504, None, b"", unknown(504));
    check(408, None, b"", unknown(408));
    check(200, None, b"", unknown(200));
    check(200, None, br#"{"ok":"yes"}"#, unknown(200));
    check(413, None, b"<html>", failed("HTTP status 413 without a readable body", false));
    check(301, None, b"", failed("HTTP status 301 without a readable body", false));
    let long = format!(r#"{{"ok":false,"error_code":400,"description":"a\nb{}"}}"#, "ü".repeat(500));
    check(400, None, long.as_bytes(), failed(&format!("a b{}", "ü".repeat(197)), false));
}

#[test]
fn messenger_answers() {
    let check = |status: u16, header: Option<u64>, body: &[u8], expected: Answer| {
        let header = header.map(Duration::from_secs);
        assert_eq!(channel::classify(Channel::Messenger, status, header, body), expected);
    };
    let sent = |id: Option<&str>| Answer::Sent { platform_message_id: id.map(ToOwned::to_owned) };
    check(200, None, br#"{"recipient_id":"1","message_id":"m_1"}"#, sent(Some("m_1")));
    check(200, None, br#"{"recipient_id":"1"}"#, sent(None));
    let refusal = |code: &str| {
        let body = api_response("messenger", &format!("error_{code}__fbmessenger-ruby.json"));
        let message = serde_json::from_slice::<Value>(&body).unwrap()["error"]["message"].as_str().unwrap().to_owned();
        (body, format!("{}: {message}", code.replace('_', "/")))
    };
    for (code, unreachable) in [
        ("100_2018001", true),
        ("100", false),
        ("10303", false),
        ("10_2018108", true),
        ("200_1545041", true),
        ("200_2018021", false),
        ("200_2018027", false),
        ("200_2018028", false),
    ] {
        let (body, error) = refusal(code);
        check(400, None, &body, failed(&error, unreachable));
    }
    for code in ["190", "230"] {
        let (body, error) = refusal(code);
        check(400, None, &body, Answer::Closed { error });
    }
    let (body, error) = refusal("10_2018065");
    check(400, None, &body, failed(&format!("outside_window: {error}"), false));
    let of =
        |code: u32, subcode: u32| format!(r#"{{"error":{{"code":{code},"error_subcode":{subcode},"message":"x"}}}}"#);
    check(400, None, of(10, 2_018_278).as_bytes(), failed("outside_window: 10/2018278: x", false));
    check(400, None, of(10, 2_018_300).as_bytes(), Answer::TakenOver { error: "10/2018300: x".to_owned() });
    check(400, None, of(10, 1_893_063).as_bytes(), Answer::Closed { error: "10/1893063: x".to_owned() });
    check(400, None, of(10, 7).as_bytes(), failed("10/7: x", false));
    let temporary = "1200: Temporary send message failure. Please try again later.";
    let body = api_response("messenger", "error_1200__fbmessenger-ruby.json");
    check(500, None, &body, Answer::NotSent { error: temporary.to_owned() });
    let limited = "613: Calls to this API have exceeded the rate limit";
    let body = api_response("messenger", "error_613__fbmessenger-ruby.json");
    check(400, None, &body, retry_after(30, limited));
    check(400, Some(7), &body, retry_after(7, limited));
    let of_page =
        Answer::RetryAfter { delay: Duration::from_secs(30), scope: Scope::Bot, error: "32: page".to_owned() };
    check(400, None, br#"{"error":{"code":32,"message":"page"}}"#, of_page);
    check(400, None, br#"{"error":{"code":551,"message":"gone"}}"#, failed("551: gone", true));
    check(429, None, b"<html>", retry_after(30, "HTTP status 429 without a readable body"));
    let unknown = |status: u16| Answer::Uncertain { error: format!("HTTP status {status} without a readable body") };
    check(200, None, &api_response("messenger", "x-business-use-case-usage_header__restfb.json"), unknown(200));
    check(200, None, b"[]", unknown(200));
    check(503, None, b"<html>", unknown(503));
    check(500, None, br#"{"error":"odd"}"#, unknown(500));
    check(400, None, b"<html>", failed("HTTP status 400 without a readable body", false));
}

#[test]
fn http_answers() {
    let check = |status: u16, header: Option<u64>, expected: Answer| {
        let header = header.map(Duration::from_secs);
        assert_eq!(channel::classify(Channel::Http, status, header, b"whatever"), expected, "{status}");
    };
    let error = |status: u16| format!("HTTP status {status}");
    for status in [200, 202, 204, 299] {
        check(status, None, Answer::Sent { platform_message_id: None });
    }
    for status in [301, 308, 400, 401, 404, 408, 422, 500, 501, 502] {
        check(status, None, Answer::NotSent { error: error(status) });
    }
    check(504, None, Answer::Uncertain { error: error(504) });
    for status in [429, 503] {
        let wait = |seconds| Answer::RetryAfter {
            delay: Duration::from_secs(seconds),
            scope: Scope::Bot,
            error: error(status),
        };
        check(status, None, wait(5));
        check(status, Some(17), wait(17));
    }
    check(410, None, Answer::Closed { error: error(410) });
}
