//! What a platform says of a chat beside its messages: that it moved or can be reached no more, that a reply arrived or pleased,
//! that somebody else answers, that a message was edited or deleted after its turn.
//!
//! Refuses to ask a responder. Invariants: each event ends as `ignored`, whatever it changed; what is made known before the
//! event is in the ledger can be done twice, by the partition's owner alone, and what was learnt later stands; a bot that the
//! platform silenced speaks again when the platform gives the conversation back, one that a person silenced does not.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::burst::Burst;
use super::compose::frame;
use super::{Loaded, Open, Step, Turns, away};
use crate::message::{
    Amendment, Author, Channel, ConversationKey, ConversationStatus, Envelope, Notice, Role, TerminalState, Timestamp,
};
use crate::scheduler::Task;
use crate::store::{Committed, ConversationPatch, Found, NewFeedback, NewMessage, SendResult, StoreError, TurnCommit};

/// Where a conversation's metadata say which channel made the bot silent.
const PAUSED_BY: &str = "paused_by";

impl Turns {
    /// Makes what an event tells of its chat known.
    pub(super) async fn heed(&self, task: &Task, envelope: &Envelope, notice: &Notice) -> Result<(), StoreError> {
        let (key, at, owner) = (&envelope.key, envelope.received_at, Some(&task.ownership));
        match notice {
            Notice::Moved { from, to } => {
                let from = ConversationKey { peer: from.clone(), ..key.clone() };
                self.store.move_chat(&from, to, at, owner).await
            }
            Notice::Unreachable { reason } => self.store.note_reachability(key, Some(reason), at, owner).await,
            Notice::Reachable => self.store.note_reachability(key, None, at, owner).await,
            Notice::Reaction { platform_message_id, sender, reactions } => {
                let feedback = NewFeedback {
                    key: key.clone(),
                    platform_message_id: platform_message_id.clone(),
                    sender: sender.clone(),
                    reactions: reactions.clone(),
                    received_at: at,
                };
                self.store.record_feedback(&feedback).await
            }
            Notice::Arrived { delivery_id, platform_message_id } => {
                self.confirm(key, *delivery_id, platform_message_id.clone()).await
            }
            // These are the affair of the lane, whose running turn has ended; of the burst, and of what is stored; and of the
            // event's own commit.
            Notice::Stop | Notice::Deleted { .. } | Notice::Said { .. } | Notice::Taken | Notice::Returned => Ok(()),
        }
    }

    /// Makes the bot silent or lets it speak again, as the event says, and records the event.
    pub(super) async fn change_who_answers(
        &self,
        task: &Task,
        envelope: &Envelope,
        notice: &Notice,
        reason: String,
    ) -> Step<Vec<Committed>> {
        let loaded = match self.load(task, envelope).await? {
            Loaded::Settled(committed) => return self.finish_settled(task, vec![committed]).await,
            // Nobody has written to the bot yet, so there is nothing to keep it out of.
            Loaded::Open(loaded) if loaded.new.is_some() => return self.ignore(task, envelope, reason).await,
            Loaded::Open(loaded) => loaded,
        };
        if *notice == Notice::Returned {
            self.give_back(task, &loaded).await?;
            return self.ignore(task, envelope, reason).await;
        }
        let commit = silence(task, envelope, &loaded, notice, reason);
        self.commit(task, commit, Some(&loaded)).await
    }

    /// The platform shows a message that carries a delivery's id: it has arrived, whatever was known of it before.
    async fn confirm(
        &self,
        key: &ConversationKey,
        id: Uuid,
        platform_message_id: Option<String>,
    ) -> Result<(), StoreError> {
        if self.store.delivery(id).await?.is_none_or(|found| found.key != *key) {
            tracing::debug!(delivery_id = %id, "an echo of no delivery of this conversation");
            return Ok(());
        }
        let sent = SendResult::Sent { platform_message_id };
        self.store.settle_send(id, &sent, Timestamp::now()).await.map(drop)
    }

    /// The bot answers again, unless a person has the conversation.
    async fn give_back(&self, task: &Task, loaded: &Open) -> Step<()> {
        let patch = ConversationPatch {
            status: Some(ConversationStatus::Bot),
            metadata: Some(Map::from_iter([(PAUSED_BY.to_owned(), Value::Null)])),
            only_if: Some(Found { status: ConversationStatus::Human, unassigned_with: Some(PAUSED_BY) }),
            ..ConversationPatch::default()
        };
        let (id, now) = (loaded.conversation.id, Timestamp::now());
        let patched = self.store.patch_conversation_as_owner(id, &patch, now, &task.ownership).await;
        patched.map(drop).map_err(|error| away(&error))
    }

    /// Makes of stored messages what their senders made of them since.
    pub(super) async fn amend_stored(&self, task: &Task, burst: &Burst<'_>) -> Step<()> {
        let envelope = &burst.envelope;
        let amendments: Vec<&Amendment> = burst.unmet().collect();
        if amendments.is_empty() {
            return Ok(());
        }
        let row = self.store.load_turn(&envelope.key, &envelope.dedupe_id).await.map_err(|error| away(&error))?;
        // One that comes again must not undo what came after it.
        let Some(conversation) = row.conversation.filter(|_| row.already.is_none()) else { return Ok(()) };
        for Amendment { platform_message_id, replacement } in amendments {
            let (id, replacement) = (conversation.id, replacement.as_ref());
            let amended = self.store.amend_message(id, platform_message_id, replacement, &task.ownership).await;
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
        only_if: Some(Found { status: ConversationStatus::Bot, unassigned_with: None }),
        ..ConversationPatch::default()
    }
}

/// The commit that makes the bot silent, with what was said in its place.
fn silence(task: &Task, envelope: &Envelope, loaded: &Open, notice: &Notice, reason: String) -> TurnCommit {
    let mut commit = TurnCommit {
        state: TerminalState::Ignored,
        reason: Some(reason),
        conversation_id: Some(loaded.conversation.id),
        handoff: true,
        ..frame(task, loaded.conversation.key.clone(), envelope.turn_id, envelope.received_at)
    };
    if loaded.conversation.status == ConversationStatus::Bot {
        commit.metadata_patches.extend(paused(envelope.key.channel).metadata);
    }
    if let Notice::Said { text, attachments, platform_message_id } = notice
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
