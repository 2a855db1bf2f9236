//! The tables `[workflows.NAME.nodes.NODE]`, one kind each.
//!
//! Refuses a key that belongs to another kind of node. Invariant: where an answer can be refused, the node says what happens
//! when it is refused for the last time.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::conditions::{items, pattern, rule};
use super::graph::Links;
use super::{Accepts, Ask, Check, Node, Say};
use crate::config::bots::NAME_CHARS_MAX;
use crate::config::expected::{Expected, NAME_ALPHABET, in_name_alphabet, is_name, name, text, whole, word};
use crate::config::problem::alternatives;
use crate::config::reader::{Table, Value};
use crate::message::Button;
use crate::template::Template;

/// What one node says, or adds to a prompt: some pages.
const TEXT_CHARS_MAX: usize = 16_000;

/// Quick replies of one message and characters of a title on Messenger, bytes of callback data on Telegram: what every
/// channel shows whole. <https://developers.facebook.com/docs/messenger-platform/send-messages/quick-replies>,
/// <https://core.telegram.org/bots/api#inlinekeyboardbutton>.
const CHOICES_MAX: usize = 13;
const LABEL_CHARS_MAX: usize = 20;
const VALUE_BYTES_MAX: usize = 64;

/// A person who was asked ten times wants a person.
const ATTEMPTS: RangeInclusive<u32> = 1..=10;

const DEFAULT_ATTEMPTS: u32 = 3;

/// Metadata keys that are not a workflow's to write.
const RESERVED: &str = "workflow_state";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Respond,
    Ask,
    Condition,
    Handoff,
    End,
}

const KINDS: &[(&str, Kind)] = &[
    ("respond", Kind::Respond),
    ("ask", Kind::Ask),
    ("condition", Kind::Condition),
    ("handoff", Kind::Handoff),
    ("end", Kind::End),
];

/// Every key that not all kinds have, and the kinds that have it.
const KIND_KEYS: &[(&str, &[Kind])] = &[
    ("text", &[Kind::Respond, Kind::Ask, Kind::Handoff, Kind::End]),
    ("prompt", &[Kind::Respond]),
    ("next", &[Kind::Respond, Kind::Ask]),
    ("save_as", &[Kind::Ask]),
    ("pattern", &[Kind::Ask]),
    ("choices", &[Kind::Ask]),
    ("retry_text", &[Kind::Ask]),
    ("max_attempts", &[Kind::Ask]),
    ("rules", &[Kind::Condition]),
    ("else", &[Kind::Ask, Kind::Condition]),
];

/// Reads every node and notes what it names.
pub(super) fn read<'t>(table: &Table<'t>, links: &mut Links<'t>) -> BTreeMap<String, Node> {
    let mut nodes = BTreeMap::new();
    for (name, value) in table.named() {
        if let Err(wrong) = is_name(name, in_name_alphabet, NAME_CHARS_MAX) {
            value.problem(
                format!("the name {wrong}"),
                format!("use 1 to {NAME_CHARS_MAX} characters of {NAME_ALPHABET}"),
            );
        }
        let Some(table) = value.table() else { continue };
        if let Some(node) = node(name, &table, links) {
            nodes.insert(name.to_owned(), node);
        }
    }
    nodes
}

fn node<'t>(name: &'t str, table: &Table<'t>, links: &mut Links<'t>) -> Option<Node> {
    let kind = table.required("kind", &word(KINDS));
    let node = match kind {
        Some(Kind::Respond) => respond(name, table, links),
        Some(Kind::Ask) => ask(name, table, links).map(Node::Ask),
        Some(Kind::Condition) => condition(name, table, links),
        Some(Kind::Handoff) => template(table, "text").map(|text| Node::Handoff { text }),
        Some(Kind::End) => template(table, "text").map(|text| Node::End { text }),
        None => {
            table.ignore(KIND_KEYS.iter().map(|(key, _)| *key));
            None
        }
    };
    table.finish(&kind.map(strangers).unwrap_or_default());
    node
}

fn respond<'t>(name: &'t str, table: &Table<'t>, links: &mut Links<'t>) -> Option<Node> {
    let (text, prompt) = (template(table, "text"), template(table, "prompt"));
    let next = links.required(Some(name), table, "next");
    if let (Some(_), Some(prompt)) = (table.value("text"), table.value("prompt")) {
        prompt.problem("stands beside text", "keep text, to say just that, or prompt, to let the responder answer");
    }
    let say = match (text?, prompt?) {
        (Some(text), _) => Say::Text(text),
        (None, prompt) => Say::Responder { prompt },
    };
    Some(Node::Respond { say, next: next? })
}

fn ask<'t>(node: &'t str, table: &Table<'t>, links: &mut Links<'t>) -> Option<Ask> {
    let text = required_template(table, "text");
    let save_as = table.required("save_as", &name(NAME_ALPHABET, in_name_alphabet, NAME_CHARS_MAX));
    if save_as.as_deref() == Some(RESERVED)
        && let Some(value) = table.value("save_as")
    {
        value.problem("holds the workflow's own place", "choose another key");
    }
    let next = links.required(Some(node), table, "next");
    let check = check(node, table, links);
    Some(Ask { text: text?, save_as: save_as?, next: next?, check: check? })
}

/// `None` only after a problem; `Some(None)` when every answer is taken.
fn check<'t>(node: &'t str, table: &Table<'t>, links: &mut Links<'t>) -> Option<Option<Check>> {
    let accepts = match (table.value("pattern"), table.value("choices")) {
        (None, None) => {
            for key in ["retry_text", "max_attempts", "else"] {
                if let Some(value) = table.value(key) {
                    value.problem("has no meaning where every answer is taken", "add pattern or choices, or remove it");
                }
            }
            return Some(None);
        }
        (Some(value), None) => value.read(&pattern()).map(Accepts::Pattern),
        (None, Some(value)) => choices(&value).map(Accepts::Choices),
        (Some(_), Some(choices)) => {
            choices.problem("stands beside pattern", "keep one of them");
            None
        }
    };
    let retry_text = template(table, "retry_text");
    let max_attempts = table.optional("max_attempts", &whole(ATTEMPTS)).unwrap_or(DEFAULT_ATTEMPTS);
    let otherwise = links.required(Some(node), table, "else");
    Some(Some(Check { accepts: accepts?, retry_text: retry_text?, max_attempts, otherwise: otherwise? }))
}

/// Strings, or tables with a label and the value it stands for.
fn choices(value: &Value<'_>) -> Option<Vec<Button>> {
    let right = format!("write 1 to {CHOICES_MAX} labels, or tables {{ label = \"...\", value = \"...\" }}");
    let items = items(value, &right)?;
    if items.len() > CHOICES_MAX {
        value.problem(format!("has {} choices", items.len()), right);
        return None;
    }
    let mut choices: Vec<Button> = Vec::new();
    for item in &items {
        let Some(choice) = choice(item, &right) else { continue };
        let same = |one: &str, other: &str| one.to_lowercase() == other.to_lowercase();
        if choices.iter().any(|known| same(&known.payload, &choice.payload) || same(&known.label, &choice.label)) {
            item.problem("stands there twice", "give each choice a label and a value of its own");
        }
        choices.push(choice);
    }
    (choices.len() == items.len()).then_some(choices)
}

fn choice(item: &Value<'_>, right: &str) -> Option<Button> {
    if item.as_str().is_some() {
        let label = item.read(&text(LABEL_CHARS_MAX))?;
        return Some(Button { payload: label.clone(), label });
    }
    if !item.is_table() {
        item.problem(item.is_a(), right);
        return None;
    }
    let table = item.table()?;
    let label = table.required("label", &text(LABEL_CHARS_MAX));
    let value = table.required("value", &choice_value());
    table.finish(&[]);
    Some(Button { label: label?, payload: value? })
}

fn choice_value() -> Expected<String> {
    Expected::text(format!("write 1 to {VALUE_BYTES_MAX} bytes"), |text| match text.len() {
        0 => Err("is empty".to_owned()),
        1..=VALUE_BYTES_MAX => Ok(text.to_owned()),
        bytes => Err(format!("has {bytes} bytes")),
    })
}

fn condition<'t>(name: &'t str, table: &Table<'t>, links: &mut Links<'t>) -> Option<Node> {
    let right = "write a list of rules such as { value = \"metadata.KEY\", equals = \"...\", next = \"NODE\" }";
    let rules = match table.value("rules") {
        None => {
            table.missing("rules", right);
            None
        }
        Some(value) => items(&value, right).and_then(|items| {
            let rules: Vec<_> = items.iter().map(|item| rule(name, item, links)).collect();
            rules.into_iter().collect()
        }),
    };
    let otherwise = links.required(Some(name), table, "else");
    Some(Node::Condition { rules: rules?, otherwise: otherwise? })
}

/// A text with references. `None` only after a problem; `Some(None)` when the key is absent.
fn template(table: &Table<'_>, key: &'static str) -> Option<Option<Template>> {
    match table.value(key) {
        None => Some(None),
        Some(value) => read_template(&value).map(Some),
    }
}

fn required_template(table: &Table<'_>, key: &'static str) -> Option<Template> {
    match table.value(key) {
        None => {
            table.missing(key, &text(TEXT_CHARS_MAX).right);
            None
        }
        Some(value) => read_template(&value),
    }
}

fn read_template(value: &Value<'_>) -> Option<Template> {
    let written = value.read(&text(TEXT_CHARS_MAX))?;
    Template::parse(&written, None).map_err(|error| value.problem(error.wrong, error.right)).ok()
}

/// The keys of other kinds, and whose they are.
fn strangers(kind: Kind) -> Vec<(&'static str, String)> {
    let names = |homes: &[Kind]| {
        let names: Vec<_> = KINDS.iter().filter(|(_, kind)| homes.contains(kind)).map(|(name, _)| *name).collect();
        alternatives(&names)
    };
    let foreign = KIND_KEYS.iter().filter(|(_, homes)| !homes.contains(&kind));
    foreign.map(|(key, homes)| (*key, format!("belongs to nodes of kind {}", names(homes)))).collect()
}
