//! Readers of documents on this core.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_protocol::document::OpenDocument;
use thalweg_protocol::ids::{ChannelKey, Position, Request, Subscription};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::Reject;

use super::{FanId, SubscriptionRef};
use crate::contract::{Link, Opening, Origin, OwnerMessage};
use crate::shard::Shard;

impl Shard {
    /// A client opens a document.
    pub(crate) fn request_open_document(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        open: OpenDocument,
    ) -> Result<(), Reject> {
        self.admit_request(origin.link)?;
        let document = ChannelKey { tenant: principal.tenant.clone(), channel: open.document.clone() };
        let fan = self.fan_of(&document);
        let partition = self.partition(&document.tenant, document.channel.as_str());
        let open = Box::new(open);
        self.tell_owner(partition, OwnerMessage::OpenDocument { origin, principal, document, open, fan });
        Ok(())
    }

    /// The owner answered.
    pub(crate) fn document_opened(
        &mut self,
        link: Link,
        request: Request,
        _document: ChannelKey,
        _fan: FanId,
        result: Result<Opening, Reject>,
    ) {
        self.settle(link);
        if let Err(reject) = result {
            self.reply(link, request, ServerOp::Reject(reject));
        }
    }

    /// The owner gave what a reader lacks.
    pub(crate) fn document_caught_up(&mut self, _reader: SubscriptionRef, _result: Result<(Position, Bytes), Reject>) {}

    /// A client says something of itself.
    pub(crate) fn share_awareness(&mut self, _link: Link, _subscription: Subscription, _update: Bytes) {}

    /// The owner tells what readers of a document say of themselves.
    pub(crate) fn awareness_told(&mut self, _fan: FanId, _payload: &Bytes, _but: Option<Link>) {}
}
