//! Where a caller is in the events of a turn: the ids of its events, and what a piece of progress adds to what it has seen.
//!
//! Pure: no clock, no I/O. Invariants: an id says everything that is needed to go on after it, so nothing is remembered for who
//! may come back; no text is shown twice without saying that the one before it is void.

use std::fmt;

use crate::stream::{Progress, ToolNote};

/// What a caller has seen of a turn; its `Display` is the id of the last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::ingress) enum Place {
    #[default]
    Nothing,
    /// That the turn was accepted.
    Accepted,
    /// So much of a run.
    Draft { run: (i64, u64), bytes: usize, tools: usize },
    /// How it ended.
    Outcome,
    /// Everything.
    Done,
}

/// An event that a piece of progress comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// More text; after `reset` all text before it is void.
    Text {
        text: String,
        reset: bool,
    },
    Tool(ToolNote),
}

/// What a piece of progress comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Each with the place after it.
    Steps(Vec<(Place, Step)>),
    /// Something before it was missed: the whole of the run has to be asked for.
    Gap,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Accepted => formatter.write_str("accepted"),
            Self::Draft { run: (epoch, number), bytes, tools } => {
                write!(formatter, "{epoch}.{number}.{bytes}.{tools}")
            }
            Self::Outcome => formatter.write_str("outcome"),
            Self::Done => formatter.write_str("done"),
        }
    }
}

impl Place {
    /// The place after the event with this id; the beginning for an id that is none of ours.
    pub(super) fn after(id: &str) -> Self {
        match id {
            "accepted" => Self::Accepted,
            "outcome" => Self::Outcome,
            "done" => Self::Done,
            _ => Self::draft(id).unwrap_or_default(),
        }
    }

    fn draft(id: &str) -> Option<Self> {
        let mut numbers = id.split('.');
        let run = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let (bytes, tools) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        numbers.next().is_none().then_some(Self::Draft { run, bytes, tools })
    }

    /// What `progress` adds for who is here.
    pub(super) fn take(self, progress: &Progress) -> Taken {
        let begins = progress.at == 0 && progress.tools_before == 0;
        let (mut bytes, mut tools, mut reset) = match self {
            Self::Outcome | Self::Done => return Taken::Steps(Vec::new()),
            Self::Nothing | Self::Accepted if begins => (0, 0, false),
            Self::Nothing | Self::Accepted => return Taken::Gap,
            // A run that has been replaced and does not know it yet.
            Self::Draft { run, .. } if run > progress.run => return Taken::Steps(Vec::new()),
            Self::Draft { run, bytes, tools } if run == progress.run => (bytes, tools, false),
            Self::Draft { bytes, tools, .. } if begins => (0, 0, bytes > 0 || tools > 0),
            Self::Draft { .. } => return Taken::Gap,
        };
        if progress.at > bytes || progress.tools_before > tools {
            return Taken::Gap;
        }
        let end = progress.at + progress.text.len();
        let mut steps = Vec::new();
        let mut text_up_to = |to: usize, bytes: &mut usize, tools: usize, steps: &mut Vec<(Place, Step)>| {
            let new = progress.text.get(bytes.saturating_sub(progress.at)..to.saturating_sub(progress.at));
            if let Some(text) = new.filter(|text| reset || !text.is_empty()) {
                *bytes = to;
                let place = Self::Draft { run: progress.run, bytes: to, tools };
                steps.push((place, Step::Text { text: text.to_owned(), reset }));
                reset = false;
            }
        };
        for note in progress.tools.iter().skip(tools - progress.tools_before) {
            text_up_to(note.at.min(end), &mut bytes, tools, &mut steps);
            tools += 1;
            steps.push((Self::Draft { run: progress.run, bytes, tools }, Step::Tool(note.clone())));
        }
        text_up_to(end, &mut bytes, tools, &mut steps);
        Taken::Steps(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::ToolState;

    fn piece(run: u64, at: usize, text: &str) -> Progress {
        Progress { run: (1, run), at, text: text.to_owned(), tools_before: 0, tools: Vec::new() }
    }

    fn at(run: u64, bytes: usize, tools: usize) -> Place {
        Place::Draft { run: (1, run), bytes, tools }
    }

    fn text(text: &str, reset: bool) -> Step {
        Step::Text { text: text.to_owned(), reset }
    }

    #[test]
    fn ids_read_back_and_others_are_the_beginning() {
        for place in [Place::Accepted, at(7, 12, 2), Place::Outcome, Place::Done] {
            assert_eq!(Place::after(&place.to_string()), place);
        }
        for id in ["", "1.2.3", "1.2.3.4.5", "1.2.-3.4", "x", "1.2.3.99999999999999999999999", "Done"] {
            assert_eq!(Place::after(id), Place::Nothing, "{id}");
        }
    }

    #[test]
    fn what_a_piece_adds_depends_on_what_was_seen() {
        let check = |place: Place, progress: &Progress, steps: &[(Place, Step)]| {
            assert_eq!(place.take(progress), Taken::Steps(steps.to_vec()), "{place:?} {progress:?}");
        };
        check(Place::Accepted, &piece(1, 0, ""), &[]);
        check(Place::Accepted, &piece(1, 0, "Hel"), &[(at(1, 3, 0), text("Hel", false))]);
        check(at(1, 3, 0), &piece(1, 3, "lo"), &[(at(1, 5, 0), text("lo", false))]);
        check(at(1, 3, 0), &piece(1, 0, "Hello"), &[(at(1, 5, 0), text("lo", false))]);
        check(at(1, 5, 0), &piece(1, 0, "Hello"), &[]);
        check(at(1, 9, 0), &piece(1, 0, "Hello"), &[]);
        check(at(2, 3, 0), &piece(1, 3, "lo"), &[]);
        check(at(1, 3, 0), &piece(2, 0, ""), &[(at(2, 0, 0), text("", true))]);
        check(at(1, 3, 0), &piece(2, 0, "Hi"), &[(at(2, 2, 0), text("Hi", true))]);
        check(at(1, 0, 0), &piece(2, 0, "Hi"), &[(at(2, 2, 0), text("Hi", false))]);
        check(Place::Outcome, &piece(2, 0, "Hi"), &[]);
        for (place, progress) in
            [(Place::Accepted, piece(1, 3, "lo")), (at(1, 2, 0), piece(1, 3, "lo")), (at(1, 3, 0), piece(2, 3, "lo"))]
        {
            assert_eq!(place.take(&progress), Taken::Gap, "{place:?} {progress:?}");
        }
    }

    #[test]
    fn a_place_within_a_character_is_nobody_s_and_adds_nothing() {
        assert_eq!(at(1, 1, 0).take(&piece(1, 0, "ü")), Taken::Steps(Vec::new()));
    }

    #[test]
    fn tools_come_where_they_were_called() {
        let note = |at, state| ToolNote { at, name: "orders".to_owned(), state };
        let (started, succeeded) = (note(3, ToolState::Started), note(3, ToolState::Succeeded));
        let progress = Progress { tools: vec![started.clone(), succeeded.clone()], ..piece(1, 0, "Hmm. Found it") };
        let whole = [
            (at(1, 3, 0), text("Hmm", false)),
            (at(1, 3, 1), Step::Tool(started)),
            (at(1, 3, 2), Step::Tool(succeeded)),
            (at(1, 13, 2), text(". Found it", false)),
        ];
        assert_eq!(Place::Accepted.take(&progress), Taken::Steps(whole.to_vec()));
        for (seen, (place, _)) in whole.iter().enumerate() {
            assert_eq!(place.take(&progress), Taken::Steps(whole[seen + 1..].to_vec()), "after {place}");
        }
        let later = Progress { tools_before: 1, ..piece(1, 3, "") };
        assert_eq!(at(1, 3, 0).take(&later), Taken::Gap, "a call was missed");
    }
}
