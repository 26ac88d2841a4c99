//! The content of one file: what of it is durable, and what becomes of the rest.

use rand::Rng as _;
use rand::rngs::StdRng;

use super::DiskCounts;

/// What a disk writes as a whole, in bytes.
const SECTOR_BYTES: usize = 512;

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) now: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// What was written since the last sync: where, and how many bytes.
    pub(super) unsynced: Vec<(usize, Vec<u8>)>,
    /// It was emptied since the last sync.
    pub(super) emptied: bool,
    /// Its length changed since the last sync.
    pub(super) resized: bool,
    pub(super) handles: u32,
    /// Flipped bits that were not written over: where, and which.
    pub(super) rots: Vec<(usize, u8)>,
}

impl Inode {
    pub(super) fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        if self.emptied {
            self.durable.copy_from_slice(&self.now);
        }
        for (at, bytes) in self.unsynced.drain(..) {
            self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        (self.emptied, self.resized) = (false, false);
    }

    /// Decides what of the unsynced is there after the loss of power.
    pub(super) fn crash(&mut self, kept: f64, rng: &mut StdRng, counts: &mut DiskCounts) {
        if self.emptied && rng.random_bool(0.5) {
            self.durable.clear();
        }
        let (old, new) = (self.durable.len(), self.now.len());
        let bytes = match rng.random_range(0..4) {
            0 => old,
            1 => rng.random_range(old.min(new)..=old.max(new)),
            _ => new,
        };
        counts.lengths_lost += u64::from(bytes != new);
        self.durable.resize(bytes, 0);
        for (at, written) in std::mem::take(&mut self.unsynced) {
            let whole = rng.random_bool(0.4);
            let keep_all = rng.random_bool(kept);
            let (mut there, mut gone) = (0_u64, 0_u64);
            let mut from = 0;
            while from < written.len() {
                let sector_end = ((at + from) / SECTOR_BYTES + 1) * SECTOR_BYTES - at;
                let to = sector_end.min(written.len());
                let keep = if whole { keep_all } else { rng.random_bool(kept) };
                if keep && at + to <= bytes {
                    self.durable[at + from..at + to].copy_from_slice(&written[from..to]);
                    there += 1;
                } else {
                    gone += 1;
                }
                from = to;
            }
            match (there, gone) {
                (_, 0) => counts.writes_kept += 1,
                (0, _) => counts.writes_lost += 1,
                _ => counts.writes_torn += 1,
            }
        }
        (self.emptied, self.resized) = (false, false);
        self.now = self.durable.clone();
    }

    /// A sync that failed: some of it is there, and the rest is forgotten though it can still be read.
    pub(super) fn fail_sync(&mut self, rng: &mut StdRng) {
        self.durable.resize(self.now.len(), 0);
        for (at, bytes) in std::mem::take(&mut self.unsynced) {
            if rng.random_bool(0.5) {
                self.durable[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        (self.emptied, self.resized) = (false, false);
    }

    pub(super) fn rot(&mut self, offset: usize, bit: u8) -> bool {
        let synced = self.unsynced.is_empty() && !self.resized && !self.emptied;
        let flipped = synced && self.flip(offset, bit);
        if flipped {
            self.rots.push((offset, bit));
        }
        flipped
    }

    pub(super) fn repair(&mut self, offset: usize, bit: u8) {
        if let Some(at) = self.rots.iter().position(|rot| *rot == (offset, bit)) {
            self.rots.remove(at);
            self.flip(offset, bit);
        }
    }

    pub(super) fn flip(&mut self, offset: usize, bit: u8) -> bool {
        let mut flipped = false;
        for bytes in [&mut self.now, &mut self.durable] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= 1 << (bit % 8);
                flipped = true;
            }
        }
        flipped
    }
}
