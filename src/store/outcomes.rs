//! What people see of deliveries that did not simply arrive, and what they may decide of those that nobody can tell of.
//!
//! Refuses to touch a database. Invariant: a person decides of `uncertain` deliveries only; what is known is not theirs to
//! change.

use super::DeliveryRow;
use crate::message::{ConversationKey, DeliveryStatus, Timestamp};
use uuid::Uuid;

/// How many of a bot's deliveries are in a state, other than `sent`, and since when the oldest of them is waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryTotal {
    pub bot: String,
    pub status: DeliveryStatus,
    pub count: i64,
    /// When the oldest was committed.
    pub oldest_at: Timestamp,
}

/// Which `failed` and `uncertain` deliveries to list: newest first.
#[derive(Debug, Clone, Default)]
pub struct OutcomeFilter {
    /// Only deliveries of these bots; `None` for all bots.
    pub bots: Option<Vec<String>>,
    /// `None` for both.
    pub status: Option<DeliveryStatus>,
    /// Continue after this place: `created_at` and id of the last row seen.
    pub after: Option<(Timestamp, Uuid)>,
    /// 1 to [`super::PAGE_ROWS_MAX`]; more is cut.
    pub limit: u32,
}

/// A delivery, and to whom it was to go.
#[derive(Debug, Clone, PartialEq)]
pub struct AddressedDelivery {
    pub key: ConversationKey,
    /// `None` for notices that opened no conversation.
    pub conversation_id: Option<Uuid>,
    pub delivery: DeliveryRow,
}

/// What a person says of a delivery that nobody can tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// It arrived.
    Sent,
    /// It shall leave once more.
    Resend,
    /// It did not arrive, and need not.
    Failed,
}

impl Resolution {
    /// The state that follows.
    #[must_use]
    pub const fn status(self) -> DeliveryStatus {
        match self {
            Self::Sent => DeliveryStatus::Sent,
            Self::Resend => DeliveryStatus::Pending,
            Self::Failed => DeliveryStatus::Failed,
        }
    }
}

/// What is left of a message whose sender deleted it.
pub const DELETED: &str = "[deleted]";

/// An edit or a deletion reaches so many of a conversation's newest messages; platforms allow neither for long.
pub(super) const AMENDED_WITHIN: i64 = 1_000;
