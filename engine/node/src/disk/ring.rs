//! Batches through a ring of `io-uring`.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, Timespec};
use io_uring::{IoUring, opcode, squeue};
use thalweg_journal::DiskError;
use thalweg_protocol::limits::LOG_BATCH_BYTES_MAX;

use super::aligned::Aligned;
use super::file::failure;
use super::writer::{LogFile, LogWriter, WakeFds, Written};

/// Room for a batch: its write, its sync and the delay that may follow.
const ENTRIES: u32 = 4;
/// The marks of the parts of a batch among completions.
const WRITE: u64 = 1;
const SYNC: u64 = 2;
const DELAY: u64 = 3;

/// A ring of a core's own.
///
/// A batch is one submission: the write, around the page cache, from memory that stays put, then the sync, then, if wanted,
/// a delay; each waits for the one before it.
pub(super) struct RingWriter {
    ring: IoUring,
    memory: ManuallyDrop<Memory>,
    eventfd: OwnedFd,
    under_way: Option<Batch>,
}

/// What the kernel reads.
struct Memory {
    batch: Aligned,
    delay: Option<Box<Timespec>>,
}

struct Batch {
    file: Arc<LogFile>,
    bytes: Vec<u8>,
    began: Instant,
    /// Completions that are still to come.
    awaited: usize,
    result: Result<(), DiskError>,
}

impl RingWriter {
    pub(super) fn new(sync_delay: Duration) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(ENTRIES)?;
        // SAFETY: makes a new descriptor, which is then ours alone.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let mut batch = Aligned::new(LOG_BATCH_BYTES_MAX);
        let whole = libc::iovec { iov_base: batch.as_mut_ptr().cast(), iov_len: LOG_BATCH_BYTES_MAX };
        // SAFETY: the memory is freed only after the kernel said that nothing is under way any more.
        unsafe { ring.submitter().register_buffers(&[whole])? };
        let delay = (!sync_delay.is_zero()).then(|| Box::new(Timespec::from(sync_delay)));
        Ok(Self { ring, memory: ManuallyDrop::new(Memory { batch, delay }), eventfd, under_way: None })
    }

    /// Hands a batch to the kernel; gives the number of its parts, and how many of them the kernel took.
    fn submit(&mut self, file: &LogFile, offset: u64, bytes: u32) -> io::Result<(usize, usize)> {
        let direct = file.direct.as_ref().ok_or_else(|| io::Error::other("it is not open around the page cache"))?;
        let fd = Fd(direct.as_raw_fd());
        let write = opcode::WriteFixed::new(fd, self.memory.batch.as_mut_ptr(), bytes, 0).offset(offset).build();
        let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        let mut entries = vec![write.user_data(WRITE).flags(squeue::Flags::IO_LINK), sync.user_data(SYNC)];
        if let Some(delay) = &self.memory.delay {
            let delay = opcode::Timeout::new(&raw const **delay).build();
            entries[1] = entries[1].clone().flags(squeue::Flags::IO_LINK);
            entries.push(delay.user_data(DELAY));
        }
        // SAFETY: batch and delay lie in `memory`, which is left alone until all completions are there; the file is open
        // as long as the batch is under way.
        unsafe { self.ring.submission().push_multiple(&entries) }.expect("the ring has room for one batch");
        Ok((entries.len(), self.ring.submit()?))
    }

    fn collect(&mut self) {
        let Some(batch) = &mut self.under_way else { return };
        let wanted = batch.bytes.len();
        for completion in self.ring.completion() {
            batch.awaited -= 1;
            let path = &batch.file.path;
            let result = match (completion.user_data(), completion.result()) {
                (WRITE, written @ 0..) if written as usize == wanted => Ok(()),
                (WRITE, written @ 0..) => {
                    let what = format!("writing it ended after {written} of {wanted} bytes");
                    Err(DiskError::Failed { path: path.clone(), what })
                }
                (SYNC, 0..) | (DELAY, _) => Ok(()),
                (mark, error) => {
                    let action = if mark == WRITE { "writing it" } else { "syncing it" };
                    Err(failure(path, action)(io::Error::from_raw_os_error(-error)))
                }
            };
            // What came first is the cause; what is linked behind it is only cancelled.
            batch.result = std::mem::replace(&mut batch.result, Ok(())).and(result);
        }
    }
}

/// A kernel that is short of memory may take only the first parts of a batch: the write without its sync, then.
fn all_taken(path: &str, parts: usize, taken: usize) -> Result<(), DiskError> {
    if taken == parts {
        return Ok(());
    }
    let what = format!("handing a write over failed: the kernel took {taken} of its {parts} parts");
    Err(DiskError::Failed { path: path.to_owned(), what })
}

impl LogWriter for RingWriter {
    fn begin(&mut self, file: &Arc<LogFile>, offset: u64, bytes: Vec<u8>) {
        assert!(self.under_way.is_none(), "one batch is under way at a time");
        assert!(bytes.len() <= LOG_BATCH_BYTES_MAX, "a batch is within its limit");
        let began = Instant::now();
        self.memory.batch.fill(&bytes);
        let (awaited, result) = match self.submit(file, offset, bytes.len() as u32) {
            Ok((parts, taken)) => (taken, all_taken(&file.path, parts, taken)),
            Err(error) => (0, Err(failure(&file.path, "handing a write over")(error))),
        };
        self.under_way = Some(Batch { file: Arc::clone(file), bytes, began, awaited, result });
    }

    fn poll(&mut self) -> Option<Written> {
        self.collect();
        let Batch { bytes, began, result, .. } = self.under_way.take_if(|batch| batch.awaited == 0)?;
        Some(Written { bytes, took: began.elapsed(), result })
    }

    fn is_ready(&self) -> bool {
        // SAFETY: `collect` is the only other place that looks at completions, and it does so with `&mut self`.
        let waiting = unsafe { !self.ring.completion_shared().is_empty() };
        waiting || self.under_way.as_ref().is_some_and(|batch| batch.awaited == 0)
    }

    fn wake_fds(&self) -> Option<WakeFds> {
        Some(WakeFds { poll: self.ring.as_raw_fd(), eventfd: self.eventfd.as_raw_fd() })
    }
}

impl Drop for RingWriter {
    fn drop(&mut self) {
        // The kernel goes on with what is under way for a while after a ring is closed, so it must be stopped before.
        let stopped = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        if stopped.is_ok() || matches!(&stopped, Err(error) if error.raw_os_error() == Some(libc::ENOENT)) {
            // SAFETY: dropped once, here, and the kernel has confirmed that nothing uses the memory any more. Otherwise
            // it is left alone: better lost than read while someone else has it.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_which_the_kernel_took_less_than_all_has_failed() {
        assert_eq!(all_taken("wal/a", 2, 2), Ok(()));
        for taken in [0, 1] {
            let error = all_taken("wal/a", 2, taken).expect_err("not synced").to_string();
            assert!(error.contains("wal/a") && error.contains(&format!("took {taken} of its 2")), "{error}");
        }
    }
}
