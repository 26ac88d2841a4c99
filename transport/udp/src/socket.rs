//! One socket of one core.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use bytes::BytesMut;

use crate::counters::UdpCounters;
use crate::syscalls::SyscallSocket;
use crate::uring::RingSocket;

/// A datagram that arrived; what the kernel coalesced is already split.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it.
    pub remote: SocketAddr,
    /// The address of ours it was sent to; answer from the same one.
    pub local_ip: Option<IpAddr>,
    /// The two ECN bits of its IP header; `None` if they are not set.
    pub ecn: Option<u8>,
    /// The payload.
    pub bytes: BytesMut,
}

/// A batch of datagrams to one peer.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// To whom.
    pub remote: SocketAddr,
    /// From which address of ours; `None` lets the kernel choose.
    pub local_ip: Option<IpAddr>,
    /// The two ECN bits to set.
    pub ecn: Option<u8>,
    /// The payloads, one after the other.
    pub contents: &'a [u8],
    /// The length of each payload but the last, in bytes, if there is more than one. At most
    /// [`Socket::max_gso_segments`] payloads fit in one batch.
    pub segment_bytes: Option<usize>,
}

impl Transmit<'_> {
    /// How many datagrams this is.
    pub(crate) fn datagrams(&self) -> u64 {
        self.segment_bytes.map_or(1, |segment| self.contents.len().div_ceil(segment.max(1)) as u64)
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOutcome {
    /// The socket took it, or dropped it and counted that ([`UdpCounters::send_failed`]): either way it is done with.
    Sent,
    /// The kernel has no room now. Nothing was sent; try again after the next turn.
    WouldBlock,
}

/// What a core waits for when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFd {
    /// A UDP socket: wait until it is readable.
    Udp(RawFd),
    /// An eventfd: wait until it is readable, that is until a completion arrived.
    Eventfd(RawFd),
}

/// One socket of a group; see [`bind_group`](crate::bind_group).
///
/// Contract of a turn: [`receive`](Self::receive) until it gives less than asked for, act, [`send`](Self::send) what
/// results, [`flush`](Self::flush). Before sleeping on [`wait_fd`](Self::wait_fd), ask [`prepare_wait`](Self::prepare_wait).
/// A socket belongs to the thread that first uses it, and may be moved to that thread before.
#[derive(Debug)]
pub struct Socket {
    inner: Inner,
    kernel_steering: bool,
}

#[derive(Debug)]
enum Inner {
    Syscalls(Box<SyscallSocket>),
    Ring(Box<RingSocket>),
}

macro_rules! dispatch {
    ($self:expr, $socket:ident => $call:expr) => {
        match $self {
            Inner::Syscalls($socket) => $call,
            Inner::Ring($socket) => $call,
        }
    };
}

impl Socket {
    pub(crate) fn over_syscalls(socket: SyscallSocket, kernel_steering: bool) -> Self {
        Self { inner: Inner::Syscalls(Box::new(socket)), kernel_steering }
    }

    pub(crate) fn over_ring(socket: RingSocket, kernel_steering: bool) -> Self {
        Self { inner: Inner::Ring(Box::new(socket)), kernel_steering }
    }

    /// The address the socket is bound to, with the actual port.
    pub fn local_addr(&self) -> SocketAddr {
        dispatch!(&self.inner, s => s.local_addr())
    }

    /// Whether the kernel steers datagrams to their cores. If not, everything that arrives elsewhere than on its core
    /// must be handed over by ring, which costs.
    pub fn kernel_steering(&self) -> bool {
        self.kernel_steering
    }

    /// Whether datagrams too long for the path may be fragmented on the way; QUIC must not probe for longer ones then.
    pub fn may_fragment(&self) -> bool {
        dispatch!(&self.inner, s => s.may_fragment())
    }

    /// Hands what arrived to `sink`, and gives the number of datagrams. Stops at `max` or more: a message of the kernel
    /// that was begun is finished, up to 64 datagrams. Never waits; 0 means that nothing is there.
    pub fn receive(&mut self, max: usize, sink: &mut impl FnMut(Datagram)) -> io::Result<usize> {
        dispatch!(&mut self.inner, s => s.receive(max, sink))
    }

    /// Sends a batch; the contents are no longer needed afterwards.
    pub fn send(&mut self, transmit: &Transmit<'_>) -> io::Result<SendOutcome> {
        dispatch!(&mut self.inner, s => s.send(transmit))
    }

    /// Makes sure that the kernel has seen everything sent. Call it at the end of a turn: one back end sends at once, the
    /// other gathers what a turn sends into one system call.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Inner::Syscalls(_) => Ok(()),
            Inner::Ring(ring) => ring.flush(),
        }
    }

    /// How many datagrams one [`Transmit`] may hold now; 1 if the kernel or the device cannot segment.
    pub fn max_gso_segments(&self) -> usize {
        dispatch!(&self.inner, s => s.max_gso_segments())
    }

    /// What to wait for when there is nothing to do. It stays the same for the life of the socket.
    pub fn wait_fd(&self) -> WaitFd {
        dispatch!(&self.inner, s => s.wait_fd())
    }

    /// To be asked right before waiting on [`wait_fd`](Self::wait_fd): true if there is something to do at once (a
    /// datagram, or room for one that [`WouldBlock`](SendOutcome::WouldBlock) held back), so that waiting would be wrong.
    pub fn prepare_wait(&mut self) -> bool {
        dispatch!(&mut self.inner, s => s.prepare_wait())
    }

    /// What happened so far.
    pub fn counters(&self) -> UdpCounters {
        dispatch!(&self.inner, s => s.counters())
    }
}
