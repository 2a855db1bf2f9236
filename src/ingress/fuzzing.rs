//! The way in for `fuzz/`, compiled for it and for tests only.

use axum::http::{HeaderMap, HeaderValue};

use super::chat::request::{ChatRequest, DEVICE_ID_CHARS_MAX, MESSAGE_CHARS_MAX, fingerprint};
use super::{agents, body, conversations, events, headers};

/// Reads a body as each of those that the API takes, and as each of the headers beside them.
///
/// # Panics
/// When a request that was taken is not within its documented bounds.
pub fn read(input: &[u8]) {
    if let Ok(body) = body::object(input) {
        let _ = conversations::Change::read(&body);
        let _ = agents::Posted::read(&body);
        let expected = fingerprint(body.clone());
        if let Ok(request) = ChatRequest::read(body) {
            assert_eq!(request.fingerprint, expected);
            assert!((1..=DEVICE_ID_CHARS_MAX).contains(&request.body.device_id.chars().count()));
            assert!((1..=MESSAGE_CHARS_MAX).contains(&request.body.words().chars().count()));
        }
    }
    let Ok(value) = HeaderValue::from_bytes(input) else { return };
    let of = |name: &'static str| HeaderMap::from_iter([(axum::http::HeaderName::from_static(name), value.clone())]);
    if let Ok(preference) = headers::Preference::read(&of("prefer")) {
        assert!(preference.wait.is_none_or(|wait| wait <= headers::WAIT_MAX));
        let _ = preference.applied();
    }
    if let Ok(Some(key)) = headers::idempotency_key(&of("idempotency-key")) {
        assert!((1..=headers::IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()));
    }
    let _ = headers::check_content(&of("content-type"), body::JSON);
    let _ = events::asked_for(&of("accept"));
    let _ = events::last_seen(&of("last-event-id"));
}

#[cfg(test)]
mod tests {
    /// Where a fuzzer's runs begin, and what they have found.
    #[test]
    fn what_is_kept_for_the_fuzzer_is_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/chat");
        let files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
        assert!(!files.is_empty(), "nothing in {folder}");
        for bytes in files.iter().flat_map(|file| std::fs::read(file.path())) {
            super::read(&bytes);
        }
    }
}
