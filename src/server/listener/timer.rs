//! When the server gives up on a request's head. The server asks for one time limit, from the moment it begins to wait for a head;
//! this makes two of it: that limit for a connection on which nothing comes, and a shorter one from the head's first byte on.
//!
//! Refuses to be a timer for anything else. Invariant: bytes that drip in do not move the end.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

use super::{Received, received};

/// Times the heads of one connection.
#[derive(Debug)]
pub(super) struct HeadTimer {
    counter: Received,
    head_timeout: Duration,
}

impl HeadTimer {
    /// A head may take `head_timeout` from the first byte that `counter` counts after the server began to wait.
    pub(super) const fn new(counter: Received, head_timeout: Duration) -> Self {
        Self { counter, head_timeout }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep {
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
            before: received(&self.counter),
            counter: self.counter.clone(),
            head_timeout: self.head_timeout,
            begun: false,
        })
    }
}

/// One wait for a head.
struct HeadSleep {
    sleep: Pin<Box<tokio::time::Sleep>>,
    counter: Received,
    /// Bytes received before the wait began.
    before: u64,
    head_timeout: Duration,
    begun: bool,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    /// The server asks after each read that did not complete the head.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if !self.begun && received(&self.counter) != self.before {
            self.begun = true;
            let end = tokio::time::Instant::now() + self.head_timeout;
            if end < self.sleep.deadline() {
                self.sleep.as_mut().reset(end);
            }
        }
        self.sleep.as_mut().poll(context)
    }
}
