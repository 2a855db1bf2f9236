//! What updates tell of their chats: that one has moved, whether it can be written to, what people feel about messages.
//!
//! Refuses to make a turn of any of it. Invariant: a notice is about the chat or the message that the update names, and an
//! update that does not name it is none.

use crate::channel::json::Object;
use crate::message::{DraftId, Notice, Peer};

/// What an update of this kind tells of its chat, `peer`.
pub(super) fn notice(kind: &str, content: &Object<'_>, peer: Option<&Peer>) -> Option<Notice> {
    match kind {
        "message" => moved(content, peer?),
        "my_chat_member" => membership(content),
        "message_reaction" => reaction(content),
        "deleted_business_messages" => deleted(content),
        "stopped_message_generation" => Some(Notice::Stop { draft: content.integer("draft_id").map(DraftId::named) }),
        _ => None,
    }
}

/// The service messages of both sides of a move (Bot API, "Message").
fn moved(message: &Object<'_>, here: &Peer) -> Option<Notice> {
    let other = |name| message.integer(name).map(|id| Peer::Group(id.to_string()));
    let (from, to) = match (other("migrate_to_chat_id"), other("migrate_from_chat_id")) {
        (Some(to), _) => (here.clone(), to),
        (None, Some(from)) => (from, here.clone()),
        (None, None) => return None,
    };
    (from != to).then_some(Notice::Moved { from, to })
}

/// What the bot is in the chat now (Bot API, "ChatMemberUpdated"): a person who blocks it makes it `kicked`.
fn membership(update: &Object<'_>) -> Option<Notice> {
    let status = update.object("new_chat_member")?.text("status")?;
    match status.as_str() {
        "kicked" | "left" => Some(Notice::Unreachable { reason: format!("the bot is {status} there") }),
        "member" | "administrator" | "creator" | "restricted" => Some(Notice::Reachable),
        _ => None,
    }
}

/// Messages to a business account that were taken back.
fn deleted(update: &Object<'_>) -> Option<Notice> {
    let ids = update.list("message_ids")?;
    let platform_message_ids: Vec<String> =
        ids.into_iter().filter_map(|id| id.get().parse::<i64>().ok()).map(|id| id.to_string()).collect();
    (!platform_message_ids.is_empty()).then_some(Notice::Deleted { platform_message_ids })
}

/// Somebody's reactions as they are now; of an anonymous one the chat that it stands for is the sender.
fn reaction(update: &Object<'_>) -> Option<Notice> {
    let sender = update.object("user").or_else(|| update.object("actor_chat"))?.id("id")?;
    let reactions = update.list("new_reaction").unwrap_or_default().into_iter().filter_map(Object::read);
    let name = |reaction: Object<'_>| {
        let named = ["emoji", "custom_emoji_id"].into_iter().find_map(|name| reaction.text(name));
        named.or_else(|| reaction.text("type"))
    };
    Some(Notice::Reaction {
        platform_message_id: update.integer("message_id")?.to_string(),
        sender,
        reactions: reactions.filter_map(name).collect(),
    })
}
