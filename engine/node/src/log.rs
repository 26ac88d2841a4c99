//! A core's end of the log: batches on their way to the disk, and what comes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use thalweg_domain::record::Record;
use thalweg_journal::DiskError;
use thalweg_journal::wal::Wal;
use thalweg_protocol::ids::CoreId;
use thalweg_shard::Ticket;

use crate::disk::{ArchiveCounters, ArchiveLink, FromArchive, LogFile, LogParts, LogWriter, ReadDone, ReadJob};
use crate::disk::{ReaderLink, WakeFds, Written};
use crate::stats::{CoreStats, NodeStage, sizes};

/// Something that the log has to say to its core.
pub(crate) enum LogNews {
    /// Everything up to this append is on the disk and synced.
    Durable(Ticket),
    /// Everything up to this append is in segments.
    Archived(Ticket),
    /// Whether the disk has room; if not, what it said.
    Storage(Option<String>),
    /// History was read back.
    Read(ReadDone),
    /// The checkpoint that a core asked for, under a number of its own, is done here, or cannot be.
    Checkpointed {
        /// Which core.
        from: CoreId,
        /// Its number.
        number: u64,
        /// What the disk said, if it has no room.
        result: Result<(), String>,
    },
}

/// The log of one core.
///
/// Contract: [`append`](Self::append) any number of records, then take the [`next`](Self::next) news until there is none.
/// That begins to write what was appended, if nothing is being written; what comes meanwhile gathers for the next batch. It
/// never waits. A failure is final: nothing that was not said to be durable may be acknowledged any more.
pub(crate) struct CoreLog {
    wal: Wal,
    writer: Box<dyn LogWriter>,
    /// The open files by generation: the one that is filled, and the next.
    files: VecDeque<(u64, Arc<LogFile>)>,
    archive: ArchiveLink,
    reader: ReaderLink,
    /// Reads the ring had no room for. Bounded by the reads a shard may have under way.
    reads: VecDeque<ReadJob>,
    appended: u64,
    /// The last ticket of the files that are complete.
    closed: u64,
    archived: u64,
    /// Checkpoints that wait until everything up to a ticket is in segments.
    checkpoints: VecDeque<(u64, CoreId, u64)>,
    /// What the disk said when it had no room. Until it has, checkpoints fail instead of waiting for who knows how long.
    full: Option<String>,
    counters: Counters,
    shared: Arc<ArchiveCounters>,
    is_first: bool,
}

struct Counters {
    batches: u64,
    bytes: u64,
    records: u64,
    files: u64,
    reads: u64,
    read_messages: u64,
    reads_failed: u64,
    batch_bytes: Histogram<u64>,
    batch_records: Histogram<u64>,
}

impl CoreLog {
    pub(crate) fn new(core: CoreId, parts: LogParts) -> Self {
        let LogParts { file, opened, writer, archive, reader, counters } = parts;
        Self {
            wal: Wal::new(core, file),
            writer,
            files: VecDeque::from([(file.generation, opened)]),
            archive,
            reader,
            reads: VecDeque::new(),
            appended: 0,
            closed: 0,
            archived: 0,
            checkpoints: VecDeque::new(),
            full: None,
            counters: Counters {
                batches: 0,
                bytes: 0,
                records: 0,
                files: 0,
                reads: 0,
                read_messages: 0,
                reads_failed: 0,
                batch_bytes: sizes(),
                batch_records: sizes(),
            },
            shared: counters,
            is_first: core == CoreId(0),
        }
    }

    /// Takes a record. Tickets come in order, without gaps.
    pub(crate) fn append(&mut self, ticket: Ticket, record: &Record) {
        debug_assert_eq!(ticket.0, self.appended + 1, "tickets come in order, without gaps");
        self.appended = ticket.0;
        self.wal.append(ticket.0, record);
    }

    /// Reads history back; [`LogNews::Read`] follows.
    pub(crate) fn read(&mut self, job: ReadJob) {
        self.reads.push_back(job);
        self.hand_over_reads();
    }

    /// Has everything that was appended until now moved into segments; [`LogNews::Checkpointed`] follows.
    pub(crate) fn checkpoint(&mut self, from: CoreId, number: u64) {
        self.checkpoints.push_back((self.appended, from, number));
        self.close_for_checkpoints();
    }

    /// The next news.
    ///
    /// # Errors
    /// If the disk failed.
    pub(crate) fn next(&mut self, stats: &mut CoreStats) -> Result<Option<LogNews>, DiskError> {
        if let Some(Written { bytes, took, result }) = self.writer.poll() {
            result?;
            stats.record(NodeStage::LogWrite, took);
            let records_before = self.wal.durable();
            let durable = self.wal.written(bytes);
            self.counters.records += durable - records_before;
            self.counters.batch_records.saturating_record(durable - records_before);
            self.close_for_checkpoints();
            self.go_on();
            return Ok(Some(LogNews::Durable(Ticket(durable))));
        }
        match self.archive.receive() {
            Some(FromArchive::Spare(file, opened)) => {
                self.files.push_back((file.generation, opened));
                self.wal.file_ready(file);
            }
            Some(FromArchive::Archived(through)) => {
                self.archived = through;
                return Ok(Some(LogNews::Archived(Ticket(through))));
            }
            Some(FromArchive::Storage(full)) => {
                self.full.clone_from(&full);
                return Ok(Some(LogNews::Storage(full)));
            }
            None => {}
        }
        self.go_on();
        if let Some((_, from, number)) = self.checkpoints.pop_front_if(|(through, ..)| *through <= self.archived) {
            return Ok(Some(LogNews::Checkpointed { from, number, result: Ok(()) }));
        }
        if let Some(said) = &self.full
            && let Some((_, from, number)) = self.checkpoints.pop_front()
        {
            return Ok(Some(LogNews::Checkpointed { from, number, result: Err(said.clone()) }));
        }
        self.hand_over_reads();
        Ok(self.reader.receive().map(|done| {
            self.counters.reads += 1;
            match &done.1 {
                Ok(messages) => self.counters.read_messages += messages.len() as u64,
                Err(_) => self.counters.reads_failed += 1,
            }
            LogNews::Read(done)
        }))
    }

    /// Begins the next batch, if there is one and none is under way, and sees to the files.
    fn go_on(&mut self) {
        if let Some(write) = self.wal.next_write() {
            let file = self.files.iter().find(|(generation, _)| *generation == write.generation);
            let (_, file) = file.expect("the file that is filled is open");
            self.counters.batches += 1;
            self.counters.bytes += write.bytes.len() as u64;
            self.counters.batch_bytes.saturating_record(write.bytes.len() as u64);
            self.writer.begin(file, write.offset, write.bytes);
        }
        while let Some(closed) = self.wal.poll_closed() {
            self.files.retain(|(generation, _)| *generation > closed.generation);
            self.closed = closed.through;
            self.counters.files += 1;
            self.archive.closed(closed);
        }
        if self.wal.wants_file() {
            self.wal.file_wanted();
            self.archive.want_file();
        }
    }

    /// Completes the file that is filled, if a checkpoint waits for what is in it.
    fn close_for_checkpoints(&mut self) {
        let durable = self.wal.durable();
        let closed = self.closed;
        // The newest that is durable: those before it are then in the same file or in one before.
        if self.checkpoints.iter().any(|(through, ..)| *through > closed && *through <= durable) {
            self.wal.close();
        }
    }

    fn hand_over_reads(&mut self) {
        while let Some(job) = self.reads.pop_front() {
            if let Err(job) = self.reader.ask(job) {
                self.reads.push_front(job);
                return;
            }
        }
    }

    /// Whether a batch is on its way to the disk.
    pub(crate) fn is_writing(&self) -> bool {
        self.wal.is_writing()
    }

    /// Whether [`next`](Self::next) has something to say.
    pub(crate) fn has_news(&self) -> bool {
        let is_full = self.full.is_some();
        let checkpointed = self.checkpoints.front().is_some_and(|(through, ..)| is_full || *through <= self.archived);
        self.writer.is_ready() || !self.archive.is_empty() || !self.reader.is_empty() || checkpointed
    }

    /// What wakes the core beside its bell.
    pub(crate) fn wake_fds(&self) -> Option<WakeFds> {
        self.writer.wake_fds()
    }

    /// Says what was measured and counted.
    pub(crate) fn count(&self, stats: &mut CoreStats) {
        let own = &self.counters;
        for (name, count) in [
            ("log_batches", own.batches),
            ("log_bytes", own.bytes),
            ("log_records", own.records),
            ("log_files", own.files),
            ("log_reads", own.reads),
            ("log_read_messages", own.read_messages),
            ("log_reads_failed", own.reads_failed),
        ] {
            stats.counters.insert(name, count);
        }
        stats.gauges.insert("log_pending_bytes", self.wal.pending_bytes() as u64);
        stats.gauges.insert("log_unarchived", self.appended - self.archived);
        stats.batch_bytes = own.batch_bytes.clone();
        stats.batch_records = own.batch_records.clone();
        // These are the node's, so that one core speaks for all.
        if self.is_first {
            let shared = &self.shared;
            for (name, count) in [
                ("log_sealed", &shared.sealed),
                ("log_sealed_bytes", &shared.sealed_bytes),
                ("log_merges", &shared.merges),
                ("log_merged_bytes", &shared.merged_bytes),
            ] {
                stats.counters.insert(name, count.load(Ordering::Relaxed));
            }
            stats.gauges.insert("log_segments", shared.segments.load(Ordering::Relaxed));
            stats.gauges.insert("log_segment_bytes", shared.segment_bytes.load(Ordering::Relaxed));
        }
    }
}
