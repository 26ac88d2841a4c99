//! Positional edits of a text in the library, and what it says of a change as one.

use thalweg_protocol::document::{Operation, Operations, utf16_len};
use yrs::types::Delta;
use yrs::{Any, In, Out, Text, TextRef, TransactionMut};

use super::EMBEDDED;

/// Carries out operations on a text that they fit. Formats go on in what is inserted, which only matters if there ever were
/// some.
pub(super) fn carry_out(text: &TextRef, txn: &mut TransactionMut<'_>, operations: &Operations, has_formats: bool) {
    if has_formats {
        by_parts(text, txn, operations);
    } else {
        text.apply_delta(txn, operations.parts().iter().map(delta_of));
    }
}

/// A part of an edit, as the library has them.
fn delta_of(part: &Operation) -> Delta<In> {
    match part {
        Operation::Retain(length) => Delta::Retain(*length, None),
        Operation::Insert(text) => Delta::Inserted(In::Any(Any::String(text.as_str().into())), None),
        Operation::Delete(length) => Delta::Deleted(*length),
    }
}

/// Carries them out one by one. That takes a walk through the text for each; the library's own way takes one for all, but
/// inserts without formats.
fn by_parts(text: &TextRef, txn: &mut TransactionMut<'_>, operations: &Operations) {
    let mut at = 0;
    for part in operations.parts() {
        match part {
            Operation::Retain(length) => at += length,
            Operation::Insert(inserted) => {
                text.insert(txn, at, inserted);
                at += utf16_len(inserted);
            }
            Operation::Delete(length) => text.remove_range(txn, at, *length),
        }
    }
}

/// What a change of a text did, as operations; formats are no part of them.
pub(super) fn operations_of(delta: &[Delta]) -> Operations {
    Operations::of(delta.iter().map(|part| match part {
        Delta::Inserted(Out::Any(Any::String(text)), _) => Operation::Insert(text.to_string()),
        Delta::Inserted(..) => Operation::Insert(EMBEDDED.to_string()),
        Delta::Deleted(length) => Operation::Delete(*length),
        Delta::Retain(length, _) => Operation::Retain(*length),
    }))
}
