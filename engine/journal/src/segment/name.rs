//! What the files of a log are called.

use std::fmt;
use std::str::FromStr;

/// The directory of the segments, within the log's.
pub const SEGMENTS: &str = "segments";
/// The directory of the write-ahead log, within the log's.
pub const WAL_FILES: &str = "wal";

/// Which of the sealed files of the write-ahead log are in a segment: a range of their numbers, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// The first number.
    pub first: u64,
    /// The last number, inclusive.
    pub last: u64,
}

impl SegmentName {
    /// The segment of one sealed file.
    pub fn of(number: u64) -> Self {
        Self { first: number, last: number }
    }

    /// Where the segment is, relative to the log's directory.
    pub fn path(self) -> String {
        format!("{SEGMENTS}/{self}.seg")
    }

    /// Where it is while it is made.
    pub fn path_new(self) -> String {
        format!("{SEGMENTS}/{self}.new")
    }

    /// Whether all of another segment is in this one.
    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012}-{:012}", self.first, self.last)
    }
}

impl FromStr for SegmentName {
    type Err = String;

    /// Reads the name of a file, as in `000000000001-000000000008.seg`.
    fn from_str(file: &str) -> Result<Self, String> {
        let wrong = || format!("{file} is no name of a segment; one looks like {}.seg", Self { first: 1, last: 8 });
        let (first, last) = file.strip_suffix(".seg").and_then(|range| range.split_once('-')).ok_or_else(wrong)?;
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() >= 12 {
            true => digits.parse::<u64>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        let name = Self { first: number(first)?, last: number(last)? };
        // One spelling only, so that a path can be made of the name again.
        if name.first == 0 || name.last < name.first || format!("{name}.seg") != file {
            return Err(wrong());
        }
        Ok(name)
    }
}
