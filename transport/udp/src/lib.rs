//! The datagram sockets of a core.
//!
//! A node has one UDP port and one socket per core, bound as an `SO_REUSEPORT` group. The kernel chooses the socket of a
//! datagram with a small program over the first byte of its QUIC connection id ([`Steering`]), so that a datagram lands
//! on the core that owns its connection. Where that is not so (a batch that the kernel glued together, a kernel without
//! such programs), [`Steering::core_of_datagram`] says who owns it and the node hands it over by ring.
//!
//! Two back ends stand behind one [`Socket`]: system calls through `quinn-udp`, and a ring of `io-uring`. Both split
//! what the kernel coalesced (GRO), send batches in one call (GSO), and carry ECN marks. Neither blocks, spawns a thread
//! or reads a clock. Nothing here knows QUIC beyond where a connection id stands in a datagram.
//!
//! Peers are never an error of the socket: a datagram that cannot be sent to one of them is dropped and counted, as the
//! network might have dropped it. An [`std::io::Error`] means that the socket itself is broken.

mod control;
mod counters;
mod group;
mod socket;
mod steering;
mod syscalls;
#[cfg(test)]
mod tests;
mod uring;

pub use counters::UdpCounters;
pub use group::{Backend, GroupConfig, UdpError, bind_group};
pub use socket::{Datagram, SendOutcome, Socket, Transmit, WaitFd};
pub use steering::{CORES_MAX, Steering};
