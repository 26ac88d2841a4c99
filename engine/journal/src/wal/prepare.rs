//! Making the next file of a write-ahead log, ahead of its use.

use thalweg_protocol::ids::{CoreId, Epoch};

use super::WalFile;
use super::layout::{FileHeader, wal_path};
use crate::disk::{Disk, DiskError};

/// The file that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewFile {
    /// Whose log.
    pub core: CoreId,
    /// Which of its files: one more than that before it.
    pub generation: u64,
    /// The life of the node.
    pub epoch: Epoch,
    /// Random bits, which no client knows.
    pub salt: u64,
    /// Its length.
    pub bytes: u64,
}

/// Makes a file, of the one at path `recycle` if that is given, whose records are in segments. It has its name only when it
/// is complete and durable; what is left of an attempt that failed ends in `.new` and is removed when the node starts.
///
/// # Errors
/// [`DiskError`]; [`DiskError::Full`] if there is no room for it. Then it can be tried again, without `recycle`: what is left
/// of the attempt is used.
pub fn prepare(disk: &dyn Disk, file: NewFile, recycle: Option<&str>) -> Result<WalFile, DiskError> {
    let NewFile { core, generation, epoch, salt, bytes } = file;
    let path = wal_path(core, generation);
    let unfinished = format!("{}.new", path.trim_end_matches(".wal"));
    let made = match recycle {
        Some(old) => {
            disk.rename(old, &unfinished)?;
            // Durable before the header changes: or the old name might come back, with a header that is another file's.
            disk.sync_dir("wal")?;
            disk.open(&unfinished)?
        }
        None => disk.create(&unfinished)?,
    };
    made.allocate(bytes)?;
    let (header, header_crc) = FileHeader { core, generation, epoch, salt, bytes }.encode();
    made.write_at(0, &header)?;
    made.sync()?;
    disk.rename(&unfinished, &path)?;
    disk.sync_dir("wal")?;
    Ok(WalFile { generation, salt, bytes, header_crc })
}
