//! Models from outside: a stand-in that sends any bytes, and aimock, which imitates the providers on its own terms.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use turnwise::config::{ModelApi, ModelConfig, ResponderConfig, ResponderKind, Secret};
use turnwise::model::{
    Endpoint, Finish, Model, ModelCall, ModelFailure, ModelMessage, ModelRequest, ModelResponse, Timeouts, ToolCall,
    ToolSpec, Usage,
};
use uuid::Uuid;

#[path = "support/aimock.rs"]
mod aimock;
#[path = "models/anthropic.rs"]
mod anthropic;
#[path = "models/imitation.rs"]
mod imitation;
#[path = "models/limits.rs"]
mod limits;
#[path = "models/openai.rs"]
mod openai;
#[path = "support/wire.rs"]
mod wire;

const API_KEY: &str = "sk-very-secret-123";

fn config(api: ModelApi, base_url: &str) -> ModelConfig {
    ModelConfig {
        api,
        base_url: base_url.to_owned(),
        api_key: Some(Secret::new(API_KEY.to_owned())),
        model: "llama3".to_owned(),
        system_prompt: None,
        temperature: None,
        max_output_tokens: None,
    }
}

/// A model whose server may be silent for a moment only, or for a test's whole length.
fn endpoint(settings: &ModelConfig, max_concurrency: usize, patience: Duration) -> Endpoint {
    let shared = ResponderConfig {
        max_concurrency,
        timeout: Duration::from_secs(20),
        ..ResponderConfig::new(ResponderKind::Model(settings.clone()))
    };
    Endpoint::new(&shared, settings, Timeouts { first_event: patience, idle: patience }).unwrap()
}

fn patient(settings: &ModelConfig) -> Endpoint {
    endpoint(settings, 8, Duration::from_secs(15))
}

/// One call of the conversation of this number, and the text handed out on the way.
async fn ask_as(
    conversation: u128,
    model: &dyn Model,
    request: &ModelRequest,
) -> (Result<ModelResponse, ModelFailure>, Vec<String>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&heard);
    let call = ModelCall {
        deadline: Instant::now() + Duration::from_secs(30),
        turn_id: Uuid::from_u128(7),
        attempt: 1,
        conversation_id: Uuid::from_u128(conversation),
        on_delta: &move |text| listener.lock().unwrap().push(text.to_owned()),
    };
    let outcome = model.complete(&call, request).await;
    let heard = heard.lock().unwrap().clone();
    (outcome, heard)
}

async fn ask(model: &dyn Model, request: &ModelRequest) -> Result<ModelResponse, ModelFailure> {
    ask_as(1, model, request).await.0
}

fn question(text: &str) -> ModelRequest {
    ModelRequest { messages: vec![user(text)], ..ModelRequest::default() }
}

fn user(text: &str) -> ModelMessage {
    ModelMessage::User { content: text.to_owned() }
}

fn assistant(text: &str, tool_calls: &[ToolCall]) -> ModelMessage {
    ModelMessage::Assistant { content: text.to_owned(), tool_calls: tool_calls.to_vec() }
}

fn result(call_id: &str, text: &str) -> ModelMessage {
    ModelMessage::Tool { call_id: call_id.to_owned(), content: text.to_owned() }
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
}

fn order_tool() -> ToolSpec {
    ToolSpec {
        name: "order".to_owned(),
        description: "Looks up an order.".to_owned(),
        parameters: json!({ "type": "object", "properties": { "id": { "type": "integer" } } }),
    }
}

#[test]
fn what_the_journal_keeps_comes_back_as_it_was() {
    let request = ModelRequest {
        system: Some("Be brief.".to_owned()),
        messages: vec![user("hi"), assistant("", &[call("c1", "order", "{")]), result("c1", "7"), assistant("x", &[])],
        tools: vec![order_tool()],
        tools_off: true,
    };
    let text = serde_json::to_string(&request).unwrap();
    assert_eq!(serde_json::from_str::<ModelRequest>(&text).unwrap(), request);
    assert!(text.contains(r#"{"role":"user","content":"hi"}"#), "{text}");
    let response = ModelResponse {
        content: "x".to_owned(),
        tool_calls: vec![call("c1", "order", "{}")],
        finish: Finish::ToolCalls,
        usage: Usage { input_tokens: Some(1), output_tokens: None },
        model: None,
        response_id: Some("r".to_owned()),
        first_token_ms: Some(3),
        duration_ms: 4,
    };
    let text = serde_json::to_string(&response).unwrap();
    assert_eq!(serde_json::from_str::<ModelResponse>(&text).unwrap(), response);
}

#[test]
fn a_model_describes_itself_without_its_key() {
    let settings = ModelConfig { temperature: Some(0.5), ..config(ModelApi::Anthropic, "https://api.anthropic.com") };
    let model = patient(&settings);
    let expected = json!({
        "provider": "anthropic", "base_url": "https://api.anthropic.com", "model": "llama3",
        "temperature": 0.5, "max_output_tokens": null,
    });
    assert_eq!(model.describe(), expected);
    assert!(!format!("{model:?}").contains(API_KEY));
}
