//! Both back ends over loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

use crate::{Backend, Datagram, GroupConfig, SendOutcome, Socket, Steering, Transmit, UdpError, WaitFd, bind_group};

const BACKENDS: [Backend; 2] = [Backend::QuinnUdp, Backend::IoUring];

fn config(backend: Backend, cores: usize) -> GroupConfig {
    GroupConfig {
        addr: (Ipv4Addr::LOCALHOST, 0).into(),
        cores,
        backend,
        steering: Steering::new(cores, 0x5eed),
        receive_buffer_bytes: 4 << 20,
        send_buffer_bytes: 4 << 20,
    }
}

fn one(config: &GroupConfig) -> Socket {
    let mut sockets = bind_group(config).expect("a free port and a kernel with io_uring");
    assert_eq!(sockets.len(), 1);
    sockets.remove(0)
}

fn transmit(remote: SocketAddr, contents: &[u8]) -> Transmit<'_> {
    Transmit { remote, local_ip: None, ecn: None, contents, segment_bytes: None }
}

/// Waits as a core would; fails after ten seconds in which nothing came.
fn wait(socket: &mut Socket) {
    if socket.prepare_wait() {
        return;
    }
    let fd: RawFd = match socket.wait_fd() {
        WaitFd::Udp(fd) | WaitFd::Eventfd(fd) => fd,
    };
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which is open while the socket lives.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
    assert_eq!(ready, 1, "nothing arrived");
}

/// Receives until so many datagrams came.
fn take(socket: &mut Socket, count: usize) -> Vec<Datagram> {
    let mut got = Vec::new();
    while got.len() < count {
        if socket.receive(256, &mut |datagram| got.push(datagram)).expect("the socket works") == 0 {
            wait(socket);
        }
    }
    assert_eq!(got.len(), count);
    got
}

#[test]
fn datagrams_batches_and_marks_arrive_between_all_back_ends() {
    let v4: IpAddr = Ipv4Addr::LOCALHOST.into();
    let v6: IpAddr = Ipv6Addr::LOCALHOST.into();
    let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    for (from, to) in BACKENDS.into_iter().flat_map(|from| BACKENDS.map(|to| (from, to))) {
        for (bound, ip) in [(v4, v4), (v6, v6), (any, v6)] {
            let name = format!("{from:?} to {to:?} on {bound}");
            let mut sender = one(&GroupConfig { addr: (ip, 0).into(), ..config(from, 1) });
            let mut receiver = one(&GroupConfig { addr: (bound, 0).into(), ..config(to, 1) });
            assert!(!sender.may_fragment(), "{name}");
            let remote = (ip, receiver.local_addr().port()).into();

            let plain = Transmit { ecn: Some(0b10), local_ip: Some(ip), ..transmit(remote, b"ping") };
            assert_eq!(sender.send(&plain).expect("sendable"), SendOutcome::Sent);
            sender.flush().expect("sendable");
            let got = take(&mut receiver, 1).remove(0);
            assert_eq!((&got.bytes[..], got.ecn, got.local_ip), (&b"ping"[..], Some(0b10), Some(ip)), "{name}");
            assert_eq!(got.remote, sender.local_addr(), "{name}");

            // A batch whose last datagram is shorter, in one call.
            let segments = sender.max_gso_segments().min(10);
            assert!(segments > 1, "loopback segments");
            let contents: Vec<u8> = (0..segments * 1_200 - 500).map(|n| (n / 1_200) as u8).collect();
            let batch = Transmit { segment_bytes: Some(1_200), ..transmit(remote, &contents) };
            assert_eq!(sender.send(&batch).expect("sendable"), SendOutcome::Sent);
            sender.flush().expect("sendable");
            let got = take(&mut receiver, segments);
            for (n, datagram) in got.iter().enumerate() {
                let length = if n + 1 == segments { 700 } else { 1_200 };
                assert_eq!(&datagram.bytes[..], vec![n as u8; length], "{name}, datagram {n}");
                assert_eq!(datagram.ecn, None, "{name}");
            }

            // And back, to the address that was seen.
            receiver.send(&transmit(got[0].remote, b"pong")).expect("sendable");
            receiver.flush().expect("sendable");
            assert_eq!(&take(&mut sender, 1)[0].bytes[..], b"pong", "{name}");
            let counters = receiver.counters();
            assert_eq!(counters.received_datagrams, 1 + segments as u64, "{name}");
            assert_eq!(counters.received_bytes, 4 + contents.len() as u64, "{name}");
        }
    }
}

#[test]
fn a_sleeper_is_woken_and_told_not_to_sleep() {
    for backend in BACKENDS {
        let (mut sender, mut receiver) = (one(&config(backend, 1)), one(&config(backend, 1)));
        let remote = receiver.local_addr();
        for round in 0..100_u8 {
            assert_eq!(receiver.receive(16, &mut |_| panic!("nothing was sent")).expect("the socket works"), 0);
            while receiver.prepare_wait() {
                assert_eq!(receiver.receive(16, &mut |_| panic!("nothing was sent")).expect("the socket works"), 0);
            }
            sender.send(&transmit(remote, &[round])).expect("sendable");
            sender.flush().expect("sendable");
            // The datagram came after the question, so that the wait itself must end.
            let fd = match receiver.wait_fd() {
                WaitFd::Udp(fd) | WaitFd::Eventfd(fd) => fd,
            };
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor, which is open while the socket lives.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "{backend:?}, round {round}");
            assert_eq!(&take(&mut receiver, 1)[0].bytes[..], [round], "{backend:?}");
        }
    }
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    for backend in BACKENDS {
        for cores in [1, 2] {
            let first = bind_group(&config(backend, cores)).expect("a free port");
            let addr = first[0].local_addr();
            let second = bind_group(&GroupConfig { addr, ..config(backend, cores) });
            match second {
                Err(error @ UdpError::PortInUse { addr: named }) => {
                    assert_eq!(named, addr);
                    let text = error.to_string();
                    assert!(text.contains(&addr.to_string()) && text.contains("--quic"), "{text}");
                }
                other => panic!("{backend:?}, {cores} cores: {other:?}"),
            }
            drop(first);
            bind_group(&GroupConfig { addr, ..config(backend, cores) }).expect("the port is free again");
        }
    }
}

#[test]
fn what_cannot_be_bound_is_refused() {
    let base = config(Backend::QuinnUdp, 1);
    let foreign = GroupConfig { addr: "192.0.2.1:0".parse().expect("an address"), ..base.clone() };
    assert!(matches!(bind_group(&foreign), Err(UdpError::AddressNotLocal { .. })));
    for cores in [0, 2] {
        let error = bind_group(&GroupConfig { cores, ..base.clone() });
        assert!(matches!(error, Err(UdpError::CoresInvalid { steered: 1, .. })), "{error:?}");
    }
}

/// The kernel and [`Steering::core_of_datagram`] must agree on every datagram that has a connection id.
#[test]
fn the_kernel_steers_datagrams_to_their_core() {
    for backend in BACKENDS {
        for cores in [2, 3] {
            let config = config(backend, cores);
            let mut sockets = bind_group(&config).expect("a free port");
            assert!(sockets.iter().all(Socket::kernel_steering), "this kernel steers");
            let remote = sockets[0].local_addr();
            let mut sender = one(&GroupConfig { cores: 1, steering: Steering::new(1, 0), ..config.clone() });
            let mut expected = vec![Vec::new(); cores];
            for byte in 0..=255_u8 {
                let short = [0x40, byte, 1, 2, 3, 4, 5, 6];
                let long = [0xc0, 0, 0, 0, 1, 8, byte, 1, 2, 3];
                for datagram in [&short[..], &long[..]] {
                    let core = config.steering.core_of_datagram(datagram).expect("it has an id");
                    assert_eq!(core, config.steering.core_of_cid(byte));
                    expected[core].push(datagram.to_vec());
                    while sender.send(&transmit(remote, datagram)).expect("sendable") == SendOutcome::WouldBlock {}
                }
            }
            sender.flush().expect("sendable");
            for (core, expected) in expected.into_iter().enumerate() {
                let mut got: Vec<Vec<u8>> =
                    take(&mut sockets[core], expected.len()).iter().map(|d| d.bytes.to_vec()).collect();
                // Both forms of a byte may be coalesced apart; only the set matters here.
                let mut expected = expected;
                got.sort();
                expected.sort();
                assert_eq!(got, expected, "{backend:?}, core {core} of {cores}");
            }
        }
    }
}

/// Datagrams too short to have a connection id, or empty, do no harm wherever they land.
#[test]
fn rubbish_arrives_somewhere() {
    for backend in BACKENDS {
        let mut sockets = bind_group(&config(backend, 2)).expect("a free port");
        let remote = sockets[0].local_addr();
        let mut sender = one(&config(backend, 1));
        let rubbish: [&[u8]; 6] = [b"", b"\x40", b"\xc0", b"\xc0\0\0\0\x01", b"\xff\xff\xff\xff\xff\xff", &[0; 1_400]];
        for datagram in rubbish {
            sender.send(&transmit(remote, datagram)).expect("sendable");
        }
        sender.flush().expect("sendable");
        let mut got = 0;
        // The empty one is dropped on the way to us: it can be of no use to anyone.
        while got < rubbish.len() - 1 {
            got += sockets.iter_mut().map(|s| s.receive(16, &mut |_| {}).expect("the socket works")).sum::<usize>();
        }
        assert_eq!(got, rubbish.len() - 1, "{backend:?}");
    }
}

#[test]
fn a_burst_grows_the_buffers_of_a_ring_and_loses_nothing() {
    const BURST: usize = 1_500;
    for sending in BACKENDS {
        let mut receiver = one(&config(Backend::IoUring, 1));
        let mut sender = one(&config(sending, 1));
        let remote = receiver.local_addr();
        // Armed before the burst, so that the kernel fills the buffers while we are elsewhere.
        assert_eq!(receiver.receive(1, &mut |_| {}).expect("the socket works"), 0);
        assert!(!receiver.prepare_wait());
        let few = receiver.counters().ring_buffers;
        for n in 0..BURST as u32 {
            while sender.send(&transmit(remote, &n.to_le_bytes())).expect("sendable") == SendOutcome::WouldBlock {}
        }
        sender.flush().expect("sendable");
        let mut next = 0_u32;
        while next < BURST as u32 {
            let mut each = |datagram: Datagram| {
                assert_eq!(&datagram.bytes[..], next.to_le_bytes(), "in order, none lost");
                next += 1;
            };
            if receiver.receive(64, &mut each).expect("the socket works") == 0 {
                wait(&mut receiver);
            }
        }
        let counters = receiver.counters();
        assert!(counters.ring_starved > 0 && counters.ring_buffers > few, "{counters:?}");
    }
}

/// A peer that cannot be reached is dropped and counted; the socket goes on.
#[test]
fn a_batch_that_cannot_be_sent_is_counted() {
    for backend in BACKENDS {
        let (mut sender, mut receiver) = (one(&config(backend, 1)), one(&config(backend, 1)));
        let too_long = vec![0; 65_600];
        sender.send(&transmit(receiver.local_addr(), &too_long)).expect("not the socket's fault");
        sender.send(&transmit("[::1]:9".parse().expect("an address"), b"x")).expect("not the socket's fault");
        sender.send(&transmit(receiver.local_addr(), b"still here")).expect("sendable");
        sender.flush().expect("sendable");
        assert_eq!(&take(&mut receiver, 1)[0].bytes[..], b"still here", "{backend:?}");
        sender.receive(1, &mut |_| {}).expect("the socket works");
        assert_eq!(sender.counters().send_failed, 2, "{backend:?}: {:?}", sender.counters());
    }
}
