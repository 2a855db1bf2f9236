//! Texts with references in them, as scripts and workflows use them: `$1`, `${name}`, `$text`, `${metadata.key}`.
//!
//! Refuses, when read, a reference that could never be filled, so that a typing error is found at start-up and not in a chat.
//! Invariant: filling a template cannot fail; what a reference gives is put in as it is and not read again.

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// A text read once and filled many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// A capture group of the rule's pattern; empty when it took no part in the match.
    Group(usize),
    Text,
    Attempt,
    Count,
    Metadata {
        key: String,
        default: String,
    },
}

/// What references stand for in one turn.
#[derive(Debug)]
pub struct Values<'a> {
    /// The text of the new messages.
    pub text: &'a str,
    /// Of the pattern that the template was read with.
    pub captures: Option<&'a Captures<'a>>,
    pub metadata: &'a Map<String, Value>,
    pub attempt: u32,
    /// The user's messages so far, these included.
    pub count: usize,
}

/// The metadata behind `path`: the key of that name, else the way through objects that the dots in it stand for. A null is as
/// good as absent.
#[must_use]
pub fn lookup<'m>(metadata: &'m Map<String, Value>, path: &str) -> Option<&'m Value> {
    let nested = || {
        let (first, rest) = path.split_once('.')?;
        rest.split('.').try_fold(metadata.get(first)?, |value, key| value.get(key))
    };
    metadata.get(path).or_else(nested).filter(|value| !value.is_null())
}

/// A reference that can never be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}; {right}")]
pub struct TemplateError {
    pub wrong: String,
    pub right: &'static str,
}

const DOLLAR: &str = "write $$ for a dollar sign";

/// As much of a wrong reference as an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 64;

impl Template {
    /// Reads `source`, whose numbered and named references are to groups of `pattern`.
    ///
    /// # Errors
    /// At the first reference that can never be filled.
    pub fn parse(source: &str, pattern: Option<&Regex>) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = source;
        while let Some((before, after)) = rest.split_once('$') {
            pieces.push(Piece::Literal(before.to_owned()));
            if let Some(tail) = after.strip_prefix('$') {
                pieces.push(Piece::Literal("$".to_owned()));
                rest = tail;
            } else if let Some(braced) = after.strip_prefix('{') {
                let unclosed = || TemplateError { wrong: "\"${\" without a \"}\"".to_owned(), right: DOLLAR };
                let (reference, tail) = braced.split_once('}').ok_or_else(unclosed)?;
                pieces.push(Piece::parse(reference, pattern)?);
                rest = tail;
            } else {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                let (reference, tail) = after.split_at(end);
                let lone = reference.is_empty();
                pieces.push(if lone { Piece::Literal("$".to_owned()) } else { Piece::parse(reference, pattern)? });
                rest = tail;
            }
        }
        pieces.push(Piece::Literal(rest.to_owned()));
        Ok(Self { pieces })
    }

    #[must_use]
    pub fn fill(&self, values: &Values<'_>) -> String {
        let mut filled = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => filled.push_str(text),
                Piece::Group(index) => {
                    let group = values.captures.and_then(|captures| captures.get(*index));
                    filled.push_str(group.map_or("", |group| group.as_str()));
                }
                Piece::Text => filled.push_str(values.text),
                Piece::Attempt => filled.push_str(&values.attempt.to_string()),
                Piece::Count => filled.push_str(&values.count.to_string()),
                Piece::Metadata { key, default } => match lookup(values.metadata, key) {
                    None => filled.push_str(default),
                    Some(Value::String(text)) => filled.push_str(text),
                    Some(other) => filled.push_str(&other.to_string()),
                },
            }
        }
        filled
    }
}

impl Piece {
    /// The pattern's own groups come first, so that a group may be called `text`.
    fn parse(reference: &str, pattern: Option<&Regex>) -> Result<Self, TemplateError> {
        if let Some(index) = pattern.and_then(|pattern| group_index(reference, pattern)) {
            return Ok(Self::Group(index));
        }
        if let Some(metadata) = reference.strip_prefix("metadata.") {
            let (key, default) = metadata.split_once('|').unwrap_or((metadata, ""));
            return Ok(Self::Metadata { key: key.to_owned(), default: default.to_owned() });
        }
        match reference {
            "text" => Ok(Self::Text),
            "attempt" => Ok(Self::Attempt),
            "count" => Ok(Self::Count),
            unknown => {
                let shown: String = unknown.chars().take(SHOWN_CHARS_MAX).collect();
                let (is_no, right) = match pattern {
                    Some(_) => ("group of the pattern", GROUP),
                    None => ("reference", REFERENCE),
                };
                Err(TemplateError { wrong: format!("\"${shown}\" is no {is_no}"), right })
            }
        }
    }
}

const GROUP: &str = "name a group, or write $text, $attempt, $count, ${metadata.KEY}, or $$ for a dollar sign";
const REFERENCE: &str = "write $text, $attempt, $count, ${metadata.KEY}, or $$ for a dollar sign";

fn group_index(reference: &str, pattern: &Regex) -> Option<usize> {
    match reference.parse::<usize>() {
        Ok(number) => (number < pattern.captures_len()).then_some(number),
        Err(_) => pattern.capture_names().position(|name| name == Some(reference)),
    }
}
