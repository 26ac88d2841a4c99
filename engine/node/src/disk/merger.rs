//! The thread that merges segments, so that reads look into few and what is no longer wanted goes.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_journal::segment::{Segment, Shelf, merge, merge_candidates, remove_replaced};
use thalweg_journal::{Disk, DiskError, LogError};
use thalweg_protocol::limits::SEGMENT_MERGE_FANIN;
use thalweg_ring::Bell;

use super::alarm::Alarm;
use super::archive::ArchiveCounters;
use super::gentle::{GentleDisk, Pace};
use super::place::Place;
use super::retention::Retention;
use super::shelves::Shelves;

/// It looks around at least this often, for what has been deleted long enough ago. After a merge that the disk had no room
/// for it waits as long.
const LOOK: Duration = Duration::from_secs(60);
/// With so many segments merging does not rest: reads are slow by now.
const HURRY: usize = 8 * SEGMENT_MERGE_FANIN;
/// How much the kernel prefers everybody else.
const NICE: i32 = 10;

/// Everything the merger works on.
pub(super) struct MergerConfig {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) place: Arc<dyn Place>,
    /// Bytes of the disk that a merge leaves to those who write: until it is done it needs room beside what it replaces.
    pub(super) reserve: u64,
    pub(super) shelves: Arc<Shelves>,
    pub(super) counters: Arc<ArchiveCounters>,
    pub(super) alarm: Arc<Alarm>,
    /// Wakes it.
    pub(super) bell: Arc<Bell>,
}

/// The merger: one thread per node, of low priority.
pub(super) struct Merger {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Merger {
    /// Starts the merger.
    pub(super) fn start(config: MergerConfig) -> io::Result<Self> {
        let MergerConfig { disk, place, reserve, shelves, counters, alarm, bell } = config;
        let stop = Arc::new(AtomicBool::new(false));
        let pace = Arc::new(Pace { rests: AtomicBool::new(true), stop: Arc::clone(&stop) });
        let disk = GentleDisk { disk, pace };
        let (own_bell, own_stop) = (Arc::clone(&bell), Arc::clone(&stop));
        let work = Work {
            disk,
            place,
            reserve,
            shelves,
            counters,
            retention: Retention::default(),
            is_short: false,
            not_before: Instant::now(),
        };
        let run = move || {
            let _guard = alarm.guard("the merger");
            be_nice(NICE);
            work.run(&own_bell, &own_stop);
        };
        let thread = std::thread::Builder::new().name("thalweg-merger".into()).spawn(run)?;
        Ok(Self { bell, stop, thread })
    }

    /// Ends the thread within a write. What was begun is begun again when the node starts again.
    pub(super) fn shut_down(self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.join().is_err() {
            tracing::error!("the merger's thread panicked");
        }
    }
}

/// Has the kernel prefer everybody else to this thread: the more, the higher the number, up to 19.
pub(super) fn be_nice(nice: i32) {
    // SAFETY: takes three numbers; 0 is the calling thread. That it is refused does no harm.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

struct Work {
    disk: GentleDisk,
    place: Arc<dyn Place>,
    reserve: u64,
    shelves: Arc<Shelves>,
    counters: Arc<ArchiveCounters>,
    retention: Retention,
    /// Whether there was too little room, the last time that something was to be merged.
    is_short: bool,
    not_before: Instant,
}

impl Work {
    fn run(mut self, bell: &Bell, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            match self.step() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(_) if stop.load(Ordering::Acquire) => return,
                Err(LogError::Disk(error @ DiskError::Full { .. })) => {
                    tracing::warn!(%error, "segments cannot be merged until the disk has room");
                    self.not_before = Instant::now() + LOOK;
                }
                // What is there can still be read as it is, or says so when it is read.
                Err(error) => {
                    tracing::error!(%error, "segments cannot be merged; none are until the node starts again");
                    return;
                }
            }
            bell.prepare();
            if !stop.load(Ordering::Acquire) {
                bell.wait(Some(LOOK));
            }
            bell.awake();
        }
    }

    /// Merges once, if there is anything to merge and room for it.
    fn step(&mut self) -> Result<bool, LogError> {
        let shelf = self.shelves.now();
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let place = &*self.place;
        // One whose age cannot be told is as young as can be: it may be synced under its name only later.
        let age = |segment: &Segment| place.age(&segment.name().path()).unwrap_or_default();
        self.retention.catch_up(&shelf, now_us, &age)?;
        let sizes: Vec<u64> = shelf.0.iter().map(|segment| segment.bytes()).collect();
        self.counters.segments.store(sizes.len() as u64, Ordering::Relaxed);
        self.counters.segment_bytes.store(sizes.iter().sum(), Ordering::Relaxed);
        if Instant::now() < self.not_before {
            return Ok(false);
        }
        let overdue = self.retention.overdue(&shelf, now_us);
        let wanted = [overdue, merge_candidates(&sizes)].into_iter().flatten();
        let Some(range) = self.first_with_room(wanted, &sizes) else { return Ok(false) };
        self.disk.pace.rests.store(sizes.len() < HURRY, Ordering::Relaxed);
        self.merge(&Shelf(shelf.0[range].to_vec()), now_us)?;
        Ok(true)
    }

    /// The first of what is to be merged that the disk has room for.
    fn first_with_room(&mut self, wanted: impl Iterator<Item = Range<usize>>, sizes: &[u64]) -> Option<Range<usize>> {
        // A file system that does not say has to be tried.
        let free = self.place.free_bytes().unwrap_or(u64::MAX);
        for range in wanted {
            let needed = sizes[range.clone()].iter().sum::<u64>() + self.reserve;
            let was_short = std::mem::replace(&mut self.is_short, needed > free);
            if !self.is_short {
                return Some(range);
            }
            if !was_short {
                tracing::warn!(needed, free, "segments are not merged until the disk has more room");
            }
        }
        None
    }

    fn merge(&mut self, parts: &Shelf, now_us: u64) -> Result<(), LogError> {
        let began = Instant::now();
        let floors = self.retention.floors(now_us);
        let merged = merge(&self.disk, &parts.0, &floors, now_us)?;
        drop(floors);
        let (name, bytes) = (merged.name(), merged.bytes());
        let replaced: Vec<_> = parts.0.iter().map(|part| part.name()).filter(|part| *part != name).collect();
        self.shelves.replace(merged);
        remove_replaced(&*self.disk.disk, &replaced)?;
        self.counters.merges.fetch_add(1, Ordering::Relaxed);
        self.counters.merged_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (parts, took_ms) = (replaced.len(), began.elapsed().as_millis() as u64);
        tracing::debug!(%name, parts, bytes, took_ms, "merged segments");
        Ok(())
    }
}
