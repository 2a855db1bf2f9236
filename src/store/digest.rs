//! Whether two databases hold the same, as far as the streams hold it: one digest for each table.
//!
//! Pure. Refuses to compare what no stream has, so what a rebuilt database cannot have: ids that were made up again, times of
//! commits, status, metadata, tool calls, whether a reply arrived. Invariants: a digest does not depend on the order of rows, nor
//! on the kind of database; white space does not count, because a reply put together of its parts has lost some.

use std::fmt;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// What is compared of each table: statements for both databases, every column as text.
pub(super) const COMPARED: [(&str, &str); 4] = [
    (
        "conversations",
        "SELECT channel, bot, peer, platform, device_id FROM conversations c \
         WHERE EXISTS (SELECT 1 FROM turns t WHERE t.conversation_id = c.id)",
    ),
    (
        // A conversation is known again by the first of its turns.
        "turns",
        "SELECT CAST(id AS TEXT), dedupe_id, CAST(sequence AS TEXT), channel, bot, peer, state, CAST(merged_into AS TEXT), \
         min(CAST(id AS TEXT)) OVER (PARTITION BY conversation_id) FROM turns",
    ),
    (
        "messages",
        "SELECT CAST(turn_id AS TEXT), CAST(row_number() OVER (PARTITION BY turn_id ORDER BY ordinal) AS TEXT), role, author, \
         content FROM messages WHERE turn_id IS NOT NULL AND role IN ('user', 'assistant') AND tool IS NULL",
    ),
    (
        "deliveries",
        "SELECT CAST(id AS TEXT), CAST(turn_id AS TEXT), CAST(message_id AS TEXT), CAST(part AS TEXT), CAST(parts AS TEXT), \
         content FROM deliveries",
    ),
];

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDigest {
    pub table: &'static str,
    pub rows: u64,
    /// In hex.
    pub digest: String,
}

/// The digest of a table that is being read: the sum of its rows' SHA-256, in which two equal rows do not cancel out.
#[derive(Debug)]
pub(super) struct TableSum {
    table: &'static str,
    rows: u64,
    sum: [u64; 4],
}

impl TableSum {
    pub(super) const fn of(table: &'static str) -> Self {
        Self { table, rows: 0, sum: [0; 4] }
    }

    pub(super) fn add(&mut self, columns: impl Iterator<Item = Option<String>>) {
        let mut row = Sha256::new();
        for column in columns {
            match column {
                Some(text) => {
                    let text: String = text.split_whitespace().collect();
                    row.update(text.len().to_be_bytes());
                    row.update(text.as_bytes());
                }
                // No text has this length.
                None => row.update(usize::MAX.to_be_bytes()),
            }
        }
        for (sum, word) in self.sum.iter_mut().zip(row.finalize().chunks_exact(8)) {
            let word = word.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            *sum = sum.wrapping_add(word);
        }
        self.rows += 1;
    }

    pub(super) fn end(self) -> TableDigest {
        let digest = self.sum.iter().map(|word| format!("{word:016x}")).collect();
        TableDigest { table: self.table, rows: self.rows, digest }
    }
}

impl fmt::Display for TableDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:<13} {:>10} rows  {}", self.table, self.rows, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(rows: &[&[Option<&str>]]) -> TableDigest {
        let mut sum = TableSum::of("table");
        rows.iter().for_each(|row| sum.add(row.iter().map(|column| column.map(str::to_owned))));
        sum.end()
    }

    #[test]
    fn order_and_white_space_do_not_count_and_everything_else_does() {
        let (one, two) = (&[Some("a b"), None][..], &[Some("c"), Some("")][..]);
        assert_eq!(digest(&[one, two]), digest(&[two, &[Some("ab\n"), None]]));
        for other in
            [&[one][..], &[one, one], &[one, two, two], &[one, &[Some("c"), None]], &[one, &[Some(""), Some("c")]]]
        {
            assert_ne!(digest(&[one, two]), digest(other), "{other:?}");
        }
    }
}
