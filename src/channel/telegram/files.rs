//! Files by reference: `getFile` and the address that it leads to (Bot API, "getFile").
//!
//! Refuses a path that could lead elsewhere. Invariant: an address that holds the token leaves this module as a secret.

use serde_json::json;

use super::method;
use crate::channel::json::Object;
use crate::channel::{Call, error_line};
use crate::config::{Secret, TelegramBot};

/// Why there is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileError {
    /// The bot knows no file of this id.
    Unknown,
    /// Telegram gives no file as large as this to a bot.
    TooLarge,
    /// Anything else, in Telegram's words; trying again can help.
    Away(String),
}

#[must_use]
pub fn get_file(telegram: &TelegramBot, file_id: &str) -> Call {
    method(telegram, "getFile", json!({ "file_id": file_id }))
}

/// Reads the answer to [`get_file`]: where the bytes are.
///
/// # Errors
/// See [`FileError`].
pub fn file(telegram: &TelegramBot, status: u16, body: &[u8]) -> Result<Secret, FileError> {
    let strange = || FileError::Away(format!("HTTP status {status} without a readable body"));
    let answer = Object::read_bytes(body).ok_or_else(strange)?;
    if status != 200 {
        let description = error_line(&answer.text("description").unwrap_or_default());
        return Err(match status {
            400 if description.to_ascii_lowercase().contains("file is too big") => FileError::TooLarge,
            400 | 404 => FileError::Unknown,
            _ => FileError::Away(description),
        });
    }
    let path = answer.object("result").and_then(|file| file.text("file_path")).ok_or_else(strange)?;
    let is_plain = |segment: &str| !segment.is_empty() && segment != "." && segment != "..";
    let is_path = path.split('/').all(is_plain) && !path.contains(['?', '#', '\\', '%']);
    if !is_path {
        return Err(FileError::Away("a path that is none".to_owned()));
    }
    Ok(Secret::new(format!("{}/file/bot{}/{path}", telegram.api_base, telegram.token.expose())))
}
