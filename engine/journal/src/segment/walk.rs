//! Goes through all blocks of a file one after the other, past those that are damaged.

use bytes::Bytes;

use super::block::{BLOCK_HEADER_BYTES, BLOCK_MAGIC, Blocks, HEADER_BYTES, Kind, Place};
use super::footer::FOOTER_BYTES;
use super::reader::Segment;
use crate::error::LogError;

/// Bytes that are looked through at a time for the beginning of a block.
const WINDOW_BYTES: u64 = 1 << 20;

/// What was found next.
pub(super) enum Step {
    /// An intact block.
    Block(Kind, Place, Bytes),
    /// Bytes that are in no intact block, up to the next one or the end.
    Damage(LogError),
}

/// A walk through a file.
pub(super) struct Walk<'a> {
    blocks: &'a Blocks,
    at: u64,
    end: u64,
}

impl<'a> Walk<'a> {
    /// Through `at..end` of a file.
    pub(super) fn new(blocks: &'a Blocks, at: u64, end: u64) -> Self {
        Self { blocks, at, end }
    }

    /// Through all that stands before the footer, wherever that is damaged.
    pub(super) fn whole(blocks: &'a Blocks) -> Self {
        Self::new(blocks, HEADER_BYTES as u64, blocks.bytes.saturating_sub(FOOTER_BYTES as u64))
    }

    /// The data and the index of a segment: all that stands before its states.
    pub(super) fn entries(segment: &'a Segment) -> Self {
        Self::new(&segment.blocks, HEADER_BYTES as u64, segment.footer.states)
    }

    /// The next step; none at the end.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn next(&mut self) -> Result<Option<Step>, LogError> {
        if self.at >= self.end {
            return Ok(None);
        }
        match self.blocks.read_next(self.at) {
            Ok((kind, place, payload)) => {
                self.at = place.end();
                Ok(Some(Step::Block(kind, place, payload)))
            }
            Err(damage @ LogError::Damaged { .. }) => {
                self.at = self.resume()?;
                Ok(Some(Step::Damage(damage)))
            }
            Err(error) => Err(error),
        }
    }

    /// Where the next intact block begins, wherever that is; the end, if there is none.
    fn resume(&self) -> Result<u64, LogError> {
        let mut from = self.at + 1;
        while from < self.end {
            let length = WINDOW_BYTES.min(self.end - from);
            let mut window = vec![0; length as usize];
            self.blocks.file.read_at(from, &mut window)?;
            for (at, pair) in window.windows(2).enumerate() {
                if pair == BLOCK_MAGIC.to_le_bytes()
                    && self.blocks.bytes - (from + at as u64) > BLOCK_HEADER_BYTES as u64
                    && self.blocks.read_next(from + at as u64).is_ok()
                {
                    return Ok(from + at as u64);
                }
            }
            // The last byte of this window may be the first of a block's beginning.
            from += (length - 1).max(1);
        }
        Ok(self.end)
    }
}
