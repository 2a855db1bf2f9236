//! The span of a tool call, and what is logged and counted of one. One test in a program of its own, as `support/trace_log.rs`
//! asks for.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use trace_log::{TraceLog, closed};
use turnwise::config::Config;
use turnwise::telemetry::Metrics;
use turnwise::tool::{ToolContext, ToolError, Toolbox, TypedTool, boxed};

#[path = "support/trace_log.rs"]
mod trace_log;
#[expect(dead_code, reason = "the rest of the stand-in is for tests/http_responder.rs")]
#[path = "support/wire.rs"]
mod wire;

use wire::{Play, Step, Wire};

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
    let metrics = Metrics::install().unwrap();
    let log = TraceLog::start();
    let tools = Toolbox::of(vec![boxed(Oracle)]).unwrap();
    let tool = tools.get("oracle").unwrap();
    for text in ["QUESTION", "OTHER"] {
        let arguments = tools.validate("oracle", &format!(r#"{{"text": "{text}"}}"#)).unwrap();
        let _outcome = tool.call(&ToolContext::new("call_9", "turn:1:0"), arguments).await;
    }
    let refusal = refused_by_a_server().await;
    let log = log.end();

    let [first, second, third] = closed(&log, "execute_tool")[..] else { panic!("{log}") };
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
    assert!(third.contains("error.type=\"failed\""), "{third}");
    assert_eq!(refusal, "the tool's server answered HTTP 422: REFUSAL of QUESTION", "the model's to read");
    for word in ["QUESTION", "ANSWER", "OTHER", "EXCUSE", "REFUSAL"] {
        assert!(!log.contains(word), "{word} is in the log");
    }
    let page = metrics.render();
    for outcome in ["ok", "unknown"] {
        let line = format!("turnwise_tool_calls_total{{tool=\"oracle\",outcome=\"{outcome}\"}} 1\n");
        assert!(page.contains(&line), "{line}: {page}");
    }
    assert!(page.contains("turnwise_tool_calls_total{tool=\"orders\",outcome=\"failed\"} 1\n"), "{page}");
    assert!(!page.contains("REFUSAL"), "{page}");
}

/// What a tool says of a server that refuses with words of its own.
async fn refused_by_a_server() -> String {
    let steps = vec![Step::Bytes(b"REFUSAL of QUESTION".to_vec())];
    let wire = Wire::start([Play { status: 422, headers: vec![("content-type", "text/plain")], steps }]).await;
    let text = format!(
        "[nats]\nmanaged = true\n[bots.b]\nchannel = \"web\"\nresponder = \"r\"\n[responders.r]\nkind = \"echo\"\n\
         [tools.orders]\nkind = \"http\"\nurl = \"{}/orders\"\ndescription = \"Orders.\"\n",
        wire.base_url
    );
    let config = Config::parse(&text, Path::new("/turnwise.toml"), &|_| None).unwrap();
    let tools = Toolbox::build(&config, Vec::new()).unwrap();
    let arguments = tools.validate("orders", "").unwrap();
    let refused = tools.get("orders").unwrap().call(&ToolContext::new("call_10", "turn:1:1"), arguments).await;
    refused.unwrap_err().to_string()
}
