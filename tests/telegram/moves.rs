//! A group becomes a supergroup: its conversation, its history and its order go with it, whichever signal comes first.

use crate::*;

const OLD: i64 = -50;
const NEW: i64 = -100_500;

/// The signals of a move, in the order in which they come.
#[derive(Debug, Clone, Copy)]
enum Signal {
    Old,
    New,
}

/// Two messages before the move and two after it, one history; the replies to the last two reach the new chat.
async fn check(backend: Backend, signals: &[Signal]) {
    let deployment = start(backend).await;
    let telegram = &deployment.telegram;
    telegram.send(OLD, &message(OLD, 1));
    telegram.send(OLD, &message(OLD, 2));
    telegram.wait_for_texts(OLD, 2, PATIENCE).await;
    telegram.migrate(OLD, NEW);
    for signal in signals {
        match signal {
            Signal::Old => telegram.tell_old(OLD, NEW),
            Signal::New => telegram.tell_new(OLD, NEW),
        }
        telegram.all_taken(PATIENCE).await;
    }
    telegram.send(NEW, &message(OLD, 3));
    telegram.send(NEW, &message(OLD, 4));
    let seen = telegram.wait_for_texts(NEW, 2, PATIENCE).await;
    assert_eq!(seen, [answer(OLD, 3), answer(OLD, 4)], "{signals:?}");
    deployment.settled(4 + signals.len(), PATIENCE).await;

    let history = deployment.ledger.history_with(&message(OLD, 1)).await;
    let contents: Vec<_> = history.iter().map(|message| message.content.clone()).collect();
    let expected: Vec<_> = (1..=4).flat_map(|n| [message(OLD, n), answer(OLD, n)]).collect();
    assert_eq!(contents, expected, "{signals:?}");
    deployment.model.log(|log| assert!(log.broken_histories().is_empty(), "{:?}", log.calls));
    let conversation = conversation(&deployment).await;
    assert_eq!(conversation["peer"], format!("group-{OLD}"));
    assert_eq!(conversation["address"], format!("group-{NEW}"));
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_chat_tells() {
    check(Backend::Sqlite, &[Signal::Old]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_chat_tells() {
    check(Backend::Sqlite, &[Signal::New]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_tell_and_one_twice() {
    check(Backend::Postgres, &[Signal::New, Signal::Old, Signal::Old]).await;
}

/// A reply that was on its way goes to the new chat, with those behind it, in order; the platform's refusal is the only signal.
async fn check_refusal(backend: Backend) {
    let deployment = start(backend).await;
    let telegram = &deployment.telegram;
    deployment.model.hold(&message(OLD, 1));
    for n in 1..=3 {
        telegram.send(OLD, &message(OLD, n));
    }
    deployment.model.wait_for_call(&message(OLD, 1), PATIENCE).await;
    telegram.migrate(OLD, NEW);
    deployment.model.release(&message(OLD, 1));
    let seen = telegram.wait_for_texts(NEW, 3, PATIENCE).await;
    assert_eq!(seen, [answer(OLD, 1), answer(OLD, 2), answer(OLD, 3)]);
    assert!(telegram.log(|log| log.texts(OLD).is_empty()));
    // Whoever quoted here would quote another message: ids begin anew in the new chat.
    telegram.log(|log| {
        for sent in log.delivered.iter().filter(|sent| sent.chat == NEW) {
            assert!(sent.request["reply_parameters"].is_null(), "{sent:?}");
        }
    });
    telegram.send(NEW, &message(OLD, 4));
    assert_eq!(telegram.wait_for_texts(NEW, 4, PATIENCE).await[3], answer(OLD, 4));
    telegram.log(|log| {
        let last = log.delivered.iter().rfind(|sent| sent.chat == NEW).unwrap();
        assert!(last.request["reply_parameters"]["message_id"].is_i64(), "{last:?}");
    });
    deployment.settled(4, PATIENCE).await;
    let history = deployment.ledger.history_with(&message(OLD, 1)).await;
    assert_eq!(history.len(), 8);
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_tells_on_sqlite() {
    check_refusal(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_tells_on_postgresql() {
    check_refusal(Backend::Postgres).await;
}

/// The new chat was talked in before anybody told of the move: what was said there becomes a part of the one history.
async fn check_join(backend: Backend) {
    let deployment = start(backend).await;
    let telegram = &deployment.telegram;
    telegram.send(OLD, &message(OLD, 1));
    telegram.wait_for_texts(OLD, 1, PATIENCE).await;
    telegram.send(NEW, &message(NEW, 1));
    telegram.wait_for_texts(NEW, 1, PATIENCE).await;
    deployment.settled(2, PATIENCE).await;
    telegram.tell_old(OLD, NEW);
    telegram.all_taken(PATIENCE).await;
    telegram.send(NEW, "and now?");
    telegram.wait_for_texts(NEW, 2, PATIENCE).await;
    deployment.settled(4, PATIENCE).await;
    let history = deployment.ledger.history_with("and now?").await;
    let contents: Vec<_> = history.iter().map(|message| message.content.as_str()).collect();
    let said = [message(OLD, 1), answer(OLD, 1), message(NEW, 1), answer(NEW, 1)];
    assert_eq!(contents[..4], said.each_ref().map(String::as_str));
    assert_eq!(contents[4], "and now?");
    deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_conversations_become_one_on_sqlite() {
    check_join(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_conversations_become_one_on_postgresql() {
    check_join(Backend::Postgres).await;
}
