//! What a running turn has made so far, on its way from the process that runs it to those who watch it: over core NATS, kept
//! nowhere.
//!
//! Refuses to promise anything: each message may be lost, and all of it is void once the turn is committed. Invariant: a
//! message says of which run it is and where in that run's text it belongs, so that a watcher can tell what is missing.

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Connection, Publisher};

/// Asks for the whole of what there is so far; without it a watcher only says that it is still there.
const WHOLE: &[u8] = b"whole";

/// How far a tool call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolState {
    Started,
    Succeeded,
    Failed,
    /// For a person's word.
    Waiting,
}

/// A tool call, as those who watch a turn may see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolNote {
    /// Bytes of text that were there before it.
    pub at: usize,
    pub name: String,
    pub state: ToolState,
}

/// A piece of what one run of a turn has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The epoch of the partition in which it runs, and its number in that owner's process: a later run of a turn has the
    /// greater pair.
    pub run: (i64, u64),
    /// Where `text` begins in the text of the run, in bytes. Where it begins at 0 with the first tool call, the run may be new.
    pub at: usize,
    pub text: String,
    /// Tool calls that are not repeated in `tools`.
    pub tools_before: usize,
    pub tools: Vec<ToolNote>,
}

impl Progress {
    /// `None` for what is none, such as that of a newer version.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}

impl Publisher {
    /// Shows a piece to whoever watches the turn. Nobody has to hear it.
    pub async fn turn_progress(&self, turn_id: Uuid, progress: &Progress) {
        let Ok(payload) = serde_json::to_vec(progress) else { return };
        let subject = self.connection.names.turn_progress(turn_id);
        if let Err(error) = self.connection.client.publish(subject, payload.into()).await {
            tracing::debug!(error = %error, "progress of a turn not sent");
        }
    }

    /// Says to every process that somebody watches the turn, and asks for the `whole` of what there is so far.
    pub async fn watch_turn(&self, turn_id: Uuid, whole: bool) {
        let subject = self.connection.names.turn_watch(turn_id);
        let payload = if whole { Bytes::from_static(WHOLE) } else { Bytes::new() };
        if let Err(error) = self.connection.client.publish(subject, payload).await {
            tracing::debug!(error = %error, "nobody was told that a turn is watched");
        }
    }

    /// Everybody who says that a turn is watched.
    ///
    /// # Errors
    /// When the connection is closed.
    pub(crate) async fn watches(&self) -> Result<Watches, async_nats::Error> {
        let subscriber = self.connection.client.subscribe(self.connection.names.turn_watches()).await?;
        Ok(Watches { subscriber, connection: self.connection.clone() })
    }
}

/// The subscription to every [`super::Names::turn_watch`].
pub(crate) struct Watches {
    subscriber: Subscriber,
    connection: Connection,
}

impl Watches {
    /// The next turn that is watched, and whether the whole of it is asked for; `None` when the connection is closed.
    pub(crate) async fn next(&mut self) -> Option<(Uuid, bool)> {
        loop {
            let message = self.subscriber.next().await?;
            if let Some(turn_id) = self.connection.names.watched_turn(&message.subject) {
                return Some((turn_id, &*message.payload == WHOLE));
            }
        }
    }
}
