//! Who is let in.

use std::time::Instant;

use quinn_proto::Incoming;

use crate::peer::{Peer, Stage};
use crate::quic::Quic;

impl Quic {
    /// Decides on a client's first packet at once: accept it, have it prove its address, or turn it away.
    ///
    /// A handshake costs us about half a millisecond, a retry some microseconds and no memory. A flood from made-up
    /// addresses therefore gets retries once half of the room for handshakes is taken; clients that answer a retry still
    /// have the other half.
    pub(crate) fn admit(&mut self, now: Instant, incoming: Incoming, buffer: &mut Vec<u8>) {
        let limits = &self.limits;
        if self.peers >= limits.connections || self.handshaking >= limits.handshakes {
            self.counters.refused += 1;
            let answer = self.endpoint.refuse(incoming, buffer);
            self.answer(answer, buffer);
            return;
        }
        let crowded = self.handshaking >= limits.handshakes / 2;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            match self.endpoint.retry(incoming, buffer) {
                Ok(answer) => {
                    self.counters.retries_sent += 1;
                    self.answer(answer, buffer);
                }
                Err(error) => self.endpoint.ignore(error.into_incoming()),
            }
            return;
        }
        self.counters.handshakes_started += 1;
        match self.endpoint.accept(incoming, now, buffer, None) {
            Ok((handle, connection)) => {
                let deadline = now + self.limits.handshake_timeout;
                let index = handle.0;
                let link = self.claim(index);
                self.slots[index].peer = Some(Box::new(Peer::new(connection, handle, link, deadline)));
                self.peers += 1;
                self.handshaking += 1;
                self.touch(index);
            }
            Err(error) => {
                self.counters.handshakes_failed += 1;
                if let Some(answer) = error.response {
                    self.answer(answer, buffer);
                }
            }
        }
    }

    /// Forgets a connection whose handshake takes too long, without a word: its address may be made up.
    pub(crate) fn abandon(&mut self, index: usize) {
        let Some(peer) = self.slots[index].peer.as_ref() else { return };
        debug_assert!(matches!(peer.stage, Stage::Handshaking(_)), "only handshakes are abandoned");
        self.endpoint.handle_event(peer.handle, quinn_proto::EndpointEvent::drained());
        self.handshaking -= 1;
        self.counters.handshakes_timed_out += 1;
        self.forget(index);
    }
}
