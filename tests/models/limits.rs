//! Time, slots and the circuit.

use std::sync::Arc;

use tokio::sync::Notify;
use turnwise::model::Fault;

use super::*;
use crate::openai::{model, says, stops, stream};
use crate::wire::{Play, Step, Wire};

fn impatient(wire: &Wire) -> Endpoint {
    endpoint(&config(ModelApi::OpenAi, &format!("{}/v1", wire.base_url)), 8, Duration::from_millis(150))
}

fn busy(headers: Vec<(&'static str, &'static str)>) -> Play {
    Play { status: 503, headers, steps: Vec::new() }
}

#[tokio::test]
async fn a_server_that_only_shows_signs_of_life_is_given_up() {
    let alive = |bytes| Step::Repeat { bytes, every: Duration::from_millis(10) };
    let check = async |api: ModelApi, begins: &str, last: Step, message: &str| {
        let steps = vec![Step::Bytes(begins.as_bytes().to_vec()), last];
        let wire = Wire::start([Play { status: 200, headers: Vec::new(), steps }]).await;
        let model = endpoint(&config(api, &wire.base_url), 8, Duration::from_millis(150));
        let failure = ask(&model, &question("x")).await.unwrap_err();
        assert_eq!((failure.fault, failure.message.as_str()), (Fault::Timeout, message));
    };
    let never = "the model server did not answer within 150 ms";
    let stuck = "the model server fell silent for 150 ms in its answer";
    let half = format!("data: {}\n\n", says("half"));
    check(ModelApi::OpenAi, "", Step::Silence, never).await;
    check(ModelApi::OpenAi, "", alive(b": processing\n\n"), never).await;
    check(ModelApi::OpenAi, &half, Step::Silence, stuck).await;
    check(ModelApi::OpenAi, &half, alive(b": processing\n\n"), stuck).await;
    check(ModelApi::OpenAi, &half, alive(b"data:\n\n"), stuck).await;
    // An announcement is not yet an answer.
    let role = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
    check(ModelApi::OpenAi, role, Step::Silence, never).await;
    check(ModelApi::OpenAi, role, alive(b"data: {\"choices\":[{\"index\":0,\"delta\":{}}]}\n\n"), never).await;
    let ping = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
    let starts = "data: {\"type\":\"message_start\"}\n\n";
    check(ModelApi::Anthropic, starts, alive(ping), never).await;
    let half = "data: {\"type\":\"content_block_start\",\"index\":0}\n\n";
    check(ModelApi::Anthropic, half, alive(ping), stuck).await;
}

#[tokio::test]
async fn a_server_that_goes_on_is_not_given_up_before_the_turn() {
    let half = format!("data: {}\n\n", says("."));
    let steps = vec![Step::Repeat { bytes: half.leak().as_bytes(), every: Duration::from_millis(10) }];
    let wire = Wire::start([Play { status: 200, headers: Vec::new(), steps }]).await;
    let model = impatient(&wire);
    let started = Instant::now();
    let call = ModelCall {
        deadline: started + Duration::from_millis(600),
        turn_id: Uuid::from_u128(7),
        attempt: 1,
        conversation_id: Uuid::from_u128(1),
        on_delta: &|_| {},
    };
    let failure = model.complete(&call, &question("x")).await.unwrap_err();
    assert_eq!((failure.fault, failure.message.as_str()), (Fault::Timeout, "the turn's time ran out"));
    assert!(started.elapsed() >= Duration::from_millis(600));
}

#[tokio::test]
async fn a_slot_is_given_back_by_a_call_that_is_dropped() {
    let go = Arc::new(Notify::new());
    let mut held = stream(&[says("late"), stops()]);
    held.steps.insert(0, Step::Wait(Arc::clone(&go)));
    let mut wire = Wire::start([held, stream(&[says("next"), stops()])]).await;
    let model = endpoint(&config(ModelApi::OpenAi, &wire.base_url), 1, Duration::from_secs(15));
    let request = question("x");
    tokio::select! {
        outcome = ask(&model, &request) => panic!("{outcome:?}"),
        seen = wire.seen.recv() => assert!(seen.is_some()),
    }
    assert_eq!(ask(&model, &request).await.unwrap().content, "next");
}

#[tokio::test]
async fn an_outage_opens_the_circuit_and_one_call_closes_it_again() {
    let mut plays: Vec<_> = (0..10).map(|_| busy(Vec::new())).collect();
    plays.push(stream(&[says("back"), stops()]));
    let mut wire = Wire::start(plays).await;
    let model = model(&wire);
    for conversation in 0..10 {
        let failure = ask_as(conversation, &model, &question("x")).await.0.unwrap_err();
        assert_eq!((failure.fault, failure.status), (Fault::Busy, Some(503)));
        wire.seen.recv().await.unwrap();
    }
    let refused = ask(&model, &question("x")).await.unwrap_err();
    assert_eq!((refused.fault, refused.is_retryable()), (Fault::CircuitOpen, true));
    assert!(refused.after.is_some_and(|after| after <= Duration::from_secs(1)), "{refused:?}");
    assert!(wire.seen.try_recv().is_err(), "nobody was called");
    // As the lane does: not before the time that was named.
    tokio::time::sleep(refused.after.unwrap()).await;
    assert_eq!(ask(&model, &question("x")).await.unwrap().content, "back");
}

#[tokio::test]
async fn a_long_wait_that_a_server_asks_for_is_kept_by_every_conversation() {
    let wire = Wire::start([busy(vec![("retry-after", "90")])]).await;
    let model = model(&wire);
    let told = ask_as(1, &model, &question("x")).await.0.unwrap_err();
    assert_eq!((told.fault, told.after), (Fault::Busy, Some(Duration::from_secs(90))));
    let other = ask_as(2, &model, &question("x")).await.0.unwrap_err();
    assert_eq!(other.fault, Fault::CircuitOpen);
    assert!(other.after.is_some_and(|after| after > Duration::from_secs(80)), "{other:?}");
}

#[tokio::test]
async fn estimates_follow_what_the_server_counts() {
    let counts = serde_json::json!({ "choices": [], "usage": { "prompt_tokens": 3_000 } });
    let wire = Wire::start([stream(&[says("ok"), stops(), counts])]).await;
    let model = model(&wire);
    let request = question(&"x".repeat(6_000));
    let before = model.estimate_tokens(&request);
    assert_eq!(before, 2_604);
    ask(&model, &request).await.unwrap();
    assert!((2_790..=2_810).contains(&model.estimate_tokens(&request)), "{}", model.estimate_tokens(&request));
}
