//! Documents read from the log: a snapshot, if there is one, and what came after it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use thalweg_domain::document::{Document, NODE_CLIENTS, merge};
use thalweg_domain::fact::Snapshot;
use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelId, Epoch, Position};
use thalweg_protocol::op::DeliveryKind;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::Age;

/// A document that is being read.
pub(super) struct Rebuild {
    /// The next message that is needed.
    next: Position,
    /// The last that is.
    until: Position,
    /// Where the snapshot ends that it begins with; the parts that were read.
    snapshot_end: Position,
    parts: BytesMut,
    document: Option<Document>,
    client: u64,
    pub(super) age: Age,
}

fn damaged(what: impl std::fmt::Display) -> Reject {
    Reject::new(RejectCode::StorageDamaged, format!("the document cannot be read from its log: {what}"))
}

/// The Yjs client that the node edits a document as which it opens at a revision: another one in each opening after which it
/// edits. Within a life of the node no two of those are at the same revision. Another life may open at the same revision
/// again, if that is all that is left of what there was; and another document may have the name of one that is gone: clients
/// that have the old one would take what is new for what they have.
pub(super) fn node_client(id: ChannelId, epoch: Epoch, revision: Position) -> u64 {
    // The bits of both, well stirred, as SplitMix64 does.
    let mut mixed = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ epoch.0;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    of_node(mixed.wrapping_add(revision.0))
}

/// The clients that nodes edit as, in a ring.
fn of_node(number: u64) -> u64 {
    NODE_CLIENTS | (number & !NODE_CLIENTS & ((1 << 53) - 1))
}

impl Rebuild {
    /// One as it was at a revision, from the newest snapshot before, to be edited as `client` or the next that is free.
    pub(super) fn new(revision: Position, snapshot: Option<Snapshot>, client: u64) -> Self {
        let begin = snapshot.map_or(Position(1), |snapshot| snapshot.position);
        let snapshot_end = snapshot.map_or(Position(1), |snapshot| snapshot.end());
        let until = Position(revision.0.max(snapshot_end.0.saturating_sub(1)));
        let document = snapshot.is_none().then(|| Document::new(client));
        let (parts, age) = (BytesMut::new(), Age::default());
        Self { next: begin, until, snapshot_end, parts, document, client, age }
    }

    /// What is to be read next; `None` if it has everything.
    pub(super) fn next(&self) -> Option<(Position, Position)> {
        (self.next <= self.until).then(|| (self.next, self.until.next()))
    }

    /// Takes in messages that were read.
    ///
    /// # Errors
    /// `storage_damaged`, if they are not what was written.
    pub(super) fn take(&mut self, messages: &[Arc<Message>]) -> Result<(), Reject> {
        let before = self.next;
        let mut updates: Vec<Bytes> = Vec::new();
        for message in messages.iter().take_while(|message| message.position <= self.until) {
            if message.position != self.next {
                return Err(damaged(format_args!("message {} is missing", self.next)));
            }
            self.next = message.position.next();
            match message.kind {
                DeliveryKind::Snapshot if message.position < self.snapshot_end => {
                    self.parts.extend_from_slice(&message.body);
                }
                DeliveryKind::Update => {
                    self.age.add(message);
                    updates.push(message.body.clone());
                }
                _ if message.position < self.snapshot_end => {
                    return Err(damaged(format_args!("message {} is no part of a snapshot", message.position)));
                }
                _ => {}
            }
        }
        if self.next == before {
            return Err(damaged(format_args!("message {before} is missing")));
        }
        if self.document.is_none() && self.next >= self.snapshot_end {
            let snapshot = std::mem::take(&mut self.parts);
            self.age.written = snapshot.len() as u64;
            self.document = Some(Document::open(self.client, &snapshot).map_err(damaged)?);
        }
        if let Some(document) = &mut self.document {
            replay(document, &updates)?;
        }
        if self.next().is_none() { self.take_free_client() } else { Ok(()) }
    }

    /// Takes the next client of a node if the document has something that was made as this one.
    fn take_free_client(&mut self) -> Result<(), Reject> {
        while let Some(document) = self.document.as_ref().filter(|document| document.has_edits_of(self.client)) {
            self.client = of_node(self.client + 1);
            self.document = Some(Document::open(self.client, &document.state()).map_err(damaged)?);
        }
        Ok(())
    }

    /// The document, once it has everything.
    pub(super) fn finish(self) -> Document {
        self.document.unwrap_or_else(|| Document::new(self.client))
    }
}

/// Carries out updates of the document's log.
fn replay(document: &mut Document, updates: &[Bytes]) -> Result<(), Reject> {
    if updates.is_empty() {
        return Ok(());
    }
    // One walk through the document for all of them. What cannot be merged, though it was applied, is replayed one by one.
    let bodies = merge(updates).map_or_else(|_| updates.to_vec(), |merged| vec![merged]);
    bodies.iter().try_for_each(|body| document.replay(body).map(drop)).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_opening_edits_as_another_client() {
        let client = |id, epoch, revision| node_client(ChannelId(id), Epoch(epoch), Position(revision));
        let mut seen = std::collections::BTreeSet::new();
        for id in [1, 2, 1_000_000] {
            for epoch in 1..20 {
                for revision in 0..50 {
                    let client = client(id, epoch, revision);
                    assert!((NODE_CLIENTS..1 << 53).contains(&client));
                    assert!(seen.insert(client), "{id} {epoch} {revision}");
                }
            }
        }
        assert_eq!(of_node(u64::MAX), (1 << 53) - 1);
        assert_eq!(of_node((1 << 53) - 1 + 1), NODE_CLIENTS, "the first comes after the last");
    }

    #[test]
    fn a_client_that_a_document_has_edits_of_is_not_taken() {
        let mut document = Document::new(of_node(7));
        let edit = document.edit(&thalweg_protocol::document::Operations::new().insert("seven")).expect("an edit");
        let mut other = Document::open(of_node(8), &edit).expect("a state");
        other.edit(&thalweg_protocol::document::Operations::new().insert("eight ")).expect("an edit");
        let mut rebuild = Rebuild::new(Position(0), None, of_node(7));
        rebuild.document = Some(Document::open(of_node(7), &other.state()).expect("a state"));
        rebuild.take_free_client().expect("it can be read");
        let found = rebuild.finish();
        assert_eq!((found.client(), found.text().as_str()), (of_node(9), "eight seven"));
    }
}
