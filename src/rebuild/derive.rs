//! What the streams say of one conversation's messages: which have ended, how, and with what replies.
//!
//! Pure. Refuses to guess that a message has ended: it has where its reply or its dead letter lies on a stream, where a later
//! one of its conversation has (turns end in stream order), or where somebody wrote down that everything up to it is done.
//! Invariant: the turns come in stream order, and each message is in one of them at most.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::config::{Bot, Burst};
use crate::message::{
    Amendment, Author, Channel, ConversationKey, Envelope, Event, InboundMessage, Notice, OutboundPart, Peer, Role,
    TerminalState, Timestamp,
};
use crate::store::{DELETED, MergedMessage, NewConversation, NewMessage, Ownership, Position, TurnCommit, TurnTimings};
use crate::stream::{Letter, StreamMessage};
use crate::turn;

/// Why a row has the state that it has, where no stream says it.
const NO_REPLY: &str = "rebuilt: no reply to it is on the stream";
const TAKEN_IN: &str = "rebuilt: taken for a part of the next message's turn";
const GIVEN_UP: &str = "unknown: rebuilt from its notice, or from its coming again";

/// Messages that one turn takes at most, besides its own.
const MERGED_MAX: usize = 31;

/// What is known beside a partition's inbound messages.
pub(super) struct Evidence<'a> {
    /// By turn, in the order in which they leave.
    pub(super) parts: HashMap<Uuid, Vec<Part>>,
    /// By message id.
    pub(super) letters: &'a HashMap<String, Letter>,
    /// Everything at and below it has ended.
    pub(super) floor: u64,
    pub(super) bots: &'a BTreeMap<String, Bot>,
    pub(super) ownership: Ownership,
}

/// A part of a reply, with the context that its message carries.
pub(super) struct Part {
    pub(super) part: OutboundPart,
    pub(super) traceparent: Option<String>,
}

/// One thing to be written.
pub(super) enum Step {
    /// Another conversation of the same key follows it.
    Close(Uuid, Timestamp),
    Turn(Box<TurnCommit>),
}

#[derive(Default)]
pub(super) struct Derived {
    pub(super) steps: Vec<Step>,
    /// Not ended, as far as anybody knows.
    pub(super) left: u64,
    /// Ended without a reply on the stream.
    pub(super) without_reply: u64,
    /// Replies put together of several parts.
    pub(super) joined: u64,
    /// Of one id with an earlier one.
    pub(super) repeated: u64,
}

/// One inbound message; without an envelope, one that this version cannot read.
struct Found {
    message: StreamMessage,
    envelope: Option<Envelope>,
    turn_id: Uuid,
}

#[derive(Clone, Copy)]
enum Outcome<'a> {
    Ignored,
    DeadLettered(Option<&'a Letter>, &'a [Part]),
    Rejected(&'a [Part]),
    /// A human agent's message.
    Said(&'a [Part]),
    Answered(&'a [Part]),
    Unknown,
}

/// The steps that make of one lane's messages, in stream order, what the database had of them.
pub(super) fn lane(messages: Vec<StreamMessage>, evidence: &Evidence<'_>) -> Derived {
    let count = messages.len();
    let mut ids = HashSet::new();
    let mut turn_ids = HashSet::new();
    let mut found: Vec<Found> = messages
        .into_iter()
        .filter(|message| ids.insert(message.message_id.clone()))
        .map(|message| Found::read(message, &mut turn_ids))
        .collect();
    amend(&mut found);
    let outcomes: Vec<Outcome<'_>> = found.iter().map(|found| evidence.outcome(found, &ids)).collect();
    let proofs = found.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_proof());
    let until = proofs.map(|(found, _)| found.message.sequence).max().unwrap_or(0).max(evidence.floor);
    let mut lane = Lane { evidence, derived: Derived::default(), current: None, waiting: Vec::new() };
    lane.derived.repeated = (count - found.len()) as u64;
    for ((found, outcome), conversation) in found.iter().zip(&outcomes).zip(conversations(&found, &outcomes)) {
        let has_ended = found.message.sequence <= until || matches!(outcome, Outcome::Rejected(_));
        match has_ended {
            true => lane.take(found, *outcome, conversation),
            false => lane.derived.left += 1,
        }
    }
    lane.end_waiting(0);
    lane.derived
}

/// Makes of what was said what its senders made of it later: nothing that was deleted comes back.
fn amend(found: &mut [Found]) {
    for index in 0..found.len() {
        let (before, rest) = found.split_at_mut(index);
        let amending = rest.first().and_then(|found| found.envelope.as_ref());
        for Amendment { platform_message_id, replacement } in amending.map(Envelope::amendments).unwrap_or_default() {
            let said = before.iter_mut().filter_map(|found| match &mut found.envelope.as_mut()?.event {
                Event::Message(message) => Some(message),
                Event::Agent { .. } | Event::Ignored { .. } => None,
            });
            for message in said.filter(|said| said.platform_message_id.as_ref() == Some(&platform_message_id)) {
                match &replacement {
                    Some(replacement) => {
                        message.text.clone_from(&replacement.text);
                        if let Some(attachments) = &replacement.attachments {
                            message.attachments.clone_from(attachments);
                        }
                    }
                    None => (message.text, message.attachments) = (DELETED.to_owned(), Vec::new()),
                }
            }
        }
    }
}

impl Found {
    fn read(message: StreamMessage, turn_ids: &mut HashSet<Uuid>) -> Self {
        let envelope: Option<Envelope> = serde_json::from_slice(&message.payload).ok();
        let turn_id = envelope.as_ref().map(|envelope| envelope.turn_id).filter(|id| turn_ids.insert(*id));
        Self { message, envelope, turn_id: turn_id.unwrap_or_else(Uuid::now_v7) }
    }

    fn said(&self) -> Option<(&Envelope, &InboundMessage)> {
        let envelope = self.envelope.as_ref()?;
        match &envelope.event {
            Event::Message(message) => Some((envelope, message)),
            Event::Agent { .. } | Event::Ignored { .. } => None,
        }
    }

    fn received_at(&self) -> Timestamp {
        self.envelope.as_ref().map_or(self.message.published_at, |envelope| envelope.received_at)
    }
}

impl Outcome<'_> {
    /// Whether every earlier message of the lane has ended, too. A refusal goes past the turn that runs.
    const fn is_proof(&self) -> bool {
        matches!(self, Self::DeadLettered(..) | Self::Said(_) | Self::Answered(_))
    }
}

impl Evidence<'_> {
    fn outcome<'a>(&'a self, found: &Found, ids: &HashSet<String>) -> Outcome<'a> {
        let parts = self.parts.get(&found.turn_id).map_or(&[][..], Vec::as_slice);
        let letter = self.letters.get(&found.message.message_id);
        let came_again = ids.contains(&Letter::redriven_id_of(&found.message.message_id));
        let Some(envelope) = &found.envelope else {
            return if letter.is_some() || came_again {
                Outcome::DeadLettered(letter, parts)
            } else {
                Outcome::Unknown
            };
        };
        let bot = self.bots.get(&*envelope.key.bot);
        let is = |notice: Option<&String>| {
            notice.is_some_and(|notice| parts.iter().all(|part| written(&part.part) == notice))
        };
        // Only a notice opens no conversation.
        let is_notice = parts.first().is_some_and(|part| part.part.conversation_id.is_none());
        match &envelope.event {
            _ if letter.is_some() || came_again => Outcome::DeadLettered(letter, parts),
            Event::Ignored { .. } => Outcome::Ignored,
            _ if parts.is_empty() => Outcome::Unknown,
            Event::Agent { .. } => Outcome::Said(parts),
            Event::Message(_) => match bot {
                Some(bot) if bot.burst == Burst::Reject && is(Some(&bot.reject_reply)) => Outcome::Rejected(parts),
                Some(bot) if is(bot.failure_reply.as_ref()) => Outcome::DeadLettered(None, parts),
                _ if is_notice => Outcome::DeadLettered(None, parts),
                _ => Outcome::Answered(parts),
            },
        }
    }
}

/// The conversation of each message: the one that its reply names, else the next one named, else the last.
fn conversations(found: &[Found], outcomes: &[Outcome<'_>]) -> Vec<Uuid> {
    let named = |(found, outcome): (&Found, &Outcome<'_>)| match (found.envelope.as_ref()?.key.peer.clone(), outcome) {
        (Peer::Conversation(id), _) => Some(id),
        (_, Outcome::Answered(parts) | Outcome::Said(parts)) => parts.first()?.part.conversation_id,
        _ => None,
    };
    let mut ids: Vec<Option<Uuid>> = found.iter().zip(outcomes).map(named).collect();
    let mut next = None;
    for id in ids.iter_mut().rev() {
        next = id.or(next);
        *id = next;
    }
    let mut last = None;
    let fill = |id: Option<Uuid>| *last.insert(id.or(last).unwrap_or_else(Uuid::now_v7));
    ids.into_iter().map(fill).collect()
}

/// A lane while its steps are made.
struct Lane<'a, 'b> {
    evidence: &'a Evidence<'b>,
    derived: Derived,
    /// The conversation that is open.
    current: Option<Uuid>,
    /// Messages that have ended somehow, perhaps as parts of the next turn.
    waiting: Vec<(&'a Found, Uuid)>,
}

impl<'a> Lane<'a, '_> {
    fn take(&mut self, found: &'a Found, outcome: Outcome<'_>, conversation: Uuid) {
        match outcome {
            Outcome::Unknown if found.envelope.is_some() => self.waiting.push((found, conversation)),
            Outcome::Unknown => self.give_up(found, None, &[]),
            Outcome::Ignored => self.ignore(found),
            Outcome::Rejected(parts) => self.reject(found, parts),
            Outcome::DeadLettered(letter, parts) => {
                self.end_waiting(0);
                self.give_up(found, letter, parts);
            }
            Outcome::Said(parts) => {
                self.end_waiting(0);
                self.say(found, parts, conversation);
            }
            Outcome::Answered(parts) => self.answer(found, parts, conversation),
        }
    }

    fn answer(&mut self, found: &Found, parts: &[Part], conversation: Uuid) {
        let Some((envelope, message)) = found.said() else { return };
        let bot = self.evidence.bots.get(&*envelope.key.bot);
        let album = message.album_id.as_ref();
        let joins = |earlier: &Found| {
            let is_part = album.is_some() && earlier.said().and_then(|(_, said)| said.album_id.as_ref()) == album;
            match bot.map(|bot| bot.burst) {
                _ if earlier.said().is_none() => None,
                Some(Burst::Interrupt) if !is_part => Some(TerminalState::Superseded),
                Some(Burst::Collect) => Some(TerminalState::Merged),
                _ => is_part.then_some(TerminalState::Merged),
            }
        };
        let taken = self.waiting.iter().rev().take(MERGED_MAX).take_while(|(earlier, _)| joins(earlier).is_some());
        self.end_waiting(taken.count());
        let earlier = std::mem::take(&mut self.waiting);
        let mut commit = self.frame(found, TerminalState::Answered, parts);
        for (earlier, _) in &earlier {
            let state = joins(earlier).unwrap_or(TerminalState::Merged);
            commit.merged.push(merged(earlier, state));
        }
        for found in earlier.iter().map(|(found, _)| *found).chain([found]) {
            commit.messages.extend(user_message(found));
            commit.metadata_patches.extend(said_metadata(found));
        }
        let first = earlier.first().map_or(found, |(found, _)| *found);
        self.enter(&mut commit, conversation, first);
        self.derived.joined += reply(&mut commit, parts);
        self.push(commit);
    }

    fn say(&mut self, found: &Found, parts: &[Part], conversation: Uuid) {
        let Some(Event::Agent { text }) = found.envelope.as_ref().map(|envelope| &envelope.event) else { return };
        let mut commit = self.frame(found, TerminalState::Answered, parts);
        let id = parts.first().map_or_else(Uuid::now_v7, |part| part.part.message_id);
        commit.messages.push(new_message(id, Role::Assistant, Author::Agent, text.clone(), found.received_at()));
        self.enter(&mut commit, conversation, found);
        self.push(commit);
    }

    fn give_up(&mut self, found: &Found, letter: Option<&Letter>, parts: &[Part]) {
        let mut commit = self.frame(found, TerminalState::DeadLettered, parts);
        commit.reason =
            Some(letter.map_or_else(|| GIVEN_UP.to_owned(), |letter| format!("{}: {}", letter.reason, letter.error)));
        if let Some(letter) = letter {
            (commit.attempts, commit.committed_at) = (letter.attempts, letter.message.published_at);
        }
        self.push(commit);
    }

    fn reject(&mut self, found: &Found, parts: &[Part]) {
        let mut commit = self.frame(found, TerminalState::Rejected, parts);
        commit.reason = Some("an earlier message was being answered".to_owned());
        self.push(commit);
    }

    fn ignore(&mut self, found: &Found) {
        let Some(Event::Ignored { kind, reason }) = found.envelope.as_ref().map(|envelope| &envelope.event) else {
            return;
        };
        let mut commit = self.frame(found, TerminalState::Ignored, &[]);
        commit.reason = Some(turn::ignored(kind, reason));
        let notice = found.envelope.as_ref().and_then(|envelope| envelope.notice.as_ref());
        if let (Some(Notice::Said { text, attachments, .. }), Some(conversation)) = (notice, self.current)
            && !(text.is_empty() && attachments.is_empty())
        {
            // What waits was never answered: the bot is silent from here on.
            self.end_waiting(0);
            let said = new_message(Uuid::now_v7(), Role::Assistant, Author::Agent, text.clone(), found.received_at());
            commit.conversation_id = Some(conversation);
            commit.messages.push(NewMessage { attachments: attachments.clone(), ..said });
        }
        self.push(commit);
    }

    /// Writes what waits, but for the last `keep`, as stored and not answered.
    fn end_waiting(&mut self, keep: usize) {
        let kept = self.waiting.split_off(self.waiting.len() - keep);
        for (found, conversation) in std::mem::replace(&mut self.waiting, kept) {
            let mut commit = self.frame(found, TerminalState::HandedOff, &[]);
            commit.reason = Some(NO_REPLY.to_owned());
            match found.envelope.as_ref().map(|envelope| &envelope.event) {
                Some(Event::Agent { text }) => {
                    let said =
                        new_message(Uuid::now_v7(), Role::Assistant, Author::Agent, text.clone(), found.received_at());
                    commit.messages.push(said);
                }
                _ => commit.messages.extend(user_message(found)),
            }
            commit.metadata_patches.extend(said_metadata(found));
            self.enter(&mut commit, conversation, found);
            self.derived.without_reply += 1;
            self.push(commit);
        }
    }

    /// Puts what the turn says into the conversation, which it may be the first of.
    fn enter(&mut self, commit: &mut TurnCommit, conversation: Uuid, first: &Found) {
        commit.conversation_id = Some(conversation);
        if self.current == Some(conversation) {
            return;
        }
        if let Some(before) = self.current.replace(conversation) {
            self.derived.steps.push(Step::Close(before, commit.received_at));
        }
        commit.new_conversation = first.envelope.as_ref().map(|envelope| NewConversation {
            id: conversation,
            created_at: envelope.received_at,
            ..turn::new_conversation(envelope)
        });
    }

    fn push(&mut self, commit: TurnCommit) {
        self.derived.steps.push(Step::Turn(Box::new(commit)));
    }

    fn frame(&self, found: &Found, state: TerminalState, parts: &[Part]) -> TurnCommit {
        let message = &found.message;
        let nobody = || ConversationKey { channel: Channel::Web, bot: "unknown".into(), peer: Peer::Bot };
        let key = found.envelope.as_ref().map(|envelope| envelope.key.clone());
        let key = key.or_else(|| message.lane.parse().ok()).unwrap_or_else(nobody);
        let delivery = |part: &Part| OutboundPart { turn_id: found.turn_id, ..part.part.clone() };
        TurnCommit {
            ownership: self.evidence.ownership,
            position: Position { stream: self.evidence.ownership.stream, sequence: message.sequence },
            turn_id: found.turn_id,
            dedupe_id: message.message_id.clone(),
            merged: Vec::new(),
            key,
            state,
            reason: None,
            attempts: 1,
            responder: None,
            conversation_id: None,
            new_conversation: None,
            messages_read: None,
            messages: Vec::new(),
            metadata_patches: Vec::new(),
            workflow_state: None,
            handoff: false,
            actions: Vec::new(),
            // A notice may name a conversation that nothing else on the streams does.
            deliveries: match state {
                TerminalState::Answered => parts.iter().map(delivery).collect(),
                _ => parts.iter().map(|part| OutboundPart { conversation_id: None, ..delivery(part) }).collect(),
            },
            suppress_if_taken: false,
            tokens: 0,
            journal: None,
            record: None,
            traceparent: parts
                .first()
                .and_then(|part| part.traceparent.clone())
                .or_else(|| message.traceparent.clone()),
            timings: TurnTimings::default(),
            received_at: found.received_at(),
            started_at: message.published_at,
            committed_at: parts.first().map_or(message.published_at, |part| part.part.created_at),
        }
    }
}

/// Adds the bot's messages; tells how many of them were put together of several parts.
fn reply(commit: &mut TurnCommit, parts: &[Part]) -> u64 {
    let mut joined = 0;
    for parts in parts.chunk_by(|left, right| left.part.message_id == right.part.message_id) {
        let contents: Vec<&str> = parts.iter().map(|part| part.part.content.as_str()).collect();
        let Some(Part { part: first, .. }) = parts.first() else { continue };
        let is_joined = first.form.source.is_none() && contents.len() > 1;
        joined += u64::from(is_joined);
        let content = if is_joined { contents.join("\n\n") } else { written(first).to_owned() };
        commit.messages.push(new_message(first.message_id, Role::Assistant, Author::Bot, content, first.created_at));
    }
    joined
}

/// A part as its author wrote it: with its formatting as markup, then all of the message.
fn written(part: &OutboundPart) -> &str {
    part.form.source.as_ref().unwrap_or(&part.content)
}

fn user_message(found: &Found) -> Option<NewMessage> {
    let (envelope, said) = found.said()?;
    let message = new_message(Uuid::now_v7(), Role::User, Author::User, said.text.clone(), envelope.received_at);
    let (attachments, platform_message_id) = (said.attachments.clone(), said.platform_message_id.clone());
    Some(NewMessage { attachments, platform_message_id, ..message })
}

const fn new_message(id: Uuid, role: Role, author: Author, content: String, created_at: Timestamp) -> NewMessage {
    NewMessage { id, role, author, content, attachments: Vec::new(), tool: None, platform_message_id: None, created_at }
}

fn merged(found: &Found, state: TerminalState) -> MergedMessage {
    MergedMessage {
        turn_id: found.turn_id,
        dedupe_id: found.message.message_id.clone(),
        sequence: found.message.sequence,
        state,
        reason: Some(TAKEN_IN.to_owned()),
        traceparent: found.message.traceparent.clone(),
        timings: TurnTimings::default(),
        received_at: found.received_at(),
    }
}

/// What the caller said of the conversation.
fn said_metadata(found: &Found) -> Option<Map<String, Value>> {
    found.envelope.as_ref()?.metadata.clone()
}

#[cfg(test)]
mod tests;
