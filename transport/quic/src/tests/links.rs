//! Links that behave.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::ConnectionError;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use thalweg_protocol::frame::RawFrame;
use thalweg_protocol::limits::{FRAME_HEADER_BYTES, IDLE_TIMEOUT_MS};

use super::pair::{Faults, Pair, config};
use crate::{
    CloseReason, Event, Lane, LaneError, PRIORITY_DELIVERY, PRIORITY_GENERATION, QuicConfig, QuicError, SendError,
    TlsIdentity,
};

/// Frames of all kinds of lengths: empty, short, around the length from which payloads are shared, long.
fn frames(count: u32) -> Vec<RawFrame> {
    const LENGTHS: [usize; 8] = [0, 1, 64, 1_023, 1_024, 1_025, 5_000, 70_000];
    (0..count)
        .map(|n| {
            let payload = vec![n as u8; LENGTHS[n as usize % LENGTHS.len()]];
            RawFrame { subject: n, payload: payload.into() }
        })
        .collect()
}

#[test]
fn frames_go_both_ways_whatever_the_network_does() {
    struct Case {
        name: &'static str,
        faults: Faults,
        cut: usize,
        frames: u32,
    }
    let ms = Duration::from_millis;
    let cases = [
        Case { name: "a good network", faults: Faults::default(), cut: usize::MAX, frames: 64 },
        Case { name: "a byte at a time", faults: Faults::default(), cut: 1, frames: 3 },
        Case { name: "13 bytes at a time", faults: Faults::default(), cut: 13, frames: 6 },
        Case { name: "loss", faults: Faults { loss: 10, ..Faults::default() }, cut: usize::MAX, frames: 64 },
        Case { name: "reordering", faults: Faults { jitter: ms(20), ..Faults::default() }, cut: 997, frames: 64 },
        Case { name: "repetition", faults: Faults { repeat: 40, ..Faults::default() }, cut: usize::MAX, frames: 64 },
        Case { name: "all of it", faults: Faults { loss: 15, repeat: 15, jitter: ms(5) }, cut: 1_111, frames: 64 },
    ];
    for (seed, case) in cases.into_iter().enumerate() {
        let name = case.name;
        let mut pair = Pair::with_faults(config(), case.faults, seed as u64);
        let (client, link) = pair.connect();
        pair.clients[client].cut = case.cut;
        for frame in frames(case.frames) {
            pair.clients[client].write_frame(frame.subject, &frame.payload);
        }
        pair.until("all frames arrived", |pair| pair.frames(link).len() == case.frames as usize);
        assert_eq!(pair.frames(link), frames(case.frames), "{name}, to the server");

        for frame in frames(case.frames) {
            pair.server.send(link, Lane::COMMAND, frame.subject, frame.payload).expect(name);
        }
        pair.until("all frames arrived", |pair| pair.clients[client].frames.len() == case.frames as usize);
        assert_eq!(pair.clients[client].frames_of(Lane::COMMAND), frames(case.frames), "{name}, to the client");
        assert_eq!(pair.server.queued_total(link), 0, "{name}");
        assert_eq!(pair.server.counters().frames_received, u64::from(case.frames), "{name}");
        assert_eq!(pair.closed(link), None, "{name}");
    }
}

#[test]
fn many_lanes_keep_their_frames_apart_under_loss() {
    let faults = Faults { loss: 5, ..Faults::default() };
    let mut pair = Pair::with_faults(config(), faults, 1);
    let (client, link) = pair.connect();
    let lanes: Vec<Lane> = (0..40)
        .map(|n| {
            let priority = if n == 0 { PRIORITY_DELIVERY } else { PRIORITY_GENERATION };
            pair.server.open_lane(link, priority).expect("there is room")
        })
        .collect();
    for (n, &lane) in lanes.iter().enumerate() {
        for frame in frames(10) {
            let subject = frame.subject + 100 * n as u32;
            pair.server.send(link, lane, subject, frame.payload).expect("there is room");
        }
        pair.server.finish_lane(link, lane);
        let late = pair.server.send(link, lane, 0, Bytes::new());
        assert_eq!(late, Err(SendError::LaneClosed(link, lane)));
    }
    pair.until("all lanes ended", |pair| pair.clients[client].ended.len() == lanes.len());
    for (n, &lane) in lanes.iter().enumerate() {
        let expected: Vec<_> =
            frames(10).into_iter().map(|f| RawFrame { subject: f.subject + 100 * n as u32, ..f }).collect();
        assert_eq!(pair.clients[client].frames_of(lane), expected, "lane {n}");
    }
    pair.until("the server heard of it", |pair| {
        let closed = |event: &&Event| matches!(event, Event::LaneClosed { .. });
        pair.events.iter().filter(closed).count() == lanes.len()
    });
    assert!(pair.network.segments_max > 1, "batches of several datagrams were given out");
}

#[test]
fn commands_overtake_generations() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    pair.clients[client].write_frame(0, b"hello");
    pair.until("the command lane is open", |pair| pair.frames(link).len() == 1);
    let lane = pair.server.open_lane(link, PRIORITY_GENERATION).expect("there is room");
    for n in 0..40 {
        pair.server.send(link, lane, n, vec![0; 4_000].into()).expect("there is room");
    }
    pair.server.send(link, Lane::COMMAND, 0, Bytes::from_static(b"answer")).expect("there is room");
    pair.until("all arrived", |pair| pair.clients[client].frames.len() == 41);
    assert_eq!(pair.clients[client].frames[0].0, Lane::COMMAND.number(), "the answer came first");
}

#[test]
fn a_reader_that_stops_is_told_apart_from_one_that_reads() {
    let mut pair = Pair::new(config());
    let mut narrow = quinn_proto::TransportConfig::default();
    narrow.stream_receive_window(20_000_u32.into());
    let client = pair.dial_with(&mut narrow);
    let link = pair.wait_open(client);
    pair.clients[client].reading = false;
    let lane = pair.server.open_lane(link, PRIORITY_DELIVERY).expect("there is room");

    let (payload, mut sent) = (Bytes::from(vec![7; 3_000]), 0);
    for _ in 0..50 {
        pair.server.send(link, lane, 1, payload.clone()).expect("there is room");
        sent += payload.len() + FRAME_HEADER_BYTES;
        assert!(pair.server.queued(link, lane) <= sent);
    }
    let drained = |pair: &Pair| -> usize {
        let bytes = |event: &Event| match event {
            Event::Drained { bytes, .. } => *bytes,
            _ => 0,
        };
        pair.events.iter().map(bytes).sum()
    };
    pair.run(Duration::from_secs(5));
    let stuck = pair.server.queued(link, lane);
    assert_eq!(stuck, sent - 20_000, "the transport took what the client's window allows");
    assert_eq!(drained(&pair), 20_000);
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.server.queued(link, lane), stuck, "the queue grows only by what is sent");

    while pair.server.send(link, lane, 1, payload.clone()).is_ok() {
        sent += payload.len() + FRAME_HEADER_BYTES;
    }
    let max = pair.server.limits.queue_bytes;
    let queued = pair.server.queued_total(link);
    let full = pair.server.send(link, lane, 1, payload.clone());
    assert_eq!(full, Err(SendError::QueueFull { link, queued, max }));
    assert!(queued <= max && queued + payload.len() + FRAME_HEADER_BYTES > max);

    pair.clients[client].reading = true;
    pair.until("all was taken", |pair| pair.server.queued(link, lane) == 0);
    pair.run(Duration::from_secs(1));
    assert_eq!(drained(&pair), sent);
    assert_eq!(pair.clients[client].frames.len() * (payload.len() + FRAME_HEADER_BYTES), sent);
}

#[test]
fn lanes_are_bounded_reset_and_stopped() {
    let mut config = config();
    config.limits.lanes = 4;
    let mut pair = Pair::new(config);
    let (client, link) = pair.connect();
    let lanes: Vec<Lane> =
        (0..4).map(|_| pair.server.open_lane(link, PRIORITY_GENERATION).expect("there is room")).collect();
    let full = LaneError::LimitReached { link, open: 4 };
    assert_eq!(pair.server.open_lane(link, PRIORITY_GENERATION), Err(full));
    for &lane in &lanes {
        pair.server.send(link, lane, 0, Bytes::from_static(b"x")).expect("there is room");
    }
    pair.until("all arrived", |pair| pair.clients[client].frames.len() == 4);

    pair.server.reset_lane(link, lanes[0], 77);
    pair.until("the reset arrived", |pair| !pair.clients[client].ended.is_empty());
    assert_eq!(pair.clients[client].ended, [(lanes[0].number(), Some(77))]);

    let stream = lanes[1].stream();
    pair.clients[client].connection.recv_stream(stream).stop(5_u32.into()).expect("the lane is open");
    pair.until("the server heard of it", |pair| pair.events.contains(&Event::LaneClosed { link, lane: lanes[1] }));
    let late = pair.server.send(link, lanes[1], 0, Bytes::new());
    assert_eq!(late, Err(SendError::LaneClosed(link, lanes[1])));
    pair.server.open_lane(link, PRIORITY_GENERATION).expect("there is room again");
}

#[test]
fn closing_tells_the_code_and_the_reason() {
    let mut pair = Pair::new(config());
    let (ours, link) = pair.connect();
    pair.server.close(pair.now, link, 18, b"draining");
    pair.until("the client heard of it", |pair| pair.clients[ours].lost.is_some());
    match &pair.clients[ours].lost {
        Some(ConnectionError::ApplicationClosed(close)) => {
            assert_eq!((close.error_code.into_inner(), &close.reason[..]), (18, &b"draining"[..]));
        }
        other => panic!("the client saw {other:?}"),
    }
    assert_eq!(pair.closed(link), Some(CloseReason::Local { code: 18 }));
    assert_eq!(pair.server.send(link, Lane::COMMAND, 0, Bytes::new()), Err(SendError::LinkClosed(link)));
    pair.server.close(pair.now, link, 18, b"again");

    let (theirs, link_too) = pair.connect();
    pair.clients[theirs].connection.close(pair.now, 42_u32.into(), Bytes::from_static(b"bye"));
    pair.until("the server heard of it", |pair| pair.closed(link_too).is_some());
    let reason = CloseReason::Peer { code: 42, reason: Bytes::from_static(b"bye") };
    assert_eq!(pair.closed(link_too), Some(reason));

    pair.run(Duration::from_secs(30));
    let ends = pair.events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
    assert_eq!((ends, pair.server.connections(), pair.server.peers), (2, 0, 0), "each link ends once");
    assert_eq!((pair.server.counters().closed_by_us, pair.server.counters().closed_by_peer), (1, 1));
    let (_, next) = pair.connect();
    assert!(next != link && next != link_too, "links are not used again");
}

#[test]
fn a_silent_link_times_out() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    pair.network.faults.loss = 100;
    pair.run(Duration::from_millis(IDLE_TIMEOUT_MS + 10_000));
    assert_eq!(pair.closed(link), Some(CloseReason::TimedOut));
    assert!(pair.clients[client].lost.is_some());
    assert_eq!(pair.server.peers, 0);
}

#[test]
fn a_client_may_change_its_address() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    pair.clients[client].write_frame(1, b"before");
    pair.until("it arrived", |pair| pair.frames(link).len() == 1);
    let address = (Ipv4Addr::new(10, 9, 9, 9), 6000).into();
    pair.move_client(client, address);
    pair.clients[client].write_frame(2, b"after");
    pair.until("it arrived", |pair| pair.frames(link).len() == 2);
    assert_eq!(pair.server.remote(link), Some(address));
    assert_eq!(pair.server.counters().migrated, 1);
    pair.server.send(link, Lane::COMMAND, 3, Bytes::from_static(b"answer")).expect("there is room");
    pair.until("the answer arrived", |pair| pair.clients[client].frames.len() == 1);
    assert_eq!(pair.closed(link), None);
}

/// A certificate that changes is shown to those who come; who is there, or on the way, does not notice.
#[test]
fn another_certificate_is_shown_from_then_on() {
    let identity = |config: QuicConfig| TlsIdentity::native(config.certificate).expect("it is sound");
    let stranger = || {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        (vec![made.cert.der().clone()], key)
    };
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    let on_the_way = pair.dial();
    pair.step_clients();
    pair.step_clients();
    pair.server.set_identity(TlsIdentity::native(stranger()).expect("it is sound"));
    pair.wait_open(on_the_way);
    let refuses = pair.dial();
    pair.until("the client saw it", |pair| pair.clients[refuses].lost.is_some());
    pair.clients[client].write_frame(1, b"still here");
    pair.until("it arrived", |pair| pair.frames(link).len() == 1);
    pair.server.set_identity(identity(config()));
    pair.connect();
    assert_eq!(pair.closed(link), None);
    let (_, key) = stranger();
    let mismatch = TlsIdentity::native((stranger().0, key)).expect_err("they do not belong together");
    assert!(matches!(mismatch, QuicError::Certificate(rustls::Error::InconsistentKeys(_))), "{mismatch}");
}

#[test]
fn unreliable_datagrams_go_both_ways() {
    let mut pair = Pair::new(config());
    let (client, link) = pair.connect();
    pair.server.send_datagram(link, Bytes::from_static(b"typing")).expect("it is short");
    pair.clients[client].connection.datagrams().send(Bytes::from_static(b"awake"), true).expect("it is short");
    pair.until("both arrived", |pair| {
        let datagram = Event::Datagram { link, payload: Bytes::from_static(b"awake") };
        pair.events.contains(&datagram) && pair.clients[client].datagrams == [Bytes::from_static(b"typing")]
    });
    let long = pair.server.send_datagram(link, Bytes::from(vec![0; 70_000]));
    assert!(matches!(long, Err(SendError::TooLarge { bytes: 70_000, .. })), "{long:?}");
}

#[test]
fn idle_links_cost_a_turn_nothing() {
    const LINKS: usize = 1_000;
    let mut pair = Pair::new(config());
    for _ in 0..LINKS {
        pair.connect();
        // Their clients say no more; what follows is about our side alone.
        pair.drop_clients();
    }
    assert_eq!(pair.server.connections(), LINKS);
    assert!(!pair.server.has_work());
    assert!(pair.server.deadlines_len() <= LINKS, "one entry per connection");
    let next = pair.server.next_timeout().expect("idle links time out");
    assert!(next > pair.now);
    let batches = pair.server.counters().batches_sent;
    assert_eq!(pair.server.poll_transmit(pair.now, 10, &mut Vec::new()), None);
    assert_eq!(pair.server.poll_event(), None);
    assert_eq!(pair.server.counters().batches_sent, batches);
}
