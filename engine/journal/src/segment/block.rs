//! Blocks: the unit of checking.

use bytes::Bytes;
use thalweg_protocol::ids::{ChannelId, Partition, Position, Sequence, SessionId};

use super::fields::{Fields, Wrong};
use super::{BLOCK_PAYLOAD_MAX, Key, SegmentName};
use crate::disk::DiskFile;
use crate::error::LogError;

/// What a segment begins with.
pub const MAGIC: u64 = u64::from_le_bytes(*b"thalwseg");
/// Bytes at the beginning of a file.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes before the payload of a block.
pub(super) const BLOCK_HEADER_BYTES: usize = 12;
/// Bytes before the payload of an entry.
pub(super) const ENTRY_HEADER_BYTES: usize = 46;
/// Bytes of an entry of an index.
pub(super) const INDEX_ENTRY_BYTES: usize = 30;

pub(super) const BLOCK_MAGIC: u16 = 0xb10c;

/// What is in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    /// An index of data blocks, or of index blocks: its level, from 0.
    Index(u8),
    State,
    Covers,
}

/// The deepest index: with a thousand entries a block, more than any file holds.
pub(super) const LEVELS_MAX: u8 = 8;

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::State => 2,
            Self::Covers => 3,
            Self::Index(level) => 16 + level,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Data),
            2 => Some(Self::State),
            3 => Some(Self::Covers),
            16.. if byte < 16 + LEVELS_MAX => Some(Self::Index(byte - 16)),
            _ => None,
        }
    }
}

/// Where a block is: what its parent in the index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    /// Of its payload.
    pub(super) bytes: u32,
}

impl Place {
    /// Where the next block begins.
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(BLOCK_HEADER_BYTES as u64 + u64::from(self.bytes))
    }
}

fn crc(name: SegmentName, offset: u64, kind: u8, payload: &[u8]) -> u32 {
    let mut place = [0; 29];
    place[..8].copy_from_slice(&name.first.to_le_bytes());
    place[8..16].copy_from_slice(&name.last.to_le_bytes());
    place[16..24].copy_from_slice(&offset.to_le_bytes());
    place[24] = kind;
    place[25..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place);
    hasher.update(payload);
    hasher.finalize()
}

/// What stands before the payload of a block.
pub(super) fn header(name: SegmentName, offset: u64, kind: Kind, payload: &[u8]) -> [u8; BLOCK_HEADER_BYTES] {
    let mut header = [0; BLOCK_HEADER_BYTES];
    header[..2].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
    header[2] = kind.byte();
    header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[8..].copy_from_slice(&crc(name, offset, kind.byte(), payload).to_le_bytes());
    header
}

/// The blocks of one file, read where they are asked for.
pub struct Blocks {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) path: String,
    pub(super) name: SegmentName,
    /// Of the file.
    pub(super) bytes: u64,
}

impl Blocks {
    pub(super) fn damaged(&self, offset: u64, what: impl Into<String>) -> LogError {
        LogError::Damaged { path: self.path.clone(), offset, what: what.into() }
    }

    pub(super) fn wrong(&self, place: Place, wrong: Wrong) -> LogError {
        self.damaged(place.offset + (BLOCK_HEADER_BYTES + wrong.at) as u64, wrong.what)
    }

    /// Reads a block that should be at `place`.
    pub(super) fn read(&self, place: Place, kind: Kind) -> Result<Bytes, LogError> {
        let (found, payload) = self.read_any(place)?;
        if found != kind {
            return Err(self.damaged(place.offset, format!("a block of kind {found:?} stands where {kind:?} should")));
        }
        Ok(payload)
    }

    /// Reads the block at `offset`, whatever it is.
    pub(super) fn read_next(&self, offset: u64) -> Result<(Kind, Place, Bytes), LogError> {
        let mut header = [0; BLOCK_HEADER_BYTES];
        if self.bytes.saturating_sub(offset) < header.len() as u64 {
            return Err(self.damaged(offset, "the file ends inside a block"));
        }
        self.file.read_at(offset, &mut header)?;
        let bytes = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let place = Place { offset, bytes };
        let (kind, payload) = self.read_any(place)?;
        Ok((kind, place, payload))
    }

    fn read_any(&self, place: Place) -> Result<(Kind, Bytes), LogError> {
        let Place { offset, bytes } = place;
        if bytes as usize > BLOCK_PAYLOAD_MAX || place.end() > self.bytes {
            return Err(self.damaged(offset, format!("a block of {bytes} bytes does not fit here")));
        }
        let mut block = vec![0; BLOCK_HEADER_BYTES + bytes as usize];
        self.file.read_at(offset, &mut block)?;
        let kind = match check(self.name, offset, &block) {
            Ok(kind) => kind,
            Err(what) => return Err(self.damaged(offset, what)),
        };
        Ok((kind, Bytes::from(block).slice(BLOCK_HEADER_BYTES..)))
    }
}

/// Checks a whole block.
pub(super) fn check(name: SegmentName, offset: u64, block: &[u8]) -> Result<Kind, String> {
    let (header, payload) = block.split_at(BLOCK_HEADER_BYTES);
    let mut fields = Fields::new(header);
    let wrong = |wrong: Wrong| wrong.what;
    let (magic, kind, zero) = (fields.u16().map_err(wrong)?, fields.u8().map_err(wrong)?, fields.u8().map_err(wrong)?);
    let (bytes, stored) = (fields.u32().map_err(wrong)?, fields.u32().map_err(wrong)?);
    if magic != BLOCK_MAGIC || zero != 0 {
        return Err("no block begins here".into());
    }
    if bytes as usize != payload.len() {
        return Err(format!("a block of {bytes} bytes stands where one of {} should", payload.len()));
    }
    let computed = crc(name, offset, kind, payload);
    if computed != stored {
        return Err(format!("the block's checksum is {stored:08x}, its contents have {computed:08x}"));
    }
    Kind::of(kind).ok_or_else(|| format!("a block has kind {kind}"))
}

/// One entry of a data block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) session: SessionId,
    /// Of a floor: the floor.
    pub(super) sequence: Sequence,
    /// Shares the block's memory.
    pub(super) payload: Bytes,
}

impl Entry {
    /// Says that the messages of a channel below `floor` are kept no longer.
    pub(super) fn floor(partition: Partition, channel: ChannelId, floor: Position) -> Self {
        let key = Key { partition, channel, position: Position(0) };
        Self { key, session: SessionId(0), sequence: Sequence(floor.0), payload: Bytes::new() }
    }

    /// The floor that this is, if it is one.
    pub(super) fn as_floor(&self) -> Option<Position> {
        (self.key.position == Position(0)).then_some(Position(self.sequence.0))
    }

    pub(super) fn put(&self, into: &mut Vec<u8>) {
        put_key(self.key, into);
        into.extend(self.session.0.to_le_bytes());
        into.extend(self.sequence.0.to_le_bytes());
        into.extend((self.payload.len() as u32).to_le_bytes());
        into.extend_from_slice(&self.payload);
    }

    /// The entry at `at` of a data block, and where the next one is.
    pub(super) fn take(block: &Bytes, at: usize) -> Result<(Self, usize), Wrong> {
        let (key, next) = Self::peek(block, at)?;
        let mut fields = Fields::new(&block[at..]);
        fields.bytes(KEY_BYTES)?;
        let (session, sequence) = (SessionId(fields.u128()?), Sequence(fields.u64()?));
        Ok((Self { key, session, sequence, payload: block.slice(at + ENTRY_HEADER_BYTES..next) }, next))
    }

    /// Where the entry at `at` stands, and where the next one is.
    pub(super) fn peek(block: &Bytes, at: usize) -> Result<(Key, usize), Wrong> {
        let inside = |wrong: Wrong| Wrong { at: at + wrong.at, ..wrong };
        let mut fields = Fields::new(&block[at..]);
        let key = take_key(&mut fields).map_err(inside)?;
        fields.bytes(24).map_err(inside)?;
        fields.long_bytes().map_err(inside)?;
        Ok((key, at + fields.at()))
    }
}

pub(super) const KEY_BYTES: usize = 18;

pub(super) fn put_key(key: Key, into: &mut Vec<u8>) {
    into.extend(key.partition.0.to_le_bytes());
    into.extend(key.channel.0.to_le_bytes());
    into.extend(key.position.0.to_le_bytes());
}

pub(super) fn take_key(fields: &mut Fields<'_>) -> Result<Key, Wrong> {
    let (partition, channel) = (Partition(fields.u16()?), ChannelId(fields.u64()?));
    Ok(Key { partition, channel, position: Position(fields.u64()?) })
}

/// The `n`-th entry of an index block, if it has so many: the first key of a block, and where that is.
pub(super) fn index_entry(block: &[u8], n: usize) -> Option<(Key, Place)> {
    let entry = block.get(n * INDEX_ENTRY_BYTES..(n + 1) * INDEX_ENTRY_BYTES)?;
    let mut fields = Fields::new(entry);
    let key = take_key(&mut fields).ok()?;
    Some((key, Place { offset: fields.u64().ok()?, bytes: fields.u32().ok()? }))
}
