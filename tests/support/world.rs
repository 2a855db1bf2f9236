//! A bot on Telegram with a model that calls tools: Turnwise, the stand-in for the model and its tools, and what a test of them
//! asks for again and again.
//!
//! Refuses to judge. Invariant: the tools are those that the model's rounds name, each served by the stand-in.

use std::collections::HashSet;

use super::PATIENCE;
use super::brain::Brain;
use super::process::{Configuration, quoted};
use super::responder::Behaviour;
use super::scenario::{BOT, Backend, Deployment, RESPONDER};
use super::telegram::Buttons;

pub(crate) const ANN: i64 = 7_001;
pub(crate) const BOB: i64 = 7_002;

pub(crate) struct World {
    pub(crate) deployment: Deployment,
    pub(crate) brain: Brain,
}

impl World {
    /// The model calls these tools; `lines` say more of each tool, `bot` of the bot.
    pub(crate) async fn start(
        backend: Backend,
        rounds: &[&[&'static str]],
        lines: &[(&str, &str)],
        bot: &[(&str, &str)],
    ) -> Self {
        Self::start_with(backend, rounds, |configuration| {
            for tool in rounds.iter().copied().flatten() {
                for (key, value) in lines {
                    configuration.set(&format!("tools.{tool}"), key, value);
                }
            }
            for (key, value) in bot {
                configuration.set(&format!("bots.{BOT}"), key, value);
            }
        })
        .await
    }

    /// The same; `adjust` may change the configuration before Turnwise reads it.
    pub(crate) async fn start_with(
        backend: Backend,
        rounds: &[&[&'static str]],
        adjust: impl FnOnce(&mut Configuration),
    ) -> Self {
        let brain = Brain::start(rounds).await;
        let deployment = Deployment::start(backend, Behaviour::default(), |configuration| {
            configuration.openai_responder(RESPONDER, &brain.base_url());
            let tools: HashSet<_> = rounds.iter().copied().flatten().map(|tool| quoted(tool)).collect();
            let tools: Vec<_> = tools.into_iter().collect();
            configuration.set(&format!("responders.{RESPONDER}"), "tools", &format!("[{}]", tools.join(", ")));
            for tool in rounds.iter().copied().flatten() {
                let table = format!("tools.{tool}");
                configuration
                    .set(&table, "kind", "\"http\"")
                    .set(&table, "url", &quoted(&brain.tool_url(tool)))
                    .set(&table, "description", &quoted(tool))
                    .set(&table, "parameters", "{ type = \"object\", properties = { about = { type = \"string\" } } }");
            }
            adjust(configuration);
        })
        .await;
        Self { deployment, brain }
    }

    /// What the model's last answer in such a conversation is.
    pub(crate) fn answer(user: &str, tools: &[&str]) -> String {
        let results: Vec<_> = tools.iter().map(|tool| format!("{tool} done")).collect();
        format!("{user}: {}", results.join(", "))
    }

    pub(crate) async fn question(&self, chat: i64) -> Buttons {
        let telegram = &self.deployment.telegram;
        telegram.wait("a question with buttons", PATIENCE, |log| log.buttons.iter().any(|b| b.chat == chat)).await;
        telegram.log(|log| log.buttons.iter().rfind(|buttons| buttons.chat == chat).cloned()).unwrap()
    }

    pub(crate) async fn texts(&self, chat: i64, count: usize) -> Vec<String> {
        self.deployment.telegram.wait_for_texts(chat, count, PATIENCE).await
    }

    /// What a tool was called about, in order.
    pub(crate) fn called_about(&self, tool: &str) -> Vec<String> {
        let about = |(_, arguments): (_, serde_json::Value)| arguments["about"].as_str().unwrap().to_owned();
        self.brain.calls_of(tool).into_iter().map(about).collect()
    }
}
