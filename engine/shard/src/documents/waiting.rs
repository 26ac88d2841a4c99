//! What waits for a document that is being read.

use std::sync::Arc;

use thalweg_domain::document::Document;
use thalweg_domain::permission::Principal;
use thalweg_protocol::document::{AskInDocument, DocumentForm, OpenDocument, ReadForm};
use thalweg_protocol::ids::{ChannelKey, CoreId};
use thalweg_protocol::limits::DOCUMENT_WAITING_MAX;
use thalweg_protocol::op::Publish;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::Stage;
use crate::contract::{Origin, SessionMessage};
use crate::fan::{FanId, SubscriptionRef};
use crate::shard::Shard;

/// Those who find too many waiting for a document are told to come back after this, in milliseconds.
const WAITING_DELAY_MS: u32 = 100;

/// What is to be done with a document once it is in memory.
pub(crate) enum Waiting {
    /// Somebody begins to read it.
    Open { origin: Origin, principal: Arc<Principal>, open: Box<OpenDocument>, fan: FanId, made: bool },
    /// A reader lost track of it.
    CatchUp { core: CoreId, reader: SubscriptionRef, form: DocumentForm },
    /// Somebody reads it once, as it is, perhaps to edit it.
    Read { origin: Origin, form: ReadForm, offset: u64, may_edit: bool },
    /// Somebody edits it; what they write next is held until then.
    Publish { origin: Origin, principal: Arc<Principal>, publish: Box<Publish>, limited: Option<Box<Reject>> },
    /// Somebody makes it what it was; what they write next is held until then.
    Restore { origin: Origin, principal: Arc<Principal>, publish: Box<Publish>, old: Box<Document> },
    /// A model shall write in it.
    Ask { origin: Origin, principal: Arc<Principal>, ask: Box<AskInDocument> },
}

fn unreadable(document: &ChannelKey) -> Reject {
    Reject::new(RejectCode::StorageDamaged, format!("{} cannot be read from its log", document.channel))
}

impl Shard {
    /// Does something with a document of this core: at once if it is in memory, else once it was read.
    pub(crate) fn with_document(&mut self, document: &ChannelKey, what: Waiting) {
        if let Some(open) = self.documents.open.get_mut(document) {
            open.used_us = self.now.mono_us;
            if matches!(open.stage, Stage::Ready(_)) && open.waiting.is_empty() && !open.is_serving {
                return self.do_with_document(document, what);
            }
            if open.waiting.len() >= DOCUMENT_WAITING_MAX {
                let text = format!("too many wait for {}, which is being read; come back later", document.channel);
                let reject = Reject::new(RejectCode::Busy, text).retry_after_ms(WAITING_DELAY_MS);
                return self.refuse_waiting(document, what, reject);
            }
        } else if let Err(reject) = self.begin_opening(document) {
            return self.refuse_waiting(document, what, reject);
        }
        if let Waiting::Publish { principal, publish, .. } | Waiting::Restore { principal, publish, .. } = &what {
            self.hold_writer(principal, &publish.channel);
        }
        match self.documents.open.get_mut(document) {
            Some(open) => open.waiting.push_back(what),
            None => self.refuse_all_waiting(document, [what], &unreadable(document)),
        }
        self.serve_waiting(document);
    }

    /// Does what waited for a document, as long as it is in memory. What comes of that waits as well, so that a crowd of
    /// writers, each with more to write, does not nest.
    pub(super) fn serve_waiting(&mut self, document: &ChannelKey) {
        match self.documents.open.get_mut(document) {
            Some(open) if !open.is_serving => open.is_serving = true,
            _ => return,
        }
        while let Some(open) = self.documents.open.get_mut(document)
            && matches!(open.stage, Stage::Ready(_))
            && let Some(what) = open.waiting.pop_front()
        {
            match what {
                Waiting::Publish { ref principal, ref publish, .. }
                | Waiting::Restore { ref principal, ref publish, .. } => {
                    let (principal, channel) = (Arc::clone(principal), publish.channel.clone());
                    self.release_writer(&principal, &channel, |shard| shard.do_with_document(document, what));
                }
                what => self.do_with_document(document, what),
            }
        }
        if let Some(open) = self.documents.open.get_mut(document) {
            open.is_serving = false;
        }
    }

    fn do_with_document(&mut self, document: &ChannelKey, what: Waiting) {
        match what {
            Waiting::Open { origin, principal, open, fan, made } => {
                self.open_ready_document(origin, &principal, document, &open, fan, made);
            }
            Waiting::CatchUp { core, reader, form } => self.catch_up_ready_document(core, document, reader, form),
            Waiting::Read { origin, form, offset, may_edit } => {
                self.read_ready_document(origin, document, form, offset, may_edit);
            }
            Waiting::Publish { origin, principal, publish, limited } => {
                self.edit_ready_document(origin, &principal, document, *publish, limited);
            }
            Waiting::Restore { origin, principal, publish, old } => {
                self.restore_ready_document(origin, &principal, document, *publish, &old);
            }
            Waiting::Ask { origin, principal, ask } => {
                self.ask_in_ready_document(origin, &principal, document, *ask);
            }
        }
    }

    /// Refuses what waited for a document that cannot be read, or is gone.
    pub(super) fn refuse_all_waiting(
        &mut self,
        document: &ChannelKey,
        waiting: impl IntoIterator<Item = Waiting>,
        reject: &Reject,
    ) {
        for what in waiting {
            match what {
                Waiting::Publish { ref principal, ref publish, .. }
                | Waiting::Restore { ref principal, ref publish, .. } => {
                    let (principal, channel) = (Arc::clone(principal), publish.channel.clone());
                    let reject = reject.clone();
                    self.release_writer(&principal, &channel, |shard| shard.refuse_waiting(document, what, reject));
                }
                what => self.refuse_waiting(document, what, reject.clone()),
            }
        }
    }

    fn refuse_waiting(&mut self, document: &ChannelKey, what: Waiting, reject: Reject) {
        match what {
            Waiting::Open { origin: Origin { core, link, request, .. }, fan, .. } => {
                let (document, result) = (document.clone(), Err(reject));
                self.tell_session(core, SessionMessage::DocumentOpened { link, request, document, fan, result });
            }
            Waiting::CatchUp { core, reader, .. } => {
                self.tell_session(core, SessionMessage::CaughtUp { reader, result: Err(reject) });
            }
            Waiting::Read { origin, .. }
            | Waiting::Publish { origin, .. }
            | Waiting::Restore { origin, .. }
            | Waiting::Ask { origin, .. } => self.refuse(origin, reject),
        }
    }
}
