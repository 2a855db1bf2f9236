//! The way in for `fuzz/`, compiled for it and for tests only.

use super::answer::{Fault, Reader};
use crate::responder::Reply;

/// Reads an answer whole and in two pieces; the first two bytes say whether it is a stream, and where it is cut.
///
/// # Panics
/// When the two differ.
pub fn read(input: &[u8]) {
    let [choice, cut, answer @ ..] = input else { return };
    let content_type = if choice % 2 == 0 { "text/event-stream" } else { "application/json" };
    let (head, tail) = answer.split_at(usize::from(*cut).min(answer.len()));
    assert_eq!(outcome(content_type, &[answer]), outcome(content_type, &[head, tail]));
}

/// The reply and the text that was shown meanwhile; or why there is none.
fn outcome(content_type: &str, chunks: &[&[u8]]) -> (Result<Reply, Fault>, String) {
    let shown = std::cell::RefCell::new(String::new());
    let show = |text: &str| shown.borrow_mut().push_str(text);
    let read = || {
        let mut reader = Reader::new(Some(content_type));
        for chunk in chunks {
            if let Some(reply) = reader.push(chunk, &show)? {
                return Ok(reply);
            }
        }
        reader.end()
    };
    (read(), shown.take())
}

#[cfg(test)]
mod tests {
    /// Where a fuzzer's runs begin, and what they have found.
    #[test]
    fn what_is_kept_for_the_fuzzer_is_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/service_answer");
        let files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
        assert!(!files.is_empty(), "nothing in {folder}");
        for bytes in files.iter().flat_map(|file| std::fs::read(file.path())) {
            super::read(&bytes);
        }
    }
}
