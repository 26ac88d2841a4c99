//! A connection to a broker, and which broker it is.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use clap::ValueEnum;
use mio::net::TcpStream;

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Which broker, and whether through TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Nats,
    NatsTls,
    Redis,
}

impl Protocol {
    pub fn is_nats(self) -> bool {
        self != Self::Redis
    }

    pub fn has_tls(self) -> bool {
        self == Self::NatsTls
    }
}

/// One connection: bytes in, bytes out, through TLS or not.
pub struct Link {
    pub socket: TcpStream,
    tls: Option<rustls::ClientConnection>,
    /// What came and is not cut yet.
    pub input: Vec<u8>,
    /// What is to be sent.
    pub output: Vec<u8>,
}

impl Link {
    /// Connects, and for NATS with TLS reads the greeting that comes before the handshake.
    pub fn connect(protocol: Protocol, server: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> Outcome<Self> {
        let mut socket = std::net::TcpStream::connect(server)?;
        socket.set_nodelay(true)?;
        let mut input = Vec::new();
        if protocol.is_nats() {
            let mut byte = [0];
            while input.last() != Some(&b'\n') {
                socket.read_exact(&mut byte)?;
                input.push(byte[0]);
            }
            input.clear();
        }
        let mut session = None;
        if protocol.has_tls() {
            let mut connection = rustls::ClientConnection::new(Arc::clone(tls), "localhost".try_into()?)?;
            // What is on the way at a time bounds it.
            connection.set_buffer_limit(None);
            while connection.is_handshaking() {
                connection.complete_io(&mut socket)?;
            }
            session = Some(connection);
        }
        socket.set_nonblocking(true)?;
        Ok(Self { socket: TcpStream::from_std(socket), tls: session, input, output: Vec::new() })
    }

    /// Reads all there is.
    pub fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            let result = match &mut self.tls {
                Some(tls) => match tls.read_tls(&mut self.socket) {
                    Ok(0) => Ok(0),
                    Ok(count) => {
                        let state = tls.process_new_packets().map_err(io::Error::other)?;
                        let before = self.input.len();
                        self.input.resize(before + state.plaintext_bytes_to_read(), 0);
                        tls.reader().read_exact(&mut self.input[before..])?;
                        Ok(count)
                    }
                    Err(error) => Err(error),
                },
                None => self.socket.read(&mut buffer).inspect(|&count| self.input.extend_from_slice(&buffer[..count])),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                // A short read of a stream socket has emptied it; the next event says when there is more. TLS reads in
                // pieces of its own choice, so it looks once more.
                Ok(count) if self.tls.is_none() && count < buffer.len() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what is queued, as far as it goes.
    pub fn send(&mut self) -> io::Result<()> {
        let wrote = match &mut self.tls {
            Some(tls) => {
                tls.writer().write_all(&self.output)?;
                self.output.clear();
                while tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                }
                return Ok(());
            }
            None if self.output.is_empty() => return Ok(()),
            None => self.socket.write(&self.output),
        };
        match wrote {
            Ok(count) => drop(self.output.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
