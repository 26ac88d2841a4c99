//! The operations inside the frames.
//!
//! [`ClientOp`] goes from client to node, [`ServerOp`] the other way. Decoding verifies the FlatBuffer, checks every name
//! and number against its limit, and shares message bodies with the frame instead of copying them. Encoding a value that
//! was decoded gives a frame that decodes to the same value.

mod decode;
mod encode;

use bytes::Bytes;

use crate::chat::{
    ChannelAbout, ChannelReport, ChannelSummary, ChatOp, Context, Post, Presence, PresentUser, ProfileReport,
};
use crate::document::{DocumentNews, DocumentOp};
use crate::generation::{AskRequest, FinishReason, TokenDetail, Usage};
use crate::ids::{Epoch, GenerationId, Name, Position, Sequence, SessionId, Subscription, Watch};
use crate::reject::Reject;

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// At the oldest message that is still kept.
    Start,
    /// After the newest: only what comes from now on.
    End,
    /// At this position, or, if it is no longer kept, at the oldest with a notice of what was missed.
    Position(Position),
}

/// What becomes of a reader that falls behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It gets everything, later: what it missed is read back from history as it makes room.
    #[default]
    Replay,
    /// It skips to the newest and is told what it missed.
    Drop,
    /// Its subscription is ended.
    Disconnect,
}

impl Policy {
    /// The policy as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Drop => "drop",
            Self::Disconnect => "disconnect",
        }
    }
}

/// The first frame of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest and newest wire version it speaks.
    pub versions: (u16, u16),
    /// Its session: random bits of its own, the same after a reconnect.
    pub session: SessionId,
    /// The signed token that says who it is.
    pub token: String,
    /// Name and version of the client's software, for the node's log.
    pub client: String,
}

/// A write to a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Which channel.
    pub channel: Name,
    /// The session's number for this write.
    pub sequence: Sequence,
    /// Whether it was sent before and may have been carried out.
    pub retry: bool,
    /// Make the channel if there is none.
    pub make: bool,
    /// The message.
    pub body: Bytes,
    /// 0: the body is plain. Other numbers are reserved for sealed bodies.
    pub key: u32,
    /// What it does, and to which message.
    pub post: Post,
}

/// A request for the messages of a channel; its request number becomes the subscription's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Which channel.
    pub channel: Name,
    /// From where on.
    pub from: From,
    /// What to do when the reader falls behind.
    pub policy: Policy,
    /// Messages the node may send ahead of what the reader reported as consumed; 0 for the default.
    pub lead: u32,
    /// Make the channel if there is none.
    pub make: bool,
    /// Whether to be seen in the channel, and to be told who is there.
    pub presence: bool,
}

/// How long what is written to a channel outlives what may happen to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// As long as the node's process: a write is answered when it is in the channel's memory.
    Memory,
    /// A write is answered when it is synced to the node's disk: it survives the loss of process, machine and power.
    Disk,
    /// Reserved: a write is answered when other nodes have synced it too. Refused by a node that stands alone.
    Replicated,
}

impl Durability {
    /// The durability as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Replicated => "replicated",
        }
    }
}

/// A new channel. Zeroes take the node's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateChannel {
    /// Its name.
    pub channel: Name,
    /// Messages it keeps at most.
    pub history_messages: u32,
    /// Bytes of bodies it keeps at most.
    pub history_bytes: u64,
    /// It need not keep messages older than this, in milliseconds; 0 sets no limit of age.
    pub history_age_ms: u64,
    /// How durable its messages are; the node's default if not said.
    pub durability: Option<Durability>,
    /// How it is to be used.
    pub about: ChannelAbout,
}

/// A request to read a generation, perhaps one that was read before, over another connection or from another life of the
/// node. Its request number becomes the watch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchRequest {
    /// Which generation.
    pub generation: GenerationId,
    /// The first token that is wanted.
    pub from: u32,
    /// Tokens the generation may run ahead of this reader; 0 for the default.
    pub lead: u32,
    /// The life of the node in which the reader got the tokens before `from`; 0 if it does not know.
    pub epoch: Epoch,
    /// [`TextHash`](crate::generation::TextHash) of the tokens before `from` as the reader got them, if it has them.
    pub seen: Option<u64>,
}

/// What a client asks of a node.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields of one-line variants are named after their types")]
pub enum ClientOp {
    /// Must come first, once. Answer: `Welcome`.
    Hello(Hello),
    /// Makes a channel. Answer: `ChannelCreated`.
    CreateChannel(CreateChannel),
    /// Writes a message. Answer: `Published`, once it is as durable as its channel asks.
    Publish(Publish),
    /// Reads a channel. Answer: `Subscribed`, then deliveries on the delivery lane.
    Subscribe(Subscribe),
    /// Ends a subscription. Answer: `Done`; no delivery follows it.
    Unsubscribe { subscription: Subscription },
    /// Credit: everything up to `position` was consumed. No answer.
    Consumed { subscription: Subscription, position: Position },
    /// Asks a model. Answer: `Asked`, then tokens on a lane of its own.
    Ask(Box<AskRequest>),
    /// Reads a generation. Answer: `Asked`, then tokens on a lane of its own, perhaps after a `Rewound`.
    Watch(WatchRequest),
    /// Credit: all tokens before `index` were consumed. No answer.
    TokensConsumed { watch: Watch, index: u32 },
    /// Stops reading a generation, which may end it. Answer: `Done`.
    Unwatch { watch: Watch },
    /// Ends a generation within one step. Answer: `Done`.
    Cancel { generation: GenerationId },
    /// Answer: `Pong` with the same number.
    Ping { nonce: u64 },
    /// Asks for counters and latencies of the node. Answer: `StatsReport`.
    Stats,
    /// Drains the node as SIGTERM does. Answer: `Done`.
    Drain,
    /// Deletes a channel with all it holds. Its readers are told `Ended`. Answer: `Done`, once that is durable.
    DeleteChannel { channel: Name },
    /// Deletes all channels and generations of the token's tenant. Answer: `Deleted`, once that is durable.
    DeleteTenant,
    /// Asks that all that is durable now be moved into sealed segments, which can be copied. Answer: `Done`, once it is.
    Checkpoint,
    /// Asks for a page of a channel's history, from a position on (0: the oldest kept); `limit` 0 for as many as fit.
    /// Answer: `Page`.
    ReadHistory { channel: Name, from: Position, limit: u32 },
    /// Something about channels, their members and the people in them.
    Chat(ChatOp),
    /// Asks for a token by name and password; may come before the hello. Answer: `LoggedIn`.
    Login(Login),
    /// Asks something of the node's administration: a JSON object. Answer: `Managed`.
    Manage { json: Bytes },
    /// The session's user is there. No answer; as a datagram.
    Heartbeat,
    /// The user is writing in a channel, or stopped to. No answer; as a datagram.
    Typing { subscription: Subscription, on: bool },
    /// Asks for vectors that say what texts are about, from a model or the node's first that makes any. Answer:
    /// `Embedded`.
    Embed { model: Option<Name>, texts: Vec<String> },
    /// Something about a document.
    Document(DocumentOp),
}

/// A request for a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Whose user.
    pub tenant: Name,
    /// Which user.
    pub user: Name,
    /// The password, as the user typed it.
    pub password: String,
}

impl std::fmt::Debug for Login {
    /// Without the password, which must not get into a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("tenant", &self.tenant).field("user", &self.user).finish_non_exhaustive()
    }
}

/// The first frame of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The wire version both speak.
    pub version: u16,
    /// The session as the client gave it.
    pub session: SessionId,
    /// Which life of the node this is.
    pub epoch: Epoch,
    /// Who the token says the client is.
    pub tenant: Name,
    /// See `tenant`.
    pub user: Name,
    /// Name and version of the node's software.
    pub server: String,
    /// The chat models that can be asked, default first.
    pub models: Vec<String>,
    /// Largest frame payload the node accepts.
    pub frame_bytes_max: u32,
    /// Largest message body the node accepts.
    pub body_bytes_max: u32,
    /// Most unanswered requests of a session.
    pub in_flight_max: u32,
    /// Default lead of a subscription.
    pub lead_messages: u32,
    /// Default lead of a watched generation.
    pub lead_tokens: u32,
    /// When the token ends, in microseconds since 1970; 0 if it does not.
    pub token_expires_us: u64,
}

/// What a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryKind {
    /// A message somebody published, or the whole answer of a model.
    Message,
    /// A piece of a model's answer in the channel, as it is produced.
    Tokens,
    /// A model began to answer in the channel.
    GenerationStarted,
    /// A model's answer ended without a message: cancelled, refused or failed. The body says why.
    GenerationEnded,
    /// A message got another text: the body. The target says which.
    Edit,
    /// The target's text was taken back.
    Redaction,
    /// Somebody reacted to the target; the body is the emoji.
    Reaction,
    /// Somebody took a reaction back.
    Unreaction,
    /// Somebody's role changed; the body is the name of whose, the context says to what.
    Membership,
    /// The channel is used in another way; the body is its topic.
    Info,
    /// A document was edited; the body is a Yjs update (version 1).
    Update,
    /// A part of what a document was before this position, encoded as one update. Kept by the node, not sent to readers.
    Snapshot,
    /// A revision of a document was given a name, the body; the target says which.
    Version,
}

/// One record of a channel, as its readers get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it stands in the channel.
    pub position: Position,
    /// When its owner accepted it: microseconds since 1970, UTC.
    pub timestamp_us: u64,
    /// What it is.
    pub kind: DeliveryKind,
    /// Who wrote it; for models `ai/` and the model's name.
    pub user: Name,
    /// The generation it belongs to, if a model wrote it.
    pub generation: Option<GenerationId>,
    /// The message.
    pub body: Bytes,
    /// 0: the body is plain.
    pub key: u32,
    /// Its place in the channel.
    pub context: Context,
}

/// What a node says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields of one-line variants are named after their types")]
pub enum ServerOp {
    /// Answer to a hello.
    Welcome(Welcome),
    /// Answer to a request that is refused.
    Reject(Reject),
    /// Answer to a request that has nothing to report.
    Done,
    /// Answer to `CreateChannel`: whether it is new.
    ChannelCreated { created: bool },
    /// Answer to `Publish`. `duplicate`: it had been carried out before, with this same result.
    Published { position: Position, timestamp_us: u64, duplicate: bool },
    /// Answer to `Subscribe`: the first position that will be delivered, and the newest there is.
    Subscribed { next: Position, head: Position },
    /// A record of a channel.
    Delivery(Delivery),
    /// The reader will not get the positions `from..=to`.
    Missed { from: Position, to: Position },
    /// The subscription or watch of this subject is over.
    Ended(Reject),
    /// Answer to `Ask` and `Watch`, and the first frame on the generation's lane.
    Asked { generation: GenerationId, model: String },
    /// `count` tokens from `index` on. A token's text is empty while its last character is incomplete. `details`: how
    /// likely some or all of them were, if that was asked for, at most
    /// [`TOKEN_DETAILS_MAX`](crate::limits::TOKEN_DETAILS_MAX).
    Tokens { index: u32, count: u32, text: Bytes, details: Vec<TokenDetail> },
    /// The generation ended; the last frame on its lane. `message` says why if it failed.
    Finished { reason: FinishReason, usage: Usage, message: String },
    /// Answer to `Ping`.
    Pong { nonce: u64 },
    /// Answer to `Stats`: a JSON object.
    StatsReport { json: Bytes },
    /// The node is going away; come back after the delay.
    ServerRestarting { reconnect_delay_ms: u32 },
    /// Answer to `DeleteTenant`: how many channels there were.
    Deleted { channels: u32 },
    /// Answer to `ReadHistory`: encoded deliveries in order; `first` is the oldest position that is kept, `next` the one
    /// to ask for the page after, `head` the newest there is.
    Page { first: Position, next: Position, head: Position, deliveries: Vec<Bytes> },
    /// The tokens before `to` stand; those from `to` on were lost with an earlier life of the node before they were
    /// durable, and come again, perhaps with another text.
    Rewound { to: u32 },
    /// Answer to `AboutChannel` and `OpenDirect`.
    ChannelReport(Box<ChannelReport>),
    /// Answer to `ListChannels`; `more`: there are others after the last.
    ChannelList { channels: Vec<ChannelSummary>, more: bool },
    /// Answer to `GetProfile`.
    ProfileReport(Box<ProfileReport>),
    /// Answer to `WhoIsIn`; not `complete` if there are more than are named.
    PresenceReport { count: u32, users: Vec<PresentUser>, complete: bool },
    /// News of the people in a channel, on the delivery lane, about a subscription that takes part in presence.
    Presence(Presence),
    /// Somebody is writing in a channel, or stopped to; a datagram, about a subscription that takes part in presence.
    TypingNotice { user: Name, on: bool },
    /// Answer to `Login`: a token, and when it ends, in microseconds since 1970.
    LoggedIn { token: String, expires_us: u64 },
    /// Answer to `Manage`: a JSON object.
    Managed { json: Bytes },
    /// Answer to `Embed`: a vector of `dimensions` numbers for each text, one after the other, and the tokens of the texts.
    Embedded { model: Name, dimensions: u32, vectors: Vec<f32>, tokens: u32 },
    /// News of a document.
    Document(DocumentNews),
}

#[cfg(test)]
mod tests;
