//! What a Telegram message holds for a reader: text, attachments, sender (Bot API 10.3, "Message").
//!
//! Refuses to fetch anything: an attachment is a reference. Invariant: the walk through rich text is bounded in depth.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::channel::json::Object;
use crate::message::{Attachment, Sender};

/// Members that hold a medium. A message has one; where an older member repeats it for older programs (`document` beside
/// `animation`, `location` beside `venue`, `photo` beside `live_photo`), the more telling one stands first.
const MEDIA: [&str; 16] = [
    "animation",
    "live_photo",
    "photo",
    "voice",
    "audio",
    "video",
    "video_note",
    "document",
    "sticker",
    "venue",
    "location",
    "contact",
    "poll",
    "dice",
    "checklist",
    "story",
];

/// How deep rich text is followed: its documented nesting is 16, and a level takes up to three JSON levels.
const RICH_DEPTH_MAX: usize = 64;

/// Text, caption or rich text, whichever the message has, and the name of the member with its entities.
pub(super) fn text(message: &Object<'_>) -> (String, &'static str) {
    if let Some(text) = message.text("text") {
        return (text, "entities");
    }
    if let Some(caption) = message.text("caption") {
        return (caption, "caption_entities");
    }
    let mut rich = String::new();
    if let Some(tree) = message.tree("rich_message") {
        gather(&tree, "", RICH_DEPTH_MAX, &mut rich);
    }
    (rich.trim().replace('\0', ""), "entities")
}

/// The message's medium, if it has one.
pub(super) fn attachments(message: &Object<'_>) -> Vec<Attachment> {
    let found = MEDIA.into_iter().find_map(|kind| Some((kind, medium(message, kind)?)));
    found.map(|(kind, medium)| attachment(kind, &medium)).into_iter().collect()
}

/// Who wrote it: the person, or the chat for which a stand-in account spoke.
pub(super) fn sender(message: &Object<'_>) -> Option<Sender> {
    let chat = message.object("sender_chat");
    let is_chat = chat.is_some();
    let from = chat.or_else(|| message.object("from"))?;
    let title = from.text("title").or_else(|| full_name(&from));
    Some(Sender {
        id: from.id("id")?,
        name: title,
        username: from.text("username"),
        language: from.text("language_code"),
        is_chat,
    })
}

/// Appends the strings that rich text holds under its known member names, which survives block types yet to come:
/// blocks, list items and table rows on lines of their own, cells apart by a tab.
fn gather(value: &Value, separator: &str, depth_left: usize, text: &mut String) {
    let Some(depth_left) = depth_left.checked_sub(1) else { return };
    match value {
        Value::String(piece) => text.push_str(piece),
        Value::Array(values) => {
            let row = separator == "\n" && values.iter().all(Value::is_array);
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    text.push_str(separator);
                }
                gather(value, if row { "\t" } else { "" }, depth_left, text);
            }
        }
        Value::Object(members) => {
            for (name, separator) in [("text", ""), ("blocks", "\n"), ("items", "\n"), ("cells", "\n"), ("caption", "")]
            {
                let Some(member) = members.get(name) else { continue };
                if name != "text" && !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                gather(member, separator, depth_left, text);
            }
        }
        _ => {}
    }
}

/// The medium's object; of several sizes of a photo the last, which is the largest.
fn medium<'a>(message: &Object<'a>, kind: &str) -> Option<Object<'a>> {
    let sizes = message.list(kind);
    let raw: &'a RawValue = match sizes {
        Some(sizes) => sizes.last().copied()?,
        None => message.raw(kind)?,
    };
    Object::read(raw)
}

/// What has no file is named by a URI where one exists (RFC 5870 for places, RFC 3966 for telephone numbers).
fn attachment(kind: &str, medium: &Object<'_>) -> Attachment {
    let place = medium.object("location");
    let name = ["file_name", "title", "question", "emoji"].into_iter().find_map(|name| medium.text(name));
    Attachment {
        kind: kind.to_owned(),
        file_id: medium.text("file_id"),
        url: geo(place.as_ref().unwrap_or(medium)).or_else(|| medium.text("phone_number").map(|n| format!("tel:{n}"))),
        mime_type: medium.text("mime_type"),
        name: name.or_else(|| full_name(medium)),
    }
}

fn geo(place: &Object<'_>) -> Option<String> {
    Some(format!("geo:{},{}", place.decimal("latitude")?, place.decimal("longitude")?))
}

fn full_name(person: &Object<'_>) -> Option<String> {
    match (person.text("first_name"), person.text("last_name")) {
        (Some(first), Some(last)) => Some(format!("{first} {last}")),
        (first, last) => first.or(last),
    }
}
