//! A disk in memory, without faults: for tests, and to look at what was written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskError, DiskFile};

/// A disk in memory. Everything is durable at once, and there is room for everything.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Contents>>>,
}

type Contents = Arc<Mutex<Vec<u8>>>;

impl MemoryDisk {
    /// What a file holds.
    pub fn contents(&self, path: &str) -> Option<Vec<u8>> {
        lock(&self.files).get(path).map(|contents| lock(contents).clone())
    }

    /// Another disk with the same files, which goes its own way.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy =
            |(path, contents): (&String, &Contents)| (path.clone(), Arc::new(Mutex::new(lock(contents).clone())));
        Self { files: Arc::new(Mutex::new(lock(&self.files).iter().map(copy).collect())) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(path: &str) -> DiskError {
    DiskError::Missing { path: path.to_owned() }
}

impl Disk for MemoryDisk {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        let inside = |path: &String| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            (parent == directory).then(|| name.to_owned())
        };
        Ok(lock(&self.files).keys().filter_map(inside).collect())
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        let contents = lock(&self.files).get(path).cloned().ok_or_else(|| missing(path))?;
        Ok(Box::new(MemoryFile { path: path.to_owned(), contents }))
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        let contents = Contents::default();
        lock(&self.files).insert(path.to_owned(), Arc::clone(&contents));
        Ok(Box::new(MemoryFile { path: path.to_owned(), contents }))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut files = lock(&self.files);
        let contents = files.remove(from).ok_or_else(|| missing(from))?;
        files.insert(to.to_owned(), contents);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        lock(&self.files).remove(path).map(drop).ok_or_else(|| missing(path))
    }

    fn sync_dir(&self, _directory: &str) -> Result<(), DiskError> {
        Ok(())
    }
}

struct MemoryFile {
    path: String,
    contents: Contents,
}

impl DiskFile for MemoryFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        Ok(lock(&self.contents).len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let contents = lock(&self.contents);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match contents.get(start..start.saturating_add(into.len())) {
            Some(bytes) => into.copy_from_slice(bytes),
            None => {
                let what = format!("reading {} bytes at {offset}: the file has {}", into.len(), contents.len());
                return Err(DiskError::Failed { path: self.path.clone(), what });
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut contents = lock(&self.contents);
        let start = offset as usize;
        let end = start + bytes.len();
        if contents.len() < end {
            contents.resize(end, 0);
        }
        contents[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        lock(&self.contents).resize(bytes as usize, 0);
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        Ok(())
    }
}
