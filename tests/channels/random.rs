//! Random bytes, random JSON and mutated fixtures: nothing crashes a channel, and nothing authentic is refused.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use turnwise::channel::{self, Answer};
use turnwise::message::{Channel, ConversationKey, Envelope};

use crate::{fixtures, receive_messenger, receive_telegram};

/// Any JSON, up to a few levels deep, with the member names that the channels read.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        Just("message"),
        Just("chat"),
        Just("id"),
        Just("text"),
        Just("entities"),
        Just("from"),
        Just("rich_message"),
        Just("blocks"),
        Just("photo"),
        Just("reply_markup"),
        Just("attachments"),
        Just("payload"),
        Just("offset"),
        Just("length"),
        Just("mid"),
        Just("sender"),
        Just("postback"),
        Just("data"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Every place of a JSON value, as the path to it.
fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    match value {
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(at, value)| paths(value, &format!("{path}/{at}"), found));
        }
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| paths(value, &format!("{path}/{name}"), found));
        }
        _ => {}
    }
}

/// A fixture with one value replaced by another.
fn mutated(platform: &'static str) -> impl Strategy<Value = Value> {
    let fixtures: Vec<Value> =
        fixtures(platform).iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect();
    (prop::sample::select(fixtures), any::<prop::sample::Index>(), any_json()).prop_map(
        |(mut body, at, replacement)| {
            let mut places: Vec<String> = Vec::new();
            paths(&body, "", &mut places);
            if let Some(place) = body.pointer_mut(at.get(places.as_slice()).as_str()) {
                *place = replacement;
            }
            body
        },
    )
}

/// Error texts are short and on one line, and no pause is longer than a day.
fn check_answer(answer: &Answer) {
    let (error, delay) = match answer {
        Answer::Sent { .. } => return,
        Answer::RetryAfter { delay, error, .. } => (error, *delay),
        Answer::NotSent { error }
        | Answer::Failed { error, .. }
        | Answer::TakenOver { error }
        | Answer::Closed { error }
        | Answer::Moved { error, .. }
        | Answer::Spoiled { error, .. }
        | Answer::Uncertain { error } => (error, Duration::ZERO),
    };
    assert!(error.chars().count() <= channel::ERROR_CHARS_MAX && !error.contains(char::is_control), "{error:?}");
    assert!(delay <= channel::RETRY_AFTER_MAX, "{delay:?}");
}

proptest! {
    #[test]
    fn no_bytes_crash_a_channel(body: Vec<u8>, status: u16) {
        let _ = receive_telegram(&body);
        let _ = receive_messenger("P1", &body);
        check_answer(&channel::classify(Channel::Telegram, status, None, &body));
        check_answer(&channel::classify(Channel::Messenger, status, None, &body));
    }

    #[test]
    fn a_mutated_update_is_still_one_envelope(body in mutated("telegram")) {
        let received = receive_telegram(body.to_string().as_bytes());
        prop_assert_eq!(received.is_ok(), body.get("update_id").is_some_and(Value::is_i64));
        if let Ok(envelope) = received {
            prop_assert!(envelope.key.to_string().parse::<ConversationKey>().is_ok());
            let stored = serde_json::to_vec(&envelope).unwrap();
            prop_assert!(serde_json::from_slice::<Envelope>(&stored).is_ok());
        }
    }

    #[test]
    fn a_mutated_page_event_is_accepted(body in mutated("messenger")) {
        let received = receive_messenger("PAGE_ID", body.to_string().as_bytes());
        prop_assert_eq!(received.is_ok(), body.is_object());
        for envelope in received.unwrap_or_default() {
            prop_assert!(envelope.key.to_string().parse::<ConversationKey>().is_ok());
            prop_assert!(envelope.dedupe_id.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }

    #[test]
    fn any_json_is_accepted_as_an_update(content in any_json(), update_id: i64) {
        let body = json!({ "update_id": update_id, "message": content });
        prop_assert!(receive_telegram(body.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn any_answer_is_classified(answer in any_json(), status: u16) {
        let body = json!({ "ok": false, "error": answer, "parameters": answer, "description": answer }).to_string();
        check_answer(&channel::classify(Channel::Telegram, status, None, body.as_bytes()));
        check_answer(&channel::classify(Channel::Messenger, status, None, body.as_bytes()));
    }
}
