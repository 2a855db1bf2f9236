//! What people did by hand, and that nothing is taken away before it is written down.

use turnwise::message::Timestamp;
use turnwise::store::{OperatorAction, OperatorVerb, Receipt as _};

use super::{Database, at};

on_both!(an_action_is_recorded_before_its_receipt_is_given);

async fn an_action_is_recorded_before_its_receipt_is_given(database: &Database) {
    let store = &database.store;
    let action = |verb, target: &str, at: Timestamp| OperatorAction {
        verb,
        target: target.to_owned(),
        actor: Some("ann".to_owned()),
        reason: Some("spam\u{0}".to_owned()),
        at,
    };
    assert!(store.record_operator_actions(&[]).await.unwrap().is_empty());
    assert!(!store.is_dead_letter_ended("m-0").await.unwrap());

    // More than one statement takes.
    let targets: Vec<String> = (0..1_203).map(|number| format!("m-{number}")).collect();
    let actions: Vec<_> = targets.iter().map(|target| action(OperatorVerb::DiscardDeadLetter, target, at(1))).collect();
    let receipts = store.record_operator_actions(&actions).await.unwrap();
    assert_eq!(receipts.len(), targets.len());
    for (receipt, target) in receipts.iter().zip(&targets) {
        assert!(receipt.covers(target) && !receipt.covers("other"));
    }
    let redriven = OperatorAction { reason: None, actor: None, ..action(OperatorVerb::RedriveDeadLetter, "r", at(2)) };
    // Done again after a crash.
    for _ in 0..2 {
        store.record_operator_actions(std::slice::from_ref(&redriven)).await.unwrap();
    }
    for target in ["m-0", "m-1202", "r"] {
        assert!(store.is_dead_letter_ended(target).await.unwrap(), "{target}");
    }
    assert!(!store.is_dead_letter_ended("other").await.unwrap());
}
