//! The deployment that the end-to-end tests run, and the promises that every load on it must keep, whatever was killed
//! meanwhile.
//!
//! Refuses to cause faults: the tests do. Invariant: each promise is checked by what users and operators see (chats, the
//! database, the audit), never by what Turnwise says of itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ledger::{Ledger, Message};
use super::nats::NatsServer;
use super::postgres::PostgresCluster;
use super::process::{CONSOLE_TOKEN, Configuration, Turnwise};
use super::responder::{self, Behaviour, Model};
use super::telegram::Telegram;
use super::{eventually, http_client};

/// The Telegram bot of the deployment.
pub(crate) const BOT: &str = "support";
pub(crate) const RESPONDER: &str = "assistant";

#[derive(Debug, Clone, Copy)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

/// One Turnwise with a Telegram bot and all that it needs. The fields end in this order, Turnwise first.
pub(crate) struct Deployment {
    pub(crate) turnwise: Turnwise,
    pub(crate) telegram: Telegram,
    pub(crate) model: Model,
    pub(crate) ledger: Ledger,
    pub(crate) nats: NatsServer,
    pub(crate) postgres: Option<PostgresCluster>,
    database_url: String,
    _directory: TempDir,
}

impl Deployment {
    /// Starts everything; `adjust` may change the configuration before Turnwise reads it.
    pub(crate) async fn start(backend: Backend, behaviour: Behaviour, adjust: impl FnOnce(&mut Configuration)) -> Self {
        Self::start_as(backend, behaviour, None, adjust).await
    }

    /// The same with these roles only.
    pub(crate) async fn start_as(
        backend: Backend,
        behaviour: Behaviour,
        roles: Option<&'static str>,
        adjust: impl FnOnce(&mut Configuration),
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let (database_url, postgres) = match backend {
            Backend::Sqlite => (format!("sqlite://{}", directory.path().join("turnwise.db").display()), None),
            Backend::Postgres => {
                let cluster = PostgresCluster::start().await;
                (cluster.create_database("turnwise").await, Some(cluster))
            }
        };
        let nats = NatsServer::start().await;
        let model = Model::start(behaviour).await;
        let mut configuration = Configuration::new(&nats, &database_url);
        let telegram = Telegram::start(configuration.url(&format!("/webhooks/telegram/{BOT}"))).await;
        configuration.openai_responder(RESPONDER, &model.base_url()).telegram_bot(BOT, RESPONDER, &telegram.base_url());
        adjust(&mut configuration);
        let turnwise = Turnwise::spawn_as(configuration, roles).await;
        let ledger = Ledger::open(&database_url);
        Self { turnwise, telegram, model, ledger, nats, postgres, database_url, _directory: directory }
    }

    pub(crate) fn database_url(&self) -> &str {
        &self.database_url
    }

    /// A person gives the newest conversation this status, and herself to it.
    pub(crate) async fn patch_status(&self, status: &str) {
        let (client, url) = (http_client(), self.turnwise.url("/v1/conversations"));
        let found = client.get(format!("{url}?limit=1")).bearer_auth(CONSOLE_TOKEN).send().await.unwrap();
        let found: Value = found.json().await.unwrap();
        let id = found["conversations"][0]["id"].as_str().unwrap_or_else(|| panic!("a conversation in {found}"));
        let patch = client.patch(format!("{url}/{id}")).bearer_auth(CONSOLE_TOKEN);
        let patched = patch.json(&json!({ "status": status, "assignee": "carol" })).send().await.unwrap();
        assert_eq!(patched.status(), StatusCode::OK);
    }

    /// Returns when the ledger holds a terminal state for so many messages and nothing is on its way out any more.
    pub(crate) async fn settled(&self, turns: usize, limit: Duration) {
        eventually(&format!("{turns} turns in the ledger and every delivery settled"), limit, async || {
            let (done, on_their_way) = self.ledger.progress().await;
            (done >= turns && on_their_way == 0).then_some(())
        })
        .await;
    }
}

impl Deployment {
    /// Returns when the ledger holds at least so many messages.
    pub(crate) async fn settled_at_least(&self, turns: usize, limit: Duration) {
        eventually(&format!("{turns} turns in the ledger"), limit, async || {
            (self.ledger.turn_count().await >= turns).then_some(())
        })
        .await;
    }
}

/// Messages 1 to `per_chat` of each of these chats.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) chats: Range<i64>,
    pub(crate) per_chat: u32,
}

impl Load {
    pub(crate) fn total(&self) -> usize {
        self.chats.clone().count() * self.per_chat as usize
    }

    /// Hands everything to Telegram at once, each chat in its order.
    pub(crate) fn send(&self, telegram: &Telegram) {
        self.send_chats(telegram, self.chats.clone());
    }

    /// The same for some of the chats.
    pub(crate) fn send_chats(&self, telegram: &Telegram, chats: Range<i64>) {
        for n in 1..=self.per_chat {
            for chat in chats.clone() {
                telegram.send(chat, &responder::message(chat, n));
            }
        }
    }

    /// Users see every answer, once, in the order of their messages, and nothing else.
    pub(crate) fn assert_answered_once_in_order(&self, telegram: &Telegram) {
        let seen = telegram.log(super::telegram::Log::texts_by_chat);
        let expected: BTreeMap<_, Vec<_>> = self
            .chats
            .clone()
            .map(|chat| (chat, (1..=self.per_chat).map(|n| responder::answer(chat, n)).collect()))
            .collect();
        assert_eq!(seen.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "chats that were answered");
        for (chat, texts) in expected {
            assert_eq!(seen[&chat], texts, "what chat {chat} sees");
        }
    }

    /// Users see each answer at most once and in order; each that they do not see is owned up to as `uncertain`.
    pub(crate) async fn assert_answered_or_uncertain(&self, telegram: &Telegram, ledger: &Ledger) {
        let deliveries = ledger.deliveries().await;
        assert_eq!(deliveries.len(), self.total(), "deliveries");
        let status: BTreeMap<_, _> =
            deliveries.iter().map(|delivery| (delivery.content.as_str(), delivery.status.as_str())).collect();
        let seen = telegram.log(super::telegram::Log::texts_by_chat);
        for chat in self.chats.clone() {
            let texts = seen.get(&chat).cloned().unwrap_or_default();
            let numbers: Vec<_> = texts.iter().map(|text| responder::parse(text).unwrap().1).collect();
            assert!(numbers.is_sorted_by(|left, right| left < right), "chat {chat} sees answers {numbers:?}");
            for n in 1..=self.per_chat {
                let answer = responder::answer(chat, n);
                match status[answer.as_str()] {
                    "sent" => assert!(numbers.contains(&n), "{answer:?} is `sent`, but nobody sees it"),
                    "uncertain" => {}
                    other => panic!("{answer:?} ended as `{other}`"),
                }
            }
        }
    }

    /// The database has one conversation per chat, in it each message once and each answer once, in order, and one
    /// ledger row per message.
    pub(crate) async fn assert_persisted_once_in_order(&self, ledger: &Ledger) {
        let states = BTreeMap::from([("answered".to_owned(), self.total())]);
        assert_eq!(ledger.turns_by_state().await, states, "the ledger");
        let histories = ledger.histories().await;
        assert_eq!(histories.len(), self.chats.clone().count(), "conversations with messages");
        assert_eq!(ledger.conversation_count().await, histories.len(), "conversations");
        for history in histories {
            let (chat, _) = responder::parse(&history[0].content).unwrap();
            assert_eq!(history, self.history(chat), "the history of chat {chat}");
        }
    }

    /// The model was asked about one message of a conversation at a time, first about the first, always with the whole
    /// conversation so far.
    pub(crate) fn assert_one_at_a_time_in_order(&self, model: &Model) {
        model.log(|log| {
            assert!(log.overlaps.is_empty(), "overlapping turns: {:?}", log.overlaps);
            let in_order: Vec<u32> = (1..=self.per_chat).collect();
            for (chat, numbers) in log.first_attempts() {
                assert_eq!(numbers, in_order, "the order in which turns of chat {chat} began");
            }
            assert_eq!(log.first_attempts().len(), self.chats.clone().count(), "conversations that the model saw");
            let broken = log.broken_histories();
            assert!(broken.is_empty(), "{} calls with a broken history, such as {:?}", broken.len(), broken.first());
        });
    }

    fn history(&self, chat: i64) -> Vec<Message> {
        let message = |role: &str, author: &str, content: String| Message {
            role: role.to_owned(),
            author: author.to_owned(),
            content,
            turn_state: Some("answered".to_owned()),
        };
        (1..=self.per_chat)
            .flat_map(|n| {
                [
                    message("user", "user", responder::message(chat, n)),
                    message("assistant", "bot", responder::answer(chat, n)),
                ]
            })
            .collect()
    }
}
