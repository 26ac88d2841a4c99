//! What clients do to channels as a whole, and which life of a channel something belongs to.

use thalweg_protocol::chat::{ChannelAbout, ChannelKind};
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::op::{ClientOp, CreateChannel, Delivery, DeliveryKind, Durability, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_workload::auditor::people::{Deed, Moment};
use thalweg_workload::auditor::{BodyHash, ChannelIndex, Event as Seen};

use super::{Asked, name};
use crate::faults::Fault;
use crate::world::World;

/// Channels from this number on live in memory.
pub(crate) const MEMORY: u32 = 100;
/// Channels from this number on are deleted and made again.
pub(crate) const DOOMED: u32 = 200;
/// Channels from this number on have members, who come and go; those with an even number are private when they are made.
pub(crate) const CLUB: u32 = 300;
/// Direct conversations: the bits of the number above this one say whose.
pub(crate) const DIRECT: u32 = 512;
/// The auditor's numbers of another tenant's channels begin here.
const OTHER_TENANT: u32 = 500_000;

/// What is promised of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It outlives the node.
    Disk,
    /// It begins anew with each life of the node.
    Memory,
    /// It outlives the node, but people delete it.
    Doomed,
    /// It outlives the node, and not everybody may read it.
    Club,
}

pub(crate) fn kind(channel: u32) -> Kind {
    match channel {
        CLUB.. => Kind::Club,
        DOOMED.. => Kind::Doomed,
        MEMORY.. => Kind::Memory,
        _ => Kind::Disk,
    }
}

/// Whether a channel is one that people delete.
pub(crate) fn is_doomed(channel: &Name) -> bool {
    let number = channel.as_str().strip_prefix("room-").and_then(|number| number.parse().ok());
    number.is_some_and(|number| kind(number) == Kind::Doomed)
}

/// The auditor's number of a channel as far as a client knows. Of one that is deleted and made again only the log knows
/// more, see [`crate::truth`].
pub(super) fn index(tenant: u8, channel: u32, epoch: u64) -> ChannelIndex {
    let own = match kind(channel) {
        Kind::Memory => 1_000 * epoch as u32 + channel,
        Kind::Disk | Kind::Doomed | Kind::Club => channel,
    };
    ChannelIndex(own + OTHER_TENANT * u32::from(tenant))
}

/// What of a message the auditor tells it by. What is no message of its own is told by what it does, to what and by whom.
pub(super) fn content(kind: DeliveryKind, target: Position, user: &Name, body: &[u8]) -> BodyHash {
    match kind {
        DeliveryKind::Message | DeliveryKind::Tokens => BodyHash::of(body),
        _ => BodyHash::of(&[format!("{kind:?} {target} {user} ").as_bytes(), body].concat()),
    }
}

impl World {
    /// A channel that somebody might do something with.
    pub(super) fn any_channel(&mut self, client: usize) -> u32 {
        if self.clients[client].tenant > 0 {
            return self.any_kept(client);
        }
        let at = self.below((self.channels.len() + self.clubs.len()) as u64) as usize;
        self.channels.get(at).copied().unwrap_or_else(|| self.clubs[at - self.channels.len()])
    }

    /// A channel whose messages are kept whatever happens to the node.
    pub(super) fn any_kept(&mut self, client: usize) -> u32 {
        let mut kept: Vec<u32> = self.channels.iter().copied().filter(|&c| kind(c) == Kind::Disk).collect();
        if self.clients[client].tenant == 0 {
            kept.extend(&self.clubs);
        }
        let at = self.below(kept.len() as u64) as usize;
        kept[at]
    }

    /// What a channel is called. A direct conversation has no name before somebody opened it.
    pub(super) fn name_of(&self, channel: u32) -> Name {
        self.directs.get(&channel).cloned().unwrap_or_else(|| name(channel))
    }

    /// The auditor's number of a channel, for a client.
    pub(super) fn index_for(&self, client: usize, channel: u32) -> ChannelIndex {
        index(self.clients[client].tenant, channel, self.clients[client].epoch)
    }

    pub(super) fn create(&mut self, client: usize, channel: u32) {
        if channel >= DIRECT {
            return;
        }
        let durability = match kind(channel) {
            Kind::Memory => Some(Durability::Memory),
            Kind::Disk | Kind::Doomed | Kind::Club => None,
        };
        let (mut history_messages, mut history_bytes, mut history_age_ms) = (0, 0, 0);
        if channel == 0 && self.trimmed {
            match self.below(3) {
                0 => history_messages = 8,
                1 => history_bytes = 2_000,
                _ => history_age_ms = 50,
            }
        }
        let mut about = ChannelAbout::default();
        let mut asked = Asked::Other;
        if kind(channel) == Kind::Club {
            about.kind = if channel.is_multiple_of(2) { ChannelKind::Private } else { ChannelKind::Open };
            let (room, by) = (self.index_for(client, channel), self.person(client));
            asked = Asked::Create(self.people.begin(&Deed::Create { room, by, kind: about.kind }));
        }
        let channel = name(channel);
        let op = CreateChannel { channel, history_messages, history_bytes, history_age_ms, durability, about };
        self.request(client, &ClientOp::CreateChannel(op), asked);
    }

    pub(super) fn delete(&mut self, client: usize) {
        let doomed: Vec<u32> = self.channels.iter().copied().filter(|&c| kind(c) == Kind::Doomed).collect();
        let Some(at) = self.pick(doomed.len()) else { return };
        self.request(client, &ClientOp::DeleteChannel { channel: name(doomed[at]) }, Asked::Other);
    }

    pub(super) fn read_page(&mut self, client: usize) {
        let (channel, from, limit) = (self.any_channel(client), Position(self.below(60)), self.below(20) as u32);
        let op = ClientOp::ReadHistory { channel: self.name_of(channel), from, limit };
        let since = self.people.moment();
        self.request(client, &op, Asked::Page { channel, from, since });
    }

    /// A page of history, or why there is none.
    pub(super) fn page(&mut self, client: usize, channel: u32, from: Position, since: Moment, op: ServerOp) {
        let (first, next, head, deliveries) = match op {
            ServerOp::Page { first, next, head, deliveries } => (first, next, head, deliveries),
            ServerOp::Reject(reject) => return self.page_refused(client, channel, since, &reject),
            op => return self.violation(format!("client {client}: a page was answered by {op:?}")),
        };
        self.faults.count(Fault::Paged);
        let mut expected = from.max(first);
        for payload in &deliveries {
            let Ok(ServerOp::Delivery(delivery)) = ServerOp::decode(payload) else {
                return self.violation(format!("client {client}: a page of {channel} holds what is no delivery"));
            };
            let position = delivery.position;
            if position != expected {
                self.violation(format!("client {client}: page of {channel} from {from}: {position}, not {expected}"));
            }
            expected = position.next();
            self.read_without_subscription(client, channel, since, &delivery);
        }
        // What is no longer kept may go while it is read; then the next page begins later.
        let short = deliveries.is_empty() && from.max(first) <= head && next <= from;
        if (!deliveries.is_empty() && next != expected) || short {
            let count = deliveries.len();
            let text =
                format!("page of {channel} from {from}: {count} messages, first {first}, next {next}, head {head}");
            self.violation(format!("client {client}: {text}"));
        }
    }

    /// A message came in answer to a question.
    pub(super) fn read_without_subscription(
        &mut self,
        client: usize,
        channel: u32,
        since: Moment,
        delivery: &Delivery,
    ) {
        if kind(channel) == Kind::Doomed {
            return;
        }
        let (index, position) = (self.index_for(client, channel), delivery.position);
        self.judge_text(client, channel, since, delivery);
        if delivery.context.redacted {
            return self.auditor.record(Seen::ReadRedacted { channel: index, position });
        }
        let body = content(delivery.kind, delivery.context.target, &delivery.user, &delivery.body);
        self.auditor.record(Seen::Read { channel: index, position, body });
    }

    fn page_refused(&mut self, client: usize, channel: u32, since: Moment, reject: &Reject) {
        match reject.code {
            RejectCode::Forbidden if kind(channel) == Kind::Club => self.refused_in_club(client, channel, since),
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted | RejectCode::Busy => {}
            RejectCode::StorageDamaged if self.was_rotten => self.faults.count(Fault::RotRefusedRead),
            _ => self.violation(format!("client {client}: a page was refused: {reject}")),
        }
    }
}
