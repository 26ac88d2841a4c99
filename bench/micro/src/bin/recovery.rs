//! Recovery of a write-ahead log that nothing was sealed of, with a cold cache.
//!
//! ```text
//! recovery write DIRECTORY [RECORDS] [BODY] [CHANNELS] [WRITERS] [CORES]   fills DIRECTORY with the log of a killed node
//! recovery read DIRECTORY [THREADS]                                        recovers it, as a node does when it starts
//! ```
//! Two processes, so that the memory of the second is that of the recovery alone; `bench/recovery.sh` runs them and drops
//! the page cache between. Records are messages, in turn to all channels, and in turn of the WRITERS sessions that each
//! channel has; in batches of 256, which is what so many in flight make. They are in the log directory of a node's data directory (`DATA/log`), which `thalweg serve --data DATA` recovers too.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_domain::record::{ChannelSettings, Event, Message, Posting, Record};
use thalweg_journal::recovery::Plan;
use thalweg_journal::segment::Sealed;
use thalweg_journal::wal::{NewFile, Wal, WalFile, prepare, wal_path};
use thalweg_journal::{Disk, DiskFile};
use thalweg_node::disk::FileDisk;
use thalweg_protocol::ids::{
    ChannelId, ChannelKey, CoreId, Epoch, Lsn, Name, Partition, Position, Sequence, SessionId, partition_of,
};
use thalweg_protocol::limits::{LOG_FILE_BYTES, PARTITIONS_DEFAULT};
use thalweg_protocol::op::{Delivery, DeliveryKind, Durability};

/// Records of a batch: those of 256 in flight.
const BATCH_RECORDS: u64 = 256;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(default, |text| text.parse().expect("a number"));
    match arguments.first().map(String::as_str) {
        Some("write") if arguments.len() > 1 => {
            let (records, body) = (number(2, 1_000_000), number(3, 256) as usize);
            let load = Load { records, body, channels: number(4, 1_000), writers: number(5, 4) };
            load.write(Path::new(&arguments[1]), number(6, 1) as u16);
        }
        Some("read") if arguments.len() > 1 => {
            let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
            read(Path::new(&arguments[1]), number(2, cpus) as usize);
        }
        _ => {
            eprintln!("usage: recovery write DIRECTORY [RECORDS] [BODY] [CHANNELS] [WRITERS] [CORES]");
            eprintln!("       recovery read DIRECTORY [THREADS]");
            std::process::exit(2);
        }
    }
}

/// What is written.
struct Load {
    records: u64,
    body: usize,
    channels: u64,
    /// Sessions that write to a channel, and to no other.
    writers: u64,
}

/// A channel that is written to.
struct Channel {
    key: ChannelKey,
    partition: Partition,
    id: ChannelId,
    head: Position,
}

/// One core's log, and the file it is writing.
struct Core {
    id: CoreId,
    wal: Wal,
    file: Box<dyn DiskFile>,
    ticket: u64,
    files: u64,
}

impl Core {
    fn new(disk: &dyn Disk, id: CoreId) -> Self {
        let first = new_file(disk, id, 1);
        let file = disk.open(&wal_path(id, 1)).expect("it was just made");
        Self { id, wal: Wal::new(id, first), file, ticket: 0, files: 1 }
    }

    fn append(&mut self, disk: &dyn Disk, record: &Record) {
        self.ticket += 1;
        self.wal.append(self.ticket, record);
        if self.ticket.is_multiple_of(BATCH_RECORDS) {
            self.write(disk);
        }
    }

    /// Writes what was gathered; it is synced once a file, since nobody waits for an answer.
    fn write(&mut self, disk: &dyn Disk) {
        while self.wal.pending_bytes() > 0 {
            if self.wal.wants_file() {
                self.wal.file_wanted();
                self.wal.file_ready(new_file(disk, self.id, self.wal.next_generation()));
            }
            let generation = self.wal.generation();
            let write = self.wal.next_write().expect("something is pending, and there is a file with room");
            if write.generation != generation {
                self.file.sync().expect("synced");
                self.file = disk.open(&wal_path(self.id, write.generation)).expect("it was prepared");
                self.files += 1;
            }
            self.file.write_at(write.offset, &write.bytes).expect("room");
            self.wal.written(write.bytes);
        }
    }
}

fn new_file(disk: &dyn Disk, core: CoreId, generation: u64) -> WalFile {
    let salt = generation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(core.0);
    prepare(disk, NewFile { core, generation, epoch: Epoch(1), salt, bytes: LOG_FILE_BYTES }, None).expect("room")
}

impl Load {
    fn write(&self, directory: &Path, cores: u16) {
        let began = Instant::now();
        let disk = FileDisk::open(directory, Duration::ZERO).expect("a directory");
        // Writes the format, and finds that there is nothing else yet.
        let plan = Plan::read(&disk, PARTITIONS_DEFAULT).expect("an empty directory");
        assert!(plan.jobs().is_empty(), "{} holds a log already", directory.display());
        let mut cores: Vec<Core> = (0..cores).map(|id| Core::new(&disk, CoreId(id))).collect();
        let mut lsns = BTreeMap::<Partition, Lsn>::new();
        let mut append = |partition: Partition, event: &mut dyn FnMut(Lsn) -> Event| {
            let lsn = lsns.entry(partition).or_default();
            *lsn = lsn.next();
            let record = Record { partition, lsn: *lsn, epoch: Epoch(1), timestamp_us: now_us(), event: event(*lsn) };
            let core = usize::from(partition.0) % cores.len();
            cores[core].append(&disk, &record);
            *lsn
        };
        let tenant = Name::new("default").expect("valid");
        let user = Name::new("ada").expect("valid");
        let mut channels: Vec<Channel> = (0..self.channels)
            .map(|n| {
                let channel = Name::new(&format!("bench/recovery-{n}")).expect("valid");
                let partition = partition_of(&tenant, channel.as_str(), PARTITIONS_DEFAULT);
                let key = ChannelKey { tenant: tenant.clone(), channel };
                let settings = ChannelSettings::new(Durability::Disk);
                let lsn = append(partition, &mut |_| Event::ChannelCreated {
                    channel: key.clone(),
                    settings,
                    facts: Vec::new(),
                });
                Channel { key, partition, id: ChannelId(lsn.0), head: Position(0) }
            })
            .collect();
        for n in 0..self.records {
            let channel = &mut channels[(n % self.channels) as usize];
            channel.head = channel.head.next();
            let body: Vec<u8> = (0..self.body).map(|at| b'a' + ((n as usize + at) % 26) as u8).collect();
            let delivery = Delivery {
                position: channel.head,
                timestamp_us: now_us(),
                kind: DeliveryKind::Message,
                user: user.clone(),
                generation: None,
                body: Bytes::from(body),
                key: 0,
                context: Default::default(),
            };
            let writer = n % self.channels * self.writers + n / self.channels % self.writers;
            let session = SessionId(u128::from(writer) + 1);
            let message = std::sync::Arc::new(Message::new(delivery, session, Sequence(n + 1)));
            append(channel.partition, &mut |_| {
                Event::Published(Posting { channel: channel.key.clone(), id: channel.id, message: message.clone() })
            });
        }
        let mut files = 0;
        for core in &mut cores {
            core.write(&disk);
            core.file.sync().expect("synced");
            files += core.files;
        }
        let seconds = began.elapsed().as_secs_f64();
        println!("wrote {} records of {} bytes in {files} files, {seconds:.1} s", self.records, self.body);
    }
}

fn now_us() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

/// Recovers a log and says what it took.
fn read(directory: &Path, threads: usize) {
    let began = Instant::now();
    let disk = FileDisk::existing(directory).expect("a directory");
    let plan = Plan::read(&disk, PARTITIONS_DEFAULT).expect("a sound log");
    let planned = began.elapsed();
    let (jobs, next) = (plan.jobs(), AtomicUsize::new(0));
    let sealed = Mutex::new(Vec::<Sealed>::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = job.run(&disk).expect("a sound log");
                    sealed.lock().expect("nobody panics").push(done);
                }
            });
        }
    });
    let done = began.elapsed();
    let files = jobs.len();
    let sealed = sealed.into_inner().expect("nobody panicked");
    let recovered = plan.finish(&disk, sealed).expect("a sound log");
    let total = began.elapsed().as_secs_f64();
    let channels = || recovered.states.values().flat_map(|state| state.channels.values());
    let messages: u64 = channels().map(|channel| channel.head.0).sum();
    println!(
        "recovered records={} messages={messages} channels={} partitions={} files={files} threads={threads} \
         seconds={total:.3} plan_s={:.3} seal_s={:.3} finish_s={:.3} segment_bytes={} peak_rss_mib={:.1} \
         state_rss_mib={:.1}",
        recovered.report.records,
        channels().count(),
        recovered.states.len(),
        planned.as_secs_f64(),
        (done - planned).as_secs_f64(),
        total - done.as_secs_f64(),
        recovered.report.bytes,
        status_mib("VmHWM"),
        status_mib("VmRSS"),
    );
}

/// A figure of `/proc/self/status`, in MiB.
fn status_mib(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib / 1024.0
}
