//! The simulated clients: what they ask, how they misbehave, and what they make of the answers.

mod answers;
mod channels;
mod chat;
mod documents;
mod presence;
mod reports;
mod watches;

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_protocol::chat::Post;
use thalweg_protocol::ids::{Name, Position, Sequence, SessionId, Subscription, Watch};
use thalweg_protocol::op::{ClientOp, Delivery, From, Hello, Policy, Publish, ServerOp, Subscribe};
use thalweg_shard::Link;
use thalweg_workload::auditor::people::{DeedId, Moment};
use thalweg_workload::auditor::{ChannelIndex, Event as Seen, ReaderId};

pub(crate) use channels::{CLUB, DOOMED, MEMORY, is_doomed};
use channels::{Kind, content, kind};
pub(crate) use chat::Known;
use chat::{ChatAsked, delivery_kind};
pub(crate) use documents::Papers;
use documents::{DocumentAsked, Edit, Paper};
pub(crate) use presence::{Picture, PresenceAnswer};
use watches::Watching;

use crate::faults::Fault;
use crate::node::frame;
use crate::world::{Event, Plant, Route, World};

/// How long after its connection is gone a request may still be carried out, in microseconds.
const DEEDS_LATE_US: u64 = 500_000;
/// Subscriptions of a client.
const READERS_MAX: usize = 8;

/// A write that was not answered.
#[derive(Debug, Clone)]
struct Write {
    channel: u32,
    body: Bytes,
    post: Post,
    /// When it was sent first.
    since: Moment,
    /// What else is to be said of it when it is answered.
    deed: Option<DeedId>,
    /// Nothing is in its way: it must not be refused.
    last_word: bool,
    /// It was in the log before it was sent the last time.
    written: bool,
    /// Times it was sent.
    sent: u32,
    /// The channel that the auditor knows it for.
    index: ChannelIndex,
}

/// A subscription, over all connections it was carried over.
#[derive(Debug, Clone)]
struct Reader {
    id: ReaderId,
    channel: u32,
    policy: Policy,
    from: From,
    lead: u32,
    /// Whether it takes part in presence.
    presence: bool,
    /// Who is there, as far as it was told over this connection.
    picture: Option<Picture>,
    /// When it was asked for over this connection.
    since: Moment,
    /// Whether the node accepted it over this connection, and over any.
    accepted: (bool, bool),
    cursor: Position,
    /// Which life of its channel it reads, as the auditor numbers them.
    index: Option<ChannelIndex>,
    /// What came before the subscription's answer, on the other lane.
    early: Vec<ServerOp>,
    /// Consumed and not reported.
    owed: Option<Position>,
    /// Held back by a planted defect.
    swapped: Option<Delivery>,
}

/// What a request asked for.
#[derive(Debug)]
enum Asked {
    Publish(Sequence),
    Subscribe,
    Generation,
    /// A page of a channel's history, from a position on.
    Page {
        channel: u32,
        from: Position,
        since: Moment,
    },
    /// A channel with members.
    Create(DeedId),
    Chat(ChatAsked),
    Document(DocumentAsked),
    /// A subscription that was ended before it was accepted: it may be refused, but it is answered.
    Abandoned,
    Other,
}

pub(crate) struct Client {
    session: SessionId,
    /// Whose data it works with.
    pub(crate) tenant: u8,
    /// The number of its user, of whom there may be several clients.
    pub(crate) user: u32,
    /// Its token lets it administer everything of its tenant.
    admin: bool,
    /// It said that its user is not at the keyboard.
    away: bool,
    /// It does nothing until all is over, and reads everything then.
    observer: bool,
    link: Option<Link>,
    /// The life of the node that the connection is to.
    epoch: u64,
    last_core: Option<u16>,
    requests: u32,
    sequences: u64,
    unacked: BTreeMap<Sequence, Write>,
    asked: BTreeMap<u32, Asked>,
    readers: BTreeMap<u32, Reader>,
    watches: BTreeMap<u32, Watching>,
    papers: BTreeMap<u32, Paper>,
    /// Edits of documents that were not answered.
    edits: BTreeMap<Sequence, Edit>,
    slow: bool,
}

impl Client {
    pub(crate) fn new(number: usize, observer: bool, tenant: u8, user: u32, admin: bool) -> Self {
        Self {
            session: SessionId(number as u128 + 1),
            tenant,
            user,
            admin,
            away: false,
            observer,
            epoch: 0,
            link: None,
            last_core: None,
            requests: 0,
            sequences: 0,
            unacked: BTreeMap::new(),
            asked: BTreeMap::new(),
            readers: BTreeMap::new(),
            watches: BTreeMap::new(),
            papers: BTreeMap::new(),
            edits: BTreeMap::new(),
            slow: false,
        }
    }
}

impl Client {
    /// Whether all that it asked for is answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.link.is_some() && self.asked.is_empty() && self.unacked.is_empty() && self.edits.is_empty()
    }
}

fn name(channel: u32) -> Name {
    Name::new(&format!("room-{channel}")).expect("a valid name")
}

impl World {
    /// What was asked over a connection that is gone was carried out by now, or will never be.
    fn give_up_deeds(&mut self, within_us: u64) {
        let now_us = self.now_us;
        for (_, deed) in self.lost_deeds.extract_if(.., |(lost_us, _)| *lost_us + within_us <= now_us) {
            self.people.over(deed);
        }
    }

    /// Does one thing, and says when the client does the next.
    pub(crate) fn act(&mut self, client: usize) {
        if self.settling {
            return self.settle_client(client);
        }
        if self.clients[client].observer {
            return;
        }
        if self.clients[client].link.is_some() {
            self.operations_left = self.operations_left.saturating_sub(1);
            self.make_trouble();
            self.give_up_deeds(DEEDS_LATE_US);
            self.act_connected(client);
        } else if self.up {
            self.operations_left = self.operations_left.saturating_sub(1);
            self.come_back(client);
        }
        let pause = if self.chance(0.1) { 20_000 } else { 2_000 };
        let at = (self.now_us + 1 + self.below(pause)).max(self.paused_until_us);
        self.at(at, Event::Act { client });
    }

    fn act_connected(&mut self, client: usize) {
        match self.below(1_560) {
            1_350.. => self.act_on_document(client),
            1_000.. => self.socialise(client),
            0..460 => self.publish(client),
            460..580 => self.subscribe(client),
            580..600 => self.unsubscribe(client),
            600..690 => self.ask(client),
            690..770 => self.watch(client),
            770..800 => self.cancel(client),
            800..820 => self.unwatch(client),
            820..880 => self.turn_slow(client),
            880..920 => self.stall(client),
            920..950 => self.cut(client),
            950..955 if self.up => {
                let core = self.below(self.node.cores.len() as u64) as u16;
                self.block(thalweg_protocol::ids::CoreId(core), true);
            }
            955..975 => self.read_page(client),
            975..985 => self.delete(client),
            985..990 => {
                self.request(client, &ClientOp::Checkpoint, Asked::Other);
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
            let whole = self.chance(0.7);
            let cut = if whole { bytes.len() } else { 1 + self.below(2 * bytes.len() as u64) as usize };
            let bytes = bytes.split_to(cut.min(bytes.len()));
            self.send(Route::ToNode(link), 300, Event::ToNode { link, bytes });
        }
    }

    fn publish(&mut self, client: usize) {
        let channel = self.any_channel(client);
        if channel == 0 && self.trimmed && self.chance(0.3) {
            self.create(client, channel);
        }
        let mention = kind(channel) == Kind::Disk && self.chance(0.12);
        let padding = if self.large && self.chance(0.08) { self.below(60_000) } else { self.below(60) };
        let own = &mut self.clients[client];
        own.sequences += 1;
        let sequence = Sequence(own.sequences);
        let session = own.session;
        let start = if mention { "@ai " } else { "" };
        let padding = if mention { 0 } else { padding as usize };
        let (post, name) = self.speak(client, channel);
        let body = Bytes::from(format!("{start}{} {sequence} {name}{}", session.0, "x".repeat(padding)));
        if mention {
            self.faults.count(Fault::Mentioned);
        }
        self.write(client, channel, sequence, body, post, None);
    }

    /// Writes something for the first time.
    fn write(
        &mut self,
        client: usize,
        channel: u32,
        sequence: Sequence,
        body: Bytes,
        post: Post,
        deed: Option<DeedId>,
    ) {
        let index = self.index_for(client, channel);
        let (session, user) = (self.clients[client].session, self.user_name(client));
        let hash = content(delivery_kind(post.kind), post.target, &user, &body);
        self.auditor.record(Seen::Sent { session, sequence, channel: index, body: hash });
        let since = self.people.moment();
        if kind(channel) == Kind::Club {
            self.sent_at.insert(hash, since);
        }
        let last_word = self.asking;
        let write = Write { channel, body, post, since, deed, last_word, written: false, sent: 0, index };
        self.clients[client].unacked.insert(sequence, write);
        self.send_write(client, sequence);
    }

    fn send_write(&mut self, client: usize, sequence: Sequence) {
        let (epoch, tenant) = (self.clients[client].epoch, self.clients[client].tenant);
        let session = self.clients[client].session;
        let written = self.truth.is_written(session, sequence);
        let Some(write) = self.clients[client].unacked.get_mut(&sequence) else { return };
        write.written = written;
        let index = channels::index(tenant, write.channel, epoch);
        let anew = std::mem::replace(&mut write.index, index) != index;
        let Write { channel, body, sent, post, .. } = write.clone();
        write.sent += 1;
        if anew {
            self.auditor.record(Seen::Resent { session, sequence, channel: index });
        }
        let retry = sent > 0;
        if retry {
            self.faults.count(Fault::Retried);
        }
        let make = kind(channel) == Kind::Disk;
        let publish = Publish { channel: self.name_of(channel), sequence, retry, make, body, key: 0, post };
        self.request(client, &ClientOp::Publish(publish), Asked::Publish(sequence));
    }

    fn subscribe(&mut self, client: usize) {
        if self.clients[client].readers.len() >= READERS_MAX {
            return self.unsubscribe(client);
        }
        let channel = self.any_channel(client);
        let policy = [Policy::Replay, Policy::Drop, Policy::Disconnect][self.below(3) as usize];
        let from = match self.below(3) {
            0 => From::Start,
            1 => From::End,
            _ => From::Position(Position(self.below(40))),
        };
        let lead = [0, 1, 2, 8][self.below(4) as usize];
        let presence = self.chance(0.4);
        self.subscribe_to(client, channel, policy, from, lead, presence);
    }

    fn subscribe_to(&mut self, client: usize, channel: u32, policy: Policy, from: From, lead: u32, presence: bool) {
        let id = ReaderId(self.fresh_number());
        let reader = Reader {
            id,
            channel,
            policy,
            from,
            lead,
            presence,
            picture: None,
            since: Moment::default(),
            accepted: (false, false),
            cursor: Position(0),
            index: None,
            early: Vec::new(),
            owed: None,
            swapped: None,
        };
        self.send_subscribe(client, reader);
    }

    fn send_subscribe(&mut self, client: usize, mut reader: Reader) {
        (reader.picture, reader.since) = (None, self.people.moment());
        let Reader { channel, from, policy, lead, accepted, mut cursor, presence, .. } = reader;
        if accepted.1 && self.options.plant == Some(Plant::CursorOffByOne) {
            cursor = cursor.next();
        }
        let from = if accepted.1 { From::Position(cursor) } else { from };
        let make = kind(channel) == Kind::Disk;
        let op = ClientOp::Subscribe(Subscribe { channel: self.name_of(channel), from, policy, lead, make, presence });
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
            && reader.index.is_some()
        {
            self.auditor.record(Seen::Ended { reader: reader.id });
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
                ops.push(ClientOp::TokensConsumed { watch: Watch(number), index: watching.next() });
            }
        }
        ops.extend(self.credit_documents(client));
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
        let late = match self.below(20) {
            // It vanished without a word, and the node learns late that it is gone.
            0 => 30_000_000,
            1..7 => 20_000,
            _ => 500,
        };
        self.send(Route::ToNode(link), late, Event::Lost { link });
        self.forget_connection(client);
    }

    /// What was asked over the connection is answered by nobody.
    fn forget_connection(&mut self, client: usize) {
        let own = &mut self.clients[client];
        own.link = None;
        let now_us = self.now_us;
        let deeds = own.asked.values().filter_map(|asked| match asked {
            Asked::Create(deed) | Asked::Chat(ChatAsked::Deed(deed) | ChatAsked::Direct { deed, .. }) => Some(*deed),
            _ => None,
        });
        self.lost_deeds.extend(deeds.map(|deed| (now_us, deed)));
        own.asked.clear();
        self.forget_documents(client);
        if self.settling {
            self.within(20_000, Event::Act { client });
        }
    }

    /// The client learns that the node has died.
    pub(crate) fn noticed(&mut self, link: Link) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let client = wire.client;
        wire.in_use = false;
        if self.clients[client].link == Some(link) {
            self.forget_connection(client);
        }
    }

    /// Opens a connection, repeats what was not answered, and takes up what was read.
    fn come_back(&mut self, client: usize) {
        let link = self.connect(client);
        let core = self.wires[&link].core.0;
        let epoch = self.epoch;
        let own = &mut self.clients[client];
        (own.link, own.epoch, own.away) = (Some(link), epoch, false);
        let elsewhere = own.last_core.replace(core).is_some_and(|last| last != core);
        let (session, tenant) = (own.session, own.tenant);
        let token = format!("{tenant} {} user-{}", if own.admin { "admin" } else { "user" }, own.user);
        let readers = std::mem::take(&mut own.readers);
        let watches = std::mem::take(&mut own.watches);
        let writes: Vec<Sequence> = own.unacked.keys().copied().collect();
        if elsewhere {
            self.faults.count(Fault::CameBackElsewhere);
        }
        let hello = Hello { versions: (1, 1), session, token, client: "sim".into() };
        self.request(client, &ClientOp::Hello(hello), Asked::Other);
        for sequence in writes {
            self.send_write(client, sequence);
        }
        for (_, mut reader) in readers {
            reader.accepted.0 = false;
            reader.early.clear();
            reader.owed = None;
            let channel = reader.channel;
            let anew = match kind(channel) {
                Kind::Disk | Kind::Club => false,
                Kind::Memory => reader.index.is_some_and(|index| index != channels::index(tenant, channel, epoch)),
                Kind::Doomed => true,
            };
            if anew {
                reader.accepted.1 = false;
                if reader.index.take().is_some() {
                    self.auditor.record(Seen::Ended { reader: reader.id });
                }
                reader.id = ReaderId(self.fresh_number());
            } else if reader.accepted.1 {
                self.faults.count(Fault::SubscriptionResumed);
            }
            self.send_subscribe(client, reader);
        }
        for (_, watching) in watches {
            if watching.greeted {
                self.faults.count(Fault::WatchedAgain);
            }
            self.send_watch(client, watching);
        }
        self.come_back_to_documents(client);
    }

    pub(crate) fn settle_client(&mut self, client: usize) {
        let fresh = self.clients[client].link.is_none();
        if fresh && !self.up {
            return self.within(20_000, Event::Act { client });
        }
        if fresh {
            self.come_back(client);
            if self.clients[client].observer {
                for channel in self.channels_to_observe(client) {
                    self.subscribe_to(client, channel, Policy::Replay, From::Start, 0, true);
                }
            }
        }
        self.clients[client].slow = false;
        self.settle_documents(client);
        self.give_credit(client);
    }

    /// The node closed a connection. If it is the newest, the hello of an older one came late and took the session.
    pub(crate) fn closed_by_node(&mut self, link: Link) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let (client, in_use) = (wire.client, std::mem::replace(&mut wire.in_use, false));
        if in_use && self.clients[client].link == Some(link) {
            self.forget_connection(client);
        }
    }
}
