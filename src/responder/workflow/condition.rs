//! Whether a condition holds.
//!
//! Pure and total: every condition is true or false for every conversation. Answers are kept as text, so a number in a text
//! counts as that number; a value that is absent fails every test but `exists = false`.

use serde_json::{Map, Value};

use crate::config::{Condition, Scalar, Subject, Test};
use crate::template::lookup;

/// `text` is what the user wrote, without blanks at its ends.
pub(super) fn holds(condition: &Condition, metadata: &Map<String, Value>, text: &str) -> bool {
    match condition {
        Condition::All(parts) => parts.iter().all(|part| holds(part, metadata, text)),
        Condition::Any(parts) => parts.iter().any(|part| holds(part, metadata, text)),
        Condition::Not(part) => !holds(part, metadata, text),
        Condition::Value { subject, tests } => {
            let written;
            let value = match subject {
                Subject::Text => {
                    written = Value::from(text);
                    Some(&written).filter(|_| !text.is_empty())
                }
                Subject::Metadata(path) => lookup(metadata, path),
            };
            tests.iter().all(|test| passes(test, value))
        }
    }
}

/// Whether two words are the same to a person: blanks at the ends and letter case do not count.
pub(super) fn is_same_word(one: &str, other: &str) -> bool {
    one.trim().to_lowercase() == other.trim().to_lowercase()
}

fn passes(test: &Test, value: Option<&Value>) -> bool {
    let Some(value) = value else { return matches!(test, Test::Exists(false)) };
    let number = |compare: &dyn Fn(f64) -> bool| as_number(value).is_some_and(compare);
    match test {
        Test::Exists(expected) => *expected,
        Test::Equals(expected) => is_equal(value, expected),
        Test::In(list) => list.iter().any(|expected| is_equal(value, expected)),
        Test::Matches(pattern) => as_text(value).is_some_and(|text| pattern.regex().is_match(&text)),
        Test::LessThan(limit) => number(&|number| number < *limit),
        Test::AtMost(limit) => number(&|number| number <= *limit),
        Test::GreaterThan(limit) => number(&|number| number > *limit),
        Test::AtLeast(limit) => number(&|number| number >= *limit),
    }
}

fn is_equal(value: &Value, expected: &Scalar) -> bool {
    match expected {
        Scalar::Text(expected) => as_text(value).is_some_and(|text| text == *expected),
        // Written alike, an equal number is an equal number.
        #[expect(
            clippy::float_cmp,
            reason = "both sides are numbers as somebody wrote them, not results of arithmetic"
        )]
        Scalar::Number(expected) => as_number(value).is_some_and(|number| number == *expected),
        Scalar::Flag(expected) => as_text(value).is_some_and(|text| text == if *expected { "true" } else { "false" }),
    }
}

/// `None` for lists and objects.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn as_number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}
