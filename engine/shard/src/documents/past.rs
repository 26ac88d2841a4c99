//! Documents as they were.

use std::sync::Arc;

use thalweg_domain::permission::{Action, Principal};
use thalweg_protocol::document::ReadForm;
use thalweg_protocol::ids::{ChannelKey, Position};
use thalweg_protocol::reject::Reject;

use super::no_document;
use crate::contract::{Origin, OwnerMessage};
use crate::shard::Shard;

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
        principal.require(Action::Read, document.channel.as_str())?;
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
        _principal: &Arc<Principal>,
        document: ChannelKey,
        _revision: Position,
        _form: ReadForm,
        _offset: u64,
    ) {
        self.refuse(origin, no_document(&document.channel));
    }
}
