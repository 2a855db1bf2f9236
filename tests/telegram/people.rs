//! People who block the bot, come back, and like what it says.

use crate::*;

const ANN: i64 = 700;

fn membership(status: &str) -> Value {
    let chat = json!({ "id": ANN, "type": "private", "first_name": "Ann" });
    let bot = json!({ "id": 424_242, "is_bot": true, "first_name": "Bot" });
    let member = |status: &str| json!({ "user": bot, "status": status });
    let from = json!({ "id": ANN, "is_bot": false, "first_name": "Ann" });
    json!({ "chat": chat, "from": from, "date": 1, "old_chat_member": member("member"), "new_chat_member": member(status) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_blocks_the_bot_is_unreachable_until_unblocking() {
    let deployment = start(Backend::Sqlite).await;
    let telegram = &deployment.telegram;
    telegram.send(ANN, &message(ANN, 1));
    telegram.wait_for_texts(ANN, 1, PATIENCE).await;
    telegram.happen(ANN, "my_chat_member", &membership("kicked"));
    deployment.settled(2, PATIENCE).await;
    let blocked = conversation(&deployment).await;
    assert_eq!(blocked["unreachable"], "the bot is kicked there");
    assert!(blocked["unreachable_since"].is_string(), "{blocked:#}");

    // A person writes for the bot meanwhile: nobody asks Telegram in vain.
    let id = blocked["id"].as_str().unwrap();
    let say = http_client().post(deployment.turnwise.url(&format!("/v1/conversations/{id}/messages")));
    let said = say.bearer_auth(TOKEN).json(&json!({ "content": "are you there?" })).send().await.unwrap();
    assert!(said.status().is_success(), "{said:?}");
    deployment.settled(3, PATIENCE).await;
    let last = deployment.ledger.deliveries().await.pop().unwrap();
    assert_eq!((last.content.as_str(), last.status.as_str()), ("are you there?", "failed"));
    assert_eq!(telegram.log(|log| log.attempts.len()), 1, "calls of sendMessage");

    telegram.happen(ANN, "my_chat_member", &membership("member"));
    deployment.settled(4, PATIENCE).await;
    assert_eq!(conversation(&deployment).await["unreachable"], Value::Null);
    telegram.send(ANN, &message(ANN, 2));
    telegram.wait_for_texts(ANN, 2, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_the_same_and_writing_again_ends_it() {
    let deployment = start(Backend::Postgres).await;
    let telegram = &deployment.telegram;
    telegram.close(ANN, Some("Forbidden: bot was blocked by the user"));
    telegram.send(ANN, &message(ANN, 1));
    deployment.settled(1, PATIENCE).await;
    assert_eq!(conversation(&deployment).await["unreachable"], "Forbidden: bot was blocked by the user");
    telegram.close(ANN, None);
    telegram.send(ANN, &message(ANN, 2));
    assert_eq!(telegram.wait_for_texts(ANN, 1, PATIENCE).await, [answer(ANN, 2)]);
    assert_eq!(conversation(&deployment).await["unreachable"], Value::Null);
}

/// The chat's next conversation is a new one, and what was known of the chat is of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_again_ends_it_also_in_a_new_conversation() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let deployment = start(backend).await;
        let telegram = &deployment.telegram;
        telegram.close(ANN, Some("Forbidden: bot was blocked by the user"));
        telegram.send(ANN, &message(ANN, 1));
        deployment.settled(1, PATIENCE).await;
        let id = conversation(&deployment).await["id"].as_str().unwrap().to_owned();
        let close = http_client().patch(deployment.turnwise.url(&format!("/v1/conversations/{id}")));
        let closed = close.bearer_auth(TOKEN).json(&json!({ "status": "closed" })).send().await.unwrap();
        assert!(closed.status().is_success(), "{closed:?}");
        telegram.close(ANN, None);
        telegram.send(ANN, &message(ANN, 2));
        assert_eq!(telegram.wait_for_texts(ANN, 1, PATIENCE).await, [answer(ANN, 2)], "{backend:?}");
        let open = http_client().get(deployment.turnwise.url("/v1/conversations?status=bot")).bearer_auth(TOKEN);
        let open: Value = open.send().await.unwrap().json().await.unwrap();
        assert_eq!(open["conversations"][0]["unreachable"], Value::Null, "{backend:?}: {open:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reactions_stand_beside_the_message() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let deployment = start(backend).await;
        let telegram = &deployment.telegram;
        telegram.send(ANN, &message(ANN, 1));
        telegram.wait_for_texts(ANN, 1, PATIENCE).await;
        deployment.settled(1, PATIENCE).await;
        let react = |emoji: &[&str]| {
            let reactions: Vec<_> = emoji.iter().map(|emoji| json!({ "type": "emoji", "emoji": emoji })).collect();
            let chat = json!({ "id": ANN, "type": "private" });
            let user = json!({ "id": ANN, "is_bot": false, "first_name": "Ann" });
            json!({ "chat": chat, "message_id": 1, "user": user, "date": 1, "old_reaction": [], "new_reaction": reactions })
        };
        let id = conversation(&deployment).await["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/conversations/{id}/messages");
        telegram.happen(ANN, "message_reaction", &react(&["👎"]));
        telegram.happen(ANN, "message_reaction", &react(&["👍"]));
        deployment.settled(3, PATIENCE).await;
        let page = get(&deployment, &path).await;
        assert_eq!(page["messages"][0]["feedback"], Value::Null, "{page:#}");
        assert_eq!(page["messages"][1]["feedback"][0]["reactions"], json!(["👍"]), "{page:#}");
        assert_eq!(page["messages"][1]["feedback"][0]["sender"], ANN.to_string());
        telegram.happen(ANN, "message_reaction", &react(&[]));
        deployment.settled(4, PATIENCE).await;
        assert_eq!(get(&deployment, &path).await["messages"][1]["feedback"], Value::Null);
    }
}
