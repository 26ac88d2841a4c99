//! An operation from a client that may be lying: it is refused, or survives being written and read again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_protocol::op::ClientOp;

fuzz_target!(|input: &[u8]| {
    if let Ok(op) = ClientOp::decode(&Bytes::copy_from_slice(input)) {
        let again = ClientOp::decode(&op.encode()).expect("what we write we can read");
        // Compared as text, because a temperature may be NaN; and -0.0, which is not written as it is the default, is 0.0.
        let text = |op: &dyn std::fmt::Debug| format!("{op:?}").replace("-0.0", "0.0");
        assert_eq!(text(&op), text(&again));
    }
});
