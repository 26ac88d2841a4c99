//! Binding the sockets of all cores to one port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Type};

use crate::socket::Socket;
use crate::steering::{CORES_MAX, Steering};
use crate::syscalls::SyscallSocket;
use crate::uring::RingSocket;

/// How a socket talks to the kernel.
///
/// The default is the winner of `bench/micro/src/bin/udp_backends.rs`: an echo of 64 bytes over loopback, one pinned thread
/// a side, server spinning 200 µs before it sleeps, medians of 9 alternating rounds on 2 busy cores of an AMD Zen 3
/// (Linux 6.18), `quinn-udp` against `io-uring`:
///
/// | peers | echoes/s | p50 µs | server's CPU per echo, µs | its system calls per echo |
/// |---|---|---|---|---|
/// | 1 | 27,300 / 22,600 | 10.6 / 12.4 | 11.9 / 14.1 (spinning included) | 7.75 / 2.00 |
/// | 256 | 65,300 / 64,600 | 1,467 / 1,500 | 5.38 / 5.35 | 1.11 / 0.04 |
/// | 2,000 | 120,000 / 111,000 | 15,500 / 13,800 | 6.54 / 6.20 | 1.40 / 0.13 |
///
/// The ring saves nearly all system calls, but on loopback the way of a datagram through the kernel is what costs: with
/// many peers it saves 5 to 10 % of the CPU at best, within the noise of the machine, and a single peer waits 1.8 µs
/// longer. So plain system calls serve by default; the ring is worth a try with thousands of peers that talk at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// `recvmmsg` and `sendmsg` through `quinn-udp`. Works on every Linux.
    #[default]
    QuinnUdp,
    /// A ring of its own: multishot receive into buffers the kernel picks, sends gathered into one call a turn. Needs
    /// Linux 6.1 and permission to use io_uring.
    IoUring,
}

/// The sockets to bind.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// The address; port 0 lets the kernel choose one, which then all cores share.
    pub addr: SocketAddr,
    /// How many sockets, one per core.
    pub cores: usize,
    /// How they talk to the kernel.
    pub backend: Backend,
    /// Which core owns which connection id; must be for as many cores.
    pub steering: Steering,
    /// Wanted size of each socket's receive buffer in the kernel, in bytes; the kernel caps it at `net.core.rmem_max`.
    pub receive_buffer_bytes: usize,
    /// Wanted size of each socket's send buffer in the kernel, in bytes; the kernel caps it at `net.core.wmem_max`.
    pub send_buffer_bytes: usize,
}

/// Why the sockets could not be bound, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The number of cores is impossible or contradicts the steering.
    #[error(
        "{cores} UDP sockets were asked for with a steering over {steered} cores; give both the same number, 1 to {CORES_MAX}"
    )]
    CoresInvalid {
        /// Sockets asked for.
        cores: usize,
        /// Cores of the steering.
        steered: usize,
    },
    /// Another program has the port.
    #[error("UDP address {addr} is in use; stop the program that has it (`ss -ulpn 'sport = :{}'` names it) or choose another with --quic ADDR", addr.port())]
    PortInUse {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// No interface of this machine has the address.
    #[error("no interface of this machine has the address {}; choose one of `ip addr`, or 0.0.0.0 for all", addr.ip())]
    AddressNotLocal {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// Ports below 1024 are for privileged programs.
    #[error("no permission to bind UDP address {addr}; choose a port above 1023 or grant CAP_NET_BIND_SERVICE")]
    PermissionDenied {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The kernel does not let us have a ring.
    #[error(
        "io_uring is not available for UDP ({source}); use the back end `quinn-udp`, or allow it: \
         sysctl kernel.io_uring_disabled=0, `ulimit -l` at least 1024 KiB, a container profile that permits io_uring"
    )]
    RingUnavailable {
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else the kernel may say.
    #[error("{operation} for UDP address {addr} failed: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The address asked for.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Binds one socket per core to one address and makes the kernel steer between them.
///
/// The socket at index `n` belongs to core `n`. If the kernel cannot steer, the sockets are bound all the same and
/// [`Socket::kernel_steering`] says no.
pub fn bind_group(config: &GroupConfig) -> Result<Vec<Socket>, UdpError> {
    let (cores, steered) = (config.cores, config.steering.cores());
    if cores == 0 || cores != steered {
        return Err(UdpError::CoresInvalid { cores, steered });
    }
    let sockets = bind_all(config)?;
    let kernel_steering = cores == 1 || config.steering.attach(sockets[0].as_fd()).is_ok();
    sockets
        .into_iter()
        .map(|socket| match config.backend {
            Backend::QuinnUdp => {
                let socket = SyscallSocket::new(socket).map_err(|source| UdpError::System {
                    operation: "configure",
                    addr: config.addr,
                    source,
                })?;
                Ok(Socket::over_syscalls(socket, kernel_steering))
            }
            Backend::IoUring => {
                let socket = RingSocket::new(socket).map_err(|source| UdpError::RingUnavailable { source })?;
                Ok(Socket::over_ring(socket, kernel_steering))
            }
        })
        .collect()
}

/// The first socket is bound before it allows others beside it: thus a port that another program has is refused even if
/// that program allows others beside it (a second node of the same user would otherwise silently get half our datagrams).
fn bind_all(config: &GroupConfig) -> Result<Vec<socket2::Socket>, UdpError> {
    let system = |operation| move |source| UdpError::System { operation, addr: config.addr, source };
    let first = open(config).map_err(system("open a socket"))?;
    bind(&first, config.addr)?;
    let addr = first.local_addr().map_err(system("read the address"))?.as_socket().unwrap_or(config.addr);
    let mut sockets = vec![first];
    if config.cores > 1 {
        sockets[0].set_reuse_port(true).map_err(system("set SO_REUSEPORT"))?;
    }
    for _ in 1..config.cores {
        let socket = open(config).map_err(system("open a socket"))?;
        socket.set_reuse_port(true).map_err(system("set SO_REUSEPORT"))?;
        bind(&socket, addr)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

fn open(config: &GroupConfig) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(config.addr), Type::DGRAM, Some(Protocol::UDP))?;
    if config.addr.is_ipv6() && config.addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // The kernel silently caps both; `thalweg doctor` reports caps that are too low.
    socket.set_recv_buffer_size(config.receive_buffer_bytes)?;
    socket.set_send_buffer_size(config.send_buffer_bytes)?;
    Ok(socket)
}

fn bind(socket: &socket2::Socket, addr: SocketAddr) -> Result<(), UdpError> {
    socket.bind(&addr.into()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => UdpError::PortInUse { addr },
        io::ErrorKind::AddrNotAvailable => UdpError::AddressNotLocal { addr },
        io::ErrorKind::PermissionDenied => UdpError::PermissionDenied { addr },
        _ => UdpError::System { operation: "bind", addr, source },
    })
}
