//! The two back ends of `thalweg-udp` side by side: an echo over loopback with 1, 256 and 2,000 peers.
//!
//! `udp_backends [ROUNDS] [SECONDS]`. The server is one thread on one CPU, the peers are one thread on another: a single
//! socket that speaks from as many addresses of 127.0.0.0/8, so that the generator costs the same for any number of peers.
//! Each peer has one datagram of 64 bytes under way. Back ends alternate; medians over the rounds are printed:
//!
//! - `echoes/s`: both sides at full speed (with one peer, the inverse of the round trip);
//! - `cpu ns`: CPU time of the server's thread per echo;
//! - `calls`: system calls of the server per echo;
//! - `p50`, `p99`: round trip in µs as the peers see it, queueing behind other peers included.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thalweg_udp::{Backend, GroupConfig, SendOutcome, Socket, Steering, Transmit, WaitFd, bind_group};

const PEERS: [usize; 3] = [1, 256, 2_000];
const PAYLOAD_BYTES: usize = 64;
/// The server looks for work this long before it sleeps, as a core does; 0 sleeps at once.
const SPINS: [Duration; 2] = [Duration::ZERO, Duration::from_micros(200)];

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let rounds = arguments.next().unwrap_or(5);
    let seconds = Duration::from_secs(arguments.next().unwrap_or(2));
    println!("spin_us peers backend   echoes/s  cpu_ns  calls   p50_us   p99_us");
    for spin in SPINS {
        for peers in PEERS {
            let backends = [Backend::QuinnUdp, Backend::IoUring];
            let mut results = backends.map(|_| Vec::new());
            for _ in 0..rounds {
                for (backend, results) in backends.into_iter().zip(&mut results) {
                    results.push(measure(backend, peers, spin, seconds));
                }
            }
            for (backend, results) in backends.into_iter().zip(&results) {
                let median = |of: fn(&Figures) -> f64| {
                    let mut values: Vec<f64> = results.iter().map(of).collect();
                    values.sort_by(f64::total_cmp);
                    values[values.len() / 2]
                };
                println!(
                    "{:>7} {peers:>5} {:<9} {:>8.0} {:>7.0} {:>6.2} {:>8.1} {:>8.1}",
                    spin.as_micros(),
                    format!("{backend:?}"),
                    median(|f| f.rate),
                    median(|f| f.cpu_ns),
                    median(|f| f.calls),
                    median(|f| f.p50_us),
                    median(|f| f.p99_us),
                );
            }
        }
    }
}

struct Figures {
    rate: f64,
    cpu_ns: f64,
    calls: f64,
    p50_us: f64,
    p99_us: f64,
}

fn bind(backend: Backend, addr: SocketAddr) -> Socket {
    let (receive_buffer_bytes, send_buffer_bytes) = (4 << 20, 4 << 20);
    let steering = Steering::new(1, 0);
    let config = GroupConfig { addr, cores: 1, backend, steering, receive_buffer_bytes, send_buffer_bytes };
    bind_group(&config).expect("a free port").remove(0)
}

fn measure(backend: Backend, peers: usize, spin: Duration, time: Duration) -> Figures {
    let stop = Arc::new(AtomicBool::new(false));
    let server = bind(backend, (Ipv4Addr::LOCALHOST, 0).into());
    let remote = server.local_addr();
    let server = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || serve(server, spin, &stop)
    });
    pin(1);
    let mut socket = bind(Backend::QuinnUdp, (Ipv4Addr::UNSPECIFIED, 0).into());
    let mut sent_at = vec![Instant::now(); peers];
    let mut trips: Vec<u32> = Vec::with_capacity(1 << 22);
    (0..peers).for_each(|peer| send(&mut socket, &ask(remote, peer)));
    let (warm, end) = (Instant::now() + time / 4, Instant::now() + time + time / 4);
    let mut answered = Vec::new();
    let mut count = 0_u64;
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        socket.receive(64, &mut |datagram| answered.push(peer_of(datagram.local_ip))).expect("the socket works");
        for peer in answered.drain(..) {
            if now >= warm {
                count += 1;
                trips.push((now - sent_at[peer]).as_nanos() as u32);
            }
            sent_at[peer] = now;
            send(&mut socket, &ask(remote, peer));
        }
    }
    stop.store(true, Ordering::Relaxed);
    // Wakes it if it sleeps.
    send(&mut socket, &ask(remote, 0));
    let (cpu, echoes, calls) = server.join().expect("the server ends");
    trips.sort_unstable();
    let at = |share: f64| trips.get((trips.len() as f64 * share) as usize).map_or(0.0, |&ns| f64::from(ns) / 1e3);
    Figures {
        rate: count as f64 / time.as_secs_f64(),
        cpu_ns: cpu.as_nanos() as f64 / echoes as f64,
        calls: calls as f64 / echoes as f64,
        p50_us: at(0.5),
        p99_us: at(0.99),
    }
}

/// Answers until told to stop; gives CPU time, echoes and system calls.
fn serve(mut socket: Socket, spin: Duration, stop: &AtomicBool) -> (Duration, u64, u64) {
    pin(0);
    let begin = cpu_time();
    let mut batch = Vec::new();
    let (mut echoes, mut idle_since) = (0_u64, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        socket.receive(256, &mut |datagram| batch.push(datagram)).expect("the socket works");
        if batch.is_empty() {
            if idle_since.elapsed() >= spin && !socket.prepare_wait() {
                wait(&socket);
            }
            continue;
        }
        for datagram in batch.drain(..) {
            echoes += 1;
            let (remote, local_ip) = (datagram.remote, datagram.local_ip);
            send(
                &mut socket,
                &Transmit { remote, local_ip, ecn: None, contents: &datagram.bytes, segment_bytes: None },
            );
        }
        socket.flush().expect("the socket works");
        if !spin.is_zero() {
            idle_since = Instant::now();
        }
    }
    (cpu_time() - begin, echoes.max(1), socket.counters().system_calls)
}

fn send(socket: &mut Socket, transmit: &Transmit<'_>) {
    while socket.send(transmit).expect("the socket works") == SendOutcome::WouldBlock {}
}

static PAYLOAD: [u8; PAYLOAD_BYTES] = [0x40; PAYLOAD_BYTES];

fn ask(remote: SocketAddr, peer: usize) -> Transmit<'static> {
    let local_ip = Some(IpAddr::V4(Ipv4Addr::new(127, 1, (peer >> 8) as u8, peer as u8)));
    Transmit { remote, local_ip, ecn: None, contents: &PAYLOAD, segment_bytes: None }
}

fn peer_of(ip: Option<IpAddr>) -> usize {
    match ip {
        Some(IpAddr::V4(ip)) => usize::from(ip.octets()[2]) << 8 | usize::from(ip.octets()[3]),
        other => panic!("an answer to {other:?}, which is no peer"),
    }
}

fn wait(socket: &Socket) {
    let (WaitFd::Udp(fd) | WaitFd::Eventfd(fd)) = socket.wait_fd();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which is open while the socket lives.
    unsafe { libc::poll(&raw mut poll, 1, 1_000) };
}

fn pin(cpu: usize) {
    // SAFETY: a set of zeros is empty, and the call reads no more than the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the timespec it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
