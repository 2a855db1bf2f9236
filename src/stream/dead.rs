//! The dead-letter stream, both directions: how a message that is given up is written there, how it is read, how it becomes
//! a new message at the end of its conversation, and how it is taken away.
//!
//! Refuses to publish anything but what lies on the dead-letter stream, and to take a letter away without a receipt.
//! Invariant: a letter's message becomes the same new message however often it is redriven: its id and its turn's id are made
//! of the old ones alone, so the stream's window and the ledger's permanent key see one.

use std::collections::{BTreeMap, HashSet};

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{DeleteMessageErrorKind, RawMessageErrorKind};
use bytes::Bytes;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::page::PageOf;
use super::publish::headers;
use super::{
    Lane, PublishError, Published, Publisher, SCHEMA_HEADER, StreamError, StreamHandle, StreamMessage, refused,
};
use crate::message::{Channel, ConversationKey, Envelope, Peer, SCHEMA_VERSION, escape};
use crate::store::Receipt;

const REASON_HEADER: &str = "Turnwise-Reason";
const ERROR_HEADER: &str = "Turnwise-Error";
const ATTEMPTS_HEADER: &str = "Turnwise-Attempts";
const SEQUENCE_HEADER: &str = "Turnwise-Sequence";

/// Letters read at once: without their bodies, a page is some hundred kilobytes.
pub const LETTERS_PAGE: usize = 500;

/// The longest text put into a header: an error's first line is enough, the ledger has the rest.
const MAX_HEADER_CHARS: usize = 500;

/// What the id of a redriven message has behind that of the message before. Ids of the entrances never end like this: they end
/// in a number, a hash, a UUID or a platform's own id.
const REDRIVEN_SUFFIX: &str = ":redriven";

/// A message that shall not be tried any more, with what a person needs to decide about it.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    pub message: &'a StreamMessage,
    /// The lane's subject tokens, as they came.
    pub partition: u16,
    /// A word for grouping: `responder`, `undecodable`, ...
    pub reason: &'a str,
    pub error: &'a str,
    pub attempts: u32,
}

/// A dead letter as it lies on its stream.
#[derive(Debug, Clone)]
pub struct Letter {
    /// As it is there: its sequence names the letter, its time is that of giving up, its id that of the message given up. The
    /// body is empty in a page, and where it was too large to be put there.
    pub message: StreamMessage,
    pub reason: String,
    pub error: String,
    pub attempts: u32,
    /// Where the message lay on the inbound stream.
    pub inbound_sequence: Option<u64>,
}

/// Which letters are meant; each part that is set must be met.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    pub bot: Option<String>,
    pub channel: Option<Channel>,
    pub peer: Option<Peer>,
    pub reason: Option<String>,
}

impl Letter {
    /// The id by which people name it: its place on the dead-letter stream.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.message.sequence
    }

    /// The conversation; `None` when the subject is not of this version's form.
    #[must_use]
    pub fn key(&self) -> Option<ConversationKey> {
        self.message.lane.parse().ok()
    }

    /// The id under which its message comes again.
    #[must_use]
    pub fn redriven_id(&self) -> String {
        Self::redriven_id_of(&self.message.message_id)
    }

    /// The id under which a message comes again when it is redriven.
    #[must_use]
    pub(crate) fn redriven_id_of(message_id: &str) -> String {
        format!("{message_id}{REDRIVEN_SUFFIX}")
    }

    fn read(handle: &StreamHandle, message: StreamMessage, headers: &HeaderMap) -> Self {
        debug_assert_eq!(handle.lane, Lane::Dead, "letters lie on one stream");
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        Self {
            message,
            reason: text(REASON_HEADER).unwrap_or_default(),
            error: text(ERROR_HEADER).unwrap_or_default(),
            attempts: text(ATTEMPTS_HEADER).and_then(|attempts| attempts.parse().ok()).unwrap_or_default(),
            inbound_sequence: text(SEQUENCE_HEADER).and_then(|sequence| sequence.parse().ok()),
        }
    }
}

impl LetterFilter {
    /// Whether the reason is the one meant; the rest is in the subject.
    fn admits(&self, letter: &Letter) -> bool {
        self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
    }

    fn subject(&self, handle: &StreamHandle) -> String {
        let any = || "*".to_owned();
        let channel = self.channel.map_or_else(any, |channel| channel.to_string());
        let bot = self.bot.as_deref().map_or_else(any, escape);
        let peer = self.peer.as_ref().map_or_else(any, Peer::to_string);
        let all = handle.connection.names.all_subjects(Lane::Dead);
        format!("{}*.{channel}.{bot}.{peer}", all.trim_end_matches('>'))
    }
}

/// One page of letters.
#[derive(Debug)]
pub struct LettersPage {
    pub letters: Vec<Letter>,
    /// The last sequence looked at, behind which the next page begins; `None` when there is nothing more.
    pub last: Option<u64>,
}

impl StreamHandle {
    /// The letters behind a place, in stream order and without their bodies.
    ///
    /// # Errors
    /// When JetStream does not answer, or the connection was interrupted meanwhile.
    pub async fn letters(&self, filter: &LetterFilter, after: u64) -> Result<LettersPage, StreamError> {
        let of = PageOf { subject: filter.subject(self), limit: LETTERS_PAGE, headers_only: true };
        let page = self.page(&of, after).await?;
        let letters = page.messages.into_iter().map(|(message, headers)| Letter::read(self, message, &headers));
        Ok(LettersPage { letters: letters.filter(|letter| filter.admits(letter)).collect(), last: page.last })
    }

    /// One letter with its body, by its id.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn letter(&self, id: u64) -> Result<Option<Letter>, StreamError> {
        let Some((message, headers)) = self.stored(id).await? else { return Ok(None) };
        Ok(Some(Letter::read(self, message, &headers)))
    }

    /// The message at a place of the stream; `None` when there is none, or none any more.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub(super) async fn stored(&self, sequence: u64) -> Result<Option<(StreamMessage, HeaderMap)>, StreamError> {
        let what = || format!("read the stream {}", self.name);
        let stream = self.connection.jetstream.get_stream_no_info(&self.name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        // From the leader: any replica answers a direct read, also one that lags behind.
        let found = match stream.get_raw_message(sequence).await {
            Ok(found) => found,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => return Err(refused(what(), error)),
        };
        let (headers, published_at) = (found.headers, found.time.into());
        let read = StreamMessage::read(self, &found.subject, &headers, found.payload, found.sequence, published_at);
        Ok(read.map(|message| (message, headers)))
    }

    /// The body of a letter that lies on the dead-letter stream without it, from `self`, the inbound stream; `None` when it is
    /// not there any more.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn body_of(&self, letter: &Letter) -> Result<Option<Bytes>, StreamError> {
        let Some(sequence) = letter.inbound_sequence else { return Ok(None) };
        let found = self.stored(sequence).await?;
        // A stream made anew has other messages at its places.
        let same = found.filter(|(message, _)| message.message_id == letter.message.message_id);
        Ok(same.map(|(message, _)| message.payload))
    }

    /// Takes a letter off the stream for good; one that is gone already is fine. The receipt proves that the database knows
    /// who did so and why.
    ///
    /// # Errors
    /// When JetStream does not answer: it may be gone.
    pub async fn remove_letter(&self, letter: &Letter, receipt: &(impl Receipt + Sync)) -> Result<(), StreamError> {
        let what = || format!("remove the message {} of {}", letter.id(), self.name);
        if !receipt.covers(&letter.message.message_id) {
            debug_assert!(false, "a receipt speaks for its own letter");
            return Err(refused(what(), "the receipt is for another one".to_owned()));
        }
        self.remove(letter.id()).await
    }

    /// Takes a message off the stream and overwrites where it lay; one that is gone already is fine.
    ///
    /// # Errors
    /// When JetStream does not answer: it may be gone.
    pub(super) async fn remove(&self, sequence: u64) -> Result<(), StreamError> {
        let what = || format!("remove the message {sequence} of {}", self.name);
        let stream = self.connection.jetstream.get_stream_no_info(&self.name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        match stream.delete_message(sequence).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                DeleteMessageErrorKind::JetStream(inner)
                    if [ErrorCode::NO_MESSAGE_FOUND, ErrorCode::SEQUENCE_NOT_FOUND].contains(&inner.error_code()) =>
                {
                    Ok(())
                }
                _ => Err(refused(what(), error)),
            },
        }
    }
}

impl Publisher {
    /// Puts a message on the dead-letter stream, its body as it came; without its body where the reason makes it larger
    /// than a message may be, for then the body can still be read on the inbound stream at `Turnwise-Sequence`.
    ///
    /// # Errors
    /// When JetStream did not confirm it.
    pub async fn dead(&self, letter: &DeadLetter<'_>) -> Result<(), PublishError> {
        let subject = self.lane_subject(Lane::Dead, letter.partition, &letter.message.lane);
        let mut headers = headers(&letter.message.message_id, letter.message.traceparent.as_deref());
        headers.insert(REASON_HEADER, one_line(letter.reason).as_str());
        headers.insert(ERROR_HEADER, one_line(letter.error).as_str());
        headers.insert(ATTEMPTS_HEADER, letter.attempts.to_string().as_str());
        headers.insert(SEQUENCE_HEADER, letter.message.sequence.to_string().as_str());
        match self.publish(subject.clone(), headers.clone(), letter.message.payload.clone()).await {
            Err(PublishError::TooLarge) => self.publish(subject, headers, Bytes::new()).await,
            published => published,
        }
        .map(|_| ())
    }

    /// The ids of the messages of one lane that have a letter on the dead-letter stream. Reads the lane's letters one by one.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn buried(&self, partition: u16, lane: &str) -> Result<HashSet<String>, StreamError> {
        let name = self.connection.names.stream(Lane::Dead);
        let what = || format!("read the stream {name}");
        let stream = self.connection.jetstream.get_stream_no_info(&name).await;
        let stream = stream.map_err(|error| refused(what(), error))?;
        let subject = self.lane_subject(Lane::Dead, partition, lane);
        let (mut buried, mut from) = (HashSet::new(), 1);
        loop {
            match stream.get_first_raw_message_by_subject(&subject, from).await {
                Ok(letter) => {
                    from = letter.sequence + 1;
                    let id = letter.headers.get(async_nats::header::NATS_MESSAGE_ID);
                    buried.extend(id.map(|id| id.as_str().to_owned()));
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(buried),
                Err(error) => return Err(refused(what(), error)),
            }
        }
    }

    /// Makes a letter's message a new one, the last of its conversation: the body as it came, but for the ids of the new message
    /// and its turn. A body that is no envelope comes exactly as it came. The letter stays where it is.
    ///
    /// # Errors
    /// When JetStream did not confirm it: it may lie on the stream, and redriving again is safe.
    pub async fn redrive(&self, letter: &Letter, body: &Bytes) -> Result<Published, PublishError> {
        let id = letter.redriven_id();
        let (turn_id, payload) = renewed(letter, &id, body).map_err(PublishError::Encode)?;
        let partition = letter.key().map_or(letter.message.partition, |key| self.partition(&key));
        let subject = self.lane_subject(Lane::Inbound, partition, &letter.message.lane);
        let mut headers = headers(&id, letter.message.traceparent.as_deref());
        if let Some(version) = letter.message.schema_version {
            headers.insert(SCHEMA_HEADER, version.to_string().as_str());
        }
        let (sequence, duplicate) = self.publish(subject, headers, payload).await?;
        Ok(Published { turn_id, sequence, duplicate })
    }

    fn lane_subject(&self, lane: Lane, partition: u16, tokens: &str) -> String {
        let filter = self.connection.names.partition_filter(lane, partition);
        format!("{}{tokens}", filter.trim_end_matches('>'))
    }
}

/// The body for the new message, and its turn's id. What this version does not know of it stays as it is.
fn renewed(letter: &Letter, id: &str, body: &Bytes) -> Result<(Uuid, Bytes), serde_json::Error> {
    let turn_id = renewed_turn_id(letter, id);
    let is_known = letter.message.schema_version.is_none_or(|version| version <= SCHEMA_VERSION);
    if !is_known || serde_json::from_slice::<Envelope>(body).is_err() {
        return Ok((turn_id, body.clone()));
    }
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body)?;
    for (field, value) in [("turn_id", turn_id.to_string()), ("dedupe_id", id.to_owned())] {
        fields.insert(field.to_owned(), serde_json::value::to_raw_value(&value)?);
    }
    Ok((turn_id, serde_json::to_vec(&fields)?.into()))
}

/// A `UUIDv7` of the time when the message was given up, and of the new message's id in place of chance.
fn renewed_turn_id(letter: &Letter, id: &str) -> Uuid {
    let digest = Sha256::digest(id.as_bytes());
    let mut tail = [0_u8; 10];
    tail.copy_from_slice(&digest[..10]);
    let millis = u64::try_from(letter.message.published_at.as_micros() / 1_000).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid()
}

/// Header values end at a line break, so an error of several lines becomes one.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_HEADER_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Timestamp;

    fn letter(schema_version: Option<u16>) -> Letter {
        let message = StreamMessage {
            partition: 3,
            lane: "telegram.support.user-31".into(),
            sequence: 7,
            message_id: "telegram:support:9".to_owned(),
            schema_version,
            traceparent: None,
            published_at: Timestamp::from_micros(1_800_000_000_000_000),
            delivered_at: Timestamp::from_micros(0),
            payload: Bytes::new(),
        };
        Letter { message, reason: String::new(), error: String::new(), attempts: 1, inbound_sequence: None }
    }

    const BODY: &str = r#"{"turn_id":"019a0000-0000-7000-8000-000000000001","key":{"channel":"telegram","bot":"support",
        "peer":"user-31"},"platform":"telegram","dedupe_id":"telegram:support:9","received_at":"2026-11-21T00:00:00Z",
        "event":{"type":"message","text":"hi"},"later":1.50,"raw":{"b": 1, "a":2.0}}"#;

    #[test]
    fn a_redriven_body_differs_in_its_ids_alone() {
        let letter = letter(Some(SCHEMA_VERSION));
        let (turn_id, payload) = renewed(&letter, &letter.redriven_id(), &BODY.into()).unwrap();
        let envelope: Envelope = serde_json::from_slice(&payload).unwrap();
        assert_eq!((envelope.turn_id, envelope.dedupe_id.as_str()), (turn_id, "telegram:support:9:redriven"));
        assert_eq!(turn_id.get_version_num(), 7);
        let text = std::str::from_utf8(&payload).unwrap();
        assert!(text.contains(r#""later":1.50"#) && text.contains(r#""raw":{"b": 1, "a":2.0}"#), "{text}");
        let again = renewed(&letter, &letter.redriven_id(), &BODY.into()).unwrap();
        assert_eq!(again, (turn_id, payload), "the same however often");
    }

    #[test]
    fn what_this_version_cannot_read_comes_as_it_came() {
        for (version, body) in [(Some(SCHEMA_VERSION + 1), BODY), (Some(SCHEMA_VERSION), "{}"), (None, "no json")] {
            let letter = letter(version);
            let (_, payload) = renewed(&letter, &letter.redriven_id(), &body.into()).unwrap();
            assert_eq!(payload, body, "{version:?}");
        }
    }
}
