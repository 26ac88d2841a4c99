//! Documents that are opened and let go of.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::channel::{Channel, Kept, Roster, check_name};
use thalweg_domain::document::{Document, EMPTY_UPDATE};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::Message;
use thalweg_protocol::chat::{ChannelAbout, ChannelKind};
use thalweg_protocol::document::{DocumentForm, OpenDocument};
use thalweg_protocol::ids::{ChannelId, ChannelKey, CoreId, Position};
use thalweg_protocol::limits::{DOCUMENT_IDLE_MS, DOCUMENTS_OPEN_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::rebuild::{Rebuild, node_client};
use super::{Age, Open, Ready, Stage, Waiting, no_document};
use crate::contract::{Opening, Origin, SessionMessage};
use crate::counters::Stage as Timed;
use crate::fan::{FanId, SubscriptionRef};
use crate::log::Purpose;
use crate::owner::{Action, deleted, unknown};
use crate::shard::{Deadline, Shard};

/// Documents that nobody uses are looked for at this interval.
pub(super) const SWEEP_US: u64 = 10_000_000;
/// Documents let go of at once when there are as many as may be.
const EVICTED_AT_ONCE: usize = 64;
/// Those who find all documents in use are told to come back after this, in milliseconds.
const FULL_DELAY_MS: u32 = 1_000;

impl Shard {
    /// Somebody opens a document of this core.
    pub(crate) fn open_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: ChannelKey,
        open: OpenDocument,
        fan: FanId,
    ) {
        let made = match self.existing_channel(&document) {
            // What the reader has is of one that was deleted, and does not belong into another of that name.
            Ok(channel)
                if open.known.is_some_and(|known| channel.as_deref().is_none_or(|channel| channel.id() != known)) =>
            {
                Err(deleted(&document))
            }
            Ok(Some(channel)) if !channel.is_document() => Err(no_document(&document.channel)),
            Ok(Some(_)) => Ok(false),
            Ok(None) if open.make && principal.may(Access::Write, document.channel.as_str()) => {
                self.make_document(principal, &document).map(|()| true)
            }
            Ok(None) => Err(unknown(&document)),
            Err(reject) => Err(reject),
        };
        match made {
            Ok(made) => {
                let (principal, open) = (Arc::clone(principal), Box::new(open));
                self.with_document(&document, Waiting::Open { origin, principal, open, fan, made });
            }
            Err(reject) => self.tell_opened(origin, document, fan, Err(reject)),
        }
    }

    fn tell_opened(&mut self, origin: Origin, document: ChannelKey, fan: FanId, result: Result<Opening, Reject>) {
        let Origin { core, link, request, .. } = origin;
        self.tell_session(core, SessionMessage::DocumentOpened { link, request, document, fan, result });
    }

    /// Makes a document that does not exist.
    pub(super) fn make_document(&mut self, principal: &Arc<Principal>, document: &ChannelKey) -> Result<(), Reject> {
        self.not_draining()?;
        self.writes_are_served()?;
        check_name(&document.channel)?;
        let about = ChannelAbout { kind: ChannelKind::Document, ..ChannelAbout::default() };
        let facts = Roster::decide_new(&about, &principal.user, self.now.wall_us);
        self.make_channel(principal, document, Channel::document_settings(), facts, Vec::new())
    }

    /// Puts a document that was just made into memory, where there is room. One that finds none is read like any other.
    pub(crate) fn document_made(&mut self, document: &ChannelKey, id: ChannelId) {
        if self.has_room_for_document().is_ok() {
            let client = node_client(id, self.config.epoch, Position(0));
            let ready = Ready::new(Document::new(client), Age::default());
            self.insert_document(document, id, Stage::Ready(Box::new(ready)));
        }
    }

    fn insert_document(&mut self, document: &ChannelKey, id: ChannelId, stage: Stage) {
        self.documents.lives += 1;
        let (life, now_us) = (self.documents.lives, self.now.mono_us);
        let open = Open {
            id,
            life,
            stage,
            waiting: Default::default(),
            is_serving: false,
            used_us: now_us,
            since_us: now_us,
            models: 0,
        };
        self.documents.open.insert(document.clone(), open);
        if self.documents.sweep_at.is_none() {
            let at = now_us + SWEEP_US;
            self.documents.sweep_at = Some(at);
            self.deadlines.insert((at, Deadline::Documents));
        }
    }

    /// Begins to read a document, once what is on its way to its log is there.
    pub(super) fn begin_opening(&mut self, document: &ChannelKey) -> Result<(), Reject> {
        let channel = self.existing_channel(document)?.ok_or_else(|| unknown(document))?;
        let id = channel.id();
        self.has_room_for_document()?;
        self.insert_document(document, id, Stage::Settling);
        let life = self.documents.lives;
        self.after_appends(Action::ReadDocument { document: document.clone(), life });
        Ok(())
    }

    /// What there was to be known of a document is in its log: it is read from there.
    pub(crate) fn document_settled(&mut self, document: &ChannelKey, life: u64) {
        let now_us = self.now.mono_us;
        let Some(open) = self.documents.open.get(document).filter(|open| open.life == life) else { return };
        let id = open.id;
        let Some(channel) = self.channel_mut(document).filter(|channel| channel.id() == id) else { return };
        let head = channel.head();
        let snapshot = channel.snapshot_at(head);
        let rebuild = Rebuild::new(head, snapshot, node_client(id, self.config.epoch, head));
        if let Some(open) = self.documents.open.get_mut(document) {
            (open.stage, open.since_us) = (Stage::Reading(Box::new(rebuild)), now_us);
        }
        self.go_on_reading(document);
    }

    /// Reads the next piece of a document: from disk, or from what is at hand.
    pub(super) fn go_on_reading(&mut self, document: &ChannelKey) {
        let now_us = self.now.wall_us;
        let Some(open) = self.documents.open.get_mut(document) else { return };
        let Stage::Reading(rebuild) = &open.stage else { return };
        let (id, life) = (open.id, open.life);
        let Some((from, to)) = rebuild.next() else { return self.document_read(document) };
        let Some(channel) = self.channel_mut(document).filter(|channel| channel.id() == id) else { return };
        match channel.read(from, now_us) {
            Kept::AtHand(messages) => {
                self.document_piece(document, life, Ok(messages));
            }
            Kept::OnDisk { from, to: at_hand } => {
                self.read_disk(Purpose::Document { life }, document.clone(), id, from, at_hand.min(to));
            }
        }
    }

    /// A piece of a document was read.
    pub(crate) fn document_piece(
        &mut self,
        document: &ChannelKey,
        life: u64,
        piece: Result<Vec<Arc<Message>>, Reject>,
    ) {
        let Some(open) = self.documents.open.get_mut(document).filter(|open| open.life == life) else { return };
        let Stage::Reading(rebuild) = &mut open.stage else { return };
        match piece.and_then(|messages| rebuild.take(&messages)) {
            Ok(()) if rebuild.next().is_none() => self.document_read(document),
            // The next piece has to wait for its turn, if it is at hand: others want theirs.
            Ok(()) => self.documents.reading.push_back(document.clone()),
            Err(reject) => {
                if let Some(open) = self.documents.open.remove(document) {
                    self.refuse_all_waiting(document, open.waiting, &reject);
                }
                self.writers_lose(document);
            }
        }
    }

    /// All of a document was read.
    fn document_read(&mut self, document: &ChannelKey) {
        let Some(open) = self.documents.open.get_mut(document) else { return };
        let Stage::Reading(rebuild) = std::mem::replace(&mut open.stage, Stage::Settling) else { return };
        let age = rebuild.age;
        open.stage = Stage::Ready(Box::new(Ready::new(rebuild.finish(), age)));
        open.used_us = self.now.mono_us;
        let since_us = open.since_us;
        self.counters.documents_opened += 1;
        self.sample(Timed::Open, since_us);
        self.serve_waiting(document);
        self.write_snapshot_if_due(document);
    }

    /// A document that cannot be trusted any more is read anew, once everything that was accepted is in its log.
    pub(super) fn document_poisoned(&mut self, document: &ChannelKey) {
        self.counters.documents_poisoned += 1;
        self.flush_document(document);
        self.documents.lives += 1;
        let life = self.documents.lives;
        let Some(open) = self.documents.open.get_mut(document) else { return };
        (open.stage, open.life) = (Stage::Settling, life);
        self.after_appends(Action::ReadDocument { document: document.clone(), life });
    }

    /// Gives a reader of an open document what it lacks, and tells its core about edits from then on.
    pub(super) fn open_ready_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        open: &OpenDocument,
        fan: FanId,
        made: bool,
    ) {
        match self.decide_opening(origin.core, principal, document, open, made) {
            Ok((id, opening)) => {
                let (document, opening) = (document.clone(), Box::new(opening));
                self.after_appends(Action::OpenDocument { origin, document, id, fan, opening });
            }
            Err(reject) => self.tell_opened(origin, document.clone(), fan, Err(reject)),
        }
    }

    fn decide_opening(
        &mut self,
        core: CoreId,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        open: &OpenDocument,
        made: bool,
    ) -> Result<(ChannelId, Opening), Reject> {
        self.flush_document(document);
        let channel = self.existing_channel(document)?.ok_or_else(|| unknown(document))?;
        let (id, revision) = (channel.id(), channel.decided());
        let access = channel.roster().document_access(principal, &document.channel)?;
        let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
        let (state, vector) = match open.form {
            DocumentForm::Updates => {
                let state = match open.state.is_empty() {
                    true => ready.encoded(revision),
                    false => ready.lacked(revision, &open.state)?,
                };
                let state = if *state == *EMPTY_UPDATE { Bytes::new() } else { state };
                (state, ready.document.state_vector())
            }
            DocumentForm::Operations if !open.state.is_empty() => {
                let text = "a reader of operations begins with the whole text; leave the state vector out";
                return Err(Reject::new(RejectCode::ParameterInvalid, text));
            }
            DocumentForm::Operations => {
                ready.tell_operations(revision, core);
                (ready.text(revision), Bytes::new())
            }
        };
        Ok((id, Opening { id, revision, state, vector, access, made, awareness: None }))
    }

    /// What a reader of a document begins with is durable.
    pub(crate) fn document_opened_now(
        &mut self,
        origin: Origin,
        document: ChannelKey,
        id: ChannelId,
        fan: FanId,
        mut opening: Opening,
    ) {
        if !self.attach_place(&document, id, (origin.core, fan)) {
            let reject = deleted(&document);
            return self.tell_opened(origin, document, fan, Err(reject));
        }
        opening.awareness = self.awareness_of(&document);
        self.tell_opened(origin, document, fan, Ok(opening));
    }

    /// A reader of a document is too far behind to be told what happened since.
    pub(crate) fn catch_up_document(
        &mut self,
        core: CoreId,
        document: ChannelKey,
        reader: SubscriptionRef,
        form: DocumentForm,
    ) {
        // The readers of one that is gone, or is about to be, are told so.
        if let Ok(Some(_)) = self.existing_channel(&document) {
            self.with_document(&document, Waiting::CatchUp { core, reader, form });
        }
    }

    pub(super) fn catch_up_ready_document(
        &mut self,
        core: CoreId,
        document: &ChannelKey,
        reader: SubscriptionRef,
        form: DocumentForm,
    ) {
        self.flush_document(document);
        let Some(revision) = self.channel_mut(document).map(|channel| channel.decided()) else { return };
        let Some(ready) = self.documents.ready(document) else { return };
        let state = match form {
            DocumentForm::Updates => ready.encoded(revision),
            DocumentForm::Operations => {
                ready.tell_operations(revision, core);
                ready.text(revision)
            }
        };
        let message = SessionMessage::CaughtUp { reader, result: Ok((revision, state)) };
        self.after_appends(Action::Tell { core, message });
    }

    /// A document is gone, and with it what waited for it.
    pub(crate) fn document_gone(&mut self, document: &ChannelKey) {
        if let Some(open) = self.documents.open.remove(document) {
            self.refuse_all_waiting(document, open.waiting, &deleted(document));
        }
        self.documents.paged.forget(document);
    }

    fn has_room_for_document(&mut self) -> Result<(), Reject> {
        if self.documents.open.len() < DOCUMENTS_OPEN_MAX {
            return Ok(());
        }
        let mut unused = self.unused_documents(0);
        unused.truncate(EVICTED_AT_ONCE);
        for document in &unused {
            self.let_go_of_document(document);
        }
        if unused.is_empty() {
            let text = format!("this core has {DOCUMENTS_OPEN_MAX} documents in use, which is all it takes");
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(FULL_DELAY_MS));
        }
        Ok(())
    }

    /// Documents that nobody reads, and nobody needed for so long, the longest unused first.
    fn unused_documents(&self, for_us: u64) -> Vec<ChannelKey> {
        let now_us = self.now.mono_us;
        let is_unused = |(document, open): &(&ChannelKey, &Open)| {
            let Stage::Ready(ready) = &open.stage else { return false };
            let is_busy = open.models > 0 || !open.waiting.is_empty() || !ready.gathered.is_empty();
            !is_busy && now_us - open.used_us.min(now_us) >= for_us && !self.has_readers(document)
        };
        let mut unused: Vec<_> = self.documents.open.iter().filter(is_unused).collect();
        unused.sort_by_key(|(_, open)| open.used_us);
        unused.into_iter().map(|(document, _)| document.clone()).collect()
    }

    fn let_go_of_document(&mut self, document: &ChannelKey) {
        self.write_last_snapshot(document);
        if self.documents.open.remove(document).is_some() {
            self.counters.documents_evicted += 1;
        }
    }

    /// Lets go of the documents that nobody uses: those unused for long, or, while the node is short of memory, all.
    pub(crate) fn sweep_documents(&mut self) {
        if let Some(at) = self.documents.sweep_at.take() {
            self.deadlines.remove(&(at, Deadline::Documents));
        }
        let for_us = if self.pressure > 0 { 0 } else { DOCUMENT_IDLE_MS * 1_000 };
        for document in self.unused_documents(for_us) {
            self.let_go_of_document(&document);
        }
        self.documents.paged.forget_unread(self.now.mono_us.saturating_sub(for_us.min(SWEEP_US)));
        self.sweep_open_documents();
        if !self.documents.open.is_empty() {
            let at = self.now.mono_us + SWEEP_US;
            self.documents.sweep_at = Some(at);
            self.deadlines.insert((at, Deadline::Documents));
        }
    }

    /// Lets go of what documents in memory hold for those who used it.
    fn sweep_open_documents(&mut self) {
        let mut positional = Vec::new();
        for (document, open) in &mut self.documents.open {
            if let Stage::Ready(ready) = &mut open.stage {
                ready.forget_copies();
                positional.extend(ready.deltas.is_some().then(|| document.clone()));
            }
        }
        for document in positional {
            let places = self.channel_with_readers(&document).map(|(_, places)| places).unwrap_or_default();
            let cores: Vec<_> = places.into_iter().map(|(core, _)| core).collect();
            if let Some(ready) = self.documents.ready(&document) {
                ready.sweep_deltas(&cores);
            }
        }
    }

    /// Whether it is kept what edits do to the text of a document.
    #[cfg(test)]
    pub(crate) fn keeps_deltas(&mut self, document: &ChannelKey) -> bool {
        self.documents.ready(document).is_some_and(|ready| ready.deltas.is_some())
    }

    /// No reader on a core is told operations of a document any more.
    pub(crate) fn untell_operations(&mut self, core: CoreId, document: &ChannelKey) {
        if let Some(deltas) = self.documents.ready(document).and_then(|ready| ready.deltas.as_mut()) {
            deltas.cores.remove(&core);
        }
    }
}
