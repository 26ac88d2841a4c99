//! Documents: the owner's end.
//!
//! A document is a channel of kind `Document`: its messages are what it was edited by, and a revision is the position of one
//! of them. What this adds to a channel is the document itself, in memory while it is used: read from the log when somebody
//! needs it, let go of when nobody does, and read anew if it was broken.
//!
//! The document in memory is at the state that was *decided*: ahead of what is durable. So whatever shows it waits for the
//! log. Updates that come in one turn are applied one by one and become one message at its end. Now and then a document is
//! written as a whole, so that the next one who needs it need not have all its edits read.

mod awareness;
mod opening;
mod past;
mod prompt;
mod rebuild;
mod snapshots;
mod waiting;
mod writer;
mod writes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::document::Document;
use thalweg_domain::permission::Principal;
use thalweg_protocol::document::{DocumentOp, Operations};
use thalweg_protocol::ids::{ChannelId, ChannelKey, Name, Position};
use thalweg_protocol::limits::{DOCUMENT_DELTAS_BYTES, DOCUMENT_DELTAS_KEPT};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::Origin;
use crate::shard::Shard;

use past::Past;
use rebuild::Rebuild;
use waiting::Waiting;
use writes::Gathered;

pub(crate) use awareness::Awareness;
pub(crate) use snapshots::without_its_part;
pub(crate) use writer::{Writer, Written};
pub(crate) use writes::is_edit;

/// The documents of this core that are in memory, or on their way there.
#[derive(Default)]
pub(crate) struct Documents {
    open: BTreeMap<ChannelKey, Open>,
    /// Counts openings, so that what is read for one is not taken for what is read for another.
    lives: u64,
    /// Those with updates that were gathered over the turn.
    gathered: Vec<ChannelKey>,
    /// Those of which more is at hand to be read.
    reading: VecDeque<ChannelKey>,
    /// Documents that are being read as they were, and those of which more is at hand.
    pasts: BTreeMap<u64, Past>,
    pasts_at_hand: Vec<u64>,
    /// The last that was read in pieces.
    paged: Option<past::Paged>,
    /// When those that nobody uses are looked for.
    sweep_at: Option<u64>,
}

/// A document in memory, or on its way there.
struct Open {
    id: ChannelId,
    /// Which opening it is.
    life: u64,
    stage: Stage,
    /// What is to be done with it once it is there, in order.
    waiting: VecDeque<Waiting>,
    /// When somebody last needed it.
    used_us: u64,
    /// Since when it is being read.
    since_us: u64,
    /// Models that write in it: while there are any it stays.
    models: usize,
}

enum Stage {
    /// Something of it is not durable yet; then it is read.
    Settling,
    Reading(Box<Rebuild>),
    Ready(Box<Ready>),
}

/// A document in memory.
pub(crate) struct Ready {
    pub(crate) document: Document,
    deltas: Option<Deltas>,
    gathered: Gathered,
    age: Age,
    /// All of it, encoded, as it was at a revision: several want that at once.
    encoded: Option<(Position, Bytes)>,
}

impl Ready {
    fn new(document: Document, age: Age) -> Self {
        Self { document, deltas: None, gathered: Gathered::default(), age, encoded: None }
    }

    /// All of it, at the revision that it has.
    fn encoded(&mut self, revision: Position) -> Bytes {
        match &self.encoded {
            Some((at, bytes)) if *at == revision => bytes.clone(),
            _ => {
                let bytes = self.document.state();
                self.encoded = Some((revision, bytes.clone()));
                bytes
            }
        }
    }

    /// From now on what edits do to its text is kept, for those who edit by operations.
    fn keep_deltas(&mut self, revision: Position) -> &mut Deltas {
        self.document.watch(true);
        self.deltas.get_or_insert_with(|| Deltas::new(revision))
    }
}

/// How much came since a document was last written as a whole.
#[derive(Debug, Clone, Copy, Default)]
struct Age {
    /// Edits.
    updates: u64,
    /// Their bytes.
    bytes: u64,
    /// Bytes of the whole, as it was written; 0 if it never was.
    written: u64,
}

/// What the newest revisions of a document did to its text.
struct Deltas {
    /// Everything after this revision is known.
    after: Position,
    kept: VecDeque<Delta>,
    bytes: usize,
}

struct Delta {
    revision: Position,
    operations: Operations,
    encoded: Bytes,
}

impl Deltas {
    fn new(after: Position) -> Self {
        Self { after, kept: VecDeque::new(), bytes: 0 }
    }

    /// Adds what a revision did. What `applied` does not cover is not let go of: readers are yet to be told.
    fn push(&mut self, revision: Position, operations: Operations, applied: Position) {
        let encoded = operations.encode();
        self.bytes += encoded.len();
        self.kept.push_back(Delta { revision, operations, encoded });
        while (self.kept.len() > DOCUMENT_DELTAS_KEPT || self.bytes > DOCUMENT_DELTAS_BYTES)
            && self.kept.front().is_some_and(|oldest| oldest.revision <= applied)
        {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.encoded.len();
            self.after = oldest.revision;
        }
    }

    /// What a revision did, encoded.
    fn of(&self, revision: Position) -> Option<Bytes> {
        let at = self.kept.binary_search_by_key(&revision, |delta| delta.revision).ok()?;
        Some(self.kept[at].encoded.clone())
    }

    /// What was done after a revision, in order; `None` if that is not known.
    fn since(&self, revision: Position) -> Option<impl Iterator<Item = &Operations>> {
        let from = self.kept.partition_point(|delta| delta.revision <= revision);
        (revision >= self.after).then(|| self.kept.iter().skip(from).map(|delta| &delta.operations))
    }
}

impl Documents {
    /// Whether something is to be done at the end of the turn.
    pub(crate) fn has_gathered(&self) -> bool {
        !self.gathered.is_empty() || !self.reading.is_empty() || !self.pasts_at_hand.is_empty()
    }

    /// Those in memory, or on their way there.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Bytes of those in memory, encoded, about.
    pub(crate) fn bytes(&self) -> usize {
        let ready = self.open.values().filter_map(|open| match &open.stage {
            Stage::Ready(ready) => Some(ready.document.bytes()),
            Stage::Settling | Stage::Reading(_) => None,
        });
        ready.sum()
    }

    /// Whether none is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        let settled = |open: &Open| open.waiting.is_empty() && matches!(open.stage, Stage::Ready(_));
        self.pasts.is_empty() && self.open.values().all(settled)
    }

    /// Notes that a document was needed until now.
    pub(crate) fn touch(&mut self, document: &ChannelKey, now_us: u64) {
        if let Some(open) = self.open.get_mut(document) {
            open.used_us = now_us;
        }
    }

    fn ready(&mut self, document: &ChannelKey) -> Option<&mut Ready> {
        match &mut self.open.get_mut(document)?.stage {
            Stage::Ready(ready) => Some(ready),
            Stage::Settling | Stage::Reading(_) => None,
        }
    }
}

/// Refuses to take a channel of another kind for a document.
pub(crate) fn no_document(name: &Name) -> Reject {
    let text = format!("{name} is a channel and no document; subscribe to it, or open a document of another name");
    Reject::new(RejectCode::KindMismatch, text)
}

/// Refuses to take a document for a channel of another kind.
pub(crate) fn no_channel(name: &Name) -> Reject {
    let text = format!("{name} is a document; open it and edit it, or take another name for a channel");
    Reject::new(RejectCode::KindMismatch, text)
}

fn no_revision(document: &Name, revision: Position, newest: Position) -> Reject {
    let text = format!("{document} has no revision {revision}; its newest is {newest}");
    Reject::new(RejectCode::RevisionUnknown, text)
}

impl Shard {
    /// A client asks something about documents.
    pub(crate) fn request_document(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        op: DocumentOp,
    ) -> Result<(), Reject> {
        match op {
            DocumentOp::Open(open) => self.request_open_document(origin, principal, open),
            DocumentOp::Read { document, revision, form, offset } => {
                let document = ChannelKey { tenant: principal.tenant.clone(), channel: document };
                self.request_read_document(origin, principal, document, revision, form, offset)
            }
            DocumentOp::Ask(ask) => self.request_ask_in_document(origin, principal, ask),
            DocumentOp::ShareAwareness { subscription, update } => {
                self.share_awareness(origin.link, subscription, update);
                Ok(())
            }
        }
    }

    /// Puts what was gathered over the turn into messages, and goes on reading what is at hand.
    pub(crate) fn finish_documents(&mut self) {
        for document in std::mem::take(&mut self.documents.gathered) {
            self.flush_document(&document);
        }
        for document in std::mem::take(&mut self.documents.reading) {
            self.go_on_reading(&document);
        }
        for life in std::mem::take(&mut self.documents.pasts_at_hand) {
            self.go_on_with_past(life);
        }
    }

    /// What a message did to the text of a document, encoded, if readers of it may want to know.
    pub(crate) fn document_operations(&self, document: &ChannelKey, revision: Position) -> Option<Bytes> {
        match &self.documents.open.get(document)?.stage {
            Stage::Ready(ready) => ready.deltas.as_ref()?.of(revision),
            Stage::Settling | Stage::Reading(_) => None,
        }
    }
}
