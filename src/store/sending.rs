//! The states of a delivery and what moves it from one to the next (G10).
//!
//! Pure: rows as they were locked come in, what is to be written of them comes out. Invariants: only a confirmation leaves a settled state
//! (and what a person says of an `uncertain` one, see [`super::Resolution`]), and nothing leaves `sent`; nothing is `failed` of
//! which one attempt may have arrived; a state is judged and changed under its row's lock.

use std::borrow::Cow;

use uuid::Uuid;

use super::commit::{Locked, is_owned};
use super::merge::storable;
use super::values::{DeliveryBegun, DeliveryEnded};
use super::{ChatState, Ownership, SendResult, SendStart, Settled};
use crate::message::{DeliveryStatus, Timestamp};

/// A send that somebody wants to begin.
pub(super) struct Beginning {
    pub(super) delivery_id: Uuid,
    pub(super) ownership: Ownership,
    pub(super) now: Timestamp,
}

/// What the platform said to a send.
pub(super) struct Ending {
    pub(super) delivery_id: Uuid,
    pub(super) result: SendResult,
    pub(super) now: Timestamp,
}

/// A delivery as its row is when it is locked.
pub(super) struct Found {
    pub(super) status: DeliveryStatus,
    pub(super) attempts: u32,
    /// When the last attempt began.
    pub(super) tried_at: Option<Timestamp>,
    /// How many of them may have arrived without anybody knowing.
    pub(super) unclear_attempts: u32,
    pub(super) chat: ChatState,
}

/// Judges beginnings of different deliveries; in their order. Those that are begun are yet to be written.
pub(super) fn begin_all(locked: &Locked, beginnings: &[&Beginning]) -> (Vec<SendStart>, Vec<DeliveryBegun>) {
    let start = |beginning: &&Beginning| match locked.deliveries.get(&beginning.delivery_id) {
        _ if !is_owned(&locked.epochs, &beginning.ownership) => SendStart::Fenced,
        Some(found) => begin(beginning.delivery_id, found, beginning.now),
        None => SendStart::Unknown(disowned(beginning.delivery_id.to_string())),
    };
    let starts = beginnings.iter().map(start).collect::<Vec<_>>();
    let begun = beginnings.iter().zip(&starts).filter_map(|(beginning, start)| match start {
        SendStart::Begun { attempt, .. } => {
            Some(DeliveryBegun { id: beginning.delivery_id, attempts: i64::from(*attempt), tried_at: beginning.now })
        }
        _ => None,
    });
    let begun = begun.collect();
    (starts, begun)
}

/// Judges what became of sends of different deliveries; in their order. What changes is yet to be written.
pub(super) fn end_all<'a>(locked: &Locked, endings: &[&'a Ending]) -> (Vec<Option<Settled>>, Vec<DeliveryEnded<'a>>) {
    let (mut ended, mut settled) = (Vec::new(), Vec::with_capacity(endings.len()));
    for Ending { delivery_id, result, now } in endings {
        let Some(found) = locked.deliveries.get(delivery_id) else {
            settled.push(None);
            continue;
        };
        let next = next(found, result);
        let receipt = receipt(*delivery_id, next.unwrap_or(found.status));
        if let Some(status) = next {
            let (mut error, platform_message_id) = details(result);
            if status == DeliveryStatus::Uncertain && found.unclear_attempts > 0 {
                let last = error.unwrap_or_default();
                error = Some(format!("an earlier attempt may have arrived; the last one: {last}").into());
            }
            let settled_at = receipt.as_ref().map(|_| *now);
            let is_unclear = matches!(result, SendResult::Unclear { .. } | SendResult::Uncertain { .. });
            let unclear_attempts = i64::from(is_unclear);
            let id = *delivery_id;
            ended.push(DeliveryEnded { id, status, error, platform_message_id, settled_at, unclear_attempts });
        }
        settled.push(receipt);
    }
    (settled, ended)
}

/// What beginning a send finds. `Begun` is yet to be written.
fn begin(delivery_id: Uuid, found: &Found, now: Timestamp) -> SendStart {
    let Found { status, attempts, tried_at, ref chat, .. } = *found;
    match status {
        // The same beginning, asked for again because its answer got lost: no call was made.
        DeliveryStatus::Sending if tried_at == Some(now) => SendStart::Begun { attempt: attempts, chat: chat.clone() },
        DeliveryStatus::Pending => SendStart::Begun { attempt: attempts.saturating_add(1), chat: chat.clone() },
        DeliveryStatus::Sending => SendStart::Interrupted,
        DeliveryStatus::Sent | DeliveryStatus::Failed | DeliveryStatus::Uncertain => {
            SendStart::Settled(Settled { message_id: delivery_id.to_string(), status })
        }
    }
}

/// The status that a result leads to; `None` when it changes nothing. The refusal of a later attempt says nothing of an earlier
/// one that may have arrived.
fn next(found: &Found, result: &SendResult) -> Option<DeliveryStatus> {
    use DeliveryStatus::{Failed, Pending, Sending, Sent, Uncertain};
    match (result, found.status) {
        (SendResult::Sent { .. }, Pending | Sending | Failed | Uncertain) => Some(Sent),
        (SendResult::NotSent { .. } | SendResult::Unclear { .. }, Sending) => Some(Pending),
        (SendResult::Failed { .. }, Pending | Sending) if found.unclear_attempts > 0 => Some(Uncertain),
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
fn details(result: &SendResult) -> (Option<Cow<'_, str>>, Option<Cow<'_, str>>) {
    match result {
        SendResult::Sent { platform_message_id } => (None, platform_message_id.as_deref().map(storable)),
        SendResult::NotSent { error }
        | SendResult::Unclear { error }
        | SendResult::Failed { error }
        | SendResult::Uncertain { error } => (Some(storable(error)), None),
    }
}
