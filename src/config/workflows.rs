//! The tables `[workflows.NAME]`: small graphs that say what happens before, between and after the responder's own answers.
//!
//! Refuses a graph that could stand still or go round without anybody speaking: nodes that are missing or never reached,
//! conditions that lead back to themselves, questions without a way out. Invariant: every node that a [`Workflow`] read here
//! names is one of its nodes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use regex::Regex;

use super::bots::NAME_CHARS_MAX;
use super::expected::{NAME_ALPHABET, in_name_alphabet, is_name, whole};
use super::reader::Table;
use crate::message::Button;
use crate::template::Template;

mod conditions;
mod graph;
mod nodes;

use graph::Links;

/// A graph of nodes. How it is walked, and what is kept of it between turns, is told in `responder/workflow.rs`.
#[derive(Debug, Clone, PartialEq)]
pub struct Workflow {
    pub name: String,
    /// To be raised with every change of the nodes: conversations that are within another version go to `fallback`.
    pub version: u32,
    pub start: String,
    /// Where conversations go on whose place is of another version, or gone; absent: `start`.
    pub fallback: Option<String>,
    pub nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Says something and goes on.
    Respond { say: Say, next: String },
    /// Asks, and goes on with the answer.
    Ask(Ask),
    /// Goes on to the node of the first rule that holds.
    Condition { rules: Vec<Rule>, otherwise: String },
    /// Gives the conversation to a person.
    Handoff { text: Option<Template> },
    /// Leaves the workflow; the next message begins it again.
    End { text: Option<Template> },
}

#[derive(Debug, Clone, PartialEq)]
pub enum Say {
    Text(Template),
    /// What the responder answers; `prompt` is added to its instructions for this turn.
    Responder {
        prompt: Option<Template>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub text: Template,
    /// Key of the conversation's metadata that takes the answer.
    pub save_as: String,
    pub next: String,
    /// Which answers are taken; absent: every one.
    pub check: Option<Check>,
}

/// What an answer must be, and what happens to one that is not.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub accepts: Accepts,
    /// Said instead of the question when it is asked again.
    pub retry_text: Option<Template>,
    /// How often the question is put in all: 1 to 10.
    pub max_attempts: u32,
    pub otherwise: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Accepts {
    /// What the pattern's first group has caught is the answer, or all that matched where no group took part.
    Pattern(Pattern),
    /// One of these buttons, or its label or value written out; its payload is the answer.
    Choices(Vec<Button>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub condition: Condition,
    pub next: String,
}

/// A pure question about the conversation's metadata and the text of the new messages.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    /// Every test holds for the value.
    Value {
        subject: Subject,
        tests: Vec<Test>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The text of the new messages, without blanks at its ends.
    Text,
    /// See [`crate::template::lookup`].
    Metadata(String),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// Whether there is a value; null is none.
    Exists(bool),
    Equals(Scalar),
    In(Vec<Scalar>),
    Matches(Pattern),
    LessThan(f64),
    AtMost(f64),
    GreaterThan(f64),
    AtLeast(f64),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    Text(String),
    Number(f64),
    Flag(bool),
}

/// A regular expression, in the syntax of the `regex` crate; equal to another when it is written alike.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// # Errors
    /// What is wrong with the pattern, in a few words.
    pub fn new(pattern: &str) -> Result<Self, String> {
        Regex::new(pattern).map(Self).map_err(|error| {
            // The regex crate draws the pattern over several lines; the last one says what is wrong.
            let drawn = error.to_string();
            drawn.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })
    }

    #[must_use]
    pub const fn regex(&self) -> &Regex {
        &self.0
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

/// Versions are counted by hand.
const VERSIONS: RangeInclusive<u32> = 1..=1_000_000;

/// Reads every workflow.
pub(super) fn read(table: &Table<'_>) -> BTreeMap<String, Workflow> {
    let mut workflows = BTreeMap::new();
    for (name, value) in table.named() {
        if let Err(wrong) = is_name(name, in_name_alphabet, NAME_CHARS_MAX) {
            value.problem(
                format!("the name {wrong}"),
                format!("use 1 to {NAME_CHARS_MAX} characters of {NAME_ALPHABET}"),
            );
        }
        let Some(table) = value.table() else { continue };
        if let Some(workflow) = workflow(name, &table) {
            workflows.insert(name.to_owned(), workflow);
        }
    }
    workflows
}

fn workflow(name: &str, table: &Table<'_>) -> Option<Workflow> {
    let version = table.required("version", &whole(VERSIONS));
    let mut links = Links::default();
    let start = links.required(None, table, "start");
    let fallback = links.optional(None, table, "fallback");
    let node_tables = table.table("nodes");
    table.finish(&[]);
    if node_tables.named().is_empty() {
        table.missing("nodes", &format!("add a table [{}.NODE], and name it as start", node_tables.path));
        return None;
    }
    let nodes = nodes::read(&node_tables, &mut links);
    graph::check(&node_tables, &nodes, &links);
    Some(Workflow { name: name.to_owned(), version: version?, start: start?, fallback, nodes })
}
