//! One turn's walk through a workflow's graph.
//!
//! Pure. Refuses to ask the responder: it stops where the graph asks it, and is told the answer. Invariants: at most
//! [`HOPS_MAX`] nodes a turn; a walk stops in a place that the graph has, or has left the graph; no graph and no place makes
//! it panic.

use std::collections::BTreeSet;

use regex::Captures;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::STATE_KEY;
use super::condition::{holds, is_same_word};
use crate::config::{Accepts, Ask, Check, Node, Say, Workflow};
use crate::message::ReplyMessage;
use crate::store::{join_patches, merge_patch};
use crate::template::{Template, Values};

/// The most nodes that one turn comes to.
pub const HOPS_MAX: usize = 32;

/// Where a conversation is: the next message is taken up by this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub workflow: String,
    pub version: u32,
    pub node: String,
    /// How often an `ask` node has put its question; with 0 it puts it now.
    #[serde(default)]
    pub asked: u32,
}

/// What the user has said in this turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    /// Without blanks at its ends.
    pub(super) text: &'a str,
    /// Of the last message's button.
    pub(super) payload: Option<&'a str>,
    /// The turn's, for references.
    pub(super) attempt: u32,
    pub(super) count: usize,
}

/// Why a walk has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The responder is to be asked; [`Walk::answered`] goes on.
    Responder {
        prompt: Option<String>,
    },
    /// For the next message.
    Waits,
    HandsOff,
    Ends,
}

#[derive(Debug)]
pub(super) struct Walk<'a> {
    workflow: &'a Workflow,
    input: Input<'a>,
    /// The conversation's, before the turn.
    before: &'a Map<String, Value>,
    /// The same with the changes.
    metadata: Map<String, Value>,
    changes: Map<String, Value>,
    said: Vec<ReplyMessage>,
    node: &'a str,
    asked: u32,
    /// The first node since something was said or answered: only conditions lie between it and `node`.
    resume: &'a str,
    hops: usize,
    /// The `respond` nodes that this turn has been to.
    responded: BTreeSet<&'a str>,
    responder_asked: bool,
}

impl<'a> Walk<'a> {
    /// At the conversation's place, or where it goes when it has none that this workflow knows.
    pub(super) fn begin(workflow: &'a Workflow, metadata: &'a Map<String, Value>, input: Input<'a>) -> Self {
        let (node, asked) = match metadata.get(STATE_KEY).filter(|state| !state.is_null()) {
            None => (workflow.start.as_str(), 0),
            Some(state) => {
                let place = Place::deserialize(state).ok();
                let place = place.filter(|place| place.workflow == workflow.name && place.version == workflow.version);
                let known = place.and_then(|place| Some((workflow.nodes.get_key_value(&place.node)?.0, place.asked)));
                known.map_or_else(
                    || (workflow.fallback.as_ref().unwrap_or(&workflow.start).as_str(), 0),
                    |(node, asked)| (node.as_str(), asked),
                )
            }
        };
        Self {
            workflow,
            input,
            before: metadata,
            metadata: metadata.clone(),
            changes: Map::new(),
            said: Vec::new(),
            node,
            asked,
            resume: node,
            hops: 0,
            responded: BTreeSet::new(),
            responder_asked: false,
        }
    }

    /// Walks until there is a reason to stop.
    pub(super) fn go(&mut self) -> Stop {
        let workflow = self.workflow;
        while !self.is_exhausted() {
            let Some(node) = workflow.nodes.get(self.node) else { return Stop::Ends };
            self.hops += 1;
            match node {
                Node::Respond { say, next } => {
                    let from_responder = matches!(say, Say::Responder { .. });
                    if (from_responder && self.responder_asked) || !self.responded.insert(self.node) {
                        // What lies on the way here is asked again, with the next message.
                        self.go_on_with(self.resume);
                        return Stop::Waits;
                    }
                    match say {
                        Say::Text(text) => self.say(text),
                        Say::Responder { prompt } => {
                            self.responder_asked = true;
                            return Stop::Responder { prompt: prompt.as_ref().map(|prompt| self.fill(prompt)) };
                        }
                    }
                    self.go_on_with(next);
                }
                Node::Ask(ask) => match self.ask(ask) {
                    Some(next) => self.go_on_with(next),
                    None => return Stop::Waits,
                },
                Node::Condition { rules, otherwise } => {
                    let rule = rules.iter().find(|rule| holds(&rule.condition, &self.metadata, self.input.text));
                    self.node = rule.map_or(otherwise, |rule| &rule.next);
                    self.asked = 0;
                }
                Node::Handoff { text } => {
                    text.iter().for_each(|text| self.say(text));
                    return Stop::HandsOff;
                }
                Node::End { text } => {
                    text.iter().for_each(|text| self.say(text));
                    return Stop::Ends;
                }
            }
        }
        Stop::Waits
    }

    /// Takes the responder's answer up and leaves its node, unless the responder itself `waits` for the next message.
    pub(super) fn answered(&mut self, said: Vec<ReplyMessage>, patch: Option<Map<String, Value>>, waits: bool) {
        self.said.extend(said);
        self.change(&patch.into_iter().flatten().filter(|(key, _)| key != STATE_KEY).collect());
        let workflow = self.workflow;
        if let (Some(Node::Respond { next, .. }), false) = (workflow.nodes.get(self.node), waits) {
            self.go_on_with(next);
        }
    }

    /// Whether the next step is to ask the responder.
    pub(super) fn is_with_responder(&self) -> bool {
        matches!(self.workflow.nodes.get(self.node), Some(Node::Respond { say: Say::Responder { .. }, .. }))
    }

    /// Whether the walk has stopped for its length.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.hops >= HOPS_MAX
    }

    pub(super) fn place(&self) -> Place {
        let Workflow { name, version, .. } = self.workflow;
        Place { workflow: name.clone(), version: *version, node: self.node.to_owned(), asked: self.asked }
    }

    pub(super) const fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// A merge patch of what was answered and of what the responder changed.
    pub(super) const fn changes(&self) -> &Map<String, Value> {
        &self.changes
    }

    pub(super) fn into_said(self) -> Vec<ReplyMessage> {
        self.said
    }

    fn go_on_with(&mut self, node: &'a str) {
        self.node = node;
        self.resume = node;
        self.asked = 0;
    }

    /// Where a question leads; `None` when it waits for its answer.
    fn ask(&mut self, ask: &'a Ask) -> Option<&'a str> {
        if self.asked == 0 {
            self.put(ask, &ask.text);
            return None;
        }
        if let Some(answer) = answer(ask, self.input) {
            self.change(&Map::from_iter([(ask.save_as.clone(), Value::from(answer))]));
            return Some(&ask.next);
        }
        match &ask.check {
            Some(check) if self.asked >= check.max_attempts => Some(&check.otherwise),
            check => {
                let retry = check.as_ref().and_then(|check| check.retry_text.as_ref());
                self.put(ask, retry.unwrap_or(&ask.text));
                None
            }
        }
    }

    fn change(&mut self, patch: &Map<String, Value>) {
        merge_patch(&mut self.metadata, patch);
        join_patches(&mut self.changes, patch, self.before);
    }

    fn put(&mut self, ask: &Ask, text: &Template) {
        let buttons = match &ask.check {
            Some(Check { accepts: Accepts::Choices(choices), .. }) => choices.clone(),
            _ => Vec::new(),
        };
        let content = self.fill(text);
        self.said.push(ReplyMessage { content, buttons });
        self.asked = self.asked.saturating_add(1);
    }

    /// A text whose references leave nothing of it is not said.
    fn say(&mut self, text: &Template) {
        let content = self.fill(text);
        if !content.trim().is_empty() {
            self.said.push(ReplyMessage::text(content));
        }
    }

    fn fill(&self, template: &Template) -> String {
        template.fill(&Values {
            text: self.input.text,
            captures: None,
            metadata: &self.metadata,
            attempt: self.input.attempt,
            count: self.input.count,
        })
    }
}

/// The answer to a question, if this is one.
fn answer(ask: &Ask, input: Input<'_>) -> Option<String> {
    match ask.check.as_ref().map(|check| &check.accepts) {
        None => Some(input.text.to_owned()).filter(|text| !text.is_empty()),
        Some(Accepts::Pattern(pattern)) => pattern.regex().captures(input.text).map(|caught| caught_text(&caught)),
        Some(Accepts::Choices(choices)) => {
            let pressed = choices.iter().find(|choice| input.payload == Some(choice.payload.as_str()));
            let is_written = |word: &str| is_same_word(word, input.text);
            let written = || choices.iter().find(|choice| is_written(&choice.label) || is_written(&choice.payload));
            pressed.or_else(written).map(|choice| choice.payload.clone())
        }
    }
}

/// What the first group has caught, or all that matched where no group took part.
fn caught_text(caught: &Captures<'_>) -> String {
    let group = caught.iter().skip(1).flatten().next();
    group.or_else(|| caught.get(0)).map_or("", |group| group.as_str()).to_owned()
}
