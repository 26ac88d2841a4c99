#![no_main]
//! What a hostile editor says of itself.

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_protocol::document::AwarenessUpdate;

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(update) = AwarenessUpdate::decode(&bytes) {
        assert_eq!(AwarenessUpdate::decode(&update.encode()), Ok(update));
    }
});
