//! The queue in front of a lane.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use quinn_proto::{Connection, StreamId, WriteError};
use thalweg_protocol::frame;
use thalweg_protocol::limits::FRAME_HEADER_BYTES;

/// Priority of the command lane: answers go before all else.
pub const PRIORITY_COMMAND: i32 = 3;
/// Priority of the delivery lane.
pub const PRIORITY_DELIVERY: i32 = 2;
/// Priority of the lanes of documents.
pub const PRIORITY_DOCUMENT: i32 = 1;
/// Priority of the lanes of generations.
pub const PRIORITY_GENERATION: i32 = 0;

/// Payloads up to this length are copied when they are handed to the transport, longer ones are shared. The transport
/// walks its list of chunks for each packet, so that many small chunks cost more than copying them into one.
const COPY_BYTES_MAX: usize = 1_024;
/// Copied frames are gathered into chunks of about this length, in bytes.
const CHUNK_BYTES: usize = 4_096;
/// Bytes a lane may hand to the transport before the next lane of the link gets its turn.
pub(crate) const QUANTUM_BYTES: usize = 16 << 10;
/// A queue that is empty gives back memory beyond this many frames.
const FRAMES_KEPT: usize = 8;

/// One lane we write: its frames in order, as far as the transport has not taken them.
#[derive(Debug)]
pub(crate) struct LaneQueue {
    pub(crate) stream: StreamId,
    pub(crate) priority: i32,
    /// Subject and payload of frames not begun.
    frames: VecDeque<(u32, Bytes)>,
    /// Begun: what the transport has not taken of the last chunks built.
    chunks: [Bytes; 2],
    /// Bytes of all frames not taken, headers included.
    pub(crate) queued: usize,
    /// Bytes taken since they were last reported.
    pub(crate) taken: usize,
    /// A report of `taken` is due already.
    pub(crate) report_due: bool,
    /// The transport has no room and will say when it has.
    pub(crate) blocked: bool,
    /// No more frames will come; end the lane after the last.
    finishing: bool,
    /// The end was passed on to the transport.
    finished: bool,
}

impl LaneQueue {
    pub(crate) fn new(stream: StreamId, priority: i32) -> Self {
        Self {
            stream,
            priority,
            frames: VecDeque::new(),
            chunks: [Bytes::new(), Bytes::new()],
            queued: 0,
            taken: 0,
            report_due: false,
            blocked: false,
            finishing: false,
            finished: false,
        }
    }

    /// Queues a frame; gives the bytes it adds.
    pub(crate) fn push(&mut self, subject: u32, payload: Bytes) -> usize {
        let bytes = FRAME_HEADER_BYTES + payload.len();
        self.frames.push_back((subject, payload));
        self.queued += bytes;
        bytes
    }

    pub(crate) fn finish(&mut self) {
        self.finishing = true;
    }

    pub(crate) fn is_finishing(&self) -> bool {
        self.finishing
    }

    /// Whether [`fill`](Self::fill) could do something.
    pub(crate) fn is_pending(&self) -> bool {
        !self.blocked && (self.queued > 0 || self.finishing && !self.finished)
    }

    /// Hands queued frames to the transport, about [`QUANTUM_BYTES`] at most; gives the bytes it took.
    pub(crate) fn fill(&mut self, connection: &mut Connection) -> usize {
        let mut stream = connection.send_stream(self.stream);
        let mut taken = 0;
        while taken < QUANTUM_BYTES && self.queued > 0 {
            if self.chunks.iter().all(Bytes::is_empty) {
                self.build_chunks();
            }
            match stream.write_chunks(&mut self.chunks) {
                Ok(written) => {
                    taken += written.bytes;
                    self.queued -= written.bytes;
                }
                Err(WriteError::Blocked) => {
                    self.blocked = true;
                    break;
                }
                // The peer stopped the lane; the event that says so removes it with all that is queued.
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    self.blocked = true;
                    break;
                }
            }
        }
        if self.queued == 0 {
            if self.finishing && !self.finished {
                // An error means that the peer stopped the lane, which its own event reports.
                let _ = stream.finish();
                self.finished = true;
            }
            if self.frames.capacity() > FRAMES_KEPT {
                self.frames.shrink_to(FRAMES_KEPT);
            }
        }
        self.taken += taken;
        taken
    }

    /// Takes frames off the queue: as many small ones as fit in a chunk, copied, then a long payload, shared.
    fn build_chunks(&mut self) {
        let mut bytes = 0;
        let mut long = None;
        let mut count = 0;
        for (_, payload) in &self.frames {
            count += 1;
            bytes += FRAME_HEADER_BYTES;
            if payload.len() > COPY_BYTES_MAX {
                long = Some(payload.clone());
                break;
            }
            bytes += payload.len();
            if bytes >= CHUNK_BYTES {
                break;
            }
        }
        let mut chunk = BytesMut::with_capacity(bytes);
        for (subject, payload) in self.frames.drain(..count) {
            chunk.put_slice(&frame::header(payload.len(), subject));
            if payload.len() <= COPY_BYTES_MAX {
                chunk.put_slice(&payload);
            }
        }
        self.chunks = [chunk.freeze(), long.unwrap_or_default()];
    }
}
