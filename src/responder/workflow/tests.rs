//! Walks over random graphs, most of which no configuration would be let through with; and what conditions mean.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::condition::holds;
use super::walk::{HOPS_MAX, Input, Stop, Walk};
use super::{Place, STATE_KEY};
use crate::config::{
    Accepts, Ask, Check, Condition, Node, Pattern, Rule, Say, Scalar, Subject, Test as Operator, Workflow,
};
use crate::message::{Button, ReplyMessage};
use crate::store::merge_patch;
use crate::template::Template;

/// Some nodes are missing from most graphs: their names lead nowhere.
const NODES: u8 = 40;

fn node_name() -> impl Strategy<Value = String> {
    (0..NODES).prop_map(|number| format!("n{number}"))
}

fn template() -> impl Strategy<Value = Template> {
    const SOURCES: [&str; 4] = ["$text", "${metadata.a}", "${metadata.b.c|none}", "hello"];
    prop::sample::select(&SOURCES[..]).prop_map(|source| Template::parse(source, None).expect("the sources are right"))
}

fn pattern() -> impl Strategy<Value = Pattern> {
    const SOURCES: [&str; 4] = ["^[0-9]+$", "(x)|y", "", "."];
    prop::sample::select(&SOURCES[..]).prop_map(|source| Pattern::new(source).expect("the sources are right"))
}

fn scalar() -> impl Strategy<Value = Scalar> {
    prop_oneof![
        "[a-c]{0,2}".prop_map(Scalar::Text),
        any::<f64>().prop_map(Scalar::Number),
        any::<bool>().prop_map(Scalar::Flag)
    ]
}

fn operator() -> impl Strategy<Value = Operator> {
    prop_oneof![
        any::<bool>().prop_map(Operator::Exists),
        scalar().prop_map(Operator::Equals),
        prop::collection::vec(scalar(), 0..3).prop_map(Operator::In),
        pattern().prop_map(Operator::Matches),
        any::<f64>().prop_map(Operator::LessThan),
        any::<f64>().prop_map(Operator::AtMost),
        any::<f64>().prop_map(Operator::GreaterThan),
        any::<f64>().prop_map(Operator::AtLeast),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    let subject = prop_oneof![
        Just(Subject::Text),
        prop::sample::select(&["a", "b", "b.c", "b..", "workflow_state.node", ""][..])
            .prop_map(|path| Subject::Metadata(path.to_owned())),
    ];
    let leaf = (subject, prop::collection::vec(operator(), 0..3))
        .prop_map(|(subject, tests)| Condition::Value { subject, tests });
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Condition::All),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Condition::Any),
            inner.prop_map(|inner| Condition::Not(Box::new(inner))),
        ]
    })
}

fn check() -> impl Strategy<Value = Check> {
    let accepts = prop_oneof![
        pattern().prop_map(Accepts::Pattern),
        prop::collection::vec("[a-c]", 0..3).prop_map(|words| {
            Accepts::Choices(words.into_iter().map(|word| Button { label: word.clone(), payload: word }).collect())
        }),
    ];
    (accepts, prop::option::of(template()), 0_u32..4, node_name()).prop_map(
        |(accepts, retry_text, max_attempts, otherwise)| Check { accepts, retry_text, max_attempts, otherwise },
    )
}

fn node() -> impl Strategy<Value = Node> {
    let say = prop_oneof![
        template().prop_map(Say::Text),
        prop::option::of(template()).prop_map(|prompt| Say::Responder { prompt }),
    ];
    let rule = (condition(), node_name()).prop_map(|(condition, next)| Rule { condition, next });
    prop_oneof![
        3 => (say, node_name()).prop_map(|(say, next)| Node::Respond { say, next }),
        2 => (template(), "[ab]", node_name(), prop::option::of(check()))
            .prop_map(|(text, save_as, next, check)| Node::Ask(Ask { text, save_as, next, check })),
        // Conditions without an end are what a walk has to be protected from.
        9 => (prop::collection::vec(rule, 0..3), node_name())
            .prop_map(|(rules, otherwise)| Node::Condition { rules, otherwise }),
        1 => prop::option::of(template()).prop_map(|text| Node::Handoff { text }),
        1 => prop::option::of(template()).prop_map(|text| Node::End { text }),
    ]
}

fn workflow() -> impl Strategy<Value = Workflow> {
    let nodes = prop::collection::btree_map(node_name(), node(), 0..usize::from(NODES));
    (nodes, node_name(), prop::option::of(node_name()), 1_u32..3).prop_map(|(nodes, start, fallback, version)| {
        Workflow { name: "w".to_owned(), version, start, fallback, nodes }
    })
}

/// A place as it may be found: our own, another version's, somebody's invention.
fn state() -> impl Strategy<Value = Option<Value>> {
    let place = (prop::sample::select(&["w", "v"][..]), 1_u32..3, node_name(), prop_oneof![0_u32..5, Just(u32::MAX)]);
    let place = place.prop_map(|(workflow, version, node, asked)| {
        Some(json!(Place { workflow: workflow.to_owned(), version, node, asked }))
    });
    let invented = [json!(null), json!("x"), json!({ "node": 5 }), json!({ "workflow": "w", "version": -1 })];
    prop_oneof![6 => place, 1 => prop::sample::select(invented.to_vec()).prop_map(Some), 1 => Just(None)]
}

#[derive(Debug, Clone)]
struct Message {
    text: String,
    payload: Option<String>,
    /// What the responder changes if it is asked, and whether it waits for an answer itself.
    patch: Option<Map<String, Value>>,
    waits: bool,
}

fn message() -> impl Strategy<Value = Message> {
    let patch = prop::sample::select(vec![
        json!({ "a": 5 }),
        json!({ "b": { "c": "x" }, "a": null }),
        json!({ "a": { "d": 1 } }),
        json!({}),
    ]);
    let patch = prop::option::of(patch.prop_map(|patch| patch.as_object().cloned().unwrap_or_default()));
    ("[a-c0-9 ]{0,3}", prop::option::of("[a-c]"), patch, any::<bool>())
        .prop_map(|(text, payload, patch, waits)| Message { text, payload, patch, waits })
}

/// One turn: why it stopped, where, after how many questions to the responder, and with what.
fn turn(
    workflow: &Workflow,
    metadata: &Map<String, Value>,
    message: &Message,
) -> (Stop, Place, u32, Map<String, Value>, Vec<ReplyMessage>) {
    let payload = message.payload.as_deref();
    let mut walk = Walk::begin(workflow, metadata, Input { text: message.text.trim(), payload, attempt: 1, count: 1 });
    let mut asked = 0;
    let stop = loop {
        match walk.go() {
            Stop::Responder { .. } => {
                asked += 1;
                walk.answered(vec![ReplyMessage::text("answer")], message.patch.clone(), message.waits);
                if message.waits {
                    break Stop::Waits;
                }
            }
            stop => break stop,
        }
    };
    let (place, changes) = (walk.place(), walk.changes().clone());
    let mut changed = metadata.clone();
    merge_patch(&mut changed, &changes);
    assert_eq!(&changed, walk.metadata(), "the changes are those that the graph has seen");
    (stop, place, asked, changes, walk.into_said())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_turn_ends_in_a_place_that_there_is(
        workflow in workflow(),
        state in state(),
        messages in prop::collection::vec(message(), 1..6),
    ) {
        let mut metadata = Map::new();
        metadata.extend(state.map(|state| (STATE_KEY.to_owned(), state)));
        for message in &messages {
            let outcome = turn(&workflow, &metadata, message);
            prop_assert_eq!(&outcome, &turn(&workflow, &metadata, message), "a walk depends on nothing else");
            let (stop, place, asked, changes, said) = outcome;
            prop_assert!(asked <= 1, "the responder was asked {} times", asked);
            prop_assert!(said.len() <= HOPS_MAX + 1);
            prop_assert!(!changes.contains_key(STATE_KEY));
            merge_patch(&mut metadata, &changes);
            match stop {
                Stop::Waits => {
                    prop_assert!((place.workflow.as_str(), place.version) == ("w", workflow.version));
                    metadata.insert(STATE_KEY.to_owned(), json!(place));
                }
                Stop::HandsOff | Stop::Ends => drop(metadata.remove(STATE_KEY)),
                Stop::Responder { .. } => prop_assert!(false, "asked and not answered"),
            }
        }
    }

    #[test]
    fn conditions_are_true_or_false(condition in condition(), text in ".{0,4}", a in "[a-c0-9]{0,2}", c in any::<i64>()) {
        let metadata = json!({ "a": a, "b": { "c": c } });
        let metadata = metadata.as_object().cloned().unwrap_or_default();
        let holding = holds(&condition, &metadata, &text);
        prop_assert_eq!(holding, holds(&condition, &metadata, &text));
        prop_assert_eq!(!holding, holds(&Condition::Not(Box::new(condition)), &metadata, &text));
    }
}

#[test]
fn a_walk_without_end_is_cut_and_goes_on() {
    let on = |number: usize| Node::Condition { rules: Vec::new(), otherwise: format!("c{}", (number + 1) % 50) };
    let nodes: BTreeMap<String, Node> = (0..50).map(|number| (format!("c{number}"), on(number))).collect();
    let workflow = Workflow { name: "w".to_owned(), version: 1, start: "c0".to_owned(), fallback: None, nodes };
    let message = Message { text: String::new(), payload: None, patch: None, waits: false };
    let (stop, place, ..) = turn(&workflow, &Map::new(), &message);
    assert_eq!((stop, place.node.as_str()), (Stop::Waits, "c32"));
    let metadata = Map::from_iter([(STATE_KEY.to_owned(), json!(place))]);
    assert_eq!(turn(&workflow, &metadata, &message).1.node, "c14");
}

#[test]
fn what_tests_mean() {
    let metadata = json!({
        "name": "Ann", "number": "12", "count": 3, "ok": true, "gone": null, "list": [1], "a.b": "dotted", "deep": { "x": { "y": 1.5 } },
    });
    let metadata = metadata.as_object().cloned().unwrap_or_default();
    let check = |path: &str, test: Operator, expected: bool| {
        let subject = if path == "text" { Subject::Text } else { Subject::Metadata(path.to_owned()) };
        let condition = Condition::Value { subject, tests: vec![test.clone()] };
        assert_eq!(holds(&condition, &metadata, "Hello 7"), expected, "{path} {test:?}");
    };
    let text = |text: &str| Scalar::Text(text.to_owned());
    let pattern = |pattern: &str| Operator::Matches(Pattern::new(pattern).expect("the pattern is right"));
    check("name", Operator::Exists(true), true);
    check("name", Operator::Exists(false), false);
    check("gone", Operator::Exists(false), true);
    check("nobody", Operator::Exists(false), true);
    check("nobody", Operator::Equals(text("")), false);
    check("name", Operator::Equals(text("Ann")), true);
    check("name", Operator::Equals(text("ann")), false);
    check("number", Operator::Equals(Scalar::Number(12.0)), true);
    check("count", Operator::Equals(text("3")), true);
    check("ok", Operator::Equals(Scalar::Flag(true)), true);
    check("ok", Operator::Equals(text("true")), true);
    check("list", Operator::Equals(text("1")), false);
    check("name", Operator::In(vec![text("Bob"), text("Ann")]), true);
    check("name", Operator::In(Vec::new()), false);
    check("name", pattern("(?i)^ann$"), true);
    check("list", pattern(""), false);
    check("count", pattern("^[0-9]$"), true);
    check("text", pattern("[0-9]"), true);
    check("text", Operator::Equals(text("Hello 7")), true);
    check("number", Operator::LessThan(12.0), false);
    check("number", Operator::AtMost(12.0), true);
    check("number", Operator::GreaterThan(11.5), true);
    check("number", Operator::AtLeast(12.5), false);
    check("name", Operator::AtLeast(0.0), false);
    check("a.b", Operator::Equals(text("dotted")), true);
    check("deep.x.y", Operator::Equals(Scalar::Number(1.5)), true);
    check("deep.x.z", Operator::Exists(false), true);
}
