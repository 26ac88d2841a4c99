//! One to n shards without a machine: a list for each ring, a log that acknowledges, a transport that takes everything.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::partition::PartitionState;
use thalweg_domain::permission::Principal;
use thalweg_domain::record::{Message, Record};
use thalweg_domain::routing::{Health, ModelCard, Routes};
use thalweg_protocol::ids::{
    ChannelId, CoreId, Epoch, Name, Partition, Position, Request, Sequence, SessionId, Subscription, partition_of,
};
use thalweg_protocol::limits::FRAME_HEADER_BYTES;
use thalweg_protocol::op::{
    ClientOp, CreateChannel, Durability, From, Policy, Publish, ServerOp, Subscribe, WatchRequest,
};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::{Config, InferenceCommand, InferenceEvent, Input, Link, Now, Output, PeerMessage, Shard, Ticket};

pub(super) const PARTITIONS: u16 = 64;
/// The wall clock begins here, so that it is seen to be another one than the monotonic.
pub(super) const WALL_US: u64 = 1_000_000_000;

/// A connection of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Client {
    pub(super) core: u16,
    pub(super) link: Link,
}

/// A node of shards, with what they said.
pub(super) struct Node {
    pub(super) shards: Vec<Shard>,
    partitions: u16,
    pub(super) now: Now,
    /// Whether the log acknowledges only when [`commit`](Self::commit) says so.
    pub(super) late: bool,
    /// Whether the transport takes nothing until [`drain`](Self::drain) says so.
    pub(super) clogged: bool,
    rings: VecDeque<(u16, PeerMessage)>,
    unacknowledged: Vec<Option<Ticket>>,
    queued: BTreeMap<Client, usize>,
    links: u64,
    requests: u32,
    replies: BTreeMap<Request, ServerOp>,
    delivered: BTreeMap<Client, Vec<(Subscription, ServerOp)>>,
    pub(super) datagrams: BTreeMap<Client, Vec<(Subscription, ServerOp)>>,
    /// What came on the lanes of documents, and whether nothing follows.
    lanes: BTreeMap<Client, Vec<(Subscription, ServerOp, bool)>>,
    /// Documents whose readers left.
    pub(super) left: Vec<(Client, Subscription)>,
    pub(super) audited: Vec<crate::contract::AuditEvent>,
    frames: BTreeMap<Client, Vec<(u32, ServerOp, bool)>>,
    commands: Vec<InferenceCommand>,
    /// What was appended, per core, as far as it is not durable.
    written: Vec<Vec<Record>>,
    /// What is durable, in the order in which it became so.
    pub(super) records: Vec<Record>,
    epoch: u64,
    /// Whether reads from disk fail.
    pub(super) rotten: bool,
    /// Messages before this position are gone from the disk.
    pub(super) let_go: u64,
    closed: Vec<(Client, RejectCode)>,
    /// Messages handed over between cores.
    pub(super) crossings: usize,
    /// Everything that happened, in order, unless the node is `quiet`.
    pub(super) trace: Vec<String>,
    pub(super) quiet: bool,
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// A model that is well.
pub(super) fn card(model: &str, class: &str) -> ModelCard {
    ModelCard {
        name: name(model),
        class: name(class),
        cost: 0,
        context_tokens: 4_096,
        health: Health::Up,
        first_token_ms: 0,
        prompt_us: 0,
        fallback: None,
        resumes: true,
    }
}

/// The models there are.
pub(super) fn routes() -> Routes {
    Routes { cards: vec![card("small", "fast"), card("large", "accurate")], default: None }
}

fn shards(cores: u16, partitions: u16, epoch: u64, durability: Durability) -> Vec<Shard> {
    let config = |core| Config {
        core: CoreId(core),
        cores,
        partitions,
        epoch: Epoch(epoch),
        routes: Arc::new(routes()),
        durability,
    };
    (0..cores).map(|core| Shard::new(config(core))).collect()
}

impl Node {
    pub(super) fn new(cores: u16) -> Self {
        Self::with_partitions(cores, PARTITIONS)
    }

    /// A node whose channels live in memory, unless their makers say otherwise.
    pub(super) fn in_memory(cores: u16) -> Self {
        let mut node = Self::new(cores);
        node.shards = shards(cores, PARTITIONS, node.epoch, Durability::Memory);
        node
    }

    pub(super) fn with_partitions(cores: u16, partitions: u16) -> Self {
        let epoch = 3;
        Self {
            shards: shards(cores, partitions, epoch, Durability::Disk),
            written: vec![Vec::new(); cores.into()],
            records: Vec::new(),
            epoch,
            rotten: false,
            let_go: 0,
            partitions,
            now: Now { mono_us: 0, wall_us: WALL_US },
            late: false,
            clogged: false,
            rings: VecDeque::new(),
            unacknowledged: vec![None; cores.into()],
            queued: BTreeMap::new(),
            links: 0,
            requests: 0,
            replies: BTreeMap::new(),
            delivered: BTreeMap::new(),
            datagrams: BTreeMap::new(),
            lanes: BTreeMap::new(),
            left: Vec::new(),
            audited: Vec::new(),
            frames: BTreeMap::new(),
            commands: Vec::new(),
            closed: Vec::new(),
            crossings: 0,
            trace: Vec::new(),
            quiet: false,
        }
    }

    /// The node is killed and started again with another number of cores: what was not durable is gone, and so is everybody
    /// who was connected.
    pub(super) fn restart(&mut self, cores: u16) {
        let records = std::mem::take(&mut self.records);
        let now = self.now;
        *self = Self { links: self.links, requests: self.requests, epoch: self.epoch + 1, now, ..Self::new(cores) };
        self.shards = shards(cores, self.partitions, self.epoch, Durability::Disk);
        let mut states: BTreeMap<Partition, PartitionState> = BTreeMap::new();
        for record in &records {
            states.entry(record.partition).or_default().apply(record).expect("no gap");
        }
        self.records = records;
        for (partition, state) in states {
            self.feed(partition.0 % cores, Input::Restore { partition, state: Box::new(state) });
        }
        self.settle();
    }

    /// Everything that is durable can be read from disk.
    pub(super) fn archive(&mut self) {
        for core in 0..self.shards.len() as u16 {
            self.feed(core, Input::Archived { ticket: Ticket(u64::MAX) });
        }
    }

    /// What a disk would answer.
    fn read(&self, partition: Partition, channel: ChannelId, positions: Range<u64>) -> Vec<Arc<Message>> {
        let of_partition = self.records.iter().filter(|record| record.partition == partition);
        let postings = of_partition.filter_map(|record| record.event.posting());
        let of_channel = postings.filter(|posting| posting.id == channel).map(|posting| Arc::clone(&posting.message));
        of_channel.filter(|message| positions.contains(&message.position.0)).collect()
    }

    /// The `n`-th channel of the default tenant that a core owns.
    pub(super) fn channel_on(&self, core: u16, n: usize) -> String {
        let cores = self.shards.len() as u16;
        let on = |channel: &String| partition_of(&name("acme"), channel, self.partitions).0 % cores == core;
        (0..).map(|n| format!("channel-{n}")).filter(on).nth(n).expect("every core has partitions")
    }

    /// A session of the default tenant that may do everything but administer.
    pub(super) fn open(&mut self, core: u16, user: &str, session: u128) -> Client {
        self.open_as(core, "acme", user, session, &["read:*", "write:*", "ask:*"])
    }

    pub(super) fn open_as(
        &mut self,
        core: u16,
        tenant: &str,
        user: &str,
        session: u128,
        permissions: &[&str],
    ) -> Client {
        self.links += 1;
        let client = Client { core, link: Link(self.links) };
        let permissions = permissions.iter().map(|text| text.parse().expect("a valid permission")).collect();
        let (tenant, user, session) = (name(tenant), name(user), SessionId(session));
        let principal = Arc::new(Principal::new(tenant, user, session, permissions));
        self.feed(core, Input::Opened { link: client.link, principal });
        client
    }

    pub(super) fn close(&mut self, client: Client) {
        self.feed(client.core, Input::Closed { link: client.link });
        self.settle();
    }

    /// One input, and what comes of it on that core.
    pub(super) fn feed(&mut self, core: u16, input: Input) {
        if !matches!(input, Input::Peer(_)) && !self.quiet {
            self.trace.push(format!("{core} < {input:?}"));
        }
        self.shards[usize::from(core)].handle(self.now, input);
        self.carry_out(core);
    }

    /// Hands a request over without letting anything follow from it.
    pub(super) fn send(&mut self, client: Client, op: ClientOp) -> Request {
        self.requests += 1;
        let request = Request(self.requests);
        self.feed(client.core, Input::Request { link: client.link, request, op, trace: 0 });
        request
    }

    /// Hands a request over and waits for everything that follows from it.
    pub(super) fn request(&mut self, client: Client, op: ClientOp) -> Request {
        let request = self.send(client, op);
        self.settle();
        request
    }

    /// The answer to a request, if there is one.
    pub(super) fn reply(&mut self, request: Request) -> Option<ServerOp> {
        self.replies.remove(&request)
    }

    /// A request and its answer.
    pub(super) fn call(&mut self, client: Client, op: ClientOp) -> ServerOp {
        let text = format!("{op:?}");
        let request = self.request(client, op);
        self.reply(request).unwrap_or_else(|| panic!("{text} was not answered"))
    }

    /// A request that must be answered with a refusal.
    pub(super) fn refusal(&mut self, client: Client, op: ClientOp) -> RejectCode {
        match self.call(client, op) {
            ServerOp::Reject(reject) => reject.code,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    pub(super) fn publish(&mut self, client: Client, channel: &str, sequence: u64, body: &str) -> u64 {
        match self.call(client, publish(channel, sequence, body)) {
            ServerOp::Published { position, duplicate: false, .. } => position.0,
            other => panic!("expected a position, got {other:?}"),
        }
    }

    /// Subscribes with the policy `replay`.
    pub(super) fn subscribe(&mut self, client: Client, channel: &str, from: From) -> Subscription {
        self.subscribe_with(client, channel, from, Policy::Replay, 0)
    }

    pub(super) fn subscribe_with(
        &mut self,
        client: Client,
        channel: &str,
        from: From,
        policy: Policy,
        lead: u32,
    ) -> Subscription {
        let request = self.request(client, subscribe(channel, from, policy, lead));
        let reply = self.reply(request);
        assert!(matches!(reply, Some(ServerOp::Subscribed { .. })), "{channel}: {reply:?}");
        Subscription(request.0)
    }

    pub(super) fn consumed(&mut self, client: Client, subscription: Subscription, position: u64) {
        self.request(client, ClientOp::Consumed { subscription, position: Position(position) });
    }

    /// What a client was delivered since the last call, a line each.
    pub(super) fn heard(&mut self, client: Client) -> Vec<String> {
        let delivered = self.delivered.remove(&client).unwrap_or_default();
        delivered.iter().map(|(_, op)| describe(op)).collect()
    }

    /// The positions a client was delivered since the last call; nothing else may have come.
    pub(super) fn positions(&mut self, client: Client) -> Vec<u64> {
        let position = |(_, op)| match op {
            ServerOp::Delivery(delivery) => delivery.position.0,
            other => panic!("expected deliveries only, got {other:?}"),
        };
        self.delivered.remove(&client).unwrap_or_default().into_iter().map(position).collect()
    }

    pub(super) fn deliveries(&mut self, client: Client) -> Vec<(Subscription, ServerOp)> {
        self.delivered.remove(&client).unwrap_or_default()
    }

    /// What came on the lanes of a client's documents since the last call, and whether it was the last.
    pub(super) fn document_frames(&mut self, client: Client) -> Vec<(Subscription, ServerOp, bool)> {
        self.lanes.remove(&client).unwrap_or_default()
    }

    /// What came on a client's generation lanes since the last call, a line each.
    pub(super) fn watched(&mut self, client: Client) -> Vec<String> {
        let frames = self.frames.remove(&client).unwrap_or_default();
        let line = |(_, op, last): &(u32, ServerOp, bool)| format!("{}{}", describe(op), if *last { "." } else { "" });
        frames.iter().map(line).collect()
    }

    /// What the inference stage was asked for since the last call.
    pub(super) fn commands(&mut self) -> Vec<InferenceCommand> {
        std::mem::take(&mut self.commands)
    }

    pub(super) fn closed(&mut self) -> Vec<(Client, RejectCode)> {
        std::mem::take(&mut self.closed)
    }

    /// The inference stage says something to the core that owns the generation.
    pub(super) fn infer(&mut self, event: InferenceEvent) {
        let generation = match &event {
            InferenceEvent::Token { generation, .. }
            | InferenceEvent::Finished { generation, .. }
            | InferenceEvent::Refused { generation, .. } => *generation,
        };
        let core = generation.partition().0 % self.shards.len() as u16;
        self.feed(core, Input::Inference(event));
    }

    /// Lets time pass, and the timers with it.
    pub(super) fn pass_ms(&mut self, ms: u64) {
        self.now.mono_us += ms * 1_000;
        self.now.wall_us += ms * 1_000;
        for core in 0..self.shards.len() as u16 {
            if self.shards[usize::from(core)].next_deadline().is_some_and(|at| at <= self.now.mono_us) {
                self.feed(core, Input::Timeout);
            }
        }
        self.settle();
    }

    /// The log acknowledges what it has, and what follows from that while it stays `late`.
    pub(super) fn commit(&mut self) {
        self.acknowledge();
        self.settle();
    }

    /// The transport takes what a client has queued.
    pub(super) fn drain(&mut self, client: Client) -> usize {
        let bytes = self.queued.remove(&client).unwrap_or(0);
        self.feed(client.core, Input::Drained { link: client.link, bytes });
        self.settle();
        bytes
    }

    /// Sums a gauge over all cores.
    pub(super) fn gauge(&self, name: &str) -> u64 {
        let gauges = self.shards.iter().flat_map(Shard::gauges);
        gauges.filter(|(gauge, _)| *gauge == name).map(|(_, value)| value).sum()
    }

    /// Turns the cores until nothing more happens.
    pub(super) fn settle(&mut self) {
        loop {
            let mut busy = false;
            for core in 0..self.shards.len() as u16 {
                self.shards[usize::from(core)].finish_turn(self.now);
                self.carry_out(core);
                busy |= self.shards[usize::from(core)].has_gathered();
                while self.shards[usize::from(core)].has_readers_to_serve() {
                    self.shards[usize::from(core)].fan_out(self.now, 64);
                    self.carry_out(core);
                }
            }
            let crossing = std::mem::take(&mut self.rings);
            busy |= !crossing.is_empty();
            for (to, message) in crossing {
                self.feed(to, Input::Peer(message));
            }
            if !self.late {
                busy |= self.acknowledge();
            }
            if !self.clogged {
                busy |= self.drain_all();
            }
            if !busy {
                return;
            }
        }
    }

    fn acknowledge(&mut self) -> bool {
        let mut any = false;
        for core in 0..self.shards.len() as u16 {
            if let Some(ticket) = self.unacknowledged[usize::from(core)].take() {
                any = true;
                self.records.append(&mut self.written[usize::from(core)]);
                self.feed(core, Input::Durable { ticket });
            }
        }
        any
    }

    fn drain_all(&mut self) -> bool {
        let queued = std::mem::take(&mut self.queued);
        for (&Client { core, link }, &bytes) in &queued {
            self.feed(core, Input::Drained { link, bytes });
        }
        !queued.is_empty()
    }

    fn carry_out(&mut self, core: u16) {
        while let Some(output) = self.shards[usize::from(core)].poll() {
            if !self.quiet {
                self.trace.push(format!("{core} > {output:?}"));
            }
            match output {
                Output::Append { ticket, record } => {
                    self.unacknowledged[usize::from(core)] = Some(ticket);
                    self.written[usize::from(core)].push(record);
                }
                Output::Read { read, partition, channel, from, to } => {
                    let messages = self.read(partition, channel, from.0.max(self.let_go)..to.0);
                    let damaged = Reject::new(RejectCode::StorageDamaged, "rotten");
                    let result = if self.rotten { Err(damaged) } else { Ok(messages) };
                    self.feed(core, Input::Read { read, result });
                }
                Output::Reply { request, op, .. } => {
                    assert!(self.replies.insert(request, op).is_none(), "request {request} was answered twice");
                }
                Output::Deliver { link, subscription, payload } => {
                    let client = Client { core, link };
                    *self.queued.entry(client).or_default() += payload.len() + FRAME_HEADER_BYTES;
                    self.delivered.entry(client).or_default().push((subscription, decode(payload)));
                }
                Output::Document { link, subscription, payload, last } => {
                    let client = Client { core, link };
                    *self.queued.entry(client).or_default() += payload.len() + FRAME_HEADER_BYTES;
                    self.lanes.entry(client).or_default().push((subscription, decode(payload), last));
                }
                Output::DocumentLeft { link, subscription } => {
                    self.left.push((Client { core, link }, subscription));
                }
                Output::Generation { link, watch, payload, last } => {
                    let frames = self.frames.entry(Client { core, link }).or_default();
                    frames.push((watch.0, decode(payload), last));
                }
                Output::Peer { to, message } => {
                    assert_ne!(to, CoreId(core), "a shard talks to itself without a ring");
                    self.crossings += 1;
                    self.rings.push_back((to.0, message));
                }
                Output::Inference(command) => self.commands.push(command),
                Output::Datagram { link, subscription, payload } => {
                    let client = Client { core, link };
                    self.datagrams.entry(client).or_default().push((subscription, decode(payload)));
                }
                Output::Audit(event) => self.audited.push(event),
                Output::Close { link, reject } => self.closed.push((Client { core, link }, reject.code)),
            }
        }
    }
}

fn decode(payload: Bytes) -> ServerOp {
    ServerOp::decode(&payload).expect("a shard sends what a client can read")
}

fn describe(op: &ServerOp) -> String {
    match op {
        ServerOp::Delivery(d) => format!("{} {}: {}", d.position, d.user, String::from_utf8_lossy(&d.body)),
        ServerOp::Missed { from, to } => format!("missed {from}..={to}"),
        ServerOp::Ended(reject) => format!("ended {}", reject.code),
        ServerOp::Asked { model, .. } => format!("asked {model}"),
        ServerOp::Tokens { index, count, text, details } => {
            let told: String = details.iter().map(|detail| format!("~{}", detail.index)).collect();
            format!("{index}+{count} {}{told}", String::from_utf8_lossy(text))
        }
        ServerOp::Finished { reason, usage, .. } => format!("{} {}", reason.as_str(), usage.completion_tokens),
        other => format!("{other:?}"),
    }
}

/// A write that makes its channel.
pub(super) fn publish(channel: &str, sequence: u64, body: &str) -> ClientOp {
    ClientOp::Publish(Publish {
        channel: name(channel),
        sequence: Sequence(sequence),
        retry: false,
        make: true,
        body: Bytes::copy_from_slice(body.as_bytes()),
        key: 0,
        post: Default::default(),
    })
}

/// The same write once more, after it may have been carried out.
pub(super) fn retry(channel: &str, sequence: u64, body: &str) -> ClientOp {
    match publish(channel, sequence, body) {
        ClientOp::Publish(publish) => ClientOp::Publish(Publish { retry: true, ..publish }),
        other => other,
    }
}

/// A channel that keeps so many messages.
pub(super) fn create(channel: &str, history_messages: u32, durability: Option<Durability>) -> ClientOp {
    let (history_bytes, history_age_ms) = (0, 0);
    ClientOp::CreateChannel(CreateChannel {
        channel: name(channel),
        history_messages,
        history_bytes,
        history_age_ms,
        durability,
        about: Default::default(),
    })
}

/// A watch of somebody who was not there before.
pub(super) fn watch(generation: thalweg_protocol::ids::GenerationId, from: u32, lead: u32) -> ClientOp {
    ClientOp::Watch(WatchRequest { generation, from, lead, epoch: Epoch(0), seen: None })
}

/// A subscription that makes its channel.
pub(super) fn subscribe(channel: &str, from: From, policy: Policy, lead: u32) -> ClientOp {
    ClientOp::Subscribe(Subscribe { channel: name(channel), from, policy, lead, make: true, presence: false })
}
