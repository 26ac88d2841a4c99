//! Memory that a disk can read without a copy.

use thalweg_protocol::limits::LOG_BLOCK_BYTES;

/// Bytes that begin at a multiple of a block in memory, as `O_DIRECT` wants them.
#[derive(Debug)]
pub(super) struct Aligned {
    memory: Vec<u8>,
    begin: usize,
}

impl Aligned {
    /// Room for `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + LOG_BLOCK_BYTES];
        let begin = memory.as_ptr().align_offset(LOG_BLOCK_BYTES);
        Self { memory, begin }
    }

    /// Where it begins.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory[self.begin..].as_mut_ptr()
    }

    /// Copies `from`, which fits, to the beginning.
    pub(super) fn fill(&mut self, from: &[u8]) {
        self.memory[self.begin..][..from.len()].copy_from_slice(from);
    }
}
