//! The way in for `fuzz/`, compiled for it and for tests only.

use super::answer::{Answer, Reader};
use super::failure::Quoting;
use crate::config::ModelApi;

/// Reads an answer whole and in two pieces; the first two bytes say of which protocol it is, and where it is cut.
///
/// # Panics
/// When the two differ.
pub fn read(input: &[u8]) {
    let [choice, cut, answer @ ..] = input else { return };
    let api = if choice % 2 == 0 { ModelApi::OpenAi } else { ModelApi::Anthropic };
    let (head, tail) = answer.split_at(usize::from(*cut).min(answer.len()));
    assert_eq!(outcome(api, &[answer]), outcome(api, &[head, tail]));
}

/// The answer and the text that was shown meanwhile; or why there is none.
fn outcome(api: ModelApi, chunks: &[&[u8]]) -> (Result<Answer, String>, String) {
    let shown = std::cell::RefCell::new(String::new());
    let show = |text: &str| shown.borrow_mut().push_str(text);
    let read = || {
        let mut reader = Reader::new(api, Quoting { key: None });
        for chunk in chunks {
            if reader.push(chunk, &show)?.over {
                break;
            }
        }
        reader.end(&show)
    };
    let mut answer = read().map_err(|failure| failure.message);
    // Calls without an id are given one of their own.
    for call in answer.iter_mut().flat_map(|answer| &mut answer.tool_calls) {
        call.id.clear();
    }
    (answer, shown.take())
}

#[cfg(test)]
mod tests {
    /// Where a fuzzer's runs begin, and what they have found.
    #[test]
    fn what_is_kept_for_the_fuzzer_is_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/model_stream");
        let files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
        assert!(!files.is_empty(), "nothing in {folder}");
        for bytes in files.iter().flat_map(|file| std::fs::read(file.path())) {
            super::read(&bytes);
        }
    }
}
