//! What the log needs of a disk.

mod memory;

pub use memory::MemoryDisk;

/// Why a disk did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// There is no room.
    #[error("{path}: the disk is full; free some space, or move the data directory to a larger disk")]
    Full {
        /// The file that was to grow.
        path: String,
    },
    /// There is no such file.
    #[error("{path} is missing")]
    Missing {
        /// Which.
        path: String,
    },
    /// The system said something else.
    #[error("{path}: {what}")]
    Failed {
        /// At which file.
        path: String,
        /// What was tried, and what the system said.
        what: String,
    },
}

/// The directory of a log. Paths are relative to it, with `/` between their parts.
///
/// What was written to a file outlives the loss of power once the file was [synced](DiskFile::sync); that a file was made,
/// renamed or removed does once its directory was.
pub trait Disk: Send + Sync {
    /// The names of the files in a directory, sorted; none if there is no such directory.
    ///
    /// # Errors
    /// [`DiskError`], as all of these.
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError>;
    /// Opens a file that exists, to read and write.
    ///
    /// # Errors
    /// [`DiskError::Missing`], if it does not.
    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError>;
    /// Makes an empty file, or empties the one that is there, to read and write.
    ///
    /// # Errors
    /// See [`list`](Self::list).
    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError>;
    /// Gives a file another name, in the place of what may have had it.
    ///
    /// # Errors
    /// See [`list`](Self::list).
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes a file. Those who have it open can go on reading it.
    ///
    /// # Errors
    /// See [`list`](Self::list).
    fn remove(&self, path: &str) -> Result<(), DiskError>;
    /// Makes durable which files are in a directory.
    ///
    /// # Errors
    /// See [`list`](Self::list).
    fn sync_dir(&self, directory: &str) -> Result<(), DiskError>;
}

/// An open file of a log.
pub trait DiskFile: Send + Sync {
    /// Its length.
    ///
    /// # Errors
    /// [`DiskError`], as all of these.
    fn bytes(&self) -> Result<u64, DiskError>;
    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// [`DiskError::Failed`], if the file ends before.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError>;
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// [`DiskError::Full`], if the file would have to grow and cannot.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Makes the file `bytes` long, with room for all of it on the disk. What was not written reads as zeros.
    ///
    /// # Errors
    /// [`DiskError::Full`], if there is no such room.
    fn allocate(&self, bytes: u64) -> Result<(), DiskError>;
    /// Makes durable what was written, and the length.
    ///
    /// # Errors
    /// A sync that failed says nothing about what is on the disk, whatever a second one would say.
    fn sync(&self) -> Result<(), DiskError>;
}
