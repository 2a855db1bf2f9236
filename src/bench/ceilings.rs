//! What the parts below could do alone, on the same servers and in the same run: the figures that a load's are divided by.
//!
//! Refuses to touch the deployment's own streams and tables: it makes a stream and a database of its own beside them and
//! removes both. Invariant: every measurement is bounded by [`SPAN`], whatever the servers can do, and is the median of
//! [`ROUNDS`], because whoever else uses the machine shows in single ones.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::AckPolicy;
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config as StreamConfig, StorageType, Stream};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::config::{Config, Database};
use crate::message::{
    Author, Channel, ConversationKey, Form, OutboundPart, Peer, Platform, Role, TerminalState, Timestamp,
};
use crate::store::{CommitOutcome, NewConversation, NewMessage, Ownership, Position, Store, TurnCommit, TurnTimings};
use crate::stream::Connection;
use crate::telemetry::chain;

/// Nothing branches on these errors: a ceiling is measured or it is not.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How long each round of each ceiling lasts.
const SPAN: Duration = Duration::from_secs(2);

const ROUNDS: usize = 3;

/// A consumer's first message has come within this time, or there is none.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// Publishes on their way at once; the throughput is flat from 1,000 on.
const WINDOW: usize = 1_000;

/// An envelope of a short message with the platform's own update in it.
const PAYLOAD_BYTES: usize = 900;

/// Commits asked for at once, each of another conversation.
const COMMITTERS: usize = 256;

/// Operations per second; `None` where it could not be measured.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Ceilings {
    /// JetStream publishes with acknowledgement, 1,000 on their way.
    pub publish: Option<f64>,
    /// The same, one at a time.
    pub publish_one_by_one: Option<f64>,
    /// Messages taken from one pull consumer and acknowledged.
    pub consume: Option<f64>,
    /// Turns committed through the store by 256 callers.
    pub commit: Option<f64>,
}

/// Measures all of them; a ceiling that cannot be measured is left out, with a warning.
pub(super) async fn measure(config: &Config, connection: Option<&Connection>) -> Ceilings {
    let mut ceilings = Ceilings::default();
    if let Some(connection) = connection
        && let Err(error) = measure_stream(config, connection, &mut ceilings).await
    {
        tracing::warn!(error = chain(error.as_ref()), "the ceilings of the stream are not measured");
    }
    match measure_commits(&config.database).await {
        Ok(rate) => ceilings.commit = Some(rate),
        Err(error) => tracing::warn!(error = chain(error.as_ref()), "the ceiling of commits is not measured"),
    }
    ceilings
}

async fn measure_stream(config: &Config, connection: &Connection, ceilings: &mut Ceilings) -> Result<(), Cause> {
    let name = format!("{}_bench", config.namespace);
    let subject = format!("{}.bench.0.telegram.bench.user-1", config.namespace);
    let jetstream = &connection.jetstream;
    let stream_config = StreamConfig {
        name: name.clone(),
        subjects: vec![subject.clone()],
        storage: StorageType::File,
        duplicate_window: config.nats.duplicate_window,
        num_replicas: config.nats.replicas,
        max_age: config.nats.max_age,
        allow_direct: true,
        ..StreamConfig::default()
    };
    // Left behind by a run that was killed.
    let _ = jetstream.delete_stream(&name).await;
    let stream = jetstream.create_stream(stream_config).await?;
    let measured = async {
        ceilings.publish_one_by_one = Some(median(async || publish(connection, &subject, 1).await).await?);
        ceilings.publish = Some(median(async || publish(connection, &subject, WINDOW).await).await?);
        ceilings.consume = Some(median(async || consume(&stream).await).await?);
        Ok(())
    }
    .await;
    jetstream.delete_stream(&name).await?;
    measured
}

/// The middle one of [`ROUNDS`] measurements.
async fn median(mut measure: impl AsyncFnMut() -> Result<f64, Cause>) -> Result<f64, Cause> {
    let mut rates = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        rates.push(measure().await?);
    }
    rates.sort_unstable_by(f64::total_cmp);
    Ok(rates[ROUNDS / 2])
}

async fn publish(connection: &Connection, subject: &str, window: usize) -> Result<f64, Cause> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
    let started = Instant::now();
    let one = |_| {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, Uuid::now_v7().to_string().as_str());
        let message = PublishMessage::build().headers(headers).payload(payload.clone());
        async { connection.jetstream.send_publish(subject.to_owned(), message).await?.await }
    };
    let mut acknowledged = 0_u32;
    // What is on its way when the time is over is waited for, and its time counts.
    let under_way = stream::iter(0..).take_until(tokio::time::sleep(SPAN)).map(one).buffer_unordered(window);
    let mut under_way = std::pin::pin!(under_way);
    while let Some(outcome) = under_way.next().await {
        outcome?;
        acknowledged += 1;
    }
    Ok(f64::from(acknowledged) / started.elapsed().as_secs_f64())
}

/// Takes the stream from its beginning; the time runs from the first message.
async fn consume(stream: &Stream) -> Result<f64, Cause> {
    const NAME: &str = "bench";
    let pull = PullConfig {
        durable_name: Some(NAME.to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 10_000,
        ..PullConfig::default()
    };
    let consumer = stream.create_consumer(pull).await?;
    let mut messages = consumer.stream().max_messages_per_batch(WINDOW).messages().await?;
    let mut next = tokio::time::timeout(FIRST_MESSAGE, messages.next()).await?;
    let started = Instant::now();
    let mut taken = 0_u32;
    while let Some(message) = next {
        let message = message?;
        message.ack().await?;
        taken += 1;
        if message.info()?.pending == 0 || started.elapsed() > SPAN {
            break;
        }
        next = messages.next().await;
    }
    let rate = f64::from(taken) / started.elapsed().as_secs_f64();
    drop(messages);
    stream.delete_consumer(NAME).await?;
    Ok(rate)
}

async fn measure_commits(database: &Database) -> Result<f64, Cause> {
    let scratch = Scratch::create(database).await?;
    let measured = measure_store(&scratch.url, database.max_connections).await;
    scratch.remove().await?;
    measured
}

async fn measure_store(url: &str, max_connections: u32) -> Result<f64, Cause> {
    let store = Store::connect(url, max_connections).await?;
    store.migrate().await?;
    let mut streams = 0;
    // A stream of its own for each round, so that positions do not repeat.
    let measured = median(async || {
        streams += 1;
        let stream = store.stream_number("bench", &streams.to_string()).await?;
        let ownership = store.take_over(stream, &[0], 1).await?.first().map(|takeover| takeover.ownership);
        commits(&store, ownership.ok_or("nothing was taken over")?).await
    })
    .await;
    store.close().await;
    measured
}

async fn commits(store: &Store, ownership: Ownership) -> Result<f64, Cause> {
    let started = Instant::now();
    let committers = (0..COMMITTERS).map(|index| {
        let store = store.clone();
        tokio::spawn(async move { committer(&store, ownership, index, started + SPAN).await })
    });
    let mut committed = 0_u32;
    for committer in committers.collect::<Vec<_>>() {
        committed += committer.await??;
    }
    Ok(f64::from(committed) / started.elapsed().as_secs_f64())
}

/// Commits turns of one conversation, one after the other, and counts them.
async fn committer(store: &Store, ownership: Ownership, index: usize, until: Instant) -> Result<u32, Cause> {
    let key = ConversationKey {
        channel: Channel::Telegram,
        bot: "bench".into(),
        peer: Peer::User(format!("{}-{index}", ownership.stream)),
    };
    let conversation_id = Uuid::now_v7();
    let mut committed = 0_u32;
    while Instant::now() < until {
        let sequence = u64::from(committed) * COMMITTERS as u64 + index as u64 + 1;
        let turn = turn(ownership, &key, conversation_id, sequence, committed == 0);
        match store.commit(turn).await? {
            CommitOutcome::Committed { .. } => committed += 1,
            outcome => return Err(format!("the store did not commit: {outcome:?}").into()),
        }
    }
    Ok(committed)
}

/// A turn with a message, a reply and its delivery, as a bot's usual turn writes them.
fn turn(ownership: Ownership, key: &ConversationKey, conversation_id: Uuid, sequence: u64, first: bool) -> TurnCommit {
    const TEXT: &str = "Could you tell me where my order is? It should have come yesterday, and nobody called.";
    let (turn_id, now) = (Uuid::now_v7(), Timestamp::now());
    let message = |role, author| NewMessage {
        id: Uuid::now_v7(),
        role,
        author,
        content: TEXT.to_owned(),
        attachments: Vec::new(),
        tool: None,
        platform_message_id: None,
        created_at: now,
    };
    let reply = message(Role::Assistant, Author::Bot);
    let delivery = OutboundPart {
        delivery_id: Uuid::now_v7(),
        turn_id,
        conversation_id: Some(conversation_id),
        message_id: reply.id,
        key: key.clone(),
        part: 0,
        parts: 1,
        content: TEXT.to_owned(),
        form: Form::default(),
        buttons: Vec::new(),
        created_at: now,
    };
    TurnCommit {
        ownership,
        position: Position { stream: ownership.stream, sequence },
        turn_id,
        dedupe_id: turn_id.to_string(),
        merged: Vec::new(),
        key: key.clone(),
        state: TerminalState::Answered,
        reason: None,
        attempts: 1,
        responder: Some("bench".to_owned()),
        conversation_id: Some(conversation_id),
        messages_read: None,
        new_conversation: first.then(|| NewConversation {
            id: conversation_id,
            key: key.clone(),
            platform: Platform::Telegram,
            device_id: None,
            metadata: serde_json::Map::new(),
            created_at: now,
        }),
        messages: vec![message(Role::User, Author::User), reply],
        metadata_patches: Vec::new(),
        workflow_state: None,
        handoff: false,
        actions: Vec::new(),
        suppress_if_taken: false,
        tokens: 0,
        journal: None,
        record: None,
        deliveries: vec![delivery],
        traceparent: None,
        timings: TurnTimings::default(),
        received_at: now,
        started_at: now,
        committed_at: now,
    }
}

/// A database of our own on the same disk or server.
struct Scratch {
    url: String,
    place: Place,
}

enum Place {
    File(PathBuf),
    Server { url: String, name: String },
}

impl Scratch {
    async fn create(database: &Database) -> Result<Self, Cause> {
        if let Some(file) = database.sqlite_file() {
            let mut path = file.into_os_string();
            path.push("-bench");
            let path = PathBuf::from(path);
            remove_files(&path);
            let escaped = path.to_string_lossy().replace('%', "%25").replace('?', "%3F");
            return Ok(Self { url: format!("sqlite://{escaped}"), place: Place::File(path) });
        }
        let server = database.url.expose().to_owned();
        let name = format!("turnwise_bench_{}", std::process::id());
        let mut url = url::Url::parse(&server)?;
        url.set_path(&name);
        let mut connection = PgConnection::connect(&server).await?;
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        connection.close().await?;
        Ok(Self { url: url.into(), place: Place::Server { url: server, name } })
    }

    async fn remove(self) -> Result<(), Cause> {
        match self.place {
            Place::File(path) => remove_files(&path),
            Place::Server { url, name } => {
                let mut connection = PgConnection::connect(&url).await?;
                connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await?;
                connection.close().await?;
            }
        }
        Ok(())
    }
}

fn remove_files(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        // Not there is as good as removed.
        let _ = std::fs::remove_file(path);
    }
}
