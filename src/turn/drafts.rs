//! An answer shown in its chat while it is being made, where the platform has drafts for that (see docs/decisions/0021).
//!
//! Refuses to be a delivery, and to matter: nothing of a draft is recorded or counts as sent, and no turn fails or waits for a
//! permit because of one. Invariants: no draft is shown before the replies of earlier turns have left, none begins once the
//! turn has ended, and the one on its way then has its answer, or a second to get it, before the reply can leave.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::channel::{self, Answer, Call, PartText, Piece};
use crate::config::Bot;
use crate::message::{Channel, ConversationKey, DraftId};
use crate::platform::Platforms;
use crate::platform::governor::Ended;
use crate::responder::Draft;
use crate::store::Store;
use crate::telemetry::{chain, metric};

/// Between two looks at a chat's draft: as often as a person can follow it.
const CADENCE: Duration = Duration::from_secs(1);

/// A draft is seen for 30 s (Bot API, "sendMessageDraft"); one that says nothing new is shown again before that.
const REFRESH_AFTER: Duration = Duration::from_secs(20);

/// A call that takes longer comes too late to be of use.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a call on its way may take once the turn has ended. A draft that comes after its reply is seen for 30 s at most.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Calls at once, of all bots; the next ones are left out.
const CALLS_MAX: usize = 64;

/// The beginning of an answer that is rendered, in bytes: more than fills a message, whatever of it is markup.
const RENDERED_BYTES_MAX: usize = 32 * 1024;

/// Chats that are left alone are remembered: more than turns can run at once.
const CHATS_MAX: u64 = 16_384;

/// For how long a chat is shown no drafts that took none.
const REFUSED: Duration = Duration::from_secs(60 * 60);

/// Shows the drafts of a deployment's bots.
#[derive(Debug, Clone)]
pub struct Drafts {
    store: Store,
    platforms: Arc<Platforms>,
    calls: Arc<Semaphore>,
    /// Until when a chat is left alone. No reply waits for that.
    silent: Cache<ConversationKey, Instant>,
}

/// Whose draft it is, and where it is shown.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) bot: &'a Bot,
    /// Of its turns.
    pub(super) partition: u16,
    /// Under which its deliveries are filed.
    pub(super) filed_as: &'a ConversationKey,
    /// Where the chat is now.
    pub(super) address: &'a ConversationKey,
    pub(super) id: DraftId,
}

impl Drafts {
    #[must_use]
    pub fn new(store: Store, platforms: Arc<Platforms>) -> Self {
        let silent = Cache::builder().max_capacity(CHATS_MAX).time_to_live(REFUSED).build();
        Self { store, platforms, calls: Arc::new(Semaphore::new(CALLS_MAX)), silent }
    }

    /// Runs `work`, and shows meanwhile what it puts into the draft.
    pub(super) async fn during<T>(&self, place: &Place<'_>, draft: &Draft, work: impl Future<Output = T>) -> T {
        let ended = CancellationToken::new();
        let mut showing = Box::pin(self.show(place, draft, &ended));
        let mut work = pin!(work);
        let outcome = tokio::select! {
            biased;
            outcome = &mut work => outcome,
            () = &mut showing => return work.await,
        };
        ended.cancel();
        // Else it could be seen after the reply.
        let _ = tokio::time::timeout(LAST_CALL, showing).await;
        outcome
    }

    /// Returns when the turn has ended, or nothing more can be shown.
    async fn show(&self, place: &Place<'_>, draft: &Draft, ended: &CancellationToken) {
        if ended.run_until_cancelled(self.earlier_replies(place)).await.is_none() {
            return;
        }
        let mut looks = tokio::time::interval(CADENCE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shown: Option<(PartText, Instant)> = None;
        let mut plain = false;
        while ended.run_until_cancelled(looks.tick()).await.is_some() {
            let Some(text) = rendered(draft, plain) else { continue };
            let is_new = shown.as_ref().is_none_or(|(last, at)| *last != text || at.elapsed() >= REFRESH_AFTER);
            if !is_new || self.silent.get(place.address).await.is_some_and(|until| until > Instant::now()) {
                continue;
            }
            let Some(call) = channel::draft(place.bot, &place.address.peer, place.id, &text) else { return };
            match Box::pin(self.call(place, &call)).await {
                Some(Answer::Sent { .. }) => shown = Some((text, Instant::now())),
                Some(Answer::Spoiled { by: Piece::Formatting, .. }) if !plain => plain = true,
                Some(answer) => {
                    let until = Instant::now() + silence(place.bot, answer);
                    self.silent.insert(place.address.clone(), until).await;
                }
                None => {}
            }
        }
    }

    /// Returns when nothing that was said to the chat before is still to leave. While the turn runs nothing is added.
    async fn earlier_replies(&self, place: &Place<'_>) {
        loop {
            match self.store.has_unsettled(place.partition, place.filed_as).await {
                Ok(false) => return,
                Ok(true) => {}
                Err(error) => tracing::debug!(error = %chain(&error), "whether earlier replies have left is not known"),
            }
            tokio::time::sleep(CADENCE).await;
        }
    }

    /// One call, if it is in nobody's way.
    async fn call(&self, place: &Place<'_>, call: &Call) -> Option<Answer> {
        let _one_of_few = self.calls.try_acquire().ok()?;
        let spared = Spared::ask(&self.platforms, place)?;
        let called = self.platforms.call(place.bot, call, CALL_TIMEOUT).await;
        spared.ended(called.status.is_some());
        metric::draft(Channel::Telegram, called.status);
        Some(called.answer)
    }
}

/// The governor's permission for one call, given back however the call ends.
struct Spared<'a> {
    platforms: &'a Platforms,
    bot: &'a Bot,
    begun: Instant,
    ended: Ended,
}

impl<'a> Spared<'a> {
    fn ask(platforms: &'a Platforms, place: &Place<'a>) -> Option<Self> {
        let begun = Instant::now();
        let is_spare = platforms.governor().spare(&place.bot.name, &place.address.peer, begun);
        is_spare.then_some(Self { platforms, bot: place.bot, begun, ended: Ended::Unanswered })
    }

    fn ended(mut self, is_answered: bool) {
        if is_answered {
            self.ended = Ended::Answered;
        }
    }
}

impl Drop for Spared<'_> {
    fn drop(&mut self) {
        self.platforms.governor().spared(&self.bot.name, self.begun, self.ended, Instant::now());
    }
}

/// What of the draft is to be seen: as much as the reply's first message would hold.
fn rendered(draft: &Draft, plain: bool) -> Option<PartText> {
    let said = draft.said_last(RENDERED_BYTES_MAX);
    let first = channel::parts(Channel::Telegram, &said).into_iter().next()?;
    let entities = if plain { Vec::new() } else { first.entities };
    Some(PartText { text: first.text, entities, source: None })
}

/// How long a chat is left alone that did not take a draft.
fn silence(bot: &Bot, answer: Answer) -> Duration {
    let (pause, error) = match answer {
        Answer::Sent { .. } => return Duration::ZERO,
        Answer::RetryAfter { delay, error, .. } => (delay, error),
        Answer::NotSent { error } | Answer::Uncertain { error } => (Duration::ZERO, error),
        Answer::Failed { error, .. }
        | Answer::Moved { error, .. }
        | Answer::Spoiled { error, .. }
        | Answer::TakenOver { error }
        | Answer::Closed { error } => (REFUSED, error),
    };
    tracing::debug!(bot = bot.name, error, pause_ms = pause.as_millis(), "a draft was not shown");
    pause
}
