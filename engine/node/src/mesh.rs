//! The rings between the cores: one each way between every two, and a bell per core.

use std::collections::VecDeque;
use std::sync::Arc;

use thalweg_protocol::ids::CoreId;
use thalweg_protocol::limits::RING_SLOTS;
use thalweg_ring::{Bell, Consumer, Producer, ring};
use thalweg_shard::PeerMessage;
use thalweg_udp::Datagram;

use crate::stats::CoreStats;

/// What cores say to each other.
pub(crate) enum MeshMessage {
    /// One shard to another.
    Shard(PeerMessage),
    /// A datagram that the kernel steered to the wrong core.
    Datagram(Datagram),
    /// Give me your statistics, under this number.
    StatsWanted { from: CoreId, number: u64 },
    /// Here they are.
    Stats { number: u64, stats: Box<CoreStats> },
    /// Move everything you have in your log into segments, and say so under this number.
    CheckpointWanted { from: CoreId, number: u64 },
    /// It is there; or what the disk said, if it has no room.
    Checkpointed { number: u64, result: Result<(), String> },
}

struct Outbound {
    ring: Producer<MeshMessage>,
    bell: Arc<Bell>,
    /// What the ring had no room for, in order. A core with more than a ring of it takes nothing new from its clients, so
    /// what can gather here is bounded by what its sessions have in flight.
    backlog: VecDeque<MeshMessage>,
    rung: bool,
}

/// One core's ends of the rings.
pub(crate) struct Mesh {
    outbound: Vec<Option<Outbound>>,
    inbound: Vec<Consumer<MeshMessage>>,
}

impl Mesh {
    /// Makes the rings between all cores, whose bells are given.
    pub(crate) fn all(bells: &[Arc<Bell>]) -> Vec<Self> {
        let cores = bells.len();
        let mut all: Vec<Self> = (0..cores).map(|_| Self { outbound: Vec::new(), inbound: Vec::new() }).collect();
        for from in 0..cores {
            for (to, bell) in bells.iter().enumerate() {
                if from == to {
                    all[from].outbound.push(None);
                    continue;
                }
                let (ring, inbound) = ring(RING_SLOTS);
                let outbound = Outbound { ring, bell: Arc::clone(bell), backlog: VecDeque::new(), rung: true };
                all[from].outbound.push(Some(outbound));
                all[to].inbound.push(inbound);
            }
        }
        all
    }

    /// Hands a message over; the receiver is woken by the next [`flush`](Self::flush).
    pub(crate) fn send(&mut self, to: CoreId, message: MeshMessage) {
        let Some(outbound) = self.outbound.get_mut(usize::from(to.0)).and_then(Option::as_mut) else { return };
        outbound.rung = false;
        if !outbound.backlog.is_empty() {
            outbound.backlog.push_back(message);
        } else if let Err(message) = outbound.ring.push(message) {
            outbound.backlog.push_back(message);
        }
    }

    /// Moves backlogs on and wakes those who were sent something.
    pub(crate) fn flush(&mut self) {
        for outbound in self.outbound.iter_mut().flatten() {
            while let Some(message) = outbound.backlog.pop_front() {
                outbound.rung = false;
                if let Err(message) = outbound.ring.push(message) {
                    outbound.backlog.push_front(message);
                    break;
                }
            }
            if !std::mem::replace(&mut outbound.rung, true) {
                outbound.bell.ring();
            }
        }
    }

    /// Messages that found no room.
    pub(crate) fn backlog(&self) -> usize {
        self.outbound.iter().flatten().map(|outbound| outbound.backlog.len()).sum()
    }

    /// Takes up to `max` messages off each ring.
    pub(crate) fn receive(&mut self, max: usize, mut take: impl FnMut(MeshMessage)) -> usize {
        let mut taken = 0;
        for inbound in &mut self.inbound {
            for message in std::iter::from_fn(|| inbound.pop()).take(max) {
                taken += 1;
                take(message);
            }
        }
        taken
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.inbound.iter().all(Consumer::is_empty) && self.backlog() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_loses_nothing_and_keeps_order() {
        let bells: Vec<_> = (0..2).map(|_| Bell::new().expect("an eventfd")).collect();
        let mut meshes = Mesh::all(&bells);
        let (mut two, mut one) = (meshes.pop().expect("two"), meshes.pop().expect("one"));
        let sent = 3 * RING_SLOTS as u64;
        for number in 0..sent {
            one.send(CoreId(1), MeshMessage::StatsWanted { from: CoreId(0), number });
        }
        assert_eq!(one.backlog(), 2 * RING_SLOTS);
        let mut got = Vec::new();
        while (got.len() as u64) < sent {
            two.receive(100, |message| match message {
                MeshMessage::StatsWanted { number, .. } => got.push(number),
                _ => panic!("something else was sent"),
            });
            one.flush();
        }
        assert!(got.into_iter().eq(0..sent) && one.backlog() == 0 && two.is_empty());
    }
}
