//! What people type after options: conversations, moments, shares.
//!
//! Pure. Refuses what could be read in two ways. Invariant: an error says what would be right.

use std::str::FromStr;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::config;
use crate::message::{ConversationKey, Peer, Timestamp};

/// What a person may call a conversation.
#[derive(Debug, Clone)]
pub(super) enum Conversation {
    Id(Uuid),
    Key(ConversationKey),
    Peer(Peer),
}

impl FromStr for Conversation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::parse_str(text).map(Self::Id).ok();
        let name = || text.parse().map(Self::Key).ok().or_else(|| text.parse().map(Self::Peer).ok());
        id.or_else(name).ok_or("expected a conversation's id, its peer such as user-31, or CHANNEL.BOT.PEER")
    }
}

/// A moment: a date, a date with a time, or how long ago.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    /// As it was written.
    pub(super) text: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    pub(super) fn before(&self, now: Timestamp) -> Timestamp {
        match self.place {
            Place::At(moment) => moment,
            Place::Ago(span) => {
                let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
                Timestamp::from_micros(now.as_micros().saturating_sub(micros))
            }
        }
    }
}

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok().map(|moment| Place::At(moment.into()));
        let ago = || config::parse_duration(text).ok().map(Place::Ago);
        let place = at(text).or_else(|| at(&format!("{text}T00:00:00Z"))).or_else(ago);
        let place = place
            .ok_or("expected a date such as 2026-11-01, with a time 2026-11-01T08:30:00Z, or how long ago: 24h")?;
        Ok(Self { text: text.to_owned(), place })
    }
}

/// A share such as `5%`, from 0 to 100.
pub(super) fn percent(text: &str) -> Result<f64, &'static str> {
    let number = text.trim_end_matches('%').parse::<f64>().ok();
    number.filter(|number| (0.0..=100.0).contains(number)).ok_or("expected a share from 0% to 100%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_times_and_spans() {
        let now = Timestamp::from_micros(1_000_000_000_000_000);
        for (text, expected) in [
            ("2001-09-08", Some(1_000_000_000_000_000 - 6_400_000_000 - 86_400_000_000)),
            ("2001-09-09T01:46:40Z", Some(1_000_000_000_000_000)),
            ("2001-09-09T03:46:40+02:00", Some(1_000_000_000_000_000)),
            ("1h", Some(1_000_000_000_000_000 - 3_600_000_000)),
            ("yesterday", None),
            ("", None),
            ("2001-13-01", None),
        ] {
            let found = text.parse::<Moment>().ok().map(|moment| moment.before(now).as_micros());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn shares_are_percentages() {
        let found = ["5%", "0", "100%", "0.5%", "101%", "-1%", "half", "NaN"].map(|text| percent(text).ok());
        assert_eq!(found, [Some(5.0), Some(0.0), Some(100.0), Some(0.5), None, None, None, None]);
    }
}
