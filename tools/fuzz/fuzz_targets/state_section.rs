//! The state of a partition that a disk kept: it is refused, or survives being written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_journal::segment::{decode_state, encode_state};

fuzz_target!(|input: &[u8]| {
    if let Ok(state) = decode_state(&Bytes::copy_from_slice(input)) {
        let mut bytes = Vec::new();
        encode_state(&state, &mut bytes);
        let again = decode_state(&Bytes::from(bytes)).expect("what we write we can read");
        // Compared as text, because a temperature may be NaN.
        assert_eq!(format!("{state:?}"), format!("{again:?}"));
    }
});
