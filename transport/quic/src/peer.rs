//! One connection, with its lanes.

use std::net::SocketAddr;
use std::time::Instant;

use quinn_proto::{Connection, ConnectionHandle, Dir, ReadError, ReadableError, StreamId, VarInt};
use thalweg_protocol::frame::{RawFrame, Splitter};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::event::{Lane, Link};
use crate::lane::{LaneQueue, PRIORITY_COMMAND};

/// A place for a connection.
#[derive(Default)]
pub(crate) struct Slot {
    /// How many connections had the place before.
    pub(crate) generation: u32,
    pub(crate) peer: Option<Box<Peer>>,
}

/// Most bytes taken from the transport at a time.
const READ_BYTES: usize = 64 << 10;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The client has not finished its handshake; it is forgotten at the given time.
    Handshaking(Instant),
    /// Announced by [`Event::Opened`](crate::Event::Opened).
    Open,
    /// Over, as far as our caller is concerned; the transport still says so to the peer.
    Closed,
}

/// One connection, with its lanes.
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    pub(crate) handle: ConnectionHandle,
    pub(crate) link: Link,
    pub(crate) stage: Stage,
    /// The address it had last, to notice when it migrates.
    pub(crate) remote: SocketAddr,
    /// Lanes we write, highest priority first.
    pub(crate) lanes: Vec<LaneQueue>,
    /// Bytes queued over all lanes.
    pub(crate) queued: usize,
    /// Is in the list of connections that may have something to send.
    pub(crate) dirty: bool,
    /// Is in the list of connections that may have something to say.
    pub(crate) touched: bool,
    /// The command lane may have bytes to read.
    pub(crate) readable: bool,
    pub(crate) splitter: Splitter,
}

/// What reading the command lane came to.
pub(crate) enum Read {
    /// A frame.
    Frame(RawFrame),
    /// Nothing more at present.
    Blocked,
    /// The client will send no more.
    Ended,
    /// The client broke the rules.
    Reject(Reject),
}

impl Peer {
    pub(crate) fn new(connection: Connection, handle: ConnectionHandle, link: Link, deadline: Instant) -> Self {
        Self {
            remote: connection.remote_address(),
            connection,
            handle,
            link,
            stage: Stage::Handshaking(deadline),
            lanes: Vec::new(),
            queued: 0,
            dirty: false,
            touched: false,
            readable: false,
            splitter: Splitter::new(),
        }
    }

    /// When the connection wants to be woken.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let timeout = self.connection.poll_timeout();
        match self.stage {
            Stage::Handshaking(deadline) => Some(timeout.map_or(deadline, |timeout| timeout.min(deadline))),
            Stage::Open | Stage::Closed => timeout,
        }
    }

    pub(crate) fn lane(&mut self, lane: Lane) -> Option<&mut LaneQueue> {
        self.lanes.iter_mut().find(|queue| queue.stream == lane.stream())
    }

    pub(crate) fn add_lane(&mut self, stream: StreamId, priority: i32) {
        // A stream that was just opened or accepted exists.
        let _ = self.connection.send_stream(stream).set_priority(priority);
        let at = self.lanes.partition_point(|lane| lane.priority >= priority);
        self.lanes.insert(at, LaneQueue::new(stream, priority));
    }

    /// Forgets a lane and what is queued on it; false if there is none.
    pub(crate) fn remove_lane(&mut self, stream: StreamId) -> bool {
        let Some(at) = self.lanes.iter().position(|lane| lane.stream == stream) else { return false };
        self.queued -= self.lanes.remove(at).queued;
        true
    }

    /// Forgets all that no longer matters once the link is closed.
    pub(crate) fn shed(&mut self) {
        self.stage = Stage::Closed;
        self.lanes = Vec::new();
        self.queued = 0;
        self.readable = false;
        self.splitter = Splitter::new();
    }

    /// Takes the lanes that the client opened. The first bidirectional one is the command lane; gives how many others
    /// there were, which are turned away.
    pub(crate) fn accept_lanes(&mut self, dir: Dir) -> u64 {
        let mut refused = 0;
        while let Some(stream) = self.connection.streams().accept(dir) {
            if Lane::of(stream) == Lane::COMMAND {
                self.add_lane(stream, PRIORITY_COMMAND);
                self.readable = true;
                continue;
            }
            refused += 1;
            let code = VarInt::from_u32(RejectCode::LimitReached as u32);
            // A lane that is closed already needs no turning away.
            let _ = self.connection.recv_stream(stream).stop(code);
            if dir == Dir::Bi {
                let _ = self.connection.send_stream(stream).reset(code);
            }
        }
        refused
    }

    /// Reads on in the command lane.
    pub(crate) fn read(&mut self) -> Read {
        loop {
            match self.splitter.next() {
                Ok(Some(frame)) => return Read::Frame(frame),
                Ok(None) => {}
                Err(reject) => return Read::Reject(reject),
            }
            let mut stream = self.connection.recv_stream(Lane::COMMAND.stream());
            let mut chunks = match stream.read(true) {
                Ok(chunks) => chunks,
                Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => return Read::Blocked,
            };
            let next = chunks.next(READ_BYTES);
            // Whether credit is due is seen when the connection is asked for datagrams, which follows in any case.
            let _ = chunks.finalize();
            match next {
                Ok(Some(chunk)) => self.splitter.push(chunk.bytes),
                Ok(None) if self.splitter.pending() > 0 => {
                    let text = format!("the command lane ended {} bytes into a frame", self.splitter.pending());
                    return Read::Reject(Reject::new(RejectCode::FrameInvalid, text));
                }
                Ok(None) | Err(ReadError::Reset(_)) => return Read::Ended,
                Err(ReadError::Blocked) => return Read::Blocked,
            }
        }
    }

    /// Hands queued frames to the transport while it takes them, highest priority first, equals in turn. Gives the first
    /// lane whose bytes taken are to be reported, repeatedly, to `report`.
    pub(crate) fn fill(&mut self, mut report: impl FnMut(Lane)) {
        loop {
            let mut taken = 0;
            for lane in &mut self.lanes {
                if !lane.is_pending() {
                    continue;
                }
                taken += lane.fill(&mut self.connection);
                if lane.taken > 0 && !lane.report_due {
                    lane.report_due = true;
                    report(Lane::of(lane.stream));
                }
            }
            self.queued -= taken;
            if taken == 0 {
                return;
            }
        }
    }
}
