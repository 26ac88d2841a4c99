//! Checks all of a log. Changes nothing.

use std::collections::BTreeMap;

use thalweg_domain::partition::Gap;
use thalweg_protocol::ids::{CoreId, Lsn, Partition, Position};

use super::block::{Entry, INDEX_ENTRY_BYTES, Kind, Place, index_entry, put_key};
use super::fields::Wrong;
use super::reader::{Cover, Segment};
use super::walk::{Step, Walk};
use super::{Key, SegmentName, merge_covers};
use crate::disk::{Disk, DiskError};
use crate::error::LogError;
use crate::recovery::listing::{FORMAT_FILE, Listing, read_format};
use crate::wal::{End, scan, wal_path};

/// What was checked in a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blocks that are intact.
    pub blocks: u64,
    /// Messages in them.
    pub messages: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What was checked in a log, and everything that is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// How many partitions the log has, if that can be read.
    pub partitions: Option<u16>,
    /// The segments.
    pub segments: Vec<(SegmentName, Verified)>,
    /// Files of the write-ahead log that are in no segment: path, records, and where the last intact batch ends.
    pub wal: Vec<(String, u64, u64)>,
    /// Files of the write-ahead log that are in segments already; what they hold is not looked at.
    pub free: usize,
    /// What is no damage, but worth to know: torn ends, leftovers.
    pub notes: Vec<String>,
    /// Everything that is wrong.
    pub problems: Vec<LogError>,
}

impl Segment {
    /// Checks every byte of the segment.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<Verified, LogError> {
        let mut problems = Vec::new();
        let verified = self.verify_all(&mut problems)?;
        match problems.into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(verified),
        }
    }

    /// Checks every byte of the segment and adds all that is wrong to `problems`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn verify_all(&self, problems: &mut Vec<LogError>) -> Result<Verified, LogError> {
        let before = problems.len();
        let mut check = Check::new(self);
        let mut walk = Walk::entries(self);
        while let Some(step) = walk.next()? {
            match step {
                Step::Damage(damage) => {
                    problems.push(damage);
                    // What is left out of the index now is no second problem.
                    check.index.clear();
                    check.is_whole = false;
                }
                Step::Block(kind, place, payload) => {
                    check.verified.blocks += 1;
                    if let Err(wrong) = check.block(kind, place, &payload) {
                        problems.push(self.blocks.wrong(place, wrong));
                    }
                }
            }
        }
        let mut walk = Walk::new(&self.blocks, self.footer.states, self.footer.covers.end());
        while let Some(step) = walk.next()? {
            match step {
                Step::Damage(damage) => problems.push(damage),
                Step::Block(..) => check.verified.blocks += 1,
            }
        }
        let Check { verified, is_whole, index, .. } = check;
        if problems.len() == before {
            if let Err(problem) = self.states() {
                problems.push(problem);
            }
            let root = index.last().filter(|_| is_whole).map(|(_, place)| place.as_slice());
            let counts = (verified.blocks, verified.messages) == (self.footer.blocks, self.footer.messages);
            let rooted = match self.footer.root {
                Some((place, _)) => root == Some(&[place]),
                None => index.is_empty(),
            };
            if !counts || !rooted {
                problems.push(self.blocks.damaged(self.footer.covers.end(), "the footer does not fit the blocks"));
            }
        }
        Ok(verified)
    }
}

/// What has to fit together in a segment.
struct Check<'a> {
    segment: &'a Segment,
    verified: Verified,
    last: Option<Key>,
    /// For each level: the entries that its next block should have, and the blocks they are of.
    index: Vec<(Vec<u8>, Vec<Place>)>,
    /// Whether no block is missing.
    is_whole: bool,
}

impl<'a> Check<'a> {
    fn new(segment: &'a Segment) -> Self {
        let verified = Verified { bytes: segment.bytes(), ..Verified::default() };
        Self { segment, verified, last: None, index: Vec::new(), is_whole: true }
    }

    fn block(&mut self, kind: Kind, place: Place, payload: &bytes::Bytes) -> Result<(), Wrong> {
        let wrong = |what: &str| Err(Wrong { at: 0, what: what.to_owned() });
        match kind {
            Kind::Data => {
                let first = Entry::peek(payload, 0)?.0;
                let mut at = 0;
                while at < payload.len() {
                    let (entry, next) = Entry::take(payload, at)?;
                    if self.last >= Some(entry.key) {
                        return Err(Wrong { at, what: "entries are out of order".to_owned() });
                    }
                    self.last = Some(entry.key);
                    if entry.key.position != Position(0) {
                        self.verified.messages += 1;
                        let message = self.segment.message(&entry, place.offset);
                        message.map_err(|error| Wrong { at, what: error.to_string() })?;
                    }
                    at = next;
                }
                self.enter(0, first, place);
                Ok(())
            }
            Kind::Index(level) => {
                let Some((first, _)) = index_entry(payload, 0) else { return wrong("a block of the index is empty") };
                let level = usize::from(level);
                let fits = self.index.get(level).is_some_and(|(expected, _)| expected == payload);
                if !fits && self.is_whole {
                    return wrong("a block of the index does not fit the blocks before it");
                }
                if !payload.len().is_multiple_of(INDEX_ENTRY_BYTES) {
                    return wrong("a block of the index ends inside an entry");
                }
                if let Some(entries) = self.index.get_mut(level) {
                    *entries = (Vec::new(), Vec::new());
                }
                self.enter(level + 1, first, place);
                Ok(())
            }
            Kind::State | Kind::Covers => wrong("it does not belong among the messages"),
        }
    }

    fn enter(&mut self, level: usize, first: Key, place: Place) {
        if self.index.len() <= level {
            self.index.resize_with(level + 1, Default::default);
        }
        let (entries, places) = &mut self.index[level];
        put_key(first, entries);
        entries.extend(place.offset.to_le_bytes());
        entries.extend(place.bytes.to_le_bytes());
        places.push(place);
    }
}

/// Checks a whole log: every block of every segment, every batch of the write-ahead log, that no number and no record is
/// missing. Goes on after what is wrong and lists it all.
///
/// # Errors
/// What the disk says, but that a file is missing.
pub fn verify(disk: &dyn Disk) -> Result<VerifyReport, LogError> {
    let mut report = VerifyReport::default();
    let listing = Listing::read(disk)?;
    match read_format(disk) {
        Ok(Some(partitions)) => report.partitions = Some(partitions),
        Ok(None) => report.problems.push(LogError::FileMissing { path: FORMAT_FILE.into() }),
        Err(error) => report.put(error)?,
    }
    if let Err(error) = listing.check_segments() {
        report.problems.push(error);
    }
    report.notes.extend(listing.unfinished.iter().map(|path| format!("{path} was never finished")));
    report.notes.extend(listing.strangers.iter().map(|path| format!("{path} does not belong here")));
    report.notes.extend(listing.replaced.iter().map(|name| format!("{} was merged into another", name.path())));
    let (mut lasts, mut covers) = (BTreeMap::new(), BTreeMap::new());
    for name in &listing.segments {
        if let Err(error) = verify_segment(disk, *name, &mut report, &mut lasts, &mut covers) {
            report.put(error)?;
        }
    }
    for (core, generations) in &listing.wal {
        let mut next = covers.get(core).map_or(1, |cover: &Cover| cover.to + 1);
        for &generation in generations {
            let path = wal_path(*core, generation);
            if generation < next {
                report.free += 1;
                continue;
            }
            if generation > next {
                report.problems.push(LogError::FileMissing { path: wal_path(*core, next) });
            }
            next = generation + 1;
            if let Err(error) = verify_wal(disk, &path, &mut report, &mut lasts) {
                report.put(error)?;
            }
        }
    }
    Ok(report)
}

impl VerifyReport {
    /// Lists what is wrong with the log; passes on what is wrong with the disk.
    fn put(&mut self, error: LogError) -> Result<(), LogError> {
        match error {
            LogError::Disk(DiskError::Missing { path }) => self.problems.push(LogError::FileMissing { path }),
            LogError::Disk(_) => return Err(error),
            _ => self.problems.push(error),
        }
        Ok(())
    }
}

fn verify_segment(
    disk: &dyn Disk,
    name: SegmentName,
    report: &mut VerifyReport,
    lasts: &mut BTreeMap<Partition, Lsn>,
    covers: &mut BTreeMap<CoreId, Cover>,
) -> Result<(), LogError> {
    let segment = Segment::open(disk, name)?;
    report.segments.push((name, segment.verify_all(&mut report.problems)?));
    if let Err(error) = merge_covers(covers, &segment) {
        report.problems.push(error);
        covers.extend(segment.covers().iter().map(|cover| (cover.core, *cover)));
    }
    // If the states cannot be read, that is listed already.
    for (partition, state) in segment.states().unwrap_or_default() {
        follow(lasts, partition, (state.first, state.last), &name.path(), &mut report.problems);
    }
    Ok(())
}

fn verify_wal(
    disk: &dyn Disk,
    path: &str,
    report: &mut VerifyReport,
    lasts: &mut BTreeMap<Partition, Lsn>,
) -> Result<(), LogError> {
    let problems = &mut report.problems;
    let scan = scan(disk, path, None, &mut |raw| {
        match raw.decode() {
            Ok(record) => follow(lasts, record.partition, (record.lsn, record.lsn), path, problems),
            Err(error) => problems.push(error),
        }
        Ok(())
    })?;
    if let Err(error) = scan.check() {
        report.problems.push(error);
    }
    if let End::Torn { offset, bytes } = scan.end {
        report.notes.push(format!("{path} ends at offset {offset}; {bytes} bytes after it were never synced"));
    }
    report.wal.push((path.to_owned(), scan.records, scan.intact.offset));
    Ok(())
}

/// Checks that records follow the ones before them.
fn follow(
    lasts: &mut BTreeMap<Partition, Lsn>,
    partition: Partition,
    (first, last): (Lsn, Lsn),
    path: &str,
    problems: &mut Vec<LogError>,
) {
    if first == Lsn(0) {
        return;
    }
    let before = lasts.insert(partition, last).unwrap_or_default();
    if first != before.next() {
        let gap = Gap { expected: before.next(), found: first };
        problems.push(LogError::Missing { partition, path: path.to_owned(), gap });
    }
}
