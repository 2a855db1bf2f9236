//! Reading parked messages again: those of one lane, by its subject, from the place where they begin.
//!
//! Invariant: a refill tells up to where it has seen the lane; nothing of the lane before that place is left out.

use std::time::Duration;

use backoff::backoff::Backoff as _;

use super::bursts::Label;
use super::feeder::patience;
use super::lanes::Refill;
use crate::stream::{StreamHandle, StreamMessage};
use crate::telemetry::chain;

/// What was read.
pub(super) struct Refilled {
    pub(super) messages: Vec<(StreamMessage, Label)>,
    /// Everything of the lane before this place is among `messages`, or has left the stream with age.
    pub(super) next: u64,
}

const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Reads until it has what was asked for, however long NATS is away.
pub(super) async fn read(handle: &StreamHandle, refill: &Refill, label: impl Fn(&StreamMessage) -> Label) -> Refilled {
    let mut messages = Vec::new();
    let mut next = refill.from;
    let mut pause = patience();
    while messages.len() < refill.count && next <= refill.until {
        match handle.next_of_lane(refill.partition, &refill.key, next).await {
            Ok(Some(message)) if message.sequence <= refill.until => {
                next = message.sequence + 1;
                let label = label(&message);
                messages.push((message, label));
                pause.reset();
            }
            Ok(_) => next = refill.until + 1,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "parked messages cannot be read yet, trying again");
                tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
            }
        }
    }
    Refilled { messages, next }
}
