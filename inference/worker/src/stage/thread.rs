//! The loop of one inference thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::limits::{INTAKE_SLICE_US, TURN_INPUTS_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::{Bell, Consumer, Producer};
use thalweg_scheduler::{Counters, Input, Outlet, SequenceId};

use super::compiling::{Compiling, Ready};
use super::embed::Embedder;
use super::loading::{Change, Gone, Leave, Rest, Unloaded};
use super::runtime::{Runtime, tell_times};
use super::stats::{Published, ThreadStats};
use super::{Command, Event, LoadedModel, Submit, Times};
use crate::team::Team;

/// Longest sleep of a thread with nothing to do: how long a dropped link goes unnoticed.
const SLEEP_MAX: Duration = Duration::from_millis(250);
/// Sleep of a thread whose events a core does not take; cores do not ring when they do.
const SLEEP_BLOCKED: Duration = Duration::from_millis(1);
/// How old published stats get while the thread works.
const STATS_AGE: Duration = Duration::from_millis(200);

/// What a thread shares with those who talk to it.
pub(super) struct Shared {
    pub(super) bell: Arc<Bell>,
    pub(super) stop: AtomicBool,
    pub(super) stats: Published,
    /// Whether there are changes, so that nobody takes the lock in vain.
    pub(super) has_changes: AtomicBool,
    changes: Mutex<Vec<Change>>,
    /// The models there are, those on their way in or out included, and whether they stay.
    names: Mutex<Vec<(Name, bool)>>,
}

impl Shared {
    pub(super) fn new(bell: Arc<Bell>, names: impl Iterator<Item = Name>) -> Self {
        let names = Mutex::new(names.map(|name| (name, true)).collect());
        let (stop, has_changes) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { bell, stop, stats: Published::default(), has_changes, changes: Mutex::default(), names }
    }

    /// What the leader is to do. Held for moments only.
    pub(super) fn changes(&self) -> MutexGuard<'_, Vec<Change>> {
        // Nothing panics while it is held.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The models there are. Likewise; never locked by the leader.
    pub(super) fn names(&self) -> MutexGuard<'_, Vec<(Name, bool)>> {
        // Nothing panics while it is held.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes to a core.
#[allow(clippy::large_enum_variant, reason = "almost all are events")]
pub(super) enum Told {
    Event(Event),
    /// The model that embeds texts of requests that name none.
    Embeds(Option<Name>),
}

/// The rings from and to one core.
pub(super) struct Port {
    commands: Consumer<Command>,
    events: Producer<Told>,
    bell: Arc<Bell>,
    /// Events that found the ring full. No command is taken and no step is run for this core while there are any, so
    /// there are at most those of one turn: a few for each command taken and each row.
    held: VecDeque<Told>,
    blocked: bool,
    rings: bool,
    gone: bool,
}

impl Port {
    pub(super) fn new(commands: Consumer<Command>, events: Producer<Told>, bell: Arc<Bell>) -> Self {
        Self { commands, events, bell, held: VecDeque::new(), blocked: false, rings: false, gone: false }
    }

    fn flush(&mut self) {
        while let Some(event) = self.held.pop_front() {
            if let Err(event) = self.events.push(event) {
                self.held.push_front(event);
                return;
            }
            self.rings = true;
        }
    }
}

/// The ports to all cores.
pub(super) struct Ports {
    ports: Vec<Port>,
}

impl Ports {
    pub(super) fn new(ports: Vec<Port>) -> Self {
        Self { ports }
    }

    /// Puts an event on a core's ring, or holds it until there is room.
    pub(super) fn emit(&mut self, port: usize, event: Event) {
        self.tell(port, Told::Event(event));
    }

    fn tell(&mut self, port: usize, event: Told) {
        let port = &mut self.ports[port];
        if port.gone {
            return;
        }
        if !port.held.is_empty() {
            return port.held.push_back(event);
        }
        match port.events.push(event) {
            Ok(()) => port.rings = true,
            Err(event) => port.held.push_back(event),
        }
    }

    fn ring(&mut self) {
        for port in self.ports.iter_mut().filter(|port| port.rings) {
            port.rings = false;
            port.bell.ring();
        }
    }
}

/// The inference thread: it leads the team that computes.
pub(super) struct Thread {
    runtimes: Vec<Runtime>,
    embedder: Embedder,
    compiling: Compiling,
    ports: Ports,
    shared: Arc<Shared>,
    stats: ThreadStats,
    started: Instant,
    published: Instant,
    /// The port whose commands are taken first, so that none is preferred.
    turn: usize,
    /// Models that are on their way out.
    leaving: Vec<(Name, Leave)>,
    /// What was counted at models that are gone.
    gone: Counters,
}

impl Thread {
    /// `models`: each with its blocks of KV memory.
    pub(super) fn new(
        models: Vec<(LoadedModel, usize)>,
        embedder: Embedder,
        compiling: Compiling,
        team: Arc<Team>,
        ports: Vec<Port>,
        shared: Arc<Shared>,
    ) -> Self {
        let share = models.len();
        let now = Instant::now();
        Self {
            runtimes: models
                .into_iter()
                .map(|(model, blocks)| Runtime::new(model, blocks, Arc::clone(&team), share))
                .collect(),
            embedder,
            compiling,
            ports: Ports::new(ports),
            shared,
            stats: ThreadStats { threads: team.count() as u64, ..ThreadStats::default() },
            started: now,
            published: now,
            turn: 0,
            leaving: Vec::new(),
            gone: Counters::default(),
        }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let worked = catch_unwind(AssertUnwindSafe(|| self.turn())).unwrap_or_else(|_| {
                self.recover();
                true
            });
            self.ports.ring();
            if !worked {
                self.publish();
                self.sleep();
            } else if self.published.elapsed() > STATS_AGE {
                self.publish();
            }
        }
        self.compiling.cancel(|_, _| true, &mut self.ports);
        let now_us = self.now_us();
        for runtime in &mut self.runtimes {
            runtime.cancel_all(now_us, None, &mut self.ports, &mut self.stats);
        }
        let reject = Reject::new(RejectCode::Draining, "the inference stage ends; ask again later");
        self.embedder.refuse_all(&reject, &mut self.ports, &mut self.stats);
        self.ports.ports.iter_mut().for_each(Port::flush);
        self.ports.ring();
        self.publish();
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Takes commands in, then runs a step of every model. False if there was nothing to do.
    fn turn(&mut self) -> bool {
        self.settle_ports();
        if self.shared.has_changes.swap(false, Ordering::AcqRel) {
            self.take_changes();
        }
        if !self.leaving.is_empty() {
            self.settle_leaving();
        }
        let mut worked = self.take_in() | self.take_compiled();
        let started = self.started;
        let mut stepped = false;
        for runtime in &mut self.runtimes {
            let now_us = || started.elapsed().as_micros() as u64;
            stepped |= runtime.step(now_us, &mut self.ports, &mut self.stats);
            // At once, before the next model's step.
            self.ports.ring();
        }
        worked |= stepped;
        worked | self.embedder.work(stepped, &mut self.ports, &mut self.stats)
    }

    /// Flushes held events, blocks and unblocks outlets, and notices cores that went away.
    fn settle_ports(&mut self) {
        let now_us = self.now_us();
        for n in 0..self.ports.ports.len() {
            let port = &mut self.ports.ports[n];
            port.flush();
            let full = !port.held.is_empty();
            if full != port.blocked {
                port.blocked = full;
                self.stats.outlets_blocked += u64::from(full);
                for runtime in &mut self.runtimes {
                    let input = Input::Block { outlet: Outlet(n as u16), blocked: full };
                    runtime.handle(now_us, input, &mut self.ports, &mut self.stats);
                }
            }
            let port = &mut self.ports.ports[n];
            if port.gone {
                // What it sent last is still on the ring, and nobody waits for it.
                while port.commands.pop().is_some() {}
                continue;
            }
            if port.events.is_abandoned() {
                port.gone = true;
                port.held.clear();
                while port.commands.pop().is_some() {}
                self.embedder.forget(n);
                self.compiling.cancel(|_, port| port == n, &mut self.ports);
                for runtime in &mut self.runtimes {
                    runtime.cancel_all(now_us, Some(n), &mut self.ports, &mut self.stats);
                }
            }
        }
    }

    /// Takes commands from the rings, for a bounded number and a bounded time.
    fn take_in(&mut self) -> bool {
        let start = Instant::now();
        let slice = Duration::from_micros(INTAKE_SLICE_US);
        let mut worked = false;
        self.turn = self.turn.wrapping_add(1);
        for n in 0..self.ports.ports.len() {
            let port = (self.turn + n) % self.ports.ports.len();
            for _ in 0..TURN_INPUTS_MAX {
                if !self.ports.ports[port].held.is_empty() || start.elapsed() > slice {
                    break;
                }
                let Some(command) = self.ports.ports[port].commands.pop() else { break };
                self.command(port, command);
                worked = true;
            }
        }
        worked
    }

    /// Hands on the generations whose constraints were compiled.
    fn take_compiled(&mut self) -> bool {
        let mut worked = false;
        while let Some(ready) = self.compiling.ready() {
            worked = true;
            match ready {
                Ready::Compiled(port, submit) => self.submit(self.now_us(), port, *submit),
                Ready::Refused(port, submit, reject) => self.refuse_held(port, &submit, reject),
            }
        }
        worked
    }

    fn refuse_held(&mut self, port: usize, submit: &Submit, reject: Reject) {
        self.stats.refused_invalid += 1;
        tell_times(submit.traced.then(|| Times::new(submit.generation, Instant::now())), port, &mut self.ports);
        self.refuse(port, submit.generation, reject);
    }

    /// Takes models over that were loaded, and begins to part with those that are to go.
    fn take_changes(&mut self) {
        let changes = std::mem::take(&mut *self.shared.changes());
        for change in changes {
            match change {
                Change::Add(runtime) => self.add(runtime),
                Change::AddEncoder(encoder) => self.embedder.add(*encoder),
                Change::Remove(name, leave) => {
                    self.embedder.leave(&name);
                    self.leaving.push((name, leave));
                }
            }
        }
        self.tell_embeds();
    }

    fn add(&mut self, mut runtime: Box<Runtime>) {
        // It is told of cores that do not take their events now; of later ones with the others.
        let now_us = self.now_us();
        for n in 0..self.ports.ports.len() {
            if self.ports.ports[n].blocked {
                let input = Input::Block { outlet: Outlet(n as u16), blocked: true };
                runtime.handle(now_us, input, &mut self.ports, &mut self.stats);
            }
        }
        self.runtimes.push(*runtime);
    }

    fn tell_embeds(&mut self) {
        for port in 0..self.ports.ports.len() {
            self.ports.tell(port, Told::Embeds(self.embedder.first().cloned()));
        }
    }

    /// Parts with models whose last work is done, or whose time is over.
    fn settle_leaving(&mut self) {
        let now = Instant::now();
        for at in (0..self.leaving.len()).rev() {
            let name = self.leaving[at].0.clone();
            let is_over = now >= self.leaving[at].1.until;
            let ended = if is_over { self.end_model(&name) } else { 0 };
            self.leaving[at].1.ended += ended;
            let works = self.runtimes.iter().any(|runtime| runtime.loaded().info.name == name && !runtime.is_empty());
            if works || self.embedder.works(&name) {
                continue;
            }
            let (name, leave) = self.leaving.remove(at);
            self.part_with(&name, leave);
        }
    }

    /// Ends what a model does; gives how much that was.
    fn end_model(&mut self, name: &Name) -> u64 {
        let (now_us, mut ended) = (self.now_us(), 0);
        if let Some(runtime) = self.runtimes.iter_mut().find(|runtime| runtime.loaded().info.name == *name) {
            let why = format!("{name} was unloaded");
            ended += runtime.cancel_for(now_us, &why, &mut self.ports, &mut self.stats);
        }
        let text = format!("{name} was unloaded; ask another model");
        let reject = Reject::new(RejectCode::ModelUnknown, text);
        ended + self.embedder.refuse_of(name, &reject, &mut self.ports, &mut self.stats)
    }

    /// Hands a model back to who asked for that.
    fn part_with(&mut self, name: &Name, leave: Leave) {
        let mut blocks_used = 0;
        let rest = match self.runtimes.iter().position(|runtime| runtime.loaded().info.name == *name) {
            Some(at) => {
                let runtime = self.runtimes.remove(at);
                let mut counters = runtime.stats().counters;
                blocks_used = counters.blocks_used;
                // What it had is had no more; what it did was done.
                (counters.blocks_total, counters.blocks_used, counters.blocks_cached) = (0, 0, 0);
                (counters.blocks_shared, counters.blocks_promised) = (0, 0);
                add_counters(&mut self.gone, &counters);
                Rest::Runtime { _it: Box::new(runtime) }
            }
            None => match self.embedder.remove(name) {
                Some(encoder) => Rest::Encoder { _it: Box::new(encoder) },
                None => Rest::Nothing,
            },
        };
        // Published first, so that whoever hears of it finds it so.
        self.publish();
        let unloaded = Unloaded { ended: leave.ended, blocks_used };
        let _ = leave.tell.send(Gone { unloaded, _rest: rest });
    }

    fn command(&mut self, port: usize, command: Command) {
        let now_us = self.now_us();
        let (generation, input) = match command {
            Command::Submit(submit) => return self.submit(now_us, port, *submit),
            Command::Embed(embed) => {
                let others: Vec<&Name> = self.runtimes.iter().map(|runtime| &runtime.loaded().info.name).collect();
                return self.embedder.submit(port, *embed, &others, &mut self.ports, &mut self.stats);
            }
            Command::Credit { generation, until } if self.compiling.credit(generation, until) => return,
            Command::Cancel { generation } if self.compiling.has(generation) => {
                return self.compiling.cancel(|id, _| id == generation, &mut self.ports);
            }
            Command::Credit { generation, until } => {
                (generation, Input::Credit { id: SequenceId(generation.0), until })
            }
            Command::Cancel { generation } => (generation, Input::Cancel(SequenceId(generation.0))),
        };
        if let Some(runtime) = self.runtimes.iter_mut().find(|runtime| runtime.has(generation)) {
            runtime.handle(now_us, input, &mut self.ports, &mut self.stats);
        }
    }

    fn submit(&mut self, now_us: u64, port: usize, submit: Submit) {
        let generation = submit.generation;
        if self.compiling.has(generation) || self.runtimes.iter().any(|runtime| runtime.has(generation)) {
            let text = format!("{generation} is running already; take another id");
            self.stats.refused_invalid += 1;
            // Nothing is told of its times: those would be taken for the other's.
            return self.refuse(port, generation, Reject::new(RejectCode::ParameterInvalid, text));
        }
        let leaving = &self.leaving;
        let stays = |runtime: &Runtime| !leaving.iter().any(|(name, _)| *name == runtime.loaded().info.name);
        let mut staying = self.runtimes.iter_mut().filter(|runtime| stays(runtime));
        let found = match &submit.model {
            None => staying.next(),
            Some(name) => staying.find(|runtime| runtime.loaded().info.name == *name),
        };
        if let Some(runtime) = found {
            let (submit, refusal) = match self.compiling.hold(port, submit, runtime.loaded()) {
                None => return,
                Some(given_back) => given_back,
            };
            if let Some(reject) = refusal {
                return self.refuse_held(port, &submit, reject);
            }
            return runtime.submit(now_us, port, submit, &mut self.ports, &mut self.stats);
        }
        let have = self.runtimes.iter().filter(|runtime| stays(runtime));
        let have: Vec<&str> = have.map(|runtime| runtime.loaded().info.name.as_str()).collect();
        let embeds = submit.model.as_ref().is_some_and(|name| self.embedder.has(name));
        let code = if embeds { RejectCode::EmbeddingsUnsupported } else { RejectCode::ModelUnknown };
        let text = match (&submit.model, have.is_empty()) {
            (Some(name), _) if embeds => {
                format!("{name} makes embeddings and nothing else; there are: [{}]", have.join(", "))
            }
            (_, true) => "this node serves no model; start it with one".to_owned(),
            (Some(name), false) => format!("there is no model {name}; there are: {}", have.join(", ")),
            (None, false) => "name a model".to_owned(),
        };
        self.stats.refused_model += 1;
        tell_times(submit.traced.then(|| Times::new(generation, Instant::now())), port, &mut self.ports);
        self.refuse(port, generation, Reject::new(code, text));
    }

    fn refuse(&mut self, port: usize, generation: GenerationId, reject: Reject) {
        self.ports.emit(port, Event::Refused { generation, reject });
    }

    /// After a panic of our own code: everyone on this thread is told, and it starts anew.
    fn recover(&mut self) {
        tracing::error!("an inference thread panicked outside of a model; its generations fail");
        self.stats.panics += 1;
        for runtime in &mut self.runtimes {
            let message = "the inference thread failed; the node's log says more";
            runtime.fail_all(message, &mut self.ports, &mut self.stats);
        }
        let reject = Reject::new(RejectCode::Internal, "the inference thread failed; the node's log says more");
        self.embedder.refuse_all(&reject, &mut self.ports, &mut self.stats);
        self.ports.ports.iter_mut().for_each(|port| port.blocked = false);
    }

    fn sleep(&mut self) {
        let bell = Arc::clone(&self.shared.bell);
        bell.prepare();
        let has_commands = self.ports.ports.iter().any(|port| !port.commands.is_empty());
        let blocked = self.ports.ports.iter().any(|port| port.blocked);
        let has_compiled = self.compiling.is_ready();
        let has_changes = self.shared.has_changes.load(Ordering::Acquire);
        let is_idle = !(has_commands || has_compiled);
        if (blocked || is_idle) && !has_changes && !self.shared.stop.load(Ordering::Acquire) {
            let now_us = self.now_us();
            let leave =
                self.leaving.iter().map(|(_, leave)| leave.until.duration_since(self.started).as_micros() as u64);
            let wakes = self.runtimes.iter().filter_map(Runtime::wake_at_us).chain(leave);
            let wake = wakes.min().map_or(SLEEP_MAX, |at| Duration::from_micros(at.saturating_sub(now_us).max(100)));
            let longest = if blocked { SLEEP_BLOCKED } else { SLEEP_MAX };
            bell.wait(Some(wake.min(longest)));
        }
        bell.awake();
    }

    fn publish(&mut self) {
        self.stats.models = self.runtimes.iter().map(Runtime::stats).collect();
        let mut counters = self.gone;
        for model in &self.stats.models {
            add_counters(&mut counters, &model.counters);
        }
        self.stats.counters = counters;
        self.stats.embed_waiting = self.embedder.len() as u64;
        self.stats.commands_queued = self.ports.ports.iter().map(|port| port.commands.len() as u64).sum();
        self.stats.events_held = self.ports.ports.iter().map(|port| port.held.len() as u64).sum();
        self.shared.stats.publish(&self.stats);
        self.published = Instant::now();
    }
}

/// Adds what another scheduler counted.
fn add_counters(sum: &mut Counters, other: &Counters) {
    let mut other = *other;
    for pick in FIELDS {
        *pick(sum) += *pick(&mut other);
    }
}

/// Every counter, to add those of several models.
const FIELDS: [fn(&mut Counters) -> &mut u64; 33] = [
    |c| &mut c.steps,
    |c| &mut c.rows,
    |c| &mut c.decode_rows,
    |c| &mut c.prefill_rows,
    |c| &mut c.recomputed_rows,
    |c| &mut c.rows_without_credit,
    |c| &mut c.tokens_without_credit,
    |c| &mut c.tokens,
    |c| &mut c.submitted,
    |c| &mut c.resumed,
    |c| &mut c.refused_busy,
    |c| &mut c.refused_tenant,
    |c| &mut c.refused_long,
    |c| &mut c.expired,
    |c| &mut c.finished,
    |c| &mut c.cancelled,
    |c| &mut c.parks,
    |c| &mut c.evictions,
    |c| &mut c.preemptions,
    |c| &mut c.prefix_lookups,
    |c| &mut c.prefix_tokens,
    |c| &mut c.prefix_hit_tokens,
    |c| &mut c.blocks_copied,
    |c| &mut c.blocks_dropped,
    |c| &mut c.blocks_leaked,
    |c| &mut c.waiting,
    |c| &mut c.running,
    |c| &mut c.parked,
    |c| &mut c.blocks_total,
    |c| &mut c.blocks_used,
    |c| &mut c.blocks_cached,
    |c| &mut c.blocks_shared,
    |c| &mut c.blocks_promised,
];
