//! What a hostile editor says of itself: it is refused, or survives being written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_protocol::document::AwarenessUpdate;

fuzz_target!(|input: &[u8]| {
    if let Ok(update) = AwarenessUpdate::decode(&Bytes::copy_from_slice(input)) {
        assert_eq!(AwarenessUpdate::decode(&update.encode()), Ok(update));
    }
});
