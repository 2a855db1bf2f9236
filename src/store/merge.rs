//! What becomes of texts and documents on their way into the database: merge patches, snippets, unstorable characters.
//!
//! Pure: no I/O, no clock. Invariant: the result holds no NUL, which PostgreSQL cannot store in text or JSON
//! (<https://www.postgresql.org/docs/current/datatype-character.html>).

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::values::ConversationChange;
use super::{Conversation, ConversationPatch, NewConversation, NewMessage, SNIPPET_CHARS, TurnCommit};
use crate::message::{Channel, ConversationKey, ConversationStatus, Peer, Platform, Role, Timestamp};

/// What new messages make of a conversation, whoever wrote them.
pub(super) struct Activity {
    pub(super) message_count: i64,
    pub(super) snippet: Option<String>,
    pub(super) last_message_at: Option<Timestamp>,
    pub(super) updated_at: Timestamp,
}

/// Counts the messages and takes the last of them as the newest, unless the conversation has seen a later one.
pub(super) fn activity(current: &Conversation, messages: &[NewMessage], now: Timestamp) -> Activity {
    let added = i64::try_from(messages.len()).unwrap_or(i64::MAX);
    Activity {
        message_count: current.message_count.saturating_add(added),
        snippet: snippet(messages).or_else(|| current.snippet.clone()),
        last_message_at: messages.last().map(|message| message.created_at).max(current.last_message_at),
        updated_at: now.max(current.updated_at),
    }
}

/// What a turn makes of a conversation (G6); `None` when it has nothing to say about it.
pub(super) fn change(current: &Conversation, turn: &TurnCommit) -> Option<ConversationChange> {
    let metadata = turn_metadata(current, turn).filter(|metadata| *metadata != current.metadata);
    if turn.messages.is_empty() && metadata.is_none() && !turn.handoff {
        return None;
    }
    let activity = activity(current, &turn.messages, turn.committed_at);
    Some(ConversationChange {
        id: current.id,
        message_count: activity.message_count,
        snippet: activity.snippet,
        last_message_at: activity.last_message_at,
        updated_at: activity.updated_at,
        metadata: metadata.map(Value::Object),
        handoff: turn.handoff,
    })
}

/// What a turn makes of the metadata as it is now: its merge patches in their order, then the workflow's position.
fn turn_metadata(current: &Conversation, turn: &TurnCommit) -> Option<Map<String, Value>> {
    if turn.metadata_patches.is_empty() && turn.workflow_state.is_none() {
        return None;
    }
    let mut metadata = current.metadata.clone();
    for patch in &turn.metadata_patches {
        merge_patch(&mut metadata, patch);
    }
    if let Some(state) = &turn.workflow_state {
        metadata.insert("workflow_state".to_owned(), state.clone());
    }
    Some(storable_object(&metadata))
}

/// What people and programs make of a conversation.
pub(super) fn patched(mut current: Conversation, patch: &ConversationPatch, now: Timestamp) -> Conversation {
    if let Some(status) = patch.status {
        current.status = status;
    }
    if let Some(assignee) = &patch.assignee {
        current.assignee = assignee.as_deref().map(|assignee| storable(assignee).into_owned());
    }
    if let Some(metadata) = &patch.metadata {
        merge_patch(&mut current.metadata, metadata);
        current.metadata = storable_object(&current.metadata);
    }
    current.updated_at = now.max(current.updated_at);
    current
}

/// A new conversation as it is stored.
pub(super) fn opened(new: &NewConversation) -> Conversation {
    Conversation {
        id: new.id,
        key: new.key.clone(),
        platform: new.platform,
        device_id: new.device_id.clone(),
        status: ConversationStatus::Bot,
        assignee: None,
        snippet: None,
        last_message_at: None,
        message_count: 0,
        metadata: storable_object(&new.metadata),
        created_at: new.created_at,
        updated_at: new.created_at,
    }
}

/// The first conversation of a web or API device. Its peer is its own id, because a device may have several in its time.
pub(super) fn device_conversation(
    bot: &str,
    device_id: &str,
    platform: Platform,
    now: Timestamp,
    id: Uuid,
) -> NewConversation {
    NewConversation {
        id,
        key: ConversationKey { channel: Channel::Web, bot: bot.into(), peer: Peer::Conversation(id) },
        platform,
        device_id: Some(device_id.to_owned()),
        metadata: Map::new(),
        created_at: now,
    }
}

/// The moment `duration` before another.
pub(super) fn earlier(moment: Timestamp, duration: Duration) -> Timestamp {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(moment.as_micros().saturating_sub(micros).max(0))
}

/// Applies an RFC 7386 merge patch: null removes, objects merge, everything else replaces.
pub(crate) fn merge_patch(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, change) in patch {
        match change {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(inner) => {
                let slot = target.entry(name).or_insert(Value::Null);
                let mut object = match slot.take() {
                    Value::Object(object) => object,
                    _ => Map::new(),
                };
                merge_patch(&mut object, inner);
                *slot = Value::Object(object);
            }
            other => {
                target.insert(name.clone(), other.clone());
            }
        }
    }
}

/// Makes of a merge patch one that does what both do, one after the other, to a document that was `before`: removals stay
/// removals, and what the first replaces as a whole keeps nothing of the document's when the second makes an object of it.
pub(crate) fn join_patches(patch: &mut Map<String, Value>, then: &Map<String, Value>, before: &Map<String, Value>) {
    for (name, change) in then {
        let nothing = Map::new();
        let known = before.get(name).and_then(Value::as_object).unwrap_or(&nothing);
        match (patch.get_mut(name), change) {
            (Some(Value::Object(first)), Value::Object(second)) => join_patches(first, second, known),
            (Some(first), Value::Object(second)) => *first = Value::Object(in_place_of(known, second)),
            _ => drop(patch.insert(name.clone(), change.clone())),
        }
    }
}

/// The patch that leaves nothing of the one object and makes the other of it.
fn in_place_of(known: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let gone = known.keys().map(|name| (name.clone(), Value::Null));
    let values = new.iter().map(|(name, value)| match (known.get(name), value) {
        (Some(Value::Object(known)), Value::Object(value)) => (name.clone(), Value::Object(in_place_of(known, value))),
        _ => (name.clone(), value.clone()),
    });
    gone.chain(values).collect()
}

/// The beginning of the last thing said by either side, on one line; `None` when nothing was said.
pub(super) fn snippet(messages: &[NewMessage]) -> Option<String> {
    let said = |message: &&NewMessage| matches!(message.role, Role::User | Role::Assistant);
    let last = messages.iter().rev().filter(said).find(|message| !message.content.trim().is_empty())?;
    Some(excerpt(&last.content))
}

/// The beginning of a text, on one line.
pub(super) fn excerpt(text: &str) -> String {
    let line = text.trim().chars().take(SNIPPET_CHARS);
    line.map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The text without NUL, each replaced by U+FFFD.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(text) }
}

/// The document without NUL in any name or text.
pub(super) fn storable_json(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(storable(text).into_owned()),
        Value::Array(items) => Value::Array(items.iter().map(storable_json).collect()),
        Value::Object(object) => Value::Object(storable_object(object)),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// See [`storable_json`].
pub(super) fn storable_object(object: &Map<String, Value>) -> Map<String, Value> {
    object.iter().map(|(name, value)| (storable(name).into_owned(), storable_json(value))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::message::Author;

    /// The cases of RFC 7386, appendix A, that start from an object and patch with one.
    #[test]
    fn merge_patches_follow_the_rfc() {
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (target, patch, expected) in cases {
            let (Value::Object(mut target), Value::Object(patch)) = (target, patch) else { unreachable!() };
            merge_patch(&mut target, &patch);
            assert_eq!(Value::Object(target), expected, "{patch:?}");
        }
    }

    #[test]
    fn joined_patches_do_what_each_does_after_the_other() {
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        let documents = [json!({}), json!({ "a": 1 }), json!({ "a": { "b": 1, "c": { "d": 2 }, "e": 3 } })];
        let patches = [
            json!({ "a": { "b": 5 } }),
            json!({ "a": { "c": { "d": null, "f": 6 } } }),
            json!({ "a": null, "g": 7 }),
            json!({ "a": "text" }),
            json!({ "a": { "c": null } }),
            json!({ "a": { "c": { "h": 8 }, "b": null } }),
        ];
        for document in &documents {
            for (first, second) in patches.iter().flat_map(|first| patches.iter().map(move |second| (first, second))) {
                let (document, first, second) =
                    (object(document.clone()), object(first.clone()), object(second.clone()));
                let mut one_by_one = document.clone();
                merge_patch(&mut one_by_one, &first);
                merge_patch(&mut one_by_one, &second);
                let mut joined = first.clone();
                join_patches(&mut joined, &second, &document);
                let mut at_once = document.clone();
                merge_patch(&mut at_once, &joined);
                assert_eq!(at_once, one_by_one, "{document:?}, {first:?}, then {second:?}");
            }
        }
    }

    #[test]
    fn a_snippet_is_one_line_of_whole_characters() {
        let message = |role, content: &str| NewMessage {
            id: Uuid::nil(),
            role,
            author: Author::Bot,
            content: content.to_owned(),
            attachments: Vec::new(),
            tool: None,
            platform_message_id: None,
            created_at: Timestamp::from_micros(0),
        };
        let check = |messages: &[NewMessage], expected: Option<&str>| {
            assert_eq!(snippet(messages).as_deref(), expected);
        };
        check(&[], None);
        check(&[message(Role::Tool, "hidden")], None);
        check(&[message(Role::User, "one\ntwo"), message(Role::Tool, "hidden")], Some("one two"));
        check(&[message(Role::User, "question"), message(Role::Assistant, "")], Some("question"));
        check(&[message(Role::Assistant, &"é".repeat(500))], Some(&"é".repeat(SNIPPET_CHARS)));
    }

    #[test]
    fn no_document_keeps_a_nul() {
        assert_eq!(
            storable_json(&json!({"a\0": ["b\0", 1, {"c": "\0"}]})),
            json!({"a\u{FFFD}": ["b\u{FFFD}", 1, {"c": "\u{FFFD}"}]})
        );
    }
}
