//! The end of messages that are given up: the ledger first, then the dead-letter stream.
//!
//! Refuses to judge whether to give up. Invariants: all that were tried together end together, with one notice to the user; what
//! their tools did stays known; nothing that the database cannot give back keeps the lane from going on.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backoff::backoff::Backoff as _;
use serde_json::Value;
use uuid::Uuid;

use super::Turns;
use super::burst::Burst;
use super::compose::{for_guest, frame, parts};
use super::record::TurnRecord;
use super::verdict::{Step, away};
use crate::message::{Channel, ConversationKey, ConversationStatus, Peer, ReplyMessage, TerminalState};
use crate::responder::journal::{MAX_PAUSE, patience};
use crate::scheduler::{Failure, Task};
use crate::store::{Committed, JournalEntry, StoreError, TurnCommit};
use crate::stream::{DeadLetter, StreamMessage};
use crate::telemetry::{chain, metric};

impl Turns {
    /// Makes the end of given-up messages durable: the ledger first, then the dead-letter stream. All that were tried
    /// together end together, with one notice.
    pub(super) async fn bury(&self, task: &Task, failure: &Failure) -> Step<Vec<Committed>> {
        let burst = Burst::read(task).ok();
        let journal = burst.as_ref().map(Burst::first_turn_id);
        let steps = match journal {
            Some(journal) => self.readable_steps(journal).await?,
            None => Vec::new(),
        };
        // What came when its attempts had begun was part of none of them.
        if let Some(tried) = burst.as_ref().map(|burst| burst.held_to(&steps)).transpose()?.flatten() {
            return Box::pin(self.bury(&tried, failure)).await;
        }
        let envelope = burst.as_ref().map(|burst| &burst.envelope);
        let key = envelope.map(|envelope| envelope.key.clone());
        let key = match key.map_or_else(|| task.message().lane.parse(), Ok) {
            Ok(key) => key,
            Err(_) => ConversationKey { channel: Channel::Web, bot: "unknown".into(), peer: Peer::Bot },
        };
        let received_at = envelope.map_or(task.message().published_at, |envelope| envelope.received_at);
        let turn_id = self.free_turn_id(envelope.map(|envelope| envelope.turn_id)).await?;
        let why = format!("{}: {}", failure.reason, failure.error);
        let mut merged = burst.as_ref().map(|burst| burst.given_up(&why)).unwrap_or_default();
        for message in &mut merged {
            message.turn_id = self.free_turn_id(Some(message.turn_id)).await?;
        }
        let mut commit = TurnCommit {
            state: TerminalState::DeadLettered,
            reason: Some(why),
            merged,
            ..frame(task, key.clone(), turn_id, received_at)
        };
        // What its tools did stays known, though nothing of it is in the history.
        let journal = journal.unwrap_or(turn_id);
        let bot = self.bots.get(&*key.bot).map(|settings| &settings.bot);
        TurnRecord::of(&steps, || Value::Null, bot).keep_in(&mut commit, journal);
        if let Some(text) = self.notice(&key, failure) {
            let row = self.store.load_turn(&key, &task.message().message_id).await.map_err(|error| away(&error))?;
            commit.key.peer = row.filed_under.unwrap_or(commit.key.peer);
            // Who has taken the conversation over speaks for the bot.
            if row.conversation.as_ref().is_none_or(|conversation| conversation.status == ConversationStatus::Bot) {
                let conversation = row.conversation.map(|conversation| conversation.id);
                commit.deliveries = parts(&commit, conversation, Uuid::now_v7(), &ReplyMessage::text(text));
                if let Some(burst) = &burst {
                    for_guest(&mut commit.deliveries, burst);
                }
            }
        }
        let receipts = self.commit(task, commit, None).await?;
        // When the last attempt failed after its commit, the messages are answered, and no dead letters.
        for receipt in receipts.iter().filter(|receipt| receipt.state() == TerminalState::DeadLettered) {
            for message in task.all().filter(|message| message.message_id == receipt.dedupe_id()) {
                let buried = self.bury_letter(message, failure.reason, &failure.error, task.attempt).await;
                buried.map_err(|error| away(&error))?;
                metric::dead_letter(failure.reason);
            }
        }
        Ok(receipts)
    }

    /// The steps of a turn that is given up. What cannot be read cannot be kept either, and stays where it is: the lane must
    /// go on.
    async fn readable_steps(&self, journal: Uuid) -> Step<Vec<JournalEntry>> {
        match self.store.journal(journal).await {
            Err(error) if !error.is_transient() => {
                tracing::warn!(turn_id = %journal, error = %chain(&error), "the steps of a turn that is given up cannot be read");
                Ok(Vec::new())
            }
            steps => steps.map_err(|error| away(&error)),
        }
    }

    /// The id of a ledger row: a new one when the message is unreadable, or its id that of another message's row, as of one
    /// put on the stream again by hand.
    async fn free_turn_id(&self, wanted: Option<Uuid>) -> Step<Uuid> {
        match wanted {
            Some(id) if self.store.turn(id).await.map_err(|error| away(&error))?.is_none() => Ok(id),
            _ => Ok(Uuid::now_v7()),
        }
    }

    /// What the user of a given-up message reads; nothing when the bot has no failure reply.
    fn notice(&self, key: &ConversationKey, failure: &Failure) -> Option<String> {
        let settings = self.bots.get(&*key.bot).filter(|_| key.peer != Peer::Bot)?;
        failure.user_message.clone().or_else(|| settings.bot.failure_reply.clone())
    }

    /// A crash may have come between the ledger and the dead-letter stream. A message that has its letter there gets no second
    /// one, nor one whose letter people have ended.
    pub(super) async fn bury_again(
        &self,
        messages: &[Arc<StreamMessage>],
        settled: &[Committed],
    ) -> Result<(), StoreError> {
        let mut buried: HashMap<&str, HashSet<String>> = HashMap::new();
        for committed in settled.iter().filter(|committed| committed.state() == TerminalState::DeadLettered) {
            let is_it = |message: &&Arc<StreamMessage>| message.message_id == committed.dedupe_id();
            let Some(message) = messages.iter().find(is_it) else { continue };
            if self.store.is_dead_letter_ended(&message.message_id).await? {
                continue;
            }
            let of_lane = match buried.entry(&message.lane) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(self.buried(message).await),
            };
            if of_lane.contains(&message.message_id) {
                continue;
            }
            let Some(turn) = self.store.turn(committed.turn_id()).await? else { continue };
            let reason = turn.reason.unwrap_or_default();
            let (word, error) = reason.split_once(": ").unwrap_or(("unknown", &reason));
            self.bury_letter(message, word, error, turn.attempts).await?;
        }
        Ok(())
    }

    /// The messages of this one's lane that have letters, asked for as long as it takes.
    async fn buried(&self, message: &StreamMessage) -> HashSet<String> {
        let mut pause = patience();
        loop {
            match self.publisher.buried(message.partition, &message.lane).await {
                Ok(buried) => return buried,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the dead letters cannot be read yet, trying again");
                    tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
                }
            }
        }
    }

    async fn bury_letter(
        &self,
        message: &StreamMessage,
        reason: &str,
        error: &str,
        attempts: u32,
    ) -> Result<(), StoreError> {
        let letter = DeadLetter { message, partition: message.partition, reason, error, attempts };
        let mut pause = patience();
        while let Err(error) = self.publisher.dead(&letter).await {
            tracing::warn!(error = %chain(&error), "dead letter not on the stream yet, trying again");
            tokio::time::sleep(pause.next_backoff().unwrap_or(MAX_PAUSE)).await;
        }
        Ok(())
    }
}
