//! The span of a model call, and what is logged of one. One test in a program of its own, as `support/trace_log.rs` asks for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use turnwise::config::{ModelApi, ModelConfig, ResponderConfig, ResponderKind, Secret};
use turnwise::message::{Channel, ConversationKey, InboundMessage, Peer, Platform};
use turnwise::model::build;
use turnwise::responder::assistant::Assistant;
use turnwise::responder::{ConversationView, NewUserMessage, Responder, TurnContext, TurnRequest};
use uuid::Uuid;

#[expect(dead_code, reason = "the rest of the stand-in is for tests/responders.rs")]
#[path = "support/model.rs"]
mod model;
#[path = "support/trace_log.rs"]
mod trace_log;

use model::{Model, says, status};
use trace_log::{TraceLog, closed};

const API_KEY: &str = "sk-very-secret-123";

#[tokio::test]
async fn calls_are_traced_and_logged_without_words() {
    let log = TraceLog::start();
    let busy = status(429, &json!({ "error": { "message": "PROVIDER" } }));
    let mut model = Model::start([says("REPLY"), busy, says("REPLY"), says("REPLY")]).await;
    let responder = responder(&model);
    responder.respond(&context(), &request("PROMPT")).await.unwrap();
    responder.respond(&context(), &request("PROMPT")).await.unwrap_err();
    // A server that counts 12 tokens of this has not read it.
    for _ in 0..2 {
        responder.respond(&context(), &request(&"PROMPT ".repeat(5_000))).await.unwrap();
    }
    let log = log.end();
    assert_eq!(model.bodies().len(), 4);

    let [first, second, ..] = closed(&log, "turnwise::model")[..] else { panic!("{log}") };
    let fields = [
        "otel.name=chat llama3",
        "otel.kind=\"client\"",
        "gen_ai.operation.name=\"chat\"",
        "gen_ai.provider.name=\"openai\"",
        "gen_ai.response.model=\"llama3:8b\"",
        "gen_ai.usage.input_tokens=12",
        "gen_ai.usage.output_tokens=5",
        "gen_ai.request.temperature=0.5",
        "server.address=\"127.0.0.1\"",
        "http.response.status_code=200",
        "gen_ai.request.stream=true",
        "gen_ai.response.finish_reasons=\"stop\"",
        "gen_ai.response.time_to_first_chunk=0.",
        "turnwise.attempt=2",
    ];
    for field in fields {
        assert!(first.contains(field), "{field}: {first}");
    }
    assert!(!first.contains("error.type"), "{first}");
    assert!(second.contains("error.type=\"rate_limited\""), "{second}");
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("it may cut long prompts silently")).collect();
    assert_eq!(warnings.len(), 1, "once for the two: {warnings:?}");
    assert!(warnings[0].contains("WARN") && warnings[0].contains("counted_tokens=12"), "{warnings:?}");
    for word in ["PROMPT", "REPLY", "Be brief", API_KEY] {
        assert!(!log.contains(word), "{word} is in the log");
    }
}

fn responder(model: &Model) -> Assistant {
    let settings = ModelConfig {
        api: ModelApi::OpenAi,
        base_url: model.base_url.clone(),
        api_key: Some(Secret::new(API_KEY.to_owned())),
        model: "llama3".to_owned(),
        system_prompt: Some("Be brief.".to_owned()),
        temperature: Some(0.5),
        max_output_tokens: None,
    };
    let kind = ResponderKind::Model(settings.clone());
    let shared = ResponderConfig { timeout: Duration::from_secs(10), max_concurrency: 8, ..ResponderConfig::new(kind) };
    Assistant::new(build(&shared, &settings).unwrap(), settings.system_prompt)
}

fn context() -> TurnContext {
    TurnContext { attempt: 2, ..TurnContext::new(Uuid::from_u128(7)) }
}

fn request(text: &str) -> TurnRequest {
    let message = InboundMessage { text: text.to_owned(), ..InboundMessage::default() };
    TurnRequest {
        conversation: ConversationView {
            id: Uuid::from_u128(1),
            key: ConversationKey { channel: Channel::Web, bot: "demo".into(), peer: Peer::User("5".to_owned()) },
            platform: Platform::Web,
            metadata: serde_json::Map::new(),
        },
        messages: vec![NewUserMessage { message, sender: None }],
        history: Arc::from(Vec::new()),
        prompt: None,
    }
}
