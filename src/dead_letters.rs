//! Messages that were given up, and what an operator makes of them: a list, a closer look, another try, or nothing.
//!
//! Refuses to judge: which letters, and whether, is the operator's. Invariants: a letter leaves its stream only after the
//! database knows by whom and why, and a redriven one only after its new message was acknowledged; within a conversation
//! letters come again in stream order, and none overtakes one that could not be published. A crash in between leaves letters
//! that are redriven again, to no effect but their removal.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use crate::message::{ConversationKey, Timestamp};
use crate::store::{Committed, OperatorAction, OperatorVerb, Store, StoreError};
use crate::stream::{Letter, LetterFilter, PublishError, Publisher, StreamError, StreamHandle};
use crate::telemetry::chain;

pub use jobs::STOPPED_AFTER;
use pages::Pages;
use records::LISTED;
pub use records::{Detail, Entry, Group, List, Place, Plan, Redriven, Report, Summary};

mod jobs;
mod pages;
mod records;

/// Conversations, or letters to be removed, that are worked on at once.
const AT_ONCE: usize = 32;

/// The deployment's dead letters.
#[derive(Debug)]
pub struct DeadLetters {
    pub dead: StreamHandle,
    pub inbound: StreamHandle,
    pub publisher: Publisher,
    pub store: Store,
    /// Who works on them, as far as can be told.
    pub actor: Option<String>,
}

/// Which letters are meant.
#[derive(Debug, Clone)]
pub enum Selection {
    Ids(BTreeSet<u64>),
    Matching(LetterFilter),
}

/// Why the work on dead letters stopped. What was done before stays done, and doing it again does no harm.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error("the streams did not answer")]
    Stream(#[from] StreamError),
    #[error("the database did not answer")]
    Store(#[from] StoreError),
}

/// What became of a letter that was to be redriven.
enum Outcome {
    Redriven(Uuid),
    AlreadyRedriven(Uuid),
    /// It can never be: its body is gone.
    BodyGone,
    Unpublished(PublishError),
    /// One before it could not be published.
    Left,
}

impl DeadLetters {
    /// The newest `limit` letters that match.
    ///
    /// # Errors
    /// See [`DeadLetterError`].
    pub async fn list(&self, filter: &LetterFilter, limit: usize) -> Result<List, DeadLetterError> {
        let selection = Selection::Matching(filter.clone());
        let mut newest = VecDeque::new();
        let mut matching = 0;
        let mut pages = self.pages(&selection, self.last().await?);
        while let Some(letters) = pages.next().await? {
            matching += letters.len() as u64;
            newest.extend(letters);
            newest.drain(..newest.len().saturating_sub(limit));
        }
        Ok(List { matching, dead_letters: newest.iter().map(Summary::of).collect() })
    }

    /// The letters that match, by reason and bot, the most first. Their headers alone are read, all of them.
    ///
    /// # Errors
    /// See [`DeadLetterError`].
    pub async fn groups(&self, filter: &LetterFilter) -> Result<Vec<Group>, DeadLetterError> {
        let selection = Selection::Matching(filter.clone());
        let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
        let mut pages = self.pages(&selection, self.last().await?);
        while let Some(letters) = pages.next().await? {
            for summary in letters.iter().map(Summary::of) {
                let key = (summary.reason.clone(), summary.bot.clone());
                groups.entry(key).and_modify(|group| group.count(&summary)).or_insert_with(|| Group::of(summary));
            }
        }
        let mut groups: Vec<Group> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.dead_letters));
        Ok(groups)
    }

    /// Everything about one letter; `None` when there is none of this id.
    ///
    /// # Errors
    /// See [`DeadLetterError`].
    pub async fn show(&self, id: u64) -> Result<Option<Detail>, DeadLetterError> {
        let Some(letter) = self.dead.letter(id).await? else { return Ok(None) };
        let ids = [letter.message.message_id.clone(), letter.redriven_id()];
        let settled = self.store.settled(&ids).await?;
        let of = |id: &String| settled.iter().find(|committed| committed.dedupe_id() == id);
        let (mut turn, mut record) = (None, None);
        if let Some(committed) = of(&ids[0]) {
            turn = self.store.turn(committed.turn_id()).await?;
            record = self.store.turn_record(committed.turn_id()).await?;
        }
        let redriven = of(&ids[1]).map(|committed| Redriven { turn_id: committed.turn_id(), state: committed.state() });
        let body = self.body(&letter).await?;
        Ok(Some(Detail {
            summary: Summary::of(&letter),
            error: letter.error,
            traceparent: letter.message.traceparent,
            inbound_sequence: letter.inbound_sequence,
            turn,
            record,
            redriven,
            payload: body.map(|body| {
                serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into())
            }),
        }))
    }

    /// What a selection comes to; with `until`, without the letters behind that place of an earlier plan. Changes nothing.
    ///
    /// # Errors
    /// See [`DeadLetterError`].
    pub async fn plan(&self, selection: &Selection, until: Option<u64>) -> Result<Plan, DeadLetterError> {
        let last = self.last().await?;
        let mut plan = Plan { until: until.map_or(last, |until| until.min(last)), ..Plan::default() };
        let mut lanes: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        let mut found = BTreeSet::new();
        let mut pages = self.pages(selection, plan.until);
        while let Some(letters) = pages.next().await? {
            plan.dead_letters += letters.len() as u64;
            for letter in letters {
                if matches!(selection, Selection::Ids(_)) {
                    found.insert(letter.id());
                }
                *lanes.entry(letter.message.lane).or_default() += 1;
            }
        }
        if let Selection::Ids(ids) = selection {
            plan.missing = ids.difference(&found).copied().collect();
        }
        plan.conversations = lanes.len() as u64;
        for (lane, dead_letters) in lanes.into_iter().take(LISTED) {
            plan.listed.push(self.place(&lane, dead_letters).await?);
        }
        Ok(plan)
    }

    /// Makes the letters' messages new ones, each the last of its conversation, and then takes the letters away. `progress`
    /// hears how many of all were looked at.
    ///
    /// # Errors
    /// See [`DeadLetterError`].
    pub async fn redrive(
        &self,
        selection: &Selection,
        plan: &Plan,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Report, DeadLetterError> {
        let mut report = Report::default();
        let mut pages = self.pages(selection, plan.until);
        let mut seen = 0;
        while let Some(letters) = pages.next().await? {
            seen += letters.len() as u64;
            let is_taken = self.redrive_page(letters, &mut report).await?;
            if !is_taken {
                report.left += plan.dead_letters.saturating_sub(seen);
                return Ok(report);
            }
            progress(seen, plan.dead_letters);
        }
        Ok(report)
    }

    /// Takes the letters away, the reason recorded. `progress` as in [`DeadLetters::redrive`].
    ///
    /// # Errors
    /// See [`DeadLetterError`].
    pub async fn discard(
        &self,
        selection: &Selection,
        plan: &Plan,
        reason: &str,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Report, DeadLetterError> {
        let mut report = Report::default();
        let mut pages = self.pages(selection, plan.until);
        while let Some(letters) = pages.next().await? {
            self.take_away(&letters, OperatorVerb::DiscardDeadLetter, Some(reason)).await?;
            for letter in &letters {
                tracing::info!(
                    id = letter.id(),
                    message_id = letter.message.message_id,
                    reason,
                    "dead letter discarded"
                );
                report.discarded += 1;
                report.note(letter, "discarded", None, None);
            }
            progress(report.discarded, plan.dead_letters);
        }
        Ok(report)
    }

    /// False when the stream did not take all.
    async fn redrive_page(&self, letters: Vec<Letter>, report: &mut Report) -> Result<bool, DeadLetterError> {
        let ids: Vec<String> = letters.iter().map(Letter::redriven_id).collect();
        let known = self.store.settled(&ids).await?;
        let known: HashMap<&str, &Committed> =
            known.iter().map(|committed| (committed.dedupe_id(), committed)).collect();
        let mut lanes: BTreeMap<Arc<str>, Vec<Letter>> = BTreeMap::new();
        for letter in letters {
            lanes.entry(Arc::clone(&letter.message.lane)).or_default().push(letter);
        }
        let lanes = stream::iter(lanes.into_values().map(|letters| self.redrive_lane(letters, &known)));
        let mut ended: Vec<(Letter, Outcome)> =
            lanes.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?.into_iter().flatten().collect();
        ended.sort_by_key(|(letter, _)| letter.id());
        let done = ended.iter().filter(|(_, outcome)| outcome.is_done()).map(|(letter, _)| letter.clone());
        self.take_away(&done.collect::<Vec<_>>(), OperatorVerb::RedriveDeadLetter, None).await?;
        let is_taken = !ended.iter().any(|(_, outcome)| matches!(outcome, Outcome::Unpublished(_)));
        for (letter, outcome) in &ended {
            report.add(letter, outcome);
        }
        Ok(is_taken)
    }

    /// Publishes the letters of one conversation, each after the one before was acknowledged.
    async fn redrive_lane(
        &self,
        letters: Vec<Letter>,
        known: &HashMap<&str, &Committed>,
    ) -> Result<Vec<(Letter, Outcome)>, DeadLetterError> {
        let mut ended = Vec::with_capacity(letters.len());
        let mut is_stopped = false;
        for letter in letters {
            let outcome = match known.get(letter.redriven_id().as_str()) {
                _ if is_stopped => Outcome::Left,
                Some(committed) => Outcome::AlreadyRedriven(committed.turn_id()),
                None => self.redrive_one(&letter).await?,
            };
            is_stopped |= matches!(outcome, Outcome::Unpublished(_));
            ended.push((letter, outcome));
        }
        Ok(ended)
    }

    async fn redrive_one(&self, letter: &Letter) -> Result<Outcome, DeadLetterError> {
        // Pages have no bodies, so that a page of large messages does not fill the memory.
        let whole = self.dead.letter(letter.id()).await?;
        let body = match &whole {
            Some(whole) => self.body(whole).await?,
            None => None,
        };
        let Some(body) = body else { return Ok(Outcome::BodyGone) };
        Ok(match self.publisher.redrive(letter, &body).await {
            Ok(published) if published.duplicate() => Outcome::AlreadyRedriven(published.turn_id()),
            Ok(published) => Outcome::Redriven(published.turn_id()),
            Err(error) => Outcome::Unpublished(error),
        })
    }

    /// The message that was given up, wherever it still lies.
    async fn body(&self, letter: &Letter) -> Result<Option<Bytes>, StreamError> {
        match letter.message.payload.is_empty() {
            false => Ok(Some(letter.message.payload.clone())),
            true => self.inbound.body_of(letter).await,
        }
    }

    /// Records what is done to the letters, then removes them.
    async fn take_away(
        &self,
        letters: &[Letter],
        verb: OperatorVerb,
        reason: Option<&str>,
    ) -> Result<(), DeadLetterError> {
        let action = |letter: &Letter| OperatorAction {
            verb,
            target: letter.message.message_id.clone(),
            actor: self.actor.clone(),
            reason: reason.map(str::to_owned),
            at: Timestamp::now(),
        };
        let recorded = self.store.record_operator_actions(&letters.iter().map(action).collect::<Vec<_>>()).await?;
        let removals =
            letters.iter().zip(&recorded).map(|(letter, recorded)| self.dead.remove_letter(letter, recorded));
        stream::iter(removals).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(())
    }

    async fn place(&self, lane: &str, dead_letters: u64) -> Result<Place, DeadLetterError> {
        let key: Option<ConversationKey> = lane.parse().ok();
        let mut place = Place {
            conversation: lane.to_owned(),
            bot: key.as_ref().map(|key| Arc::clone(&key.bot)),
            dead_letters,
            messages_before: 0,
            last_message_at: None,
        };
        if let Some(key) = key
            && let Some(conversation) = self.store.load_turn(&key, "").await?.conversation
        {
            place.messages_before = conversation.message_count;
            place.last_message_at = conversation.last_message_at;
        }
        Ok(place)
    }

    async fn last(&self) -> Result<u64, StreamError> {
        Ok(self.dead.info().await?.state.last_sequence)
    }

    const fn pages<'a>(&'a self, selection: &'a Selection, until: u64) -> Pages<'a> {
        Pages { dead: &self.dead, selection, after: 0, until }
    }
}

impl Report {
    fn add(&mut self, letter: &Letter, outcome: &Outcome) {
        let (count, word, turn_id, error) = match outcome {
            Outcome::Redriven(turn_id) => (&mut self.redriven, "redriven", Some(*turn_id), None),
            Outcome::AlreadyRedriven(turn_id) => (&mut self.already_redriven, "already_redriven", Some(*turn_id), None),
            Outcome::BodyGone => {
                (&mut self.failed, "failed", None, Some("its message lies on no stream any more".to_owned()))
            }
            Outcome::Unpublished(error) => (&mut self.failed, "failed", None, Some(chain(error))),
            Outcome::Left => (&mut self.left, "left", None, None),
        };
        *count += 1;
        self.note(letter, word, turn_id, error);
    }
}

impl Outcome {
    /// Whether the letter has nothing left to do.
    const fn is_done(&self) -> bool {
        matches!(self, Self::Redriven(_) | Self::AlreadyRedriven(_))
    }
}
