//! The span of a tool call. One test in a program of its own: `tracing` asks only one thread's subscriber whether a span is
//! wanted, so a test on another thread could switch it off.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::Deserialize;
use turnwise::telemetry::Metrics;
use turnwise::tool::{ToolContext, ToolError, Toolbox, TypedTool, boxed};

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

#[derive(Deserialize, JsonSchema)]
struct Question {
    text: String,
}

struct Oracle;

impl TypedTool for Oracle {
    type Args = Question;
    type Output = String;

    fn name(&self) -> &str {
        "oracle"
    }

    fn description(&self) -> &str {
        "Knows."
    }

    async fn call(&self, _: &ToolContext, question: Question) -> Result<String, ToolError> {
        match question.text.as_str() {
            "QUESTION" => Ok("ANSWER".to_owned()),
            _ => Err(ToolError::Unknown { message: "EXCUSE".to_owned() }),
        }
    }
}

#[tokio::test]
async fn each_call_has_a_span_and_counts_without_words() {
    use tracing_subscriber::fmt::format::FmtSpan;
    let metrics = Metrics::install().unwrap();
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || sink.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let tools = Toolbox::of(vec![boxed(Oracle)]).unwrap();
    let tool = tools.get("oracle").unwrap();
    for text in ["QUESTION", "OTHER"] {
        let arguments = tools.validate("oracle", &format!(r#"{{"text": "{text}"}}"#)).unwrap();
        let _outcome = tool.call(&ToolContext::new("call_9", "turn:1:0"), arguments).await;
    }
    drop(guard);

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let spans: Vec<_> = log.lines().filter(|line| line.contains("close")).collect();
    let [first, second] = spans[..] else { panic!("{log}") };
    let fields = [
        "otel.name=execute_tool oracle",
        "otel.kind=\"internal\"",
        "gen_ai.operation.name=\"execute_tool\"",
        "gen_ai.tool.name=oracle",
        "gen_ai.tool.call.id=call_9",
        "gen_ai.tool.type=\"function\"",
    ];
    for field in fields {
        assert!(first.contains(field), "{field}: {first}");
    }
    assert!(!first.contains("error.type"), "{first}");
    assert!(second.contains("error.type=\"unknown\""), "{second}");
    for word in ["QUESTION", "ANSWER", "OTHER", "EXCUSE"] {
        assert!(!log.contains(word), "{word} is in the log");
    }
    let page = metrics.render();
    for outcome in ["ok", "unknown"] {
        let line = format!("turnwise_tool_calls_total{{tool=\"oracle\",outcome=\"{outcome}\"}} 1\n");
        assert!(page.contains(&line), "{line}: {page}");
    }
}
