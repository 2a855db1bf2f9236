//! Why a message was answered as it was, or not at all: one sentence from what the ledger and its deliveries say.
//!
//! Pure. Refuses to guess: what is not known is said to be unknown.

use serde::Serialize;

use crate::message::{DeliveryStatus, TerminalState};
use crate::store::{DeliveryRow, Hold, LedgerRow};

/// How a message fared, for a glance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Its answer arrived, as far as the platform says.
    Answered,
    /// It was not to be answered, or another message's turn answers it.
    Quiet,
    /// It is on its way.
    Waiting,
    /// Its person got no answer, or perhaps none.
    Trouble,
}

impl Verdict {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Quiet => "quiet",
            Self::Waiting => "waiting",
            Self::Trouble => "trouble",
        }
    }
}

/// A verdict and the sentence for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Why {
    pub(super) verdict: Verdict,
    pub(super) why: String,
}

impl Why {
    fn new(verdict: Verdict, why: impl Into<String>) -> Self {
        Self { verdict, why: why.into() }
    }
}

/// Of a message that has ended. `has_reply` when the bot or an agent said something in its turn.
pub(super) fn of_row(row: &LedgerRow, deliveries: &[DeliveryRow], has_reply: bool) -> Why {
    let reason = row.reason.as_deref().unwrap_or("no reason is recorded");
    match row.state {
        TerminalState::Answered if deliveries.is_empty() && has_reply => {
            Why::new(Verdict::Answered, "Answered. The caller reads the reply over the API; nothing had to be sent.")
        }
        TerminalState::Answered if deliveries.is_empty() => {
            Why::new(Verdict::Quiet, "The turn ended well and the responder chose to say nothing.")
        }
        TerminalState::Answered => of_deliveries(deliveries),
        TerminalState::Merged => {
            Why::new(Verdict::Quiet, "Answered together with a later message: see that message's turn.")
        }
        TerminalState::Superseded => Why::new(
            Verdict::Quiet,
            "A newer message interrupted its turn: both were answered together, in the newer one's turn.",
        ),
        TerminalState::HandedOff => Why::new(
            Verdict::Trouble,
            "A person has the conversation, so the bot is silent: the message was stored for them. Nothing was sent.",
        ),
        TerminalState::Ignored => Why::new(Verdict::Quiet, format!("Not a message to answer ({reason}).")),
        TerminalState::Rejected => Why::new(Verdict::Trouble, format!("Not taken: {reason}. {}", notice(deliveries))),
        TerminalState::DeadLettered => {
            let attempts = row.attempts;
            let times = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
            Why::new(Verdict::Trouble, format!("Given up after {times}: {reason}. {}", notice(deliveries)))
        }
    }
}

/// Of parts that leave in order: the first that has not arrived is what the person waits for.
fn of_deliveries(deliveries: &[DeliveryRow]) -> Why {
    let Some(first) = deliveries.iter().find(|delivery| delivery.status != DeliveryStatus::Sent) else {
        return Why::new(Verdict::Answered, "Answered, and the platform confirmed every part.");
    };
    let part = match first.parts {
        1 => "the reply".to_owned(),
        parts => format!("part {} of {parts} of the reply", first.part + 1),
    };
    let error = first.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    match first.status {
        DeliveryStatus::Pending if first.attempts == 0 => Why::new(
            Verdict::Waiting,
            format!(
                "A reply exists, but {part} has not been tried yet: it waits for its place or for the platform's rate limit."
            ),
        ),
        DeliveryStatus::Pending => Why::new(
            Verdict::Waiting,
            format!(
                "A reply exists, but {part} has not arrived after {} attempts and will be tried again{error}.",
                first.attempts
            ),
        ),
        DeliveryStatus::Sending => {
            Why::new(Verdict::Waiting, format!("A reply exists; {part} is being handed to the platform now."))
        }
        DeliveryStatus::Failed => {
            Why::new(Verdict::Trouble, format!("A reply exists, but {part} did not arrive{error}."))
        }
        DeliveryStatus::Uncertain | DeliveryStatus::Sent => Why::new(
            Verdict::Trouble,
            format!(
                "A reply exists, and nobody can tell whether {part} arrived{error}. It is held until somebody settles it."
            ),
        ),
    }
}

/// What the person was told instead of an answer.
fn notice(deliveries: &[DeliveryRow]) -> &'static str {
    match deliveries.first().map(|delivery| delivery.status) {
        None => "The person was told nothing.",
        Some(DeliveryStatus::Sent) => "The person was told so with a notice.",
        Some(DeliveryStatus::Failed) => "A notice to the person did not arrive.",
        Some(DeliveryStatus::Uncertain) => "Nobody can tell whether a notice to the person arrived.",
        Some(DeliveryStatus::Pending | DeliveryStatus::Sending) => "A notice to the person is on its way.",
    }
}

/// What is known of a message that lies on the stream and has not ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unended<'a> {
    /// Messages of its conversation before it that have not ended either.
    pub(super) before: usize,
    /// The hold that keeps its turn from beginning.
    pub(super) hold: Option<&'a Hold>,
    /// Whether its turn has left steps: it runs, or did in a process that is gone.
    pub(super) has_steps: bool,
    /// Whether any process has ever taken its partition.
    pub(super) is_owned: bool,
}

pub(super) fn of_unended(unended: Unended<'_>) -> Why {
    let waits = |why: String| Why::new(Verdict::Waiting, why);
    match unended {
        Unended { has_steps: true, .. } => waits("Its turn has begun and has not ended: its steps so far are in the turn.".to_owned()),
        Unended { hold: Some(hold), .. } => {
            let who = hold.actor.as_deref().map(|actor| format!(" by {actor}")).unwrap_or_default();
            let reason = hold.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let what = match hold.scope.as_str() {
                "conversation" => "This conversation".to_owned(),
                scope => format!("The {scope} {}", hold.target),
            };
            waits(format!("{what} was paused{who} at {}{reason}. The message is kept and its turn begins once it is resumed.", hold.created_at))
        }
        Unended { is_owned: false, .. } => {
            waits("No worker has taken its partition yet: no process with the role `worker` runs, or it is starting.".to_owned())
        }
        Unended { before: 0, .. } => {
            waits("It is next: its turn runs, is about to be tried again after a failure, or waits for a free place among the turns.".to_owned())
        }
        Unended { before: 1, .. } => waits("It waits for the turn of the one message before it.".to_owned()),
        Unended { before, .. } => waits(format!("It waits for the turns of {before} messages before it.")),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::message::{Channel, ConversationKey, Peer, Timestamp};
    use crate::store::{HoldScope, TurnTimings};

    fn row(state: TerminalState, reason: Option<&str>) -> LedgerRow {
        let moment = Timestamp::from_micros(0);
        LedgerRow {
            id: Uuid::nil(),
            dedupe_id: "telegram:support:1".to_owned(),
            key: ConversationKey {
                channel: Channel::Telegram,
                bot: "support".into(),
                peer: Peer::User("31".to_owned()),
            },
            conversation_id: None,
            state,
            merged_into: None,
            reason: reason.map(str::to_owned),
            attempts: 4,
            responder: None,
            stream: 1,
            partition: 3,
            sequence: 7,
            traceparent: None,
            timings: TurnTimings::default(),
            received_at: moment,
            started_at: moment,
            committed_at: moment,
        }
    }

    fn delivery(part: u16, parts: u16, status: DeliveryStatus, error: Option<&str>) -> DeliveryRow {
        DeliveryRow {
            id: Uuid::nil(),
            turn_id: Uuid::nil(),
            message_id: Uuid::nil(),
            content: String::new(),
            buttons: Vec::new(),
            part,
            parts,
            status,
            attempts: 2,
            error: error.map(str::to_owned),
            platform_message_id: None,
            created_at: Timestamp::from_micros(0),
            settled_at: None,
        }
    }

    #[test]
    fn every_way_to_end_has_its_sentence() {
        use DeliveryStatus::{Failed, Pending, Sent, Uncertain};
        use TerminalState::{Answered, DeadLettered, HandedOff, Rejected};
        let check = |state, reason, deliveries: &[DeliveryRow], verdict, words: &str| {
            let why = of_row(&row(state, reason), deliveries, true);
            assert!(why.verdict == verdict && why.why.contains(words), "{state:?} {deliveries:?}: {why:?}");
        };
        check(Answered, None, &[delivery(0, 1, Sent, None)], Verdict::Answered, "confirmed every part");
        check(Answered, None, &[], Verdict::Answered, "over the API");
        let blocked =
            [delivery(0, 2, Sent, None), delivery(1, 2, Failed, Some("Forbidden: bot was blocked by the user"))];
        check(
            Answered,
            None,
            &blocked,
            Verdict::Trouble,
            "part 2 of 2 of the reply did not arrive: Forbidden: bot was blocked",
        );
        check(Answered, None, &[delivery(0, 1, Pending, Some("429"))], Verdict::Waiting, "will be tried again: 429");
        check(
            Answered,
            None,
            &[delivery(0, 1, Uncertain, None)],
            Verdict::Trouble,
            "nobody can tell whether the reply arrived",
        );
        check(HandedOff, None, &[], Verdict::Trouble, "A person has the conversation");
        check(
            Rejected,
            Some("an earlier message was being answered"),
            &[delivery(0, 1, Sent, None)],
            Verdict::Trouble,
            "told so",
        );
        check(
            DeadLettered,
            Some("responder: 500"),
            &[],
            Verdict::Trouble,
            "after 4 attempts: responder: 500. The person was told nothing",
        );
        assert_eq!(of_row(&row(Answered, None), &[], false).verdict, Verdict::Quiet);
    }

    #[test]
    fn what_waits_says_for_what() {
        let hold = Hold {
            scope: HoldScope::Bot,
            target: "support".to_owned(),
            actor: Some("operator (Kim)".to_owned()),
            reason: Some("new prompt".to_owned()),
            created_at: Timestamp::from_micros(0),
        };
        let unended = Unended { before: 2, hold: None, has_steps: false, is_owned: true };
        for (unended, words) in [
            (unended, "2 messages before it"),
            (Unended { before: 1, ..unended }, "the one message before it"),
            (Unended { before: 0, ..unended }, "It is next"),
            (
                Unended { hold: Some(&hold), ..unended },
                "The bot support was paused by operator (Kim) at 1970-01-01T00:00:00Z (new prompt)",
            ),
            (Unended { is_owned: false, ..unended }, "No worker"),
            (Unended { has_steps: true, hold: Some(&hold), ..unended }, "has begun"),
        ] {
            let why = of_unended(unended);
            assert!(why.verdict == Verdict::Waiting && why.why.contains(words), "{why:?}");
        }
    }
}
