//! The back end over a ring of `io-uring`.

use std::io;
use std::net::SocketAddr;

use crate::counters::UdpCounters;
use crate::socket::{Datagram, SendOutcome, Transmit, WaitFd};

/// A socket behind a ring. Uninhabited until the ring is written.
#[derive(Debug)]
pub(crate) enum RingSocket {}

impl RingSocket {
    pub(crate) fn new(_: socket2::Socket) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub(crate) fn local_addr(&self) -> SocketAddr {
        match *self {}
    }
    pub(crate) fn may_fragment(&self) -> bool {
        match *self {}
    }
    pub(crate) fn receive(&mut self, _: usize, _: &mut impl FnMut(Datagram)) -> io::Result<usize> {
        match *self {}
    }
    pub(crate) fn send(&mut self, _: &Transmit<'_>) -> io::Result<SendOutcome> {
        match *self {}
    }
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match *self {}
    }
    pub(crate) fn max_gso_segments(&self) -> usize {
        match *self {}
    }
    pub(crate) fn wait_fd(&self) -> WaitFd {
        match *self {}
    }
    pub(crate) fn prepare_wait(&mut self) -> bool {
        match *self {}
    }
    pub(crate) fn counters(&self) -> UdpCounters {
        match *self {}
    }
}
