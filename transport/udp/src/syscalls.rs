//! The back end over plain system calls, by `quinn-udp`.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

use bytes::BytesMut;
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, UdpSocketState};

use crate::counters::UdpCounters;
use crate::socket::{Datagram, SendOutcome, Transmit, WaitFd};

/// Room for one message of the kernel: 64 KiB is the most that GRO coalesces. Pages never touched cost nothing.
const MESSAGE_BYTES: usize = 64 << 10;

/// A socket that is read with `recvmmsg` and written with `sendmsg`.
#[derive(Debug)]
pub(crate) struct SyscallSocket {
    socket: socket2::Socket,
    state: UdpSocketState,
    local_addr: SocketAddr,
    /// [`BATCH_SIZE`] messages side by side. Payloads are copied out, since QUIC may hold on to them and a small one
    /// must not keep 64 KiB alive.
    buffer: Box<[u8]>,
    /// The last send did not fit: do not sleep, since nothing wakes a core when the kernel has room again.
    blocked: bool,
    counters: UdpCounters,
}

impl SyscallSocket {
    pub(crate) fn new(socket: socket2::Socket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let local_addr = local_addr(&socket)?;
        let buffer = vec![0; BATCH_SIZE * MESSAGE_BYTES].into_boxed_slice();
        Ok(Self { socket, state, local_addr, buffer, blocked: false, counters: UdpCounters::default() })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    pub(crate) fn receive(&mut self, max: usize, sink: &mut impl FnMut(Datagram)) -> io::Result<usize> {
        let mut total = 0;
        while total < max {
            let (received, drained) = self.receive_batch(max - total, sink)?;
            total += received;
            if drained {
                break;
            }
        }
        Ok(total)
    }

    /// One `recvmmsg`; gives the number of datagrams, and whether nothing more is there.
    fn receive_batch(&mut self, max: usize, sink: &mut impl FnMut(Datagram)) -> io::Result<(usize, bool)> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut slices = self.buffer.chunks_exact_mut(MESSAGE_BYTES).map(IoSliceMut::new);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| slices.next().expect("the buffer holds a batch"));
        let wanted = max.min(BATCH_SIZE);
        self.counters.system_calls += 1;
        let messages = match self.state.recv((&self.socket).into(), &mut buffers[..wanted], &mut metas) {
            Ok(messages) => messages,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, true)),
            // An ICMP answer to something sent earlier, reported here: not about this call.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok((0, false)),
            Err(error) => return Err(error),
        };
        let mut received = 0;
        for (meta, buffer) in metas[..messages].iter().zip(&buffers) {
            self.counters.received_batches += 1;
            self.counters.received_bytes += meta.len as u64;
            let ecn = meta.ecn.map(|ecn| ecn as u8);
            split(&buffer[..meta.len], meta.stride, |bytes| {
                received += 1;
                sink(Datagram { remote: meta.addr, local_ip: meta.dst_ip, ecn, bytes });
            });
        }
        self.counters.received_datagrams += received as u64;
        Ok((received, messages < wanted))
    }

    pub(crate) fn send(&mut self, transmit: &Transmit<'_>) -> io::Result<SendOutcome> {
        let message = quinn_udp::Transmit {
            destination: transmit.remote,
            ecn: transmit.ecn.and_then(EcnCodepoint::from_bits),
            contents: transmit.contents,
            segment_size: transmit.segment_bytes,
            src_ip: transmit.local_ip,
        };
        self.counters.system_calls += 1;
        let result = self.state.try_send((&self.socket).into(), &message);
        self.blocked = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        match result {
            Ok(()) => self.counters.sent(transmit),
            Err(_) if self.blocked => {
                self.counters.send_blocked += 1;
                return Ok(SendOutcome::WouldBlock);
            }
            Err(error) if socket_is_broken(&error) => return Err(error),
            Err(_) => self.counters.send_failed += 1,
        }
        Ok(SendOutcome::Sent)
    }

    pub(crate) fn max_gso_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    pub(crate) fn wait_fd(&self) -> WaitFd {
        WaitFd::Udp(self.raw_fd())
    }

    /// A readable socket ends a wait at once, so only a held back send needs a word.
    pub(crate) fn prepare_wait(&mut self) -> bool {
        std::mem::take(&mut self.blocked)
    }

    pub(crate) fn counters(&self) -> UdpCounters {
        self.counters
    }

    fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl UdpCounters {
    /// Counts a batch that the kernel took.
    pub(crate) fn sent(&mut self, transmit: &Transmit<'_>) {
        self.sent_batches += 1;
        self.sent_datagrams += transmit.datagrams();
        self.sent_bytes += transmit.contents.len() as u64;
    }
}

/// The address a socket is bound to.
pub(crate) fn local_addr(socket: &socket2::Socket) -> io::Result<SocketAddr> {
    let addr = socket.local_addr()?;
    addr.as_socket().ok_or_else(|| io::Error::other("the socket is not bound to an IP address"))
}

/// Cuts a message of the kernel into its datagrams of `stride` bytes, which share one allocation.
pub(crate) fn split(message: &[u8], stride: usize, mut each: impl FnMut(BytesMut)) {
    if message.is_empty() {
        return;
    }
    let stride = if stride == 0 { message.len() } else { stride };
    let mut rest = BytesMut::from(message);
    while rest.len() > stride {
        each(rest.split_to(stride));
    }
    each(rest);
}

/// Whether an error of a send says that the socket itself is unusable, rather than this peer, path or length.
pub(crate) fn socket_is_broken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::ENOMEM))
}
