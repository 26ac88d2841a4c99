//! Saves what is intact of a damaged log into a fresh one that recovery accepts.
//!
//! What is given up, each reported:
//! - Messages in damaged blocks, and records in damaged batches or missing files. Where messages of a channel are missing,
//!   the channel gets a floor, so that reading goes on after the hole.
//! - That records are known to be missing: the first piece after a gap is made to begin where the one before it ended.
//! - What a lost state said: names and settings of channels that were made then (their messages are kept, but nobody can
//!   reach a channel without a name), deletions, generations, profiles, and how far people had read. Positions and sizes
//!   are counted again from the messages, and they say who became or ceased to be a member, and which texts were taken back.
//! - Which commands were carried out before the loss: those who repeat one of an unknown session are told
//!   `session_expired`, so that nothing is done twice.
//! - Acknowledged messages at the very end: their positions are given again.

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_domain::fact::Member;
use thalweg_domain::partition::{ChannelState, Mark, PartitionState};
use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelId, CoreId, Lsn, Name, Partition, Position};
use thalweg_protocol::limits::{HISTORY_MARK_MESSAGES, PARTITIONS_DEFAULT};
use thalweg_protocol::op::DeliveryKind;

use super::block::{Blocks, Entry, Kind};
use super::fields::Fields;
use super::reader::{Cover, Segment, StateStream, take_covers};
use super::seal::{Gathered, cover, publish_as};
use super::walk::{Step, Walk};
use super::writer::{NONE_BEGINS, SegmentWriter};
use super::{Key, SegmentName};
use crate::disk::{Disk, DiskError};
use crate::error::LogError;
use crate::recovery::listing::{Listing, read_format, write_format};
use crate::wal::{End, scan, scan_from, wal_path};

/// Bytes that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What was saved, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Segments that were intact and copied.
    pub copied: u64,
    /// Segments that were written anew, of damaged ones and of the write-ahead log.
    pub rebuilt: u64,
    /// Messages in all of them.
    pub messages: u64,
    /// What was given up, a line each.
    pub lost: Vec<String>,
}

/// Saves what is intact of the log on `disk`, which is only read, into an empty one on `to`.
///
/// # Errors
/// What the disks say, but that a file is missing; [`LogError::Newer`], since what is not understood cannot be saved.
pub fn salvage(disk: &dyn Disk, to: &dyn Disk) -> Result<Salvaged, LogError> {
    let listing = Listing::read(disk)?;
    let mut salvage = Salvage { disk, to, wal: &listing.wal, done: Salvaged::default(), after: After::default() };
    let partitions = match read_format(disk) {
        Ok(Some(partitions)) => partitions,
        Ok(None) => salvage.assume_partitions("it is missing"),
        Err(error) => salvage.assume_partitions(&damage(error)?),
    };
    write_format(to, partitions)?;
    for name in &listing.segments {
        salvage.segment(*name, &listing.replaced)?;
    }
    for (core, generations) in &listing.wal {
        for &generation in generations {
            let covered = salvage.after.covers.get(core).is_some_and(|cover| generation <= cover.to);
            if !covered {
                salvage.wal(&wal_path(*core, generation))?;
            }
        }
    }
    salvage.name_orphans();
    Ok(salvage.done)
}

/// What is wrong with the log, in words; what is wrong with the disk is passed on.
fn damage(error: LogError) -> Result<String, LogError> {
    match error {
        LogError::Disk(DiskError::Missing { path }) => Ok(format!("{path} is missing")),
        LogError::Damaged { path, offset, what } => Ok(format!("{path}, offset {offset}: {what}")),
        LogError::Missing { .. } | LogError::FileMissing { .. } => Ok(error.to_string()),
        LogError::Disk(_) | LogError::Newer { .. } => Err(error),
    }
}

struct Salvage<'a> {
    disk: &'a dyn Disk,
    to: &'a dyn Disk,
    /// Files of the write-ahead log that there are.
    wal: &'a BTreeMap<CoreId, Vec<u64>>,
    done: Salvaged,
    after: After,
}

/// What the next piece has to follow.
#[derive(Default)]
struct After {
    number: u64,
    covers: BTreeMap<CoreId, Cover>,
    states: BTreeMap<Partition, PartitionState>,
    /// Of each channel: its last message, and its floor.
    ends: BTreeMap<(Partition, ChannelId), (Position, Position)>,
}

/// What is intact of one file.
#[derive(Default)]
struct Piece {
    path: String,
    /// Nothing of it is lost.
    is_whole: bool,
    covers: Vec<Cover>,
    states: BTreeMap<Partition, PartitionState>,
    /// What its messages alone say; used where the state is lost.
    counted: BTreeMap<Partition, PartitionState>,
    /// Floors that its channels need, because messages before or in it are lost.
    floors: BTreeMap<(Partition, ChannelId), Position>,
}

/// Where the entries of a piece are.
enum Source<'a> {
    Blocks(&'a Blocks),
    Gathered(&'a Gathered),
}

impl Source<'_> {
    /// Gives every entry that is intact to `visit`, in order; says how often something was not.
    fn entries(&self, visit: &mut dyn FnMut(&Entry) -> Result<(), LogError>) -> Result<Vec<String>, LogError> {
        let mut lost = Vec::new();
        let blocks = match self {
            Self::Gathered(gathered) => {
                gathered.write(visit)?;
                return Ok(lost);
            }
            Self::Blocks(blocks) => blocks,
        };
        let mut last = None;
        let mut walk = Walk::whole(blocks);
        while let Some(step) = walk.next()? {
            match step {
                Step::Block(Kind::Data, place, payload) => {
                    let mut at = 0;
                    while at < payload.len() {
                        let Ok((entry, next)) = Entry::take(&payload, at) else { break };
                        at = next;
                        let is_message = entry.as_floor().is_some()
                            || Message::decode(entry.payload.clone(), entry.session, entry.sequence).is_ok();
                        if last < Some(entry.key) && is_message {
                            last = Some(entry.key);
                            visit(&entry)?;
                        } else {
                            lost.push(format!("{}, offset {}: an entry", blocks.path, place.offset));
                        }
                    }
                }
                Step::Block(..) => {}
                Step::Damage(error) => lost.push(damage(error)?),
            }
        }
        Ok(lost)
    }
}

impl Salvage<'_> {
    fn assume_partitions(&mut self, why: &str) -> u16 {
        self.done.lost.push(format!("format: {why}; {PARTITIONS_DEFAULT} partitions are assumed, as by default"));
        PARTITIONS_DEFAULT
    }

    fn segment(&mut self, name: SegmentName, replaced: &[SegmentName]) -> Result<(), LogError> {
        let whole = |name: SegmentName| match Segment::open(self.disk, name).and_then(|s| s.verify().map(|_| s)) {
            Ok(segment) => Ok(Ok(segment)),
            Err(error @ LogError::Newer { .. }) => Err(error),
            Err(error) => damage(error).map(Err),
        };
        let why = match whole(name)? {
            Ok(segment) => return self.whole_segment(&segment),
            Err(why) => why,
        };
        // What it was merged of may still be there.
        let parts: Vec<SegmentName> = replaced.iter().copied().filter(|part| name.contains(*part)).collect();
        let ends = parts.iter().flat_map(|part| [part.first, part.last + 1]).collect::<Vec<_>>();
        let joined = ends.first() == Some(&name.first) && ends.last() == Some(&(name.last + 1));
        if joined && ends[1..ends.len() - 1].chunks(2).all(|pair| pair[0] == pair[1]) {
            let parts = parts.into_iter().map(whole).collect::<Result<Vec<_>, _>>()?;
            if let Ok(parts) = parts.into_iter().collect::<Result<Vec<_>, _>>() {
                return parts.iter().try_for_each(|part| self.whole_segment(part));
            }
        }
        self.done.lost.push(why);
        self.damaged_segment(name)
    }

    fn whole_segment(&mut self, segment: &Segment) -> Result<(), LogError> {
        let path = segment.name().path();
        let (covers, states) = (segment.covers().to_vec(), segment.states()?);
        let mut piece = Piece { path, is_whole: true, covers, states, ..Piece::default() };
        self.refill(&piece)?;
        self.follow(&mut piece, &Source::Blocks(&segment.blocks))?;
        if !piece.is_whole || segment.name().first != self.after.number + 1 {
            return self.write(segment.name(), &piece, &Source::Blocks(&segment.blocks));
        }
        let name = segment.name();
        let file = self.to.create(&name.path_new())?;
        let mut buffer = Vec::new();
        for at in (0..segment.bytes()).step_by(COPY_BYTES as usize) {
            buffer.resize(COPY_BYTES.min(segment.bytes() - at) as usize, 0);
            segment.blocks.file.read_at(at, &mut buffer)?;
            file.write_at(at, &buffer)?;
        }
        file.sync()?;
        publish_as(self.to, name)?;
        self.after.number = name.last;
        self.done.copied += 1;
        self.done.messages += segment.messages();
        Ok(())
    }

    fn damaged_segment(&mut self, name: SegmentName) -> Result<(), LogError> {
        let path = name.path();
        let file = match self.disk.open(&path) {
            Ok(file) => file,
            Err(error) => return damage(error.into()).map(|_| ()),
        };
        let bytes = file.bytes()?;
        let blocks = Blocks { file, path: path.clone(), name, bytes };
        let mut piece = Piece { path, ..Piece::default() };
        read_states(&blocks, &mut piece)?;
        self.refill(&piece)?;
        self.follow(&mut piece, &Source::Blocks(&blocks))?;
        self.write(name, &piece, &Source::Blocks(&blocks))
    }

    /// What a missing segment was made of may still be there, if it was not used again.
    fn refill(&mut self, piece: &Piece) -> Result<(), LogError> {
        for Cover { core, from, .. } in &piece.covers {
            let next = self.after.covers.get(core).map_or(1, |before| before.to + 1);
            for generation in self.wal.get(core).into_iter().flatten().filter(|one| (next..*from).contains(one)) {
                self.wal(&wal_path(*core, *generation))?;
            }
        }
        Ok(())
    }

    /// Every stretch of intact batches becomes a segment of its own.
    fn wal(&mut self, path: &str) -> Result<(), LogError> {
        let mut from = None;
        loop {
            let mut gathered = Gathered::default();
            let states = &self.after.states;
            let mut visit = |raw: crate::wal::RawRecord<'_>| {
                let record = raw.decode()?;
                // Sealed already, if what the segment covers was lost.
                let known = states.get(&record.partition).is_some_and(|state| record.lsn <= state.last);
                if known { Ok(()) } else { gathered.take(path, &record) }
            };
            let scanned = match from {
                None => scan(self.disk, path, None, &mut visit),
                Some(offset) => scan_from(self.disk, path, offset, &mut visit),
            };
            let mut piece = Piece { path: path.to_owned(), is_whole: true, ..Piece::default() };
            let next = match scanned {
                Ok(scan) => {
                    piece.covers = if from.is_none() { vec![cover(&scan)] } else { Vec::new() };
                    match scan.end {
                        End::Clean | End::Torn { .. } => None,
                        End::Damaged { offset, what, next } => {
                            self.done.lost.push(format!("{path}, offset {offset}: {what}"));
                            // Always onwards, so that this ends.
                            next.filter(|next| Some(*next) > from)
                        }
                    }
                }
                Err(error) => {
                    self.done.lost.push(damage(error)?);
                    None
                }
            };
            piece.states = std::mem::take(&mut gathered.states);
            // Writing asks the states which channels are kept, and must see them as they were.
            gathered.states = piece.states.clone();
            self.follow(&mut piece, &Source::Gathered(&gathered))?;
            let name = SegmentName::of(self.after.number + 1);
            self.write(name, &piece, &Source::Gathered(&gathered))?;
            match next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Makes a piece follow the ones before it; says what is lost between them.
    fn follow(&mut self, piece: &mut Piece, source: &Source<'_>) -> Result<(), LogError> {
        let (ends, counted, floors) = (&mut self.after.ends, &mut piece.counted, &mut piece.floors);
        let mut holes = Vec::new();
        let lost = source.entries(&mut |entry| {
            let Key { partition, channel, position } = entry.key;
            let (last, floor) = ends.entry((partition, channel)).or_default();
            if let Some(found) = entry.as_floor() {
                *floor = found.max(*floor);
                floors.insert((partition, channel), found);
                return Ok(());
            }
            if position > last.next() && position > *floor {
                let (first, before) = (last.0 + 1, position.0 - 1);
                holes.push(format!("partition {partition}, channel {channel}: messages {first} to {before}"));
                floors.insert((partition, channel), position);
                *floor = position;
            }
            *last = position.max(*last);
            count(counted, entry);
            Ok(())
        })?;
        piece.is_whole &= holes.is_empty() && lost.is_empty();
        for what in lost.into_iter().chain(holes) {
            if !self.done.lost.contains(&what) {
                self.done.lost.push(what);
            }
        }
        self.follow_states(piece);
        self.follow_covers(piece);
        Ok(())
    }

    fn follow_states(&mut self, piece: &mut Piece) {
        for (partition, counted) in std::mem::take(&mut piece.counted) {
            if !piece.states.contains_key(&partition) {
                let what = "what its records left behind; positions and sizes were counted again";
                self.done.lost.push(format!("{}, partition {partition}: {what}", piece.path));
                piece.states.insert(partition, counted);
                piece.is_whole = false;
            }
        }
        for (partition, state) in &mut piece.states {
            let before = self.after.states.entry(*partition).or_default();
            let expected = before.last.next();
            if state.first != expected && state.last != Lsn(0) {
                if state.first > expected {
                    let last = state.first.0 - 1;
                    self.done.lost.push(format!("{}, partition {partition}: records {expected} to {last}", piece.path));
                }
                state.dedupe.set_forgotten();
                state.first = expected;
                piece.is_whole = false;
            } else if state.last == Lsn(0) && !state.channels.is_empty() {
                // Not known. As little as is certain, so that nothing is numbered twice that is referred to.
                state.first = expected;
                state.last = state.channels.keys().map(|id| Lsn(id.0)).max().unwrap_or_default();
                state.dedupe.set_forgotten();
            }
            state.last = state.last.max(state.first);
            before.merge(state.clone()).expect("it was made to follow");
        }
    }

    fn follow_covers(&mut self, piece: &mut Piece) {
        for cover in &mut piece.covers {
            let Cover { core, from, .. } = *cover;
            let expected = self.after.covers.get(&core).map_or(1, |before| before.to + 1);
            if from != expected {
                if from > expected {
                    self.done.lost.push(format!("files {expected} to {} of the log of core {core}", from - 1));
                }
                (cover.from, cover.to) = (expected, cover.to.max(expected));
                piece.is_whole = false;
            }
            self.after.covers.insert(core, *cover);
        }
    }

    /// Writes a piece anew, in the place of all that is missing before it, too.
    fn write(&mut self, name: SegmentName, piece: &Piece, source: &Source<'_>) -> Result<(), LogError> {
        let name = SegmentName { first: self.after.number + 1, last: name.last.max(self.after.number + 1) };
        let mut writer = SegmentWriter::create(self.to, name)?;
        let mut channel = None;
        source.entries(&mut |entry| {
            let of = (entry.key.partition, entry.key.channel);
            if channel != Some(of) {
                channel = Some(of);
                if let Some(floor) = piece.floors.get(&of) {
                    writer.push(&Entry::floor(of.0, of.1, *floor))?;
                }
            }
            if entry.as_floor().is_none() {
                writer.push(entry)?;
            }
            Ok(())
        })?;
        writer.finish(&piece.states, &piece.covers)?;
        self.done.messages += publish_as(self.to, name)?.messages();
        self.after.number = name.last;
        self.done.rebuilt += 1;
        Ok(())
    }

    /// Channels whose beginning is lost: nobody can reach them.
    fn name_orphans(&mut self) {
        for (partition, state) in &self.after.states {
            for (id, _) in state.channels.iter().filter(|(_, channel)| channel.made.is_none() && !channel.deleted) {
                self.done.lost.push(format!("partition {partition}, channel {id}: its name and settings"));
            }
        }
    }
}

/// Counts a message as its record would have been.
fn count(counted: &mut BTreeMap<Partition, PartitionState>, entry: &Entry) {
    let Key { partition, channel, position } = entry.key;
    let Ok(message) = Message::decode(entry.payload.clone(), entry.session, entry.sequence) else { return };
    let state: &mut ChannelState = counted.entry(partition).or_default().channels.entry(channel).or_default();
    state.head = position;
    state.bytes += message.body.len() as u64;
    state.active_us = state.active_us.max(message.timestamp_us);
    state.messages += u64::from(message.kind == DeliveryKind::Message);
    for user in &message.context.mentions {
        state.mentioned.entry(user.clone()).or_default().push(position);
    }
    // What was taken back stays so, and who was removed or banned.
    match (message.kind, Name::from_bytes(&message.body)) {
        (DeliveryKind::Redaction, _) => drop(state.facts.redacted.insert(message.context.target)),
        (DeliveryKind::Membership, Ok(user)) => {
            let (since_us, by) = (message.timestamp_us, message.user.clone());
            let member = message.context.role.map(|role| Member { role, since_us, by });
            state.facts.members.insert(user, member);
        }
        _ => {}
    }
    if position.0.is_multiple_of(HISTORY_MARK_MESSAGES) {
        state.marks.push(Mark { position, bytes: state.bytes, timestamp_us: message.timestamp_us });
    }
}

/// Reads what is intact of the states and covers of a damaged file.
fn read_states(blocks: &Blocks, piece: &mut Piece) -> Result<(), LogError> {
    let mut walk = Walk::whole(blocks);
    let mut stream = None;
    while let Some(step) = walk.next()? {
        match step {
            Step::Block(Kind::State, _, payload) => {
                let (mut through, payload) = match stream.take() {
                    Some(stream) => (stream, payload),
                    None => match from_beginning(&payload) {
                        Some(payload) => (StateStream::default(), payload),
                        None => continue,
                    },
                };
                let whole = through.push(&payload, &mut |partition, state| {
                    piece.states.insert(partition, state);
                    Ok(())
                });
                stream = whole.is_ok().then_some(through);
            }
            Step::Block(Kind::Covers, _, payload) => piece.covers = take_covers(&payload).unwrap_or_default(),
            // The stream of partitions begins with the first block of states, or anew after damage.
            Step::Block(..) | Step::Damage(_) => stream = None,
        }
    }
    Ok(())
}

/// What a state block holds from the first partition on that begins in it.
fn from_beginning(payload: &Bytes) -> Option<Bytes> {
    let begins = Fields::new(payload).u32().ok().filter(|begins| *begins != NONE_BEGINS)? as usize;
    let rest = payload.get(4 + begins..)?;
    Some(Bytes::from([&payload[..4], rest].concat()))
}
