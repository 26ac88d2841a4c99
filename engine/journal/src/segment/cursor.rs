//! Goes through the entries of a segment from some key on.

use bytes::Bytes;
use thalweg_domain::record::Message;

use super::Key;
use super::block::{Entry, INDEX_ENTRY_BYTES, Kind, Place, index_entry};
use super::reader::Segment;
use crate::error::LogError;

/// A place between two entries of a segment. Holds one block of each level of the index, and one of data.
pub(super) struct Cursor<'a> {
    segment: &'a Segment,
    /// The path from the root: each index block, and which of its entries was followed.
    path: Vec<(Bytes, usize)>,
    data: Bytes,
    place: Place,
    /// Where in `data` the next entry is.
    at: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor before the first entry that is not less than `key`.
    pub(super) fn seek(segment: &'a Segment, key: Key) -> Result<Self, LogError> {
        let place = Place { offset: 0, bytes: 0 };
        let mut cursor = Self { segment, path: Vec::new(), data: Bytes::new(), place, at: 0 };
        let Some((root, _)) = &segment.root else { return Ok(cursor) };
        cursor.path.push((root.clone(), last_not_after(root, key)));
        cursor.descend(Some(key))?;
        while let Some((found, next)) = cursor.peek()? {
            if found >= key {
                break;
            }
            cursor.at = next;
        }
        Ok(cursor)
    }

    /// The key of the next entry, without going past it.
    pub(super) fn key(&mut self) -> Result<Option<Key>, LogError> {
        Ok(self.peek()?.map(|(key, _)| key))
    }

    /// The next entry, and past it.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, LogError> {
        if self.peek()?.is_none() {
            return Ok(None);
        }
        let (entry, next) =
            Entry::take(&self.data, self.at).map_err(|wrong| self.segment.blocks.wrong(self.place, wrong))?;
        self.at = next;
        Ok(Some(entry))
    }

    /// Which bytes of the file the next entry is in, for a message about it.
    pub(super) fn offset(&self) -> u64 {
        self.place.offset
    }

    /// The message of the entry that was taken last.
    pub(super) fn message(&self, entry: &Entry) -> Result<Message, LogError> {
        self.segment.message(entry, self.offset())
    }

    fn peek(&mut self) -> Result<Option<(Key, usize)>, LogError> {
        while self.at == self.data.len() {
            if !self.advance()? {
                return Ok(None);
            }
        }
        let peeked = Entry::peek(&self.data, self.at).map_err(|wrong| self.segment.blocks.wrong(self.place, wrong));
        peeked.map(Some)
    }

    /// Goes to the next data block.
    fn advance(&mut self) -> Result<bool, LogError> {
        while let Some((block, followed)) = self.path.last_mut() {
            if (*followed + 1) * INDEX_ENTRY_BYTES < block.len() {
                *followed += 1;
                self.descend(None)?;
                return Ok(true);
            }
            self.path.pop();
        }
        Ok(false)
    }

    /// From the last block of the path down to the data: towards a key, or to the first of all.
    fn descend(&mut self, towards: Option<Key>) -> Result<(), LogError> {
        let root = self.segment.root.as_ref().map_or(0, |(_, level)| *level);
        loop {
            let (block, followed) = self.path.last().expect("the path begins at the root");
            let level = usize::from(root) + 1 - self.path.len();
            let Some((first, place)) = index_entry(block, *followed) else {
                let (blocks, footer) = (&self.segment.blocks, &self.segment.footer);
                return Err(blocks.damaged(footer.states, "a block of the index is empty"));
            };
            if level == 0 {
                self.data = self.segment.blocks.read(place, Kind::Data)?;
                (self.place, self.at) = (place, 0);
                let found = Entry::peek(&self.data, 0).map_err(|wrong| self.segment.blocks.wrong(place, wrong))?.0;
                if found != first {
                    return Err(self.segment.blocks.damaged(place.offset, "the index leads to a wrong block"));
                }
                return Ok(());
            }
            let block = self.segment.blocks.read(place, Kind::Index(level as u8 - 1))?;
            let followed = towards.map_or(0, |key| last_not_after(&block, key));
            self.path.push((block, followed));
        }
    }
}

/// The last entry of an index block whose key is not after `key`; the first, if there is none.
fn last_not_after(block: &[u8], key: Key) -> usize {
    let (mut low, mut high) = (0, block.len() / INDEX_ENTRY_BYTES);
    while low < high {
        let middle = (low + high) / 2;
        match index_entry(block, middle) {
            Some((first, _)) if first <= key => low = middle + 1,
            _ => high = middle,
        }
    }
    low.saturating_sub(1)
}
