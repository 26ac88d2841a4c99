//! Recovery of the log when a node starts, on all CPUs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, PoisonError};
use std::time::{Duration, Instant};

use thalweg_journal::recovery::{Plan, Recovered, SealJob};
use thalweg_journal::segment::Sealed;
use thalweg_journal::{Disk, DiskError, LogError};

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

/// Says that a thread is done, also if it panics: or whoever waits for it would wait for ever.
struct Leaving<'a> {
    sealing: &'a Sealing<'a>,
    /// What it works on.
    job: Option<&'a SealJob>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut done = self.sealing.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.threads -= 1;
        if let Some(SealJob { path, .. }) = self.job.filter(|_| std::thread::panicking()) {
            let what = "the thread that sealed it panicked; what it said is on standard error".to_owned();
            self.sealing.fail(&mut done, DiskError::Failed { path: path.clone(), what }.into());
        }
        self.sealing.changed.notify_all();
    }
}

impl Sealing<'_> {
    fn work(&self) {
        let mut leaving = Leaving { sealing: self, job: None };
        while let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            leaving.job = Some(job);
            let result = job.run(self.disk);
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(sealed) => {
                    self.bytes.fetch_add(sealed.bytes, Ordering::Relaxed);
                    done.sealed.push(sealed);
                }
                Err(error) => self.fail(&mut done, error),
            }
        }
    }

    /// The others finish what they have begun; what is found first is said.
    fn fail(&self, done: &mut Done, error: LogError) {
        self.next.store(self.jobs.len(), Ordering::Relaxed);
        done.failed.get_or_insert(error);
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
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let threads = threads.clamp(1, jobs.len());
    let sealing = Sealing {
        disk,
        jobs,
        next: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        done: Mutex::new(Done { threads, ..Done::default() }),
        changed: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let work: Vec<_> = (0..threads).map(|_| scope.spawn(|| sealing.work())).collect();
        sealing.wait();
        // That one panicked is in what was found. Joined here, it does not make the scope panic, too.
        work.into_iter().for_each(|thread| drop(thread.join()));
    });
    let done = sealing.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.failed.map_or(Ok(done.sealed), Err)
}
