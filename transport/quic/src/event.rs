//! What goes in and out of [`Quic`](crate::Quic), besides datagrams.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use quinn_proto::{StreamId, VarInt};
use thalweg_protocol::reject::Reject;

/// A connection of one core. Never names another one again after it is closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(u64);

impl Link {
    pub(crate) fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    pub(crate) fn index(self) -> usize {
        self.0 as u32 as usize
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The link as a number, unique in the life of a core: for tables and logs.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The link with a number that [`number`](Self::number) gave.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({}.{})", self.index(), self.generation())
    }
}

/// A lane of a link: a QUIC stream, by its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u64);

impl Lane {
    /// The client's first bidirectional lane: hello, requests, answers, acknowledgements, in order.
    pub const COMMAND: Self = Self(0);

    pub(crate) fn of(stream: StreamId) -> Self {
        Self(stream.into())
    }

    pub(crate) fn stream(self) -> StreamId {
        VarInt::from_u64(self.0).map_or(StreamId::from(VarInt::MAX), StreamId::from)
    }

    /// The lane's number on the wire, which the client sees as its stream id.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What happened on a link.
///
/// Every [`Opened`](Self::Opened) is followed by exactly one [`Closed`](Self::Closed), after which the link is never
/// named again. A connection that fails before it is open makes no event; it is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client finished its handshake.
    Opened {
        /// The new link.
        link: Link,
        /// The client's address now; it may migrate.
        remote: SocketAddr,
    },
    /// A whole frame arrived.
    Frame {
        /// From whom.
        link: Link,
        /// On which lane; only the command lane is read.
        lane: Lane,
        /// Whom it is about.
        subject: u32,
        /// The FlatBuffer, not looked at yet. Shares its memory with the datagram it came in.
        payload: Bytes,
    },
    /// An unreliable datagram arrived.
    Datagram {
        /// From whom.
        link: Link,
        /// What it says.
        payload: Bytes,
    },
    /// The transport took bytes that were queued on a lane.
    Drained {
        /// Of which link.
        link: Link,
        /// Of which lane.
        lane: Lane,
        /// Bytes of frames, headers included, taken since the last such event of the lane.
        bytes: usize,
    },
    /// A lane ended: the client stopped reading it, or has received all of a finished one; on the command lane, the
    /// client will send no more (what is sent to it still arrives).
    LaneClosed {
        /// Of which link.
        link: Link,
        /// Which lane.
        lane: Lane,
    },
    /// The link is gone.
    Closed {
        /// Which.
        link: Link,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a link is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The client closed it.
    Peer {
        /// The client's code.
        code: u64,
        /// The client's text, not necessarily UTF-8.
        reason: Bytes,
    },
    /// [`Quic::close`](crate::Quic::close) was called.
    Local {
        /// The code it was called with.
        code: u32,
    },
    /// The client broke the rules of frames and was told so with the reject's code and text.
    Reject(Reject),
    /// Nothing was heard of the client within the idle timeout.
    TimedOut,
    /// The client has lost its state, usually by a restart.
    Reset,
    /// One of the two transports found a fault in the other.
    Transport {
        /// What it was, for the log.
        text: String,
    },
}

/// A batch of datagrams to send; their bytes are in the buffer given to [`Quic::poll_transmit`](crate::Quic::poll_transmit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub remote: SocketAddr,
    /// From which address of ours, if it is known.
    pub local_ip: Option<IpAddr>,
    /// The two ECN bits to set.
    pub ecn: Option<u8>,
    /// Length of the batch in the buffer, in bytes.
    pub bytes: usize,
    /// Length of each datagram but the last, in bytes, if there is more than one.
    pub segment_bytes: Option<usize>,
}

/// Why a frame or datagram was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link is closed or never was.
    #[error("{0:?} is closed; forget it")]
    LinkClosed(Link),
    /// The lane is closed, finished, or was never open.
    #[error("{1:?} of {0:?} is closed; open another or drop the frame")]
    LaneClosed(Link, Lane),
    /// More is queued towards the link than its limit allows. Wait for [`Event::Drained`], or part with the reader.
    #[error("{queued} bytes are queued towards {link:?}, at most {max} may be; wait until it drains or close it")]
    QueueFull {
        /// The link.
        link: Link,
        /// Bytes queued over all of its lanes.
        queued: usize,
        /// The limit.
        max: usize,
    },
    /// The frame is longer than a peer accepts.
    #[error("a frame of {bytes} bytes is too long, at most {max} are allowed; split it")]
    TooLarge {
        /// Its payload.
        bytes: usize,
        /// The limit now.
        max: usize,
    },
    /// The client takes no datagrams.
    #[error("{0:?} takes no datagrams; send a frame")]
    DatagramsUnsupported(Link),
}

/// Why a lane was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// The link is closed or never was.
    #[error("{0:?} is closed; forget it")]
    LinkClosed(Link),
    /// As many lanes are open as the client or the limit allows.
    #[error("{open} lanes of {link:?} are open, which is its limit; finish or reset one first")]
    LimitReached {
        /// The link.
        link: Link,
        /// Lanes open.
        open: usize,
    },
}
