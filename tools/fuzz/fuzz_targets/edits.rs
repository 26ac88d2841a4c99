//! Yjs updates that are well formed, made by editors that keep no rules: each is refused, or does what it says and no more;
//! what is kept of them opens, merged too, and has all that the document has. In which order is another question: Yjs promises
//! that only to those who say truly what they insert between. Whether they get it, the tests of the domain try.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use thalweg_domain::document::{Document, NODE_CLIENTS, merge};
use thalweg_fuzz::quickly;
use thalweg_fuzz::updates::{Choices, show, update};
use thalweg_protocol::document::{COMMENTS_ROOT, DocumentAccess, Operation, Operations, utf16_len};

/// What a document says but for its comments.
fn beside_comments(document: &Document) -> Value {
    let mut roots: Value = serde_json::from_str(&document.json()).expect("is JSON");
    roots.as_object_mut().expect("is an object").remove(COMMENTS_ROOT);
    roots
}

/// A positional edit of the node's, of a text so long.
fn positional(choices: &mut Choices<'_>, length: u32) -> Operations {
    let at = u32::from(choices.byte()) % (length + 1);
    let deleted = (u32::from(choices.below(6))).min(length - at);
    Operations::of([Operation::Retain(at), Operation::Insert("n".into()), Operation::Delete(deleted)])
}

fn edited(input: &[u8]) {
    let mut choices = Choices::new(input);
    let mut document = Document::new(NODE_CLIENTS);
    document.watch(true);
    let mut taken = vec![document.edit(&Operations::new().insert("a tide \u{1f30a}")).expect("it is empty")];
    let mut lagging = Document::new(NODE_CLIENTS + 1);
    while !choices.is_over() {
        match choices.below(16) {
            // The node edits too.
            0 => {
                let operations = positional(&mut choices, utf16_len(&document.text()));
                let update = document.edit(&operations);
                show(&document, update.as_deref().unwrap_or_default(), &operations);
                taken.extend(update);
            }
            // Somebody gets what they lack.
            1 => {
                let lacks = document.diff(&lagging.state_vector()).expect("a state vector");
                lagging.replay(&lacks).expect("is what they lack");
                show(&lagging, &lacks, &"somebody got what they lacked");
                assert_eq!(lagging.state_vector(), document.state_vector());
            }
            kind => {
                let access = if kind < 5 { DocumentAccess::Comment } else { DocumentAccess::Write };
                let update = update(&mut choices, &document);
                let Ok(checked) = document.check(&update) else { continue };
                let (text, others) = (document.text(), beside_comments(&document));
                let applied = document.apply(checked, &update, access);
                show(&document, &update, &applied);
                assert!(!document.is_poisoned(), "what was checked broke it");
                let Ok(applied) = applied else {
                    assert_eq!(beside_comments(&document), others, "what is refused changes nothing");
                    continue;
                };
                let operations = applied.operations.expect("it is watched");
                assert_eq!(operations.apply(&text).as_deref(), Ok(&*document.text()), "readers are told what happened");
                if access == DocumentAccess::Comment {
                    assert_eq!(beside_comments(&document), others, "who may comment changes comments");
                }
                // As those who keep it do.
                taken.extend(applied.changed.then(|| applied.instead.unwrap_or(update.into())));
            }
        }
    }
    for state in [document.state(), merge(&taken).expect("each was taken")] {
        let opened = Document::open(NODE_CLIENTS + 2, &state).expect("is its state");
        show(&opened, &state, &"opened");
        assert_eq!(opened.state_vector(), document.state_vector());
        let _ = (opened.json(), opened.text());
    }
}

fuzz_target!(|input: &[u8]| quickly(input.len(), || edited(input)));
