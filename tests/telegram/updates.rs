//! Updates beside messages: business accounts, channels, guests, files.

use crate::*;

const ANN: i64 = 600;
const OWNER: i64 = 601;
const CHANNEL: i64 = -100_600;

fn person(id: i64) -> Value {
    json!({ "id": id, "is_bot": false, "first_name": "Ann" })
}

fn private(id: i64) -> Value {
    json!({ "id": id, "type": "private", "first_name": "Ann" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn business_accounts_are_answered_in_their_name() {
    let deployment = Deployment::start(Backend::Postgres, Behaviour::default(), |configuration| {
        with_console(configuration);
        configuration.set("bots.support", "business", "true");
    })
    .await;
    let telegram = &deployment.telegram;
    let message = |id: i64, from: i64, text: &str| {
        json!({
            "message_id": id, "date": 1, "business_connection_id": "c-1", "chat": private(ANN), "from": person(from),
            "text": text,
        })
    };
    telegram.happen(ANN, "business_message", &message(5, ANN, "are you open?"));
    telegram.happen(ANN, "business_message", &message(6, OWNER, "I answer this myself"));
    assert_eq!(telegram.wait_for_texts(ANN, 1, PATIENCE).await, ["re: are you open?"]);
    telegram.log(|log| assert_eq!(log.delivered[0].request["business_connection_id"], "c-1"));
    deployment.settled(2, PATIENCE).await;
    assert_eq!(conversation(&deployment).await["peer"], format!("business-c-1-user-{ANN}"));
    assert_eq!(deployment.ledger.turns_by_state().await.get("ignored"), Some(&1));

    let deleted = json!({ "business_connection_id": "c-1", "chat": private(ANN), "message_ids": [5] });
    telegram.happen(ANN, "deleted_business_messages", &deleted);
    deployment.settled(3, PATIENCE).await;
    let history = deployment.ledger.history_with("re: are you open?").await;
    assert_eq!((history.len(), history[0].content.as_str()), (2, "[deleted]"), "the stored copy is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_in_channels_are_answered_by_choice() {
    let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
        with_console(configuration);
        configuration.set("bots.support", "channel_posts", "true");
    })
    .await;
    let chat = json!({ "id": CHANNEL, "type": "channel", "title": "News" });
    let post = json!({ "message_id": 3, "date": 1, "chat": chat, "sender_chat": chat, "text": "news" });
    deployment.telegram.happen(CHANNEL, "channel_post", &post);
    assert_eq!(deployment.telegram.wait_for_texts(CHANNEL, 1, PATIENCE).await, ["re: news"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_answered_once_and_only_there() {
    let deployment = start(Backend::Sqlite).await;
    let telegram = &deployment.telegram;
    deployment.model.answer_with("@bot hi", &format!("**Hi**\n\n{}", "word ".repeat(2_000)));
    let chat = json!({ "id": CHANNEL, "type": "supergroup", "title": "Ours" });
    let message = json!({
        "message_id": 9, "date": 1, "chat": chat, "from": person(ANN), "text": "@bot hi", "guest_query_id": "guest-1",
    });
    telegram.happen(CHANNEL, "guest_message", &message);
    deployment.settled(1, PATIENCE).await;
    let answers = telegram.log(|log| log.guests.clone());
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0]["guest_query_id"], "guest-1");
    let content = &answers[0]["result"]["input_message_content"];
    assert_eq!(content["entities"], json!([{ "type": "bold", "offset": 0, "length": 2 }]));
    assert!(content["message_text"].as_str().unwrap().encode_utf16().count() <= 4096);
    assert!(telegram.log(|log| log.attempts.is_empty()), "nothing is sent to the chat");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_pass_through_without_the_token() {
    let deployment = start(Backend::Sqlite).await;
    let url = |file: &str| deployment.turnwise.url(&format!("/v1/files/support/{file}"));
    let get = async |file: &str, token: &str| http_client().get(url(file)).bearer_auth(token).send().await.unwrap();
    let file = get("voice-1", TOKEN).await;
    assert_eq!(
        (file.status(), file.headers()["content-type"].to_str().unwrap()),
        (StatusCode::OK, "application/octet-stream")
    );
    assert_eq!(file.text().await.unwrap(), "the bytes of voice-1");
    assert_eq!(get("voice-1", "wrong").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(get("unknown", TOKEN).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get("huge", TOKEN).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let odd = get("odd", TOKEN).await;
    assert_eq!(odd.status(), StatusCode::SERVICE_UNAVAILABLE, "a path that leads elsewhere");
    assert!(!odd.text().await.unwrap().contains("stand-in-token"));
}
