//! A disk for work that can wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thalweg_journal::{Disk, DiskError, DiskFile};

/// Longest rest at a time, so that an end is noticed.
const REST_MAX: Duration = Duration::from_millis(50);

/// How gently.
#[derive(Debug)]
pub(super) struct Pace {
    /// Whether to rest at all.
    pub(super) rests: AtomicBool,
    /// Ends the work: every write fails from now on.
    pub(super) stop: Arc<AtomicBool>,
}

/// Passes everything on to another disk. After each write it rests for as long as it took since the last rest: whoever
/// writes through it takes at most half of a CPU and of the disk.
pub(super) struct GentleDisk {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) pace: Arc<Pace>,
}

impl GentleDisk {
    fn file(&self, path: &str, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let rested = std::sync::Mutex::new(Instant::now());
        Box::new(GentleFile { path: path.to_owned(), file, pace: Arc::clone(&self.pace), rested })
    }
}

impl Disk for GentleDisk {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        self.disk.list(directory)
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        self.disk.open(path)
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
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

struct GentleFile {
    path: String,
    file: Box<dyn DiskFile>,
    pace: Arc<Pace>,
    /// When the last rest was over.
    rested: std::sync::Mutex<Instant>,
}

impl GentleFile {
    fn rest(&self) {
        let mut rested = self.rested.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.pace.rests.load(Ordering::Relaxed) {
            std::thread::sleep(rested.elapsed().min(REST_MAX));
        }
        *rested = Instant::now();
    }
}

impl DiskFile for GentleFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        self.file.bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        if self.pace.stop.load(Ordering::Relaxed) {
            return Err(DiskError::Failed { path: self.path.clone(), what: "the node is going away".into() });
        }
        self.rest();
        self.file.write_at(offset, bytes)
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        self.file.allocate(bytes)
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync()
    }
}
