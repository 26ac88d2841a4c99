//! What clients do to channels as a whole, and which life of a channel something belongs to.

use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::op::{ClientOp, CreateChannel, Durability, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_workload::auditor::{BodyHash, ChannelIndex, Event as Seen};

use super::{Asked, name};
use crate::faults::Fault;
use crate::world::World;

/// Channels from this number on live in memory.
pub(crate) const MEMORY: u32 = 100;
/// Channels from this number on are deleted and made again.
pub(crate) const DOOMED: u32 = 200;

/// What is promised of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It outlives the node.
    Disk,
    /// It begins anew with each life of the node.
    Memory,
    /// It outlives the node, but people delete it.
    Doomed,
}

pub(crate) fn kind(channel: u32) -> Kind {
    match channel {
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
pub(super) fn index(channel: u32, epoch: u64) -> ChannelIndex {
    match kind(channel) {
        Kind::Memory => ChannelIndex(1_000 * epoch as u32 + channel),
        Kind::Disk | Kind::Doomed => ChannelIndex(channel),
    }
}

impl World {
    pub(super) fn any_channel(&mut self) -> u32 {
        let at = self.below(self.channels.len() as u64) as usize;
        self.channels[at]
    }

    pub(super) fn create(&mut self, client: usize, channel: u32) {
        let durability = match kind(channel) {
            Kind::Memory => Some(Durability::Memory),
            Kind::Disk | Kind::Doomed => None,
        };
        let (mut history_messages, mut history_bytes, mut history_age_ms) = (0, 0, 0);
        if channel == 0 && self.trimmed {
            match self.below(3) {
                0 => history_messages = 8,
                1 => history_bytes = 2_000,
                _ => history_age_ms = 50,
            }
        }
        let channel = name(channel);
        let op = CreateChannel {
            channel,
            history_messages,
            history_bytes,
            history_age_ms,
            durability,
            about: Default::default(),
        };
        self.request(client, &ClientOp::CreateChannel(op), Asked::Other);
    }

    pub(super) fn delete(&mut self, client: usize) {
        let doomed: Vec<u32> = self.channels.iter().copied().filter(|&c| kind(c) == Kind::Doomed).collect();
        let Some(at) = self.pick(doomed.len()) else { return };
        self.request(client, &ClientOp::DeleteChannel { channel: name(doomed[at]) }, Asked::Other);
    }

    pub(super) fn read_page(&mut self, client: usize) {
        let (channel, from, limit) = (self.any_channel(), Position(self.below(60)), self.below(20) as u32);
        let op = ClientOp::ReadHistory { channel: name(channel), from, limit };
        self.request(client, &op, Asked::Page(channel, from));
    }

    /// A page of history, or why there is none.
    pub(super) fn page(&mut self, client: usize, channel: u32, from: Position, op: ServerOp) {
        let (first, next, head, deliveries) = match op {
            ServerOp::Page { first, next, head, deliveries } => (first, next, head, deliveries),
            ServerOp::Reject(reject) => return self.page_refused(client, &reject),
            op => return self.violation(format!("client {client}: a page was answered by {op:?}")),
        };
        self.faults.count(Fault::Paged);
        let index = index(channel, self.clients[client].epoch);
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
            if kind(channel) != Kind::Doomed {
                let body = BodyHash::of(&delivery.body);
                self.auditor.record(Seen::Read { channel: index, position, body });
            }
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

    fn page_refused(&mut self, client: usize, reject: &Reject) {
        match reject.code {
            RejectCode::ChannelUnknown | RejectCode::ChannelDeleted | RejectCode::Busy => {}
            RejectCode::StorageDamaged if self.was_rotten => self.faults.count(Fault::RotRefusedRead),
            _ => self.violation(format!("client {client}: a page was refused: {reject}")),
        }
    }
}
