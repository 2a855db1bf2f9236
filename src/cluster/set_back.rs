//! A stream that ends before what was done of it: when that is believed, and what a process that starts then does.
//!
//! Refuses to believe a single look. Invariant: a stream that catches up within [`Doubt::PATIENCE`] was never set back.

use std::time::Duration;

use tokio::time::Instant;

use super::ClusterError;
use crate::store::Store;
use crate::stream::StreamHandle;

/// Whether to believe that a stream was set back. Pure: time is an argument.
#[derive(Debug, Default)]
pub struct Doubt {
    since: Option<Instant>,
}

impl Doubt {
    /// In a cluster, a node that has just become the stream's leader may not have caught up with what it has.
    pub const PATIENCE: Duration = Duration::from_secs(2);

    /// Between two looks.
    pub const PAUSE: Duration = Duration::from_millis(200);

    /// The stream was found behind, as at every look since the doubt began: whether that has lasted for long enough.
    pub fn is_over(&mut self, now: Instant) -> bool {
        now.duration_since(*self.since.get_or_insert(now)) >= Self::PATIENCE
    }
}

/// A stream that ends before what was done of it has lost its end: it was restored from a backup, or its server lost power
/// before it had written. New messages get the sequences of those that are gone, so nothing that is known of places holds, and
/// the stream is read again from its beginning. To be asked before this process adds messages: they could hide it.
///
/// # Errors
/// When the database or JetStream does not answer.
pub async fn rewind_if_set_back(handle: &StreamHandle, store: &Store) -> Result<(), ClusterError> {
    let number = store.stream_number(&handle.name, &handle.incarnation).await.map_err(ClusterError::Store)?;
    // In this order: both only grow, and a checkpoint is never ahead of its stream.
    let highest = store.highest_checkpoint(number).await.map_err(ClusterError::Store)?.unwrap_or(0);
    let last_sequence = async || Ok(handle.info().await.map_err(ClusterError::Stream)?.state.last_sequence);
    let mut doubt = Doubt::default();
    let mut last = last_sequence().await?;
    while highest > last && !doubt.is_over(Instant::now()) {
        tokio::time::sleep(Doubt::PAUSE).await;
        last = last_sequence().await?;
    }
    if highest > last {
        tracing::error!(
            stream = handle.name,
            last_sequence = last,
            done_up_to = highest,
            "the stream has lost its end; it is read again from its beginning, past what the ledger knows"
        );
        store.rewind(number).await.map_err(ClusterError::Store)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_proves_nothing() {
        let begun = Instant::now();
        let mut doubt = Doubt::default();
        let looks = [Duration::ZERO, Doubt::PAUSE, Doubt::PATIENCE - Duration::from_millis(1), Doubt::PATIENCE];
        assert_eq!(looks.map(|after| doubt.is_over(begun + after)), [false, false, false, true]);
    }
}
