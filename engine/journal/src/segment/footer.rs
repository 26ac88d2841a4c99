//! The ends of a file: what it begins with, and the footer that says where everything is.

use super::block::{HEADER_BYTES, LEVELS_MAX, MAGIC, Place};
use super::fields::Fields;
use super::{FORMAT, FORMAT_OLDEST, SegmentName};
use crate::disk::DiskFile;
use crate::error::LogError;

/// Bytes of a footer.
pub(super) const FOOTER_BYTES: usize = 104;

/// Where everything is in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    /// The top of the index, and its level; none if there are no messages.
    pub(super) root: Option<(Place, u8)>,
    /// Where the state section begins. It ends where the covers begin.
    pub(super) states: u64,
    pub(super) covers: Place,
    /// Blocks in all.
    pub(super) blocks: u64,
    /// Entries that are messages.
    pub(super) messages: u64,
    pub(super) partitions: u32,
}

pub(super) fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

impl Footer {
    pub(super) fn encode(&self, name: SegmentName) -> [u8; FOOTER_BYTES] {
        let (root, level) = self.root.unwrap_or((Place { offset: 0, bytes: 0 }, 0));
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(u32::from(level).to_le_bytes());
        for number in [name.first, name.last, root.offset, self.states, self.covers.offset, self.blocks, self.messages]
        {
            bytes.extend(number.to_le_bytes());
        }
        for number in [root.bytes, self.covers.bytes, self.partitions] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.resize(FOOTER_BYTES - 4, 0);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes.try_into().expect("a footer has this size")
    }

    /// Checks both ends of a file and reads the footer.
    pub(super) fn read(file: &dyn DiskFile, path: &str, name: SegmentName) -> Result<(Self, u64), LogError> {
        let damaged = |offset, what: &str| LogError::Damaged { path: path.into(), offset, what: what.into() };
        let length = file.bytes()?;
        if length < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            return Err(damaged(0, "the file is too short for a segment"));
        }
        let mut head = [0; HEADER_BYTES];
        file.read_at(0, &mut head)?;
        check_header(&head, path)?;
        let at = length - FOOTER_BYTES as u64;
        let mut bytes = [0; FOOTER_BYTES];
        file.read_at(at, &mut bytes)?;
        let footer = Self::decode(&bytes, name).map_err(|what| damaged(at, &what))?;
        let inside = |place: Place| place.offset >= HEADER_BYTES as u64 && place.end() <= at;
        if footer.covers.end() != at
            || !inside(footer.covers)
            || footer.states > footer.covers.offset
            || footer.states < HEADER_BYTES as u64
            || footer.root.is_some_and(|(root, _)| root.end() != footer.states || !inside(root))
        {
            return Err(damaged(at, "the footer points outside of the file"));
        }
        Ok((footer, length))
    }

    pub(super) fn decode(bytes: &[u8; FOOTER_BYTES], name: SegmentName) -> Result<Self, String> {
        let (body, stored) = bytes.split_at(FOOTER_BYTES - 4);
        if crc32fast::hash(body).to_le_bytes() != stored {
            return Err("the footer's checksum is wrong".into());
        }
        let mut fields = Fields::new(body);
        let mut take = || -> Result<_, super::fields::Wrong> {
            let (magic, format, level) = (fields.u64()?, fields.u32()?, fields.u32()?);
            let (first, last, root, states) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
            let (covers, blocks, messages) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let (root_bytes, covers_bytes, partitions) = (fields.u32()?, fields.u32()?, fields.u32()?);
            let root = (root != 0).then_some((Place { offset: root, bytes: root_bytes }, level as u8));
            let covers = Place { offset: covers, bytes: covers_bytes };
            let footer = Self { root, states, covers, blocks, messages, partitions };
            Ok((magic, format, level, SegmentName { first, last }, footer))
        };
        let (magic, format, level, found, footer) = take().map_err(|wrong| wrong.what)?;
        if magic != MAGIC || !(FORMAT_OLDEST..=FORMAT).contains(&format) || level >= u32::from(LEVELS_MAX) {
            return Err("this is no footer of a segment".into());
        }
        if found != name {
            return Err(format!("the file is segment {found}, not {name} as it is called"));
        }
        Ok(footer)
    }
}

pub(super) fn check_header(head: &[u8; HEADER_BYTES], path: &str) -> Result<(), LogError> {
    let damaged = |what: &str| LogError::Damaged { path: path.into(), offset: 0, what: what.into() };
    let (body, stored) = head.split_at(12);
    if crc32fast::hash(body).to_le_bytes() != stored {
        return Err(damaged("the file's beginning does not have its checksum"));
    }
    let mut fields = Fields::new(body);
    let (magic, format) = (fields.u64().unwrap_or(0), fields.u32().unwrap_or(0));
    if magic != MAGIC {
        return Err(damaged("this is no segment"));
    }
    if format > FORMAT {
        return Err(LogError::Newer { path: path.into(), found: format.into(), known: FORMAT.into() });
    }
    if format < FORMAT_OLDEST {
        return Err(damaged("the format is none that there ever was"));
    }
    Ok(())
}
