//! Workflows: one turn at a time around a stand-in responder, and the worked examples through the real process.

#![expect(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a failed test shows what the process said")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use support::example::Example;
use turnwise::config::{Config, Workflow};
use turnwise::message::{Channel, ConversationKey, InboundMessage, Peer, Platform, ReplyMessage, Timestamp};
use turnwise::responder::workflow::WorkflowResponder;
use turnwise::responder::{ConversationView, NewUserMessage, Reply, Responder, TurnContext, TurnError, TurnRequest};
use turnwise::store::NewAction;
use uuid::Uuid;

#[expect(dead_code, reason = "each test binary uses its own part of the harness")]
mod support;

/// A responder that keeps what it is asked and plays one reply.
#[derive(Default)]
struct Stage {
    seen: Mutex<Vec<TurnRequest>>,
    reply: Mutex<Option<Result<Reply, TurnError>>>,
}

#[async_trait::async_trait]
impl Responder for Stage {
    async fn respond(&self, _context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        self.seen.lock().unwrap().push(request.clone());
        self.reply.lock().unwrap().take().unwrap_or_else(|| Ok(Reply::text("answered")))
    }
}

/// A conversation that is led by a workflow.
struct Talk {
    stage: Arc<Stage>,
    responder: WorkflowResponder,
    metadata: Map<String, Value>,
}

impl Talk {
    /// `nodes` follow `[workflows.w]` with its version 1; the first is the start.
    fn new(nodes: &str) -> Self {
        let stage = Arc::new(Stage::default());
        let responder = WorkflowResponder::new(workflow(nodes), stage.clone());
        Self { stage, responder, metadata: Map::new() }
    }

    fn plays(&self, reply: Result<Reply, TurnError>) {
        *self.stage.reply.lock().unwrap() = Some(reply);
    }

    async fn ask(&self, text: &str, payload: Option<&str>) -> Result<Reply, TurnError> {
        let message =
            InboundMessage { text: text.to_owned(), payload: payload.map(str::to_owned), ..InboundMessage::default() };
        let request = TurnRequest {
            conversation: ConversationView {
                id: Uuid::from_u128(1),
                key: ConversationKey { channel: Channel::Web, bot: "demo".into(), peer: Peer::User("5".to_owned()) },
                platform: Platform::Web,
                metadata: self.metadata.clone(),
            },
            messages: vec![NewUserMessage { message, sender: None }],
            history: Arc::from(Vec::new()),
            prompt: None,
        };
        self.responder.respond(&TurnContext::new(Uuid::from_u128(7)), &request).await
    }

    /// One turn and its commit; what was said, and where the conversation is then.
    async fn press(&mut self, text: &str, payload: Option<&str>) -> (Vec<String>, Option<String>) {
        let reply = self.ask(text, payload).await.unwrap();
        for (key, value) in reply.metadata.into_iter().flatten() {
            match value {
                Value::Null => drop(self.metadata.remove(&key)),
                value => drop(self.metadata.insert(key, value)),
            }
        }
        if let Some(state) = reply.workflow_state {
            self.metadata.insert("workflow_state".to_owned(), state);
        }
        let place = self.metadata.get("workflow_state").map(|state| {
            assert_eq!((&state["workflow"], &state["version"]), (&json!("w"), &json!(1)));
            format!("{} {}", state["node"].as_str().unwrap(), state["asked"])
        });
        (reply.messages.into_iter().map(|message| message.content).collect(), place)
    }

    #[track_caller]
    fn expect(&self, (said, place): (Vec<String>, Option<String>), expected: &[&str], at: Option<&str>) {
        assert_eq!((said.iter().map(String::as_str).collect::<Vec<_>>(), place.as_deref()), (expected.to_vec(), at));
    }

    async fn say(&mut self, text: &str) -> (Vec<String>, Option<String>) {
        self.press(text, None).await
    }
}

fn workflow(nodes: &str) -> Workflow {
    let start = nodes.lines().find_map(|line| line.strip_prefix("[n.")?.strip_suffix(']')).unwrap();
    let text = format!(
        "[nats]\nmanaged = true\n[bots.b]\nchannel = \"web\"\nresponder = \"r\"\n[responders.r]\nkind = \"echo\"\nworkflow = \"w\"\n\
         [workflows.w]\nversion = 1\nstart = \"{start}\"\n{}",
        nodes.replace("[n.", "[workflows.w.nodes.")
    );
    let config = Config::parse(&text, Path::new("turnwise.toml"), &|_| None).unwrap();
    config.workflows["w"].clone()
}

const ORDER: &str = r#"
fallback = "sorry"
[n.number]
kind = "ask"
text = "Which order, ${metadata.name|friend}?"
pattern = 'no\. ([0-9]+)|[0-9]{5}'
retry_text = "Not $text. Which?"
max_attempts = 2
save_as = "order"
next = "route"
else = "person"
[n.route]
kind = "condition"
rules = [{ value = "metadata.order", at_least = 50000, next = "unknown" }]
else = "status"
[n.unknown]
kind = "end"
text = "No order ${metadata.order}."
[n.status]
kind = "respond"
prompt = "The order is ${metadata.order}."
next = "more"
[n.more]
kind = "ask"
text = "Anything else?"
choices = ["Yes", { label = "No", value = "enough" }]
save_as = "more"
next = "number"
else = "person"
[n.person]
kind = "handoff"
text = "A colleague will help."
[n.sorry]
kind = "respond"
text = "Once more."
next = "number"
"#;

#[tokio::test]
async fn questions_are_asked_and_their_answers_kept() {
    let mut talk = Talk::new(ORDER);
    let said = talk.say("hello").await;
    talk.expect(said, &["Which order, friend?"], Some("number 1"));
    let said = talk.say("a big one").await;
    talk.expect(said, &["Not a big one. Which?"], Some("number 2"));
    let said = talk.say("it is no. 17, please").await;
    talk.expect(said, &["answered", "Anything else?"], Some("more 1"));
    assert_eq!(talk.metadata["order"], "17", "what the group caught");
    let seen = std::mem::take(&mut *talk.stage.seen.lock().unwrap());
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].prompt.as_deref(), Some("The order is 17."));
    assert_eq!(seen[0].conversation.metadata["order"], "17", "the responder sees what was just answered");

    let buttons = talk.ask("hm", None).await.unwrap().messages.remove(0).buttons;
    assert_eq!(buttons.iter().map(|button| button.payload.as_str()).collect::<Vec<_>>(), ["Yes", "enough"]);
    let said = talk.press("whatever the client says", Some("enough")).await;
    talk.expect(said, &["Which order, friend?"], Some("number 1"));
    assert_eq!(talk.metadata["more"], "enough");
    let said = talk.say("60001 or so").await;
    talk.expect(said, &["No order 60001."], None);
    assert_eq!(talk.metadata["order"], "60001", "all that matched, where no group took part");
    let said = talk.say("hello again").await;
    talk.expect(said, &["Which order, friend?"], Some("number 1"));
}

#[tokio::test]
async fn who_cannot_answer_gets_to_else() {
    let mut talk = Talk::new(ORDER);
    talk.say("hello").await;
    talk.say("no").await;
    let reply = talk.ask("no", None).await.unwrap();
    assert!(reply.handoff);
    assert_eq!(reply.messages, [ReplyMessage::text("A colleague will help.")]);
    assert_eq!((reply.workflow_state, reply.metadata), (None, json!({ "workflow_state": null }).as_object().cloned()));
}

#[tokio::test]
async fn a_place_that_is_gone_leads_to_the_fallback() {
    for state in [
        json!({ "workflow": "w", "version": 2, "node": "more", "asked": 1 }),
        json!({ "workflow": "other", "version": 1, "node": "more", "asked": 1 }),
        json!({ "workflow": "w", "version": 1, "node": "gone" }),
        json!({ "version": "1" }),
        json!(7),
    ] {
        let mut talk = Talk::new(ORDER);
        talk.metadata.insert("workflow_state".to_owned(), state);
        let said = talk.say("Yes").await;
        talk.expect(said, &["Once more.", "Which order, friend?"], Some("number 1"));
    }
}

const CHAT: &str = r#"
[n.wish]
kind = "condition"
rules = [{ value = "text", matches = "(?i)human", next = "person" }]
else = "chat"
[n.chat]
kind = "respond"
next = "wish"
[n.person]
kind = "handoff"
"#;

#[tokio::test]
async fn a_responder_answers_each_message_once_and_conditions_come_first() {
    let mut talk = Talk::new(CHAT);
    for text in ["hello", "and then?"] {
        let said = talk.say(text).await;
        talk.expect(said, &["answered"], Some("wish 0"));
    }
    assert_eq!(talk.stage.seen.lock().unwrap().len(), 2);
    assert!(talk.ask("a human, please", None).await.unwrap().handoff);
    assert_eq!(talk.stage.seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn what_the_responder_changes_and_gives_up_counts() {
    let mut talk = Talk::new(CHAT);
    let patch = json!({ "name": "Ann", "workflow_state": "mine" });
    talk.plays(Ok(Reply { metadata: patch.as_object().cloned(), handoff: true, ..Reply::text("bye") }));
    let reply = talk.ask("hello", None).await.unwrap();
    assert!(reply.handoff);
    assert_eq!(reply.metadata, json!({ "name": "Ann" }).as_object().cloned(), "the place is the workflow's");
    assert_eq!(reply.workflow_state.unwrap()["node"], "wish");

    let failure = TurnError::Retryable { message: "away".to_owned(), after: None };
    talk.plays(Err(failure.clone()));
    assert_eq!(talk.ask("hello", None).await, Err(failure));

    // A tool call that waits for a word: the next message is the responder's, whatever the graph says.
    let action = NewAction {
        id: "1".to_owned(),
        requester: None,
        tool: "pay".to_owned(),
        arguments: "{}".to_owned(),
        expires_at: Timestamp::from_micros(1),
    };
    talk.plays(Ok(Reply { actions: vec![action], ..Reply::text("May I?") }));
    let said = talk.say("pay it").await;
    talk.expect(said, &["May I?"], Some("chat 0"));
    let said = talk.say("a human would say yes").await;
    talk.expect(said, &["answered"], None);
}

#[tokio::test]
async fn a_late_press_is_for_the_responder_and_moves_nothing() {
    let mut talk = Talk::new(ORDER);
    talk.say("hello").await;
    let reply = talk.ask("Yes", Some("confirm:0123")).await.unwrap();
    assert_eq!(reply, Reply::text("answered"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_intake_runs() {
    let intake = Example::serve("intake", &[]).await;
    let (said, _) = intake.say("ann", "hello").await;
    assert_eq!(said, ["Hello! What is your name?"]);
    let (said, _) = intake.say("ann", "1234").await;
    assert_eq!(said, ["Just your name, please: letters only."]);
    let (said, conversation) = intake.say("ann", "Ann Lee").await;
    assert_eq!(said, ["What is it about, Ann Lee?"]);
    assert_eq!(
        conversation["metadata"]["workflow_state"],
        json!({ "workflow": "intake", "version": 1, "node": "topic", "asked": 1 })
    );
    let (said, _) = intake.say("ann", "a delivery").await;
    assert_eq!(said, ["I can help with that. What would you like to know? Say \"human\" for a person."]);
    let (said, _) = intake.say("ann", "when will it come?").await;
    assert_eq!(said, ["Deliveries come within three days."]);
    let (said, conversation) = intake.say("ann", "good").await;
    assert_eq!((said, &conversation["status"]), (vec!["I have noted this, Ann Lee: good".to_owned()], &json!("bot")));
    let (said, conversation) = intake.say("ann", "now a human").await;
    assert_eq!(said, ["Thank you, Ann Lee. A colleague will take over."]);
    assert_eq!((&conversation["status"], conversation["metadata"].get("workflow_state")), (&json!("human"), None));
    assert_eq!(
        (&conversation["metadata"]["name"], &conversation["metadata"]["topic"]),
        (&json!("Ann Lee"), &json!("delivery"))
    );

    for text in ["hi", "Bob", "billing"] {
        intake.say("bob", text).await;
    }
    let (said, conversation) = intake.say("bob", "some 250.50 I think").await;
    assert_eq!((said.len(), &conversation["status"]), (1, &json!("human")), "{said:?}");
    assert_eq!(conversation["metadata"]["amount"], "250.50");
    intake.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_status_bot_runs() {
    let orders = Example::serve("order-status", &[]).await;
    orders.say("ann", "where is it?").await;
    let (said, _) = orders.say("ann", "the big one").await;
    assert_eq!(said, ["I found no five digits in that. Once more, please?"]);
    let (said, conversation) = orders.say("ann", "number 23456.").await;
    assert_eq!(said, ["Order 23456 is on its way and arrives tomorrow.", "Anything else?"]);
    assert_eq!(conversation["metadata"]["order"], "23456");
    let (said, _) = orders.say("ann", "another order").await;
    assert_eq!(said, ["Which order? Its number has five digits."]);
    let (said, _) = orders.say("ann", "12345").await;
    assert_eq!(said, ["Order 12345 was delivered long ago.", "Anything else?"]);
    orders.say("ann", "Another order").await;
    let (said, _) = orders.say("ann", "98765").await;
    assert_eq!(said, ["There is no order 98765.", "Anything else?"]);
    let (said, conversation) = orders.say("ann", "nothing").await;
    assert_eq!((said, conversation["metadata"].get("workflow_state")), (vec!["Have a nice day.".to_owned()], None));
    let (said, _) = orders.say("ann", "hello?").await;
    assert_eq!(said, ["Which order? Its number has five digits."], "an end is a new beginning");
    orders.terminate().await;
}
