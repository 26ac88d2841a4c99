//! The world the tests run in.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint,
    EndpointConfig, Event as Said, ReadError, StreamEvent, StreamId, TransportConfig, VarInt,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thalweg_protocol::frame::{self, RawFrame, Splitter};

use crate::{Event, Link, Quic, QuicConfig};

/// What the network does to datagrams.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// Datagrams lost, in percent.
    pub(super) loss: u32,
    /// Datagrams that arrive twice, in percent.
    pub(super) repeat: u32,
    /// Each datagram is late by up to this long, so that they overtake each other.
    pub(super) jitter: Duration,
}

const LATENCY: Duration = Duration::from_micros(200);

static CERTIFICATE: LazyLock<(CertificateDer<'static>, Vec<u8>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    (made.cert.der().clone(), made.signing_key.serialize_der())
});

pub(super) fn server_address() -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, 1), 4433).into()
}

/// The address of the client with this number.
pub(super) fn client_address(number: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 1, (number >> 8) as u8, number as u8), 5000).into()
}

pub(super) fn config() -> QuicConfig {
    let (chain, key) = &*CERTIFICATE;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
    QuicConfig::new((vec![chain.clone()], key), [1; 64], [2; 64], [3; 32])
}

struct Packet {
    arrives: Instant,
    order: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: BytesMut,
}

/// Earliest first, in a heap whose greatest comes first.
impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.arrives, other.order).cmp(&(self.arrives, self.order))
    }
}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Packet {}

pub(super) struct Network {
    pub(super) faults: Faults,
    packets: BinaryHeap<Packet>,
    order: u64,
    random: StdRng,
    /// Longest batch of segments seen from the server.
    pub(super) segments_max: usize,
}

impl Network {
    pub(super) fn send(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if self.random.random_range(0..100) < self.faults.loss {
            return;
        }
        let copies = 1 + usize::from(self.random.random_range(0..100) < self.faults.repeat);
        for _ in 0..copies {
            let late = self.faults.jitter.mul_f64(self.random.random());
            self.order += 1;
            let (arrives, order) = (now + LATENCY + late, self.order);
            self.packets.push(Packet { arrives, order, from, to, bytes: bytes.into() });
        }
    }

    /// Takes the first datagram under way to an address.
    pub(super) fn take_first(&mut self, to: SocketAddr) -> BytesMut {
        let mut packets = std::mem::take(&mut self.packets).into_sorted_vec();
        let at = packets.iter().rposition(|packet| packet.to == to).expect("one is under way");
        packets.swap_remove(at).bytes
    }
}

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) server: Quic,
    pub(super) network: Network,
    pub(super) clients: Vec<Client>,
    /// What our side said, in order.
    pub(super) events: Vec<Event>,
    by_address: HashMap<SocketAddr, usize>,
    /// Clients there ever were.
    dialed: usize,
}

impl Pair {
    pub(super) fn new(config: QuicConfig) -> Self {
        Self::with_faults(config, Faults::default(), 0)
    }

    pub(super) fn with_faults(config: QuicConfig, faults: Faults, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let network = Network { faults, packets: BinaryHeap::new(), order: 0, random, segments_max: 0 };
        let server = Quic::new(config).expect("the configuration is sound");
        #[allow(
            clippy::disallowed_methods,
            reason = "some instant must be the first; the clock moves by itself from there"
        )]
        let now = Instant::now();
        Self { now, server, network, clients: Vec::new(), events: Vec::new(), by_address: HashMap::new(), dialed: 0 }
    }

    /// Begins a connection; gives the client's number.
    pub(super) fn dial(&mut self) -> usize {
        self.dial_with(&mut TransportConfig::default())
    }

    pub(super) fn dial_with(&mut self, transport: &mut TransportConfig) -> usize {
        let number = self.clients.len();
        let (transport, address) = (std::mem::take(transport), client_address(self.dialed));
        self.dialed += 1;
        self.clients.push(Client::dial(self.now, address, transport));
        self.by_address.insert(address, number);
        number
    }

    /// Begins a connection and waits until it is open.
    pub(super) fn connect(&mut self) -> (usize, Link) {
        let client = self.dial();
        let link = self.wait_open(client);
        (client, link)
    }

    pub(super) fn wait_open(&mut self, client: usize) -> Link {
        let remote = self.clients[client].address;
        self.until("the connection is open", |pair| pair.link_of(remote).is_some());
        self.link_of(remote).expect("it is open")
    }

    fn link_of(&self, address: SocketAddr) -> Option<Link> {
        self.events.iter().find_map(|event| match event {
            Event::Opened { link, remote } if *remote == address => Some(*link),
            _ => None,
        })
    }

    /// A single exchange: what clients have to say arrives, and so does what we answer.
    pub(super) fn step_clients(&mut self) {
        self.turn();
        self.now += LATENCY;
    }

    /// Has clients say and hear nothing from now on.
    pub(super) fn silence(&mut self, clients: &[usize]) {
        for &client in clients {
            let address = self.clients[client].address;
            self.by_address.remove(&address);
            self.clients[client].muted = true;
        }
    }

    /// Loses all clients without a word, and what we said about them.
    pub(super) fn drop_clients(&mut self) {
        self.clients.clear();
        self.by_address.clear();
        self.events.clear();
    }

    /// Moves a client to another address.
    pub(super) fn move_client(&mut self, client: usize, address: SocketAddr) {
        self.clients[client].address = address;
        self.by_address.insert(address, client);
    }

    /// Frames that arrived at the server from a link, in order.
    pub(super) fn frames(&self, of: Link) -> Vec<RawFrame> {
        let frame = |event: &Event| match event {
            Event::Frame { link, subject, payload, .. } if *link == of => {
                Some(RawFrame { subject: *subject, payload: payload.clone() })
            }
            _ => None,
        };
        self.events.iter().filter_map(frame).collect()
    }

    pub(super) fn closed(&self, of: Link) -> Option<crate::CloseReason> {
        self.events.iter().find_map(|event| match event {
            Event::Closed { link, reason } if *link == of => Some(reason.clone()),
            _ => None,
        })
    }

    /// Runs until the condition holds; fails after ten minutes of the pair's time.
    pub(super) fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = self.now + Duration::from_secs(600);
        loop {
            self.turn();
            if condition(self) {
                return;
            }
            assert!(self.advance(end), "nothing more happens, but not: {what}");
        }
    }

    /// Runs for a time, or until nothing more happens.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.turn();
            if !self.advance(end) {
                self.now = end;
                return self.turn();
            }
        }
    }

    /// Moves the clock to the next thing that happens; false if that is after `end`.
    fn advance(&mut self, end: Instant) -> bool {
        let packet = self.network.packets.peek().map(|packet| packet.arrives);
        let clients = self.clients.iter_mut().filter_map(|client| client.connection.poll_timeout());
        let next = clients.chain(packet).chain(self.server.next_timeout()).min();
        match next {
            Some(next) if next <= end => {
                self.now = self.now.max(next);
                true
            }
            _ => false,
        }
    }

    fn turn(&mut self) {
        let now = self.now;
        while self.network.packets.peek().is_some_and(|packet| packet.arrives <= now) {
            let packet = self.network.packets.pop().expect("it was there");
            if packet.to == server_address() {
                self.server.receive(now, packet.from, None, None, packet.bytes);
            } else if let Some(&client) = self.by_address.get(&packet.to)
                && self.clients[client].address == packet.to
            {
                self.clients[client].receive(now, packet.bytes, &mut self.network);
            }
        }
        self.drive_server();
        for client in &mut self.clients {
            client.drive(now, &mut self.network);
        }
    }

    pub(super) fn drive_server(&mut self) {
        let mut buffer = Vec::new();
        if self.server.next_timeout().is_some_and(|at| at <= self.now) {
            self.server.handle_timeouts(self.now);
        }
        while self.server.has_work() {
            self.events.extend(std::iter::from_fn(|| self.server.poll_event()));
            while let Some(transmit) = self.server.poll_transmit(self.now, 10, &mut buffer) {
                assert_eq!(transmit.bytes, buffer.len());
                let segments = buffer.chunks(transmit.segment_bytes.unwrap_or(buffer.len()));
                self.network.segments_max = self.network.segments_max.max(segments.len());
                for segment in segments {
                    self.network.send(self.now, server_address(), transmit.remote, segment);
                }
            }
        }
    }
}

/// A client of plain quinn-proto, one connection each.
pub(super) struct Client {
    pub(super) address: SocketAddr,
    endpoint: Endpoint,
    pub(super) connection: Connection,
    handle: ConnectionHandle,
    /// Bytes to write on the command lane, and how many at most at a time.
    outgoing: Bytes,
    pub(super) cut: usize,
    pub(super) command: Option<StreamId>,
    finish: bool,
    /// Whether it reads what arrives.
    pub(super) reading: bool,
    /// Every lane that has been seen, with what arrived and is not a whole frame.
    lanes: BTreeMap<u64, (StreamId, Splitter)>,
    /// Whole frames that arrived, with their lane, in order.
    pub(super) frames: Vec<(u64, RawFrame)>,
    /// Lanes that ended, and the code if by a reset.
    pub(super) ended: Vec<(u64, Option<u64>)>,
    pub(super) datagrams: Vec<Bytes>,
    /// What became of lanes that it wrote and the server stopped.
    pub(super) stopped: Vec<(StreamId, u64)>,
    pub(super) lost: Option<ConnectionError>,
    /// Says nothing more.
    muted: bool,
}

impl Client {
    fn dial(now: Instant, address: SocketAddr, transport: TransportConfig) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CERTIFICATE.0.clone()).expect("our certificate is one");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider speaks TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![thalweg_protocol::ALPN.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a cipher suite")));
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let (handle, connection) = endpoint.connect(now, config, server_address(), "localhost").expect("it can begin");
        Self {
            address,
            endpoint,
            connection,
            handle,
            outgoing: Bytes::new(),
            cut: usize::MAX,
            command: None,
            finish: false,
            reading: true,
            lanes: BTreeMap::new(),
            frames: Vec::new(),
            ended: Vec::new(),
            datagrams: Vec::new(),
            stopped: Vec::new(),
            lost: None,
            muted: false,
        }
    }

    /// Opens the command lane if need be and queues bytes on it.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.command.is_none() {
            let stream = self.connection.streams().open(Dir::Bi).expect("one lane may be opened");
            self.command = Some(stream);
            self.lanes.insert(stream.into(), (stream, Splitter::new()));
        }
        self.outgoing = [&self.outgoing[..], bytes].concat().into();
    }

    pub(super) fn write_frame(&mut self, subject: u32, payload: &[u8]) {
        self.write(&[&frame::header(payload.len(), subject)[..], payload].concat());
    }

    /// Ends the command lane after what is queued.
    pub(super) fn finish(&mut self) {
        self.finish = true;
    }

    /// Frames that arrived on a lane, in order.
    pub(super) fn frames_of(&self, lane: crate::Lane) -> Vec<RawFrame> {
        self.frames.iter().filter(|(of, _)| *of == lane.number()).map(|(_, frame)| frame.clone()).collect()
    }

    fn receive(&mut self, now: Instant, bytes: BytesMut, network: &mut Network) {
        let mut buffer = Vec::new();
        match self.endpoint.handle(now, server_address(), None, None::<EcnCodepoint>, bytes, &mut buffer) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => self.connection.handle_event(event),
            Some(DatagramEvent::Response(_)) => network.send(now, self.address, server_address(), &buffer),
            Some(DatagramEvent::NewConnection(_)) => panic!("a client accepts nobody"),
            None => {}
        }
    }

    fn drive(&mut self, now: Instant, network: &mut Network) {
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(now);
        }
        self.listen();
        self.write_on();
        if self.reading {
            let lanes: Vec<StreamId> = self.lanes.values().map(|(stream, _)| *stream).collect();
            lanes.into_iter().for_each(|lane| self.read(lane));
        }
        self.exchange();
        let mut buffer = Vec::new();
        while self.connection.poll_transmit(now, 1, &mut buffer).is_some() && !self.muted {
            network.send(now, self.address, server_address(), &buffer);
            buffer.clear();
        }
        self.exchange();
    }

    fn exchange(&mut self) {
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
    }

    fn listen(&mut self) {
        while let Some(said) = self.connection.poll() {
            match said {
                Said::ConnectionLost { reason } => self.lost = Some(reason),
                Said::Stream(StreamEvent::Opened { dir }) => {
                    while let Some(stream) = self.connection.streams().accept(dir) {
                        self.lanes.insert(stream.into(), (stream, Splitter::new()));
                    }
                }
                Said::Stream(StreamEvent::Stopped { id, error_code }) => self.stopped.push((id, error_code.into())),
                Said::DatagramReceived => {
                    self.datagrams.extend(std::iter::from_fn(|| self.connection.datagrams().recv()));
                }
                _ => {}
            }
        }
    }

    fn write_on(&mut self) {
        let Some(command) = self.command else { return };
        while !self.outgoing.is_empty() {
            let cut = self.cut.min(self.outgoing.len());
            match self.connection.send_stream(command).write(&self.outgoing[..cut]) {
                Ok(written) => drop(self.outgoing.split_to(written)),
                Err(_) => return,
            }
            if self.cut < usize::MAX {
                return;
            }
        }
        if std::mem::take(&mut self.finish) {
            self.connection.send_stream(command).finish().expect("it is open");
        }
    }

    fn read(&mut self, stream: StreamId) {
        let lane = u64::from(stream);
        let mut handle = self.connection.recv_stream(stream);
        let Ok(mut chunks) = handle.read(true) else { return };
        loop {
            let (_, splitter) = self.lanes.get_mut(&lane).expect("a lane that was seen");
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    splitter.push(chunk.bytes);
                    while let Some(frame) = splitter.next().expect("our frames are sound") {
                        self.frames.push((lane, frame));
                    }
                }
                Ok(None) => {
                    assert_eq!(splitter.pending(), 0, "lane {lane} ended within a frame");
                    self.ended.push((lane, None));
                    break;
                }
                Err(ReadError::Reset(code)) => {
                    self.ended.push((lane, Some(VarInt::into_inner(code))));
                    break;
                }
                Err(ReadError::Blocked) => break,
            }
        }
        let _ = chunks.finalize();
    }
}
