//! Writes a segment from front to back, in few large writes.

use std::collections::BTreeMap;

use thalweg_domain::partition::PartitionState;
use thalweg_protocol::ids::Partition;
use thalweg_protocol::limits::SEGMENT_BLOCK_BYTES;

use super::block::{BLOCK_HEADER_BYTES, ENTRY_HEADER_BYTES, Entry, INDEX_ENTRY_BYTES, Kind, Place, header, put_key};
use super::footer::{self, Footer};
use super::reader::Cover;
use super::state::encode_state;
use super::{Key, SegmentName};
use crate::disk::{Disk, DiskError, DiskFile};

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 1 << 20;
/// In a state block: no partition begins in it.
pub(super) const NONE_BEGINS: u32 = u32::MAX;

/// A segment in the making.
pub(super) struct SegmentWriter {
    name: SegmentName,
    file: Box<dyn DiskFile>,
    /// What was gathered, and where it goes.
    gathered: Vec<u8>,
    written: u64,
    data: Pending,
    /// The index blocks in the making, by level.
    index: Vec<Pending>,
    last: Option<Key>,
    blocks: u64,
    messages: u64,
}

/// A block that still grows.
#[derive(Default)]
struct Pending {
    first: Option<Key>,
    payload: Vec<u8>,
}

impl SegmentWriter {
    pub(super) fn create(disk: &dyn Disk, name: SegmentName) -> Result<Self, DiskError> {
        let file = disk.create(&name.path_new())?;
        let mut gathered = Vec::with_capacity(WRITE_BYTES + 2 * SEGMENT_BLOCK_BYTES);
        gathered.extend(footer::header());
        let (data, index) = (Pending::default(), Vec::new());
        Ok(Self { name, file, gathered, written: 0, data, index, last: None, blocks: 0, messages: 0 })
    }

    /// Writes the next entry.
    ///
    /// # Panics
    /// If it does not come after the one before it: what feeds this has sorted.
    pub(super) fn push(&mut self, entry: &Entry) -> Result<(), DiskError> {
        assert!(self.last < Some(entry.key), "entries are written in order");
        self.last = Some(entry.key);
        let bytes = ENTRY_HEADER_BYTES + entry.payload.len();
        if !self.data.payload.is_empty() && self.data.payload.len() + bytes > SEGMENT_BLOCK_BYTES {
            self.end_data()?;
        }
        self.data.first.get_or_insert(entry.key);
        entry.put(&mut self.data.payload);
        self.messages += u64::from(entry.as_floor().is_none());
        Ok(())
    }

    /// Writes all that follows the messages, and makes the file durable. It is still to be renamed.
    pub(super) fn finish(
        mut self,
        states: &BTreeMap<Partition, PartitionState>,
        covers: &[Cover],
    ) -> Result<u64, DiskError> {
        let root = self.end_index()?;
        let states_at = self.at();
        self.put_states(states)?;
        let mut payload = Vec::with_capacity(covers.len() * 18);
        for cover in covers {
            payload.extend(cover.core.0.to_le_bytes());
            payload.extend(cover.from.to_le_bytes());
            payload.extend(cover.to.to_le_bytes());
        }
        let covers = self.put_block(Kind::Covers, &payload)?;
        let partitions = states.len() as u32;
        let (blocks, messages) = (self.blocks, self.messages);
        let footer = Footer { root, states: states_at, covers, blocks, messages, partitions };
        self.gathered.extend(footer.encode(self.name));
        self.write()?;
        self.file.sync()?;
        Ok(self.written)
    }

    fn at(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    fn write(&mut self) -> Result<(), DiskError> {
        self.file.write_at(self.written, &self.gathered)?;
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    fn put_block(&mut self, kind: Kind, payload: &[u8]) -> Result<Place, DiskError> {
        let place = Place { offset: self.at(), bytes: payload.len() as u32 };
        self.gathered.extend(header(self.name, place.offset, kind, payload));
        self.gathered.extend_from_slice(payload);
        self.blocks += 1;
        if self.gathered.len() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(place)
    }

    fn end_data(&mut self) -> Result<(), DiskError> {
        let Some(first) = self.data.first.take() else { return Ok(()) };
        self.make_room(0)?;
        let payload = std::mem::take(&mut self.data.payload);
        let place = self.put_block(Kind::Data, &payload)?;
        self.data.payload = payload;
        self.data.payload.clear();
        self.put_index(0, first, place);
        Ok(())
    }

    /// Writes the index block of `level` if it is full. Done before the next block is written that is entered in it: so an
    /// index block follows the last block it points to, and none is ever left empty.
    fn make_room(&mut self, level: usize) -> Result<(), DiskError> {
        match self.index.get(level) {
            Some(full) if full.payload.len() + INDEX_ENTRY_BYTES > SEGMENT_BLOCK_BYTES => self.end_index_block(level),
            _ => Ok(()),
        }
    }

    /// Enters a block in the index of `level`.
    fn put_index(&mut self, level: usize, first: Key, place: Place) {
        if self.index.len() == level {
            self.index.push(Pending::default());
        }
        let pending = &mut self.index[level];
        pending.first.get_or_insert(first);
        put_key(first, &mut pending.payload);
        pending.payload.extend(place.offset.to_le_bytes());
        pending.payload.extend(place.bytes.to_le_bytes());
    }

    fn end_index_block(&mut self, level: usize) -> Result<(), DiskError> {
        self.make_room(level + 1)?;
        let Pending { first, payload } = std::mem::take(&mut self.index[level]);
        let first = first.expect("a level that exists holds something");
        let place = self.put_block(Kind::Index(level as u8), &payload)?;
        self.put_index(level + 1, first, place);
        Ok(())
    }

    /// Writes what is left of the index. The level that is alone is the root.
    fn end_index(&mut self) -> Result<Option<(Place, u8)>, DiskError> {
        self.end_data()?;
        let mut level = 0;
        while level + 1 < self.index.len() {
            self.end_index_block(level)?;
            level += 1;
        }
        let Some(root) = self.index.pop() else { return Ok(None) };
        let place = self.put_block(Kind::Index(level as u8), &root.payload)?;
        Ok(Some((place, level as u8)))
    }

    fn put_states(&mut self, states: &BTreeMap<Partition, PartitionState>) -> Result<(), DiskError> {
        let (mut block, mut item) = (Vec::with_capacity(SEGMENT_BLOCK_BYTES), Vec::new());
        block.extend(NONE_BEGINS.to_le_bytes());
        for (partition, state) in states {
            item.clear();
            encode_state(state, &mut item);
            if block[..4] == NONE_BEGINS.to_le_bytes() {
                let begins = block.len() as u32 - 4;
                block[..4].copy_from_slice(&begins.to_le_bytes());
            }
            let head = [&partition.0.to_le_bytes()[..], &(item.len() as u32).to_le_bytes()[..]].concat();
            for mut part in [&head[..], &item[..]] {
                while !part.is_empty() {
                    let room = (SEGMENT_BLOCK_BYTES - BLOCK_HEADER_BYTES - block.len()).min(part.len());
                    block.extend_from_slice(&part[..room]);
                    part = &part[room..];
                    if block.len() == SEGMENT_BLOCK_BYTES - BLOCK_HEADER_BYTES {
                        self.put_block(Kind::State, &block)?;
                        block.clear();
                        block.extend(NONE_BEGINS.to_le_bytes());
                    }
                }
            }
        }
        if block.len() > 4 {
            self.put_block(Kind::State, &block)?;
        }
        Ok(())
    }
}
