//! A node that dies between any two operations of its disk recovers everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thalweg_protocol::ids::{CoreId, Position};

use super::super::*;
use super::story::{Story, write_wal};
use crate::disk::{Disk, DiskError, DiskFile, MemoryDisk};
use crate::error::LogError;
use crate::recovery::recover;

/// A disk that does so many operations that change something, and then none.
struct Mortal {
    disk: MemoryDisk,
    left: Arc<AtomicU64>,
}

struct MortalFile {
    file: Box<dyn DiskFile>,
    left: Arc<AtomicU64>,
}

fn spend(left: &AtomicU64) -> Result<(), DiskError> {
    match left.load(Ordering::Relaxed) {
        0 => Err(DiskError::Failed { path: "any".into(), what: "the node died".into() }),
        n => {
            left.store(n - 1, Ordering::Relaxed);
            Ok(())
        }
    }
}

impl Mortal {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(MortalFile { file, left: Arc::clone(&self.left) })
    }
}

impl Disk for Mortal {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        self.disk.list(directory)
    }
    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(self.file(self.disk.open(path)?))
    }
    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        spend(&self.left)?;
        Ok(self.file(self.disk.create(path)?))
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        spend(&self.left)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> Result<(), DiskError> {
        spend(&self.left)?;
        self.disk.remove(path)
    }
    fn sync_dir(&self, directory: &str) -> Result<(), DiskError> {
        spend(&self.left)?;
        self.disk.sync_dir(directory)
    }
}

impl DiskFile for MortalFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        self.file.bytes()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        // What dies while it writes has written a part.
        if spend(&self.left).is_err() {
            self.file.write_at(offset, &bytes[..bytes.len() / 2])?;
            return spend(&self.left);
        }
        self.file.write_at(offset, bytes)
    }
    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        spend(&self.left)?;
        self.file.allocate(bytes)
    }
    fn sync(&self) -> Result<(), DiskError> {
        spend(&self.left)?;
        self.file.sync()
    }
}

/// Does `what` on a copy of a disk, dying after 0, 1, 2… operations, and recovers after each death.
fn die_everywhere(story: &Story, disk: &MemoryDisk, what: &dyn Fn(&dyn Disk) -> Result<(), LogError>) {
    for operations in 0.. {
        let left = Arc::new(AtomicU64::new(operations));
        let mortal = Mortal { disk: disk.copy(), left };
        let done = what(&mortal).is_ok();
        let recovered = recover(&mortal.disk, 1_024).expect("everything is there");
        assert_eq!(recovered.states, story.states(), "after {operations} operations");
        for ((partition, channel), messages) in story.messages() {
            let read = recovered.shelf.read(partition, channel, Position(1), Position(u64::MAX), 9_999, usize::MAX);
            assert_eq!(read.as_ref(), Ok(&messages), "after {operations} operations");
        }
        assert_eq!(verify(&mortal.disk).expect("no faults").problems, [], "after {operations} operations");
        assert!(mortal.disk.list(SEGMENTS).expect("no faults").iter().all(|file| file.ends_with(".seg")));
        if done {
            return;
        }
    }
}

#[test]
fn a_recovery_that_dies_is_begun_again() {
    let story = Story::chatter(600, 300);
    let disk = MemoryDisk::default();
    recover(&disk, 1_024).expect("a new log");
    for (at, records) in story.records.chunks(200).enumerate() {
        write_wal(&disk, CoreId(0), at as u64 + 1, records);
    }
    die_everywhere(&story, &disk, &|disk| recover(disk, 1_024).map(drop));
}

#[test]
fn a_new_log_that_dies_is_begun_again() {
    die_everywhere(&Story::default(), &MemoryDisk::default(), &|disk| recover(disk, 1_024).map(drop));
}

#[test]
fn a_merge_that_dies_leaves_what_was_there() {
    let story = Story::chatter(600, 300);
    let disk = MemoryDisk::default();
    recover(&disk, 1_024).expect("a new log");
    for (at, records) in story.records.chunks(150).enumerate() {
        write_wal(&disk, CoreId(0), at as u64 + 1, records);
    }
    let shelf = recover(&disk, 1_024).expect("intact").shelf;
    die_everywhere(&story, &disk, &|disk| {
        let (parts, rest) = shelf.0.split_at(3);
        assert!(!rest.is_empty());
        merge(disk, parts, &|_, _| None, 0)?;
        let names: Vec<SegmentName> = parts.iter().map(|part| part.name()).collect();
        Ok(remove_replaced(disk, &names)?)
    });
}

/// A disk that has room for so many bytes more.
struct Small {
    disk: MemoryDisk,
    room: Arc<AtomicU64>,
}

struct SmallFile {
    file: Box<dyn DiskFile>,
    room: Arc<AtomicU64>,
}

impl Disk for Small {
    fn list(&self, directory: &str) -> Result<Vec<String>, DiskError> {
        self.disk.list(directory)
    }
    fn open(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        self.disk.open(path)
    }
    fn create(&self, path: &str) -> Result<Box<dyn DiskFile>, DiskError> {
        Ok(Box::new(SmallFile { file: self.disk.create(path)?, room: Arc::clone(&self.room) }))
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

impl DiskFile for SmallFile {
    fn bytes(&self) -> Result<u64, DiskError> {
        self.file.bytes()
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let left = self.room.load(Ordering::Relaxed).checked_sub(bytes.len() as u64);
        self.room.store(left.ok_or_else(|| DiskError::Full { path: "any".into() })?, Ordering::Relaxed);
        self.file.write_at(offset, bytes)
    }
    fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        self.file.allocate(bytes)
    }
    fn sync(&self) -> Result<(), DiskError> {
        self.file.sync()
    }
}

#[test]
fn a_merge_without_room_takes_none() {
    let story = Story::chatter(600, 300);
    let files = MemoryDisk::default();
    recover(&files, 1_024).expect("a new log");
    for (at, records) in story.records.chunks(150).enumerate() {
        write_wal(&files, CoreId(0), at as u64 + 1, records);
    }
    let shelf = recover(&files, 1_024).expect("intact").shelf;
    let names = |disk: &dyn Disk| disk.list(SEGMENTS).expect("listed");
    let before = names(&files);
    for room in [0, 1] {
        let disk = Small { disk: files.copy(), room: Arc::new(AtomicU64::new(room)) };
        let merged = merge(&disk, &shelf.0, &|_, _| None, 0);
        assert!(matches!(merged, Err(LogError::Disk(DiskError::Full { .. }))), "{merged:?}");
        assert_eq!(names(&disk), before);
    }
    let disk = Small { disk: files, room: Arc::new(AtomicU64::new(1 << 30)) };
    let merged = merge(&disk, &shelf.0, &|_, _| None, 0).expect("there is room");
    assert!(names(&disk).len() == before.len() + 1 && merged.range().1 as usize == before.len());
}

#[test]
fn a_checkpoint_that_dies_leaves_what_was_there() {
    let story = Story::chatter(400, 300);
    let disk = MemoryDisk::default();
    recover(&disk, 1_024).expect("a new log");
    let path = write_wal(&disk, CoreId(0), 1, &story.records[..300]);
    write_wal(&disk, CoreId(0), 2, &story.records[300..]);
    die_everywhere(&story, &disk, &|disk| {
        seal(disk, &path, 1, None)?;
        publish(disk, 1)?;
        Ok(())
    });
}
