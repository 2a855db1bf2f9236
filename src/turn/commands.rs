//! Commands that need no responder: a new history, help, and those whose answer is in the configuration.
//!
//! Pure. Refuses a command that the configuration gives to the responder. Invariant: nothing that was said is deleted; from
//! where on it is told to models is one number in the conversation's metadata.

use serde_json::{Map, Value, json};

use super::Decided;
use super::burst::Burst;
use crate::config::{Bot, BotChannel, BotCommand, TelegramBot};
use crate::responder::Reply;
use crate::store::{Conversation, StoredMessage};

/// The member of a conversation's metadata that holds the ordinal of the last message that is past.
const HISTORY_FROM: &str = "history_from";

/// What `/new` is answered with.
const BEGUN: &str = "This is a new conversation. What was said before does not count any more.";

/// The answer to the command that the turn is about; `None` when the responder has it.
pub(super) fn answer(burst: &Burst<'_>, bot: &Bot, conversation: &Conversation) -> Option<Decided> {
    let BotChannel::Telegram(telegram) = &bot.channel else { return None };
    let name = burst.command()?;
    let configured = telegram.commands.iter().find(|command| command.name == name);
    let text = match (configured, name) {
        (Some(BotCommand { reply: Some(reply), .. }), _) => reply.clone(),
        (Some(BotCommand { reply: None, .. }), _) => return None,
        (None, TelegramBot::NEW) => BEGUN.to_owned(),
        (None, TelegramBot::HELP) => help(telegram),
        (None, _) => return None,
    };
    let mut reply = Reply::text(text);
    if name == TelegramBot::NEW {
        let said = i64::try_from(burst.said().count()).unwrap_or(i64::MAX);
        let past = conversation.message_count.saturating_add(said).saturating_add(1);
        let metadata = [(HISTORY_FROM.to_owned(), json!(past)), ("workflow_state".to_owned(), Value::Null)];
        reply.metadata = Some(metadata.into_iter().collect());
    }
    Some(Decided { reply, reason: Some("a command"), silent: false, ..Decided::silent() })
}

/// The messages that are not past.
pub(crate) fn present<'a>(history: &'a [StoredMessage], metadata: &Map<String, Value>) -> &'a [StoredMessage] {
    let past = metadata.get(HISTORY_FROM).and_then(Value::as_i64).unwrap_or(0);
    &history[history.partition_point(|message| message.ordinal <= past)..]
}

/// Every command of the menu, a line each.
fn help(telegram: &TelegramBot) -> String {
    let lines = telegram.menu().into_iter().map(|(name, description)| format!("/{name} – {description}"));
    lines.collect::<Vec<_>>().join("\n")
}
