//! A seeded model of somebody typing, or a recorded one.
//!
//! `bench/peers/docs` is made of the same file.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use yrs::block::ClientID;
use yrs::updates::decoder::Decode;
use yrs::{Doc, GetString, OffsetKind, Options, Text, TextRef, Transact, Update};

/// The root that everybody edits.
pub(crate) const ROOT: &str = "content";
/// Characters typed in a row before the cursor goes elsewhere: the mean.
const BURST: u32 = 24;
/// Of a hundred keystrokes so many correct something: up to three characters before the cursor go, and one comes. A pure
/// deletion has no clock of its own by which a reader could tell that it got it.
const CORRECTIONS: u32 = 6;
/// Of a thousand keystrokes so many are pastes of 20 to 80 characters.
const PASTES: u32 = 4;

/// One edit of a recorded session: where, how many code units go, and what comes.
pub(crate) type Recorded = (u32, u32, String);

/// What a keystroke does: so much goes before the cursor, and this comes.
pub(crate) struct Key {
    pub(crate) at: u32,
    pub(crate) gone: u32,
    pub(crate) typed: String,
}

/// Where somebody's cursor is, and what they do next.
pub(crate) struct Hand {
    rng: StdRng,
    pub(crate) cursor: u32,
    left: u32,
    recorded: Option<Arc<Vec<Recorded>>>,
    played: usize,
}

impl Hand {
    /// A hand that plays what was recorded, or types as the seed wants it.
    pub(crate) fn new(seed: u64, recorded: Option<Arc<Vec<Recorded>>>) -> Self {
        let recorded = recorded.filter(|edits| !edits.is_empty());
        Self { rng: StdRng::seed_from_u64(seed), cursor: 0, left: 0, recorded, played: 0 }
    }

    /// A page of so many characters.
    pub(crate) fn page(&mut self, characters: usize) -> String {
        (0..characters).map(|_| letter(&mut self.rng)).collect()
    }

    /// The next keystroke, in a text of this length.
    pub(crate) fn key(&mut self, length: u32) -> Key {
        if let Some(edits) = &self.recorded {
            let (at, gone, typed) = &edits[self.played % edits.len()];
            self.played += 1;
            let at = (*at).min(length);
            // What it does with a blank leaves a mark that readers can tell.
            let typed = if typed.is_empty() { " ".to_owned() } else { typed.clone() };
            self.cursor = at + typed.encode_utf16().count() as u32;
            return Key { at, gone: (*gone).min(length - at), typed };
        }
        if self.left == 0 {
            self.cursor = self.rng.random_range(0..=length);
            self.left = self.rng.random_range(1..2 * BURST);
        }
        self.left -= 1;
        let (mut at, mut gone) = (self.cursor.min(length), 0);
        let mut typed = String::from(letter(&mut self.rng));
        if self.rng.random_range(0..1_000) < PASTES {
            let rest = self.rng.random_range(20..80);
            typed.extend((0..rest).map(|_| letter(&mut self.rng)));
        } else if self.rng.random_range(0..100) < CORRECTIONS {
            gone = self.rng.random_range(1..=3).min(at);
            at -= gone;
        }
        self.cursor = at + typed.len() as u32;
        Key { at, gone, typed }
    }
}

/// An editor with a replica.
pub(crate) struct Typist {
    pub(crate) doc: Doc,
    text: TextRef,
    hand: Hand,
}

impl Typist {
    /// An editor of this Yjs client id, with an empty document.
    pub(crate) fn new(client: u64, hand: Hand) -> Self {
        let client_id = ClientID::new(client);
        let doc = Doc::with_options(Options { client_id, offset_kind: OffsetKind::Utf16, ..Options::default() });
        let text = doc.get_or_insert_text(ROOT);
        Self { doc, text, hand }
    }

    /// Types a page at once: the update that makes it.
    pub(crate) fn page(&mut self, characters: usize) -> Vec<u8> {
        let page = self.hand.page(characters);
        let mut edit = self.doc.transact_mut();
        self.text.insert(&mut edit, 0, &page);
        edit.encode_update_v1()
    }

    /// One keystroke: the update it makes.
    pub(crate) fn key(&mut self) -> Vec<u8> {
        let mut edit = self.doc.transact_mut();
        let Key { at, gone, typed } = self.hand.key(self.text.len(&edit));
        if gone > 0 {
            self.text.remove_range(&mut edit, at, gone);
        }
        self.text.insert(&mut edit, at, &typed);
        edit.encode_update_v1()
    }

    /// Takes what others did; false if it is no update.
    pub(crate) fn apply(&mut self, update: &[u8]) -> bool {
        let Ok(update) = Update::decode_v1(update) else { return false };
        self.doc.transact_mut().apply_update(update).is_ok()
    }

    /// The text as this editor sees it.
    pub(crate) fn read(&self) -> String {
        self.text.get_string(&self.doc.transact())
    }
}

/// Lower case and blanks, about as often as in a text.
fn letter(rng: &mut StdRng) -> char {
    match rng.random_range(0..32_u8) {
        at @ 0..26 => (b'a' + at) as char,
        26..31 => ' ',
        _ => '\n',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typist(client: u64, seed: u64) -> Typist {
        Typist::new(client, Hand::new(seed, None))
    }

    #[test]
    fn a_seed_types_the_same_and_others_read_it() {
        let (mut one, mut same, mut reader) = (typist(1 << 30, 5), typist(1 << 30, 5), typist(2, 0));
        assert!(reader.apply(&one.page(3_000)));
        same.page(3_000);
        for _ in 0..500 {
            let update = one.key();
            assert_eq!(update, same.key());
            assert!(update.len() < 200, "{} bytes", update.len());
            assert!(reader.apply(&update));
        }
        assert_eq!(reader.read(), one.read());
        assert!(reader.read().len() > 3_200);
    }

    #[test]
    fn what_was_recorded_is_played_as_far_as_the_text_goes() {
        let recorded = vec![(0, 0, "hello".to_owned()), (9, 2, "!".to_owned()), (1, 2, String::new())];
        let mut typist = Typist::new(3, Hand::new(0, Some(Arc::new(recorded))));
        (0..3).for_each(|_| drop(typist.key()));
        assert_eq!(typist.read(), "h lo!");
    }
}
