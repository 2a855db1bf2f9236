//! Answers that are seen in their private chat while they are made: never as a message, never for longer than their turn.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::{self, Play, Spoken};
use crate::support::scenario::{BOT, RESPONDER};
use crate::support::telegram::{Sent, Telegram};
use crate::*;

const ANN: i64 = 650;
const BOB: i64 = 651;
const GROUP: i64 = -652;

type Speaker = mpsc::UnboundedSender<Spoken>;

/// A bot that shows drafts, with a model that says what the test says: an answer for each speaker, in order.
struct Stage {
    deployment: Deployment,
    speakers: Vec<Speaker>,
    _model: model::Model,
}

impl Stage {
    async fn start(answers: usize, adjust: impl FnOnce(&mut Configuration)) -> Self {
        let (speakers, words): (Vec<_>, Vec<_>) = (0..answers).map(|_| mpsc::unbounded_channel()).unzip();
        let model = model::Model::start(words.into_iter().map(Play::Spoken)).await;
        let deployment = Deployment::start(Backend::Sqlite, Behaviour::default(), |configuration| {
            with_console(configuration);
            configuration.openai_responder(RESPONDER, &model.base_url);
            configuration.set(&format!("bots.{BOT}"), "streaming", "\"draft\"");
            adjust(configuration);
        })
        .await;
        Self { deployment, speakers, _model: model }
    }

    fn telegram(&self) -> &Telegram {
        &self.deployment.telegram
    }

    fn say(&self, answer: usize, words: &str) {
        self.speakers[answer].send(Spoken::text(words)).unwrap();
    }

    /// Returns when the chat sees this draft; gives its id.
    async fn draft(&self, chat: i64, text: &str) -> i64 {
        let stands = |log: &support::telegram::Log| log.standing.get(&chat).is_some_and(|(_, draft)| draft == text);
        self.telegram().wait(&format!("the draft {text:?}"), PATIENCE, stands).await;
        self.telegram()
            .log(|log| log.drafts.iter().rfind(|draft| draft.text == text).unwrap().request["draft_id"].as_i64())
            .unwrap()
    }

    fn drafts(&self, chat: i64) -> Vec<Sent> {
        self.telegram().log(|log| log.drafts.iter().filter(|draft| draft.chat == chat).cloned().collect())
    }

    fn press_stop(&self, draft: i64) {
        let chat = json!({ "id": ANN, "type": "private", "first_name": "Ann" });
        self.telegram().happen(ANN, "stopped_message_generation", &json!({ "chat": chat, "draft_id": draft }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_seen_while_it_is_made_and_is_one_message_in_the_end() {
    let mut stage = Stage::start(2, |_| {}).await;
    stage.telegram().send(ANN, "count");
    stage.say(0, "**One** two");
    let id = stage.draft(ANN, "One two").await;
    stage.say(0, " three");
    assert_eq!(stage.draft(ANN, "One two three").await, id, "the same draft goes on");
    assert_eq!(stage.deployment.ledger.deliveries().await.len(), 0, "a draft is no delivery");
    // More than a message can hold.
    stage.say(0, &"x".repeat(5_000));
    stage
        .telegram()
        .wait("a long draft", PATIENCE, |log| log.drafts.iter().any(|draft| draft.text.len() > 4_000))
        .await;
    drop(stage.speakers.remove(0));
    let texts = stage.telegram().wait_for_texts(ANN, 2, PATIENCE).await;
    assert!(texts[0].starts_with("One two three"), "{texts:?}");

    // Nobody has drafts in groups.
    stage.telegram().send(GROUP, "count");
    stage.say(0, "Four");
    drop(stage.speakers.remove(0));
    stage.telegram().wait_for_texts(GROUP, 1, PATIENCE).await;
    stage.deployment.settled(2, PATIENCE).await;
    stage.telegram().log(|log| assert!(log.standing.is_empty(), "{:?}", log.standing));
    let drafts = stage.drafts(ANN);
    assert_eq!(drafts[0].request["entities"], json!([{ "type": "bold", "offset": 0, "length": 3 }]));
    assert!(drafts.iter().all(|draft| draft.request["can_stop"] == true && draft.text.len() <= 4_096));
    for pair in drafts.windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_millis(500), "{:?} apart", pair[1].at - pair[0].at);
    }
    assert!(stage.drafts(GROUP).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_goes_on_with_the_same_draft() {
    let mut stage = Stage::start(2, |_| {}).await;
    stage.telegram().send(ANN, "tell me");
    stage.say(0, "Half of");
    let id = stage.draft(ANN, "Half of").await;
    stage.deployment.turnwise.kill9().await;
    stage.deployment.turnwise.start_again().await;
    stage.say(1, "The whole");
    assert_eq!(stage.draft(ANN, "The whole").await, id);
    drop(stage.speakers.remove(1));
    assert_eq!(stage.telegram().wait_for_texts(ANN, 1, PATIENCE).await, ["The whole"]);
    stage.deployment.settled(1, PATIENCE).await;
    stage.telegram().log(|log| assert!(log.standing.is_empty(), "{:?}", log.standing));
    assert_eq!(stage.deployment.ledger.history_with("The whole").await.len(), 2);
    stage.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_answer_that_breaks_off_nothing_stays() {
    let stage = Stage::start(1, |configuration| {
        configuration.set("worker", "max_attempts", "1");
        configuration.set(&format!("bots.{BOT}"), "failure_reply", "\"Sorry.\"");
    })
    .await;
    stage.telegram().send(ANN, "tell me");
    stage.say(0, "The answer is");
    stage.draft(ANN, "The answer is").await;
    stage.speakers[0].send(Spoken::Cut).unwrap();
    assert_eq!(stage.telegram().wait_for_texts(ANN, 1, PATIENCE).await, ["Sorry."]);
    stage.deployment.settled(1, PATIENCE).await;
    stage.telegram().log(|log| assert!(log.standing.is_empty(), "{:?}", log.standing));
    let deliveries = stage.deployment.ledger.deliveries().await;
    assert_eq!(deliveries.iter().map(|delivery| delivery.content.as_str()).collect::<Vec<_>>(), ["Sorry."]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_the_turn_of_its_draft_and_no_other() {
    let mut stage = Stage::start(2, |_| {}).await;
    stage.telegram().send(ANN, "long story");
    stage.telegram().send(ANN, "short story");
    stage.say(0, "Once upon");
    let id = stage.draft(ANN, "Once upon").await;
    stage.press_stop(id + 1);
    stage.telegram().all_taken(PATIENCE).await;
    stage.say(0, " a time");
    stage.draft(ANN, "Once upon a time").await;
    stage.press_stop(id);
    stage.say(1, "The end.");
    let next = stage.draft(ANN, "The end.").await;
    assert_ne!(next, id);
    // It comes late, and stops nothing.
    stage.press_stop(id);
    stage.telegram().all_taken(PATIENCE).await;
    drop(stage.speakers.remove(1));
    assert_eq!(stage.telegram().wait_for_texts(ANN, 1, PATIENCE).await, ["The end."]);
    stage.deployment.settled(5, PATIENCE).await;
    let states = stage.deployment.ledger.turns_by_state().await;
    assert_eq!((states.get("answered"), states.get("ignored")), (Some(&1), Some(&4)), "{states:?}");
    assert_eq!(
        stage.deployment.ledger.history_with("The end.").await.len(),
        2,
        "nothing of the other is in the history"
    );
    stage.deployment.turnwise.assert_audit_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_draft_stops_the_drafts_of_its_chat_and_no_reply() {
    let mut stage = Stage::start(2, |_| {}).await;
    stage.telegram().fail_next_draft(ANN, Fault::TooManyRequests { retry_after: 600 });
    stage.telegram().send(ANN, "tell me");
    stage.say(0, "Slowly");
    stage.telegram().wait("a draft", PATIENCE, |log| !log.drafts.is_empty()).await;
    stage.say(0, " now");
    // Two drafts of another chat take longer than one of this would.
    stage.telegram().send(BOB, "tell me");
    stage.say(1, "One");
    stage.draft(BOB, "One").await;
    stage.say(1, " two");
    stage.draft(BOB, "One two").await;
    assert_eq!(stage.drafts(ANN).len(), 1);
    drop(stage.speakers.remove(0));
    assert_eq!(stage.telegram().wait_for_texts(ANN, 1, PATIENCE).await, ["Slowly now"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_draft_is_seen_before_the_reply_before_it() {
    let mut stage = Stage::start(2, |_| {}).await;
    stage.telegram().fail_next(ANN, Fault::TooManyRequests { retry_after: 3 });
    stage.telegram().send(ANN, "first");
    stage.telegram().send(ANN, "second");
    stage.say(0, "One.");
    drop(stage.speakers.remove(0));
    stage.say(0, "Two");
    stage.draft(ANN, "Two").await;
    let first = stage.telegram().log(|log| log.delivered[0].clone());
    assert_eq!(first.text, "One.");
    assert!(stage.drafts(ANN).iter().filter(|draft| draft.text == "Two").all(|draft| draft.at > first.at));
}
