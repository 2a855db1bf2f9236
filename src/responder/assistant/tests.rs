//! The rounds of an assistant against a model and tools that count what is asked of them, and crashes at every point.

use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::message::{Channel, ConversationKey, InboundMessage, Peer, Platform, Role, Sender};
use crate::model::{ModelMessage, ToolCall, Usage};
use crate::responder::journal::Journal;
use crate::responder::{ConversationView, NewUserMessage};
use crate::store::{Ownership, Store};
use crate::tool::{Effects, OnUnknown, Tool, ToolContext, ToolError, ToolPolicy};

/// What the model says in each round: tool calls as `(name, arguments)`, or a text.
type Script = Vec<Result<Vec<(&'static str, &'static str)>, &'static str>>;

#[derive(Debug)]
struct ScriptedModel {
    script: Script,
    asked: Mutex<Vec<ModelRequest>>,
}

#[async_trait::async_trait]
impl Model for ScriptedModel {
    async fn complete(&self, call: &ModelCall<'_>, request: &ModelRequest) -> Result<ModelResponse, ModelFailure> {
        // Somewhere to be dropped.
        tokio::task::yield_now().await;
        let answers = |message: &&ModelMessage| matches!(message, ModelMessage::Assistant { .. });
        let round = request.messages.iter().filter(answers).count();
        self.asked.lock().unwrap().push(request.clone());
        let (content, calls) = match &self.script[round.min(self.script.len() - 1)] {
            Ok(calls) => (String::new(), calls.clone()),
            Err(text) => ((*text).to_owned(), Vec::new()),
        };
        (call.on_delta)(&content);
        let tool_calls = calls.into_iter().enumerate().map(|(place, (name, arguments))| ToolCall {
            // A model that is asked again makes other ids.
            id: format!("{}-{round}-{place}", self.asked.lock().unwrap().len()),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
        });
        Ok(ModelResponse {
            content,
            tool_calls: tool_calls.collect(),
            finish: Finish::Stop,
            usage: Usage::default(),
            model: None,
            response_id: None,
            first_token_ms: None,
            duration_ms: 1,
        })
    }

    fn describe(&self) -> Value {
        json!("scripted")
    }
}

/// Counts how often it was begun and how often it ended, and the keys it was called under.
struct CountingTool {
    name: &'static str,
    policy: ToolPolicy,
    begun: AtomicUsize,
    ended: AtomicUsize,
    keys: Mutex<Vec<String>>,
    outcome: Result<Value, ToolError>,
}

#[async_trait::async_trait]
impl Tool for CountingTool {
    fn spec(&self) -> ToolSpec {
        let parameters = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
        ToolSpec { name: self.name.to_owned(), description: "Counts.".to_owned(), parameters }
    }

    fn policy(&self) -> ToolPolicy {
        self.policy
    }

    async fn call(&self, context: &ToolContext, _arguments: Value) -> Result<Value, ToolError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.keys.lock().unwrap().push(context.idempotency_key.clone());
        tokio::task::yield_now().await;
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.outcome.clone()
    }
}

/// An assistant with three tools, and what they counted.
struct Bench {
    assistant: Assistant,
    model: Arc<ScriptedModel>,
    read: Arc<CountingTool>,
    pay: Arc<CountingTool>,
    ask: Arc<CountingTool>,
}

impl Bench {
    fn new(script: Script) -> Self {
        Self::paying(script, Ok(json!("paid")))
    }

    fn paying(script: Script, outcome: Result<Value, ToolError>) -> Self {
        let tool = |name, policy, outcome| {
            Arc::new(CountingTool {
                name,
                policy,
                begun: AtomicUsize::new(0),
                ended: AtomicUsize::new(0),
                keys: Mutex::default(),
                outcome,
            })
        };
        let destructive = ToolPolicy { on_unknown: OnUnknown::Fail, ..ToolPolicy::of(Effects::Destructive) };
        let read = tool("read", ToolPolicy::of(Effects::ReadOnly), Ok(json!({ "stock": 3 })));
        let pay = tool("pay", destructive, outcome);
        let ask = tool("ask", ToolPolicy { confirm: true, ..destructive }, Ok(json!("refunded")));
        let registered: Vec<Arc<dyn Tool>> = vec![read.clone(), pay.clone(), ask.clone()];
        let names = ["read", "pay", "ask"].map(str::to_owned).to_vec();
        let tools = Tools { toolbox: Toolbox::of(registered).unwrap(), names, rounds_max: 3 };
        let model = Arc::new(ScriptedModel { script, asked: Mutex::default() });
        Self { assistant: Assistant::new(model.clone(), None).with_tools(tools), model, read, pay, ask }
    }

    async fn respond(&self, context: &TurnContext) -> Result<Reply, TurnError> {
        self.assistant.respond(context, &request("hello", None)).await
    }

    fn rounds(&self) -> usize {
        self.model.asked.lock().unwrap().len()
    }
}

fn request(text: &str, payload: Option<String>) -> TurnRequest {
    let message = InboundMessage { text: text.to_owned(), payload, ..InboundMessage::default() };
    let sender = Some(Sender { id: "ann".to_owned(), ..Sender::default() });
    TurnRequest {
        conversation: ConversationView {
            id: Uuid::from_u128(1),
            key: ConversationKey {
                channel: Channel::Telegram,
                bot: "support".into(),
                peer: Peer::User("ann".to_owned()),
            },
            platform: Platform::Telegram,
            metadata: serde_json::Map::new(),
        },
        messages: vec![NewUserMessage { message, sender }],
        history: Arc::from([]),
        prompt: None,
    }
}

fn content(reply: &Reply) -> &str {
    &reply.messages[0].content
}

#[tokio::test]
async fn tools_are_called_round_by_round_and_end_up_in_the_history() {
    let bench = Bench::new(vec![
        Ok(vec![("read", r#"{"n": 1}"#), ("read", r#"{"n": 2}"#)]),
        Ok(vec![("pay", ""), ("fly", "{}"), ("read", r#"{"n": "x"}"#)]),
        Err("done"),
    ]);
    let reply = bench.respond(&TurnContext::new(Uuid::from_u128(7))).await.unwrap();
    assert_eq!(content(&reply), "done");
    let said: Vec<(Role, &str)> = reply.transcript.iter().map(|message| (message.role, &*message.content)).collect();
    assert_eq!(
        said[..5],
        [
            (Role::Assistant, ""),
            (Role::Tool, r#"{"stock":3}"#),
            (Role::Tool, r#"{"stock":3}"#),
            (Role::Assistant, ""),
            (Role::Tool, "paid"),
        ]
    );
    assert_eq!(said[5].1, "Not called: there is no tool \"fly\".");
    assert!(said[6].1.starts_with("Not called: "), "{said:?}");
    assert_eq!((bench.read.ended.load(Ordering::Relaxed), bench.pay.ended.load(Ordering::Relaxed)), (2, 1));
    assert_eq!(bench.pay.keys.lock().unwrap()[0], format!("{}:1.tool.0", Uuid::from_u128(7)));
}

#[tokio::test]
async fn a_model_that_never_stops_calling_is_stopped() {
    let bench = Bench::new(vec![Ok(vec![("read", "{}")])]);
    let error = bench.respond(&TurnContext::new(Uuid::from_u128(7))).await.unwrap_err();
    assert!(matches!(error, TurnError::Terminal { .. }), "{error:?}");
    assert_eq!(bench.rounds(), 4, "three rounds, and one with tools off");
    let last = bench.model.asked.lock().unwrap().last().cloned().unwrap();
    assert!(last.tools_off && !last.tools.is_empty());
    let bench = Bench::new(vec![Ok(vec![("read", "{}"); 20])]);
    bench.respond(&TurnContext::new(Uuid::from_u128(7))).await.unwrap_err();
    assert_eq!(bench.read.ended.load(Ordering::Relaxed), REPEATS_MAX);
}

#[tokio::test]
async fn a_tool_that_could_not_be_called_is_called_by_the_next_attempt() {
    let away = ToolError::Retryable { message: "secret".to_owned(), after: Some(Duration::from_secs(3)) };
    let bench = Bench::paying(vec![Ok(vec![("pay", "{}")]), Err("done")], Err(away));
    let context = TurnContext::new(Uuid::from_u128(7));
    for attempt in 1..=2 {
        let error = bench.respond(&context).await.unwrap_err();
        let TurnError::Retryable { message, after } = error else { panic!("{error:?}") };
        assert_eq!((&*message, after), ("the tool \"pay\" could not be called", Some(Duration::from_secs(3))));
        assert_eq!(bench.pay.begun.load(Ordering::Relaxed), attempt);
    }
    assert_eq!(bench.rounds(), 1, "the model's answer is in the journal");
}

#[tokio::test]
async fn the_model_is_told_of_an_unknown_outcome_and_the_call_is_not_repeated() {
    let unknown = ToolError::Unknown { message: "cut".to_owned() };
    let bench = Bench::paying(vec![Ok(vec![("pay", "{}")]), Err("done")], Err(unknown));
    let reply = bench.respond(&TurnContext::new(Uuid::from_u128(7))).await.unwrap();
    assert!(reply.transcript[1].content.starts_with("The outcome is unknown"), "{:?}", reply.transcript);
    assert_eq!(bench.pay.begun.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_call_that_needs_a_yes_ends_the_turn_with_a_question() {
    let bench = Bench::new(vec![Ok(vec![("read", "{}"), ("ask", r#"{"n": 5}"#)]), Err("done")]);
    let reply = bench.respond(&TurnContext::new(Uuid::from_u128(7))).await.unwrap();
    assert_eq!((bench.rounds(), bench.read.ended.load(Ordering::Relaxed)), (1, 1));
    assert_eq!(bench.ask.begun.load(Ordering::Relaxed), 0);
    let action = &reply.actions[0];
    assert_eq!((&*action.tool, &*action.arguments, action.requester.as_deref()), ("ask", r#"{"n": 5}"#, Some("ann")));
    assert_eq!(reply.messages[0].buttons[0].payload, confirm::payload(&action.id, true));
    assert!(reply.messages[0].buttons.iter().all(|button| button.payload.len() <= 64));
    assert!(reply.transcript[2].content.starts_with("Not called yet"));
}

/// The turn is dropped after every number of polls, and run again as another process would: the model's answers and the
/// tools' results that were recorded are used, and the outcome is the same.
#[tokio::test]
async fn a_crash_at_any_point_repeats_nothing_that_was_recorded() {
    let folder = TempDir::new().unwrap();
    let store = Store::connect(&format!("sqlite://{}/crash.db", folder.path().display()), 4).await.unwrap();
    store.migrate().await.unwrap();
    let stream = store.stream_number("in", "1").await.unwrap();
    let owner = store.take_over(stream, &[0], 0).await.unwrap()[0].ownership;
    let mut crashes = 0;
    for polls in 0.. {
        let bench = Bench::new(vec![
            Ok(vec![("read", r#"{"n": 1}"#)]),
            Ok(vec![("pay", "{}"), ("read", r#"{"n": 2}"#)]),
            Err("done"),
        ]);
        let turn_id = Uuid::now_v7();
        let crashed = poll_at_most(bench.respond(&durable(turn_id, &store, owner)), polls).await;
        crashes += usize::from(crashed.is_none());
        let recorded = store.journal(turn_id).await.unwrap();
        let paid = recorded.iter().any(|entry| entry.step == "1.tool.0" && entry.status == StepStatus::Done);
        let begun_before = bench.pay.begun.load(Ordering::Relaxed);
        let answers = recorded.iter().filter(|entry| entry.kind == StepKind::Model).count();
        let asked_before = bench.rounds();

        let reply = bench.respond(&durable(turn_id, &store, owner)).await.unwrap();
        assert_eq!(content(&reply), "done", "after {polls} polls");
        assert_eq!(bench.rounds() - asked_before, 3 - answers, "after {polls} polls: recorded answers are used");
        let results: Vec<&str> = reply.transcript.iter().map(|message| &*message.content).collect();
        let result = |paid: &'static str| ["", r#"{"stock":3}"#, "", paid, r#"{"stock":3}"#];
        assert!(bench.pay.begun.load(Ordering::Relaxed) <= 1, "after {polls} polls: paid twice");
        if paid || begun_before == 0 && !recorded.iter().any(|entry| entry.step == "1.tool.0") {
            assert_eq!(results, result("paid"), "after {polls} polls");
        } else {
            assert!(results[3] == "paid" || results[3].starts_with("The outcome is unknown"), "{results:?}");
        }
        if crashed.is_some() {
            break;
        }
    }
    assert!(crashes > 10, "only {crashes} points to crash at");
    store.close().await;
}

fn durable(turn_id: Uuid, store: &Store, owner: Ownership) -> TurnContext {
    TurnContext { journal: Journal::durable(turn_id, store.clone(), owner, None), ..TurnContext::new(turn_id) }
}

/// Runs a future for at most so many polls, then drops it.
async fn poll_at_most<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context: &mut Context<'_>| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
