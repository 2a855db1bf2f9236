//! The `script` responder: answers by a TOML file of rules, for demonstrations and tests. No model, no key, no state.
//!
//! ```toml
//! [[rule]]                                    # the first rule whose pattern is found in the new messages' text answers
//! pattern = '(?i)^my name is (?<name>\w+)'    # Rust regex syntax; case matters unless the pattern begins with (?i)
//! reply = "Hello, $name!"                     # or replies = [..]: one of them; or messages = [..]: all of them
//! metadata = { name = "$name" }               # merged into the conversation's metadata; texts are filled
//! buttons = [{ label = "Help" }]              # under the last message; payload = ".." where it is not the label
//! delay = { min = "200ms", max = "2s" }       # or delay = "200ms"; who watches sees the words come meanwhile
//! handoff = true                              # a person takes over
//!
//! [[rule]]
//! pattern = "weather"
//! reply = "Sunny, on attempt $attempt."
//! fail = "retryable"                          # or "terminal"; alone: every attempt fails
//! fail_times = 2                              # the first two attempts of a turn fail; or fail_ratio = 0.2
//! error = "the weather service is down"
//!
//! [[rule]]                                    # without a pattern: matches everything, and must be the last
//! reply = "You said: $text"
//! ```
//!
//! Texts know `$1` and `${name}` (the pattern's groups), `$text` (all that was said), `$attempt`, `$count` (the user's
//! messages in the history given, these included), `${metadata.KEY}`, `${metadata.KEY|default}` and `$$`.
//!
//! Refuses chance: which alternative, which delay and which attempt fails come from a hash of the turn's id, so that a run
//! repeats. Invariant: a reply has at least one message.

use std::time::Duration;

use regex::{Captures, Regex};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Reply, Responder, TurnContext, TurnError, TurnRequest, new_text, within};
use crate::message::{Button, ReplyMessage, Role};
use crate::template::{Template, Values};

mod file;

/// What is wrong with a script, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct ScriptError {
    pub file: String,
    /// Counts from 1.
    pub line: usize,
    pub what: String,
}

/// A checked script, ready to answer.
#[derive(Debug)]
pub struct Script {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    pattern: Option<Regex>,
    delay: Option<Delay>,
    failure: Option<Failure>,
    /// Empty only when every attempt fails.
    answers: Vec<Answer>,
    buttons: Vec<Button>,
    metadata: Vec<(String, Data)>,
    handoff: bool,
}

/// One alternative: the messages it consists of.
type Answer = Vec<Template>;

#[derive(Debug, Clone, Copy)]
struct Delay {
    min: Duration,
    max: Duration,
}

#[derive(Debug)]
struct Failure {
    kind: FailureKind,
    when: When,
    message: String,
}

#[derive(Debug, Clone, Copy)]
enum FailureKind {
    Retryable,
    Terminal,
}

#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    FirstAttempts(u32),
    /// This share of all attempts.
    Ratio(f64),
}

/// A metadata value whose texts are templates.
#[derive(Debug)]
enum Data {
    Text(Template),
    List(Vec<Data>),
    Table(Vec<(String, Data)>),
    Plain(Value),
}

impl Script {
    /// Reads a script; `file` is its name in errors.
    ///
    /// # Errors
    /// The first problem found, with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, ScriptError> {
        Ok(Self { rules: file::parse(file, text)? })
    }

    /// The first rule that matches, and what its groups caught.
    fn find<'a>(&self, text: &'a str) -> Option<(&Rule, Option<Captures<'a>>)> {
        self.rules.iter().find_map(|rule| match &rule.pattern {
            None => Some((rule, None)),
            Some(pattern) => pattern.captures(text).map(|captures| (rule, Some(captures))),
        })
    }
}

#[async_trait::async_trait]
impl Responder for Script {
    async fn respond(&self, context: &TurnContext, request: &TurnRequest) -> Result<Reply, TurnError> {
        let text = new_text(request);
        let Some((rule, captures)) = self.find(&text) else {
            let message = "no rule matches; add one without a pattern at the end of the script".to_owned();
            return Err(TurnError::Terminal { message, user_message: None });
        };
        let said = request.history.iter().filter(|message| message.role == Role::User).count();
        let values = Values {
            text: &text,
            captures: captures.as_ref(),
            metadata: &request.conversation.metadata,
            attempt: context.attempt,
            count: said + request.messages.len(),
        };
        let reply = rule.reply(context.turn_id, &values);
        let delay = rule.delay.map_or(Duration::ZERO, |delay| delay.draw(context));
        if !delay.is_zero() {
            within(context, say_slowly(context, &reply, delay)).await?;
        }
        match rule.failure.as_ref().filter(|failure| failure.when.strikes(context)) {
            Some(failure) => Err(failure.error()),
            None => Ok(reply),
        }
    }
}

impl Rule {
    fn reply(&self, turn_id: Uuid, values: &Values<'_>) -> Reply {
        let chosen = usize::try_from(draw("answer", turn_id, 0)).unwrap_or(0) % self.answers.len().max(1);
        let answer = self.answers.get(chosen).map(Vec::as_slice).unwrap_or_default();
        let mut messages: Vec<_> = answer.iter().map(|template| ReplyMessage::text(template.fill(values))).collect();
        if let Some(last) = messages.last_mut() {
            last.buttons.clone_from(&self.buttons);
        }
        let metadata: Map<_, _> = self.metadata.iter().map(|(key, data)| (key.clone(), data.fill(values))).collect();
        Reply {
            messages,
            metadata: (!metadata.is_empty()).then_some(metadata),
            handoff: self.handoff,
            ..Reply::default()
        }
    }
}

/// Spreads the words of a reply over its delay, as a model would.
async fn say_slowly(context: &TurnContext, reply: &Reply, delay: Duration) {
    let began_at = Instant::now();
    let texts: Vec<_> = reply.messages.iter().map(|message| message.content.as_str()).collect();
    let text = texts.join("\n\n");
    let words: Vec<_> = text.split_inclusive(char::is_whitespace).collect();
    let count = u32::try_from(words.len()).unwrap_or(u32::MAX);
    for (word, number) in words.into_iter().zip(1..=count) {
        tokio::time::sleep_until(began_at + delay / count * number).await;
        context.deltas.send(word);
    }
    tokio::time::sleep_until(began_at + delay).await;
}

impl Delay {
    fn draw(self, context: &TurnContext) -> Duration {
        let range_ms = u64::try_from((self.max - self.min).as_millis()).unwrap_or(u64::MAX - 1);
        self.min + Duration::from_millis(draw("delay", context.turn_id, context.attempt) % (range_ms + 1))
    }
}

impl When {
    fn strikes(self, context: &TurnContext) -> bool {
        match self {
            Self::Always => true,
            Self::FirstAttempts(times) => context.attempt <= times,
            // The upper 32 bits, since every u32 is exact as an f64.
            Self::Ratio(ratio) => {
                let share = u32::try_from(draw("failure", context.turn_id, context.attempt) >> 32).unwrap_or(u32::MAX);
                f64::from(share) < ratio * 4_294_967_296.0
            }
        }
    }
}

impl Failure {
    fn error(&self) -> TurnError {
        let message = self.message.clone();
        match self.kind {
            FailureKind::Retryable => TurnError::Retryable { message, after: None },
            FailureKind::Terminal => TurnError::Terminal { message, user_message: None },
        }
    }
}

impl Data {
    fn fill(&self, values: &Values<'_>) -> Value {
        match self {
            Self::Text(template) => Value::from(template.fill(values)),
            Self::List(items) => items.iter().map(|item| item.fill(values)).collect(),
            Self::Table(table) => table.iter().map(|(key, data)| (key.clone(), data.fill(values))).collect(),
            Self::Plain(value) => value.clone(),
        }
    }
}

/// A number that looks random and is always the same for the same purpose, turn and attempt.
fn draw(purpose: &str, turn_id: Uuid, attempt: u32) -> u64 {
    let mut hash = Sha256::new();
    hash.update(purpose.as_bytes());
    hash.update(turn_id.as_bytes());
    hash.update(attempt.to_be_bytes());
    let mut head = [0_u8; 8];
    head.copy_from_slice(&hash.finalize()[..8]);
    u64::from_be_bytes(head)
}
