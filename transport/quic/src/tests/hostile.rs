//! Clients that do not behave, and networks full of rubbish.

use std::time::Duration;

use bytes::BytesMut;
use quinn_proto::{ConnectionError, Dir, TransportErrorCode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::limits::FRAME_BYTES_MAX;
use thalweg_protocol::reject::RejectCode;

use super::pair::{Pair, client_address, config, server_address};
use crate::{CloseReason, Event, Lane};

#[test]
fn broken_frames_close_the_link_with_a_code() {
    type Write = fn(&mut super::pair::Client);
    let cases: &[(&str, RejectCode, Write)] = &[
        ("a length beyond the limit", RejectCode::FrameTooLarge, |client| {
            client.write(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        }),
        ("all ones", RejectCode::FrameTooLarge, |client| client.write(&[0xff; 64])),
        ("a lane that ends within a header", RejectCode::FrameInvalid, |client| {
            client.write(&[1, 0, 0]);
            client.finish();
        }),
        ("a lane that ends within a payload", RejectCode::FrameInvalid, |client| {
            client.write_frame(1, b"whole");
            client.write(&[9, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3]);
            client.finish();
        }),
    ];
    for &(name, code, write) in cases {
        let mut pair = Pair::new(config());
        let (other, other_link) = pair.connect();
        let (client, link) = pair.connect();
        write(&mut pair.clients[client]);
        pair.until("the link is closed", |pair| pair.clients[client].lost.is_some());
        match pair.closed(link) {
            Some(CloseReason::Reject(reject)) => assert_eq!(reject.code, code, "{name}"),
            closed => panic!("{name}: closed by {closed:?}"),
        }
        match &pair.clients[client].lost {
            Some(ConnectionError::ApplicationClosed(close)) => {
                assert_eq!(close.error_code.into_inner(), code as u64, "{name}");
                assert!(!close.reason.is_empty(), "{name}: a text says what was wrong");
            }
            lost => panic!("{name}: the client saw {lost:?}"),
        }
        assert_eq!(pair.server.counters().closed_by_reject, 1, "{name}");
        pair.clients[other].write_frame(5, b"served");
        pair.until("others are served", |pair| pair.frames(other_link).len() == 1);
    }
}

#[test]
fn a_command_lane_that_ends_between_frames_is_no_fault() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    pair.clients[client].write_frame(1, b"the only request");
    pair.clients[client].finish();
    let ended = Event::LaneClosed { link, lane: Lane::COMMAND };
    pair.until("the server heard of it", |pair| pair.events.contains(&ended));
    pair.server.send(link, Lane::COMMAND, 1, bytes::Bytes::from_static(b"answer")).expect("it can be answered");
    pair.until("the answer arrived", |pair| pair.clients[client].frames.len() == 1);
    assert_eq!(pair.closed(link), None);
}

#[test]
fn a_client_may_open_the_command_lane_only() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    let connection = &mut pair.clients[client].connection;
    assert!(connection.streams().open(Dir::Uni).is_none(), "no unidirectional lane is allowed");
    assert!(connection.streams().open(Dir::Bi).is_some());
    assert!(connection.streams().open(Dir::Bi).is_none(), "no second lane is allowed");

    // Once the command lane has ended in both directions, the transport allows another. It is turned away.
    let mut pair_too = Pair::new(config());
    let (client, link_too) = pair_too.connect();
    pair_too.clients[client].write_frame(1, b"x");
    pair_too.clients[client].finish();
    pair_too.until("it arrived", |pair| pair.frames(link_too).len() == 1);
    pair_too.server.finish_lane(link_too, Lane::COMMAND);
    pair_too.until("it ended", |pair| !pair.clients[client].ended.is_empty());
    pair_too.run(Duration::from_secs(1));
    let connection = &mut pair_too.clients[client].connection;
    let second = connection.streams().open(Dir::Bi).expect("the transport allows another");
    connection.send_stream(second).write(b"anybody?").expect("it is open");
    pair_too.until("it was turned away", |pair| !pair.clients[client].stopped.is_empty());
    assert_eq!(pair_too.clients[client].stopped, [(second, RejectCode::LimitReached as u64)]);
    assert_eq!(pair_too.server.counters().lanes_refused, 1);
    assert_eq!(pair_too.closed(link_too), None);
    assert_eq!(pair.closed(link), None);
}

#[test]
fn garbage_is_ignored_and_counted() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    let mut random = StdRng::seed_from_u64(5);
    let before = pair.server.counters().datagrams_received;
    for length in (0..1_400).step_by(3).chain(0..64) {
        let mut garbage = vec![0; length];
        random.fill(&mut garbage[..]);
        pair.server.receive(pair.now, client_address(900), None, Some(random.random()), BytesMut::from(&garbage[..]));
        if let Some(first) = garbage.first_mut() {
            // A long header of version 1, whose insides are garbage.
            *first |= 0xc0;
            if let Some(version) = garbage.get_mut(1..5) {
                version.copy_from_slice(&[0, 0, 0, 1]);
            }
            pair.server.receive(pair.now, client_address(901), None, None, BytesMut::from(&garbage[..]));
        }
    }
    let counters = *pair.server.counters();
    let received = counters.datagrams_received - before;
    assert!(counters.datagrams_ignored + counters.answers_sent >= received, "{counters:?}");
    assert_eq!((pair.server.connections(), pair.server.handshaking()), (1, 0));
    pair.clients[client].write_frame(1, b"still here");
    pair.until("others are served", |pair| pair.frames(link).len() == 1);
}

#[test]
fn another_version_is_told_which_ones_there_are() {
    let mut pair = Pair::new(config());
    let mut initial = vec![0; 1_200];
    initial[..6].copy_from_slice(&[0xc0, 0x0a, 0x0b, 0x0c, 0x0d, 8]);
    initial[14] = 8;
    pair.server.receive(pair.now, client_address(1), None, None, BytesMut::from(&initial[..]));
    let mut buffer = Vec::new();
    let answer = pair.server.poll_transmit(pair.now, 1, &mut buffer).expect("an answer");
    assert_eq!((answer.remote, &buffer[1..5]), (client_address(1), &[0, 0, 0, 0][..]), "version negotiation");
    assert_eq!(pair.server.counters().answers_sent, 1);
}

/// Clients whose answers never come take up room for handshakes until their time is over.
#[test]
fn a_flood_of_handshakes_is_asked_for_proof_and_refused() {
    let mut config = config();
    config.limits.handshakes = 8;
    let timeout = config.limits.handshake_timeout;
    let mut pair = Pair::new(config);
    let (early, early_link) = pair.connect();

    // The flood: first packets from addresses that nobody listens at.
    let flood = |pair: &mut Pair, from: usize, count: usize| {
        for number in from..from + count {
            let address = (std::net::Ipv4Addr::new(10, 66, 0, number as u8), 1).into();
            let initial = first_packet(pair);
            pair.server.receive(pair.now, address, None, None, initial);
        }
        pair.drive_server();
    };
    flood(&mut pair, 0, 20);
    assert_eq!(pair.server.handshaking(), 4, "half of the room is given without proof");
    assert_eq!(pair.server.counters().retries_sent, 16);

    // A client that answers the retry gets in, all the while.
    let (late, late_link) = pair.connect();
    assert_eq!(pair.server.counters().retries_sent, 17);
    for (client, link) in [(early, early_link), (late, late_link)] {
        pair.clients[client].write_frame(1, b"served");
        pair.until("others are served", |pair| !pair.frames(link).is_empty());
    }

    // Clients that prove their address and then stall take the other half; from then on, refusal.
    let stalling: Vec<usize> = (0..4).map(|_| pair.dial()).collect();
    for _ in 0..4 {
        pair.step_clients();
    }
    assert_eq!(pair.server.handshaking(), 8, "{:?}", pair.server.counters());
    pair.silence(&stalling);
    let refused = pair.dial();
    pair.until("it was refused", |pair| pair.clients[refused].lost.is_some());
    match &pair.clients[refused].lost {
        Some(ConnectionError::ConnectionClosed(close)) => {
            assert_eq!(close.error_code, TransportErrorCode::CONNECTION_REFUSED);
        }
        lost => panic!("the client saw {lost:?}"),
    }
    assert_eq!(pair.server.counters().refused, 1);

    pair.run(timeout + Duration::from_secs(1));
    assert_eq!(pair.server.handshaking(), 0, "room is given back");
    assert_eq!(pair.server.counters().handshakes_timed_out, 8);
    pair.connect();
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let mut config = config();
    config.limits.connections = 3;
    let mut pair = Pair::new(config);
    let links: Vec<_> = (0..3).map(|_| pair.connect()).collect();
    let refused = pair.dial();
    pair.until("it was refused", |pair| pair.clients[refused].lost.is_some());
    assert_eq!(pair.server.counters().refused, 1);
    for (client, link) in links {
        pair.clients[client].write_frame(1, b"served");
        pair.until("others are served", |pair| pair.frames(link).len() == 1);
    }
}

/// A node that was restarted, and so knows nothing of its former clients, tells them.
#[test]
fn a_restarted_node_resets_its_former_clients() {
    let mut pair = Pair::new(config());
    let (client, _) = pair.connect();
    pair.clients[client].write_frame(1, b"before");
    pair.run(Duration::from_secs(1));
    let mut restarted = config();
    restarted.seed = [9; 32];
    restarted.retry_key = [9; 64];
    pair.server = crate::Quic::new(restarted).expect("the configuration is sound");
    pair.clients[client].write_frame(2, &[0; 600]);
    pair.until("the client heard of it", |pair| pair.clients[client].lost.is_some());
    assert!(matches!(pair.clients[client].lost, Some(ConnectionError::Reset)), "{:?}", pair.clients[client].lost);
    assert_eq!(pair.server.counters().resets_sent, 1);
}

#[test]
fn a_handshake_that_fails_opens_nothing() {
    let mut config = config();
    config.alpn = vec![b"another/1".to_vec()];
    let mut pair = Pair::new(config);
    let client = pair.dial();
    pair.until("the client heard of it", |pair| pair.clients[client].lost.is_some());
    pair.run(Duration::from_secs(10));
    assert!(pair.events.is_empty(), "{:?}", pair.events);
    let counters = pair.server.counters();
    assert_eq!((counters.handshakes_failed, counters.accepted, pair.server.peers), (1, 0, 0));
}

/// The first packet of a client that then does nothing.
fn first_packet(pair: &Pair) -> BytesMut {
    let mut other = Pair::new(config());
    other.now = pair.now;
    other.dial();
    other.step_clients();
    other.network.take_first(server_address())
}
