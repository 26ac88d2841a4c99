//! Numbers of variable length, lowest seven bits first, as Yjs writes them.

use bytes::{BufMut, BytesMut};

pub(super) fn put_number(bytes: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        bytes.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.put_u8(number as u8);
}

/// A number of at most 53 bits, which is what editors in browsers can hold.
pub(super) fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..56).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return (number < 1 << 53).then_some(number);
        }
    }
    None
}
