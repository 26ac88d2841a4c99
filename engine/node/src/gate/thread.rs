//! The gate's thread, and the threads that work for it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::Bell;

use super::access::Access;
use super::command::Secret;
use super::config::{AccessConfig, Issuer};
use super::fetch;
use super::hand::Hand;
use super::jwks::IssuerKey;
use super::keeper::{HashJob, HashResult, HashTask, Keeper, Now, Output};
use super::limits::{GATE_QUESTIONS_MAX, HASHES_WAITING_MAX, MODEL_JOBS_MAX};
use super::link::{Desk, GateLink, link};
use super::users;
use crate::disk::Alarm;
use crate::models::{ModelDesk, ModelJob};

/// Snapshots that cores may still have; the gate, not a core, takes the last one apart.
const RETIRED_MAX: usize = 64;

/// A snapshot that found no room is tried again after so long.
const HELD_RETRY: Duration = Duration::from_millis(10);

type Keys = Result<Vec<IssuerKey>, String>;

/// What others than cores want of the gate.
#[derive(Default)]
struct Mailbox {
    /// A configuration to be taken over: the newest counts.
    config: Option<AccessConfig>,
    /// The files of keys are to be read again.
    reread: bool,
}

/// Lets others than cores tell the gate something. Cheap to clone.
#[derive(Clone)]
pub(crate) struct GateHandle {
    mailbox: Arc<Mutex<Mailbox>>,
    bell: Arc<Bell>,
}

impl GateHandle {
    /// Has the gate read its keys again, and take over a configuration if there is one, which was checked.
    pub(crate) fn reload(&self, config: Option<AccessConfig>) {
        {
            let mut mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
            mailbox.reread = true;
            mailbox.config = config.or(mailbox.config.take());
        }
        self.bell.ring();
    }
}

/// The gate's rings, before its thread runs.
pub(crate) struct GateDesks {
    bell: Arc<Bell>,
    desks: Vec<Desk>,
    mailbox: Arc<Mutex<Mailbox>>,
}

impl GateDesks {
    /// Makes the rings to all cores, whose bells are given.
    pub(crate) fn new(cores: &[Arc<Bell>]) -> io::Result<(Self, Vec<GateLink>)> {
        let bell = Bell::new()?;
        let (links, desks) = cores.iter().map(|core| link(&bell, core)).unzip();
        Ok((Self { bell, desks, mailbox: Arc::default() }, links))
    }

    pub(crate) fn handle(&self) -> GateHandle {
        GateHandle { mailbox: Arc::clone(&self.mailbox), bell: Arc::clone(&self.bell) }
    }
}

/// The gate's thread.
pub(crate) struct Gate {
    bell: Arc<Bell>,
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Gate {
    /// Starts the gate. `origin` is the moment the node's clocks count from.
    pub(crate) fn start(keeper: Keeper, desks: GateDesks, origin: Instant, alarm: Arc<Alarm>) -> io::Result<Self> {
        let GateDesks { bell, desks, mailbox } = desks;
        let done = Arc::new(AtomicBool::new(false));
        let hasher = Hand::start("thalweg-passwords", HASHES_WAITING_MAX, Arc::clone(&bell), hash_one())?;
        let models = match keeper.models() {
            Some(desk) => Some(Modellers::start(&desk, &bell)?),
            None => None,
        };
        let room = Room {
            keeper,
            desks,
            mailbox,
            bell: Arc::clone(&bell),
            done: Arc::clone(&done),
            hasher,
            models,
            fetchers: BTreeMap::new(),
            retired: Vec::new(),
            origin,
        };
        let work = move || {
            // Without the gate nothing could be revoked any more.
            let _guard = alarm.guard("the gate".to_owned());
            room.work();
        };
        let thread = std::thread::Builder::new().name("thalweg-gate".into()).spawn(work)?;
        Ok(Self { bell, done, thread })
    }

    /// Ends the gate, once the cores are done.
    pub(crate) fn shut_down(self) {
        self.done.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.join().is_err() {
            tracing::error!("the gate's thread panicked");
        }
    }
}

/// Everything the gate's thread has.
struct Room {
    keeper: Keeper,
    desks: Vec<Desk>,
    mailbox: Arc<Mutex<Mailbox>>,
    bell: Arc<Bell>,
    done: Arc<AtomicBool>,
    hasher: Hand<HashJob, (u64, HashResult)>,
    models: Option<Modellers>,
    /// A thread each, since one issuer may be slow. They end by themselves, with the gate or after the answer they wait for.
    fetchers: BTreeMap<u64, Hand<Arc<Issuer>, Keys>>,
    retired: Vec<Arc<Access>>,
    origin: Instant,
}

impl Room {
    fn work(mut self) {
        self.keeper.set_time(self.now());
        self.keeper.timeout();
        loop {
            self.turn();
            if self.done.load(Ordering::Acquire) {
                // What the cores noted last.
                self.turn();
                return self.keeper.close();
            }
            self.bell.prepare();
            if self.nothing_waits() && !self.done.load(Ordering::Acquire) {
                let left_us = self.keeper.next_deadline_us().saturating_sub(self.now().mono_us);
                let left = Duration::from_micros(left_us);
                // A core takes its snapshots in its next turn, and does not say so.
                let held = self.desks.iter().any(Desk::holds_access);
                self.bell.wait(Some(if held { left.min(HELD_RETRY) } else { left }));
            }
            self.bell.awake();
        }
    }

    fn now(&self) -> Now {
        Now::since(self.origin)
    }

    fn nothing_waits(&self) -> bool {
        let mailbox = self.mailbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mail = mailbox.reread || mailbox.config.is_some();
        !mail
            && self.desks.iter().all(Desk::is_empty)
            && self.hasher.is_empty()
            && self.models.as_ref().is_none_or(Modellers::is_empty)
            && self.fetchers.values().all(Hand::is_empty)
    }

    fn turn(&mut self) {
        self.keeper.set_time(self.now());
        self.take_mail();
        while let Some((ticket, result)) = self.hasher.take() {
            self.keeper.hashed(ticket, result);
        }
        while let Some((ticket, result)) = self.models.as_mut().and_then(Modellers::take) {
            self.keeper.model_done(ticket, result);
        }
        let answers: Vec<(u64, Keys)> =
            self.fetchers.iter_mut().filter_map(|(number, hand)| Some((*number, hand.take()?))).collect();
        for (number, keys) in answers {
            self.keeper.issuer_answered(number, keys);
        }
        for core in 0..self.desks.len() {
            self.desks[core].noted(|event| self.keeper.noted(event));
            for _ in 0..GATE_QUESTIONS_MAX {
                let Some(question) = self.desks[core].question() else { break };
                self.keeper.handle(core, question);
                // Each is answered, and in effect, before the next is begun: some write files.
                self.carry_out();
            }
        }
        if self.keeper.next_deadline_us() <= self.now().mono_us {
            self.keeper.timeout();
        }
        self.carry_out();
        self.keeper.flush_audit();
        self.retired.retain(|access| Arc::strong_count(access) > 1);
        let numbers: Vec<u64> = self.keeper.issuer_numbers().collect();
        self.fetchers.retain(|number, _| numbers.contains(number));
    }

    fn take_mail(&mut self) {
        let mail = std::mem::take(&mut *self.mailbox.lock().unwrap_or_else(PoisonError::into_inner));
        if mail.reread
            && let Err(error) = self.keeper.reread_keys()
        {
            tracing::error!(%error, "the signing keys stay as they were");
        }
        if let Some(config) = mail.config
            && let Err(error) = self.keeper.configure(config)
        {
            tracing::error!(%error, "the settings of access stay as they were");
        }
    }

    fn carry_out(&mut self) {
        // First what is in effect, then who is told that it is.
        let news = self.keeper.news();
        for desk in &mut self.desks {
            desk.send(news.as_ref());
        }
        self.retired.extend(news);
        if self.retired.len() > RETIRED_MAX {
            self.retired.remove(0);
        }
        while let Some(output) = self.keeper.poll() {
            match output {
                Output::Tell(asked, told) => self.desks[asked.core].answer(asked.number, told),
                Output::Hash(job) => {
                    // The keeper gives out no more than find room.
                    if let Err(job) = self.hasher.give(job) {
                        self.keeper.hashed(job.ticket, refused(&job.task));
                    }
                }
                Output::Fetch(number, issuer) => self.fetch(number, issuer),
                Output::Model(ticket, job) => {
                    let given = self.models.as_mut().map_or(Err(()), |models| models.give(ticket, job));
                    if given.is_err() {
                        let text = "too many models are loaded or unloaded already; try again later";
                        let reject = Reject::new(RejectCode::Busy, text).retry_after_ms(1_000);
                        self.keeper.model_done(ticket, Err(reject));
                    }
                }
            }
        }
    }

    fn fetch(&mut self, number: u64, issuer: Arc<Issuer>) {
        if !self.fetchers.contains_key(&number) {
            let work = |issuer: Arc<Issuer>| fetch::keys_of(&issuer);
            match Hand::start("thalweg-issuer", 1, Arc::clone(&self.bell), work) {
                Ok(hand) => drop(self.fetchers.insert(number, hand)),
                Err(error) => return self.keeper.issuer_answered(number, Err(format!("no thread for it: {error}"))),
            }
        }
        let hand = self.fetchers.get_mut(&number).expect("it is there or was made");
        if hand.give(issuer).is_err() {
            self.keeper.issuer_answered(number, Err("it is still being asked".into()));
        }
    }
}

type ModelHand = Hand<(u64, ModelJob), (u64, Result<Value, Reject>)>;

/// Threads that load and unload models: one each, since who unloads waits for those that still read.
struct Modellers {
    loader: ModelHand,
    unloader: ModelHand,
}

impl Modellers {
    fn start(desk: &Arc<ModelDesk>, bell: &Arc<Bell>) -> io::Result<Self> {
        let hand = |name: &str| {
            let desk = Arc::clone(desk);
            let work = move |(ticket, job): (u64, ModelJob)| (ticket, desk.work(&job));
            Hand::start(name, MODEL_JOBS_MAX, Arc::clone(bell), work)
        };
        Ok(Self { loader: hand("thalweg-load")?, unloader: hand("thalweg-unload")? })
    }

    fn give(&mut self, ticket: u64, job: ModelJob) -> Result<(), ()> {
        let hand = if matches!(job, ModelJob::Load { .. }) { &mut self.loader } else { &mut self.unloader };
        hand.give((ticket, job)).map_err(drop)
    }

    fn take(&mut self) -> Option<(u64, Result<Value, Reject>)> {
        self.loader.take().or_else(|| self.unloader.take())
    }

    fn is_empty(&self) -> bool {
        self.loader.is_empty() && self.unloader.is_empty()
    }
}

fn refused(task: &HashTask) -> HashResult {
    match task {
        HashTask::Make => HashResult::Made(Err("too many passwords wait".into())),
        HashTask::Compare(_) => HashResult::Compared(false),
    }
}

/// What the thread for passwords does with each.
fn hash_one() -> impl Fn(HashJob) -> (u64, HashResult) + Send + 'static {
    // What a password is compared with whose user is not there, so that this takes as long.
    let nobody = OnceLock::<String>::new();
    move |HashJob { ticket, password, task }| {
        let result = match task {
            HashTask::Make => HashResult::Made(users::hash(&password.0).map_err(|error| error.to_string())),
            HashTask::Compare(Some(Secret(hash))) => HashResult::Compared(users::verify(&password.0, &hash)),
            HashTask::Compare(None) => {
                let nobody = nobody.get_or_init(|| users::hash("nobody").unwrap_or_default());
                users::verify(&password.0, nobody);
                HashResult::Compared(false)
            }
        };
        (ticket, result)
    }
}
