//! Updates that no editor sends: cut off, made up, built on what nobody has, too large, in the name of a node.

use bytes::Bytes;
use rand::Rng as _;
use thalweg_domain::document::{Document, NODE_CLIENTS};
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::Operations;
use thalweg_protocol::ids::Position;
use thalweg_protocol::limits::DOCUMENT_UPDATE_BYTES_MAX;
use thalweg_protocol::op::{ClientOp, Publish, ServerOp};
use thalweg_protocol::reject::RejectCode;

use super::{Copy, DocumentAsked, document_name};
use crate::client::Asked;
use crate::faults::Fault;
use crate::world::World;

/// Yjs client ids that nobody has begin here.
const STRANGERS: u64 = 1 << 30;

/// What is wrong with an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) enum Hostile {
    CutOff,
    Garbage,
    /// It builds on an update that was never sent.
    Orphan,
    TooLarge,
    /// It claims to be the node's own.
    OfNode,
}

impl Hostile {
    /// What it has to be refused with; garbage may look like something.
    fn codes(self) -> &'static [RejectCode] {
        match self {
            Self::CutOff | Self::OfNode => &[RejectCode::UpdateInvalid],
            Self::TooLarge => &[RejectCode::BodyTooLarge],
            Self::Garbage => &[RejectCode::UpdateInvalid, RejectCode::UpdateIncomplete],
            Self::Orphan => &[RejectCode::UpdateIncomplete],
        }
    }

    fn fault(self) -> Fault {
        match self {
            Self::CutOff => Fault::UpdateCutOff,
            Self::Garbage => Fault::UpdateGarbage,
            Self::Orphan => Fault::UpdateOrphan,
            Self::TooLarge => Fault::UpdateTooLarge,
            Self::OfNode => Fault::UpdateOfNode,
        }
    }
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A Yjs update (version 1) in order but for its size, which no editor of ours makes: one insertion into the root.
fn too_large(client: u64) -> Bytes {
    let mut bytes = vec![1, 1];
    put_number(&mut bytes, client);
    bytes.extend_from_slice(b"\0\x04\x01\x07content");
    put_number(&mut bytes, DOCUMENT_UPDATE_BYTES_MAX as u64);
    bytes.resize(bytes.len() + DOCUMENT_UPDATE_BYTES_MAX, b'x');
    bytes.push(0);
    Bytes::from(bytes)
}

impl World {
    /// Sends an update that must be refused.
    pub(super) fn send_hostile(&mut self, client: usize, document: u32) {
        if self.clients[client].link.is_none() {
            return;
        }
        let hostile = match self.below(100) {
            0..30 => Hostile::CutOff,
            30..55 => Hostile::Garbage,
            55..75 => Hostile::Orphan,
            75..96 => Hostile::OfNode,
            _ => Hostile::TooLarge,
        };
        let stranger = STRANGERS + self.fresh_number();
        let Some(body) = self.hostile_update(client, document, hostile, stranger) else { return };
        let (sequence, channel) = (self.next_sequence(client), document_name(document));
        let post = Post { kind: PostKind::Update, target: Position(0) };
        let publish = Publish { channel, sequence, retry: false, make: false, body, key: 0, post };
        self.request(client, &ClientOp::Publish(publish), Asked::Document(DocumentAsked::Hostile(hostile)));
    }

    fn hostile_update(&mut self, client: usize, document: u32, hostile: Hostile, stranger: u64) -> Option<Bytes> {
        let insert = |of: &mut Document, text: &str| of.edit(&Operations::new().insert(text)).ok();
        let made = match hostile {
            Hostile::CutOff => {
                let own = self.chance(0.5);
                let whole = match self.clients[client].papers.get(&document).map(|paper| &paper.copy) {
                    Some(Copy::Whole(copy)) if own => copy.state(),
                    _ => insert(&mut Document::new(stranger), "<cut off>")?,
                };
                whole.slice(..self.below(whole.len() as u64) as usize)
            }
            Hostile::Garbage => {
                let length = 3 + self.below(200) as usize;
                let mut bytes = vec![0; length];
                self.rng.fill(&mut bytes[..]);
                // One that has no parts and takes nothing out is in order.
                bytes[0] |= 1;
                Bytes::from(bytes)
            }
            Hostile::Orphan => {
                let mut copy = Document::new(stranger);
                insert(&mut copy, "<never sent>")?;
                copy.edit(&Operations::new().retain(5).insert("<orphan>")).ok()?
            }
            Hostile::TooLarge => too_large(stranger),
            Hostile::OfNode => insert(&mut Document::new(NODE_CLIENTS | self.below(1_000)), "<of the node>")?,
        };
        Some(made)
    }

    pub(super) fn hostile_answered(&mut self, client: usize, hostile: Hostile, op: ServerOp) {
        match op {
            // The node has a part of its own under that number, which is not made another by anybody.
            ServerOp::Published { duplicate: true, .. } if hostile == Hostile::OfNode => {}
            ServerOp::Reject(reject) if hostile.codes().contains(&reject.code) => self.faults.count(hostile.fault()),
            // Who has no document to break is told so.
            ServerOp::Reject(reject)
                if matches!(reject.code, RejectCode::ChannelUnknown | RejectCode::ChannelDeleted) => {}
            ServerOp::Reject(reject) => self.refusal_of_document(client, None, &reject),
            op => self.violation(format!("client {client}: an update that is {hostile:?} was answered by {op:?}")),
        }
    }
}
