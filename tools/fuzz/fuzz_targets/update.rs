//! Bytes that a hostile client says are Yjs updates: each is refused, or applied without harm.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_domain::document::{Document, NODE_CLIENTS};
use thalweg_fuzz::updates::show;
use thalweg_fuzz::{pieces, quickly};
use thalweg_protocol::document::{DocumentAccess, Operations};

fn edited(input: &[u8]) {
    let mut document = Document::new(NODE_CLIENTS);
    document.watch(true);
    document.edit(&Operations::new().insert("a tide \u{1f30a}")).expect("an empty document takes it");
    for update in pieces(input) {
        let Ok(checked) = document.check(update) else { continue };
        let applied = document.apply(checked, update, DocumentAccess::Write);
        show(&document, update, &applied);
        assert!(!document.is_poisoned(), "what was checked broke it");
    }
    let opened = Document::open(NODE_CLIENTS + 1, &document.state()).expect("its state is a state");
    let _ = (opened.json(), document.json());
    assert_eq!(opened.state_vector(), document.state_vector());
}

fuzz_target!(|input: &[u8]| quickly(input.len(), || edited(input)));
