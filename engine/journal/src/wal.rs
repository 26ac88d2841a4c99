//! The write-ahead log of one core: a sequence of files that are prepared beforehand and filled batch by batch.
//!
//! A file is `wal/CORE-GENERATION.wal` (3 and 12 decimal digits). All numbers are little-endian, all checksums CRC-32
//! (IEEE), all batches begin at a multiple of [`LOG_BLOCK_BYTES`](thalweg_protocol::limits::LOG_BLOCK_BYTES).
//!
//! The header of a file fills its first block:
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | magic | `thalwegW`. Magic, checksum and version stand here in every version |
//! | 8 | checksum | `u32`, over the rest of the block |
//! | 12 | version | `u32`, 1 |
//! | 16 | core | `u16`, and 6 bytes of zeros |
//! | 24 | generation | `u64`: one more than that of the core's file before it |
//! | 32 | epoch | `u64`: in which life of the node it was prepared |
//! | 40 | salt | `u64`: random bits |
//! | 48 | bytes | `u64`: length of the file; zeros follow |
//!
//! Then come batches, each with a header and padded with zeros to a whole number of blocks:
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | magic | `TWLB` |
//! | 4 | checksum | `u32`, over the rest of the batch and its padding |
//! | 8 | generation | `u64`, of the file |
//! | 16 | salt | `u64`, of the file |
//! | 24 | offset | `u64`, of the batch in the file |
//! | 32 | core | `u16`, and 2 bytes of zeros |
//! | 36 | records | `u32` |
//! | 40 | payload bytes | `u32`, of the records |
//! | 44 | chain | `u32`, checksum of the batch before it; of the file's header, if there is none |
//! | 48 | follows | `u64`, 0 but in the first batch of a file: where the file before it ended, if it was of the same life |
//! | 56 | records | see [`record`] |
//!
//! What holds them together:
//!
//! - A block that was written is not written again while the file has this generation, so a write that is cut short cannot
//!   hurt what was synced.
//! - A batch is written when the one before it, perhaps in the file before, is synced. So an intact batch proves that all
//!   before it were synced: what is missing there was damaged, and was not just cut short. The first batch of a file says
//!   where the file before it ended and with which checksum, since that file alone cannot tell.
//! - Generation, salt and offset keep what a recycled file held before, and what a client wrote into a message to look
//!   like a batch, from being taken for one.
//! - A file gets its name when its header is durable, so a bad header is damage.
//! - A life of the node begins with a new file; what older lives left is sealed before.

mod layout;
mod prepare;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use thalweg_domain::record::Record;
use thalweg_protocol::ids::CoreId;
use thalweg_protocol::limits::LOG_BATCH_BYTES_MAX;

use crate::record;
use layout::{BATCH_HEADER_BYTES, BatchHeader, FILE_HEADER_BYTES, padded};

pub use layout::{parse_wal_path, wal_path};
pub use prepare::{NewFile, prepare};
pub use scan::{End, FileEnd, RawRecord, Scan, scan, scan_from};

/// Buffers that are kept for the next batches: one gathers while one is written.
const IDLE_BUFFERS_MAX: usize = 2;

/// A file that is prepared and holds no batch yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFile {
    /// Which of the core's files.
    pub generation: u64,
    /// The random bits that its batches carry.
    pub salt: u64,
    /// Its length.
    pub bytes: u64,
    /// Checksum of its header.
    pub header_crc: u32,
}

/// A batch that is to be written, and then synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalWrite {
    /// In which file.
    pub generation: u64,
    /// Where in it.
    pub offset: u64,
    /// What: a whole number of blocks.
    pub bytes: Vec<u8>,
}

/// A file that gets no more batches, and whose batches are all durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub generation: u64,
    /// The ticket of its last record.
    pub through: u64,
    /// Where it ends.
    pub end: FileEnd,
}

/// The log of one core, without its disk.
///
/// [`append`](Self::append) as it comes; then, whenever it gives one, carry out [`next_write`](Self::next_write): write it,
/// sync the file, hand the buffer to [`written`](Self::written). What is appended meanwhile gathers for the next batch. When
/// [`wants_file`](Self::wants_file), say [`file_wanted`](Self::file_wanted), [`prepare`] one and hand it to
/// [`file_ready`](Self::file_ready). After `written`, `file_ready` and `close`, drain [`poll_closed`](Self::poll_closed).
///
/// Without a file that has room everything goes on gathering: whoever appends looks at
/// [`pending_bytes`](Self::pending_bytes). A write or sync that failed ends the log: nothing may be appended or written after
/// it, since nobody knows what is on the disk.
#[derive(Debug)]
pub struct Wal {
    core: CoreId,
    file: Current,
    spare: Option<WalFile>,
    spare_under_way: bool,
    /// Batches that are not written yet; all but the last are full.
    gathered: VecDeque<Batch>,
    under_way: Option<UnderWay>,
    /// Everything up to this ticket is durable.
    durable: u64,
    /// Go to the next file as soon as there is one.
    closing: bool,
    closed: VecDeque<Closed>,
    idle: Vec<Vec<u8>>,
    /// Bytes of records in `gathered` and `under_way`.
    pending_bytes: usize,
}

/// The file that is being filled.
#[derive(Debug)]
struct Current {
    file: WalFile,
    /// Where the next batch goes.
    at: u64,
    /// Checksum of the batch before it, or what stands in for it.
    chain: u32,
    /// Where the file before this one ended, if the next batch is the first; else 0.
    follows: u64,
}

/// Records that are written together, after room for their header.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    records: u32,
    through: u64,
}

#[derive(Debug)]
struct UnderWay {
    padded_bytes: usize,
    payload_bytes: usize,
    crc: u32,
    through: u64,
}

impl Wal {
    /// A log that begins in a prepared file, the first of this life of the node.
    ///
    /// # Panics
    /// If the file has no room for a batch.
    pub fn new(core: CoreId, file: WalFile) -> Self {
        assert!(file.bytes >= 2 * FILE_HEADER_BYTES as u64, "a file has room for a header and a batch");
        Self {
            core,
            file: Current { file, at: FILE_HEADER_BYTES as u64, chain: file.header_crc, follows: 0 },
            spare: None,
            spare_under_way: false,
            gathered: VecDeque::new(),
            under_way: None,
            durable: 0,
            closing: false,
            closed: VecDeque::new(),
            idle: Vec::new(),
            pending_bytes: 0,
        }
    }

    /// Takes a record. Tickets grow.
    ///
    /// # Panics
    /// If the record is larger than any file holds; see also [`record::encode`].
    pub fn append(&mut self, ticket: u64, record: &Record) {
        let bytes_max = self.batch_bytes_max();
        if self.gathered.is_empty() {
            self.begin_batch();
        }
        let batch = self.gathered.back_mut().expect("one was begun");
        let start = batch.bytes.len();
        record::encode(record, &mut batch.bytes);
        self.pending_bytes += batch.bytes.len() - start;
        if padded(batch.bytes.len()) > bytes_max && batch.records > 0 {
            self.move_to_next_batch(start);
        }
        let batch = self.gathered.back_mut().expect("one was begun");
        assert!(padded(batch.bytes.len()) <= bytes_max, "a file of the log has room for the largest record");
        batch.records += 1;
        batch.through = ticket;
    }

    /// The next batch to write; none while one is under way, if nothing was appended, or if there is no file with room.
    pub fn next_write(&mut self) -> Option<WalWrite> {
        self.turn_over();
        if self.under_way.is_some() || !self.has_room() {
            return None;
        }
        let Batch { mut bytes, records, through } = self.gathered.pop_front()?;
        let payload_bytes = bytes.len() - BATCH_HEADER_BYTES;
        let Current { file, at: offset, chain, follows } = self.file;
        let header = BatchHeader {
            generation: file.generation,
            salt: file.salt,
            offset,
            core: self.core,
            records,
            payload_bytes: payload_bytes as u32,
            chain,
            follows,
        };
        let crc = header.seal(&mut bytes);
        self.under_way = Some(UnderWay { padded_bytes: bytes.len(), payload_bytes, crc, through });
        Some(WalWrite { generation: file.generation, offset, bytes })
    }

    /// The last write is written and synced. Gives the ticket up to which everything is durable; the buffer is used again.
    ///
    /// # Panics
    /// If there was no write under way.
    pub fn written(&mut self, buffer: Vec<u8>) -> u64 {
        let UnderWay { padded_bytes, payload_bytes, crc, through } =
            self.under_way.take().expect("a write was under way");
        self.file.at += padded_bytes as u64;
        (self.file.chain, self.file.follows) = (crc, 0);
        self.durable = through;
        self.pending_bytes -= payload_bytes;
        if self.idle.len() < IDLE_BUFFERS_MAX {
            self.idle.push(buffer);
        }
        self.turn_over();
        through
    }

    /// Whether the next file should be prepared.
    pub fn wants_file(&self) -> bool {
        self.spare.is_none() && !self.spare_under_way
    }

    /// Which generation the next file has.
    pub fn next_generation(&self) -> u64 {
        self.file.file.generation + 1
    }

    /// The next file is being prepared.
    pub fn file_wanted(&mut self) {
        self.spare_under_way = true;
    }

    /// The next file could not be prepared, for want of room: it is wanted again.
    pub fn file_failed(&mut self) {
        self.spare_under_way = false;
    }

    /// The next file is prepared.
    ///
    /// # Panics
    /// If it is not the [next](Self::next_generation), or has another length.
    pub fn file_ready(&mut self, file: WalFile) {
        assert_eq!(file.generation, self.next_generation(), "files follow each other");
        assert_eq!(file.bytes, self.file.file.bytes, "the files of one life have one length");
        assert!(self.spare.is_none(), "one file is prepared at a time");
        self.spare = Some(file);
        self.spare_under_way = false;
        self.turn_over();
    }

    /// Goes on in the next file, as soon as it is prepared, if this one holds anything. What is under way still goes into
    /// this one.
    pub fn close(&mut self) {
        self.closing |= self.under_way.is_some() || self.file.at > FILE_HEADER_BYTES as u64;
        self.turn_over();
    }

    /// A file that is complete, oldest first.
    pub fn poll_closed(&mut self) -> Option<Closed> {
        self.closed.pop_front()
    }

    /// Bytes of records that are not durable yet.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Whether something waits for the next file: nothing gets durable before [`file_ready`](Self::file_ready).
    pub fn is_out_of_room(&self) -> bool {
        self.under_way.is_none() && !self.has_room()
    }

    /// Whether a batch is being written.
    pub fn is_writing(&self) -> bool {
        self.under_way.is_some()
    }

    /// Everything up to this ticket is durable; 0 if nothing is yet.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The file that is being filled.
    pub fn generation(&self) -> u64 {
        self.file.file.generation
    }

    /// Goes to the next file if it is time, and there is one.
    fn turn_over(&mut self) {
        if self.under_way.is_some() || (self.has_room() && !self.closing) {
            return;
        }
        let Some(file) = self.spare.take() else { return };
        let Current { file: WalFile { generation, .. }, at: offset, chain: crc, .. } = self.file;
        debug_assert!(offset > FILE_HEADER_BYTES as u64, "any batch fits in an empty file");
        self.closed.push_back(Closed { generation, through: self.durable, end: FileEnd { offset, crc } });
        self.file = Current { file, at: FILE_HEADER_BYTES as u64, chain: crc, follows: offset };
        self.closing = false;
    }

    /// Whether the next batch, if there is one, fits in the file.
    fn has_room(&self) -> bool {
        let bytes = self.gathered.front().map_or(0, |batch| padded(batch.bytes.len()));
        self.file.at + bytes as u64 <= self.file.file.bytes
    }

    /// Most bytes of a batch: those of the limit, if a file holds as many.
    fn batch_bytes_max(&self) -> usize {
        let blocks = (self.file.file.bytes as usize - FILE_HEADER_BYTES) / FILE_HEADER_BYTES;
        LOG_BATCH_BYTES_MAX.min(blocks * FILE_HEADER_BYTES)
    }

    fn begin_batch(&mut self) {
        let mut bytes = self.idle.pop().unwrap_or_default();
        bytes.clear();
        bytes.resize(BATCH_HEADER_BYTES, 0);
        self.gathered.push_back(Batch { bytes, records: 0, through: 0 });
    }

    /// Begins a batch with what stands in the last one from `start` on.
    #[cold]
    fn move_to_next_batch(&mut self, start: usize) {
        self.begin_batch();
        if let [.., older, newer] = self.gathered.make_contiguous() {
            newer.bytes.extend_from_slice(&older.bytes[start..]);
            older.bytes.truncate(start);
        }
    }
}
