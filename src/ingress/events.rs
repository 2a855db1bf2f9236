//! A turn as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>): what it makes while it
//! runs, and how it ends. For `POST /v1/chat` with `Accept: text/event-stream` and for `GET /v1/turns/{turn_id}/events`.
//!
//! Refuses to store what is provisional: the text of a running turn is with the process that runs it, and asked for there; when
//! a run fails or its process ends, what it had shown is void, and the caller is told (`reset`). Invariants: a caller who
//! comes back with the id of the last event is told nothing twice and misses nothing that still counts; the outcome is always
//! the database's; a caller who does not read costs a bounded amount of memory.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use uuid::Uuid;

use self::pipe::{CutOff, Writer, pipe};
use self::place::{Place, Step, Taken};
use self::wire::{Delta, Done, Outcome, ToolCall};
use super::extract::{Parameters, Segment};
use super::problem::Problem;
use super::turns::{OfDevice, Queued};
use super::{Ingress, RETRY_AFTER_SECONDS, Shared, turns};
use crate::stream::{Progress, Publisher};
use crate::telemetry::{chain, metric};

mod pipe;
mod place;
mod wire;

pub(super) use wire::schemas;

/// A comment this often keeps proxies from closing a silent connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The notice of a finished turn can be lost, so the ledger is looked at this often as well, and whichever process runs the
/// turn by now is told that somebody watches.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The whole of a run is asked for at most this often.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// After this time a caller has to come back. A turn may wait for hours behind others; a connection need not.
const STREAM_MAX: Duration = Duration::from_secs(15 * 60);

/// What a client is told to wait before it comes back, in milliseconds.
const RECONNECT_MS: u32 = 1_000;

/// A client that has not read the end by then does not read.
const READ_END: Duration = Duration::from_secs(30);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Whether the caller asks for events. Of a list of media types the one counts, in whatever place: who cannot read events
/// does not name it.
pub(super) fn asked_for(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("text/event-stream"));
        named && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// `GET /v1/turns/{turn_id}/events`, from the beginning or after the header `Last-Event-ID`.
pub(super) async fn resume(
    State(ingress): Shared,
    Segment(turn_id): Segment,
    Parameters(query): Parameters<OfDevice>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let permit = ingress.admit()?;
    let found = turns::find(&ingress, &turn_id, &query, &headers).await?;
    let place = last_seen(&headers);
    if place == Place::Done {
        // Tells a browser to stop coming back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let seat = ingress.seat()?;
    let trace_id = found.turn.as_ref().and_then(turns::trace_id);
    let watch = Watch::begin(&ingress, found.turn_id, seat).await?;
    drop(permit);
    let accepted = Queued::new(found.conversation_id, found.turn_id, trace_id);
    Ok(watch.respond(ingress, &headers, accepted))
}

/// A place among the callers that wait.
pub(super) type Seat = OwnedSemaphorePermit;

impl Ingress {
    /// Taken before anything is written, so that who is sent away has changed nothing.
    pub(super) fn seat(&self) -> Result<Seat, Problem> {
        Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| {
            Problem::new(503, "overloaded", "Too many callers wait for answers.").retry_after(RETRY_AFTER_SECONDS)
        })
    }
}

/// Somebody listens for what a turn does.
pub(super) struct Watch {
    turn_id: Uuid,
    publisher: Publisher,
    notices: Subscriber,
    progress: Subscriber,
    seat: Seat,
}

impl Watch {
    /// Begins to listen; before the turn's message is published, so that nothing comes in between.
    pub(super) async fn begin(ingress: &Ingress, turn_id: Uuid, seat: Seat) -> Result<Self, Problem> {
        let (client, names) = (&ingress.connection.client, &ingress.connection.names);
        let closed = |_| {
            Problem::new(503, "unavailable", "NATS is not connected. Please try again.")
                .retry_after(RETRY_AFTER_SECONDS)
        };
        let notices = client.subscribe(names.turn_notice(turn_id)).await.map_err(closed)?;
        let progress = client.subscribe(names.turn_progress(turn_id)).await.map_err(closed)?;
        let publisher = ingress.publisher.clone();
        publisher.watch_turn(turn_id, true).await;
        Ok(Self { turn_id, publisher, notices, progress, seat })
    }

    /// The answer whose body goes on for as long as the turn does. `accepted` is what its first event says.
    pub(super) fn respond(self, ingress: Arc<Ingress>, headers: &HeaderMap, accepted: Queued) -> Response {
        let (writer, reader) = pipe((self.seat, OpenStream::begin()));
        let place = last_seen(headers);
        let trace_id = accepted.trace_id.clone();
        let events =
            Events { turn_id: self.turn_id, publisher: self.publisher, writer, place, asked_at: None, trace_id };
        let subscribers = (self.notices, self.progress);
        tokio::spawn(async move {
            let reason = events.follow(&ingress, subscribers, &accepted).await;
            metric::event_stream_ended(reason.as_str());
        });
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            // Read by nginx and its kind, which would hold the text back.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (headers, Body::from_stream(reader)).into_response()
    }
}

/// A connection that events go out on.
struct OpenStream;

impl OpenStream {
    fn begin() -> Self {
        metric::event_stream_began();
        Self
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metric::event_stream_closed();
    }
}

pub(super) fn last_seen(headers: &HeaderMap) -> Place {
    headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map_or(Place::Nothing, |id| Place::after(id.trim()))
}

/// Why a caller is sent nothing more.
enum Ended {
    /// Everything was said.
    Done,
    Left,
    Slow,
    /// [`STREAM_MAX`] has passed.
    TooLong,
    /// This process stops.
    Stopping,
}

impl Ended {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Left => "left",
            Self::Slow => "slow",
            Self::TooLong => "too_long",
            Self::Stopping => "stopping",
        }
    }
}

impl From<CutOff> for Ended {
    fn from(_: CutOff) -> Self {
        Self::Slow
    }
}

/// One caller's view of one turn.
struct Events {
    turn_id: Uuid,
    publisher: Publisher,
    writer: Writer,
    place: Place,
    /// When the whole of a run was asked for.
    asked_at: Option<Instant>,
    /// Of the request that brought the message, where it is known.
    trace_id: Option<String>,
}

impl Events {
    async fn follow(mut self, ingress: &Ingress, subscribers: (Subscriber, Subscriber), accepted: &Queued) -> Ended {
        let told = tokio::time::timeout(STREAM_MAX, self.tell(ingress, subscribers, accepted));
        let told = ingress.closing.run_until_cancelled(told).await;
        match told {
            Some(Ok(Ok(()))) => {
                // Whoever is still reading shall have the end; the connection closes by itself.
                let _ = tokio::time::timeout(READ_END, self.writer.drained()).await;
                Ended::Done
            }
            Some(Ok(Err(ended))) => ended,
            Some(Err(_)) => Ended::TooLong,
            None => Ended::Stopping,
        }
    }

    async fn tell(
        &mut self,
        ingress: &Ingress,
        (mut notices, mut progress): (Subscriber, Subscriber),
        accepted: &Queued,
    ) -> Result<(), Ended> {
        self.writer.write(Bytes::from(format!("retry: {RECONNECT_MS}\n\n")))?;
        if self.place == Place::Nothing {
            self.say("accepted", Place::Accepted, accepted)?;
        }
        let mut look = interval(LOOK_AGAIN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        loop {
            tokio::select! {
                () = self.writer.left() => return Err(Ended::Left),
                Some(piece) = progress.next() => {
                    self.show(&piece.payload).await?;
                    continue;
                }
                _ = keep_alive.tick() => {
                    self.writer.write(Bytes::from_static(b": still here\n\n"))?;
                    continue;
                }
                Some(_) = notices.next() => {}
                _ = look.tick() => {
                    // Another process may run the turn by now.
                    self.publisher.watch_turn(self.turn_id, false).await;
                }
            }
            if let Some(outcome) = self.outcome(ingress).await {
                // What came before the notice comes before the outcome.
                while let Some(Some(piece)) = progress.next().now_or_never() {
                    self.show(&piece.payload).await?;
                }
                return self.conclude(&outcome).await;
            }
        }
    }

    /// Shows what a piece of progress adds.
    async fn show(&mut self, payload: &[u8]) -> Result<(), Ended> {
        let Some(progress) = Progress::decode(payload) else { return Ok(()) };
        let steps = match self.place.take(&progress) {
            Taken::Steps(steps) => steps,
            Taken::Gap => {
                if self.asked_at.is_none_or(|asked_at| asked_at.elapsed() >= ASK_AGAIN) {
                    self.asked_at = Some(Instant::now());
                    self.publisher.watch_turn(self.turn_id, true).await;
                }
                return Ok(());
            }
        };
        for (place, step) in steps {
            match step {
                Step::Text { text, reset } => self.say("delta", place, &Delta { text, reset })?,
                Step::Tool(note) => self.say("tool", place, &ToolCall { name: note.name, state: note.state })?,
            }
        }
        Ok(())
    }

    /// How the turn ended; `None` as long as it has not, or the database does not say.
    async fn outcome(&self, ingress: &Ingress) -> Option<Outcome> {
        let turn = match ingress.store.turn(self.turn_id).await {
            Ok(turn) => turn?,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the ledger did not answer a caller of events");
                return None;
            }
        };
        let mut view = turns::view(ingress, &turn).await.ok()?;
        if self.trace_id.is_some() {
            view.facts.trace_id.clone_from(&self.trace_id);
        }
        Some(Outcome::of(view))
    }

    /// The outcome may be larger than what is kept for a slow client, so it waits until everything before it was read.
    async fn conclude(&mut self, outcome: &Outcome) -> Result<(), Ended> {
        tokio::time::timeout(READ_END, self.writer.drained()).await.map_err(|_| Ended::Slow)?;
        let last = match self.place {
            Place::Outcome => String::new(),
            _ => event(outcome.event(), Place::Outcome, outcome),
        };
        self.place = Place::Done;
        let done = event("done", Place::Done, &Done { turn_id: self.turn_id });
        self.writer.write(Bytes::from(last + &done))?;
        Ok(())
    }

    fn say(&mut self, event: &str, place: Place, data: &impl Serialize) -> Result<(), CutOff> {
        self.place = place;
        self.writer.write(Bytes::from(self::event(event, place, data)))
    }
}

/// One event. JSON as it is written here has no line breaks, so one line of data holds it; and nothing here fails to be written.
fn event(name: &str, place: Place, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\nid: {place}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_for_who_names_their_media_type() {
        let check = |accept: &'static str, expected: bool| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(asked_for(&headers), expected, "{accept}");
        };
        for (accept, expected) in [
            ("text/event-stream", true),
            ("application/json;q=0.5, Text/Event-Stream; q=1", true),
            ("text/event-stream;charset=utf-8", true),
            ("text/event-stream;q=0, application/json", false),
            ("application/json", false),
            ("*/*", false),
            ("text/*", false),
            ("", false),
        ] {
            check(accept, expected);
        }
        assert!(!asked_for(&HeaderMap::new()));
    }
}
