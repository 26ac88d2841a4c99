//! Shards on real files, without a network: what a core and its log do together.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
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
use super::{Alarm, FileDisk, ForgetfulDisk, LogBackend, ReadJob, Storage, StorageConfig, recover};
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
    checkpoints: usize,
    full: bool,
}

impl Machine {
    fn start(dir: &Path, cores: usize, backend: LogBackend) -> Self {
        Self::start_on(dir, cores, backend, Arc::new(FileDisk::open(dir, Duration::ZERO).expect("a directory")))
    }

    fn start_on(dir: &Path, cores: usize, backend: LogBackend, disk: Arc<dyn Disk>) -> Self {
        let mut recovered = recover(&*disk, PARTITIONS, 2).expect("whole");
        let bell = Bell::new().expect("an eventfd");
        let bells = vec![Arc::clone(&bell); cores];
        let alarm = Alarm::new(bells.clone());
        let config = StorageConfig {
            disk,
            root: dir.to_owned(),
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
                models: Vec::new(),
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
            checkpoints: 0,
            full: false,
        };
        for (partition, state) in recovered.states {
            let core = usize::from(partition.0) % cores;
            machine.feed(core, Input::Restore { partition, state: Box::new(state) });
        }
        let permissions = ["read:*", "write:*"].map(|text| text.parse().expect("a permission")).into();
        let principal = Principal { tenant: name("acme"), user: name("ada"), session: SessionId(7), permissions };
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
        self.feed(0, Input::Request { link: LINK, request, op });
        request
    }

    fn publish(&mut self, channel: &str, sequence: u64, retry: bool, body: Bytes) -> Request {
        let (channel, sequence) = (name(channel), Sequence(sequence));
        self.ask(ClientOp::Publish(Publish { channel, sequence, retry, make: true, body, key: 0 }))
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
                Some(LogNews::Checkpointed { .. }) => self.checkpoints += 1,
                None => {}
            }
        }
        worked
    }

    /// Runs until `done`, or until the alarm is raised.
    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) && self.alarm.raised().is_none() {
            assert!(Instant::now() < until, "still waiting");
            if self.turn() {
                continue;
            }
            self.bell.prepare();
            if !self.logs.iter().any(CoreLog::has_news) && self.alarm.raised().is_none() {
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
        self.checkpoints = 0;
        self.logs.iter_mut().for_each(|log| log.checkpoint(CoreId(0), 1));
        let cores = self.logs.len();
        self.run_until(|machine| machine.checkpoints == cores);
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
            if machine.alarm.raised().is_some() {
                assert!(!machine.replies.contains_key(&request), "what may not be on the disk is not acknowledged");
                break;
            }
            acknowledged.push(n);
        }
        let cause = machine.alarm.raised().expect("it fails").to_owned();
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
    let disk = Arc::new(FaultyDisk::new(files, Fault::Full));
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
    disk.set_full(false);
    machine.run_until(|machine| !machine.full);
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
