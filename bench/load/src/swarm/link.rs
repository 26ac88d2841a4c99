//! One connection, its lanes, and what happened on them.

use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionHandle, Dir, Event, ReadError, StreamEvent, StreamId, WriteError};
use thalweg_protocol::frame::{Splitter, header};
use thalweg_protocol::ids::SessionId;
use thalweg_protocol::limits::FRAME_HEADER_BYTES;
use thalweg_protocol::op::ServerOp;

use super::{Greeting, Seen, hello};
use crate::clock::Clock;

/// A lane that is read.
struct Lane {
    stream: StreamId,
    splitter: Splitter,
    /// Not read for now: what arrives stays in the transport.
    paused: bool,
}

pub(super) struct Link {
    pub(super) port: usize,
    pub(super) handle: ConnectionHandle,
    pub(super) connection: Connection,
    pub(super) session: SessionId,
    greeting: Greeting,
    /// Earliest entry of this link in the swarm's timers.
    pub(super) timer: Option<Instant>,
    /// Whether the link is in the swarm's list of those that may have something to send.
    pub(super) dirty: bool,
    pub(super) lost: bool,
    command: Option<StreamId>,
    welcomed: bool,
    lanes: Vec<Lane>,
    /// Written, but the transport has no room for it yet.
    backlog: Vec<u8>,
}

impl Link {
    pub(super) fn new(
        port: usize,
        handle: ConnectionHandle,
        connection: Connection,
        session: SessionId,
        greeting: Greeting,
    ) -> Self {
        Self {
            port,
            handle,
            connection,
            session,
            greeting,
            timer: None,
            dirty: true,
            lost: false,
            command: None,
            welcomed: false,
            lanes: Vec::new(),
            backlog: Vec::new(),
        }
    }

    /// Writes to the command lane; returns how many bytes wait for room.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        if self.backlog.is_empty()
            && let Some(command) = self.command
        {
            let written = self.connection.send_stream(command).write(bytes);
            rest = match written {
                Ok(count) => &bytes[count..],
                Err(WriteError::Blocked) => bytes,
                // The lane or the connection is gone; Lost says so.
                Err(_) => &[],
            };
        }
        self.backlog.extend_from_slice(rest);
        self.backlog.len()
    }

    /// Sends a datagram; what finds no room pushes out the oldest that waits.
    pub(super) fn send_datagram(&mut self, frame: Bytes) {
        // A server that takes none, or a connection that is gone: then it is lost, as a datagram may be.
        let _ = self.connection.datagrams().send(frame, true);
    }

    pub(super) fn pause(&mut self, stream: StreamId) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) {
            lane.paused = true;
        }
    }

    /// Reads a paused lane again; the frames that waited in its splitter come out with the next drain.
    pub(super) fn resume(&mut self, stream: StreamId) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) {
            lane.paused = false;
        }
    }

    /// Reports everything that happened since the last call.
    pub(super) fn drain(&mut self, clock: Clock, report: &mut impl FnMut(Seen)) {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::Connected => self.greet(report),
                Event::ConnectionLost { reason } => self.lose(reason.to_string(), report),
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    while let Some(stream) = self.connection.streams().accept(Dir::Uni) {
                        self.lanes.push(Lane { stream, splitter: Splitter::new(), paused: false });
                        self.read(stream, clock, report);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(id, clock, report),
                Event::Stream(StreamEvent::Writable { .. }) => {
                    let backlog = std::mem::take(&mut self.backlog);
                    self.write(&backlog);
                }
                _ => {}
            }
        }
        // A resumed lane may hold frames that no event will announce.
        for at in 0..self.lanes.len() {
            if !self.lanes[at].paused && self.lanes[at].splitter.pending() > 0 {
                self.read(self.lanes[at].stream, clock, report);
            }
        }
    }

    fn greet(&mut self, report: &mut impl FnMut(Seen)) {
        let Some(command) = self.connection.streams().open(Dir::Bi) else {
            return self.lose("the server allows no lane".into(), report);
        };
        self.command = Some(command);
        self.lanes.push(Lane { stream: command, splitter: Splitter::new(), paused: false });
        match &self.greeting {
            Greeting::Echo => {
                self.welcomed = true;
                report(Seen::Ready);
            }
            Greeting::Hello { token } => {
                let payload = hello(self.session, token).encode();
                self.write(&header(payload.len(), 0));
                self.write(&payload);
            }
        }
    }

    fn lose(&mut self, reason: String, report: &mut impl FnMut(Seen)) {
        if !std::mem::replace(&mut self.lost, true) {
            report(Seen::Lost(reason));
        }
    }

    fn read(&mut self, stream: StreamId, clock: Clock, report: &mut impl FnMut(Seen)) {
        let Some(at) = self.lanes.iter().position(|lane| lane.stream == stream) else { return };
        if self.lanes[at].paused {
            return;
        }
        let mut ended = false;
        let mut bytes = 0;
        if let Ok(mut chunks) = self.connection.recv_stream(stream).read(true) {
            loop {
                match chunks.next(usize::MAX) {
                    Ok(Some(chunk)) => {
                        bytes += chunk.bytes.len();
                        if matches!(self.greeting, Greeting::Hello { .. }) {
                            self.lanes[at].splitter.push(chunk.bytes);
                        }
                    }
                    Ok(None) | Err(ReadError::Reset(_)) => {
                        ended = true;
                        break;
                    }
                    Err(ReadError::Blocked) => break,
                }
            }
            // Whether a window update is due is found out at the next transmit anyway: the link is served after every read.
            let _ = chunks.finalize();
        }
        if matches!(self.greeting, Greeting::Echo) && bytes > 0 {
            report(Seen::Bytes { count: bytes, at_ns: clock.now_ns() });
        }
        self.cut(at, clock, report);
        if ended && !self.lanes[at].paused {
            self.lanes.swap_remove(at);
        }
    }

    /// Cuts the frames of a lane; stops when the reader pauses it.
    fn cut(&mut self, at: usize, clock: Clock, report: &mut impl FnMut(Seen)) {
        loop {
            let frame = match self.lanes[at].splitter.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(reject) => return self.lose(reject.to_string(), report),
            };
            let op = match ServerOp::decode(&frame.payload) {
                Ok(op) => op,
                Err(reject) => return self.lose(format!("an invalid frame: {reject}"), report),
            };
            match op {
                ServerOp::Welcome(_) if !std::mem::replace(&mut self.welcomed, true) => report(Seen::Ready),
                ServerOp::Reject(reject) if !self.welcomed => {
                    self.lose(format!("the node refused the hello: {reject}"), report);
                }
                op => {
                    let lane = self.lanes[at].stream;
                    let bytes = FRAME_HEADER_BYTES + frame.payload.len();
                    report(Seen::Frame { lane, subject: frame.subject, op, bytes, at_ns: clock.now_ns() });
                }
            }
        }
    }
}
