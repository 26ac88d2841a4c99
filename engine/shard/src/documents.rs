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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::document::Document;
use thalweg_domain::permission::Principal;
use thalweg_domain::record::Message;
use thalweg_protocol::document::{DocumentOp, Operations};
use thalweg_protocol::ids::{ChannelId, ChannelKey, CoreId, Name, Position};
use thalweg_protocol::limits::{DOCUMENT_DELTAS_BYTES, DOCUMENT_DELTAS_KEPT, DOCUMENT_IDLE_MS};
use thalweg_protocol::op::DeliveryKind;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Origin, TextEdit};
use crate::shard::Shard;

use past::Past;
use rebuild::Rebuild;
use waiting::Waiting;
use writes::Gathered;

pub(crate) use awareness::Awareness;
pub(crate) use snapshots::without_its_part;
pub(crate) use writer::{Writer, Written};
pub(crate) use writes::is_edit;

/// What edits did to a text is kept for so many sweeps after somebody needed it: as long as a document that nobody uses.
const DELTAS_SWEEPS: u32 = (DOCUMENT_IDLE_MS * 1_000 / opening::SWEEP_US) as u32;

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
    pasts_at_hand: VecDeque<u64>,
    /// Those that are read in pieces.
    paged: past::Paged,
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
    /// That is being done just now: what else is to be done waits its turn.
    is_serving: bool,
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
    /// Its text, likewise.
    text: Option<(Position, Bytes)>,
    /// What those lack who have what a state vector says, likewise.
    lacked: Option<(Position, Bytes, Bytes)>,
}

impl Ready {
    fn new(document: Document, age: Age) -> Self {
        let gathered = Gathered::default();
        Self { document, deltas: None, gathered, age, encoded: None, text: None, lacked: None }
    }

    /// Lets go of what is made again when it is wanted.
    fn forget_copies(&mut self) {
        (self.encoded, self.text, self.lacked) = (None, None, None);
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

    /// Its text, at the revision that it has.
    fn text(&mut self, revision: Position) -> Bytes {
        match &self.text {
            Some((at, text)) if *at == revision => text.clone(),
            _ => {
                let text = Bytes::from(self.document.text());
                self.text = Some((revision, text.clone()));
                text
            }
        }
    }

    /// What somebody lacks who has what a state vector says, at the revision that it has.
    ///
    /// # Errors
    /// What [`Document::diff`] says of the state vector.
    fn lacked(&mut self, revision: Position, vector: &Bytes) -> Result<Bytes, Reject> {
        match &self.lacked {
            Some((at, of, lacked)) if (at, of) == (&revision, vector) => Ok(lacked.clone()),
            _ => {
                let lacked = self.document.diff(vector)?;
                self.lacked = Some((revision, vector.clone(), lacked.clone()));
                Ok(lacked)
            }
        }
    }

    /// From now on what edits do to its text is kept, for those who edit by operations.
    fn keep_deltas(&mut self, revision: Position) -> &mut Deltas {
        self.document.watch(true);
        let deltas = self.deltas.get_or_insert_with(|| Deltas::new(revision));
        deltas.sweeps = 0;
        deltas
    }

    /// The same, and as long as that core has readers who are told operations.
    fn tell_operations(&mut self, revision: Position, core: CoreId) {
        self.keep_deltas(revision).cores.insert(core);
    }

    /// Lets go of what edits did to its text, if nobody needed that lately, and no reader is told of it on the cores that it
    /// has readers on.
    fn sweep_deltas(&mut self, cores: &[CoreId]) {
        let Some(deltas) = &mut self.deltas else { return };
        deltas.cores.retain(|core| cores.contains(core));
        deltas.sweeps += 1;
        if deltas.cores.is_empty() && deltas.sweeps > DELTAS_SWEEPS {
            self.deltas = None;
            self.document.watch(false);
        }
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

impl Age {
    /// A message came, which may be an edit.
    fn add(&mut self, message: &Message) {
        if message.kind == DeliveryKind::Update {
            self.updates += 1;
            self.bytes += message.body.len() as u64;
        }
    }
}

/// What the newest revisions of a document did to its text.
struct Deltas {
    /// Everything after this revision is known.
    after: Position,
    kept: VecDeque<Delta>,
    bytes: usize,
    /// Where readers are told of them.
    cores: BTreeSet<CoreId>,
    /// How often it was looked for what nobody needs since somebody last needed them.
    sweeps: u32,
}

struct Delta {
    revision: Position,
    operations: Operations,
    told: TextEdit,
}

impl Deltas {
    fn new(after: Position) -> Self {
        Self { after, kept: VecDeque::new(), bytes: 0, cores: BTreeSet::new(), sweeps: 0 }
    }

    /// Adds what a revision did. What `applied` does not cover is not let go of: readers are yet to be told.
    fn push(&mut self, revision: Position, operations: Operations, is_positional: bool, applied: Position) {
        let told = TextEdit { operations: operations.encode(), is_positional };
        self.bytes += told.operations.len();
        self.kept.push_back(Delta { revision, operations, told });
        while (self.kept.len() > DOCUMENT_DELTAS_KEPT || self.bytes > DOCUMENT_DELTAS_BYTES)
            && self.kept.front().is_some_and(|oldest| oldest.revision <= applied)
        {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.told.operations.len();
            self.after = oldest.revision;
        }
    }

    /// What a revision did, as readers are told of it.
    fn of(&self, revision: Position) -> Option<TextEdit> {
        let at = self.kept.binary_search_by_key(&revision, |delta| delta.revision).ok()?;
        Some(self.kept[at].told.clone())
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
        self.go_on_with_a_past();
    }

    /// What a message did to the text of a document, if readers of it may want to know.
    pub(crate) fn text_edit(&self, document: &ChannelKey, revision: Position) -> Option<TextEdit> {
        match &self.documents.open.get(document)?.stage {
            Stage::Ready(ready) => ready.deltas.as_ref()?.of(revision),
            Stage::Settling | Stage::Reading(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Many who open a document at the same revision share what they are given.
    #[test]
    fn what_readers_begin_with_is_made_once_for_a_revision() {
        let mut ready = Ready::new(Document::new(1), Age::default());
        ready.document.edit(&Operations::new().insert("one")).expect("an edit");
        let vector = ready.document.state_vector();
        ready.document.edit(&Operations::new().insert("two ")).expect("an edit");
        let given = |ready: &mut Ready, revision| {
            let revision = Position(revision);
            let lacked = ready.lacked(revision, &vector).expect("a state vector");
            [ready.text(revision), ready.encoded(revision), lacked]
        };
        let first = given(&mut ready, 2);
        let addresses = |given: &[Bytes; 3]| given.each_ref().map(|bytes| bytes.as_ptr());
        assert_eq!(addresses(&given(&mut ready, 2)), addresses(&first));
        ready.document.edit(&Operations::new().insert("three ")).expect("an edit");
        let second = given(&mut ready, 3);
        assert_eq!(&second[0][..], b"three two one");
        assert!(second.iter().zip(&first).all(|(second, first)| second != first));
        let other = ready.lacked(Position(3), &ready.document.state_vector()).expect("a state vector");
        assert!(other.len() < second[2].len(), "another state vector lacks something else");
    }
}
