//! A disk that forgets what was not synced.
//!
//! A process that is killed does not lose what it wrote: the kernel still has it. This shell around a [`Disk`] keeps what
//! is written in the process's own memory and hands it over when it is synced, so that a kill loses what a loss of power
//! would. For tests (`thalweg serve --disk-shell discard`); which names are in a directory is not forgotten, the simulation
//! does that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thalweg_journal::{Disk, DiskError, DiskFile};

/// What was written to a file and not synced.
#[derive(Debug, Default)]
struct Unsynced {
    /// By offset; ranges do not overlap.
    writes: BTreeMap<u64, Vec<u8>>,
    /// The length that was asked for.
    allocated: Option<u64>,
}

impl Unsynced {
    /// Takes a write in, over what it covers of earlier ones.
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let before = self.writes.range(..offset).next_back().map(|(at, _)| *at);
        let within: Vec<u64> = self.writes.range(offset..end).map(|(at, _)| *at).collect();
        for at in before.into_iter().chain(within) {
            let Some(mut old) = self.writes.remove(&at) else { continue };
            let old_end = at + old.len() as u64;
            if old_end > end {
                self.writes.insert(end, old.split_off((end.max(at) - at) as usize));
            }
            if at < offset {
                old.truncate((offset - at) as usize);
                self.writes.insert(at, old);
            }
        }
        self.writes.insert(offset, bytes.to_vec());
    }

    /// Lays what was written over what was read.
    fn overlay(&self, offset: u64, into: &mut [u8]) {
        let end = offset + into.len() as u64;
        for (&at, bytes) in self.writes.range(..end) {
            let (from, to) = (at.max(offset), (at + bytes.len() as u64).min(end));
            if from < to {
                let source = &bytes[(from - at) as usize..(to - at) as usize];
                into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
    }

    fn bytes(&self, on_disk: u64) -> u64 {
        let written = self.writes.last_key_value().map_or(0, |(at, bytes)| at + bytes.len() as u64);
        on_disk.max(written).max(self.allocated.unwrap_or(0))
    }
}

type Files = Arc<Mutex<BTreeMap<String, Arc<Mutex<Unsynced>>>>>;

/// See the module.
pub struct Forgetful<D> {
    disk: D,
    files: Files,
}

impl<D: Disk> Forgetful<D> {
    /// A forgetful shell around `disk`.
    pub fn new(disk: D) -> Self {
        Self { disk, files: Files::default() }
    }

    fn file(&self, path: &str, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        let unsynced = Arc::clone(locked(&self.files).entry(path.to_owned()).or_default());
        Box::new(ForgetfulFile { path: path.to_owned(), file, unsynced })
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is consistent between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Disk> Disk for Forgetful<D> {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        self.disk.list(directory)
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        // Whoever has the file open under this name goes on with what it had.
        locked(&self.files).remove(path);
        Ok(self.file(path, self.disk.create(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)?;
        let mut files = locked(&self.files);
        let unsynced = files.remove(from);
        match unsynced {
            Some(unsynced) => files.insert(to.to_owned(), unsynced),
            None => files.remove(to),
        };
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        locked(&self.files).remove(path);
        self.disk.remove(path)
    }

    fn sync_dir(&self, directory: &str) -> Result<(), DiskError> {
        self.disk.sync_dir(directory)
    }
}

struct ForgetfulFile {
    path: String,
    file: Box<dyn DiskFile>,
    unsynced: Arc<Mutex<Unsynced>>,
}

impl DiskFile for ForgetfulFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        let on_disk = self.file.bytes()?;
        Ok(locked(&self.unsynced).bytes(on_disk))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let on_disk = self.file.bytes()?;
        let unsynced = locked(&self.unsynced);
        if offset + into.len() as u64 > unsynced.bytes(on_disk) {
            let what = format!("reading {} bytes at {offset}: the file ends before", into.len());
            return Err(DiskError::Failed { path: self.path.clone(), what });
        }
        let there = (on_disk.saturating_sub(offset) as usize).min(into.len());
        into.fill(0);
        if there > 0 {
            self.file.read_at(offset, &mut into[..there])?;
        }
        unsynced.overlay(offset, into);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        locked(&self.unsynced).write(offset, bytes);
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        locked(&self.unsynced).allocated = Some(bytes);
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        let mut unsynced = locked(&self.unsynced);
        if let Some(bytes) = unsynced.allocated.take() {
            self.file.allocate(bytes)?;
        }
        for (offset, bytes) in std::mem::take(&mut unsynced.writes) {
            self.file.write_at(offset, &bytes)?;
        }
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use thalweg_journal::MemoryDisk;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_handed_over_when_it_is_synced() {
        let disk = Forgetful::new(MemoryDisk::new());
        let file = disk.create("wal/a").expect("made");
        let same = disk.open("wal/a").expect("there");
        let read = |file: &dyn DiskFile, bytes: usize| {
            let mut into = vec![9; bytes];
            file.read_at(0, &mut into).map(|()| into)
        };
        file.write_at(0, b"aaaaaaaaaa").expect("kept");
        file.write_at(3, b"bbb").expect("kept");
        file.write_at(8, b"cccc").expect("kept");
        assert_eq!(read(&*same, 12).expect("read"), b"aaabbbaacccc");
        assert!(read(&*same, 13).is_err());
        assert_eq!(disk.disk.open("wal/a").and_then(|file| file.bytes()), Ok(0), "nothing was synced");
        file.allocate(20).expect("remembered");
        assert_eq!(file.bytes(), Ok(20));
        same.sync().expect("synced");
        assert_eq!(read(&*disk.disk.open("wal/a").expect("there"), 12).expect("read"), b"aaabbbaacccc");
        file.write_at(2, b"dddd").expect("kept");
        disk.rename("wal/a", "wal/b").expect("renamed");
        assert_eq!(read(&*disk.open("wal/b").expect("there"), 7).expect("read"), b"aadddda");
        assert_eq!(read(&*disk.disk.open("wal/b").expect("there"), 7).expect("read"), b"aaabbba");
    }
}
