//! Recovery: whatever is left of the write-ahead log is sealed, and the states of all segments are merged.
//!
//! Nothing is replayed into shards, and nothing depends on the number of cores: not on what it was, not on what it will be.
//! A recovery that is interrupted anywhere is begun again by the next one.
//!
//! ```text
//! let plan = Plan::read(disk, 1024)?;              // checks what is there, removes what was never finished
//! let sealed = plan.jobs() … job.run(disk)?        // on any threads, in any order
//! let recovered = plan.finish(disk, sealed)?;      // in order: names, states
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_domain::partition::{Gap, PartitionState};
use thalweg_protocol::ids::{CoreId, Lsn, Partition};

use crate::disk::{Disk, DiskError};
use crate::error::LogError;
use crate::segment::{
    Cover, SEGMENTS, Sealed, Segment, SegmentName, Shelf, Torn, WAL_FILES, merge_covers, merge_states, publish, seal,
};
use crate::wal::wal_path;

pub(crate) mod listing;

use listing::{FORMAT_FILE, Listing, read_format, write_format};

/// What is to be done to recover a log.
#[derive(Debug)]
pub struct Plan {
    partitions: u16,
    shelf: Shelf,
    covers: BTreeMap<CoreId, Cover>,
    jobs: Vec<SealJob>,
    /// Files of the write-ahead log that are in segments already.
    free: Vec<String>,
}

/// A file of the write-ahead log that is to be sealed. Independent of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealJob {
    /// The file.
    pub path: String,
    /// The number that the segment gets.
    pub number: u64,
}

impl SealJob {
    /// Does it: see [`seal`].
    ///
    /// # Errors
    /// See [`seal`].
    pub fn run(&self, disk: &dyn Disk) -> Result<Sealed, LogError> {
        seal(disk, &self.path, self.number, None)
    }
}

/// A recovered log.
#[derive(Debug)]
pub struct Recovered {
    /// How many partitions the log has, whatever was asked for.
    pub partitions: u16,
    /// What all records of each partition left behind. Partitions that were never written to are absent.
    pub states: BTreeMap<Partition, PartitionState>,
    /// Where the messages are.
    pub shelf: Shelf,
    /// Paths of files of the write-ahead log that can be recycled: all that there are.
    pub free: Vec<String>,
    /// The generation of the next file of each core that ever had one; of the others it is 1.
    pub next_generation: BTreeMap<CoreId, u64>,
    /// What was done.
    pub report: Report,
}

/// What a recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Ends of the write-ahead log that were never synced, and were cut off.
    pub torn: Vec<Torn>,
    /// Records that were sealed.
    pub records: u64,
    /// Bytes of the segments they went into.
    pub bytes: u64,
    /// Segments there are now.
    pub segments: usize,
}

impl Plan {
    /// Looks at a log and makes a new one, of `asked_partitions`, if there is none. Removes what was never finished, and
    /// segments that a merge replaced.
    ///
    /// # Errors
    /// [`LogError::Newer`], if a newer version wrote it; [`LogError::FileMissing`] and [`LogError::Damaged`], if not all of
    /// it is there; or what the disk says.
    pub fn read(disk: &dyn Disk, asked_partitions: u16) -> Result<Self, LogError> {
        // A life that ended between a rename and its sync left names that are seen but not durable. Others are removed, and
        // files recycled, because of them: so they must be, first.
        for directory in ["", SEGMENTS, WAL_FILES] {
            disk.sync_dir(directory)?;
        }
        let listing = Listing::read(disk)?;
        let partitions = match read_format(disk)? {
            Some(partitions) => partitions,
            None if listing.is_empty() => {
                write_format(disk, asked_partitions)?;
                asked_partitions
            }
            None => return Err(LogError::FileMissing { path: FORMAT_FILE.into() }),
        };
        listing.check_segments()?;
        let (mut segments, mut covers) = (Vec::new(), BTreeMap::new());
        for name in &listing.segments {
            let segment = open(disk, *name)?;
            merge_covers(&mut covers, &segment)?;
            segments.push(Arc::new(segment));
        }
        remove_leftovers(disk, &listing)?;
        let (mut jobs, mut free) = (Vec::new(), Vec::new());
        let mut number = listing.segments.last().map_or(0, |name| name.last);
        for (core, generations) in &listing.wal {
            let mut next = covers.get(core).map_or(1, |cover: &Cover| cover.to + 1);
            for &generation in generations {
                let path = wal_path(*core, generation);
                if generation < next {
                    free.push(path);
                    continue;
                }
                if generation > next {
                    return Err(LogError::FileMissing { path: wal_path(*core, next) });
                }
                next += 1;
                number += 1;
                jobs.push(SealJob { path, number });
            }
        }
        Ok(Self { partitions, shelf: Shelf(segments), covers, jobs, free })
    }

    /// What is to be done, each independent of all others. Every one must be [run](SealJob::run) before
    /// [`finish`](Self::finish).
    pub fn jobs(&self) -> &[SealJob] {
        &self.jobs
    }

    /// Puts what was sealed in its place, in order, and merges the states of all segments.
    ///
    /// # Errors
    /// [`LogError::Missing`], if records of a partition are not there; [`LogError::Damaged`]; or what the disk says.
    ///
    /// # Panics
    /// If not all jobs were run.
    pub fn finish(self, disk: &dyn Disk, mut sealed: Vec<Sealed>) -> Result<Recovered, LogError> {
        let Self { partitions, shelf: Shelf(mut segments), mut covers, jobs, mut free } = self;
        sealed.sort_unstable_by_key(|sealed| sealed.number);
        let done = sealed.iter().map(|sealed| sealed.number).eq(jobs.iter().map(|job| job.number));
        assert!(done, "every job is run once before the plan is finished");
        // All that can be wrong with the records is found before anything is changed.
        let mut states = BTreeMap::new();
        for segment in &segments {
            merge_states(&mut states, segment)?;
        }
        for sealed in &sealed {
            merge_states(&mut states, &Segment::open_sealed(disk, sealed.number)?)?;
        }
        for (partition, state) in &states {
            if state.first != Lsn(1) {
                let path = segments.first().map_or_else(|| SegmentName::of(1).path(), |first| first.name().path());
                let gap = Gap { expected: Lsn(1), found: state.first };
                return Err(LogError::Missing { partition: *partition, path, gap });
            }
        }
        let mut report = Report::default();
        for sealed in sealed {
            let segment = publish(disk, sealed.number)?;
            merge_covers(&mut covers, &segment)?;
            segments.push(Arc::new(segment));
            free.push(sealed.path);
            report.records += sealed.records;
            report.bytes += sealed.bytes;
            report.torn.extend(sealed.torn);
        }
        report.segments = segments.len();
        for state in states.values_mut() {
            // Only of a log that was salvaged: their beginning is lost, so nobody can reach them.
            state.channels.retain(|_, channel| channel.made.is_some());
            state.generations.retain(|_, generation| generation.request.is_some());
        }
        let next_generation = covers.values().map(|cover| (cover.core, cover.to + 1)).collect();
        Ok(Recovered { partitions, states, shelf: Shelf(segments), free, next_generation, report })
    }
}

/// The whole of it, on this thread.
///
/// # Errors
/// See [`Plan`].
pub fn recover(disk: &dyn Disk, asked_partitions: u16) -> Result<Recovered, LogError> {
    let plan = Plan::read(disk, asked_partitions)?;
    let sealed = plan.jobs().iter().map(|job| job.run(disk)).collect::<Result<_, _>>()?;
    plan.finish(disk, sealed)
}

fn open(disk: &dyn Disk, name: SegmentName) -> Result<Segment, LogError> {
    match Segment::open(disk, name) {
        Err(LogError::Disk(DiskError::Missing { path })) => Err(LogError::FileMissing { path }),
        other => other,
    }
}

fn remove_leftovers(disk: &dyn Disk, listing: &Listing) -> Result<(), DiskError> {
    for name in &listing.replaced {
        disk.remove(&name.path())?;
    }
    for path in &listing.unfinished {
        disk.remove(path)?;
    }
    for directory in [SEGMENTS, WAL_FILES] {
        let removed = |path: &String| path.starts_with(directory);
        if (directory == SEGMENTS && !listing.replaced.is_empty()) || listing.unfinished.iter().any(removed) {
            disk.sync_dir(directory)?;
        }
    }
    Ok(())
}
