//! Everything that this thread logs and traces, down to the last level, as text: for tests of what is in it, and what is not.
//!
//! `tracing` asks only one thread's subscriber whether a span is wanted, so a test on another thread could switch it off: a
//! test that uses this is alone in its program.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::format::FmtSpan;

/// Collects what the subscriber writes.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) struct TraceLog {
    sink: Sink,
    guard: DefaultGuard,
}

impl TraceLog {
    /// Begins, on this thread.
    pub(crate) fn start() -> Self {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self { sink, guard: tracing::subscriber::set_default(subscriber) }
    }

    /// Ends, with what was written: a line for each event, and for each span when it closed.
    pub(crate) fn end(self) -> String {
        drop(self.guard);
        String::from_utf8(self.sink.0.lock().unwrap().clone()).unwrap()
    }
}

/// The lines of the closed spans in which this is.
pub(crate) fn closed<'a>(log: &'a str, word: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(word) && line.contains("close")).collect()
}
