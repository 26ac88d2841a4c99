//! What goes into the log.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_protocol::chat::Context;
use thalweg_protocol::generation::{ChatMessage, OnDetach, Priority, Sampling};
use thalweg_protocol::ids::{
    ChannelId, ChannelKey, Epoch, GenerationId, Lsn, Name, Partition, Position, Sequence, SessionId,
};
use thalweg_protocol::limits::{HISTORY_BYTES, HISTORY_MESSAGES};
use thalweg_protocol::op::{Delivery, DeliveryKind, Durability, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::fact::{ChannelFact, UserFact};
use crate::generation::{Ending, Token};

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

/// What may happen. What a generation does in a channel and what the channel gets of it are one event, so that no crash can
/// part them.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields are named after their types")]
pub enum Event {
    /// A channel was made. The record's own place in the log is the channel's id.
    ChannelCreated { channel: ChannelKey, settings: ChannelSettings, facts: Vec<ChannelFact> },
    /// A channel was deleted, with all it holds.
    ChannelDeleted { channel: ChannelKey, id: ChannelId },
    /// Somebody published.
    Published(Posting),
    /// A model was asked.
    GenerationStarted { generation: GenerationId, request: Arc<GenerationRequest>, posting: Option<Posting> },
    /// A model answered tokens from `index` on; `text` is theirs, one after the other.
    GenerationTokens { generation: GenerationId, index: u32, tokens: Vec<Token>, text: Bytes, posting: Option<Posting> },
    /// A model's answer ended.
    GenerationFinished { generation: GenerationId, ending: Ending, posting: Option<Posting> },
    /// A generation was deleted.
    GenerationDeleted { generation: GenerationId },
    /// Something about a channel changed; its readers may be told of it in the channel.
    ChannelChanged { channel: ChannelKey, id: ChannelId, facts: Vec<ChannelFact>, posting: Option<Posting> },
    /// Something about a user changed.
    UserChanged { tenant: Name, user: Name, facts: Vec<UserFact> },
}

impl Event {
    /// What the event adds to a channel.
    pub fn posting(&self) -> Option<&Posting> {
        match self {
            Self::Published(posting) => Some(posting),
            Self::GenerationStarted { posting, .. }
            | Self::GenerationTokens { posting, .. }
            | Self::GenerationFinished { posting, .. }
            | Self::ChannelChanged { posting, .. } => posting.as_ref(),
            Self::ChannelCreated { .. }
            | Self::ChannelDeleted { .. }
            | Self::GenerationDeleted { .. }
            | Self::UserChanged { .. } => None,
        }
    }
}

/// Something that is added to a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    /// The channel, as people name it.
    pub channel: ChannelKey,
    /// Which of the channels that had that name.
    pub id: ChannelId,
    /// What is added.
    pub message: Arc<Message>,
}

/// Everything that is needed to begin a generation again.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRequest {
    /// Whose it is.
    pub tenant: Name,
    /// Who asked.
    pub user: Name,
    /// The model that answers.
    pub model: Name,
    /// The channel it answers in.
    pub channel: Option<(ChannelKey, ChannelId)>,
    /// The conversation so far; empty once the generation has ended.
    pub messages: Vec<ChatMessage>,
    /// How tokens are drawn, with the seed that was chosen.
    pub sampling: Sampling,
    /// What becomes of it when the last reader goes.
    pub on_detach: OnDetach,
    /// Whether the messages' contents are the prompt as it stands.
    pub raw: bool,
    /// Its place among the tenant's requests.
    pub priority: Priority,
    /// How soon it had to begin, in milliseconds; 0 if it could wait.
    pub deadline_ms: u32,
}

/// What a channel keeps for later readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSettings {
    /// At most so many messages.
    pub history_messages: u32,
    /// At most so many bytes of bodies; the newest message is kept whatever its size.
    pub history_bytes: u64,
    /// Messages older than this need not be kept, in microseconds; 0 sets no limit of age.
    pub history_age_us: u64,
    /// How durable its messages are.
    pub durability: Durability,
}

impl ChannelSettings {
    /// The settings of a channel that nobody chose any for.
    pub fn new(durability: Durability) -> Self {
        Self { history_messages: HISTORY_MESSAGES, history_bytes: HISTORY_BYTES, history_age_us: 0, durability }
    }
}

/// One entry of a channel, shared by all who carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it stands in its channel.
    pub position: Position,
    /// When its owner accepted it: microseconds since 1970, UTC.
    pub timestamp_us: u64,
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
    /// Its place in the channel.
    pub context: Context,
    /// The message itself; a slice of `payload`'s memory or of the request's.
    pub body: Bytes,
    /// The encoded [`ServerOp::Delivery`], made once and sent to every reader; the log keeps these bytes.
    pub payload: Bytes,
}

impl Message {
    /// Makes a message and encodes its delivery.
    pub fn new(delivery: Delivery, session: SessionId, sequence: Sequence) -> Self {
        let payload = ServerOp::Delivery(delivery.clone()).encode();
        Self::of(delivery, session, sequence, payload)
    }

    /// The message that was encoded as `payload`.
    ///
    /// # Errors
    /// If the payload is no delivery.
    pub fn decode(payload: Bytes, session: SessionId, sequence: Sequence) -> Result<Self, Reject> {
        match ServerOp::decode(&payload)? {
            ServerOp::Delivery(delivery) => Ok(Self::of(delivery, session, sequence, payload)),
            _ => Err(Reject::new(RejectCode::FrameInvalid, "the payload of a message is no delivery")),
        }
    }

    fn of(delivery: Delivery, session: SessionId, sequence: Sequence, payload: Bytes) -> Self {
        let Delivery { position, timestamp_us, kind, user, generation, body, key: _, context } = delivery;
        Self { position, timestamp_us, session, sequence, kind, user, generation, context, body, payload }
    }

    /// The message without its text, which was taken back.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let delivery = Delivery {
            position: self.position,
            timestamp_us: self.timestamp_us,
            kind: self.kind,
            user: self.user.clone(),
            generation: self.generation,
            body: Bytes::new(),
            key: 0,
            context: Context { redacted: true, mentions: Vec::new(), ..self.context.clone() },
        };
        Self::new(delivery, self.session, self.sequence)
    }

    /// Whether somebody's command wrote it, so that the command is to be recognised when it is repeated.
    pub fn is_commanded(&self) -> bool {
        self.sequence != Sequence(0)
    }
}
