//! What goes into a shard and what comes out: closed enums, no callbacks.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::partition::PartitionState;
use thalweg_domain::permission::Principal;
use thalweg_domain::quota::Limits;
use thalweg_domain::record::{ChannelSettings, Message, Record};
use thalweg_domain::routing::Routes;
use thalweg_protocol::chat::{ChannelAbout, ChannelSummary, ChatOp, PresenceState};
use thalweg_protocol::document::{AskInDocument, DocumentAccess, DocumentForm, OpenDocument, ReadForm};
use thalweg_protocol::generation::{AskRequest, ChatMessage, FinishReason, Priority, Sampling, TokenDetail, Usage};
use thalweg_protocol::ids::{
    ChannelId, ChannelKey, CoreId, GenerationId, Name, Partition, Position, Request, Subscription, Watch,
};
use thalweg_protocol::op::{ClientOp, Publish, ServerOp, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::fan::{FanId, SubscriptionRef};
use crate::quota::{Holder, Resource, Spent};

/// The time, as the shell read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Microseconds since some moment before the shard began; never goes back.
    pub mono_us: u64,
    /// Microseconds since 1970, UTC; may step.
    pub wall_us: u64,
}

/// A connection of this core, as its shell numbers them; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(pub u64);

/// The number of an append on this core: contiguous, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

/// The number of a read from disk on this core; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The core its connection is on.
    pub core: CoreId,
    /// The connection.
    pub link: Link,
    /// The request.
    pub request: Request,
    /// The span of a trace that the request is; 0 if it is not traced.
    pub trace: u64,
}

/// What happens to a shard.
#[derive(Debug)]
pub enum Input {
    /// What the log left behind of a partition of this core. Comes before anything else, once per partition that has any.
    Restore {
        /// Which partition.
        partition: Partition,
        /// What its records left behind.
        state: Box<PartitionState>,
    },
    /// A client's hello was accepted.
    Opened {
        /// Its connection.
        link: Link,
        /// Who it is.
        principal: Arc<Principal>,
    },
    /// A client asks for something. Hellos, pings and statistics are the shell's.
    Request {
        /// Its connection.
        link: Link,
        /// The number it gave the request.
        request: Request,
        /// What it asks.
        op: ClientOp,
        /// The span of a trace that the request is; 0 if it is not traced.
        trace: u64,
    },
    /// A connection is gone.
    Closed {
        /// Which.
        link: Link,
    },
    /// The transport took bytes that were delivered to a connection.
    Drained {
        /// Which.
        link: Link,
        /// How many, of what [`Output::Deliver`] and [`Output::Document`] gave it.
        bytes: usize,
    },
    /// Another shard says something.
    Peer(PeerMessage),
    /// Everything up to this append is as durable as was asked for.
    Durable {
        /// The newest such append.
        ticket: Ticket,
    },
    /// Everything up to this append can be read back from disk by [`Output::Read`].
    Archived {
        /// The newest such append.
        ticket: Ticket,
    },
    /// The answer to [`Output::Read`]: messages from the first on that is still kept of those that were asked for, without
    /// gaps, as many as fit; none if none is kept. A message that should be there and is not is damage, and so refused.
    Read {
        /// Which read.
        read: ReadId,
        /// What was read, or what the reader is told instead.
        result: Result<Vec<Arc<Message>>, Reject>,
    },
    /// Whether the disk has room for more; if not, why. Until it has, writes are refused.
    Storage {
        /// What the disk said.
        full: Option<String>,
    },
    /// What sessions, users and tenants may do from now on.
    Limits(Arc<Limits>),
    /// Which models can be asked from now on, and how they are. What was begun goes on.
    Routes(Arc<Routes>),
    /// How short of memory the node is: 0 not at all; from 1 on what can be read back from disk is let go of; from 2 on
    /// nobody new is served; from 3 on nothing is written.
    Pressure {
        /// How short.
        level: u8,
    },
    /// A model says something.
    Inference(InferenceEvent),
    /// The time [`Shard::next_deadline`](crate::Shard::next_deadline) gave has come.
    Timeout,
    /// The node is going away: refuse what is new, finish what was begun.
    Drain,
}

/// What a shard wants done, in this order.
#[derive(Debug)]
pub enum Output {
    /// Append to the log, and say [`Input::Durable`] when it is as durable as was asked for.
    Append {
        /// The number of this append.
        ticket: Ticket,
        /// What to append.
        record: Record,
    },
    /// Read messages of a channel back from disk, at most [`HISTORY_BATCH_MESSAGES`] and about [`HISTORY_BATCH_BYTES`] of
    /// them but at least one, and say [`Input::Read`].
    ///
    /// [`HISTORY_BATCH_MESSAGES`]: thalweg_protocol::limits::HISTORY_BATCH_MESSAGES
    /// [`HISTORY_BATCH_BYTES`]: thalweg_protocol::limits::HISTORY_BATCH_BYTES
    Read {
        /// The number of this read.
        read: ReadId,
        /// Where the channel belongs.
        partition: Partition,
        /// Which channel.
        channel: ChannelId,
        /// The first position.
        from: Position,
        /// One after the last position.
        to: Position,
    },
    /// Send on the command lane.
    Reply {
        /// To whom.
        link: Link,
        /// About which request.
        request: Request,
        /// What.
        op: ServerOp,
    },
    /// Send on the delivery lane, and say [`Input::Drained`] when the transport took it.
    Deliver {
        /// To whom.
        link: Link,
        /// About which subscription.
        subscription: Subscription,
        /// An encoded [`ServerOp`], shared by all who get it.
        payload: Bytes,
    },
    /// Send on the lane of a document, which is opened for its first frame and finished after its last, and say
    /// [`Input::Drained`] when the transport took it.
    Document {
        /// To whom.
        link: Link,
        /// About which subscription.
        subscription: Subscription,
        /// An encoded [`ServerOp`], shared by all who get it.
        payload: Bytes,
        /// Whether nothing follows.
        last: bool,
    },
    /// Finish the lane of a document whose reader left, if it was opened.
    DocumentLeft {
        /// Whose.
        link: Link,
        /// Which subscription it was.
        subscription: Subscription,
    },
    /// Send on the lane of a generation, which is opened for its first frame and finished after its last.
    Generation {
        /// To whom.
        link: Link,
        /// About which watch.
        watch: Watch,
        /// An encoded [`ServerOp`].
        payload: Bytes,
        /// Whether nothing follows.
        last: bool,
    },
    /// Hand to another core.
    Peer {
        /// Which.
        to: CoreId,
        /// What.
        message: PeerMessage,
    },
    /// Hand to the inference stage.
    Inference(InferenceCommand),
    /// Send as a datagram, which may be lost.
    Datagram {
        /// To whom.
        link: Link,
        /// About which subscription.
        subscription: Subscription,
        /// An encoded [`ServerOp`].
        payload: Bytes,
    },
    /// Note in the audit trail.
    Audit(AuditEvent),
    /// Close a connection, telling it why.
    Close {
        /// Which.
        link: Link,
        /// Why.
        reject: Reject,
    },
}

/// A decision about what somebody may do, for the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// Whom it was about.
    pub principal: Arc<Principal>,
    /// What they wanted.
    pub action: &'static str,
    /// With what: names, never what was written.
    pub object: String,
    /// Why not; `None` if they could.
    pub refused: Option<RejectCode>,
}

/// What shards say to each other.
#[derive(Debug)]
pub enum PeerMessage {
    /// To the owner of a channel or generation.
    ToOwner(OwnerMessage),
    /// To the core a session is on.
    ToSession(SessionMessage),
}

/// Requests to an owner.
#[derive(Debug)]
#[allow(missing_docs, reason = "fields are named after their types")]
pub enum OwnerMessage {
    /// Make a channel.
    Create {
        origin: Origin,
        principal: Arc<Principal>,
        channel: ChannelKey,
        settings: ChannelSettings,
        about: Box<ChannelAbout>,
    },
    /// Write a message; if it is `limited`, only answer what was carried out before, and refuse what is new.
    Publish { origin: Origin, principal: Arc<Principal>, publish: Box<Publish>, limited: Option<Box<Reject>> },
    /// From now on tell `fan` about every message of a channel; answered by [`SessionMessage::Attached`].
    Attach { origin: Origin, principal: Arc<Principal>, channel: ChannelKey, make: bool, fan: FanId },
    /// No longer.
    Detach { core: CoreId, channel: ChannelKey, fan: FanId },
    /// Read history; answered by [`SessionMessage::History`].
    Read { core: CoreId, channel: ChannelKey, reader: SubscriptionRef, from: Position },
    /// Read a page of history.
    Page { origin: Origin, principal: Arc<Principal>, channel: ChannelKey, from: Position, limit: u32 },
    /// What users of tenants did on a core, to their counter.
    Spent { core: CoreId, spent: Vec<(Name, Name, Spent)> },
    /// A connection was opened or closed; answered by [`SessionMessage::TooMany`] if it is.
    Connection { core: CoreId, link: Link, tenant: Name, user: Name, open: bool },
    /// A tenant has so many channels more on a core, or fewer.
    ChannelsCounted { tenant: Name, change: i64 },
    /// How somebody is in a channel on a core now, `None` for not there, and whether they were there before.
    Present { place: (CoreId, FanId), channel: ChannelKey, user: Name, was: bool, state: Option<PresenceState> },
    /// Readers do not know who is in a channel; answered by [`SessionMessage::Presence`].
    Picture { place: (CoreId, FanId), channel: ChannelKey },
    /// Somebody types in a channel, or stopped to.
    Typing { place: (CoreId, FanId), link: Link, channel: ChannelKey, principal: Arc<Principal>, on: bool },
    /// How a user, given with the tenant, is on a core now; `None` for not there.
    UserPresence { core: CoreId, user: (Name, Name), state: Option<PresenceState> },
    /// Delete a channel.
    Delete { origin: Origin, principal: Arc<Principal>, channel: ChannelKey },
    /// Something about a channel, its members or the people in it.
    Channel { origin: Origin, principal: Arc<Principal>, channel: ChannelKey, op: Box<ChatOp> },
    /// Something about a user.
    User { origin: Origin, principal: Arc<Principal>, op: Box<ChatOp> },
    /// List the channels this core owns; answered by [`SessionMessage::Listed`].
    List { origin: Origin, principal: Arc<Principal>, after: String, limit: u32, all: bool },
    /// Delete what this core owns of a tenant; answered by [`SessionMessage::TenantDeleted`].
    DeleteTenant { origin: Origin, tenant: Name },
    /// Ask a model.
    Ask { origin: Origin, principal: Arc<Principal>, model: Name, request: Box<AskRequest> },
    /// Read a generation.
    Watch { origin: Origin, principal: Arc<Principal>, request: WatchRequest },
    /// Credit of a watcher.
    TokensConsumed { core: CoreId, link: Link, watch: Watch, generation: GenerationId, index: u32 },
    /// A watcher goes.
    Unwatch { core: CoreId, link: Link, watch: Watch, generation: GenerationId },
    /// End a generation.
    Cancel { origin: Origin, principal: Arc<Principal>, generation: GenerationId },
    /// Read a document and tell `fan` about its edits from now on; answered by [`SessionMessage::DocumentOpened`].
    OpenDocument {
        origin: Origin,
        principal: Arc<Principal>,
        document: ChannelKey,
        open: Box<OpenDocument>,
        fan: FanId,
    },
    /// A reader of a document fell too far behind; answered by [`SessionMessage::CaughtUp`].
    CatchUp { core: CoreId, document: ChannelKey, reader: SubscriptionRef, form: DocumentForm },
    /// Give a document as it was at a revision (0: now), from byte `offset` on.
    ReadDocument {
        origin: Origin,
        principal: Arc<Principal>,
        document: ChannelKey,
        revision: Position,
        form: ReadForm,
        offset: u64,
    },
    /// A model shall write in a document.
    AskInDocument { origin: Origin, principal: Arc<Principal>, ask: Box<AskInDocument> },
    /// What a reader of a document says of itself.
    Aware { place: (CoreId, FanId), link: Link, document: ChannelKey, principal: Arc<Principal>, update: Bytes },
    /// A reader of a document who may have said something of itself is gone.
    Unaware { place: (CoreId, FanId), link: Link, document: ChannelKey },
    /// No reader of a document on a core is told operations any more.
    UntellOperations { core: CoreId, document: ChannelKey },
}

/// What an edit of a document does to its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextEdit {
    /// Encoded [`Operations`](thalweg_protocol::document::Operations).
    pub operations: Bytes,
    /// Whether its writer made it of operations, and so has it already.
    pub is_positional: bool,
}

/// Answers and news to the core a session is on.
#[derive(Debug)]
#[allow(missing_docs, reason = "fields are named after their types")]
pub enum SessionMessage {
    /// The answer to a request.
    Answer { link: Link, request: Request, op: ServerOp },
    /// The answer to [`OwnerMessage::Attach`]: where the channel begins and ends.
    Attached { link: Link, request: Request, channel: ChannelKey, fan: FanId, result: AttachResult },
    /// A message was added to a channel. If it edits a document whose readers or writers use operations: what it does to its
    /// text.
    Appended { fan: FanId, message: Arc<Message>, edit: Option<TextEdit>, trace: u64 },
    /// The answer to [`OwnerMessage::Read`]. `first` is the oldest position that is still kept.
    History { reader: SubscriptionRef, first: Position, messages: Vec<Arc<Message>> },
    /// History could not be read.
    HistoryFailed { reader: SubscriptionRef, reject: Reject },
    /// Somebody is to be refused something for so many milliseconds; 0: no more, all: until something else is said.
    Refuse { holder: Holder, resource: Resource, for_ms: u32 },
    /// A session was given tokens of a generation.
    TokensSpent { link: Link, tokens: i64 },
    /// A session is one too many.
    TooMany { link: Link, holder: Holder, reject: Reject },
    /// Who is in a channel: `news` for readers that are up to date, `whole` for those that are not.
    Presence { fan: FanId, payload: Bytes, news: bool, whole: bool },
    /// Somebody types: a datagram for all but one of those who take part.
    Typing { fan: FanId, but: Option<Link>, payload: Bytes },
    /// A channel is gone, and with it its readers.
    Gone { fan: FanId, reject: Reject },
    /// A user may not read a channel any more.
    Expelled { fan: FanId, user: Name, reject: Reject },
    /// Only a channel's members may read it any more.
    Closed { fan: FanId, members: Arc<BTreeSet<Name>>, reject: Reject },
    /// The answer to [`OwnerMessage::List`]: the first channels of one core by name, and whether it has more.
    Listed { link: Link, request: Request, channels: Vec<ChannelSummary>, more: bool },
    /// The answer to [`OwnerMessage::DeleteTenant`]: how many channels there were.
    TenantDeleted { link: Link, request: Request, channels: u32 },
    /// A frame for a watcher of a generation.
    Generation { link: Link, watch: Watch, payload: Bytes, last: bool },
    /// The answer to [`OwnerMessage::OpenDocument`].
    DocumentOpened { link: Link, request: Request, document: ChannelKey, fan: FanId, result: Result<Opening, Reject> },
    /// The answer to [`OwnerMessage::CatchUp`]: a revision, and the document as it was then: for a reader of updates its whole
    /// state, for one of operations its text.
    CaughtUp { reader: SubscriptionRef, result: Result<(Position, Bytes), Reject> },
    /// What some readers of a document say of themselves now, for all of them but one: an encoded
    /// [`AwarenessUpdate`](thalweg_protocol::document::AwarenessUpdate).
    Aware { fan: FanId, payload: Bytes, but: Option<Link> },
}

/// What a reader of a document begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Which document of that name it is.
    pub id: ChannelId,
    /// The newest revision. What is told about the document from now on comes after it.
    pub revision: Position,
    /// For a reader of updates: what it lacks of that revision, one update, empty if nothing. For one of operations: the text.
    pub state: Bytes,
    /// For a reader of updates: the document's state vector, by which it knows what it has that the node lacks.
    pub vector: Bytes,
    /// What it may do.
    pub access: DocumentAccess,
    /// Whether the document was made for it.
    pub made: bool,
    /// What others say of themselves: an encoded [`AwarenessUpdate`](thalweg_protocol::document::AwarenessUpdate); `None` if
    /// nobody does.
    pub awareness: Option<Bytes>,
}

/// The oldest and the newest position of a channel, or why it cannot be read.
pub type AttachResult = Result<(Position, Position), Reject>;

/// A generation to be computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Submit {
    /// Its id.
    pub generation: GenerationId,
    /// On whose account.
    pub tenant: Name,
    /// By which model.
    pub model: Name,
    /// Those that are asked in its place, in this order, if it fails before its first token: the asker may ask them all.
    pub fallbacks: Vec<Name>,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Tokens of the answer that exist already, by their numbers in the model's vocabulary: the computation goes on after
    /// them, and the first new one has their count as its index.
    pub produced: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Whether the messages' contents are the prompt as it stands.
    pub raw: bool,
    /// Its place among the tenant's requests.
    pub priority: Priority,
    /// It is to be refused if it does not begin within so many milliseconds; 0: it waits as long as it takes.
    pub deadline_ms: u32,
    /// Tokens with an index below this may be produced.
    pub credit: u32,
    /// The span of a trace that asked for it; 0 if it is not traced.
    pub trace: u64,
}

/// What a shard asks of the inference stage.
#[derive(Debug, Clone, PartialEq)]
pub enum InferenceCommand {
    /// Begin a generation.
    Submit(Box<Submit>),
    /// Tokens with an index below `until` may be produced.
    Credit {
        /// Of which generation.
        generation: GenerationId,
        /// Up to where.
        until: u32,
    },
    /// End a generation within one step. It still answers with [`InferenceEvent::Finished`].
    Cancel {
        /// Which.
        generation: GenerationId,
    },
}

/// What the inference stage says to a shard. Every submitted generation ends with exactly one `Finished` or `Refused`. The
/// `id` of a token is its number in the model's vocabulary, `detail` how likely it was, if that was asked for.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields are named after their types")]
pub enum InferenceEvent {
    /// The next token: `index` counts from 0 without gaps.
    Token { generation: GenerationId, index: u32, id: u32, text: Bytes, detail: Option<Box<TokenDetail>> },
    /// The generation ended.
    Finished { generation: GenerationId, reason: FinishReason, usage: Usage, message: String },
    /// The generation was not begun.
    Refused { generation: GenerationId, reject: Reject },
}
