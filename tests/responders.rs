//! The built-in responders from outside: a real HTTP server for the model, script files as users write them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use turnwise::message::{
    Attachment, Author, Channel, ConversationKey, InboundMessage, Peer, Platform, Role, Timestamp,
};
use turnwise::responder::echo::Echo;
use turnwise::responder::{ConversationView, NewUserMessage, Reply, Responder, TurnContext, TurnError, TurnRequest};
use turnwise::store::StoredMessage;
use turnwise::tool::Toolbox;
use uuid::Uuid;

#[path = "responders/configuration.rs"]
mod configuration;
#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
#[path = "support/model.rs"]
mod model;
#[path = "responders/openai.rs"]
mod openai;
#[path = "responders/script.rs"]
mod script;

#[tokio::test]
async fn echo_repeats_texts_and_names_attachments() {
    let mut request = request(&["one", "two", ""]);
    request.messages[2].message.attachments.push(photo());
    assert_eq!(Echo.respond(&context(), &request).await, Ok(Reply::text("one\ntwo\n[photo]")));
}

#[tokio::test]
async fn echo_has_nothing_to_say_to_nothing() {
    let outcome = Echo.respond(&context(), &request(&[""])).await;
    assert_eq!(outcome, Err(terminal("the message has no text to echo")));
}

fn no_tools() -> Toolbox {
    Toolbox::of(Vec::new()).unwrap()
}

fn context() -> TurnContext {
    TurnContext::new(Uuid::from_u128(7))
}

fn request(texts: &[&str]) -> TurnRequest {
    let messages = texts.iter().map(|text| NewUserMessage {
        message: InboundMessage { text: (*text).to_owned(), ..InboundMessage::default() },
        sender: None,
    });
    TurnRequest {
        conversation: ConversationView {
            id: Uuid::from_u128(1),
            key: ConversationKey { channel: Channel::Web, bot: "demo".into(), peer: Peer::User("5".to_owned()) },
            platform: Platform::Web,
            metadata: serde_json::Map::new(),
        },
        messages: messages.collect(),
        history: Arc::from(Vec::new()),
        prompt: None,
    }
}

fn stored(ordinal: i64, role: Role, author: Author, content: &str) -> StoredMessage {
    StoredMessage {
        id: Uuid::from_u128(u128::try_from(ordinal).unwrap()),
        ordinal,
        turn_id: None,
        role,
        author,
        content: content.to_owned(),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: None,
        created_at: Timestamp::from_micros(ordinal),
    }
}

fn photo() -> Attachment {
    Attachment { kind: "photo".to_owned(), file_id: None, url: None, mime_type: None, name: None }
}

fn text_of(reply: &Reply) -> Vec<&str> {
    reply.messages.iter().map(|message| message.content.as_str()).collect()
}

fn terminal(message: &str) -> TurnError {
    TurnError::Terminal { message: message.to_owned(), user_message: None }
}

fn retryable(message: &str) -> TurnError {
    TurnError::Retryable { message: message.to_owned(), after: None }
}
