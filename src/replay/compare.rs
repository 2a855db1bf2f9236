//! What differs between two answers to the same turn.
//!
//! Pure. Refuses to judge which one is better. Invariants: an answer does not differ from itself; white space alone is no
//! difference; what the incumbent differs in from itself is noise, and nobody else's fault.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use similar::{Algorithm, DiffOp, capture_diff_slices};

use super::past::Answer;

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The words that the user sees.
    Text,
    /// The calls of tools: which, with which arguments, in which order.
    Tools,
    /// Whether the conversation is given to a person.
    Handoff,
    /// What a person is asked to confirm.
    Confirmation,
    /// There is no answer.
    Error,
}

impl Change {
    /// Every one, in the order in which reports show them.
    pub const ALL: [Self; 5] = [Self::Text, Self::Tools, Self::Handoff, Self::Confirmation, Self::Error];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Tools => "tools",
            Self::Handoff => "handoff",
            Self::Confirmation => "confirmation",
            Self::Error => "error",
        }
    }
}

/// Longer texts are compared as a whole: finding what two long texts have in common takes the product of their lengths.
const WORDS_MAX: usize = 5_000;

/// How a candidate's answer differs from the recorded one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    pub(super) changes: BTreeSet<Change>,
    /// The share of words that the two texts do not have in common, 0 to 1.
    pub(super) distance: f64,
    /// The most by which the incumbent's own answers differ from one another; `None` where it was not asked.
    pub(super) noise: Option<f64>,
}

/// `again` are further answers of the incumbent to the same turn.
pub(super) fn compare(recorded: &Answer, candidate: &Answer, again: &[Answer]) -> Comparison {
    let again: Vec<&Answer> = again.iter().filter(|answer| answer.error.is_none()).collect();
    let mut noise = None;
    for (place, one) in again.iter().enumerate() {
        for other in again[..place].iter().copied().chain([recorded]) {
            noise = Some(distance(&one.reply, &other.reply).max(noise.unwrap_or(0.0)));
        }
    }
    let usual: BTreeSet<Change> = again.iter().flat_map(|answer| differences(recorded, answer)).collect();
    let mut changes: BTreeSet<Change> = differences(recorded, candidate).difference(&usual).copied().collect();
    let distance = distance(&recorded.reply, &candidate.reply);
    if candidate.error.is_none() && distance > noise.unwrap_or(0.0) {
        changes.insert(Change::Text);
    }
    Comparison { changes, distance, noise }
}

/// What differs beside the words.
fn differences(recorded: &Answer, other: &Answer) -> BTreeSet<Change> {
    if other.error.is_some() {
        return BTreeSet::from([Change::Error]);
    }
    let differ = [
        (Change::Tools, recorded.calls != other.calls),
        (Change::Handoff, recorded.handoff != other.handoff),
        (Change::Confirmation, recorded.questions != other.questions),
    ];
    differ.into_iter().filter_map(|(change, differs)| differs.then_some(change)).collect()
}

/// The share of words that two texts do not have in common, to four decimals.
fn distance(left: &str, right: &str) -> f64 {
    let [left, right] = [left, right].map(|text| text.split_whitespace().collect::<Vec<_>>());
    if left == right {
        return 0.0;
    }
    let all = left.len() + right.len();
    if all > WORDS_MAX {
        return 1.0;
    }
    let operations = capture_diff_slices(Algorithm::Myers, &left, &right);
    let common: usize = operations.iter().filter_map(kept).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
    let share = 1.0 - (2 * common) as f64 / all as f64;
    (share * 10_000.0).round() / 10_000.0
}

fn kept(operation: &DiffOp) -> Option<usize> {
    match operation {
        DiffOp::Equal { len, .. } => Some(*len),
        DiffOp::Delete { .. } | DiffOp::Insert { .. } | DiffOp::Replace { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::past::Call;
    use super::*;

    fn says(text: &str) -> Answer {
        Answer { reply: text.to_owned(), ..Answer::default() }
    }

    fn check(recorded: &Answer, candidate: &Answer, again: &[Answer], expected: &[Change]) {
        let found = compare(recorded, candidate, again);
        assert_eq!(found.changes, expected.iter().copied().collect(), "{recorded:?} {candidate:?} {again:?}");
    }

    #[test]
    fn what_has_changed_is_named() {
        let calls = vec![Call::new("orders", "{}")];
        let recorded = says("Your order is on its way.");
        check(&recorded, &recorded, &[], &[]);
        check(&recorded, &says("Your  order\nis on its way. "), &[], &[]);
        check(&recorded, &says("Your order has left."), &[], &[Change::Text]);
        check(&recorded, &Answer { handoff: true, ..recorded.clone() }, &[], &[Change::Handoff]);
        check(&recorded, &Answer { calls, ..recorded.clone() }, &[], &[Change::Tools]);
        check(
            &recorded,
            &Answer { questions: vec!["refund".into()], ..says("x") },
            &[],
            &[Change::Text, Change::Confirmation],
        );
        check(&recorded, &Answer { error: Some("away".into()), ..says("") }, &[], &[Change::Error]);
    }

    #[test]
    fn what_the_incumbent_differs_in_from_itself_is_noise() {
        let recorded = says("one two three four");
        let again = [says("one two three five"), says("one two three six")];
        check(&recorded, &says("one two three seven"), &again, &[]);
        check(&recorded, &says("nothing in common"), &again, &[Change::Text]);
        let calling = Answer { calls: vec![Call::new("orders", "{}")], ..recorded.clone() };
        check(&recorded, &calling, std::slice::from_ref(&calling), &[]);
        check(
            &recorded,
            &Answer { handoff: true, ..calling.clone() },
            std::slice::from_ref(&calling),
            &[Change::Handoff],
        );
        let failed = Answer { error: Some("away".into()), ..says("") };
        check(&recorded, &failed, std::slice::from_ref(&failed), &[Change::Error]);
    }

    #[test]
    fn the_distance_is_the_share_of_words_not_in_common() {
        assert_eq!(distance("a b c d", "a b c d"), 0.0);
        assert_eq!(distance("a b", "c d"), 1.0);
        assert_eq!(distance("a b c d", "a b c e"), 0.25);
        assert_eq!(distance("", "a"), 1.0);
        let long = "word ".repeat(WORDS_MAX);
        assert_eq!(distance(&long, &format!("{long} more")), 1.0);
    }
}
