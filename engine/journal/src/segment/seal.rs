//! From a file of the write-ahead log to a segment: the unit of work of a checkpoint, and of recovery.

use std::collections::BTreeMap;

use bytes::Bytes;
use thalweg_domain::partition::{ChannelState, PartitionState};
use thalweg_domain::record::{Message, Record};
use thalweg_protocol::ids::{ChannelId, Partition, Sequence, SessionId};
use thalweg_protocol::op::DeliveryKind;

use super::block::Entry;
use super::reader::{Cover, Segment};
use super::writer::SegmentWriter;
use super::{Key, SEGMENTS, SegmentName};
use crate::disk::Disk;
use crate::error::LogError;
use crate::wal::{End, FileEnd, Scan, scan};

/// What became of a file of the write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The segment, which is complete and durable but still to be [published](publish).
    pub number: u64,
    /// Which file it was made of.
    pub path: String,
    /// Records of the file.
    pub records: u64,
    /// Bytes of the segment.
    pub bytes: u64,
    /// What was cut off, if the node ended while it was written.
    pub torn: Option<Torn>,
}

/// The end of a file that was never synced, and so never answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub path: String,
    /// Where the end began.
    pub offset: u64,
    /// Its length, as far as it can be known.
    pub bytes: u64,
}

/// Seals the file at `path` as segment `number`. Several files can be sealed at once, by several threads.
///
/// `end` is where the file is known to end, if it is ([`Closed::end`](crate::wal::Closed)). Needs memory for the file's
/// messages and for the states they leave behind. Messages of channels that are deleted in the same file are left out, and
/// texts that are taken back in it.
///
/// # Errors
/// [`LogError::Damaged`] if the file does not hold all that was synced, [`LogError::Missing`] if its records do not follow
/// each other, or what the disk says. What was begun is then left behind, as `.new`.
pub fn seal(disk: &dyn Disk, path: &str, number: u64, end: Option<FileEnd>) -> Result<Sealed, LogError> {
    let mut gathered = Gathered::default();
    let scan = scan(disk, path, end, &mut |raw| gathered.take(path, &raw.decode()?))?;
    scan.check()?;
    let torn = match scan.end {
        End::Torn { offset, bytes } => Some(Torn { path: path.to_owned(), offset, bytes }),
        _ => None,
    };
    let covers = [cover(&scan)];
    let mut writer = SegmentWriter::create(disk, SegmentName::of(number))?;
    gathered.write(&mut |entry| Ok(writer.push(entry)?))?;
    let bytes = writer.finish(&gathered.states, &covers)?;
    Ok(Sealed { number, path: path.to_owned(), records: scan.records, bytes, torn })
}

/// Gives a sealed segment its place among the others. Must be called in the order of their numbers.
///
/// # Errors
/// What the disk says, or [`LogError::Damaged`] if it does not hold what was written.
pub fn publish(disk: &dyn Disk, number: u64) -> Result<Segment, LogError> {
    publish_as(disk, SegmentName::of(number))
}

pub(super) fn publish_as(disk: &dyn Disk, name: SegmentName) -> Result<Segment, LogError> {
    disk.rename(&name.path_new(), &name.path())?;
    disk.sync_dir(SEGMENTS)?;
    Segment::open(disk, name)
}

pub(super) fn cover(scan: &Scan) -> Cover {
    Cover { core: scan.core, from: scan.generation, to: scan.generation }
}

/// What a file of the write-ahead log holds.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) states: BTreeMap<Partition, PartitionState>,
    pub(super) messages: Vec<Kept>,
}

/// What is kept of a message until it is written.
pub(super) struct Kept {
    pub(super) key: Key,
    session: SessionId,
    sequence: Sequence,
    payload: Bytes,
}

impl Kept {
    pub(super) fn entry(&self) -> Entry {
        let Self { key, session, sequence, payload } = self;
        Entry { key: *key, session: *session, sequence: *sequence, payload: payload.clone() }
    }
}

impl Gathered {
    pub(super) fn take(&mut self, path: &str, record: &Record) -> Result<(), LogError> {
        let partition = record.partition;
        let state = self.states.entry(partition).or_default();
        state.apply(record).map_err(|gap| LogError::Missing { partition, path: path.to_owned(), gap })?;
        if let Some(posting) = record.event.posting() {
            let (channel, message) = (posting.id, &posting.message);
            let key = Key { partition, channel, position: message.position };
            let (session, sequence, payload) = (message.session, message.sequence, message.payload.clone());
            self.messages.push(Kept { key, session, sequence, payload });
        }
        Ok(())
    }

    /// Gives all messages that the states keep to `write`, in order.
    pub(super) fn write(&self, write: &mut dyn FnMut(&Entry) -> Result<(), LogError>) -> Result<(), LogError> {
        // Sorted are small keys, not messages; within a channel they are in order as they came.
        let mut order: Vec<(Key, u32)> = Vec::with_capacity(self.messages.len());
        order.extend(self.messages.iter().enumerate().map(|(at, kept)| (kept.key, at as u32)));
        order.sort();
        let mut keeps = Keeps::new(&self.states);
        for (key, at) in order {
            let Some(state) = keeps.check(key.partition, key.channel) else { continue };
            let entry = self.messages[at as usize].entry();
            let decode = || Message::decode(entry.payload.clone(), entry.session, entry.sequence);
            match state.facts.redacted.is_empty() {
                true => write(&entry)?,
                false => write(&redact(&entry, &decode().expect("its record was read"), state))?,
            }
        }
        Ok(())
    }
}

/// What a channel's message, read from `entry`, is to be written as: without its text, if that was taken back. So is what
/// others made of a text that was taken back: its edits.
pub(super) fn redact(entry: &Entry, message: &Message, state: &ChannelState) -> Entry {
    let redacted = &state.facts.redacted;
    let is_edit = message.kind == DeliveryKind::Edit && redacted.contains(&message.context.target);
    if message.context.redacted || !(is_edit || redacted.contains(&message.position)) {
        return entry.clone();
    }
    Entry { payload: message.redacted().payload, ..entry.clone() }
}

/// The channels that are kept, asked for once a channel while going through messages in order.
pub(super) struct Keeps<'a> {
    states: &'a BTreeMap<Partition, PartitionState>,
    last: Option<(Partition, ChannelId, Option<&'a ChannelState>)>,
}

impl<'a> Keeps<'a> {
    pub(super) fn new(states: &'a BTreeMap<Partition, PartitionState>) -> Self {
        Self { states, last: None }
    }

    /// What is known of a channel, if it is kept.
    pub(super) fn check(&mut self, partition: Partition, channel: ChannelId) -> Option<&'a ChannelState> {
        match self.last {
            Some((p, c, state)) if (p, c) == (partition, channel) => state,
            _ => {
                let state = self.states.get(&partition).and_then(|state| state.channels.get(&channel));
                let state = state.filter(|state| !state.deleted);
                self.last = Some((partition, channel, state));
                state
            }
        }
    }
}
