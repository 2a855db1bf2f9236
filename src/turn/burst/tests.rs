//! Turns of several messages: what they are journaled under, and what they make of metadata.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::Config;
use crate::message::{Channel, ConversationKey, Peer, Platform};
use crate::responder::Reply;
use crate::responder::history::Budget;
use crate::store::Ownership;
use crate::turn::compose::{compose, new_conversation, unsaved};
use crate::turn::decide::Decided;
use crate::turn::{Open, Settings};

#[test]
fn steps_are_journaled_under_the_first_message_also_when_it_comes_twice() {
    let check = |messages: &[(&str, u128)], expected: u128| {
        let messages = messages.iter().map(|(id, turn)| message(id, &envelope(*turn, &Value::Null))).collect();
        let task = task(messages);
        let Ok(burst) = Burst::read(&task) else { unreachable!("{task:?}") };
        assert_eq!(burst.first_turn_id(), Uuid::from_u128(expected), "{task:?}");
    };
    check(&[("a", 1)], 1);
    check(&[("a", 1), ("b", 2)], 1);
    check(&[("a", 1), ("a", 2)], 1);
    check(&[("a", 1), ("b", 2), ("a", 3), ("c", 4)], 1);

    let mut amended = task(vec![message("a", &envelope(1, &Value::Null))]);
    amended.amendments = vec![Arc::new(message("edit", &envelope(2, &Value::Null)))];
    assert_eq!(Burst::read(&amended).ok().map(|burst| burst.first_turn_id()), Some(Uuid::from_u128(1)));

    let mut unreadable = message("a", &envelope(1, &Value::Null));
    unreadable.payload = "{".into();
    let task =
        task(vec![unreadable, message("b", &envelope(2, &Value::Null)), message("a", &envelope(3, &Value::Null))]);
    assert_eq!(Burst::read(&task).ok().map(|burst| burst.first_turn_id()), Some(Uuid::from_u128(2)));
}

#[test]
fn what_callers_and_the_responder_say_of_metadata_is_kept_apart_and_in_order() {
    let said = [json!({ "a": { "x": 1 } }), Value::Null, json!({ "a": { "x": null, "z": 3 } })];
    let messages = said.iter().zip(1..).map(|(metadata, turn)| message(&turn.to_string(), &envelope(turn, metadata)));
    let task = task(messages.collect());
    let Ok(burst) = Burst::read(&task) else { unreachable!("{task:?}") };
    let answered = object(&json!({ "a": { "y": 2 } }));
    let reply = Reply { metadata: answered.clone(), ..Reply::default() };
    let new = new_conversation(&burst.envelope);
    let mut loaded = Open { conversation: unsaved(&new), new: Some(new) };
    let commit = compose(&burst, &settings(), &mut loaded, Decided { reply, ..Decided::silent() }, Duration::ZERO);
    let expected: Vec<_> = said.iter().filter_map(object).chain(answered).collect();
    assert_eq!(commit.metadata_patches, expected);
}

#[test]
fn what_was_taken_back_is_not_answered_with_what_came_around_it() {
    let said = |turn: u128, id: &str| {
        let mut envelope = envelope(turn, &Value::Null);
        envelope["event"]["platform_message_id"] = json!(id);
        StreamMessage { sequence: u64::try_from(turn).unwrap_or_default(), ..message(id, &envelope) }
    };
    let ignored = |turn: u128, notice: Value| {
        let mut envelope = envelope(turn, &Value::Null);
        envelope["event"] = json!({ "type": "ignored", "kind": "k", "reason": "r" });
        envelope["notice"] = notice;
        StreamMessage { sequence: u64::try_from(turn).unwrap_or_default(), ..message(&turn.to_string(), &envelope) }
    };
    let deletion = ignored(2, json!({ "type": "deleted", "platform_message_ids": ["m1", "m0"] }));
    let task = task(vec![said(1, "m1"), deletion, said(3, "m3")]);
    let Ok(burst) = Burst::read(&task) else { unreachable!("{task:?}") };
    let deleted: Vec<u64> = burst.deleted().iter().map(|message| message.sequence).collect();
    assert_eq!(deleted, [1, 2], "the message and what took it back");
    let unmet: Vec<&str> = burst.unmet().map(|unmet| unmet.platform_message_id.as_str()).collect();
    assert_eq!(unmet, ["m0"], "of an earlier turn");

    let mut notice = super::tests::task(vec![ignored(4, json!({ "type": "reachable" }))]);
    notice.amendments = vec![Arc::new(ignored(5, json!({ "type": "stop" })))];
    let Ok(burst) = Burst::read(&notice) else { unreachable!("{notice:?}") };
    assert!(burst.deleted().is_empty(), "only an answer can be stopped");

    let command = |event: Value| {
        let mut envelope = envelope(1, &Value::Null);
        envelope["event"] = event;
        label(&message("a", &envelope))
    };
    assert_eq!(command(json!({ "type": "message", "text": "/help", "command": "help" })), Label::Pressed);
    assert!(matches!(command(json!({ "type": "message", "text": "help" })), Label::Said { .. }));
}

fn settings() -> Settings {
    let config = Config::development(Path::new("/"), ([127, 0, 0, 1], 0).into(), "demo.toml".into());
    Settings { bot: config.bots["web"].clone(), budget: Budget { messages: 1, tokens: 1 } }
}

/// A task of these messages, in this order.
fn task(messages: Vec<StreamMessage>) -> Task {
    let messages = messages.into_iter().zip(1..);
    Task {
        messages: messages.map(|(message, sequence)| Arc::new(StreamMessage { sequence, ..message })).collect(),
        amendments: Vec::new(),
        is_refusal: false,
        ownership: Ownership { stream: 1, partition: 0, epoch: 1 },
        attempt: 1,
        started_at: Timestamp::from_micros(0),
        lane_position: 0,
        behind: 0,
        blocker: None,
        cancellation: CancellationToken::new(),
        interruption: CancellationToken::new(),
        traceparent: Arc::new(OnceLock::new()),
    }
}

fn message(id: &str, envelope: &Value) -> StreamMessage {
    StreamMessage {
        partition: 0,
        lane: "web.web.1".into(),
        sequence: 0,
        message_id: id.to_owned(),
        schema_version: Some(SCHEMA_VERSION),
        traceparent: None,
        published_at: Timestamp::from_micros(0),
        delivered_at: Timestamp::from_micros(0),
        payload: envelope.to_string().into(),
    }
}

fn envelope(turn: u128, metadata: &Value) -> Value {
    let envelope = Envelope {
        turn_id: Uuid::from_u128(turn),
        key: ConversationKey { channel: Channel::Web, bot: "web".into(), peer: Peer::Conversation(Uuid::nil()) },
        platform: Platform::Web,
        dedupe_id: turn.to_string(),
        received_at: Timestamp::from_micros(0),
        sender: None,
        device_id: None,
        metadata: object(metadata),
        event: Event::Message(InboundMessage { text: "hi".to_owned(), ..InboundMessage::default() }),
        amendment: None,
        notice: None,
        came_from: None,
        raw: None,
    };
    json!(envelope)
}

fn object(value: &Value) -> Option<Map<String, Value>> {
    value.as_object().cloned()
}
