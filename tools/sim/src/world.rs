//! The world around the shards: the clock, the queue of what happens next, and the judgement at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thalweg_domain::quota::Limits;
use thalweg_protocol::ids::{CoreId, GenerationId, Name, Position, Watch};
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_shard::{InferenceCommand, Input, Link};
use thalweg_workload::auditor::people::{DeedId, Moment, People};
use thalweg_workload::auditor::{Auditor, BodyHash, ChannelIndex};

use crate::client::{CLUB, Client, DOOMED, Known, MEMORY, Papers, PresenceAnswer};
use crate::disk::{FakeDisk, Rot};
use crate::faults::Faults;
use crate::models::Models;
use crate::node::{Node, Wire};
use crate::script::Said;
use crate::storage::Reading;
use crate::trace::Trace;
use crate::troubles::{Trouble, troubles};
use crate::truth::Truth;
use crate::writers::Writers;

/// Simulated time that everything has to end in once clients do nothing new, in microseconds.
const SETTLE_US: u64 = 240_000_000;
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
    /// A reader that comes back asks for the position after its cursor.
    CursorOffByOne,
    /// A write is answered when it is written, before it is synced.
    AnswerBeforeSync,
    /// A restarted node does not know which commands were carried out.
    ForgetCommands,
    /// A restarted node does not know that channels were deleted.
    LoseTombstone,
    /// A restarted node goes on with a generation one token late.
    ResumeLate,
    /// Recovery loses the last batch of each file.
    LoseLastBatch,
    /// Recovery takes what a recycled file held before for what it holds.
    ResurrectRecycled,
    /// Recovery takes a torn batch for a whole one.
    BelieveTorn,
    /// Nobody makes names of files durable.
    ForgetDirectory,
    /// A merge drops a message that is still kept.
    DropKept,
    /// A restarted node does not know which texts were taken back.
    ForgetRedactions,
    /// A restarted node does not know who lost their place in a channel.
    ForgetRemovals,
    /// A restarted node does not know the members of channels.
    ForgetMembers,
    /// A restarted node has older read marks.
    ReadBackwards,
    /// A restarted node does not know who people are.
    ForgetProfiles,
    /// A restarted node counts messages from nought.
    ForgetNumbers,
    /// Readers of a removed member go on.
    KeepReaders,
    /// A frame of presence never reaches its reader.
    LosePresence,
    /// Nobody is told that limits were lifted.
    KeepLimits,
    /// A write is carried out and answered as refused.
    RefuseCarriedOut,
    /// Everybody is of one tenant.
    MixTenants,
    /// An edit of a document never reaches a reader.
    DropUpdate,
    /// A positional edit is carried out twice.
    DoubleOperation,
    /// What stood in a document that was deleted stands in the next of its name.
    KeepDeletedText,
    /// A document is made what it was at another revision than was asked for.
    RestoreOther,
    /// A document is shown as it was at another revision than was asked for.
    ReadOther,
    /// Updates that cannot be carried out are acknowledged.
    TakeHostile,
    /// A model that writes in a document goes on when it is stopped.
    IgnoreStop,
    /// Models may say more than their credit.
    MakeUpCredit,
    /// What a model says is written twice.
    WriteTwice,
}

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// What was not synced may be lost.
    Power,
    /// What was written is there.
    Process,
}

/// How to run a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        Self { operations: 2_000, print: false, plant: None }
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
    /// Lives of the node that ended before the run did.
    pub crashes: u64,
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
    /// A datagram of a client arrives at the node.
    DatagramToNode { link: Link, op: ClientOp },
    /// A datagram of the node arrives at a client.
    DatagramToClient { link: Link, subscription: u32, op: ServerOp },
    /// A client that takes part in presence says that it is there.
    Heartbeat { client: usize },
    /// Clients ask for everything that they changed.
    Questions,
    /// Nobody was heard of for long.
    Silence,
    /// The node has memory again.
    Unpress,
    /// The node learns that a connection is gone.
    Lost { link: Link },
    /// Bytes arrive at a client.
    ToClient { link: Link, lane: Lane, bytes: Bytes },
    /// A client learns that the node closed its connection.
    Closed { link: Link },
    /// Something happens to the models, or a core is told of it.
    Routes { core: Option<CoreId> },
    /// Something reaches a shard.
    Input { core: CoreId, input: Input },
    /// A core runs a turn.
    Turn { core: CoreId },
    /// The sync of a core's batch is through.
    Synced { core: CoreId },
    /// The next file of a core's log is prepared.
    Prepare { core: CoreId },
    /// Something is sealed or merged.
    Archive,
    /// Messages are read back from disk.
    Reads { core: CoreId, reading: Reading },
    /// The disk has room again.
    Unfill,
    /// A client learns that the node is gone.
    Noticed { link: Link },
    /// The node starts.
    Boot,
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
    Operator(u16),
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
    pub(crate) disk: FakeDisk,
    pub(crate) node: Node,
    /// The node takes connections.
    pub(crate) up: bool,
    /// The node has stopped, and is gone when this event is through.
    pub(crate) crashing: Option<Crash>,
    pub(crate) crashes: u64,
    /// The newest life of the node.
    pub(crate) epoch: u64,
    pub(crate) last_cores: u16,
    /// How far the wall clock is from where it began, beside the time that passed.
    pub(crate) clock_us: i64,
    pub(crate) truth: Truth,
    pub(crate) said: Said,
    pub(crate) rots: Vec<Rot>,
    /// There were flipped bits at some time.
    pub(crate) was_rotten: bool,
    pub(crate) syncs_failed: u64,
    /// The disk was limited at some time.
    pub(crate) was_full: bool,
    /// Nothing can be said any more.
    pub(crate) broken: bool,
    pub(crate) next_link: u64,
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
    /// What is to happen when so many operations are left, the first last.
    pub(crate) troubles: Vec<(u64, Trouble)>,
    pub(crate) draining: bool,
    /// Bodies are large, so that queues fill.
    pub(crate) large: bool,
    /// The model says the same again.
    pub(crate) repeatable: bool,
    pub(crate) channels: Vec<u32>,
    /// Channels with members, and direct conversations.
    pub(crate) clubs: Vec<u32>,
    /// The names of direct conversations.
    pub(crate) directs: BTreeMap<u32, Name>,
    /// What people did, and what they were shown of it.
    pub(crate) people: People,
    /// When what was written to channels with members was sent first.
    pub(crate) sent_at: BTreeMap<BodyHash, Moment>,
    /// Messages that clients were shown, the newest last.
    pub(crate) known: BTreeMap<(u8, u32), VecDeque<Known>>,
    /// How many messages there were up to each that clients were shown.
    pub(crate) numbers: BTreeMap<(ChannelIndex, Position), u64>,
    /// Changes whose answers went with their connections, and when.
    pub(crate) lost_deeds: Vec<(u64, DeedId)>,
    /// Texts that somebody took back or tried to.
    pub(crate) redactions: BTreeSet<(ChannelIndex, Position)>,
    /// Texts that were taken back, and when their clients knew.
    pub(crate) taken_back: BTreeMap<(ChannelIndex, Position), u64>,
    /// Whose generations are.
    pub(crate) generation_tenants: BTreeMap<GenerationId, u8>,
    /// What clients may do in a time, if that is limited.
    pub(crate) limits: Option<Arc<Limits>>,
    pub(crate) models: Models,
    pub(crate) limited_until_us: u64,
    pub(crate) was_limited: bool,
    /// How short of memory the node is.
    pub(crate) pressure: u8,
    pub(crate) pressed_until_us: u64,
    pub(crate) was_pressed: bool,
    /// Nobody does anything before.
    pub(crate) paused_until_us: u64,
    /// When clients stop to say that they are there: those who do things, and those who observe.
    pub(crate) heartbeats_end_us: Option<(u64, u64)>,
    /// What is written now must not be refused.
    pub(crate) asking: bool,
    pub(crate) asked_everything: bool,
    pub(crate) presence_answers: Vec<PresenceAnswer>,
    /// What was done to documents.
    pub(crate) papers: Papers,
    /// Models that write in documents.
    pub(crate) writers: Writers,
    /// What a step of the inference stage takes at most.
    pub(crate) step_us: u64,
    /// The first channel keeps little history.
    pub(crate) trimmed: bool,
    pub(crate) planted: u32,
    pub(crate) queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    pub(crate) arrivals: BTreeMap<Route, u64>,
    next_reader: u64,
}

/// Clients: some of whom may administer everything, two of one user, and those of another tenant whose users and channels are
/// called the same; for each tenant one that does nothing until all is over, and reads everything then.
fn crowd(rng: &mut StdRng, count: usize) -> Vec<Client> {
    let (others, twins) = (rng.random_bool(0.4), rng.random_bool(0.4));
    let mut crowd = Vec::new();
    for number in 0..count {
        let user = if twins && number == 2 { 0 } else { number as u32 };
        crowd.push(Client::new(number, false, 0, user, number == 0 || rng.random_bool(0.4)));
    }
    crowd.push(Client::new(count, true, 0, 7, true));
    if others {
        for user in 0..rng.random_range(1..=2) {
            crowd.push(Client::new(crowd.len(), false, 1, user, true));
        }
        crowd.push(Client::new(crowd.len(), true, 1, 7, true));
    }
    crowd
}

/// Runs a seed. A panic is a violation too.
pub fn simulate(seed: u64, options: Options) -> Report {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = rng.random_range(2..=6);
    let mut channels: Vec<u32> = (0..rng.random_range(1..=4)).collect();
    channels.extend(rng.random_bool(0.4).then_some(MEMORY));
    channels.extend(rng.random_bool(0.4).then_some(DOOMED));
    let world = World {
        now_us: 1,
        disk: FakeDisk::new(rng.random()),
        node: Node::down(),
        up: false,
        crashing: None,
        crashes: 0,
        epoch: 0,
        last_cores: 0,
        clock_us: 0,
        truth: Truth::default(),
        said: Said::default(),
        rots: Vec::new(),
        was_rotten: false,
        syncs_failed: 0,
        was_full: false,
        broken: false,
        next_link: 0,
        clients: crowd(&mut rng, count),
        clubs: (0..rng.random_range(0..4)).map(|club| CLUB + club).collect(),
        directs: BTreeMap::new(),
        people: People::new(),
        sent_at: BTreeMap::new(),
        known: BTreeMap::new(),
        numbers: BTreeMap::new(),
        lost_deeds: Vec::new(),
        redactions: BTreeSet::new(),
        taken_back: BTreeMap::new(),
        generation_tenants: BTreeMap::new(),
        limits: None,
        models: Models::new(seed, options.plant.is_some()),
        limited_until_us: 0,
        was_limited: false,
        pressure: 0,
        pressed_until_us: 0,
        was_pressed: false,
        paused_until_us: 0,
        heartbeats_end_us: None,
        asking: false,
        asked_everything: false,
        presence_answers: Vec::new(),
        papers: Papers::new(&mut rng),
        writers: Writers::default(),
        step_us: if rng.random_bool(0.2) { 60_000 } else { 800 },
        troubles: troubles(&mut rng, options.operations),
        large: rng.random_bool(0.3),
        repeatable: rng.random_bool(0.5),
        channels,
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
    catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        let violations = vec![format!("panicked: {text}")];
        Report { hash: 0, faults: Faults::default(), violations, events: 0, us: 0, crashes: 0 }
    })
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
        self.at(1, Event::Boot);
        for client in 0..self.clients.len() {
            self.within(1_000, Event::Act { client });
            self.within(1_000_000, Event::Heartbeat { client });
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
            if let Some(crash) = self.crashing.take() {
                self.crash(crash);
            }
            if self.broken {
                break;
            }
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
            Event::DatagramToNode { link, op } => self.datagram_to_node(link, op),
            Event::DatagramToClient { link, subscription, op } => self.datagram_to_client(link, subscription, &op),
            Event::Heartbeat { client } => self.heartbeat(client),
            Event::Questions => self.questions(),
            Event::Silence => {
                self.judge_presence_answers();
                self.judge_presence(true);
                self.judge_documents();
            }
            Event::Unpress => self.press(0),
            Event::Lost { link } => self.lost(link),
            Event::ToClient { link, lane, bytes } => self.bytes_to_client(link, lane, bytes),
            Event::Closed { link } => self.closed_by_node(link),
            Event::Input { core, input } => self.input(core, input),
            Event::Routes { core } => self.routes(core),
            Event::Turn { core } => self.turn(core),
            Event::Synced { core } => self.synced(core),
            Event::Prepare { core } => self.prepare(core),
            Event::Archive => self.archive(),
            Event::Reads { core, reading } => self.read_back(core, reading),
            Event::Unfill => self.disk.unlimit(),
            Event::Noticed { link } => self.noticed(link),
            Event::Boot => self.boot(),
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
        self.disk.calm();
        self.repair();
        let links: Vec<Link> = self.wires.keys().copied().collect();
        links.into_iter().for_each(|link| self.unstall(link));
        for client in 0..self.clients.len() {
            self.settle_client(client);
        }
        self.plan_the_end();
    }

    fn judge(mut self, events: u64) -> Report {
        if !self.broken {
            self.judge_node();
            for client in 0..self.clients.len() {
                self.judge_client(client);
            }
            self.harvest();
            self.recover_at_last();
        }
        self.count_disk();
        self.faults.merge(&std::mem::take(&mut self.truth.chronicle.faults));
        let (found, count) = self.auditor.finish(!self.broken);
        let mut violations = self.violations;
        let (wrong, wrongs) = self.people.finish();
        violations.extend(wrong.iter().take(20).map(|wrong| format!("{wrong:?}")));
        if wrongs > wrong.len() as u64 {
            violations.push(format!("and {wrongs} of people"));
        }
        violations.extend(found.iter().map(|violation| format!("{violation:?}")));
        if count > found.len() as u64 {
            violations.push(format!("and {} more", count - found.len() as u64));
        }
        for violation in &violations {
            self.trace.line(self.now_us, format_args!("judged: {violation}"));
        }
        let (hash, faults, us, crashes) = (self.trace.hash(), self.faults, self.now_us, self.crashes);
        Report { hash, faults, violations, events, us, crashes }
    }

    fn count_disk(&mut self) {
        for (fault, count) in self.disk.counts().faults() {
            self.faults.add(fault, count);
        }
    }
}
