//! What can be wrong with a configuration, told so that a person can mend it: file, line, key, what is wrong, what would be
//! right.
//!
//! Refuses to show what was written where a secret belongs. Invariant: a [`Problem`] is one line of text.

use std::fmt;
use std::io;
use std::path::PathBuf;

use strsim::damerau_levenshtein;

/// One thing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// The full dotted key, such as `bots.support.token`; `syntax` when the file is not TOML.
    pub key: String,
    pub wrong: String,
    pub right: String,
}

/// Every problem of one file, in the order of its lines; never empty. `Display` is one line each:
/// `FILE:LINE key: what is wrong; what would be right`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    pub file: PathBuf,
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            let Problem { line, key, wrong, right } = problem;
            write!(formatter, "{}:{line} {key}: {wrong}; {right}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// The longest word written by the user that a problem repeats: longer is no slip of the finger, and comparing it with the
/// known words would cost time and memory that grow with it.
const SHOWN_CHARS_MAX: usize = 64;

/// A word of the user's in quotes, escaped, cut after [`SHOWN_CHARS_MAX`].
pub(super) fn quoted(word: &str) -> String {
    let mut chars = word.chars();
    let start: String = chars.by_ref().take(SHOWN_CHARS_MAX).collect();
    let more = if chars.next().is_some() { "..." } else { "" };
    format!("{start:?}{more}")
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
pub(super) fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The known word that was probably meant, if one is near: a slip in a third of its letters, or a part of it.
pub(super) fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    if word.chars().count() > SHOWN_CHARS_MAX {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (damerau_levenshtein(word, candidate), candidate))
        .filter(|&(distance, candidate)| {
            let letters = word.len().max(candidate.len());
            let part = word.len().min(candidate.len()) > 2 && (candidate.contains(word) || word.contains(candidate));
            distance <= letters.div_ceil(3) || part
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}
