//! What is counted of messages whose process died, and by whom.

use turnwise::store::StoreError;

use super::{Database, committed, first_turn};

on_both!(deaths_are_charged_to_what_was_worked_on, what_has_ended_is_forgotten);

async fn deaths_are_charged_to_what_was_worked_on(database: &Database) {
    let (store, before) = (&database.store, database.own(0).await);
    let ids = ["killer".to_owned(), "beside".to_owned()];
    let mut owner = before;
    let mut deaths = Vec::new();
    for death in 0..5 {
        let mut charged = store.charge_deaths(&ids, &owner).await.unwrap();
        charged.sort();
        deaths.push([charged[0].1, charged[1].1]);
        owner = database.own(0).await;
        if death > 0 {
            store.note_begun("killer", true, &owner).await.unwrap();
            store.note_begun("beside", true, &owner).await.unwrap();
            store.note_begun("beside", false, &owner).await.unwrap();
        }
    }
    // Beside, killer: of the first two nobody knows who was worked on.
    assert_eq!(deaths, [[1, 1], [2, 2], [2, 3], [2, 4], [2, 5]]);
    assert!(matches!(store.charge_deaths(&ids, &before).await, Err(StoreError::Fenced)));
    assert!(matches!(store.note_begun("beside", true, &before).await, Err(StoreError::Fenced)));
    assert_eq!(store.charge_deaths(&ids[1..], &owner).await.unwrap(), [("beside".to_owned(), 2)]);
    assert_eq!(store.charge_deaths(&[], &owner).await.unwrap(), []);
    let asked = [ids[0].clone(), "unknown".to_owned()];
    assert_eq!(store.deaths(&asked).await.unwrap(), [("killer".to_owned(), 5)]);
}

async fn what_has_ended_is_forgotten(database: &Database) {
    let (store, mut owner) = (&database.store, database.own(0).await);
    let mut turn = first_turn(owner, 1, "ann");
    let id = turn.dedupe_id.clone();
    let many: Vec<String> = (0..1_203).map(|number| format!("m-{number}")).chain([id.clone()]).collect();
    for deaths in 1..=2 {
        let charged = store.charge_deaths(&many, &owner).await.unwrap();
        assert!(charged.len() == many.len() && charged.iter().all(|(_, count)| *count == deaths));
        let again = store.charge_deaths(&many, &owner).await.unwrap();
        assert!(again.iter().all(|(_, count)| *count == deaths), "the answer to the first time may have been lost");
        owner = database.own(0).await;
    }
    turn.ownership = owner;
    committed(store.commit(turn).await.unwrap());
    let charged = store.charge_deaths(std::slice::from_ref(&id), &owner).await.unwrap();
    assert_eq!(charged, [(id, 1)], "as if it had never been seen");
}
