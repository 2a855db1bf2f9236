//! Tokens, keys and passwords: written in the file, or named there by environment variable or file.
//!
//! Refuses to show a secret anywhere: a problem names the variable or the path, never the text. Invariant: a [`Secret`] shows
//! as `[redacted]` in every output; only [`Secret::expose`] gives the text.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use url::Url;

use super::expected::Expected;
use super::reader::{Table, Value};

/// A token, key or password. `Debug` never shows it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// What is expected of a secret's text. What `check` says is fixed, so that it cannot repeat the text.
pub(super) struct SecretKind {
    pub(super) right: &'static str,
    pub(super) check: fn(&str) -> Result<(), &'static str>,
    /// Whether the text itself may stand in the configuration.
    pub(super) inline: bool,
}

/// A password or key that another party gave out, so of any form that fits a header and a line.
pub(super) const ANY: SecretKind = SecretKind {
    right: "write a string, { env = \"NAME\" } or { file = \"PATH\" }",
    check: |text| match text.chars().any(char::is_control) {
        true => Err("holds a line break or control character"),
        false => Ok(()),
    },
    inline: true,
};

/// "Token shape: digits, colon, opaque part": <https://core.telegram.org/bots/api#authorizing-your-bot>. The opaque part is
/// part of a URL path.
pub(super) const TELEGRAM_TOKEN: SecretKind = SecretKind {
    right: "write the token that BotFather gave, plain, as { env = \"NAME\" } or as { file = \"PATH\" }",
    check: |text| match text.split_once(':') {
        Some((id, rest)) if is_number(id) && !rest.is_empty() && rest.bytes().all(is_word_byte) => Ok(()),
        _ => Err("is not a Telegram token"),
    },
    inline: true,
};

/// `secret_token` of <https://core.telegram.org/bots/api#setwebhook>.
pub(super) const WEBHOOK_SECRET: SecretKind = SecretKind {
    right: "write 1 to 256 characters of A-Z a-z 0-9 _ -, plain, as { env = \"NAME\" } or as { file = \"PATH\" }",
    check: |text| match text.len() {
        0..=256 if text.bytes().all(is_word_byte) => Ok(()),
        0..=256 => Err("has a character that Telegram refuses"),
        _ => Err("is longer than Telegram takes"),
    },
    inline: true,
};

/// A `.creds` file as `nsc` writes it. The text spans lines, so a plain string is a path written in the wrong place.
pub(super) const NATS_CREDENTIALS: SecretKind = SecretKind {
    right: "write { file = \"PATH\" } of a .creds file",
    check: |text| match text.contains("-----BEGIN NATS USER JWT-----") {
        true => Ok(()),
        false => Err("is not a NATS credentials file"),
    },
    inline: false,
};

/// A database's address may hold its password.
pub(super) const DATABASE_URL: SecretKind = SecretKind {
    right: "write an address such as \"sqlite://turnwise.db\" or \"postgres://user@host/database\"",
    check: check_database_url,
    inline: true,
};

fn check_database_url(text: &str) -> Result<(), &'static str> {
    if let Some(path) = text.strip_prefix("sqlite:") {
        return match path.strip_prefix("//").unwrap_or(path) {
            "" => Err("names no file"),
            ":memory:" => Err("would keep nothing: a database in memory is not durable"),
            path if path.contains(['?', '%', '#']) => {
                Err("has parameters or escapes, which an SQLite address does not take here")
            }
            _ => Ok(()),
        };
    }
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => Ok(()),
        Ok(_) => Err("is not a sqlite:// or postgres:// address"),
        Err(_) => Err("is not a URL"),
    }
}

impl Table<'_> {
    /// Reads a secret that may be absent. `None` also after a problem.
    pub(super) fn optional_secret(&self, key: &'static str, kind: &SecretKind) -> Option<Secret> {
        self.value(key)?.secret(kind)
    }

    /// Reads a secret that must be there. `None` only after a problem.
    pub(super) fn required_secret(&self, key: &'static str, kind: &SecretKind) -> Option<Secret> {
        match self.value(key) {
            Some(value) => value.secret(kind),
            None => {
                self.missing(key, kind.right);
                None
            }
        }
    }
}

impl Value<'_> {
    /// Reads a secret wherever it is kept. `None` after a problem.
    pub(super) fn secret(&self, kind: &SecretKind) -> Option<Secret> {
        let (text, origin) = if let Some(text) = self.as_str().filter(|_| kind.inline) {
            (text.to_owned(), String::new())
        } else if self.is_table() {
            self.kept_elsewhere()?
        } else {
            self.problem(self.is_a(), kind.right);
            return None;
        };
        let checked = if text.is_empty() { Err("is empty") } else { (kind.check)(&text) };
        match checked {
            Ok(()) => Some(Secret::new(text)),
            Err(wrong) => {
                self.problem(format!("{origin}{wrong}"), kind.right);
                None
            }
        }
    }

    /// The text behind `{ env = "NAME" }` or `{ file = "PATH" }`, and the words that name the place in a problem.
    fn kept_elsewhere(&self) -> Option<(String, String)> {
        let table = self.table()?;
        let (env, file) = (table.value("env"), table.value("file"));
        table.finish(&[]);
        match (env, file) {
            (Some(env), None) => {
                let name = env.read(&variable_name())?;
                let Some(text) = (self.reading.env)(&name) else {
                    self.problem(format!("environment variable {name} is not set"), "set it for this process");
                    return None;
                };
                Some((text, format!("environment variable {name} ")))
            }
            (None, Some(file)) => {
                let path = self.reading.resolve(&file.read(&path())?);
                let text = self.read_file(&path, SECRET_BYTES_MAX)?;
                Some((text.trim_end_matches(['\r', '\n']).to_owned(), format!("file {path:?} ")))
            }
            (Some(_), Some(_)) => {
                self.problem("has both env and file", "keep one of them");
                None
            }
            (None, None) => {
                self.problem("has neither env nor file", ANY.right);
                None
            }
        }
    }

    /// The text of a file that the configuration names. `None` after a problem.
    pub(super) fn read_file(&self, path: &Path, bytes_max: u64) -> Option<String> {
        match read_text(path, bytes_max) {
            Ok(text) => Some(text),
            Err(error) => {
                self.problem(
                    format!("cannot read file {path:?}: {error}"),
                    format!("name a readable text file of at most {bytes_max} bytes"),
                );
                None
            }
        }
    }
}

/// The largest secret: a `.creds` file is about 2 KiB, a long-lived token rarely 4 KiB; the rest is room.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Reads a whole text file, refusing one that is larger than `bytes_max`.
///
/// # Errors
///
/// Those of opening and reading; `FileTooLarge`; `InvalidData` when the file is not UTF-8.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(text)
}

/// A path as it is written; relative ones count from the configuration file's folder.
pub(super) fn path() -> Expected<String> {
    Expected::text("write the path of a file", |text| match text {
        "" => Err("is empty".to_owned()),
        text if text.contains('\0') => Err("has the character '\\0'".to_owned()),
        text => Ok(text.to_owned()),
    })
}

/// The text is not repeated when it is no name: it may be the secret itself, written in the wrong place.
fn variable_name() -> Expected<String> {
    Expected::text("write a name of letters, digits and _", |text| match is_variable(text) {
        true => Ok(text.to_owned()),
        false => Err("is not the name of an environment variable".to_owned()),
    })
}

/// Whether the text can name an environment variable.
pub(super) fn is_variable(text: &str) -> bool {
    let starts_well = !text.is_empty() && !text.starts_with(|first: char| first.is_ascii_digit());
    starts_well && text.len() <= VARIABLE_BYTES_MAX && text.bytes().all(is_variable_byte)
}

/// The longest name of an environment variable: names are short, and a problem repeats them.
const VARIABLE_BYTES_MAX: usize = 128;

const fn is_variable_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

const fn is_word_byte(byte: u8) -> bool {
    is_variable_byte(byte) || byte == b'-'
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= BOT_ID_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A bot's id has at most 52 significant bits, which is 16 digits: <https://core.telegram.org/bots/api#user>.
const BOT_ID_DIGITS_MAX: usize = 16;
