//! Both adapters against aimock, which is written by others from the providers' documentation.

use serde_json::{Value, json};
use turnwise::model::Fault;

use super::*;
use crate::aimock::Aimock;

fn fixtures() -> Value {
    let fixture = |message: &str, response: Value| json!({ "match": { "userMessage": message }, "response": response });
    let with = |message: &str, key: &str, value: Value| {
        let mut fixture = fixture(message, json!({ "content": "This one never comes whole, or not soon." }));
        fixture[key] = value;
        fixture
    };
    let calls = json!([{ "name": "order", "arguments": { "id": 7 } }, { "name": "weather", "arguments": {} }]);
    let error = |kind: &str, status: u16| json!({ "error": { "message": "No.", "type": kind }, "status": status });
    let mut limited = error("rate_limit_error", 429);
    limited["retryAfter"] = json!(3);
    json!({ "fixtures": [
        { "match": { "userMessage": "order", "hasToolResult": true }, "response": { "content": "It was sent." } },
        fixture("greet", json!({ "content": "Grüße 👍, this is long enough to come in pieces." })),
        fixture("order", json!({ "content": "Let me look.", "toolCalls": calls })),
        fixture("limited", limited),
        fixture("overloaded", error("overloaded_error", 529)),
        fixture("unknown", error("not_found_error", 404)),
        fixture("length", json!({ "content": "half", "finishReason": "length" })),
        with("cut", "truncateAfterChunks", json!(2)),
        with("slow", "streamingProfile", json!({ "ttft": 5_000 })),
        with("malformed", "chaos", json!({ "malformedRate": 1 })),
        with("disconnect", "chaos", json!({ "disconnectRate": 1 })),
    ] })
}

/// Both adapters on one aimock.
async fn models(patience: Duration) -> (Aimock, [Endpoint; 2]) {
    let aimock = Aimock::start(&fixtures()).await;
    let open_ai = config(ModelApi::OpenAi, &format!("{}/v1", aimock.base_url));
    let anthropic = config(ModelApi::Anthropic, &aimock.base_url);
    let models = [open_ai, anthropic].map(|settings| endpoint(&settings, 8, patience));
    (aimock, models)
}

#[tokio::test]
async fn words_come_in_pieces() {
    let (_aimock, models) = models(Duration::from_secs(15)).await;
    for model in &models {
        let (answer, heard) = ask_as(1, model, &question("greet")).await;
        let answer = answer.unwrap();
        assert_eq!(answer.content, "Grüße 👍, this is long enough to come in pieces.");
        assert_eq!((heard.concat(), heard.len() > 1), (answer.content, true));
        assert_eq!(answer.finish, Finish::Stop);
        assert!(answer.usage.output_tokens.is_some() && answer.response_id.is_some());
    }
}

#[tokio::test]
async fn a_round_of_tools_goes_there_and_back() {
    let (aimock, models) = models(Duration::from_secs(15)).await;
    for model in &models {
        let mut request = ModelRequest {
            system: Some("Be brief.".to_owned()),
            messages: vec![user("order")],
            tools: vec![order_tool()],
            tools_off: false,
        };
        let asks = ask(model, &request).await.unwrap();
        assert_eq!((asks.content.as_str(), asks.finish), ("Let me look.", Finish::ToolCalls));
        let [order, weather] = &asks.tool_calls[..] else { panic!("{asks:?}") };
        assert_eq!((order.name.as_str(), order.arguments.as_str()), ("order", "{\"id\":7}"));
        assert_eq!((weather.name.as_str(), weather.arguments.as_str()), ("weather", "{}"));
        request.messages.push(assistant(&asks.content, &asks.tool_calls));
        request.messages.extend([result(&order.id, "sent"), result(&weather.id, "sunny")]);
        assert_eq!(ask(model, &request).await.unwrap().content, "It was sent.");
    }
    // aimock writes both protocols into one form: it has understood the same from both.
    let journal = aimock.journal().await;
    let told: Vec<_> = journal
        .iter()
        .map(|entry| {
            let messages = entry["body"]["messages"].as_array().unwrap();
            messages.iter().map(|message| message["role"].as_str().unwrap()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(told[0], ["system", "user"]);
    assert_eq!(told[1], ["system", "user", "assistant", "tool", "tool"]);
    assert_eq!(told[..2], told[2..]);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (_aimock, models) = models(Duration::from_secs(15)).await;
    for model in &models {
        let check = async |message: &str, fault: Fault, status: Option<u16>, after: Option<u64>| {
            let failure = ask(model, &question(message)).await.unwrap_err();
            let after = after.map(Duration::from_secs);
            assert_eq!(
                (failure.fault, failure.status, failure.after),
                (fault, status, after),
                "{message}: {failure:?}"
            );
        };
        check("limited", Fault::Busy, Some(429), Some(3)).await;
        check("overloaded", Fault::Busy, Some(529), None).await;
        check("unknown", Fault::Refused, Some(404), None).await;
        check("cut", Fault::Transport, None, None).await;
        check("malformed", Fault::Malformed, None, None).await;
        check("disconnect", Fault::Transport, None, None).await;
        let cut = ask(model, &question("length")).await.unwrap();
        assert_eq!((cut.finish, cut.content.as_str()), (Finish::Length, "half"));
    }
}

#[tokio::test]
async fn a_first_word_that_comes_too_late_is_not_waited_for() {
    let (_aimock, models) = models(Duration::from_millis(500)).await;
    for model in &models {
        let failure = ask(model, &question("slow")).await.unwrap_err();
        assert_eq!(failure.fault, Fault::Timeout, "{failure:?}");
    }
}
