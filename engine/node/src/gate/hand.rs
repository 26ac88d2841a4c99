//! Threads that do for the gate what takes long, so that a revocation waits for neither a password nor an issuer.

use std::io;
use std::sync::Arc;

use thalweg_ring::{Bell, Consumer, Producer, ring};

/// The gate's end of the rings to a thread that does one kind of work, a job at a time and in order. The thread ends when
/// this is dropped, after the job it is at.
pub(crate) struct Hand<J, R> {
    /// `None` only while this is dropped.
    jobs: Option<Producer<J>>,
    results: Consumer<R>,
    bell: Arc<Bell>,
}

impl<J: Send + 'static, R: Send + 'static> Hand<J, R> {
    /// Starts a thread; `home` is rung when a result is there. It holds `slots` jobs, those whose results were not taken
    /// included.
    pub(crate) fn start(
        name: &str,
        slots: usize,
        home: Arc<Bell>,
        work: impl Fn(J) -> R + Send + 'static,
    ) -> io::Result<Self> {
        let bell = Bell::new()?;
        let (jobs, mut inbox) = ring::<J>(slots);
        // One is being worked at beside those that wait: a result always finds room.
        let (mut outbox, results) = ring::<R>(slots + 1);
        let own = Arc::clone(&bell);
        let run = move || {
            loop {
                while let Some(job) = inbox.pop() {
                    let mut result = work(job);
                    while let Err(back) = outbox.push(result) {
                        if outbox.is_abandoned() {
                            return;
                        }
                        // The gate takes results before it gives jobs, so this passes.
                        result = back;
                        std::thread::yield_now();
                    }
                    home.ring();
                }
                own.prepare();
                if inbox.is_empty() && !inbox.is_abandoned() {
                    own.wait(None);
                }
                own.awake();
                if inbox.is_empty() && inbox.is_abandoned() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), results, bell })
    }

    /// Hands a job over; gives it back if too many wait.
    pub(crate) fn give(&mut self, job: J) -> Result<(), J> {
        self.jobs.as_mut().expect("it is there until the hand is dropped").push(job)?;
        self.bell.ring();
        Ok(())
    }

    /// The next result.
    pub(crate) fn take(&mut self) -> Option<R> {
        self.results.pop()
    }

    /// Whether there is no result to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.results.is_empty()
    }
}

impl<J, R> Drop for Hand<J, R> {
    fn drop(&mut self) {
        // The thread is to see that nobody gives it jobs any more when it wakes.
        self.jobs = None;
        self.bell.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_are_done_in_order_and_the_thread_ends() {
        let home = Bell::new().expect("an eventfd");
        let (ended, end) = mpsc::sync_channel::<()>(1);
        let work = move |n: u32| {
            let _keep = &ended;
            n * 2
        };
        let mut hand = Hand::start("test-hand", 4, Arc::clone(&home), work).expect("started");
        let (mut given, mut got) = (0, Vec::new());
        while got.len() < 100 {
            while given < 100 && hand.give(given).is_ok() {
                given += 1;
            }
            home.prepare();
            if hand.is_empty() {
                home.wait(Some(Duration::from_millis(100)));
            }
            home.awake();
            got.extend(std::iter::from_fn(|| hand.take()));
        }
        assert!(got.into_iter().eq((0..100).map(|n| n * 2)));
        drop(hand);
        let error = end.recv_timeout(Duration::from_secs(10)).expect_err("nothing is sent");
        assert_eq!(error, mpsc::RecvTimeoutError::Disconnected, "the thread let go of what it held");
    }
}
