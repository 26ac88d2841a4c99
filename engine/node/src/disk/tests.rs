//! Shards on real files, without a network: what a core and its log do together.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_journal::Disk;
use thalweg_protocol::ids::{CoreId, Epoch, Name, Position, Request, Sequence, SessionId};
use thalweg_protocol::limits::LOG_RECORD_BYTES_MAX;
use thalweg_protocol::op::{ClientOp, Durability, Publish, ServerOp};
use thalweg_protocol::reject::RejectCode;
use thalweg_ring::Bell;
use thalweg_shard::{Config, Input, Link, Now, Output, Shard};

use super::fault::{Fault, FaultyDisk};
use super::{
    Alarm, Cause, Directory, FileDisk, ForgetfulDisk, LogBackend, Place, ReadJob, Storage, StorageConfig, recover,
};
use crate::identity::tests::TempDir;
use crate::log::{CoreLog, LogNews};
use crate::stats::CoreStats;

/// Small files, so that many are filled, sealed and merged.
const FILE_BYTES: u64 = (LOG_RECORD_BYTES_MAX + (64 << 10)) as u64;
const PARTITIONS: u16 = 64;
const LINK: Link = Link(1);
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    Name::new(text).expect("valid")
}

/// A node without sockets: all its cores on one thread.
struct Machine {
    shards: Vec<Shard>,
    logs: Vec<CoreLog>,
    storage: Option<Storage>,
    alarm: Arc<Alarm>,
    bell: Arc<Bell>,
    stats: CoreStats,
    origin: Instant,
    requests: u32,
    replies: BTreeMap<Request, ServerOp>,
    checkpoints: Vec<Result<(), String>>,
    full: bool,
}

/// A place that says what it is told to.
struct Told {
    free_bytes: AtomicU64,
    age: Duration,
}

impl Place for Told {
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }

    fn age(&self, _path: &str) -> io::Result<Duration> {
        Ok(self.age)
    }
}

impl Machine {
    fn start(dir: &Path, cores: usize, backend: LogBackend) -> Self {
        Self::start_on(dir, cores, backend, Arc::new(FileDisk::open(dir, Duration::ZERO).expect("a directory")))
    }

    fn start_on(dir: &Path, cores: usize, backend: LogBackend, disk: Arc<dyn Disk>) -> Self {
        Self::start_at(dir, cores, backend, disk, Arc::new(Directory(dir.to_owned())))
    }

    fn start_at(dir: &Path, cores: usize, backend: LogBackend, disk: Arc<dyn Disk>, place: Arc<dyn Place>) -> Self {
        let mut recovered = recover(&*disk, PARTITIONS, 2).expect("whole");
        let bell = Bell::new().expect("an eventfd");
        let bells = vec![Arc::clone(&bell); cores];
        let alarm = Alarm::new(bells.clone());
        let config = StorageConfig {
            disk,
            root: dir.to_owned(),
            place,
            backend,
            sync_delay: Duration::ZERO,
            epoch: Epoch(1),
            file_bytes: FILE_BYTES,
            alarm: Arc::clone(&alarm),
        };
        let (storage, parts) = Storage::start(config, &mut recovered, &bells).expect("starts");
        let each = parts.into_iter().enumerate();
        let logs = each.map(|(core, parts)| CoreLog::new(CoreId(core as u16), parts)).collect();
        let shard = |core| {
            Shard::new(Config {
                core: CoreId(core),
                cores: cores as u16,
                partitions: recovered.partitions,
                epoch: Epoch(1),
                routes: Arc::default(),
                durability: Durability::Disk,
            })
        };
        let mut machine = Self {
            shards: (0..cores as u16).map(shard).collect(),
            logs,
            storage: Some(storage),
            alarm,
            bell,
            stats: CoreStats::default(),
            origin: Instant::now(),
            requests: 0,
            replies: BTreeMap::new(),
            checkpoints: Vec::new(),
            full: false,
        };
        for (partition, state) in recovered.states {
            let core = usize::from(partition.0) % cores;
            machine.feed(core, Input::Restore { partition, state: Box::new(state) });
        }
        let permissions = ["read:*", "write:*", "admin:*"].map(|text| text.parse().expect("a permission")).into();
        let principal = Principal::new(name("acme"), name("ada"), SessionId(7), permissions);
        machine.feed(0, Input::Opened { link: LINK, principal: Arc::new(principal) });
        machine
    }

    fn feed(&mut self, core: usize, input: Input) {
        let mono_us = self.origin.elapsed().as_micros() as u64;
        self.shards[core].handle(Now { mono_us, wall_us: 1_000_000 + mono_us }, input);
    }

    fn ask(&mut self, op: ClientOp) -> Request {
        self.requests += 1;
        let request = Request(self.requests);
        self.feed(0, Input::Request { link: LINK, request, op, trace: 0 });
        request
    }

    fn publish(&mut self, channel: &str, sequence: u64, retry: bool, body: Bytes) -> Request {
        let (channel, sequence) = (name(channel), Sequence(sequence));
        self.ask(ClientOp::Publish(Publish {
            channel,
            sequence,
            retry,
            make: true,
            body,
            key: 0,
            post: Default::default(),
        }))
    }

    /// One turn of every core; whether there was anything to do.
    fn turn(&mut self) -> bool {
        let mut worked = false;
        for core in 0..self.shards.len() {
            while let Some(output) = self.shards[core].poll() {
                worked = true;
                match output {
                    Output::Append { ticket, record } => self.logs[core].append(ticket, &record),
                    Output::Read { read, partition, channel, from, to } => {
                        self.logs[core].read(ReadJob { read, partition, channel, from, to });
                    }
                    Output::Reply { request, op, .. } => {
                        self.replies.insert(request, op);
                    }
                    Output::Peer { to, message } => self.feed(usize::from(to.0), Input::Peer(message)),
                    Output::Audit(_) => {}
                    other => panic!("nobody asked for {other:?}"),
                }
            }
            let news = match self.logs[core].next(&mut self.stats) {
                Ok(news) => news,
                Err(error) => {
                    self.alarm.raise(error.to_string());
                    return false;
                }
            };
            worked |= news.is_some();
            match news {
                Some(LogNews::Durable(ticket)) => self.feed(core, Input::Durable { ticket }),
                Some(LogNews::Archived(ticket)) => self.feed(core, Input::Archived { ticket }),
                Some(LogNews::Storage(full)) => {
                    self.full = full.is_some();
                    self.feed(core, Input::Storage { full });
                }
                Some(LogNews::Read((read, result))) => self.feed(core, Input::Read { read, result }),
                Some(LogNews::Checkpointed { result, .. }) => self.checkpoints.push(result),
                None => {}
            }
        }
        worked
    }

    /// Runs until `done`, or until the alarm is raised.
    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) && !self.alarm.is_raised() {
            assert!(Instant::now() < until, "still waiting");
            if self.turn() {
                continue;
            }
            self.bell.prepare();
            if !self.logs.iter().any(CoreLog::has_news) && !self.alarm.is_raised() {
                // A ring is waited for through its descriptor, which this thread does not watch.
                let slow = self.logs.iter().all(|log| log.wake_fds().is_none());
                self.bell.wait(Some(if slow { Duration::from_secs(1) } else { Duration::from_millis(1) }));
            }
            self.bell.awake();
        }
    }

    fn answer(&mut self, request: Request) -> ServerOp {
        self.run_until(|machine| machine.replies.contains_key(&request));
        self.replies.remove(&request).expect("answered")
    }

    fn checkpoint(&mut self) {
        assert!(self.try_checkpoint().iter().all(Result::is_ok), "{:?}", self.checkpoints);
    }

    /// What came of a checkpoint on each core.
    fn try_checkpoint(&mut self) -> &[Result<(), String>] {
        self.checkpoints.clear();
        self.logs.iter_mut().for_each(|log| log.checkpoint(CoreId(0), 1));
        let cores = self.logs.len();
        self.run_until(|machine| machine.checkpoints.len() == cores);
        &self.checkpoints
    }

    /// The bodies of a channel, page by page.
    fn read_all(&mut self, channel: &str) -> Vec<Bytes> {
        let (mut bodies, mut from) = (Vec::new(), Position(0));
        loop {
            let request = self.ask(ClientOp::ReadHistory { channel: name(channel), from, limit: 0 });
            let ServerOp::Page { next, head, deliveries, .. } = self.answer(request) else { panic!("no page") };
            for delivery in deliveries {
                let Ok(ServerOp::Delivery(delivery)) = ServerOp::decode(&delivery) else { panic!("no delivery") };
                bodies.push(delivery.body);
            }
            if next > head {
                return bodies;
            }
            from = next;
        }
    }

    fn stop(mut self) {
        self.logs.clear();
        self.storage.take().expect("runs").shut_down();
    }
}

fn channel(n: u64) -> String {
    format!("channel-{}", n % 9)
}

/// Bodies of 0 to 20 kB.
fn body(n: u64) -> Bytes {
    let bytes = (n * n * 7_919 % 20_000) as usize;
    (0..bytes).map(|at| (at as u64 * 31 + n) as u8).collect()
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_with_other_cores() {
    for (backend, forgets) in [(LogBackend::Thread, false), (LogBackend::Thread, true), (LogBackend::IoUring, false)] {
        let dir = TempDir::new();
        let mut expected: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
        let mut written = 0;
        for (cores, checkpoint) in [(1, false), (3, true), (2, false), (2, false)] {
            let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
            let disk: Arc<dyn Disk> = if forgets { Arc::new(ForgetfulDisk::new(files)) } else { files };
            let mut machine = Machine::start_on(dir.path(), cores, backend, disk);
            for (channel, bodies) in &expected {
                assert!(machine.read_all(channel) == *bodies, "{backend:?}, {cores} cores: {channel}");
            }
            for n in written.max(1)..=written {
                let again = machine.publish(&channel(n), n, true, body(n));
                let answer = machine.answer(again);
                assert!(matches!(answer, ServerOp::Published { duplicate: true, .. }), "{backend:?} {n}: {answer:?}");
            }
            let requests: Vec<_> = (written + 1..=written + 600)
                .map(|n| {
                    expected.entry(channel(n)).or_default().push(body(n));
                    machine.publish(&channel(n), n, false, body(n))
                })
                .collect();
            written += 600;
            for request in requests {
                let answer = machine.answer(request);
                assert!(matches!(answer, ServerOp::Published { duplicate: false, .. }), "{answer:?}");
            }
            if checkpoint {
                machine.checkpoint();
            }
            machine.stop();
        }
    }
}

#[test]
fn a_checkpoint_leaves_nothing_to_be_sealed() {
    let dir = TempDir::new();
    let mut machine = Machine::start(dir.path(), 2, LogBackend::Thread);
    machine.checkpoint();
    for n in 1..=20 {
        let request = machine.publish(&channel(n), n, false, body(n));
        machine.answer(request);
    }
    machine.checkpoint();
    machine.checkpoint();
    machine.stop();
    let disk = FileDisk::existing(dir.path()).expect("there");
    assert_eq!(recover(&disk, PARTITIONS, 1).expect("whole").report.records, 0);
}

#[test]
fn a_failed_sync_stops_the_log_and_acknowledges_nothing() {
    for fault in [Fault::Sync { of: ".wal", after: 5 }, Fault::Write { after: 12 }] {
        let dir = TempDir::new();
        let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
        let disk = Arc::new(FaultyDisk::new(files, fault));
        let mut machine = Machine::start_on(dir.path(), 1, LogBackend::Thread, disk);
        let mut acknowledged = Vec::new();
        for n in 1..100 {
            let request = machine.publish(&channel(n), n, false, body(n));
            machine.run_until(|machine| machine.replies.contains_key(&request));
            if machine.alarm.is_raised() {
                assert!(!machine.replies.contains_key(&request), "what may not be on the disk is not acknowledged");
                break;
            }
            acknowledged.push(n);
        }
        let Some(Cause::Log(cause)) = machine.alarm.cause().cloned() else { panic!("it fails") };
        assert!(cause.contains("wal/000-") && cause.contains("failed: Input/output error"), "{cause}");
        machine.stop();
        let mut again = Machine::start(dir.path(), 1, LogBackend::Thread);
        for n in acknowledged {
            assert!(again.read_all(&channel(n)).contains(&body(n)), "{n} was acknowledged");
        }
        again.stop();
    }
}

#[test]
fn a_full_disk_refuses_writes_and_goes_on_when_there_is_room() {
    let dir = TempDir::new();
    let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
    let disk = Arc::new(FaultyDisk::new(files, Fault::Full { of: "" }));
    let mut machine = Machine::start_on(dir.path(), 1, LogBackend::Thread, Arc::clone(&disk) as Arc<dyn Disk>);
    let first = machine.publish("room", 1, false, body(1));
    machine.answer(first);
    disk.set_full(true);
    let (mut n, mut kept) = (1, 1);
    while !machine.full {
        n += 1;
        let request = machine.publish("room", n, false, body(n));
        machine.run_until(|machine| machine.full || machine.replies.contains_key(&request));
        kept = n;
    }
    let refused = machine.publish("room", n + 1, false, body(n + 1));
    match machine.answer(refused) {
        ServerOp::Reject(reject) => assert_eq!(reject.code, RejectCode::StorageFull),
        other => panic!("{other:?}"),
    }
    assert_eq!(machine.read_all("room")[0], body(1), "reading goes on");
    let refused = machine.try_checkpoint()[0].clone().expect_err("it would wait for ever");
    assert!(refused.contains("full") || refused.contains("room"), "{refused}");
    disk.set_full(false);
    machine.run_until(|machine| !machine.full);
    machine.checkpoint();
    let accepted = machine.publish("room", n + 2, false, body(n + 2));
    assert!(matches!(machine.answer(accepted), ServerOp::Published { .. }));
    assert_eq!(machine.read_all("room").len() as u64, kept + 1);
    machine.stop();
}

#[test]
fn segments_are_merged_beside_the_traffic() {
    let dir = TempDir::new();
    let mut machine = Machine::start(dir.path(), 1, LogBackend::Thread);
    for n in 1..=40 {
        let request = machine.publish(&channel(n), n, false, body(n));
        machine.answer(request);
        machine.checkpoint();
    }
    let segments = |dir: &TempDir| FileDisk::existing(dir.path()).and_then(|disk| disk.list("segments"));
    let until = Instant::now() + PATIENCE;
    while segments(&dir).expect("listed").len() > 20 {
        assert!(Instant::now() < until, "nothing is merged");
        std::thread::yield_now();
    }
    for n in 1..=9 {
        let expected: Vec<_> = (n..=40).step_by(9).map(body).collect();
        assert!(machine.read_all(&channel(n)) == expected, "channel {n}");
    }
    machine.stop();
    let mut again = Machine::start(dir.path(), 2, LogBackend::Thread);
    assert_eq!(again.read_all(&channel(1)).len(), 5);
    again.stop();
}

#[test]
fn a_file_that_is_sealed_makes_room_for_the_next() {
    let dir = TempDir::new();
    let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
    let disk = Arc::new(FaultyDisk::new(files, Fault::Full { of: "wal/" }));
    let mut machine = Machine::start_on(dir.path(), 1, LogBackend::Thread, Arc::clone(&disk) as Arc<dyn Disk>);
    // The file that is written, and its spare.
    machine.run_until(|_| files_of(dir.path(), "wal").len() == 2);
    disk.set_full(true);
    let mut written = 0;
    for n in 1.. {
        let request = machine.publish(&channel(n), n, false, body(n));
        let answer = machine.answer(request);
        assert!(matches!(answer, ServerOp::Published { .. }), "{answer:?}");
        written += body(n).len() as u64;
        if written > 6 * FILE_BYTES {
            break;
        }
    }
    machine.checkpoint();
    // Whatever was begun is there or gone; nothing piles up.
    let is_tidy = |files: &[String]| files.len() <= 3 && files.iter().all(|name| name.ends_with(".wal"));
    machine.run_until(|_| is_tidy(&files_of(dir.path(), "wal")));
    machine.stop();
}

fn files_of(dir: &Path, directory: &str) -> Vec<String> {
    FileDisk::existing(dir).and_then(|disk| disk.list(directory)).expect("listed")
}

#[test]
fn nothing_is_merged_into_the_room_that_writes_need() {
    let dir = TempDir::new();
    let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
    // What is to be merged would fit, but not beside the next files of the log.
    let place = Arc::new(Told { free_bytes: AtomicU64::new(2 * FILE_BYTES), age: Duration::ZERO });
    let mut machine = Machine::start_at(dir.path(), 1, LogBackend::Thread, files, Arc::clone(&place) as Arc<dyn Place>);
    for n in 1..=40 {
        let request = machine.publish(&channel(n), n, false, body(n));
        machine.answer(request);
        machine.checkpoint();
    }
    assert_eq!(files_of(dir.path(), "segments").len(), 40);
    place.free_bytes.store(1 << 40, Ordering::Relaxed);
    let request = machine.publish("room", 41, false, body(41));
    machine.answer(request);
    machine.checkpoint();
    let until = Instant::now() + PATIENCE;
    while files_of(dir.path(), "segments").len() > 20 {
        assert!(Instant::now() < until, "nothing is merged");
        std::thread::yield_now();
    }
    machine.stop();
}

#[test]
fn what_was_deleted_long_ago_leaves_the_disk_and_takes_only_its_segments_along() {
    let secret = Bytes::from_static(b"nobody may ever read this again");
    let holds = |path: &Path| std::fs::read(path).is_ok_and(|bytes| bytes.windows(secret.len()).any(|at| at == secret));
    let dir = TempDir::new();
    let segments = || files_of(dir.path(), "segments");
    let are_secret = || segments().iter().filter(|name| holds(&dir.path().join("segments").join(name))).count();
    // The segments are as young as the lives of the node: too many of them for one to last an hour.
    for (life, age) in [(1, Duration::ZERO), (2, Duration::ZERO), (3, Duration::from_secs(3_600))] {
        let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
        let place = Arc::new(Told { free_bytes: AtomicU64::new(1 << 40), age });
        let mut machine = Machine::start_at(dir.path(), 1, LogBackend::Thread, files, place);
        let mut publish = |channel: &str, n: u64, body: Bytes| {
            let request = machine.publish(channel, n, false, body);
            assert!(matches!(machine.answer(request), ServerOp::Published { .. }));
            machine.checkpoint();
        };
        match life {
            1 => {
                publish("public", 1, body(1));
                publish("private", 2, secret.clone());
                publish("public", 3, body(3));
                let request = machine.ask(ClientOp::DeleteChannel { channel: name("private") });
                assert!(matches!(machine.answer(request), ServerOp::Done));
                machine.checkpoint();
                assert_eq!((segments().len(), are_secret()), (4, 1));
            }
            2 => {
                publish("public", 5, body(5));
                assert_eq!(are_secret(), 1, "it is not an hour yet");
            }
            _ => {
                let until = Instant::now() + PATIENCE;
                // What was replaced goes after what replaces it has come.
                while are_secret() > 0 || segments()[2].as_str() < "000000000005" {
                    assert!(Instant::now() < until, "it stays: {:?}", segments());
                    std::thread::yield_now();
                }
                let expected = ["000000000001-000000000001.seg", "000000000002-000000000004.seg"];
                assert_eq!(segments()[..2], expected, "the others are left alone");
                assert_eq!(machine.read_all("public"), [body(1), body(3), body(5)]);
            }
        }
        machine.stop();
    }
}

#[test]
fn a_thread_that_panics_while_it_seals_fails_the_recovery() {
    let dir = TempDir::new();
    let mut machine = Machine::start(dir.path(), 2, LogBackend::Thread);
    for n in 1..=40 {
        let request = machine.publish(&channel(n), n, false, body(n));
        machine.answer(request);
    }
    machine.stop();
    let files = Arc::new(FileDisk::open(dir.path(), Duration::ZERO).expect("a directory"));
    let disk = FaultyDisk::new(Arc::clone(&files) as Arc<dyn Disk>, Fault::Panic { of: "segments/", after: 0 });
    let error = recover(&disk, PARTITIONS, 2).expect_err("it panics").to_string();
    assert!(error.contains("wal/00") && error.contains("panicked"), "{error}");
    assert_eq!(recover(&*files, PARTITIONS, 2).expect("whole").report.torn, []);
}
