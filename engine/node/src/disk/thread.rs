//! Batches through a thread that writes and syncs them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use thalweg_journal::DiskError;
use thalweg_ring::{Bell, Consumer, Producer, ring};

use super::writer::{LogFile, LogWriter, WakeFds, Written};

struct Job {
    file: Arc<LogFile>,
    offset: u64,
    bytes: Vec<u8>,
    began: Instant,
}

/// One thread per core. It sleeps in the system calls, the core does not.
pub(super) struct ThreadWriter {
    jobs: Producer<Job>,
    done: Consumer<Written>,
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ThreadWriter {
    pub(super) fn start(core: Arc<Bell>) -> io::Result<Self> {
        let (bell, stop) = (Bell::new()?, Arc::new(AtomicBool::new(false)));
        let (jobs, mut asked) = ring::<Job>(1);
        let (mut told, done) = ring::<Written>(1);
        let (own_bell, own_stop) = (Arc::clone(&bell), Arc::clone(&stop));
        let work = move || {
            while let Some(Job { file, offset, bytes, began }) = next(&mut asked, &own_bell, &own_stop) {
                let mut answer = Answer { told: &mut told, core: &core, path: &file.path, began, done: None };
                let result = file.file.write_at(offset, &bytes).and_then(|()| file.file.sync());
                answer.done = Some((bytes, result));
            }
        };
        let thread = std::thread::Builder::new().name("thalweg-log".into()).spawn(work)?;
        Ok(Self { jobs, done, bell, stop, thread: Some(thread) })
    }
}

/// Tells the core what came of a batch, when it is dropped: also if the thread panics, or the core would wait for ever.
struct Answer<'a> {
    told: &'a mut Producer<Written>,
    core: &'a Bell,
    path: &'a str,
    began: Instant,
    done: Option<(Vec<u8>, Result<(), DiskError>)>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let panicked = || {
            let what = "writing it failed: the thread that writes the log panicked".to_owned();
            (Vec::new(), Err(DiskError::Failed { path: self.path.to_owned(), what }))
        };
        let (bytes, result) = self.done.take().unwrap_or_else(panicked);
        // One batch is under way at a time, so there is room, unless the core is gone.
        if self.told.push(Written { bytes, took: self.began.elapsed(), result }).is_ok() {
            self.core.ring();
        }
    }
}

/// The next batch; none once the core is gone.
fn next(asked: &mut Consumer<Job>, bell: &Bell, stop: &AtomicBool) -> Option<Job> {
    loop {
        if let Some(job) = asked.pop() {
            return Some(job);
        }
        if stop.load(Ordering::Acquire) {
            return None;
        }
        bell.prepare();
        if asked.is_empty() && !stop.load(Ordering::Acquire) {
            bell.wait(None);
        }
        bell.awake();
    }
}

impl LogWriter for ThreadWriter {
    fn begin(&mut self, file: &Arc<LogFile>, offset: u64, bytes: Vec<u8>) {
        let job = Job { file: Arc::clone(file), offset, bytes, began: Instant::now() };
        let handed_over = self.jobs.push(job).is_ok();
        debug_assert!(handed_over, "one batch is under way at a time");
        self.bell.ring();
    }

    fn poll(&mut self) -> Option<Written> {
        self.done.pop()
    }

    fn is_ready(&self) -> bool {
        !self.done.is_empty()
    }

    fn wake_fds(&self) -> Option<WakeFds> {
        None
    }
}

impl Drop for ThreadWriter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log's thread panicked");
        }
    }
}
