//! One person's data taken out of a deployment, while it runs: out of the database and off the streams.
//!
//! Refuses to look for a person in groups: the database does not know who wrote there, but for reactions. Invariants: a message
//! is settled in the ledger before it leaves the stream, so that no worker, audit, rebuild or second delivery takes it for one
//! that is still to be answered; the database knows that something was erased before anything is, and not whose it was; the work
//! ends when it finds nothing any more.

use std::collections::HashSet;

use serde::Serialize;

use crate::message::{Channel, ConversationKey, Envelope, Timestamp};
use crate::store::{
    Committed, ErasedRows, OperatorAction, OperatorVerb, PersonalData, Store, StoreError, UnendedMessage,
};
use crate::stream::{StreamError, StreamHandle, StreamMessage};

/// Somebody who writes all the time is told so after as many rounds.
const ROUNDS_MAX: u32 = 10;

/// Message ids looked up in the ledger at once.
const LOOKED_UP: usize = 500;

/// Where a deployment keeps what people say.
#[derive(Debug)]
pub struct Erasure {
    pub store: Store,
    pub inbound: StreamHandle,
    pub outbound: StreamHandle,
    pub dead: StreamHandle,
    pub partitions: u16,
    /// Who erases, as far as can be told.
    pub actor: Option<String>,
    /// Why, for the record; it should name nobody.
    pub reason: Option<String>,
}

/// Whose data.
#[derive(Debug, Clone)]
pub struct Person {
    pub channel: Channel,
    pub bot: String,
    /// The platform's id; on the web the device's.
    pub id: String,
}

/// What was found or erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Extent {
    pub database: ErasedRows,
    /// Messages on the streams.
    pub inbound: u64,
    pub outbound: u64,
    pub dead_letters: u64,
}

impl Extent {
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Why not everything was erased. Doing it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum ErasureError {
    #[error("the streams did not answer")]
    Stream(#[from] StreamError),
    #[error("the database did not answer")]
    Store(#[from] StoreError),
    #[error("the person keeps writing; erase again when it is quiet")]
    NeverQuiet,
}

/// What the streams hold of a person.
struct Found {
    inbound: Vec<StreamMessage>,
    outbound: Vec<StreamMessage>,
    dead: Vec<StreamMessage>,
}

impl Erasure {
    /// What there is of a person. Changes nothing.
    ///
    /// # Errors
    /// See [`ErasureError`].
    pub async fn extent(&self, person: &Person) -> Result<Extent, ErasureError> {
        let data = self.data(person).await?;
        let database = self.store.count_personal_data(&data).await?;
        let found = self.found(&data.keys).await?;
        let unanswered = self.unended(&found.inbound).await?.len() as u64;
        Ok(found.extent(ErasedRows { unanswered, ..database }))
    }

    /// Erases a person's data, and what the person says meanwhile.
    ///
    /// # Errors
    /// See [`ErasureError`].
    pub async fn run(&self, person: &Person) -> Result<Extent, ErasureError> {
        let action = OperatorAction {
            verb: OperatorVerb::ErasePerson,
            target: person.bot.clone(),
            actor: self.actor.clone(),
            reason: self.reason.clone(),
            at: Timestamp::now(),
        };
        self.store.record_operator_actions(&[action]).await?;
        let mut erased = Extent::default();
        // A turn that ran meanwhile may have written a conversation or a reply behind the first round's back.
        for _ in 0..ROUNDS_MAX {
            let round = self.round(person).await?;
            if round.is_nothing() {
                return Ok(erased);
            }
            erased = Extent {
                database: erased.database.and(round.database),
                inbound: erased.inbound + round.inbound,
                outbound: erased.outbound + round.outbound,
                dead_letters: erased.dead_letters + round.dead_letters,
            };
        }
        Err(ErasureError::NeverQuiet)
    }

    async fn round(&self, person: &Person) -> Result<Extent, ErasureError> {
        self.store.remove_spent_journals().await?;
        let data = self.data(person).await?;
        let accepted = self.found(&data.keys).await?.inbound;
        let unended = self.unended(&accepted).await?;
        let database = self.store.erase(&data, &unended).await?;
        // What was read before is settled now. Replies may have been published since.
        let found = Found { inbound: accepted, ..self.found(&data.keys).await? };
        self.inbound.erase(&found.inbound).await?;
        self.outbound.erase(&found.outbound).await?;
        self.dead.erase(&found.dead).await?;
        Ok(found.extent(database))
    }

    /// The person's chats and conversations. A chat of whose turns none has ended yet is on the streams only.
    async fn data(&self, person: &Person) -> Result<PersonalData, ErasureError> {
        let mut data = self.store.personal_data(person.channel, &person.bot, &person.id).await?;
        for stream in [&self.inbound, &self.outbound, &self.dead] {
            let peers = stream.peers_of_bot(person.channel, &person.bot).await?;
            data.add_chats(peers.into_iter().filter(|peer| peer.is_business_of(&person.id)));
        }
        Ok(data)
    }

    async fn found(&self, keys: &[ConversationKey]) -> Result<Found, ErasureError> {
        let mut found = Found { inbound: Vec::new(), outbound: Vec::new(), dead: Vec::new() };
        for key in keys {
            found.inbound.extend(self.inbound.messages_of_chat(key, self.partitions, false).await?);
            found.outbound.extend(self.outbound.messages_of_chat(key, self.partitions, true).await?);
            found.dead.extend(self.dead.messages_of_chat(key, self.partitions, true).await?);
        }
        Ok(found)
    }

    /// The messages that the ledger does not hold.
    async fn unended(&self, accepted: &[StreamMessage]) -> Result<Vec<UnendedMessage>, ErasureError> {
        let stream = self.store.stream_number(&self.inbound.name, &self.inbound.incarnation).await?;
        let mut unended = Vec::new();
        for messages in accepted.chunks(LOOKED_UP) {
            let ids: Vec<String> = messages.iter().map(|message| message.message_id.clone()).collect();
            let settled = self.store.settled(&ids).await?;
            let settled: HashSet<&str> = settled.iter().map(Committed::dedupe_id).collect();
            let left = messages.iter().filter(|message| !settled.contains(message.message_id.as_str()));
            unended.extend(left.map(|message| {
                let envelope = serde_json::from_slice::<Envelope>(&message.payload).ok();
                UnendedMessage {
                    turn_id: envelope.as_ref().map_or_else(uuid::Uuid::now_v7, |envelope| envelope.turn_id),
                    dedupe_id: message.message_id.clone(),
                    stream,
                    partition: message.partition,
                    sequence: message.sequence,
                    received_at: envelope.map_or(message.published_at, |envelope| envelope.received_at),
                }
            }));
        }
        Ok(unended)
    }
}

impl Found {
    const fn extent(&self, database: ErasedRows) -> Extent {
        Extent {
            database,
            inbound: self.inbound.len() as u64,
            outbound: self.outbound.len() as u64,
            dead_letters: self.dead.len() as u64,
        }
    }
}
