//! The clerk: an ordinary thread that does for the cores what they must not do themselves, such as taking a lock.
//!
//! Cores ask it over a ring and go on; it answers over another. It owns the inference stage, whose statistics are kept
//! behind locks, and shuts it down when the node is done. It also looks at the process's memory and the clocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_ring::{Bell, Consumer, Producer, ring};
use thalweg_worker::stage::{Stage, StageReport};

use crate::vitals::Sampler;

/// One core's ends of the rings to the clerk and back.
pub(crate) struct ClerkLink {
    questions: Producer<u64>,
    answers: Consumer<(u64, Option<Box<StageReport>>)>,
    bell: Arc<Bell>,
}

impl ClerkLink {
    /// Asks for the statistics of the inference stage, under a number. False if too many questions wait.
    pub(crate) fn ask_inference_stats(&mut self, number: u64) -> bool {
        let asked = self.questions.push(number).is_ok();
        self.bell.ring();
        asked
    }

    /// The next answer: the number and the statistics, if there is an inference stage.
    pub(crate) fn receive(&mut self) -> Option<(u64, Option<Box<StageReport>>)> {
        self.answers.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }
}

struct Desk {
    questions: Consumer<u64>,
    answers: Producer<(u64, Option<Box<StageReport>>)>,
    bell: Arc<Bell>,
}

/// The clerk's thread.
pub(crate) struct Clerk {
    bell: Arc<Bell>,
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Clerk {
    /// Starts the clerk, and gives each core its link; `bells` are the cores'.
    pub(crate) fn start(
        stage: Option<Stage>,
        sampler: Sampler,
        bells: &[Arc<Bell>],
    ) -> std::io::Result<(Self, Vec<ClerkLink>)> {
        let (bell, done) = (Bell::new()?, Arc::new(AtomicBool::new(false)));
        let (mut desks, mut links) = (Vec::new(), Vec::new());
        for core in bells {
            let (questions, asked) = ring(TURN_INPUTS_MAX);
            let (told, answers) = ring(TURN_INPUTS_MAX);
            links.push(ClerkLink { questions, answers, bell: Arc::clone(&bell) });
            desks.push(Desk { questions: asked, answers: told, bell: Arc::clone(core) });
        }
        let (own_bell, own_done) = (Arc::clone(&bell), Arc::clone(&done));
        let work = move || work(stage, desks, sampler, &own_bell, &own_done);
        let thread = std::thread::Builder::new().name("thalweg-clerk".into()).spawn(work)?;
        Ok((Self { bell, done, thread }, links))
    }

    /// Ends the inference stage and the clerk, once the cores are done.
    pub(crate) fn shut_down(self) {
        self.done.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.join().is_err() {
            tracing::error!("the clerk's thread panicked");
        }
    }
}

fn work(mut stage: Option<Stage>, mut desks: Vec<Desk>, mut sampler: Sampler, bell: &Bell, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        let until_sample = sampler.tick();
        for desk in &mut desks {
            while let Some(number) = desk.questions.pop() {
                let stats = stage.as_ref().map(|stage| Box::new(stage.report()));
                // There are as many slots for answers as for questions, so a refusal means that the core is gone.
                if desk.answers.push((number, stats)).is_ok() {
                    desk.bell.ring();
                }
            }
        }
        bell.prepare();
        if desks.iter().all(|desk| desk.questions.is_empty()) && !done.load(Ordering::Acquire) {
            bell.wait(Some(until_sample));
        }
        bell.awake();
    }
    if let Some(stage) = &mut stage {
        stage.shutdown();
    }
}
