//! Conditions as they are written: `{ value = "metadata.topic", equals = "billing" }`, and `all`, `any` and `not` of others.
//!
//! Refuses operators it does not know and conditions that ask nothing. Invariant: nesting and lists have bounds, so that a
//! condition's cost has one, too.

use serde_json::Value as Json;

use super::graph::Links;
use super::{Condition, Pattern, Rule, Scalar, Subject, Test};
use crate::config::expected::{Expected, flag};
use crate::config::problem::quoted;
use crate::config::reader::{Table, Value};

/// What a person can follow.
const DEPTH_MAX: usize = 8;

/// Parts of one `all` or `any`, words of one `in`, rules of one node: past this it is a table for a service to look up.
const LIST_MAX: usize = 256;

/// Names of metadata are short, and a path is some of them.
const PATH_CHARS_MAX: usize = 255;

const OPERATOR_KEYS: [&str; 8] =
    ["exists", "equals", "in", "matches", "less_than", "at_most", "greater_than", "at_least"];

const OPERATORS: &str = "exists, equals, in, matches, less_than, at_most, greater_than or at_least";

/// One rule of a condition node.
pub(super) fn rule<'t>(node: &'t str, value: &Value<'t>, links: &mut Links<'t>) -> Option<Rule> {
    let table = value.table()?;
    let next = links.required(Some(node), &table, "next");
    let condition = condition(&table, 1);
    table.finish(&[]);
    Some(Rule { condition: condition?, next: next? })
}

/// The items of a list of 1 to [`LIST_MAX`].
pub(super) fn items<'t>(value: &Value<'t>, right: &str) -> Option<Vec<Value<'t>>> {
    let items = value.items(right)?;
    match items.len() {
        0 => value.problem("is empty", right),
        count if count > LIST_MAX => value.problem(format!("has {count} items"), format!("write at most {LIST_MAX}")),
        _ => return Some(items),
    }
    None
}

/// The condition that the keys of `table` are; its other keys are the caller's. `None` only after a problem.
fn condition(table: &Table<'_>, depth: usize) -> Option<Condition> {
    if depth > DEPTH_MAX {
        table.problem(format!("is nested over {DEPTH_MAX} deep"), "spread it over several condition nodes");
        table.ignore(["all", "any", "not", "value"]);
        table.ignore(OPERATOR_KEYS);
        return None;
    }
    let several = |value: Value<'_>| -> Option<Vec<Condition>> {
        let parts = items(&value, "write a list of conditions")?;
        let parts = parts.iter().map(|part| nested(part, depth + 1)).collect::<Vec<_>>();
        parts.into_iter().collect()
    };
    let forms = [table.value("all"), table.value("any"), table.value("not"), table.value("value")];
    if forms.iter().flatten().count() > 1 {
        table.problem("says more than one of all, any, not and value", "keep one, and nest the others in it");
        return None;
    }
    match forms {
        [Some(all), ..] => several(all).map(Condition::All),
        [_, Some(any), ..] => several(any).map(Condition::Any),
        [_, _, Some(not), _] => nested(&not, depth + 1).map(|inner| Condition::Not(Box::new(inner))),
        [.., Some(value)] => {
            let (subject, tests) = (value.read(&subject()), tests(table));
            Some(Condition::Value { subject: subject?, tests: tests? })
        }
        _ => {
            table.missing("value", "name what is asked: \"text\" or \"metadata.KEY\"; or write all, any or not");
            None
        }
    }
}

fn nested(value: &Value<'_>, depth: usize) -> Option<Condition> {
    let table = value.table()?;
    let condition = condition(&table, depth);
    table.finish(&[("next", "belongs to a rule, not to a condition inside it".to_owned())]);
    condition
}

fn subject() -> Expected<Subject> {
    let right = "write \"text\", for what the user wrote, or \"metadata.KEY\"";
    Expected::text(right, |text| match text.strip_prefix("metadata.") {
        Some(path) if (1..=PATH_CHARS_MAX).contains(&path.chars().count()) => Ok(Subject::Metadata(path.to_owned())),
        None if text == "text" => Ok(Subject::Text),
        _ => Err(format!("{} is no value", quoted(text))),
    })
}

/// Every operator beside a `value`. `None` only after a problem.
fn tests(table: &Table<'_>) -> Option<Vec<Test>> {
    let numeric = |key, test: fn(f64) -> Test| {
        let scalar = table.value(key).map(|value| (scalar(&value), value));
        scalar.map(|(scalar, value)| match scalar? {
            Scalar::Number(number) => Some(test(number)),
            _ => {
                value.problem(value.is_a(), "write a number");
                None
            }
        })
    };
    let found = [
        table.value("exists").map(|value| value.read(&flag()).map(Test::Exists)),
        table.value("equals").map(|value| scalar(&value).map(Test::Equals)),
        table.value("in").map(|value| {
            let items = items(&value, "write a list of strings, numbers or flags")?;
            items.iter().map(scalar).collect::<Option<_>>().map(Test::In)
        }),
        table.value("matches").map(|value| value.read(&pattern()).map(Test::Matches)),
        numeric("less_than", Test::LessThan),
        numeric("at_most", Test::AtMost),
        numeric("greater_than", Test::GreaterThan),
        numeric("at_least", Test::AtLeast),
    ];
    let tests: Vec<Option<Test>> = found.into_iter().flatten().collect();
    if tests.is_empty() {
        table.missing("equals", &format!("say what is asked of the value: {OPERATORS}"));
        return None;
    }
    tests.into_iter().collect()
}

/// A regular expression.
pub(super) fn pattern() -> Expected<Pattern> {
    let right = "write a pattern in the syntax of the Rust regex crate, without look-around";
    Expected::text(right, |text| Pattern::new(text).map_err(|wrong| format!("is no pattern: {wrong}")))
}

fn scalar(value: &Value<'_>) -> Option<Scalar> {
    match value.json() {
        Ok(Json::String(text)) => Some(Scalar::Text(text)),
        Ok(Json::Bool(flag)) => Some(Scalar::Flag(flag)),
        Ok(Json::Number(number)) => number.as_f64().map(Scalar::Number),
        Ok(_) => {
            value.problem(value.is_a(), "write a string, a number, true or false");
            None
        }
        Err(wrong) => {
            value.problem(wrong, "write a string, a number, true or false");
            None
        }
    }
}
