//! The thread that merges segments, so that reads look into few and what is no longer wanted goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_journal::segment::{Shelf, merge, merge_candidates, remove_replaced};
use thalweg_journal::{Disk, DiskError, LogError};
use thalweg_protocol::limits::SEGMENT_MERGE_FANIN;
use thalweg_ring::Bell;

use super::archive::ArchiveCounters;
use super::gentle::{GentleDisk, Pace};
use super::retention::Retention;
use super::shelves::Shelves;

/// It looks around at least this often, for what has been deleted long enough ago.
const LOOK: Duration = Duration::from_secs(60);
/// With so many segments merging does not rest: reads are slow by now.
const HURRY: usize = 8 * SEGMENT_MERGE_FANIN;
/// How much the kernel prefers everybody else.
const NICE: i32 = 10;

/// The merger: one thread per node, of low priority.
pub(super) struct Merger {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Merger {
    /// Starts the merger; it is woken by `bell`.
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        shelves: Arc<Shelves>,
        counters: Arc<ArchiveCounters>,
        bell: Arc<Bell>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let pace = Arc::new(Pace { rests: AtomicBool::new(true), stop: Arc::clone(&stop) });
        let disk = GentleDisk { disk, pace };
        let (own_bell, own_stop) = (Arc::clone(&bell), Arc::clone(&stop));
        let work = move || {
            be_nice();
            Work { disk, shelves, counters, retention: Retention::default() }.run(&own_bell, &own_stop);
        };
        let thread = std::thread::Builder::new().name("thalweg-merger".into()).spawn(work)?;
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

fn be_nice() {
    // SAFETY: takes three numbers; 0 is the calling thread. That it is refused does no harm.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

struct Work {
    disk: GentleDisk,
    shelves: Arc<Shelves>,
    counters: Arc<ArchiveCounters>,
    retention: Retention,
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

    /// Merges once, if there is anything to merge.
    fn step(&mut self) -> Result<bool, LogError> {
        let shelf = self.shelves.now();
        let now = Instant::now();
        self.retention.catch_up(&shelf, now)?;
        let sizes: Vec<u64> = shelf.0.iter().map(|segment| segment.bytes()).collect();
        self.counters.segments.store(sizes.len() as u64, Ordering::Relaxed);
        self.counters.segment_bytes.store(sizes.iter().sum(), Ordering::Relaxed);
        let overdue = self.retention.is_overdue(now);
        let range = if overdue { Some(0..sizes.len()) } else { merge_candidates(&sizes) };
        let Some(range) = range.filter(|range| !range.is_empty()) else { return Ok(false) };
        self.disk.pace.rests.store(sizes.len() < HURRY, Ordering::Relaxed);
        self.merge(&Shelf(shelf.0[range].to_vec()))?;
        if overdue {
            self.retention.all_merged();
        }
        Ok(true)
    }

    fn merge(&mut self, parts: &Shelf) -> Result<(), LogError> {
        let began = Instant::now();
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
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
