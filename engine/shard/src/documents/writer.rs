//! Models that write in documents.

use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_protocol::document::AskInDocument;
use thalweg_protocol::ids::ChannelKey;
use thalweg_protocol::reject::Reject;

use super::no_document;
use crate::contract::{Origin, OwnerMessage};
use crate::shard::Shard;

impl Shard {
    /// A client asks that a model write in a document.
    pub(super) fn request_ask_in_document(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        ask: Box<AskInDocument>,
    ) -> Result<(), Reject> {
        self.admit_request(origin.link)?;
        let partition = self.partition(&principal.tenant, ask.document.as_str());
        self.tell_owner(partition, OwnerMessage::AskInDocument { origin, principal, ask });
        Ok(())
    }

    /// A model shall write in a document of this core.
    pub(crate) fn ask_in_document(&mut self, origin: Origin, principal: &Arc<Principal>, ask: AskInDocument) {
        let key = ChannelKey { tenant: principal.tenant.clone(), channel: ask.document };
        self.refuse(origin, no_document(&key.channel));
    }
}
