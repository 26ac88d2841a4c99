//! Recovery of the log when a node starts, on all CPUs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, PoisonError};
use std::time::{Duration, Instant};

use thalweg_journal::recovery::{Plan, Recovered, SealJob};
use thalweg_journal::segment::Sealed;
use thalweg_journal::{Disk, LogError};

/// Between two words about how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// Recovers the log on `disk`, or makes one of `partitions` partitions. Says how far it is on the way, if it takes long.
///
/// # Errors
/// [`LogError`]: what is wrong with the log, and where.
pub(crate) fn recover(disk: &dyn Disk, partitions: u16, threads: usize) -> Result<Recovered, LogError> {
    let began = Instant::now();
    let plan = Plan::read(disk, partitions)?;
    let files = plan.jobs().len();
    let sealed = seal_all(disk, plan.jobs(), threads)?;
    let recovered = plan.finish(disk, sealed)?;
    for torn in &recovered.report.torn {
        tracing::warn!(
            path = torn.path,
            offset = torn.offset,
            bytes = torn.bytes,
            "the log ended in the middle of a write; what was cut off was never acknowledged"
        );
    }
    if recovered.partitions != partitions {
        tracing::info!(
            asked = partitions,
            partitions = recovered.partitions,
            "the number of partitions was fixed when the log was made"
        );
    }
    let report = &recovered.report;
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::info!(files, records = report.records, segments = report.segments, took_ms, "the log is recovered");
    Ok(recovered)
}

/// What the threads that seal share.
struct Sealing<'a> {
    disk: &'a dyn Disk,
    jobs: &'a [SealJob],
    next: AtomicUsize,
    bytes: AtomicU64,
    done: Mutex<Done>,
    changed: Condvar,
}

#[derive(Default)]
struct Done {
    sealed: Vec<Sealed>,
    failed: Option<LogError>,
    threads: usize,
}

impl Sealing<'_> {
    fn work(&self) {
        while let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let result = job.run(self.disk);
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(sealed) => {
                    self.bytes.fetch_add(sealed.bytes, Ordering::Relaxed);
                    done.sealed.push(sealed);
                }
                Err(error) => {
                    // The others finish what they have begun; what is found first is said.
                    self.next.store(self.jobs.len(), Ordering::Relaxed);
                    done.failed.get_or_insert(error);
                }
            }
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).threads -= 1;
        self.changed.notify_all();
    }

    /// Waits until all threads are done, and tells how far they are.
    fn wait(&self) {
        let began = Instant::now();
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said = began;
        while done.threads > 0 {
            (done, _) = self.changed.wait_timeout(done, PROGRESS).unwrap_or_else(PoisonError::into_inner);
            if said.elapsed() >= PROGRESS && done.threads > 0 {
                said = Instant::now();
                let (files, of, bytes) = (done.sealed.len(), self.jobs.len(), self.bytes.load(Ordering::Relaxed));
                let mb_per_s = (bytes as f64 / 1e6 / began.elapsed().as_secs_f64()).round();
                tracing::info!(files, of, mb_per_s, "recovering the log");
            }
        }
    }
}

fn seal_all(disk: &dyn Disk, jobs: &[SealJob], threads: usize) -> Result<Vec<Sealed>, LogError> {
    let threads = threads.clamp(1, jobs.len().max(1));
    let sealing = Sealing {
        disk,
        jobs,
        next: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        done: Mutex::new(Done { threads, ..Done::default() }),
        changed: Condvar::new(),
    };
    if jobs.len() <= 1 {
        sealing.work();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| sealing.work());
            }
            sealing.wait();
        });
    }
    let done = sealing.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.failed.map_or(Ok(done.sealed), Err)
}
