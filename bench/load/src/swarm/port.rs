//! One socket, its QUIC endpoint, and which connection belongs to which link.

use std::io::{self, IoSliceMut};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionEvent, ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, EndpointConfig,
};
use quinn_udp::{RecvMeta, UdpSocketState};
use rand::Rng;

use super::{LinkId, slot};
use crate::error::LoadError;

/// Datagrams, or trains of them, that are received in one system call.
const BATCH: usize = 16;
/// Bytes of one train: the kernel joins at most 64 KiB.
const TRAIN_BYTES: usize = 64 << 10;
/// Kernel memory asked for in each direction; what is granted depends on net.core.rmem_max.
const SOCKET_BYTES: usize = 4 << 20;
/// Datagrams of one transmit: as many as quinn itself joins.
const TRANSMIT_DATAGRAMS: usize = 10;
/// Transmits of one link before the others have their turn.
const TRANSMITS_MAX: usize = 64;

pub(super) struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    endpoint: Endpoint,
    /// By connection handle.
    links: Vec<Option<LinkId>>,
    buffers: Vec<u8>,
    reply: Vec<u8>,
}

impl Port {
    /// A socket of its own for connections to `server`.
    pub(super) fn open(server: SocketAddr) -> Result<Self, LoadError> {
        let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).map_err(LoadError::io("opening a UDP socket"))?;
        socket.set_nonblocking(true).map_err(LoadError::io("making a UDP socket non-blocking"))?;
        let state = UdpSocketState::new((&socket).into()).map_err(LoadError::io("preparing a UDP socket"))?;
        // As much as the system grants; too little shows as lost datagrams in the server's counters.
        let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BYTES);
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BYTES);
        let seed: [u8; 32] = rand::rng().random();
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &seed);
        let config = EndpointConfig::new(Arc::new(reset_key));
        let may_discover_mtu = !state.may_fragment();
        let endpoint = Endpoint::new(Arc::new(config), None, may_discover_mtu, Some(rand::rng().random()));
        let buffers = vec![0; BATCH * TRAIN_BYTES];
        Ok(Self { socket, state, endpoint, links: Vec::new(), buffers, reply: Vec::new() })
    }

    /// Begins a handshake.
    pub(super) fn connect(
        &mut self,
        config: ClientConfig,
        server: SocketAddr,
    ) -> Result<(ConnectionHandle, Connection), LoadError> {
        self.endpoint
            .connect(Instant::now(), config, server, "thalweg")
            .map_err(|error| LoadError::Unreachable { server, reason: error.to_string() })
    }

    /// Notes which link a connection belongs to.
    pub(super) fn bind(&mut self, handle: ConnectionHandle, link: LinkId) {
        if self.links.len() <= slot(handle) {
            self.links.resize(slot(handle) + 1, None);
        }
        self.links[slot(handle)] = Some(link);
    }

    /// Takes one batch of what arrived and hands it out by link.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        mut deliver: impl FnMut(LinkId, ConnectionEvent),
    ) -> Result<(), LoadError> {
        let mut metas = [RecvMeta::default(); BATCH];
        let mut chunks = self.buffers.chunks_exact_mut(TRAIN_BYTES);
        let mut slices: [IoSliceMut<'_>; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().expect("BATCH chunks were allocated")));
        let received = match self.state.recv((&self.socket).into(), &mut slices, &mut metas) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            // A server that is gone answers by ICMP; the connection's own timeout says so better.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => 0,
            Err(error) => return Err(LoadError::Io { what: "receiving from a UDP socket".into(), source: error }),
        };
        for (meta, train) in metas.iter().zip(self.buffers.chunks_exact(TRAIN_BYTES)).take(received) {
            let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
            for datagram in train[..meta.len].chunks(meta.stride.max(1)) {
                let data = BytesMut::from(datagram);
                let event = self.endpoint.handle(now, meta.addr, meta.dst_ip, ecn, data, &mut self.reply);
                match event {
                    Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                        if let Some(link) = self.links.get(slot(handle)).copied().flatten() {
                            deliver(link, event);
                        }
                    }
                    // A stateless answer (version negotiation, reset): an endpoint that only connects owes none.
                    Some(DatagramEvent::Response(_)) | Some(DatagramEvent::NewConnection(_)) | None => {}
                }
                self.reply.clear();
            }
        }
        Ok(())
    }

    /// Sends what a connection has to send.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        connection: &mut Connection,
        buffer: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let datagrams = self.state.max_gso_segments().min(TRANSMIT_DATAGRAMS);
        for _ in 0..TRANSMITS_MAX {
            buffer.clear();
            let Some(transmit) = connection.poll_transmit(now, datagrams, buffer) else { break };
            let transmit = quinn_udp::Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
                contents: &buffer[..transmit.size],
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            };
            while let Err(error) = self.state.send((&self.socket).into(), &transmit) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(LoadError::Io { what: "sending to a UDP socket".into(), source: error });
                }
                wait_for(&mut [pollfd(self.socket.as_raw_fd(), libc::POLLOUT)], Duration::from_millis(1))?;
            }
        }
        Ok(())
    }

    /// Carries news between a connection and its endpoint; whether the connection got any.
    pub(super) fn endpoint_events(&mut self, handle: ConnectionHandle, connection: &mut Connection) -> bool {
        let mut told = false;
        while let Some(event) = connection.poll_endpoint_events() {
            if event.is_drained() {
                // The endpoint may use the handle again.
                self.links[slot(handle)] = None;
            }
            if let Some(event) = self.endpoint.handle_event(handle, event) {
                connection.handle_event(event);
                told = true;
            }
        }
        told
    }
}

/// What `ppoll` is asked about a socket.
pub(crate) fn pollfd(socket: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: socket, events, revents: 0 }
}

/// Sleeps until one of the ports has something to receive, or the time is over.
pub(super) fn poll(ports: &[Port], limit: Duration) -> Result<(), LoadError> {
    let mut fds: Vec<_> = ports.iter().map(|port| pollfd(port.socket.as_raw_fd(), libc::POLLIN)).collect();
    wait_for(&mut fds, limit)
}

/// Sleeps until one of the sockets is ready, which their `revents` then say, or the time is over.
pub(crate) fn wait_for(fds: &mut [libc::pollfd], limit: Duration) -> Result<(), LoadError> {
    // SAFETY: timespec is two plain integers, for which all zeroes is a value.
    let mut time: libc::timespec = unsafe { mem::zeroed() };
    time.tv_sec = limit.as_secs() as libc::time_t;
    time.tv_nsec = i64::from(limit.subsec_nanos());
    // SAFETY: `fds` is an exclusive slice of its length, `time` lives across the call, and no signal mask is given.
    let result = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, &time, std::ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(LoadError::Io { what: "waiting for packets".into(), source: error });
        }
    }
    Ok(())
}
