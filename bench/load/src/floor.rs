//! What the generator and the kernel cost by themselves.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::report::Row;

/// How long the floor is measured: it varies little.
const FLOOR_TIME: Duration = Duration::from_millis(500);

/// The round trip of `bytes` bytes over loopback UDP with both ends in this thread: the four system calls and the kernel's
/// way through, without a server, QUIC, encryption or the waking of anybody. No server can be faster than this.
pub(crate) fn udp(bytes: usize) -> Result<Row, LoadError> {
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let measure = || -> io::Result<(Latencies, f64)> {
        let (near, far) = (open()?, open()?);
        near.connect(far.local_addr()?)?;
        far.connect(near.local_addr()?)?;
        let (clock, start) = (Clock::new(), Instant::now());
        let (mut latencies, message, mut buffer) = (Latencies::new(), vec![b'x'; bytes], vec![0; bytes]);
        while start.elapsed() < FLOOR_TIME {
            let from_ns = clock.now_ns();
            near.send(&message)?;
            receive(&far, &mut buffer)?;
            far.send(&message)?;
            receive(&near, &mut buffer)?;
            latencies.record(from_ns, clock.now_ns());
        }
        Ok((latencies, start.elapsed().as_secs_f64()))
    };
    let (latencies, seconds) = measure().map_err(LoadError::io("measuring the floor over loopback UDP"))?;
    Ok(Row::new("floor_udp_loopback", &latencies, seconds))
}

/// Loopback delivers within the send, so that this hardly ever looks twice.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match socket.recv(buffer) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_floor_is_measured() {
        let row = super::udp(64).expect("loopback works");
        assert!(row.count > 0 && row.p50_us > 0.0 && row.p50_us <= row.max_us, "{row:?}");
    }
}
