//! The world around the shards: the clock, the queue of what happens next, and the judgement at the end.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use thalweg_protocol::ids::{CoreId, GenerationId, Watch};
use thalweg_shard::{InferenceCommand, Input, Link};
use thalweg_workload::auditor::Auditor;

use crate::client::Client;
use crate::faults::{Fault, Faults};
use crate::node::{Node, Wire};
use crate::trace::Trace;

/// Simulated time that everything has to end in once clients do nothing new, in microseconds.
const SETTLE_US: u64 = 60_000_000;
/// Events of a run, after which it is taken for one that never ends.
const EVENTS_MAX: u64 = 5_000_000;

/// A defect made on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A message never reaches a reader that is owed it.
    LoseDelivery,
    /// A message reaches a reader twice.
    DoubleDelivery,
    /// Two messages reach a reader in the wrong order.
    SwapDeliveries,
    /// Tokens never reach their watcher.
    LoseTokens,
    /// Tokens reach their watcher twice.
    DoubleTokens,
    /// A watcher gets another text than the model's.
    ChangeText,
}

/// How to run a seed.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Things that clients do in all.
    pub operations: u64,
    /// Whether to print what happens.
    pub print: bool,
    /// A defect to make.
    pub plant: Option<Plant>,
}

impl Default for Options {
    fn default() -> Self {
        Self { operations: 400, print: false, plant: None }
    }
}

/// What came of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The hash of all that went into and out of the node.
    pub hash: u64,
    /// What happened how often.
    pub faults: Faults,
    /// Broken promises; empty if all is well.
    pub violations: Vec<String>,
    /// Things that happened.
    pub events: u64,
    /// Simulated time, in microseconds.
    pub us: u64,
}

/// Where the bytes of a node go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    Command,
    Delivery,
    Generation(Watch),
}

/// What happens at a moment.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client does something.
    Act { client: usize },
    /// Bytes of a client's command lane arrive at the node.
    ToNode { link: Link, bytes: Bytes },
    /// The node learns that a connection is gone.
    Lost { link: Link },
    /// Bytes arrive at a client.
    ToClient { link: Link, lane: Lane, bytes: Bytes },
    /// A client learns that the node closed its connection.
    Closed { link: Link },
    /// Something reaches a shard.
    Input { core: CoreId, input: Input },
    /// A core runs a turn.
    Turn { core: CoreId },
    /// A core's log has made everything up to its mark durable.
    Flushed { core: CoreId },
    /// A transport takes bytes.
    Pump { link: Link },
    /// A transport takes bytes again.
    Unstall { link: Link },
    /// A command reaches the inference stage.
    Command { core: CoreId, command: InferenceCommand },
    /// The inference stage looks for work.
    BeginStep,
    /// A step is computed.
    EndStep,
    /// An outlet of the inference stage is blocked, or no longer.
    Block { core: CoreId, blocked: bool },
}

/// What goes the same way arrives in the order in which it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    Mesh(u16, u16),
    ToStage(u16),
    FromStage(u16),
    ToNode(Link),
    ToClient(Link, Lane),
    Drained(Link),
}

/// One run.
pub(crate) struct World {
    pub(crate) now_us: u64,
    pub(crate) rng: StdRng,
    pub(crate) options: Options,
    pub(crate) node: Node,
    pub(crate) wires: BTreeMap<Link, Wire>,
    pub(crate) clients: Vec<Client>,
    pub(crate) auditor: Auditor,
    pub(crate) trace: Trace,
    pub(crate) faults: Faults,
    pub(crate) violations: Vec<String>,
    /// Generations somebody heard of, and how many of their tokens.
    pub(crate) heard: BTreeMap<GenerationId, u32>,
    pub(crate) operations_left: u64,
    /// Clients do nothing new; everything is to come to its end.
    pub(crate) settling: bool,
    pub(crate) drain_at: Option<u64>,
    pub(crate) draining: bool,
    /// Bodies are large, so that queues fill.
    pub(crate) large: bool,
    pub(crate) channels: u32,
    /// The first channel keeps little history.
    pub(crate) trimmed: bool,
    pub(crate) planted: u32,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    arrivals: BTreeMap<Route, u64>,
    next_reader: u64,
}

/// Runs a seed.
pub fn simulate(seed: u64, options: Options) -> Report {
    let mut rng = StdRng::seed_from_u64(seed);
    let node = Node::new(&mut rng);
    let clients = (0..rng.random_range(2..=6)).map(Client::new).collect();
    let drains = rng.random_bool(0.25);
    let world = World {
        now_us: 1,
        node,
        clients,
        drain_at: drains.then(|| rng.random_range(0..=options.operations / 3)),
        large: rng.random_bool(0.3),
        channels: rng.random_range(1..=5),
        trimmed: rng.random_bool(0.3),
        rng,
        options,
        wires: BTreeMap::new(),
        auditor: Auditor::new(),
        trace: Trace::new(options.print),
        faults: Faults::default(),
        violations: Vec::new(),
        heard: BTreeMap::new(),
        operations_left: options.operations,
        settling: false,
        draining: false,
        planted: 0,
        queue: BTreeMap::new(),
        queued: 0,
        arrivals: BTreeMap::new(),
        next_reader: 0,
    };
    world.run()
}

impl World {
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.rng.random_bool(p)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.rng.random_range(0..n.max(1))
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.trace.line(self.now_us, format_args!("VIOLATION {text}"));
        self.violations.push(text);
    }

    pub(crate) fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.line(self.now_us, event);
    }

    /// A number that no other subscription or watch of the run has.
    pub(crate) fn fresh_number(&mut self) -> u64 {
        self.next_reader += 1;
        self.next_reader
    }

    pub(crate) fn at(&mut self, at_us: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at_us, self.queued), event);
    }

    pub(crate) fn within(&mut self, delay_us: u64, event: Event) {
        let at = self.now_us + 1 + self.below(delay_us);
        self.at(at, event);
    }

    /// Sends along a route, where nothing overtakes.
    pub(crate) fn send(&mut self, route: Route, delay_us: u64, event: Event) {
        let at = self.now_us + 1 + self.below(delay_us);
        let last = self.arrivals.entry(route).or_insert(0);
        *last = at.max(*last);
        let at = *last;
        self.at(at, event);
    }

    fn run(mut self) -> Report {
        for client in 0..self.clients.len() {
            self.within(1_000, Event::Act { client });
        }
        let (mut events, mut settle_until) = (0_u64, u64::MAX);
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > settle_until {
                self.violation(format!("not at rest after {} s: {event:?}", SETTLE_US / 1_000_000));
                break;
            }
            events += 1;
            if events > EVENTS_MAX {
                self.violation(format!("not at rest after {EVENTS_MAX} events"));
                break;
            }
            self.now_us = at;
            self.happen(event);
            if self.operations_left == 0 && !self.settling {
                self.settling = true;
                settle_until = self.now_us + SETTLE_US;
                self.settle();
            }
        }
        self.judge(events)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act { client } => self.act(client),
            Event::ToNode { link, bytes } => self.bytes_to_node(link, bytes),
            Event::Lost { link } => self.lost(link),
            Event::ToClient { link, lane, bytes } => self.bytes_to_client(link, lane, bytes),
            Event::Closed { link } => self.closed_by_node(link),
            Event::Input { core, input } => self.input(core, input),
            Event::Turn { core } => self.turn(core),
            Event::Flushed { core } => self.flushed(core),
            Event::Pump { link } => self.pump(link),
            Event::Unstall { link } => self.unstall(link),
            Event::Command { core, command } => self.command(core, command),
            Event::BeginStep => self.begin_step(),
            Event::EndStep => self.end_step(),
            Event::Block { core, blocked } => self.block(core, blocked),
        }
    }

    /// Clients stop making trouble: everybody comes back, reads, and gives credit.
    fn settle(&mut self) {
        self.note(format_args!("settle"));
        let links: Vec<Link> = self.wires.keys().copied().collect();
        links.into_iter().for_each(|link| self.unstall(link));
        for client in 0..self.clients.len() {
            self.settle_client(client);
        }
    }

    fn judge(mut self, events: u64) -> Report {
        self.judge_node();
        for client in 0..self.clients.len() {
            self.judge_client(client);
        }
        let stage = self.node.stage.counters();
        self.faults.add(Fault::Parked, stage.parks);
        self.faults.add(Fault::Evicted, stage.evictions);
        for core in &self.node.cores {
            self.faults.add(Fault::HistoryRead, core.shard.counters().history_reads);
        }
        let (found, count) = self.auditor.finish(true);
        let mut violations = self.violations;
        violations.extend(found.iter().map(|violation| format!("{violation:?}")));
        if count > found.len() as u64 {
            violations.push(format!("and {} more", count - found.len() as u64));
        }
        for violation in &violations {
            self.trace.line(self.now_us, format_args!("judged: {violation}"));
        }
        Report { hash: self.trace.hash(), faults: self.faults, violations, events, us: self.now_us }
    }
}
