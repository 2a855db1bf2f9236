//! How often one caller may send a message: the generic cell rate algorithm (ITU-T I.371, annex A), one cell a request.
//!
//! The decision is pure: no clock, no I/O. Refuses to be a defence against strangers: who may name any device id gets a fresh
//! allowance with each. Invariants: a caller is remembered in 16 bytes whatever it calls itself, so that memory is bounded; a
//! refused request costs its caller nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::config::Rate;

/// Callers remembered at once: 24 bytes each and the table's slack, some 5 MB together. Beyond it newcomers pass uncounted,
/// which is no more than a new device id gets anyway.
const CALLERS_MAX: usize = 100_000;

/// A full table is searched this often at most for callers that need not be remembered any more.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// The moment up to which a caller has used its allowance, since the table was made.
type UsedUp = Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Pass { used_up: UsedUp },
    Wait(Duration),
}

/// A whole allowance may be used at once; it comes back evenly. Both times count from the same moment.
fn decide(rate: Rate, used_up: Option<UsedUp>, now: Duration) -> Decision {
    let interval = interval(rate);
    let used_up = used_up.map_or(now, |used_up| used_up.max(now));
    let ahead = used_up - now;
    match ahead.checked_sub(interval * (rate.count.get() - 1)) {
        Some(wait) if !wait.is_zero() => Decision::Wait(wait),
        _ => Decision::Pass { used_up: used_up + interval },
    }
}

/// Rounded up, so that no more than `count` fit into `per`.
fn interval(rate: Rate) -> Duration {
    let nanoseconds = rate.per.as_nanos().div_ceil(u128::from(rate.count.get()));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Whose requests are counted together, for each bot.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counted<'a> {
    /// Everybody who shows this key.
    Key(&'a str),
    Device(&'a str),
}

/// What the callers of this process have used. Other processes count for themselves.
#[derive(Debug)]
pub(super) struct Limits {
    began: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    used_up: HashMap<[u8; 16], UsedUp>,
    searched_at: Duration,
}

impl Limits {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, table: Mutex::default() }
    }

    /// # Errors
    /// How long the caller has to wait.
    pub(super) fn take(&self, rate: Rate, bot: &str, caller: Counted<'_>, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.began);
        // Nothing panics while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner).take(rate, digest(bot, caller), now)
    }
}

impl Table {
    fn take(&mut self, rate: Rate, caller: [u8; 16], now: Duration) -> Result<(), Duration> {
        match decide(rate, self.used_up.get(&caller).copied(), now) {
            Decision::Wait(wait) => return Err(wait),
            Decision::Pass { used_up } => {
                if self.has_room(&caller, now) {
                    self.used_up.insert(caller, used_up);
                }
            }
        }
        Ok(())
    }

    fn has_room(&mut self, caller: &[u8; 16], now: Duration) -> bool {
        if self.used_up.len() >= CALLERS_MAX && now.saturating_sub(self.searched_at) >= FORGET_EVERY {
            self.searched_at = now;
            // Whose whole allowance is back is as good as new.
            self.used_up.retain(|_, used_up| *used_up > now);
        }
        self.used_up.len() < CALLERS_MAX || self.used_up.contains_key(caller)
    }
}

/// Bots have no zero byte in their names, so no two callers share a spelling.
fn digest(bot: &str, caller: Counted<'_>) -> [u8; 16] {
    let (kind, name) = match caller {
        Counted::Key(key) => ("key", key),
        Counted::Device(device_id) => ("device", device_id),
    };
    let digest = Sha256::digest(format!("{bot}\0{kind}\0{name}"));
    let mut head = [0; 16];
    head.copy_from_slice(&digest[..16]);
    head
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn rate(count: u32, per: Duration) -> Rate {
        Rate { count: NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN), per }
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        (1..=5_000_u32, prop_oneof![Just(1), Just(60), Just(3_600)])
            .prop_map(|(count, seconds)| rate(count, Duration::from_secs(seconds)))
    }

    /// The moments at which requests passed that came after these pauses.
    fn passed(rate: Rate, pauses: &[u64]) -> Vec<Duration> {
        let (mut now, mut state, mut passed) = (Duration::ZERO, None, Vec::new());
        for pause in pauses {
            now += Duration::from_nanos(*pause);
            if let Decision::Pass { used_up } = decide(rate, state, now) {
                state = Some(used_up);
                passed.push(now);
            }
        }
        passed
    }

    proptest! {
        #[test]
        fn no_window_sees_more_than_an_allowance_and_what_comes_back_in_it(
            (rate, pauses) in any_rate().prop_flat_map(|rate| {
                let longest = u64::try_from(interval(rate).as_nanos()).unwrap_or(u64::MAX) * 3;
                (Just(rate), vec(prop_oneof![Just(0), 0..=longest], 0..300))
            })
        ) {
            let passed = passed(rate, &pauses);
            for (place, first) in passed.iter().enumerate() {
                for (count, last) in (1_u128..).zip(&passed[place..]) {
                    let back = (*last - *first).as_nanos() / interval(rate).as_nanos();
                    prop_assert!(count <= u128::from(rate.count.get()) + back, "{count} in {:?}", *last - *first);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(rate in any_rate(), extra in vec(0_u64..1_000_000, 1..300)) {
            let step = u64::try_from(interval(rate).as_nanos()).unwrap_or(u64::MAX);
            let pauses: Vec<_> = extra.iter().map(|extra| step + extra).collect();
            prop_assert_eq!(passed(rate, &pauses).len(), pauses.len());
        }

        #[test]
        fn the_wait_told_is_exactly_long_enough(rate in any_rate(), used in 0_u64..10_000_000_000, now in 0_u64..5_000_000_000) {
            let (used, now) = (Some(Duration::from_nanos(used)), Duration::from_nanos(now));
            if let Decision::Wait(wait) = decide(rate, used, now) {
                let after = matches!(decide(rate, used, now + wait), Decision::Pass { .. });
                prop_assert!(after, "long enough");
                let before = decide(rate, used, now + wait - Duration::from_nanos(1));
                prop_assert!(matches!(before, Decision::Wait(_)), "not a nanosecond too long");
            }
        }

        #[test]
        fn an_allowance_may_be_used_at_once(rate in any_rate()) {
            let at_once = vec![0; rate.count.get() as usize + 5];
            prop_assert_eq!(passed(rate, &at_once).len(), rate.count.get() as usize);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_counted_apart() {
        let limits = Limits::new(Instant::now());
        let once = rate(1, Duration::from_secs(60));
        let take = |bot, caller| limits.take(once, bot, caller, Instant::now());
        for (bot, caller) in [
            ("a", Counted::Key("x")),
            ("a", Counted::Device("x")),
            ("a", Counted::Device("y")),
            ("b", Counted::Device("y")),
        ] {
            assert_eq!(take(bot, caller), Ok(()), "{bot} {caller:?}");
            assert_eq!(take(bot, caller), Err(Duration::from_secs(60)), "{bot} {caller:?}");
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(take("a", Counted::Key("x")), Ok(()));
    }

    #[test]
    fn a_full_table_forgets_who_may_be_forgotten_and_lets_newcomers_pass() {
        let mut table = Table::default();
        let once = rate(1, Duration::from_secs(60));
        let caller = |number: u128| number.to_be_bytes();
        for number in 0..CALLERS_MAX as u128 {
            assert_eq!(table.take(once, caller(number), Duration::from_secs(5)), Ok(()));
        }
        let newcomer = caller(u128::MAX);
        for _ in 0..2 {
            assert_eq!(table.take(once, newcomer, Duration::from_secs(10)), Ok(()), "uncounted");
        }
        assert!(table.take(once, caller(7), Duration::from_secs(10)).is_err(), "who is known still waits");
        assert_eq!(table.take(once, newcomer, Duration::from_secs(65)), Ok(()));
        assert!(table.take(once, newcomer, Duration::from_secs(65)).is_err(), "counted again");
        assert_eq!(table.used_up.len(), 1);
    }
}
