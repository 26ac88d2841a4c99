//! Positional operations: what thin clients edit a text with, and are told of it.
//!
//! Lengths and offsets count UTF-16 code units, as editors in browsers do. An operation goes through the text from its
//! beginning; what is left of it when the operation ends is kept.

use bytes::{BufMut, Bytes, BytesMut};

use super::number::{put_number, take_number};
use crate::limits::{BODY_BYTES_MAX, OPERATIONS_MAX};
use crate::reject::{Reject, RejectCode};

/// One part of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Keeps so much of the text.
    Retain(u32),
    /// Puts a text here.
    Insert(String),
    /// Takes so much of the text out.
    Delete(u32),
}

impl Operation {
    /// How much of the text before it goes through.
    fn consumes(&self) -> u32 {
        match self {
            Self::Retain(length) | Self::Delete(length) => *length,
            Self::Insert(_) => 0,
        }
    }

    /// How much of the text after it comes of it.
    fn produces(&self) -> u32 {
        match self {
            Self::Retain(length) => *length,
            Self::Insert(text) => utf16_len(text),
            Self::Delete(_) => 0,
        }
    }
}

/// Whose insertion comes first, if two insert at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that is transformed.
    First,
    /// The one it is transformed over: the one that was accepted earlier.
    Second,
}

/// An edit of a text, in its canonical form: no part is empty, no two of a kind follow each other, and nothing is kept at the
/// end. As somebody makes one, an insertion stands before a deletion at the same place; in one that was merged or transformed
/// it may stand behind it, or between two, which tells where it is beside what others insert within what is taken out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operations(Vec<Operation>);

/// The length of a text in UTF-16 code units.
pub fn utf16_len(text: &str) -> u32 {
    text.chars().map(|c| c.len_utf16() as u32).sum()
}

fn invalid(text: impl Into<String>) -> Reject {
    Reject::new(RejectCode::OperationsInvalid, text.into())
}

impl Operations {
    /// An edit that changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Operation] {
        &self.0
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps so much.
    #[must_use]
    pub fn retain(mut self, length: u32) -> Self {
        self.push(Operation::Retain(length));
        self
    }

    /// Inserts a text.
    #[must_use]
    pub fn insert(mut self, text: impl Into<String>) -> Self {
        self.push(Operation::Insert(text.into()));
        self
    }

    /// Takes so much out.
    #[must_use]
    pub fn delete(mut self, length: u32) -> Self {
        self.push(Operation::Delete(length));
        self
    }

    /// Adds a part at the end, in canonical form but for what is kept there.
    fn push(&mut self, part: Operation) {
        match part {
            Operation::Retain(0) | Operation::Delete(0) => {}
            Operation::Insert(text) if text.is_empty() => {}
            Operation::Retain(length) => match self.0.last_mut() {
                Some(Operation::Retain(last)) => *last = last.saturating_add(length),
                _ => self.0.push(Operation::Retain(length)),
            },
            Operation::Delete(length) => match self.0.last_mut() {
                Some(Operation::Delete(last)) => *last = last.saturating_add(length),
                _ => self.0.push(Operation::Delete(length)),
            },
            Operation::Insert(text) => {
                let behind = usize::from(matches!(self.0.last(), Some(Operation::Delete(_))));
                let at = self.0.len() - behind;
                match at.checked_sub(1).map(|before| &mut self.0[before]) {
                    Some(Operation::Insert(last)) => last.push_str(&text),
                    _ => self.0.insert(at, Operation::Insert(text)),
                }
            }
        }
    }

    /// Adds a part at the end as it stands. What is inserted behind what is taken out stays behind it: where somebody else
    /// wrote within what is taken out, that tells which of the two comes first.
    fn push_in_order(&mut self, part: Operation) {
        match (self.0.last_mut(), part) {
            (_, Operation::Insert(text)) if text.is_empty() => {}
            (Some(Operation::Insert(last)), Operation::Insert(text)) => last.push_str(&text),
            (_, part @ Operation::Insert(_)) => self.0.push(part),
            (_, part) => self.push(part),
        }
    }

    /// Without what is kept at the end.
    fn trimmed(mut self) -> Self {
        if matches!(self.0.last(), Some(Operation::Retain(_))) {
            self.0.pop();
        }
        self
    }

    /// The edit with these parts.
    pub fn of(parts: impl IntoIterator<Item = Operation>) -> Self {
        let mut operations = Self::new();
        parts.into_iter().for_each(|part| operations.push(part));
        operations.trimmed()
    }

    /// What makes one text of another: what lies between their common beginning and their common end is replaced.
    pub fn between(before: &str, after: &str) -> Self {
        let same = |(a, b): &(char, char)| a == b;
        let head: usize = before.chars().zip(after.chars()).take_while(same).map(|(c, _)| c.len_utf8()).sum();
        let (left, right) = (&before[head..], &after[head..]);
        let tail: usize = left.chars().rev().zip(right.chars().rev()).take_while(same).map(|(c, _)| c.len_utf8()).sum();
        Self::of([
            Operation::Retain(utf16_len(&before[..head])),
            Operation::Insert(right[..right.len() - tail].to_owned()),
            Operation::Delete(utf16_len(&left[..left.len() - tail])),
        ])
    }

    /// How long a text must be at least, to be edited so.
    pub fn reach(&self) -> u64 {
        self.0.iter().map(|part| u64::from(part.consumes())).sum()
    }

    /// The bytes for the wire: for each part its length and kind in a variable-length number, lowest bits first, and the
    /// text of insertions. The kind is in the lowest two bits: 0 keeps, 1 inserts (the length is in bytes), 2 deletes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        for part in &self.0 {
            match part {
                Operation::Retain(length) => put_number(&mut bytes, u64::from(*length) << 2),
                Operation::Insert(text) => {
                    put_number(&mut bytes, (text.len() as u64) << 2 | 1);
                    bytes.put_slice(text.as_bytes());
                }
                Operation::Delete(length) => put_number(&mut bytes, u64::from(*length) << 2 | 2),
            }
        }
        bytes.freeze()
    }

    /// Reads the bytes of a peer.
    ///
    /// # Errors
    /// `operations_invalid`, if they end early, are no parts, have too many of them, or more text than an edit may have.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Reject> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(invalid(format!("an edit of {} bytes; at most {BODY_BYTES_MAX} are allowed", bytes.len())));
        }
        let mut operations = Self::new();
        let mut reach = 0u64;
        for at in 0.. {
            if bytes.is_empty() {
                break;
            }
            if at == OPERATIONS_MAX {
                return Err(invalid(format!("an edit has more than {OPERATIONS_MAX} parts; send several")));
            }
            let number = take_number(&mut bytes).ok_or_else(|| invalid(format!("part {at} ends early")))?;
            let (length, kind) = (number >> 2, number & 3);
            reach += length;
            let Ok(short) = u32::try_from(reach.max(length)).map(|_| length as u32) else {
                return Err(invalid(format!("part {at} reaches {reach} code units far")));
            };
            operations.push(match kind {
                0 => Operation::Retain(short),
                2 => Operation::Delete(short),
                1 => {
                    let Some((text, rest)) = bytes.split_at_checked(length as usize) else {
                        return Err(invalid(format!("part {at} inserts {length} bytes and has {}", bytes.len())));
                    };
                    bytes = rest;
                    let text = std::str::from_utf8(text);
                    Operation::Insert(text.map_err(|_| invalid(format!("part {at} is not UTF-8")))?.to_owned())
                }
                _ => return Err(invalid(format!("part {at} is of kind 3; 0 keeps, 1 inserts, 2 deletes"))),
            });
        }
        Ok(operations.trimmed())
    }

    /// The text that comes of editing `text` so.
    ///
    /// # Errors
    /// `operations_invalid`, if the text is too short, or a part ends within a character.
    pub fn apply(&self, text: &str) -> Result<String, Reject> {
        let mut rest = text;
        let mut edited = String::with_capacity(text.len());
        for part in &self.0 {
            match part {
                Operation::Insert(text) => edited.push_str(text),
                Operation::Retain(length) => {
                    let (kept, after) = split_utf16(rest, *length)?;
                    edited.push_str(kept);
                    rest = after;
                }
                Operation::Delete(length) => rest = split_utf16(rest, *length)?.1,
            }
        }
        edited.push_str(rest);
        Ok(edited)
    }

    /// This edit, as it is to be done after `other`, when both were made on the same text.
    #[must_use]
    pub fn transform(&self, other: &Self, first: Side) -> Self {
        let mut out = Self::new();
        let (mut mine, mut theirs) = (Parts::new(self), Parts::new(other));
        loop {
            let at_insert = matches!(mine.peek(), Some(Piece::Insert(..)));
            if matches!(theirs.peek(), Some(Piece::Insert(..))) && !(at_insert && first == Side::First) {
                let length = theirs.next(u32::MAX).map_or(0, Piece::produces);
                out.push_in_order(Operation::Retain(length));
                continue;
            }
            let Some(length) = mine.peek().map(Piece::consumes) else { break };
            if length == 0 {
                if let Some(part) = mine.next(u32::MAX) {
                    out.push_in_order(part.to_operation());
                }
                continue;
            }
            let common = theirs.peek().map_or(length, |part| part.consumes().min(length));
            let part = mine.next(common);
            let deleted = matches!(theirs.next(common), Some(Piece::Delete(_)));
            if let Some(part) = part.filter(|_| !deleted) {
                out.push_in_order(part.to_operation());
            }
        }
        out.trimmed()
    }

    /// The edit that does what this one and then `next` do.
    #[must_use]
    pub fn compose(&self, next: &Self) -> Self {
        let mut out = Self::new();
        let (mut before, mut after) = (Parts::new(self), Parts::new(next));
        loop {
            // What somebody else wrote within what is taken out comes behind what is inserted there, as it would one by one.
            if matches!(after.peek(), Some(Piece::Insert(..))) {
                after.next(u32::MAX).into_iter().for_each(|part| out.push_in_order(part.to_operation()));
                continue;
            }
            if matches!(before.peek(), Some(Piece::Delete(_))) {
                before.next(u32::MAX).into_iter().for_each(|part| out.push_in_order(part.to_operation()));
                continue;
            }
            let common = match (before.peek(), after.peek()) {
                (None, None) => break,
                (Some(part), None) => part.produces(),
                (None, Some(part)) => part.consumes(),
                (Some(made), Some(met)) => made.produces().min(met.consumes()),
            };
            let made = before.next(common).unwrap_or(Piece::Retain(common));
            match (made, after.next(common).unwrap_or(Piece::Retain(common))) {
                (made, Piece::Retain(_)) => out.push_in_order(made.to_operation()),
                (Piece::Retain(length), Piece::Delete(_)) => out.push_in_order(Operation::Delete(length)),
                // What was inserted is taken out again.
                _ => {}
            }
        }
        out.trimmed()
    }

    /// Where an offset into the text before the edit lies in the text after it; what is inserted at that very place comes
    /// behind it, or before it if `follows`.
    pub fn offset_after(&self, offset: u32, follows: bool) -> u32 {
        let (mut before, mut after) = (0u32, 0u32);
        for part in &self.0 {
            let is_insert = matches!(part, Operation::Insert(_));
            if before > offset || (before == offset && !(is_insert && follows)) {
                break;
            }
            match part {
                Operation::Retain(length) if before.saturating_add(*length) > offset => {
                    return after.saturating_add(offset - before);
                }
                Operation::Delete(length) if before.saturating_add(*length) > offset => return after,
                _ => {}
            }
            before = before.saturating_add(part.consumes());
            after = after.saturating_add(part.produces());
        }
        after.saturating_add(offset - before.min(offset))
    }
}

/// A part of an edit, or a piece of one. Texts are borrowed, and counted once: whoever takes a long one in many pieces goes
/// through it once.
#[derive(Debug, Clone, Copy)]
enum Piece<'a> {
    Retain(u32),
    /// The text, and its length in code units.
    Insert(&'a str, u32),
    Delete(u32),
}

impl<'a> Piece<'a> {
    fn of(part: &'a Operation) -> Self {
        match part {
            Operation::Retain(length) => Self::Retain(*length),
            Operation::Insert(text) => Self::Insert(text, utf16_len(text)),
            Operation::Delete(length) => Self::Delete(*length),
        }
    }

    /// See [`Operation::consumes`].
    fn consumes(self) -> u32 {
        match self {
            Self::Retain(length) | Self::Delete(length) => length,
            Self::Insert(..) => 0,
        }
    }

    /// See [`Operation::produces`].
    fn produces(self) -> u32 {
        match self {
            Self::Retain(length) | Self::Insert(_, length) => length,
            Self::Delete(_) => 0,
        }
    }

    /// As much of it as `most` code units, and the rest.
    fn split(self, most: u32) -> (Self, Option<Self>) {
        match self {
            Self::Retain(length) if length > most => (Self::Retain(most), Some(Self::Retain(length - most))),
            Self::Delete(length) if length > most => (Self::Delete(most), Some(Self::Delete(length - most))),
            Self::Insert(text, length) if length > most => {
                // At least one character, so that whoever takes the parts of an edit that does not fit comes to an end.
                let first = text.chars().next().map_or(0, char::len_utf8);
                let (before, after) = text.split_at(floor_of(text, most).max(first));
                let taken = utf16_len(before);
                let rest = Some(Self::Insert(after, length - taken)).filter(|_| !after.is_empty());
                (Self::Insert(before, taken), rest)
            }
            whole => (whole, None),
        }
    }

    fn to_operation(self) -> Operation {
        match self {
            Self::Retain(length) => Operation::Retain(length),
            Self::Insert(text, _) => Operation::Insert(text.to_owned()),
            Self::Delete(length) => Operation::Delete(length),
        }
    }
}

/// The parts of an edit, taken one by one and in pieces.
struct Parts<'a> {
    rest: std::slice::Iter<'a, Operation>,
    next: Option<Piece<'a>>,
}

impl<'a> Parts<'a> {
    fn new(operations: &'a Operations) -> Self {
        let mut rest = operations.0.iter();
        let next = rest.next().map(Piece::of);
        Self { rest, next }
    }

    fn peek(&self) -> Option<Piece<'a>> {
        self.next
    }

    /// The next part, or, if it is longer than `most` code units, as much of it.
    fn next(&mut self, most: u32) -> Option<Piece<'a>> {
        let (piece, left) = self.next.take()?.split(most);
        self.next = left.or_else(|| self.rest.next().map(Piece::of));
        Some(piece)
    }
}

/// The byte at which the character begins that stands `units` code units into a text, or in whose middle that is.
fn floor_of(text: &str, units: u32) -> usize {
    let mut left = units;
    for (at, c) in text.char_indices() {
        let length = c.len_utf16() as u32;
        if length > left {
            return at;
        }
        left -= length;
    }
    text.len()
}

/// Splits a text after so many code units.
fn split_utf16(text: &str, units: u32) -> Result<(&str, &str), Reject> {
    let (before, after) = text.split_at(floor_of(text, units));
    match utf16_len(before) {
        length if length == units => Ok((before, after)),
        length if after.is_empty() => {
            Err(invalid(format!("a part goes {} code units beyond the end of the text", units - length)))
        }
        _ => Err(invalid("a part ends in the middle of a character; offsets count UTF-16 code units")),
    }
}
