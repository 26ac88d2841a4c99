//! Sealed segments: immutable, sorted, checked.
//!
//! A segment holds the messages of a range of the log sorted by partition, channel and position, so that a read costs what
//! it returns, and the [`PartitionState`](thalweg_domain::partition::PartitionState) that *all* records of the range left
//! behind. Segment *n* is what the *n*-th sealed file of the write-ahead log became; a merge of the neighbours `a..=b`
//! carries both numbers. Numbers are contiguous from 1.
//!
//! ```text
//! file      magic u64, format u32, crc u32
//!           block…            data blocks, and between them each index block that became full
//!           block…            the rest of the index, the root last
//!           block…            the state section
//!           block             which files of the write-ahead log are covered
//!           footer            where all that is; fixed size, the last bytes of the file
//! block     magic u16, kind u8, 0 u8, payload bytes u32, crc u32, payload
//! data      entries in order: partition u16, channel u64, position u64, session u128, sequence u64, bytes u32, payload
//! index     entries in order: partition u16, channel u64, position u64 (the first of the block), offset u64, bytes u32
//! state     u32: where in the block the first partition begins (or none does), then a part of the stream of partitions:
//!           partition u16, bytes u32, the state
//! ```
//! All little endian. The crc of a block covers the segment's numbers, the block's offset, and all of the block but itself,
//! so that a block that strayed to another place is as wrong as one that rotted. Blocks follow each other without gaps: no
//! byte of a file is unchecked.
//!
//! An entry of a channel at position 0 carries no message: its sequence is the channel's *floor*, below which messages were
//! dropped by a merge because the channel keeps them no longer. Without a floor that allows it, a hole is damage.

mod block;
mod cursor;
mod fields;
mod footer;
mod merge;
mod name;
mod reader;
mod salvage;
mod seal;
mod shelf;
mod state;
mod verify;
mod walk;
mod writer;

pub use block::{Blocks, MAGIC};
pub use merge::{Floors, merge, merge_candidates, remove_replaced};
pub(crate) use merge::{merge_covers, merge_states};
pub use name::{SEGMENTS, SegmentName, WAL_FILES};
pub use reader::{Cover, Segment};
pub use salvage::{Salvaged, salvage};
pub use seal::{Sealed, Torn, publish, seal};
pub use shelf::{END, Shelf};
pub use state::{StateError, decode_state, encode_state};
pub use verify::{Verified, VerifyReport, verify};

use thalweg_protocol::ids::{ChannelId, Partition, Position};
use thalweg_protocol::limits::LOG_RECORD_BYTES_MAX;

/// The newest format that is known here, and the one that is written. Format 1 knew nothing of facts; segments of it are read
/// as they are, and merges make segments of this format of them.
pub const FORMAT: u32 = 2;
/// The oldest format that is read.
const FORMAT_OLDEST: u32 = 1;

/// Largest payload of a block: one entry around the largest record.
const BLOCK_PAYLOAD_MAX: usize = LOG_RECORD_BYTES_MAX + 4096;

/// Where an entry stands: what segments are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// First.
    pub partition: Partition,
    /// Then.
    pub channel: ChannelId,
    /// Last. 0 is no message but the channel's floor.
    pub position: Position,
}

#[cfg(test)]
pub(crate) mod tests;
