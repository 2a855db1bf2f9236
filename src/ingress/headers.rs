//! What a caller says in headers: how it wants its answer (`Prefer`), which request this is (`Idempotency-Key`), and what its
//! body is (`Content-Type`, `Content-Encoding`).
//!
//! Refuses to guess: a header that cannot be read is an error that names it. Invariant: nothing here looks at a body.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};

use super::problem::Problem;

/// The longest `Idempotency-Key`, in characters.
pub(super) const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// Quoted or not, as JSON Schema reads it (ECMA-262).
pub(super) const IDEMPOTENCY_KEY: &str = "^([!#-~]([ -~]{0,253}[!-~])?|\"[ -~]{1,255}\")$";

/// The longest and the default wait for an answer; proxies in between tend to close after 60 s.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(55);

/// How the caller wants its answer (RFC 7240). `respond-async, wait=N` together ask to wait for N seconds and then be
/// answered 202 (section 4.3), which is what a wait that runs out comes to anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Preference {
    pub(super) asynchronous: bool,
    pub(super) wait: Option<Duration>,
}

impl Preference {
    /// Of a preference given twice the first counts (section 2); those of other names, and parameters, are passed over.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut preference = Self::default();
        let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
        for token in values.flat_map(|value| value.split(',')) {
            let token = token.split(';').next().unwrap_or_default();
            let (name, value) = token.split_once('=').unwrap_or((token, ""));
            if name.trim().eq_ignore_ascii_case("respond-async") {
                preference.asynchronous = true;
            } else if name.trim().eq_ignore_ascii_case("wait") && preference.wait.is_none() {
                let seconds: u64 = value.trim().trim_matches('"').parse().map_err(|_| {
                    Problem::field(400, "Prefer", "wait must be a whole number of seconds, such as wait=20.")
                })?;
                preference.wait = Some(Duration::from_secs(seconds).min(WAIT_MAX));
            }
        }
        Ok(preference)
    }

    pub(super) fn applied(self) -> Option<HeaderValue> {
        let wait = self.wait.map(|wait| format!("wait={}", wait.as_secs()));
        let asynchronous = self.asynchronous.then(|| "respond-async".to_owned());
        let applied: Vec<String> = asynchronous.into_iter().chain(wait).collect();
        HeaderValue::from_str(&applied.join(", ")).ok().filter(|value| !value.is_empty())
    }
}

/// The key, bare or as a quoted string of structured fields.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::field(400, "Idempotency-Key", "must be given once."));
    }
    let key = value.to_str().map(str::trim).unwrap_or_default();
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX {
        let detail = format!("must have 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters.");
        return Err(Problem::field(400, "Idempotency-Key", detail));
    }
    Ok(Some(key.to_owned()))
}

/// Bodies are JSON, not compressed. A body that says nothing of itself is taken for that.
///
/// # Errors
/// 415 for anything else (RFC 9110, 15.5.16).
pub(super) fn check_content(headers: &HeaderMap, taken: &'static [&'static str]) -> Result<(), Problem> {
    let wrong = |header, right: &str| Err(Problem::field(415, header, format!("must be {right}, or left out.")));
    let media_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    if media_type.is_some_and(|given| !taken.iter().any(|taken| essence(given).eq_ignore_ascii_case(taken))) {
        return wrong("Content-Type", &taken.join(" or "));
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => wrong("Content-Encoding", "identity"),
        _ => Ok(()),
    }
}

/// A media type without its parameters.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}
