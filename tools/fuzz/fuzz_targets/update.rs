#![no_main]
//! Yjs updates of a hostile client: each is refused, or applied without harm.

use libfuzzer_sys::fuzz_target;
use thalweg_domain::document::{Document, NODE_CLIENTS};
use thalweg_protocol::document::{DocumentAccess, Operations};

fuzz_target!(|updates: Vec<Vec<u8>>| {
    let mut document = Document::new(NODE_CLIENTS);
    document.watch(true);
    document.edit(&Operations::new().insert("a tide \u{1f30a}")).expect("an empty document takes it");
    for update in &updates {
        let Ok(checked) = document.check(update) else { continue };
        let _ = document.apply(checked, update, DocumentAccess::Write);
        assert!(!document.is_poisoned(), "what was checked broke it");
    }
    let _ = (document.text(), document.json());
    let opened = Document::open(NODE_CLIENTS + 1, &document.state()).expect("its state is a state");
    assert_eq!(opened.text(), document.text());
    assert_eq!(opened.state_vector(), document.state_vector());
});
