//! The graph that a workflow's nodes make: whether everything it names is there, can be reached, and comes to a rest.
//!
//! Refuses to judge reachability while a node could not be read: what it leads to is unknown then. Invariant: a circle needs
//! a message of the user to be walked twice.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::config::expected::Expected;
use crate::config::problem::{nearest, quoted};
use crate::config::reader::{Table, Value};

/// Every place that names a node.
#[derive(Default)]
pub(super) struct Links<'t> {
    links: Vec<Link<'t>>,
}

struct Link<'t> {
    /// `None`: the workflow itself.
    from: Option<&'t str>,
    to: String,
    place: Value<'t>,
}

impl<'t> Links<'t> {
    /// Reads a key that names a node and must be there. `None` only after a problem.
    pub(super) fn required(&mut self, from: Option<&'t str>, table: &Table<'t>, key: &'static str) -> Option<String> {
        let to = table.required(key, &node_name())?;
        self.add(from, &to, table.value(key));
        Some(to)
    }

    /// Reads a key that names a node and may be absent. `None` also after a problem.
    pub(super) fn optional(&mut self, from: Option<&'t str>, table: &Table<'t>, key: &'static str) -> Option<String> {
        let to = table.optional(key, &node_name())?;
        self.add(from, &to, table.value(key));
        Some(to)
    }

    fn add(&mut self, from: Option<&'t str>, to: &str, place: Option<Value<'t>>) {
        self.links.extend(place.map(|place| Link { from, to: to.to_owned(), place }));
    }

    fn of<'l>(&'l self, from: Option<&'l str>) -> impl Iterator<Item = &'l str> {
        self.links.iter().filter(move |link| link.from == from).map(|link| link.to.as_str())
    }
}

fn node_name() -> Expected<String> {
    Expected::text("write the name of a node", |text| Ok(text.to_owned()))
}

/// Reports what is wrong with the graph as a whole. `nodes` are those that could be read.
pub(super) fn check(table: &Table<'_>, nodes: &BTreeMap<String, Node>, links: &Links<'_>) {
    let named = table.named();
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let mut whole = nodes.len() == named.len() && links.of(None).next().is_some();
    for link in links.links.iter().filter(|link| !names.contains(&link.to.as_str())) {
        whole = false;
        let right = match nearest(&link.to, names.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"? Nodes here: {}", names.join(", ")),
            None => format!("nodes here: {}", names.join(", ")),
        };
        link.place.problem(format!("there is no node {}", quoted(&link.to)), right);
    }
    if whole {
        unreachable(&named, links);
        circles(&named, nodes, links);
    }
}

fn unreachable(named: &[(&str, Value<'_>)], links: &Links<'_>) {
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = links.of(None).collect();
    while let Some(node) = next.pop() {
        if reached.insert(node) {
            next.extend(links.of(Some(node)));
        }
    }
    for (_, value) in named.iter().filter(|(name, _)| !reached.contains(name)) {
        value.problem("nothing leads here", "name it as start, fallback, next or else, or remove it");
    }
}

/// Conditions that lead to themselves over nothing but conditions: a turn would go round in them and say nothing.
fn circles(named: &[(&str, Value<'_>)], nodes: &BTreeMap<String, Node>, links: &Links<'_>) {
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for (name, value) in named {
        if told.contains(name) {
            continue;
        }
        if let Some(circle) = circle(name, nodes, links) {
            value.problem(
                format!("goes round for ever: {} -> {name}", circle.join(" -> ")),
                "let the way back lead over an ask or respond node",
            );
            told.extend(circle);
        }
    }
}

/// The conditions on the shortest way from `start` back to it, `start` first.
fn circle<'l>(start: &'l str, nodes: &BTreeMap<String, Node>, links: &'l Links<'_>) -> Option<Vec<&'l str>> {
    let is_condition = |node: &str| matches!(nodes.get(node), Some(Node::Condition { .. }));
    if !is_condition(start) {
        return None;
    }
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut level = vec![start];
    while !level.is_empty() {
        let mut below = Vec::new();
        for node in level {
            for next in links.of(Some(node)).filter(|next| is_condition(next)) {
                if next == start {
                    let way = std::iter::successors(Some(node), |node| came_from.get(node).copied());
                    let mut way: Vec<&str> = way.collect();
                    way.reverse();
                    return Some(way);
                }
                if !came_from.contains_key(next) {
                    came_from.insert(next, node);
                    below.push(next);
                }
            }
        }
        level = below;
    }
    None
}
