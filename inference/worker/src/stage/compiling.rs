//! Constraints are compiled beside the thread that leads the steps, so that no answer waits for the schema of another.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thalweg_protocol::generation::{Constraint, FinishReason, Usage};
use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::Bell;

use super::thread::Ports;
use super::{Event, LoadedModel, Submit};
use crate::tokenizer::Vocabulary;

/// Generations that wait for their constraints on one thread; one more is refused.
const WAITING_MAX: usize = 128;
/// A constraint that takes longer to compile than this is refused: nobody waits for an answer that long.
const COMPILE_MAX: Duration = Duration::from_secs(3);
/// Threads that compile: one that never ends with a constraint leaves another.
const THREADS: u64 = 2;

struct Job {
    number: u64,
    vocabulary: Arc<Vocabulary>,
    constraint: Constraint,
}

struct Waiting {
    port: usize,
    submit: Box<Submit>,
    vocabulary: Arc<Vocabulary>,
    job: u64,
    since: Instant,
}

/// What became of a generation that was waiting.
pub(super) enum Ready {
    /// Its constraint is known: as one that can be followed, or as one that cannot.
    Compiled(usize, Box<Submit>),
    /// It took too long.
    Refused(usize, Box<Submit>, Reject),
}

/// Generations whose constraints are being compiled.
pub(super) struct Compiling {
    jobs: SyncSender<Job>,
    given: u64,
    /// Number of the last job that was begun; jobs begin in order.
    begun: Arc<AtomicU64>,
    waiting: Vec<Waiting>,
}

impl Compiling {
    /// Starts the threads; to be called where no thread is pinned to a processor, which they would inherit.
    pub(super) fn start(bell: &Arc<Bell>) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(WAITING_MAX);
        let (queue, begun) = (Arc::new(Mutex::new(queue)), Arc::new(AtomicU64::new(0)));
        for _ in 0..THREADS {
            let (queue, begun, bell) = (Arc::clone(&queue), Arc::clone(&begun), Arc::clone(bell));
            let builder = std::thread::Builder::new().name("thalweg-grammar".into());
            // It ends when the stage does, which drops the other end of the queue.
            builder.spawn(move || compile(&queue, &begun, &bell))?;
        }
        Ok(Self { jobs, given: 0, begun, waiting: Vec::new() })
    }

    /// Keeps a generation until its constraint is known. Gives it back if nothing has to be waited for, or with a refusal if
    /// too many wait.
    pub(super) fn hold(
        &mut self,
        port: usize,
        submit: Submit,
        loaded: &LoadedModel,
    ) -> Option<(Submit, Option<Reject>)> {
        let constraint = &submit.sampling.constraint;
        if *constraint == Constraint::None || loaded.vocabulary.grammars().is_known(constraint) {
            return Some((submit, None));
        }
        let busy = || Reject::new(RejectCode::Busy, "too many constraints wait to be compiled: try later");
        if self.waiting.len() == WAITING_MAX {
            return Some((submit, Some(busy().retry_after_ms(1_000))));
        }
        let same = self.waiting.iter().find(|other| {
            Arc::ptr_eq(&other.vocabulary, &loaded.vocabulary) && other.submit.sampling.constraint == *constraint
        });
        let vocabulary = Arc::clone(&loaded.vocabulary);
        let job = match same {
            Some(same) => same.job,
            None => {
                let job =
                    Job { number: self.given + 1, vocabulary: Arc::clone(&vocabulary), constraint: constraint.clone() };
                match self.jobs.try_send(job) {
                    Ok(()) => self.given += 1,
                    Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                        return Some((submit, Some(busy().retry_after_ms(1_000))));
                    }
                }
                self.given
            }
        };
        self.waiting.push(Waiting { port, submit: Box::new(submit), vocabulary, job, since: Instant::now() });
        None
    }

    /// Whether somebody need not wait any longer.
    pub(super) fn is_ready(&self) -> bool {
        self.first_ready().is_some()
    }

    fn first_ready(&self) -> Option<usize> {
        self.waiting.iter().position(|waiting| {
            let constraint = &waiting.submit.sampling.constraint;
            waiting.vocabulary.grammars().is_known(constraint) || waiting.since.elapsed() > COMPILE_MAX
        })
    }

    /// The next generation that need not wait any longer.
    pub(super) fn ready(&mut self) -> Option<Ready> {
        let at = self.first_ready()?;
        let Waiting { port, submit, vocabulary, job, .. } = self.waiting.remove(at);
        let constraint = &submit.sampling.constraint;
        if vocabulary.grammars().is_known(constraint) {
            return Some(Ready::Compiled(port, submit));
        }
        let reject = if self.begun.load(Ordering::Acquire) >= job {
            let (kind, most) = (constraint.as_str(), COMPILE_MAX.as_secs());
            let text = format!("{kind}: it takes more than {most} seconds to compile; make it smaller");
            Reject::new(RejectCode::ConstraintInvalid, text)
        } else {
            let text = "other constraints take long to compile: try later";
            Reject::new(RejectCode::Busy, text).retry_after_ms(3_000)
        };
        Some(Ready::Refused(port, submit, reject))
    }

    /// Whether a generation waits here.
    pub(super) fn has(&self, generation: GenerationId) -> bool {
        self.waiting.iter().any(|waiting| waiting.submit.generation == generation)
    }

    /// A generation that waits may produce more tokens. False if it does not wait here.
    pub(super) fn credit(&mut self, generation: GenerationId, until: u32) -> bool {
        let found = self.waiting.iter_mut().find(|waiting| waiting.submit.generation == generation);
        found.map(|waiting| waiting.submit.credit = waiting.submit.credit.max(until)).is_some()
    }

    /// Cancels those for which `which` holds, of generation and port.
    pub(super) fn cancel(&mut self, which: impl Fn(GenerationId, usize) -> bool, ports: &mut Ports) {
        let going = self.waiting.extract_if(.., |waiting| which(waiting.submit.generation, waiting.port));
        for Waiting { port, submit, .. } in going {
            let (generation, completion_tokens) = (submit.generation, submit.produced.len() as u32);
            let usage = Usage { completion_tokens, ..Usage::default() };
            let (reason, message) = (FinishReason::Cancelled, String::new());
            ports.emit(port, Event::Finished { generation, reason, usage, message });
        }
    }
}

/// Compiles what is asked for, until nobody is left to ask.
fn compile(queue: &Mutex<Receiver<Job>>, begun: &AtomicU64, bell: &Bell) {
    loop {
        let job = {
            let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(job) = queue.recv() else { return };
            begun.fetch_max(job.number, Ordering::Release);
            job
        };
        // What comes of it is kept, and found there.
        let _ = job.vocabulary.grammars().compile(&job.constraint);
        bell.ring();
    }
}
