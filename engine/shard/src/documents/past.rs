//! Documents as they are and as they were: read in one piece, or made to be so again.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::channel::Kept;
use thalweg_domain::document::Document;
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::Message;
use thalweg_protocol::document::{DocumentAccess, DocumentNews, ReadForm};
use thalweg_protocol::ids::{ChannelId, ChannelKey, Position};
use thalweg_protocol::limits::{DOCUMENT_PART_BYTES, DOCUMENT_PASTS_PER_SESSION};
use thalweg_protocol::op::{Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::rebuild::{Rebuild, node_client};
use super::{Stage, Waiting, no_document, no_revision};
use crate::contract::{Origin, OwnerMessage};
use crate::log::Purpose;
use crate::owner::{Action, deleted, unknown};
use crate::shard::Shard;

/// Documents that one core reads as they were, at a time.
const PASTS_MAX: usize = 64;
/// Those who find too many being read are told to come back after this, in milliseconds.
const PASTS_DELAY_MS: u32 = 200;
/// Documents that are read in pieces and kept as they were for that, of one core.
const PAGED_MAX: usize = 4;

/// A document that is being read as it was.
pub(super) struct Past {
    document: ChannelKey,
    id: ChannelId,
    revision: Position,
    rebuild: Rebuild,
    /// What was read of it and is yet to be taken in.
    piece: Option<Vec<Arc<Message>>>,
    purpose: PastPurpose,
}

/// What it is read for.
pub(crate) enum PastPurpose {
    /// Somebody wants to see it.
    Read { origin: Origin, form: ReadForm, offset: u64 },
    /// It is to be so again. What its writer writes next is held until then.
    Restore { origin: Origin, principal: Arc<Principal>, publish: Box<Publish> },
}

impl PastPurpose {
    /// Who asked.
    fn origin(&self) -> &Origin {
        match self {
            Self::Read { origin, .. } | Self::Restore { origin, .. } => origin,
        }
    }
}

/// Which document somebody reads in pieces: as it was when, and how.
#[derive(PartialEq, Eq)]
struct PageKey {
    document: ChannelKey,
    id: ChannelId,
    revision: Position,
    form: ReadForm,
}

/// Documents that are read in pieces, the one that was read last behind. So those who read in different ones do not have them
/// made anew for each piece.
#[derive(Default)]
pub(super) struct Paged {
    kept: VecDeque<(PageKey, Bytes, u64)>,
}

impl Paged {
    fn get(&mut self, key: &PageKey, now_us: u64) -> Option<Bytes> {
        let at = self.kept.iter().position(|(kept, ..)| kept == key)?;
        let (key, bytes, _) = self.kept.remove(at)?;
        self.kept.push_back((key, bytes.clone(), now_us));
        Some(bytes)
    }

    fn keep(&mut self, key: PageKey, bytes: Bytes, now_us: u64) {
        self.kept.retain(|(kept, ..)| *kept != key);
        if self.kept.len() == PAGED_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((key, bytes, now_us));
    }

    /// Lets go of a document that is gone.
    pub(super) fn forget(&mut self, document: &ChannelKey) {
        self.kept.retain(|(key, ..)| key.document != *document);
    }

    /// Lets go of what nobody read since.
    pub(super) fn forget_unread(&mut self, since_us: u64) {
        self.kept.retain(|(.., read_us)| *read_us > since_us);
    }
}

fn in_form(document: &Document, form: ReadForm) -> Bytes {
    match form {
        ReadForm::Text => Bytes::from(document.text()),
        ReadForm::State => document.state(),
        ReadForm::Json => Bytes::from(document.json()),
    }
}

impl Shard {
    /// A client asks for a document as it was at a revision.
    pub(super) fn request_read_document(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        document: ChannelKey,
        revision: Position,
        form: ReadForm,
        offset: u64,
    ) -> Result<(), Reject> {
        principal.require(Access::Read, document.channel.as_str())?;
        self.newcomers_are_served()?;
        self.admit_request(origin.link)?;
        let partition = self.partition(&document.tenant, document.channel.as_str());
        let message = OwnerMessage::ReadDocument { origin, principal, document, revision, form, offset };
        self.tell_owner(partition, message);
        Ok(())
    }

    /// Somebody asks for a document of this core as it was at a revision.
    pub(crate) fn read_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: ChannelKey,
        revision: Position,
        form: ReadForm,
        offset: u64,
    ) {
        if let Err(reject) = self.try_read_document(origin, principal, &document, revision, form, offset) {
            self.refuse(origin, reject);
        }
    }

    fn try_read_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        revision: Position,
        form: ReadForm,
        offset: u64,
    ) -> Result<(), Reject> {
        let channel = self.existing_channel(document)?.ok_or_else(|| unknown(document))?;
        if !channel.is_document() {
            return Err(no_document(&document.channel));
        }
        channel.roster().may_read(principal, &document.channel)?;
        let (id, newest) = (channel.id(), channel.decided());
        if revision > newest {
            return Err(no_revision(&document.channel, revision, newest));
        }
        let access = channel.roster().document_access(principal, &document.channel);
        let key = PageKey { document: document.clone(), id, revision, form };
        if let Some(bytes) = self.documents.paged.get(&key, self.now.mono_us) {
            return self.answer_part(origin, revision, offset, &bytes);
        }
        if revision == Position(0) || (revision == newest && self.is_at_rest(document)) {
            let may_edit = access.is_ok_and(|access| access == DocumentAccess::Write);
            self.with_document(document, Waiting::Read { origin, form, offset, may_edit });
            return Ok(());
        }
        self.begin_past(document, id, revision, PastPurpose::Read { origin, form, offset })
    }

    /// Whether a document is in memory, and as it is: nothing was gathered or waits that may make it another one first.
    fn is_at_rest(&self, document: &ChannelKey) -> bool {
        let Some(open) = self.documents.open.get(document) else { return false };
        open.waiting.is_empty() && matches!(&open.stage, Stage::Ready(ready) if ready.gathered.is_empty())
    }

    pub(super) fn read_ready_document(
        &mut self,
        origin: Origin,
        document: &ChannelKey,
        form: ReadForm,
        offset: u64,
        may_edit: bool,
    ) {
        self.flush_document(document);
        let revision = self.decided_revision(document);
        let id = self.channel_id(document).map(|(id, _)| id);
        let (Some(ready), Some(id)) = (self.documents.ready(document), id) else {
            return self.refuse(origin, deleted(document));
        };
        let bytes = match form {
            ReadForm::State => ready.encoded(revision),
            ReadForm::Text => {
                // Who read the text may edit it by operations, if they may edit it at all.
                if may_edit {
                    ready.keep_deltas(revision);
                }
                ready.text(revision)
            }
            ReadForm::Json => in_form(&ready.document, form),
        };
        self.answer_document(origin, document, id, revision, form, offset, bytes);
    }

    #[allow(clippy::too_many_arguments, reason = "what was asked, and the answer")]
    fn answer_document(
        &mut self,
        origin: Origin,
        document: &ChannelKey,
        id: ChannelId,
        revision: Position,
        form: ReadForm,
        offset: u64,
        bytes: Bytes,
    ) {
        let answered = self.answer_part(origin, revision, offset, &bytes);
        if bytes.len() > DOCUMENT_PART_BYTES {
            let key = PageKey { document: document.clone(), id, revision, form };
            self.documents.paged.keep(key, bytes, self.now.mono_us);
        }
        if let Err(reject) = answered {
            self.refuse(origin, reject);
        }
    }

    fn answer_part(&mut self, origin: Origin, revision: Position, offset: u64, bytes: &Bytes) -> Result<(), Reject> {
        let total = bytes.len() as u64;
        let Some(from) = usize::try_from(offset).ok().filter(|from| *from <= bytes.len()) else {
            let text = format!("offset is {offset}; the document has {total} bytes in this form");
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        };
        let bytes = bytes.slice(from..bytes.len().min(from + DOCUMENT_PART_BYTES));
        let op = ServerOp::Document(DocumentNews::State { revision, offset, total, bytes });
        // What it shows may not be durable yet.
        self.after_appends(Action::Answer { origin, op });
        Ok(())
    }

    /// Begins to read a document as it was, once all of that is in its log.
    pub(super) fn begin_past(
        &mut self,
        document: &ChannelKey,
        id: ChannelId,
        revision: Position,
        purpose: PastPurpose,
    ) -> Result<(), Reject> {
        if self.documents.pasts.len() >= PASTS_MAX {
            let text = format!("{PASTS_MAX} documents are being read as they were; come back after the delay");
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(PASTS_DELAY_MS));
        }
        let asks = |past: &&Past| {
            let (one, other) = (past.purpose.origin(), purpose.origin());
            (one.core, one.link) == (other.core, other.link)
        };
        if self.documents.pasts.values().filter(asks).count() >= DOCUMENT_PASTS_PER_SESSION {
            let text = format!(
                "the session has {DOCUMENT_PASTS_PER_SESSION} documents read as they were; wait for one of them"
            );
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(PASTS_DELAY_MS));
        }
        let snapshot = self.channel_mut(document).and_then(|channel| channel.snapshot_at(revision));
        if let PastPurpose::Restore { principal, publish, .. } = &purpose {
            self.hold_writer(principal, &publish.channel);
        }
        self.documents.lives += 1;
        let (life, document) = (self.documents.lives, document.clone());
        let rebuild = Rebuild::new(revision, snapshot, node_client(id, self.config.epoch, revision));
        let past = Past { document, id, revision, rebuild, piece: None, purpose };
        self.documents.pasts.insert(life, past);
        self.after_appends(Action::ReadPast { life });
        Ok(())
    }

    /// A document as it was goes on when it is its turn.
    pub(crate) fn go_on_with_past(&mut self, life: u64) {
        self.documents.pasts_at_hand.push_back(life);
    }

    /// Goes on with the document as it was whose turn it is: takes in the piece that was read, and reads the next. One in a
    /// turn of the core, however many there are: others want theirs.
    pub(super) fn go_on_with_a_past(&mut self) {
        let Some(life) = self.documents.pasts_at_hand.pop_front() else { return };
        let now_us = self.now.wall_us;
        let Some(past) = self.documents.pasts.get_mut(&life) else { return };
        let taken = past.piece.take().map_or(Ok(()), |messages| past.rebuild.take(&messages));
        if let Err(reject) = taken {
            return self.past_failed(life, reject);
        }
        let (document, id) = (past.document.clone(), past.id);
        let Some((from, to)) = past.rebuild.next() else { return self.past_read(life) };
        let Some(channel) = self.channel_mut(&document).filter(|channel| channel.id() == id) else {
            return self.past_failed(life, deleted(&document));
        };
        match channel.read(from, now_us) {
            Kept::AtHand(messages) => self.past_piece(life, Ok(messages)),
            Kept::OnDisk { from, to: at_hand } => {
                self.read_disk(Purpose::Past { life }, document, id, from, at_hand.min(to));
            }
        }
    }

    /// A piece of a document as it was, was read.
    pub(crate) fn past_piece(&mut self, life: u64, piece: Result<Vec<Arc<Message>>, Reject>) {
        let Some(past) = self.documents.pasts.get_mut(&life) else { return };
        match piece {
            Ok(messages) => {
                past.piece = Some(messages);
                self.documents.pasts_at_hand.push_back(life);
            }
            Err(reject) => self.past_failed(life, reject),
        }
    }

    fn past_failed(&mut self, life: u64, reject: Reject) {
        let Some(Past { purpose, .. }) = self.documents.pasts.remove(&life) else { return };
        match purpose {
            PastPurpose::Read { origin, .. } => self.refuse(origin, reject),
            PastPurpose::Restore { origin, principal, publish } => {
                self.release_writer(&principal, &publish.channel, |shard| shard.refuse(origin, reject));
            }
        }
    }

    fn past_read(&mut self, life: u64) {
        let Some(Past { document, id, revision, rebuild, purpose, .. }) = self.documents.pasts.remove(&life) else {
            return;
        };
        let old = rebuild.finish();
        match purpose {
            PastPurpose::Read { origin, form, offset } => {
                self.answer_document(origin, &document, id, revision, form, offset, in_form(&old, form));
            }
            PastPurpose::Restore { origin, principal, publish } => {
                let (writer, channel) = (Arc::clone(&principal), publish.channel.clone());
                let what = Waiting::Restore { origin, principal, publish, old: Box::new(old) };
                self.release_writer(&writer, &channel, |shard| shard.with_document(&document, what));
            }
        }
    }
}
