//! Places in a text that stay where they are while others edit around them.

use bytes::Bytes;
use thalweg_protocol::document::ROOT;
use thalweg_protocol::reject::Reject;
use yrs::branch::BranchPtr;
use yrs::updates::decoder::Decode;
use yrs::updates::encoder::Encode;
use yrs::{Assoc, BranchID, IndexScope, StickyIndex, Text, Transact};

use super::guard::guarded;
use super::{Document, invalid};

/// Longest encoding of a place: a client, a clock, and on which side.
const ANCHOR_BYTES_MAX: usize = 256;

/// Client ids have 53 bits, as numbers of JavaScript have.
const CLIENTS_END: u64 = 1 << 53;

/// A place between two characters of a document's text: a Yjs relative position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor(StickyIndex);

impl Anchor {
    /// Reads an encoded Yjs relative position (version 1).
    ///
    /// # Errors
    /// `update_invalid`, if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Reject> {
        if bytes.len() > ANCHOR_BYTES_MAX {
            return Err(invalid(format_args!("a place of {} bytes", bytes.len())));
        }
        let index = guarded(|| StickyIndex::decode_v1(bytes)).and_then(Result::ok);
        let index = index.filter(|index| match index.scope() {
            IndexScope::Relative(id) | IndexScope::Nested(id) => id.client.get() < CLIENTS_END,
            IndexScope::Root(_) => true,
        });
        index.map(Self).ok_or_else(|| invalid("a place that is no relative position"))
    }

    /// The encoded Yjs relative position (version 1).
    pub fn encode(&self) -> Bytes {
        Bytes::from(self.0.encode_v1())
    }

    /// The relative position as the JSON of Yjs: what awareness holds as the ends of a selection.
    pub fn json(&self) -> String {
        use IndexScope::{Nested, Relative, Root};
        let assoc = self.0.assoc as i8;
        let id = |id: &yrs::ID| format!("{{\"client\":{},\"clock\":{}}}", id.client.get(), id.clock);
        match self.0.scope() {
            Relative(at) => {
                format!("{{\"type\":null,\"tname\":\"{ROOT}\",\"item\":{},\"assoc\":{assoc}}}", id(at))
            }
            Nested(at) => format!("{{\"type\":{},\"tname\":null,\"item\":null,\"assoc\":{assoc}}}", id(at)),
            Root(name) => {
                let mut quoted = String::new();
                super::json::quote(&mut quoted, name);
                format!("{{\"type\":null,\"tname\":{quoted},\"item\":null,\"assoc\":{assoc}}}")
            }
        }
    }
}

impl Document {
    /// The place at an offset in UTF-16 code units of the text; `after`: it goes with the character that follows it, so that
    /// what is inserted there comes before it; else with the one before it. `None` beyond the end.
    pub fn anchor(&self, offset: u32, after: bool) -> Option<Anchor> {
        let txn = self.doc.transact();
        let branch = BranchPtr::from(<_ as AsRef<yrs::branch::Branch>>::as_ref(&self.text));
        let length = self.text.len(&txn);
        if offset > length {
            return None;
        }
        let assoc = if after { Assoc::After } else { Assoc::Before };
        if after && offset == length {
            return Some(Anchor(StickyIndex::from_type(&txn, &self.text, assoc)));
        }
        guarded(|| StickyIndex::at(&txn, branch, offset, assoc)).flatten().map(Anchor)
    }

    /// Where a place is now, in UTF-16 code units; `None` if it is not in the text of this document.
    pub fn offset(&self, anchor: &Anchor) -> Option<u32> {
        let found = guarded(|| anchor.0.get_offset(&self.doc.transact())).flatten()?;
        match found.branch.id() {
            BranchID::Root(name) if &*name == ROOT => Some(found.index),
            _ => None,
        }
    }
}
