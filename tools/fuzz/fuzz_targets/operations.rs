#![no_main]
//! Positional edits of a hostile client.

use libfuzzer_sys::fuzz_target;
use thalweg_protocol::document::{Operations, Side};

fuzz_target!(|input: (&[u8], &[u8], &str)| {
    let (one, other, text) = input;
    let (Ok(one), Ok(other)) = (Operations::decode(one), Operations::decode(other)) else { return };
    assert_eq!(Operations::decode(&one.encode()).as_ref(), Ok(&one));
    let (one_after, other_after) = (one.transform(&other, Side::Second), other.transform(&one, Side::First));
    let (after_one, after_other) = (one.apply(text), other.apply(text));
    if let (Ok(after_one), Ok(after_other)) = (&after_one, &after_other) {
        assert_eq!(one_after.apply(after_other), other_after.apply(after_one));
    }
    let both = one.compose(&other);
    if let Ok(after_one) = after_one
        && let Ok(after_both) = other.apply(&after_one)
    {
        assert_eq!(both.apply(text), Ok(after_both));
    }
});
