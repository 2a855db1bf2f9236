//! Calls that come together share a transaction: what waits while one runs goes into the next, up to [`GROUP_MAX`]; a call
//! that is in no hurry waits a moment for company.
//!
//! Refuses to know what a call asks for: [`Work`] does. Invariants: of two calls with a key in common one ends before the
//! other begins, in the order in which they came; every caller who stays hears its own outcome, or an error; a caller who
//! leaves disturbs nobody, and what it asked for is not begun once it has left.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StoreError;

/// The most calls that share a transaction. Twice as many are hardly quicker, and a takeover waits twice as long for them.
pub(super) const GROUP_MAX: usize = 200;

/// The most calls that wait in a group's own list, in which it looks for those that may go together: two groups that run,
/// and two that may follow. More wait in front of it.
const WAITING_MAX: usize = 4 * GROUP_MAX;

/// How long a call that is in no hurry waits for others, whose transaction it then shares.
const COMPANY_PATIENCE: Duration = Duration::from_millis(2);

/// What the members of a group ask for, and how all of it is done at once.
pub(super) trait Work: Send + Sync + 'static {
    type Asked: Send + Sync + 'static;
    type Outcome: Send + 'static;
    type Key: Hash + Eq + Clone + Send + 'static;

    /// What must not be in work twice at a time.
    fn keys(asked: &Self::Asked) -> Vec<Self::Key>;

    /// Whether nobody waits for the call's outcome but the caller's own bookkeeping.
    fn is_patient(_asked: &Self::Asked) -> bool {
        false
    }

    /// Does everything or nothing; the outcomes are in the order of `asked`.
    fn run(&self, asked: &[Self::Asked]) -> impl Future<Output = Result<Vec<Self::Outcome>, StoreError>> + Send;
}

/// The tasks of a store's groups.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    closing: CancellationToken,
}

impl Tasks {
    /// Takes no more calls and waits for those that were taken.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Where callers ask; clones ask the same task, which ends with the last of them.
pub(super) struct Group<W: Work> {
    calls: mpsc::Sender<(Vec<W::Key>, Call<W>)>,
}

impl<W: Work> Clone for Group<W> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone() }
    }
}

impl<W: Work> Group<W> {
    /// Starts the task, with at most so many transactions at a time.
    pub(super) fn start(work: W, in_flight_max: usize, tasks: &Tasks) -> Self {
        let (calls, called) = mpsc::channel(GROUP_MAX);
        let runner = Runner {
            work: Arc::new(work),
            in_flight_max,
            queue: Queue::new(),
            running: JoinSet::new(),
            keys: HashMap::new(),
        };
        tasks.tracker.spawn(runner.run(called, tasks.closing.clone()));
        Self { calls }
    }

    /// Waits for a group to take the call, and for what becomes of it.
    pub(super) async fn ask(&self, asked: W::Asked) -> Result<W::Outcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        let keys = W::keys(&asked);
        self.calls.send((keys, Call { asked, reply })).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

struct Call<W: Work> {
    asked: W::Asked,
    reply: Reply<W>,
}

type Reply<W> = oneshot::Sender<Result<<W as Work>::Outcome, StoreError>>;

/// What wakes the task.
enum Event {
    /// So many calls came; none when no more will.
    Called(usize),
    Ended(Id),
    Closing,
    /// Some call has waited long enough for company.
    Due,
}

struct Runner<W: Work> {
    work: Arc<W>,
    in_flight_max: usize,
    queue: Queue<W::Key, Call<W>>,
    running: JoinSet<()>,
    /// Of the groups that run.
    keys: HashMap<Id, Vec<W::Key>>,
}

impl<W: Work> Runner<W> {
    async fn run(mut self, mut called: mpsc::Receiver<(Vec<W::Key>, Call<W>)>, closing: CancellationToken) {
        let mut is_open = true;
        let mut calls = Vec::with_capacity(GROUP_MAX);
        while is_open || !self.running.is_empty() {
            let room = WAITING_MAX.saturating_sub(self.queue.len()).min(GROUP_MAX);
            let event = tokio::select! {
                biased;
                () = closing.cancelled(), if is_open && !called.is_closed() => Event::Closing,
                Some(ended) = self.running.join_next_with_id() => {
                    Event::Ended(ended.map_or_else(|failed| failed.id(), |(id, ())| id))
                }
                count = called.recv_many(&mut calls, room), if is_open && room > 0 => Event::Called(count),
                () = sleep_until(self.queue.due()), if self.running.len() < self.in_flight_max => Event::Due,
            };
            match event {
                Event::Called(0) => is_open = false,
                Event::Called(_) => calls.drain(..).for_each(|(keys, call)| {
                    let due = W::is_patient(&call.asked).then(|| Instant::now() + COMPANY_PATIENCE);
                    self.queue.push(keys, due, call);
                }),
                Event::Ended(id) => self.queue.release(&self.keys.remove(&id).unwrap_or_default()),
                // What was sent before is still received.
                Event::Closing => called.close(),
                Event::Due => self.queue.hurry(),
            }
            self.start_groups(is_open);
        }
    }

    /// When no more calls will come, there is no company to wait for.
    fn start_groups(&mut self, is_open: bool) {
        while self.running.len() < self.in_flight_max {
            if is_open && self.queue.due().is_some_and(|due| due > Instant::now()) {
                return;
            }
            let (keys, group) = self.queue.take(GROUP_MAX, |call| !call.reply.is_closed());
            if group.is_empty() {
                return;
            }
            let (asked, replies) = group.into_iter().map(|call| (call.asked, call.reply)).unzip();
            let started = self.running.spawn(answer(Arc::clone(&self.work), asked, replies));
            self.keys.insert(started.id(), keys);
        }
    }
}

/// Runs a group and tells every caller what became of its call. A group that fails is tried again one by one, so that only
/// what made it fail fails, unless the database is away or asks for patience: then all hear the same.
async fn answer<W: Work>(work: Arc<W>, asked: Vec<W::Asked>, replies: Vec<Reply<W>>) {
    let error = match work.run(&asked).await {
        Ok(outcomes) => {
            debug_assert_eq!(outcomes.len(), asked.len(), "an outcome for each");
            return replies.into_iter().zip(outcomes).for_each(|(reply, outcome)| tell(reply, Ok(outcome)));
        }
        Err(error) => error,
    };
    let mut replies = replies.into_iter();
    if asked.len() == 1 || error.is_outage() {
        return tell_all(replies, error);
    }
    tracing::debug!(members = asked.len(), error = %crate::telemetry::chain(&error), "a group failed, one by one now");
    for (one, reply) in asked.chunks(1).zip(replies.by_ref()) {
        match work.run(one).await {
            Ok(outcome) => outcome.into_iter().zip([reply]).for_each(|(outcome, reply)| tell(reply, Ok(outcome))),
            Err(error) if error.is_transient() => return tell_all(std::iter::once(reply).chain(replies), error),
            Err(error) => tell(reply, Err(error)),
        }
    }
}

fn tell_all<O>(replies: impl Iterator<Item = oneshot::Sender<Result<O, StoreError>>>, error: StoreError) {
    let error = Arc::new(error);
    replies.for_each(|reply| tell(reply, Err(StoreError::Shared(Arc::clone(&error)))));
}

/// A caller who left does not hear it, and nobody else needs to.
fn tell<O>(reply: oneshot::Sender<Result<O, StoreError>>, outcome: Result<O, StoreError>) {
    drop(reply.send(outcome));
}

/// For ever, where nothing is due.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Calls that wait, and the keys of those that run. Pure.
struct Queue<K, T> {
    waiting: VecDeque<Waiting<K, T>>,
    busy: HashSet<K>,
}

struct Waiting<K, T> {
    keys: Vec<K>,
    /// Until when it may wait for company; none for one that may not.
    due: Option<Instant>,
    call: T,
}

impl<K: Hash + Eq + Clone, T> Queue<K, T> {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), busy: HashSet::new() }
    }

    fn len(&self) -> usize {
        self.waiting.len()
    }

    fn push(&mut self, keys: Vec<K>, due: Option<Instant>, call: T) {
        self.waiting.push_back(Waiting { keys, due, call });
    }

    /// Until when all of the calls may wait for company; none when one of them may not, or there is none.
    fn due(&self) -> Option<Instant> {
        let first = self.waiting.front()?.due?;
        self.waiting.iter().try_fold(first, |earliest, waiting| Some(earliest.min(waiting.due?)))
    }

    /// Nobody came: they wait no longer.
    fn hurry(&mut self) {
        self.waiting.iter_mut().for_each(|waiting| waiting.due = None);
    }

    /// The oldest calls that may run together and beside what runs, at most `limit`; they run from now on. Those that are not
    /// `wanted` any more are forgotten. The keys are to be released when the group has ended.
    fn take(&mut self, limit: usize, wanted: impl Fn(&T) -> bool) -> (Vec<K>, Vec<T>) {
        let (mut held, mut group) = (Vec::new(), Vec::new());
        let mut passed_over = VecDeque::new();
        // Nobody overtakes an older call with the same key.
        let mut claimed = HashSet::new();
        while group.len() < limit
            && let Some(waiting) = self.waiting.pop_front()
        {
            if !wanted(&waiting.call) {
                continue;
            }
            if waiting.keys.iter().any(|key| self.busy.contains(key) || claimed.contains(key)) {
                claimed.extend(waiting.keys.iter().cloned());
                passed_over.push_back(waiting);
            } else {
                self.busy.extend(waiting.keys.iter().cloned());
                held.extend(waiting.keys);
                group.push(waiting.call);
            }
        }
        passed_over.append(&mut self.waiting);
        self.waiting = passed_over;
        (held, group)
    }

    /// The group that held these keys has ended.
    fn release(&mut self, keys: &[K]) {
        for key in keys {
            self.busy.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Calls with up to two of a few keys, groups of a few, ended in any order.
        #[test]
        fn whoever_shares_a_key_goes_in_turn(
            calls in proptest::collection::vec(proptest::collection::vec(0..6_u8, 0..3), 0..40),
            limit in 1..5_usize,
            ends in proptest::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut queue = Queue::new();
            for (number, keys) in calls.iter().enumerate() {
                queue.push(keys.clone(), None, number);
            }
            let mut running: Vec<Vec<u8>> = Vec::new();
            let mut done = Vec::new();
            for end in ends {
                let (keys, group) = queue.take(limit, |number| number % 7 != 6);
                prop_assert!(group.len() <= limit);
                for key in &keys {
                    prop_assert!(running.iter().all(|others| !others.contains(key)), "{key} runs twice");
                }
                if !group.is_empty() {
                    running.push(keys);
                    done.extend(group);
                }
                if running.len() > 2 || (queue.len() > 0 && !running.is_empty()) {
                    queue.release(&running.swap_remove(end.index(running.len())));
                }
            }
            prop_assert_eq!(queue.len(), 0);
            prop_assert_eq!(done.len(), (0..calls.len()).filter(|number| number % 7 != 6).count());
            for key in 0..6 {
                let of_key = |number: &&usize| calls[**number].contains(&key);
                prop_assert!(done.iter().filter(of_key).is_sorted(), "key {key} out of order: {done:?}");
            }
        }
    }
    #[test]
    fn patience_ends_with_the_first_call_that_has_none() {
        let now = Instant::now();
        let (sooner, later) = (now + COMPANY_PATIENCE, now + 2 * COMPANY_PATIENCE);
        let mut queue = Queue::<u8, &str>::new();
        assert_eq!(queue.due(), None);
        queue.push(vec![1], Some(later), "settle");
        queue.push(vec![2], Some(sooner), "settle");
        assert_eq!(queue.due(), Some(sooner));
        queue.push(vec![3], None, "commit");
        assert_eq!(queue.due(), None);
        assert_eq!(queue.take(GROUP_MAX, |_| true).1, ["settle", "settle", "commit"]);
        queue.push(vec![4], Some(later), "settle");
        queue.hurry();
        assert_eq!(queue.due(), None);
    }
}
