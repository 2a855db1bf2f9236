//! What is said of dead letters: lists, a closer look, plans and reports, as JSON and people read them.
//!
//! Refuses to read or change any. Invariant: only a [`Detail`] holds what was written, and lists of single letters are cut at
//! [`LISTED`], the counts beside them exact.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::message::{TerminalState, Timestamp};
use crate::store::Turn;
use crate::stream::Letter;

/// Letters and conversations named in plans and reports.
pub(super) const LISTED: usize = 1_000;

/// What a list says of a letter: nothing of what was written.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub id: u64,
    /// When it was given up.
    pub time: Timestamp,
    pub channel: String,
    pub bot: String,
    /// The peer, as in subjects.
    pub conversation: String,
    pub reason: String,
    pub attempts: u32,
    pub message_id: String,
}

/// The newest letters, and how many there are.
#[derive(Debug, Serialize)]
pub struct List {
    pub matching: u64,
    /// Newest last.
    pub dead_letters: Vec<Summary>,
}

/// Letters given up for one reason, of one bot.
#[derive(Debug, Serialize)]
pub struct Group {
    pub reason: String,
    pub bot: String,
    pub dead_letters: u64,
    pub oldest_at: Timestamp,
    pub newest_at: Timestamp,
}

impl Group {
    pub(super) fn of(first: Summary) -> Self {
        Self { reason: first.reason, bot: first.bot, dead_letters: 1, oldest_at: first.time, newest_at: first.time }
    }

    /// In stream order.
    pub(super) fn count(&mut self, next: &Summary) {
        self.dead_letters += 1;
        self.newest_at = next.time;
    }
}

/// A letter with all that is known of it.
#[derive(Debug, Serialize)]
pub struct Detail {
    #[serde(flatten)]
    pub summary: Summary,
    pub error: String,
    pub traceparent: Option<String>,
    pub inbound_sequence: Option<u64>,
    /// Its row in the ledger.
    pub turn: Option<Turn>,
    /// What its steps asked and answered, such as calls of tools.
    pub record: Option<Value>,
    /// The turn that it was redriven as, when that has ended.
    pub redriven: Option<Redriven>,
    /// The message as it came; text where it is no JSON, `None` where it lies on no stream any more.
    pub payload: Option<Value>,
}

/// A redriven message's end.
#[derive(Debug, Serialize)]
pub struct Redriven {
    pub turn_id: Uuid,
    pub state: TerminalState,
}

/// What a selection comes to, before anything is done.
#[derive(Debug, Default, Serialize)]
pub struct Plan {
    pub dead_letters: u64,
    pub conversations: u64,
    /// Ids that name no letter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<u64>,
    /// The first of the conversations, by name.
    pub listed: Vec<Place>,
    /// The place in the stream behind which letters came later, and are not meant.
    #[serde(skip)]
    pub until: u64,
}

/// Where the letters of one conversation come again.
#[derive(Debug, Serialize)]
pub struct Place {
    /// `<channel>.<bot>.<peer>`.
    pub conversation: String,
    pub bot: Option<Arc<str>>,
    pub dead_letters: u64,
    /// Messages in the open conversation now, behind which they come; 0 when they open one.
    pub messages_before: i64,
    pub last_message_at: Option<Timestamp>,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub redriven: u64,
    /// Whose new message was there before: only the letter was removed.
    pub already_redriven: u64,
    pub discarded: u64,
    pub failed: u64,
    /// Not tried, because the stream took no messages.
    pub left: u64,
    pub listed: Vec<Entry>,
}

/// One letter's part in a report.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub id: u64,
    pub conversation: String,
    pub outcome: &'static str,
    /// The new message's turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Summary {
    pub(super) fn of(letter: &Letter) -> Self {
        let key = letter.key();
        let token = |place: usize| letter.message.lane.split('.').nth(place).unwrap_or_default().to_owned();
        Self {
            id: letter.id(),
            time: letter.message.published_at,
            channel: token(0),
            bot: key.map_or_else(|| token(1), |key| key.bot.to_string()),
            conversation: token(2),
            reason: letter.reason.clone(),
            attempts: letter.attempts,
            message_id: letter.message.message_id.clone(),
        }
    }
}

impl Report {
    /// Whether everything that was to be done was done.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.failed == 0 && self.left == 0
    }

    /// Names it, as long as there is room.
    pub(super) fn note(
        &mut self,
        letter: &Letter,
        outcome: &'static str,
        turn_id: Option<Uuid>,
        error: Option<String>,
    ) {
        if self.listed.len() < LISTED {
            let conversation = letter.message.lane.to_string();
            self.listed.push(Entry { id: letter.id(), conversation, outcome, turn_id, error });
        }
    }
}
