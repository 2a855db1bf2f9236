//! The span of a model call. One test in a program of its own: `tracing` asks only one thread's subscriber whether a span
//! is wanted, so a test on another thread could switch it off.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::sync::{Arc, Mutex};
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

use model::{Model, says, status};

const API_KEY: &str = "sk-very-secret-123";

/// Collects what a subscriber writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_call_has_a_span_with_usage_and_without_words() {
    use tracing_subscriber::fmt::format::FmtSpan;
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || sink.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let busy = status(429, &json!({ "error": { "message": "PROVIDER" } }));
    let mut model = Model::start([says("REPLY"), busy]).await;
    let responder = responder(&model);
    responder.respond(&context(), &request()).await.unwrap();
    responder.respond(&context(), &request()).await.unwrap_err();
    drop(guard);
    assert_eq!(model.bodies().len(), 2);

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let spans: Vec<_> = log.lines().filter(|line| line.contains("turnwise::model") && line.contains("close")).collect();
    let [first, second] = spans[..] else { panic!("{log}") };
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

fn request() -> TurnRequest {
    let message = InboundMessage { text: "PROMPT".to_owned(), ..InboundMessage::default() };
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
