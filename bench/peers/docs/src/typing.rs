//! A seeded model of somebody typing.

use yrs::block::ClientID;
use yrs::updates::decoder::Decode;
use yrs::updates::encoder::Encode;
use yrs::{Doc, GetString, OffsetKind, Options, ReadTxn, StateVector, Text, TextRef, Transact, Update};

/// The root that everybody edits.
pub const ROOT: &str = "content";
/// Characters typed in a row before the cursor goes elsewhere: the mean.
const BURST: u32 = 24;
/// Of a hundred keystrokes so many correct something: up to three characters before the cursor go, and one comes. A pure
/// deletion has no clock of its own by which a reader could tell that it got it.
const CORRECTIONS: u32 = 6;
/// Of a thousand keystrokes so many are pastes of 20 to 80 characters.
const PASTES: u32 = 4;

/// An editor's replica, its cursor and its habits.
pub struct Typist {
    doc: Doc,
    text: TextRef,
    rng: fastrand::Rng,
    cursor: u32,
    left: u32,
}

impl Typist {
    pub fn new(client: u64, seed: u64) -> Self {
        let options =
            Options { client_id: ClientID::new(client), offset_kind: OffsetKind::Utf16, ..Options::default() };
        let doc = Doc::with_options(options);
        let text = doc.get_or_insert_text(ROOT);
        Self { doc, text, rng: fastrand::Rng::with_seed(seed), cursor: 0, left: 0 }
    }

    /// Types a page of so many characters at once.
    pub fn page(&mut self, characters: usize) -> Vec<u8> {
        let mut page = String::with_capacity(characters);
        while page.len() < characters {
            page.push(letter(&mut self.rng));
        }
        let mut edit = self.doc.transact_mut();
        self.text.insert(&mut edit, 0, &page);
        edit.encode_update_v1()
    }

    /// One keystroke: the update it makes.
    pub fn key(&mut self) -> Vec<u8> {
        let mut edit = self.doc.transact_mut();
        let length = self.text.len(&edit);
        if self.left == 0 {
            self.cursor = self.rng.u32(0..=length);
            self.left = self.rng.u32(1..2 * BURST);
        }
        self.left -= 1;
        self.cursor = self.cursor.min(length);
        let mut typed = String::from(letter(&mut self.rng));
        if self.rng.u32(0..1_000) < PASTES {
            let rest = self.rng.usize(20..=80);
            typed.extend((1..rest).map(|_| letter(&mut self.rng)));
        } else if self.rng.u32(0..100) < CORRECTIONS {
            let gone = self.rng.u32(1..=3).min(self.cursor);
            self.cursor -= gone;
            self.text.remove_range(&mut edit, self.cursor, gone);
        }
        self.text.insert(&mut edit, self.cursor, &typed);
        self.cursor += typed.len() as u32;
        edit.encode_update_v1()
    }

    /// Takes what others did; false if it is no update.
    pub fn apply(&mut self, update: &[u8]) -> bool {
        let Ok(update) = Update::decode_v1(update) else { return false };
        self.doc.transact_mut().apply_update(update).is_ok()
    }

    pub fn state_vector(&self) -> Vec<u8> {
        self.doc.transact().state_vector().encode_v1()
    }

    /// What somebody with this state vector lacks.
    pub fn diff(&self, state_vector: &[u8]) -> Vec<u8> {
        let theirs = StateVector::decode_v1(state_vector).unwrap_or_default();
        self.doc.transact().encode_diff_v1(&theirs)
    }

    pub fn read(&self) -> String {
        self.text.get_string(&self.doc.transact())
    }

    pub fn length(&self) -> u32 {
        self.text.len(&self.doc.transact())
    }
}

/// Lower case and blanks, about as often as in a text.
fn letter(rng: &mut fastrand::Rng) -> char {
    match rng.u8(0..32) {
        at @ 0..26 => (b'a' + at) as char,
        26..31 => ' ',
        _ => '\n',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_types_the_same_and_others_read_it() {
        let (mut one, mut same) = (Typist::new(1 << 30, 5), Typist::new(1 << 30, 5));
        let mut reader = Typist::new(2, 0);
        assert!(reader.apply(&one.page(3_000)));
        same.page(3_000);
        for _ in 0..500 {
            let update = one.key();
            assert_eq!(update, same.key());
            assert!(update.len() < 200, "{} bytes", update.len());
            assert!(reader.apply(&update));
        }
        assert_eq!(reader.read(), one.read());
        assert!(reader.length() > 3_200);
        assert_eq!(reader.state_vector(), one.state_vector());
    }
}
