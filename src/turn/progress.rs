//! Showing what running turns have made so far to those who watch them, who may be connected to any process.
//!
//! Refuses to send what nobody watches, and to hold up a turn: what is on its way when a turn ends is at most a moment's work.
//! Invariants: of a run everything or nothing new is shown, in order, at most 20 times a second; what ended
//! is forgotten.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::message::{Channel, Envelope};
use crate::responder::{Deltas, Draft};
use crate::scheduler::Task;
use crate::stream::Publisher;

/// Faster than anybody reads, and few enough that thousands of watched turns are no load for NATS.
const PIECES_PER_SECOND: u32 = 20;

/// Who watches says so every 5 s; what was not said again for this long is over.
const WATCHED: Duration = Duration::from_secs(40);

/// Watched turns that are remembered: six times the callers that one ingress lets wait.
const WATCHED_MAX: u64 = 65_536;

/// What the last words of a turn may take; a connection that is being mended takes nothing.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Who watches which turns, and which of them run here.
#[derive(Debug, Clone)]
pub struct Audience {
    publisher: Publisher,
    watched: Cache<Uuid, ()>,
    running: Arc<Mutex<HashMap<Uuid, Arc<Draft>>>>,
    runs: Arc<AtomicU64>,
}

impl Audience {
    #[must_use]
    pub fn new(publisher: Publisher) -> Self {
        Self {
            publisher,
            watched: Cache::builder().max_capacity(WATCHED_MAX).time_to_live(WATCHED).build(),
            running: Arc::default(),
            runs: Arc::default(),
        }
    }

    /// Hears who watches, until it is stopped.
    pub async fn listen(self, stop: CancellationToken) {
        let mut watches = match self.publisher.watches().await {
            Ok(watches) => watches,
            Err(error) => return tracing::warn!(error = %error, "nobody can watch the turns of this process"),
        };
        while let Some(Some((turn_id, whole))) = stop.run_until_cancelled(watches.next()).await {
            let is_new = !self.watched.contains_key(&turn_id);
            self.watched.insert(turn_id, ()).await;
            let draft = self.running().get(&turn_id).cloned();
            if let Some(draft) = draft.filter(|_| whole || is_new) {
                draft.show_all_again();
            }
        }
    }

    /// A run of a turn begins. Only web chats can be watched.
    #[must_use]
    pub fn begin(&self, task: &Task, envelope: &Envelope) -> Run {
        let web = envelope.key.channel == Channel::Web;
        let draft = web.then(Arc::<Draft>::default);
        if let Some(draft) = &draft {
            self.running().insert(envelope.turn_id, Arc::clone(draft));
            // That there is a run is worth saying: what an earlier one has shown is void.
            draft.show_all_again();
        }
        let run = (task.ownership.epoch, self.runs.fetch_add(1, Ordering::Relaxed));
        Run { audience: self.clone(), turn_id: envelope.turn_id, run, draft }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Draft>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One run of a turn, until it is dropped.
#[derive(Debug)]
pub struct Run {
    audience: Audience,
    turn_id: Uuid,
    run: (i64, u64),
    /// Absent where nobody can watch.
    draft: Option<Arc<Draft>>,
}

impl Run {
    /// Where the responder puts what it makes.
    #[must_use]
    pub fn deltas(&self) -> Deltas {
        self.draft.clone().map_or_else(Deltas::default, Deltas::into_draft)
    }

    /// Runs `work`, and shows meanwhile what comes of it.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(draft) = &self.draft else { return work.await };
        let outcome = tokio::select! {
            biased;
            outcome = work => outcome,
            never = self.show(draft) => match never {},
        };
        if draft.has_more() && self.is_watched() {
            // Whoever is in a hurry sees it in the reply.
            let _ = tokio::time::timeout(LAST_WORDS, Box::pin(self.show_new(draft))).await;
        }
        outcome
    }

    async fn show(&self, draft: &Draft) -> Infallible {
        loop {
            draft.changed().await;
            if self.is_watched() {
                Box::pin(self.show_new(draft)).await;
            }
            tokio::time::sleep(Duration::from_secs(1) / PIECES_PER_SECOND).await;
        }
    }

    async fn show_new(&self, draft: &Draft) {
        while let Some(piece) = draft.next_piece(self.run) {
            self.audience.publisher.turn_progress(self.turn_id, &piece).await;
        }
    }

    fn is_watched(&self) -> bool {
        self.audience.watched.contains_key(&self.turn_id)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(draft) = &self.draft else { return };
        let mut running = self.audience.running();
        if running.get(&self.turn_id).is_some_and(|running| Arc::ptr_eq(running, draft)) {
            running.remove(&self.turn_id);
        }
    }
}
