//! When a model that fails is left alone, and when it is tried again.
//!
//! After [`FAILURES_TO_OPEN`] failures in a row the breaker opens: nobody is sent there. After a time it is half open: a
//! request may try. If that one gets its first token the breaker closes; if it fails, the breaker opens for twice as long,
//! up to a bound. Time is the caller's, in milliseconds since any moment.

use crate::routing::Health;

/// So many failures in a row, and a model is left alone. One may be a connection that was cut; so many are not chance.
pub const FAILURES_TO_OPEN: u32 = 5;
/// For how long it is left alone the first time, in milliseconds: a server that restarts needs about that.
pub const OPEN_MS: u32 = 1_000;
/// The longest time between two tries, in milliseconds: how late somebody may notice that it is well again.
pub const OPEN_MS_MAX: u32 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until_ms: u64, for_ms: u32 },
    HalfOpen { attempt: u32 },
}

/// Whether a model is asked.
///
/// Contract: tell it what became of requests, call [`poll`](Self::poll) when [`next_deadline`](Self::next_deadline) has come,
/// and ask for its [`health`](Self::health) after either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    state: State,
    /// For how long it is left alone the next time.
    open_ms: u32,
    opens: u64,
    /// Tries so far, so that each has a number of its own.
    attempts: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 }, open_ms: OPEN_MS, opens: 0, attempts: 0 }
    }
}

impl Breaker {
    /// A request got its first token.
    pub fn succeeded(&mut self) {
        match self.state {
            State::Closed { .. } | State::HalfOpen { .. } => {
                (self.state, self.open_ms) = (State::Closed { failures: 0 }, OPEN_MS);
            }
            // It was asked before the others failed, and says nothing of what is now.
            State::Open { .. } => {}
        }
    }

    /// A request failed, and the model is to blame.
    pub fn failed(&mut self, now_ms: u64) {
        match &mut self.state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures >= FAILURES_TO_OPEN {
                    self.open(now_ms);
                }
            }
            State::HalfOpen { .. } => self.open(now_ms),
            State::Open { .. } => {}
        }
    }

    fn open(&mut self, now_ms: u64) {
        self.state = State::Open { until_ms: now_ms.saturating_add(u64::from(self.open_ms)), for_ms: self.open_ms };
        self.open_ms = self.open_ms.saturating_mul(2).min(OPEN_MS_MAX);
        self.opens += 1;
    }

    /// The request that tried ended without telling anything, such as one that was cancelled: another may try.
    pub fn untold(&mut self) {
        if matches!(self.state, State::HalfOpen { .. }) {
            self.half_open();
        }
    }

    fn half_open(&mut self) {
        self.attempts = self.attempts.wrapping_add(1);
        self.state = State::HalfOpen { attempt: self.attempts };
    }

    /// Time has passed.
    pub fn poll(&mut self, now_ms: u64) {
        if let State::Open { until_ms, .. } = self.state
            && now_ms >= until_ms
        {
            self.half_open();
        }
    }

    /// When [`poll`](Self::poll) is due.
    pub fn next_deadline(&self) -> Option<u64> {
        if let State::Open { until_ms, .. } = self.state { Some(until_ms) } else { None }
    }

    /// What routes say of the model.
    pub fn health(&self) -> Health {
        match self.state {
            State::Closed { .. } => Health::Up,
            State::Open { for_ms, .. } => Health::Down { retry_ms: for_ms },
            State::HalfOpen { attempt } => Health::Trying { attempt },
        }
    }

    /// How often it opened.
    pub fn opens(&self) -> u64 {
        self.opens
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(now_ms: u64) -> Breaker {
        let mut breaker = Breaker::default();
        (0..FAILURES_TO_OPEN).for_each(|_| breaker.failed(now_ms));
        breaker
    }

    #[test]
    fn it_opens_tries_and_closes() {
        let mut breaker = opened(100);
        assert!(matches!(breaker.health(), Health::Down { .. }));
        assert_eq!((breaker.next_deadline(), breaker.opens()), (Some(100 + u64::from(OPEN_MS)), 1));
        breaker.succeeded();
        breaker.poll(1_099);
        assert!(matches!(breaker.health(), Health::Down { .. }), "one that was asked earlier says nothing");
        breaker.poll(1_100);
        assert_eq!(breaker.health(), Health::Trying { attempt: 1 });
        breaker.untold();
        assert_eq!(breaker.health(), Health::Trying { attempt: 2 });
        breaker.failed(1_200);
        assert_eq!(breaker.next_deadline(), Some(1_200 + 2 * u64::from(OPEN_MS)), "longer than before");
        breaker.poll(3_200);
        breaker.succeeded();
        assert_eq!((breaker.health(), breaker.next_deadline()), (Health::Up, None));
        (1..FAILURES_TO_OPEN).for_each(|_| breaker.failed(4_000));
        assert_eq!(breaker.health(), Health::Up, "it counts from anew");
        breaker.failed(4_000);
        assert_eq!(breaker.next_deadline(), Some(4_000 + u64::from(OPEN_MS)), "and waits as at first");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Succeeded,
        Failed,
        Untold,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => Just(Step::Succeeded),
            6 => Just(Step::Failed),
            1 => Just(Step::Untold),
            3 => (1_u64..100_000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn it_never_stays_shut_and_never_opens_for_little(steps in proptest::collection::vec(step(), 1..200)) {
            let (mut breaker, mut now, mut in_row) = (Breaker::default(), 0, 0);
            let mut attempts = Vec::new();
            for step in steps {
                let before = breaker.health();
                match step {
                    Step::Succeeded => breaker.succeeded(),
                    Step::Failed => breaker.failed(now),
                    Step::Untold => breaker.untold(),
                    Step::Pass(ms) => now += ms,
                }
                breaker.poll(now);
                in_row = match (&step, before) {
                    (Step::Succeeded, _) => 0,
                    (Step::Failed, Health::Up) => in_row + 1,
                    _ => in_row,
                };
                match (before, breaker.health()) {
                    (Health::Up, Health::Down { .. }) => {
                        prop_assert!(in_row >= FAILURES_TO_OPEN);
                        in_row = 0;
                    }
                    (Health::Up, Health::Trying { .. }) | (Health::Down { .. }, Health::Up) => {
                        prop_assert!(false, "a step was skipped");
                    }
                    (_, Health::Trying { attempt }) if before != breaker.health() => {
                        prop_assert!(!attempts.contains(&attempt), "each try has its number");
                        attempts.push(attempt);
                    }
                    _ => {}
                }
                // It is tried again within the longest time, whatever happened.
                let due = breaker.next_deadline();
                prop_assert!(due.is_none_or(|due| due > now && due <= now + u64::from(OPEN_MS_MAX)));
                prop_assert_eq!(due.is_some(), matches!(breaker.health(), Health::Down { .. }));
            }
        }
    }
}
