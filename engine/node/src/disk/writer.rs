//! How a core's batches get to the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thalweg_journal::{Disk, DiskError, DiskFile};
use thalweg_ring::Bell;

use super::file::failure;
use super::ring::RingWriter;
use super::thread::ThreadWriter;

/// How the batches of a core's log are written and synced.
///
/// The default is the winner of `bench/micro/src/bin/log_backends.rs` and of `thalweg bench append`, on 2 cores of an AMD
/// Zen 3 (Linux 6.18, ext4 on a virtual disk). Others worked on the machine, so everything measured ran with real-time
/// priority; back ends alternate, medians of 5 rounds, thread against ring. Batches one behind the other, into a file that
/// was written before:
///
/// | batch | injected sync | p50 µs | p99 µs | batches/s | core's CPU, µs | all CPU, µs |
/// |---|---|---|---|---|---|---|
/// | 4 KiB | – | 199 / 183 | 327 / 331 | 4,930 / 4,970 | 52 / 82 | 127 / 97 |
/// | 64 KiB | – | 194 / 178 | 283 / 312 | 4,930 / 5,010 | 44 / 69 | 127 / 94 |
/// | 1 MiB | – | 551 / 594 | 849 / 1,815 | 1,680 / 1,600 | 58 / 259 | 263 / 188 |
/// | 64 KiB | 1 ms | 1,360 / 1,375 | 1,494 / 1,799 | 732 / 712 | 56 / 106 | 215 / 186 |
/// | 64 KiB | 5 ms | 5,441 / 5,473 | 5,579 / 6,110 | 184 / 182 | 71 / 153 | 256 / 254 |
///
/// (The core's CPU is from a second run.) A whole node on one core, 256 messages of 256 bytes in flight over 4 connections,
/// durable appends a second: 136,000 / 96,000 without a delay (medians of 3), 66,600 / 55,300 with 1 ms, 19,900 / 17,500
/// with 5 ms.
///
/// A batch takes equally long either way, since the disk is what takes the time. The ring needs less CPU in all, but what
/// it needs is the core's: to copy the batch, to set the write up, to be told of two completions; the thread takes
/// all that off the core. It also leaves the batches in the page cache, from where they are sealed. A single write with
/// `RWF_DSYNC` through the ring took 4 ms here, a tick of the scheduler; the thread with `O_DIRECT` was as fast as
/// without. Into a file that was only allocated, a sync of either takes 1.6 times as long: that is why files are used
/// again, and new ones filled with zeros ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogBackend {
    /// A thread beside each core: `pwrite` through the page cache, then `fdatasync`.
    #[default]
    Thread,
    /// A ring of its own: the write, around the page cache, from registered memory, and the sync linked behind it. Needs
    /// permission to use io_uring and 4 MiB of locked memory per core.
    IoUring,
}

/// A file of the write-ahead log that is open for writing.
pub struct LogFile {
    pub(super) path: String,
    pub(super) file: Box<dyn DiskFile>,
    /// The same file around the page cache, for the ring.
    pub(super) direct: Option<File>,
}

impl LogFile {
    /// Opens a file of the log for `backend`. `root` is where the files of `disk` are.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(disk: &dyn Disk, root: &Path, path: &str, backend: LogBackend) -> Result<Arc<Self>, DiskError> {
        let file = disk.open(path)?;
        let direct = match backend {
            LogBackend::Thread => None,
            LogBackend::IoUring => {
                let opened =
                    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(root.join(path));
                Some(opened.map_err(failure(path, "opening it around the page cache"))?)
            }
        };
        Ok(Arc::new(Self { path: path.to_owned(), file, direct }))
    }
}

/// What came of a batch.
#[derive(Debug)]
pub struct Written {
    /// What was handed over, to be used again.
    pub bytes: Vec<u8>,
    /// From handing over until it was written and synced.
    pub took: Duration,
    /// Whether it is durable. After an error nobody knows what is on the disk; nothing more may be written.
    pub result: Result<(), DiskError>,
}

/// What wakes a sleeper when a batch is done and the bell of its core does not ring.
#[derive(Debug, Clone, Copy)]
pub struct WakeFds {
    /// Readable while a batch is done and not taken.
    pub poll: RawFd,
    /// An eventfd that is written to when a batch is done.
    pub eventfd: RawFd,
}

/// What gets batches to the disk, one at a time.
///
/// Contract: [`begin`](Self::begin) one; [`poll`](Self::poll) gives what came of it; then the next. None of them waits.
/// Whoever sleeps makes sure first that nothing [is ready](Self::is_ready), and is woken by the bell of the core or by
/// [`wake_fds`](Self::wake_fds).
pub trait LogWriter: Send {
    /// Begins to write `bytes` at `offset` and to sync them. Both are multiples of a block.
    fn begin(&mut self, file: &Arc<LogFile>, offset: u64, bytes: Vec<u8>);
    /// What came of the batch that is under way, once it is known.
    fn poll(&mut self) -> Option<Written>;
    /// Whether [`poll`](Self::poll) is worth a call.
    fn is_ready(&self) -> bool;
    /// What to wait for beside the bell.
    fn wake_fds(&self) -> Option<WakeFds>;
}

/// Makes the writer of a core, whose bell is `bell`. With the ring each sync takes `sync_delay` longer than it must; what
/// the thread calls is as slow as the disk that was given to it.
///
/// # Errors
/// If the machine does not give it what it needs.
pub fn writer(backend: LogBackend, bell: &Arc<Bell>, sync_delay: Duration) -> io::Result<Box<dyn LogWriter>> {
    Ok(match backend {
        LogBackend::Thread => Box::new(ThreadWriter::start(Arc::clone(bell))?),
        LogBackend::IoUring => Box::new(RingWriter::new(sync_delay)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;
    use crate::disk::fault::{Fault, FaultyDisk};
    use crate::identity::tests::TempDir;

    const BACKENDS: [LogBackend; 2] = [LogBackend::Thread, LogBackend::IoUring];

    /// Sleeps as a core does until the batch is done.
    fn wait(writer: &mut dyn LogWriter, bell: &Bell) -> Written {
        loop {
            if let Some(written) = writer.poll() {
                return written;
            }
            bell.prepare_nap();
            if !writer.is_ready() {
                bell.nap(writer.wake_fds().map_or(bell.fd(), |fds| fds.poll), Duration::from_secs(10));
            }
            bell.awake();
        }
    }

    #[test]
    fn what_was_handed_over_is_in_the_file() {
        for backend in BACKENDS {
            let dir = TempDir::new();
            let disk = FileDisk::open(dir.path(), Duration::ZERO).expect("a directory");
            disk.create("wal/a").and_then(|file| file.allocate(1 << 20)).expect("room");
            let file = LogFile::open(&disk, dir.path(), "wal/a", backend).expect("there");
            let bell = Bell::new().expect("an eventfd");
            let mut writer = writer(backend, &bell, Duration::from_micros(10)).expect("a back end");
            let mut expected = vec![0; 1 << 20];
            let mut at = 4_096;
            for (n, blocks) in [1, 16, 3, 100].into_iter().enumerate() {
                let bytes: Vec<u8> = (0..blocks * 4_096).map(|at| (at / 7 + n) as u8).collect();
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
                writer.begin(&file, at as u64, bytes.clone());
                let written = wait(&mut *writer, &bell);
                assert_eq!((written.result, written.bytes == bytes), (Ok(()), true), "{backend:?}");
                assert!(writer.poll().is_none(), "{backend:?}: said once");
                at += bytes.len();
            }
            let mut read = vec![0; 1 << 20];
            disk.open("wal/a").and_then(|file| file.read_at(0, &mut read)).expect("read");
            assert!(read == expected, "{backend:?}");
        }
    }

    #[test]
    fn a_batch_that_cannot_be_written_says_where_and_why() {
        for backend in BACKENDS {
            let dir = TempDir::new();
            let disk = FileDisk::open(dir.path(), Duration::ZERO).expect("a directory");
            disk.create("wal/a").expect("made");
            let mut file = LogFile::open(&disk, dir.path(), "wal/a", backend).expect("there");
            let path = dir.path().join("wal/a");
            let read_only = || OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).expect("there");
            if backend == LogBackend::IoUring {
                let file = Arc::get_mut(&mut file).expect("not shared");
                file.direct = Some(read_only());
            } else {
                let faulty = FaultyDisk::new(Arc::new(disk), Fault::Write { after: 0 });
                file = LogFile::open(&faulty, dir.path(), "wal/a", backend).expect("there");
            }
            let bell = Bell::new().expect("an eventfd");
            let mut writer = writer(backend, &bell, Duration::ZERO).expect("a back end");
            writer.begin(&file, 0, vec![1; 4_096]);
            match wait(&mut *writer, &bell).result {
                Err(DiskError::Failed { path, what }) => {
                    assert!(path == "wal/a" && what.contains("writing it failed"), "{path}: {what}");
                }
                other => panic!("{backend:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_under_way_may_be_abandoned() {
        for backend in BACKENDS {
            let dir = TempDir::new();
            let disk = FileDisk::open(dir.path(), Duration::from_millis(1)).expect("a directory");
            disk.create("wal/a").and_then(|file| file.allocate(1 << 20)).expect("room");
            let file = LogFile::open(&disk, dir.path(), "wal/a", backend).expect("there");
            let bell = Bell::new().expect("an eventfd");
            for _ in 0..10 {
                let mut writer = writer(backend, &bell, Duration::from_millis(1)).expect("a back end");
                writer.begin(&file, 0, vec![1; 1 << 20]);
            }
        }
    }
}
