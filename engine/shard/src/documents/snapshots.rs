//! Documents written as a whole, so that they need not be made of all their edits again.

use std::sync::Arc;

use thalweg_domain::fact::{ChannelFact, Snapshot};
use thalweg_domain::record::{Event, Message, Posting};
use thalweg_protocol::chat::Context;
use thalweg_protocol::ids::{ChannelId, ChannelKey, Name, Position, Sequence, SessionId};
use thalweg_protocol::limits::{BODY_BYTES_MAX, DOCUMENT_SNAPSHOT_BYTES, DOCUMENT_SNAPSHOT_UPDATES};
use thalweg_protocol::op::{Delivery, DeliveryKind};

use super::Age;
use crate::shard::Shard;

/// A document that is let go of is written as a whole if more edits than this came since it last was.
const UPDATES_LEFT: u64 = 64;

/// Under which name the node writes.
fn node() -> Name {
    Name::new("node").expect("a literal name is valid")
}

impl Shard {
    /// Writes a document as a whole if enough was edited since it last was.
    pub(super) fn write_snapshot_if_due(&mut self, document: &ChannelKey) {
        let Some(ready) = self.documents.ready(document) else { return };
        let Age { updates, bytes, written } = ready.age;
        if bytes >= written.max(DOCUMENT_SNAPSHOT_BYTES as u64) || updates >= DOCUMENT_SNAPSHOT_UPDATES {
            self.write_snapshot(document);
        }
    }

    /// Writes a document as a whole that is about to be let go of, if that spares the next one who needs it much.
    pub(super) fn write_last_snapshot(&mut self, document: &ChannelKey) {
        if self.documents.ready(document).is_some_and(|ready| ready.age.updates > UPDATES_LEFT) {
            self.write_snapshot(document);
        }
    }

    fn write_snapshot(&mut self, document: &ChannelKey) {
        // Without room it is written another time; nothing is lost.
        if self.storage_has_room().is_err() || self.writes_are_served().is_err() {
            return;
        }
        if self.documents.ready(document).is_some_and(|ready| !ready.gathered.is_empty()) {
            // What was gathered is in the log before the whole is. That comes back here, if the whole is still due.
            return self.flush_document(document);
        }
        let Ok(Some(channel)) = self.existing_channel(document) else { return };
        let (id, revision) = (channel.id(), channel.decided());
        let Some(ready) = self.documents.ready(document).filter(|ready| !ready.document.is_poisoned()) else { return };
        let whole = ready.encoded(revision);
        ready.age = Age { written: whole.len() as u64, ..Age::default() };
        ready.encoded = None;
        self.counters.snapshots += 1;
        let partition = self.partition(&document.tenant, document.channel.as_str());
        let parts = whole.len().div_ceil(BODY_BYTES_MAX) as u32;
        let snapshot = Snapshot { position: revision.next(), parts };
        for part in 0..parts {
            let from = part as usize * BODY_BYTES_MAX;
            let body = whole.slice(from..whole.len().min(from + BODY_BYTES_MAX));
            let Some(posting) = self.snapshot_part(document, id, snapshot, body) else { return };
            let event = if part + 1 < parts {
                Event::Published(posting)
            } else {
                let (channel, facts) = (document.clone(), vec![ChannelFact::Snapshot(snapshot)]);
                Event::ChannelChanged { channel, id, facts, posting: Some(posting) }
            };
            self.append(partition, event, Vec::new());
        }
        if let Some(channel) = self.channel_mut(document) {
            channel.note_snapshot(snapshot);
        }
    }

    fn snapshot_part(
        &mut self,
        document: &ChannelKey,
        id: ChannelId,
        snapshot: Snapshot,
        body: bytes::Bytes,
    ) -> Option<Posting> {
        let now_us = self.now.wall_us;
        let channel = self.channel_mut(document)?;
        let (position, timestamp_us) = (channel.decide_position(), channel.decide_timestamp(now_us));
        let context = Context { target: snapshot.position, number: snapshot.parts.into(), ..Context::default() };
        let (kind, user) = (DeliveryKind::Snapshot, node());
        let delivery = Delivery { position, timestamp_us, kind, user, generation: None, body, key: 0, context };
        let message = Arc::new(Message::new(delivery, SessionId(0), Sequence(0)));
        Some(Posting { channel: document.clone(), id, message })
    }
}

/// A part of a snapshot as readers are told of it: that there is one, and nothing of what is in it.
pub(crate) fn without_its_part(message: &Arc<Message>) -> Arc<Message> {
    if message.kind != DeliveryKind::Snapshot {
        return Arc::clone(message);
    }
    let delivery = Delivery {
        position: message.position,
        timestamp_us: message.timestamp_us,
        kind: message.kind,
        user: message.user.clone(),
        generation: None,
        body: bytes::Bytes::new(),
        key: 0,
        context: message.context.clone(),
    };
    Arc::new(Message::new(delivery, SessionId(0), Sequence(0)))
}

impl Shard {
    /// The newest revision of a document that is decided.
    pub(super) fn decided_revision(&mut self, document: &ChannelKey) -> Position {
        self.channel_mut(document).map_or(Position(0), |channel| channel.decided())
    }
}
