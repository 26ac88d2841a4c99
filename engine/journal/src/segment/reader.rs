//! Reads a segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::partition::PartitionState;
use thalweg_domain::record::Message;
use thalweg_protocol::ids::{ChannelId, CoreId, Partition, Position};

use super::block::{Blocks, Entry, Kind};
use super::cursor::Cursor;
use super::fields::{Fields, Wrong};
use super::footer::Footer;
use super::state::decode_state;
use super::{Key, SegmentName};
use crate::disk::Disk;
use crate::error::LogError;

/// Files of the write-ahead log of one core that are in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cover {
    /// Whose.
    pub core: CoreId,
    /// The first generation.
    pub from: u64,
    /// The last generation, inclusive.
    pub to: u64,
}

/// An open segment. Holds the top block of its index in memory, and nothing else of what it contains.
pub struct Segment {
    pub(super) blocks: Blocks,
    pub(super) footer: Footer,
    /// The top block of the index, and its level.
    pub(super) root: Option<(Bytes, u8)>,
    covers: Vec<Cover>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("name", &self.blocks.name).field("covers", &self.covers).finish_non_exhaustive()
    }
}

impl Segment {
    /// Opens a segment that is in its place.
    ///
    /// # Errors
    /// [`LogError::Newer`], [`LogError::Damaged`], or what the disk says.
    pub fn open(disk: &dyn Disk, name: SegmentName) -> Result<Self, LogError> {
        Self::open_at(disk, name, name.path())
    }

    /// Opens a segment that was sealed and is not published yet.
    pub(crate) fn open_sealed(disk: &dyn Disk, number: u64) -> Result<Self, LogError> {
        let name = SegmentName::of(number);
        Self::open_at(disk, name, name.path_new())
    }

    pub(super) fn open_at(disk: &dyn Disk, name: SegmentName, path: String) -> Result<Self, LogError> {
        let file = disk.open(&path)?;
        let (footer, bytes) = Footer::read(&*file, &path, name)?;
        let blocks = Blocks { file, path, name, bytes };
        let root = match footer.root {
            Some((place, level)) => Some((blocks.read(place, Kind::Index(level))?, level)),
            None => None,
        };
        let payload = blocks.read(footer.covers, Kind::Covers)?;
        let covers = take_covers(&payload).map_err(|wrong| blocks.wrong(footer.covers, wrong))?;
        Ok(Self { blocks, footer, root, covers })
    }

    /// Which segment it is.
    pub fn name(&self) -> SegmentName {
        self.blocks.name
    }

    /// The first and the last number of what was sealed into it.
    pub fn range(&self) -> (u64, u64) {
        (self.blocks.name.first, self.blocks.name.last)
    }

    /// Which files of the write-ahead log it covers.
    pub fn covers(&self) -> &[Cover] {
        &self.covers
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.blocks.bytes
    }

    /// Messages in it.
    pub fn messages(&self) -> u64 {
        self.footer.messages
    }

    /// What its records left behind, of each partition that it has records of.
    ///
    /// # Errors
    /// [`LogError::Damaged`], or what the disk says.
    pub fn states(&self) -> Result<BTreeMap<Partition, PartitionState>, LogError> {
        let mut states = BTreeMap::new();
        let mut stream = StateStream::default();
        let mut at = self.footer.states;
        while at < self.footer.covers.offset {
            let (kind, place, payload) = self.blocks.read_next(at)?;
            if kind != Kind::State {
                return Err(self.blocks.damaged(at, format!("a block of kind {kind:?} stands among the states")));
            }
            at = place.end();
            stream
                .push(&payload, &mut |partition, state| match states
                    .last_key_value()
                    .is_some_and(|(before, _)| *before >= partition)
                {
                    true => Err(format!("partition {partition} is out of order")),
                    false => {
                        states.insert(partition, state);
                        Ok(())
                    }
                })
                .map_err(|wrong| self.blocks.wrong(place, wrong))?;
        }
        if !stream.is_done() || states.len() != self.footer.partitions as usize {
            return Err(self.blocks.damaged(at, format!("{} partitions are there", states.len())));
        }
        Ok(states)
    }

    /// Messages of one channel in `from..to`, without a gap between them: from the first that this segment has, as many as
    /// the bounds allow, but one at least. For all segments of a log see [`Shelf`](super::Shelf).
    ///
    /// The bodies share the memory of the blocks they were read in: a message that is kept keeps its block, up to
    /// [`SEGMENT_BLOCK_BYTES`](thalweg_protocol::limits::SEGMENT_BLOCK_BYTES) or its own size.
    ///
    /// # Errors
    /// [`LogError::Damaged`], or what the disk says.
    pub fn read(
        &self,
        partition: Partition,
        channel: ChannelId,
        from: Position,
        to: Position,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Message>>, LogError> {
        let mut run = Run::new(messages_max, bytes_max, to);
        let mut cursor = self.cursor(partition, channel, from)?;
        while run.take(self, partition, channel, &mut cursor)? {}
        Ok(run.messages)
    }

    /// Calls `visit` with every message of the segment, in order: partition, channel, message. For `thalweg doctor`.
    ///
    /// # Errors
    /// [`LogError::Damaged`], or what the disk says.
    pub fn for_each(&self, visit: &mut dyn FnMut(Partition, ChannelId, Message)) -> Result<(), LogError> {
        let (partition, channel, position) = (Partition(0), ChannelId(0), Position(0));
        let mut cursor = Cursor::seek(self, Key { partition, channel, position })?;
        while let Some(entry) = cursor.next()? {
            if entry.as_floor().is_none() {
                visit(entry.key.partition, entry.key.channel, self.message(&entry, cursor.offset())?);
            }
        }
        Ok(())
    }

    /// Below which position messages of a channel were dropped, if a merge did.
    pub(super) fn floor(&self, partition: Partition, channel: ChannelId) -> Result<Option<Position>, LogError> {
        let key = Key { partition, channel, position: Position(0) };
        let entry = Cursor::seek(self, key)?.next()?;
        Ok(entry.filter(|entry| entry.key == key).and_then(|entry| entry.as_floor()))
    }

    /// A cursor before the first message of a channel from `from` on.
    pub(super) fn cursor(
        &self,
        partition: Partition,
        channel: ChannelId,
        from: Position,
    ) -> Result<Cursor<'_>, LogError> {
        Cursor::seek(self, Key { partition, channel, position: from.max(Position(1)) })
    }

    pub(super) fn message(&self, entry: &Entry, offset: u64) -> Result<Message, LogError> {
        let Key { partition, channel, position } = entry.key;
        let damaged = |what: String| {
            let what = format!("partition {partition}, channel {channel}, message {position}: {what}");
            self.blocks.damaged(offset, what)
        };
        let message = Message::decode(entry.payload.clone(), entry.session, entry.sequence)
            .map_err(|reject| damaged(reject.message.into_owned()))?;
        if message.position != position {
            return Err(damaged(format!("it says that it is message {}", message.position)));
        }
        Ok(message)
    }
}

/// The messages of an answer, within its bounds.
pub(super) struct Run {
    pub(super) messages: Vec<Arc<Message>>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    to: Position,
}

impl Run {
    pub(super) fn new(messages_max: usize, bytes_max: usize, to: Position) -> Self {
        Self { messages: Vec::new(), bytes: 0, messages_max, bytes_max, to }
    }

    /// Where the next message has to stand; anywhere, if there is none yet.
    pub(super) fn expected(&self) -> Option<Position> {
        self.messages.last().map(|message| message.position.next())
    }

    /// Takes the next message, if it belongs to the answer; says whether it did.
    pub(super) fn take(
        &mut self,
        segment: &Segment,
        partition: Partition,
        channel: ChannelId,
        cursor: &mut Cursor<'_>,
    ) -> Result<bool, LogError> {
        let wanted = |key: &Key| {
            (key.partition, key.channel) == (partition, channel)
                && key.position < self.to
                && self.expected().is_none_or(|expected| key.position == expected)
        };
        if self.messages.len() >= self.messages_max || !cursor.key()?.is_some_and(|key| wanted(&key)) {
            return Ok(false);
        }
        let Some(entry) = cursor.next()? else { return Ok(false) };
        let message = segment.message(&entry, cursor.offset())?;
        self.bytes += message.body.len();
        if self.bytes > self.bytes_max && !self.messages.is_empty() {
            return Ok(false);
        }
        self.messages.push(Arc::new(message));
        Ok(true)
    }
}

/// Puts partitions together that lie across blocks.
#[derive(Default)]
pub(super) struct StateStream {
    item: Vec<u8>,
}

/// Bytes before a partition's state.
const ITEM_HEADER_BYTES: usize = 6;

impl StateStream {
    /// Takes the next block in and gives each partition that is whole to `whole`.
    pub(super) fn push(
        &mut self,
        payload: &[u8],
        whole: &mut dyn FnMut(Partition, PartitionState) -> Result<(), String>,
    ) -> Result<(), Wrong> {
        let mut fields = Fields::new(payload);
        fields.u32()?;
        while fields.left() > 0 {
            let missing = match self.item_bytes() {
                None => ITEM_HEADER_BYTES - self.item.len(),
                Some(bytes) => ITEM_HEADER_BYTES + bytes - self.item.len(),
            };
            let part = fields.bytes(missing.min(fields.left()))?;
            self.item.extend_from_slice(part);
            if self.item_bytes().is_some_and(|bytes| self.item.len() == ITEM_HEADER_BYTES + bytes) {
                let partition = Partition(u16::from_le_bytes([self.item[0], self.item[1]]));
                let wrong = |what: String| Wrong { at: fields.at(), what: format!("partition {partition}: {what}") };
                let item = Bytes::from(std::mem::take(&mut self.item)).slice(ITEM_HEADER_BYTES..);
                let state = decode_state(&item).map_err(|error| wrong(error.to_string()))?;
                whole(partition, state).map_err(wrong)?;
            }
        }
        Ok(())
    }

    pub(super) fn is_done(&self) -> bool {
        self.item.is_empty()
    }

    fn item_bytes(&self) -> Option<usize> {
        let bytes = self.item.get(2..ITEM_HEADER_BYTES)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    }
}

pub(super) fn take_covers(payload: &[u8]) -> Result<Vec<Cover>, Wrong> {
    let mut fields = Fields::new(payload);
    let mut covers = Vec::new();
    while fields.left() > 0 {
        let cover = Cover { core: CoreId(fields.u16()?), from: fields.u64()?, to: fields.u64()? };
        let in_order = covers.last().is_none_or(|before: &Cover| before.core < cover.core);
        if !in_order || cover.from == 0 || cover.to < cover.from {
            return fields.wrong("what is covered is out of order");
        }
        covers.push(cover);
    }
    Ok(covers)
}
