//! Taking away the buttons under a message, once none of them can do anything.
//!
//! Refuses to matter: a press of a button that was left is answered truthfully by the turn that it makes. Nothing waits for
//! the call, nothing of it is recorded.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::{self, Answer};
use crate::config::Bot;
use crate::message::Peer;
use crate::platform::Platforms;

/// A call that takes longer comes too late to be of use.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn take_away(platforms: &Arc<Platforms>, bot: &Bot, peer: &Peer, message_id: &str) {
    let Some(call) = channel::without_buttons(bot, peer, message_id) else { return };
    let (platforms, bot) = (Arc::clone(platforms), bot.clone());
    tokio::spawn(async move {
        let called = platforms.call(&bot, &call, CALL_TIMEOUT).await;
        if !matches!(called.answer, Answer::Sent { .. }) {
            tracing::debug!(bot = bot.name, status = called.status, "buttons may not have been taken away");
        }
    });
}
