//! What happened, as a running hash, and as lines on demand.

use std::fmt;

/// FNV-1a with 64 bits over all that went into and out of the node.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    print: bool,
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, print }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Takes bytes in without a line of their own.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Takes an event in, and prints it if it is asked to.
    pub(crate) fn line(&mut self, now_us: u64, event: fmt::Arguments<'_>) {
        use fmt::Write as _;
        writeln!(self, "{now_us} {event}").expect("a hash takes any text");
        if self.print {
            println!("{now_us:>9} {event}");
        }
    }
}
