//! When a part may leave: the platforms' rate limits kept before they are hit, and the pauses that a platform asks for.
//!
//! Pure: the time is an argument, and nobody waits here. Refuses to queue: who may not send yet is told when to ask again, and
//! keeps its place among the chats of its bot meanwhile (`queue` hands them out). Invariants, kept by the property tests below: however late a chat
//! asks again and however long a call is on its way, a chat gets no more than its limit in any window, and neither does a bot
//! whose calls take less than a window; and what waits leaves within 5 % of the time that the limits allow.
//!
//! Limits hold for a whole bot, partitions belong to processes: each keeps to the share of the bot's limit that its
//! partitions are of all. What an earlier owner of a partition sent in its last minute is not known here; then the
//! platform's own answer, 429, is what keeps the limit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::meter::{Meter, Window};
use self::queue::{Queue, Turn};
use crate::channel::Scope;
use crate::config::{SendLimit, SendLimits};
use crate::message::Peer;

mod meter;
mod queue;

/// A bot's calls run side by side, and none can wait for another's answer: its limit is used to 100 / 103, which makes up for
/// what is not known of the time that they are on their way.
const MARGIN_PERCENT: u32 = 103;

/// A bot's window is a little longer than the platform's, and shorter than its calls take at their pace: one that is a few
/// milliseconds late makes none behind it wait.
const WINDOW_PERCENT: u32 = 101;

/// After so many answers, the fastest one tells how long a call takes at least.
const ANSWERS_NEEDED: u32 = 64;

/// When so many chats are told to wait within [`REFUSALS_WITHIN`], the whole bot is meant.
const REFUSED_CHATS: usize = 3;
const REFUSALS_WITHIN: Duration = Duration::from_secs(5);

/// The longest pause that is kept, whatever a platform asks for: a call once an hour harms nobody.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// What is remembered of a lane that did not ask again: its partition has moved. Longer than the longest pause of a lane.
const FORGET_AFTER: Duration = Duration::from_secs(2 * 60 * 60);

/// Chats remembered before it is looked for those that can be forgotten.
const SWEEP_FROM: usize = 1_024;

/// A lane that waits for a place of a share that may grow asks again at least this often: it may have a better place then.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The answer to [`Governor::ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Now; [`Governor::ended`] must follow, with this moment.
    Go {
        /// Since the lane asked first, or was told by the platform to wait.
        waited: Duration,
    },
    /// Ask again at this moment.
    At(Instant),
}

/// What came of a call that was permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The platform answered, whatever it said.
    Answered,
    /// Nobody knows whether it has it.
    Unanswered,
    /// It was not made.
    Unmade,
}

/// Decides for all bots of a process.
#[derive(Debug)]
pub struct Governor {
    accounts: HashMap<String, Account>,
    /// Whether the process knows its share.
    is_shared: bool,
}

/// One bot on its platform.
#[derive(Debug)]
struct Account {
    limits: SendLimits,
    /// This process's part of the bot's limit.
    share: Option<Share>,
    /// Whether that is all of it, and cannot grow.
    is_whole: bool,
    queue: Queue,
    calls: Window,
    answers: u32,
    /// The least time from a permission to its answer.
    fastest: Duration,
    blocked_until: Option<Instant>,
    refusals: VecDeque<(Instant, Peer)>,
    chats: HashMap<Peer, Meter>,
    waiting: HashMap<Arc<str>, Waiting>,
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    interval: Duration,
    /// Rounded up: it matters only to calls that were held up, and the interval makes up for it.
    window: SendLimit,
}

impl Share {
    fn new(limit: SendLimit, owned: u32, all: u32) -> Self {
        let interval = limit.per * MARGIN_PERCENT / 100 * all / limit.messages.saturating_mul(owned).max(1);
        let messages = limit.messages.saturating_mul(owned).div_ceil(all).max(1);
        Self { interval, window: SendLimit { messages, per: limit.per * WINDOW_PERCENT / 100, burst: limit.burst } }
    }
}

/// A lane that was told to ask again.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    since: Instant,
    /// Its turn among those that wait for a place.
    ticket: Option<u64>,
    /// Its place among the bot's calls, once the chat itself was free.
    place: Option<Instant>,
}

impl Governor {
    /// The limits of each bot, by name.
    #[must_use]
    pub fn new(bots: impl IntoIterator<Item = (String, SendLimits)>) -> Self {
        let accounts = bots.into_iter().map(|(name, limits)| (name, Account::new(limits))).collect();
        Self { accounts, is_shared: false }
    }

    /// This process works on `owned` of all `partitions`: replies leave here.
    pub fn share(&mut self, owned: usize, partitions: u16) {
        self.is_shared = true;
        let (owned, all) = (u32::try_from(owned).unwrap_or(u32::MAX).max(1), u32::from(partitions).max(1));
        for account in self.accounts.values_mut() {
            account.take_share(owned, all);
        }
    }

    /// Whether the next part of `lane`, which goes to `peer`, may leave; `behind` more wait in the lane. A bot that is not known
    /// has no limits.
    pub fn ask(&mut self, bot: &str, peer: &Peer, lane: &Arc<str>, behind: usize, now: Instant) -> Permission {
        match self.accounts.get_mut(bot) {
            Some(account) => account.ask(chat(peer), lane, behind, now),
            None => Permission::Go { waited: Duration::ZERO },
        }
    }

    /// The call that was permitted at `begun` is over.
    pub fn ended(&mut self, bot: &str, peer: &Peer, begun: Instant, ended: Ended, now: Instant) {
        let Some(account) = self.accounts.get_mut(bot) else { return };
        account.recount(begun, ended, now);
        let chat = chat(peer);
        let limit = account.limit(&chat);
        if let Some(meter) = account.chats.get_mut(&chat) {
            meter.end(limit, now);
        }
    }

    /// Whether a call may be made for which nobody waits, such as one that shows a draft: at once or not at all, in a process
    /// that knows what its replies need, while none of them is on its way to `peer` or waits for the bot, and not with more than
    /// half of the bot's limit. So a reply that comes next finds room. [`Governor::spared`] must follow, with this moment.
    pub fn spare(&mut self, bot: &str, peer: &Peer, now: Instant) -> bool {
        self.is_shared && self.accounts.get_mut(bot).is_none_or(|account| account.spare(&chat(peer), now))
    }

    /// The call that was spared at `begun` is over.
    pub fn spared(&mut self, bot: &str, begun: Instant, ended: Ended, now: Instant) {
        if let Some(account) = self.accounts.get_mut(bot) {
            account.recount(begun, ended, now);
        }
    }

    /// The bot makes no call for `pause`: its platform's figures say that a limit is near.
    pub fn hold(&mut self, bot: &str, pause: Duration, now: Instant) {
        let Some(account) = self.accounts.get_mut(bot) else { return };
        account.blocked_until = account.blocked_until.max(Some(now + pause.min(PAUSE_MAX)));
    }

    /// The platform did not take the lane's part and wants `delay` of silence, from the chat or from the bot.
    pub fn refused(&mut self, bot: &str, peer: &Peer, lane: &Arc<str>, scope: Scope, delay: Duration, now: Instant) {
        let Some(account) = self.accounts.get_mut(bot) else { return };
        account.refused(chat(peer), scope, delay, now);
        account.waiting.insert(Arc::clone(lane), Waiting { since: now, ticket: None, place: None });
    }
}

impl Account {
    fn new(limits: SendLimits) -> Self {
        Self {
            limits,
            share: limits.bot.map(|limit| Share::new(limit, 1, 1)),
            is_whole: true,
            queue: Queue::default(),
            calls: Window::default(),
            answers: 0,
            fastest: Duration::MAX,
            blocked_until: None,
            refusals: VecDeque::new(),
            chats: HashMap::new(),
            waiting: HashMap::new(),
            sweep_at: SWEEP_FROM,
        }
    }

    fn take_share(&mut self, owned: u32, all: u32) {
        let before = self.share.map(|share| share.interval);
        self.share = self.limits.bot.map(|limit| Share::new(limit, owned, all));
        self.is_whole = owned >= all;
        self.queue.forget();
        if self.share.map(|share| share.interval) != before {
            self.queue.start_again();
            for waiting in self.waiting.values_mut() {
                (waiting.ticket, waiting.place) = (None, None);
            }
        }
    }

    const fn limit(&self, chat: &Peer) -> Option<SendLimit> {
        match chat {
            Peer::Group(_) => self.limits.group,
            _ => self.limits.chat,
        }
    }

    fn ask(&mut self, chat: Peer, lane: &Arc<str>, behind: usize, now: Instant) -> Permission {
        self.sweep(now);
        self.queue.note(lane, behind + 1);
        let mut waiting = self.waiting.get(lane).copied().unwrap_or(Waiting { since: now, ticket: None, place: None });
        let limit = self.limit(&chat);
        let of_chat = self.chats.get(&chat).and_then(|meter| meter.earliest(limit, now));
        let free_at = of_chat.max(self.blocked_until).filter(|moment| *moment > now);
        if let Some(later) = self.later(&mut waiting, lane, limit, free_at, now) {
            self.waiting.insert(Arc::clone(lane), waiting);
            return Permission::At(later);
        }
        self.waiting.remove(lane);
        self.queue.note(lane, behind);
        if let Some(share) = self.share {
            self.calls.push(share.window, now);
        }
        if limit.is_some() {
            self.chats.entry(chat).or_default().begin(limit, now);
        }
        Permission::Go { waited: now.duration_since(waiting.since) }
    }

    fn spare(&mut self, chat: &Peer, now: Instant) -> bool {
        let is_later = |moment: Option<Instant>| moment.is_some_and(|moment| moment > now);
        let limit = self.limit(chat);
        let of_chat = self.chats.get(chat);
        if is_later(self.blocked_until)
            || of_chat.is_some_and(|meter| meter.is_busy() || is_later(meter.earliest(limit, now)))
        {
            return false;
        }
        let Some(share) = self.share else { return true };
        let half = SendLimit { messages: share.window.messages / 2, ..share.window };
        if self.queue.is_ahead_of(now) || self.calls.free_at(half, 0, now).is_some() {
            return false;
        }
        self.calls.push(share.window, now);
        true
    }

    /// When a lane is to ask again whose chat is free at `free_at`; `None` when its turn has come.
    fn later(
        &mut self,
        waiting: &mut Waiting,
        lane: &Arc<str>,
        limit: Option<SendLimit>,
        free_at: Option<Instant>,
        now: Instant,
    ) -> Option<Instant> {
        let Some(share) = self.share else { return free_at };
        let is_whole = self.is_whole;
        let soon = |moment: Instant| if is_whole { moment } else { moment.min(now + LOOK_AGAIN_AFTER) };
        if waiting.place.is_none() {
            let pace = (share.interval, share.window.burst);
            let pressed =
                limit.and_then(|limit| self.queue.press(lane, limit.interval(), pace, free_at.unwrap_or(now), now));
            let turn = match free_at {
                None => pressed.unwrap_or_else(|| self.queue.turn(lane, waiting.ticket, pace, waiting.since, now)),
                Some(free_at) => pressed.unwrap_or(Turn::Later { at: free_at, ticket: None }),
            };
            match turn {
                Turn::Place(place) => waiting.place = Some(place),
                Turn::Later { at, ticket } => {
                    waiting.ticket = waiting.ticket.or(ticket);
                    return Some(soon(at));
                }
            }
        }
        let of_bot = self.calls.free_at(share.window, 0, now);
        of_bot.max(waiting.place.map(soon)).max(free_at).filter(|moment| *moment > now)
    }

    /// A call counted from its permission until it was over; now it is known better when the platform can have counted it:
    /// as long before the answer as the way back takes at least. With the way of the next call there, that is the time of
    /// the fastest call, of which nobody knows how it is divided, nor needs to.
    fn recount(&mut self, begun: Instant, ended: Ended, now: Instant) {
        let Some(share) = self.share else { return };
        self.calls.remove(begun);
        let on_its_way = match ended {
            Ended::Unmade => return,
            Ended::Unanswered => Duration::ZERO,
            Ended::Answered => {
                self.answers = self.answers.saturating_add(1);
                self.fastest = self.fastest.min(now.duration_since(begun));
                if self.answers < ANSWERS_NEEDED { Duration::ZERO } else { self.fastest }
            }
        };
        self.calls.push(share.window, now.checked_sub(on_its_way).unwrap_or(now));
    }

    fn refused(&mut self, chat: Peer, scope: Scope, delay: Duration, now: Instant) {
        let until = now + delay.min(PAUSE_MAX);
        self.refusals.retain(|(at, other)| *other != chat && now.duration_since(*at) < REFUSALS_WITHIN);
        self.refusals.push_back((now, chat.clone()));
        if scope == Scope::Bot || self.refusals.len() >= REFUSED_CHATS {
            self.blocked_until = self.blocked_until.max(Some(until));
        }
        self.chats.entry(chat).or_default().block(until);
    }

    /// Forgets chats that are as free as unknown ones, now and then.
    fn sweep(&mut self, now: Instant) {
        if self.chats.len() + self.waiting.len() < self.sweep_at {
            return;
        }
        let (of_chats, of_groups) = (self.limits.chat, self.limits.group);
        self.chats.retain(|chat, meter| {
            !meter.is_forgettable(if matches!(chat, Peer::Group(_)) { of_groups } else { of_chats }, now)
        });
        self.waiting.retain(|_, waiting| now.duration_since(waiting.since) < FORGET_AFTER);
        self.sweep_at = (2 * (self.chats.len() + self.waiting.len())).max(SWEEP_FROM);
    }
}

/// Whom the platform's limits count: the topics of a group are one chat.
fn chat(peer: &Peer) -> Peer {
    match peer {
        Peer::Topic { group, .. } => Peer::Group(group.clone()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
