//! A circuit breaker, as a state machine: whether a provider that keeps failing may be called now.
//!
//! Refuses to look at a clock, to wait and to log: the time is an argument, the caller does the rest. Failures count by
//! conversation, so that one whose every call fails, for a reason of its own, cannot cut off the others. Invariants: while
//! open nobody is let through; when the pause is over exactly one call is, and the next only once it is answered; a call that
//! began before the circuit opened decides nothing about it any more.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// So many conversations in a row without one success between: an outage. With a fifth of all calls failing, ten in a row
/// come once in ten million.
const FAILURES_MAX: usize = 10;

/// The first pause. Shorter is what a turn's own retries wait anyway.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Doubling ends here: a provider that is back is noticed within half a minute.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A wait this long, asked for by a server, is for everybody; a shorter one is left to the turn that was told.
const LONG_WAIT: Duration = Duration::from_secs(5);

/// While the one call of the half-open circuit is on its way, nobody knows when its answer begins.
const PROBE_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Raised with every change of state: outcomes of calls let through before it are void.
    generation: u64,
}

#[derive(Debug)]
enum State {
    /// The conversations whose calls failed since the last success.
    Closed {
        failed: Vec<Uuid>,
    },
    Open {
        until: Instant,
        pause: Duration,
    },
    /// One call is on its way.
    HalfOpen {
        pause: Duration,
    },
}

/// Leave for one call, whose outcome goes to [`Breaker::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permit {
    generation: u64,
    conversation_id: Uuid,
}

/// How a call ended, as far as it speaks about the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answered; also when it refused this one call for good.
    Alive,
    /// It failed in a way that may pass. `wait`: what it asked for with 429, 503 or 529.
    Failing { wait: Option<Duration> },
    /// The call was given up by its caller.
    Unknown,
}

/// The circuit has opened, for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened(pub(super) Duration);

impl Breaker {
    pub(super) const fn new() -> Self {
        Self { state: State::Closed { failed: Vec::new() }, generation: 0 }
    }

    /// Leave for a call of `conversation_id`, or how long to wait before asking again.
    pub(super) fn admit(&mut self, conversation_id: Uuid, now: Instant) -> Result<Permit, Duration> {
        match &self.state {
            State::Closed { .. } => {}
            State::Open { until, pause } if *until <= now => {
                let pause = *pause;
                self.enter(State::HalfOpen { pause });
            }
            State::Open { until, .. } => return Err(until.duration_since(now)),
            State::HalfOpen { .. } => return Err(PROBE_WAIT),
        }
        Ok(Permit { generation: self.generation, conversation_id })
    }

    /// The call has been answered with the first words. If it is the one of the half-open circuit the others need not wait
    /// for its last; a closed circuit waits for the outcome.
    pub(super) fn begun(&mut self, permit: Permit) {
        if permit.generation == self.generation && matches!(self.state, State::HalfOpen { .. }) {
            self.enter(State::Closed { failed: Vec::new() });
        }
    }

    /// Takes the outcome of a call that was let through.
    pub(super) fn settle(&mut self, permit: Permit, verdict: Verdict, now: Instant) -> Option<Opened> {
        if permit.generation != self.generation {
            return None;
        }
        match (&mut self.state, verdict) {
            (State::Closed { failed }, Verdict::Alive) => failed.clear(),
            (State::Closed { failed }, Verdict::Failing { wait }) => {
                if !failed.contains(&permit.conversation_id) {
                    failed.push(permit.conversation_id);
                }
                let long_wait = wait.filter(|wait| *wait >= LONG_WAIT);
                if failed.len() >= FAILURES_MAX || long_wait.is_some() {
                    return Some(self.open(PAUSE_MIN, long_wait, now));
                }
            }
            (State::HalfOpen { .. }, Verdict::Alive) => self.enter(State::Closed { failed: Vec::new() }),
            (State::HalfOpen { pause }, Verdict::Failing { wait }) => {
                let longer = pause.saturating_mul(2).min(PAUSE_MAX);
                return Some(self.open(longer, wait, now));
            }
            (State::HalfOpen { pause }, Verdict::Unknown) => {
                let pause = *pause;
                self.enter(State::Open { until: now, pause });
            }
            (State::Closed { .. }, Verdict::Unknown) | (State::Open { .. }, _) => {}
        }
        None
    }

    fn open(&mut self, pause: Duration, wait: Option<Duration>, now: Instant) -> Opened {
        let shut = wait.map_or(pause, |wait| wait.max(pause));
        self.enter(State::Open { until: now + shut, pause });
        Opened(shut)
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAILED: Verdict = Verdict::Failing { wait: None };

    fn chat(number: usize) -> Uuid {
        Uuid::from_u128(number as u128)
    }

    /// Fails calls of so many conversations, one after another.
    fn fail(breaker: &mut Breaker, conversations: usize, now: Instant) -> Option<Opened> {
        (0..conversations)
            .map(|number| {
                let permit = breaker.admit(chat(number), now).ok()?;
                breaker.settle(permit, FAILED, now)
            })
            .last()
            .flatten()
    }

    #[test]
    fn opens_pauses_probes_and_closes() {
        let mut breaker = Breaker::new();
        let start = Instant::now();
        assert_eq!(fail(&mut breaker, FAILURES_MAX, start), Some(Opened(PAUSE_MIN)));
        assert_eq!(breaker.admit(chat(1), start), Err(PAUSE_MIN));
        let mut now = start;
        for pause in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert_eq!(breaker.admit(chat(1), now + pause - Duration::from_millis(1)), Err(Duration::from_millis(1)));
            now += pause;
            let probe = breaker.admit(chat(1), now).ok();
            assert!(probe.is_some());
            assert_eq!(breaker.admit(chat(2), now), Err(PROBE_WAIT), "one probe");
            let longer = pause.saturating_mul(2).min(PAUSE_MAX);
            assert_eq!(probe.and_then(|probe| breaker.settle(probe, FAILED, now)), Some(Opened(longer)));
        }
        now += PAUSE_MAX;
        let probe = breaker.admit(chat(1), now).ok();
        assert_eq!(probe.and_then(|probe| breaker.settle(probe, Verdict::Alive, now)), None);
        assert_eq!(fail(&mut breaker, FAILURES_MAX - 1, now), None, "closed, and counting from nothing");
        assert_eq!(fail(&mut breaker, FAILURES_MAX, now), Some(Opened(PAUSE_MIN)), "the pause is the first one again");
    }

    #[test]
    fn one_conversation_alone_opens_nothing() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        for _ in 0..1_000 {
            let permit = breaker.admit(chat(1), now);
            assert!(permit.is_ok_and(|permit| breaker.settle(permit, FAILED, now).is_none()));
        }
        assert!(fail(&mut breaker, FAILURES_MAX, now).is_some());
    }

    #[test]
    fn a_long_wait_asked_for_is_kept_by_all() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        let failing = |seconds| Verdict::Failing { wait: Some(Duration::from_secs(seconds)) };
        let short = breaker.admit(chat(1), now).ok().and_then(|permit| breaker.settle(permit, failing(4), now));
        assert_eq!(short, None);
        let late = breaker.admit(chat(3), now).ok();
        let long = breaker.admit(chat(1), now).ok().and_then(|permit| breaker.settle(permit, failing(90), now));
        assert_eq!(long, Some(Opened(Duration::from_secs(90))));
        assert_eq!(late.and_then(|late| breaker.settle(late, Verdict::Alive, now)), None);
        assert_eq!(breaker.admit(chat(2), now), Err(Duration::from_secs(90)), "a call from before changes nothing");
    }

    #[test]
    fn a_probe_given_up_leaves_room_for_the_next() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        fail(&mut breaker, FAILURES_MAX, now);
        let now = now + PAUSE_MIN;
        let probe = breaker.admit(chat(1), now).ok();
        assert_eq!(probe.and_then(|probe| breaker.settle(probe, Verdict::Unknown, now)), None);
        assert!(breaker.admit(chat(2), now).is_ok());
    }

    #[test]
    fn the_first_words_close_a_half_open_circuit() {
        let mut breaker = Breaker::new();
        let now = Instant::now();
        fail(&mut breaker, FAILURES_MAX, now);
        let now = now + PAUSE_MIN;
        let probe = breaker.admit(chat(1), now).ok();
        assert_eq!(breaker.admit(chat(2), now), Err(PROBE_WAIT));
        let settled = probe.and_then(|probe| {
            breaker.begun(probe);
            assert!(breaker.admit(chat(2), now).is_ok());
            breaker.settle(probe, FAILED, now)
        });
        assert_eq!(settled, None, "its end decides nothing any more");
        let breaks_off = (0..FAILURES_MAX).map(|number| {
            let permit = breaker.admit(chat(number), now).ok()?;
            breaker.begun(permit);
            breaker.settle(permit, FAILED, now)
        });
        assert_eq!(breaks_off.last().flatten(), Some(Opened(PAUSE_MIN)), "answers that break off are failures still");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Admit(usize),
        /// The oldest call still running.
        Settle(Verdict),
        Pass(Duration),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let wait = proptest::option::of((0_u64..40).prop_map(Duration::from_secs));
        let verdict = prop_oneof![
            1 => Just(Verdict::Alive),
            6 => wait.prop_map(|wait| Verdict::Failing { wait }),
            1 => Just(Verdict::Unknown),
        ];
        let step = prop_oneof![
            4 => (0_usize..30).prop_map(Step::Admit),
            4 => verdict.prop_map(Step::Settle),
            1 => (0_u64..20_000).prop_map(|millis| Step::Pass(Duration::from_millis(millis))),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Whatever happens: it opens only at a failure, nobody passes before the pause told at the opening is over, one
        /// call passes after it, and refusals name a wait that is neither nothing nor longer than the pause.
        #[test]
        fn nobody_passes_an_open_circuit(steps in steps()) {
            let mut breaker = Breaker::new();
            let mut now = Instant::now();
            let mut running = std::collections::VecDeque::new();
            let mut shut_until: Option<Instant> = None;
            let mut probing: Option<Permit> = None;
            for step in steps {
                match step {
                    Step::Pass(duration) => now += duration,
                    Step::Admit(number) => match breaker.admit(chat(number), now) {
                        Ok(permit) => {
                            prop_assert!(probing.is_none(), "two probes");
                            if let Some(until) = shut_until {
                                prop_assert!(until <= now);
                                probing = Some(permit);
                            }
                            running.push_back(permit);
                        }
                        Err(wait) => {
                            let until = shut_until.filter(|_| probing.is_none()).unwrap_or(now + PROBE_WAIT);
                            prop_assert!(shut_until.is_some() && !wait.is_zero());
                            prop_assert_eq!(now + wait, until);
                        }
                    },
                    Step::Settle(verdict) => {
                        let Some(permit) = running.pop_front() else { continue };
                        let opened = breaker.settle(permit, verdict, now);
                        let failing = matches!(verdict, Verdict::Failing { .. });
                        prop_assert!(opened.is_none() || failing);
                        if let Some(Opened(pause)) = opened {
                            prop_assert!(pause >= PAUSE_MIN && pause <= Duration::from_secs(40));
                            shut_until = Some(now + pause);
                            probing = None;
                        } else if probing == Some(permit) {
                            probing = None;
                            shut_until = (verdict == Verdict::Unknown).then_some(now);
                        }
                    }
                }
            }
        }
    }
}
