//! The bots whose platform takes nothing from them at all: a void token, a restricted page, a receiver that is gone.
//!
//! Pure: the time is an argument. Refuses to decide that it is over: a call that is not refused for the whole bot does.
//! Invariant: of a closed bot one reply a minute leaves at most, to ask; the rest is refused here.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// After so long it is tried whether the platform takes something again.
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// Decides for all bots of a process.
#[derive(Debug, Default)]
pub struct Closures {
    bots: HashMap<String, Closure>,
}

#[derive(Debug)]
struct Closure {
    probe_at: Instant,
    error: String,
}

impl Closures {
    /// Why nothing of the bot may leave now; whoever is let through to probe keeps the others waiting for the answer.
    /// Only the first part of a reply does: people get a whole one, or none.
    pub fn refusal(&mut self, bot: &str, is_first: bool, now: Instant) -> Option<String> {
        let closure = self.bots.get_mut(bot)?;
        if now < closure.probe_at || !is_first {
            return Some(closure.error.clone());
        }
        closure.probe_at = now + PROBE_AFTER;
        None
    }

    /// Whether some bot is shut out.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.bots.is_empty()
    }

    /// The platform refused everything of the bot. True when that is news.
    pub fn close(&mut self, bot: &str, error: &str, now: Instant) -> bool {
        let closure = Closure { probe_at: now + PROBE_AFTER, error: error.to_owned() };
        self.bots.insert(bot.to_owned(), closure).is_none()
    }

    /// The platform deals with the bot. True when it did not before.
    pub fn open(&mut self, bot: &str) -> bool {
        self.bots.remove(bot).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_bot_is_probed_now_and_then_and_opens_with_a_success() {
        let (mut closures, now) = (Closures::default(), Instant::now());
        assert_eq!(closures.refusal("page", true, now), None);
        assert!(!closures.open("page"));
        assert!(closures.close("page", "190", now));
        assert_eq!(closures.refusal("page", true, now), Some("190".to_owned()));
        assert_eq!(closures.refusal("other", true, now), None);
        let later = now + PROBE_AFTER;
        assert_eq!(closures.refusal("page", false, later), Some("190".to_owned()), "the end of a reply is no probe");
        assert_eq!(closures.refusal("page", true, later), None, "one is let through");
        assert_eq!(closures.refusal("page", true, later), Some("190".to_owned()), "and no other");
        assert!(!closures.close("page", "190", later), "it is no news");
        assert!(closures.any());
        assert!(closures.open("page"));
        assert!(!closures.any());
        assert_eq!(closures.refusal("page", true, later), None);
    }
}
