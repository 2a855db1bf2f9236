//! What a tool's server says when it does not give a result, and how its words reach the model.
//!
//! Refuses to call a status "not executed" unless a standard says so. Invariant: quoted words are bounded and hold none of the
//! secrets that the call carried.

use std::time::Duration;

use super::{Effects, ToolError};
use crate::config::Secret;

/// Enough for an explanation; the model pays for each word.
const QUOTE_CHARS_MAX: usize = 500;

/// Shorter words are no secrets, such as a team's name in a header, and would be found all over a text.
const SECRET_BYTES_MIN: usize = 6;

/// What a status other than success says about a call. `after` is the answer's `Retry-After`.
///
/// RFC 9110 (429 and 503 by RFC 6585 and 15.6.4, with `Retry-After` wherever it comes) and RFC 8470 (425) name the answers of
/// a server that has not begun; any other 5xx, and 408, may come from a proxy in front of one that has.
pub(super) fn refused(status: u16, after: Option<Duration>, effects: Effects, quote: &str) -> ToolError {
    let message = format!("the tool's server answered HTTP {status}");
    match status {
        425 | 429 | 503 => ToolError::Retryable { message, after },
        408 | 500..=599 => {
            let safe = matches!(effects, Effects::ReadOnly | Effects::Idempotent);
            match safe || after.is_some() {
                true => ToolError::Retryable { message, after },
                false => ToolError::Unknown { message },
            }
        }
        300..=399 => ToolError::failed(format!("{message}, a redirect, which is not followed")),
        _ if quote.is_empty() => ToolError::failed(message),
        _ => ToolError::failed(format!("{message}: {quote}")),
    }
}

/// Makes a server's words fit to be shown to the model.
#[derive(Debug, Clone, Default)]
pub(super) struct Quotes {
    secrets: Vec<Secret>,
}

impl Quotes {
    /// `secrets` are what calls carry; a server that repeats what it was asked must not bring them into the conversation.
    pub(super) fn without<'s>(secrets: impl IntoIterator<Item = &'s Secret>) -> Self {
        let bare = |secret: &'s Secret| secret.expose().strip_prefix("Bearer ").unwrap_or(secret.expose());
        let long = |text: &&str| text.len() >= SECRET_BYTES_MIN;
        let secrets = secrets.into_iter().map(bare).filter(long);
        Self { secrets: secrets.map(|text| Secret::new(text.to_owned())).collect() }
    }

    pub(super) fn quote(&self, text: &str) -> String {
        // Cut with room for secrets that the cut would split in half.
        let start: String = text.chars().take(8 * QUOTE_CHARS_MAX).collect();
        let redact = |text: String, secret: &Secret| text.replace(secret.expose(), "[redacted]");
        let redacted = self.secrets.iter().fold(start, redact);
        let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
        let quote: String = redacted.trim().chars().map(clean).take(QUOTE_CHARS_MAX).collect();
        if redacted.trim().chars().nth(QUOTE_CHARS_MAX).is_some() { format!("{quote}...") } else { quote }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_bounded_and_without_secrets() {
        let secrets = ["Bearer hunter2", "k\"1234", "shop"].map(|text| Secret::new(text.to_owned()));
        let quotes = Quotes::without(&secrets);
        let check = |text: &str, expected: &str| assert_eq!(quotes.quote(text), expected);
        check(" no such order\n", "no such order");
        check("bad token hunter2,\thunter2", "bad token [redacted], [redacted]");
        check("key k\"1234 of the shop", "key [redacted] of the shop");
        check(&"x".repeat(9_000), &format!("{}...", "x".repeat(500)));
        check(&format!("{}hunter2", "x".repeat(496)), &format!("{}[red...", "x".repeat(496)));
    }
}
