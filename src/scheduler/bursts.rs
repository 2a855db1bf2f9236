//! What a lane's next turn consists of, and when it may start: the burst policies and albums.
//!
//! Pure: time is an argument. Refuses to know what messages say: whoever does the work labels them. Invariants, kept by the
//! properties below: a turn is a run of the waiting messages from the first on; it begins and ends with messages of its own
//! kind; an album is cut only by the bound; nobody makes a turn wait for longer than ten times the pause it waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Burst;
use crate::message::DraftId;

/// The most messages of one turn: half of what a lane keeps in memory by default, so that the next turn's gather meanwhile.
pub const TURN_MESSAGES_MAX: usize = 32;

/// How often one turn is interrupted. Then it runs to its end, so that somebody who never stops typing is answered.
pub const INTERRUPTIONS_MAX: u32 = 8;

/// Platforms send an album as messages of their own, one right after the other; past this pause none is missing.
const ALBUM_QUIET: Duration = Duration::from_millis(500);

/// A pause is waited for no longer than this many times its length, counted from the first message.
const PATIENCE: u32 = 10;

/// What a message is to whoever forms turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    /// Somebody said something. Messages of one album share a turn under every policy. `id` is what amendments name it by.
    Said { album: Option<Arc<str>>, id: Option<Arc<str>> },
    /// A pressed button: the answer to one question, so a turn of its own.
    Pressed,
    /// Nobody waits for an answer to it. It goes along between two messages of a turn; it interrupts none, and is not refused.
    Aside,
    /// An aside that changes or takes back an earlier message of the lane: it goes with that message while it waits.
    Amends { id: Arc<str> },
    /// An aside that ends the turn whose draft it names, unless that has changed something outside; where it names none, the
    /// turn that runs when it comes. Otherwise an aside.
    Stops { draft: Option<DraftId> },
    /// Nothing is known of it: a turn of its own.
    Opaque,
}

impl Label {
    /// Whether it ends a turn.
    pub(super) const fn stops(&self) -> bool {
        matches!(self, Self::Stops { .. })
    }

    /// Whether nobody waits for an answer.
    pub(super) const fn is_aside(&self) -> bool {
        matches!(self, Self::Aside | Self::Amends { .. } | Self::Stops { .. })
    }
}

/// How the turns of one bot are formed, and how many run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub burst: Burst,
    /// For [`Burst::Collect`]: the pause that a turn waits for.
    pub quiet: Duration,
    /// The bot's share of the turns at once, beside the weights of the other bots that have something to do; from 1.
    pub weight: u32,
    /// The bot's turns at once; no bound of its own when `None`.
    pub max_running: Option<usize>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { burst: Burst::Queue, quiet: Duration::ZERO, weight: 1, max_running: None }
    }
}

/// A message in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) sequence: u64,
    pub(super) label: Label,
    pub(super) since: Instant,
}

impl Waiting {
    fn album(&self) -> Option<&Arc<str>> {
        match &self.label {
            Label::Said { album, .. } => album.as_ref(),
            Label::Pressed | Label::Aside | Label::Amends { .. } | Label::Stops { .. } | Label::Opaque => None,
        }
    }
}

/// What a lane does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A turn of so many messages, the first ones.
    Start(usize),
    /// Nothing before this moment; messages that come until then may move it.
    Wait(Instant),
}

/// What a lane with messages does. `more` when there are others behind those in memory.
pub(super) fn next(rules: &Rules, waiting: &VecDeque<Waiting>, more: bool, now: Instant) -> Next {
    let length = extent(rules, waiting);
    let is_closed = more
        || waiting.len() >= TURN_MESSAGES_MAX
        || waiting.iter().skip(length).any(|message| !message.label.is_aside());
    match due(rules, waiting, length).filter(|due| !is_closed && *due > now) {
        Some(due) => Next::Wait(due),
        None => Next::Start(length),
    }
}

/// How many of the messages, the first ones, make one turn.
pub(super) fn extent(rules: &Rules, waiting: &VecDeque<Waiting>) -> usize {
    let Some(front) = waiting.front() else { return 0 };
    let mut length = 1;
    for (index, message) in waiting.iter().enumerate().take(TURN_MESSAGES_MAX).skip(1) {
        match &message.label {
            label if label.is_aside() => {}
            Label::Said { .. } if shares(rules, front, message) => length = index + 1,
            _ => break,
        }
    }
    whole_albums(waiting, length)
}

/// The sequences of those behind the first `length` messages that amend one of them; of very many, the last.
pub(super) fn amendments(waiting: &VecDeque<Waiting>, length: usize) -> Vec<u64> {
    let amends = |id: &Arc<str>| {
        let names = |message: &Waiting| matches!(&message.label, Label::Said { id: Some(said), .. } if said == id);
        waiting.iter().take(length).any(names)
    };
    let behind = waiting.iter().skip(length).rev();
    let found = behind.filter(|message| match &message.label {
        Label::Amends { id } => amends(id),
        Label::Stops { .. } => true,
        _ => false,
    });
    let mut sequences: Vec<u64> = found.map(|message| message.sequence).take(TURN_MESSAGES_MAX).collect();
    sequences.reverse();
    sequences
}

/// Whether a message behind `front` may be in its turn.
fn shares(rules: &Rules, front: &Waiting, message: &Waiting) -> bool {
    let collects =
        matches!(rules.burst, Burst::Collect | Burst::Interrupt) && matches!(front.label, Label::Said { .. });
    collects || (front.album().is_some() && front.album() == message.album())
}

/// Leaves out an album at the end that goes on behind it, unless it is all there is.
fn whole_albums(waiting: &VecDeque<Waiting>, length: usize) -> usize {
    let said = |message: &&Waiting| matches!(message.label, Label::Said { .. });
    let album = length.checked_sub(1).and_then(|last| waiting[last].album());
    let following = waiting.iter().skip(length).find(said).and_then(Waiting::album);
    if album.is_none() || album != following {
        return length;
    }
    let other = |message: &Waiting| said(&message) && message.album() != album;
    waiting.iter().take(length).rposition(other).map_or(length, |last_other| last_other + 1)
}

/// When the turn may start if nothing else comes.
fn due(rules: &Rules, waiting: &VecDeque<Waiting>, length: usize) -> Option<Instant> {
    let (first, last) = (waiting.front()?, waiting.get(length.checked_sub(1)?)?);
    let pause = |first: &Waiting, quiet: Duration| (last.since + quiet).min(first.since + quiet * PATIENCE);
    let collected =
        rules.burst == Burst::Collect && matches!(first.label, Label::Said { .. }) && !rules.quiet.is_zero();
    let collected = collected.then(|| pause(first, rules.quiet));
    let album = last.album().and_then(|album| {
        let first = waiting.iter().find(|message| message.album() == Some(album))?;
        Some(pause(first, ALBUM_QUIET))
    });
    collected.max(album)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label() -> impl Strategy<Value = Label> {
        prop_oneof![
            6 => Just(Label::Said { album: None, id: None }),
            4 => (0..3_u8).prop_map(|album| Label::Said { album: Some(album.to_string().into()), id: None }),
            2 => Just(Label::Aside),
            1 => Just(Label::Amends { id: "m".into() }),
            1 => Just(Label::Pressed),
            1 => Just(Label::Opaque),
        ]
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let burst = prop_oneof![Just(Burst::Queue), Just(Burst::Collect), Just(Burst::Interrupt), Just(Burst::Reject)];
        (burst, 0..3_000_u64).prop_map(|(burst, quiet)| Rules {
            burst,
            quiet: Duration::from_millis(quiet),
            ..Rules::default()
        })
    }

    fn lane(messages: &[(Label, u64)], start: Instant) -> VecDeque<Waiting> {
        let mut since = start;
        let waiting = messages.iter().zip(1..).map(|((label, pause), sequence)| {
            since += Duration::from_millis(*pause);
            Waiting { sequence, label: label.clone(), since }
        });
        waiting.collect()
    }

    proptest! {
        #[test]
        fn a_turn_is_a_run_of_messages_that_belong_together(
            rules in rules(), messages in prop::collection::vec((label(), 0..900_u64), 1..70), more in any::<bool>(),
        ) {
            let start = Instant::now();
            let waiting = lane(&messages, start);
            let now = waiting.back().unwrap().since;
            let length = extent(&rules, &waiting);
            prop_assert!((1..=TURN_MESSAGES_MAX.min(waiting.len())).contains(&length));
            let turn: Vec<_> = waiting.iter().take(length).collect();
            let is_said = |message: &&&Waiting| matches!(message.label, Label::Said { .. });
            if length > 1 {
                prop_assert!(is_said(&&turn[0]) && is_said(&&turn[length - 1]), "{turn:?}");
                prop_assert!(turn.iter().all(|message| !matches!(message.label, Label::Pressed | Label::Opaque)));
            }
            if matches!(rules.burst, Burst::Queue | Burst::Reject) {
                let albums: Vec<_> = turn.iter().filter(is_said).map(|message| message.album()).collect();
                prop_assert!(albums.len() <= 1 || (albums[0].is_some() && albums.iter().all(|album| *album == albums[0])));
            }
            // The next message would not have fitted, or belongs to an album that is whole in the next turn.
            let said: Vec<_> = waiting.iter().filter(|message| matches!(message.label, Label::Said { .. })).collect();
            let of_turn = turn.iter().filter(is_said).count();
            if let (Some(last), Some(following)) = (of_turn.checked_sub(1).map(|last| said[last]), said.get(of_turn))
                && last.album().is_some() && last.album() == following.album()
                && !waiting.iter().skip(length).any(|message| matches!(message.label, Label::Pressed | Label::Opaque))
            {
                prop_assert!(turn.iter().filter(is_said).all(|message| message.album() == last.album()), "cut {turn:?}");
            }
            // Waiting ends, and starting then starts that turn, whatever asides came meanwhile.
            match next(&rules, &waiting, more, now) {
                Next::Start(started) => prop_assert_eq!(started, length),
                Next::Wait(until) => {
                    prop_assert!(!more && until > now);
                    let longest = rules.quiet.max(ALBUM_QUIET) * PATIENCE;
                    prop_assert!(until <= waiting[length - 1].since + longest);
                    prop_assert!(until <= waiting[length - 1].since + rules.quiet.max(ALBUM_QUIET));
                    prop_assert_eq!(next(&rules, &waiting, more, until), Next::Start(length));
                }
            }
        }
    }

    /// Somebody who writes every 300 ms is answered all the same.
    #[test]
    fn a_pause_that_never_comes_is_not_waited_for() {
        let rules = Rules { burst: Burst::Collect, quiet: Duration::from_secs(1), ..Rules::default() };
        let start = Instant::now();
        let messages = |count| vec![(Label::Said { album: None, id: None }, 300); count];
        for count in 1..=31 {
            let waiting = lane(&messages(count), start);
            let now = waiting.back().unwrap().since;
            let expected = (now + rules.quiet).min(waiting[0].since + rules.quiet * PATIENCE);
            assert_eq!(next(&rules, &waiting, false, now), Next::Wait(expected), "{count} messages");
        }
        let waiting = lane(&messages(40), start);
        assert_eq!(next(&rules, &waiting, false, start), Next::Start(TURN_MESSAGES_MAX), "the bound");
    }

    #[test]
    fn an_album_is_waited_for_and_ends_with_the_next_message() {
        let part = || Label::Said { album: Some("g".into()), id: None };
        let other = Label::Said { album: None, id: None };
        for burst in [Burst::Queue, Burst::Reject, Burst::Collect, Burst::Interrupt] {
            let rules = Rules { burst, ..Rules::default() };
            let start = Instant::now();
            let waiting = lane(&[(part(), 0), (part(), 100)], start);
            let now = start + Duration::from_millis(100);
            assert_eq!(next(&rules, &waiting, false, now), Next::Wait(now + ALBUM_QUIET), "{burst:?}");
            assert_eq!(next(&rules, &waiting, false, now + ALBUM_QUIET), Next::Start(2), "{burst:?}");
            let waiting = lane(&[(part(), 0), (Label::Aside, 0), (part(), 0), (other.clone(), 0)], start);
            let whole = if matches!(burst, Burst::Collect | Burst::Interrupt) { 4 } else { 3 };
            assert_eq!(next(&rules, &waiting, false, start), Next::Start(whole), "{burst:?}");
        }
    }
}
