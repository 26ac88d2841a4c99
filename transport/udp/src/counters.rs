//! What happened on a socket.

/// What happened on one socket since it was bound. Numbers only grow, except where said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Datagrams received, after splitting what the kernel coalesced.
    pub received_datagrams: u64,
    /// Bytes in them.
    pub received_bytes: u64,
    /// Messages of the kernel that held them; below `received_datagrams` where GRO coalesced.
    pub received_batches: u64,
    /// Messages that did not fit in a buffer or had no sender, and were dropped.
    pub received_unusable: u64,
    /// Datagrams handed to the kernel, each segment of a batch counted.
    pub sent_datagrams: u64,
    /// Bytes in them.
    pub sent_bytes: u64,
    /// Calls of [`Socket::send`](crate::Socket::send) that were taken.
    pub sent_batches: u64,
    /// Calls that were not taken because the kernel had no room.
    pub send_blocked: u64,
    /// Batches the kernel refused (no route, too long for the path, a firewall) and that are gone.
    pub send_failed: u64,
    /// System calls made.
    pub system_calls: u64,
    /// Receive buffers the ring owns now (io-uring only).
    pub ring_buffers: u64,
    /// Times the receive buffers of the ring had run out (io-uring only); each time their number grew, up to the limit.
    pub ring_starved: u64,
}
