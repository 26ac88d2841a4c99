//! The connection ids of one core.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ring::hmac;

/// One byte that steers, four random ones, three that prove it is ours.
const CID_BYTES: usize = 8;
/// Bytes before the proof.
const SIGNED_BYTES: usize = 5;

/// Chooses the first byte of a connection id from a random one; see [`QuicConfig::cid_first_byte`](crate::QuicConfig).
pub(crate) type FirstByte = Arc<dyn Fn(u8) -> u8 + Send + Sync>;

/// Makes connection ids whose first byte leads the kernel to this core, and recognises the node's own.
///
/// The proof keeps garbage from being answered with stateless resets: of 16 million made-up ids one passes. It is keyed
/// by the reset key, so that a restarted node still knows its former ids and resets them at once.
pub(crate) struct CoreCids {
    first_byte: FirstByte,
    random: StdRng,
    key: hmac::Key,
}

impl CoreCids {
    pub(crate) fn new(first_byte: FirstByte, seed: [u8; 32], key: hmac::Key) -> Self {
        Self { first_byte, random: StdRng::from_seed(seed), key }
    }

    fn proof(&self, signed: &[u8]) -> [u8; CID_BYTES - SIGNED_BYTES] {
        let tag = hmac::sign(&self.key, signed);
        tag.as_ref()[..CID_BYTES - SIGNED_BYTES].try_into().expect("a tag is longer than the proof")
    }
}

impl ConnectionIdGenerator for CoreCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut cid = [0; CID_BYTES];
        self.random.fill(&mut cid[..SIGNED_BYTES]);
        cid[0] = (self.first_byte)(cid[0]);
        let proof = self.proof(&cid[..SIGNED_BYTES]);
        cid[SIGNED_BYTES..].copy_from_slice(&proof);
        ConnectionId::new(&cid)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match cid.split_at_checked(SIGNED_BYTES) {
            Some((signed, proof)) if self.proof(signed) == *proof => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_steered_and_recognised_by_every_core_of_the_node() {
        let key = |byte| hmac::Key::new(hmac::HMAC_SHA256, &[byte; 64]);
        let mut cids = CoreCids::new(Arc::new(|random| random & !1 | 1), [1; 32], key(1));
        let same_node = CoreCids::new(Arc::new(|random| random & !1), [2; 32], key(1));
        let other_node = CoreCids::new(Arc::new(|random| random), [3; 32], key(2));
        let mut strangers = 0;
        for _ in 0..1_000 {
            let cid = cids.generate_cid();
            assert_eq!(cid.len(), CID_BYTES);
            assert_eq!(cid[0] & 1, 1);
            assert!(same_node.validate(&cid).is_ok());
            strangers += usize::from(other_node.validate(&cid).is_ok());
        }
        assert!(strangers <= 1, "{strangers} ids of another node were taken for ours");
        for short in [&[][..], &[1, 2, 3], &[0; SIGNED_BYTES]] {
            assert!(cids.validate(&ConnectionId::new(short)).is_err());
        }
    }
}
