//! What Messenger says of a conversation beside its messages: that ours arrived, that somebody else answers, who has the
//! thread (Messenger Platform, "Message Echoes" and "Conversation Routing").
//!
//! Refuses to believe an echo that is not marked as ours: a person at the page's inbox, or another app, wrote it.

use uuid::Uuid;

use super::super::json::Object;
use crate::message::Notice;

/// What the event says; `app_id` is that of the bot's own app, where the configuration names it.
pub(super) fn read(kind: &str, content: &Object<'_>, app_id: Option<&str>) -> Option<Notice> {
    match kind {
        "message" if content.flag("is_echo") => echo(content, app_id),
        "pass_thread_control" => {
            // Without an own id: the event is sent to whom the thread is passed.
            let is_ours = app_id.is_none_or(|own| content.id("new_owner_app_id").is_none_or(|owner| owner == own));
            Some(if is_ours { Notice::Returned } else { Notice::Taken })
        }
        "take_thread_control" => {
            let is_ours = app_id.is_some_and(|own| content.id("new_owner_app_id").is_some_and(|owner| owner == own));
            Some(if is_ours { Notice::Returned } else { Notice::Taken })
        }
        _ => None,
    }
}

fn echo(content: &Object<'_>, app_id: Option<&str>) -> Option<Notice> {
    let platform_message_id = content.text("mid");
    if let Some(delivery_id) = content.text("metadata").and_then(|metadata| Uuid::parse_str(&metadata).ok()) {
        return Some(Notice::Arrived { delivery_id, platform_message_id });
    }
    let is_ours = app_id.is_some() && content.id("app_id").as_deref() == app_id;
    if is_ours || content.flag("is_deleted") {
        return None;
    }
    let attachments = super::attachments(content);
    Some(Notice::Said { text: content.text("text").unwrap_or_default(), attachments, platform_message_id })
}
