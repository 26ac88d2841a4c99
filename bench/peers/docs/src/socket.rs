//! One WebSocket without a runtime, and the clock that wakes the loop.

use std::io;
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Bytes, Error, Message, WebSocket};

/// How long a server may take to accept a connection.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Unsent bytes of one editor before the run is given up: a server that does not read.
const BACKLOG_BYTES_MAX: usize = 64 << 20;

pub struct Socket {
    socket: WebSocket<TcpStream>,
    /// Payload bytes of frames so far.
    pub received: u64,
    pub sent: u64,
}

impl Socket {
    /// Connects and shakes hands, for which it waits; from then on it does not.
    pub fn connect(server: SocketAddr, url: &str) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{url}: {error}");
        let stream = TcpStream::connect(server).map_err(|error| failed(&error))?;
        stream.set_nodelay(true).map_err(|error| failed(&error))?;
        stream.set_read_timeout(Some(HANDSHAKE)).map_err(|error| failed(&error))?;
        let config = WebSocketConfig::default().max_write_buffer_size(BACKLOG_BYTES_MAX);
        let (socket, _) =
            tungstenite::client::client_with_config(url, stream, Some(config)).map_err(|error| failed(&error))?;
        socket.get_ref().set_nonblocking(true).map_err(|error| failed(&error))?;
        Ok(Self { socket, received: 0, sent: 0 })
    }

    pub fn register(&self, registry: &Registry, token: usize) -> io::Result<()> {
        let fd = self.socket.get_ref().as_raw_fd();
        registry.register(&mut SourceFd(&fd), Token(token), Interest::READABLE | Interest::WRITABLE)
    }

    /// The next message, if there is one; an error if the connection is over.
    pub fn read(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(frame)) => {
                    self.received += frame.len() as u64;
                    return Ok(Some(frame));
                }
                Ok(Message::Close(why)) => return Err(format!("the server closed the connection: {why:?}")),
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    pub fn send(&mut self, frame: Vec<u8>) -> Result<(), String> {
        self.sent += frame.len() as u64;
        self.settle(|socket| socket.write(Message::Binary(frame.into())))?;
        self.flush()
    }

    /// Sends what the system had no room for.
    pub fn flush(&mut self) -> Result<(), String> {
        self.settle(WebSocket::flush)
    }

    fn settle(&mut self, step: impl FnOnce(&mut WebSocket<TcpStream>) -> Result<(), Error>) -> Result<(), String> {
        match step(&mut self.socket) {
            Ok(()) => Ok(()),
            // It goes on when the socket is writable.
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(Error::WriteBufferFull(_)) => Err(format!("the server does not read: {BACKLOG_BYTES_MAX} bytes wait")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Wakes the loop at a time, which its own timeout, in whole milliseconds, could not.
pub struct Alarm {
    fd: OwnedFd,
}

impl Alarm {
    pub fn new(registry: &Registry, token: usize) -> io::Result<Self> {
        // SAFETY: timerfd_create takes no pointer; what it gives is ours alone.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above: an open descriptor that nobody else closes.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw: RawFd = fd.as_raw_fd();
        registry.register(&mut SourceFd(&raw), Token(token), Interest::READABLE)?;
        Ok(Self { fd })
    }

    pub fn set(&self, at: Instant) -> io::Result<()> {
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        // SAFETY: itimerspec is plain integers, for which zero is a value.
        let mut spec: libc::itimerspec = unsafe { mem::zeroed() };
        spec.it_value.tv_sec = wait.as_secs() as libc::time_t;
        spec.it_value.tv_nsec = i64::from(wait.subsec_nanos());
        // SAFETY: the descriptor is open, `spec` lives across the call, and the old value is not asked for.
        let result = unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
