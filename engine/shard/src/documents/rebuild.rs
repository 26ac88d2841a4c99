//! Documents read from the log: a snapshot, if there is one, and what came after it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use thalweg_domain::document::{Document, NODE_CLIENTS, merge};
use thalweg_domain::fact::Snapshot;
use thalweg_domain::record::Message;
use thalweg_protocol::ids::Position;
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

impl Rebuild {
    /// One as it was at a revision, from the newest snapshot before.
    pub(super) fn new(revision: Position, snapshot: Option<Snapshot>) -> Self {
        let begin = snapshot.map_or(Position(1), |snapshot| snapshot.position);
        let snapshot_end = snapshot.map_or(Position(1), |snapshot| snapshot.end());
        // No two openings between which the node edited are at the same revision, so nobody edits twice under one number.
        let client = NODE_CLIENTS | revision.0;
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
                    self.age.updates += 1;
                    self.age.bytes += message.body.len() as u64;
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
        let Some(document) = &mut self.document else { return Ok(()) };
        if updates.is_empty() {
            return Ok(());
        }
        // One walk through the document for all of them.
        let merged = merge(&updates).map_err(damaged)?;
        document.replay(&merged).map(drop).map_err(damaged)
    }

    /// The document, once it has everything.
    pub(super) fn finish(self) -> Document {
        self.document.unwrap_or_else(|| Document::new(self.client))
    }
}
