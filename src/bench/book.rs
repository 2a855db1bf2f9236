//! Who said what when: the messages of one load, their replies, and whether each was answered exactly once and in order.
//!
//! Knows no network and no clock; moments are arguments. Invariant: a message counts as answered once, at its first reply that
//! came in its turn; everything else a chat sees is a violation.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Notify, Semaphore};

/// Violations that are written out; the rest is counted.
const EXAMPLES_MAX: usize = 10;

/// One load's messages and replies.
#[derive(Debug)]
pub(super) struct Book {
    first_chat: i64,
    messages_each: usize,
    chats: Vec<Mutex<Chat>>,
    unanswered: AtomicUsize,
    outstanding: AtomicUsize,
    outstanding_peak: AtomicUsize,
    violations: Mutex<Violations>,
    /// One permit per message that may be on its way; a reply gives its permit back.
    pub(super) room: Semaphore,
    finished: Notify,
}

#[derive(Debug, Default)]
struct Chat {
    posted: Vec<Instant>,
    accepted: Vec<Instant>,
    answered: Vec<Instant>,
}

/// What a chat saw and must not have seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    pub count: usize,
    /// The first of them, in words.
    pub examples: Vec<String>,
}

/// The times of a load that has ended.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// From the first post to the last reply.
    pub(super) elapsed: Duration,
    /// From each post to its reply.
    pub(super) answered: Vec<Duration>,
    /// From each post to the webhook's 200.
    pub(super) accepted: Vec<Duration>,
    pub(super) outstanding_peak: usize,
}

impl Book {
    /// An empty book for `conversations` chats, whose ids count up from `first_chat`, with `messages_each`.
    pub(super) fn new(first_chat: i64, conversations: usize, messages_each: usize, in_flight: usize) -> Self {
        Self {
            first_chat,
            messages_each,
            chats: std::iter::repeat_with(Mutex::default).take(conversations).collect(),
            unanswered: AtomicUsize::new(conversations * messages_each),
            outstanding: AtomicUsize::new(0),
            outstanding_peak: AtomicUsize::new(0),
            violations: Mutex::default(),
            room: Semaphore::new(in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            finished: Notify::new(),
        }
    }

    pub(super) fn chat_id(&self, index: usize) -> i64 {
        self.first_chat.saturating_add(i64::try_from(index).unwrap_or(i64::MAX))
    }

    pub(super) fn chat_ids(&self) -> impl Iterator<Item = i64> {
        (0..self.chats.len()).map(|index| self.chat_id(index))
    }

    /// The chat's place in this book, if it is one of its chats.
    pub(super) fn index(&self, chat: i64) -> Option<usize> {
        let index = usize::try_from(chat.checked_sub(self.first_chat)?).ok()?;
        (index < self.chats.len()).then_some(index)
    }

    /// The chat's next message is on its way for the first time.
    pub(super) fn posted(&self, index: usize, at: Instant) {
        locked(&self.chats[index]).posted.push(at);
        let outstanding = self.outstanding.fetch_add(1, Ordering::Relaxed) + 1;
        self.outstanding_peak.fetch_max(outstanding, Ordering::Relaxed);
    }

    /// The webhook answered 200 to the chat's last message.
    pub(super) fn accepted(&self, index: usize, at: Instant) {
        locked(&self.chats[index]).accepted.push(at);
    }

    /// The chat sees a reply to its message `number`, which counts from 0; `None` when it cannot be told to which.
    pub(super) fn replied(&self, index: usize, number: Option<usize>, at: Instant) {
        let mut chat = locked(&self.chats[index]);
        let (next, posted) = (chat.answered.len(), chat.posted.len());
        match number {
            Some(number) if number == next && number < posted => {
                chat.answered.push(at);
                drop(chat);
                self.outstanding.fetch_sub(1, Ordering::Relaxed);
                self.room.add_permits(1);
                if self.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
                    self.finished.notify_one();
                }
            }
            Some(number) if number < next => self.violation(index, &format!("message {number} was answered again")),
            Some(number) => self.violation(index, &format!("message {number} was answered before message {next}")),
            None => self.violation(index, "a reply that does not begin as a message of this load does"),
        }
    }

    /// Returns once every message is answered.
    pub(super) async fn finished(&self) {
        while self.unanswered() > 0 {
            self.finished.notified().await;
        }
    }

    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Acquire)
    }

    pub(super) fn messages(&self) -> usize {
        self.chats.len() * self.messages_each
    }

    pub(super) fn violations(&self) -> Violations {
        locked(&self.violations).clone()
    }

    pub(super) fn times(&self) -> Times {
        let (mut answered, mut accepted) = (Vec::new(), Vec::new());
        let (mut first, mut last) = (None::<Instant>, None::<Instant>);
        for chat in &self.chats {
            let chat = locked(chat);
            answered.extend(chat.posted.iter().zip(&chat.answered).map(|(posted, at)| at.duration_since(*posted)));
            accepted.extend(chat.posted.iter().zip(&chat.accepted).map(|(posted, at)| at.duration_since(*posted)));
            first = first.into_iter().chain(chat.posted.first().copied()).min();
            last = last.into_iter().chain(chat.answered.last().copied()).max();
        }
        let elapsed = first.zip(last).map_or(Duration::ZERO, |(first, last)| last.duration_since(first));
        Times { elapsed, answered, accepted, outstanding_peak: self.outstanding_peak.load(Ordering::Relaxed) }
    }

    fn violation(&self, index: usize, what: &str) {
        let mut violations = locked(&self.violations);
        violations.count += 1;
        if violations.examples.len() < EXAMPLES_MAX {
            violations.examples.push(format!("chat {}: {what}", self.chat_id(index)));
        }
    }
}

/// The text of a message: how long the responder shall take, the message's number, and as much as people write.
pub(super) fn text(delay: Duration, number: usize) -> String {
    format!("{}ms {number} and could you tell me where my order is? It should have come yesterday.", delay.as_millis())
}

/// The number in a reply that repeats a message's text.
pub(super) fn number(text: &str) -> Option<usize> {
    text.split(' ').nth(1)?.parse().ok()
}

/// A panic while holding one of these locks leaves nothing half-done that matters.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_counts_once_and_in_its_turn() {
        let book = Book::new(100, 2, 2, 2);
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        for chat in [0, 1] {
            book.posted(chat, later(0));
            book.posted(chat, later(10));
        }
        book.replied(0, Some(1), later(20));
        book.replied(0, Some(0), later(30));
        book.replied(0, Some(0), later(31));
        book.replied(0, Some(1), later(40));
        book.replied(0, Some(2), later(41));
        book.replied(1, None, later(50));
        assert_eq!(book.unanswered(), 2);
        let violations = book.violations();
        assert_eq!(violations.count, 4, "{violations:?}");
        assert_eq!(violations.examples[0], "chat 100: message 1 was answered before message 0");
        assert_eq!(violations.examples[1], "chat 100: message 0 was answered again");
        let times = book.times();
        assert_eq!(times.elapsed, Duration::from_millis(40));
        assert_eq!(times.answered, [Duration::from_millis(30), Duration::from_millis(30)]);
        assert_eq!(times.outstanding_peak, 4);
        assert_eq!((book.index(99), book.index(101), book.index(102)), (None, Some(1), None));
    }

    #[tokio::test]
    async fn the_load_ends_with_its_last_reply() {
        let book = Book::new(1, 1, 1, 1);
        book.posted(0, Instant::now());
        let (waited, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(5), book.finished()), async {
            tokio::task::yield_now().await;
            book.replied(0, Some(0), Instant::now());
        });
        assert!(waited.is_ok());
    }

    #[test]
    fn the_number_reads_back_from_a_reply() {
        assert_eq!(number(&text(Duration::from_millis(50), 17)), Some(17));
        assert_eq!(number("Sorry, that did not work."), None);
    }
}
