//! The thread that seals full files of the write-ahead log, and gets the next ones ready.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thalweg_journal::segment::{SegmentName, publish, seal};
use thalweg_journal::wal::{Closed, NewFile, WalFile, prepare, wal_path};
use thalweg_journal::{Disk, DiskError, LogError};
use thalweg_protocol::ids::{CoreId, Epoch};
use thalweg_protocol::limits::LOG_BLOCK_BYTES;
use thalweg_ring::{Bell, Consumer, Producer, ring};

use super::alarm::Alarm;
use super::merger::be_nice;
use super::shelves::Shelves;
use super::writer::{LogBackend, LogFile};

/// How much the kernel prefers others where the archive shares a CPU with them. Sealing a file takes a tenth of a second or
/// two, which a core cannot wait; with a quarter of a CPU the archive still keeps up with a core that fills the rest.
const NICE: i32 = 5;
/// Between two looks at whether a full disk has room again.
const RETRY: Duration = Duration::from_secs(1);
/// Files of one core that wait to be sealed; until there are fewer it gets no new one, so that a core that writes faster
/// than its files are sealed is slowed down and does not fill memory and disk.
const UNSEALED_MAX: usize = 3;
/// Slots of the rings between a core and the archive: more than a core can have files.
const SLOTS: usize = 16;
/// Bytes of zeros that are written at a time.
const ZEROS: usize = 1 << 20;
/// Longest rest after each of them.
const FILL_REST_MAX: Duration = Duration::from_millis(10);
/// Files per core that are kept to be used again.
const FREE_PER_CORE: usize = 2;

/// What a core says to the archive.
#[derive(Debug)]
enum ToArchive {
    /// The next file is wanted.
    Wanted,
    /// A file is complete.
    Closed(Closed),
}

/// What the archive says to a core.
pub(crate) enum FromArchive {
    /// The next file.
    Spare(WalFile, Arc<LogFile>),
    /// Everything up to this ticket is in segments.
    Archived(u64),
    /// Whether the disk has room; if not, what it said.
    Storage(Option<String>),
}

/// One core's ends of the rings to the archive and back.
pub(crate) struct ArchiveLink {
    told: Producer<ToArchive>,
    heard: Consumer<FromArchive>,
    bell: Arc<Bell>,
}

impl ArchiveLink {
    /// Asks for the next file.
    pub(crate) fn want_file(&mut self) {
        self.tell(ToArchive::Wanted);
    }

    /// Hands over a file that is complete.
    pub(crate) fn closed(&mut self, closed: Closed) {
        self.tell(ToArchive::Closed(closed));
    }

    fn tell(&mut self, message: ToArchive) {
        // A core has fewer files than there are slots, so a refusal means that the archive is gone, and the node with it.
        if self.told.push(message).is_ok() {
            self.bell.ring();
        }
    }

    pub(crate) fn receive(&mut self) -> Option<FromArchive> {
        self.heard.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heard.is_empty()
    }
}

/// One core's end: its link, and the first file of its log.
pub(super) type CoreEnd = (ArchiveLink, WalFile, Arc<LogFile>);

/// What the threads behind the cores have done.
#[derive(Debug, Default)]
pub(crate) struct ArchiveCounters {
    pub(crate) sealed: AtomicU64,
    pub(crate) sealed_bytes: AtomicU64,
    pub(crate) merges: AtomicU64,
    pub(crate) merged_bytes: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) segment_bytes: AtomicU64,
}

/// Everything the archive works on.
pub(super) struct ArchiveConfig {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) root: PathBuf,
    pub(super) backend: LogBackend,
    pub(super) epoch: Epoch,
    pub(super) file_bytes: u64,
    pub(super) shelves: Arc<Shelves>,
    pub(super) alarm: Arc<Alarm>,
    pub(super) counters: Arc<ArchiveCounters>,
    /// Files that can be used again.
    pub(super) free: Vec<String>,
    /// The next generation of each core's files.
    pub(super) next_generation: BTreeMap<CoreId, u64>,
    /// Rung when there is a new segment.
    pub(super) merger: Arc<Bell>,
}

/// The archive: one thread per node, which sleeps in system calls so that no core does.
pub(super) struct Archive {
    bell: Arc<Bell>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Archive {
    /// Prepares the first file of each core, starts the archive, and gives each core its link and its file; `bells` are the
    /// cores'.
    ///
    /// # Errors
    /// If a file cannot be prepared, or the thread cannot be started.
    pub(super) fn start(config: ArchiveConfig, bells: &[Arc<Bell>]) -> Result<(Self, Vec<CoreEnd>), ArchiveError> {
        let (bell, stop) = (Bell::new().map_err(ArchiveError::Start)?, Arc::new(AtomicBool::new(false)));
        let mut work = Work { config, desks: Vec::new(), full: None };
        let mut links = Vec::new();
        for (core, core_bell) in bells.iter().enumerate() {
            let core = CoreId(core as u16);
            let (told, asked) = ring(SLOTS);
            let (tell, heard) = ring(SLOTS);
            work.desks.push(Desk {
                core,
                asked,
                told: tell,
                unsaid: VecDeque::new(),
                bell: Arc::clone(core_bell),
                next_generation: work.config.next_generation.get(&core).copied().unwrap_or(1),
                wanted: false,
                closed: VecDeque::new(),
            });
            // The first is wanted now, so it is not filled with zeros.
            let (file, opened) = work.prepare(usize::from(core.0), false).map_err(ArchiveError::Prepare)?;
            links.push((ArchiveLink { told, heard, bell: Arc::clone(&bell) }, file, opened));
        }
        let (own_bell, own_stop) = (Arc::clone(&bell), Arc::clone(&stop));
        let run = move || {
            let _guard = work.config.alarm.guard("the archive");
            be_nice(NICE);
            work.run(&own_bell, &own_stop);
        };
        let thread = std::thread::Builder::new().name("thalweg-archive".into()).spawn(run);
        Ok((Self { bell, stop, thread: thread.map_err(ArchiveError::Start)? }, links))
    }

    /// Ends the thread. What is not sealed is sealed when the node starts again.
    pub(super) fn shut_down(self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if self.thread.join().is_err() {
            tracing::error!("the archive's thread panicked");
        }
    }
}

/// Writes zeros to a file of the log, behind its header. Rests for as long as each write takes: batches of the log are
/// synced at the same time, to the same disk.
fn fill(disk: &dyn Disk, path: &str, bytes: u64) -> Result<(), DiskError> {
    let file = disk.open(path)?;
    let zeros = vec![0; ZEROS];
    let mut at = LOG_BLOCK_BYTES as u64;
    while at < bytes {
        let count = ZEROS.min((bytes - at) as usize);
        let began = Instant::now();
        file.write_at(at, &zeros[..count])?;
        at += count as u64;
        std::thread::sleep(began.elapsed().min(FILL_REST_MAX));
    }
    file.sync()
}

/// Why the archive did not start.
#[derive(Debug)]
pub(super) enum ArchiveError {
    Prepare(DiskError),
    Start(io::Error),
}

struct Desk {
    core: CoreId,
    asked: Consumer<ToArchive>,
    told: Producer<FromArchive>,
    /// What there was no room for.
    unsaid: VecDeque<FromArchive>,
    bell: Arc<Bell>,
    next_generation: u64,
    wanted: bool,
    /// Files to be sealed, oldest first.
    closed: VecDeque<Closed>,
}

impl Desk {
    fn say(&mut self, message: FromArchive) {
        self.unsaid.push_back(message);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(message) = self.unsaid.pop_front() {
            if let Err(message) = self.told.push(message) {
                self.unsaid.push_front(message);
                break;
            }
        }
        self.bell.ring();
    }

    fn can_have_file(&self) -> bool {
        self.wanted && self.closed.len() < UNSEALED_MAX
    }
}

struct Work {
    config: ArchiveConfig,
    desks: Vec<Desk>,
    /// What the disk said when it had no room.
    full: Option<String>,
}

impl Work {
    fn run(mut self, bell: &Bell, stop: &AtomicBool) {
        let mut retry_at = Instant::now();
        while !stop.load(Ordering::Acquire) {
            self.receive();
            let may_try = self.full.is_none() || Instant::now() >= retry_at;
            match if may_try { self.step() } else { Ok(false) } {
                Ok(true) => continue,
                Ok(false) => {
                    if may_try {
                        self.set_full(None);
                    }
                }
                Err(LogError::Disk(error @ DiskError::Full { .. })) => {
                    retry_at = Instant::now() + RETRY;
                    self.set_full(Some(error.to_string()));
                }
                Err(error) => {
                    self.config.alarm.raise(error.to_string());
                    return;
                }
            }
            bell.prepare();
            if self.desks.iter().all(|desk| desk.asked.is_empty()) && !stop.load(Ordering::Acquire) {
                let unsaid = self.desks.iter().any(|desk| !desk.unsaid.is_empty());
                bell.wait((self.full.is_some() || unsaid).then_some(RETRY));
            }
            bell.awake();
        }
    }

    fn receive(&mut self) {
        for desk in &mut self.desks {
            while let Some(message) = desk.asked.pop() {
                match message {
                    ToArchive::Wanted => desk.wanted = true,
                    ToArchive::Closed(closed) => desk.closed.push_back(closed),
                }
            }
            if !desk.unsaid.is_empty() {
                desk.flush();
            }
        }
    }

    /// Does one thing, the most urgent first; false if there is nothing to do.
    fn step(&mut self) -> Result<bool, LogError> {
        let mut full = None;
        if let Some(at) = self.desks.iter().position(Desk::can_have_file) {
            match self.prepare(at, true) {
                Ok((file, opened)) => {
                    self.desks[at].wanted = false;
                    self.desks[at].say(FromArchive::Spare(file, opened));
                    return Ok(true);
                }
                // A file that is sealed can be used again: that may be all the room that is needed.
                Err(error @ DiskError::Full { .. }) => full = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        // The core that has most to be sealed is nearest to being held up.
        let most = self.desks.iter().enumerate().max_by_key(|(_, desk)| desk.closed.len());
        match most.map(|(at, desk)| (at, desk.closed.front().copied())) {
            Some((at, Some(closed))) => {
                self.seal(at, closed)?;
                self.desks[at].closed.pop_front();
                self.desks[at].say(FromArchive::Archived(closed.through));
                Ok(true)
            }
            _ => full.map_or(Ok(false), |error| Err(error.into())),
        }
    }

    fn set_full(&mut self, full: Option<String>) {
        if self.full == full {
            return;
        }
        match &full {
            Some(said) => tracing::error!(%said, "nothing can be written until the disk has room"),
            None => tracing::info!("the disk has room again"),
        }
        for desk in &mut self.desks {
            desk.say(FromArchive::Storage(full.clone()));
        }
        self.full = full;
    }

    /// Gets a core's next file ready. What was never written before is filled with zeros, if there is `time`: a sync of such
    /// a file takes half as long, since the file system need not note what is written for the first time.
    fn prepare(&mut self, at: usize, time: bool) -> Result<(WalFile, Arc<LogFile>), DiskError> {
        let ArchiveConfig { disk, root, backend, epoch, file_bytes, free, .. } = &mut self.config;
        let desk = &mut self.desks[at];
        let (core, generation) = (desk.core, desk.next_generation);
        let recycle = free.pop();
        let new = NewFile { core, generation, epoch: *epoch, salt: rand::random(), bytes: *file_bytes };
        let path = wal_path(core, generation);
        let prepared = prepare(&**disk, new, recycle.as_deref()).and_then(|file| {
            if time && recycle.is_none() {
                fill(&**disk, &path, *file_bytes)?;
            }
            Ok(file)
        });
        let file = prepared.inspect_err(|error| {
            if matches!(error, DiskError::Full { .. }) {
                // Whatever there is of it takes room that others lack. It holds nothing, and nothing comes after it.
                let unfinished = format!("{}.new", path.trim_end_matches(".wal"));
                [&unfinished, &path].into_iter().for_each(|path| drop(disk.remove(path)));
            }
        })?;
        let opened = LogFile::open(&**disk, root, &path, *backend)?;
        desk.next_generation += 1;
        Ok((file, opened))
    }

    fn seal(&mut self, at: usize, closed: Closed) -> Result<(), LogError> {
        let ArchiveConfig { disk, shelves, counters, free, merger, .. } = &mut self.config;
        let began = Instant::now();
        let path = wal_path(self.desks[at].core, closed.generation);
        let number = shelves.last_number() + 1;
        let sealed = seal(&**disk, &path, number, Some(closed.end)).inspect_err(|_| {
            // On a full disk, the room that this takes is the room that everybody lacks.
            let _ = disk.remove(&SegmentName::of(number).path_new());
        })?;
        shelves.push(publish(&**disk, number)?);
        counters.sealed.fetch_add(1, Ordering::Relaxed);
        counters.sealed_bytes.fetch_add(sealed.bytes, Ordering::Relaxed);
        counters.segments.store(shelves.len() as u64, Ordering::Relaxed);
        counters.segment_bytes.fetch_add(sealed.bytes, Ordering::Relaxed);
        merger.ring();
        let (records, bytes, took_ms) = (sealed.records, sealed.bytes, began.elapsed().as_millis() as u64);
        tracing::debug!(path, number, records, bytes, took_ms, "sealed");
        if free.len() < FREE_PER_CORE * self.desks.len() {
            free.push(path);
        } else if let Err(error) = disk.remove(&path) {
            tracing::warn!(%error, "a file of the log that is no longer needed stays");
        }
        Ok(())
    }
}
