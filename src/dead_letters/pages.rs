//! The letters that are meant, page by page.
//!
//! Refuses to hold bodies: a page of large messages would fill the memory. Invariant: letters come in stream order, none behind
//! the place where the selection ends.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{AT_ONCE, Selection};
use crate::stream::{LETTERS_PAGE, Letter, StreamError, StreamHandle};

/// The letters of a selection, page by page, in stream order.
pub(super) struct Pages<'a> {
    pub(super) dead: &'a StreamHandle,
    pub(super) selection: &'a Selection,
    pub(super) after: u64,
    pub(super) until: u64,
}

impl Pages<'_> {
    /// At most [`LETTERS_PAGE`] letters; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Letter>>, StreamError> {
        while self.after < self.until {
            let (last, letters) = match self.selection {
                Selection::Ids(ids) => self.named(ids).await?,
                Selection::Matching(filter) => {
                    let page = self.dead.letters(filter, self.after).await?;
                    (page.last.unwrap_or(self.until), page.letters)
                }
            };
            self.after = last;
            let letters: Vec<Letter> = letters.into_iter().filter(|letter| letter.id() <= self.until).collect();
            if !letters.is_empty() {
                return Ok(Some(letters));
            }
        }
        Ok(None)
    }

    async fn named(&self, ids: &BTreeSet<u64>) -> Result<(u64, Vec<Letter>), StreamError> {
        let next: Vec<u64> = ids.range(self.after + 1..).take(LETTERS_PAGE).copied().collect();
        let last = next.last().copied().unwrap_or(self.until);
        let read = stream::iter(next).map(|id| self.dead.letter(id)).buffered(AT_ONCE);
        let mut letters: Vec<Letter> = read.try_collect::<Vec<_>>().await?.into_iter().flatten().collect();
        for letter in &mut letters {
            letter.message.payload = Bytes::new();
        }
        Ok((last, letters))
    }
}
