//! What a decided turn becomes: the rows of its one transaction, as data.
//!
//! Pure but for ids and the clock. Invariant: a turn's commit names only what a turn owns.

use std::time::Duration;

use serde_json::Map;
use uuid::Uuid;

use super::burst::{Burst, timings};
use super::decide::Decided;
use super::{Open, Settings};
use crate::channel;
use crate::config::ReplyInFlight;
use crate::message::{
    Author, ConversationKey, ConversationStatus, Envelope, Form, OutboundPart, Platform, ReplyMessage, Role,
    TerminalState, Timestamp,
};
use crate::scheduler::Task;
use crate::store::{ChatState, Conversation, NewConversation, NewMessage, Position, TurnCommit};
use crate::telemetry;

/// The commit of an answered or silent turn.
pub(super) fn compose(
    burst: &Burst<'_>,
    settings: &Settings,
    loaded: &mut Open,
    decided: Decided,
    responder_time: Duration,
) -> TurnCommit {
    let envelope = &burst.envelope;
    let mut commit = frame(burst.task, loaded.conversation.key.clone(), envelope.turn_id, envelope.received_at);
    commit.messages_read = Some(loaded.conversation.message_count);
    commit.merged = burst.merged(&settings.bot);
    commit.state = decided.state();
    commit.reason = decided.reason.map(str::to_owned);
    commit.responder = decided.responder;
    commit.conversation_id = Some(loaded.conversation.id);
    commit.new_conversation = loaded.new.take();
    commit.timings.responder_us = u64::try_from(responder_time.as_micros()).unwrap_or(u64::MAX);
    commit.messages.extend(burst.said().map(|(envelope, message)| NewMessage {
        id: Uuid::now_v7(),
        role: Role::User,
        author: Author::User,
        content: message.text.clone(),
        attachments: message.attachments.clone(),
        tool: None,
        platform_message_id: message.platform_message_id.clone(),
        created_at: envelope.received_at,
    }));
    let transcript = decided.reply.transcript.into_iter().map(|message| NewMessage {
        id: Uuid::now_v7(),
        role: message.role,
        author: Author::Bot,
        content: message.content,
        attachments: Vec::new(),
        tool: message.tool,
        platform_message_id: None,
        created_at: commit.committed_at,
    });
    commit.messages.extend(transcript);
    let mut quote = burst.quote();
    let is_guest = burst.guest_query().is_some();
    for reply in decided.reply.messages {
        let reply = ReplyMessage { content: reply.content.replace('\0', ""), ..reply };
        let id = Uuid::now_v7();
        let mut parts = parts(&commit, Some(loaded.conversation.id), id, &reply);
        if let Some(part) = parts.first_mut() {
            part.form.quote = quote.take();
        }
        for_guest(&mut parts, burst);
        if !is_guest || commit.deliveries.is_empty() {
            commit.deliveries.extend(parts);
        }
        commit.messages.push(NewMessage {
            id,
            role: Role::Assistant,
            author: Author::Bot,
            content: reply.content,
            attachments: Vec::new(),
            tool: None,
            platform_message_id: None,
            created_at: commit.committed_at,
        });
    }
    let callers = burst.said().filter_map(|(envelope, _)| envelope.metadata.clone());
    commit.metadata_patches = callers.chain(decided.reply.metadata).collect();
    commit.workflow_state = decided.reply.workflow_state;
    commit.handoff = decided.reply.handoff;
    commit.actions = decided.reply.actions;
    commit.suppress_if_taken = settings.bot.reply_in_flight == ReplyInFlight::Suppress && !decided.silent;
    decided.kept.keep_in(&mut commit, burst.first_turn_id());
    tracing::debug!(bot = settings.bot.name, state = %commit.state, "turn decided");
    commit
}

/// The commit of a human agent's message.
pub(super) fn say(task: &Task, envelope: &Envelope, loaded: &Open, text: &str) -> TurnCommit {
    let mut commit = frame(task, loaded.conversation.key.clone(), envelope.turn_id, envelope.received_at);
    commit.conversation_id = Some(loaded.conversation.id);
    let id = Uuid::now_v7();
    commit.deliveries = parts(&commit, Some(loaded.conversation.id), id, &ReplyMessage::text(text));
    commit.messages.push(NewMessage {
        id,
        role: Role::Assistant,
        author: Author::Agent,
        content: text.to_owned(),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: None,
        created_at: envelope.received_at,
    });
    commit
}

/// What every commit of this attempt has in common; says nothing in any conversation yet.
pub(super) fn frame(task: &Task, key: ConversationKey, turn_id: Uuid, received_at: Timestamp) -> TurnCommit {
    let message = task.message();
    TurnCommit {
        ownership: task.ownership,
        position: Position { stream: task.ownership.stream, sequence: message.sequence },
        turn_id,
        dedupe_id: message.message_id.clone(),
        merged: Vec::new(),
        key,
        state: TerminalState::Answered,
        reason: None,
        attempts: task.attempt,
        responder: None,
        conversation_id: None,
        new_conversation: None,
        messages_read: None,
        messages: Vec::new(),
        metadata_patches: Vec::new(),
        workflow_state: None,
        handoff: false,
        actions: Vec::new(),
        deliveries: Vec::new(),
        suppress_if_taken: false,
        tokens: 0,
        journal: None,
        record: None,
        traceparent: telemetry::current_traceparent(&tracing::Span::current()),
        timings: timings(message, task.started_at),
        received_at,
        started_at: task.started_at,
        committed_at: Timestamp::now(),
    }
}

/// The parts in which one message leaves, buttons under the last.
pub(super) fn parts(
    commit: &TurnCommit,
    conversation_id: Option<Uuid>,
    message_id: Uuid,
    reply: &ReplyMessage,
) -> Vec<OutboundPart> {
    let texts = channel::parts(commit.key.channel, &reply.content);
    let count = u16::try_from(texts.len()).unwrap_or(u16::MAX);
    texts
        .into_iter()
        .zip(0..count)
        .map(|(text, part)| OutboundPart {
            delivery_id: Uuid::now_v7(),
            turn_id: commit.turn_id,
            conversation_id,
            message_id,
            key: commit.key.clone(),
            part,
            parts: count,
            content: text.text,
            buttons: if part + 1 == count { reply.buttons.clone() } else { Vec::new() },
            form: Form { entities: text.entities, source: text.source, ..Form::default() },
            created_at: commit.committed_at,
        })
        .collect()
}

/// Makes of the parts of a reply the one answer that somebody who called the bot as a guest can get: the first, with what it
/// has of formatting, and without buttons.
pub(super) fn for_guest(parts: &mut Vec<OutboundPart>, burst: &Burst<'_>) {
    let Some(query) = burst.guest_query() else { return };
    parts.truncate(1);
    for part in parts {
        part.parts = 1;
        part.buttons = Vec::new();
        part.form.guest_query_id = Some(query.to_owned());
    }
}

pub(crate) fn new_conversation(envelope: &Envelope) -> NewConversation {
    let mut metadata = Map::new();
    if let Some(sender) = &envelope.sender
        && let Ok(sender) = serde_json::to_value(sender)
        && envelope.platform != Platform::Web
    {
        metadata.insert("sender".to_owned(), sender);
    }
    NewConversation {
        id: Uuid::now_v7(),
        key: envelope.key.clone(),
        platform: envelope.platform,
        device_id: envelope.device_id.clone(),
        metadata,
        created_at: Timestamp::now(),
    }
}

/// A conversation as the responder shall see it before the commit has stored it.
pub(super) fn unsaved(new: &NewConversation) -> Conversation {
    Conversation {
        id: new.id,
        key: new.key.clone(),
        platform: new.platform,
        device_id: new.device_id.clone(),
        status: ConversationStatus::Bot,
        assignee: None,
        snippet: None,
        last_message_at: None,
        message_count: 0,
        metadata: new.metadata.clone(),
        chat: ChatState::default(),
        created_at: new.created_at,
        updated_at: new.created_at,
    }
}
