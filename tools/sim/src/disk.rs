//! A disk of memory that forgets what it may forget: what was not synced is kept, lost or torn when the power goes.
//!
//! - Bytes: [`DiskFile::sync`] makes them durable. Of what was written since, every sector of 512 bytes may be there or not.
//! - Length: as the bytes; a file may come back at any length between the durable and the newest one.
//! - Names: [`Disk::sync_dir`] makes them durable. Of what was done since to a directory, the first so many changes may be
//!   there, in their order, as a journaled file system does it; each directory for itself.
//! - A sync that failed leaves behind a disk that believes to have written what it has not: a second sync changes nothing.

mod inode;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use thalweg_journal::{Disk, DiskError, DiskFile};

use inode::Inode;

use crate::faults::Fault;

/// What a disk did to those who trusted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskCounts {
    pub(crate) writes_kept: u64,
    pub(crate) writes_lost: u64,
    pub(crate) writes_torn: u64,
    pub(crate) lengths_lost: u64,
    pub(crate) changes_undone: u64,
    pub(crate) crashed_in_write: u64,
    pub(crate) crashed_in_sync: u64,
    pub(crate) crashed_in_change: u64,
    pub(crate) refused_full: u64,
    pub(crate) syncs_failed: u64,
    pub(crate) operations: u64,
}

impl DiskCounts {
    /// The same, as faults of the simulation.
    pub(crate) fn faults(&self) -> [(Fault, u64); 10] {
        [
            (Fault::WriteKept, self.writes_kept),
            (Fault::WriteLost, self.writes_lost),
            (Fault::WriteTorn, self.writes_torn),
            (Fault::LengthLost, self.lengths_lost),
            (Fault::NameLost, self.changes_undone),
            (Fault::CrashedInWrite, self.crashed_in_write),
            (Fault::CrashedInSync, self.crashed_in_sync),
            (Fault::CrashedInRename, self.crashed_in_change),
            (Fault::WriteRefusedFull, self.refused_full),
            (Fault::SyncFailed, self.syncs_failed),
        ]
    }
}

/// A change to a directory that is not durable.
#[derive(Debug)]
enum Change {
    Link { name: String, inode: u64 },
    Rename { from: String, to: String },
    Remove { name: String },
}

#[derive(Debug, Default)]
struct Directory {
    now: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    changes: Vec<Change>,
}

fn change(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Link { name, inode } => {
            names.insert(name.clone(), *inode);
        }
        Change::Rename { from, to } => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        Change::Remove { name } => {
            names.remove(name);
        }
    }
}

struct State {
    rng: StdRng,
    /// Which life of the machine this is; what was opened in another one is of no use.
    life: u64,
    /// The power is off until [`FakeDisk::crash`].
    off: bool,
    directories: BTreeMap<String, Directory>,
    inodes: BTreeMap<u64, Inode>,
    inodes_made: u64,
    crash_in: Option<u64>,
    fail_sync_in: Option<u64>,
    bytes_max: usize,
    /// A planted defect: names are never made durable by asking for it.
    deaf: bool,
    counts: DiskCounts,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct FakeDisk(Arc<Mutex<State>>);

struct FakeFile {
    disk: FakeDisk,
    path: String,
    inode: u64,
    life: u64,
}

/// A flipped bit, to be flipped back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rot {
    pub(crate) path: String,
    pub(crate) offset: usize,
    inode: u64,
    bit: u8,
}

/// What an operation of a disk is, to those who count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Sync,
    Change,
}

fn failed(path: &str, what: &str) -> DiskError {
    DiskError::Failed { path: path.to_owned(), what: what.to_owned() }
}

/// Directory and name of a path.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl State {
    /// Whether an operation may be done. `Ok(true)`: the power goes while it is done.
    fn begin(&mut self, life: u64, path: &str, operation: Operation) -> Result<bool, DiskError> {
        if self.off || life != self.life {
            return Err(failed(path, "crashed"));
        }
        if operation == Operation::Read {
            return Ok(false);
        }
        self.counts.operations += 1;
        let Some(left) = &mut self.crash_in else { return Ok(false) };
        if *left > 0 {
            *left -= 1;
            return Ok(false);
        }
        self.crash_in = None;
        self.off = true;
        match operation {
            Operation::Write => self.counts.crashed_in_write += 1,
            Operation::Sync => self.counts.crashed_in_sync += 1,
            Operation::Change | Operation::Read => self.counts.crashed_in_change += 1,
        }
        Ok(true)
    }

    fn bytes(&self) -> usize {
        self.inodes.values().map(|inode| inode.now.len()).sum()
    }

    /// Whether a file may grow by so many bytes.
    fn room(&mut self, path: &str, more: usize) -> Result<(), DiskError> {
        if more > 0 && self.bytes() + more > self.bytes_max {
            self.counts.refused_full += 1;
            return Err(DiskError::Full { path: path.to_owned() });
        }
        Ok(())
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.entry(inode).or_default()
    }

    fn lookup(&self, path: &str) -> Option<u64> {
        let (directory, name) = split(path);
        self.directories.get(directory)?.now.get(name).copied()
    }

    fn do_change(&mut self, directory: &str, what: Change) {
        let directory = self.directories.entry(directory.to_owned()).or_default();
        change(&mut directory.now, &what);
        directory.changes.push(what);
    }

    /// Forgets the contents that nobody can reach.
    fn sweep(&mut self) {
        let names = self.directories.values().flat_map(|d| d.now.values().chain(d.durable.values()));
        let mut used: std::collections::BTreeSet<u64> = names.copied().collect();
        for directory in self.directories.values() {
            for what in &directory.changes {
                if let Change::Link { inode, .. } = what {
                    used.insert(*inode);
                }
            }
        }
        self.inodes.retain(|id, inode| inode.handles > 0 || used.contains(id));
    }

    fn crash(&mut self) {
        self.life += 1;
        self.off = false;
        (self.crash_in, self.fail_sync_in) = (None, None);
        self.bytes_max = usize::MAX;
        // How much of what was under way is there: rarely all or none, usually some.
        let kept = [0.0, 0.3, 0.7, 1.0][self.rng.random_range(0..4)];
        for directory in self.directories.values_mut() {
            let changes = std::mem::take(&mut directory.changes);
            let spared = self.rng.random_range(0..=changes.len());
            changes[..spared].iter().for_each(|what| change(&mut directory.durable, what));
            self.counts.changes_undone += (changes.len() - spared) as u64;
            directory.now = directory.durable.clone();
        }
        let (rng, counts) = (&mut self.rng, &mut self.counts);
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
            if !inode.unsynced.is_empty() || inode.emptied || inode.resized {
                inode.crash(kept, rng, counts);
            }
        }
        self.sweep();
    }
}

impl FakeDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            life: 1,
            off: false,
            directories: BTreeMap::new(),
            inodes: BTreeMap::new(),
            inodes_made: 0,
            crash_in: None,
            fail_sync_in: None,
            bytes_max: usize::MAX,
            deaf: false,
            counts: DiskCounts::default(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding the disk")
    }

    /// The power goes, and comes back.
    pub(crate) fn crash(&self) {
        self.state().crash();
    }

    /// The process ends: what it had open is of no use, but what it wrote is there, synced or not.
    pub(crate) fn kill(&self) {
        let mut state = self.state();
        state.life += 1;
        (state.crash_in, state.fail_sync_in, state.bytes_max) = (None, None, usize::MAX);
        state.inodes.values_mut().for_each(|inode| inode.handles = 0);
        state.sweep();
    }

    /// Writes into a file behind everybody's back, durably.
    pub(crate) fn overwrite(&self, path: &str, offset: usize, bytes: &[u8]) {
        let mut state = self.state();
        let Some(inode) = state.lookup(path) else { return };
        let inode = state.inode(inode);
        for content in [&mut inode.now, &mut inode.durable] {
            if let Some(place) = content.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
    }

    /// Lets the power go in the operation after `operations` further ones; reads do not count.
    pub(crate) fn crash_in(&self, operations: u64) {
        self.state().crash_in = Some(operations);
    }

    /// Whether the power is off.
    pub(crate) fn is_off(&self) -> bool {
        self.state().off
    }

    /// Lets the sync after `syncs` further ones fail.
    pub(crate) fn fail_sync_in(&self, syncs: u64) {
        self.state().fail_sync_in = Some(syncs);
    }

    /// Leaves so much room.
    pub(crate) fn limit(&self, free_bytes: usize) {
        let mut state = self.state();
        state.sweep();
        state.bytes_max = state.bytes() + free_bytes;
    }

    /// Takes the limit away.
    pub(crate) fn unlimit(&self) {
        self.state().bytes_max = usize::MAX;
    }

    /// A planted defect: makes [`Disk::sync_dir`] do nothing.
    pub(crate) fn turn_deaf(&self) {
        self.state().deaf = true;
    }

    /// Takes back what was planned.
    pub(crate) fn calm(&self) {
        let mut state = self.state();
        (state.crash_in, state.fail_sync_in, state.bytes_max) = (None, None, usize::MAX);
    }

    pub(crate) fn counts(&self) -> DiskCounts {
        self.state().counts
    }

    /// The files that are there, with their lengths.
    pub(crate) fn files(&self) -> Vec<(String, usize)> {
        let state = self.state();
        let mut files = Vec::new();
        for (directory, names) in &state.directories {
            for (name, inode) in &names.now {
                let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
                files.push((path, state.inodes.get(inode).map_or(0, |inode| inode.now.len())));
            }
        }
        files
    }

    /// The content of a file.
    pub(crate) fn content(&self, path: &str) -> Option<Vec<u8>> {
        let mut state = self.state();
        let inode = state.lookup(path)?;
        Some(state.inode(inode).now.clone())
    }

    /// Flips a bit of a file that is synced, on the disk and in memory.
    pub(crate) fn rot(&self, path: &str, offset: usize, bit: u8) -> Option<Rot> {
        let mut state = self.state();
        let inode = state.lookup(path)?;
        state.inode(inode).rot(offset, bit).then(|| Rot { path: path.to_owned(), offset, inode, bit })
    }

    /// Flips it back. A file that is gone, or was written over, needs no repair.
    pub(crate) fn repair(&self, rot: &Rot) {
        if let Some(inode) = self.state().inodes.get_mut(&rot.inode) {
            inode.repair(rot.offset, rot.bit);
        }
    }
}

impl FakeDisk {
    fn handle(&self, state: &mut State, path: &str, inode: u64) -> Box<dyn DiskFile> {
        state.inode(inode).handles += 1;
        Box::new(FakeFile { disk: self.clone(), path: path.to_owned(), inode, life: state.life })
    }
}

impl Disk for FakeDisk {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        let mut state = self.state();
        let life = state.life;
        state.begin(life, directory, Operation::Read)?;
        let names = state.directories.get(directory.trim_end_matches('/')).map(|d| d.now.keys().cloned().collect());
        Ok(names.unwrap_or_default())
    }

    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        let mut state = self.state();
        let life = state.life;
        state.begin(life, path, Operation::Read)?;
        let inode = state.lookup(path).ok_or_else(|| DiskError::Missing { path: path.to_owned() })?;
        Ok(self.handle(&mut state, path, inode))
    }

    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        let mut state = self.state();
        let life = state.life;
        let crashes = state.begin(life, path, Operation::Change)?;
        let inode = if let Some(inode) = state.lookup(path) {
            let content = state.inode(inode);
            content.now.clear();
            content.rots.clear();
            content.unsynced.clear();
            content.emptied = true;
            inode
        } else {
            state.inodes_made += 1;
            let (inode, (directory, name)) = (state.inodes_made, split(path));
            state.inodes.insert(inode, Inode::default());
            state.do_change(directory, Change::Link { name: name.to_owned(), inode });
            inode
        };
        if crashes {
            return Err(failed(path, "crashed"));
        }
        Ok(self.handle(&mut state, path, inode))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = self.state();
        let life = state.life;
        let crashes = state.begin(life, from, Operation::Change)?;
        let ((directory, from_name), (other, to_name)) = (split(from), split(to));
        if directory != other {
            return Err(failed(from, "this disk does not rename between directories"));
        }
        if state.lookup(from).is_none() {
            return Err(DiskError::Missing { path: from.to_owned() });
        }
        state.do_change(directory, Change::Rename { from: from_name.to_owned(), to: to_name.to_owned() });
        if crashes { Err(failed(from, "crashed")) } else { Ok(()) }
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        let mut state = self.state();
        let life = state.life;
        let crashes = state.begin(life, path, Operation::Change)?;
        if state.lookup(path).is_none() {
            return Err(DiskError::Missing { path: path.to_owned() });
        }
        let (directory, name) = split(path);
        state.do_change(directory, Change::Remove { name: name.to_owned() });
        if crashes { Err(failed(path, "crashed")) } else { Ok(()) }
    }

    fn sync_dir(&self, directory: &str) -> Result<(), DiskError> {
        let mut state = self.state();
        let life = state.life;
        if state.begin(life, directory, Operation::Sync)? {
            return Err(failed(directory, "crashed"));
        }
        if state.deaf {
            return Ok(());
        }
        if let Some(directory) = state.directories.get_mut(directory.trim_end_matches('/')) {
            directory.changes.clear();
            directory.durable = directory.now.clone();
        }
        state.sweep();
        Ok(())
    }
}

impl DiskFile for FakeFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        let mut state = self.disk.state();
        state.begin(self.life, &self.path, Operation::Read)?;
        Ok(state.inode(self.inode).now.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let mut state = self.disk.state();
        state.begin(self.life, &self.path, Operation::Read)?;
        let (from, bytes) = (offset as usize, into.len());
        match state.inode(self.inode).now.get(from..from.saturating_add(bytes)) {
            Some(content) => {
                into.copy_from_slice(content);
                Ok(())
            }
            None => Err(failed(&self.path, &format!("read of {bytes} bytes at {offset}: the file ends before"))),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut state = self.disk.state();
        let crashes = state.begin(self.life, &self.path, Operation::Write)?;
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        let more = to.saturating_sub(state.inode(self.inode).now.len());
        let room = state.room(&self.path, more);
        if room.is_err() && crashes {
            return Err(failed(&self.path, "crashed"));
        }
        room?;
        let inode = state.inode(self.inode);
        if more > 0 {
            inode.now.resize(to, 0);
            inode.resized = true;
        }
        inode.now[from..to].copy_from_slice(bytes);
        inode.rots.retain(|(offset, _)| !(from..to).contains(offset));
        inode.unsynced.push((from, bytes.to_vec()));
        if crashes { Err(failed(&self.path, "crashed")) } else { Ok(()) }
    }

    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        let mut state = self.disk.state();
        let crashes = state.begin(self.life, &self.path, Operation::Write)?;
        let more = (bytes as usize).saturating_sub(state.inode(self.inode).now.len());
        let room = state.room(&self.path, more);
        if room.is_err() && crashes {
            return Err(failed(&self.path, "crashed"));
        }
        room?;
        let inode = state.inode(self.inode);
        inode.unsynced.retain_mut(|(at, written)| {
            written.truncate((bytes as usize).saturating_sub(*at));
            !written.is_empty()
        });
        inode.resized |= inode.now.len() != bytes as usize;
        inode.now.resize(bytes as usize, 0);
        if crashes { Err(failed(&self.path, "crashed")) } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), DiskError> {
        let mut state = self.disk.state();
        if state.begin(self.life, &self.path, Operation::Sync)? {
            return Err(failed(&self.path, "crashed"));
        }
        let fails = match &mut state.fail_sync_in {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if fails {
            let state = &mut *state;
            state.fail_sync_in = None;
            state.counts.syncs_failed += 1;
            state.inodes.entry(self.inode).or_default().fail_sync(&mut state.rng);
            return Err(failed(&self.path, "sync: input/output error"));
        }
        state.inode(self.inode).sync();
        Ok(())
    }
}

impl Drop for FakeFile {
    fn drop(&mut self) {
        // The lock is poisoned only if something else is failing already.
        if let Ok(mut state) = self.disk.0.lock()
            && state.life == self.life
            && let Some(inode) = state.inodes.get_mut(&self.inode)
        {
            inode.handles -= 1;
        }
    }
}

#[cfg(test)]
mod tests;
