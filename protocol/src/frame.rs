//! The frames of a lane: an 8-byte header (payload length, subject; both `u32` little-endian) and a payload.
//!
//! The subject says whom the frame is about: the request on the command lane, the subscription on the delivery lane, the
//! watch on a generation lane. It stands outside the payload so that one encoded payload is shared by many readers.

use bytes::{Buf, Bytes, BytesMut};

use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::reject::{Reject, RejectCode};

/// A frame whose payload was not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// Whom it is about.
    pub subject: u32,
    /// The FlatBuffer, at most [`FRAME_BYTES_MAX`] bytes.
    pub payload: Bytes,
}

/// The header of a frame with a payload of `payload_bytes`.
///
/// # Panics
/// If the payload is longer than [`FRAME_BYTES_MAX`]: we never build such a frame.
pub fn header(payload_bytes: usize, subject: u32) -> [u8; FRAME_HEADER_BYTES] {
    assert!(payload_bytes <= FRAME_BYTES_MAX, "a frame of {payload_bytes} bytes was built");
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    header[4..].copy_from_slice(&subject.to_le_bytes());
    header
}

/// Cuts the bytes of a lane into frames, however they were chopped up on the way.
///
/// Contract: [`push`](Self::push) what arrived, then call [`next`](Self::next) until it gives `None`. A frame that lies
/// within one chunk is shared with it, not copied. Memory grows with what arrived, never with what a header promises.
/// After an error the splitter stays failed: the lane has lost its frame boundaries.
#[derive(Debug, Default)]
pub struct Splitter {
    /// What arrived last and was not cut yet; only ever non-empty when `partial` is empty.
    chunk: Bytes,
    /// The beginning of a frame whose end has not arrived.
    partial: BytesMut,
    failed: Option<Reject>,
}

impl Splitter {
    /// A splitter at the start of a lane.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the lane, in order.
    pub fn push(&mut self, chunk: Bytes) {
        if self.partial.is_empty() && self.chunk.is_empty() {
            self.chunk = chunk;
            return;
        }
        if !self.chunk.is_empty() {
            self.partial.extend_from_slice(&std::mem::take(&mut self.chunk));
        }
        self.partial.extend_from_slice(&chunk);
    }

    /// Cuts off the next whole frame; `None` if more bytes are needed.
    #[allow(clippy::should_implement_trait, reason = "next() of a fallible stream, not of an iterator")]
    pub fn next(&mut self) -> Result<Option<RawFrame>, Reject> {
        if let Some(reject) = &self.failed {
            return Err(reject.clone());
        }
        let available: &[u8] = if self.partial.is_empty() { &self.chunk } else { &self.partial };
        let Some((length, rest)) = available.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            let text = format!("a frame of {length} bytes was announced; at most {FRAME_BYTES_MAX} are allowed");
            let reject = Reject::new(RejectCode::FrameTooLarge, text);
            self.failed = Some(reject.clone());
            return Err(reject);
        }
        let Some((subject, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let subject = u32::from_le_bytes(*subject);
        if rest.len() < length {
            return Ok(None);
        }
        let payload = if self.partial.is_empty() {
            self.chunk.advance(FRAME_HEADER_BYTES);
            self.chunk.split_to(length)
        } else {
            self.partial.advance(FRAME_HEADER_BYTES);
            self.partial.split_to(length).freeze()
        };
        Ok(Some(RawFrame { subject, payload }))
    }

    /// Bytes that wait for the rest of their frame.
    pub fn pending(&self) -> usize {
        self.chunk.len() + self.partial.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane(frames: &[RawFrame]) -> Vec<u8> {
        let framed = |f: &RawFrame| [&header(f.payload.len(), f.subject)[..], &f.payload].concat();
        frames.iter().flat_map(framed).collect()
    }

    fn drain(splitter: &mut Splitter) -> Vec<RawFrame> {
        std::iter::from_fn(|| splitter.next().expect("valid lane")).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            cuts in prop::collection::vec(1_usize..50, 1..40),
        ) {
            let frames: Vec<_> =
                frames.into_iter().map(|(subject, p)| RawFrame { subject, payload: p.into() }).collect();
            let bytes = lane(&frames);
            let (mut splitter, mut got, mut rest) = (Splitter::new(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                splitter.push(Bytes::copy_from_slice(now));
                got.extend(drain(&mut splitter));
                rest = later;
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(splitter.pending(), 0);
        }

        /// The bounded run of the fuzz target `frame_splitter`.
        #[test]
        fn garbage_is_refused_or_waits(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let (mut splitter, total) = (Splitter::new(), chunks.iter().map(Vec::len).sum::<usize>());
            for chunk in chunks {
                splitter.push(chunk.into());
                while let Ok(Some(frame)) = splitter.next() {
                    prop_assert!(frame.payload.len() <= total);
                }
            }
            prop_assert!(splitter.pending() <= total);
        }
    }

    #[test]
    fn a_frame_within_a_chunk_is_not_copied() {
        let bytes = Bytes::from(lane(&[RawFrame { subject: 7, payload: Bytes::from_static(b"payload") }]));
        let mut splitter = Splitter::new();
        splitter.push(bytes.clone());
        let frame = splitter.next().expect("valid").expect("whole");
        assert_eq!(frame.payload.as_ptr(), bytes[FRAME_HEADER_BYTES..].as_ptr());
    }

    #[test]
    fn an_announced_length_beyond_the_limit_fails_the_lane_for_good() {
        let mut splitter = Splitter::new();
        splitter.push(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff]));
        for _ in 0..2 {
            let reject = splitter.next().expect_err("too long");
            assert_eq!(reject.code, RejectCode::FrameTooLarge);
            splitter.push(Bytes::from_static(&[0; 64]));
        }
    }
}
