//! A stand-in model server (OpenAI's Chat Completions) that answers every message at once, and some of them otherwise when its
//! instructions say "formal"; and a database of recorded turns that it has answered.
//!
//! Refuses to know Turnwise's processes. Invariant: what it is asked is counted before it is answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use turnwise::message::{Author, Channel, ConversationKey, Peer, Platform, Role, TerminalState, Timestamp};
use turnwise::model::{Finish, ModelMessage, ModelRequest, ModelResponse, Usage};
use turnwise::store::{
    CommitOutcome, JournalEntry, NewConversation, NewMessage, Ownership, Position, StepKind, StepStatus, Store,
    TurnCommit, TurnTimings,
};
use uuid::Uuid;

pub(crate) struct Clerk {
    stage: Arc<Stage>,
    address: std::net::SocketAddr,
    _server: JoinSet<()>,
}

struct Stage {
    asked: watch::Sender<HashMap<String, usize>>,
    held: Mutex<Option<String>>,
}

/// The text of a turn.
pub(crate) fn text(number: usize) -> String {
    format!("message {number} <b>&amp;</b>")
}

/// Whether formal instructions change the answer.
pub(crate) const fn is_changed(number: usize) -> bool {
    number % 100 == 7
}

impl Clerk {
    pub(crate) async fn start() -> Self {
        let stage = Arc::new(Stage { asked: watch::Sender::default(), held: Mutex::default() });
        let router = Router::new().route("/v1/chat/completions", post(complete)).with_state(Arc::clone(&stage));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { stage, address, _server: server }
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// There is no answer to this message, until nothing is held any more.
    pub(crate) fn hold(&self, message: Option<String>) {
        *self.stage.held.lock().unwrap() = message;
    }

    /// How often it was asked about each message.
    pub(crate) fn asked(&self) -> HashMap<String, usize> {
        self.stage.asked.borrow().clone()
    }

    /// Returns once it has been asked about a message.
    pub(crate) async fn wait_for(&self, message: &str) {
        let mut asked = self.stage.asked.subscribe();
        let found = asked.wait_for(|asked| asked.contains_key(message));
        tokio::time::timeout(super::support::PATIENCE, found).await.unwrap().unwrap();
    }
}

async fn complete(State(stage): State<Arc<Stage>>, Json(request): Json<Value>) -> Json<Value> {
    let messages = request["messages"].as_array().unwrap();
    let last = messages.last().unwrap()["content"].as_str().unwrap().to_owned();
    stage.asked.send_modify(|asked| *asked.entry(last.clone()).or_default() += 1);
    if stage.held.lock().unwrap().as_ref() == Some(&last) {
        std::future::pending::<()>().await;
    }
    let is_formal = messages[0]["role"] == "system" && messages[0]["content"].as_str().unwrap().contains("formal");
    let number: usize = last.split(' ').nth(1).unwrap().parse().unwrap();
    let answer =
        if is_formal && is_changed(number) { format!("Dear customer, re: {last}") } else { format!("re: {last}") };
    Json(json!({
        "id": "chatcmpl-clerk",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "clerk",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": answer }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120 },
    }))
}

/// A database with so many recorded turns, each the only one of its conversation.
pub(crate) async fn record(url: &str, turns: usize) {
    let store = Store::connect(url, 4).await.unwrap();
    store.migrate().await.unwrap();
    let stream = store.stream_number("turnwise_in", "recorded").await.unwrap();
    let ownership = store.take_over(stream, &[0], 1).await.unwrap()[0].ownership;
    let numbers: Vec<usize> = (0..turns).collect();
    for numbers in numbers.chunks(1_000) {
        let commits = numbers.iter().map(|number| store.commit(commit(ownership, *number)));
        for outcome in join_all(commits).await {
            assert!(matches!(outcome.unwrap(), CommitOutcome::Committed { .. }));
        }
    }
    store.close().await;
}

fn commit(ownership: Ownership, number: usize) -> TurnCommit {
    let (conversation_id, turn_id, now) = (Uuid::now_v7(), Uuid::now_v7(), Timestamp::now());
    let peer = Peer::User(number.to_string());
    let key = ConversationKey { channel: Channel::Telegram, bot: "support".into(), peer };
    let said = |role, author, content: String| NewMessage {
        id: Uuid::now_v7(),
        role,
        author,
        content,
        attachments: Vec::new(),
        tool: None,
        platform_message_id: None,
        created_at: now,
    };
    let answer = format!("re: {}", text(number));
    TurnCommit {
        ownership,
        position: Position { stream: ownership.stream, sequence: u64::try_from(number + 1).unwrap() },
        turn_id,
        dedupe_id: format!("recorded:{number}"),
        merged: Vec::new(),
        key: key.clone(),
        state: TerminalState::Answered,
        reason: None,
        attempts: 1,
        responder: Some("assistant".to_owned()),
        conversation_id: Some(conversation_id),
        new_conversation: Some(NewConversation {
            id: conversation_id,
            key,
            platform: Platform::Telegram,
            device_id: None,
            metadata: serde_json::Map::new(),
            created_at: now,
        }),
        messages_read: None,
        messages: vec![
            said(Role::User, Author::User, text(number)),
            said(Role::Assistant, Author::Bot, answer.clone()),
        ],
        metadata_patches: Vec::new(),
        workflow_state: None,
        handoff: false,
        actions: Vec::new(),
        deliveries: Vec::new(),
        suppress_if_taken: false,
        journal: None,
        record: Some(json!({ "responder": {}, "steps": [step(number, answer)] })),
        tokens: 0,
        traceparent: Some(format!("00-{:032x}-b7ad6b7169203331-01", number + 1)),
        timings: TurnTimings::default(),
        received_at: now,
        started_at: now,
        committed_at: now,
    }
}

fn step(number: usize, answer: String) -> JournalEntry {
    let question = ModelRequest {
        system: Some("Be kind.".to_owned()),
        messages: vec![ModelMessage::User { content: text(number) }],
        tools: Vec::new(),
        tools_off: false,
    };
    let answer = ModelResponse {
        content: answer,
        tool_calls: Vec::new(),
        finish: Finish::Stop,
        usage: Usage { input_tokens: Some(100), output_tokens: Some(20) },
        model: None,
        response_id: None,
        first_token_ms: Some(1),
        duration_ms: 100,
    };
    JournalEntry {
        step: "0.model".to_owned(),
        ordinal: 0,
        kind: StepKind::Model,
        status: StepStatus::Done,
        request_hash: String::new(),
        request: Some(json!({ "shortened": false, "question": question })),
        result: Some(json!(answer)),
        started_at: Timestamp::now(),
        ended_at: Some(Timestamp::now()),
    }
}
