//! Whether a message in a group is meant for the bot.
//!
//! Refuses to ask Telegram who the bot is: its id is in the token, its name in the configuration. Invariant: entity offsets
//! are UTF-16 units (Bot API, "MessageEntity"), and one that points outside the text is clamped.

use crate::channel::json::Object;
use crate::config::TelegramBot;

/// The bot as other people's messages name it.
pub(super) struct Me<'a> {
    id: Option<i64>,
    /// Without the @.
    username: Option<&'a str>,
}

impl<'a> Me<'a> {
    pub(super) fn new(bot: &'a TelegramBot) -> Self {
        let id = bot.token.expose().split_once(':').and_then(|(id, _)| id.parse().ok());
        Self { id, username: bot.username.as_deref() }
    }

    fn is_id(&self, user: Option<&Object<'_>>) -> bool {
        self.id.is_some() && user.and_then(|user| user.integer("id")) == self.id
    }

    fn is_name(&self, name: &str) -> bool {
        self.username.is_some_and(|username| username.eq_ignore_ascii_case(name))
    }
}

/// Whether `message`, whose text or caption is `text`, addresses the bot; `entities` names the member with its entities.
///
/// # Errors
/// The reason why not: the message is for nobody, or a command for another bot.
pub(super) fn addressed(message: &Object<'_>, text: &str, entities: &str, me: &Me<'_>) -> Result<(), &'static str> {
    let entities: Vec<Object<'_>> =
        message.list(entities).unwrap_or_default().into_iter().filter_map(Object::read).collect();
    // A forwarded message keeps its entities, but whoever forwards "/stop" does not command us to stop.
    let forwarded = message.has("forward_origin") || message.has("forward_date");
    if let Some(command) = command(text, &entities).filter(|_| !forwarded) {
        return match command.split_once('@') {
            Some((_, name)) if me.is_name(name) => Ok(()),
            Some(_) => Err("for another bot"),
            None => Ok(()),
        };
    }
    let reply_to = message.object("reply_to_message").and_then(|replied| replied.object("from"));
    if entities.iter().any(|entity| mentions(text, entity, me)) || me.is_id(reply_to.as_ref()) {
        return Ok(());
    }
    Err("not addressed")
}

/// The name of the command that `message` begins with, if it is one to this bot. Telegram marks commands; where nothing in a
/// text is marked at all, as programs that imitate it do, what looks like one is one.
pub(super) fn command_to(message: &Object<'_>, text: &str, entities: &str, me: &Me<'_>) -> Option<String> {
    if message.has("forward_origin") || message.has("forward_date") {
        return None;
    }
    let marked: Option<Vec<Object<'_>>> =
        message.list(entities).map(|entities| entities.into_iter().filter_map(Object::read).collect());
    let word = match &marked {
        Some(entities) => command(text, entities)?,
        None => text.split_whitespace().next().filter(|_| text.starts_with('/'))?,
    };
    let word = word.strip_prefix('/')?;
    let name = match word.split_once('@') {
        Some((name, bot)) if me.is_name(bot) => name,
        Some(_) => return None,
        None => word,
    };
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then(|| name.to_ascii_lowercase())
}

/// The command a message begins with, such as `/ask` or `/ask@DemoBot`.
fn command<'a>(text: &'a str, entities: &[Object<'_>]) -> Option<&'a str> {
    let is_command = |entity: &&Object<'_>| {
        entity.text("type").as_deref() == Some("bot_command") && entity.integer("offset") == Some(0)
    };
    entities.iter().find(is_command).map(|entity| covered(text, entity))
}

fn mentions(text: &str, entity: &Object<'_>, me: &Me<'_>) -> bool {
    match entity.text("type").as_deref() {
        Some("mention") => covered(text, entity).strip_prefix('@').is_some_and(|name| me.is_name(name)),
        Some("text_mention") => me.is_id(entity.object("user").as_ref()),
        _ => false,
    }
}

/// The text an entity covers.
fn covered<'a>(text: &'a str, entity: &Object<'_>) -> &'a str {
    let units = |name| entity.integer(name).and_then(|units| usize::try_from(units).ok()).unwrap_or(0);
    let start = byte_at(text, units("offset"));
    let end = byte_at(text, units("offset").saturating_add(units("length")));
    &text[start..end]
}

/// The byte offset of the first character at or behind `units` UTF-16 units.
fn byte_at(text: &str, units: usize) -> usize {
    let mut before = 0;
    for (at, c) in text.char_indices() {
        if before >= units {
            return at;
        }
        before += c.len_utf16();
    }
    text.len()
}
