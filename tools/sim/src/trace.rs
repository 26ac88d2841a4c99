//! What happened, as a running hash, and as lines on demand.

use std::fmt;

/// A hash over all that went into and out of the node, and when.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    print: bool,
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, print }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether somebody reads what happens.
    pub(crate) fn prints(&self) -> bool {
        self.print
    }

    /// Takes bytes in without a line of their own, eight at a time.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let words = bytes.chunks_exact(8);
        let rest = words.remainder();
        for word in words {
            self.word(u64::from_le_bytes(word.try_into().expect("chunks of eight")));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last) ^ (rest.len() as u64) << 56);
    }

    /// Takes a number in.
    pub(crate) fn word(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// Takes in that something happened, and prints it if it is asked to: making the text takes longer than the event.
    pub(crate) fn line(&mut self, now_us: u64, event: fmt::Arguments<'_>) {
        self.word(now_us);
        if self.print {
            println!("{now_us:>9} {event}");
        }
    }
}
