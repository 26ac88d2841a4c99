//! Which core owns a datagram.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most cores of a group: the index must fit in the first byte of a connection id with room for randomness beside it.
pub const CORES_MAX: usize = 128;

/// Bit of a datagram's first byte that tells a long header (RFC 8999 §5.1).
const LONG_HEADER: u8 = 0x80;
/// Where the destination connection id begins after a short header.
const SHORT_CID_AT: usize = 1;
/// Where the destination connection id begins after a long header: flags, version (4), length.
const LONG_CID_AT: usize = 6;

/// Which core owns a connection id, by its first byte.
///
/// The byte is passed through a permutation of 0..256 that is drawn from a key; the result modulo the number of cores is
/// the owner. Plain `byte % cores` would let an observer tell which ids belong together (RFC 9000 §5.1 forbids ids that
/// can be correlated); with the key unknown, ids of one core look like any others. All cores of a node share one key. The
/// permutation is built only of what a classic BPF program can compute, so that the kernel computes the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steering {
    cores: u8,
    /// First mask, odd factor, second odd factor, last mask.
    key: [u8; 4],
    /// Inverses of the two factors modulo 256.
    inverse: [u8; 2],
}

impl Steering {
    /// The steering of `cores` cores under `key`, which every core of the node must share.
    ///
    /// # Panics
    /// If `cores` is 0 or above [`CORES_MAX`]: the configuration was checked before it came here.
    pub fn new(cores: usize, key: u64) -> Self {
        assert!((1..=CORES_MAX).contains(&cores), "steering over {cores} cores; 1 to {CORES_MAX} are possible");
        // Only the spread matters: a key that differs in one bit must not give almost the same permutation.
        let mixed = (key ^ (key >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let key = [mixed[0], mixed[1] | 1, mixed[2] | 1, mixed[3]];
        Self { cores: cores as u8, key, inverse: [inverse_of_odd(key[1]), inverse_of_odd(key[2])] }
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        usize::from(self.cores)
    }

    /// The core that owns a connection id beginning with `first_byte`.
    pub fn core_of_cid(&self, first_byte: u8) -> usize {
        usize::from(self.permute(first_byte) % self.cores)
    }

    /// The first byte of a new connection id of `core`; `random` chooses among the bytes that name it.
    ///
    /// # Panics
    /// If there is no such core.
    pub fn first_byte_for(&self, core: usize, random: u8) -> u8 {
        assert!(core < self.cores(), "core {core} of {}", self.cores);
        let (core, cores) = (core as u16, u16::from(self.cores));
        let choices = (255 - core) / cores + 1;
        self.unpermute((core + cores * (u16::from(random) % choices)) as u8)
    }

    /// The core that owns a datagram, by the destination connection id in its header; `None` if it is too short to have
    /// one, in which case it may stay where it arrived.
    pub fn core_of_datagram(&self, datagram: &[u8]) -> Option<usize> {
        let first = *datagram.first()?;
        let at = if first & LONG_HEADER == 0 {
            SHORT_CID_AT
        } else if datagram.get(LONG_CID_AT - 1) == Some(&0) {
            return None;
        } else {
            LONG_CID_AT
        };
        datagram.get(at).map(|&byte| self.core_of_cid(byte))
    }

    fn permute(&self, byte: u8) -> u8 {
        let [mask, factor, factor_too, mask_too] = self.key;
        let x = (byte ^ mask).wrapping_mul(factor);
        (x ^ (x >> 4)).wrapping_mul(factor_too) ^ mask_too
    }

    fn unpermute(&self, byte: u8) -> u8 {
        let x = (byte ^ self.key[3]).wrapping_mul(self.inverse[1]);
        (x ^ (x >> 4)).wrapping_mul(self.inverse[0]) ^ self.key[0]
    }

    /// Makes the kernel choose the socket of a reuse-port group by this steering; sockets count in the order in which
    /// they were bound. `socket` may be any member.
    pub(crate) fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let program = self.program();
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: `filter` and the program it points to outlive the call, which copies them into the kernel.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const filter).cast(),
                size_of_val(&filter) as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// [`core_of_datagram`](Self::core_of_datagram) as a classic BPF program over the UDP payload. A load beyond the end
    /// of a datagram ends the program with 0, the first socket.
    fn program(&self) -> Vec<libc::sock_filter> {
        use libc::{BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MISC};
        use libc::{BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_X, BPF_XOR};
        let [mask, factor, factor_too, mask_too] = self.key.map(u32::from);
        let load = |at: usize| step(BPF_LD | BPF_B | BPF_ABS, at as u32);
        let alu = |operation, k| step(BPF_ALU | operation | BPF_K, k);
        let jump = libc::sock_filter { jt: 0, jf: 2, ..step(BPF_JMP | BPF_JSET | BPF_K, u32::from(LONG_HEADER)) };
        let skip = step(BPF_JMP | libc::BPF_JA, 1);
        vec![
            load(0),
            jump,
            load(LONG_CID_AT),
            skip,
            load(SHORT_CID_AT),
            alu(BPF_XOR, mask),
            alu(BPF_MUL, factor),
            alu(BPF_AND, 0xff),
            step(BPF_MISC | BPF_TAX, 0),
            alu(BPF_RSH, 4),
            step(BPF_ALU | BPF_XOR | BPF_X, 0),
            alu(BPF_MUL, factor_too),
            alu(BPF_XOR, mask_too),
            alu(BPF_AND, 0xff),
            alu(BPF_MOD, u32::from(self.cores)),
            step(BPF_RET | BPF_A, 0),
        ]
    }
}

fn step(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// The inverse of an odd number modulo 256, by Newton: each step doubles the number of right bits, from 3 on.
fn inverse_of_odd(odd: u8) -> u8 {
    let mut inverse = odd;
    for _ in 0..2 {
        inverse = inverse.wrapping_mul(2_u8.wrapping_sub(odd.wrapping_mul(inverse)));
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_owner_and_every_core_gets_its_share() {
        for cores in [1, 2, 3, 7, 64, CORES_MAX] {
            for key in [0, 1, 2, u64::MAX, 0x0123_4567_89ab_cdef] {
                let steering = Steering::new(cores, key);
                let mut owned = vec![0_usize; cores];
                for byte in 0..=255 {
                    assert_eq!(steering.unpermute(steering.permute(byte)), byte, "{cores} cores, key {key}");
                    owned[steering.core_of_cid(byte)] += 1;
                }
                let share = 256 / cores;
                assert!(owned.iter().all(|n| (share..=share + 1).contains(n)), "{cores} cores, key {key}: {owned:?}");
                for core in 0..cores {
                    for random in 0..=255 {
                        assert_eq!(steering.core_of_cid(steering.first_byte_for(core, random)), core);
                    }
                }
            }
        }
    }

    #[test]
    fn keys_give_different_owners() {
        let owners = |key| (0..=255).map(|b| Steering::new(2, key).core_of_cid(b)).collect::<Vec<_>>();
        let (one, two) = (owners(1), owners(2));
        let same = one.iter().zip(&two).filter(|(a, b)| a == b).count();
        assert!((32..=224).contains(&same), "{same} of 256 bytes have the same owner under both keys");
    }

    #[test]
    fn datagrams_of_any_shape_have_an_owner_or_none() {
        let steering = Steering::new(3, 42);
        let owner = |byte| Some(steering.core_of_cid(byte));
        let cases: &[(&str, &[u8], Option<usize>)] = &[
            ("empty", &[], None),
            ("one byte, short header", &[0x40], None),
            ("one byte, long header", &[0xc0], None),
            ("short header", &[0x40, 9], owner(9)),
            ("long header cut before the id", &[0xc0, 0, 0, 0, 1, 8], None),
            ("long header with an empty id", &[0xc0, 0, 0, 0, 1, 0, 7], None),
            ("long header", &[0xc0, 0, 0, 0, 1, 8, 77, 1], owner(77)),
            ("version negotiation", &[0x80, 0, 0, 0, 0, 8, 78], owner(78)),
        ];
        for (name, datagram, expected) in cases {
            assert_eq!(steering.core_of_datagram(datagram), *expected, "{name}");
        }
        let mut state = 1_u32;
        for length in (0..64).cycle().take(10_000) {
            let garbage: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .take(length)
            .collect();
            assert!(steering.core_of_datagram(&garbage).is_none_or(|core| core < 3));
        }
    }
}
