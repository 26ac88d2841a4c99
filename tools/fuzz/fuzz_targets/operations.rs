//! Positional edits of a hostile client: each is refused, or survives being written and read again, and edits of one text
//! can be carried out in any order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_fuzz::{pieces, quickly};
use thalweg_protocol::document::{Operations, Side};

fn edited(one: &[u8], other: &[u8], text: &str) {
    let (Ok(one), Ok(other)) = (Operations::decode(one), Operations::decode(other)) else { return };
    assert_eq!(Operations::decode(&one.encode()).as_ref(), Ok(&one));
    let (one_after, other_after) = (one.transform(&other, Side::Second), other.transform(&one, Side::First));
    let (after_one, after_other) = (one.apply(text), other.apply(text));
    if let (Ok(after_one), Ok(after_other)) = (&after_one, &after_other) {
        assert_eq!(one_after.apply(after_other), other_after.apply(after_one));
        assert!(one_after.apply(after_other).is_ok(), "both fit, and neither ends within a character");
    }
    let both = one.compose(&other);
    if let Ok(after_one) = after_one
        && let Ok(after_both) = other.apply(&after_one)
    {
        assert_eq!(both.apply(text), Ok(after_both));
    }
    let _ = (one.offset_after(7, true), one.offset_after(u32::MAX, false));
}

fuzz_target!(|input: &[u8]| {
    let pieces: Vec<&[u8]> = pieces(input).collect();
    let [one, other, text, ..] = pieces[..] else { return };
    quickly(input.len(), || edited(one, other, &String::from_utf8_lossy(text)));
});
