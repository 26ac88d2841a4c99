//! The simulated clients: what they ask, how they misbehave, and what they make of the answers.

mod answers;

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_protocol::generation::{AskRequest, OnDetach};
use thalweg_protocol::ids::{GenerationId, Name, Position, Sequence, SessionId, Subscription, Watch};
use thalweg_protocol::op::{ClientOp, Delivery, From, Hello, Policy, Publish, ServerOp, Subscribe};
use thalweg_shard::Link;
use thalweg_workload::auditor::{BodyHash, ChannelIndex, Event as Seen, ReaderId, WatchId};

use crate::faults::Fault;
use crate::node::frame;
use crate::world::{Event, Route, World};

/// A write that was not answered.
#[derive(Debug, Clone)]
struct Write {
    channel: u32,
    body: Bytes,
    /// Times it was sent.
    sent: u32,
}

/// A subscription, over all connections it was carried over.
#[derive(Debug, Clone)]
struct Reader {
    id: ReaderId,
    channel: u32,
    policy: Policy,
    from: From,
    lead: u32,
    /// Whether the node accepted it over this connection, and over any.
    accepted: (bool, bool),
    cursor: Position,
    /// What came before the subscription's answer, on the other lane.
    early: Vec<ServerOp>,
    /// Consumed and not reported.
    owed: Option<Position>,
    /// Held back by a planted defect.
    swapped: Option<Delivery>,
}

/// A watched generation.
#[derive(Debug, Clone)]
struct Watching {
    id: WatchId,
    generation: Option<GenerationId>,
    greeted: bool,
    next: u32,
    lead: u32,
    owed: bool,
}

/// What a request asked for.
#[derive(Debug)]
enum Asked {
    Publish(Sequence),
    Subscribe,
    Generation,
    /// A subscription that was ended before it was accepted: it may be refused, but it is answered.
    Abandoned,
    Other,
}

pub(crate) struct Client {
    session: SessionId,
    link: Option<Link>,
    last_core: Option<u16>,
    requests: u32,
    sequences: u64,
    unacked: BTreeMap<Sequence, Write>,
    asked: BTreeMap<u32, Asked>,
    readers: BTreeMap<u32, Reader>,
    watches: BTreeMap<u32, Watching>,
    slow: bool,
}

impl Client {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            session: SessionId(number as u128 + 1),
            link: None,
            last_core: None,
            requests: 0,
            sequences: 0,
            unacked: BTreeMap::new(),
            asked: BTreeMap::new(),
            readers: BTreeMap::new(),
            watches: BTreeMap::new(),
            slow: false,
        }
    }
}

fn name(channel: u32) -> Name {
    Name::new(&format!("room-{channel}")).expect("a valid name")
}

impl World {
    /// Does one thing, and says when the client does the next.
    pub(crate) fn act(&mut self, client: usize) {
        if self.settling {
            return;
        }
        self.operations_left = self.operations_left.saturating_sub(1);
        if self.drain_at.is_some_and(|at| self.operations_left <= at) && !self.draining {
            self.drain_node();
        }
        if self.clients[client].link.is_none() {
            self.come_back(client);
        } else {
            self.act_connected(client);
        }
        let pause = if self.chance(0.1) { 20_000 } else { 2_000 };
        self.within(pause, Event::Act { client });
    }

    fn act_connected(&mut self, client: usize) {
        match self.below(100) {
            0..45 => self.publish(client),
            45..57 => self.subscribe(client),
            57..59 => self.unsubscribe(client),
            59..68 => self.ask(client),
            68..76 => self.watch(client),
            76..79 => self.cancel(client),
            79..81 => self.unwatch(client),
            81..88 => self.turn_slow(client),
            88..93 => self.stall(client),
            93..97 => self.cut(client),
            97 => {
                let core = self.below(self.node.cores.len() as u64) as u16;
                self.block(thalweg_protocol::ids::CoreId(core), true);
            }
            _ => {
                self.request(client, &ClientOp::Ping { nonce: 7 }, Asked::Other);
            }
        }
    }

    fn request(&mut self, client: usize, op: &ClientOp, asked: Asked) -> u32 {
        let own = &mut self.clients[client];
        own.requests += 1;
        let number = own.requests;
        own.asked.insert(number, asked);
        self.say(client, number, op);
        number
    }

    /// Sends a frame in pieces; nothing if there is no connection.
    fn say(&mut self, client: usize, subject: u32, op: &ClientOp) {
        let Some(link) = self.clients[client].link else { return };
        let mut bytes = frame(subject, &op.encode());
        if let Some(wire) = self.wires.get_mut(&link) {
            wire.underway += bytes.len();
        }
        while !bytes.is_empty() {
            let cut = 1 + self.below(2 * bytes.len() as u64) as usize;
            let bytes = bytes.split_to(cut.min(bytes.len()));
            self.send(Route::ToNode(link), 300, Event::ToNode { link, bytes });
        }
    }

    fn publish(&mut self, client: usize) {
        let channel = self.below(u64::from(self.channels)) as u32;
        if channel == 0 && self.trimmed && self.chance(0.3) {
            let op = ClientOp::CreateChannel { channel: name(0), history_messages: 8, history_bytes: 0 };
            self.request(client, &op, Asked::Other);
        }
        let mention = self.chance(0.12);
        let padding = if self.large && self.chance(0.5) { self.below(60_000) } else { self.below(60) };
        let own = &mut self.clients[client];
        own.sequences += 1;
        let sequence = Sequence(own.sequences);
        let session = own.session;
        let start = if mention { "@ai " } else { "" };
        let padding = if mention { 0 } else { padding as usize };
        let body = Bytes::from(format!("{start}{} {sequence} {}", session.0, "x".repeat(padding)));
        if mention {
            self.faults.count(Fault::Mentioned);
        }
        let hash = BodyHash::of(&body);
        self.auditor.record(Seen::Sent { session, sequence, channel: ChannelIndex(channel), body: hash });
        self.clients[client].unacked.insert(sequence, Write { channel, body, sent: 0 });
        self.send_write(client, sequence);
    }

    fn send_write(&mut self, client: usize, sequence: Sequence) {
        let Some(write) = self.clients[client].unacked.get_mut(&sequence) else { return };
        let Write { channel, body, sent } = write.clone();
        write.sent += 1;
        let retry = sent > 0;
        if retry {
            self.faults.count(Fault::Retried);
        }
        let publish = Publish { channel: name(channel), sequence, retry, make: true, body, key: 0 };
        self.request(client, &ClientOp::Publish(publish), Asked::Publish(sequence));
    }

    fn subscribe(&mut self, client: usize) {
        let channel = self.below(u64::from(self.channels)) as u32;
        let policy = [Policy::Replay, Policy::Drop, Policy::Disconnect][self.below(3) as usize];
        let from = match self.below(3) {
            0 => From::Start,
            1 => From::End,
            _ => From::Position(Position(self.below(40))),
        };
        let lead = [0, 1, 2, 8][self.below(4) as usize];
        let id = ReaderId(self.fresh_number());
        let reader = Reader {
            id,
            channel,
            policy,
            from,
            lead,
            accepted: (false, false),
            cursor: Position(0),
            early: Vec::new(),
            owed: None,
            swapped: None,
        };
        self.send_subscribe(client, reader);
    }

    fn send_subscribe(&mut self, client: usize, reader: Reader) {
        let Reader { channel, from, policy, lead, accepted, cursor, .. } = reader;
        let from = if accepted.1 { From::Position(cursor) } else { from };
        let op = ClientOp::Subscribe(Subscribe { channel: name(channel), from, policy, lead, make: true });
        let number = self.request(client, &op, Asked::Subscribe);
        self.clients[client].readers.insert(number, reader);
    }

    fn pick(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.below(count as u64) as usize)
    }

    fn unsubscribe(&mut self, client: usize) {
        let Some(at) = self.pick(self.clients[client].readers.len()) else { return };
        let Some((&number, _)) = self.clients[client].readers.iter().nth(at) else { return };
        if let Some(asked) = self.clients[client].asked.get_mut(&number) {
            *asked = Asked::Abandoned;
        }
        self.end_reader(client, number);
        let op = ClientOp::Unsubscribe { subscription: Subscription(number) };
        self.request(client, &op, Asked::Other);
    }

    fn end_reader(&mut self, client: usize, number: u32) {
        if let Some(reader) = self.clients[client].readers.remove(&number)
            && reader.accepted.1
        {
            self.auditor.record(Seen::Ended { reader: reader.id });
        }
    }

    fn ask(&mut self, client: usize) {
        let words = if self.chance(0.1) { 400 } else { 1 + self.below(20) as usize };
        let mut request = AskRequest::prompt("why? ".repeat(words));
        request.sampling.max_tokens = 1 + self.below(200) as u32;
        request.on_detach = if self.chance(0.5) { OnDetach::Cancel } else { OnDetach::Keep(self.below(100)) };
        request.lead = [0, 1, 5, 40][self.below(4) as usize];
        let lead = request.lead;
        let id = WatchId(self.fresh_number());
        let number = self.request(client, &ClientOp::Ask(Box::new(request)), Asked::Generation);
        let watching = Watching { id, generation: None, greeted: false, next: 0, lead, owed: false };
        self.clients[client].watches.insert(number, watching);
    }

    fn heard_of(&mut self) -> Option<(GenerationId, u32)> {
        let at = self.pick(self.heard.len())?;
        self.heard.iter().nth(at).map(|(&id, &tokens)| (id, tokens))
    }

    fn watch(&mut self, client: usize) {
        let Some((generation, tokens)) = self.heard_of() else { return };
        let from = self.below(u64::from(tokens) + 1) as u32;
        if from > 0 {
            self.faults.count(Fault::WatchedFromMiddle);
        }
        let lead = [0, 1, 5][self.below(3) as usize];
        let id = WatchId(self.fresh_number());
        let generation = Some(generation);
        self.send_watch(client, Watching { id, generation, greeted: false, next: from, lead, owed: false });
    }

    fn send_watch(&mut self, client: usize, watching: Watching) {
        let Some(generation) = watching.generation else { return };
        let op = ClientOp::Watch { generation, from: watching.next, lead: watching.lead };
        let number = self.request(client, &op, Asked::Generation);
        self.clients[client].watches.insert(number, watching);
    }

    fn cancel(&mut self, client: usize) {
        if let Some((generation, _)) = self.heard_of() {
            self.request(client, &ClientOp::Cancel { generation }, Asked::Other);
        }
    }

    fn unwatch(&mut self, client: usize) {
        let Some(at) = self.pick(self.clients[client].watches.len()) else { return };
        let Some((&number, _)) = self.clients[client].watches.iter().nth(at) else { return };
        self.request(client, &ClientOp::Unwatch { watch: Watch(number) }, Asked::Other);
        let Some(watching) = self.clients[client].watches.remove(&number) else { return };
        if watching.greeted {
            // As far as this watcher is concerned the generation ends here.
            self.auditor.record(Seen::Finished { watch: watching.id, tokens: watching.next });
        }
    }

    fn turn_slow(&mut self, client: usize) {
        let slow = !self.clients[client].slow;
        self.clients[client].slow = slow;
        if !slow {
            self.give_credit(client);
        }
    }

    /// Reports everything that was consumed and not reported.
    fn give_credit(&mut self, client: usize) {
        let mut ops = Vec::new();
        for (&number, reader) in &mut self.clients[client].readers {
            if let Some(position) = reader.owed.take() {
                ops.push(ClientOp::Consumed { subscription: Subscription(number), position });
            }
        }
        for (&number, watching) in &mut self.clients[client].watches {
            if std::mem::take(&mut watching.owed) {
                ops.push(ClientOp::TokensConsumed { watch: Watch(number), index: watching.next });
            }
        }
        for op in ops {
            self.say(client, 0, &op);
        }
    }

    fn stall(&mut self, client: usize) {
        let Some(link) = self.clients[client].link else { return };
        let Some(wire) = self.wires.get_mut(&link) else { return };
        wire.stalled = true;
        self.faults.count(Fault::Stalled);
        let long = if self.large { 400_000 } else { 40_000 };
        self.within(long, Event::Unstall { link });
    }

    /// Cuts the connection: any number of the bytes under way still arrive.
    fn cut(&mut self, client: usize) {
        let Some(link) = self.clients[client].link.take() else { return };
        self.faults.count(Fault::Cut);
        // Often right after a request, so that the cut goes through it.
        let Some(wire) = self.wires.get(&link) else { return };
        let underway = wire.underway as u64;
        let spared = self.below(underway + 1) as usize;
        self.note(format_args!("client {client} cuts {link:?}: {spared} of {underway} bytes arrive"));
        if let Some(wire) = self.wires.get_mut(&link) {
            wire.in_use = false;
            wire.spared = Some(spared);
        }
        let late = if self.chance(0.3) { 20_000 } else { 500 };
        self.send(Route::ToNode(link), late, Event::Lost { link });
        // What was asked over this connection is answered by nobody.
        let own = &mut self.clients[client];
        own.asked.clear();
    }

    /// Opens a connection, repeats what was not answered, and takes up what was read.
    fn come_back(&mut self, client: usize) {
        let link = self.connect(client);
        let core = self.wires[&link].core.0;
        let own = &mut self.clients[client];
        own.link = Some(link);
        if own.last_core.replace(core).is_some_and(|last| last != core) {
            self.faults.count(Fault::CameBackElsewhere);
        }
        let own = &mut self.clients[client];
        let (session, token) = (own.session, format!("user-{client}"));
        let readers = std::mem::take(&mut own.readers);
        let watches = std::mem::take(&mut own.watches);
        let writes: Vec<Sequence> = own.unacked.keys().copied().collect();
        let hello = Hello { versions: (1, 1), session, token, client: "sim".into() };
        self.request(client, &ClientOp::Hello(hello), Asked::Other);
        for sequence in writes {
            self.send_write(client, sequence);
        }
        for (_, mut reader) in readers {
            reader.accepted.0 = false;
            reader.early.clear();
            reader.owed = None;
            self.send_subscribe(client, reader);
        }
        for (_, mut watching) in watches {
            if watching.greeted {
                self.faults.count(Fault::WatchedAgain);
            }
            watching.owed = false;
            self.send_watch(client, watching);
        }
    }

    pub(crate) fn settle_client(&mut self, client: usize) {
        if self.clients[client].link.is_none() {
            self.come_back(client);
        }
        self.clients[client].slow = false;
        self.give_credit(client);
    }

    pub(crate) fn closed_by_node(&mut self, link: Link) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let (client, in_use) = (wire.client, std::mem::replace(&mut wire.in_use, false));
        if in_use && self.clients[client].link == Some(link) {
            self.violation(format!("the node closed {link:?}, the newest of client {client}"));
        }
    }
}
