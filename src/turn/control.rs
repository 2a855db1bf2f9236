//! What a platform says of a conversation beside its messages: that a reply arrived, that somebody else answers, that a message
//! was edited or deleted after its turn.
//!
//! Refuses to ask a responder. Invariants: each event ends as `ignored`, whatever it changed; a bot that the platform silenced
//! speaks again when the platform gives the conversation back, one that a person silenced does not.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::burst::Burst;
use super::compose::frame;
use super::{Loaded, Open, Step, Turns, away};
use crate::message::{
    Amendment, Author, Channel, Control, ConversationStatus, Envelope, Role, TerminalState, Timestamp,
};
use crate::scheduler::Task;
use crate::store::{Committed, ConversationPatch, NewMessage, SendResult, TurnCommit};

/// Where a conversation's metadata say which channel made the bot silent.
const PAUSED_BY: &str = "paused_by";

impl Turns {
    /// Does what the event says, and records it.
    pub(super) async fn heed(
        &self,
        task: &Task,
        envelope: &Envelope,
        control: &Control,
        reason: String,
    ) -> Step<Vec<Committed>> {
        if matches!(control, Control::Arrived { .. }) {
            return self.ignore(task, envelope, reason).await;
        }
        let loaded = match self.load(task, envelope).await? {
            Loaded::Settled(committed) => return self.finish_settled(task, vec![committed]).await,
            // Nobody has written to the bot yet, so there is nothing to keep it out of.
            Loaded::Open(loaded) if loaded.new.is_some() => return self.ignore(task, envelope, reason).await,
            Loaded::Open(loaded) => loaded,
        };
        match control {
            Control::Returned => self.give_back(&loaded).await?,
            Control::Arrived { .. } | Control::Taken | Control::Said { .. } => {
                let commit = silence(task, envelope, &loaded, control, reason);
                return self.commit(task, commit, Some(&loaded)).await;
            }
        }
        self.ignore(task, envelope, reason).await
    }

    /// The platform shows messages that carry deliveries' ids: they have arrived, whatever was known of them before.
    pub(super) async fn confirm_arrived(&self, burst: &Burst<'_>) -> Step<()> {
        for (id, platform_message_id) in burst.arrived() {
            let found = self.store.delivery(id).await.map_err(|error| away(&error))?;
            if found.is_none_or(|found| found.key != burst.envelope.key) {
                tracing::debug!(delivery_id = %id, "an echo of no delivery of this conversation");
                continue;
            }
            let sent = SendResult::Sent { platform_message_id: platform_message_id.map(str::to_owned) };
            self.store.settle_send(id, &sent, Timestamp::now()).await.map_err(|error| away(&error))?;
        }
        Ok(())
    }

    /// The bot answers again, unless a person has the conversation.
    async fn give_back(&self, loaded: &Open) -> Step<()> {
        let conversation = &loaded.conversation;
        let is_paused = conversation.status == ConversationStatus::Human
            && conversation.assignee.is_none()
            && conversation.metadata.contains_key(PAUSED_BY);
        if !is_paused {
            return Ok(());
        }
        let patch = ConversationPatch {
            status: Some(ConversationStatus::Bot),
            metadata: Some(Map::from_iter([(PAUSED_BY.to_owned(), Value::Null)])),
            ..ConversationPatch::default()
        };
        let patched = self.store.patch_conversation(conversation.id, &patch, Timestamp::now()).await;
        patched.map(drop).map_err(|error| away(&error))
    }

    /// Makes of stored messages what their senders made of them since.
    pub(super) async fn amend_stored(&self, burst: &Burst<'_>) -> Step<()> {
        let envelope = &burst.envelope;
        let amendments: Vec<&Amendment> = burst.unmet().collect();
        if amendments.is_empty() {
            return Ok(());
        }
        let row = self.store.load_turn(&envelope.key, &envelope.dedupe_id).await.map_err(|error| away(&error))?;
        let Some(conversation) = row.conversation else { return Ok(()) };
        for Amendment { platform_message_id, replacement } in amendments {
            let amended = self.store.amend_message(conversation.id, platform_message_id, replacement.as_ref()).await;
            if amended.map_err(|error| away(&error))? {
                self.cache.invalidate(conversation.id).await;
            }
        }
        Ok(())
    }
}

/// What makes the bot silent because of its platform.
pub(crate) fn paused(channel: Channel) -> ConversationPatch {
    ConversationPatch {
        status: Some(ConversationStatus::Human),
        metadata: Some(Map::from_iter([(PAUSED_BY.to_owned(), json!(channel))])),
        ..ConversationPatch::default()
    }
}

/// The commit that makes the bot silent, with what was said in its place.
fn silence(task: &Task, envelope: &Envelope, loaded: &Open, control: &Control, reason: String) -> TurnCommit {
    let mut commit = TurnCommit {
        state: TerminalState::Ignored,
        reason: Some(reason),
        conversation_id: Some(loaded.conversation.id),
        handoff: true,
        ..frame(task, envelope.key.clone(), envelope.turn_id, envelope.received_at)
    };
    if loaded.conversation.status == ConversationStatus::Bot {
        commit.metadata_patches.extend(paused(envelope.key.channel).metadata);
    }
    if let Control::Said { text, attachments, platform_message_id } = control
        && !(text.is_empty() && attachments.is_empty())
    {
        commit.messages.push(NewMessage {
            id: Uuid::now_v7(),
            role: Role::Assistant,
            author: Author::Agent,
            content: text.clone(),
            attachments: attachments.clone(),
            tool: None,
            platform_message_id: platform_message_id.clone(),
            created_at: envelope.received_at,
        });
    }
    commit
}
