//! Headers of files and batches, as bytes.

use thalweg_protocol::ids::{CoreId, Epoch};
use thalweg_protocol::limits::{LOG_BATCH_BYTES_MAX, LOG_BLOCK_BYTES};

/// Bytes of the first block of a file, which holds its header; the first batch follows.
pub(super) const FILE_HEADER_BYTES: usize = LOG_BLOCK_BYTES;
/// Bytes of the header of a batch; its records follow.
pub(super) const BATCH_HEADER_BYTES: usize = 56;

const FILE_MAGIC: &[u8; 8] = b"thalwegW";
const BATCH_MAGIC: &[u8; 4] = b"TWLB";
/// The newest format of files that is known, and the one that is written.
pub(super) const FILE_VERSION: u32 = 1;

/// The path of a file of the write-ahead log.
pub fn wal_path(core: CoreId, generation: u64) -> String {
    format!("wal/{:03}-{generation:012}.wal", core.0)
}

/// Core and generation of the file with this name or path; none if it is not the name of a finished file.
pub fn parse_wal_path(path: &str) -> Option<(CoreId, u64)> {
    let name = path.rsplit('/').next()?.strip_suffix(".wal")?;
    let (core, generation) = name.split_once('-')?;
    let (core, generation) = (CoreId(core.parse().ok()?), generation.parse().ok()?);
    wal_path(core, generation).ends_with(&format!("/{name}.wal")).then_some((core, generation))
}

/// What stands in the first block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) core: CoreId,
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
    pub(super) salt: u64,
    pub(super) bytes: u64,
}

/// Why a block is no header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BadHeader {
    Newer(u32),
    Damaged(&'static str),
}

impl FileHeader {
    /// The block, and its crc.
    pub(super) fn encode(&self) -> (Vec<u8>, u32) {
        let mut block = vec![0; FILE_HEADER_BYTES];
        block[..8].copy_from_slice(FILE_MAGIC);
        block[12..16].copy_from_slice(&FILE_VERSION.to_le_bytes());
        block[16..18].copy_from_slice(&self.core.0.to_le_bytes());
        block[24..32].copy_from_slice(&self.generation.to_le_bytes());
        block[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        block[40..48].copy_from_slice(&self.salt.to_le_bytes());
        block[48..56].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        (block, crc)
    }

    /// The header in a block, and its crc.
    pub(super) fn decode(block: &[u8]) -> Result<(Self, u32), BadHeader> {
        if &block[..8] != FILE_MAGIC {
            return Err(BadHeader::Damaged("the file does not begin as a write-ahead log does"));
        }
        let crc = u32_at(block, 8);
        if crc != crc32fast::hash(&block[12..]) {
            return Err(BadHeader::Damaged("the header of the file does not match its checksum"));
        }
        let version = u32_at(block, 12);
        if version > FILE_VERSION {
            return Err(BadHeader::Newer(version));
        }
        let core = CoreId(u16::from_le_bytes([block[16], block[17]]));
        let (generation, epoch) = (u64_at(block, 24), Epoch(u64_at(block, 32)));
        Ok((Self { core, generation, epoch, salt: u64_at(block, 40), bytes: u64_at(block, 48) }, crc))
    }
}

/// What stands before the records of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) generation: u64,
    pub(super) salt: u64,
    pub(super) offset: u64,
    pub(super) core: CoreId,
    pub(super) records: u32,
    pub(super) payload_bytes: u32,
    /// Crc of the batch before it; of the file's header, if it is the first and follows no file.
    pub(super) chain: u32,
    /// Where the file before this one ended, if this is the first batch and follows one; else 0.
    pub(super) follows: u64,
}

impl BatchHeader {
    /// Bytes of the batch, from one block's beginning to another's.
    pub(super) fn padded_bytes(&self) -> usize {
        padded(BATCH_HEADER_BYTES + self.payload_bytes as usize)
    }

    /// Completes a batch that begins with room for its header and ends after its last record, and says its crc.
    pub(super) fn seal(&self, batch: &mut Vec<u8>) -> u32 {
        debug_assert_eq!(batch.len(), BATCH_HEADER_BYTES + self.payload_bytes as usize);
        batch.resize(self.padded_bytes(), 0);
        batch[..4].copy_from_slice(BATCH_MAGIC);
        batch[8..16].copy_from_slice(&self.generation.to_le_bytes());
        batch[16..24].copy_from_slice(&self.salt.to_le_bytes());
        batch[24..32].copy_from_slice(&self.offset.to_le_bytes());
        batch[32..34].copy_from_slice(&self.core.0.to_le_bytes());
        batch[34..36].copy_from_slice(&[0; 2]);
        batch[36..40].copy_from_slice(&self.records.to_le_bytes());
        batch[40..44].copy_from_slice(&self.payload_bytes.to_le_bytes());
        batch[44..48].copy_from_slice(&self.chain.to_le_bytes());
        batch[48..56].copy_from_slice(&self.follows.to_le_bytes());
        let crc = crc32fast::hash(&batch[8..]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// The header that begins `batch`, not checked against anything.
    pub(super) fn read(batch: &[u8]) -> Self {
        Self {
            generation: u64_at(batch, 8),
            salt: u64_at(batch, 16),
            offset: u64_at(batch, 24),
            core: CoreId(u16::from_le_bytes([batch[32], batch[33]])),
            records: u32_at(batch, 36),
            payload_bytes: u32_at(batch, 40),
            chain: u32_at(batch, 44),
            follows: u64_at(batch, 48),
        }
    }

    /// Whether it says of itself that it stands at `offset` of this file, in a size that is ever written.
    pub(super) fn fits(&self, magic: bool, file: &FileHeader, offset: u64) -> bool {
        let placed =
            (self.generation, self.salt, self.offset, self.core) == (file.generation, file.salt, offset, file.core);
        let bytes = u64::from(self.payload_bytes) + BATCH_HEADER_BYTES as u64;
        magic && placed && bytes <= LOG_BATCH_BYTES_MAX as u64 && offset + self.padded_bytes() as u64 <= file.bytes
    }

    /// Whether it was meant for this file, although perhaps not all of it says so.
    pub(super) fn resembles(&self, magic: bool, file: &FileHeader, offset: u64) -> bool {
        self.salt == file.salt || (magic && self.generation == file.generation && self.offset == offset)
    }
}

/// Whether a batch may begin so.
pub(super) fn has_batch_magic(batch: &[u8]) -> bool {
    batch.starts_with(BATCH_MAGIC)
}

/// The crc a batch carries, and the one it has.
pub(super) fn batch_crcs(batch: &[u8]) -> (u32, u32) {
    (u32_at(batch, 4), crc32fast::hash(&batch[8..]))
}

/// The next multiple of a block.
pub(super) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(LOG_BLOCK_BYTES)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
