//! Commands, and the menu that offers them.

use crate::*;

const ANN: i64 = 900;
const SHOP: &str = "bots.support.commands";

fn with_commands(configuration: &mut Configuration) {
    with_console(configuration);
    configuration.set(SHOP, "hours", "{ description = \"When we are open\", reply = \"From **9** to 5.\" }");
    configuration.set(SHOP, "order", "\"Order something\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_answered_by_whom_they_belong_to() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), with_commands).await;
    let telegram = &deployment.telegram;
    let mut seen = 0;
    let mut ask = async |text: &str| {
        telegram.send(ANN, text);
        seen += 1;
        telegram.wait_for_texts(ANN, seen, PATIENCE).await.pop().unwrap()
    };
    assert_eq!(ask("/hours").await, "From 9 to 5.");
    assert_eq!(ask("/order two").await, "re: /order two");
    assert_eq!(ask("/unheard_of").await, "re: /unheard_of");
    let help = ask("/help").await;
    let lines: Vec<&str> = help.lines().collect();
    assert_eq!(
        lines,
        [
            "/help – Show what I understand",
            "/hours – When we are open",
            "/new – Begin a new conversation",
            "/order – Order something",
        ]
    );
    assert_eq!(deployment.model.log(|log| log.calls.len()), 2, "the model is asked only what is its own");

    let menus = telegram.menus();
    assert_eq!(menus.len(), 1, "{menus:?}");
    assert_eq!(menus[0][1], json!({ "command": "hours", "description": "When we are open" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_conversation_forgets_without_deleting() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let deployment = start(backend).await;
        let telegram = &deployment.telegram;
        for (number, text) in ["one", "two", "/new", "three", "four"].into_iter().enumerate() {
            telegram.send(ANN, text);
            telegram.wait_for_texts(ANN, number + 1, PATIENCE).await;
            deployment.settled(number + 1, PATIENCE).await;
        }
        deployment.model.log(|log| {
            let histories: Vec<_> = log.calls.iter().map(|call| call.history.clone()).collect();
            assert_eq!(histories, [vec![], vec!["one".to_owned()], vec![], vec!["three".to_owned()]]);
        });
        assert_eq!(deployment.ledger.history_with("one").await.len(), 10, "everything is kept");
    }
}
