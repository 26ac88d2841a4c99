//! A disk that loses what was not synced, even if only the process dies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thalweg_journal::{Disk, DiskError, DiskFile};

/// Keeps in memory what was written and not synced, and passes it on to another disk when it is.
///
/// The system keeps what a process wrote, synced or not, when the process is killed; only the loss of power takes it away.
/// With this between a node and its disk, a killed node has lost power: for tests with real processes. Renames and removals
/// wait for their directory's sync as well. A file that was made is there at once, empty; a real disk may do so, too.
pub struct ForgetfulDisk {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What happened to names and is not synced, in order.
    changes: Vec<Change>,
    /// What is open or has unsynced bytes, by its present name.
    files: BTreeMap<String, Arc<FileState>>,
}

enum Change {
    Renamed { from: String, to: String },
    Removed(String),
}

impl Change {
    fn is_in(&self, directory: &str) -> bool {
        let (Self::Renamed { from: path, .. } | Self::Removed(path)) = self;
        path.rsplit_once('/').map_or("", |(directory, _)| directory) == directory
    }
}

struct FileState {
    file: Box<dyn DiskFile>,
    unsynced: Mutex<Vec<(u64, Vec<u8>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ForgetfulDisk {
    /// What loses what `disk` did not get yet.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, state: Mutex::default() }
    }
}

impl State {
    /// The name on the disk of what has this name now; none if it was removed.
    fn name_on_disk(&self, path: &str) -> Option<String> {
        let mut name = path.to_owned();
        for change in self.changes.iter().rev() {
            match change {
                Change::Renamed { from, to } if *to == name => name.clone_from(from),
                Change::Renamed { from: gone, .. } | Change::Removed(gone) if *gone == name => return None,
                _ => {}
            }
        }
        Some(name)
    }

    /// Makes the disk take what happened to the names of a directory.
    fn flush(&mut self, disk: &dyn Disk, directory: &str) -> Result<(), DiskError> {
        let (of_it, others) = std::mem::take(&mut self.changes).into_iter().partition(|c: &Change| c.is_in(directory));
        self.changes = others;
        let of_it: Vec<Change> = of_it;
        for change in of_it {
            match change {
                Change::Renamed { from, to } => disk.rename(&from, &to)?,
                Change::Removed(path) => disk.remove(&path)?,
            }
        }
        Ok(())
    }
}

impl Disk for ForgetfulDisk {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        let state = lock(&self.state);
        let mut names = self.disk.list(directory)?;
        let name = |path: &str| path.rsplit_once('/').map_or(path, |(_, name)| name).to_owned();
        for change in state.changes.iter().filter(|change| change.is_in(directory)) {
            let (Change::Renamed { from: gone, .. } | Change::Removed(gone)) = change;
            names.retain(|other| *other != name(gone));
            if let Change::Renamed { to, .. } = change
                && !names.contains(&name(to))
            {
                names.push(name(to));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        let mut state = lock(&self.state);
        if let Some(open) = state.files.get(path) {
            return Ok(Box::new(ForgetfulFile(Arc::clone(open))));
        }
        let missing = || DiskError::Missing { path: path.to_owned() };
        let file = self.disk.open(&state.name_on_disk(path).ok_or_else(missing)?)?;
        let opened = Arc::new(FileState { file, unsynced: Mutex::default() });
        state.files.insert(path.to_owned(), Arc::clone(&opened));
        Ok(Box::new(ForgetfulFile(opened)))
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        let mut state = lock(&self.state);
        // A disk may take what happened to names at any time. Here it must, or the new file would get an old one's place.
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        state.flush(&*self.disk, directory)?;
        let made = Arc::new(FileState { file: self.disk.create(path)?, unsynced: Mutex::default() });
        state.files.insert(path.to_owned(), Arc::clone(&made));
        Ok(Box::new(ForgetfulFile(made)))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = lock(&self.state);
        let missing = || DiskError::Missing { path: from.to_owned() };
        self.disk.open(&state.name_on_disk(from).ok_or_else(missing)?)?;
        state.changes.push(Change::Renamed { from: from.to_owned(), to: to.to_owned() });
        match state.files.remove(from) {
            Some(open) => state.files.insert(to.to_owned(), open),
            None => state.files.remove(to),
        };
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        let mut state = lock(&self.state);
        let missing = || DiskError::Missing { path: path.to_owned() };
        self.disk.open(&state.name_on_disk(path).ok_or_else(missing)?)?;
        state.changes.push(Change::Removed(path.to_owned()));
        state.files.remove(path);
        Ok(())
    }

    fn sync_dir(&self, directory: &str) -> Result<(), DiskError> {
        let mut state = lock(&self.state);
        state.flush(&*self.disk, directory)?;
        state.files.retain(|_, open| Arc::strong_count(open) > 1 || !lock(&open.unsynced).is_empty());
        self.disk.sync_dir(directory)
    }
}

struct ForgetfulFile(Arc<FileState>);

impl DiskFile for ForgetfulFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        let unsynced = lock(&self.0.unsynced);
        let written = unsynced.iter().map(|(offset, bytes)| offset + bytes.len() as u64).max();
        Ok(self.0.file.bytes()?.max(written.unwrap_or(0)))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let bytes = self.bytes()?;
        let unsynced = lock(&self.0.unsynced);
        let on_disk = self.0.file.bytes()?.saturating_sub(offset).min(into.len() as u64) as usize;
        if offset + into.len() as u64 <= bytes {
            self.0.file.read_at(offset, &mut into[..on_disk])?;
            into[on_disk..].fill(0);
        } else {
            self.0.file.read_at(offset, into)?;
        }
        let end = offset + into.len() as u64;
        for (at, written) in unsynced.iter() {
            let (from, to) = ((*at).max(offset), (at + written.len() as u64).min(end));
            if from < to {
                let source = &written[(from - at) as usize..(to - at) as usize];
                into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        lock(&self.0.unsynced).push((offset, bytes.to_vec()));
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        self.0.file.allocate(bytes)
    }

    fn sync(&self) -> Result<(), DiskError> {
        // Held all the while, so that a write that comes meanwhile is not taken for synced.
        let mut unsynced = lock(&self.0.unsynced);
        for (offset, bytes) in unsynced.iter() {
            self.0.file.write_at(*offset, bytes)?;
        }
        self.0.file.sync()?;
        unsynced.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::disk::FileDisk;
    use crate::identity::tests::TempDir;

    #[test]
    fn what_was_not_synced_is_only_seen_until_it_dies() {
        let dir = TempDir::new();
        let files: Arc<dyn Disk> = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
        let disk = ForgetfulDisk::new(Arc::clone(&files));
        let read = |disk: &dyn Disk, path: &str| {
            let file = disk.open(path).ok()?;
            let mut bytes = vec![0; file.bytes().ok()? as usize];
            file.read_at(0, &mut bytes).ok()?;
            Some(bytes)
        };
        let file = disk.create("wal/a.new").expect("made");
        file.allocate(6).expect("room");
        file.write_at(0, b"one").expect("written");
        file.sync().expect("synced");
        file.write_at(2, b"two").expect("written");
        disk.rename("wal/a.new", "wal/a").expect("renamed");
        assert_eq!((read(&disk, "wal/a"), read(&disk, "wal/a.new")), (Some(b"ontwo\0".to_vec()), None));
        assert_eq!(disk.list("wal"), Ok(vec!["a".into()]));
        assert_eq!(read(&*files, "wal/a.new"), Some(b"one\0\0\0".to_vec()), "this is what a crash leaves");
        disk.sync_dir("wal").expect("synced");
        assert_eq!(read(&*files, "wal/a"), Some(b"one\0\0\0".to_vec()));
        file.sync().expect("synced");
        assert_eq!(read(&*files, "wal/a"), Some(b"ontwo\0".to_vec()));
        disk.rename("wal/a", "wal/b").expect("renamed");
        disk.rename("wal/b", "wal/c").expect("renamed");
        assert_eq!((read(&disk, "wal/c"), read(&disk, "wal/b")), (Some(b"ontwo\0".to_vec()), None));
        disk.remove("wal/c").expect("removed");
        assert_eq!((disk.list("wal"), files.list("wal")), (Ok(vec![]), Ok(vec!["a".into()])));
        disk.sync_dir("wal").expect("synced");
        assert_eq!(files.list("wal"), Ok(vec![]));
        assert_eq!(disk.remove("wal/c"), Err(DiskError::Missing { path: "wal/c".into() }));
    }
}
