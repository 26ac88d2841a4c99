//! The node's end of its disk: batches are written and synced, full files are sealed, segments are merged, and messages
//! are read back, each in an event of its own, so that the power may go between any two.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use thalweg_domain::record::{Event as RecordEvent, Record};
use thalweg_journal::segment::{Segment, Shelf, merge, merge_candidates, publish, remove_replaced, seal};
use thalweg_journal::wal::{Closed, NewFile, Wal, WalFile, parse_wal_path, prepare, wal_path};
use thalweg_journal::{Disk as _, DiskError, DiskFile, LogError};
use thalweg_protocol::ids::{ChannelId, CoreId, Epoch, Partition, Position};
use thalweg_protocol::limits::{HISTORY_BATCH_BYTES, HISTORY_BATCH_MESSAGES};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_shard::{Input, ReadId, Ticket};
use thalweg_workload::auditor::Event as Seen;

use crate::client::is_doomed;
use crate::faults::Fault;
use crate::world::{Crash, Event, Plant, World};

/// What was tried in vain for want of room is tried again after this, in microseconds.
const RETRY_US: u64 = 4_000;
/// Files that are kept to be used again.
const FREE_MAX: usize = 3;

/// A read of history that is under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) read: ReadId,
    pub(crate) partition: Partition,
    pub(crate) channel: ChannelId,
    pub(crate) from: Position,
    pub(crate) to: Position,
}

/// The log of a core.
pub(crate) struct CoreLog {
    wal: Wal,
    files: BTreeMap<u64, Box<dyn DiskFile>>,
    /// The batch that was written and is not synced: of which file, and its buffer.
    unsynced: Option<(u64, Vec<u8>)>,
}

/// All that a node knows of its disk.
#[derive(Default)]
pub(crate) struct Storage {
    cores: Vec<CoreLog>,
    pub(crate) shelf: Shelf,
    free: Vec<String>,
    number: u64,
    closed: VecDeque<(CoreId, Closed)>,
    archiving: bool,
    full: bool,
    file_bytes: u64,
    log_us: u64,
}

impl Storage {
    pub(crate) fn new(shelf: Shelf, free: Vec<String>, file_bytes: u64, log_us: u64) -> Self {
        let number = shelf.0.last().map_or(0, |segment| segment.range().1);
        let (cores, closed) = (Vec::new(), VecDeque::new());
        Self { cores, shelf, free, number, closed, archiving: false, full: false, file_bytes, log_us }
    }
}

fn at(core: CoreId) -> usize {
    usize::from(core.0)
}

impl World {
    /// Prepares a file of a core's log.
    pub(crate) fn prepare_file(&mut self, core: CoreId, generation: u64) -> Result<WalFile, DiskError> {
        let (salt, epoch) = (rand::Rng::random(&mut self.rng), Epoch(self.epoch));
        let file = NewFile { core, generation, epoch, salt, bytes: self.node.storage.file_bytes };
        let recycle = self.node.storage.free.pop();
        let made = prepare(&self.disk, file, recycle.as_deref());
        match (&made, recycle) {
            (Ok(_), Some(_)) => self.faults.count(Fault::Recycled),
            // Renamed or not, the next recovery finds it; it cannot be used in this life.
            (Err(_), _) | (Ok(_), None) => {}
        }
        made
    }

    /// Begins the log of the next core in its first file.
    pub(crate) fn begin_log(&mut self, core: CoreId, generation: u64) -> Result<(), DiskError> {
        let file = self.prepare_file(core, generation)?;
        let opened = self.disk.open(&wal_path(core, generation))?;
        let files = BTreeMap::from([(generation, opened)]);
        self.node.storage.cores.push(CoreLog { wal: Wal::new(core, file), files, unsynced: None });
        Ok(())
    }

    pub(crate) fn append(&mut self, core: CoreId, ticket: Ticket, record: Record) {
        self.trace.word(record.lsn.0);
        self.node.storage.cores[at(core)].wal.append(ticket.0, &record);
        let written = match &record.event {
            RecordEvent::Published(posting) if is_doomed(&posting.channel.channel) => {
                Some((posting.message.session, posting.message.sequence))
            }
            _ => None,
        };
        if let Err(text) = self.truth.append(core, ticket, record) {
            self.violation(text);
        }
        if let Some((session, sequence)) = written
            && let Some(channel) = self.truth.life_of(session, sequence)
        {
            self.auditor.record(Seen::Resent { session, sequence, channel });
        }
        self.flush(core);
    }

    /// Writes the next batch, unless one is under way.
    fn flush(&mut self, core: CoreId) {
        if self.crashing.is_some() {
            return;
        }
        let own = &mut self.node.storage.cores[at(core)];
        let write = own.wal.next_write();
        if own.wal.wants_file() {
            own.wal.file_wanted();
            self.within(500, Event::Prepare { core });
        }
        self.drain_closed(core);
        let Some(write) = write else { return };
        let own = &mut self.node.storage.cores[at(core)];
        let result = match own.files.get(&write.generation) {
            Some(file) => file.write_at(write.offset, &write.bytes),
            None => Err(DiskError::Missing { path: wal_path(core, write.generation) }),
        };
        self.trace.word(write.offset);
        if let Err(error) = result {
            return self.disk_failed(&error);
        }
        own.unsynced = Some((write.generation, write.bytes));
        if self.options.plant == Some(Plant::AnswerBeforeSync) {
            return self.finish_write(core);
        }
        self.within(self.node.storage.log_us, Event::Synced { core });
    }

    /// The sync of a batch comes to its end.
    pub(crate) fn synced(&mut self, core: CoreId) {
        let own = &self.node.storage.cores[at(core)];
        let Some((generation, _)) = &own.unsynced else { return };
        let result = own.files.get(generation).map_or(Ok(()), |file| file.sync());
        match result {
            Ok(()) => self.finish_write(core),
            Err(error) => self.disk_failed(&error),
        }
    }

    fn finish_write(&mut self, core: CoreId) {
        let own = &mut self.node.storage.cores[at(core)];
        let Some((_, buffer)) = own.unsynced.take() else { return };
        let before = own.wal.durable();
        let ticket = own.wal.written(buffer);
        if ticket > before + 1 {
            self.faults.count(Fault::Grouped);
        }
        let ticket = Ticket(ticket);
        self.truth.durable(core, ticket);
        std::mem::take(&mut self.truth.chronicle.wrong).into_iter().for_each(|text| self.violation(text));
        self.input(core, Input::Durable { ticket });
        self.drain_closed(core);
        self.flush(core);
    }

    /// Prepares the next file of a core, or says that the disk is full.
    pub(crate) fn prepare(&mut self, core: CoreId) {
        let generation = self.node.storage.cores[at(core)].wal.next_generation();
        let made = self.prepare_file(core, generation);
        let made = made.and_then(|file| Ok((file, self.disk.open(&wal_path(core, generation))?)));
        match made {
            Ok((file, opened)) => {
                let own = &mut self.node.storage.cores[at(core)];
                own.files.insert(generation, opened);
                own.wal.file_ready(file);
                self.set_full(None);
                self.drain_closed(core);
                self.flush(core);
            }
            Err(DiskError::Full { path }) => {
                self.node.storage.cores[at(core)].wal.file_failed();
                self.set_full(Some(path));
                self.node.storage.cores[at(core)].wal.file_wanted();
                self.within(RETRY_US, Event::Prepare { core });
            }
            Err(error) => self.disk_failed(&error),
        }
    }

    fn set_full(&mut self, full: Option<String>) {
        if std::mem::replace(&mut self.node.storage.full, full.is_some()) == full.is_some() {
            return;
        }
        self.faults.add(Fault::DiskFull, u64::from(full.is_some()));
        self.note(format_args!("the disk is full: {full:?}"));
        for core in 0..self.node.cores.len() {
            self.input(CoreId(core as u16), Input::Storage { full: full.clone() });
        }
    }

    fn drain_closed(&mut self, core: CoreId) {
        while let Some(closed) = self.node.storage.cores[at(core)].wal.poll_closed() {
            self.node.storage.closed.push_back((core, closed));
            if !std::mem::replace(&mut self.node.storage.archiving, true) {
                self.within(3_000, Event::Archive);
            }
        }
    }

    /// Goes to the next file on every core.
    pub(crate) fn checkpoint(&mut self) {
        self.faults.count(Fault::Checkpointed);
        for core in 0..self.node.cores.len() {
            self.node.storage.cores[core].wal.close();
            self.flush(CoreId(core as u16));
        }
    }

    /// Does the next piece of work in the background.
    pub(crate) fn archive(&mut self) {
        let done = match self.node.storage.closed.pop_front() {
            Some((core, closed)) => {
                let done = self.seal(core, closed);
                if matches!(done, Err(LogError::Disk(DiskError::Full { .. }))) {
                    self.node.storage.closed.push_front((core, closed));
                }
                done.map(|()| true)
            }
            None => self.merge(),
        };
        match done {
            Ok(true) => self.within(3_000, Event::Archive),
            Ok(false) => self.node.storage.archiving = false,
            Err(LogError::Disk(DiskError::Full { .. })) => self.within(RETRY_US, Event::Archive),
            Err(error) => self.log_failed(&error),
        }
    }

    fn seal(&mut self, core: CoreId, closed: Closed) -> Result<(), LogError> {
        let path = wal_path(core, closed.generation);
        let number = self.node.storage.number + 1;
        seal(&self.disk, &path, number, Some(closed.end))?;
        let segment = publish(&self.disk, number)?;
        self.faults.count(Fault::Sealed);
        self.note(format_args!("{path} is sealed as {number}"));
        let storage = &mut self.node.storage;
        storage.number = number;
        storage.shelf.0.push(Arc::new(segment));
        if let Some(own) = storage.cores.get_mut(at(core)) {
            own.files.remove(&closed.generation);
        }
        self.truth.archived(core, Ticket(closed.through));
        self.input(core, Input::Archived { ticket: Ticket(closed.through) });
        self.free_file(path)
    }

    fn free_file(&mut self, path: String) -> Result<(), LogError> {
        if self.node.storage.free.len() >= FREE_MAX {
            self.disk.remove(&path)?;
            self.disk.sync_dir("wal")?;
        } else {
            self.node.storage.free.push(path);
        }
        Ok(())
    }

    fn merge(&mut self) -> Result<bool, LogError> {
        let sizes: Vec<u64> = self.node.storage.shelf.0.iter().map(|segment| segment.bytes()).collect();
        let range = match merge_candidates(&sizes) {
            Some(range) => range,
            // Now and then more eagerly than it would be worth, so that small runs see it too.
            None if sizes.len() > 2 && self.chance(0.2) => {
                let first = self.below(sizes.len() as u64 - 1) as usize;
                first..(first + 2 + self.below(3) as usize).min(sizes.len())
            }
            None => return Ok(false),
        };
        let now_us = self.now().wall_us;
        let floors = match self.truth.raise_floors(now_us) {
            Ok(floors) => floors,
            Err(text) => {
                self.violation(text);
                return Ok(false);
            }
        };
        let parts = self.node.storage.shelf.0[range.clone()].to_vec();
        let beyond = u64::from(self.options.plant == Some(Plant::DropKept));
        let floor = |partition, channel| floors.get(&(partition, channel)).map(|floor| Position(floor.0 + beyond));
        let merged = merge(&self.disk, &parts, &floor, now_us)?;
        self.faults.count(Fault::Merged);
        self.note(format_args!("{} segments are merged into {}", parts.len(), merged.name()));
        self.node.storage.shelf.0.splice(range, [Arc::new(merged)]);
        let replaced: Vec<_> = parts.iter().map(|part: &Arc<Segment>| part.name()).collect();
        if self.chance(0.8) {
            remove_replaced(&self.disk, &replaced)?;
        }
        Ok(true)
    }

    pub(crate) fn begin_read(&mut self, core: CoreId, reading: Reading) {
        self.within(2_000, Event::Reads { core, reading });
    }

    pub(crate) fn read_back(&mut self, core: CoreId, reading: Reading) {
        let Reading { read, partition, channel, from, to } = reading;
        self.faults.count(Fault::ReadFromDisk);
        let (messages, bytes) = (HISTORY_BATCH_MESSAGES, HISTORY_BATCH_BYTES);
        let found = self.node.storage.shelf.read(partition, channel, from, to, messages, bytes);
        let result = match found {
            Ok(messages) => {
                if let Err(text) = self.truth.check(partition, channel, from, to, &messages) {
                    self.violation(text);
                }
                Ok(messages)
            }
            // The power went in an operation whose failure nobody minds, and this is the first to notice.
            Err(LogError::Disk(error)) if self.disk.is_off() => return self.disk_failed(&error),
            Err(error) => {
                if !self.rotten() {
                    self.violation(format!("core {core} cannot read {channel} from {from}: {error}"));
                }
                self.faults.count(Fault::RotRefusedRead);
                Err(Reject::new(RejectCode::StorageDamaged, "the disk does not hold what was written"))
            }
        };
        self.input(core, Input::Read { read, result });
    }

    /// The log of the node is not what it should be: the node stops.
    fn log_failed(&mut self, error: &LogError) {
        match error {
            LogError::Disk(error) => self.disk_failed(error),
            error if self.rotten() => {
                self.note(format_args!("the node stops: {error}"));
                self.faults.count(Fault::RotStopped);
                self.repair();
                self.crashing = Some(Crash::Process);
            }
            error => {
                self.violation(format!("the log is damaged, and nobody did it: {error}"));
                self.broken = true;
            }
        }
    }

    /// Whether a sync failed since the last call.
    pub(crate) fn sync_failed(&mut self) -> bool {
        let failed = self.disk.counts().syncs_failed;
        std::mem::replace(&mut self.syncs_failed, failed) != failed
    }

    /// The disk did not do what it was asked: the node stops.
    fn disk_failed(&mut self, error: &DiskError) {
        self.note(format_args!("the node stops: {error}"));
        let off = self.disk.is_off();
        if !self.sync_failed() && !off {
            self.violation(format!("the disk refused: {error}"));
            self.broken = true;
        }
        let power = off || self.chance(0.5);
        self.crashing = Some(if power { Crash::Power } else { Crash::Process });
    }

    /// Which files of the write-ahead log there are, with their cores and generations.
    pub(crate) fn wal_files(&self) -> Vec<(String, CoreId, u64)> {
        let files = self.disk.files().into_iter();
        files.filter_map(|(path, _)| parse_wal_path(&path).map(|(core, generation)| (path, core, generation))).collect()
    }
}
