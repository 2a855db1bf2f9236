//! Tool calls that a person has to agree to: the question, and what an answer to it means.
//!
//! Refuses to run anything. Invariants: an action is decided once, by whoever was asked, and only while it waits; whatever a
//! button carries is checked against the database, since any client can send any text.

use std::time::Duration;

use rand::RngExt as _;
use uuid::Uuid;

use super::plan::Plan;
use crate::message::{Button, Peer, ReplyMessage, Timestamp};
use crate::model::{ModelResponse, ToolCall};
use crate::responder::journal::{Fault, hash};
use crate::responder::{NewUserMessage, TurnContext, TurnError, TurnRequest};
use crate::store::{Action, ActionStatus, NewAction, StepKind, Store, StoreError};
use crate::tool::Toolbox;

/// How long a question waits for its answer.
const EXPIRES_AFTER: Duration = Duration::from_secs(60 * 60);

/// The step that is begun before anything is decided.
const DECISION_STEP: &str = "decision";

/// How the names of the steps of a confirmed call begin.
const CONFIRMED_TOOL_STEP: &str = "confirmed.tool.";

/// Attempts at a turn in which a tool that is away may come back, as an MCP server that is being started.
const ATTEMPTS_FOR_TOOL: u32 = 3;

/// The words that answer a question where exactly one waits.
const YES: [&str; 6] = ["yes", "y", "ok", "okay", "confirm", "yes please"];
const NO: [&str; 5] = ["no", "n", "cancel", "stop", "no thanks"];

/// What a button under a question carries before the nonce.
const APPROVE: &str = "confirm:";
const REJECT: &str = "decline:";

/// What the buttons say.
pub const YES_LABEL: &str = "Yes";
pub const NO_LABEL: &str = "No";

const GONE: &str = "This question is no longer open.";
const EXPIRED: &str = "This question has expired. Please ask again.";
const NOT_YOURS: &str = "Only the person who was asked can answer this.";
const APPROVED_ALREADY: &str = "This was confirmed already.";
const REJECTED_ALREADY: &str = "This was declined already.";
const REJECTED: &str = "Not called: the user declined it.";

const SEVERAL_PEOPLE: &str = "Not called: it needs the word of whoever asks for it, and several people wrote at once. Ask them to \
     say it again, one at a time.";
const ANONYMOUS: &str = "Not called: it needs the word of whoever asks for it, and this was written in the name of a chat, so that \
     nobody could be recognised who agrees. Ask them to say it again under their own name.";

/// What the turn's messages mean for the actions that wait in the conversation.
pub(super) enum Decided {
    /// The turn is about something else.
    Nothing,
    /// The answer is this text; nothing is run, and no model is asked. `spent` when nobody can answer the question any more.
    Notice { text: &'static str, spent: bool },
    /// A call was agreed to, or declined: what becomes of it is said in the plan.
    Call { call: ToolCall, plan: Plan },
}

pub(super) struct Confirmations<'a> {
    pub(super) context: &'a TurnContext,
    pub(super) request: &'a TurnRequest,
    pub(super) toolbox: &'a Toolbox,
}

impl Confirmations<'_> {
    pub(super) async fn decide(&self) -> Result<Decided, TurnError> {
        let Some(store) = self.context.journal.store() else { return Ok(Decided::Nothing) };
        let Some(message) = self.request.messages.last() else { return Ok(Decided::Nothing) };
        let (id, turn_id) = (self.request.conversation.id, self.context.journal.turn_id());
        let open = self.found(store.open_actions(id, turn_id).await)?;
        // An earlier attempt of this turn has decided: what it began is to be ended.
        let decided = |action: &&Action| matches!(action.status, ActionStatus::Approved | ActionStatus::Rejected);
        if let Some(action) = open.iter().find(decided) {
            return self.agreed(action.clone()).await;
        }
        match judge(message, self.request.messages.len() == 1, &self.request.conversation.key.peer, &open) {
            Judgement::Nothing => Ok(Decided::Nothing),
            Judgement::Cancel => {
                self.announce().await?;
                for action in open.iter().filter(|action| may_decide(action, message)) {
                    self.settle(store, &action.id, ActionStatus::Cancelled).await?;
                }
                Ok(Decided::Nothing)
            }
            Judgement::Answer { id, decision } => self.answer(store, message, &id, decision).await,
        }
    }

    async fn answer(
        &self,
        store: &Store,
        message: &NewUserMessage,
        id: &str,
        decision: ActionStatus,
    ) -> Result<Decided, TurnError> {
        let action = self.found(store.action(id).await)?;
        let here = |action: &Action| action.conversation_id == self.request.conversation.id;
        let Some(action) = action.filter(here) else { return Ok(spent(GONE)) };
        if !may_decide(&action, message) {
            return Ok(Decided::Notice { text: NOT_YOURS, spent: false });
        }
        self.announce().await?;
        let Some(action) = self.settle(store, id, decision).await? else { return Ok(spent(GONE)) };
        let ours = action.decided_turn_id == Some(self.context.journal.turn_id());
        match action.status {
            ActionStatus::Approved | ActionStatus::Rejected if ours => self.agreed(action).await,
            ActionStatus::Approved => Ok(spent(APPROVED_ALREADY)),
            ActionStatus::Rejected => Ok(spent(REJECTED_ALREADY)),
            ActionStatus::Expired => Ok(spent(EXPIRED)),
            ActionStatus::Cancelled | ActionStatus::Pending => Ok(spent(GONE)),
        }
    }

    /// Before anything is decided: what is decided is an effect, and only the partition's owner may have any. What was read
    /// before is only decided by whoever was the owner then, or is found decided.
    async fn announce(&self) -> Result<(), TurnError> {
        self.context.journal.begin(DECISION_STEP, StepKind::Step, &hash(b""), None).await
    }

    /// The arguments are checked once more: the tool may have changed since the question. One that is away may come back.
    async fn agreed(&self, action: Action) -> Result<Decided, TurnError> {
        let arguments = self.toolbox.validate(&action.tool, &action.arguments);
        let is_called = self.context.journal.any(|entry| entry.step.starts_with(CONFIRMED_TOOL_STEP)).await;
        let plan = match (action.status, self.toolbox.get(&action.tool), arguments) {
            (ActionStatus::Approved, Some(tool), Ok(arguments)) => Plan::Run(tool, arguments),
            (ActionStatus::Approved, Some(_), Err(sentence)) => Plan::Refuse(format!("Not called: {sentence}")),
            (ActionStatus::Approved, None, _) if !is_called && self.context.attempt < ATTEMPTS_FOR_TOOL => {
                return Err(TurnError::Retryable {
                    message: "the tool agreed to is not there".to_owned(),
                    after: None,
                });
            }
            (ActionStatus::Approved, None, _) => Plan::Refuse("Not called: there is no such tool any more.".to_owned()),
            _ => Plan::Refuse(REJECTED.to_owned()),
        };
        // A call id of its own: that of the question was answered with "not yet".
        let call = ToolCall { id: format!("call_{}", action.id), name: action.tool, arguments: action.arguments };
        Ok(Decided::Call { call, plan })
    }

    async fn settle(&self, store: &Store, id: &str, decision: ActionStatus) -> Result<Option<Action>, TurnError> {
        self.found(store.decide_action(id, decision, self.context.journal.turn_id(), Timestamp::now()).await)
    }

    fn found<T>(&self, found: Result<T, StoreError>) -> Result<T, TurnError> {
        found.map_err(|error| self.context.journal.fail(Fault::store(&error)))
    }
}

const fn spent(text: &'static str) -> Decided {
    Decided::Notice { text, spent: true }
}

/// Why nobody can be asked about a call that this turn asks for, as a sentence for the model: there has to be one person who asks
/// and who will be known again.
pub(super) fn obstacle(request: &TurnRequest) -> Option<&'static str> {
    let mut senders = request.messages.iter().map(|message| message.sender.as_ref());
    let first = senders.next().flatten();
    if senders.any(|sender| sender.map(|sender| &sender.id) != first.map(|sender| &sender.id)) {
        return Some(SEVERAL_PEOPLE);
    }
    first.filter(|sender| sender.is_chat).map(|_| ANONYMOUS)
}

/// The questions about the calls that need one, and the actions that wait for the answers; `None` when no call needs one.
pub(super) fn questions(
    answer: &ModelResponse,
    plans: &[Plan],
    request: &TurnRequest,
) -> Option<(Vec<ReplyMessage>, Vec<NewAction>)> {
    let requester = request.messages.last().and_then(|message| message.sender.as_ref()).map(|sender| sender.id.clone());
    let now = Timestamp::now();
    let asked = answer.tool_calls.iter().zip(plans).filter(|(_, plan)| matches!(plan, Plan::Confirm));
    let actions: Vec<NewAction> = asked
        .map(|(call, _)| NewAction {
            id: nonce(),
            requester: requester.clone(),
            tool: call.name.clone(),
            arguments: call.arguments.clone(),
            expires_at: later(now, EXPIRES_AFTER),
        })
        .collect();
    if actions.is_empty() {
        return None;
    }
    let said = Some(answer.content.trim()).filter(|content| !content.is_empty()).map(ReplyMessage::text);
    let questions = actions.iter().map(|action| ReplyMessage {
        content: question(&action.tool, &action.arguments),
        buttons: vec![
            Button { label: YES_LABEL.to_owned(), payload: payload(&action.id, true) },
            Button { label: NO_LABEL.to_owned(), payload: payload(&action.id, false) },
        ],
    });
    Some((said.into_iter().chain(questions).collect(), actions))
}

/// What a person is asked about a call.
pub(crate) fn question(tool: &str, arguments: &str) -> String {
    format!("May I do this?\n{tool} {arguments}")
}

/// What the button of an action carries.
#[must_use]
pub fn payload(action_id: &str, approve: bool) -> String {
    format!("{}{action_id}", if approve { APPROVE } else { REJECT })
}

/// Whether a button carries the answer to such a question.
#[must_use]
pub fn is_answer(payload: &str) -> bool {
    pressed(payload).is_some()
}

/// Whether the message is a press of a button under such a question, whatever has become of it.
pub(in crate::responder) fn is_press(message: &NewUserMessage) -> bool {
    message.message.payload.as_deref().and_then(pressed).is_some()
}

/// What a message means for the actions that wait.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Nothing,
    Answer {
        id: String,
        decision: ActionStatus,
    },
    /// The conversation goes on with something else.
    Cancel,
}

/// A button counts by what it carries. A bare word counts only alone and from whoever was asked, where exactly one question
/// waits and nobody else can have meant something else by it. Anything else that whoever was asked says is a new subject.
fn judge(message: &NewUserMessage, alone: bool, peer: &Peer, open: &[Action]) -> Judgement {
    if let Some((id, decision)) = message.message.payload.as_deref().and_then(pressed) {
        return Judgement::Answer { id: id.to_owned(), decision };
    }
    let private = matches!(peer, Peer::User(_) | Peer::Conversation(_));
    if let ([action], true) = (open, private && alone)
        && may_decide(action, message)
        && let Some(decision) = word(&message.message.text)
    {
        return Judgement::Answer { id: action.id.clone(), decision };
    }
    match open.iter().any(|action| may_decide(action, message)) {
        true => Judgement::Cancel,
        false => Judgement::Nothing,
    }
}

fn pressed(payload: &str) -> Option<(&str, ActionStatus)> {
    let approve = payload.strip_prefix(APPROVE).map(|id| (id, ActionStatus::Approved));
    approve.or_else(|| payload.strip_prefix(REJECT).map(|id| (id, ActionStatus::Rejected)))
}

fn word(text: &str) -> Option<ActionStatus> {
    let text = text.trim().trim_end_matches(['.', '!']).to_lowercase();
    match text.as_str() {
        text if YES.contains(&text) => Some(ActionStatus::Approved),
        text if NO.contains(&text) => Some(ActionStatus::Rejected),
        _ => None,
    }
}

fn may_decide(action: &Action, message: &NewUserMessage) -> bool {
    let sender = message.sender.as_ref().map(|sender| sender.id.as_str());
    action.requester.is_none() || action.requester.as_deref() == sender
}

/// 128 random bits: whoever has not seen the question cannot guess it.
fn nonce() -> String {
    Uuid::from_u128(rand::rng().random()).simple().to_string()
}

fn later(moment: Timestamp, wait: Duration) -> Timestamp {
    let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(moment.as_micros().saturating_add(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{InboundMessage, Sender};

    #[test]
    fn what_a_message_means_for_the_actions_that_wait() {
        let (ann, group) = (Peer::User("ann".to_owned()), Peer::Group("g".to_owned()));
        let said = |sender: &str, text: &str, payload: Option<&str>| NewUserMessage {
            message: InboundMessage {
                text: text.to_owned(),
                payload: payload.map(str::to_owned),
                ..InboundMessage::default()
            },
            sender: Some(Sender { id: sender.to_owned(), ..Sender::default() }),
        };
        let action = |id: &str| Action {
            id: id.to_owned(),
            conversation_id: Uuid::nil(),
            turn_id: Uuid::nil(),
            requester: Some("ann".to_owned()),
            tool: "refund".to_owned(),
            arguments: "{}".to_owned(),
            status: ActionStatus::Pending,
            decided_turn_id: None,
            created_at: Timestamp::from_micros(0),
            expires_at: Timestamp::from_micros(1),
        };
        let (none, one, two) = (vec![], vec![action("1")], vec![action("1"), action("2")]);
        let answer = |id: &str, decision| Judgement::Answer { id: id.to_owned(), decision };
        let (approved, rejected) = (ActionStatus::Approved, ActionStatus::Rejected);
        assert_eq!(judge(&said("ann", "yes", None), false, &ann, &one), Judgement::Cancel, "beside other words");
        for (message, peer, open, expected) in [
            (said("ann", "Yes", Some("confirm:1")), &ann, &two, answer("1", approved)),
            (said("bob", "No", Some("decline:1")), &group, &one, answer("1", rejected)),
            (said("ann", "Yes", Some("confirm:9")), &ann, &none, answer("9", approved)),
            (said("ann", " yes! ", None), &ann, &one, answer("1", approved)),
            (said("ann", "No.", None), &ann, &one, answer("1", rejected)),
            (said("ann", "yes", None), &ann, &two, Judgement::Cancel),
            (said("ann", "yes", None), &group, &one, Judgement::Cancel),
            (said("bob", "yes", None), &ann, &one, Judgement::Nothing),
            (said("bob", "and mine?", None), &group, &one, Judgement::Nothing),
            (said("ann", "what about my invoice", None), &ann, &one, Judgement::Cancel),
            (said("ann", "yes", None), &ann, &none, Judgement::Nothing),
            (said("ann", "Other", Some("menu")), &ann, &one, Judgement::Cancel),
        ] {
            assert_eq!(judge(&message, true, peer, open), expected, "{message:?}");
        }
    }
}
