//! The messages of one turn: what they are to the lane's burst policy, and what becomes of each in the ledger.
//!
//! Pure. Invariants: each message gets one row; the last is answered, and the rows of those before it name its turn.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::verdict::decode;
use crate::config::{self, Bot};
use crate::message::{
    Amendment, Channel, DraftId, Envelope, Event, InboundMessage, Notice, Peer, Quote, SCHEMA_VERSION, TerminalState,
    Timestamp,
};
use crate::responder::journal::MEMBERS_STEP;
use crate::responder::{NewUserMessage, Responder};
use crate::scheduler::bursts::Label;
use crate::scheduler::{Task, Verdict};
use crate::store::{Committed, JournalEntry, MergedMessage, StepStatus, TurnTimings};
use crate::stream::StreamMessage;

#[cfg(test)]
mod tests;

/// How long a turn that was begun waits for the rest of its messages after a crash, and how often it looks.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(60);
const MEMBERS_PAUSE: Duration = Duration::from_millis(100);

/// As much of an envelope as the policy depends on.
#[derive(Deserialize)]
struct Glance {
    event: GlancedEvent,
    #[serde(default)]
    amendment: Option<GlancedAmendment>,
    #[serde(default)]
    notice: Option<GlancedNotice>,
}

#[derive(Deserialize)]
struct GlancedEvent {
    r#type: String,
    #[serde(default)]
    album_id: Option<Arc<str>>,
    #[serde(default)]
    payload: Option<IgnoredAny>,
    command: Option<IgnoredAny>,
    #[serde(default)]
    platform_message_id: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct GlancedNotice {
    r#type: String,
    #[serde(default)]
    draft: Option<DraftId>,
}

#[derive(Deserialize)]
struct GlancedAmendment {
    platform_message_id: Arc<str>,
}

/// What a message is to the policy of its lane.
pub(super) fn label(message: &StreamMessage) -> Label {
    let is_newer = message.schema_version.is_some_and(|version| version > SCHEMA_VERSION);
    let glance = serde_json::from_slice::<Glance>(&message.payload).ok().filter(|_| !is_newer);
    let Some(Glance { event, amendment, notice }) = glance else { return Label::Opaque };
    match (event.r#type.as_str(), amendment) {
        ("ignored", Some(amendment)) => Label::Amends { id: amendment.platform_message_id },
        ("ignored", None) => match notice.as_ref().map(|notice| (notice.r#type.as_str(), notice.draft)) {
            Some(("stop", draft)) => Label::Stops { draft },
            // Who answers changes between two turns.
            Some(("said" | "taken" | "returned", _)) => Label::Opaque,
            _ => Label::Aside,
        },
        // A command is answered by itself, whatever is said around it.
        ("message", _) if event.payload.is_some() || event.command.is_some() => Label::Pressed,
        ("message", _) => Label::Said { album: event.album_id, id: event.platform_message_id },
        _ => Label::Opaque,
    }
}

/// The messages of a turn, read and amended.
pub(super) struct Burst<'a> {
    pub(super) task: &'a Task,
    /// The one that is answered.
    pub(super) envelope: Envelope,
    /// Those before it, in order, and then its amendments; of one that came twice only the last.
    earlier: Vec<(&'a Arc<StreamMessage>, Envelope)>,
    /// What was deleted, and what deleted it.
    deleted: Vec<&'a Arc<StreamMessage>>,
    /// Of messages that are not here.
    unmet: Vec<Amendment>,
    first_turn_id: Uuid,
}

impl<'a> Burst<'a> {
    /// # Errors
    /// When a message cannot be read: it, and how a turn of it alone ends.
    pub(super) fn read(task: &'a Task) -> Result<Self, (&'a Arc<StreamMessage>, Box<Verdict<Committed>>)> {
        let envelope_of = |message: &'a Arc<StreamMessage>| decode(message).map_err(|verdict| (message, verdict));
        let envelope = envelope_of(task.message())?;
        let mut earlier = Vec::with_capacity(task.earlier().len());
        for message in distinct(task) {
            earlier.push((message, envelope_of(message)?));
        }
        let first_turn_id = first_turn_id(task).unwrap_or(envelope.turn_id);
        let mut burst = Self { task, envelope, earlier, deleted: Vec::new(), unmet: Vec::new(), first_turn_id };
        burst.amend();
        Ok(burst)
    }

    /// Applies the edits, and notes the deletions.
    fn amend(&mut self) {
        for index in 0..self.earlier.len() {
            let (amending, envelope) = &self.earlier[index];
            if is_stop(envelope) && amending.sequence > self.task.message().sequence {
                // Only an answer can be stopped.
                if said(&self.envelope).is_none() {
                    continue;
                }
                let amending = *amending;
                let said_before = self.earlier[..index].iter().filter(|(_, envelope)| said(envelope).is_some());
                let stopped = said_before.map(|(message, _)| *message).chain([self.task.message(), amending]);
                self.deleted.extend(stopped);
                continue;
            }
            let (amending, amendments) = (*amending, envelope.amendments());
            for amendment in amendments {
                self.apply(amending, amendment);
            }
        }
        self.unmet.extend(self.envelope.amendments());
    }

    /// One amendment, by this event.
    fn apply(&mut self, amending: &'a Arc<StreamMessage>, amendment: Amendment) {
        let answered = (self.task.message(), &mut self.envelope);
        let others = self.earlier.iter_mut().map(|(message, envelope)| (*message, envelope));
        let mut before = others.chain([answered]).filter(|(message, _)| message.sequence < amending.sequence);
        let found = before.find_map(|(message, envelope)| match &mut envelope.event {
            Event::Message(said) if said.platform_message_id.as_ref() == Some(&amendment.platform_message_id) => {
                Some((message, said))
            }
            _ => None,
        });
        match (found, amendment.replacement) {
            (Some((_, said)), Some(replacement)) => {
                said.text = replacement.text;
                said.attachments = replacement.attachments.unwrap_or_else(|| std::mem::take(&mut said.attachments));
            }
            (Some((message, _)), None) => self.deleted.extend([message, amending]),
            (None, replacement) => {
                self.unmet.push(Amendment { platform_message_id: amendment.platform_message_id, replacement });
            }
        }
    }

    /// What became of messages that are none of these: they had their turns, or are yet to have them.
    pub(super) fn unmet(&self) -> impl Iterator<Item = &Amendment> {
        self.unmet.iter()
    }

    /// The messages that their senders took back before their turn, with the events that did so; none, or two at least.
    pub(super) fn deleted(&self) -> Vec<Arc<StreamMessage>> {
        let mut deleted: Vec<_> = self.deleted.iter().map(|message| Arc::clone(message)).collect();
        deleted.sort_by_key(|message| message.sequence);
        deleted.dedup_by_key(|message| message.sequence);
        deleted
    }

    /// The rows of all messages but the last when none of them is to be answered.
    pub(super) fn withdrawn(&self) -> Vec<MergedMessage> {
        let is_stopped = is_stop(&self.envelope);
        let row = |(message, envelope): &(&Arc<StreamMessage>, Envelope)| MergedMessage {
            state: TerminalState::Ignored,
            reason: Some(withdrawal(envelope, is_stopped)),
            ..row(self.task, message, envelope)
        };
        self.earlier.iter().map(row).collect()
    }

    /// The turn under whose id the steps of this one are journaled: it stays while later messages join, the first one's
    /// own copy among them.
    pub(super) const fn first_turn_id(&self) -> Uuid {
        self.first_turn_id
    }

    /// Whether after a crash what is asked of the responder can be another thing: because of other messages, or where that
    /// matters because one was edited meanwhile, which nobody can do on the web.
    pub(super) fn may_change(&self, bot: &Bot, responder: &dyn Responder) -> bool {
        self.may_grow(bot) || (responder.keeps_messages() && self.envelope.key.channel != Channel::Web)
    }

    /// Whether after a crash the turn of its first message can be one of other messages, too.
    fn may_grow(&self, bot: &Bot) -> bool {
        let is_of_album = self.said().any(|(_, message)| message.album_id.is_some());
        let policy = matches!(bot.burst, config::Burst::Collect | config::Burst::Interrupt);
        policy || is_of_album || self.task.all().nth(1).is_some()
    }

    /// The dedupe ids of its messages and amendments.
    pub(super) fn members(&self) -> Vec<String> {
        self.task.all().map(|message| message.message_id.clone()).collect()
    }

    /// The messages that an earlier attempt had before it did anything that has an effect, or told anybody: the journal is
    /// theirs, and no other's. `None` when they are those of this attempt, or it did nothing.
    ///
    /// # Errors
    /// Waits for those that have not come yet. One that never comes is given up after a while: better than a conversation
    /// that stands still for ever.
    pub(super) fn held_to(&self, steps: &[JournalEntry]) -> Result<Option<Task>, Box<Verdict<Committed>>> {
        let is_held = |step: &&JournalEntry| step.step == MEMBERS_STEP && step.status == StepStatus::Done;
        let recorded = steps.iter().find(is_held).and_then(|step| step.result.clone());
        let Some(members) = recorded.and_then(|members| serde_json::from_value::<HashSet<String>>(members).ok()) else {
            return Ok(None);
        };
        let present: HashSet<&str> = self.task.all().map(|message| message.message_id.as_str()).collect();
        let waited_us = self.task.started_at.micros_since(self.task.messages[0].delivered_at);
        if members.iter().any(|id| !present.contains(id.as_str())) {
            if u128::from(waited_us) < MEMBERS_PATIENCE.as_micros() {
                let cause = "the other messages of the turn have not come yet".to_owned();
                return Err(Box::new(Verdict::Wait { cause, after: Some(MEMBERS_PAUSE) }));
            }
            tracing::warn!(sequence = self.task.message().sequence, "messages of a turn that was begun have not come");
        }
        if present.iter().all(|id| members.contains(*id)) {
            return Ok(None);
        }
        Ok(self.task.cut(|message| members.contains(&message.message_id)))
    }

    /// What was said, in order.
    pub(super) fn said(&self) -> impl Iterator<Item = (&Envelope, &InboundMessage)> {
        let envelopes = self.earlier.iter().map(|(_, envelope)| envelope).chain([&self.envelope]);
        envelopes.filter_map(|envelope| said(envelope).map(|message| (envelope, message)))
    }

    /// What its events tell of their chats, in order.
    pub(super) fn notices(&self) -> impl Iterator<Item = (&Envelope, &Notice)> {
        let envelopes = self.earlier.iter().map(|(_, envelope)| envelope).chain([&self.envelope]);
        envelopes.filter_map(|envelope| envelope.notice.as_ref().map(|notice| (envelope, notice)))
    }

    /// The command that is answered, without its slash.
    pub(super) fn command(&self) -> Option<&str> {
        said(&self.envelope)?.command.as_deref()
    }

    /// The query by which somebody called the bot as a guest: it is answered once, and in no other way.
    pub(super) fn guest_query(&self) -> Option<&str> {
        said(&self.envelope)?.guest_query_id.as_deref()
    }

    /// The message that is answered, where several people talk and would not know which one it is.
    pub(super) fn quote(&self) -> Option<Quote> {
        let chat = self.envelope.came_from.as_ref().unwrap_or(&self.envelope.key.peer);
        let is_group =
            matches!(chat, Peer::Group(_)) || matches!(chat, Peer::Topic { group, .. } if group.starts_with('-'));
        let id = said(&self.envelope)?.platform_message_id.as_ref().filter(|_| is_group)?;
        Some(Quote { chat: chat.clone(), platform_message_id: id.clone() })
    }

    /// The message under which a button was pressed, when the turn is one of a press.
    pub(super) fn pressed_under(&self) -> Option<&str> {
        said(&self.envelope)?.pressed_under.as_deref()
    }

    /// The same for the responder.
    pub(super) fn new_messages(&self) -> Vec<NewUserMessage> {
        let new = |(envelope, message): (&Envelope, &InboundMessage)| NewUserMessage {
            message: message.clone(),
            sender: envelope.sender.clone(),
        };
        self.said().map(new).collect()
    }

    /// The rows of the earlier messages in a turn that answers the last one. Under `interrupt` a later message takes the
    /// place of the earlier ones, unless they are parts of one album.
    pub(super) fn merged(&self, bot: &Bot) -> Vec<MergedMessage> {
        let album = said(&self.envelope).and_then(|message| message.album_id.as_deref());
        let row = |(message, envelope): &(&Arc<StreamMessage>, Envelope)| {
            let (state, reason) = match &envelope.event {
                Event::Ignored { kind, reason } => (TerminalState::Ignored, Some(ignored(kind, reason))),
                Event::Message(said) if bot.burst == config::Burst::Interrupt => {
                    let is_part = album.is_some() && said.album_id.as_deref() == album;
                    (if is_part { TerminalState::Merged } else { TerminalState::Superseded }, None)
                }
                Event::Message(_) | Event::Agent { .. } => (TerminalState::Merged, None),
            };
            MergedMessage { state, reason, ..row(self.task, message, envelope) }
        };
        self.earlier.iter().map(row).collect()
    }

    /// The rows of the earlier messages when the turn is given up for this reason.
    pub(super) fn given_up(&self, why: &str) -> Vec<MergedMessage> {
        let row = |(message, envelope): &(&Arc<StreamMessage>, Envelope)| {
            let (state, reason) = match &envelope.event {
                Event::Ignored { kind, reason } => (TerminalState::Ignored, ignored(kind, reason)),
                Event::Message(_) | Event::Agent { .. } => (TerminalState::DeadLettered, why.to_owned()),
            };
            MergedMessage { state, reason: Some(reason), ..row(self.task, message, envelope) }
        };
        self.earlier.iter().map(row).collect()
    }
}

/// Why a message that was taken back is not answered, and what took it back.
pub(super) fn withdrawal(envelope: &Envelope, is_stopped: bool) -> String {
    match &envelope.event {
        Event::Ignored { kind, reason } => ignored(kind, reason),
        Event::Message(_) | Event::Agent { .. } if is_stopped => "message: its answer was stopped".to_owned(),
        Event::Message(_) | Event::Agent { .. } => "message: deleted before its turn".to_owned(),
    }
}

/// Why an event is not answered, as the ledger has it.
pub(crate) fn ignored(kind: &str, reason: &str) -> String {
    format!("{kind}: {reason}")
}

/// Where the time of a message went before its turn.
pub(super) fn timings(message: &StreamMessage, started_at: Timestamp) -> TurnTimings {
    TurnTimings {
        stream_wait_us: message.delivered_at.micros_since(message.published_at),
        lane_wait_us: started_at.micros_since(message.delivered_at),
        responder_us: 0,
    }
}

/// The turn of the first message as it lies in the stream, if that can be read; one that comes again behind may not be.
/// Amendments have no part in it: they come and go.
fn first_turn_id(task: &Task) -> Option<Uuid> {
    task.messages.iter().find_map(|message| decode(message).ok()).map(|envelope| envelope.turn_id)
}

/// The earlier messages and the amendments, without those that come again behind: the ledger has one row for both.
fn distinct(task: &Task) -> Vec<&Arc<StreamMessage>> {
    let mut seen = HashSet::from([task.message().message_id.as_str()]);
    let mut distinct: Vec<_> = task
        .earlier()
        .iter()
        .chain(&task.amendments)
        .rev()
        .filter(|message| seen.insert(message.message_id.as_str()))
        .collect();
    distinct.reverse();
    distinct
}

fn is_stop(envelope: &Envelope) -> bool {
    matches!(envelope.notice, Some(Notice::Stop { .. }))
}

fn said(envelope: &Envelope) -> Option<&InboundMessage> {
    match &envelope.event {
        Event::Message(message) => Some(message),
        Event::Agent { .. } | Event::Ignored { .. } => None,
    }
}

fn row(task: &Task, message: &StreamMessage, envelope: &Envelope) -> MergedMessage {
    MergedMessage {
        turn_id: envelope.turn_id,
        dedupe_id: message.message_id.clone(),
        sequence: message.sequence,
        state: TerminalState::Merged,
        reason: None,
        traceparent: message.traceparent.clone(),
        timings: timings(message, task.started_at),
        received_at: envelope.received_at,
    }
}
