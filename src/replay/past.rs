//! What is known of a turn that has ended, as a replay needs it: the question, the rounds of the model, the results of its
//! tools, and the answer it came to.
//!
//! Pure. Refuses to guess what was not kept: a turn without a record has the history that the database still holds, and a
//! result that is nowhere is an empty one. Invariant: the recorded questions are given back as they were asked.

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::message::{Author, Envelope, Event, InboundMessage, Role, TerminalState};
use crate::model::{ModelMessage, ModelRequest, ModelResponse, ToolCall, ToolSpec};
use crate::responder::NewUserMessage;
use crate::responder::history::answered_call;
use crate::store::{Action, JournalEntry, PastTurn, StepKind, StepStatus, StoredMessage};

/// What a turn came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What the user sees: the messages, a blank line between them.
    pub reply: String,
    /// The calls of tools that the model asked for, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Call>,
    /// Whether the conversation was given to a person.
    pub handoff: bool,
    /// The tools that a person was asked about, in alphabetical order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<String>,
    /// Spent in the model, or in the responder where that is all that is known.
    pub latency_ms: u64,
    /// Of all rounds.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Why there is no answer; never what anybody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    pub tool: String,
    /// JSON in its canonical form: keys sorted, no white space; as the model wrote it where it is no JSON.
    pub arguments: String,
}

impl Call {
    /// A call as a model wrote it.
    pub(super) fn of(call: &ToolCall) -> Self {
        Self::new(&call.name, &call.arguments)
    }

    pub(super) fn new(tool: &str, arguments: &str) -> Self {
        // An object of this parser keeps its keys sorted.
        let canonical = serde_json::from_str(arguments).map(|value: Value| value.to_string());
        Self { tool: tool.to_owned(), arguments: canonical.unwrap_or_else(|_| arguments.to_owned()) }
    }
}

/// The texts of several messages as one.
pub(super) fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    texts.collect::<Vec<_>>().join("\n\n")
}

/// What a turn's record says.
#[derive(Debug, Default, Deserialize)]
struct Record {
    #[serde(default)]
    steps: Vec<JournalEntry>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    handoff: bool,
}

/// What the first round of a question's form was asked with.
#[derive(Deserialize)]
struct Asked {
    question: ModelRequest,
}

/// How a call of a tool ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Gave(Value),
    Failed(String),
    /// Nobody knows whether it happened.
    Unknown,
}

/// One round of the model.
#[derive(Debug)]
struct Round {
    /// What it was asked with, where that does not follow from the rounds before.
    question: Option<ModelRequest>,
    answer: ModelResponse,
    /// What the model was told of its calls, in their order.
    results: Vec<String>,
}

/// A turn's rounds and tools, as recorded.
#[derive(Debug, Default)]
pub(super) struct Recording {
    rounds: Vec<Round>,
    tools: HashMap<Call, VecDeque<Outcome>>,
    /// The conversation's metadata as the responder saw them; `None` in records of earlier versions and without one.
    pub(super) metadata: Option<Map<String, Value>>,
    handoff: bool,
}

impl Recording {
    /// Reads what is kept of a turn; one without a record, or with one that is not of this form, has no rounds.
    pub(super) fn of(turn: &PastTurn) -> Self {
        let record = turn.record.as_ref().and_then(|record| Record::deserialize(record).ok()).unwrap_or_default();
        let mut told = told(&turn.messages);
        let mut recording = Self { metadata: record.metadata, handoff: record.handoff, ..Self::default() };
        for step in &record.steps {
            match step.kind {
                StepKind::Model => recording.rounds.extend(round(step, &mut told)),
                // A call that a person had agreed to is part of the question.
                StepKind::Tool if !step.step.starts_with("confirmed.") => recording.keep(step),
                StepKind::Tool | StepKind::Step => {}
            }
        }
        recording
    }

    fn keep(&mut self, step: &JournalEntry) {
        let Some(request) = &step.request else { return };
        let outcome = match (step.status, step.result.clone()) {
            (StepStatus::Done, Some(value)) => Outcome::Gave(value),
            (StepStatus::Failed, Some(Value::String(message))) => Outcome::Failed(message),
            _ => Outcome::Unknown,
        };
        let tool = request["tool"].as_str().unwrap_or_default();
        let call = Call::new(tool, &request["arguments"].to_string());
        self.tools.entry(call).or_default().push_back(outcome);
    }

    pub(super) const fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// The tools that were described to the model.
    pub(super) fn offered(&self) -> &[ToolSpec] {
        let question = self.rounds.iter().find_map(|round| round.question.as_ref());
        question.map_or(&[], |question| question.tools.as_slice())
    }

    /// What the first round was asked with; `None` without a record.
    pub(super) fn opening(&self) -> Option<&[ModelMessage]> {
        self.rounds.first()?.question.as_ref().map(|question| question.messages.as_slice())
    }

    /// Whether tools were off in a round, as far as its question was kept.
    pub(super) fn tools_off(&self, round: usize) -> bool {
        self.rounds.get(round).and_then(|round| round.question.as_ref()).is_some_and(|question| question.tools_off)
    }

    /// What a round was asked with: the recorded question, and the recorded answers and results since.
    pub(super) fn messages(&self, round: usize) -> Vec<ModelMessage> {
        let asked = &self.rounds[..self.rounds.len().min(round + 1)];
        let first = asked.iter().rposition(|round| round.question.is_some()).unwrap_or(0);
        let question = asked.get(first).and_then(|round| round.question.as_ref());
        let mut messages = question.map(|question| question.messages.clone()).unwrap_or_default();
        for round in asked.iter().take(round).skip(first) {
            let tool_calls = round.answer.tool_calls.clone();
            messages.push(ModelMessage::Assistant { content: round.answer.content.clone(), tool_calls });
            let results = round.answer.tool_calls.iter().zip(&round.results);
            messages.extend(
                results.map(|(call, result)| ModelMessage::Tool { call_id: call.id.clone(), content: result.clone() }),
            );
        }
        messages
    }

    /// What a call gave: the recorded outcomes of this very call in their order, the last of them for all later ones; `None`
    /// for a call that was never made.
    pub(super) fn outcome(&self, call: &Call, earlier: usize) -> Option<&Outcome> {
        let outcomes = self.tools.get(call)?;
        outcomes.get(earlier).or_else(|| outcomes.back())
    }

    /// What the turn came to. `actions` are those that it asked a person about.
    pub(super) fn answer(&self, turn: &PastTurn, actions: &[Action]) -> Answer {
        let said = |message: &&StoredMessage| {
            message.role == Role::Assistant && message.author == Author::Bot && message.tool.is_none()
        };
        let answers = || self.rounds.iter().map(|round| &round.answer);
        let reply = joined(turn.messages.iter().filter(said).map(|message| message.content.as_str()));
        // A reply that was held back, because a person had taken over meanwhile, is an answer all the same.
        let unsaid = || self.rounds.last().map(|round| round.answer.content.clone()).unwrap_or_default();
        let sum = |tokens: fn(&ModelResponse) -> Option<u64>| answers().filter_map(tokens).sum();
        Answer {
            reply: if reply.is_empty() { unsaid() } else { reply },
            calls: answers().flat_map(|answer| answer.tool_calls.iter().map(Call::of)).collect(),
            handoff: self.handoff || (turn.state == TerminalState::HandedOff && self.rounds.is_empty()),
            questions: actions.iter().map(|action| action.tool.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
            latency_ms: match self.rounds.is_empty() {
                true => turn.timings.responder_us / 1_000,
                false => answers().map(|answer| answer.duration_ms).sum(),
            },
            input_tokens: sum(|answer| answer.usage.input_tokens),
            output_tokens: sum(|answer| answer.usage.output_tokens),
            error: None,
        }
    }

    pub(super) fn has_calls(&self) -> bool {
        self.rounds.iter().any(|round| !round.answer.tool_calls.is_empty())
    }
}

/// The new messages of a turn. What the history does not hold, who wrote and which button was pressed, is on the stream, if it
/// still is.
pub(super) fn new_messages(turn: &PastTurn, accepted: &[Envelope]) -> Vec<NewUserMessage> {
    let said = turn.messages.iter().filter(|message| message.role == Role::User && message.author == Author::User);
    let said: Vec<&StoredMessage> = said.collect();
    let accepted = if accepted.len() == said.len() { accepted } else { &[] };
    let one = |(place, message): (usize, &&StoredMessage)| {
        let envelope = accepted.get(place);
        let mut inbound = match envelope.map(|envelope| &envelope.event) {
            Some(Event::Message(inbound)) => inbound.clone(),
            _ => InboundMessage::default(),
        };
        inbound.text.clone_from(&message.content);
        inbound.attachments.clone_from(&message.attachments);
        NewUserMessage { message: inbound, sender: envelope.and_then(|envelope| envelope.sender.clone()) }
    };
    said.iter().enumerate().map(one).collect()
}

/// What the model was told of each call, by the call's id; several of one id in their order.
fn told(messages: &[StoredMessage]) -> HashMap<String, VecDeque<String>> {
    let mut told: HashMap<String, VecDeque<String>> = HashMap::new();
    for message in messages {
        if let Some(call) = answered_call(message) {
            told.entry(call.to_owned()).or_default().push_back(message.content.clone());
        }
    }
    told
}

fn round(step: &JournalEntry, told: &mut HashMap<String, VecDeque<String>>) -> Option<Round> {
    let answer: ModelResponse = ModelResponse::deserialize(step.result.as_ref()?).ok()?;
    let question = step.request.as_ref().and_then(|request| Asked::deserialize(request).ok());
    let mut result = |call: &ToolCall| told.get_mut(&call.id).and_then(VecDeque::pop_front).unwrap_or_default();
    let results = answer.tool_calls.iter().map(&mut result).collect();
    Some(Round { question: question.map(|asked| asked.question), answer, results })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_the_same_whatever_order_their_keys_are_in() {
        assert_eq!(Call::new("t", r#"{"b": 1, "a": [2]}"#), Call::new("t", r#"{"a":[2],"b":1}"#));
        assert_ne!(Call::new("t", "{}"), Call::new("u", "{}"));
        assert_eq!(Call::new("t", "not json").arguments, "not json");
    }

    #[test]
    fn recorded_outcomes_come_in_their_order_and_the_last_one_stays() {
        let call = Call::new("t", "{}");
        let outcomes = VecDeque::from([Outcome::Gave(Value::from(1)), Outcome::Unknown]);
        let recording = Recording { tools: HashMap::from([(call.clone(), outcomes)]), ..Recording::default() };
        let seen = [0, 1, 2].map(|earlier| recording.outcome(&call, earlier).cloned());
        assert_eq!(seen, [Some(Outcome::Gave(Value::from(1))), Some(Outcome::Unknown), Some(Outcome::Unknown)]);
        assert_eq!(recording.outcome(&Call::new("t", r#"{"a":1}"#), 0), None);
    }
}
