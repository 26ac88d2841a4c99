//! A disk that fails when told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thalweg_journal::{Disk, DiskError, DiskFile};

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Writes, after so many that worked.
    Write { after: u64 },
    /// Syncs of files whose path holds `of`, after so many of those that worked.
    Sync { of: &'static str, after: u64 },
    /// Syncs of files whose path holds `of` panic, after so many that worked.
    Panic { of: &'static str, after: u64 },
    /// Whatever needs room for files whose path holds `of`, while the switch is on.
    Full { of: &'static str },
}

/// Passes everything on to another disk, and fails where the fault says so.
pub(crate) struct FaultyDisk {
    disk: Arc<dyn Disk>,
    state: Arc<State>,
}

struct State {
    fault: Fault,
    count: AtomicU64,
    full: AtomicBool,
}

impl State {
    fn due(&self, after: u64) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) >= after
    }

    fn room(&self, path: &str) -> Result<(), DiskError> {
        match self.fault {
            Fault::Full { of } if path.contains(of) && self.full.load(Ordering::Relaxed) => {
                Err(DiskError::Full { path: path.into() })
            }
            _ => Ok(()),
        }
    }
}

impl FaultyDisk {
    pub(crate) fn new(disk: Arc<dyn Disk>, fault: Fault) -> Self {
        let state = State { fault, count: AtomicU64::new(0), full: AtomicBool::new(false) };
        Self { disk, state: Arc::new(state) }
    }

    /// Whether the disk is full from now on.
    pub(crate) fn set_full(&self, full: bool) {
        self.state.full.store(full, Ordering::Relaxed);
    }

    fn file(&self, path: &str, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile { path: path.into(), file, state: Arc::clone(&self.state) })
    }
}

fn injected(path: &str, action: &str) -> DiskError {
    DiskError::Failed { path: path.into(), what: format!("{action} failed: Input/output error (os error 5)") }
}

impl Disk for FaultyDisk {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        self.disk.list(directory)
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        self.state.room(path)?;
        Ok(self.file(path, self.disk.create(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, directory: &str) -> Result<(), DiskError> {
        self.disk.sync_dir(directory)
    }
}

struct FaultyFile {
    path: String,
    file: Box<dyn DiskFile>,
    state: Arc<State>,
}

impl DiskFile for FaultyFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        self.file.bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        match self.state.fault {
            Fault::Write { after } if self.state.due(after) => Err(injected(&self.path, "writing it")),
            _ => self.file.write_at(offset, bytes),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        if self.file.bytes()? < bytes {
            self.state.room(&self.path)?;
        }
        self.file.allocate(bytes)
    }

    fn sync(&self) -> Result<(), DiskError> {
        match self.state.fault {
            Fault::Sync { of, after } if self.path.contains(of) && self.state.due(after) => {
                Err(injected(&self.path, "syncing it"))
            }
            Fault::Panic { of, after } if self.path.contains(of) && self.state.due(after) => panic!("as planned"),
            _ => self.file.sync(),
        }
    }
}
