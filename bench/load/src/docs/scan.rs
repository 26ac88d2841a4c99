//! Whose edits an update (version 1) holds, without applying it: what a reader must know to tell how late it is.
//!
//! `bench/peers/docs` is made of the same file.

use yrs::Update;
use yrs::updates::decoder::Decode;

const HAS_ORIGIN: u8 = 0x80;
const HAS_RIGHT_ORIGIN: u8 = 0x40;
const HAS_PARENT_SUB: u8 = 0x20;
const CONTENT: u8 = 0x1f;
const GC: u8 = 0;
const DELETED: u8 = 1;
const STRING: u8 = 4;
const SKIP: u8 = 10;

/// Calls `each(client, clock, end)` for every run of an update's insertions; false if the bytes are no update.
///
/// Text, deletions and what was collected are read here, at some ten nanoseconds each; an update with anything else in it
/// is left to yrs.
pub(crate) fn scan(update: &[u8], mut each: impl FnMut(u64, u32, u32)) -> bool {
    match plain(update, &mut each) {
        Some(()) => true,
        None => decoded(update, &mut each),
    }
}

/// `None` if this is not for us to read; what was reported by then is reported again.
fn plain(update: &[u8], each: &mut impl FnMut(u64, u32, u32)) -> Option<()> {
    let mut rest = update;
    for _ in 0..number(&mut rest)? {
        let structs = number(&mut rest)?;
        let client = number(&mut rest)?;
        let mut clock = u32::try_from(number(&mut rest)?).ok()?;
        let mut from = clock;
        for _ in 0..structs {
            let (&info, after) = rest.split_first()?;
            rest = after;
            let length = length(info, &mut rest)?;
            let end = clock.checked_add(length)?;
            if info == SKIP {
                report(each, client, from, clock);
                from = end;
            }
            clock = end;
        }
        report(each, client, from, clock);
    }
    Some(())
}

fn report(each: &mut impl FnMut(u64, u32, u32), client: u64, from: u32, to: u32) {
    if from < to {
        each(client, from, to);
    }
}

fn length(info: u8, rest: &mut &[u8]) -> Option<u32> {
    if info == GC || info == SKIP {
        return u32::try_from(number(rest)?).ok();
    }
    if info & HAS_ORIGIN != 0 {
        skip_id(rest)?;
    }
    if info & HAS_RIGHT_ORIGIN != 0 {
        skip_id(rest)?;
    }
    if info & (HAS_ORIGIN | HAS_RIGHT_ORIGIN) == 0 {
        match number(rest)? {
            1 => drop(bytes(rest)?),
            _ => skip_id(rest)?,
        }
        if info & HAS_PARENT_SUB != 0 {
            bytes(rest)?;
        }
    }
    match info & CONTENT {
        DELETED => u32::try_from(number(rest)?).ok(),
        STRING => {
            let text = bytes(rest)?;
            if text.is_ascii() {
                return u32::try_from(text.len()).ok();
            }
            Some(std::str::from_utf8(text).ok()?.encode_utf16().count() as u32)
        }
        _ => None,
    }
}

fn skip_id(rest: &mut &[u8]) -> Option<()> {
    number(rest)?;
    number(rest).map(drop)
}

fn decoded(update: &[u8], each: &mut impl FnMut(u64, u32, u32)) -> bool {
    let Ok(update) = Update::decode_v1(update) else { return false };
    for (client, ranges) in update.insertions(true).iter() {
        for range in ranges.iter() {
            each(client.get(), range.start, range.end);
        }
    }
    true
}

/// A number in seven bits a byte.
pub(crate) fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Bytes behind their length.
pub(crate) fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use yrs::{Doc, Map, ReadTxn, StateVector, Text, Transact};

    use super::*;

    fn runs(update: &[u8]) -> Vec<(u64, u32, u32)> {
        let mut runs = Vec::new();
        assert!(scan(update, |client, from, to| runs.push((client, from, to))));
        runs
    }

    #[test]
    fn insertions_are_told_by_client_and_clock() {
        let doc = Doc::with_client_id(7);
        let text = doc.get_or_insert_text("content");
        let mut first = doc.transact_mut();
        text.insert(&mut first, 0, "hello");
        assert_eq!(runs(&first.encode_update_v1()), [(7, 0, 5)]);
        drop(first);
        let mut second = doc.transact_mut();
        text.remove_range(&mut second, 1, 2);
        text.insert(&mut second, 1, "é🦀");
        assert_eq!(runs(&second.encode_update_v1()), [(7, 5, 8)]);
        drop(second);
        let all = doc.transact().encode_state_as_update_v1(&StateVector::default());
        assert_eq!(runs(&all), [(7, 0, 8)]);
    }

    #[test]
    fn what_is_no_text_is_left_to_yrs() {
        let doc = Doc::with_client_id(9);
        let map = doc.get_or_insert_map("map");
        let mut edit = doc.transact_mut();
        map.insert(&mut edit, "key", 1.5);
        assert_eq!(runs(&edit.encode_update_v1()).last(), Some(&(9, 0, 1)));
        assert!(!scan(&[1, 1, 9], |_, _, _| ()));
    }
}
