//! Building responders from a configuration.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use turnwise::config::{
    Bot, BotChannel, Burst, Config, Console, Database, Http, ModelApi, ModelConfig, Nats, NatsAuth, NatsServer,
    OnUncertain, OtlpProtocol, ReplyInFlight, ResponderConfig, ResponderKind, Secret, SendLimits, Telemetry, WebBot,
    Worker,
};
use turnwise::responder::echo::Echo;
use turnwise::responder::{Reply, Responder, Responders, build};

use crate::{context, request};

pub(crate) const API_KEY: &str = "sk-very-secret-123";

pub(crate) fn settings(kind: ResponderKind) -> ResponderConfig {
    ResponderConfig { timeout: Duration::from_secs(10), max_concurrency: 8, ..ResponderConfig::new(kind) }
}

pub(crate) fn open_ai(base_url: &str) -> ModelConfig {
    ModelConfig {
        api: ModelApi::OpenAi,
        base_url: base_url.to_owned(),
        api_key: Some(Secret::new(API_KEY.to_owned())),
        model: "llama3".to_owned(),
        system_prompt: Some("Be brief.".to_owned()),
        temperature: Some(0.5),
        max_output_tokens: Some(99),
    }
}

pub(crate) fn config(
    responders: impl IntoIterator<Item = (&'static str, ResponderConfig)>,
    bot_responder: &str,
) -> Config {
    let bot = Bot {
        name: "demo".to_owned(),
        responder: bot_responder.to_owned(),
        burst: Burst::Queue,
        quiet: std::time::Duration::ZERO,
        reject_reply: String::new(),
        weight: 1,
        max_turns: None,
        tokens_per_day: None,
        budget_reply: String::new(),
        reply_in_flight: ReplyInFlight::Send,
        on_uncertain: OnUncertain::Hold,
        failure_reply: None,
        typing: true,
        limits: SendLimits::default(),
        channel: BotChannel::Web(WebBot {
            api_keys: Vec::new(),
            origins: Vec::new(),
            conversation_ttl: Duration::ZERO,
            rate_limit: None,
        }),
    };
    let second = Duration::from_secs(1);
    Config {
        workflows: BTreeMap::new(),
        namespace: "turnwise".to_owned(),
        http: Http {
            listen: "127.0.0.1:0".parse().unwrap(),
            public_url: None,
            max_body_bytes: 1_024,
            max_connections: 16_384,
            shutdown_grace: second,
        },
        nats: Nats {
            server: NatsServer::Urls(Vec::new()),
            auth: NatsAuth::None,
            tls: None,
            inbox_prefix: "_INBOX".to_owned(),
            replicas: 1,
            partitions: 1,
            max_age: second,
            duplicate_window: second,
        },
        database: Database { url: Secret::new("sqlite://x".to_owned()), max_connections: 1 },
        worker: Worker { max_turns: 1, lane_backlog: 1, max_attempts: 1, turn_timeout: second },
        telemetry: Telemetry {
            otlp_endpoint: None,
            otlp_protocol: OtlpProtocol::Http,
            service_name: "turnwise".to_owned(),
            sample_ratio: 1.0,
            record_content: false,
        },
        console: Console::default(),
        bots: BTreeMap::from([("demo".to_owned(), bot)]),
        responders: responders.into_iter().map(|(name, settings)| (name.to_owned(), settings)).collect(),
        tools: BTreeMap::new(),
    }
}

#[tokio::test]
async fn build_makes_every_kind_and_keeps_the_registered() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[[rule]]\nreply = \"scripted\"").unwrap();
    let anthropic = ModelConfig { api: ModelApi::Anthropic, ..open_ai("http://127.0.0.1:1") };
    let tables = [
        ("echo", settings(ResponderKind::Echo)),
        ("script", settings(ResponderKind::Script { file: file.path().to_owned() })),
        ("model", settings(ResponderKind::Model(open_ai("http://127.0.0.1:1/v1")))),
        ("claude", settings(ResponderKind::Model(anthropic))),
    ];
    let registered: Responders = BTreeMap::from([("mine".to_owned(), Arc::new(Echo) as Arc<dyn Responder>)]);
    let responders = build(&config(tables, "mine"), registered, &crate::no_tools()).unwrap();
    assert_eq!(responders.keys().collect::<Vec<_>>(), ["claude", "echo", "mine", "model", "script"]);
    assert_eq!(responders["script"].respond(&context(), &request(&["x"])).await, Ok(Reply::text("scripted")));
}

#[test]
fn build_reports_every_problem_and_no_secret() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[[rule]]\nreplyy = \"x\"").unwrap();
    let broken_key =
        ModelConfig { api_key: Some(Secret::new("line\nbreak".to_owned())), ..open_ai("http://localhost") };
    let tables = [
        ("a", settings(ResponderKind::Script { file: "/nowhere/bot.toml".into() })),
        ("b", settings(ResponderKind::Script { file: file.path().to_owned() })),
        ("c", settings(ResponderKind::Model(open_ai("ftp://localhost")))),
        ("d", settings(ResponderKind::Model(broken_key))),
        ("e", settings(ResponderKind::Echo)),
    ];
    let registered: Responders = BTreeMap::from([("e".to_owned(), Arc::new(Echo) as Arc<dyn Responder>)]);
    let errors = build(&config(tables, "nobody"), registered, &crate::no_tools()).err().unwrap();
    let shown: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "responders.a.file: cannot read /nowhere/bot.toml; name a file that this process may read",
        "responders.b.file: the script is not valid",
        "responders.c.base_url: not an address; write one like http://127.0.0.1:11434/v1",
        "responders.d.api_key: has characters that no HTTP header may hold; check for a line break at its end",
        "responders.e: also registered in Rust; rename one of the two",
        "bots.demo.responder: there is no responder \"nobody\"; there is e",
    ];
    assert_eq!(shown, expected);
    let source = std::error::Error::source(&errors[1]).unwrap().to_string();
    assert!(source.starts_with(&format!("{}:2: unknown field `replyy`", file.path().display())), "{source}");
}
