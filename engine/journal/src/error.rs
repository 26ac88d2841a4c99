//! What can be wrong with a log.

use thalweg_domain::partition::Gap;
use thalweg_protocol::ids::Partition;

use crate::disk::DiskError;

/// Why a log cannot be read, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Bytes are not what was written.
    #[error("{path}, offset {offset}: {what}; `thalweg doctor` shows more and can salvage what is intact")]
    Damaged {
        /// In which file.
        path: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Records are missing.
    #[error("partition {partition}, {path}: {gap}; `thalweg doctor` shows more and can salvage what is intact")]
    Missing {
        /// Of which partition.
        partition: Partition,
        /// Which file does not follow the one before it.
        path: String,
        /// Which records.
        gap: Gap,
    },
    /// A file is missing.
    #[error("{path} is missing; restore it from a backup, or let `thalweg doctor` salvage what is intact")]
    FileMissing {
        /// Which.
        path: String,
    },
    /// A newer version wrote this.
    #[error("{path} has format {found}; this version reads up to {known}: run a newer thalweg, or restore a backup")]
    Newer {
        /// Which file.
        path: String,
        /// Its format.
        found: u64,
        /// The newest that is known here.
        known: u64,
    },
}
