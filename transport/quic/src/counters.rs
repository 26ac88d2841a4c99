//! What happened to the connections of a core.

/// What happened since the start. Numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicCounters {
    /// Datagrams given to [`Quic::receive`](crate::Quic::receive).
    pub datagrams_received: u64,
    /// Datagrams that belong to nothing: garbage, or late packets of connections long gone.
    pub datagrams_ignored: u64,
    /// Batches given out by [`Quic::poll_transmit`](crate::Quic::poll_transmit).
    pub batches_sent: u64,
    /// Connections begun: each costs a TLS handshake.
    pub handshakes_started: u64,
    /// Connections that were opened.
    pub accepted: u64,
    /// Handshakes that failed or were given up by the client.
    pub handshakes_failed: u64,
    /// Handshakes that took too long and were forgotten.
    pub handshakes_timed_out: u64,
    /// Clients asked to prove their address first, since many handshakes were under way.
    pub retries_sent: u64,
    /// Clients turned away, since a limit on handshakes or connections was reached.
    pub refused: u64,
    /// Stateless resets sent for connections that this node no longer knows.
    pub resets_sent: u64,
    /// Other answers to unconnected datagrams: version negotiation, invalid Initial packets or tokens.
    pub answers_sent: u64,
    /// Answers to unconnected datagrams that were dropped, since too many waited.
    pub answers_dropped: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Bytes in them, headers included.
    pub frame_bytes_received: u64,
    /// Frames accepted by [`Quic::send`](crate::Quic::send).
    pub frames_sent: u64,
    /// Bytes in them, headers included.
    pub frame_bytes_sent: u64,
    /// Frames refused by [`Quic::send`](crate::Quic::send), since too much was queued.
    pub frames_refused: u64,
    /// Unreliable datagrams received.
    pub unreliable_received: u64,
    /// Lanes opened by clients beyond what they may open, each reset at once.
    pub lanes_refused: u64,
    /// Clients whose address changed.
    pub migrated: u64,
    /// Links closed by the client.
    pub closed_by_peer: u64,
    /// Links closed by [`Quic::close`](crate::Quic::close).
    pub closed_by_us: u64,
    /// Links closed because of bytes that are no frames, or frames beyond the limit.
    pub closed_by_reject: u64,
    /// Links lost in silence.
    pub closed_by_timeout: u64,
    /// Links lost by a stateless reset of the client.
    pub closed_by_reset: u64,
    /// Links closed because a transport found a fault in the other.
    pub closed_by_transport: u64,
}
