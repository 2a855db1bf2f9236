//! The states of a delivery and what moves it from one to the next (G10).
//!
//! Pure. Invariant: only a confirmation leaves a settled state, and nothing leaves `sent`.

use uuid::Uuid;

use super::{SendResult, SendStart, Settled};
use crate::message::{DeliveryStatus, Timestamp};

/// What beginning a send finds in a delivery of this status after `attempts` earlier ones, the last of them begun at
/// `tried_at`. `Begun` is yet to be written.
pub(super) fn begin(
    delivery_id: Uuid,
    status: DeliveryStatus,
    attempts: u32,
    tried_at: Option<Timestamp>,
    now: Timestamp,
) -> SendStart {
    match status {
        // The same beginning, asked for again because its answer got lost: no call was made.
        DeliveryStatus::Sending if tried_at == Some(now) => SendStart::Begun { attempt: attempts },
        DeliveryStatus::Pending => SendStart::Begun { attempt: attempts.saturating_add(1) },
        DeliveryStatus::Sending => SendStart::Interrupted,
        DeliveryStatus::Sent | DeliveryStatus::Failed | DeliveryStatus::Uncertain => {
            SendStart::Settled(Settled { message_id: delivery_id.to_string(), status })
        }
    }
}

/// The status that a result leads to; `None` when it changes nothing.
pub(super) fn next(status: DeliveryStatus, result: &SendResult) -> Option<DeliveryStatus> {
    use DeliveryStatus::{Failed, Pending, Sending, Sent, Uncertain};
    match (result, status) {
        (SendResult::Sent { .. }, Pending | Sending | Failed | Uncertain) => Some(Sent),
        (SendResult::NotSent { .. }, Sending) => Some(Pending),
        (SendResult::Failed { .. }, Pending | Sending) => Some(Failed),
        (SendResult::Uncertain { .. }, Pending | Sending) => Some(Uncertain),
        _ => None,
    }
}

/// The receipt for a delivery of this status; `None` while it is still to be sent.
pub(super) fn receipt(delivery_id: Uuid, status: DeliveryStatus) -> Option<Settled> {
    match status {
        DeliveryStatus::Pending | DeliveryStatus::Sending => None,
        DeliveryStatus::Sent | DeliveryStatus::Failed | DeliveryStatus::Uncertain => {
            Some(Settled { message_id: delivery_id.to_string(), status })
        }
    }
}

/// The receipt for a message that is not of this database: nothing is to be sent, and nothing can be recorded.
pub(super) fn disowned(message_id: String) -> Settled {
    Settled { message_id, status: DeliveryStatus::Failed }
}

/// What a result has to say beside its status: the error, and the platform's id of the message.
pub(super) fn details(result: &SendResult) -> (Option<&str>, Option<&str>) {
    match result {
        SendResult::Sent { platform_message_id } => (None, platform_message_id.as_deref()),
        SendResult::NotSent { error } | SendResult::Failed { error } | SendResult::Uncertain { error } => {
            (Some(error), None)
        }
    }
}
