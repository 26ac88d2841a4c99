//! What goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{ChannelKey, Epoch, GenerationId, Lsn, Name, Partition, Position, Sequence, SessionId};
use thalweg_protocol::op::{Delivery, DeliveryKind, ServerOp};

/// Something that happened, as the log keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The unit of ownership it belongs to.
    pub partition: Partition,
    /// Where it stands in that partition's log.
    pub lsn: Lsn,
    /// Which life of the owner wrote it.
    pub epoch: Epoch,
    /// When its owner accepted it: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// What happened.
    pub event: Event,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields are named after their types")]
pub enum Event {
    /// A channel was made.
    ChannelCreated { channel: ChannelKey, settings: ChannelSettings },
    /// Something was added to a channel.
    Published { channel: ChannelKey, message: Arc<Message> },
    /// A model was asked.
    GenerationStarted { generation: GenerationId, tenant: Name, user: Name, model: Name },
    /// A model answered `count` tokens from `index` on.
    GenerationTokens { generation: GenerationId, index: u32, count: u32, text: Bytes },
    /// A model's answer ended.
    GenerationFinished { generation: GenerationId, reason: FinishReason, usage: Usage },
}

/// What a channel keeps for later readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSettings {
    /// At most so many messages.
    pub history_messages: u32,
    /// At most so many bytes of bodies; the newest message is kept whatever its size.
    pub history_bytes: u64,
}

impl Default for ChannelSettings {
    fn default() -> Self {
        use thalweg_protocol::limits::{HISTORY_BYTES, HISTORY_MESSAGES};
        Self { history_messages: HISTORY_MESSAGES, history_bytes: HISTORY_BYTES }
    }
}

/// One entry of a channel, shared by all who carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it stands in its channel.
    pub position: Position,
    /// Which session wrote it, so that it does not hear its own echo; 0 for a model.
    pub session: SessionId,
    /// The session's number for the write; 0 for a model.
    pub sequence: Sequence,
    /// What it is.
    pub kind: DeliveryKind,
    /// Who wrote it.
    pub user: Name,
    /// The generation it belongs to, if a model wrote it.
    pub generation: Option<GenerationId>,
    /// The message itself; a slice of `payload`'s memory or of the request's.
    pub body: Bytes,
    /// The encoded [`ServerOp::Delivery`], made once and sent to every reader.
    pub payload: Bytes,
}

impl Message {
    /// Makes a message and encodes its delivery.
    pub fn new(delivery: Delivery, session: SessionId, sequence: Sequence) -> Self {
        let (position, kind, user) = (delivery.position, delivery.kind, delivery.user.clone());
        let (generation, body) = (delivery.generation, delivery.body.clone());
        let payload = ServerOp::Delivery(delivery).encode();
        Self { position, session, sequence, kind, user, generation, body, payload }
    }
}
