//! The tables `[bots.NAME.commands]`: what a Telegram bot's menu offers beside what every bot can do.
//!
//! Refuses names and descriptions that Telegram would not take (Bot API, "BotCommand"). Invariant: a bot has at most as many
//! commands as Telegram registers, those of every bot included.

use std::ops::RangeInclusive;

use super::expected::{is_name, text};
use super::reader::{Table, Value};

/// One entry of a bot's menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BotCommand {
    /// Without the slash.
    pub name: String,
    pub description: String,
    /// What answers it; `None`: the responder does.
    pub reply: Option<String>,
}

/// Bot API, "BotCommand": 1 to 32 characters.
const NAME_CHARS_MAX: usize = 32;

/// Bot API, "BotCommand": 1 to 256 characters.
const DESCRIPTION_CHARS_MAX: usize = 256;

/// Bot API, "setMyCommands": 100, of which every bot has two already.
const COMMANDS: RangeInclusive<usize> = 0..=98;

/// One message.
const REPLY_CHARS_MAX: usize = 4_096;

pub(super) fn read(table: &Table<'_>) -> Vec<BotCommand> {
    let Some(value) = table.value("commands") else { return Vec::new() };
    let Some(commands) = value.table() else { return Vec::new() };
    let named = commands.named();
    if !COMMANDS.contains(&named.len()) {
        value.problem(format!("has {} commands", named.len()), format!("write at most {}", COMMANDS.end()));
    }
    named.into_iter().filter_map(|(name, value)| command(name, &value)).collect()
}

/// `None` after a problem.
fn command(name: &str, value: &Value<'_>) -> Option<BotCommand> {
    let belongs = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '_');
    if let Err(wrong) = is_name(name, belongs, NAME_CHARS_MAX) {
        let right = format!("use 1 to {NAME_CHARS_MAX} characters of a-z 0-9 _, without the slash");
        value.problem(format!("the name {wrong}"), right);
        return None;
    }
    let (description, reply) = if value.is_table() {
        let table = value.table()?;
        let description = table.required("description", &text(DESCRIPTION_CHARS_MAX));
        let reply = table.optional("reply", &text(REPLY_CHARS_MAX));
        table.finish(&[]);
        (description?, reply)
    } else {
        (value.read(&text(DESCRIPTION_CHARS_MAX))?, None)
    };
    Some(BotCommand { name: name.to_owned(), description, reply })
}
