//! The lives of the node: how it dies, and how it comes back.

use std::collections::BTreeMap;

use rand::Rng as _;
use thalweg_domain::fact::Member;
use thalweg_domain::partition::PartitionState;
use thalweg_journal::recovery::{Plan, Recovered};
use thalweg_journal::segment::{Segment, Shelf};
use thalweg_journal::wal::scan;
use thalweg_journal::{DiskError, LogError};
use thalweg_protocol::chat::MemberRole;
use thalweg_protocol::ids::{CoreId, Epoch, Name, Partition};
use thalweg_protocol::op::Durability;
use thalweg_shard::{Config, Input, Link, Shard};

use crate::faults::Fault;
use crate::node::{Core, Node};
use crate::stage::{Life, Room, Stage};
use crate::storage::Storage;
use crate::troubles::Trouble;
use crate::world::{Crash, Event, Plant, Route, World};

/// Partitions of the log.
const PARTITIONS: u16 = 16;
/// Bytes of a block of the write-ahead log.
const BLOCK_BYTES: usize = thalweg_protocol::limits::LOG_BLOCK_BYTES;
/// Largest step of the wall clock, in microseconds.
const CLOCK_STEP_US: i64 = 30_000_000;

impl Node {
    /// A node that is not there.
    pub(crate) fn down() -> Self {
        let life = Life { epoch: 0, variant: 0 };
        let room = Room { running: 1, sequences: 1, block_tokens: 16, spare_blocks: 0, park_keep_us: 0 };
        let (stage, storage) = (Stage::new(life, room), Storage::default());
        Self { cores: Vec::new(), stage, stage_busy: false, storage, mesh_us: 0 }
    }
}

impl World {
    /// Does what is due of the trouble that was planned.
    pub(crate) fn make_trouble(&mut self) {
        while let Some(&(at, trouble)) = self.troubles.last().filter(|(at, _)| *at >= self.operations_left) {
            let _ = at;
            self.troubles.pop();
            match trouble {
                Trouble::Crash => self.plan_crash(),
                Trouble::Drain => self.drain_node(),
                Trouble::FailSync => {
                    let syncs = self.below(8);
                    self.disk.fail_sync_in(syncs);
                }
                Trouble::FillDisk => {
                    let free = self.below(200_000) as usize;
                    self.was_full = true;
                    self.disk.limit(free);
                    self.within(200_000, Event::Unfill);
                }
                Trouble::StepClock => {
                    self.clock_us += self.rng.random_range(-CLOCK_STEP_US..=CLOCK_STEP_US);
                    self.faults.count(Fault::ClockStepped);
                }
                Trouble::Limits => self.change_limits(),
                Trouble::Pressure => self.change_pressure(),
                Trouble::Pause => self.pause(),
            }
        }
    }

    fn plan_crash(&mut self) {
        // A node that drains may write nothing any more.
        let ways = if self.draining { 2 } else { 4 };
        match self.below(ways) {
            0 => self.crashing = Some(Crash::Process),
            1 => self.crashing = Some(Crash::Power),
            _ => {
                let operations = self.below(40);
                self.disk.crash_in(operations);
            }
        }
    }

    /// The node dies: of it nothing is left but what is on its disk.
    pub(crate) fn crash(&mut self, crash: Crash) {
        self.note(format_args!("CRASH {crash:?}"));
        self.crashes += 1;
        self.harvest();
        match crash {
            Crash::Power => {
                self.faults.count(Fault::PowerLost);
                self.disk.crash();
            }
            Crash::Process => {
                self.faults.count(Fault::ProcessKilled);
                self.disk.kill();
            }
        }
        self.truth.crash();
        (self.up, self.draining) = (false, false);
        self.node = Node::down();
        self.forget_events();
        let links: Vec<Link> = self.wires.iter().filter(|(_, wire)| wire.in_use).map(|(&link, _)| link).collect();
        self.wires.retain(|_, wire| wire.in_use);
        self.wires.values_mut().for_each(|wire| wire.open = false);
        for link in links {
            self.within(30_000, Event::Noticed { link });
        }
        self.within(40_000, Event::Boot);
    }

    /// Events of the dead node do not happen. Of what it had sent some may still arrive, in order.
    fn forget_events(&mut self) {
        let reach = if self.chance(0.5) { u64::MAX } else { self.now_us + self.below(300) };
        self.queue.retain(|(at, _), event| match event {
            Event::Act { .. }
            | Event::Noticed { .. }
            | Event::Heartbeat { .. }
            | Event::Questions
            | Event::Silence
            | Event::Unpress => true,
            Event::ToClient { .. } => *at <= reach,
            _ => false,
        });
        self.arrivals.retain(|route, _| matches!(route, Route::ToClient(..)));
    }

    /// Takes what a life of the node has counted.
    pub(crate) fn harvest(&mut self) {
        let stage = self.node.stage.counters();
        self.faults.add(Fault::Parked, stage.parks);
        self.faults.add(Fault::Evicted, stage.evictions);
        self.faults.add(Fault::GenerationResumed, self.node.stage.resumed);
        for core in &self.node.cores {
            self.faults.add(Fault::HistoryRead, core.shard.counters().history_reads);
            self.faults.add(Fault::PresenceTimeout, core.shard.counters().presence_timeouts);
            self.faults.add(Fault::DocumentEvicted, core.shard.counters().documents_evicted);
        }
    }

    /// The node starts, or tries to.
    pub(crate) fn boot(&mut self) {
        self.epoch += 1;
        if self.crashes > 0 && !self.settling {
            if self.chance(0.25) {
                let operations = self.below(25);
                self.disk.crash_in(operations);
            }
            if self.chance(0.3) {
                self.rot_something();
            }
            if self.chance(0.05) {
                self.was_full = true;
                let free = self.below(40_000) as usize;
                self.disk.limit(free);
                self.within(200_000, Event::Unfill);
            }
        }
        match self.recover() {
            Ok(recovered) => self.start(recovered),
            Err(error) => self.boot_failed(&error),
        }
    }

    /// Kills the node that has come to rest, and looks at what is on its disk: all of it.
    pub(crate) fn recover_at_last(&mut self) {
        self.disk.crash();
        match self.recover() {
            Ok(recovered) => self.compare(&recovered.states, &recovered.shelf),
            Err(error) => self.violation(format!("what is left at the end cannot be recovered: {error}")),
        }
    }

    fn recover(&mut self) -> Result<Recovered, LogError> {
        self.plant_before_recovery();
        let plan = Plan::read(&self.disk, PARTITIONS)?;
        let mut jobs = plan.jobs().to_vec();
        // They may be done in any order.
        let mut sealed = Vec::new();
        while !jobs.is_empty() {
            let at = self.below(jobs.len() as u64) as usize;
            sealed.push(jobs.swap_remove(at).run(&self.disk)?);
        }
        plan.finish(&self.disk, sealed)
    }

    fn boot_failed(&mut self, error: &LogError) {
        self.note(format_args!("the node does not start: {error}"));
        if self.disk.is_off() {
            self.faults.count(Fault::CrashedInRecovery);
            self.disk.crash();
        } else if matches!(error, LogError::Disk(DiskError::Full { .. })) {
            self.faults.count(Fault::FullRefusedStart);
            self.disk.unlimit();
        } else if self.sync_failed() {
            // The disk may still lie about what it has.
            self.disk.crash();
        } else if self.rotten() && !matches!(error, LogError::Disk(_)) {
            self.faults.count(Fault::RotRefused);
            self.repair();
        } else {
            self.broken = true;
            return self.violation(format!("the node does not start, and nobody damaged its log: {error}"));
        }
        self.within(40_000, Event::Boot);
    }

    fn start(&mut self, recovered: Recovered) {
        let Recovered { partitions, mut states, shelf, free, next_generation, report } = recovered;
        self.note(format_args!("recovered: {report:?}"));
        self.faults.add(Fault::TornTail, report.torn.len() as u64);
        self.compare(&states, &shelf);
        self.plant_after_recovery(&mut states);
        let least = if self.options.plant == Some(Plant::KeepReaders) { 4 } else { 1 };
        let count: u16 = self.rng.random_range(least..=4);
        self.faults.add(Fault::CoresChanged, u64::from(self.last_cores != count && self.crashes > 0));
        self.last_cores = count;
        let life = Life { epoch: self.epoch, variant: if self.repeatable { 0 } else { self.epoch } };
        let room = Room {
            running: self.rng.random_range(1..=4),
            sequences: self.rng.random_range(3..=12),
            block_tokens: [4, 8, 16][self.below(3) as usize],
            spare_blocks: self.below(40) as usize,
            park_keep_us: self.below(5_000),
        };
        let stage = Stage::new(life, room);
        let file_bytes = self.file_blocks() * BLOCK_BYTES as u64;
        let log_us = [5, 500, 10_000][self.below(3) as usize];
        let storage = Storage::new(shelf, free, file_bytes, log_us);
        let mesh_us = [5, 100, 3_000][self.below(3) as usize];
        self.node = Node { cores: Vec::new(), stage, stage_busy: false, storage, mesh_us };
        if let Err(error) = self.start_cores(count, partitions, states, &next_generation) {
            self.node = Node::down();
            return self.boot_failed(&LogError::Disk(error));
        }
        self.up = true;
        let epoch = self.epoch;
        self.note(format_args!("life {epoch} begins with {count} cores"));
        self.tell_circumstances();
    }

    /// Blocks of a file of the write-ahead log: few, so that files are recycled often, and enough for the largest record.
    fn file_blocks(&mut self) -> u64 {
        match (self.papers.pastes, self.large) {
            // A document that is put back, or written as a whole, is one record.
            (true, _) => 60 + self.below(40),
            (false, true) => 20 + self.below(40),
            (false, false) => 6 + self.below(26),
        }
    }

    fn start_cores(
        &mut self,
        count: u16,
        partitions: u16,
        states: BTreeMap<Partition, PartitionState>,
        next_generation: &BTreeMap<CoreId, u64>,
    ) -> Result<(), DiskError> {
        self.start_models();
        let mut cores = Vec::new();
        for core in (0..count).map(CoreId) {
            self.begin_log(core, next_generation.get(&core).copied().unwrap_or(1))?;
            cores.push(Core::new(Shard::new(Config {
                core,
                cores: count,
                partitions,
                epoch: Epoch(self.epoch),
                routes: self.models.routes(),
                durability: Durability::Disk,
            })));
        }
        self.node.cores = cores;
        let now = self.now();
        for (partition, state) in states {
            let core = usize::from(partition.0 % count);
            self.node.cores[core].shard.handle(now, Input::Restore { partition, state: Box::new(state) });
        }
        for core in 0..count {
            self.turn_by(CoreId(core), self.now_us + 1);
        }
        Ok(())
    }

    fn compare(&mut self, states: &BTreeMap<Partition, PartitionState>, shelf: &Shelf) {
        let mut result = self.truth.compare(states);
        if result.is_ok() && !self.rotten() {
            result = self.truth.read_back(shelf).map(|messages| self.faults.add(Fault::ReadBack, messages));
        }
        if let Err(text) = result {
            self.violation(format!("recovered is not what was durable: {text}"));
            self.broken = true;
        }
    }

    /// Whether bits are flipped that nobody has repaired.
    pub(crate) fn rotten(&self) -> bool {
        !self.rots.is_empty()
    }

    pub(crate) fn repair(&mut self) {
        for rot in std::mem::take(&mut self.rots) {
            self.disk.repair(&rot);
        }
    }

    /// Flips a bit where that is promised to be noticed: anywhere in a segment, and in the write-ahead log before the last
    /// batch, which alone cannot be told from one that was cut short.
    fn rot_something(&mut self) {
        let files = self.disk.files();
        let Some(at) = self.pick_file(files.len()) else { return };
        let (path, bytes) = &files[at];
        let end = match (path.ends_with(".seg"), path.ends_with(".wal")) {
            (true, _) => *bytes,
            (_, true) => self.last_batch(path).unwrap_or(BLOCK_BYTES),
            _ => return,
        };
        let (offset, bit) = (self.below(end as u64) as usize, self.below(8) as u8);
        let Some(rot) = self.disk.rot(path, offset, bit) else { return };
        self.note(format_args!("bit {bit} of {path} at {offset} rots"));
        self.faults.count(Fault::Rotted);
        self.rots.push(rot);
        self.was_rotten = true;
        self.truth.chronicle.may_be_unreadable = true;
        if path.ends_with(".seg") && self.is_sound(path) {
            self.violation(format!("a flipped bit of {path} at {offset} is not noticed by anybody"));
        }
    }

    fn pick_file(&mut self, files: usize) -> Option<usize> {
        (files > 0).then(|| self.below(files as u64) as usize)
    }

    /// Whether all of a segment can be read.
    fn is_sound(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().and_then(|file| file.parse().ok());
        name.and_then(|name| Segment::open(&self.disk, name).ok()).is_some_and(|segment| segment.verify().is_ok())
    }

    /// Where the last intact batch of a file begins, if it has any.
    fn last_batch(&self, path: &str) -> Option<usize> {
        let found = scan(&self.disk, path, None, &mut |_| Ok(())).ok()?;
        let content = self.disk.content(path)?;
        let end = found.intact.offset as usize;
        (BLOCK_BYTES..end).step_by(BLOCK_BYTES).rev().find(|&at| content[at..].starts_with(b"TWLB"))
    }

    fn plant_before_recovery(&mut self) {
        let plant = self.options.plant;
        if plant == Some(Plant::ForgetDirectory) {
            self.disk.turn_deaf();
        }
        for (path, ..) in self.wal_files() {
            match plant {
                Some(Plant::LoseLastBatch) => {
                    if let Some(at) = self.last_batch(&path) {
                        self.disk.overwrite(&path, at, &[0; BLOCK_BYTES]);
                    }
                }
                Some(Plant::ResurrectRecycled) => self.restamp(&path, false),
                Some(Plant::BelieveTorn) => self.restamp(&path, true),
                _ => {}
            }
        }
    }

    /// Makes what stands after the last intact batch of a file look like the next one: a torn one of this life of the file,
    /// or one of an earlier life. It is what a reader would make of it that does not look at checksum or generation.
    fn restamp(&self, path: &str, torn: bool) {
        let Ok(found) = scan(&self.disk, path, None, &mut |_| Ok(())) else { return };
        let Some(content) = self.disk.content(path) else { return };
        let at = found.intact.offset as usize;
        let Some(header) = content.get(at..at + 56).filter(|header| header.starts_with(b"TWLB")) else { return };
        let payload = u32::from_le_bytes([header[40], header[41], header[42], header[43]]) as usize;
        let bytes = (56 + payload).next_multiple_of(BLOCK_BYTES);
        let of_this_life = header[8..16] == content[24..32];
        let Some(batch) = content.get(at..at.saturating_add(bytes)).filter(|_| of_this_life == torn) else { return };
        let mut batch = batch.to_vec();
        batch[8..16].copy_from_slice(&content[24..32]);
        batch[16..24].copy_from_slice(&content[40..48]);
        batch[44..48].copy_from_slice(&found.intact.crc.to_le_bytes());
        batch[48..56].fill(0);
        let crc = crc32fast::hash(&batch[8..]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
        self.disk.overwrite(path, at, &batch);
    }

    /// Loses a part of what was recovered about people.
    fn forget_people(&self, plant: Plant, states: &mut BTreeMap<Partition, PartitionState>) {
        for state in states.values_mut() {
            if plant == Plant::ForgetProfiles {
                state.users.clear();
            }
            for channel in state.channels.values_mut() {
                let facts = &mut channel.facts;
                match plant {
                    Plant::ForgetRedactions => facts.redacted.clear(),
                    Plant::ForgetMembers => facts.members.clear(),
                    Plant::ReadBackwards => facts.readings.values_mut().for_each(|reading| {
                        reading.position.0 -= reading.position.0 / 2;
                        reading.number /= 2;
                    }),
                    Plant::ForgetNumbers => channel.messages = 0,
                    Plant::ForgetRemovals => {
                        for user in (0..8).filter_map(|user| Name::new(&format!("user-{user}")).ok()) {
                            let by = user.clone();
                            let member = Member { role: MemberRole::Member, since_us: 0, by };
                            facts.members.entry(user).or_insert(Some(member));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn plant_after_recovery(&mut self, states: &mut BTreeMap<Partition, PartitionState>) {
        match self.options.plant {
            Some(Plant::ForgetCommands) => {
                states.values_mut().for_each(|state| state.dedupe = thalweg_domain::dedupe::Dedupe::default());
            }
            Some(Plant::ResumeLate) => {
                let generations = states.values_mut().flat_map(|state| state.generations.values_mut());
                for state in generations.filter(|state| state.ending.is_none()) {
                    if let Some(&last) = state.tokens.last() {
                        let text = state.text[state.text.len() - last.bytes as usize..].to_vec();
                        state.tokens.push(last);
                        state.text.extend(text);
                    }
                }
            }
            Some(
                plant @ (Plant::ForgetRedactions
                | Plant::ForgetRemovals
                | Plant::ForgetMembers
                | Plant::ReadBackwards
                | Plant::ForgetProfiles
                | Plant::ForgetNumbers),
            ) => self.forget_people(plant, states),
            Some(Plant::LoseTombstone) => {
                for ((partition, id), state) in self.truth.deleted_states() {
                    if let Some(of) = states.get_mut(&partition) {
                        of.channels.insert(id, state);
                    }
                }
            }
            _ => {}
        }
    }
}
