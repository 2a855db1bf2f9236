//! The text of a reply while it is being made.
//!
//! Refuses to wait for anybody, and to be the reply: what was shown is provisional, and only the turn's outcome counts.
//! Invariant: a draft only grows, up to a bound, so that a place in it keeps its meaning.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::stream::{Progress, ToolNote, ToolState};

/// The longest text shown of a run, in bytes: the longest answer read from a model server. What is longer is seen when the
/// turn has ended.
const DRAFT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Tool calls shown of a run, each in at most two states: more than any limit on rounds lets through.
const TOOL_NOTES_MAX: usize = 512;

/// The longest tool name shown, in characters: what model servers take.
const TOOL_NAME_CHARS_MAX: usize = 64;

/// The longest text in one message, in bytes: far below what NATS takes (1 MiB), even with every character escaped.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Takes the text of a reply while it is being made, for those who watch.
#[derive(Debug, Clone, Default)]
pub struct Deltas(Option<Listener>);

#[derive(Debug, Clone)]
enum Listener {
    Channel(mpsc::UnboundedSender<String>),
    Draft(Arc<Draft>),
}

impl Deltas {
    /// Hands each piece of text to a listener, in order.
    #[must_use]
    pub const fn to(listener: mpsc::UnboundedSender<String>) -> Self {
        Self(Some(Listener::Channel(listener)))
    }

    pub(crate) const fn into_draft(draft: Arc<Draft>) -> Self {
        Self(Some(Listener::Draft(draft)))
    }

    /// The next piece of text. Whether anybody reads it makes no difference.
    pub fn send(&self, text: &str) {
        match &self.0 {
            None => {}
            Some(_) if text.is_empty() => {}
            // A listener who has left does not hear it.
            Some(Listener::Channel(listener)) => drop(listener.send(text.to_owned())),
            Some(Listener::Draft(draft)) => draft.push(text),
        }
    }

    /// A tool call began or ended. Those who watch see its name and state, never its arguments.
    pub fn tool(&self, name: &str, state: ToolState) {
        if let Some(Listener::Draft(draft)) = &self.0 {
            draft.note(name, state);
        }
    }
}

/// What one run of a turn has made so far, and how much of it has been shown.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    content: Mutex<Content>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Content {
    text: String,
    /// The text ran into its bound: nothing follows, or there would be a gap in it.
    full: bool,
    tools: Vec<ToolNote>,
    /// Bytes and tool calls shown; `None` until it was said that there is a run.
    shown: Option<(usize, usize)>,
}

impl Draft {
    /// Returns when there is something new to show, or [`Draft::show_all_again`] was called.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Somebody has seen nothing yet.
    pub(crate) fn show_all_again(&self) {
        self.content().shown = None;
        self.changed.notify_one();
    }

    /// Whether there is anything to see that was not shown.
    pub(crate) fn has_more(&self) -> bool {
        let content = self.content();
        content.shown.unwrap_or_default() != (content.text.len(), content.tools.len())
    }

    /// The next piece that was not shown, which is shown then; the first one may be empty.
    pub(crate) fn next_piece(&self, run: (i64, u64)) -> Option<Progress> {
        let mut content = self.content();
        let (at, tools_before) = content.shown.unwrap_or_default();
        if content.shown.is_some_and(|shown| shown == (content.text.len(), content.tools.len())) {
            return None;
        }
        let end = content.text.floor_char_boundary(at + PIECE_BYTES_MAX);
        let text = content.text[at..end].to_owned();
        let tools: Vec<_> = content.tools[tools_before..].iter().take_while(|note| note.at <= end).cloned().collect();
        content.shown = Some((end, tools_before + tools.len()));
        Some(Progress { run, at, text, tools_before, tools })
    }

    /// The beginning of the paragraph that is being written: what was said since the last tool call, at most `bytes_max` of it.
    pub(crate) fn said_last(&self, bytes_max: usize) -> String {
        let content = self.content();
        let from = content.tools.last().map_or(0, |note| note.at);
        let end = content.text.floor_char_boundary(from.saturating_add(bytes_max));
        content.text[from..end].to_owned()
    }

    fn push(&self, text: &str) {
        let mut content = self.content();
        if content.full {
            return;
        }
        let room = DRAFT_BYTES_MAX - content.text.len();
        content.full = text.len() > room;
        content.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.changed.notify_one();
    }

    fn note(&self, name: &str, state: ToolState) {
        let mut content = self.content();
        if content.tools.len() < TOOL_NOTES_MAX {
            let (at, name) = (content.text.len(), name.chars().take(TOOL_NAME_CHARS_MAX).collect());
            content.tools.push(ToolNote { at, name, state });
            self.changed.notify_one();
        }
    }

    /// Nothing panics while it is held.
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: (i64, u64) = (1, 1);

    #[test]
    fn a_draft_is_shown_once_in_pieces_and_again_when_asked() {
        let draft = Arc::new(Draft::default());
        let deltas = Deltas::into_draft(Arc::clone(&draft));
        let begun = draft.next_piece(RUN).map(|piece| (piece.at, piece.text, piece.tools_before));
        assert_eq!(begun, Some((0, String::new(), 0)), "that there is a run is said first");
        assert_eq!(draft.next_piece(RUN), None);

        deltas.send("Grüße");
        deltas.tool("orders", ToolState::Started);
        deltas.send(&"ü".repeat(PIECE_BYTES_MAX));
        deltas.tool("orders", ToolState::Succeeded);
        assert!(draft.has_more());
        let pieces: Vec<_> = std::iter::from_fn(|| draft.next_piece(RUN)).collect();
        assert_eq!(pieces.len(), 3, "two bytes a character");
        assert!(pieces.windows(2).all(|pair| pair[0].at + pair[0].text.len() == pair[1].at), "no gap, no overlap");
        let notes: Vec<_> = pieces.iter().map(|piece| (piece.tools_before, piece.tools.len())).collect();
        assert_eq!(notes, [(0, 1), (1, 0), (1, 1)], "each call comes with the text before it");
        assert!(!draft.has_more());

        draft.show_all_again();
        let again: String = std::iter::from_fn(|| draft.next_piece(RUN)).map(|piece| piece.text).collect();
        assert_eq!(again, pieces.into_iter().map(|piece| piece.text).collect::<String>());
    }

    #[test]
    fn a_draft_has_a_bound() {
        let draft = Arc::new(Draft::default());
        let deltas = Deltas::into_draft(Arc::clone(&draft));
        for _ in 0..3 {
            deltas.send(&"€".repeat(DRAFT_BYTES_MAX / 6));
        }
        for _ in 0..=TOOL_NOTES_MAX {
            deltas.tool("orders", ToolState::Started);
        }
        let content = draft.content();
        assert!(content.text.len() <= DRAFT_BYTES_MAX && content.text.len() > DRAFT_BYTES_MAX - 3);
        assert_eq!(content.tools.len(), TOOL_NOTES_MAX);
    }
}
