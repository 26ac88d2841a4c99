//! A record from a log that may be damaged: it is refused, or survives being written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_journal::record::{decode, encode, heading};

fuzz_target!(|input: &[u8]| {
    // With the length that it has, so that more than one in four billion gets past it; and as it is.
    let whole = Bytes::from([&(input.len() as u32).to_le_bytes(), input].concat());
    for bytes in [whole, Bytes::copy_from_slice(input)] {
        let Ok((record, end)) = decode(&bytes, 0) else { continue };
        assert!(end <= bytes.len());
        assert_eq!(heading(&bytes, 0).map(|(heading, end)| (heading.lsn, end)), Ok((record.lsn, end)));
        let mut again = Vec::new();
        encode(&record, &mut again);
        let (again, _) = decode(&again.into(), 0).expect("what we write we can read");
        // Compared as text, because a temperature may be NaN. What is written need not be as long: FlatBuffers may be padded.
        assert_eq!(format!("{record:?}"), format!("{again:?}"));
    }
});
