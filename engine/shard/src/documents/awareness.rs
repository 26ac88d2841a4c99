//! What the readers of a document say of themselves: gathered by its owner, told to all.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_protocol::ids::{ChannelKey, CoreId};

use crate::contract::Link;
use crate::fan::FanId;
use crate::shard::Shard;

impl Shard {
    /// A reader of a document of this core says something of itself.
    pub(crate) fn aware(
        &mut self,
        _place: (CoreId, FanId),
        _link: Link,
        _document: &ChannelKey,
        _principal: &Arc<Principal>,
        _update: &Bytes,
    ) {
    }

    /// A reader of a document of this core is gone.
    pub(crate) fn unaware(&mut self, _place: (CoreId, FanId), _link: Link, _document: &ChannelKey) {}
}
