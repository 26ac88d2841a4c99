//! What is in the directory of a log.

use std::collections::BTreeMap;

use thalweg_protocol::ids::CoreId;

use crate::disk::{Disk, DiskError};
use crate::error::LogError;
use crate::segment::{SEGMENTS, SegmentName, WAL_FILES};
use crate::wal::parse_wal_path;

/// The file that says what kind of log this is.
pub(crate) const FORMAT_FILE: &str = "format";
/// The newest format of a log that is known, and the one that is written.
pub(crate) const LOG_FORMAT: u64 = 1;

/// The files of a log.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The segments that count: none is within another.
    pub(crate) segments: Vec<SegmentName>,
    /// Those that a merge replaced.
    pub(crate) replaced: Vec<SegmentName>,
    /// Paths of files that were never finished.
    pub(crate) unfinished: Vec<String>,
    /// Files of the write-ahead log.
    pub(crate) wal: BTreeMap<CoreId, Vec<u64>>,
    /// Paths of what does not belong here.
    pub(crate) strangers: Vec<String>,
}

impl Listing {
    pub(crate) fn read(disk: &dyn Disk) -> Result<Self, DiskError> {
        let mut listing = Self::default();
        let mut all: Vec<SegmentName> = Vec::new();
        for file in disk.list(SEGMENTS)? {
            match file.parse() {
                Ok(name) => all.push(name),
                Err(_) => listing.put_other(format!("{SEGMENTS}/{file}")),
            }
        }
        for file in disk.list(WAL_FILES)? {
            match parse_wal_path(&file) {
                Some((core, generation)) => listing.wal.entry(core).or_default().push(generation),
                None => listing.put_other(format!("{WAL_FILES}/{file}")),
            }
        }
        listing.wal.values_mut().for_each(|generations| generations.sort_unstable());
        // The larger of two that begin together comes first, so whatever is within another comes after it.
        all.sort_unstable_by_key(|name| (name.first, std::cmp::Reverse(name.last)));
        for name in all {
            match listing.segments.last() {
                Some(before) if before.contains(name) => listing.replaced.push(name),
                _ => listing.segments.push(name),
            }
        }
        Ok(listing)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.wal.is_empty()
    }

    /// Whether the segments are there without a hole.
    pub(crate) fn check_segments(&self) -> Result<(), LogError> {
        let mut next = 1;
        for name in &self.segments {
            if name.first > next {
                let missing = SegmentName { first: next, last: name.first - 1 };
                return Err(LogError::FileMissing { path: missing.path() });
            }
            if name.first < next {
                let what = format!("it overlaps the segment before it, which reaches to {}", next - 1);
                return Err(LogError::Damaged { path: name.path(), offset: 0, what });
            }
            next = name.last + 1;
        }
        Ok(())
    }

    fn put_other(&mut self, path: String) {
        if path.ends_with(".new") { self.unfinished.push(path) } else { self.strangers.push(path) }
    }
}

/// How many partitions a log has; none if it has no format file.
pub(crate) fn read_format(disk: &dyn Disk) -> Result<Option<u16>, LogError> {
    let file = match disk.open(FORMAT_FILE) {
        Ok(file) => file,
        Err(DiskError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let damaged = |what: &str| LogError::Damaged { path: FORMAT_FILE.into(), offset: 0, what: what.into() };
    let length = file.bytes()?;
    if length > 256 {
        return Err(damaged("the file is longer than any that is written"));
    }
    let mut bytes = vec![0; length as usize];
    file.read_at(0, &mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| damaged("the file is no text"))?;
    let (body, check) = text.rsplit_once("check ").ok_or_else(|| damaged("the file has no checksum"))?;
    if format!("{:08x}\n", crc32fast::hash(body.as_bytes())) != check {
        return Err(damaged("the file does not match its checksum"));
    }
    let mut lines = body.lines();
    let found = lines.next().and_then(|line| line.strip_prefix("thalweg-log ")).and_then(|n| n.parse::<u64>().ok());
    match found {
        Some(LOG_FORMAT) => {}
        Some(found) => return Err(LogError::Newer { path: FORMAT_FILE.into(), found, known: LOG_FORMAT }),
        None => return Err(damaged("the file does not begin with `thalweg-log`")),
    }
    let partitions = lines.next().and_then(|line| line.strip_prefix("partitions ")?.parse::<u16>().ok());
    match partitions.filter(|partitions| *partitions > 0) {
        Some(partitions) => Ok(Some(partitions)),
        None => Err(damaged("the file does not say how many partitions there are")),
    }
}

/// Writes the format file.
pub(crate) fn write_format(disk: &dyn Disk, partitions: u16) -> Result<(), DiskError> {
    let body = format!("thalweg-log {LOG_FORMAT}\npartitions {partitions}\n");
    let text = format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes()));
    let unfinished = format!("{FORMAT_FILE}.new");
    let file = disk.create(&unfinished)?;
    file.write_at(0, text.as_bytes())?;
    file.sync()?;
    disk.rename(&unfinished, FORMAT_FILE)?;
    disk.sync_dir("")
}
