//! Documents: the owner's end.
//!
//! A document is a channel of kind `Document`: its messages are what it was edited by, and a revision is the position of one
//! of them. What this adds to a channel is the document itself, in memory while it is used.

mod awareness;
mod opening;
mod past;
mod writer;

use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_protocol::document::DocumentOp;
use thalweg_protocol::ids::{ChannelKey, Name};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::Origin;
use crate::shard::Shard;

/// Refuses to take a channel of another kind for a document.
pub(crate) fn no_document(name: &Name) -> Reject {
    let text = format!("{name} is a channel and no document; subscribe to it, or open a document of another name");
    Reject::new(RejectCode::KindMismatch, text)
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
}
