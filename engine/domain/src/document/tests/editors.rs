//! Editors that do anything that Yjs can, at random.

use thalweg_protocol::document::ROOT;
use yrs::types::Attrs;
use yrs::{
    Any, Array, ArrayPrelim, ClientID, Doc, Map, MapPrelim, OffsetKind, Options, Out, Text, TransactionMut, WriteTxn,
};
use yrs::{Xml, XmlElementPrelim, XmlFragment, XmlOut, XmlTextPrelim};

/// A client's copy of a document, empty.
pub(super) fn editor(client: u64) -> Doc {
    // Without it, an editor tidies up formats that others left behind, and tells nobody until it edits itself.
    let (offset_kind, cleanup_formatting) = (OffsetKind::Utf16, false);
    let options = Options { offset_kind, cleanup_formatting, ..Options::with_client_id(ClientID::new(client)) };
    Doc::with_options(options)
}

/// Seeded chance (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn below(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        if sides == 0 { 0 } else { drawn % sides }
    }

    pub(super) fn words(&mut self) -> &'static str {
        const WORDS: [&str; 8] =
            ["a", "to", "stream ", "é", "漢字", "😀", "\n", "a longer piece of text, with a comma"];
        WORDS[self.below(8) as usize]
    }
}

/// Where in a text one may cut: not within a character.
pub(super) fn cut(text: &str, dice: &mut Dice) -> u32 {
    let count = text.chars().count() as u32;
    let chars = dice.below(count + 1) as usize;
    text.chars().take(chars).map(|c| c.len_utf16() as u32).sum()
}

fn content(txn: &mut TransactionMut<'_>) -> (yrs::TextRef, String) {
    let text = txn.get_or_insert_text(ROOT);
    let mut whole = String::new();
    for chunk in text.diff(txn, yrs::types::text::YChange::identity) {
        match chunk.insert {
            Out::Any(Any::String(piece)) => whole.push_str(&piece),
            _ => whole.push(super::EMBEDDED),
        }
    }
    (text, whole)
}

/// Types or deletes in the text.
pub(super) fn change_text(txn: &mut TransactionMut<'_>, dice: &mut Dice) {
    let (text, whole) = content(txn);
    let at = cut(&whole, dice);
    if dice.below(3) > 0 || whole.is_empty() {
        text.insert(txn, at, dice.words());
        return;
    }
    let to = cut(&whole, dice);
    if at != to {
        text.remove_range(txn, at.min(to), at.abs_diff(to));
    }
}

/// Does anything to anything.
pub(super) fn change_anything(txn: &mut TransactionMut<'_>, dice: &mut Dice) {
    match dice.below(10) {
        0..4 => change_text(txn, dice),
        4 => {
            let (text, whole) = content(txn);
            let (one, other) = (cut(&whole, dice), cut(&whole, dice));
            let value = if dice.below(2) == 0 { Any::Bool(true) } else { Any::Null };
            let key = ["bold", "italic"][dice.below(2) as usize];
            if one != other {
                text.format(txn, one.min(other), one.abs_diff(other), Attrs::from([(key.into(), value)]));
            }
        }
        5 => {
            let (text, whole) = content(txn);
            let at = cut(&whole, dice);
            let image = Any::from_json("{\"image\":\"tide.png\"}").expect("is JSON");
            text.insert_embed(txn, at, image);
        }
        6 => {
            let list = txn.get_or_insert_array("list");
            let length = list.len(txn);
            match dice.below(4) {
                0 if length > 0 => list.remove(txn, dice.below(length)),
                1 => drop(list.insert(txn, dice.below(length + 1), ArrayPrelim::from([Any::from(1), Any::Null]))),
                2 => drop(list.insert(txn, dice.below(length + 1), MapPrelim::from([("text", dice.words())]))),
                _ => drop(list.insert(txn, dice.below(length + 1), dice.below(100))),
            }
        }
        7 => {
            let map = txn.get_or_insert_map("map");
            let key = ["a", "b", "c"][dice.below(3) as usize];
            match dice.below(3) {
                0 => drop(map.remove(txn, key)),
                1 => drop(map.insert(txn, key, yrs::TextPrelim::new("nested"))),
                _ => drop(map.insert(txn, key, dice.words())),
            }
        }
        _ => change_page(txn, dice),
    }
}

fn change_page(txn: &mut TransactionMut<'_>, dice: &mut Dice) {
    let page = txn.get_or_insert_xml_fragment("page");
    let length = page.len(txn);
    let child = if length > 0 { page.get(txn, dice.below(length)) } else { None };
    match (dice.below(5), child) {
        (0, Some(_)) => page.remove_range(txn, dice.below(length), 1),
        (1, Some(XmlOut::Element(element))) => {
            let text = element.insert(txn, 0, XmlTextPrelim::new(""));
            text.insert(txn, 0, dice.words());
        }
        (2, Some(XmlOut::Element(element))) => drop(element.insert_attribute(txn, "class", dice.words())),
        (3, Some(XmlOut::Element(element))) => {
            if let Some(XmlOut::Text(text)) = element.get(txn, 0) {
                text.push(txn, dice.words());
            }
        }
        _ => drop(page.insert(txn, dice.below(length + 1), XmlElementPrelim::empty("p"))),
    }
}
