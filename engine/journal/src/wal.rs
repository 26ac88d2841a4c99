//! The write-ahead log of one core.
mod layout;
mod prepare;
mod scan;

pub use layout::{parse_wal_path, wal_path};
pub use prepare::{NewFile, prepare};
pub use scan::{End, FileEnd, RawRecord, Scan, scan, scan_from};

/// A file that is prepared.
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

/// A file that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub generation: u64,
    /// All of its records are up to this ticket.
    pub through: u64,
    /// Where it ends.
    pub end: FileEnd,
}
