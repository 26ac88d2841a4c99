//! The log's directory on a real disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thalweg_journal::{Disk, DiskError, DiskFile};

/// The directories of a log.
const DIRECTORIES: [&str; 2] = ["wal", "segments"];

/// Bytes written to a file one behind the other after which the disk begins with them.
const WRITE_BACK_BYTES: u64 = 1 << 20;

/// A directory of real files. Only their owner may read them.
///
/// Durable is what `fdatasync` (files) and `fsync` (directories) said is durable.
#[derive(Debug)]
pub struct FileDisk {
    root: PathBuf,
    /// What a sync takes longer than the disk needs, so that slower disks can be measured here.
    sync_delay: Duration,
}

impl FileDisk {
    /// Makes the directory, and those in it, unless they are there.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn open(root: &Path, sync_delay: Duration) -> Result<Self, DiskError> {
        for directory in std::iter::once(root.to_owned()).chain(DIRECTORIES.map(|name| root.join(name))) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.map_err(failure(&directory.to_string_lossy(), "making the directory"))?;
        }
        let disk = Self { root: root.to_owned(), sync_delay };
        disk.sync_dir("")?;
        if let Some(parent) = root.parent() {
            let synced = File::open(parent).and_then(|directory| directory.sync_all());
            synced.map_err(failure(&parent.to_string_lossy(), "syncing the directory"))?;
        }
        Ok(disk)
    }

    /// Opens what an earlier [`open`](Self::open) made, and changes nothing.
    ///
    /// # Errors
    /// [`DiskError::Missing`], if there is no such directory.
    pub fn existing(root: &Path) -> Result<Self, DiskError> {
        if root.is_dir() {
            Ok(Self { root: root.to_owned(), sync_delay: Duration::ZERO })
        } else {
            Err(DiskError::Missing { path: root.to_string_lossy().into_owned() })
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What each sync takes longer than it must.
    pub fn sync_delay(&self) -> Duration {
        self.sync_delay
    }

    fn file(&self, path: &str, options: &OpenOptions) -> Result<Box<dyn DiskFile>, DiskError> {
        let file = options.open(self.root.join(path)).map_err(failure(path, "opening it"))?;
        let unsynced = AtomicU64::new(0);
        Ok(Box::new(OpenFile { path: path.to_owned(), file, sync_delay: self.sync_delay, unsynced }))
    }
}

/// What the system said, in the words of the log.
pub(super) fn failure(path: &str, action: &'static str) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::Full { path },
        Some(libc::ENOENT) => DiskError::Missing { path },
        _ => DiskError::Failed { path, what: format!("{action} failed: {error}") },
    }
}

impl Disk for FileDisk {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        let entries = match fs::read_dir(self.root.join(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failure(directory, "listing it"))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failure(directory, "listing it"))?;
            let path = || format!("{directory}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(|error| failure(&path(), "finding out what it is")(error))?;
            if kind.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        self.file(path, OpenOptions::new().read(true).write(true))
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        self.file(path, OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        fs::rename(self.root.join(from), self.root.join(to)).map_err(failure(from, "renaming it"))
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        fs::remove_file(self.root.join(path)).map_err(failure(path, "removing it"))
    }

    fn sync_dir(&self, directory: &str) -> Result<(), DiskError> {
        let synced = File::open(self.root.join(directory)).and_then(|directory| directory.sync_all());
        synced.map_err(failure(directory, "syncing the directory"))?;
        delay(self.sync_delay);
        Ok(())
    }
}

fn delay(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

/// An open file.
#[derive(Debug)]
struct OpenFile {
    path: String,
    file: File,
    sync_delay: Duration,
    /// Bytes written since the last sync, or since the disk was last told to begin with them.
    unsynced: AtomicU64,
}

impl OpenFile {
    /// Has the disk begin with what was written, after it is done with what it has begun with. So no more than twice
    /// [`WRITE_BACK_BYTES`] of a file pile up in memory: their sync would send all of them to the disk at once, and the
    /// batches of the log, which have somebody waiting, would stand behind them.
    fn write_back(&self) -> Result<(), DiskError> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
        // SAFETY: takes a descriptor that is open and three numbers; 0 bytes are all to the end.
        let failed = unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, flags) } != 0;
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A file system that cannot do so writes when it is synced. But a failure is said only once: so it counts.
            Some(libc::EIO | libc::ENOSPC | libc::EDQUOT) if failed => Err(self.failure("writing it back")(error)),
            _ => Ok(()),
        }
    }

    fn failure(&self, action: &'static str) -> impl FnOnce(io::Error) -> DiskError {
        failure(&self.path, action)
    }
}

impl DiskFile for OpenFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(self.failure("reading its length"))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(into, offset).map_err(self.failure("reading it"))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).map_err(self.failure("writing it"))?;
        // A single write that is synced at once, as those of the write-ahead log are, is left to its sync.
        let before = self.unsynced.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if before > 0 && before + bytes.len() as u64 >= WRITE_BACK_BYTES {
            self.write_back()?;
            self.unsynced.store(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        let length = i64::try_from(bytes).unwrap_or(i64::MAX);
        loop {
            // SAFETY: takes a descriptor that is open and three numbers.
            let failed = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, length) } != 0;
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                _ if !failed => break,
                Some(libc::EINTR) => {}
                // Some file systems cannot set room aside. Those that copy on write would break the promise later anyway.
                Some(libc::EOPNOTSUPP) => {
                    return fill(&self.file, bytes).map_err(self.failure("filling it with zeros"));
                }
                _ => return Err(self.failure("setting room aside for it")(error)),
            }
        }
        self.file.set_len(bytes).map_err(self.failure("setting its length"))
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.unsynced.store(0, Ordering::Relaxed);
        self.file.sync_data().map_err(self.failure("syncing it"))?;
        delay(self.sync_delay);
        Ok(())
    }
}

/// Writes zeros where a file is shorter than `bytes`.
fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0_u8; 1 << 20];
    let mut at = file.metadata()?.len();
    while at < bytes {
        let count = zeros.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..count], at)?;
        at += count as u64;
    }
    file.set_len(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TempDir;

    fn open() -> (TempDir, FileDisk) {
        let dir = TempDir::new();
        let disk = FileDisk::open(&dir.path().join("log"), Duration::ZERO).expect("a directory can be made");
        (dir, disk)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_dir, disk) = open();
        assert_eq!(disk.list("wal"), Ok(vec![]));
        let file = disk.create("wal/a.new").expect("made");
        file.allocate(8_192).expect("room");
        file.write_at(4_000, b"hello").expect("written");
        file.sync().expect("synced");
        disk.rename("wal/a.new", "wal/a").expect("renamed");
        disk.sync_dir("wal").expect("synced");
        let again = disk.open("wal/a").expect("there");
        let mut read = [1; 7];
        again.read_at(3_999, &mut read).expect("read");
        assert_eq!((&read, again.bytes()), (b"\0hello\0", Ok(8_192)));
        again.allocate(4_096).expect("shorter");
        assert_eq!(again.bytes(), Ok(4_096));
        assert_eq!(disk.list("wal"), Ok(vec!["a".to_owned()]));
        disk.remove("wal/a").expect("removed");
        file.read_at(0, &mut read).expect("who has it open reads on");
        assert_eq!((disk.list("wal"), disk.list("nowhere")), (Ok(vec![]), Ok(vec![])));
    }

    #[test]
    fn what_is_created_again_is_empty() {
        let (_dir, disk) = open();
        disk.create("format").and_then(|file| file.write_at(0, b"old")).expect("written");
        let bytes = disk.create("format").and_then(|file| file.bytes());
        assert_eq!((bytes, disk.list("")), (Ok(0), Ok(vec!["format".to_owned()])));
    }

    #[test]
    fn failures_are_told_apart_and_name_the_file() {
        let (_dir, disk) = open();
        let missing = DiskError::Missing { path: "wal/x".into() };
        assert_eq!(disk.open("wal/x").err(), Some(missing.clone()));
        assert_eq!((disk.remove("wal/x"), disk.rename("wal/x", "wal/y")), (Err(missing.clone()), Err(missing)));
        let file = disk.create("wal/short").expect("made");
        let check = |result: Result<(), DiskError>, said: &str| match result {
            Err(DiskError::Failed { path, what }) => {
                assert!(path == "wal/short" && what.contains(said), "{path}: {what}");
            }
            other => panic!("{other:?}"),
        };
        check(file.read_at(0, &mut [0]), "reading it failed");
        check(file.allocate(0), "setting room aside");
        assert!(matches!(file.allocate(1 << 60), Err(DiskError::Full { .. } | DiskError::Failed { .. })));
        for errno in [libc::ENOSPC, libc::EDQUOT] {
            let error = failure("wal/f", "writing it")(io::Error::from_raw_os_error(errno));
            assert_eq!(error, DiskError::Full { path: "wal/f".into() });
        }
    }

    #[test]
    fn others_may_not_read_the_log() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, disk) = open();
        disk.create("wal/a").expect("made");
        let mode = |path: &str| fs::metadata(disk.root().join(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("wal"), mode("segments"), mode("wal/a")), (0o700, 0o700, 0o700, 0o600));
    }
}
