//! Judges a run: what users sent, what the database holds, what users saw and how the model was called are held against
//! one another, and every broken promise is named.
//!
//! Messages name themselves (`chat=<id> n=<k>`), and answers name the model call they came from (`re: chat=<id> n=<k>
//! call=<c>`), so that nothing has to be believed. Refuses Turnwise's own word: its part is read as plain rows. Invariant:
//! the judgement is a pure function of the [`Evidence`], which is why it can be tried on doctored evidence.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::{Connection, PgConnection, Row};
use tokio::time::Instant;

use super::responder::{Call, is_whole};
use super::telegram;

/// Findings of each kind that are listed; the counts are exact.
const LISTED: usize = 5;

/// What is broken. Nothing of this may ever happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A message that was taken is not in the history, not in the ledger, or not answered there; an answer without a
    /// delivery; a delivery that ended neither `sent` nor `uncertain`; a `sent` one that nobody sees.
    Lost,
    /// A message or an answer twice in the history, a message twice in the ledger, an answer that users see twice, a chat
    /// in two conversations.
    Doubled,
    /// A history that is not message 1, answer 1, message 2, answer 2, ...
    HistoryOrder,
    /// Users see an answer after one to a later message. Allowed only for a delivery that is owned up to as `uncertain`:
    /// its call was on its way when its process was paused or cut off, and nobody can call it back.
    SeenOrder,
    /// Two calls of one chat in flight at once, the answers of BOTH of which entered the history.
    ///
    /// A call is in flight from its arrival at the model until its answer is made or its caller is found gone. The dead
    /// call of a killed or paused process may overlap with its successor's: then at most one of the two has an effect.
    Overlap,
    /// A call whose answer entered the history was not given the messages right before the one it was about: the turn was
    /// begun before an earlier one was durable, or something of the history was lost, doubled or swapped. A call without
    /// an effect is only counted: one that is begun when another process has just committed the same turn sees that turn.
    Context,
    /// Users see an answer that no history holds: it left before it was durable, or from a turn that had no effect.
    Unfounded,
    /// `turnwise audit` did not exit with 0.
    Audit,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Lost,
        Self::Doubled,
        Self::HistoryOrder,
        Self::SeenOrder,
        Self::Overlap,
        Self::Context,
        Self::Unfounded,
        Self::Audit,
    ];
}

/// A row of the table of messages, in the order of its conversation's history.
#[derive(Debug, Clone)]
pub(crate) struct HistoryRow {
    pub(crate) conversation: String,
    pub(crate) role: String,
    pub(crate) content: String,
}

/// A row of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct LedgerRow {
    pub(crate) peer: String,
    pub(crate) state: String,
}

#[derive(Debug, Clone)]
pub(crate) struct DeliveryRow {
    pub(crate) content: String,
    pub(crate) status: String,
    pub(crate) error: Option<String>,
}

/// Everything that is judged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Evidence {
    /// How many messages of each chat were taken with a 2xx: numbers 1 to this.
    pub(crate) taken: BTreeMap<i64, u32>,
    pub(crate) history: Vec<HistoryRow>,
    pub(crate) ledger: Vec<LedgerRow>,
    pub(crate) deliveries: Vec<DeliveryRow>,
    /// Chat and text of what users see, in order.
    pub(crate) seen: Vec<(i64, String)>,
    pub(crate) calls: Vec<Call>,
    pub(crate) audit_exit_code: Option<i32>,
}

impl Evidence {
    /// Reads Turnwise's tables in one database.
    pub(crate) async fn read_tables(&mut self, url: &str) {
        let mut database = PgConnection::connect(url).await.unwrap();
        let rows = sqlx::query(
            "SELECT CAST(conversation_id AS TEXT), role, content FROM messages ORDER BY conversation_id, ordinal",
        );
        let rows = rows.fetch_all(&mut database).await.unwrap();
        let history = |row: &sqlx::postgres::PgRow| HistoryRow {
            conversation: row.get(0),
            role: row.get(1),
            content: row.get(2),
        };
        self.history = rows.iter().map(history).collect();
        let rows = sqlx::query("SELECT peer, state FROM turns").fetch_all(&mut database).await.unwrap();
        self.ledger = rows.iter().map(|row| LedgerRow { peer: row.get(0), state: row.get(1) }).collect();
        let rows = sqlx::query("SELECT content, status, error FROM deliveries").fetch_all(&mut database).await.unwrap();
        let delivery =
            |row: &sqlx::postgres::PgRow| DeliveryRow { content: row.get(0), status: row.get(1), error: row.get(2) };
        self.deliveries = rows.iter().map(delivery).collect();
        database.close().await.unwrap();
    }

    pub(crate) fn read_telegram(&mut self, log: &telegram::Log) {
        self.seen = log.delivered.iter().map(|sent| (sent.chat, sent.text.clone())).collect();
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) counts: BTreeMap<Kind, usize>,
    /// The first few of each kind.
    pub(crate) examples: Vec<(Kind, String)>,
    /// Deliveries that ended as `uncertain`; allowed, but counted.
    pub(crate) uncertain: usize,
    /// Their errors.
    pub(crate) uncertain_because: BTreeMap<String, usize>,
    /// Of those, the ones that users do not see.
    pub(crate) uncertain_unseen: usize,
    /// Of those, the ones that users see after the answer to a later message.
    pub(crate) uncertain_late: usize,
    /// Overlapping calls of one chat of which at most one had an effect: those of killed and paused processes.
    pub(crate) overlaps_without_effect: usize,
    /// Calls with another history than the messages right before theirs that had no effect.
    pub(crate) contexts_without_effect: usize,
    pub(crate) messages: usize,
    pub(crate) answers_seen: usize,
    pub(crate) model_calls: usize,
}

impl Judgement {
    pub(crate) fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![format!(
            "judged: {} messages, {} calls of the model, {} answers seen",
            self.messages, self.model_calls, self.answers_seen
        )];
        lines.extend(Kind::ALL.map(|kind| format!("  {:<26} {}", format!("{kind:?}"), self.count(kind))));
        lines.extend([
            format!("  {:<26} {}", "uncertain (allowed)", self.uncertain),
            format!("  {:<26} {}", "  of them not seen", self.uncertain_unseen),
            format!("  {:<26} {}", "  of them seen late", self.uncertain_late),
            format!("  {:<26} {}", "dead overlaps (allowed)", self.overlaps_without_effect),
            format!("  {:<26} {}", "dead contexts (allowed)", self.contexts_without_effect),
        ]);
        lines.extend(self.uncertain_because.iter().map(|(error, count)| format!("    {count} because: {error}")));
        lines.extend(self.examples.iter().map(|(kind, example)| format!("  {kind:?}: {example}")));
        lines.join("\n")
    }

    fn find(&mut self, kind: Kind, example: impl FnOnce() -> String) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= LISTED {
            self.examples.push((kind, example()));
        }
    }
}

/// What an answer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    chat: i64,
    n: u32,
    call: usize,
}

fn answer(text: &str) -> Option<Answer> {
    let (message, call) = text.strip_prefix("re: ")?.split_once(" call=")?;
    let (chat, n) = super::responder::parse(message)?;
    Some(Answer { chat, n, call: call.parse().ok()? })
}

/// The judgement.
pub(crate) fn judge(evidence: &Evidence) -> Judgement {
    let mut judgement = Judgement {
        messages: evidence.taken.values().map(|count| *count as usize).sum(),
        answers_seen: evidence.seen.len(),
        model_calls: evidence.calls.len(),
        ..Judgement::default()
    };
    let effective = judge_history(&mut judgement, evidence);
    judge_ledger(&mut judgement, evidence);
    judge_seen(&mut judgement, evidence);
    judge_calls(&mut judgement, &evidence.calls, &effective);
    if evidence.audit_exit_code != Some(0) {
        judgement.find(Kind::Audit, || format!("exit code {:?}", evidence.audit_exit_code));
    }
    judgement
}

/// Returns the calls whose answers are in the history.
fn judge_history(judgement: &mut Judgement, evidence: &Evidence) -> HashSet<usize> {
    let mut conversations: BTreeMap<&str, Vec<&HistoryRow>> = BTreeMap::new();
    for row in &evidence.history {
        conversations.entry(&row.conversation).or_default().push(row);
    }
    let mut effective = HashSet::new();
    let mut chats: HashMap<i64, &str> = HashMap::new();
    let mut entries: HashMap<(i64, u32, bool), usize> = HashMap::new();
    for (conversation, rows) in conversations {
        let mut numbers = Vec::new();
        for row in rows {
            let answered = answer(&row.content);
            effective.extend(answered.map(|answer| answer.call));
            let named =
                answered.map(|answer| (answer.chat, answer.n)).or_else(|| super::responder::parse(&row.content));
            let Some((chat, n)) = named.filter(|_| answered.is_some() == (row.role == "assistant")) else {
                judgement.find(Kind::Unfounded, || format!("{} {:?} in a history", row.role, row.content));
                continue;
            };
            if *chats.entry(chat).or_insert(conversation) != conversation {
                judgement.find(Kind::Doubled, || format!("chat {chat} is in two conversations at {n}"));
            }
            *entries.entry((chat, n, answered.is_some())).or_default() += 1;
            numbers.push((n, answered.is_some()));
        }
        if !numbers.is_sorted() {
            judgement.find(Kind::HistoryOrder, || format!("conversation {conversation}: {numbers:?}"));
        }
    }
    for (&chat, &count) in &evidence.taken {
        for (n, answered) in (1..=count).flat_map(|n| [(n, false), (n, true)]) {
            let what = if answered { "answer" } else { "message" };
            match entries.remove(&(chat, n, answered)).unwrap_or(0) {
                0 => judgement.find(Kind::Lost, || format!("{what} {n} of chat {chat} is not in the history")),
                1 => {}
                times => judgement.find(Kind::Doubled, || format!("{what} {n} of chat {chat} is {times} times there")),
            }
        }
    }
    for (chat, n, _) in entries.into_keys() {
        judgement.find(Kind::Unfounded, || format!("message {n} of chat {chat} was never sent"));
    }
    effective
}

fn judge_ledger(judgement: &mut Judgement, evidence: &Evidence) {
    let mut rows: HashMap<&str, u32> = HashMap::new();
    for row in &evidence.ledger {
        *rows.entry(&row.peer).or_default() += 1;
        if row.state != "answered" {
            judgement.find(Kind::Lost, || format!("a message of {} ended as `{}`", row.peer, row.state));
        }
    }
    for (chat, &taken) in &evidence.taken {
        let rows = rows.get(format!("user-{chat}").as_str()).copied().unwrap_or(0);
        if rows < taken {
            judgement.find(Kind::Lost, || format!("chat {chat}: {rows} rows in the ledger for {taken} messages"));
        }
        if rows > taken {
            judgement.find(Kind::Doubled, || format!("chat {chat}: {rows} rows in the ledger for {taken} messages"));
        }
    }
}

fn judge_seen(judgement: &mut Judgement, evidence: &Evidence) {
    let status: HashMap<&str, &str> =
        evidence.deliveries.iter().map(|row| (row.content.as_str(), row.status.as_str())).collect();
    if status.len() < evidence.deliveries.len() {
        judgement.find(Kind::Doubled, || "an answer has two deliveries".to_owned());
    }
    for row in evidence.deliveries.iter().filter(|row| row.status == "uncertain") {
        let error = row.error.clone().unwrap_or_default();
        *judgement.uncertain_because.entry(error).or_default() += 1;
    }
    let history: HashSet<&str> = evidence.history.iter().map(|row| row.content.as_str()).collect();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut numbers: HashSet<(i64, u32)> = HashSet::new();
    let mut latest: HashMap<i64, u32> = HashMap::new();
    for (chat, text) in &evidence.seen {
        let named = answer(text).filter(|answer| answer.chat == *chat && history.contains(text.as_str()));
        let Some(Answer { n, .. }) = named else {
            judgement.find(Kind::Unfounded, || format!("chat {chat} sees {text:?}, which no history holds"));
            continue;
        };
        seen.insert(text);
        if !numbers.insert((*chat, n)) {
            judgement.find(Kind::Doubled, || format!("chat {chat} sees answer {n} again"));
            continue;
        }
        let latest = latest.entry(*chat).or_default();
        if n > *latest {
            *latest = n;
        } else if status.get(text.as_str()) == Some(&"uncertain") {
            judgement.uncertain_late += 1;
        } else {
            let after = *latest;
            judgement.find(Kind::SeenOrder, || format!("chat {chat} sees answer {n} after answer {after}"));
        }
    }
    for row in evidence.history.iter().filter(|row| row.role == "assistant") {
        let text = row.content.as_str();
        match status.get(text) {
            Some(&"sent") if seen.contains(text) => {}
            Some(&"sent") => judgement.find(Kind::Lost, || format!("{text:?} is `sent`, but nobody sees it")),
            Some(&"uncertain") => {
                judgement.uncertain += 1;
                judgement.uncertain_unseen += usize::from(!seen.contains(text));
            }
            Some(other) => judgement.find(Kind::Lost, || format!("the delivery of {text:?} ended as `{other}`")),
            None => judgement.find(Kind::Lost, || format!("{text:?} has no delivery")),
        }
    }
}

fn judge_calls(judgement: &mut Judgement, calls: &[Call], effective: &HashSet<usize>) {
    let mut chats: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (place, call) in calls.iter().enumerate() {
        if let Some((chat, _)) = super::responder::parse(&call.message) {
            chats.entry(chat).or_default().push(place);
        }
        if !is_whole(call) && effective.contains(&place) {
            judgement.find(Kind::Context, || format!("call {place} {:?} with {:?}", call.message, call.history));
        } else if !is_whole(call) {
            judgement.contexts_without_effect += 1;
        }
    }
    for (chat, mut places) in chats {
        places.sort_by_key(|&place| calls[place].began_at);
        let mut running: BTreeSet<usize> = BTreeSet::new();
        for place in places {
            let call = &calls[place];
            running.retain(|&other| ended_after(&calls[other], call.began_at));
            for &other in &running {
                if effective.contains(&place) && effective.contains(&other) {
                    judgement.find(Kind::Overlap, || {
                        format!("chat {chat}: {:?} and {:?}, both answers count", calls[other].message, call.message)
                    });
                } else {
                    judgement.overlaps_without_effect += 1;
                }
            }
            running.insert(place);
        }
    }
}

fn ended_after(call: &Call, at: Instant) -> bool {
    call.ended_at.is_none_or(|ended_at| ended_at > at)
}
