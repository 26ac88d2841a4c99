//! Reading a file of the write-ahead log: everything is checked, and where it ends is said.

use bytes::{Bytes, BytesMut};
use thalweg_domain::record::Record;
use thalweg_protocol::ids::{CoreId, Epoch, Lsn, Partition};
use thalweg_protocol::limits::LOG_BLOCK_BYTES;

use super::layout::{
    BATCH_HEADER_BYTES, BadHeader, BatchHeader, FILE_HEADER_BYTES, FILE_VERSION, FileHeader, batch_crcs,
    has_batch_magic, parse_wal_path, wal_path,
};
use crate::disk::{Disk, DiskError, DiskFile};
use crate::error::LogError;
use crate::record::{self, Heading, RecordError};

/// Bytes that are read at a time, or one batch if that is larger.
const WINDOW_BYTES: usize = 1 << 20;

/// Where a file ends that is known to be complete, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileEnd {
    /// Offset after the last batch.
    pub offset: u64,
    /// Checksum of the last batch; of the file's header, if it has none.
    pub crc: u32,
}

/// What was found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Its path.
    pub path: String,
    /// Whose log it is.
    pub core: CoreId,
    /// Which of that core's files.
    pub generation: u64,
    /// In which life of the node it was prepared.
    pub epoch: Epoch,
    /// Batches that are intact and follow each other.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// Where they end.
    pub intact: FileEnd,
    /// How they end.
    pub end: End,
}

/// How the intact batches of a file end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With the last that was written.
    Clean,
    /// With one that was being written when the node ended. It was never synced, so nothing of it was ever answered.
    Torn {
        /// Where it begins.
        offset: u64,
        /// Its length, as far as it can be known.
        bytes: u64,
    },
    /// With one that was synced and is not what was written.
    Damaged {
        /// Where it begins.
        offset: u64,
        /// What is wrong with it, and what is known of what follows.
        what: String,
        /// Where the next intact batch begins, if there is one: [`scan_from`] reads on there.
        next: Option<u64>,
    },
}

impl Scan {
    /// Whether nothing that was synced is missing.
    ///
    /// # Errors
    /// [`LogError::Damaged`], with path, offset and what is wrong.
    pub fn check(&self) -> Result<(), LogError> {
        match &self.end {
            End::Clean | End::Torn { .. } => Ok(()),
            End::Damaged { offset, what, .. } => {
                Err(LogError::Damaged { path: self.path.clone(), offset: *offset, what: what.clone() })
            }
        }
    }
}

/// A record in an intact batch.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// The file.
    pub path: &'a str,
    /// Where in it the record begins.
    pub offset: u64,
    /// What was read at a time. What is decoded shares it.
    pub bytes: &'a Bytes,
    /// Where in `bytes` the record begins.
    pub at: usize,
}

impl RawRecord<'_> {
    /// The record.
    ///
    /// # Errors
    /// [`LogError::Damaged`], if it is none.
    pub fn decode(&self) -> Result<Record, LogError> {
        record::decode(self.bytes, self.at).map(|(record, _)| record).map_err(|error| self.damaged(&error))
    }

    /// The record without its event, many times faster.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn heading(&self) -> Result<Heading, LogError> {
        record::heading(self.bytes, self.at).map(|(heading, _)| heading).map_err(|error| self.damaged(&error))
    }

    fn damaged(&self, error: &RecordError) -> LogError {
        LogError::Damaged { path: self.path.to_owned(), offset: self.offset, what: error.to_string() }
    }
}

/// Reads a file from its first batch on, gives every record of every intact batch to `visit`, in order, and says how they
/// end. Holds one batch at a time, or a megabyte if that is more, and what the visitor keeps of it.
///
/// `end` is where the file is known to end: whoever reads a file while the log goes on knows
/// ([`Closed::end`](super::Closed::end)). Without it, after the node was started, the first batch of the file's successor
/// says it; and if there is none, intact batches after one that is not tell damage from a write that was cut short.
///
/// # Errors
/// [`LogError::Disk`], [`LogError::Newer`], [`LogError::Damaged`] if the header of the file or of its successor is not
/// what was written, and what `visit` refuses with. Damage after the header is no error here: see [`Scan::check`].
pub fn scan(
    disk: &dyn Disk,
    path: &str,
    end: Option<FileEnd>,
    visit: &mut dyn FnMut(RawRecord<'_>) -> Result<(), LogError>,
) -> Result<Scan, LogError> {
    let mut scanner = Scanner::open(disk, path)?;
    scanner.known_end = match end {
        Some(end) => Some(end),
        None => end_by_successor(disk, &scanner.header)?,
    };
    scanner.run(visit)
}

/// The same, for what can be saved of a file that is damaged: from the batch at `offset` on, which is not asked whether it
/// follows the one before it. If the header of the file is damaged too, what it said is taken from the name of the file and
/// from that batch; the first stands after one block.
///
/// # Errors
/// See [`scan`]; a damaged header is one only if the file has not the name of a file of the log.
pub fn scan_from(
    disk: &dyn Disk,
    path: &str,
    offset: u64,
    visit: &mut dyn FnMut(RawRecord<'_>) -> Result<(), LogError>,
) -> Result<Scan, LogError> {
    let mut scanner = match Scanner::open(disk, path) {
        Err(error @ LogError::Damaged { .. }) => Scanner::guess(disk, path, offset)?.ok_or(error)?,
        opened => opened?,
    };
    (scanner.at, scanner.before) = (offset, Before::Unknown);
    scanner.run(visit)
}

/// Where a file ended, as the first batch of the next file of the same core says.
fn end_by_successor(disk: &dyn Disk, header: &FileHeader) -> Result<Option<FileEnd>, LogError> {
    let path = wal_path(header.core, header.generation.saturating_add(1));
    let mut successor = match Scanner::open(disk, &path) {
        Ok(scanner) => scanner,
        Err(LogError::Disk(DiskError::Missing { .. })) => return Ok(None),
        Err(error) => return Err(error),
    };
    match successor.batch_at(FILE_HEADER_BYTES as u64)? {
        Verdict::Intact { header, .. } if header.follows != 0 => {
            Ok(Some(FileEnd { offset: header.follows, crc: header.chain }))
        }
        _ => Ok(None),
    }
}

/// What the next batch must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// The file's header.
    Header,
    /// A batch.
    Batch,
    /// Something that is not known.
    Unknown,
}

/// What was found where a batch may begin.
enum Verdict {
    /// A batch of this file.
    Intact { header: BatchHeader, crc: u32, bytes: Bytes },
    /// One that is not what was written, or not all of it.
    Broken { bytes: u64 },
    /// Nothing of this file.
    Nothing,
}

struct Scanner {
    path: String,
    header: FileHeader,
    window: Window,
    known_end: Option<FileEnd>,
    /// Where the next batch begins.
    at: u64,
    /// What it follows, and the checksum of that.
    before: Before,
    crc: u32,
    batches: u64,
    records: u64,
}

impl Scanner {
    fn open(disk: &dyn Disk, path: &str) -> Result<Self, LogError> {
        let damaged = |what: &str| LogError::Damaged { path: path.to_owned(), offset: 0, what: what.to_owned() };
        let file = disk.open(path)?;
        let bytes = file.bytes()?;
        if bytes < FILE_HEADER_BYTES as u64 {
            return Err(damaged("the file is shorter than its header"));
        }
        let mut block = vec![0; FILE_HEADER_BYTES];
        file.read_at(0, &mut block)?;
        let (header, crc) = FileHeader::decode(&block).map_err(|error| match error {
            BadHeader::Newer(found) => {
                LogError::Newer { path: path.to_owned(), found: found.into(), known: FILE_VERSION.into() }
            }
            BadHeader::Damaged(what) => damaged(what),
        })?;
        if parse_wal_path(path).is_some_and(|named| named != (header.core, header.generation)) {
            return Err(damaged("the header of the file belongs to another file"));
        }
        if header.bytes > bytes {
            return Err(damaged("the file is shorter than its header says"));
        }
        let window = Window { file, end: header.bytes, start: 0, bytes: Bytes::new() };
        Ok(Self::new(path, header, crc, window))
    }

    /// The same for a file whose header is damaged, from what its name and the batch at an offset say; none if they do not.
    fn guess(disk: &dyn Disk, path: &str, offset: u64) -> Result<Option<Self>, LogError> {
        let Some((core, generation)) = parse_wal_path(path) else { return Ok(None) };
        let file = disk.open(path)?;
        let bytes = file.bytes()?;
        let mut window = Window { file, end: bytes, start: 0, bytes: Bytes::new() };
        let Some(batch) = window.read(offset, BATCH_HEADER_BYTES)? else { return Ok(None) };
        let salt = BatchHeader::read(&batch).salt;
        Ok(Some(Self::new(path, FileHeader { core, generation, epoch: Epoch(0), salt, bytes }, 0, window)))
    }

    fn new(path: &str, header: FileHeader, crc: u32, window: Window) -> Self {
        let (at, before) = (FILE_HEADER_BYTES as u64, Before::Header);
        Self { path: path.to_owned(), header, window, known_end: None, at, before, crc, batches: 0, records: 0 }
    }

    fn run(mut self, visit: &mut dyn FnMut(RawRecord<'_>) -> Result<(), LogError>) -> Result<Scan, LogError> {
        let end = loop {
            match self.next_batch()? {
                Ok((header, bytes)) => self.visit_batch(&header, &bytes, visit)?,
                Err(end) => break end,
            }
        };
        let FileHeader { core, generation, epoch, .. } = self.header;
        let intact = FileEnd { offset: self.at, crc: self.crc };
        let (path, batches, records) = (self.path, self.batches, self.records);
        Ok(Scan { path, core, generation, epoch, batches, records, intact, end })
    }

    /// The batch that follows, or how the file ends.
    fn next_batch(&mut self) -> Result<Result<(BatchHeader, Bytes), End>, LogError> {
        if let Some(end) = self.known_end.filter(|end| self.at >= end.offset) {
            if self.at == end.offset && self.crc == end.crc {
                return Ok(Err(End::Clean));
            }
            let what =
                format!("the file ends otherwise than it did: at {}, as is known from what followed", end.offset);
            return Ok(Err(End::Damaged { offset: self.at, what, next: None }));
        }
        let broken = match self.batch_at(self.at)? {
            Verdict::Intact { header, crc, bytes } if self.follows(&header) => {
                (self.at, self.crc, self.before) = (self.at + header.padded_bytes() as u64, crc, Before::Batch);
                self.batches += 1;
                return Ok(Ok((header, bytes)));
            }
            Verdict::Intact { .. } => {
                let what = "an intact batch does not follow the one that is before it".to_owned();
                return Ok(Err(End::Damaged { offset: self.at, what, next: Some(self.at) }));
            }
            Verdict::Broken { bytes } => Some(bytes),
            Verdict::Nothing => None,
        };
        self.judge(broken).map(Err)
    }

    /// Says how the file ends, if the next batch is broken (with how many bytes) or not there.
    fn judge(&mut self, broken: Option<u64>) -> Result<End, LogError> {
        let offset = self.at;
        let limit = self.known_end.map_or(self.header.bytes, |end| end.offset);
        let mut later = offset + LOG_BLOCK_BYTES as u64;
        while later + LOG_BLOCK_BYTES as u64 <= limit {
            if let Verdict::Intact { bytes, .. } = self.batch_at(later)? {
                let first = record::heading(&bytes, BATCH_HEADER_BYTES).ok();
                let (partition, lsn) = first.map_or((Partition(0), Lsn(0)), |(first, _)| (first.partition, first.lsn));
                let what = format!(
                    "the batch does not match its checksum, and others follow: the next at {later}, with record {lsn} of \
                     partition {partition}"
                );
                return Ok(End::Damaged { offset, what, next: Some(later) });
            }
            later += LOG_BLOCK_BYTES as u64;
        }
        Ok(match (self.known_end, broken) {
            (Some(end), _) => {
                let what =
                    format!("the batch does not match its checksum, but the file was complete up to {}", end.offset);
                End::Damaged { offset, what, next: None }
            }
            (None, Some(bytes)) => End::Torn { offset, bytes },
            (None, None) => End::Clean,
        })
    }

    fn follows(&self, header: &BatchHeader) -> bool {
        match self.before {
            Before::Unknown => true,
            Before::Header => header.follows != 0 || header.chain == self.crc,
            Before::Batch => header.follows == 0 && header.chain == self.crc,
        }
    }

    /// What stands at an offset.
    fn batch_at(&mut self, offset: u64) -> Result<Verdict, LogError> {
        let Some(start) = self.window.read(offset, BATCH_HEADER_BYTES)? else { return Ok(Verdict::Nothing) };
        let (magic, header) = (has_batch_magic(&start), BatchHeader::read(&start));
        drop(start);
        if header.fits(magic, &self.header, offset) {
            let length = header.padded_bytes();
            let bytes = self.window.read(offset, length)?;
            if let Some(bytes) = bytes
                && let (said, crc) = batch_crcs(&bytes)
                && said == crc
            {
                return Ok(Verdict::Intact { header, crc, bytes });
            }
            return Ok(Verdict::Broken { bytes: length as u64 });
        }
        let ours = header.resembles(magic, &self.header, offset);
        Ok(if ours { Verdict::Broken { bytes: LOG_BLOCK_BYTES as u64 } } else { Verdict::Nothing })
    }

    fn visit_batch(
        &mut self,
        header: &BatchHeader,
        bytes: &Bytes,
        visit: &mut dyn FnMut(RawRecord<'_>) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let start = self.at - header.padded_bytes() as u64;
        let records = bytes.slice(..BATCH_HEADER_BYTES + header.payload_bytes as usize);
        let mut at = BATCH_HEADER_BYTES;
        for _ in 0..header.records {
            let raw = RawRecord { path: &self.path, offset: start + at as u64, bytes: &records, at };
            let (_, next) = record::heading(&records, at).map_err(|error| raw.damaged(&error))?;
            visit(raw)?;
            at = next;
        }
        if at != records.len() {
            let what = format!("the batch has more than the {} records that it says", header.records);
            return Err(LogError::Damaged { path: self.path.clone(), offset: start, what });
        }
        self.records += u64::from(header.records);
        Ok(())
    }
}

/// A stretch of a file in memory.
struct Window {
    file: Box<dyn DiskFile>,
    /// Where the file ends.
    end: u64,
    /// Where `bytes` begin.
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// The bytes at `offset`; none if the file ends before them.
    fn read(&mut self, offset: u64, length: usize) -> Result<Option<Bytes>, DiskError> {
        if offset.saturating_add(length as u64) > self.end {
            return Ok(None);
        }
        if offset < self.start || offset + length as u64 > self.start + self.bytes.len() as u64 {
            let length = (WINDOW_BYTES.max(length) as u64).min(self.end - offset) as usize;
            // Nobody kept anything of it: the same memory serves again.
            let mut bytes = std::mem::take(&mut self.bytes).try_into_mut().unwrap_or_else(|_| BytesMut::new());
            if bytes.len() < length {
                bytes = BytesMut::zeroed(length);
            }
            bytes.truncate(length);
            self.file.read_at(offset, &mut bytes)?;
            (self.start, self.bytes) = (offset, bytes.freeze());
        }
        let at = (offset - self.start) as usize;
        Ok(Some(self.bytes.slice(at..at + length)))
    }
}
