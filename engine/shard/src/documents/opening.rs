//! Documents that are opened: read from the log, held in memory, let go of.

use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_protocol::document::{DocumentForm, OpenDocument};
use thalweg_protocol::ids::{ChannelKey, CoreId};

use super::no_document;
use crate::contract::{Origin, SessionMessage};
use crate::fan::{FanId, SubscriptionRef};
use crate::shard::Shard;

impl Shard {
    /// Somebody opens a document of this core.
    pub(crate) fn open_document(
        &mut self,
        origin: Origin,
        _principal: &Arc<Principal>,
        document: ChannelKey,
        _open: OpenDocument,
        fan: FanId,
    ) {
        let Origin { core, link, request, .. } = origin;
        let result = Err(no_document(&document.channel));
        self.tell_session(core, SessionMessage::DocumentOpened { link, request, document, fan, result });
    }

    /// A reader of a document is too far behind to be told what happened since.
    pub(crate) fn catch_up_document(
        &mut self,
        core: CoreId,
        document: ChannelKey,
        reader: SubscriptionRef,
        _form: DocumentForm,
    ) {
        let result = Err(no_document(&document.channel));
        self.tell_session(core, SessionMessage::CaughtUp { reader, result });
    }
}
