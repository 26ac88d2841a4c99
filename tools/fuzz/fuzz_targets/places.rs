//! Places in a document, and what somebody says they have of it: refused, or of use without harm.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use thalweg_domain::document::{Anchor, Document, NODE_CLIENTS};
use thalweg_fuzz::quickly;
use thalweg_protocol::document::{Operation, Operations};

fn document() -> Document {
    let mut document = Document::new(NODE_CLIENTS);
    for text in ["turns", " \u{1f30a} ", "the tide"] {
        document.edit(&Operations::new().insert(text)).expect("there is room");
    }
    document.edit(&Operations::of([Operation::Retain(4), Operation::Delete(5)])).expect("it is there");
    document
}

thread_local! {
    static DOCUMENT: RefCell<Document> = RefCell::new(document());
}

fn looked_for(document: &Document, input: &[u8]) {
    let Some((&kind, bytes)) = input.split_first() else { return };
    if kind & 1 == 0 {
        let Ok(lacks) = document.diff(bytes) else { return };
        if let Ok(other) = Document::open(NODE_CLIENTS + 1, &lacks) {
            let rest = document.diff(&other.state_vector()).expect("a document's own state vector");
            assert!(Document::open(NODE_CLIENTS + 1, &rest).is_ok() || !other.text().is_empty());
        }
        return;
    }
    let Ok(anchor) = Anchor::decode(bytes) else { return };
    assert_eq!(Anchor::decode(&anchor.encode()).as_ref(), Ok(&anchor));
    let _ = anchor.json();
    if let Some(offset) = document.offset(&anchor) {
        let length = document.text().encode_utf16().count();
        assert!(offset as usize <= length, "{offset} is in a text of {length} code units");
    }
}

fuzz_target!(|input: &[u8]| {
    DOCUMENT.with_borrow(|document| quickly(input.len(), || looked_for(document, input)));
});
