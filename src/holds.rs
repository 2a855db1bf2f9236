//! Pausing and resuming: a durable word that turns of a conversation, a bot or a partition shall not begin, and how every worker
//! hears of it.
//!
//! Refuses to touch what runs, and messages: they wait in the stream. Invariants: the database is what counts, the notice over
//! core NATS only makes it quick; a worker knows what is held before it takes its first message.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::message::ConversationKey;
use crate::scheduler::holds::Holds;
use crate::store::{Hold, HoldScope, Store, StoreError};
use crate::stream::Connection;
use crate::telemetry::chain;

/// How often a worker looks whether a notice was lost.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What nobody can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownTarget {
    #[error("\"{0}\" is not a conversation: expected <channel>.<bot>.<peer>, such as telegram.support.user-31")]
    Conversation(String),
    #[error("no bot \"{0}\" is configured")]
    Bot(String),
    #[error("\"{target}\" is not a partition: expected a number below {partitions}")]
    Partition { target: String, partitions: u16 },
}

/// The name under which something is held, if there can be such a thing.
///
/// # Errors
/// See [`UnknownTarget`].
pub fn target<'b>(
    scope: HoldScope,
    target: &str,
    bots: impl IntoIterator<Item = &'b String>,
    partitions: u16,
) -> Result<String, UnknownTarget> {
    match scope {
        HoldScope::Conversation => {
            let key: Result<ConversationKey, _> = target.parse();
            key.map(|key| key.to_string()).map_err(|_| UnknownTarget::Conversation(target.to_owned()))
        }
        HoldScope::Bot => {
            let known = bots.into_iter().any(|bot| bot == target);
            if known { Ok(target.to_owned()) } else { Err(UnknownTarget::Bot(target.to_owned())) }
        }
        HoldScope::Partition => {
            let number = target.parse().ok().filter(|number: &u16| *number < partitions);
            let unknown = || UnknownTarget::Partition { target: target.to_owned(), partitions };
            number.map(|number| number.to_string()).ok_or_else(unknown)
        }
    }
}

/// Holds something from now on: turns that run end, none begins.
///
/// # Errors
/// When the database does not answer.
pub async fn pause(store: &Store, connection: &Connection, hold: &Hold) -> Result<(), StoreError> {
    store.put_hold(hold).await?;
    tell(connection).await;
    Ok(())
}

/// Lets it go on; false when it was not held.
///
/// # Errors
/// When the database does not answer.
pub async fn resume(
    store: &Store,
    connection: &Connection,
    scope: HoldScope,
    target: &str,
) -> Result<bool, StoreError> {
    let removed = store.remove_hold(scope, target).await?;
    tell(connection).await;
    Ok(removed)
}

/// What is held, as it changes, until `stop`.
///
/// # Errors
/// When the database does not say what is held at first.
pub async fn watch(
    store: Store,
    connection: Connection,
    stop: CancellationToken,
) -> Result<watch::Receiver<Arc<Holds>>, StoreError> {
    // Before the first look, so that nothing is missed in between.
    let notices = connection.client.subscribe(connection.names.holds_notice()).await;
    let mut notices = match notices {
        Ok(notices) => notices.boxed(),
        Err(error) => {
            tracing::warn!(error = %error, "pauses are heard of only every {LOOK_AGAIN:?}");
            futures_util::stream::pending().boxed()
        }
    };
    let (told, holds) = watch::channel(Arc::new(Holds::of(&store.holds().await?)));
    tokio::spawn(async move {
        let mut looks = tokio::time::interval(LOOK_AGAIN);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = notices.next() => {}
                _ = looks.tick() => {}
            }
            match store.holds().await {
                Ok(found) => {
                    let found = Arc::new(Holds::of(&found));
                    told.send_if_modified(|held| {
                        let is_news = *held != found;
                        *held = found;
                        is_news
                    });
                }
                Err(error) => tracing::warn!(error = %chain(&error), "what is held stays as it was"),
            }
        }
    });
    Ok(holds)
}

async fn tell(connection: &Connection) {
    let told = connection.client.publish(connection.names.holds_notice(), Bytes::new()).await;
    // A command ends right after this.
    let flushed = connection.client.flush().await;
    if told.is_err() || flushed.is_err() {
        tracing::debug!("workers find out by themselves");
    }
}
