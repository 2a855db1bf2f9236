//! What becomes of lanes, one letter a message: `a` answered, `?` without a reply, `d` a dead letter, `i` nothing to answer,
//! `r` refused with a notice, `p` a person of the team.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::config::Config;

const NOTICE: &str = "one at a time";

/// The turns of a lane as `<sequences>:<state>`, and how many messages are left to run.
fn derived(burst: Burst, floor: u64, lane: &str) -> (String, u64) {
    let address = "127.0.0.1:0".parse().unwrap();
    let mut bots = Config::development(Path::new("/nowhere"), address, "/nowhere/script".into()).bots;
    let bot = bots.values_mut().next().unwrap();
    (bot.burst, bot.reject_reply, bot.failure_reply) = (burst, NOTICE.to_owned(), None);
    let name = bot.name.clone();
    let key =
        ConversationKey { channel: Channel::Telegram, bot: name.as_str().into(), peer: Peer::User("7".to_owned()) };
    let (mut parts, mut letters) = (HashMap::new(), HashMap::new());
    let messages = lane.chars().zip(1_u64..).map(|(kind, sequence)| {
        let turn_id = Uuid::from_u128(sequence.into());
        let message = message(&key, kind, sequence);
        if matches!(kind, 'a' | 'r' | 'p') {
            parts.insert(turn_id, vec![part(&key, kind, turn_id)]);
        }
        if kind == 'd' {
            let (reason, error) = ("responder".to_owned(), "out of order".to_owned());
            let letter =
                Letter { message: message.clone(), reason, error, attempts: 4, inbound_sequence: Some(sequence) };
            letters.insert(message.message_id.clone(), letter);
        }
        message
    });
    let messages = messages.collect();
    let ownership = Ownership { stream: 1, partition: 0, epoch: 1 };
    let derived = super::lane(messages, &Evidence { parts, letters: &letters, floor, bots: &bots, ownership });
    let turns = derived.steps.iter().filter_map(|step| match step {
        Step::Turn(turn) => Some(turn),
        Step::Close(..) => None,
    });
    let turn = |turn: &TurnCommit| {
        let sequences = turn.merged.iter().map(|merged| merged.sequence).chain([turn.position.sequence]);
        let sequences: Vec<String> = sequences.map(|sequence| sequence.to_string()).collect();
        format!("{}:{}", sequences.join("+"), turn.state)
    };
    (turns.map(|found| turn(found)).collect::<Vec<_>>().join(" "), derived.left)
}

fn message(key: &ConversationKey, kind: char, sequence: u64) -> StreamMessage {
    let event = match kind {
        'i' => json!({ "type": "ignored", "kind": "poll", "reason": "not for bots" }),
        'p' => json!({ "type": "agent", "text": "hello" }),
        _ => json!({ "type": "message", "text": "hi" }),
    };
    let envelope = json!({
        "turn_id": Uuid::from_u128(sequence.into()), "key": key, "platform": "telegram", "dedupe_id": format!("m-{sequence}"),
        "received_at": "2026-11-21T00:00:00Z", "event": event,
    });
    StreamMessage {
        partition: 0,
        lane: key.to_string().into(),
        sequence,
        message_id: format!("m-{sequence}"),
        schema_version: None,
        traceparent: None,
        published_at: Timestamp::from_micros(0),
        delivered_at: Timestamp::from_micros(0),
        payload: envelope.to_string().into(),
    }
}

fn part(key: &ConversationKey, kind: char, turn_id: Uuid) -> Part {
    let part = OutboundPart {
        delivery_id: Uuid::now_v7(),
        turn_id,
        conversation_id: (kind != 'r').then_some(Uuid::from_u128(99)),
        message_id: Uuid::now_v7(),
        key: key.clone(),
        part: 0,
        parts: 1,
        content: if kind == 'r' { NOTICE } else { "answer" }.to_owned(),
        buttons: Vec::new(),
        form: crate::message::Form::default(),
        created_at: Timestamp::from_micros(1),
    };
    Part { part, traceparent: None }
}

#[test]
fn what_has_ended_is_told_from_what_is_left() {
    let check = |burst, floor, lane, turns: &str, left| {
        assert_eq!(derived(burst, floor, lane), (turns.to_owned(), left), "{burst:?} {floor} {lane}");
    };
    let queue = Burst::Queue;
    check(queue, 0, "", "", 0);
    check(queue, 0, "aa", "1:answered 2:answered", 0);
    check(queue, 0, "a??", "1:answered", 2);
    check(queue, 0, "a?a?", "1:answered 2:handed_off 3:answered", 1);
    check(queue, 2, "???", "1:handed_off 2:handed_off", 1);
    check(queue, 0, "?d?", "1:handed_off 2:dead_lettered", 1);
    check(queue, 0, "i?ip?i", "1:ignored 3:ignored 2:handed_off 4:answered", 2);
    check(Burst::Collect, 0, "a??a?", "1:answered 2+3+4:answered", 1);
    check(Burst::Collect, 0, "?d?a", "1:handed_off 2:dead_lettered 3+4:answered", 0);
    check(Burst::Collect, 3, "???", "1:handed_off 2:handed_off 3:handed_off", 0);
    // A refusal goes past the turn that runs, and says nothing of it.
    check(Burst::Reject, 0, "?rr", "2:rejected 3:rejected", 1);
    check(Burst::Reject, 0, "arr", "1:answered 2:rejected 3:rejected", 0);
    check(Burst::Interrupt, 0, "???a", "1+2+3+4:answered", 0);
}

#[test]
fn a_message_that_came_again_was_given_up() {
    let key: ConversationKey = "telegram.support.user-7".parse().unwrap();
    let (letters, bots) = (HashMap::new(), BTreeMap::new());
    let ownership = Ownership { stream: 1, partition: 0, epoch: 1 };
    let parts = HashMap::from([(Uuid::from_u128(3), vec![part(&key, 'a', Uuid::from_u128(3))])]);
    let evidence = Evidence { parts, letters: &letters, floor: 0, bots: &bots, ownership };
    let again = StreamMessage { message_id: "m-1:redriven".to_owned(), ..message(&key, 'a', 3) };
    let twice = StreamMessage { sequence: 2, ..message(&key, '?', 1) };
    let derived = super::lane(vec![message(&key, '?', 1), twice, again], &evidence);
    let states = derived.steps.iter().map(|step| match step {
        Step::Turn(turn) => turn.state.as_str(),
        Step::Close(..) => "closed",
    });
    assert_eq!(states.collect::<Vec<_>>(), ["dead_lettered", "answered"]);
    assert_eq!((derived.repeated, derived.left), (1, 0));
}

#[test]
fn stored_messages_are_as_people_left_them() {
    let key: ConversationKey = "messenger.page.user-7".parse().unwrap();
    let with = |sequence: u64, kind: char, member: &str, value: serde_json::Value| {
        let message = message(&key, kind, sequence);
        let mut envelope: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        envelope[member] = value;
        StreamMessage { payload: envelope.to_string().into(), ..message }
    };
    let said = |id: &str| json!({ "type": "message", "text": "hi", "platform_message_id": id });
    let edit = json!({ "platform_message_id": "m1", "replacement": { "text": "edited" } });
    let messages = vec![
        with(1, 'a', "event", said("m1")),
        with(2, 'a', "event", said("m2")),
        with(3, 'i', "amendment", edit),
        with(4, 'i', "amendment", json!({ "platform_message_id": "m2" })),
        with(5, 'i', "notice", json!({ "type": "said", "text": "a person" })),
        with(6, 'i', "notice", json!({ "type": "said", "text": "" })),
        message(&key, 'a', 7),
        with(8, 'a', "event", said("m8")),
        with(9, 'i', "notice", json!({ "type": "deleted", "platform_message_ids": ["m8", "m9"] })),
    ];
    let answered = [1, 2, 7, 8].map(Uuid::from_u128);
    let parts = answered.into_iter().map(|turn_id| (turn_id, vec![part(&key, 'a', turn_id)])).collect();
    let (letters, bots) = (HashMap::new(), BTreeMap::new());
    let ownership = Ownership { stream: 1, partition: 0, epoch: 1 };
    let derived = super::lane(messages, &Evidence { parts, letters: &letters, floor: 0, bots: &bots, ownership });
    let stored = derived.steps.iter().flat_map(|step| match step {
        Step::Turn(turn) => turn.messages.as_slice(),
        Step::Close(..) => &[],
    });
    let stored: Vec<(&str, &str)> = stored.map(|message| (message.author.as_str(), message.content.as_str())).collect();
    let expected = [
        ("user", "edited"),
        ("bot", "answer"),
        ("user", "[deleted]"),
        ("bot", "answer"),
        ("agent", "a person"),
        ("user", "hi"),
        ("bot", "answer"),
        ("user", "[deleted]"),
        ("bot", "answer"),
    ];
    assert_eq!(stored, expected);
}
