//! The simulated node: shards in turns, a mesh between them, a log that answers late, and the shell of each connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use thalweg_domain::permission::{Action, Permission, Principal};
use thalweg_protocol::frame::{Splitter, header};
use thalweg_protocol::ids::{CoreId, Epoch, Name, Request};
use thalweg_protocol::limits::{
    BODY_BYTES_MAX, FRAME_BYTES_MAX, LEAD_MESSAGES, LEAD_TOKENS, SESSION_QUEUE_BYTES, TURN_INPUTS_MAX,
};
use thalweg_protocol::op::{ClientOp, Hello, ServerOp, Welcome};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::{InferenceCommand, Input, Link, Now, Output, PeerMessage, SessionMessage, Shard, Ticket};

use crate::faults::Fault;
use crate::stage::Stage;
use crate::storage::{Reading, Storage};
use crate::world::{Event, Lane, Plant, Route, World};

/// Wall clock at the start of a run, in microseconds since 1970.
const WALL_US: u64 = 1_700_000_000_000_000;
/// Deadlines further ahead than this are those of things that are kept, which no run waits for, in microseconds.
const DEADLINE_US: u64 = 60_000_000;
/// Largest frame of the delivery lane: a body and its envelope.
const DELIVERY_FRAME_BYTES: usize = BODY_BYTES_MAX + 4_096;

pub(crate) struct Core {
    pub(crate) shard: Shard,
    pub(crate) inbox: VecDeque<Input>,
    /// When the next turn is due.
    turn_at: Option<u64>,
    appended: Ticket,
}

impl Core {
    pub(crate) fn new(shard: Shard) -> Self {
        Self { shard, inbox: VecDeque::new(), turn_at: None, appended: Ticket(0) }
    }
}

/// One life of the node. Has no cores while it is down.
pub(crate) struct Node {
    pub(crate) cores: Vec<Core>,
    pub(crate) stage: Stage,
    pub(crate) stage_busy: bool,
    pub(crate) storage: Storage,
    pub(crate) mesh_us: u64,
}

/// A connection, as seen from both ends.
pub(crate) struct Wire {
    pub(crate) core: CoreId,
    pub(crate) client: usize,
    /// The node's end is open.
    pub(crate) open: bool,
    /// The client's end is open.
    pub(crate) in_use: bool,
    greeted: bool,
    commands: Splitter,
    /// Bytes of the command lane that were sent and did not arrive.
    pub(crate) underway: usize,
    /// After a cut: how many of those still arrive.
    pub(crate) spared: Option<usize>,
    deliveries: BytesMut,
    /// Bytes of deliveries that the shard was not told of as drained.
    undrained: usize,
    pub(crate) stalled: bool,
    pumping: bool,
    /// The client's ends of the lanes.
    pub(crate) lanes: BTreeMap<Lane, Splitter>,
}

pub(crate) fn frame(subject: u32, payload: &Bytes) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.len() + 8);
    bytes.extend_from_slice(&header(payload.len(), subject));
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

/// What a tenant is called.
fn tenant(number: u8) -> Name {
    Name::new(&format!("tenant-{number}")).expect("a valid name")
}

/// Whose a token is: number of the tenant, whether it administers it, and the user's name.
fn principal(hello: &Hello, plant: Option<Plant>) -> Option<Principal> {
    let all = |action| Permission { action, pattern: "*".into() };
    let mut words = hello.token.split(' ');
    let (number, admin, user) = (words.next()?.parse().ok()?, words.next()? == "admin", words.next()?);
    let number = if plant == Some(Plant::MixTenants) { 0 } else { number };
    let mut permissions = [Action::Read, Action::Write, Action::Ask].map(all).to_vec();
    permissions.extend(admin.then(|| all(Action::Admin)));
    Some(Principal::new(tenant(number), Name::new(user).ok()?, hello.session, permissions))
}

impl World {
    pub(crate) fn tenant_name(&self, number: u8) -> Name {
        tenant(number)
    }

    /// A datagram of a client arrives, if its connection is still there.
    pub(crate) fn datagram_to_node(&mut self, link: Link, op: ClientOp) {
        let Some(wire) = self.wires.get(&link).filter(|wire| wire.open && wire.greeted) else { return };
        self.input(wire.core, Input::Request { link, request: Request(0), op, trace: 0 });
    }

    pub(crate) fn now(&self) -> Now {
        let wall_us = (WALL_US + self.now_us).saturating_add_signed(self.clock_us);
        Now { mono_us: self.now_us, wall_us }
    }

    /// A new connection of a client to a core.
    pub(crate) fn connect(&mut self, client: usize) -> Link {
        self.next_link += 1;
        let link = Link(self.next_link);
        let core = CoreId(self.below(self.node.cores.len() as u64) as u16);
        let wire = Wire {
            core,
            client,
            open: true,
            in_use: true,
            greeted: false,
            commands: Splitter::new(),
            underway: 0,
            spared: None,
            deliveries: BytesMut::new(),
            undrained: 0,
            stalled: false,
            pumping: false,
            lanes: BTreeMap::new(),
        };
        self.wires.insert(link, wire);
        link
    }

    pub(crate) fn bytes_to_node(&mut self, link: Link, mut bytes: Bytes) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        wire.underway -= bytes.len();
        if let Some(spared) = &mut wire.spared {
            bytes.truncate(*spared);
            *spared -= bytes.len();
        }
        if !wire.open {
            return;
        }
        wire.commands.push(bytes.clone());
        self.trace.bytes(&bytes);
        loop {
            let Some(wire) = self.wires.get_mut(&link) else { return };
            match wire.commands.next() {
                Ok(Some(frame)) => match ClientOp::decode(&frame.payload) {
                    Ok(op) => self.shell(link, Request(frame.subject), op),
                    Err(reject) if reject.code == RejectCode::BodyTooLarge => {
                        let refusal = ServerOp::Reject(reject).encode();
                        self.reply_bytes(link, Lane::Command, frame.subject, &refusal);
                    }
                    Err(reject) => self.violation(format!("{link:?}: a request does not decode: {reject}")),
                },
                Ok(None) => return,
                Err(reject) => return self.violation(format!("{link:?}: the command lane is no lane: {reject}")),
            }
        }
    }

    /// What a shell answers itself, and what it hands to its shard.
    fn shell(&mut self, link: Link, request: Request, op: ClientOp) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let core = wire.core;
        match op {
            ClientOp::Hello(hello) if !wire.greeted => {
                wire.greeted = true;
                let Some(principal) = principal(&hello, self.options.plant) else {
                    return self.violation(format!("{link:?}: {hello:?} is nobody"));
                };
                let welcome = Welcome {
                    version: 1,
                    session: hello.session,
                    epoch: Epoch(self.epoch),
                    tenant: principal.tenant.clone(),
                    user: principal.user.clone(),
                    server: "sim".into(),
                    models: vec!["script".into()],
                    frame_bytes_max: FRAME_BYTES_MAX as u32,
                    body_bytes_max: BODY_BYTES_MAX as u32,
                    in_flight_max: 1_024,
                    lead_messages: LEAD_MESSAGES,
                    lead_tokens: LEAD_TOKENS,
                    token_expires_us: 0,
                };
                self.note(format_args!("{link:?} is {} on core {core}", principal.user));
                self.input(core, Input::Opened { link, principal: Arc::new(principal) });
                self.reply_bytes(link, Lane::Command, request.0, &ServerOp::Welcome(welcome).encode());
            }
            ClientOp::Checkpoint => {
                self.checkpoint();
                self.reply_bytes(link, Lane::Command, request.0, &ServerOp::Done.encode());
            }
            ClientOp::Ping { nonce } => {
                self.reply_bytes(link, Lane::Command, request.0, &ServerOp::Pong { nonce }.encode());
            }
            op if wire.greeted => self.input(core, Input::Request { link, request, op, trace: 0 }),
            op => self.violation(format!("{link:?}: {op:?} came before a hello")),
        }
    }

    pub(crate) fn lost(&mut self, link: Link) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        if !std::mem::replace(&mut wire.open, false) {
            return;
        }
        let (core, cut) = (wire.core, wire.commands.pending() > 0);
        self.note(format_args!("{link:?} is lost to core {core}, within a frame: {cut}"));
        if cut {
            self.faults.count(Fault::CutWithinFrame);
        }
        self.input(core, Input::Closed { link });
    }

    pub(crate) fn input(&mut self, core: CoreId, input: Input) {
        self.node.cores[usize::from(core.0)].inbox.push_back(input);
        let at = self.now_us + self.below(50);
        self.turn_by(core, at);
    }

    pub(crate) fn turn_by(&mut self, core: CoreId, at: u64) {
        let turn_at = &mut self.node.cores[usize::from(core.0)].turn_at;
        if turn_at.is_none_or(|due| at < due) {
            *turn_at = Some(at);
            self.at(at, Event::Turn { core });
        }
    }

    pub(crate) fn turn(&mut self, core: CoreId) {
        let (now, at) = (self.now(), usize::from(core.0));
        // An earlier turn may have been set for the same work.
        if self.node.cores[at].turn_at.is_none_or(|due| due > self.now_us) {
            return;
        }
        self.node.cores[at].turn_at = None;
        if self.node.cores[at].shard.next_deadline().is_some_and(|due| due <= now.mono_us) {
            self.node.cores[at].shard.handle(now, Input::Timeout);
        }
        for _ in 0..TURN_INPUTS_MAX {
            let Some(input) = self.node.cores[at].inbox.pop_front() else { break };
            self.node.cores[at].shard.handle(now, input);
            if self.chance(0.5) {
                self.carry_out(core);
            }
        }
        self.node.cores[at].shard.finish_turn(now);
        self.carry_out(core);
        let budget = 1 + self.below(64) as usize;
        let more = self.node.cores[at].shard.fan_out(now, budget);
        self.carry_out(core);
        if more || self.node.cores[at].shard.has_gathered() || !self.node.cores[at].inbox.is_empty() {
            self.turn_by(core, self.now_us + 1);
        }
        let due = self.node.cores[at].shard.next_deadline();
        if let Some(due) = due.filter(|due| *due < self.now_us + DEADLINE_US) {
            self.turn_by(core, due.max(self.now_us + 1));
        }
    }

    fn carry_out(&mut self, core: CoreId) {
        while let Some(output) = self.node.cores[usize::from(core.0)].shard.poll() {
            // Nothing leaves a node that has stopped.
            if self.crashing.is_none() {
                self.output(core, output);
            }
        }
    }

    fn output(&mut self, core: CoreId, output: Output) {
        match output {
            Output::Append { ticket, record } => {
                let own = &mut self.node.cores[usize::from(core.0)];
                if ticket.0 != own.appended.0 + 1 {
                    let text = format!("core {core}: append {ticket:?} follows {:?}", own.appended);
                    return self.violation(text);
                }
                own.appended = ticket;
                self.append(core, ticket, record);
            }
            Output::Read { read, partition, channel, from, to } => {
                self.begin_read(core, Reading { read, partition, channel, from, to });
            }
            Output::Reply { link, request, op: ServerOp::Published { .. } }
                if self.options.plant == Some(Plant::RefuseCarriedOut) && self.limits.is_some() =>
            {
                let reject = Reject::new(RejectCode::RateLimited, "too much");
                self.reply_bytes(link, Lane::Command, request.0, &ServerOp::Reject(reject).encode());
            }
            Output::Reply { link, request, op: ServerOp::Reject(reject) }
                if self.options.plant == Some(Plant::TakeHostile) && reject.code == RejectCode::UpdateInvalid =>
            {
                self.reply_bytes(link, Lane::Command, request.0, &ServerOp::Done.encode());
            }
            Output::Reply { link, request, op } => self.reply_bytes(link, Lane::Command, request.0, &op.encode()),
            Output::Deliver { link, subscription, payload } => self.deliver(link, subscription.0, &payload),
            Output::Document { link, subscription, payload, last: _ } => self.deliver(link, subscription.0, &payload),
            Output::DocumentLeft { .. } => {}
            Output::Generation { link, watch, payload, last: _ } => {
                self.reply_bytes(link, Lane::Generation(watch), watch.0, &payload);
            }
            // The shell of a defect: who lost their place is not parted with.
            Output::Peer {
                message: PeerMessage::ToSession(SessionMessage::Expelled { .. } | SessionMessage::Closed { .. }),
                ..
            } if self.options.plant == Some(Plant::KeepReaders) => {}
            Output::Peer { to, message } => {
                let (route, delay) = (Route::Mesh(core.0, to.0), self.node.mesh_us);
                self.send(route, delay, Event::Input { core: to, input: Input::Peer(message) });
            }
            Output::Inference(command) => {
                self.note(format_args!("core {core}: {command:?}"));
                let Some(command) = self.command_of_shard(core, command) else { return };
                if let InferenceCommand::Submit(submit) = &command {
                    self.check_route(submit);
                }
                self.send(Route::ToStage(core.0), 200, Event::Command { core, command });
            }
            Output::Datagram { link, subscription, payload } => self.send_datagram(link, subscription.0, &payload),
            Output::Audit(event) => self.note(format_args!("audit: {event:?}")),
            Output::Close { link, reject } => {
                self.note(format_args!("{link:?} is closed: {reject}"));
                self.faults.count(Fault::TakenOver);
                if let Some(wire) = self.wires.get_mut(&link) {
                    wire.open = false;
                }
                self.send(Route::ToClient(link, Lane::Command), 500, Event::Closed { link });
            }
        }
    }

    /// Sends a frame in pieces, on a lane that is never held up.
    fn reply_bytes(&mut self, link: Link, lane: Lane, subject: u32, payload: &Bytes) {
        let mut bytes = frame(subject, payload);
        self.trace.bytes(&bytes);
        while !bytes.is_empty() {
            // Most frames arrive whole: what cuts do is seen soon enough.
            let whole = self.chance(0.7);
            let cut = if whole { bytes.len() } else { 1 + self.below(2 * bytes.len() as u64) as usize };
            let bytes = bytes.split_to(cut.min(bytes.len()));
            self.send(Route::ToClient(link, lane), 300, Event::ToClient { link, lane, bytes });
        }
    }

    fn send_datagram(&mut self, link: Link, subscription: u32, payload: &Bytes) {
        self.trace.bytes(payload);
        if self.chance(0.2) {
            return self.faults.count(Fault::DatagramLost);
        }
        match ServerOp::decode(payload) {
            Ok(op) => self.within(2_000, Event::DatagramToClient { link, subscription, op }),
            Err(reject) => self.violation(format!("{link:?}: a datagram does not decode: {reject}")),
        }
    }

    /// Puts a delivery into the queue of a connection.
    fn deliver(&mut self, link: Link, subject: u32, payload: &Bytes) {
        if self.options.plant == Some(Plant::LosePresence) && self.planted < 2 {
            let is_news = matches!(ServerOp::decode(payload), Ok(ServerOp::Presence(news)) if !news.full);
            if is_news && self.settling {
                self.planted += 1;
                return;
            }
        }
        self.judge_late_text(link, subject, payload);
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let bytes = frame(subject, payload);
        wire.deliveries.extend_from_slice(&bytes);
        wire.undrained += bytes.len();
        let undrained = wire.undrained;
        self.trace.bytes(&bytes);
        if undrained >= SESSION_QUEUE_BYTES {
            self.faults.count(Fault::QueueFull);
        }
        if undrained > SESSION_QUEUE_BYTES + DELIVERY_FRAME_BYTES {
            self.violation(format!("{link:?} has {undrained} bytes queued"));
        }
        self.pump_soon(link);
    }

    fn pump_soon(&mut self, link: Link) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        if !wire.open || wire.stalled || wire.pumping || wire.deliveries.is_empty() {
            return;
        }
        wire.pumping = true;
        self.within(200, Event::Pump { link });
    }

    /// The transport takes some bytes, cut anywhere, and says so later.
    pub(crate) fn pump(&mut self, link: Link) {
        let take = self.below(100_000) as usize + 1;
        let Some(wire) = self.wires.get_mut(&link) else { return };
        wire.pumping = false;
        if !wire.open || wire.stalled {
            return;
        }
        let bytes = wire.deliveries.split_to(take.min(wire.deliveries.len())).freeze();
        wire.undrained -= bytes.len();
        let core = wire.core;
        let input = Input::Drained { link, bytes: bytes.len() };
        self.send(Route::Drained(link), 2_000, Event::Input { core, input });
        let lane = Lane::Delivery;
        self.send(Route::ToClient(link, lane), 300, Event::ToClient { link, lane, bytes });
        self.pump_soon(link);
    }

    pub(crate) fn unstall(&mut self, link: Link) {
        if let Some(wire) = self.wires.get_mut(&link) {
            wire.stalled = false;
            self.pump_soon(link);
        }
    }

    pub(crate) fn drain_node(&mut self) {
        self.draining = true;
        self.faults.count(Fault::Drained);
        self.note(format_args!("drain"));
        for core in 0..self.node.cores.len() {
            self.within(2_000, Event::Input { core: CoreId(core as u16), input: Input::Drain });
        }
    }

    pub(crate) fn command(&mut self, core: CoreId, command: InferenceCommand) {
        self.notice_attempt(&command);
        self.node.stage.command(self.now_us, core, command, &mut self.said);
        self.after_stage();
    }

    pub(crate) fn block(&mut self, core: CoreId, blocked: bool) {
        if blocked {
            self.faults.count(Fault::OutletBlocked);
            self.within(20_000, Event::Block { core, blocked: false });
        }
        // A step that was planned before runs to its end; what follows must keep away.
        self.node.stage.block(self.now_us, core, blocked, &mut self.said);
        self.after_stage();
    }

    /// Sends off what the stage said, and wakes it if it may have work.
    fn after_stage(&mut self) {
        for (core, mut event) in std::mem::take(&mut self.node.stage.events) {
            self.note(format_args!("stage to core {core}: {event:?}"));
            self.judge_writer(&mut event);
            let input = Input::Inference(event);
            self.send(Route::FromStage(core.0), 200, Event::Input { core, input });
        }
        for text in std::mem::take(&mut self.node.stage.violations) {
            self.violation(text);
        }
        if !self.node.stage_busy {
            self.node.stage_busy = true;
            self.within(50, Event::BeginStep);
        }
    }

    pub(crate) fn begin_step(&mut self) {
        if self.node.stage.begin_step(self.now_us, &mut self.said) {
            return self.within(self.step_us, Event::EndStep);
        }
        self.node.stage_busy = false;
        if let Some(at) = self.node.stage.wake_at_us() {
            self.node.stage_busy = true;
            self.at(at.max(self.now_us + 1), Event::BeginStep);
        }
    }

    pub(crate) fn end_step(&mut self) {
        self.node.stage.end_step(self.now_us, &mut self.said);
        self.node.stage_busy = false;
        self.after_stage();
    }

    pub(crate) fn judge_node(&mut self) {
        if self.node.stage.unfinished() > 0 {
            self.violation(format!("{} generations never ended", self.node.stage.unfinished()));
        }
        for core in 0..self.node.cores.len() {
            let shard = &self.node.cores[core].shard;
            if !shard.is_idle() {
                let gauges = shard.gauges();
                self.violation(format!("core {core} is not at rest: {gauges:?}"));
            }
        }
    }
}
