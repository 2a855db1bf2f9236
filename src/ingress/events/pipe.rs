//! Between the task that follows a turn and the connection that its events go out on.
//!
//! Refuses to wait for a client that does not read, and to keep for it what it left lying: beyond a bound it is cut off, and
//! what was meant for it is dropped at once. Invariant: the two ends learn of each other's end without being asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use tokio::sync::Notify;

/// What is kept for a client that is slower than its turn, in bytes: more than ten seconds of any model's text. Times the
/// most callers that may wait it is 2.5 GiB, if every one of them stops reading in the middle of a long answer.
pub(super) const KEPT_BYTES_MAX: usize = 256 * 1024;

/// Both ends of a pipe: what is written to the first comes out of the second.
pub(super) fn pipe<T: Send + Sync + 'static>(guard: T) -> (Writer, impl Stream<Item = Result<Bytes, CutOff>> + Send) {
    let pipe = Arc::new(Pipe::default());
    let reader = Reader { pipe: Arc::clone(&pipe), _guard: guard };
    (Writer(pipe), stream::unfold(reader, async |reader| Some((reader.next().await?, reader))))
}

/// Ends the connection before its time, so that the client sees that something is missing.
#[derive(Debug, thiserror::Error)]
#[error("the client reads too slowly")]
pub(super) struct CutOff;

#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

#[derive(Debug, Default)]
struct State {
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// The reader is gone.
    left: bool,
    /// The writer is gone.
    ended: bool,
    cut: bool,
}

impl Pipe {
    /// Nothing panics while it is held.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where events go in. Dropped, it ends the connection once everything was read.
#[derive(Debug)]
pub(super) struct Writer(Arc<Pipe>);

impl Writer {
    /// # Errors
    /// The client has not read what it was sent before, and is cut off.
    pub(super) fn write(&self, event: Bytes) -> Result<(), CutOff> {
        let mut state = self.0.state();
        if state.kept_bytes > 0 && state.kept_bytes + event.len() > KEPT_BYTES_MAX {
            *state = State { cut: true, left: state.left, ..State::default() };
            self.0.readable.notify_one();
            return Err(CutOff);
        }
        state.kept_bytes += event.len();
        state.kept.push_back(event);
        self.0.readable.notify_one();
        Ok(())
    }

    /// Returns when everything was read, or nobody reads any more.
    pub(super) async fn drained(&self) {
        while !self.looks(|state| state.left || state.kept.is_empty()) {
            self.0.writable.notified().await;
        }
    }

    /// Returns when nobody reads any more.
    pub(super) async fn left(&self) {
        while !self.looks(|state| state.left) {
            self.0.writable.notified().await;
        }
    }

    fn looks(&self, condition: impl FnOnce(&State) -> bool) -> bool {
        condition(&self.0.state())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.readable.notify_one();
    }
}

struct Reader<T> {
    pipe: Arc<Pipe>,
    /// Held for as long as the connection lasts.
    _guard: T,
}

impl<T> Reader<T> {
    async fn next(&self) -> Option<Result<Bytes, CutOff>> {
        loop {
            if let Some(next) = self.look() {
                return next;
            }
            self.pipe.readable.notified().await;
        }
    }

    /// The next event or the end; `None` when neither has come yet.
    fn look(&self) -> Option<Option<Result<Bytes, CutOff>>> {
        let mut state = self.pipe.state();
        if let Some(event) = state.kept.pop_front() {
            state.kept_bytes -= event.len();
            self.pipe.writable.notify_one();
            return Some(Some(Ok(event)));
        }
        match (state.cut, state.ended) {
            (true, _) => {
                state.cut = false;
                state.ended = true;
                Some(Some(Err(CutOff)))
            }
            (false, true) => Some(None),
            (false, false) => None,
        }
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        state.left = true;
        state.kept.clear();
        self.pipe.writable.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn who_reads_gets_everything_and_then_the_end() {
        let (writer, reader) = pipe(());
        let mut reader = Box::pin(reader);
        for number in 0..3_u8 {
            assert!(writer.write(Bytes::from(vec![number; KEPT_BYTES_MAX / 2])).is_ok());
            assert!(reader.next().await.is_some_and(|event| event.is_ok_and(|event| event[0] == number)));
        }
        writer.drained().await;
        drop(writer);
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn who_does_not_read_is_cut_off_and_nothing_is_kept() {
        let (writer, reader) = pipe(());
        let mut reader = Box::pin(reader);
        let event = Bytes::from(vec![b'x'; KEPT_BYTES_MAX / 4]);
        let taken = (0..100).take_while(|_| writer.write(event.clone()).is_ok()).count();
        assert_eq!(taken, 4, "up to the bound");
        assert!(writer.looks(|state| state.kept.is_empty() && state.kept_bytes == 0));
        drop(writer);
        assert!(reader.next().await.is_some_and(|event| event.is_err()), "the client can tell");
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn one_event_may_be_larger_than_the_bound_and_who_left_is_noticed() {
        let (writer, reader) = pipe(());
        assert!(writer.write(Bytes::from(vec![b'x'; 2 * KEPT_BYTES_MAX])).is_ok(), "a long reply is still one event");
        drop(reader);
        writer.left().await;
        writer.drained().await;
    }
}
