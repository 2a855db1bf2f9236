//! Replies as their readers see them.

use crate::*;

const ANN: i64 = 800;
const GROUP: i64 = -800;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markdown_is_shown_and_never_in_the_way() {
    let deployment = start(Backend::Sqlite).await;
    let telegram = &deployment.telegram;
    let markdown = "**Hello** `you`, see [this](https://example.com).";
    deployment.model.answer_with("hi", markdown);
    telegram.send(ANN, "hi");
    assert_eq!(telegram.wait_for_texts(ANN, 1, PATIENCE).await, ["Hello you, see this."]);
    telegram.log(|log| {
        let request = &log.delivered[0].request;
        let expected = json!([
            { "type": "bold", "offset": 0, "length": 5 },
            { "type": "code", "offset": 6, "length": 3 },
            { "type": "text_link", "offset": 15, "length": 4, "url": "https://example.com" },
        ]);
        assert_eq!(request["entities"], expected);
        assert!(request["parse_mode"].is_null() && request["reply_parameters"].is_null(), "{request:#}");
    });
    let history = deployment.ledger.history_with("hi").await;
    assert_eq!(history[1].content, markdown, "the history keeps what the model wrote");

    telegram.fail_next(ANN, Fault::Unparsed);
    telegram.send(ANN, "hi");
    telegram.wait_for_texts(ANN, 2, PATIENCE).await;
    telegram.log(|log| assert!(log.delivered[1].request["entities"].is_null(), "plain after a refusal"));
    deployment.settled(2, PATIENCE).await;
    assert!(deployment.ledger.deliveries().await.iter().all(|delivery| delivery.status == "sent"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_group_the_reply_quotes_what_it_answers() {
    let deployment = start(Backend::Postgres).await;
    let telegram = &deployment.telegram;
    let long = format!("**first**\n\n{}", "word ".repeat(1_000));
    deployment.model.answer_with("tell us", &long);
    let update = telegram.send(GROUP, "tell us");
    telegram.wait_for_texts(GROUP, 2, PATIENCE).await;
    telegram.log(|log| {
        let [first, second] = &log.delivered[..] else { panic!("{:?}", log.delivered) };
        let quoted = json!({ "message_id": update["message"]["message_id"], "allow_sending_without_reply": true });
        assert_eq!(first.request["reply_parameters"], quoted);
        assert!(second.request["reply_parameters"].is_null(), "only the first part quotes");
        assert_eq!(first.request["entities"], json!([{ "type": "bold", "offset": 0, "length": 5 }]));
    });
}
