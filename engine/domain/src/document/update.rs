//! The encoding of Yjs updates (version 1), read without trust: everything is bounded before it is allocated, and what no
//! Yjs client writes is refused by name.
//!
//! Source: `UpdateEncoder.js`, `structs/*.js` and `utils/DeleteSet.js` of Yjs 13, and the formats of lib0.

use std::collections::BTreeMap;
use std::ops::Range;

use thalweg_protocol::reject::Reject;

use super::invalid;

/// Yjs client ids that only nodes edit with: the last of those with 53 bits, as many as a document may have revisions. Few
/// enough that an editor that draws its own from all 53 bits, as those of yrs do, hits one once in 131,072 times.
pub const NODE_CLIENTS: u64 = (1 << 53) - (1 << 36);
/// Clocks stay below this, so that no sum or difference of two overflows the 32-bit integers of the library.
const CLOCK_MAX: u64 = 1 << 30;
/// Values within values, as JSON has them.
const ANY_DEPTH_MAX: u32 = 64;
/// Structs of one update.
const STRUCTS_MAX: usize = 1 << 16;
/// Clients that one update of a client has structs of.
const SECTIONS_MAX: usize = 1 << 12;
/// Structs of one update that are inserted at the same place: each of them is compared with all others.
pub(crate) const SAME_PLACE_MAX: usize = 512;
/// Longest name of a root, key of a map, or name of an element, in bytes.
const NAME_BYTES_MAX: usize = 4 << 10;

const HAS_LEFT: u8 = 0x80;
const HAS_RIGHT: u8 = 0x40;
const HAS_KEY: u8 = 0x20;

/// What somebody inserted: the client, and its how-manieth code unit or value it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) client: u64,
    pub(crate) clock: u32,
}

/// What an item belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// The root of this number in [`Parsed::roots`].
    Root(u16),
    /// A type that is an item itself.
    Item(Id),
    /// What its neighbours belong to.
    Neighbours,
}

/// What a struct is, as far as it matters where it may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was deleted, with all that was in it.
    Gone,
    /// A stretch that this update does not have.
    Skip,
    /// Deleted content, that may have been a type.
    Erased,
    /// A type, which others may belong to.
    Type,
    /// Any other content.
    Plain,
}

/// One piece of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Struct {
    pub(crate) clock: u32,
    pub(crate) length: u32,
    pub(crate) kind: Kind,
    pub(crate) left: Option<Id>,
    pub(crate) right: Option<Id>,
    pub(crate) parent: Parent,
    /// A hash of the key it stands under in a map; 0 in a sequence.
    pub(crate) key: u64,
    /// Whether it is text that was typed.
    pub(crate) is_text: bool,
}

/// An update, read.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    pub(crate) structs: Vec<Struct>,
    /// Which of the structs are of which client, in order of their clocks.
    pub(crate) sections: BTreeMap<u64, Range<usize>>,
    pub(crate) deletes: BTreeMap<u64, Vec<Range<u32>>>,
    /// The byte at which the deletions begin.
    pub(crate) deletes_at: usize,
    pub(crate) roots: Vec<Box<str>>,
    /// Whether some of its text ends a line.
    pub(crate) ends_line: bool,
    /// Whether some of its text has a character of two code units.
    pub(crate) has_pairs: bool,
    /// Whether some of it is the beginning or end of a format.
    pub(crate) has_formats: bool,
    grows: usize,
}

struct Reader<'a> {
    bytes: &'a [u8],
    length: usize,
    ends_line: bool,
    has_pairs: bool,
    has_formats: bool,
}

type Read<T> = Result<T, Reject>;

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, length: bytes.len(), ends_line: false, has_pairs: false, has_formats: false }
    }

    fn at(&self) -> usize {
        self.length - self.bytes.len()
    }

    fn fault<T>(&self, what: &str) -> Read<T> {
        Err(invalid(format_args!("{what}, at byte {}", self.at())))
    }

    fn byte(&mut self) -> Read<u8> {
        match self.bytes.split_first() {
            Some((&byte, rest)) => {
                self.bytes = rest;
                Ok(byte)
            }
            None => self.fault("it ends early"),
        }
    }

    fn take(&mut self, length: usize) -> Read<&'a [u8]> {
        match self.bytes.split_at_checked(length) {
            Some((taken, rest)) => {
                self.bytes = rest;
                Ok(taken)
            }
            None => self.fault("it ends early"),
        }
    }

    /// A number of at most 53 bits.
    fn number(&mut self) -> Read<u64> {
        let mut number = 0u64;
        for shift in (0..56).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return if number < 1 << 53 { Ok(number) } else { self.fault("a number of more than 53 bits") };
            }
        }
        self.fault("a number of more than 53 bits")
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, least: usize) -> Read<usize> {
        let count = self.number()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.bytes.len() / least => Ok(count),
            _ => self.fault("it ends early"),
        }
    }

    fn clock(&mut self) -> Read<u32> {
        match self.number()? {
            clock if clock < CLOCK_MAX => Ok(clock as u32),
            _ => self.fault("a clock beyond the limit"),
        }
    }

    fn length(&mut self) -> Read<u32> {
        match self.clock()? {
            0 => self.fault("a part of length 0"),
            length => Ok(length),
        }
    }

    fn id(&mut self) -> Read<Id> {
        Ok(Id { client: self.number()?, clock: self.clock()? })
    }

    fn text(&mut self) -> Read<&'a str> {
        let length = self.count(1)?;
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Ok(text),
            Err(_) => self.fault("a text that is not UTF-8"),
        }
    }

    fn name(&mut self) -> Read<&'a str> {
        match self.text()? {
            name if name.len() <= NAME_BYTES_MAX => Ok(name),
            _ => self.fault("a name longer than the limit"),
        }
    }

    /// A signed number: of use only to whoever wrote it.
    fn skip_integer(&mut self) -> Read<()> {
        for _ in 0..9 {
            if self.byte()? < 0x80 {
                return Ok(());
            }
        }
        self.fault("a number of more than 63 bits")
    }

    /// A value as JSON has them.
    fn skip_any(&mut self, depth: u32) -> Read<()> {
        if depth > ANY_DEPTH_MAX {
            return self.fault("values nested beyond the limit");
        }
        match self.byte()? {
            120 | 121 | 126 | 127 => {}
            125 => self.skip_integer()?,
            124 => drop(self.take(4)?),
            122 | 123 => drop(self.take(8)?),
            119 => drop(self.text()?),
            118 => {
                for _ in 0..self.count(2)? {
                    self.text()?;
                    self.skip_any(depth + 1)?;
                }
            }
            117 => {
                for _ in 0..self.count(1)? {
                    self.skip_any(depth + 1)?;
                }
            }
            116 => {
                let length = self.count(1)?;
                self.take(length)?;
            }
            _ => return self.fault("a value of no known kind"),
        }
        Ok(())
    }

    /// A type: which, and for an element its name.
    fn skip_type(&mut self) -> Read<()> {
        match self.byte()? {
            0 | 1 | 2 | 4 | 6 => Ok(()),
            3 => self.name().map(drop),
            // It has a name, which the library takes for what follows it.
            5 => self.fault("an XML hook, which this node does not keep"),
            7 => self.fault("a weak link, which this node does not keep"),
            _ => self.fault("a type of no known kind"),
        }
    }

    /// The content of an item: what it is, its length, and the bytes it adds to a neighbour it continues.
    fn content(&mut self, kind: u8) -> Read<(Kind, u32, usize)> {
        let begin = self.at();
        let (kind, length) = match kind {
            1 => (Kind::Erased, self.length()?),
            3 => {
                let length = self.count(1)?;
                self.take(length)?;
                (Kind::Plain, 1)
            }
            4 => {
                let text = self.text()?;
                if text.is_empty() {
                    return self.fault("a part of length 0");
                }
                self.ends_line |= text.contains('\n');
                self.has_pairs |= text.bytes().any(|byte| byte >= 0xf0);
                (Kind::Plain, thalweg_protocol::document::utf16_len(text))
            }
            5 => {
                // The library cannot tell it from text that was typed.
                if self.text()?.trim_start().starts_with('"') {
                    return self.fault("an embedded text; embed an object");
                }
                (Kind::Plain, 1)
            }
            6 => {
                self.has_formats = true;
                self.name()?;
                self.text()?;
                (Kind::Plain, 1)
            }
            7 => (Kind::Type, self.skip_type().map(|()| 1)?),
            8 => {
                let count = self.count(1)?;
                if count == 0 {
                    return self.fault("a part of length 0");
                }
                for _ in 0..count {
                    self.skip_any(0)?;
                }
                (Kind::Plain, count as u32)
            }
            2 => return self.fault("content of a Yjs older than 13, which this node does not keep"),
            9 => {
                return self
                    .fault("a document within the document, which this node does not keep: open it by its name");
            }
            _ => return self.fault("content of no known kind"),
        };
        Ok((kind, length, self.at() - begin))
    }
}

/// FNV-1a: names of roots and keys are only compared with each other.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)) | 1
}

impl Parsed {
    /// Reads an update of at most so many bytes; what is larger than clients may send is from the document's own log.
    pub(crate) fn read(update: &[u8], bytes_max: usize) -> Read<Self> {
        if update.len() > bytes_max {
            return Err(invalid(format_args!(
                "it has {} bytes, and an update may have {bytes_max}; send it in pieces",
                update.len()
            )));
        }
        let is_own = bytes_max == usize::MAX;
        let mut reader = Reader::new(update);
        let mut parsed = Self::default();
        let mut roots = BTreeMap::new();
        let sections = reader.count(3)?;
        if sections > SECTIONS_MAX && !is_own {
            return reader.fault("parts of more clients than the limit; send it in pieces");
        }
        for _ in 0..sections {
            let count = reader.count(2)?;
            let client = reader.number()?;
            let mut clock = reader.clock()?;
            if count == 0 {
                return reader.fault("a client without parts");
            }
            if !is_own && parsed.structs.len() + count > STRUCTS_MAX {
                return reader.fault("more parts than the limit; send it in pieces");
            }
            let begin = parsed.structs.len();
            for _ in 0..count {
                let one = parsed.read_struct(&mut reader, &mut roots, client, clock)?;
                clock = match clock.checked_add(one.length).filter(|&end| u64::from(end) < CLOCK_MAX) {
                    Some(end) => end,
                    None => return reader.fault("a clock beyond the limit"),
                };
                let follows_skip =
                    parsed.structs.len() > begin && parsed.structs.last().is_some_and(|last| last.kind == Kind::Skip);
                if follows_skip && one.kind == Kind::Skip {
                    return reader.fault("two gaps in a row");
                }
                parsed.structs.push(one);
            }
            if parsed.sections.insert(client, begin..parsed.structs.len()).is_some() {
                return reader.fault("a client twice");
            }
        }
        parsed.deletes_at = reader.at();
        parsed.read_deletes(&mut reader)?;
        if !reader.bytes.is_empty() {
            return reader.fault("something follows its end");
        }
        (parsed.ends_line, parsed.has_pairs) = (reader.ends_line, reader.has_pairs);
        parsed.has_formats = reader.has_formats;
        Ok(parsed)
    }

    fn read_struct(
        &mut self,
        reader: &mut Reader<'_>,
        roots: &mut BTreeMap<Box<str>, u16>,
        client: u64,
        clock: u32,
    ) -> Read<Struct> {
        let begin = reader.at();
        let info = reader.byte()?;
        let mut one = Struct {
            clock,
            length: 0,
            kind: Kind::Gone,
            left: None,
            right: None,
            parent: Parent::Neighbours,
            key: 0,
            is_text: info & 0x1f == 4,
        };
        if info == 0 || info == 10 {
            one.kind = if info == 0 { Kind::Gone } else { Kind::Skip };
            one.length = reader.length()?;
            self.grows += if info == 0 { reader.at() - begin } else { 0 };
            return Ok(one);
        }
        one.left = if info & HAS_LEFT != 0 { Some(reader.id()?) } else { None };
        one.right = if info & HAS_RIGHT != 0 { Some(reader.id()?) } else { None };
        if info & (HAS_LEFT | HAS_RIGHT) == 0 {
            one.parent = match reader.number()? {
                1 => Parent::Root(self.root(reader, roots)?),
                0 => Parent::Item(reader.id()?),
                _ => return reader.fault("a parent of no known kind"),
            };
            if info & HAS_KEY != 0 {
                one.key = hash(reader.name()?);
            }
        }
        let (kind, length, bytes) = reader.content(info & 0x1f)?;
        (one.kind, one.length) = (kind, length);
        // What continues its own client's part before it is kept with that as one.
        let continues =
            clock > 0 && one.left == Some(Id { client, clock: clock - 1 }) && matches!(info & 0x1f, 1 | 4 | 8);
        self.grows += if continues { bytes } else { reader.at() - begin };
        Ok(one)
    }

    fn root(&mut self, reader: &mut Reader<'_>, roots: &mut BTreeMap<Box<str>, u16>) -> Read<u16> {
        let name = reader.name()?;
        if let Some(&known) = roots.get(name) {
            return Ok(known);
        }
        let Ok(number) = u16::try_from(self.roots.len()) else {
            return reader.fault("more roots than the limit");
        };
        roots.insert(name.into(), number);
        self.roots.push(name.into());
        Ok(number)
    }

    fn read_deletes(&mut self, reader: &mut Reader<'_>) -> Read<()> {
        for _ in 0..reader.count(2)? {
            let client = reader.number()?;
            let count = reader.count(2)?;
            let mut ranges: Vec<Range<u32>> = Vec::with_capacity(count);
            for _ in 0..count {
                let start = reader.clock()?;
                let length = reader.length()?;
                if ranges.last().is_some_and(|last| last.end > start) {
                    return reader.fault("deletions that are out of order");
                }
                ranges.push(start..start + length);
                self.grows += 4;
            }
            if self.deletes.insert(client, ranges).is_some() {
                return reader.fault("deletions of a client twice");
            }
        }
        Ok(())
    }

    /// By how many bytes it makes the encoded state larger, at most and about.
    pub(crate) fn grows(&self) -> usize {
        self.grows
    }

    /// Whether it has anything but deletions.
    pub(crate) fn inserts(&self) -> bool {
        self.structs.iter().any(|one| one.kind != Kind::Skip)
    }

    /// How much it deletes, in code units or elements.
    pub(crate) fn deleted(&self) -> usize {
        self.deletes.values().flatten().map(|range| range.end.saturating_sub(range.start) as usize).sum()
    }

    pub(crate) fn has_deletes(&self) -> bool {
        !self.deletes.is_empty()
    }
}

/// Reads a Yjs state vector (version 1): up to where each client's edits are known.
pub(crate) fn read_state_vector(bytes: &[u8]) -> Read<BTreeMap<u64, u32>> {
    let mut reader = Reader::new(bytes);
    let mut clocks = BTreeMap::new();
    for _ in 0..reader.count(2)? {
        clocks.insert(reader.number()?, reader.clock()?);
    }
    if !reader.bytes.is_empty() {
        return reader.fault("something follows the end of its state vector");
    }
    Ok(clocks)
}
